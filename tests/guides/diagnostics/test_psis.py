"""The arithmetic against Pyro's and ArviZ's, and against distributions whose tail is known."""

import math
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pyro.ops.stats import fit_generalized_pareto as pyro_fit

from guides.diagnostics.loo import elpd_loo
from guides.fitted.groups import from_groups, import_arviz
from guides.psis import (
    fit_generalized_pareto,
    float_tolerance,
    importance_ess,
    pareto_k_threshold,
    psis,
    tail_length,
    tail_shape,
)


def test_fit_agrees_with_pyro_row_by_row():
    rows = torch.distributions.Exponential(1.0).sample((5, 90)).double().exp().sub(1).sort(-1).values
    k, sigma = fit_generalized_pareto(rows)
    expected = [pyro_fit(row) for row in rows]
    torch.testing.assert_close(k, torch.tensor([float(e[0]) for e in expected], dtype=torch.double), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        sigma, torch.tensor([float(e[1]) for e in expected], dtype=torch.double), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("k", [-0.5, 0.0, 0.3, 0.7, 1.2])
def test_fit_recovers_the_shape_that_generated_the_data(k):
    torch.manual_seed(0)
    size = 20_000
    u = torch.rand(size, dtype=torch.double)
    x = 2.0 * (-torch.log1p(-u) if k == 0 else torch.expm1(-k * torch.log1p(-u)) / k)
    shape, scale = fit_generalized_pareto(x.sort().values)
    standard_error = max(abs(1 + k), 0.3) / math.sqrt(size)  # of the maximum-likelihood estimate
    assert abs(shape - k) < 4 * standard_error
    assert abs(scale / 2 - 1) < 4 * math.sqrt(2 * max(1 + k, 0.3)) / math.sqrt(size)


def test_smoothed_weights_and_k_agree_with_arviz():
    torch.manual_seed(1)
    log_weights = 0.8 * torch.randn(3, 1000, dtype=torch.double)
    ours, k = psis(log_weights)
    arviz = import_arviz()
    if hasattr(arviz, "psislw"):
        theirs, k_theirs = arviz.psislw(log_weights.numpy())
    else:
        from arviz_stats.base import array_stats

        theirs, k_theirs = array_stats.psislw(log_weights.numpy())
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-6)
    np.testing.assert_allclose(k.numpy(), k_theirs, rtol=1e-6)


@pytest.mark.parametrize("spread", [0.01, 1.0, 4.0])
def test_leaving_one_out_is_what_arviz_makes_of_the_same_draws(spread):
    torch.manual_seed(3)
    values = spread * torch.randn(2, 500, 30, dtype=torch.double) * torch.rand(30, dtype=torch.double) - 1
    draws = SimpleNamespace(
        log_p=torch.randn(2, 500), log_q=torch.zeros(2, 500), log_likelihood={"y": values}, counted={"y": torch.ones(30) > 0}
    )
    found = elpd_loo(SimpleNamespace(guide=None, sites={}), draws).sites["y"]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", UserWarning)  # of large k's
        theirs = import_arviz().loo(from_groups({"log_likelihood": {"y": values.numpy()}}), pointwise=True, reff=1.0)
    old = hasattr(theirs, "elpd_loo")
    assert found.elpd == pytest.approx(float(theirs.elpd_loo if old else theirs.elpd), rel=1e-8)
    assert found.p_loo == pytest.approx(float(theirs.p_loo if old else theirs.p), rel=1e-8)
    assert found.se == pytest.approx(float(theirs.se), rel=1e-8)
    told = found.pareto_k != 0  # that of a point which all draws score alike is noise, and called 0 here
    assert spread == 0.01 or bool(told.all())
    np.testing.assert_allclose(found.pareto_k[told], theirs.pareto_k.values.ravel()[told], rtol=1e-8)


