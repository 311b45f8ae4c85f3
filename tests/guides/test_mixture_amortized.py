"""The amortised mixture: one component, bounds in order, who computes the components, the engine, what it refuses."""

import math
from dataclasses import replace
from itertools import pairwise

import pyro
import pyro.distributions as dist
import pytest
import torch
from amortized_models import (
    LATENT,
    NOISE,
    PIXELS,
    encoder,
    evidence,
    loadings,
    pca,
    rows_of,
    skewed_loadings,
    supports,
    with_global,
)
from pyro import poutine
from torch import nn

import guides
from guides import errors
from guides.distributions.mixtures import MixtureDensity
from guides.families.encoders.component_heads import WEIGHTS, log_weights_of
from guides.program.data import Data
from guides.program.isolation import quiet
from guides.program.parameters import isolated_store
from guides.program.program import Program
from guides.program.strata import Stratum

CLOSE = {"rtol": 2e-4, "atol": 2e-3}
OBJECTIVES = ("elbo", "selbo", "entropy_bound", "siwae")


class OneHot(nn.Module):
    """An encoder that is told which component it computes."""

    def __init__(self, components=3):
        super().__init__()
        self.linear = nn.Linear(PIXELS + components, 8)

    def forward(self, x, which):
        return torch.tanh(self.linear(torch.cat([x, which], -1)))


def options_of(sharing, **options):
    torch.manual_seed(4)
    kinds = {
        "heads": {"encoder": encoder(), "components": 3},
        "encoders": {"encoder": [encoder(seed=s, features=6 + s) for s in range(3)]},
        "one_hot": {"encoder": OneHot(), "components": 3, "one_hot": True},
    }
    return {**kinds[sharing], **options}


def made(model, x, name="mixture_amortized", **options):
    pyro.clear_param_store()
    torch.manual_seed(1)
    guide = guides.families[name](model, **options)
    guide(x)
    return guide


