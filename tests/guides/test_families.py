"""What holds for every registered family: constraints, densities, stock Pyro, files, seeds, global state, options."""

import math

import pyro
import pytest
import torch
from guide_models import GENERAL, line, linear, network, regression, supports
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO
from torch.distributions import MultivariateNormal, biject_to

import guides
from guides import errors
from guides.families.base import FlatFamily

QUICK = {"steps": 10, "lr": 0.03, "compile": "eager"}
WITH_DENSITY = sorted(n for n in GENERAL if n == "laplace" or not guides.families[n].is_point_mass)
POINTS = sorted(set(GENERAL) - set(WITH_DENSITY))


@pytest.fixture(scope="module")
def data():
    return line()


@pytest.fixture(scope="module")
def fitted(data):
    """One posterior per family over every kind of support; the components of the mixture overlap."""
    options = {"mixture": {"components": 2, "init_loc_fn": "median", "options": {"init_scale": 0.3}}}
    fit = {"steps": 40, "lr": 0.1, "compile": "eager"}
    return {f: guides.fit(supports, (f, options.get(f, {})), *data, **fit) for f in GENERAL}


def unconstrained(posterior, latents):
    """Flat unconstrained draws (S, D), and log |d constrained / d unconstrained| of each."""
    flat, log_det = [], 0.0
    for name, value in latents.items():
        transform = biject_to(posterior.sites[name].support)
        z = transform.inv(value)
        flat.append(z.reshape(len(z), -1))
        jacobian = transform.log_abs_det_jacobian(z, value)
        log_det = log_det + jacobian.reshape(len(z), -1).sum(1)
    return torch.cat(flat, 1).double(), torch.as_tensor(log_det).double()


@pytest.mark.parametrize("family", GENERAL)
def test_draws_lie_in_the_supports_and_have_the_sites_shapes(family, fitted):
    posterior = fitted[family]
    draws = posterior.sample(100)
    assert set(draws) == {"w", "positive", "interval", "simplex", "cholesky", "ordered"}
    for name, value in draws.items():
        site = posterior.sites[name]
        assert value.shape == (100, *site.shape)
        assert site.support.check(value).all(), name
    assert posterior.sites["ordered"].dims == ("groups", "ordered_dim_1")
    assert posterior.sites["y"].dims == ("data",)


@pytest.mark.parametrize("family", WITH_DENSITY)
def test_draws_have_the_density_that_log_q_claims(family, fitted):
    """Reweighting by r / q must give a normalised r, whatever r: here a normal a little narrower than the draws."""
    posterior = fitted[family]
    count = 100_000 if family == "mixture" else 4000  # its draws lie in lumps, so that the weights vary more
    draws = posterior.draws(count)
    z, log_det = unconstrained(posterior, {n: v[0] for n, v in draws.latents.items()})
    mean, covariance = z.mean(0), torch.cov(z.T)
    narrow = MultivariateNormal(mean, 0.8 * covariance)
    weights = (narrow.log_prob(z) - log_det - draws.log_q[0].double()).exp()
    assert abs(float(weights.mean() - 1)) < 4 * float(weights.std()) / math.sqrt(count)
    assert float(weights.std()) / math.sqrt(count) < 0.032  # else the line above shows nothing
    values = weights[:, None] * (z - mean) / covariance.diagonal().sqrt()
    assert (values.mean(0).abs() < 4.5 * values.std(0) / math.sqrt(count)).all()
    squares = weights[:, None] * ((z - mean) ** 2 / covariance.diagonal() - 0.8)
    assert (squares.mean(0).abs() < 4.5 * squares.std(0) / math.sqrt(count)).all()


@pytest.mark.parametrize("family", WITH_DENSITY)
def test_log_prob_is_the_log_q_of_draws(family, fitted):
    posterior = fitted[family]
    draws = posterior.draws(3)
    for s in range(3):
        value = posterior.log_prob({n: v[0, s] for n, v in draws.latents.items()})
        torch.testing.assert_close(value, draws.log_q[0, s], rtol=1e-3, atol=2e-2)


@pytest.mark.parametrize("family", GENERAL)
def test_log_p_is_the_models_log_joint(family, fitted, data):
    posterior = fitted[family]
    draws = posterior.draws(2)
    for s in range(2):
        conditioned = poutine.condition(supports, {n: v[0, s] for n, v in draws.latents.items()})
        want = poutine.trace(conditioned).get_trace(*data).log_prob_sum()
        torch.testing.assert_close(draws.log_p[0, s], want, rtol=1e-4, atol=1e-2)


def test_point_masses_say_so(fitted):
    assert POINTS == ["dropout", "ensemble", "map"]
    for family, posterior in fitted.items():
        assert posterior.guide.is_point_mass == (family in POINTS)


