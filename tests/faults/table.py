"""All faults, and the table of them in docs/reliability.md."""

from __future__ import annotations

from collections import Counter

from . import cache, files, plugins, runs  # noqa: F401  # file their faults
from .harness import FAULTS, ROOT, Fault, Outcome

__all__ = ["ALL", "publish"]

ALL = FAULTS
PAGE = ROOT / "docs" / "reliability.md"
_BEGIN, _END = "<!-- begin:faults -->", "<!-- end:faults -->"


def publish(outcomes: list[tuple[Fault, Outcome]]) -> None:
    """Write the faults that were tried into the table of the page, in the place of what it said of them."""
    page = PAGE.read_text()
    before, rest = page.split(_BEGIN)
    old, after = rest.split(_END)
    known = {line.rsplit(" | ", 2)[0]: line for line in old.splitlines() if line.startswith("| ")}
    for one, outcome in outcomes:
        word = f"skipped: {outcome.why}" if outcome.word == "skipped" else outcome.word
        known[f"| {one.part} | {one.what}"] = f"| {one.part} | {one.what} | {one.right} | {word} |"
    rows = [known[key] for one in ALL if (key := f"| {one.part} | {one.what}") in known]
    counts = Counter(row.rsplit(" | ", 1)[1].split()[0].rstrip(":") for row in rows)
    head = f"{len(rows)} faults tried: {counts['held']} held, {counts['failed']} failed, {counts['skipped']} skipped."
    lines = ["", head, "", "| part | fault | what has to happen | |", "| --- | --- | --- | --- |", *rows, ""]
    PAGE.write_text(before + _BEGIN + "\n".join(lines) + _END + after)