def moved(guide, by=0.3, seed=2):
    """The guide with its parameters elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in guide.parameters():
            value += by * torch.randn(value.shape, generator=generator)
    return guide


def estimate(objective, model, guide, x, seed=3):
    torch.manual_seed(seed)
    guide.zero_grad()
    found = objective.estimate(model, guide, (x,), {})
    found.surrogate.backward()
    return found.value, {n: p.grad.clone() for n, p in guide.named_parameters() if p.grad is not None}


def values_of(objective, model, guide, x, count, factor=1.0):
    """Independent estimates ``(count,)``, of the same draws for every objective with as many."""
    program = Program.build(model, guide, objective, Data.of((x,)), batch_size=None, seed=0)
    noise = program.noise.draw((count, program.particles), torch.Generator().manual_seed(0))
    plates = replace(program, follows=replace(program.follows, rescaled=frozenset({"data"})))

    def one(normals, uniforms):
        initial = program.parameters.initial
        return plates.estimate(initial, normals, uniforms, (x,), {}, factor, torch.tensor(math.inf)).value

    with quiet(), isolated_store(), torch.no_grad():
        return torch.vmap(one, randomness="different")(noise.normals, noise.uniforms).double()


def mean_value(*inputs, **factor):
    """Mean of independent estimates, and its standard error."""
    values, count = values_of(*inputs, **factor), inputs[-1]
    return float(values.mean()), float(values.std()) / math.sqrt(count)


@pytest.mark.parametrize("covariance", ["diagonal", "low_rank", "full"])
def test_one_component_is_the_amortized_guide(covariance):
    weights = skewed_loadings()
    x, model = rows_of(weights, 12), pca(weights)
    mixture = moved(made(model, x, encoder=encoder(), components=1, covariance=covariance))
    alone = made(model, x, "amortized", encoder=encoder(), covariance=covariance)
    values = dict(mixture.named_parameters())
    with torch.no_grad():
        for name, value in alone.named_parameters():
            value.copy_(values[name])
    for objective in (guides.ELBO(2), guides.SELBO(2), guides.ELBO(2, kl="monte_carlo")):
        reference = objective if isinstance(objective, guides.ELBO) else guides.ELBO(2)
        if covariance != "diagonal":  # whose entropy the mixture takes from the draw
            objective.kl = reference.kl = "monte_carlo"
        want, gradient = estimate(reference, model, alone, x)
        found, gradients = estimate(objective, model, mixture, x)
        torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-4)
        for name in gradient:
            torch.testing.assert_close(gradients[name], gradient[name], rtol=1e-4, atol=1e-3)
    want, gradient = estimate(guides.IWAE(4), model, alone, x)
    found, gradients = estimate(guides.SIWAE(4), model, mixture, x)
    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-4)
    for name in gradient:
        torch.testing.assert_close(gradients[name], gradient[name], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
@pytest.mark.parametrize("weights", ["softmax", "kumaraswamy"])
def test_bounds_are_in_order(weights, covariance):
    """Entropy bound <= SELBO <= SIWAE of 1, 5 draws <= log p(x), and log p(x) is recovered by importance sampling."""
    slopes = skewed_loadings()
    x, model = rows_of(slopes, 8), pca(slopes)
    options = options_of("heads", weights=weights, covariance=covariance, init_scale=0.7, init_spread=0.3)
    guide = made(model, x, **options)
    with torch.no_grad():
        for head in guide.heads:
            head.weight.bias += torch.linspace(-0.6, 0.6, head.weight.bias.numel())
    found = [
        values_of(objective, model, guide, x, 1000)
        for objective in (guides.EntropyBoundELBO(), guides.SELBO(), guides.SIWAE(1), guides.SIWAE(5))
    ]
    exact = float(evidence(slopes, x).sum())
    for low, high in pairwise(found):
        apart = high - low
        assert float(apart.mean()) > 4 * float(apart.std()) / math.sqrt(1000)
    assert float(found[-1].mean()) < exact + 4 * float(found[-1].std()) / math.sqrt(1000)
    apart = values_of(guides.SELBO(kl="monte_carlo"), model, guide, x, 1000) - found[1]
    assert abs(float(apart.mean())) < 4 * float(apart.std()) / math.sqrt(1000) + 1e-3


def test_log_marginal_is_the_evidence():
    slopes = skewed_loadings()
    new = rows_of(slopes, 6, seed=9)
    options = options_of("heads", init_scale=0.7, init_spread=0.1)
    posterior = guides.fit(pca(slopes), ("mixture_amortized", options), rows_of(slopes), steps=200, lr=0.03, compile="trace")
    found, by_component = (
        guides.log_marginal(posterior, new, num_samples=4000, denominator=d, split="test") for d in ("full", "component")
    )
    exact = evidence(slopes, new)
    assert by_component.mean < exact.mean() + 4.5 * by_component.mean_standard_error
    assert (by_component.values - found.values).abs().max() > 1e-3
    assert ((found.values - exact).abs() < 4.5 * found.standard_error + 0.05).all()


@pytest.mark.parametrize(
    ("sharing", "objective"), [("heads", "elbo"), ("heads", "siwae"), ("encoders", "selbo"), ("one_hot", "entropy_bound")]
)
def test_traced_and_eager_steps_agree_in_minibatches_and_replicates(sharing, objective):
    weights = skewed_loadings()
    x, common = rows_of(weights), {"steps": 6, "lr": 0.02, "batch_size": 20, "replicates": 2}
    eager, traced = (
        guides.fit(pca(weights), ("mixture_amortized", options_of(sharing)), x, objective=objective, compile=mode, **common)
        for mode in ("eager", "trace")
    )
    torch.testing.assert_close(traced.losses, eager.losses, **CLOSE)
    torch.testing.assert_close(traced.flat, eager.flat, **CLOSE)
    assert torch.isfinite(eager.losses).all()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_minibatches_have_the_scale_of_all_rows(objective):
    """The mean over minibatches that cover the data is the value on the data."""
    weights = skewed_loadings()
    x, model = rows_of(weights, 40), pca(weights)
    guide = moved(made(model, x, **options_of("heads")), 0.1)
    chosen = guides.objectives[objective]()
    full = mean_value(chosen, model, guide, x, 100)
    parts = []
    for start in range(0, 40, 10):
        parts.append(mean_value(chosen, model, guide, x[start : start + 10], 100, factor=4.0))
    mean, error = sum(p[0] for p in parts) / 4, math.sqrt(sum(p[1] ** 2 for p in parts)) / 4
    assert abs(mean - full[0]) < 4.5 * math.hypot(error, full[1])
    assert abs(full[0]) > 50


@pytest.mark.parametrize("sharing", ["heads", "encoders", "one_hot"])
def test_both_modes_of_every_row(sharing):
    """x ~ N(|z|, 0.2): the posterior of each row has modes near x and -x."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.5))
            pyro.sample("x", dist.Normal(z.abs().unsqueeze(-1), 0.2).expand([len(x), PIXELS]).to_event(1), obs=x)

    torch.manual_seed(0)
    x = (0.8 + torch.rand(100, 1)).expand(-1, PIXELS) + 0.2 * torch.randn(100, PIXELS)
    guide = ("mixture_amortized", options_of(sharing, init_spread=1.5))
    fit = {"steps": 600, "lr": 0.02, "compile": "trace", "batch_size": 50}
    posterior = guides.fit(model, guide, x, objective=guides.SELBO(warmup=300), **fit)
    draws = posterior.draws(2000, x[:5]).latents["z"][0]
    share = (draws > 0).float().mean(0)
    assert (share - 0.5).abs().max() < 0.1
    assert (draws.abs().mean(0) - x[:5].mean(-1)).abs().max() < 0.15


