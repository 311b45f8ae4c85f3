"""What a user gets wrong: an error that names the argument or site, what was found, and what to do."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from guide_models import GENERAL, SCHOOLS, line, linear, network, regression, schools
from torch.distributions import constraints

import guides
from _posterior_zoo_registry import UnknownNameError
from guides import errors
from guides.compile.loops import has_compiler

QUICK = {"steps": 30, "lr": 0.03}


@pytest.fixture(scope="module")
def data():
    return line()


def spoiled(values, index, value):
    values = values.clone()
    values[index] = value
    return values


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite(value, data):
    x, y = data
    with pytest.raises(
        errors.DataError, match=r"argument 1 has 1 NaN or infinite values, the first at index \(3,\).*impute"
    ):
        guides.fit(linear, "mean_field", x, spoiled(y, 3, value))
    with pytest.raises(errors.DataError, match=r"argument 0 has 1 NaN or infinite values, the first at index \(2, 1\)"):
        guides.fit(linear, "mean_field", spoiled(x, (2, 1), value).numpy(), y.numpy())
    with pytest.raises(errors.DataError, match="argument 'y' has 1 NaN"):
        guides.fit(linear, "mean_field", x, model_kwargs={"y": spoiled(y, 3, value)})
    with pytest.raises(errors.DataError, match="argument 1 has 1 NaN"):
        guides.fit_many(linear, "mean_field", [(x, y), (x, spoiled(y, 0, value))])
    with pytest.raises(errors.DataError, match="argument 1 has 1 NaN"):
        guides.fit(linear, "mean_field", x, y, validation=(x, spoiled(y, 0, value)))


def test_rows_that_do_not_match(data):
    x, y = data
    with pytest.raises(errors.DataError, match=r"argument 0: \(30, 3\), argument 1: \(29,\).*same data points"):
        guides.fit(linear, "mean_field", x, y[:-1])


def test_shapes_that_the_model_cannot_take(data):
    x, y = data
    for model in (linear, without_a_plate_or_event):  # would broadcast to 30 x 30 densities
        with pytest.raises(errors.DataError, match=r"(?s)cannot be run.*\(30, 3\), \(30, 1\).*at site .y.*shape"):
            guides.fit(model, "mean_field", x, y[:, None])
    with pytest.raises(errors.DataError, match=r"cannot be run.*\(30, 2\), \(30,\)"):
        guides.fit(without_a_plate, "mean_field", x[:, :2], y)


def test_shapes_that_differ_between_data_sets(data):
    x, y = data
    with pytest.raises(errors.DataError, match=r"argument 0 has different shapes.*\(20, 3\), \(30, 3\)"):
        guides.fit_many(linear, "mean_field", [(x, y), (x[:20], y[:20])], steps=2)
    with pytest.raises(errors.DataError, match="datasets is empty"):
        guides.fit_many(linear, "mean_field", [])
    with pytest.raises(errors.DataError, match="1 validations for 2 data sets"):
        guides.fit_many(linear, "mean_field", [(x, y), (x, y)], validations=[(x, y)])
    with pytest.raises(errors.OptionError, match="1 seeds for 2 data sets"):
        guides.fit_many(linear, "mean_field", [(x, y), (x, y)], seeds=[1])


def test_empty_data():
    with pytest.raises(errors.DataError, match=r"argument 0 is empty \(shape \(0, 3\)\)"):
        guides.fit(linear, "mean_field", torch.zeros(0, 3), torch.zeros(0))
    with pytest.raises(errors.DataError, match="argument 0 is empty"):
        guides.fit(linear, "mean_field", np.zeros((0, 3)), np.zeros(0))


@pytest.mark.parametrize("size", [31, 0, -1])
def test_a_batch_that_does_not_fit_the_data(size, data):
    with pytest.raises(errors.OptionError, match=rf"batch_size={size} but there are 30 data points; use 1 to 30"):
        guides.fit(linear, "mean_field", *data, batch_size=size)


def test_batches_of_nothing():
    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=torch.tensor(1.0))

    with pytest.raises(errors.OptionError, match="batch_size was given but no positional tensor"):
        guides.fit(model, "mean_field", batch_size=3)
    with pytest.raises(errors.OptionError, match="validation is a fraction, but no positional tensor"):
        guides.fit(model, "mean_field", validation=0.5)


@pytest.mark.parametrize("fraction", [0.0, 0.001, 1.0, 1.7])
def test_a_validation_fraction_that_leaves_nothing(fraction, data):
    with pytest.raises(errors.OptionError, match=rf"validation={fraction} of 30 data points leaves a part empty"):
        guides.fit(linear, "mean_field", *data, validation=fraction)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"steps": 10.5}, "steps must be a whole number, not 10.5"),
        ({"lr": "fast"}, "lr must be positive and finite, not 'fast'"),
        ({"epochs": -1}, "epochs must be at least 1, not -1"),
        ({"steps": 1, "epochs": 1}, "either steps or epochs"),
        ({"lr": 0.0}, "lr must be positive and finite, not 0.0"),
        ({"lr": math.nan}, "lr must be positive and finite, not nan"),
        ({"lr": math.inf}, "lr must be positive and finite, not inf"),
        ({"clip_norm": 0.0}, "clip_norm must be positive"),
        ({"num_particles": 0}, "num_particles must be at least 1"),
        ({"replicates": 0}, "replicates must be at least 1"),
        ({"replicates": 1.5}, "replicates must be a whole number, not 1.5"),
        ({"seed": None}, "seed must be a whole number, not None"),
        ({"patience": 0, "validation": 0.2}, "patience must be at least 1"),
        ({"patience": 3}, "patience needs validation data: pass validation="),
        ({"optimizer": "adamm"}, "optimizer='adamm' is not known; use one of 'adam', 'clipped_adam', 'sgd'"),
        ({"precision": "bfloat61"}, "precision='bfloat61' is not known; use one of 'float32', 'bfloat16', 'float16'"),
        ({"schedule": "cosin"}, "schedule='cosin' is not known; use one of 'constant', 'cosine', 'linear'"),
        ({"compile": "jit"}, "compile='jit' is not known; use one of 'auto', 'eager'"),
        ({"objective": 3}, r"objective must be a .*name \(dlgmm, elbo,.*\).*not int"),
        ({"objective": guides.ELBO(2), "num_particles": 2}, "num_particles is set in the objective"),
    ],
)
def test_options_that_make_no_sense(options, message, data):
    with pytest.raises(errors.OptionError, match=message):
        guides.fit(linear, "mean_field", *data, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there(data):
    with pytest.raises(errors.OptionError, match="device='cuda' but no CUDA device"):
        guides.fit(linear, "mean_field", *data, device="cuda")


def test_unknown_names_get_the_nearest(data):
    with pytest.raises(UnknownNameError, match=r"no guide named 'mean_feild'. Did you mean 'mean_field'\?.*full_rank"):
        guides.fit(linear, "mean_feild", *data)
    with pytest.raises(UnknownNameError, match=r"no objective named 'elb'. Did you mean 'elbo'\?"):
        guides.fit(linear, "mean_field", *data, objective="elb")
    with pytest.raises(UnknownNameError, match="Did you mean 'laplace'"):
        guides.compare(linear, ["map", "laplase"], *data)


def test_no_guide_and_no_natural_guide(data):
    with pytest.raises(errors.OptionError, match=r"no natural_guide; pass one of amortized, .*mean_field"):
        guides.fit(linear, None, *data)


def test_a_guide_that_misses_a_site(data):
    def guide(x, y=None):
        pyro.sample("w", dist.Normal(pyro.param("m", torch.zeros(3, 1)), 1.0).to_event(2))

    with pytest.raises(errors.GuideMismatchError, match="guide 'guide' does not sample latent site 's' of the model; it s"):
        guides.fit(regression, guide, *data)


def test_a_guide_that_invents_a_site(data):
    def guide(x, y=None):
        pyro.sample("w", dist.Normal(pyro.param("m", torch.zeros(3)), 1.0).to_event(1))
        pyro.sample("v", dist.Normal(0.0, 1.0))

    with pytest.raises(errors.GuideMismatchError, match=r"samples 'v', which the model does not have.*'w'.*is_auxiliary"):
        guides.fit(linear, guide, *data)


def test_a_guide_that_draws_the_data(data):
    def guide(x, y=None):
        pyro.sample("w", dist.Normal(pyro.param("m", torch.zeros(3)), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(pyro.param("l", torch.zeros(())), 1.0))

    with pytest.raises(errors.GuideMismatchError, match=r"samples 'y', which is observed in the model"):
        guides.fit(linear, guide, *data)


def test_a_guide_with_an_auxiliary_site_is_fine(data):
    def guide(x, y=None):
        e = pyro.sample("e", dist.Normal(torch.zeros(3), 1.0).to_event(1).mask(False), infer={"is_auxiliary": True})
        pyro.sample("w", dist.Delta(pyro.param("m", torch.zeros(3)) + 0.1 * e).to_event(1))

    assert guides.fit(linear, guide, *data, **QUICK).losses.isfinite().all()


def test_a_guide_of_another_shape(data):
    def guide(x, y=None):
        pyro.sample("w", dist.Normal(pyro.param("m", torch.zeros(2)), 1.0).to_event(1))

    with pytest.raises(errors.GuideMismatchError, match=r"site 'w' with shape \(2,\), the model with \(3,\)"):
        guides.fit(linear, guide, *data)
    used = guides.MeanField(linear)
    used(data[0][:, :2], data[1])
    with pytest.raises(errors.GuideMismatchError, match="set up on other data"):
        guides.fit(linear, used, *data)


def test_a_guide_that_cannot_be_reparameterised(data):
    def guide(x, y=None):
        rate = pyro.param("rate", torch.tensor(1.0), constraint=constraints.positive)
        pyro.sample("w", dist.Normal(torch.zeros(3, 1), 1.0).to_event(2))
        pyro.sample("s", dist.Poisson(rate))

    with pytest.raises(errors.GuideMismatchError, match=r"draws site 's' from Poisson, which cannot be reparameterised"):
        guides.fit(regression, guide, *data)


@pytest.mark.parametrize("family", GENERAL)
def test_a_discrete_latent(family, data):
    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3, 1]).to_event(2))
        k = pyro.sample("k", dist.Bernoulli(0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal((x @ w).squeeze(-1) + k, 1.0), obs=y)

    with pytest.raises(errors.DiscreteLatentError, match=r"latent site 'k' is discrete \(Bernoulli\).*marginalise"):
        guides.fit(model, family, *data)


def test_no_latent_at_all(data):
    def model(x, y=None):
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(pyro.param("m", torch.tensor(0.0)), 1.0), obs=y)

    with pytest.raises(errors.GuideMismatchError, match="no latent sample site"):
        guides.fit(model, "mean_field", *data)


def without_a_plate(x, y=None):
    """The whole data as one event: right for all of it, wrong for a batch."""
    w = pyro.sample("w", dist.Normal(torch.zeros(3), 2.0).to_event(1))
    pyro.sample("y", dist.Normal(x @ w, 0.5).to_event(1), obs=y)


def without_a_plate_or_event(x, y=None):
    w = pyro.sample("w", dist.Normal(torch.zeros(3), 2.0).to_event(1))
    pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)


def scaled_by_hand(x, y=None):
    with pyro.poutine.scale(scale=30 / len(x)):
        return without_a_plate_likelihood(x, y, pyro.sample)


def without_a_plate_likelihood(x, y, sample):
    with pyro.poutine.scale(scale=len(x) / 30):
        w = sample("w", dist.Normal(torch.zeros(3), 2.0).to_event(1))
    sample("y", dist.Normal(x @ w, 0.5).to_event(1), obs=y)


def subsampled(x, y=None):
    """The plate of the full size with the batch as its subsample, as stock SVI needs it."""
    w = pyro.sample("w", dist.Normal(torch.zeros(3), 2.0).to_event(1))
    with pyro.plate("data", 30, subsample=torch.arange(len(x))):
        pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)


def test_a_minibatch_that_is_not_scaled_to_the_data(data):
    guides.fit(without_a_plate, "mean_field", *data, **QUICK)  # all of the data is fine
    with pytest.raises(errors.MinibatchScaleError, match=r"observed site 'y' gets 10 of 30.*by 1 instead of 3.*pyro\.plate"):
        guides.fit(without_a_plate, "mean_field", *data, batch_size=10)


@pytest.mark.parametrize("model", [linear, scaled_by_hand, subsampled])
def test_a_minibatch_that_is_scaled_has_the_full_datas_gradient_on_average(model, data):
    """A point mass has no noise but the batch's, and in one pass every row has its turn: the mean is exact."""
    start = {"init_loc_fn": pyro.infer.autoguide.init_to_value(values={"w": torch.tensor([0.3, -0.2, 0.1])})}
    options = {"lr": 1e-7, "optimizer": "sgd", "steps": 3, "compile": "eager"}
    batched = guides.fit(model, ("map", start), *data, batch_size=10, **options)
    full = guides.fit(model, ("map", start), *data, **{**options, "steps": 1})
    torch.testing.assert_close(batched.losses.mean(), full.losses[0, 0], rtol=1e-4, atol=1e-2)


