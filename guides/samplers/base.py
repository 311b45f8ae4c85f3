"""What samplers share: their options, and what they return."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from guides.density.density import LogDensity
from guides.density.method import Method, Start
from guides.errors import OptionError, check_whole

__all__ = ["Chains", "Sampler", "Start", "check_share"]


@dataclass(frozen=True)
class Chains:
    """What a sampler drew, in the unconstrained space.

    :ivar points: ``(C, S, D)``, C chains of S draws after the warm-up.
    :ivar statistics: by ArviZ's names, ``(C, S)`` each: ``diverging``, ``energy``, ``step_size``, ``n_steps``, ...
    :ivar gradients: evaluations of the gradient in all, those of the warm-up too.
    """

    points: np.ndarray
    statistics: Mapping[str, np.ndarray]
    gradients: int


@dataclass(frozen=True, kw_only=True)
class Sampler(Method):
    """A Markov chain sampler on a log density; its fields are its options.

    :param draws: kept per chain.
    :param tune: steps per chain before those, in which it adapts itself; they are not kept.
    :param chains: independent chains; R-hat needs at least two.
    :raises OptionError: for a value that makes no sense.
    """

    kind: ClassVar[str] = "sampler"
    because: ClassVar[str] = "which draws and does not optimise"
    instead: ClassVar[Mapping[str, str]] = {
        "replicates": "chains=",
        "steps": "draws= and tune=",
        "epochs": "draws= and tune=",
    }

    draws: int = 1000
    tune: int = 1000
    chains: int = 4

    def __post_init__(self) -> None:
        check_whole("draws", self.draws, least=4)
        check_whole("tune", self.tune, least=1)
        check_whole("chains", self.chains, least=1)

    @abstractmethod
    def run(self, density: LogDensity, start: Start, seed: int, progress: bool) -> Chains:
        """Draw.

        :param start: gives a chain its first point ``(D,)``, where the density is finite, by a number of the chain's own, as
            chains ask in any order.
        """


def check_share(name: str, value: Any) -> None:
    """Check that an option is a number between 0 and 1.

    :raises OptionError: saying what it is instead.
    """
    if not isinstance(value, int | float) or not 0 < value < 1:
        raise OptionError(f"{name} must be between 0 and 1, not {value!r}")