def test_any_support_and_shape():
    x = rows_of(skewed_loadings())
    posterior = guides.fit(
        supports, ("mixture_amortized", options_of("heads")), x, steps=30, lr=0.03, batch_size=20, compile="trace"
    )
    assert posterior.losses[0, -5:].mean() < posterior.losses[0, :5].mean()
    draws = posterior.draws(5, x[:7])
    for name, site in posterior.sites.items():
        if site.kind == "latent":
            assert draws.latents[name].shape == (1, 5, 7, *site.shape[1:])
            assert site.support.check(draws.latents[name]).all()
    whole = posterior.draws(1)
    found = posterior.log_prob({n: v[0, 0] for n, v in whole.latents.items()})
    assert float(found) == pytest.approx(float(whole.log_q), rel=1e-3)


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("scale", [0.0, 1.0, 300.0])
def test_weights_sum_to_one(kind, scale):
    count, function = log_weights_of(kind)
    numbers = scale * torch.randn(50, 5, count, generator=torch.Generator().manual_seed(0))
    found = function(numbers)
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(50), rtol=0.0, atol=1e-6)
    if scale == 0.0:
        torch.testing.assert_close(found.exp(), torch.full((50, 5), 0.2))


def test_the_density_of_rows_is_the_whole_mixture():
    weights = loadings()
    x, model = rows_of(weights, 6), pca(weights)
    guide = moved(made(model, x, **options_of("heads")))
    with Stratum(torch.tensor(2)):
        trace = poutine.trace(guide).get_trace(x)
    density = guide.density(trace)
    assert isinstance(density, MixtureDensity)
    z, mixture = trace.nodes["z"]["value"], guide.mixture(x)
    each = torch.distributions.Normal(mixture.loc, mixture.scale).log_prob(z.unsqueeze(1)).sum(-1)
    want = torch.logsumexp(mixture.log_weights + each, -1)
    torch.testing.assert_close(density.log_prob(z), want)
    torch.testing.assert_close(density.log_excess(z), want - each[:, 2])
    torch.testing.assert_close(guide.log_stratum_weight(trace), mixture.log_weights[:, 2] + math.log(3))


