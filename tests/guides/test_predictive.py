"""Predictive scores against closed forms; tolerances are multiples of Monte Carlo standard errors at fixed seeds."""

import math

import pytest
import torch
from pyro.ops.stats import crps_empirical
from torch.distributions import Normal, Poisson

import guides.predictive as P


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def gaussian_crps(mean, sd, y):
    """Gneiting and Raftery (2007), eq. 5."""
    z = (y - mean) / sd
    return sd * (z * (2 * Normal(0, 1).cdf(z) - 1) + 2 * Normal(0, 1).log_prob(z).exp() - 1 / math.sqrt(math.pi))


def test_crps_of_draws_is_that_of_the_normal_they_come_from():
    y = torch.linspace(-3, 3, 7).double()
    draws = 0.5 + 2 * torch.randn(20_000, 7).double()
    error = (P.crps(draws, y) - gaussian_crps(0.5, 2.0, y)).abs()
    assert (error < 4 * 2 / math.sqrt(20_000)).all()


def test_crps_is_unbiased_for_few_draws_where_pyros_is_not():
    y = torch.tensor(0.3).double()
    draws = torch.randn(4, 100_000).double()
    exact = float(gaussian_crps(0.0, 1.0, y))
    ours = P.crps(draws, y.expand(100_000))
    assert abs(float(ours.mean()) - exact) < 4 * float(ours.std()) / math.sqrt(100_000)
    biased = float(crps_empirical(draws, y.expand(100_000)).mean())
    assert biased - exact == pytest.approx(1 / (4 * math.sqrt(math.pi)), rel=0.05)  # E|X - X'| / (2 S)


def test_crps_agrees_with_all_pairs_written_out():
    draws, y = torch.randn(6, 3, 2), torch.randn(3, 2)
    pairs = (draws[:, None] - draws[None]).abs().sum((0, 1)) / (6 * 5)
    torch.testing.assert_close(P.crps(draws, y), (draws - y).abs().mean(0) - pairs / 2)
    torch.testing.assert_close(P.crps(draws[:1], y), (draws[0] - y).abs())


def test_crps_of_a_gaussian_mixture():
    y = torch.linspace(-2, 2, 5).double()
    one = P.crps_gaussian_mixture(torch.full((1, 5), 0.5).double(), torch.tensor(2.0).double(), y)
    torch.testing.assert_close(one, gaussian_crps(0.5, 2.0, y))
    means, sds, weights = torch.randn(3, 5).double(), torch.rand(3, 1).double() + 0.2, torch.tensor([0.5, 0.3, 0.2]).double()
    exact = P.crps_gaussian_mixture(means, sds, y, weights)
    component = torch.multinomial(weights, 40_000, replacement=True)
    draws = means[component] + sds[component] * torch.randn(40_000, 5).double()
    assert ((P.crps(draws, y) - exact).abs() < 4 * 1.5 / math.sqrt(40_000)).all()


def test_mixture_cdf_and_its_weights():
    means, y = torch.tensor([[-1.0], [1.0]]), torch.tensor([0.4])
    torch.testing.assert_close(P.gaussian_mixture_cdf(y, means[:1], torch.tensor(2.0)), Normal(-1.0, 2.0).cdf(y))
    weighted = P.gaussian_mixture_cdf(y, means, torch.ones(()), torch.tensor([0.25, 0.75]))
    torch.testing.assert_close(weighted, 0.25 * Normal(-1.0, 1.0).cdf(y) + 0.75 * Normal(1.0, 1.0).cdf(y))


def test_log_predictive_density_is_the_log_of_a_mean():
    y, means = torch.randn(5), torch.randn(7, 5)
    log_likelihood = Normal(means, 1.0).log_prob(y)
    torch.testing.assert_close(P.log_predictive_density(log_likelihood), log_likelihood.exp().mean(0).log())
    assert P.log_predictive_density(torch.full((3, 1), -1e4)).item() == pytest.approx(-1e4)


@pytest.mark.parametrize("num_samples", [9, 200])
@pytest.mark.parametrize("law", [Normal(0.0, 1.0), Poisson(2.0)], ids=["continuous", "discrete"])
def test_pit_values_of_calibrated_predictions_are_uniform(law, num_samples):
    points = 20_000
    draws, y = law.sample((num_samples, points)), law.sample((points,))
    values = P.pit(draws, y, generator=torch.Generator().manual_seed(1)).sort().values
    uniform = (torch.arange(points) + 0.5) / points
    assert (values - uniform).abs().max() < 1.95 / math.sqrt(points)  # Kolmogorov's distance at the 0.1 % level


@pytest.mark.parametrize(("width", "sign"), [(0.5, -1), (2.0, 1)])
def test_coverage_tells_too_narrow_from_too_wide(width, sign):
    y = torch.randn(5000)
    values = P.gaussian_mixture_cdf(y, torch.zeros(1, 5000), torch.tensor(width))
    got = P.coverage(values)
    half = Normal(0, 1).icdf((1 + torch.tensor(P.LEVELS)) / 2) * width
    expected = 2 * Normal(0, 1).cdf(half) - 1
    assert ((got - expected).abs() < 4 * (expected * (1 - expected) / 5000).sqrt()).all()
    assert ((got - torch.tensor(P.LEVELS)) * sign > 0).all()


