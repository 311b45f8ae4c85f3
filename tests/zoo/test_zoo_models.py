"""What holds for every registered model, whoever registered it."""

import doctest
import importlib
import inspect
import pkgutil
import re

import pyro
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch.fx.experimental.proxy_tensor import make_fx

import zoo

NAMES = list(zoo.models)
WITHOUT_LATENTS = ["conditional_regressor"]
SUPERVISED = [name for name, cls in zoo.models.items() if "y" in inspect.signature(cls.forward).parameters]


@pytest.fixture(params=NAMES)
def example(request):
    """A model and the data it observes: ``(x, y)``, or ``(x,)`` for a model of the data themselves."""
    return build(request.param)


@pytest.fixture(params=[name for name in NAMES if name not in WITHOUT_LATENTS])
def bayesian(request):
    return build(request.param)


@pytest.fixture(params=SUPERVISED)
def supervised(request):
    return build(request.param)


def build(name):
    torch.manual_seed(0)
    pyro.clear_param_store()
    return zoo.models[name].example()


def latents_of(model, data):
    trace = poutine.trace(model).get_trace(*data)
    return {
        name: site["value"].detach()
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site["is_observed"] and type(site["fn"]).__name__ != "_Subsample"
    }


def deterministic_of(model, data):
    """The deterministic sites that follow the data."""
    trace = poutine.trace(model).get_trace(*data)
    return [n for n, s in trace.nodes.items() if s["type"] == "sample" and s["infer"].get("_deterministic")]


def log_joint_of(model, data):
    def log_joint(latents):
        return poutine.trace(poutine.condition(model, data=latents)).get_trace(*data).log_prob_sum()

    return log_joint


def test_registry_public_names_and_documentation_agree():
    classes = {cls.__name__: name for name, cls in zoo.models.items() if cls.__module__.startswith("zoo")}
    assert set(classes) <= set(zoo.__all__)
    for class_name, name in classes.items():
        assert name == re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", class_name).lower()
        doc = getattr(zoo, class_name).__doc__
        for part in (".. math::", "*When to use.*", "*When not.*", ":param", ":raises", "References:", "Example::"):
            assert part in doc, f"{class_name}: the docstring has no {part!r}"


def test_unknown_model_gets_the_nearest_name():
    with pytest.raises(KeyError, match="Did you mean 'bayesian_mlp'"):
        zoo.models["bayesian_mpl"]


def modules():
    found = ["zoo", *(m.name for m in pkgutil.walk_packages(zoo.__path__, "zoo."))]
    return [importlib.import_module(name) for name in found]


def test_every_module_lists_its_public_names_in_order():
    for module in modules():
        names = module.__all__
        constants, classes = [n for n in names if n.isupper()], [n for n in names if n[0].isupper() and not n.isupper()]
        functions = [n for n in names if not n[0].isupper()]
        assert names == sorted(constants) + sorted(classes) + sorted(functions), module.__name__
        assert all(hasattr(module, name) for name in names), module.__name__


@pytest.mark.parametrize("module", modules(), ids=lambda m: m.__name__)
def test_examples_in_docstrings_run(module):
    assert doctest.testmod(module).failed == 0


def test_natural_guide_is_data(example):
    name, options = example[0].natural_guide
    assert isinstance(name, str) and isinstance(options, dict)


def test_prior_predictive_looks_like_the_data(example):
    model, data = example
    seen = data[-1]
    drawn = poutine.uncondition(model)(*data)
    assert drawn.shape == seen.shape and torch.isfinite(drawn).all() and not torch.equal(drawn.to(seen.dtype), seen)
    if not seen.dtype.is_floating_point or set(seen.unique().tolist()) == {0.0, 1.0}:
        assert set(drawn.unique().tolist()) <= set(seen.unique().tolist())


def test_without_targets_a_model_predicts(supervised):
    model, (x, y) = supervised
    assert model(x).shape == y.shape


def test_observing_returns_the_data(example):
    model, data = example
    assert torch.equal(model(*data).to(data[-1].dtype), data[-1])


def test_models_without_latents_are_those_known():
    assert [name for name in NAMES if not latents_of(*build(name))] == WITHOUT_LATENTS


def test_same_seed_same_draw(bayesian):
    model, data = bayesian
    draws = []
    for seed in (1, 1, 2):
        pyro.set_rng_seed(seed)
        draws.append(torch.cat([v.flatten() for v in latents_of(poutine.uncondition(model), data).values()]))
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_a_model_draws_nothing_but_its_sites(example):
    """Observed in full, a model consumes no randomness and changes no state."""
    model, data = example
    latents = latents_of(model, data)
    before, state = torch.random.get_rng_state(), {k: v.clone() for k, v in model.state_dict().items()}
    log_joint_of(model, data)(latents)
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_log_density_is_finite_with_a_gradient_for_every_latent(bayesian):
    model, data = bayesian
    latents = {k: v.requires_grad_() for k, v in latents_of(model, data).items()}
    log_joint = log_joint_of(model, data)(latents)
    assert torch.isfinite(log_joint)
    for name, gradient in zip(latents, torch.autograd.grad(log_joint, list(latents.values()))):
        assert torch.isfinite(gradient).all() and gradient.abs().max() > 0, name