def test_a_weight_that_underflows_takes_its_component_out():
    weights = loadings()
    x, model = rows_of(weights, 6), pca(weights)
    guide = made(model, x, **options_of("heads"))
    with torch.no_grad():
        guide.heads[0].weight.bias[:2] -= 1e4
    for name in ("selbo", "siwae", "elbo"):
        value, gradients = estimate(guides.objectives[name](), model, guide, x)
        assert torch.isfinite(value), name
        assert all(torch.isfinite(g).all() for g in gradients.values()), name


def test_validation_and_saving(tmp_path):
    weights = skewed_loadings()
    x = rows_of(weights)
    options = options_of("heads")
    posterior = guides.fit(
        pca(weights), ("mixture_amortized", options), x, steps=20, lr=0.02, validation=0.2, compile="trace"
    )
    posterior.save(tmp_path / "posterior")
    loaded = guides.Posterior.load(
        tmp_path / "posterior", pca(weights), guide=("mixture_amortized", {**options, "encoder": encoder(seed=9)})
    )
    torch.testing.assert_close(loaded.draws(3, x).latents["z"], posterior.draws(3, x).latents["z"])


def test_what_it_refuses():
    weights = loadings()
    x, model = rows_of(weights, 6), pca(weights)
    for options, message in (
        ({"components": 0}, "components must be a whole number of 1 or more, not 0"),
        ({"components": 2.5}, "components must be"),
        ({"components": 2, "encoder": [encoder(), encoder(), encoder()]}, "components=2 and 3 encoders"),
        ({"one_hot": True, "encoder": [encoder(), encoder()]}, "one_hot=True is for one encoder"),
        ({"weights": "sticks"}, "weights='sticks' is not known"),
        ({"init_spread": -1.0}, "init_spread must be 0 or more"),
        ({"init_scale": 0.0}, "init_scale must be positive"),
    ):
        with pytest.raises(errors.OptionError, match=message):
            guides.MixtureAmortized(model, **{"encoder": encoder(), **options})

    class Pair(nn.Module):
        def forward(self, x):
            return x[:, :LATENT], x[:, :LATENT].exp()

    with pytest.raises(errors.GuideMismatchError, match=r"encoder 1 returns a tuple; .* needs features \(6, F\)"):
        guides.MixtureAmortized(model, Pair())(x)
    with pytest.raises(errors.UnsupportedModelError, match="latent site 'mean' is shared by all rows"):
        guides.MixtureAmortized(with_global, encoder())(x)

    def grid(x):
        with pyro.plate("data", len(x), dim=-2), pyro.plate("pixels", PIXELS, dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0))
            pyro.sample("x", dist.Normal(z, NOISE), obs=x)

    with pytest.raises(errors.UnsupportedModelError, match=r"stands in other plates .* plates data, pixels"):
        guides.MixtureAmortized(grid, encoder())(x)
    for objective in ("iwae", "renyi", "score_function"):
        with pytest.raises(errors.OptionError, match="gives every component of a mixture the same weight"):
            guides.fit(model, ("mixture_amortized", options_of("heads")), x, objective=objective, steps=1)


def test_a_term_outside_the_rows_is_counted_once():
    weights = loadings()
    x = rows_of(weights, 6)
    plain = pca(weights)

    def model(x):
        pyro.factor("constant", torch.tensor(-7.0))
        plain(x)

    guide = moved(made(plain, x, **options_of("heads")), 0.1)
    for objective in (guides.SELBO(), guides.ELBO(), guides.EntropyBoundELBO()):
        with_term, without = (estimate(objective, m, guide, x)[0] for m in (model, plain))
        torch.testing.assert_close(with_term, without - 7.0, rtol=1e-5, atol=1e-4)
    with pytest.raises(errors.UnsupportedModelError, match="siwae needs every site in the plate of the rows"):
        guides.SIWAE().estimate(model, guide, (x,), {})
