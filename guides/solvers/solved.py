"""What a solver leaves: a normal over the unconstrained space, as a posterior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Never

from guides.errors import OptionError
from guides.posterior import Posterior

__all__ = ["Solved"]


@dataclass(frozen=True, repr=False)
class Solved(Posterior):
    """A normal that a solver found. It has the methods of :class:`guides.Posterior`; see there.

    :ivar gradients: evaluations of the log density with its gradient.
    :ivar products: products of its Hessian with a vector, which cost two or three gradients each.
    """

    gradients: int = 0
    products: int = 0

    @property
    def evaluations(self) -> int:
        """Evaluations of the model's gradient, and products with its Hessian, together."""
        return self.gradients + self.products

    def continue_(self, steps: int, **options: Any) -> Never:
        """Refuse: a solver stops where there is nothing left to do."""
        raise OptionError(
            f"{self.family!r} stops by itself and is not trained on; fit again with other options, or start another fit "
            "from it: guides.fit(model, posterior.guide, *data)"
        )

    def _content(self) -> dict[str, Any]:
        return {**super()._content(), "solved": {"gradients": self.gradients, "products": self.products}}