def test_log_density_under_vmap_and_make_fx(bayesian):
    """What the engine asks of a model: traceable by make_fx, and vectorised over latents by vmap, with equal values."""
    model, data = bayesian
    draws = [latents_of(model, data) for _ in range(3)]
    stacked = {k: torch.stack([d[k] for d in draws]) for k in draws[0]}
    log_joint = log_joint_of(model, data)
    expected = torch.stack([log_joint(d) for d in draws])
    with pyro.validation_enabled(False):
        torch.testing.assert_close(torch.func.vmap(log_joint)(stacked), expected, rtol=1e-4, atol=1e-3)
        traced = make_fx(torch.func.grad_and_value(log_joint))(draws[0])
        gradient, value = traced(draws[1])
        torch.testing.assert_close(value, expected[1], rtol=1e-4, atol=1e-3)
        reference = torch.func.grad(log_joint)(draws[1])
        assert all(torch.allclose(gradient[k], reference[k], rtol=1e-3, atol=1e-3) for k in reference)
        hessian = torch.func.jacrev(torch.func.grad(log_joint))(draws[0])
        assert all(torch.isfinite(block).all() for row in hessian.values() for block in row.values())


def test_dtype_follows_the_data(example):
    model, data = example
    model, data = model.double(), tuple(d.double() if d.dtype.is_floating_point else d for d in data)
    latents = latents_of(model, data)
    assert {v.dtype for v in latents.values()} <= {torch.float64}
    assert log_joint_of(model, data)(latents).dtype == torch.float64


def test_stock_svi_lowers_the_loss(example):
    model, data = example
    pyro.set_rng_seed(0)
    svi = SVI(model, AutoNormal(model, init_scale=0.1), pyro.optim.Adam({"lr": 0.03}), Trace_ELBO())
    losses = [svi.step(*data) for _ in range(150)]
    assert sum(losses[-30:]) < sum(losses[:30])


def test_stock_svi_with_vectorised_particles(example):
    model, data = example
    guide = AutoNormal(model, init_scale=0.01)
    guide(*data)
    pyro.set_rng_seed(0)
    one = Trace_ELBO(num_particles=20, max_plate_nesting=1).loss(model, guide, *data)
    many = Trace_ELBO(num_particles=20, vectorize_particles=True, max_plate_nesting=1).loss(model, guide, *data)
    assert one == pytest.approx(many, rel=0.1)


def test_stock_nuts(example):
    model, data = example
    pyro.set_rng_seed(0)
    mcmc = MCMC(NUTS(model, max_tree_depth=3), num_samples=5, warmup_steps=5, disable_progbar=True)
    mcmc.run(*data)
    samples = mcmc.get_samples()
    assert set(samples) == set(latents_of(model, data))
    assert all(torch.isfinite(v).all() and len(v) == 5 for v in samples.values())


@pytest.mark.parametrize("parallel", [False, True])
def test_stock_predictive(supervised, parallel):
    model, (x, y) = supervised
    pyro.set_rng_seed(0)
    guide = AutoNormal(model)
    guide(x, y)
    prior = Predictive(model, num_samples=4, parallel=parallel)(x)
    posterior = Predictive(model, guide=guide, num_samples=4, parallel=parallel)(x)
    for drawn in (prior, posterior):
        assert drawn["y"].shape == (4, *y.shape)
        assert all(drawn[name].shape[:2] == (4, len(y)) for name in deterministic_of(model, (x, y)))


def test_parallel_and_sequential_predictions_agree(supervised):
    """Given the same weights, vectorised draws place every dimension where the sequential ones do."""
    model, (x, y) = supervised
    if not (sites := deterministic_of(model, (x, y))):
        pytest.skip("its predictions are draws, which differ")
    site = sites[-1]
    draws = [latents_of(model, (x, y)) for _ in range(4)]
    stacked = {k: torch.stack([d[k] for d in draws]) for k in draws[0]}
    one, many = (
        Predictive(model, posterior_samples=stacked, return_sites=(site,), parallel=parallel)(x)[site]
        for parallel in (False, True)
    )
    torch.testing.assert_close(one, many.reshape(one.shape), rtol=1e-4, atol=1e-4)


def test_wrong_rows_are_refused(supervised):
    model, (x, y) = supervised
    with pytest.raises(ValueError, match="site 'y'"):
        model(x, y[:-1])
    with pytest.raises(ValueError, match=r"squeeze\(-1\)"):
        model(x, y.unsqueeze(-1))
