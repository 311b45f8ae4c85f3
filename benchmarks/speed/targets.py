"""What the engine must reach, and whether it does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.speed.measure import paired_ratio

__all__ = ["TARGETS", "Target", "Verdict", "judge"]


@dataclass(frozen=True)
class Target:
    """A demand on a ratio of times or on a number of seconds.

    :param work: what is done.
    :param against: what it is compared with, empty for plain seconds.
    :param case: the case of a ratio, or the section of the result file that holds the number.
    :param ours: our contender; empty for plain numbers.
    :param other: theirs.
    :param unit: ``"x faster"`` (their time over ours, more is better), ``"x its time"`` (ours over theirs, less is better),
        ``"s"``, or ``"x eager"`` (less is better).
    :param at_least: what is demanded.
    :param goal: what is hoped for.
    """

    work: str
    against: str
    case: str
    ours: str
    other: str
    unit: str
    at_least: float
    goal: float

    def reached(self, value: float, bound: float) -> bool:
        """Tell whether a value is on the right side of a bound."""
        return value >= bound if self.unit == "x faster" else value <= bound


TARGETS: tuple[Target, ...] = (
    Target("BNN step", "Pyro SVI.step", "bnn", "ours_loop", "pyro", "x faster", 50, 120),
    Target(
        "BNN step, one step per call", "NumPyro jitted update", "bnn", "ours_step", "numpyro_update", "x its time", 0.5, 0.3
    ),
    Target("BNN, chunk of steps", "NumPyro lax.scan", "bnn", "ours_loop", "numpyro_scan", "x its time", 0.8, 0.4),
    Target(
        "BNN x 20 replicates, per replicate-step",
        "NumPyro vmap + lax.scan",
        "bnn20",
        "ours_loop",
        "numpyro_scan",
        "x its time",
        0.8,
        0.5,
    ),
    Target("eight schools", "NumPyro lax.scan", "eight_schools", "ours_loop", "numpyro_scan", "x its time", 1.0, 0.5),
    Target("VAE step", "PyTorch by hand, eager", "vae", "ours_loop", "torch", "x faster", 1.5, 1.7),
    Target("VAE step", "NumPyro jitted update", "vae", "ours_loop", "numpyro_update", "x its time", 1.25, 1.0),
    Target("the whole of table1, wall time with compilation", "", "table1", "", "", "s", 60, 30),
    Target("second start of a compiled fit in a new process", "", "second_start", "", "", "s", 3, 1),
    Target("peak memory of a compiled step", "the eager step", "memory", "", "", "x eager", 1.3, 1.0),
)


@dataclass(frozen=True)
class Verdict:
    """What was measured for a target, and what follows.

    :param value: the median; ``None`` if it was not measured.
    :param low: lower quartile over rounds; ``None`` for plain numbers.
    :param high: upper quartile.
    :param outcome: ``"goal"``, ``"met"``, ``"missed"``, ``"not measured"``, or ``"not comparable"`` if the two did not reach
        the same loss.
    :param why: what a reader of the outcome has to know.
    """

    target: Target
    value: float | None
    low: float | None
    high: float | None
    outcome: str
    why: str = ""


def judge(result: Mapping[str, Any], target: Target) -> Verdict:
    """Compare what was measured with a target.

    :param result: the result file's content.
    """
    if not target.ours:
        value = (result.get(target.case) or {}).get("value")
        return Verdict(target, value, None, None, _outcome(target, value))
    measured = result["cases"].get(target.case)
    ratio = None
    if measured is not None:
        pair = (target.other, target.ours) if target.unit == "x faster" else (target.ours, target.other)
        ratio = paired_ratio(measured, *pair)
    if measured is None or ratio is None:
        return Verdict(target, None, None, None, "not measured")
    apart = [name for name in (target.ours, target.other) if name in measured["agreement"]["disagreeing"]]
    notes = measured["contenders"][target.ours].get("notes")
    why = f"fell back: {notes[0]}" if notes else ""
    if apart:
        why = f"the loss of {' and '.join(apart)} is not that of the others"
    outcome = "not comparable" if apart else _outcome(target, ratio["median"])
    return Verdict(target, ratio["median"], ratio["low"], ratio["high"], outcome, why)


def _outcome(target: Target, value: float | None) -> str:
    if value is None:
        return "not measured"
    if target.reached(value, target.goal):
        return "goal"
    return "met" if target.reached(value, target.at_least) else "missed"
