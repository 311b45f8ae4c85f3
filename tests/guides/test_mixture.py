"""The mixture guide and its objectives: one component, modes and their mass, gradients, the engine, what goes wrong."""

import math
from itertools import pairwise

import pyro
import pyro.distributions as dist
import pytest
import torch
from guide_models import line, linear, linear_posterior, network, regression
from torch.distributions import MultivariateNormal
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.functional import softplus

import guides
from guides.compile.loops import has_compiler
from guides.program.data import Data
from guides.program.isolation import quiet
from guides.program.parameters import isolated_store
from guides.program.program import Program

MIXTURE_OBJECTIVES = ("elbo", "selbo", "entropy_bound", "siwae")


@pytest.fixture(scope="module")
def data():
    return line(rows=12)


def square(y):
    """Two modes, near 1 and -1, with masses in the ratio of e^0.8 to 1, and mirror images else."""
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.factor("tilt", 0.4 * torch.tanh(10 * z))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(z**2, 0.6), obs=y)


ONES = torch.ones(12)
HEAVIER = math.exp(0.8) / (1 + math.exp(0.8))


def made(kind, model, data, **options):
    """A guide that is set up, at a place of its own."""
    pyro.clear_param_store()
    pyro.set_rng_seed(5)
    guide = guides.families[kind](model, **options)
    guide(*data)
    return guide


def estimate(objective, model, guide, data, seed=3):
    """Value, and gradient of the surrogate with respect to every parameter by name."""
    pyro.set_rng_seed(seed)
    guide.zero_grad()
    found = objective.estimate(model, guide, data, {})
    found.surrogate.backward()
    return found.value, {n: p.grad.clone() for n, p in guide.named_parameters() if p.grad is not None}


def one_component(family, model, data, **options):
    """A mixture of one component and that component alone, at the same parameters."""
    mixture = made("mixture", model, data, components=1, family=family, options=options)
    alone = made(family, model, data, **options)
    with torch.no_grad():
        for name, value in mixture.named_parameters():
            if name != "logits":
                value += 0.1 * torch.randn_like(value)
                alone.get_parameter(name).copy_(value[0])
    return mixture, alone


