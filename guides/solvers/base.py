"""What solvers share: a normal over the unconstrained space, found without a learning rate or a number of steps."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from guides.density.density import LogDensity
from guides.density.method import Method
from guides.families.base import FlatFamily
from guides.families.full_rank import FullRank

__all__ = ["Solution", "Solver"]


@dataclass(frozen=True)
class Solution:
    """The normal that a solver found.

    :ivar loc: mean, ``(D,)``.
    :ivar root: lower Cholesky factor of the covariance, ``(D, D)``, or standard deviations, ``(D,)``.
    :ivar reason: why it stopped, in words.
    :ivar converged: it stopped by itself.
    :ivar iterations: of its optimiser.
    :ivar gradients: evaluations of the log density with its gradient.
    :ivar products: products of the log density's Hessian with a vector.
    :ivar info: what else the user should know.
    """

    loc: np.ndarray
    root: np.ndarray
    reason: str
    converged: bool
    iterations: int
    gradients: int
    products: int = 0
    info: Mapping[str, Any] = field(default_factory=dict)

    def values(self) -> dict[str, Tensor]:
        """Return the parameters of the solver's guide at which it is what was found, by the last part of their names."""
        loc, root = torch.from_numpy(self.loc), torch.from_numpy(self.root)
        if root.dim() == 1:
            return {"loc": loc, "scale": root}
        scale = root.diagonal()
        return {"loc": loc, "scale": scale, "scale_tril": root / scale[:, None]}


@dataclass(frozen=True, kw_only=True)
class Solver(Method):
    """Finds a normal approximation on a log density and stops by itself; its fields are its options."""

    kind: ClassVar[str] = "guide"
    because: ClassVar[str] = "which stops by itself and has options of its own"
    instead: ClassVar[Mapping[str, str]] = {"steps": "max_iterations=", "replicates": "seed= in several fits"}

    def check_size(self, size: int) -> None:
        """Check that a space of so many dimensions is none too many.

        :raises OptionError: saying what to do.
        """

    def guide(self, model: Callable[..., Any]) -> FlatFamily:
        """Return the guide that a solution becomes, before its parameters are set; one normal by default."""
        return FullRank(model)

    @abstractmethod
    def run(self, density: LogDensity, start: np.ndarray, seed: int) -> Solution:
        """Find the normal.

        :param start: a point ``(D,)`` where the density and its gradient are finite.
        """
