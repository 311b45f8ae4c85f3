"""What a fit does beyond its steps: stop early, survive being killed, train modules, take any guide."""

import functools

import pyro
import pyro.distributions as dist
import pytest
import torch
from guide_models import GENERAL, line, linear, network, regression
from torch import nn
from torch.distributions import constraints

import guides
from guides import errors


@pytest.fixture(scope="module")
def data():
    return line()


def location(x, y=None):
    """MAP moves from 0 towards the mean of x, by about the learning rate at every step."""
    z = pyro.sample("z", dist.Normal(0.0, 100.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


FROM_ZERO = ("map", {"init_loc_fn": pyro.infer.autoguide.init_to_value(values={"z": torch.tensor(0.0)})})


@pytest.mark.parametrize("mode", ["eager", "trace"])
def test_early_stopping_restores_the_best_parameters(mode):
    """The training data pull to 5, the validation data lie at 2, which is passed on the way."""
    posterior = guides.fit(
        location,
        FROM_ZERO,
        torch.full((20,), 5.0),
        validation=(torch.full((7,), 2.0),),
        patience=4,
        epochs=200,
        lr=0.1,
        compile=mode,
    )
    z = float(posterior.parameters["MAP.z"])
    assert z == pytest.approx(2.0, abs=0.06)
    best = int(posterior.validation[0].nan_to_num(-9e9).argmax())
    assert posterior.steps == best + 1 + 4  # an epoch is one step here
    assert posterior.losses.shape == (1, posterior.steps)
    assert (
        f"no better validation score for 4 epochs; restored the parameters of epoch {best + 1}" in posterior.stop_reasons[0]
    )
    score = dist.Normal(z, 1.0).log_prob(torch.tensor(2.0))
    torch.testing.assert_close(posterior.validation[0, best], score)


def test_without_patience_all_epochs_run_and_the_best_are_restored():
    options = {"epochs": 60, "lr": 0.1}
    posterior = guides.fit(location, FROM_ZERO, torch.full((20,), 5.0), validation=(torch.full((7,), 2.0),), **options)
    assert posterior.steps == 60
    assert posterior.stop_reasons == ("ran all 60 steps",)
    assert float(posterior.parameters["MAP.z"]) == pytest.approx(2.0, abs=0.06)
    assert posterior.validation.shape == (1, 60)


@pytest.mark.parametrize("mode", ["eager", "trace"])
def test_each_replicate_stops_by_itself(mode):
    training = [(torch.full((20,), 5.0),) for _ in range(3)]
    validations = [(torch.full((7,), v),) for v in (2.0, 4.0, 1.0)]
    options = {"patience": 3, "epochs": 100, "lr": 0.1, "batch_size": 10}
    together = guides.fit_many(location, FROM_ZERO, training, validations=validations, compile=mode, **options)
    for r, posterior in enumerate(together):
        alone = guides.fit(location, FROM_ZERO, *training[r], validation=validations[r], seed=r, compile="eager", **options)
        torch.testing.assert_close(posterior.flat, alone.flat, rtol=1e-4, atol=1e-4)
        assert posterior.stop_reasons == alone.stop_reasons
        ran = alone.losses.shape[1]
        torch.testing.assert_close(posterior.losses[:, :ran], alone.losses, rtol=1e-4, atol=1e-3)
        assert posterior.losses[:, ran:].isnan().all()
    assert len({p.stop_reasons for p in together}) == 3


def test_a_fraction_is_held_out_and_scored(data):
    posterior = guides.fit(linear, "mean_field", *data, validation=0.2, epochs=5)
    assert posterior.training.size == 24
    assert posterior.validation.shape == (1, 5)
    again = guides.fit(linear, "mean_field", *data, validation=0.2, epochs=5)
    torch.testing.assert_close(again.data, posterior.data)
    rows = {tuple(r.tolist()) for r in posterior.data[0]}
    assert rows < {tuple(r.tolist()) for r in data[0]}


class Killed(BaseException):
    """Not an Exception, as the signals that end a process are not."""


def dying(model, calls):
    left = iter(range(calls))

    def run(x, y=None):
        if next(left, None) is None:
            raise Killed
        return model(x, y)

    return run


@pytest.mark.parametrize("calls", [60, 110])
def test_a_killed_fit_continues_to_the_same_result(calls, data, tmp_path, monkeypatch):
    monkeypatch.setattr("guides.checkpoint_file._SECONDS_BETWEEN", -1.0)
    options = {
        "epochs": 20,
        "batch_size": 7,
        "lr": 0.02,
        "schedule": "cosine",
        "validation": 0.2,
        "patience": 12,
        "replicates": 2,
        "num_particles": 2,
        "compile": "eager",
    }
    whole = guides.fit(regression, "mean_field", *data, **options)
    path = tmp_path / "checkpoint"
    with pytest.raises(Killed):
        guides.fit(dying(regression, calls), "mean_field", *data, checkpoint=path, **options)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]
    saved = torch.load(path, weights_only=True)["state"]["step"]
    assert 0 < saved < whole.steps
    continued = guides.fit(regression, "mean_field", *data, checkpoint=path, **options)
    torch.testing.assert_close(continued.flat, whole.flat, rtol=0, atol=0)
    torch.testing.assert_close(continued.losses, whole.losses, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(continued.validation, whole.validation, rtol=0, atol=0, equal_nan=True)
    assert continued.stop_reasons == whole.stop_reasons
    runs = []
    finished = guides.fit(
        lambda x, y=None: (runs.append(1), regression(x, y))[1], "mean_field", *data, checkpoint=path, **options
    )
    torch.testing.assert_close(finished.flat, whole.flat, rtol=0, atol=0)
    assert len(runs) < 20  # set up, but not a step


def test_a_checkpoint_of_another_fit_is_refused(data, tmp_path):
    x, y = data
    path = tmp_path / "checkpoint"
    options = {"steps": 30, "lr": 0.02, "checkpoint": path}
    guides.fit(linear, "mean_field", x, y, **options)
    for other in (
        {"data": (x, y + 1)},
        {"data": (x[:20], y[:20])},
        {"lr": 0.03},
        {"steps": 20},
        {"batch_size": 5},
        {"seed": 1},
        {"guide": "full_rank"},
        {"replicates": 2},
    ):
        arguments = {**options, **other}
        guide, rows = arguments.pop("guide", "mean_field"), arguments.pop("data", data)
        with pytest.raises(errors.OptionError, match="belongs to a fit with other options, data or model; delete it"):
            guides.fit(linear, guide, *rows, **arguments)


@pytest.mark.parametrize("other", [{"objective": guides.ELBO(kl="monte_carlo")}, {"num_particles": 3}])
def test_a_checkpoint_of_another_objective_is_refused(other, data, tmp_path):
    options = {"steps": 30, "lr": 0.02, "checkpoint": tmp_path / "checkpoint"}
    guides.fit(linear, "mean_field", *data, **options)
    with pytest.raises(errors.OptionError, match="belongs to a fit with other options, data or model; delete it"):
        guides.fit(linear, "mean_field", *data, **options, **other)


def test_a_damaged_checkpoint_is_named(data, tmp_path):
    path = tmp_path / "checkpoint"
    guides.fit(linear, "mean_field", *data, steps=30, checkpoint=path)
    content = path.read_bytes()
    for broken in (content[: len(content) // 2], b""):
        path.write_bytes(broken)
        with pytest.raises((errors.OptionError, errors.DataError), match=r"checkpoint.*delete it"):
            guides.fit(linear, "mean_field", *data, steps=30, checkpoint=path)


class Scale(nn.Module):
    """A network of the model's own, beside a latent."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))

    def forward(self, x, y=None):
        pyro.module("net", self.net)
        return self.score(x, y)

    def score(self, x, y):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(self.net(x).squeeze(-1) + z, 0.5), obs=y)

    def method(self, x, y=None):
        return self(x, y)


class Pyroed(pyro.nn.PyroModule):
    """The same as a PyroModule, whose attributes are parameters without a word."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = pyro.nn.PyroModule[nn.Sequential](
            pyro.nn.PyroModule[nn.Linear](3, 4), nn.Tanh(), pyro.nn.PyroModule[nn.Linear](4, 1)
        )
        self.noise = pyro.nn.PyroParam(torch.tensor(2.0), constraint=constraints.positive)

    def forward(self, x, y=None):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(self.net(x).squeeze(-1) + z, self.noise), obs=y)


def reference_losses(data, steps, lr):
    """MAP of Scale by hand: the latent and the network by Adam."""
    torch.manual_seed(0)
    model, z = Scale(), torch.tensor(0.25, requires_grad=True)
    adam = torch.optim.Adam([*model.net.parameters(), z], lr=lr)
    losses = []
    for _ in range(steps):
        adam.zero_grad()
        f = model.net(data[0]).squeeze(-1) + z
        loss = -dist.Normal(f, 0.5).log_prob(data[1]).sum() - dist.Normal(0.0, 1.0).log_prob(z)
        loss.backward()
        adam.step()
        losses.append(loss.item())
    return torch.tensor(losses), model.net


AT = ("map", {"init_loc_fn": pyro.infer.autoguide.init_to_value(values={"z": torch.tensor(0.25)})})


@pytest.mark.parametrize("form", ["module", "method", "closure"])
@pytest.mark.parametrize("mode", ["eager", "trace"])
def test_a_models_own_network_is_trained_and_written_back(form, mode, data):
    module = Scale()

    def closure(x, y=None):
        pyro.module("net", module.net)
        return module.score(x, y)

    model = {"module": module, "method": module.method, "closure": closure}[form]
    losses, trained = reference_losses(data, 30, 0.05)
    posterior = guides.fit(model, AT, *data, steps=30, lr=0.05, compile=mode)
    torch.testing.assert_close(posterior.losses[0], losses, rtol=1e-4, atol=1e-3)
    for (name, want), mine in zip(trained.named_parameters(), module.net.parameters()):
        torch.testing.assert_close(mine.detach(), want.detach(), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(posterior.parameters[f"net$$${name}"], mine.detach())
        assert isinstance(mine, nn.Parameter)
    f = posterior.predict(data[0], num_samples=200)["y"].mean(0)
    torch.testing.assert_close(f, module.net(data[0]).squeeze(-1).detach() + posterior.parameters["MAP.z"], rtol=0, atol=0.2)


def test_a_pyro_modules_parameters_are_trained_and_written_back(data):
    model = Pyroed()
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    posterior = guides.fit(model, "mean_field", *data, steps=200, lr=0.02)
    assert float(model.noise.detach()) == pytest.approx(float(posterior.parameters["noise"]), rel=1e-5)
    assert float(model.noise.detach()) < 1.2
    for name, before in start.items():
        assert (model.get_parameter(name) - before).abs().max() > 0.05, name
    torch.testing.assert_close(posterior.parameters["net.0.weight"], model.net[0].weight.detach())
    assert len(pyro.get_param_store()) == 0


def test_frozen_parameters_stay(data):
    model = Scale()
    model.net[0].requires_grad_(False)
    model.net.train(False)  # or Pyro warns of parameters that it does not register
    before = model.net[0].weight.clone()
    posterior = guides.fit(model, "mean_field", *data, steps=20, lr=0.05)
    torch.testing.assert_close(model.net[0].weight, before)
    assert "net$$$0.weight" not in posterior.parameters


def test_replicates_train_a_network_each_and_leave_the_module_alone(data):
    model = Scale()
    before = [p.detach().clone() for p in model.parameters()]
    posterior = guides.fit(model, "mean_field", *data, steps=20, lr=0.05, replicates=2)
    weights = posterior.parameters["net$$$0.weight"]
    assert weights.shape == (2, 4, 3)
    assert (weights[0] - weights[1]).abs().max() > 1e-4
    for now, then in zip(model.parameters(), before):
        torch.testing.assert_close(now.detach(), then)


class Holder:
    """An object that is no module but holds one, with the model as a method."""

    def __init__(self):
        self.parts = {"net": Scale()}

    def model(self, x, y=None):
        return self.parts["net"](x, y)

    def __call__(self, x, y=None):
        return self.model(x, y)


def test_modules_are_found_behind_objects_wrappers_and_other_functions(data):
    holder, module = Holder(), Scale()

    def helper(x, y):
        return module(x, y)

    def indirect(x, y=None):
        return helper(x, y)

    partial = functools.partial(lambda net, x, y=None: net(x, y), module)
    for model in (holder, holder.model, indirect, partial, pyro.poutine.scale(module.method, 1.0)):
        net = holder.parts["net"].net if model in (holder, holder.model) else module.net
        before = net[0].weight.detach().clone()
        guides.fit(model, "mean_field", *data, steps=5, lr=0.05)
        assert (net[0].weight - before).abs().max() > 0.05


def test_a_module_that_cannot_be_reached_is_named(data):
    def model(x, y=None):
        return Scale()(x, y)  # a new network in every run, so there is none to train

    with pytest.raises(errors.UnsupportedModelError, match=r"parameter 'net\$\$\$0.weight'.*make the model an nn.Module"):
        guides.fit(model, "mean_field", *data, steps=2)


class Shared(nn.Module):
    """Two modules with a part in common, one of which the model reaches and the other the guide."""

    def __init__(self, part):
        super().__init__()
        self.part = part

    def model(self, x, y=None):
        pyro.module("part", self.part)
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(self.part(x).squeeze(-1) + z, 0.5), obs=y)

    def guide(self, x, y=None):
        pyro.module("part", self.part)
        pyro.sample("z", dist.Normal(self.part.bias.sum() + pyro.param("m", torch.tensor(0.0)), 0.1))


def test_a_module_reached_twice_stays_whole(data):
    part = nn.Linear(3, 1)
    before = part.weight.detach().clone()
    guides.fit(Shared(part).model, Shared(part).guide, *data, steps=5, lr=0.05)
    assert isinstance(part.weight, nn.Parameter)
    assert (part.weight - before).abs().max() > 0.05


def test_a_parameter_that_is_not_contiguous_is_trained(data):
    model = Scale()
    model.net[0].weight = nn.Parameter(torch.randn(3, 4).T)
    before = model.net[0].weight.detach().clone()
    posterior = guides.fit(model, "mean_field", *data, steps=5, lr=0.05)
    assert (model.net[0].weight - before).abs().max() > 0.05
    torch.testing.assert_close(posterior.parameters["net$$$0.weight"], model.net[0].weight.detach())


class VAE(nn.Module):
    """Local latents with an encoder, in the manner of Pyro's example, under minibatches."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.decoder = nn.Linear(3, 4), nn.Linear(2, 3)

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 0.5).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            loc, scale = self.encoder(x).split(2, -1)
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))

    guide.amortized = frozenset({"z"})


@pytest.mark.parametrize("mode", ["eager", "trace"])
def test_an_amortised_guide_follows_minibatches(mode, data):
    x = data[0]
    vae = VAE()
    before = [p.detach().clone() for p in vae.parameters()]
    epochs = {"eager": 20, "trace": 100}[mode]
    posterior = guides.fit(vae.model, vae.guide, x, batch_size=10, epochs=epochs, lr=0.02, compile=mode)
    assert posterior.losses[0, -10:].mean() < posterior.losses[0, :10].mean() - 10
    assert all((a - b).abs().max() > 0.01 for a, b in zip(vae.parameters(), before))
    torch.testing.assert_close(posterior.parameters["encoder$$$weight"], vae.encoder.weight.detach())
    assert posterior.family == "guide"


def test_minibatches_of_an_amortised_guide_have_the_mean_of_all_rows(data):
    x, vae = data[0], VAE()
    full = guides.fit(vae.model, vae.guide, x, steps=1, lr=1e-9)
    batched = guides.fit(vae.model, vae.guide, x, batch_size=10, steps=300, lr=1e-9, optimizer="sgd")
    several = guides.fit(vae.model, vae.guide, x, steps=300, lr=1e-9, optimizer="sgd")
    error = (batched.losses.var() / 300 + several.losses.var() / 300).sqrt()
    assert abs(batched.losses.mean() - several.losses.mean()) < 4 * error
    assert full.predict(x[:4], num_samples=3)["x"].shape == (3, 4, 3)


def test_a_users_guide_function_is_trained(data):
    def guide(x, y=None):
        loc = pyro.param("loc", lambda: torch.randn(3))
        scale = pyro.param("scale", 0.1 * torch.ones(3), constraint=constraints.positive)
        pyro.sample("w", dist.Normal(loc, scale).to_event(1))

    posterior = guides.fit(linear, guide, *data, steps=800, lr=0.03, schedule="cosine", num_particles=4)
    family = guides.fit(linear, "mean_field", *data, steps=800, lr=0.03, schedule="cosine", num_particles=4)
    torch.testing.assert_close(posterior.parameters["loc"], family.parameters["MeanField.loc"], rtol=0.05, atol=0.05)
    torch.testing.assert_close(posterior.parameters["scale"], family.parameters["MeanField.scale"], rtol=0.15, atol=0.01)
    two = guides.fit(linear, guide, *data, steps=2, lr=1e-6, replicates=2)
    assert (two.parameters["loc"][0] - two.parameters["loc"][1]).abs().max() > 0.1  # each has its own random start


def test_pyros_own_guides_can_be_fitted(data):
    for make in (pyro.infer.autoguide.AutoNormal, pyro.infer.autoguide.AutoStructured):
        if make is pyro.infer.autoguide.AutoNormal:
            posterior = guides.fit(regression, make, *data, steps=200, lr=0.03)
            assert posterior.family == "AutoNormal"
            assert posterior.losses[0, -20:].mean() < posterior.losses[0, :20].mean() - 5
            assert posterior.draws(3).log_q.isfinite().all()


def test_every_way_to_name_a_guide(data):
    for spec in ("low_rank", ("low_rank", {}), guides.LowRank, guides.LowRank(regression)):
        posterior = guides.fit(regression, spec, *data, steps=5)
        assert posterior.family == "low_rank"
        assert posterior.losses.isfinite().all()


def test_the_natural_guide_is_taken_when_none_is_named(data):
    class Model(nn.Module):
        natural_guide = ("low_rank", {"rank": 1})

        def forward(self, x, y=None):
            return regression(x, y)

    for posterior in (guides.fit(Model(), None, *data, steps=5), guides.fit(Model(), *data, steps=5)):
        assert posterior.family == "low_rank"
        assert posterior.options == {"rank": 1}
        assert posterior.parameters["LowRank.cov_factor"].shape == (4, 1)


def test_a_posterior_is_frozen_and_says_what_it_is(data):
    posterior = guides.fit(network, ("mean_field", {"init_scale": 0.05}), *data, steps=7, seed=3)
    with pytest.raises(AttributeError):
        posterior.steps = 3
    assert posterior.options == {"init_scale": 0.05}
    assert (posterior.objective, posterior.seed, posterior.steps, posterior.replicates) == ("elbo", 3, 7, 1)
    assert set(posterior.seconds) == {"setup", "train", "finish"}
    assert posterior.losses.shape == (1, 7)
    assert {n: s.kind for n, s in posterior.sites.items()} == {
        "w1": "latent",
        "b1": "latent",
        "w2": "latent",
        "b2": "latent",
        "f": "deterministic",
        "y": "observed",
    }


def test_keyword_arguments_reach_the_model(data):
    def shifted(x, y=None, *, shift, times=1):
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 2.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(times * (x @ w) + shift, 0.5), obs=y)

    posterior = guides.fit(shifted, "mean_field", *data, steps=5, model_kwargs={"shift": torch.tensor(100.0), "times": 0})
    assert posterior.predict(data[0], num_samples=5)["y"].min() > 90
    other = posterior.predict(data[0], num_samples=5, model_kwargs={"shift": torch.tensor(-100.0), "times": 0})
    assert other["y"].max() < -90


def test_numpy_data_are_tensors_of_the_default_dtype(data):
    x, y = (d.numpy().astype("float64") for d in data)
    posterior = guides.fit(linear, "mean_field", x, y, steps=5)
    assert all(d.dtype == torch.float32 for d in posterior.data)


def test_double_precision_data_and_model():
    x, y = (d.double() for d in line())

    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(x.new_zeros(3), x.new_tensor(1.0)).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)

    for family in set(GENERAL) - {"dropout"}:
        posterior = guides.fit(model, family, x, y, steps=5)
        assert posterior.flat.dtype == posterior.sample(2)["w"].dtype == torch.float64, family