@pytest.mark.parametrize("kl", ["closed_form", "monte_carlo"])
@pytest.mark.parametrize("family", ["mean_field", "low_rank", "full_rank"])
def test_one_component_is_the_component(family, kl, data):
    """Value and gradient of SELBO and ELBO are the ELBO's, those of SIWAE the importance-weighted bound's."""
    mixture, alone = one_component(family, regression, data, init_scale=0.3)
    value, gradient = estimate(guides.ELBO(2, kl=kl), regression, alone, data)
    for objective in (guides.SELBO(2, kl=kl), guides.SELBO(2, kl=kl, warmup=9), guides.ELBO(2, kl=kl)):
        found, gradients = estimate(objective, regression, mixture, data)
        torch.testing.assert_close(found, value, rtol=1e-5, atol=1e-4)
        for name, want in gradient.items():
            torch.testing.assert_close(gradients[name][0], want, rtol=1e-4, atol=1e-3)
    draws = [estimate(guides.ELBO(1, kl="monte_carlo"), regression, alone, data)[0] for _ in range(1)]
    torch.testing.assert_close(estimate(guides.SIWAE(1), regression, mixture, data)[0], draws[0], rtol=1e-5, atol=1e-4)
    several, weighted = (
        estimate(guides.SIWAE(6), regression, mixture, data),
        estimate(guides.SIWAE(6), regression, alone, data),
    )
    torch.testing.assert_close(several[0], weighted[0], rtol=1e-5, atol=1e-4)
    for name, want in weighted[1].items():
        torch.testing.assert_close(several[1][name][0], want, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("family", ["mean_field", "low_rank", "full_rank"])
def test_the_entropy_bound_of_one_component(family, data):
    """By Bhattacharyya's distance the ELBO with the entropy in closed form; by Jensen's inequality D/2 (1 - log 2) lower."""
    mixture, alone = one_component(family, linear, data, init_scale=0.3)
    gap = 0.5 * 3 * (1 - math.log(2))
    pyro.set_rng_seed(3)
    trace = pyro.poutine.trace(alone).get_trace(*data)
    joint = pyro.poutine.trace(pyro.poutine.replay(linear, trace=trace)).get_trace(*data).log_prob_sum()
    q = alone.get_posterior()
    entropy = MultivariateNormal(q.mean, covariance(q)).entropy()
    for bound, lower in (("bhattacharyya", 0.0), ("jensen", gap)):
        found, _ = estimate(guides.EntropyBoundELBO(bound=bound, kl="monte_carlo"), linear, mixture, data)
        torch.testing.assert_close(found, (joint + entropy - lower).detach(), rtol=1e-5, atol=1e-3)


def covariance(q):
    return torch.diag(q.variance) if hasattr(q, "base_dist") else q.covariance_matrix


def estimates(objective, model, guide, data, count):
    """Values (count,) and gradients by parameter (count, ...) of independent estimates."""
    program = Program.build(model, guide, objective, Data.of(data), batch_size=None, seed=0)
    noise = program.noise.draw((count, program.particles), torch.Generator().manual_seed(0))

    def one(flat, normals, uniforms):
        found = program.estimate(flat, normals, uniforms, data, {}, 1.0, torch.tensor(math.inf))
        return found.surrogate, found.value

    with quiet(), isolated_store():
        step = torch.vmap(torch.func.grad(one, has_aux=True), in_dims=(None, 0, 0), randomness="different")
        gradients, values = step(program.parameters.initial, noise.normals, noise.uniforms)
    return values.double(), program.parameters.split(gradients.double())


def same_mean(a, b, z=4.5):
    error = (a.var(0) / len(a) + b.var(0) / len(b)).sqrt()
    return bool(((a.mean(0) - b.mean(0)).abs() < z * error + 1e-4).all())


def overlapping(model, data, **options):
    guide = made("mixture", model, data, components=3, init_loc_fn="median", options={"init_scale": 0.3, **options})
    with torch.no_grad():
        guide.logits.copy_(torch.tensor([0.5, 0.0, -0.7]))
    return guide


def test_closed_form_and_monte_carlo_agree(data):
    guide = overlapping(regression, data)
    closed, drawn = (estimates(guides.SELBO(kl=kl), regression, guide, data, 3000) for kl in ("closed_form", "monte_carlo"))
    assert same_mean(closed[0], drawn[0])
    assert closed[1].keys() == drawn[1].keys() == {"Mixture.logits", "Mixture.loc", "Mixture.scale"}
    assert all(same_mean(closed[1][n], drawn[1][n]) for n in closed[1])
    energies = [
        estimates(guides.EntropyBoundELBO(kl=kl), regression, guide, data, 3000) for kl in ("closed_form", "monte_carlo")
    ]
    assert same_mean(energies[0][0], energies[1][0])


@pytest.mark.parametrize("estimator", ["local", "flipout"])
def test_estimators_of_products_act_on_the_chosen_component(estimator, data):
    plain = estimates(guides.SELBO(), network, overlapping(network, data), data, 3000)
    other = estimates(guides.SELBO(), network, overlapping(network, data, estimator=estimator), data, 3000)
    assert same_mean(plain[0], other[0])
    assert all(same_mean(plain[1][n], other[1][n]) for n in plain[1])
    assert other[0].var() < 0.9 * plain[0].var()


def test_bounds_of_a_linear_model_are_in_their_order(data):
    """Entropy bound <= SELBO <= log evidence, which SIWAE approaches as draws are added."""
    *_, evidence = linear_posterior(*data)
    guide = overlapping(linear, data)
    means, errors = {}, {}
    objectives = {"bound": guides.EntropyBoundELBO(), "selbo": guides.SELBO()}
    objectives |= {f"siwae {n}": guides.SIWAE(n) for n in (1, 4, 16)}
    for name, objective in objectives.items():
        values, _ = estimates(objective, linear, guide, data, 1500)
        means[name], errors[name] = float(values.mean()), float(values.std()) / math.sqrt(len(values))
    order = [*objectives]
    for low, high in pairwise(order):
        assert means[low] <= means[high] + 4.5 * math.hypot(errors[low], errors[high]), (low, high)
    assert means["siwae 16"] <= evidence + 4.5 * errors["siwae 16"]
    assert means["siwae 16"] > means["selbo"] + 0.5


def test_stock_trace_elbo_learns_the_weights_too(data):
    """It chooses a component at random, so their gradient comes from the score function: noisier, with the same mean."""
    guide = overlapping(linear, data)
    _, want = estimates(guides.SELBO(), linear, guide, data, 1000)
    found = []
    for seed in range(400):
        pyro.set_rng_seed(seed)
        guide.zero_grad()
        pyro.infer.Trace_ELBO().loss_and_grads(linear, guide, *data)
        found.append(-guide.logits.grad.double())
    assert same_mean(torch.stack(found), want["Mixture.logits"])
    assert want["Mixture.logits"].mean(0).abs().max() > 0.05


@pytest.mark.parametrize("mode", ["trace", "native"])
@pytest.mark.parametrize("name", MIXTURE_OBJECTIVES)
def test_the_engine_takes_every_objective(name, mode, data, monkeypatch):
    if mode == "native" and not has_compiler():
        pytest.skip("no C++ compiler")
    monkeypatch.setattr("guides.optimise.loop._STEPS_PER_CHUNK", 10)
    options = {"penalty": falling} if name == "entropy_bound" else {"warmup": 15} if name == "selbo" else {}

    def fit(compiled):
        objective = guides.objectives[name](num_particles=2, **options)
        guide = ("mixture", {"components": 2, "family": "full_rank"})
        return guides.fit(regression, guide, *data, objective=objective, steps=30, lr=0.02, compile=compiled)

    reference, other = fit("eager"), fit(mode)
    torch.testing.assert_close(other.losses, reference.losses, rtol=2e-4, atol=5e-3)
    torch.testing.assert_close(other.flat, reference.flat, rtol=2e-3, atol=5e-3)


def falling(step):
    return 1.0 / step


MODES = {"steps": 600, "lr": 0.05, "schedule": "cosine", "compile": "trace"}


@pytest.mark.parametrize(
    ("name", "family"), [("elbo", "mean_field"), ("selbo", "full_rank"), ("entropy_bound", "mean_field")]
)
def test_both_modes_are_found_with_their_mass(name, family):
    guide = ("mixture", {"components": 4, "family": family})
    posterior = guides.fit(square, guide, ONES, objective=name, num_particles=4, **MODES)
    z = posterior.sample(4000)["z"]
    assert float((z > 0).float().mean()) == pytest.approx(HEAVIER, abs=0.05)
    assert z[z > 0].mean() > 0.7
    assert z[z < 0].mean() < -0.7


def test_a_single_normal_finds_one_mode():
    single = guides.fit(square, "mean_field", ONES, **MODES).sample(500)["z"]
    assert min((single > 0).float().mean(), (single < 0).float().mean()) < 0.01


@pytest.mark.parametrize(
    "objective", [guides.SELBO(warmup=3), guides.EntropyBoundELBO(penalty=5.0, warmup=3)], ids=["selbo", "entropy_bound"]
)
def test_a_warmup_fits_components_by_themselves(data, objective):
    """Until it ends, weights stay equal and the objective is the mean of the components' own ELBOs."""
    guide = overlapping(linear, data)
    pyro.set_rng_seed(1)
    during = objective.estimate(linear, guide, data, {}, step=3)
    assert torch.autograd.grad(during.surrogate, guide.logits, allow_unused=True)[0].abs().max() == 0
    alone = [made("mean_field", linear, data) for _ in range(3)]
    for k, q in enumerate(alone):
        with torch.no_grad():
            q.loc.copy_(guide.loc[k])
            q.get_parameter("scale_unconstrained").copy_(guide.get_parameter("scale_unconstrained")[k])
    want = []
    pyro.set_rng_seed(1)
    for q in alone:
        with isolated_store():
            want.append(guides.ELBO().estimate(linear, q, data, {}).value)
    torch.testing.assert_close(during.value, torch.stack(want).mean(), rtol=1e-5, atol=1e-3)
    pyro.clear_param_store()
    after = objective.estimate(linear, guide, data, {}, step=4)
    assert torch.autograd.grad(after.surrogate, guide.logits)[0].abs().max() > 0


def test_a_penalty_changes_the_surrogate_alone(data):
    guide = overlapping(linear, data)
    plain, punished = guides.EntropyBoundELBO(), guides.EntropyBoundELBO(penalty=2.0)
    scheduled = guides.EntropyBoundELBO(penalty=lambda step: 2.0 * (step / 10).clamp(max=1))
    found = {}
    for name, objective in (("plain", plain), ("punished", punished), ("scheduled", scheduled)):
        pyro.set_rng_seed(0)
        found[name] = objective.estimate(linear, guide, data, {}, step=5)
    entropy = -(guide.log_weights().exp() * guide.log_weights()).sum()
    torch.testing.assert_close(found["punished"].value, found["plain"].value)
    torch.testing.assert_close(found["punished"].surrogate, found["plain"].surrogate - 2 * entropy)
    torch.testing.assert_close(found["scheduled"].surrogate, found["plain"].surrogate - entropy)


@pytest.mark.parametrize("weights", ["learned", "uniform"])
def test_weights(weights, data):
    guide = ("mixture", {"components": 3, "weights": weights})
    posterior = guides.fit(regression, guide, *data, steps=60, lr=0.05, replicates=2)
    for info in posterior.info:
        assert sum(info["weights"]) == pytest.approx(1.0, abs=1e-9)
        assert (info["weights"] == [pytest.approx(1 / 3)] * 3) is (weights == "uniform")
        assert 1 <= info["effective_components"] <= 3 + 1e-9
    assert ("Mixture.logits" in posterior.parameters) is (weights == "learned")


def test_components_start_apart_and_far(data):
    starts = []
    for seed in (1, 2):
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        guide = guides.Mixture(linear, components=4)
        guide(*data)
        starts.append(guide.loc.detach())
        assert (torch.cdist(starts[-1], starts[-1]) + 100 * torch.eye(4)).min() > 2  # the prior's deviation, in 3 dimensions
    assert not torch.equal(*starts)


def dying(data):
    """A fitted mixture in which one component has no weight."""
    guide = made("mixture", square, (ONES,), components=3, options={"init_scale": 0.1})
    with torch.no_grad():
        guide.loc.copy_(torch.tensor([[1.0], [-1.0], [4.0]]))
        guide.logits.copy_(torch.tensor([0.0, -0.8, -30.0]))
    return guides.fit(square, guide, ONES, steps=3, lr=1e-4)


def test_a_dead_component_is_reported(data):
    posterior = dying(data)
    assert posterior.info[0]["dead_components"] == [2]
    diagnosis = posterior.diagnose(only=["components"])
    assert diagnosis.findings["components"].dead == [[2]]
    assert "1 dead (weight below 0.0001: 2)" in str(diagnosis)
    healthy = guides.fit(square, ("mixture", {"components": 2, "weights": "uniform"}), ONES, steps=5)
    assert "2.0 of 2 components in use" in str(healthy.diagnose(only=["components"]))
    other = guides.fit(square, "mean_field", ONES, steps=5).diagnose()
    assert "components" not in str(other)


def test_a_dead_component_can_be_seeded_again(data):
    posterior = dying(data)
    guide = posterior.guide
    before = guide.log_weights().exp()
    assert guide.reseed(scale=1.0, seed=1) == [2]
    after = guide.log_weights().exp()
    torch.testing.assert_close(after[0], after[2])
    torch.testing.assert_close(after[0] + after[2], before[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(after.sum(), torch.ones(()))
    assert 0 < (guide.loc[2] - guide.loc[0]).abs() < 1
    torch.testing.assert_close(guide.scale[2], guide.scale[0])
    assert guide.reseed() == []
    again = guides.fit(square, guide, ONES, steps=30, lr=0.02, compile="eager")
    assert again.info[0]["dead_components"] == []
    uniform = made("mixture", square, (ONES,), components=2, weights="uniform")
    with pytest.raises(guides.errors.UnsupportedModelError, match="reseed needs learned weights"):
        uniform.reseed()


@pytest.mark.parametrize("name", MIXTURE_OBJECTIVES)
def test_a_weight_that_underflows_leaves_the_objective_finite(name):
    """Its component lies where the model has no density at all."""
    guide = made("mixture", walled, (), components=2)
    with torch.no_grad():
        guide.loc.copy_(torch.tensor([[0.0], [50.0]]))
        guide.logits.copy_(torch.tensor([0.0, -300.0]))
    value, gradients = estimate(guides.objectives[name](), walled, guide, ())
    assert value.isfinite()
    assert all(g.isfinite().all() for g in gradients.values())


def walled():
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.factor("wall", torch.where(z > 10, -math.inf, 0.0))


@pytest.mark.parametrize(("power", "lr"), [(3.0, 20.0), (-1.0, 1e20)], ids=["collapse", "explode"])
def test_scales_that_collapse_or_explode_end_the_fit_at_finite_parameters(power, lr):
    """A density with a pole draws all mass to a point; one that grows without bound spreads it for ever."""

    def improper():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("pole", 0.5 * z**2 - power * torch.log(z.abs()) if power > 0 else 0.5 * z**2 + (0.1 * z) ** 2)

    guide = (
        "mixture",
        {"components": 2, "init_loc_fn": pyro.infer.autoguide.init_to_value(values={"z": torch.tensor(0.0)})},
    )
    with pytest.warns(guides.errors.NonFiniteLossWarning, match="not finite"):
        posterior = guides.fit(improper, guide, steps=30, lr=lr, compile="eager", objective="selbo")
    assert posterior.flat.isfinite().all()
    assert "not finite" in posterior.stop_reasons[0]
    assert softplus(posterior.flat).isfinite().all()


def changing():
    changing.calls += 1
    pyro.sample("z", dist.Normal(torch.zeros(2 if changing.calls > 4 else 1), 1.0).to_event(1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"components": 0}, "components must be a whole number of 1 or more, not 0"),
        ({"components": 2.5}, "components must be a whole number of 1 or more, not 2.5"),
        ({"family": ("mean_field", "full_rank")}, "family must be one registry name, so that all components are one batch"),
        ({"family": "laplace"}, "family='laplace' cannot be a component"),
        ({"family": "map"}, "family='map' cannot be a component"),
        ({"family": "ensemble"}, "family='ensemble' cannot be a component"),
        ({"weights": "equal"}, "weights='equal' is not known; use 'learned' or 'uniform'"),
        ({"options": {"init_scale": 0.0}}, "init_scale must be positive"),
        ({"init_loc_fn": "medain"}, r"init_loc_fn='medain'.*'median'"),
    ],
)
def test_bad_options_are_named(options, message, data):
    with pytest.raises(ValueError, match=message):
        guides.fit(linear, ("mixture", options), *data, steps=2)


def test_components_that_differ_in_their_sites_are_refused():
    changing.calls = 0
    with pytest.raises(
        guides.errors.GuideMismatchError, match=r"components found different latent sites: z \(2,\), before z \(1,\)"
    ):
        guides.Mixture(changing, components=3)()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: guides.SELBO(kl="exact"), "kl must be 'closed_form' or 'monte_carlo'"),
        (lambda: guides.SELBO(warmup=-1), "warmup must be a number of steps"),
        (lambda: guides.EntropyBoundELBO(warmup=-1), "warmup must be a number of steps"),
        (lambda: guides.EntropyBoundELBO(bound="huber"), "bound='huber' is not known"),
        (lambda: guides.EntropyBoundELBO(kl="exact"), "kl must be"),
        (lambda: guides.EntropyBoundELBO(penalty=-1.0), "penalty must be 0 or more"),
    ],
)
def test_bad_options_of_objectives_are_named(make, message):
    with pytest.raises(guides.errors.OptionError, match=message):
        make()


