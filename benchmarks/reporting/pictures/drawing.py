"""What all pictures share: colours and style, and which records they show."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.protocol.task import TASKS, Task
from benchmarks.running.store import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "DASHES",
    "INK",
    "MARKERS",
    "STYLE",
    "Picture",
    "colour",
    "done",
    "find_task",
    "grid",
    "guides_of",
    "new_figure",
    "slot",
    "styled",
    "tasks_of",
]

# Okabe and Ito's colours, which readers with any colour vision can tell apart; guides also differ by marker and dash.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6b6b6b", "#8c510a")
MARKERS = "osD^vPXh"
DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))
ORDER = ("mean_field", "map", "laplace", "full_rank", "low_rank", "ensemble", "dropout", "amortized", "semi_amortized")
INK = "#222222"

STYLE: Any = {
    "figure.dpi": 110,
    "savefig.dpi": 150,
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.labelcolor": INK,
    "axes.edgecolor": "#888888",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
    "figure.constrained_layout.use": True,
}


@dataclass(frozen=True)
class Picture:
    """One picture of the report.

    :param name: its file name without ending.
    :param title: the report's heading above it.
    :param caption: what to see in it.
    :param draw: ``draw(records, folder)`` returns the figure, or ``None`` where the records have nothing to show.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[Sequence[Record], Path], Figure | None]


def slot(guide: str) -> int:
    """Return a guide's place in the palette: fixed for known ones, by its letters for others."""
    name = guide.partition(":")[0]
    return (ORDER.index(name) if name in ORDER and guide == name else sum(map(ord, guide))) % len(PALETTE)


def colour(guide: str) -> str:
    """Return the colour that a guide has in every picture."""
    return PALETTE[slot(guide)]


@contextmanager
def styled() -> Iterator[None]:
    """Draw in our style, leaving the caller's matplotlib settings alone."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        yield


def new_figure(**settings: Any) -> Figure:
    """Return a figure that belongs to no window."""
    from matplotlib.figure import Figure

    return Figure(**settings)


def done(records: Sequence[Record]) -> list[Record]:
    """Return the records of cells that finished."""
    return [record for record in records if record.get("status") == "done"]


def tasks_of(records: Sequence[Record]) -> list[str]:
    """Return the names of the records' tasks, in order."""
    return list(dict.fromkeys(record["task"] for record in records))


def find_task(name: str) -> Task | None:
    """Return the task of that name, if this version still has it."""
    return TASKS.get(name)


def guides_of(records: Sequence[Record]) -> list[str]:
    """Return the records' guides, those of this project first."""
    found = dict.fromkeys(record["guide"] for record in records)
    return sorted(found, key=lambda guide: (ORDER.index(guide) if guide in ORDER else len(ORDER), guide))


def grid(count: int, across: int = 4) -> tuple[int, int]:
    """Return rows and columns for so many panels."""
    columns = min(across, count) if count <= across or count > 2 * across else math.ceil(count / 2)
    return math.ceil(count / columns), columns
