"""Layers of mixtures with random weights, and their objective: exactness, paths, gradients, the engine, bad input."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from estimates import replicate_estimates, same_estimates, same_mean
from pyro.infer import SVI
from torch import nn
from torch.distributions import MultivariateNormal

import guides
import zoo
from guides import errors
from guides.compile.loops import has_compiler
from guides.program.rows import row_log_weights
from zoo.networks import GaussianNetwork, mlp

PIXELS, LATENT, K, NOISE = 3, 2, 3, 0.6
LOADINGS = torch.tensor([[1.0, 0.3], [-0.4, 0.9], [0.5, 0.5]])
CENTRES = torch.tensor([[-2.0, 0.0], [1.0, 1.5], [2.0, -1.0]])
SCALES = torch.tensor([[0.7, 0.5], [0.4, 1.0], [0.6, 0.6]])


def encoder(inputs=PIXELS, features=8, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(inputs, features), nn.Tanh())


def log_weights(v):
    one = torch.ones_like(v[..., :1])
    return torch.cat([v, one], -1).log() + torch.cat([one, (1 - v).cumprod(-1)], -1).log()


def mixture(v, loc, scale):
    weights = log_weights(v)
    components = dist.Normal(loc.expand(*weights.shape, -1), scale.expand(*weights.shape, -1)).to_event(1)
    return dist.MixtureSameFamily(dist.Categorical(logits=weights), components)


def linear(x):
    """Dirichlet(1, 1, 1) weights, z a mixture of three normals, x ~ N(W z, NOISE^2 I)."""
    with pyro.plate("data", len(x)):
        v = pyro.sample("v", dist.Beta(x.new_ones(2), x.new_tensor([2.0, 1.0])).to_event(1))
        z = pyro.sample("z", mixture(v, CENTRES.to(x), SCALES.to(x)))
        pyro.sample("x", dist.Normal(z @ LOADINGS.T.to(x), NOISE).to_event(1), obs=x)


def evidence(x):
    """log p(x_n) in nats, (rows,): given the weights it is linear in them, so their mean does."""
    covariance = LOADINGS @ torch.diag_embed(SCALES.square()) @ LOADINGS.T + NOISE**2 * torch.eye(PIXELS)
    each = MultivariateNormal(CENTRES @ LOADINGS.T, covariance).log_prob(x.unsqueeze(1))
    return torch.logsumexp(each, -1) - math.log(K)


def two_layers(x):
    """The same with a layer above: its code shifts the components of the layer below."""
    with pyro.plate("data", len(x)):
        prior = dist.Beta(x.new_ones(2), x.new_tensor([2.0, 1.0])).to_event(1)
        v_2 = pyro.sample("v_2", prior)
        top = pyro.sample("z_2", mixture(v_2, CENTRES[:, :1].to(x), SCALES[:, :1].to(x)))
        v_1 = pyro.sample("v_1", prior)
        z = pyro.sample("z_1", mixture(v_1, CENTRES.to(x) + 0.3 * top.unsqueeze(-1), SCALES.to(x)))
        pyro.sample("x", dist.Normal(z @ LOADINGS.T.to(x), NOISE).to_event(1), obs=x)


def rows(count=60, seed=1):
    generator = torch.Generator().manual_seed(seed)
    which = torch.randint(K, (count,), generator=generator)
    z = CENTRES[which] + SCALES[which] * torch.randn(count, LATENT, generator=generator)
    return z @ LOADINGS.T.to(z) + NOISE * torch.randn(count, PIXELS, generator=generator)


def options(layers=1, **others):
    encoders = [encoder(), encoder(LATENT, 6, seed=1)]
    return {"encoder": encoders if layers == 2 else encoders[0], "components": K, "init_scale": 0.5, **others}


def made(model, x, layers=1, **others):
    """A guide with parameters that are not at their start."""
    pyro.clear_param_store()
    torch.manual_seed(1)
    guide = guides.DeepMixtureAmortized(model, **options(layers, **others))
    guide(x)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for value in guide.parameters():
            value += 0.2 * torch.randn(value.shape, generator=generator)
    return guide


def plain_draws(model, guide, x, count=4000):
    """log p - log q of draws that choose components at random, as no objective does, (count,)."""
    many = x.repeat(count, 1)
    torch.manual_seed(3)
    with torch.no_grad():
        guide_trace = pyro.poutine.trace(guide).get_trace(many)
        model_trace = pyro.poutine.trace(pyro.poutine.replay(model, trace=guide_trace)).get_trace(many)
        return row_log_weights(model_trace, guide_trace)[0].reshape(count, len(x)).sum(-1).double()


MODELS = {1: linear, 2: two_layers}


@pytest.mark.parametrize("layers", [1, 2])
def test_every_way_to_weigh_and_to_draw_has_the_same_mean(layers):
    """Means or draws as weights, series or draws for the fractions, all paths or some, SELBO and ELBO: one bound."""
    model, x = MODELS[layers], rows(4)
    reference = plain_draws(model, made(model, x, layers), x)
    ways = [
        (guides.DLGMMELBO(), {}),
        (guides.DLGMMELBO(weights="drawn", kl="monte_carlo"), {}),
        (guides.SELBO(), {}),
        (guides.ELBO(), {}),
    ]
    if layers == 2:
        ways += [(guides.DLGMMELBO(), {"enumerated": 1}), (guides.SELBO(), {"enumerated": 1})]
    found = [
        replicate_estimates(o, model, made(model, x, layers, **how), (x,), 1500, seed=n) for n, (o, how) in enumerate(ways)
    ]
    for (objective, how), estimates in zip(ways, found):
        assert same_mean(estimates[0], reference), (objective, how)
        assert same_estimates(estimates, found[0]), (objective, how)
    assert found[0][0].var() < 0.5 * reference.var()
    assert found[0][0].var() < found[1][0].var()


@pytest.mark.parametrize("layers", [1, 2])
def test_one_component_is_the_elbo_of_a_vae_at_the_same_noise(layers):
    torch.manual_seed(0)
    dims = (3, 2)[:layers] if layers == 2 else 2
    decoder = mlp((3 if layers == 2 else 2, 8, 6), "tanh")
    below = [GaussianNetwork(mlp((2, 5), output_activation="tanh"), 5, 3)] if layers == 2 else []
    x = torch.bernoulli(torch.full((12, 6), 0.4))
    encoders = [encoder(6), encoder(3, 5)][:layers]
    one = zoo.DeepLatentGaussianMixture(decoder, dims, num_components=1, layers=below)
    vae = zoo.VAE(decoder, dims, layers=below)
    mixed = guides.DeepMixtureAmortized(one, encoders, components=1)
    plain = guides.Amortized(vae, encoders)
    mixed(x), plain(x)
    with torch.no_grad():
        for number, head in enumerate(mixed.heads):
            other = plain.heads[number]
            for part in (head, other):
                part.rho.weight.zero_()
            other.loc.load_state_dict(head.loc.state_dict())
    found = []
    for model, guide, objective in (
        (one, mixed, guides.DLGMMELBO(2)),
        (one, mixed, guides.ELBO(2)),
        (vae, plain, guides.ELBO(2, kl="monte_carlo")),
    ):
        torch.manual_seed(5)
        guide.zero_grad()
        estimate = objective.estimate(model, guide, (x,), {})
        estimate.surrogate.backward()
        found.append((estimate.value, guide.heads[0].loc.weight.grad.clone(), encoders[0][0].weight.grad.clone()))
        encoders[0].zero_grad()
    for values in found[:-1]:
        torch.testing.assert_close(values, found[-1], rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def fitted():
    torch.manual_seed(0)
    guide = ("deep_mixture_amortized", options())
    return guides.fit(linear, guide, rows(), objective="dlgmm", steps=400, lr=0.03, schedule="cosine", compile="trace")


def test_the_bound_is_below_the_evidence_and_log_marginal_finds_it(fitted):
    x = rows()
    draws = fitted.draws(500)
    bound, exact = (draws.log_p - draws.log_q).double().flatten(), float(evidence(x).sum())
    assert bound.mean() + 4.5 * bound.std() / math.sqrt(500) < exact
    assert float(bound.mean()) > exact - 0.6 * len(x)
    new = rows(10, seed=9)
    found, by_component = (
        guides.log_marginal(fitted, new, num_samples=4000, denominator=d, split="test") for d in ("full", "component")
    )
    assert ((found.values - evidence(new)).abs() < 4.5 * found.standard_error + 0.02).all()
    assert by_component.mean < found.mean


def test_the_posterior_of_the_weights_is_that_of_the_component(fitted):
    """Where the component is sure, the posterior of its weight is a Dirichlet with one count more: its mean is 2 / 4."""
    centres = CENTRES @ LOADINGS.T
    v = fitted.draws(2000, centres).latents["v"][0]
    weights = log_weights(v).exp().mean(0)
    assert weights.shape == (3, 3)
    assert (weights.diagonal() - 0.5).abs().max() < 0.1


def test_draws_files_and_diagnosis(fitted, tmp_path):
    draws = fitted.draws(5, rows(7, seed=3))
    assert draws.latents["v"].shape == (1, 5, 7, 2) and draws.latents["z"].shape == (1, 5, 7, LATENT)
    whole = fitted.draws(1)
    assert float(fitted.log_prob({n: v[0, 0] for n, v in whole.latents.items()})) == pytest.approx(float(whole.log_q), 1e-4)
    fitted.save(tmp_path / "posterior")
    again = ("deep_mixture_amortized", options(encoder=encoder(seed=9)))
    loaded = guides.Posterior.load(tmp_path / "posterior", linear, guide=again)
    torch.testing.assert_close(loaded.draws(3).latents["z"], fitted.draws(3).latents["z"])
    assert "latents in use" in str(fitted.diagnose())


@pytest.mark.parametrize(("layers", "weights"), [(1, "mean"), (1, "drawn"), (2, "mean")])
def test_gradients_match_finite_differences_at_the_same_noise(layers, weights):
    torch.set_default_dtype(torch.float64)
    try:
        model, x, objective = MODELS[layers], rows(5).double(), guides.DLGMMELBO(2, weights=weights)
        guide = made(model, x, layers).double()

        def value():
            pyro.set_rng_seed(2)
            return objective.estimate(model, guide, (x,), {})

        parameters = list(guide.parameters())
        gradients = torch.autograd.grad(value().surrogate, parameters)
        generator = torch.Generator().manual_seed(0)
        directions = [torch.randn(p.shape, generator=generator) for p in parameters]
        slope = sum((g * d).sum() for g, d in zip(gradients, directions))
        step, ends = 1e-6, []
        for sign in (1, -1):
            with torch.no_grad():
                for p, d in zip(parameters, directions):
                    p += sign * step * d
                ends.append(value().value)
                for p, d in zip(parameters, directions):
                    p -= sign * step * d
        torch.testing.assert_close((ends[0] - ends[1]) / (2 * step), slope, rtol=1e-6, atol=1e-6)
    finally:
        torch.set_default_dtype(torch.float32)


def fit_example(layers, compile, **others):
    torch.manual_seed(4)
    guide = ("deep_mixture_amortized", options(layers, **others))
    settings = {"objective": "dlgmm", "steps": 5, "lr": 0.02, "batch_size": 20, "replicates": 2}
    return guides.fit(MODELS[layers], guide, rows(), compile=compile, **settings)


@pytest.mark.parametrize(("layers", "others"), [(1, {}), (2, {}), (2, {"enumerated": 1})])
def test_traced_and_eager_steps_agree_in_minibatches_and_replicates(layers, others):
    eager, traced = (fit_example(layers, mode, **others) for mode in ("eager", "trace"))
    torch.testing.assert_close(traced.losses, eager.losses, rtol=2e-4, atol=2e-3)
    torch.testing.assert_close(traced.flat, eager.flat, rtol=2e-4, atol=2e-3)


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")
def test_compiled_and_eager_steps_agree(monkeypatch):
    monkeypatch.setattr("guides.optimise.loop._STEPS_PER_CHUNK", 2)
    eager, compiled = (fit_example(2, mode) for mode in ("eager", "native"))
    torch.testing.assert_close(compiled.losses, eager.losses, rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(compiled.flat, eager.flat, rtol=1e-3, atol=1e-3)


def test_minibatches_have_the_scale_of_all_rows():
    x = rows(20)
    guide = made(two_layers, x, 2)
    whole, part = (replicate_estimates(guides.DLGMMELBO(), two_layers, guide, (x,), 300, factor=f)[0] for f in (1.0, 3.0))
    torch.testing.assert_close(part, 3 * whole, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("objective", [guides.DLGMMELBO, guides.ELBO])
def test_it_trains_in_stock_svi_and_leaves_no_state(objective):
    x = rows()
    guide = guides.DeepMixtureAmortized(two_layers, **options(2, enumerated=1))
    svi = SVI(two_layers, guide, pyro.optim.Adam({"lr": 0.02}), loss=objective())
    losses = torch.tensor([svi.step(x) for _ in range(25)])
    assert losses.isfinite().all() and losses[-5:].mean() < losses[:5].mean() - 2
    pyro.clear_param_store()
    before = torch.get_rng_state()
    guides.fit(two_layers, ("deep_mixture_amortized", options(2)), x, objective=objective(), steps=3, compile="eager")
    assert torch.equal(before, torch.get_rng_state()) and not list(pyro.get_param_store())


# -- numbers that are not finite ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["dlgmm", "elbo", "siwae"])
@pytest.mark.parametrize("size", [-1e6, -30.0, 30.0, 1e6])
def test_whatever_the_networks_say_values_and_gradients_are_finite(objective, size):
    x = rows(8)
    guide = made(two_layers, x, 2)
    signs = torch.tensor([1.0, -1.0])
    with torch.no_grad():
        for head in guide.heads:
            head.sticks.bias.copy_((size * signs).repeat_interleave(2))
            head.rho.bias.copy_(size * signs.repeat(head.rho.out_features)[: head.rho.out_features])
    torch.manual_seed(0)
    found = guides.objectives[objective](2).estimate(two_layers, guide, (x,), {})
    found.surrogate.backward()
    assert found.value.isfinite()
    assert all(p.grad.isfinite().all() for p in guide.parameters())


@pytest.mark.parametrize("weights", ["dirichlet", "gem"])
def test_steps_far_too_long_stay_finite(weights):
    """Two layers, whose authors' runs ended in NaN, at a hundred times their learning rate of 3e-4."""
    torch.manual_seed(0)
    x = zoo.datasets.digits_images().x[:200]
    below = [GaussianNetwork(mlp((2, 10), output_activation="relu"), 10, K * 4)]
    encoders = [mlp((64, 20), output_activation="relu"), mlp((4, 10), output_activation="relu")]
    model = zoo.DeepLatentGaussianMixture(mlp((4, 20, 64)), (4, 2), K, weights, layers=below, encoder=encoders)
    posterior = guides.fit(model, x, objective="dlgmm", batch_size=20, steps=150, lr=0.03, compile="trace", progress=False)
    assert posterior.stop_reasons == ("ran all 150 steps",)
    assert posterior.losses.isfinite().all() and posterior.flat.isfinite().all()
    assert posterior.losses[0, -50:].mean() < 0.8 * posterior.losses[0, :5].mean()


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"components": 0}, "components must be at least 1, not 0"),
        ({"components": 2.5}, "components must be a whole number, not 2.5"),
        ({"enumerated": 0}, "enumerated must be at least 1, not 0"),
        ({"enumerated": 2}, "enumerated=2, but there are 1 layers"),
        ({"init_spread": -1.0}, "init_spread must be 0 or more"),
        ({"init_scale": 0.0}, "init_scale must be positive"),
    ],
)
def test_bad_options_are_named(others, message):
    with pytest.raises(errors.OptionError, match=message):
        guides.DeepMixtureAmortized(linear, **options(**others))