def test_five_components_are_one_batch(data):
    """A step runs the model once, however many components there are: the operations of its graph do not multiply."""
    sizes = []
    for count in (2, 5):
        program = Program.build(
            network, guides.Mixture(network, components=count), guides.SELBO(), Data.of(data), batch_size=None, seed=0
        )
        noise = program.noise.draw((program.particles,), torch.Generator().manual_seed(0))

        def value(flat, normals, uniforms, step):
            return program.estimate(flat, normals, uniforms, data, {}, 1.0, step).surrogate  # noqa: B023

        with quiet(), isolated_store():
            graph = make_fx(value)(program.parameters.initial, noise.normals, noise.uniforms, torch.tensor(1.0))
        sizes.append(len(graph.graph.nodes))
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("objective", ["iwae", "renyi"])
def test_objectives_that_weigh_components_alike_refuse_mixtures(objective, data):
    with pytest.raises(guides.errors.OptionError, match="use 'siwae'"):
        guides.fit(regression, "mixture", *data, objective=objective, steps=2, compile="eager")


def test_validation_weighs_components_by_their_weights(data):
    """The score of a mixture whose weight is all on one component is that component's, whatever the others predict."""
    x, y = data
    program, flat = lopsided(x[:10], y[:10])
    rows = [x[10:], y[10:]]
    noise = program.noise.draw((1,), torch.Generator().manual_seed(0)).map(lambda n: n[0])
    scores = torch.stack([program.log_likelihood(flat, noise, torch.tensor(k), rows, {}) for k in range(2)])
    assert scores[1].max() < -50 < scores[0].min()


def lopsided(x, y):
    posterior = guides.fit(regression, ("mixture", {"components": 2}), x, y, steps=1, compile="eager")
    values = dict(posterior.parameters)
    name = next(n for n in values if n.endswith("logits"))
    values[name] = torch.tensor([0.0, -70.0])
    return posterior.program, posterior.program.parameters.flatten(values)
