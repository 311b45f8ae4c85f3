"""Where the distribution function of uniform numbers stays with a given probability, all of it at once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

__all__ = ["Band", "ecdf_band"]

_MOST_POINTS = 50
_HALVINGS = 18


@dataclass(frozen=True)
class Band:
    """A simultaneous band for the counts of N uniform ranks.

    :ivar ranks: where counts are looked at: how many ranks are at most this, shape ``(K,)``.
    :ivar share: the probability that one uniform rank is, shape ``(K,)``.
    :ivar lower: the least count, shape ``(K,)``.
    :ivar upper: the largest count, shape ``(K,)``.
    """

    ranks: Tensor
    share: Tensor
    lower: Tensor
    upper: Tensor

    def counts(self, ranks: Tensor) -> Tensor:
        """Return how many ranks are at most each of ``self.ranks``, shape ``(*element shape, K)``, from ``(N, *shape)``."""
        return (ranks.unsqueeze(-1) <= self.ranks).sum(0)

    def leaves(self, ranks: Tensor) -> Tensor:
        """Tell for every element whether the counts of its ranks, shape ``(N, *shape)``, leave the band anywhere."""
        counts = self.counts(ranks)
        return ((counts < self.lower) | (counts > self.upper)).any(-1)


@lru_cache(maxsize=32)
def ecdf_band(num: int, num_draws: int, prob: float) -> Band:
    r"""Return the band that the counts of ``num`` uniform ranks stay in with probability ``prob``, at all points at once.

    At each point it is the central interval of the count's binomial distribution, of a level that is the same at all points.
    The level is found by bisection: for each, the probability of staying inside is exact, summed step by step along the
    points, as the count at a point given that at the one before is binomial.

    :param num: N, how many ranks.
    :param num_draws: L; ranks are 0 to L.
    :param prob: probability that uniform ranks stay inside, at all points together.

    References: Säilynoja, Bürkner and Vehtari (2022), *Graphical test for discrete uniformity and its applications in
    goodness-of-fit evaluation and multiple sample comparison*, https://doi.org/10.1007/s11222-022-10090-6
    """
    from scipy.stats import binom  # a second of imports

    points = np.unique(np.linspace(0, num_draws - 1, min(num_draws, _MOST_POINTS)).round().astype(int))
    share = (points + 1) / (num_draws + 1)

    def bounds(level: float) -> tuple[np.ndarray, np.ndarray]:
        return binom.ppf(level / 2, num, share), binom.isf(level / 2, num, share)

    low, high = math.log(1e-12), math.log(1 - prob)  # of the level; at the upper end the band is too narrow
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if _inside(num, share, *bounds(math.exp(middle))) >= prob:
            low = middle
        else:
            high = middle
    lower, upper = bounds(math.exp(low))
    return Band(*(torch.as_tensor(part) for part in (points, share, lower, upper)))


def _inside(num: int, share: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> float:
    """Return the probability that the counts of ``num`` uniform numbers lie between the bounds at every point."""
    before, chance, at = np.zeros(1), np.ones(1), 0.0
    log_factorial = torch.lgamma(torch.arange(num + 2, dtype=torch.float64) + 1).numpy()
    for point, least, most in zip(share, lower, upper):
        counts = np.arange(int(least), int(most) + 1)
        left, new = num - before[None, :], counts[:, None] - before[None, :]
        step = (point - at) / (1 - at)
        possible = (new >= 0) & (new <= left)
        many, few = np.where(possible, left, 0).astype(int), np.where(possible, new, 0).astype(int)
        log = log_factorial[many] - log_factorial[few] - log_factorial[many - few]
        log = log + few * math.log(step) + (many - few) * math.log1p(-step)
        chance = np.where(possible, np.exp(log), 0.0) @ chance
        before, at = counts.astype(float), point
    return float(chance.sum())
