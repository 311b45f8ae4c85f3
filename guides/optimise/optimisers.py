"""Optimisers and learning-rate schedules as pure functions of one flat vector."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from guides.errors import OptionError, check_known

__all__ = ["Optimiser", "adam", "make_optimiser", "make_schedule"]

Moments = tuple[Tensor, ...]


@dataclass(frozen=True)
class Optimiser:
    """A first-order optimiser over vectors, shape ``(replicates, size)``.

    :ivar moments: how many vectors of state it keeps, zero at the start.
    :ivar factors: from 1-based step numbers ``(..., 1)`` to what the steps need to know of them ``(..., n)``. It is computed
        for many steps at once, ahead of them: inside a step, a compiler would compute it again for every parameter.
    :ivar update: from (gradient of the loss, moments, factors ``(replicates, n)``) to (direction to move against, moments).
    """

    moments: int
    factors: Callable[[Tensor], Tensor]
    update: Callable[[Tensor, Moments, Tensor], tuple[Tensor, Moments]]

    def clock(self, rates: Tensor) -> Tensor:
        """Return what tells the steps of a fit apart: learning rate, number from 1, and factors, shape ``(steps, 2 + n)``.

        :param rates: learning rate of each step, shape ``(steps,)``.
        """
        numbers = torch.arange(1, len(rates) + 1, dtype=rates.dtype, device=rates.device).unsqueeze(-1)
        return torch.cat([rates.unsqueeze(-1), numbers, self.factors(numbers)], dim=-1)


def _no_factors(numbers: Tensor) -> Tensor:
    return numbers.new_zeros((*numbers.shape[:-1], 0))


_LIKE_ADAM, _SHARE, _LONGEST = 100, 0.1, 1000
"""Steps at first that are Adam's own; the part of the steps so far that squares are averaged over; and at most how many."""


def adam(beta1: float = 0.9, epsilon: float = 1e-8) -> Optimiser:
    r"""Adam (Kingma & Ba 2015), which forgets its beginning sooner.

    Adam averages squared gradients over about 1000 steps (:math:`\beta_2` = 0.999). A fit begins far from where it ends,
    with gradients a hundred times as large, and a fit of two thousand steps spends most of them divided by those: locations
    are found and standard deviations are left where they started. Here the average is over the last tenth of the steps so
    far, at least 100 and at most 1000. The first 100 steps, and those after 10,000, are Adam's with :math:`\beta_2` = 0.999.
    """
    numbers = torch.arange(1, int(_LONGEST / _SHARE) + 1, dtype=torch.float64)
    weights = 1 / (_SHARE * numbers).clamp(_LIKE_ADAM, _LONGEST)
    weights[:_LIKE_ADAM] = 1 / _LONGEST
    totals = -torch.expm1(torch.log1p(-weights).cumsum(0))  # what the weights of all gradients so far sum to

    def factors(numbers: Tensor) -> Tensor:
        place = (numbers.long() - 1).clamp(max=len(weights) - 1)
        weight, total = (table.to(numbers.device)[place].to(numbers.dtype) for table in (weights, totals))
        return torch.cat([1 / (1 - beta1**numbers), weight, 1 / total], dim=-1)

    def update(grad: Tensor, moments: Moments, factors: Tensor) -> tuple[Tensor, Moments]:
        mean = torch.lerp(moments[0], grad, 1 - beta1)
        square = moments[1] + factors[..., 1:2] * (grad * grad - moments[1])
        unbiased, unbiased_square = mean * factors[..., :1], square * factors[..., 2:]
        return unbiased / (unbiased_square.sqrt() + epsilon), (mean, square)

    return Optimiser(2, factors, update)


def clipped_adam(clip: float = 10.0) -> Optimiser:
    """Adam with every entry of the gradient cut to [-clip, clip] first, as Pyro's ``ClippedAdam``."""
    plain = adam()

    def update(grad: Tensor, moments: Moments, factors: Tensor) -> tuple[Tensor, Moments]:
        return plain.update(grad.clamp(-clip, clip), moments, factors)

    return Optimiser(plain.moments, plain.factors, update)


def sgd(momentum: float = 0.9) -> Optimiser:
    """Gradient descent with heavy-ball momentum (Polyak 1964)."""

    def update(grad: Tensor, moments: Moments, factors: Tensor) -> tuple[Tensor, Moments]:
        velocity = momentum * moments[0] + grad
        return velocity, (velocity,)

    return Optimiser(1, _no_factors, update)


_OPTIMISERS: dict[str, Callable[[], Optimiser]] = {"adam": adam, "clipped_adam": clipped_adam, "sgd": sgd}


def make_optimiser(name: str) -> Optimiser:
    """Return the optimiser of that name: ``"adam"``, ``"clipped_adam"`` or ``"sgd"``.

    :raises OptionError: for another name.
    """
    check_known("optimizer", name, _OPTIMISERS)
    return _OPTIMISERS[name]()


def _constant(progress: float) -> float:
    return 1.0


def _cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


def _linear(progress: float) -> float:
    return 1 - progress


_SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": _constant,
    "cosine": _cosine,
    "linear": _linear,
}


def make_schedule(schedule: str | Callable[[float], float]) -> Callable[[float], float]:
    """Return a function from progress in [0, 1) to a factor on the learning rate.

    :raises OptionError: for a name other than ``"constant"``, ``"cosine"``, ``"linear"``.
    """
    if callable(schedule):
        return schedule
    if schedule not in _SCHEDULES:
        raise OptionError(f"schedule={schedule!r} is not known; use one of {', '.join(map(repr, _SCHEDULES))} or a function")
    return _SCHEDULES[schedule]
