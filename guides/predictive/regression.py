"""Scores of numbers: predictive draws and densities against held-out values; units as in :mod:`guides.predictive`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from guides.errors import DataError, OptionError

__all__ = [
    "LEVELS",
    "RegressionMetrics",
    "calibration_curve",
    "coverage",
    "crps",
    "crps_gaussian_mixture",
    "gaussian_mixture_cdf",
    "log_predictive_density",
    "mse",
    "pit",
    "regression_metrics",
    "rmse",
]

LEVELS = (0.5, 0.8, 0.95)
_SQRT_2 = math.sqrt(2.0)
_WHOLE = 0.05


def _check_draws(draws: Tensor, y: Tensor, name: str = "draws") -> None:
    if not draws.dim() or draws.shape[1:] != y.shape:
        raise DataError(
            f"{name} has shape {tuple(draws.shape)}; expected (S, {', '.join(map(str, y.shape))}): draws first, then y's"
            " shape"
        )
    if not draws.shape[0] or not y.numel():
        raise DataError(f"{name} has shape {tuple(draws.shape)}; at least one draw and one point are needed")


def log_predictive_density(log_likelihood: Tensor) -> Tensor:
    r"""Return the log posterior predictive density of each point.

    .. math:: \log \frac1S \sum_s p(y_n \mid z_s)

    :param log_likelihood: ``(S, *batch)``, nats.
    :returns: ``(*batch)``, nats. A point that no draw gives density to is -inf.

    Example::

        >>> log_predictive_density(torch.tensor([[0.0], [0.0]])).item()
        0.0
    """
    return log_likelihood.logsumexp(0) - math.log(log_likelihood.shape[0])


def mse(prediction: Tensor, y: Tensor) -> Tensor:
    """Return the mean squared error over all points, a scalar in squared units of ``y``.

    :param prediction: point predictions, such as the mean of the draws; the shape of ``y``.
    :raises DataError: if the shapes differ (broadcasting (N, 1) against (N,) would silently give nonsense).

    Example::

        >>> mse(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0])).item()
        2.0
    """
    if prediction.shape != y.shape:
        raise DataError(f"prediction has shape {tuple(prediction.shape)}, y has {tuple(y.shape)}; they must be equal")
    return (prediction - y).square().mean()


def rmse(prediction: Tensor, y: Tensor) -> Tensor:
    """Return the root of :func:`mse`, a scalar in units of ``y``.

    Example::

        >>> round(rmse(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0])).item(), 3)
        1.414
    """
    return mse(prediction, y).sqrt()


def crps(draws: Tensor, y: Tensor) -> Tensor:
    r"""Return the continuous ranked probability score of each point, estimated from draws without bias.

    .. math:: E|X - y| - \tfrac12 E|X - X'|

    The second expectation is taken over pairs of *different* draws (a factor S / (S - 1) that
    ``pyro.ops.stats.crps_empirical`` leaves out, so that its value shrinks with S). Sorting makes it O(S log S).

    :param draws: ``(S, *batch)`` predictive draws. With one draw the score is the absolute error.
    :param y: ``(*batch)``.
    :returns: ``(*batch)``, in units of ``y``; smaller is better.

    References: Gneiting and Raftery (2007), *Strictly proper scoring rules, prediction, and estimation*, eq. 21,
    https://doi.org/10.1198/016214506000001437

    Example::

        >>> crps(torch.tensor([[0.0], [2.0]]), torch.tensor([1.0])).item()
        0.0
    """
    _check_draws(draws, y)
    size = draws.shape[0]
    error = (draws - y).abs().mean(0)
    if size == 1:
        return error
    rank = torch.arange(1, size + 1, dtype=draws.dtype, device=draws.device)
    weight = (2 * rank - size - 1).reshape(-1, *[1] * y.dim()) / (size * (size - 1))
    return error - (weight * draws.sort(0).values).sum(0)


def gaussian_mixture_cdf(y: Tensor, means: Tensor, sds: Tensor, weights: Tensor | None = None) -> Tensor:
    r"""Return the distribution function of a Gaussian mixture, which is the PIT value of ``y`` without Monte Carlo noise.

    .. math:: \sum_s \pi_s \Phi((y - \mu_s) / \sigma_s)

    :param y: ``(*batch)``.
    :param means: ``(S, *batch)``, one component per posterior draw.
    :param sds: broadcastable to ``(S, *batch)``, positive.
    :param weights: (S,) summing to one; equal if None.
    :returns: ``(*batch)``, in [0, 1].

    Example::

        >>> gaussian_mixture_cdf(torch.zeros(1), torch.zeros(3, 1), torch.ones(())).item()
        0.5
    """
    _check_draws(means, y, "means")
    values = 0.5 * torch.erfc((means - y) / (sds * _SQRT_2))
    return values.mean(0) if weights is None else torch.tensordot(weights, values, 1)


def crps_gaussian_mixture(means: Tensor, sds: Tensor, y: Tensor, weights: Tensor | None = None) -> Tensor:
    r"""Return the CRPS of a Gaussian mixture in closed form: the predictive of a regression with Gaussian noise.

    .. math::
        \sum_i \pi_i A(y - \mu_i, \sigma_i^2) - \tfrac12 \sum_{ij} \pi_i \pi_j A(\mu_i - \mu_j, \sigma_i^2 + \sigma_j^2),
        \quad A(m, v) = m \big(2 \Phi(m / \sqrt v) - 1\big) + 2 \sqrt v\, \varphi(m / \sqrt v)

    It costs S squared per point; thin the draws to a few hundred.

    :param means: ``(S, *batch)``, in units of ``y``.
    :param sds: broadcastable to ``(S, *batch)``, positive.
    :param y: ``(*batch)``.
    :param weights: (S,) summing to one; equal if None.
    :returns: ``(*batch)``, in units of ``y``.

    References: Grimit, Gneiting, Berrocal, Johnson (2006), *The continuous ranked probability score for circular variables
    and its application to mesoscale forecast ensemble verification*, https://doi.org/10.1256/qj.05.235

    Example::

        >>> round(crps_gaussian_mixture(torch.zeros(1, 1), torch.ones(()), torch.zeros(1)).item(), 4)
        0.2337
    """
    _check_draws(means, y, "means")
    size = means.shape[0]
    variance = sds.square().expand(means.shape)
    if weights is None:
        weights = means.new_full((size,), 1 / size)
    first = torch.tensordot(weights, _expected_distance(y - means, variance), 1)
    second = torch.zeros_like(first)
    for i in range(size):  # one row of the S x S table at a time keeps memory at S per point
        row = _expected_distance(means[i] - means, variance[i] + variance)
        second = second + weights[i] * torch.tensordot(weights, row, 1)
    return first - 0.5 * second


def _expected_distance(mean: Tensor, variance: Tensor) -> Tensor:
    """Return E|X| of a normal with this mean and variance."""
    sd = variance.sqrt()
    z = mean / sd
    return mean * torch.erf(z / _SQRT_2) + sd * math.sqrt(2 / math.pi) * torch.exp(-0.5 * z.square())


def pit(draws: Tensor, y: Tensor, generator: torch.Generator | None = None) -> Tensor:
    r"""Return the probability integral transform of each point: its rank among the draws, as a fraction.

    .. math:: \big(\#\{s: x_s < y\} + u\,(1 + \#\{s: x_s = y\})\big) / (S + 1), \qquad u \sim U(0, 1)

    If ``y`` comes from the same distribution as the draws, the values are exactly uniform, for any S, for continuous and
    for discrete targets. Too narrow predictions pile them up at 0 and 1, too wide ones in the middle, biased ones on one
    side.

    :param draws: ``(S, *batch)`` predictive draws (of the observation, noise included, not of its mean).
    :param y: ``(*batch)``.
    :param generator: source of u; without it u = 1/2, which is deterministic and uniform up to 1 / (S + 1).
    :returns: ``(*batch)``, in (0, 1).

    References: Dawid (1984), *The prequential approach*; Czado, Gneiting, Held (2009), *Predictive model assessment for
    count data*, https://doi.org/10.1111/j.1541-0420.2009.01191.x

    Example::

        >>> pit(torch.arange(9.0).unsqueeze(-1), torch.tensor([4.5])).item()
        0.550000011920929
    """
    _check_draws(draws, y)
    below, ties = (draws < y).sum(0), (draws == y).sum(0)
    u: Tensor | float = 0.5
    if generator is not None:
        u = torch.rand(y.shape, generator=generator, device=generator.device).to(y.device)
    return (below + u * (1 + ties)) / (draws.shape[0] + 1)


def coverage(pit_values: Tensor, levels: Sequence[float] = LEVELS) -> Tensor:
    """Return the share of points inside the central prediction intervals, one number per level.

    A point is inside the central interval of probability c if its PIT value is within (1 - c) / 2 of neither end.

    :param pit_values: any shape, from :func:`pit` or :func:`gaussian_mixture_cdf`.
    :param levels: nominal probabilities c, in (0, 1).
    :returns: (len(levels),). Its standard error with N independent points is sqrt(c (1 - c) / N).

    Example::

        >>> coverage(torch.linspace(0, 1, 1001), (0.5,)).round(decimals=2).item()
        0.5
    """
    distance = (2 * pit_values.flatten() - 1).abs()
    return torch.stack([(distance <= level).to(distance.dtype).mean() for level in levels])


def calibration_curve(pit_values: Tensor, num_levels: int = 21) -> tuple[Tensor, Tensor]:
    """Return nominal probabilities and the share of PIT values below each: on the diagonal if calibrated.

    :param pit_values: any shape.
    :param num_levels: points of the curve, 0 and 1 included.
    :returns: nominal (num_levels,), observed (num_levels,).

    References: Kuleshov, Fenner, Ermon (2018), *Accurate uncertainties for deep learning using calibrated regression*,
    https://proceedings.mlr.press/v80/kuleshov18a.html

    Example::

        >>> nominal, observed = calibration_curve(torch.rand(50))
        >>> observed[-1].item()
        1.0
    """
    values = pit_values.flatten().sort().values
    nominal = torch.linspace(0, 1, num_levels, dtype=values.dtype, device=values.device)
    return nominal, torch.searchsorted(values, nominal, right=True).to(values.dtype) / values.numel()


@dataclass(frozen=True)
class RegressionMetrics:
    """Scores of a regression on N held-out points; see the functions of this module for their definitions.

    ``*_standardised`` are in the units of the tensors that were given, the others in original target units.

    :param num_points: N.
    :param num_samples: S, predictive draws behind the scores.
    :param rmse: root mean squared error of the predictive mean.
    :param mse: its square.
    :param log_likelihood: mean log predictive density per point, nats.
    :param crps: mean continuous ranked probability score.
    :param coverage: share of points inside the central 50, 80 and 95 % intervals.
    :param calibration_error: mean absolute distance of :func:`calibration_curve` from the diagonal.
    """

    num_points: int
    num_samples: int
    rmse: float
    mse: float
    log_likelihood: float
    crps: float
    rmse_standardised: float
    mse_standardised: float
    log_likelihood_standardised: float
    crps_standardised: float
    coverage: dict[str, float]
    calibration_error: float

    def to_dict(self) -> dict[str, Any]:
        """Return the scores as plain Python."""
        return dataclasses.asdict(self)


def regression_metrics(
    draws: Tensor,
    y: Tensor,
    log_likelihood: Tensor,
    *,
    mean: Tensor | None = None,
    target_sd: float = 1.0,
) -> RegressionMetrics:
    """Score predictive draws of a real-valued target.

    :param draws: ``(S, *batch)`` draws of the observation, noise included; ``posterior.predict(x)["y"]``.
    :param y: ``(*batch)`` held-out values, in the units of the draws.
    :param log_likelihood: ``(S', *batch)`` pointwise, nats, in the units of the draws; as
        ``posterior.log_likelihood(x, y)["y"]`` returns.
    :param mean: ``(*batch)`` predictive mean where it is known better than by averaging ``draws``, such as the average of
        the noise-free site ``"f"``.
    :param target_sd: standard deviation that targets were divided by, to report original units too; 1 if they were not.
    :raises DataError: if shapes do not fit, there is no draw or no point, or ``target_sd`` is not positive.

    Example::

        >>> draws, y = torch.randn(200, 50), torch.randn(50)
        >>> log_likelihood = torch.distributions.Normal(0.0, 1.0).log_prob(y).expand(200, -1)
        >>> regression_metrics(draws, y, log_likelihood, target_sd=2.0).num_points
        50
    """
    _check_draws(draws, y)
    _check_draws(log_likelihood, y, "log_likelihood")
    if not target_sd > 0:
        raise OptionError(f"target_sd is {target_sd}; it must be positive")
    mean_squared = float(mse(draws.mean(0) if mean is None else mean, y))
    density = float(log_predictive_density(log_likelihood).mean())
    score = float(crps(draws, y).mean())
    values = pit(draws, y)
    nominal, observed = calibration_curve(values)
    return RegressionMetrics(
        num_points=y.numel(),
        num_samples=draws.shape[0],
        rmse=target_sd * math.sqrt(mean_squared),
        mse=target_sd**2 * mean_squared,
        log_likelihood=density - math.log(target_sd),
        crps=target_sd * score,
        rmse_standardised=math.sqrt(mean_squared),
        mse_standardised=mean_squared,
        log_likelihood_standardised=density,
        crps_standardised=score,
        coverage={f"{level:.0%}": float(share) for level, share in zip(LEVELS, coverage(values))},
        calibration_error=float((observed - nominal).abs().mean()),
    )
