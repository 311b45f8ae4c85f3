"""What the engine asks of an objective, and what it gets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

__all__ = ["OWN_MODULE", "Estimate", "ObjectiveLike"]

OWN_MODULE = "guides.objective"
"""The name by which an objective registers a module that it trains along for itself; no part of the posterior."""


@dataclass(frozen=True)
class Estimate:
    """One stochastic estimate of an objective.

    :ivar value: scalar, in nats: what to report.
    :ivar surrogate: scalar: what to differentiate. Its gradient estimates that of the objective; its number means nothing.
    """

    value: Tensor
    surrogate: Tensor


class ObjectiveLike(Protocol):
    """The part of :class:`guides.Objective` that programs run; see there."""

    num_particles: int
    warmup: int

    @property
    def reparameterised_only(self) -> bool:
        """The gradient is right only if every draw of the guide can be reparameterised."""

    @property
    def weighs_choices(self) -> bool:
        """The value and its gradient are right for guides that hold mixtures among other parts."""

    def particle(
        self, model: Callable[..., Any], guide: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> dict[str, Tensor]:
        """Return what one draw of the guide contributes."""

    def combine(self, particles: dict[str, Tensor], step: Tensor) -> Estimate:
        """Turn the particles' contributions into an estimate."""

    def summing(self, sums: Any) -> ObjectiveLike:
        """Return the objective for a guide that marks discrete draws of its own, to have them summed out."""
