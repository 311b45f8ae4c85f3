"""A verdict on the loss trace: converged, still improving, diverged, or too noisy to tell."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from guides.diagnostics.finding import (
    DrawsLike,
    Finding,
    Level,
    PosteriorLike,
    Undefined,
    diagnostics_registry,
)

__all__ = ["Convergence", "Status", "Trend", "convergence", "loss_trend"]

Status = Literal["converged", "improving", "worsening", "diverged", "noisy", "short"]

_BATCHES = 20
_SHORTEST = 2 * _BATCHES  # steps in the window
_STANDARD_ERRORS = 3.0
_NEGLIGIBLE = 0.1  # nats over the window
_HIDDEN = 1.0  # nats over the window that the noise may hide without our calling the trace noisy
_HIDDEN_SHARE = 0.02  # the same as a share of the descent, and of the loss
_NOT_FINITE = "not finite"  # in the stop reason of a restart that was rewound to its last finite parameters
_ORDER: tuple[Status, ...] = ("converged", "short", "noisy", "improving", "worsening", "diverged")


@dataclass(frozen=True)
class Trend:
    """The last part of one loss trace, in nats.

    :param status: the verdict on this trace.
    :param window: number of last steps that the test looked at.
    :param gain: fall of the loss over the window (negative when it rose); what a second window of the same
        length would bring at most, if the descent goes on slowing down.
    :param standard_error: of ``gain``, allowing for autocorrelation.
    :param per_1000_steps: the same fall, per 1000 steps.
    :param noise: standard deviation of single losses around the trend.
    """

    status: Status
    window: int
    gain: float
    standard_error: float
    per_1000_steps: float
    noise: float


@dataclass(frozen=True, kw_only=True)
class Convergence(Finding):
    """The trend of every restart's loss, and the worst verdict among them.

    :param status: the worst over restarts.
    :param trends: one :class:`Trend` per restart.
    :param steps: optimisation steps.
    :param losses: (R, steps), nats.
    """

    title: ClassVar[str] = "loss trace"
    status: Status
    trends: tuple[Trend, ...]
    steps: int
    losses: Tensor

    def rows(self) -> list[tuple[str, str]]:
        """Return the verdict with the gain over the last window and the noise beside it."""
        worst = max(self.trends, key=lambda trend: _ORDER.index(trend.status))
        gain = f"gain {worst.gain:.3g} ± {worst.standard_error:.2g} nats"
        figures = f"{gain} in the last {worst.window} of {self.steps} steps"
        return [(self.title, f"{self.status}  ({figures}; noise {worst.noise:.3g})")]


def loss_trend(losses: Tensor) -> Trend:
    r"""Test one loss trace for a trend in its last third.

    The window is cut into 20 batches of consecutive steps; a line is fitted to the batch medians, which
    single wild losses do not move. The slope's standard error comes from the residuals and is widened by
    :math:`\sqrt{(1 + \rho) / (1 - \rho)}` where they have a lag-one autocorrelation :math:`\rho > 0`.

    ``improving`` or ``worsening``: the change over the window exceeds three standard errors and 0.1 nats.
    ``noisy``: two standard errors above the estimate, the improvement could still be more than one nat and more than 2 % of
    the descent or of the loss, whichever is smaller. ``converged``: neither. ``diverged``: the trace ends in NaN or
    infinity. ``short``: fewer than 40 steps in the window.

    :param losses: (steps,), nats. Smaller is better.

    Example::

        >>> loss_trend(torch.linspace(100.0, 0.0, 3000)).status
        'improving'
    """
    losses = losses.detach().double().cpu()
    if not losses.numel() or not torch.isfinite(losses[-1]):
        status: Status = "diverged" if losses.numel() else "short"
        return Trend(status, losses.numel(), math.nan, math.nan, math.nan, math.nan)
    losses = losses[torch.isfinite(losses)]
    window = losses.numel() if losses.numel() <= _SHORTEST else max(_SHORTEST, losses.numel() // 3)
    window -= window % _BATCHES
    if window < _SHORTEST:
        return Trend("short", losses.numel(), math.nan, math.nan, math.nan, math.nan)
    last = losses[-window:]
    batches = last.reshape(_BATCHES, -1)
    slope, error = _line(batches.median(-1).values)
    gain, error = -slope * _BATCHES, error * _BATCHES
    steps = torch.arange(window, dtype=last.dtype)
    around = last - last.mean() + gain / window * (steps - steps.mean())
    noise = float(around.abs().median()) * 1.4826
    descent = max(float(losses[: max(1, losses.numel() // 20)].median() - last.median()), 0.0)
    status = "converged"
    if abs(gain) > max(_STANDARD_ERRORS * error, _NEGLIGIBLE):
        status = "improving" if gain > 0 else "worsening"
    elif max(gain, 0.0) + 2 * error > max(_HIDDEN, _HIDDEN_SHARE * min(descent, abs(float(last.median())))):
        status = "noisy"
    return Trend(status, window, gain, error, gain * 1000 / window, noise)


def _line(y: Tensor) -> tuple[float, float]:
    x = torch.arange(y.numel(), dtype=y.dtype)
    x = x - x.mean()
    slope = (x @ y) / (x @ x)
    residual = y - y.mean() - slope * x
    power = residual @ residual
    error = (power / (y.numel() - 2) / (x @ x)).sqrt()
    if power > 0:
        rho = ((residual[1:] @ residual[:-1]) / power).clamp(0.0, 0.9)
        error = error * ((1 + rho) / (1 - rho)).sqrt()
    return float(slope), float(error)


@diagnostics_registry.register("convergence")
def convergence(posterior: PosteriorLike, draws: DrawsLike) -> Finding:
    """Say in words whether the optimisation is done; see :func:`loss_trend` for the test.

    **Blind spot.** A flat loss is no proof of a good optimum: a learning rate that is too small, or a
    plateau, looks converged. R-hat over restarts is the check.

    :param posterior: its ``losses`` (R, steps; NaN after a restart has stopped), ``stop_reasons`` and ``validation`` are
        read.
    :param draws: not used.
    """
    losses = torch.atleast_2d(torch.as_tensor(posterior.losses))
    if not losses.numel():
        return Undefined(label=Convergence.title, level="unknown", text="not defined: this guide was not optimised")
    reasons = posterior.stop_reasons
    trends = tuple(loss_trend(_until_stop(row, reason)) for row, reason in zip(losses, reasons, strict=True))
    worst = max(trends, key=lambda trend: _ORDER.index(trend.status))
    level, text, advice = _verdict(worst)
    if worst.status == "diverged":
        text = next((reason for reason in reasons if _NOT_FINITE in reason), text)
    validated = torch.as_tensor(getattr(posterior, "validation", ())).numel() > 0
    if validated and worst.status in ("improving", "worsening"):
        level, advice = "unknown", ""
        text += ", but the parameters were chosen by validation, on purpose"
    return Convergence(
        level=level,
        text=text,
        advice=advice,
        status=worst.status,
        trends=trends,
        steps=losses.shape[-1],
        losses=losses.detach().cpu(),
    )


def _until_stop(losses: Tensor, reason: str) -> Tensor:
    """Return the losses up to the step at which a restart stopped, or to the loss that was not finite."""
    finite = losses.isfinite().nonzero()
    last = int(finite[-1]) + 1 if len(finite) else 0
    return losses[: last + 1] if _NOT_FINITE in reason else losses[:last]


def _verdict(trend: Trend) -> tuple[Level, str, str]:
    rate = abs(trend.per_1000_steps)
    per_1000 = f"{f'{rate:.2g}' if rate < 100 else f'{rate:,.0f}'} nats per 1000 steps"
    match trend.status:
        case "converged":
            return "good", f"the loss has converged (last {trend.window} steps: {trend.gain:.2g} nats)", ""
        case "improving":
            return "usable", f"the loss is still improving by about {per_1000}", "train longer"
        case "worsening":
            return "usable", f"the loss is getting worse by about {per_1000}", "lower the learning rate"
        case "diverged":
            return (
                "unreliable",
                "the loss ends in NaN or infinity",
                "lower the learning rate, or clip gradients",
            )
        case "noisy":
            return (
                "unknown",
                f"the loss is too noisy to tell (noise {trend.noise:.2g} nats a step)",
                "use more particles, larger batches or a lower learning rate",
            )
        case _:
            return "unknown", f"the loss trace of {trend.window} steps is too short to judge", "train longer"
