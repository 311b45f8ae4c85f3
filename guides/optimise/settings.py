"""The options of a fit, checked as soon as they are given and completed once the data are known."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass

from guides.compile.executable import COMPILE_MODES
from guides.errors import OptionError, check_known, check_whole
from guides.objectives.base import Objective
from guides.optimise.loop import Settings
from guides.optimise.precision import products_in
from guides.program.checks import check_batch_size
from guides.program.data import Data
from guides.registries import objectives

__all__ = ["FitOptions", "make_objective"]


@dataclass(frozen=True)
class FitOptions:
    """Options that :func:`guides.fit` and :func:`guides.fit_many` share; see :func:`guides.fit` for each.

    :raises OptionError: for a value that makes no sense.
    """

    objective: str | Objective = "elbo"
    steps: int | None = None
    epochs: int | None = None
    batch_size: int | None = None
    lr: float = 1e-2
    optimizer: str = "adam"
    schedule: str | Callable[[float], float] = "constant"
    clip_norm: float | None = None
    num_particles: int | None = None
    patience: int | None = None
    compile: str = "auto"
    precision: str = "float32"
    progress: bool | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "epochs", "patience", "num_particles"):
            value = getattr(self, name)
            if value is not None:
                check_whole(name, value, least=0 if name == "steps" else 1)
        check_known("compile", self.compile, COMPILE_MODES)
        products_in(self.precision)
        if self.steps is not None and self.epochs is not None:
            raise OptionError("give either steps or epochs, not both")
        if not (isinstance(self.lr, int | float) and self.lr > 0 and math.isfinite(self.lr)):
            raise OptionError(f"lr must be positive and finite, not {self.lr!r}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise OptionError(f"clip_norm must be positive, not {self.clip_norm!r}")

    def settings(self, data: Data, validated: bool) -> Settings:
        """Return the settings of the optimisation of a fit to ``data``.

        :param validated: there are validation data.
        :raises OptionError: for a batch size that the data do not allow, or patience without validation data.
        """
        batch_size = check_batch_size(self.batch_size, data)
        if self.patience is not None and not validated:
            raise OptionError("patience needs validation data: pass validation=0.1, or a tuple of tensors")
        steps = self.steps if self.steps is not None else 2000
        if self.epochs is not None:
            steps = self.epochs * (math.ceil(data.size / batch_size) if batch_size else 1)
        return Settings(
            steps=steps,
            batch_size=batch_size,
            lr=self.lr,
            optimizer=self.optimizer,
            schedule=self.schedule,
            clip_norm=self.clip_norm,
            patience=self.patience,
            compile=self.compile,
            precision=self.precision,
            progress=sys.stderr.isatty() if self.progress is None else self.progress,
        )


def make_objective(objective: str | Objective, num_particles: int | None) -> Objective:
    """Return the objective of that name with ``num_particles`` draws per step (or its own number), or the objective itself.

    :raises OptionError: for something that is neither, or particles given twice.
    """
    if isinstance(objective, str):
        return objectives[objective]() if num_particles is None else objectives[objective](num_particles=num_particles)
    if not isinstance(objective, Objective):
        known = ", ".join(objectives)
        raise OptionError(f"objective must be a name ({known}) or a guides.Objective, not {type(objective).__name__}")
    if num_particles is not None:
        raise OptionError("num_particles is set in the objective object already; pass it there only")
    return objective
