"""A training and what a family makes of where it ended."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from guides.errors import InterruptedFitWarning, NonFiniteLossWarning
from guides.families.base import Family, FitContext
from guides.optimise.loop import Trained
from guides.optimise.settings import Settings
from guides.optimise.state import Resume
from guides.program.data import Data
from guides.program.program import Program

__all__ = ["Run", "finished", "finishes", "warn_of"]


@dataclass(frozen=True)
class Run:
    """What a posterior keeps of the training that it came from, to train on: everything that the training was given, and the
    state that it ended in.

    :ivar program: as it was trained, with what the objective learns for itself, before the family made a posterior of it.
    :ivar pilot_gradients: evaluations of the model's gradient before the training; see ``precondition`` of a fit.
    """

    program: Program
    datasets: list[Data]
    validations: list[Data] | None
    seeds: list[int]
    settings: Settings
    resume: Resume
    pilot_gradients: int = 0

    def row(self, index: int) -> Run:
        """Return that of one replicate."""
        row = slice(index, index + 1)
        validations = None if self.validations is None else self.validations[row]
        return replace(
            self,
            datasets=self.datasets[row],
            validations=validations,
            seeds=self.seeds[row],
            resume=self.resume.rows(row),
        )


def finishes(program: Program) -> bool:
    """Tell whether the guide's family makes a posterior of the optimum."""
    return isinstance(program.guide, Family) and type(program.guide).finish is not Family.finish


def finished(
    program: Program, flat: Tensor, datasets: list[Data], seeds: list[int]
) -> tuple[Program, Tensor, tuple[dict[str, Any], ...]]:
    """Let the family turn each replicate's optimum ``flat`` into a posterior, if it wants to.

    :returns: the program of the posterior, its parameters, and what the family has to say about each fit.
    """
    guide = program.guide
    if not isinstance(guide, Family) or not finishes(program):
        return program, flat, tuple({} for _ in seeds)
    ends = [guide.finish(FitContext(program, row, data, seed)) for row, data, seed in zip(flat, datasets, seeds)]
    done = Program.build(program.model, ends[0].guide, program.objective, datasets[0], batch_size=None, seed=0)
    return done, torch.stack([done.parameters.flatten(end.parameters) for end in ends]), tuple(end.info for end in ends)


def warn_of(trained: Trained, settings: Settings, stacklevel: int) -> None:
    """Warn of replicates that stopped at a loss that is not finite, and of an interruption."""
    for r, reason in enumerate(trained.stop_reasons):
        if "not finite" in reason:
            which = f"replicate {r}: " if len(trained.stop_reasons) > 1 else ""
            warnings.warn(f"{which}{reason}", NonFiniteLossWarning, stacklevel=stacklevel)
    if trained.interrupted:
        done = f"{int(trained.steps.max())} of {settings.steps} steps"
        what = f"the fit was interrupted after {done}; this is its state then"
        warnings.warn(what, InterruptedFitWarning, stacklevel=stacklevel)
