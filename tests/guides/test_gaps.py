"""Approximation and amortisation gaps where both have closed forms."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from guide_models import line, linear
from latent_models import LinearGaussian, gap_of
from torch import nn

import guides
from guides import errors, inference_gap
from guides.distributions.normals import LowRankNormal
from guides.evidence.offsets import OffsetLayout, Refine

INDEPENDENT, CORRELATED = LinearGaussian(orthogonal=True), LinearGaussian(orthogonal=False)
X, NEW = CORRELATED.rows(40), CORRELATED.rows(20, seed=2)


def diagonal_encoder(problem, shift=0.0, stretch=1.0):
    """The best independent normals for every row (scales from the diagonal of the precision), moved and scaled."""
    scale = problem.precision.diagonal().rsqrt()

    def guide(x):
        idle = pyro.param("idle", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(problem.posterior_mean(x) + shift + 0 * idle, stretch * scale).to_event(1))

    guide.amortized = frozenset({"z"})
    return guide


def fit(problem, guide, rows=X):
    return guides.fit(problem.model, guide, rows, steps=1)


def test_gaps_are_zero_at_the_exact_posterior():
    gap = inference_gap(CORRELATED.fitted(X), NEW, num_samples=200, steps=50)
    for name in ("approximation", "amortisation", "total"):
        assert getattr(gap, f"{name}_gap").abs().max() < 1e-5
        assert getattr(gap, f"{name}_error").max() < 1e-6
    torch.testing.assert_close(gap.log_marginal, CORRELATED.log_marginal(NEW), rtol=0, atol=1e-5)
    assert (gap.k_hat == 0).all()


@pytest.mark.parametrize("problem", [INDEPENDENT, CORRELATED], ids=["independent", "correlated"])
def test_a_wrong_encoder_of_the_right_family_has_an_amortisation_gap_only(problem):
    gap = inference_gap(problem.fitted(X, shift=0.4, stretch=1.3), NEW, num_samples=500)
    wanted = gap_of(0.4, 1.3, problem.precision)
    assert gap.approximation_gap.abs().max() < 1e-4
    assert ((gap.amortisation_gap - wanted) / gap.amortisation_error).abs().max() < 4.5
    mean, error = gap.mean("amortisation")
    assert abs(mean - wanted) < 4 * error and error < 0.2 * wanted


def test_the_best_of_the_wrong_family_has_an_approximation_gap_only():
    gap = inference_gap(fit(CORRELATED, diagonal_encoder(CORRELATED)), NEW, num_samples=2000)
    precision = CORRELATED.precision
    wanted = 0.5 * float(precision.diagonal().log().sum() - torch.logdet(precision))
    assert wanted > 0.1
    mean, error = gap.mean("approximation")
    assert abs(mean - wanted) < 4 * error
    mean, error = gap.mean("amortisation")
    assert abs(mean) < 4 * error + 0.005, "Adam's last steps leave it near the optimum it started from"


def test_both_gaps_add_up_to_the_whole():
    gap = inference_gap(fit(CORRELATED, diagonal_encoder(CORRELATED, 0.5, 0.7)), NEW, num_samples=1000)
    torch.testing.assert_close(gap.approximation_gap + gap.amortisation_gap, gap.total_gap)
    mean, error = gap.mean("total")
    exact = float(CORRELATED.log_marginal(NEW).mean())
    assert abs(mean - (exact - float(gap.elbo.mean()))) < 4 * error + 4 * float(gap.k_hat.max() > 0.7)
    assert gap.mean("amortisation")[0] > 0.5 and gap.mean("approximation")[0] > 0.1
    assert "the encoder" in str(gap) and "20 data points" in str(gap)


def test_errors_are_those_of_repetitions():
    """The same data point fifty times is fifty repetitions."""
    posterior = fit(CORRELATED, diagonal_encoder(CORRELATED, 0.2, 0.9))
    gap = inference_gap(posterior, NEW[:1].expand(50, -1), num_samples=150)
    for name in ("amortisation", "total"):
        stated, made = getattr(gap, f"{name}_error").mean(), getattr(gap, f"{name}_gap").std()
        assert 0.65 < float(stated / made) < 1.5


def test_chunks_reach_all_rows():
    posterior = CORRELATED.fitted(X, shift=0.3)
    gap = inference_gap(posterior, NEW[:7], num_samples=30, steps=100, particles=4, chunk=12)
    assert gap.elbo.shape == (7,) and gap.approximation_gap.abs().max() < 1e-2


@pytest.mark.parametrize("options", [{}, {"covariance": "full"}, {"covariance": "low_rank", "rank": 1}, {"flow": "iaf"}])
def test_the_amortised_family_is_refined_in_all_its_forms(options):
    posterior = guides.fit(CORRELATED.model, ("amortized", {"encoder": nn.Linear(4, 6), **options}), X, steps=3)
    gap = inference_gap(posterior, NEW[:5], num_samples=100)
    assert gap.mean("amortisation")[0] > 1.0, "an encoder of three steps"
    assert gap.mean("approximation")[0] > -0.01
    if options.get("covariance"):  # both contain the posterior of two latents
        assert gap.mean("approximation")[0] < 0.02


@pytest.mark.slow
def test_a_guide_that_refines_its_encoder_closes_part_of_the_amortisation_gap():
    means = []
    for refinements in (0, 4):
        torch.manual_seed(0)
        options = {"encoder": nn.Linear(4, 6), "refinements": refinements, "refinement_lr": 0.4}
        posterior = guides.fit(INDEPENDENT.model, ("semi_amortized", options), X, steps=20)
        gap = inference_gap(posterior, NEW[:8], num_samples=200, steps=150)
        assert abs(gap.mean("approximation")[0]) < 0.005, "sought from the encoder's answer, not from the refined one"
        means.append(gap.mean("amortisation")[0])
    assert 0 < means[1] < 0.5 * means[0]


def test_one_draw_has_no_error():
    gap = inference_gap(CORRELATED.fitted(X), NEW[:3], num_samples=1, steps=2)
    assert gap.total_error.isnan().all() and gap.k_hat.isnan().all()


@pytest.mark.parametrize(
    "fn",
    [
        dist.Normal(torch.randn(4, 3), torch.rand(4, 3) + 0.5).to_event(1),
        dist.MultivariateNormal(torch.randn(4, 3), scale_tril=torch.eye(3) + 0.2 * torch.ones(4, 3, 3).tril(-1)),
        LowRankNormal(torch.randn(4, 3), torch.randn(4, 3, 2), torch.rand(4, 3) + 0.5),
        dist.TransformedDistribution(dist.Normal(torch.randn(4), torch.ones(4)), [dist.transforms.ExpTransform()]),
    ],
    ids=["diagonal", "full", "low_rank", "transformed"],
)
def test_zero_offsets_change_nothing_and_others_change_both_draw_and_density(fn):
    def guide():
        with pyro.plate("data", 4):
            return pyro.sample("z", fn)

    layout = OffsetLayout(pyro.poutine.trace(guide).get_trace(), ("z",))
    for sticking in (False, True):
        with Refine(layout.split(torch.zeros(layout.size)), sticking):
            same = pyro.poutine.trace(guide).get_trace().nodes["z"]
        torch.testing.assert_close(same["fn"].log_prob(same["value"]), fn.log_prob(same["value"]))
    offsets = torch.full((layout.size,), 0.3, requires_grad=True)
    with Refine(layout.split(offsets)):
        moved = pyro.poutine.trace(guide).get_trace().nodes["z"]
    assert not torch.allclose(moved["fn"].log_prob(moved["value"]), fn.log_prob(moved["value"]))
    with Refine(layout.split(offsets), sticking=True):
        stuck = pyro.poutine.trace(guide).get_trace().nodes["z"]
    assert stuck["value"].requires_grad
    assert not stuck["fn"].log_prob(stuck["value"].detach()).requires_grad


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 0}, "num_samples must be a whole number of at least 1, not 0"),
        ({"steps": 0}, "steps must be"),
        ({"particles": 1.5}, "particles must be"),
        ({"lr": 0.0}, "lr must be positive and finite, not 0.0"),
        ({"lr": math.inf}, "lr must be positive and finite"),
    ],
)
def test_options_that_make_no_sense_are_named(options, message):
    with pytest.raises(errors.OptionError, match=message):
        inference_gap(CORRELATED.fitted(X), NEW, **options)


def test_models_without_anything_amortised_are_refused():
    x, y = line()
    with pytest.raises(errors.UnsupportedModelError, match="'w' is not computed from the rows by the guide 'mean_field'"):
        inference_gap(guides.fit(linear, "mean_field", x, y, steps=5))


def test_families_without_a_gaussian_are_refused():
    def guide(x):
        idle = pyro.param("idle", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.StudentT(5.0, CORRELATED.posterior_mean(x) + 0 * idle, 1.0).to_event(1))

    guide.amortized = frozenset({"z"})
    with pytest.raises(errors.UnsupportedModelError, match="'z' from StudentT"):
        inference_gap(fit(CORRELATED, guide), NEW)