def normal_codes(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(LATENT), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ LOADINGS.T, NOISE).to_event(1), obs=x)


def simplex(x):
    with pyro.plate("data", len(x)):
        share = pyro.sample("share", dist.Dirichlet(torch.ones(3)))
        pyro.sample("x", dist.Normal(share, NOISE).to_event(1), obs=x)


def shared(x):
    pyro.sample("mean", dist.Normal(0.0, 1.0))
    linear(x)


@pytest.mark.parametrize(
    ("model", "others", "error", "message"),
    [
        (linear, {"components": 4}, errors.GuideMismatchError, "components=4, but latent site 'v' has 2 fractions"),
        (linear, {"components": 1}, errors.GuideMismatchError, "components=1, but latent site 'v' has 2 fractions"),
        (normal_codes, {}, errors.GuideMismatchError, r"has 1 codes \(z\) and 0 vectors of fractions \(none\)"),
        (two_layers, {}, errors.GuideMismatchError, r"1 encoders for 2 layers of codes \(z_1, z_2\)"),
        (linear, {"encoder": nn.Flatten(0)}, errors.GuideMismatchError, r"needs features \(60, F\)"),
        (
            simplex,
            {},
            errors.UnsupportedModelError,
            "latent site 'share' is no vector of fractions or of real numbers",
        ),
        (shared, {}, errors.UnsupportedModelError, "latent site 'mean' is shared by all rows"),
    ],
)
def test_models_that_do_not_fit_are_named(model, others, error, message):
    with pytest.raises(error, match=message):
        guides.fit(model, ("deep_mixture_amortized", options(**others)), rows(), steps=1)


