"""Pictures of posteriors over the plane, with the guides' contours on top."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.data import densities
from benchmarks.data.densities import SHOWN, plane
from benchmarks.reporting.pictures.drawing import INK, Picture, colour, done, guides_of, new_figure, tasks_of
from benchmarks.running.store import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["DENSITY_PICTURES"]

LEVELS = (0.05, 0.25, 0.6)


def _planes(records: Sequence[Record], folder: Path) -> Figure | None:
    """Draw one row for each density and one column for each guide: exact draws grey, contours or draws of the guide."""
    import numpy as np

    having = [record for record in done(records) if record.get("curves", {}).get("plane")]
    tasks, guides = tasks_of(having), guides_of(having)
    if not tasks:
        return None
    figure = new_figure(figsize=(min(12.0, 0.8 + 1.9 * len(guides)), 0.6 + 1.9 * len(tasks)))
    panels = figure.subplots(len(tasks), len(guides), sharex=True, sharey=True, squeeze=False)
    axes_of = plane().reshape(SHOWN, SHOWN, 2).numpy()
    for row, task in zip(panels, tasks):
        exact = densities.REFERENCES[task]().draws[:1000].numpy()
        row[0].set_ylabel(task)
        for axes, guide in zip(row, guides):
            axes.plot(*exact.T, ".", color="#bbbbbb", ms=1.5)
            found = next((r for r in having if r["task"] == task and r["guide"] == guide), None)
            if task == tasks[0]:
                axes.set_title(guide, color=INK)
            if found is None:
                continue
            shown: dict[str, Any] = found["curves"]["plane"]
            if "log_density" in shown:
                heights = np.array(shown["log_density"]).reshape(SHOWN, SHOWN)
                heights = np.exp(heights - heights.max())
                axes.contour(
                    axes_of[..., 0], axes_of[..., 1], heights, levels=LEVELS, colors=[colour(guide)], linewidths=1.0
                )
            else:
                axes.plot(*np.array(shown["draws"]).T, "x", color=colour(guide), ms=4)
    return figure


DENSITY_PICTURES: tuple[Picture, ...] = (
    Picture(
        "densities",
        "Posteriors with several modes",
        "Exact draws in grey; on top, contours of each guide's density at 5, 25 and 60 % of its height, or its points.",
        _planes,
    ),
)