def test_a_latent_per_data_point_under_minibatches():
    with pytest.raises(
        errors.MinibatchScaleError, match=r"latent site 'theta' has one value per data point \(shape \(8,\)\)"
    ):
        guides.fit(schools, "mean_field", *SCHOOLS, batch_size=4)
    assert guides.fit(schools, "mean_field", *SCHOOLS, **QUICK).losses.isfinite().all()


NEEDS_COMPILER = pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")


def drifting(x, y=None):
    """A parameter that Adam takes down by its learning rate at every step where x is positive, and up elsewhere.

    Once it is negative, the scale of site "bad" is NaN.
    """
    a = pyro.param("a", torch.tensor(1.05))
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.factor("drift", -100.0 * a * x.mean())
    pyro.sample("good", dist.Normal(z, 1.0), obs=torch.tensor(0.5))
    with pyro.plate("data", len(x)):
        pyro.sample("bad", dist.Normal(z, 1.0 + 0.0 * a.sqrt()), obs=y)


@pytest.mark.parametrize("mode", ["eager", "trace", pytest.param("native", marks=NEEDS_COMPILER)])
def test_a_loss_that_turns_nan_stops_there_and_names_the_site(mode):
    x, y = torch.ones(4), torch.zeros(4)
    with pytest.warns(errors.NonFiniteLossWarning, match="the loss was not finite at step 11, first at model site 'bad'"):
        posterior = guides.fit(drifting, "map", x, y, steps=50, lr=0.1, compile=mode)
    assert "at step 11, first at model site 'bad'; kept the last finite parameters" in posterior.stop_reasons[0]
    assert posterior.losses[0, :11].isfinite().all()
    assert posterior.losses[0, 11:].isnan().all()
    assert posterior.steps == 11
    assert all(p.isfinite().all() for p in posterior.parameters.values())
    assert pyro.get_param_store().keys() == {}.keys()