def test_a_point_mass_has_one_draw_per_member(data):
    assert len(guides.fit(regression, "map", *data, **QUICK).sample(20)["w"].unique(dim=0)) == 1
    members = guides.fit(regression, ("ensemble", {"members": 4}), *data, **QUICK).sample(400)["w"].squeeze(-1)
    values, counts = members.unique(dim=0, return_counts=True)
    assert len(values) == 4
    assert (abs(counts - 100) < 4 * math.sqrt(400 * 0.25 * 0.75)).all()
    dropped = guides.fit(regression, ("dropout", {"rate": 0.5}), *data, **QUICK).sample(400)["w"].squeeze(-1)
    zeros = (dropped == 0).float().mean(0)
    assert (abs(zeros - 0.5) < 4 * 0.5 / math.sqrt(400)).all()
    assert len(dropped[dropped[:, 0] != 0][:, 0].unique()) == 1  # kept weights are the same in every draw


@pytest.mark.parametrize("loss", [Trace_ELBO, guides.ELBO])
@pytest.mark.parametrize("family", GENERAL)
def test_a_family_is_a_guide_in_stock_svi(family, loss, data):
    guide = guides.families[family](supports)
    svi = SVI(supports, guide, pyro.optim.ClippedAdam({"lr": 0.05}), loss=loss(num_particles=2))
    losses = torch.tensor([svi.step(*data) for _ in range(25)])
    assert losses.isfinite().all()
    assert losses[-5:].mean() < losses[:5].mean() - 5
    assert math.isfinite(svi.evaluate_loss(*data))


@pytest.mark.parametrize("family", GENERAL)
def test_the_fitted_guide_works_in_stock_predictive(family, data):
    posterior = guides.fit(regression, family, *data, steps=60, lr=0.1, compile="eager")
    draws = Predictive(regression, guide=posterior.guide, num_samples=400)(data[0])
    ours = posterior.sample(400)["w"]
    spread = ours.std(0) + draws["w"].reshape(ours.shape).std(0)
    error = ours.mean(0) - draws["w"].reshape(ours.shape).mean(0)
    assert (error.abs() <= 4 * spread / math.sqrt(400) + 1e-6).all()
    assert (abs(ours.std(0) - draws["w"].reshape(ours.shape).std(0)) <= 0.3 * spread + 1e-6).all()
    assert draws["y"].shape == (400, len(data[0]))


@pytest.mark.parametrize("family", GENERAL)
def test_a_saved_posterior_is_the_posterior(family, data, tmp_path):
    options = {"low_rank": {"rank": 1}, "laplace": {"curvature": "kron"}, "dropout": {"rate": 0.3}}.get(family, {})
    posterior = guides.fit(regression, (family, options), *data, replicates=2, **QUICK)
    posterior.save(tmp_path / "posterior")
    loaded = guides.Posterior.load(tmp_path / "posterior", regression)
    for name, value in posterior.parameters.items():
        torch.testing.assert_close(loaded.parameters[name], value)
    for field in ("family", "options", "objective", "steps", "seed", "stop_reasons", "seconds", "info", "replicates"):
        assert getattr(loaded, field) == getattr(posterior, field), field
    torch.testing.assert_close(loaded.losses, posterior.losses)
    for name, value in posterior.sample(5).items():
        torch.testing.assert_close(loaded.sample(5)[name], value)
    for name, value in posterior.predict(data[0][:4], num_samples=5).items():
        torch.testing.assert_close(loaded.predict(data[0][:4], num_samples=5)[name], value)
    assert list(tmp_path.iterdir()) == [tmp_path / "posterior"]


@pytest.mark.parametrize("family", GENERAL)
def test_the_same_seed_gives_the_same_fit_and_the_same_draws(family, data):
    first, again = (guides.fit(regression, family, *data, seed=4, **QUICK) for _ in range(2))
    torch.testing.assert_close(first.flat, again.flat, rtol=0, atol=0)
    torch.testing.assert_close(first.losses, again.losses, rtol=0, atol=0)
    torch.testing.assert_close(first.sample(5), again.sample(5), rtol=0, atol=0)
    torch.testing.assert_close(first.sample(5, seed=1), again.sample(5, seed=1), rtol=0, atol=0)
    other = guides.fit(regression, family, *data, seed=5, **QUICK)
    assert not torch.equal(first.flat, other.flat)


def global_state():
    store = pyro.get_param_store()
    return {
        "store": {k: v.tolist() for k, v in store.items()},
        "random state": torch.get_rng_state().tolist(),
        "dtype": torch.get_default_dtype(),
        "grad": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "validation": torch.distributions.Distribution._validate_args,
        "pyro validation": pyro.poutine.util.is_validation_enabled(),
        "inference validation": pyro.infer.util.is_validation_enabled(),
        "handlers": len(pyro.poutine.runtime._PYRO_STACK),
    }


