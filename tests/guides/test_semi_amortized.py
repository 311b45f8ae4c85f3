"""Refinement of an encoder's answer per data point, where the exact posterior is known."""

import math

import pyro
import pytest
import torch
from amortized_models import LATENT, ExactEncoder, encoder, evidence, exact, loadings, pca, rows_of, supports
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from torch import nn

import guides

CLOSE = {"rtol": 5e-4, "atol": 5e-3}


class Blind(nn.Module):
    """Says the same of every row."""

    def forward(self, x):
        return torch.zeros(len(x), LATENT), torch.ones(len(x), LATENT)


def refined(weights, x, module, **options):
    """Location and scale of the guide's normals."""
    guide = guides.SemiAmortized(pca(weights), encoder=module, **options)
    with torch.random.fork_rng(), pyro.get_param_store().scope():
        torch.manual_seed(3)
        fn = poutine.trace(guide).get_trace(x).nodes["z"]["fn"].base_dist
    return fn.loc.detach(), fn.scale.detach()


@pytest.mark.parametrize("gradient", ["first_order", "through"])
def test_refinement_comes_from_nothing_to_the_exact_posterior(gradient):
    weights = loadings()
    x = rows_of(weights)
    mean, covariance = exact(weights)
    errors = []
    for steps in (0, 5, 60):
        loc, scale = refined(weights, x, Blind(), refinements=steps, refinement_lr=0.3, gradient=gradient)
        errors.append(float((loc - x @ mean.T).abs().max()))
    assert errors[2] < 0.02
    assert errors[0] > 0.5
    assert errors[1] < 0.6 * errors[0]
    assert (scale - covariance.diagonal().sqrt()).abs().max() < 0.02


def test_refinement_leaves_the_exact_posterior_alone():
    """Gradients by the path alone have no noise there."""
    weights = loadings()
    x = rows_of(weights)
    mean, covariance = exact(weights)
    loc, scale = refined(weights, x, ExactEncoder(weights), refinements=5, refinement_lr=0.9)
    torch.testing.assert_close(loc, x @ mean.T, atol=1e-3, rtol=0.0)
    torch.testing.assert_close(scale, covariance.diagonal().sqrt().expand_as(scale), atol=1e-3, rtol=0.0)


def test_refinement_of_a_start_that_is_too_sharp_or_too_vague_does_not_overshoot():
    class Scaled(nn.Module):
        def __init__(self, scale):
            super().__init__()
            self.scale = scale

        def forward(self, x):
            return torch.full((len(x), LATENT), 5.0), torch.full((len(x), LATENT), self.scale)

    weights = loadings()
    x = rows_of(weights)
    mean, _ = exact(weights)
    for scale in (0.05, 100.0):
        loc, after = refined(weights, x, Scaled(scale), refinements=60, refinement_lr=0.3)
        assert (loc - x @ mean.T).abs().max() < 0.1
        assert after.max() < 1.0


def test_the_bound_closes_the_amortisation_gap():
    weights = loadings()
    x = rows_of(weights)
    gaps = []
    for steps in (0, 20):
        options = {"encoder": encoder(), "refinements": steps, "refinement_lr": 0.4, "init_scale": 0.4}
        spec = ("semi_amortized", options)
        posterior = guides.fit(pca(weights), spec, x, steps=2, lr=1e-9, compile="eager", batch_size=20)
        draws = posterior.draws(20)
        gaps.append(float(evidence(weights, x).mean() - (draws.log_p - draws.log_q).mean() / len(x)))
    assert gaps[0] > 1.0
    assert -1e-3 < gaps[1] < 0.02
    assert posterior.draws(2, x[:3]).latents["z"].shape == (1, 2, 3, LATENT)


@pytest.mark.parametrize("options", [{}, {"gradient": "through"}, {"covariance": "full"}, {"flow": "iaf"}])
def test_traced_and_eager_steps_agree(options):
    weights = loadings()
    x = rows_of(weights)
    options = {"refinements": 2, **options}
    settings = {"steps": 4, "lr": 0.02, "batch_size": 20, "replicates": 2}
    eager, traced = (
        guides.fit(pca(weights), ("semi_amortized", {"encoder": encoder(), **options}), x, compile=mode, **settings)
        for mode in ("eager", "trace")
    )
    torch.testing.assert_close(traced.losses, eager.losses, **CLOSE)
    assert eager.losses.isfinite().all()


def test_what_gradient_reaches_the_encoder():
    """First order: that of the refined bound with respect to the refined parameters. Through: shrunk by the steps."""
    weights = loadings()
    x = rows_of(weights)[:1]
    mean, _ = exact(weights)
    rate, steps = 0.3, 2
    slopes = {}
    for gradient in ("first_order", "through"):
        start = torch.zeros(1, LATENT, requires_grad=True)

        class Start(nn.Module):
            def forward(self, x, start=start):
                _, covariance = exact(weights)
                return start, covariance.diagonal().sqrt().expand(1, -1)

        guide = guides.SemiAmortized(pca(weights), encoder=Start(), refinements=steps, refinement_lr=rate, gradient=gradient)
        loc = poutine.trace(guide).get_trace(x).nodes["z"]["fn"].base_dist.loc
        torch.testing.assert_close(loc.detach(), (1 - (1 - rate) ** steps) * x @ mean.T, atol=1e-4, rtol=1e-3)
        slopes[gradient] = torch.autograd.grad(loc.sum(), start)[0]
    torch.testing.assert_close(slopes["first_order"], torch.ones(1, LATENT))
    torch.testing.assert_close(slopes["through"], torch.full((1, LATENT), (1 - rate) ** steps), atol=1e-4, rtol=1e-3)


def test_any_support_and_stock_svi():
    x = rows_of(loadings())
    guide = guides.SemiAmortized(supports, encoder=encoder(), refinements=2)
    svi = SVI(supports, guide, pyro.optim.Adam({"lr": 0.02}), loss=Trace_ELBO())
    losses = [svi.step(x[:20]) for _ in range(25)]
    assert all(map(math.isfinite, losses))
    assert sum(losses[-5:]) < sum(losses[:5])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"refinements": -1}, "refinements must be a whole number of at least 0"),
        ({"refinements": 1.5}, "refinements must be a whole number"),
        ({"refinement_lr": 0.0}, r"refinement_lr must be in \(0, 1\]"),
        ({"gradient": "second"}, "gradient='second'.*'through'"),
        ({"encoder": [encoder(), encoder(8)]}, "takes one encoder, not 2"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(guides.errors.OptionError, match=message):
        guides.fit(pca(loadings()), ("semi_amortized", {"encoder": encoder(), **options}), rows_of(loadings()), steps=1)