@pytest.mark.parametrize("chunk", [100, 11, 10])
def test_the_parameters_kept_are_those_of_the_last_finite_loss(chunk, monkeypatch):
    monkeypatch.setattr("guides.optimise.loop._STEPS_PER_CHUNK", chunk)  # of 11, the bad step is the first of its chunk
    with pytest.warns(errors.NonFiniteLossWarning):
        posterior = guides.fit(drifting, "map", torch.ones(4), torch.zeros(4), steps=50, lr=0.1)
    assert float(posterior.parameters["a"]) == pytest.approx(0.05, abs=1e-4)
    assert posterior.log_likelihood(num_samples=2)["bad"].isfinite().all()


def test_other_replicates_go_on():
    up, down, y = -torch.ones(4), torch.ones(4), torch.zeros(4)
    with pytest.warns(errors.NonFiniteLossWarning, match="replicate 1: the loss was not finite at step 11"):
        posteriors = guides.fit_many(drifting, "map", [(up, y), (down, y), (up, y)], steps=50, lr=0.1)
    assert posteriors[1].losses[0, 11:].isnan().all()
    for r in (0, 2):
        assert posteriors[r].losses.isfinite().all()
        assert posteriors[r].stop_reasons == ("ran all 50 steps",)
        assert float(posteriors[r].parameters["a"]) == pytest.approx(1.05 + 50 * 0.1, rel=1e-3)


