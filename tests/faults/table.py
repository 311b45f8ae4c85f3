"""All faults, and the table of them in docs/reliability.md."""

from __future__ import annotations

from . import cache, files, plugins, runs  # noqa: F401  # file their faults
from .harness import FAULTS, ROOT, Fault, Outcome

__all__ = ["ALL", "publish"]

ALL = FAULTS
PAGE = ROOT / "docs" / "reliability.md"
_BEGIN, _END = "<!-- begin:faults -->", "<!-- end:faults -->"


def publish(outcomes: list[tuple[Fault, Outcome]]) -> None:
    """Write the table into the page, between its marks."""
    rows = ["| part | fault | what has to happen | |", "| --- | --- | --- | --- |"]
    rows += [f"| {one.part} | {one.what} | {one.right} | {outcome.word} |" for one, outcome in outcomes]
    held = sum(outcome.word == "held" for _, outcome in outcomes)
    skipped = [f"{one.what}: {outcome.why}" for one, outcome in outcomes if outcome.word == "skipped"]
    head = f"{len(outcomes)} faults tried, {held} held, {len(outcomes) - held - len(skipped)} failed"
    head += f", {len(skipped)} could not be tried here ({'; '.join(skipped)})." if skipped else "."
    page = PAGE.read_text()
    before, rest = page.split(_BEGIN)
    _, after = rest.split(_END)
    PAGE.write_text("\n".join([before + _BEGIN, head, "", *rows, _END]) + after)
