"""Time implementations side by side: interleaved blocks of steps, medians, and a check that all compute the same."""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.speed.cases import Case, draw
from benchmarks.speed.contenders import Contender
from benchmarks.speed.sides import Failure

__all__ = ["Effort", "Measured", "agreement", "measure", "paired_ratio", "spread"]

Ask = Callable[..., dict[str, Any]]
Measured = dict[str, Any]
"""A case as the result file has it: ``title``, ``spec``, ``agreement``, and by name ``contenders``."""


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    :param rounds: every contender runs one block of steps in each round.
    :param seconds: about how long a block takes.
    :param trained: the share of a case's ``compared`` steps after which losses are compared.
    """

    rounds: int = 9
    seconds: float = 0.3
    trained: float = 1.0

    @classmethod
    def quick(cls) -> Effort:
        """Return the effort of a first look."""
        return cls(rounds=3, seconds=0.1, trained=0.3)


def measure(
    case: Case,
    contenders: Sequence[Contender],
    sides: Mapping[str, Ask],
    effort: Effort,
    tick: Callable[[str, int], None] = lambda what, count: None,
) -> Measured:
    """Measure a case.

    :param sides: who to ask, by name of the side; a contender whose side is missing is skipped.
    :param tick: called with what is being done and how many units of work are finished; a contender is
        ``1 + effort.rounds`` units.
    :returns: everything measured; a contender that fails has a ``"failed"`` entry with the reason instead of times.
    """
    found: dict[str, dict[str, Any]] = {}
    with _arrays(case) as arrays:
        for contender in (c for c in contenders if c.runs(case)):
            tick(f"{case.name}: {contender.name}, starting", 0)
            side = sides.get(contender.side)
            found[contender.name] = {"label": contender.label}
            if side is None:
                found[contender.name]["skipped"] = f"{contender.side} is not installed"
            else:
                found[contender.name] |= _start(case, contender, side, effort, str(arrays))
            tick(f"{case.name}: {contender.name}", 1 if _ready(found[contender.name]) else 1 + effort.rounds)
        running = [c for c in contenders if _ready(found.get(c.name, {"skipped": ""}))]
        for turn in range(effort.rounds):
            # Another order in every round, so that nobody always follows the same neighbour.
            first = turn % max(1, len(running))
            for contender in running[first:] + running[:first]:
                entry = found[contender.name]
                if _ready(entry):
                    _block(case, contender, sides[contender.side], entry)
                tick(f"{case.name}: {contender.name}", 1)
        for contender in running:
            sides[contender.side]("close", key=contender.name)
    for entry in found.values():
        if _ready(entry):
            entry["microseconds"] |= spread(entry["microseconds"]["blocks"])
    return {"title": case.title, "spec": case.spec, "agreement": agreement(found), "contenders": found}


def _ready(entry: Mapping[str, Any]) -> bool:
    return "failed" not in entry and "skipped" not in entry


@contextmanager
def _arrays(case: Case) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "arrays.npz"
        np.savez(path, **draw(case))  # type: ignore[arg-type]
        yield path


def _start(case: Case, contender: Contender, side: Ask, effort: Effort, arrays: str) -> dict[str, Any]:
    """Build a contender, let it train, and find out how many steps make a block."""
    try:
        opened = side("open", key=contender.name, case=case.spec, arrays=arrays, contender=contender.name)
        losses = side("train", key=contender.name, steps=max(8, round(effort.trained * case.compared)))["losses"]
        steps = opened["steps"]
        once = max(1e-9, side("time", key=contender.name, steps=steps)["seconds"])
    except Failure as failure:
        return {"failed": str(failure)}
    block = steps * max(1, round(effort.seconds / once))
    last = losses[-max(4, len(losses) // 4) :]
    return {
        "seconds_to_start": opened["seconds"],
        "steps_per_call": steps,
        "notes": opened["notes"],
        "loss": {
            "first": losses[0],
            "last": statistics.fmean(last),
            "se": statistics.stdev(last) / math.sqrt(len(last)),
            "steps": len(losses),
        },
        "microseconds": {"blocks": [], "steps_per_block": block},
    }


def _block(case: Case, contender: Contender, side: Ask, entry: dict[str, Any]) -> None:
    times = entry["microseconds"]
    try:
        seconds = side("time", key=contender.name, steps=times["steps_per_block"])["seconds"]
    except Failure as failure:
        entry["failed"] = str(failure)
        return
    times["blocks"].append(1e6 * seconds / times["steps_per_block"] / case.replicates)


def spread(numbers: Sequence[float]) -> dict[str, float]:
    """Return median and quartiles.

    Example::

        >>> spread([3.0, 1.0, 2.0])
        {'median': 2.0, 'low': 1.5, 'high': 2.5}
    """
    low, middle, high = np.quantile(numbers, [0.25, 0.5, 0.75])
    return {"median": float(middle), "low": float(low), "high": float(high)}


def paired_ratio(measured: Measured, over: str, under: str) -> dict[str, float] | None:
    """Return median and quartiles of the ratio of two contenders' times, taken round by round.

    What a busy machine does to a round, it does to both. ``None`` if either was not measured.
    """
    blocks = [measured["contenders"].get(name, {}).get("microseconds", {}).get("blocks", []) for name in (over, under)]
    if not all(blocks) or len(blocks[0]) != len(blocks[1]):
        return None
    return spread([a / b for a, b in zip(*blocks)])


def agreement(found: Mapping[str, Mapping[str, Any]], tolerance: float = 0.1) -> dict[str, Any]:
    """Tell whether the contenders' losses agree at the end of their training.

    Everybody starts from the same parameters and sees the same data, but draws noise and minibatches of its own. A loss
    agrees if it is within ``tolerance`` of the median's size or within four standard errors of the median.
    """
    last = {name: entry["loss"] for name, entry in found.items() if "loss" in entry}
    if not last:
        return {"agree": None, "disagreeing": [], "loss": None, "steps": 0}
    middle = statistics.median(loss["last"] for loss in last.values())
    outside = [
        name for name, loss in last.items() if not abs(loss["last"] - middle) <= max(tolerance * abs(middle), 4 * loss["se"])
    ]
    steps = min(loss["steps"] for loss in last.values())
    return {"agree": not outside, "disagreeing": outside, "loss": middle, "steps": steps}