def test_a_gradient_that_is_not_finite_keeps_the_parameters_before_it():
    def cusp(x, y=None):
        a = pyro.param("a", torch.tensor(1.0))
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("drift", -100.0 * a - torch.where(a > 0.45, (a - 0.45).sqrt(), 0.0))  # at 0.4 the gradient is 0 * NaN
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    with pytest.warns(errors.NonFiniteLossWarning, match="the gradient was not finite at step 6"):
        posterior = guides.fit(cusp, "map", torch.ones(4), torch.zeros(4), steps=50, lr=0.1)
    assert float(posterior.parameters["a"]) == pytest.approx(0.4, abs=1e-3)


def test_a_loss_that_is_nan_at_once(data):
    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w, 1e-30), obs=y)

    with pytest.raises(
        errors.NonFiniteLossError, match=r"before the first step, first at model site 'y'.*init_loc_fn='sample'"
    ):
        guides.fit(model, "mean_field", *data, **QUICK)


@pytest.mark.filterwarnings("ignore::guides.errors.NotAtTheModeWarning")  # which is so, and said of laplace besides
@pytest.mark.parametrize("family", ["low_rank", "full_rank", "mean_field", "laplace"])
def test_every_family_survives_parameters_that_blow_up(family, data):
    x, y = data
    with pytest.warns(errors.NonFiniteLossWarning, match=r"not finite at step \d+"):
        posterior = guides.fit(network, family, x, 1e10 * y, steps=200, lr=1e25, optimizer="sgd")
    assert all(p.isfinite().all() for p in posterior.parameters.values())


