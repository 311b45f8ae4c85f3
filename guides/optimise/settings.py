"""How to optimise: the one object that says so, checked when it is made."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from guides.compile.executable import COMPILE_MODES
from guides.errors import OptionError, check_known, check_whole
from guides.optimise.precision import products_in
from guides.program.checks import check_batch_size
from guides.program.data import Data
from guides.program.progress import shows_progress

__all__ = ["Settings"]

_STEPS = 2000


@dataclass(frozen=True)
class Settings:
    """How to optimise; see :func:`guides.fit` for the meaning of each.

    :ivar begun: steps of an earlier fit that this one goes on from; the schedule is that of the others.
    :ivar by_default: nobody asked for this number of steps.
    """

    steps: int
    batch_size: int | None
    lr: float
    optimizer: str = "adam"
    schedule: str | Callable[[float], float] = "constant"
    clip_norm: float | None = None
    patience: int | None = None
    validation_samples: int = 16
    compile: str = "auto"
    precision: str = "float32"
    progress: bool = False
    begun: int = 0
    by_default: bool = False

    @classmethod
    def of(
        cls,
        data: Data,
        validated: bool = False,
        *,
        steps: int | None = None,
        epochs: int | None = None,
        batch_size: int | None = None,
        lr: float = 1e-2,
        optimizer: str = "adam",
        schedule: str | Callable[[float], float] = "constant",
        clip_norm: float | None = None,
        patience: int | None = None,
        compile: str = "auto",
        precision: str = "float32",
        progress: bool | None = None,
    ) -> Settings:
        """Return the settings that a user asked for, for a fit to ``data``.

        :param validated: there are validation data.
        :raises OptionError: for a value that makes no sense, a batch size that the data do not allow, or patience without
            validation data.
        """
        for name, value, least in (("steps", steps, 0), ("epochs", epochs, 1), ("patience", patience, 1)):
            if value is not None:
                check_whole(name, value, least=least)
        check_known("compile", compile, COMPILE_MODES)
        products_in(precision)
        if steps is not None and epochs is not None:
            raise OptionError("give either steps or epochs, not both")
        if not (isinstance(lr, int | float) and lr > 0 and math.isfinite(lr)):
            raise OptionError(f"lr must be positive and finite, not {lr!r}")
        if clip_norm is not None and not clip_norm > 0:
            raise OptionError(f"clip_norm must be positive, not {clip_norm!r}")
        rows = check_batch_size(batch_size, data)
        if patience is not None and not validated:
            raise OptionError("patience needs validation data: pass validation=0.1, or a tuple of tensors")
        if epochs is not None:
            wanted = epochs * (math.ceil(data.size / rows) if rows else 1)
        else:
            wanted = _STEPS if steps is None else steps
        return cls(
            steps=wanted,
            batch_size=rows,
            lr=lr,
            optimizer=optimizer,
            schedule=schedule,
            clip_norm=clip_norm,
            patience=patience,
            compile=compile,
            precision=precision,
            progress=shows_progress(progress),
            by_default=steps is None and epochs is None,
        )