@pytest.mark.parametrize("family", GENERAL)
def test_global_state_is_left_alone(family, data, tmp_path):
    pyro.param("mine", torch.tensor([1.0, 2.0]))
    torch.set_num_threads(2)
    try:
        before = global_state()
        posterior = guides.fit(regression, family, *data, validation=0.2, epochs=3)
        assert global_state() == before
        draws = posterior.draws(5)
        posterior.log_prob({n: v[0, 0] for n, v in draws.latents.items()})
        posterior.predict(data[0][:4], num_samples=5)
        posterior.log_likelihood(*data, num_samples=5)
        posterior.save(tmp_path / "posterior")
        guides.Posterior.load(tmp_path / "posterior", regression).sample(2)
        assert global_state() == before
        with pytest.raises(errors.NonFiniteLossError):
            guides.fit(regression, family, data[0], data[1] * 1e30, **QUICK)
        assert global_state() == before
    finally:
        torch.set_num_threads(1)


def test_validation_off_stays_off_and_grad_off_stays_off(data):
    with pyro.validation_enabled(False), torch.no_grad():
        before = global_state()
        posterior = guides.fit(regression, "mean_field", *data, steps=50, lr=0.05)
        assert posterior.losses[0, -1] < posterior.losses[0, 0]
        assert global_state() == before


def test_a_module_keeps_its_training_mode(data):
    class Model(torch.nn.Module):
        def forward(self, x, y=None):
            return linear(x, y)

    for mode in (True, False):
        model = Model().train(mode)
        guides.fit(model, "mean_field", *data, **QUICK).predict(data[0], num_samples=2)
        assert model.training is mode


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("mean_field", {"init_scale": 0.0}, "init_scale must be positive"),
        ("mean_field", {"estimator": "locl"}, "estimator='locl'.*'weights', 'local', 'flipout'"),
        ("mean_field", {"init_loc_fn": "medain"}, "init_loc_fn='medain'.*'median'"),
        ("full_rank", {"init_scale": -1.0}, "init_scale must be positive"),
        ("low_rank", {"init_scale": math.nan}, "init_scale must be positive"),
        ("low_rank", {"rank": 0}, "rank must be at least 1"),
        ("ensemble", {"members": 0}, "members must be at least 1"),
        ("dropout", {"rate": 1.0}, r"rate must be in \[0, 1\)"),
        ("laplace", {"curvature": "full"}, "curvature='full'.*'ggn'"),
        ("laplace", {"predictive": "sample"}, "predictive='sample'.*'sampled'"),
        ("laplace", {"floor": 0.0}, "floor must be positive"),
        ("laplace", {"marginal_likelihood": 3, "curvature": "kron"}, "marginal_likelihood needs curvature='ggn'"),
        ("laplace", {"sites": ["w", "v"]}, "'v', not a latent site; the model has w"),
        ("laplace", {"sites": "last_layer"}, "multiplies data by no latent weight matrix"),
        ("laplace", {"marginal_likelihood": 2}, "no pyro.param hyperparameters"),
        ("dropout", {}, "weight matrices.*found none among w"),
    ],
)
def test_bad_options_are_named(family, options, message, data):
    with pytest.raises(ValueError, match=message):
        guides.fit(vector_model, (family, options), *data, **QUICK)


def vector_model(x, y=None):
    """The product is taken with a vector, so no weight matrix is to be found."""
    return linear(x, y)


@pytest.mark.parametrize("init", ["median", "sample", "feasible", "spread", pyro.infer.autoguide.init_to_mean])
def test_initial_values(init, data):
    posterior = guides.fit(supports, ("mean_field", {"init_loc_fn": init}), *data, steps=1, lr=1e-9)
    for name, value in posterior.sample(1).items():
        assert posterior.sites[name].support.check(value).all()


def test_spread_starts_real_sites_at_draws_and_bounded_sites_at_medians(data):
    starts = [guides.fit(supports, "ensemble", *data, steps=1, lr=1e-9, seed=s).sample(200) for s in (0, 1)]
    w = torch.cat([s["w"].unique(dim=0) for s in starts]).flatten()
    assert len(w) == 30
    assert w.std() > 0.5
    assert starts[0]["positive"].std() < 0.4  # a draw from Gamma(3, 2) has 0.87


def test_a_subclass_of_flat_family_flattens_as_it_draws(fitted):
    for family, posterior in fitted.items():
        guide = posterior.guide
        if not isinstance(guide, FlatFamily):
            assert family in ("map", "structured")
            continue
        draws = posterior.sample(3)
        z, _ = unconstrained(posterior, draws)
        flat = guide.flatten(draws, leading=1)
        parts = guide.slices()
        assert sum(s.stop - s.start for s in parts.values()) == flat.shape[-1] == z.shape[-1]
        torch.testing.assert_close(flat[:, parts["w"]], draws["w"].reshape(3, -1))
        torch.testing.assert_close(flat[:, parts["positive"]].squeeze(-1), draws["positive"].log())


def test_families_are_exported_and_registered_under_one_name():
    for name, family in guides.families.items():
        assert getattr(guides, family.__name__) is family
        assert name == name.lower()


def test_a_family_runs_on_a_network(data):
    for family in GENERAL:
        posterior = guides.fit(network, family, *data, steps=5)
        assert posterior.predict(data[0][:3], num_samples=4)["f"].shape == (4, 3)
