"""What the command line says before anything runs: what there is and what it is for, and what a run would do."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.running.runner import Plan
from benchmarks.running.store import ResultsFolder

__all__ = ["described", "expected", "purpose"]

_USE = re.compile(r"\*{1,2}When(?: to use)?[.:]\*{1,2}(.+?)(?=\*{1,2}When|\n\s*\n|\Z)", re.DOTALL)


def described(entries: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield the name of every entry, what it is, and what it is for (empty where its docstring does not say)."""
    for name, entry in entries.items():
        yield name, _first_line(entry), purpose(entry)


def _first_line(entry: Any) -> str:
    """Return what an entry says of itself in one line."""
    summary = getattr(entry, "summary", None)
    if isinstance(summary, str):
        return summary
    text = (getattr(entry, "__doc__", None) or "").strip()
    return text.splitlines()[0] if text else ""


def purpose(entry: Any) -> str:
    """Return the sentence of an entry's docstring on when to use it, without markup, or nothing.

    Example::

        >>> def guide(): '''A guide.
        ...
        ...     **When:** the first guide to try. **When not:** several modes.'''
        >>> purpose(guide)
        'the first guide to try'
    """
    found = _USE.search(getattr(entry, "__doc__", None) or "")
    if found is None:
        return ""
    plain = re.sub(r":\w+:`~?([^`]+)`", lambda m: m[1].rpartition(".")[2], found[1]).replace("`", "")
    return " ".join(plain.split()).rstrip(".")


def expected(work: Plan, out: Path) -> Iterator[str]:
    """Yield what a run would do: cells by task and guide, how many are there already, and how long the others may take.

    Minutes are those of finished cells of the same protocol, in this results folder and those beside it.

    :param out: the results folder of the run.
    """
    took: dict[tuple[str, str], list[float]] = {}
    for folder in sorted({out, *(p.parent for p in out.parent.glob("*/manifest.json"))}):
        for record in ResultsFolder(folder).records():
            pair = (record["task"], record["guide"])
            setting, seconds = work.settings.get(pair), record["metrics"].get("seconds")
            if setting is not None and setting.hash == record.get("protocol") and isinstance(seconds, int | float):
                took.setdefault(pair, []).append(float(seconds))
    present = ResultsFolder(out).done()
    total, unknown = 0.0, 0
    for task, guide in work.settings:
        cells = [cell for cell in work.cells if (cell.task, cell.guide) == (task, guide)]
        missing = [cell for cell in cells if cell not in present]
        each = took.get((task, guide))
        total += fmean(each) * len(missing) if each else 0.0
        unknown += 0 if each else len(missing)
        there = f", {len(cells) - len(missing)} there already" if len(missing) < len(cells) else ""
        time = f"about {fmean(each):.1f} s each" if each else "time not known"
        yield f"{task}  {guide}: {len(cells)} cell{'s' if len(cells) > 1 else ''}{there}, {time}"
    for (task, guide), reason in work.skipped.items():
        yield f"{task}  {guide}: not run: {reason}"
    known = f"about {total / 60:.1f} minutes of one core" if total else "no earlier cells to tell the time by"
    rest = f", and {unknown} cells of unknown time" if unknown and total else ""
    yield f"{len(work.cells)} cells into {out}: {known}{rest}. Nothing was run."
