"""One run of ``python -m benchmarks speed``: everything that was asked for, measured and written as it comes in."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.running.provenance import commit, machine
from benchmarks.running.store import write_atomically
from benchmarks.speed import extras, scaling
from benchmarks.speed.cases import CASES, Case
from benchmarks.speed.contenders import CONTENDERS
from benchmarks.speed.measure import Ask, Effort, measure
from benchmarks.speed.sides import find_numpyro, numpyro_side, torch_side

__all__ = ["QUICK_CASES", "Request", "read", "run", "save"]

QUICK_CASES = ("bnn", "eight_schools")


@dataclass(frozen=True)
class Request:
    """What to measure.

    :param cases: names of cases.
    :param contenders: names of contenders.
    :param effort: how long.
    :param quick: a first look, with fewer points and repetitions.
    :param axes: axes to scale along.
    :param second_start: also time the second start of a compiled fit.
    :param memory: also measure peak memory.
    :param table1_splits: also time the suite ``table1`` with that many splits; 0 does not.
    :param threads: PyTorch's threads everywhere, instead of what each case wants.
    :param numpyro_python: an interpreter with NumPyro; this one if left out.
    :param command: the command line, for the record.
    """

    cases: tuple[str, ...]
    contenders: tuple[str, ...]
    effort: Effort = field(default_factory=Effort)
    quick: bool = False
    axes: tuple[str, ...] = ()
    second_start: bool = True
    memory: bool = True
    table1_splits: int = 0
    threads: int | None = None
    numpyro_python: str | None = None
    command: str = ""

    def case(self, case: Case) -> Case:
        """Return a case with the threads that were asked for."""
        return case if self.threads is None else replace(case, threads=self.threads)


def run(request: Request, path: Path, progress: bool = True) -> dict[str, Any]:
    """Measure what is asked for and return the result, which is also written to ``path`` after every part.

    :raises Failure: if the interpreter named for NumPyro has none.
    :raises UnknownNameError: for a case or contender that does not exist.
    """
    contenders = [CONTENDERS[name] for name in request.contenders]
    cases = [request.case(CASES[name]) for name in request.cases]
    numpyro = find_numpyro(request.numpyro_python)
    grown = {axis: [(v, request.case(c)) for v, c in scaling.along(axis, request.quick)] for axis in request.axes}
    growing = [c for c in contenders if c.name in scaling.GROWING]
    extra = request.second_start + request.memory + bool(request.table1_splits)
    units = 1 + request.effort.rounds
    count = sum(c.runs(case) for case in cases for c in contenders)
    count += sum(c.runs(case) for points in grown.values() for _, case in points for c in growing)
    result: dict[str, Any] = {
        "kind": "speed",
        "schema": 1,
        "command": request.command,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine("cpu") | {"load_at_start": _load()},
        **commit(),
        "quick": request.quick,
        "effort": {"rounds": request.effort.rounds, "seconds_per_block": request.effort.seconds},
        "finished": False,
        "cases": {},
        "scaling": {},
    }
    with _bar(count * units + extra, progress) as tick:
        with _sides(numpyro, result) as sides:
            for case in cases:
                result["cases"][case.name] = measure(case, contenders, sides, request.effort, tick)
                save(result, path)
            if any(case.device == "cuda" for case in cases):
                result["gpu"] = sides["torch"]("throughput")
            shorter = replace(request.effort, rounds=max(1, request.effort.rounds // 2), trained=0.3)
            for axis, points in grown.items():
                result["scaling"][axis] = []
                for value, case in points:
                    measured = measure(case, growing, sides, shorter, partial(_faster, tick, shorter, request.effort))
                    result["scaling"][axis].append({"value": value, **measured})
                    save(result, path)
        for name, wanted, work in (
            ("second_start", request.second_start, lambda: extras.second_start(1 if request.quick else 3)),
            ("memory", request.memory, lambda: extras.memory([CASES["vae"]] if request.quick else None)),
            ("table1", request.table1_splits, lambda: extras.table1(request.table1_splits)),
        ):
            if wanted:
                tick(name, 0)
                result[name] = work()
                save(result, path)
                tick(name, 1)
    result["machine"]["load_at_end"] = _load()
    result["ended"] = datetime.now(UTC).isoformat(timespec="seconds")
    result["finished"] = True
    save(result, path)
    return result


def _faster(tick: Any, shorter: Effort, usual: Effort, what: str, count: int) -> None:
    """Count units of a shorter effort as those of the usual one, that the progress bar was made for."""
    tick(what, round(count * (1 + usual.rounds) / (1 + shorter.rounds), 3))


@contextmanager
def _sides(numpyro: str | None, result: dict[str, Any]) -> Iterator[Mapping[str, Ask]]:
    """Start the processes and note their versions."""
    with ExitStack() as stack:
        # Caches of their own and empty: what was compiled before would make "s to start" too short.
        cache = stack.enter_context(tempfile.TemporaryDirectory())
        environment = {"GUIDES_CACHE": cache, "TORCHINDUCTOR_CACHE_DIR": cache}
        sides: dict[str, Ask] = {"torch": stack.enter_context(torch_side(environment))}
        if numpyro:
            sides["numpyro"] = stack.enter_context(numpyro_side(numpyro))
        facts = {name: side("facts") for name, side in sides.items()}
        result["versions"] = {k: v for found in reversed(facts.values()) for k, v in found["versions"].items()}
        result["machine"]["gpu"] = facts["torch"]["gpu"]
        yield sides


@contextmanager
def _bar(total: int, shown: bool) -> Iterator[Any]:
    with tqdm(total=total, disable=not shown, bar_format="{l_bar}{bar}| {elapsed}<{remaining}") as bar:

        def tick(what: str, count: float) -> None:
            bar.set_description(what, refresh=not count)
            bar.update(count)

        yield tick


def _load() -> float | None:
    """Return how many processes wanted to run in the last minute, on average."""
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):
        return None


def save(result: Mapping[str, Any], path: Path) -> None:
    """Write a result as JSON."""
    text = json.dumps(_rounded(result), indent=1) + "\n"
    write_atomically(path, partial(Path.write_text, data=text, encoding="utf-8"))


def read(path: Path) -> dict[str, Any] | None:
    """Return a result that :func:`save` wrote, ``None`` if there is none."""
    if not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(entry) for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_rounded(entry) for entry in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value