def test_calibration_curve_is_the_diagonal_for_uniform_values():
    nominal, observed = P.calibration_curve((torch.arange(1000) + 0.5) / 1000)
    torch.testing.assert_close(nominal, observed, atol=1e-3, rtol=0)
    assert nominal.shape == (21,)


def test_pit_is_blind_to_sharpness():
    """The blind spot of calibration: a forecast that ignores x and one that knows it are both calibrated; CRPS tells."""
    x = torch.randn(5000)
    y = x + 0.1 * torch.randn(5000)
    ignorant, informed = math.sqrt(1.01) * torch.randn(400, 5000), x + 0.1 * torch.randn(400, 5000)
    for draws in (ignorant, informed):
        assert ((P.coverage(P.pit(draws, y)) - torch.tensor(P.LEVELS)).abs() < 0.03).all()
    assert P.crps(ignorant, y).mean() > 5 * P.crps(informed, y).mean()


def test_regression_metrics_report_both_units():
    sd = 9.0
    truth, y = torch.randn(400), None
    y = truth + 0.3 * torch.randn(400)
    draws = truth + 0.3 * torch.randn(500, 400)
    log_likelihood = Normal(truth, 0.3).log_prob(y).expand(500, -1)
    standardised = P.regression_metrics(draws, y, log_likelihood, mean=truth, target_sd=sd)
    original = P.regression_metrics(sd * draws + 22, sd * y + 22, log_likelihood - math.log(sd), mean=sd * truth + 22)
    for name in ("rmse", "mse", "log_likelihood", "crps"):
        assert getattr(standardised, name) == pytest.approx(getattr(original, name), rel=1e-3)
    assert standardised.rmse == pytest.approx(sd * standardised.rmse_standardised)
    assert standardised.mse == pytest.approx(standardised.rmse**2)
    assert standardised.log_likelihood == pytest.approx(standardised.log_likelihood_standardised - math.log(sd))
    assert set(standardised.coverage) == {"50%", "80%", "95%"}
    assert standardised.calibration_error < 0.05
    assert standardised.to_dict()["num_points"] == 400


def test_classification_scores_by_hand():
    probabilities = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.7, 0.3]])
    labels = torch.tensor([0, 1, 1, 0])
    scores = P.classification_metrics(probabilities, labels)
    assert scores.accuracy == pytest.approx(0.75)
    assert scores.brier == pytest.approx((2 * 0.01 + 2 * 0.36 + 2 * 0.04 + 2 * 0.09) / 4)
    assert scores.log_likelihood == pytest.approx(math.log(0.9 * 0.4 * 0.8 * 0.7) / 4)
    assert scores.calibration_error == pytest.approx((0.1 + 0.6 + 0.2 + 0.3) / 4)  # each point has a bin of its own
    confidence, accurate, share = P.reliability_curve(probabilities, labels, num_bins=2)
    assert confidence[0].isnan()
    assert accurate[1] == 0.75
    assert share.tolist() == [0, 1]


def test_calibration_error_of_calibrated_and_overconfident_probabilities():
    points = 50_000
    p = 0.5 + 0.5 * torch.rand(points)
    labels = (torch.rand(points) > p).long()  # class 0 with probability p
    calibrated = torch.stack([p, 1 - p], -1)
    assert P.expected_calibration_error(calibrated, labels) < 0.02
    sharp = calibrated.pow(3) / calibrated.pow(3).sum(-1, keepdim=True)
    assert P.expected_calibration_error(sharp, labels) > 0.1


def test_class_probabilities_average_over_draws():
    logits = torch.randn(6, 4, 3)  # draws, points, classes
    probabilities = logits.softmax(-1)
    result = P.class_probabilities([probabilities[..., c].log() for c in range(3)])
    torch.testing.assert_close(result, probabilities.mean(0))


@pytest.mark.parametrize(
    "call",
    [
        lambda: P.crps(torch.zeros(5, 3), torch.zeros(4)),
        lambda: P.pit(torch.zeros(0, 3), torch.zeros(3)),
        lambda: P.rmse(torch.zeros(3, 1), torch.zeros(3)),
        lambda: P.accuracy(torch.zeros(4), torch.zeros(4)),
        lambda: P.regression_metrics(torch.zeros(5, 3), torch.zeros(3), torch.zeros(5, 4)),
    ],
)
def test_shapes_that_do_not_fit_are_named(call):
    with pytest.raises(ValueError, match=r"has shape \(|shape \(4,\)"):
        call()


def test_a_scale_that_is_not_positive_is_an_error():
    with pytest.raises(ValueError, match=r"target_sd is 0\.0"):
        P.regression_metrics(torch.zeros(5, 3), torch.zeros(3), torch.zeros(5, 3), target_sd=0.0)