def test_saved_posteriors_that_are_not_one(data, tmp_path):
    posterior = guides.fit(linear, "mean_field", *data, **QUICK)
    path = tmp_path / "posterior"
    posterior.save(path)
    content = path.read_bytes()
    with pytest.raises(FileNotFoundError):
        guides.Posterior.load(tmp_path / "missing", linear)
    for broken in (content[: len(content) // 2], b"", b"not a posterior"):
        (tmp_path / "broken").write_bytes(broken)
        with pytest.raises(errors.DataError, match=r"broken is not a saved posterior, or is damaged"):
            guides.Posterior.load(tmp_path / "broken", linear)
    torch.save({"format": 0}, tmp_path / "old")
    with pytest.raises(errors.DataError, match="old is not a posterior saved by this version"):
        guides.Posterior.load(tmp_path / "old", linear)
    with pytest.raises(errors.DataError, match="not those of this model"):
        guides.Posterior.load(path, regression)


def test_a_posterior_of_a_guide_that_is_not_registered_needs_it_again(data, tmp_path):
    def mine(x, y=None):
        scale = pyro.param("scale", torch.ones(3), constraint=constraints.positive)
        pyro.sample("w", dist.Normal(pyro.param("loc", torch.zeros(3)), scale).to_event(1))

    posterior = guides.fit(linear, mine, *data, **QUICK)
    posterior.save(tmp_path / "posterior")
    with pytest.raises(errors.OptionError, match="saved guide 'mine' is not in the registry; pass it as guide="):
        guides.Posterior.load(tmp_path / "posterior", linear)
    loaded = guides.Posterior.load(tmp_path / "posterior", linear, guide=mine)
    torch.testing.assert_close(loaded.sample(3), posterior.sample(3))


def test_what_cannot_be_saved_is_named_and_leaves_no_file(data, tmp_path):
    init = pyro.infer.autoguide.init_to_median
    posterior = guides.fit(linear, ("mean_field", {"init_loc_fn": init}), *data, **QUICK)
    with pytest.raises(errors.OptionError, match="cannot be saved"):
        posterior.save(tmp_path / "posterior")
    assert list(tmp_path.iterdir()) == []


def test_posteriors_refuse_what_they_cannot_answer(data):
    posterior = guides.fit(linear, "mean_field", *data, **QUICK)
    with pytest.raises(errors.OptionError, match="num_samples must be at least 1"):
        posterior.sample(0)
    with pytest.raises(IndexError, match="replicate 1 of 1"):
        posterior.replicate(1)
    with pytest.raises(errors.DataError, match="log_prob needs a value for latent site 'w'"):
        posterior.log_prob({})
    with pytest.raises(errors.DataError, match=r"latent site 'w' has shape \(3,\), the value has \(2,\)"):
        posterior.log_prob({"w": torch.zeros(2)})
    with pytest.raises(errors.DataError, match="no site of the model is observed on these data"):
        posterior.log_likelihood(data[0], num_samples=2)
    with pytest.raises(errors.DataError, match="argument 0 has 1 NaN"):
        posterior.predict(spoiled(data[0], (0, 0), math.nan))


def test_predicting_for_other_columns_than_those_of_the_data(data):
    posterior = guides.fit(linear, "mean_field", *data, **QUICK)
    with pytest.raises(errors.DataError, match=r"argument 0 has shape \(4, 2\), the training data's was \(rows, 3\)"):
        posterior.predict(torch.zeros(4, 2), num_samples=2)


def test_draws_that_no_memory_could_hold(data):
    posterior = guides.fit(linear, "mean_field", *data, **QUICK)
    with pytest.raises(errors.OptionError, match=r"1000000000 draws of site 'y' for 30 rows .*\(120 GB\); ask for fewer"):
        posterior.predict(*data, num_samples=10**9)


def test_compare_refuses_an_empty_list_and_equal_labels(data):
    with pytest.raises(errors.OptionError, match="guides is empty"):
        guides.compare(linear, [], *data)
    with pytest.raises(errors.OptionError, match="two guides have the same label"):
        guides.compare(linear, ["map", "map"], *data)


def factored(x, y=None):
    """A likelihood by pyro.factor, whose shape says nothing of the rows in it."""
    w = pyro.sample("w", dist.Normal(torch.zeros(3), 2.0).to_event(1))
    pyro.factor("likelihood", dist.Normal(x @ w, 0.5).log_prob(y).sum())


def factored_in_a_plate(x, y=None):
    w = pyro.sample("w", dist.Normal(torch.zeros(3), 2.0).to_event(1))
    pyro.factor("prior", -w.square().sum())
    with pyro.plate("data", len(x)):
        pyro.factor("likelihood", dist.Normal(x @ w, 0.5).log_prob(y))


def test_a_factor_that_is_not_scaled_to_the_data(data):
    guides.fit(factored, "map", *data, **QUICK)
    with pytest.raises(errors.MinibatchScaleError, match=r"pyro.factor 'likelihood' depends on the data points of a batch"):
        guides.fit(factored, "map", *data, batch_size=10)
    with pytest.raises(errors.MinibatchScaleError, match="from 10 to all 30"):
        guides.fit(lambda x, y=None: scaled_factor(x, y, 2.0), "map", *data, batch_size=10)
    for model in (factored_in_a_plate, lambda x, y=None: scaled_factor(x, y, 30 / len(x))):
        assert guides.fit(model, "map", *data, batch_size=10, **QUICK).losses.isfinite().all()


def scaled_factor(x, y, scale):
    w = pyro.sample("w", dist.Normal(torch.zeros(3), 2.0).to_event(1))
    with pyro.poutine.scale(scale=scale):
        pyro.factor("likelihood", dist.Normal(x @ w, 0.5).log_prob(y).sum())


@pytest.mark.parametrize(
    "validation", [1, torch.zeros(3), (torch.zeros(5, 3),), (torch.zeros(5, 2), torch.zeros(5)), (torch.zeros(5, 3), None)]
)
def test_validation_data_that_are_not_like_the_data(validation, data):
    with pytest.raises(ValueError, match="validation"):
        guides.fit(linear, "mean_field", *data, validation=validation, epochs=2)


def test_an_unknown_option_of_a_family_costs_no_finished_work(data):
    table = guides.compare(linear, ["map", ("mean_field", {"init_scal": 0.1})], *data, **QUICK)
    assert "init_scal" in next(r.error for r in table.rows if r.guide != "map")


@pytest.mark.filterwarnings("ignore::guides.errors.EagerFallbackWarning")
@pytest.mark.parametrize("options", [{"replicates": 2}, {"num_particles": 2}, {"replicates": 2, "num_particles": 3}])
def test_a_model_that_cannot_be_vectorised_runs_one_by_one(options, data):
    def branching(x, y=None):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(z if z > 0 else -z, 0.5), obs=y)

    with pytest.warns(errors.EagerFallbackWarning) as warned:
        slow = guides.fit(branching, "mean_field", *data, compile="eager", **options, **QUICK)
    for what in options:
        kind = what.removeprefix("num_")
        assert any(f"cannot be vectorised over {kind}" in str(w.message) for w in warned)
    if "replicates" in options:
        options = {name: value for name, value in options.items() if name != "replicates"}
        for r in range(2):
            single = guides.fit(branching, "mean_field", *data, compile="eager", seed=r, **options, **QUICK)
            torch.testing.assert_close(slow.replicate(r).losses, single.losses)


@pytest.mark.parametrize("guide", [guides.Laplace(network, predictive="sampled"), guides.LowRank(network, rank=1)])
def test_a_guide_object_is_saved_with_its_options(guide, data, tmp_path):
    posterior = guides.fit(network, guide, *data, **QUICK)
    posterior.save(tmp_path / "posterior")
    loaded = guides.Posterior.load(tmp_path / "posterior", network)
    torch.testing.assert_close(loaded.predict(data[0], num_samples=5), posterior.predict(data[0], num_samples=5))


def test_validation_with_a_latent_per_data_point():
    with pytest.raises(errors.OptionError, match=r"'theta' has one value per data point.*fit without validation"):
        guides.fit(schools, "mean_field", *SCHOOLS, validation=0.25, epochs=3)


@pytest.mark.parametrize("guide", ["mean_field", "laplace"])
def test_a_model_that_leaves_torch_for_numpy(guide):
    def model(y):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(torch.tensor(float(z.numpy() ** 2)), 1.0), obs=y)

    with pytest.raises(errors.UnsupportedModelError, match=r"cannot be differentiated.*z\.numpy.*through numpy: write"):
        guides.fit(model, guide, torch.tensor(1.0), steps=10**6)
