"""Objectives of the adaptive mixture that belong to its benchmark alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

import guides

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
        return self.weight * ((step - 1 - self.wait) / self.rise).clamp(0.0, 1.0)


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

    A bound on nothing. It rewards components that are narrow and lie on top of each other, without end.
    """

    bounds: ClassVar[str] = "nothing"

    def particle(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> dict[str, Tensor]:
        """Return one component's energy and weight, and minus the bound on the entropy."""
        found = super().particle(model, guide, args, kwargs)
        return found | {"entropy": -found["entropy"]}
