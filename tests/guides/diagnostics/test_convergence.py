"""Loss traces whose fate is known."""

import math

import pytest
import torch

from guides.diagnostics import Undefined, convergence, loss_trend


def noise(steps, sd=1.0, rho=0.0, seed=0):
    torch.manual_seed(seed)
    white = torch.randn(steps, dtype=torch.double)
    out = white.clone()
    for t in range(1, steps):
        out[t] = rho * out[t - 1] + white[t]
    return sd * out * math.sqrt(1 - rho**2)


def descent(steps, rate, height=500.0, level=300.0):
    return level + height * torch.exp(-rate * torch.arange(steps, dtype=torch.double))


@pytest.mark.parametrize("seed", range(5))
def test_a_flat_noisy_trace_has_converged(seed):
    assert loss_trend(descent(3000, 0.01) + noise(3000, 2.0, seed=seed)).status == "converged"


def test_false_alarms_are_rare_even_with_autocorrelated_noise():
    traces = [descent(1500, 0.02) + noise(1500, 2.0, rho=0.9, seed=seed) for seed in range(40)]
    assert sum(loss_trend(trace).status == "improving" for trace in traces) <= 2


def test_a_trend_is_found_and_measured():
    trend = loss_trend(100 - 0.02 * torch.arange(3000, dtype=torch.double) + noise(3000, 3.0))
    assert trend.status == "improving"
    assert trend.window == 1000
    assert trend.per_1000_steps == pytest.approx(20, abs=3 * trend.standard_error)
    assert trend.noise == pytest.approx(3, rel=0.1)


def test_the_standard_error_is_that_of_repeated_traces():
    trends = [loss_trend(noise(3000, 3.0, seed=seed)) for seed in range(60)]
    gains = torch.tensor([trend.gain for trend in trends])
    errors = torch.tensor([trend.standard_error for trend in trends])
    assert float(gains.std() / errors.mean()) == pytest.approx(1, abs=0.35)


def test_wild_single_losses_do_not_move_the_trend():
    trace = noise(3000, 1.0)
    trace[2900] = 1e8
    assert loss_trend(trace).status == "converged"


def test_a_noiseless_trace_converges_when_what_is_left_is_negligible():
    assert loss_trend(descent(3000, 0.01)).status == "converged"
    assert loss_trend(descent(3000, 0.001)).status == "improving"


def test_an_improvement_that_the_noise_can_hide_is_not_called_converged():
    trace = 2000 * torch.exp(-0.02 * torch.arange(200, dtype=torch.double)) + 200 + noise(200, 40.0)
    trend = loss_trend(trace)
    assert abs(trend.gain) < 3 * trend.standard_error  # no significant trend
    assert trend.status == "noisy"


def test_a_rising_loss_is_getting_worse():
    trend = loss_trend(0.05 * torch.arange(2000, dtype=torch.double) + noise(2000))
    assert trend.status == "worsening"
    assert trend.gain < 0


def test_nan_is_divergence_and_noise_that_hides_everything_is_said():
    trace = noise(1000)
    trace[-1] = math.nan
    assert loss_trend(trace).status == "diverged"
    assert loss_trend(descent(900, 0.1) + noise(900, 200.0)).status == "noisy"
    assert loss_trend(noise(30)).status == "short"


def test_a_plateau_before_the_descent_looks_converged():
    """The blind spot: a flat loss is no proof of an optimum."""
    full = torch.cat([100 + noise(3000, 0.5), noise(3000, 0.5, seed=1)])
    assert loss_trend(full[:3000]).status == "converged"
    assert full[-1] < full[:3000].min() - 90


def test_the_finding_takes_the_worst_restart_and_gives_advice(known_fit):
    torch.manual_seed(0)
    good = noise(3000)
    falling = 100 - 0.02 * torch.arange(3000) + noise(3000, seed=2)
    finding = convergence(known_fit(None, [None], losses=torch.stack([good, falling])), None)
    assert finding.status == "improving"
    assert "20 nats per 1000 steps" in finding.text
    assert finding.advice == "train longer"
    assert [trend.status for trend in finding.trends] == ["converged", "improving"]


def test_a_fit_that_validation_chose_is_not_blamed_for_improving(known_fit):
    falling = 100 - 0.02 * torch.arange(3000) + noise(3000)
    fit = known_fit(None, [None], losses=falling[None])
    fit.validation = torch.zeros(1, 10)
    finding = convergence(fit, None)
    assert finding.level == "unknown"
    assert "chosen by validation, on purpose" in finding.text


def test_nan_after_a_restart_stopped_is_no_divergence_unless_the_reason_says_so(known_fit):
    losses = torch.stack([noise(3000), noise(3000, seed=1)])
    losses[1, 2000:] = math.nan
    early = known_fit(None, [None] * 2, losses=losses, stop_reasons=("ran all 3000 steps", "no better validation score"))
    assert convergence(early, None).status == "converged"
    reason = "the loss was not finite at step 2000, first at model site 'y'; kept the last finite parameters"
    broken = known_fit(None, [None] * 2, losses=losses, stop_reasons=("ran all 3000 steps", reason))
    finding = convergence(broken, None)
    assert (finding.status, finding.level) == ("diverged", "unreliable")
    assert "model site 'y'" in finding.text


def test_a_guide_without_optimisation_has_no_trace(known_fit):
    assert isinstance(convergence(known_fit(None, [None], losses=torch.zeros(1, 0)), None), Undefined)
