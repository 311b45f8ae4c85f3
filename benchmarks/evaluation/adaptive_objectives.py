"""Objectives of the adaptive mixture that belong to its benchmark alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

import guides
from guides.distributions.mixtures import MixtureDensity

__all__ = ["AsPrinted", "Rising", "penalised"]


@dataclass(frozen=True)
class Rising:
    """A weight that is zero at first, then grows linearly and stays.

    :param weight: where it stays.
    :param wait: steps at zero.
    :param rise: steps from zero to ``weight``.

    Example::

        >>> import torch
        >>> weight = Rising(2.0, wait=100, rise=100)
        >>> [float(weight(torch.tensor(t))) for t in (1.0, 101.0, 151.0, 1000.0)]
        [0.0, 0.0, 1.0, 2.0]
    """

    weight: float
    wait: int
    rise: int

    def __call__(self, step: Tensor) -> Tensor:
        """Return the weight of one step."""
        return self.weight * guides.KLAnnealing(self.rise)(step - self.wait)


def penalised(
    num_particles: int = 1, penalty: float = 0.0, warmup: int = 0, rise: int = 1000, bound: str = "jensen"
) -> guides.Objective:
    r"""Return the entropy bound minus :math:`\lambda H[\pi]`, with a weight that starts from zero.

    :param num_particles: draws of every component per step.
    :param penalty: where :math:`\lambda` ends.
    :param warmup: steps in which every component is fitted by itself, before :math:`\lambda` rises.
    :param rise: steps until it is there.
    :param bound: on the entropy of the mixture; see :class:`guides.EntropyBoundELBO`.
    """
    weight = Rising(penalty, warmup, rise) if penalty else 0.0
    return guides.EntropyBoundELBO(num_particles, bound, weight, warmup=warmup)


class AsPrinted(guides.EntropyBoundELBO):
    r"""Equation 69 of the report as printed: the entropy's bound enters with the wrong sign.

    .. math::
        \sum_k \pi_k\, \mathbb{E}_{q_k}[\log p(x, z)] + \sum_k \pi_k \log \sum_j \pi_j\, \mathcal N(\mu_k; \mu_j, S_k + S_j)

    A bound on nothing: it rewards components that are narrow and lie on top of each other. Without end, so that scales would
    leave the range of floating-point numbers within an epoch; here the reward stops at an entropy that components of scale
    ``narrowest`` have.

    :param num_particles: draws of every component per step.
    :param narrowest: a standard deviation.
    """

    bounds: ClassVar[str] = "nothing"

    def __init__(self, num_particles: int = 1, narrowest: float = 0.01) -> None:
        super().__init__(num_particles)
        self.narrowest = narrowest

    def entropy(self, mixture: MixtureDensity) -> Tensor:
        """Return minus the bound on the entropy of each mixture, at most what narrowness is rewarded with."""
        least = mixture.event_shape.numel() * (0.5 * math.log(4 * math.pi) + math.log(self.narrowest))
        return -super().entropy(mixture).clamp(min=least)