def test_k_is_the_tail_index_of_the_weights():
    torch.manual_seed(2)
    # p = Normal(0, 1), q = Normal(0, s): weights exp(z^2 (1/s^2 - 1) / 2) have tail index k = 1 - s^2 for s < 1.
    for sd in (0.5, 0.8):
        z = sd * torch.randn(20, 20_000, dtype=torch.double)
        _, k = psis(0.5 * z.square() * (sd**-2 - 1))
        # The limit is reached slowly (with a logarithmic correction), so the band is wide, but it tells .75 from .36.
        assert abs(k.mean() - (1 - sd**2)) < 0.15


def test_equal_weights_have_k_zero_and_keep_every_draw():
    for noise in (0.0, 1e-6, 2e-4):
        log_weights, k = psis(-1000 + noise * torch.rand(500))
        assert k == 0
        assert importance_ess(log_weights) == pytest.approx(500, rel=1e-5)


def test_float_noise_around_an_exact_guide_leaves_k_near_zero():
    torch.manual_seed(3)
    log_p = torch.full((20, 1000), -1234.5) + 2e-3 * torch.randn(20, 1000)  # float32, in steps of 1.2e-4
    assert float_tolerance(log_p) == pytest.approx(64 * 2**-23 * 1234.5, rel=1e-3)
    assert (psis(log_p, float_tolerance(log_p))[1] == 0).all()
    assert psis(log_p)[1].abs().max() < 4 / math.sqrt(95)  # four standard errors of k at S = 1000


def test_a_large_log_density_does_not_hide_a_bad_guide():
    torch.manual_seed(3)
    log_p = -1e6 + 3 * torch.randn(1000)
    assert psis(log_p, float_tolerance(log_p))[1] > 0.5


def test_zero_weights_are_weights_and_nan_is_not():
    log_weights = torch.randn(4, 1000)
    log_weights[1, :300] = -math.inf
    log_weights[2, 5] = math.nan
    log_weights[3] = -math.inf
    smoothed, k = psis(log_weights)
    assert k[:2].isfinite().all()
    assert (smoothed[1, :300] == -math.inf).all()
    assert k[2:].isnan().all()
    torch.testing.assert_close(smoothed[:2].exp().sum(-1), torch.ones(2, dtype=torch.double))


def test_one_draw_that_carries_all_the_weight_has_a_large_k():
    log_weights = torch.zeros(1000)
    log_weights[0] = 500.0
    smoothed, k = psis(log_weights)
    assert k > 1
    assert importance_ess(smoothed) < 100


def test_too_few_draws_are_an_error():
    with pytest.raises(ValueError, match=r"24 draws.*at least 25"):
        psis(torch.zeros(24))


def test_threshold_and_tail():
    assert pareto_k_threshold(100) == pytest.approx(0.5)
    assert pareto_k_threshold(1000) == pytest.approx(2 / 3)
    assert pareto_k_threshold(10_000) == 0.7
    assert pareto_k_threshold(5) == 0
    assert tail_length(100) == 20
    assert tail_length(10_000) == 300


def test_ess_of_normal_weights_is_the_closed_form():
    torch.manual_seed(4)
    # Log-normal weights: ESS / S -> exp(-variance).
    assert float(importance_ess(0.5 * torch.randn(200_000)) / 200_000) == pytest.approx(math.exp(-0.25), rel=0.02)


def test_k_hat_from_the_largest_weights_alone_is_that_of_all():
    rows = 3 * torch.randn(6, 2000)
    rows[1] = 0.25  # equal weights
    rows[2, 0] = math.nan
    rows[3, 1:] = -math.inf
    rows[4] = -math.inf
    k_hat = tail_shape(rows.topk(tail_length(2000) + 1).values)
    torch.testing.assert_close(k_hat, psis(rows)[1], rtol=0.0, atol=0.0, equal_nan=True)
    assert k_hat.isnan().tolist() == [False, False, True, bool(k_hat[3].isnan()), True, False]
