"""Weights that change as an optimisation goes on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from guides.errors import OptionError, check_whole

__all__ = ["KLAnnealing", "Schedule", "check_weight", "weight_at"]

Schedule = Callable[[Tensor], Tensor]
"""From the number of the step, a scalar tensor that starts at 1 and is infinite after the end, to a weight."""


@dataclass(frozen=True)
class KLAnnealing:
    r"""A weight that grows linearly to 1, once or in several cycles, and stays at 1 after the last.

    With :math:`\tau_t \in [0, 1)` the fraction of its cycle that step :math:`t \le T` is at,

    .. math:: \beta_t = \beta_1 + (1 - \beta_1) \min(1, \tau_t / R)

    and :math:`\beta_t = 1` for :math:`t > T`.

    :param steps: :math:`T`, steps of all cycles together.
    :param start: :math:`\beta_1`, the weight that each cycle starts with.
    :param cycles: how many cycles; 1 is a warm-up.
    :param ramp: :math:`R`, the fraction of a cycle during which the weight grows; it is 1 for the rest of it.
    :raises OptionError: for a cycle shorter than a step, a ramp outside (0, 1], or a start that is negative or not finite.

    References: Bowman et al. (2016), *Generating sentences from a continuous space*; Sonderby et al. (2016), *Ladder
    variational autoencoders*; Fu et al. (2019), *Cyclical annealing schedule: a simple approach to mitigating KL
    vanishing*.

    Example::

        >>> import torch, guides
        >>> weight = guides.KLAnnealing(steps=10)
        >>> [float(weight(torch.tensor(t))) for t in (1.0, 6.0, 11.0, 100.0)]
        [0.0, 0.5, 1.0, 1.0]
        >>> weight = guides.KLAnnealing(steps=40, cycles=2, ramp=0.5)
        >>> [float(weight(torch.tensor(t))) for t in (1.0, 6.0, 11.0, 20.0, 21.0, 41.0)]
        [0.0, 0.5, 1.0, 1.0, 0.0, 1.0]
    """

    steps: int
    start: float = 0.0
    cycles: int = 1
    ramp: float = 1.0

    def __post_init__(self) -> None:
        check_whole("steps", self.steps, least=1)
        if not 1 <= self.cycles <= self.steps:
            raise OptionError(f"cycles must be 1 to steps={self.steps!r}, not {self.cycles!r}")
        if not 0 < self.ramp <= 1:
            raise OptionError(f"ramp must be in (0, 1], not {self.ramp!r}")
        check_weight("start", self.start)

    def __call__(self, step: Tensor) -> Tensor:
        """Return the weight of one step."""
        position = ((step - 1) / (self.steps / self.cycles)).clamp(min=0.0)
        weight = self.start + (1 - self.start) * (torch.remainder(position, 1.0) / self.ramp).clamp(max=1.0)
        return torch.where(position < self.cycles, weight, 1.0)


def check_weight(name: str, value: object) -> None:
    """Check that ``value`` can weigh a term.

    :raises OptionError: if it is not a number that is finite and at least 0.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise OptionError(f"{name} must be a finite number of at least 0, not {value!r}")


def weight_at(weight: float | Schedule, step: Tensor) -> Tensor | float:
    """Return a weight, constant or scheduled, at one step."""
    return weight(step) if callable(weight) else weight
