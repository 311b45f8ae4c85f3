"""Kumaraswamy's distribution against quadrature and draws, and the amortised guide made of it."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions import Beta, kl_divergence
from torch.func import vmap

import guides
import zoo
from guides import errors
from guides.distributions.kumaraswamy import Kumaraswamy

PAIRS = [(0.3, 0.2), (0.5, 2.0), (1.0, 1.0), (3.0, 0.5), (8.0, 5.0), (40.0, 3.0), (200.0, 20.0)]


def pair(a, b):
    return torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)


def mean_log_rest_by_quadrature(a, b):
    """E log(1 - v) by the substitution u = exp(-b w), on a grid of log w."""
    log_w = torch.linspace(-60, math.log(800 / min(b, 1)), 400_001, dtype=torch.float64)
    w = log_w.exp()
    log_v = torch.log1p(-(-w).exp()) / a
    inside = b * (-b * w).exp() * torch.log(-torch.expm1(log_v)) * w
    return float(torch.trapezoid(inside.nan_to_num(0, neginf=0), log_w))


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_the_series_is_the_expectation(a, b):
    found = float(Kumaraswamy(*pair(a, b)).mean_log_rest())
    assert found == pytest.approx(mean_log_rest_by_quadrature(a, b), abs=3e-4)


def test_the_series_cut_after_ten_terms_is_far_off():
    """The reason why the remainder is not dropped."""
    a, b = pair(3.0, 0.2)
    m = torch.arange(1, 11, dtype=torch.float64)
    cut = -(b / (m + a * b) * (torch.lgamma(m / a) + torch.lgamma(b) - torch.lgamma(m / a + b)).exp()).sum()
    exact = mean_log_rest_by_quadrature(3.0, 0.2)
    assert cut - exact > 2
    assert float(Kumaraswamy(a, b).mean_log_rest()) == pytest.approx(exact, abs=3e-4)


@pytest.mark.parametrize(("a", "b"), PAIRS)
@pytest.mark.parametrize("prior", [(1.0, 1.0), (1.0, 5.0), (2.0, 0.5)])
def test_the_divergence_is_the_average_over_draws(a, b, prior):
    q, p = Kumaraswamy(*pair(a, b)), Beta(*pair(*prior))
    drawn = q.rsample((100_000,))
    values = q.log_prob(drawn) - p.log_prob(drawn)
    error = float(values.std()) / math.sqrt(100_000)
    assert float(kl_divergence(q, p)) == pytest.approx(float(values.mean()), abs=4.5 * error + 2e-3)
    assert float(drawn.mean()) == pytest.approx(float(q.mean), abs=4.5 * float(drawn.std()) / math.sqrt(100_000))


@pytest.mark.parametrize(("a", "b"), PAIRS[:5])
def test_density_is_that_of_torch_and_gradients_are_exact(a, b):
    q, v = Kumaraswamy(*pair(a, b)), torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    torch.testing.assert_close(q.log_prob(v), torch.distributions.Kumaraswamy(*pair(a, b)).log_prob(v))
    leaves = tuple(x.requires_grad_() for x in pair(a, b))
    assert torch.autograd.gradcheck(lambda a, b: Kumaraswamy(a, b).mean_log_rest(), leaves)


def test_a_uniform_is_its_own_prior():
    one = torch.ones(3)
    assert kl_divergence(Kumaraswamy(one, one), Beta(one, one)).abs().max() < 1e-6


@pytest.mark.parametrize("a", [1e-4, 1e-2, 1.0, 1e3])
@pytest.mark.parametrize("b", [1e-4, 1e-2, 1.0, 1e3])
def test_extreme_concentrations_stay_finite_in_single_precision(a, b):
    leaves = [torch.full((1000,), x, requires_grad=True) for x in (a, b)]
    q, p = Kumaraswamy(*leaves), Beta(torch.ones(1000), torch.full((1000,), 3.0))
    drawn = q.rsample()
    assert ((drawn > 0) & (drawn < 1)).all()
    total = q.log_prob(drawn).sum() + kl_divergence(q, p).sum()
    assert total.isfinite()
    assert all(g.isfinite().all() for g in torch.autograd.grad(total, leaves))


def test_draws_differ_under_vmap():
    draws = vmap(lambda a: Kumaraswamy(a, a).rsample(), randomness="different")(torch.ones(5))
    assert len(draws.unique()) == 5


# -- the guide ---------------------------------------------------------------------------------------------------------


def fractions(x, n=10):
    with pyro.plate("data", len(x)):
        v = pyro.sample("v", dist.Beta(torch.tensor(1.0), torch.tensor(2.0)))
        pyro.sample("x", dist.Binomial(n, v).expand([len(x)]), obs=x)


def encoder(width=1):
    return nn.Sequential(nn.Unflatten(0, (-1, 1)), nn.Linear(width, 16), nn.Tanh())


@pytest.mark.slow
def test_posteriors_of_fractions_are_found_and_the_bound_is_near_the_evidence():
    """Beta-binomial data: the evidence is known, and a Kumaraswamy is near every Beta."""
    x = torch.arange(11.0).repeat(10)
    torch.manual_seed(0)
    posterior = guides.fit(fractions, ("amortized_kumaraswamy", {"encoder": encoder()}), x, steps=3000, schedule="cosine")
    drawn = posterior.draws(2000)
    bound = float((drawn.log_p - drawn.log_q).double().mean())
    a, b = 1 + x, 2 + 10 - x
    log_beta = lambda a, b: torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)  # noqa: E731
    choose = torch.lgamma(torch.tensor(11.0)) - torch.lgamma(x + 1) - torch.lgamma(11 - x)
    evidence = float((choose + log_beta(a, b) - log_beta(torch.tensor(1.0), torch.tensor(2.0))).sum())
    assert evidence - 2.5 < bound < evidence + 0.1
    means = posterior.draws(2000, torch.tensor([0.0, 5.0, 10.0])).latents["v"].mean((0, 1))
    torch.testing.assert_close(means, torch.tensor([1.0, 6.0, 11.0]) / 13, atol=0.03, rtol=0)


@pytest.mark.parametrize("compile", ["eager", "trace"])
def test_minibatches_new_rows_and_tracing(compile):
    x = torch.arange(11.0).repeat(4)
    torch.manual_seed(0)
    guide = ("amortized_kumaraswamy", {"encoder": encoder()})
    posterior = guides.fit(fractions, guide, x, steps=60, batch_size=11, validation=0.25, compile=compile, replicates=2)
    assert posterior.losses.isfinite().all()
    assert posterior.guide.amortized == {"v"}
    assert posterior.draws(5, torch.tensor([3.0])).latents["v"].shape == (2, 5, 1)


def test_the_divergence_is_taken_in_closed_form():
    """At a uniform guide and a uniform prior the divergence is nought at every draw."""

    def model(x):
        with pyro.plate("data", len(x)):
            v = pyro.sample("v", dist.Beta(torch.ones(2), torch.ones(2)).to_event(1))
            pyro.sample("x", dist.Normal(0 * v.sum(-1), 1.0), obs=x)

    x = torch.zeros(7)
    guide = guides.AmortizedKumaraswamy(model, encoder())
    guide(x)
    with torch.no_grad():
        for head in guide.heads:
            head.loc.weight.zero_()
            head.rho.weight.zero_()
    closed = [guides.ELBO().loss(model, guide, x) for _ in range(3)]
    assert closed == pytest.approx([7 * 0.5 * math.log(2 * math.pi)] * 3, abs=1e-4)


def test_what_it_is_not_for():
    def unbounded(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0).expand([len(x)]), obs=x)

    x = torch.zeros(5)
    with pytest.raises(errors.UnsupportedModelError, match=r"no local latent has the support \(0, 1\).*use 'amortized'"):
        guides.AmortizedKumaraswamy(unbounded, encoder())(x)
    with pytest.raises(errors.OptionError, match=r"encoder must be one torch.nn.Module"):
        guides.AmortizedKumaraswamy(fractions, [encoder(), encoder()])

    class Pair(nn.Module):
        def forward(self, x):
            return x, x.exp()

    with pytest.raises(errors.OptionError, match=r"return features \(rows, F\)"):
        guides.AmortizedKumaraswamy(fractions, Pair())(x)


@pytest.mark.slow
def test_a_stick_breaking_vae_learns():
    """On digits: above independent pixels, with posteriors that differ from digit to digit."""
    x = zoo.datasets.digits_images(binarize="threshold").x.flatten(1)[:600]
    torch.manual_seed(0)
    networks = zoo.networks.mlp((10, 100, 64)), zoo.networks.mlp((64, 100), output_activation="relu")
    vae = zoo.StickBreakingVAE(networks[0], 10, concentration=3.0, encoder=networks[1])
    posterior = guides.fit(vae, x, epochs=150, batch_size=100, lr=1e-2)
    mean = x.mean(0).clamp(1e-3, 1 - 1e-3)
    independent = float(torch.distributions.Bernoulli(mean).log_prob(x).sum())
    assert -float(posterior.losses[0, -30:].mean()) > independent + 2000
    weights = posterior.draws(20).deterministic["weights"].mean((0, 1))
    torch.testing.assert_close(weights.sum(-1), torch.ones(600), atol=1e-4, rtol=0)
    assert weights.std(0).max() > 0.05
