"""What goes into a cell and what comes out: the data of a split, and an evaluation of a posterior on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

__all__ = ["Curve", "Evaluation", "Evaluator", "Split"]


@dataclass(frozen=True)
class Curve:
    """Where and on what to draw predictive bands of a task with one input.

    :param inputs: what the model is called with, shape ``(G, 1)``, standardised as the training inputs are.
    :param x: the same inputs in original units, shape ``(G,)``.
    :param points: training inputs and targets in original units, each of shape ``(N,)``.
    :param truth: the noise-free curve at ``x``, shape ``(G,)``, where it is known.
    """

    inputs: Tensor
    x: Tensor
    points: tuple[Tensor, Tensor]
    truth: Tensor | None = None


@dataclass(frozen=True)
class Split:
    """The data of one cell, standardised as the protocol says.

    :param train: what the model is called with, e.g. ``(x, y)`` of shapes ``(N, D)`` and ``(N,)``.
    :param test: the same for held-out points; ``None`` where a task has none.
    :param validation: the same for early stopping, taken from the training part only; ``None`` for none.
    :param target_scale: what one unit of ``y`` is in the original target's units (its standard deviation over the
        training part), so that ``rmse * target_scale`` and ``log_likelihood - log(target_scale)`` are in original units.
    :param target_shift: the original target's value where ``y`` is 0.
    :param curve: what the report draws predictive bands on; ``None`` for no picture.
    :param labels: classes of the test points that no model sees, shape ``(N,)``, for what is said class by class.
    """

    train: tuple[Tensor, ...]
    test: tuple[Tensor, ...] | None = None
    validation: tuple[Tensor, ...] | None = None
    target_scale: float = 1.0
    target_shift: float = 0.0
    curve: Curve | None = None
    labels: Tensor | None = None

    @property
    def shape(self) -> tuple[Any, ...]:
        """Shapes of everything a fit sees: splits that agree here can be fitted in one vectorised run."""

        def shapes(data: tuple[Tensor, ...] | None) -> tuple[tuple[int, ...], ...] | None:
            return None if data is None else tuple(tuple(part.shape) for part in data)

        return shapes(self.train), shapes(self.validation)


@dataclass(frozen=True)
class Evaluation:
    """What an evaluator found.

    :param metrics: numbers by metric name (see :mod:`benchmarks.reporting.metrics`).
    :param curves: what the report draws, JSON-ready, by kind: ``"bands"``, ``"calibration"``.
    :param verdict: level and summary, of ``diagnose`` or, where every data point has a posterior of its own, of those.
    :param images: what image models drew, by kind, grey levels in [0, 1], shape ``(..., height, width)``; kept in a file of
        their own.
    """

    metrics: dict[str, float]
    curves: dict[str, Any] = field(default_factory=dict)
    verdict: dict[str, str] = field(default_factory=dict)
    images: dict[str, Tensor] = field(default_factory=dict)


class Evaluator(Protocol):
    """How a task turns a posterior into numbers; a module-level function or a partial of one."""

    def __call__(self, posterior: Any, split: Split, *, num_samples: int, seed: int) -> Evaluation:
        """Evaluate ``posterior`` on the held-out part of ``split``."""
