"""Pareto-smoothed importance sampling, vectorised over rows: behind k-hat, corrected moments and LOO."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = [
    "CONSTANT",
    "MIN_DRAWS",
    "MOST_K",
    "chain_shares",
    "fit_generalized_pareto",
    "float_tolerance",
    "importance_ess",
    "pareto_k_threshold",
    "psis",
    "tail_beyond",
    "tail_length",
    "tail_shape",
]

MIN_DRAWS = 25
"""Fewest draws with a tail (five) that a generalised Pareto distribution can be fitted to."""

MOST_K = 0.7
"""Largest Pareto k-hat that any number of draws can cope with."""

CONSTANT = 1e-3  # nats; weights that agree to one part in a thousand are equal for every use we make of them
_ROWS_AT_ONCE = 1024
_FIT_ELEMENTS = 2**24  # of the table that the Pareto fit makes of each row; 128 MiB


def pareto_k_threshold(num_samples: int) -> float:
    r"""Return the largest Pareto k-hat at which ``num_samples`` draws still give usable estimates.

    .. math:: \min(1 - 1 / \log_{10} S,\ 0.7)

    0.5 at S = 100, 0.67 at 1000, 0.7 from 2155 on: the fewer the draws, the lighter the tail must be.

    :param num_samples: S, the number of draws behind k-hat.

    References: Vehtari, Simpson, Gelman, Yao, Gabry (2024), *Pareto smoothed importance sampling*, section
    3.2.4, https://jmlr.org/papers/v25/19-556.html

    Example::

        >>> round(pareto_k_threshold(100), 3)
        0.5
    """
    return min(1.0 - 1.0 / math.log10(num_samples), MOST_K) if num_samples > 10 else 0.0


def tail_length(num_samples: int) -> int:
    """Return how many of the largest weights the Pareto fit uses: ceil(min(S / 5, 3 sqrt S))."""
    return math.ceil(min(num_samples / 5, 3 * math.sqrt(num_samples)))


def fit_generalized_pareto(exceedances: Tensor) -> tuple[Tensor, Tensor]:
    r"""Fit a generalised Pareto distribution to each row, for all rows at once.

    .. math:: p(x) = \sigma^{-1} (1 + k x / \sigma)^{-1/k - 1}, \qquad x > 0

    Zhang and Stephens' quasi-Bayesian estimate with Vehtari et al.'s weak prior (k = 0.5 with the weight of
    ten points). ``pyro.ops.stats.fit_generalized_pareto`` is the same for one row; leave-one-out needs one
    row per observation.

    :param exceedances: (..., M) positive numbers, ascending along the last dimension.
    :returns: shape k and scale sigma, each (...), float64.

    References: Zhang and Stephens (2009), *A new and efficient estimation method for the generalized Pareto
    distribution*, https://doi.org/10.1198/tech.2009.08017

    Example::

        >>> k, sigma = fit_generalized_pareto(torch.rand(10_000, dtype=torch.double).sort().values)
        >>> abs(k.item() + 1) < 0.05  # the uniform distribution has shape -1
        True
    """
    x = exceedances.double()
    size = x.shape[-1]
    grid = 30 + int(math.sqrt(size))
    points = torch.arange(1, grid + 1, dtype=x.dtype, device=x.device) - 0.5
    b = (1 - (grid / points).sqrt()) / (3 * x[..., int(size / 4 + 0.5) - 1, None]) + 1 / x[..., -1:]
    b = torch.where(b == 0, torch.finfo(x.dtype).tiny, b)
    k = torch.log1p(-b.unsqueeze(-1) * x.unsqueeze(-2)).mean(-1)
    weights = torch.softmax(size * (torch.log(-b / k) - k - 1), dim=-1)
    b = (weights * b).sum(-1)
    k = torch.log1p(-b.unsqueeze(-1) * x).mean(-1)
    return (size * k + 5) / (size + 10), -k / b


def float_tolerance(*log_densities: Tensor) -> float:
    """Return the spread of log weights, in nats, that rounding of these log densities alone can cause.

    Never less than 0.001 and never more than 0.1: weights that differ by a tenth are no longer rounding.

    Example::

        >>> float_tolerance(torch.tensor([-1e5]))
        0.1
    """
    largest = max(float(value[value.isfinite()].abs().amax()) if value.isfinite().any() else 0.0 for value in log_densities)
    return min(0.1, max(CONSTANT, 64 * torch.finfo(log_densities[0].dtype).eps * largest))


def psis(log_weights: Tensor, tolerance: float = CONSTANT) -> tuple[Tensor, Tensor]:
    r"""Smooth importance weights and say how heavy their tail is.

    The M = min(S / 5, 3 sqrt S) largest weights are replaced by the expected order statistics of the
    generalised Pareto distribution fitted to them, cut off at the largest raw weight, and all are normalised.

    :param log_weights: (..., S) log p - log q in nats, up to a constant per row. ``-inf`` (a draw the model
        gives no density) is a weight of zero.
    :param tolerance: spread of the tail, in nats, below which the weights count as equal; see :func:`float_tolerance`.
    :returns: normalised smoothed log weights (..., S), and k-hat (...), both float64. Where the tail is
        constant, as it is for an exact guide, nothing needs smoothing and k-hat is 0 (a distribution without
        spread has no shape; bounded weights have k <= 0). A row with NaN or +inf, or with no finite weight,
        has k-hat NaN.
    :raises ValueError: with fewer than 25 draws, whose tail is too short to fit.

    References: Vehtari et al. (2024), *Pareto smoothed importance sampling*,
    https://jmlr.org/papers/v25/19-556.html

    Example::

        >>> log_weights, k_hat = psis(torch.randn(1000))
        >>> round(log_weights.exp().sum().item(), 6)
        1.0
    """
    num_samples = log_weights.shape[-1]
    if num_samples < MIN_DRAWS:
        raise ValueError(
            f"log_weights has {num_samples} draws; the Pareto fit needs at least {MIN_DRAWS}: use num_samples=1000"
        )
    rows = log_weights.detach().double().reshape(-1, num_samples)
    parts = [_psis_rows(part, tolerance) for part in rows.split(_ROWS_AT_ONCE)]
    smoothed = torch.cat([part[0] for part in parts]).reshape(log_weights.shape)
    return smoothed, torch.cat([part[1] for part in parts]).reshape(log_weights.shape[:-1])


def _psis_rows(rows: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    bad = (rows.isnan() | (rows == math.inf)).any(-1) | (rows == -math.inf).all(-1)
    rows = torch.where(bad.unsqueeze(-1), 0.0, rows)
    rows = rows - rows.amax(-1, keepdim=True)
    ascending, order = rows.sort(-1)
    length = tail_length(rows.shape[-1])
    cutoff = ascending[:, -length - 1, None]
    k, sigma, usable = _fit_tail(ascending[:, -length - 1 :], tolerance)

    quantiles = (torch.arange(length, dtype=rows.dtype, device=rows.device) + 0.5) / length
    shape = torch.where(k.abs() < 1e-10, 1e-10, k).unsqueeze(-1)
    smooth = sigma.unsqueeze(-1) / shape * torch.expm1(-shape * torch.log1p(-quantiles)) + cutoff.exp()
    smooth = torch.where(usable.unsqueeze(-1), smooth.log().clamp(max=0.0), ascending[:, -length:])
    rows = rows.scatter(-1, order[:, -length:], smooth)
    return rows - rows.logsumexp(-1, keepdim=True), torch.where(bad, math.nan, k)


def tail_shape(largest: Tensor, tolerance: float = CONSTANT) -> Tensor:
    """Return the k-hat that :func:`psis` gives, from the largest log weights alone.

    :param largest: (..., M + 1) in any order, with M = :func:`tail_length` of the number of draws: the tail and its cut-off.
    :param tolerance: see :func:`psis`.
    :returns: (...), float64; NaN for a row that holds NaN or +inf, or no finite weight.

    Example::

        >>> log_weights = torch.randn(1000)
        >>> k_hat = tail_shape(log_weights.topk(tail_length(1000) + 1).values)
        >>> torch.equal(k_hat, psis(log_weights)[1])
        True
    """
    return _tails(largest, tolerance)[0]


def tail_beyond(largest: Tensor, log_sum: Tensor, tolerance: float = CONSTANT) -> tuple[Tensor, Tensor]:
    r"""Return the k-hat of a sum's terms, and the share of the sum that is expected of terms larger than S draws have shown.

    With the M largest of S terms from a generalised Pareto distribution beyond u, and :math:`x_S` the size that one term
    in S exceeds, that is

    .. math:: \frac{S \, E[X;\ X > x_S]}{\sum_s x_s} =
              \frac{1}{\sum_s x_s} \Big(x_S + \frac{\sigma + k (x_S - u)}{1 - k}\Big), \qquad
              x_S = u + \frac{\sigma}{k} (M^k - 1)

    which falls as :math:`S^{k-1}`, and is infinite for k of 1 or more. It is what an importance-sampling estimate may lack,
    and varies less from one set of draws to the next than the largest term does.

    :param largest: (..., M + 1) logs of the largest terms, as for :func:`tail_shape`.
    :param log_sum: (...) log of the sum of all terms.
    :param tolerance: see :func:`psis`.
    :returns: k-hat and share, each (...), float64.

    Example::

        >>> terms = torch.distributions.Pareto(1.0, 2.0).sample((10_000,)).log()  # k is 1/2: one in S exceeds sqrt(S)
        >>> k_hat, share = tail_beyond(terms.topk(tail_length(10_000) + 1).values, terms.logsumexp(0))
        >>> 0.3 < float(k_hat) < 0.7 and 0.005 < float(share) < 0.02  # twice sqrt(S), of 2 S
        True
    """
    k, sigma, cutoff, top = _tails(largest, tolerance)
    length = largest.shape[-1] - 1
    shape = torch.where(k.abs() < 1e-10, 1e-10, k)
    once = cutoff + sigma / shape * torch.expm1(shape * math.log(length))
    more = torch.where(k < 1, (sigma + k * (once - cutoff)) / (1 - k), math.inf)
    return k, (once + more) * (top - log_sum).exp()


def _tails(largest: Tensor, tolerance: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Fit the tail of each row of :func:`tail_shape`'s argument.

    :returns: k-hat, sigma and cut-off in units of the largest weight, and its logarithm; each (...).
    """
    rows = largest.detach().double().reshape(-1, largest.shape[-1])
    bad = (rows.isnan() | (rows == math.inf)).any(-1) | (rows == -math.inf).all(-1)
    rows = torch.where(bad.unsqueeze(-1), 0.0, rows).sort(-1).values
    length = rows.shape[-1] - 1
    at_once = max(1, min(_ROWS_AT_ONCE, _FIT_ELEMENTS // (length * (30 + math.isqrt(length)))))
    parts = [_fit_tail(part - part[:, -1:], tolerance) for part in rows.split(at_once)]
    k, sigma = (torch.cat([part[i] for part in parts]) for i in (0, 1))
    shape = largest.shape[:-1]
    cutoff = (rows[:, 0] - rows[:, -1]).exp()
    k, sigma, cutoff, top = (value.reshape(shape) for value in (torch.where(bad, math.nan, k), sigma, cutoff, rows[:, -1]))
    return k, sigma, cutoff, top


def _fit_tail(ascending: Tensor, tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
    """Fit the tail of each row, (rows, M + 1) log weights of which the first is the cut-off and the last is zero.

    :returns: k-hat (0 where the tail is constant), sigma, and whether the fit can be used for smoothing; each (rows,).
    """
    cutoff = ascending[:, :1]
    constant = (cutoff >= -tolerance).squeeze(-1)
    exceedances = ascending[:, 1:].exp() - cutoff.exp()
    exceedances = torch.where(constant.unsqueeze(-1), 1.0, exceedances.clamp(min=1e-15))  # ties in the tail
    k, sigma = fit_generalized_pareto(exceedances)
    usable = ~constant & k.isfinite() & sigma.isfinite()
    return torch.where(constant, 0.0, k), torch.where(constant, 0.0, sigma), usable


def importance_ess(log_weights: Tensor) -> Tensor:
    r"""Return the effective number of draws behind a self-normalised importance-sampling mean, per row.

    .. math:: \Big(\sum_s w_s\Big)^2 \Big/ \sum_s w_s^2

    It can only count the draws it was given: where k-hat is above its threshold the number is too optimistic.

    :param log_weights: (..., S), nats, normalised or not.
    :returns: (...), between 1 and S.

    References: Kong (1992), *A note on importance sampling using standardized weights*.

    Example::

        >>> round(importance_ess(torch.zeros(100)).item(), 6)
        100.0
    """
    log_weights = log_weights.double()
    return torch.exp(2 * log_weights.logsumexp(-1) - (2 * log_weights).logsumexp(-1))


def chain_shares(log_weights: Tensor) -> Tensor:
    r"""Return the logarithm of each chain's share where draws of several count together: in proportion to their ESS.

    :param log_weights: (C, S), nats, normalised within each chain.
    :returns: (C, 1), to be added to them; all C S weights then sum to one.

    Example::

        >>> chain_shares(torch.full((2, 100), 0.01).log()).exp().squeeze(-1).tolist()
        [0.5, 0.5]
    """
    ess = importance_ess(log_weights)
    return (ess / ess.sum()).log().unsqueeze(-1)