def test_a_zoo_model_and_a_guide_with_another_number_of_components():
    model, (x,) = zoo.DeepLatentGaussianMixture.example()
    name, given = model.natural_guide
    with pytest.raises(errors.GuideMismatchError, match="components=3, but latent site 'sticks' has 1 fractions"):
        guides.fit(model, (name, {**given, "components": 3}), x, steps=1)


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ("entropy_bound", "objective 'entropy_bound' knows one mixture .* use 'dlgmm'"),
        ("score_function", "gives every component of a mixture the same weight"),
        ("iwae", "gives every component of a mixture the same weight"),
        ("renyi", "gives every component of a mixture the same weight"),
    ],
)
def test_objectives_that_cannot_weigh_layers_say_so(objective, message):
    with pytest.raises(errors.OptionError, match=message):
        guides.fit(linear, ("deep_mixture_amortized", options()), rows(), objective=objective, steps=1)


def test_bad_options_of_the_objective_are_named():
    with pytest.raises(errors.OptionError, match="weights='sampled' is not known; use one of 'mean', 'drawn'"):
        guides.DLGMMELBO(weights="sampled")
    with pytest.raises(errors.OptionError, match="kl must be 'closed_form' or 'monte_carlo'"):
        guides.DLGMMELBO(kl="exact")
