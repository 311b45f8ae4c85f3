"""The picture of posterior intervals: one row for each scalar latent, one colour for each guide, the truth in black."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.evaluation.predictions import QUANTILES
from benchmarks.protocol.task import TASKS
from benchmarks.reporting.pictures.drawing import (
    INK,
    MARKERS,
    colour,
    done,
    find_task,
    guides_of,
    new_figure,
    slot,
    tasks_of,
)
from benchmarks.running.store import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["forest"]


def forest(records: Sequence[Record], folder: Path) -> Figure | None:
    """Forest plot of posterior intervals: one row for each scalar latent, one colour for each guide, the truth in black."""
    found = [record for record in done(records) if record.get("posterior") and _forest_sites(record["task"])]
    names = tasks_of(found)
    if not names:
        return None
    mine = [record for record in found if record["task"] == names[0]]
    first = {guide: next(record for record in mine if record["guide"] == guide) for guide in guides_of(mine)}
    rows = {guide: _intervals(folder / record["posterior"], _forest_sites(names[0])) for guide, record in first.items()}
    rows = {guide: intervals for guide, intervals in rows.items() if intervals}
    if not rows:
        return None
    exact: Any = next((record["curves"]["exact"] for record in mine if record["curves"].get("exact")), {})
    truth = {
        name: [level[index] for level in levels]
        for site, levels in exact.items()
        for index, name in enumerate(_scalars(site, len(levels[0])))
    }
    shown = {**({"exact": truth} if truth else {}), **rows}
    latents = list(dict.fromkeys(name for intervals in rows.values() for name in intervals))
    figure = new_figure(figsize=(8.5, 1.0 + 0.11 * len(latents) * max(len(shown), 4)))
    axes = figure.subplots()
    for index, (guide, intervals) in enumerate(shown.items()):
        tint = INK if guide == "exact" else colour(guide)
        marker = "|" if guide == "exact" else MARKERS[slot(guide)]
        for row, name in enumerate(latents):
            if name not in intervals:
                continue
            height = row + (index - (len(shown) - 1) / 2) * 0.8 / max(len(shown), 2)
            low, quarter, middle, three, high = intervals[name]
            axes.plot([low, high], [height] * 2, color=tint, lw=1.0, solid_capstyle="butt")
            axes.plot([quarter, three], [height] * 2, color=tint, lw=2.8, solid_capstyle="butt")
            axes.plot(middle, height, marker=marker, ms=4, color=tint, mec=tint if guide == "exact" else "white", mew=0.5)
    for row in range(len(latents) - 1):
        axes.axhline(row + 0.5, color="#e3e3e3", lw=0.8)
    reference = [*(truth or next(iter(rows.values()))).values()]
    low, high = min(part[0] for part in reference), max(part[-1] for part in reference)
    axes.set_xlim(low - 0.35 * (high - low), high + 0.5 * (high - low))  # intervals of guides far off run out of the picture
    axes.set_yticks(range(len(latents)), latents)
    axes.set_ylim(len(latents) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"{TASKS[names[0]].target}: median with 50 % and 95 % intervals")
    from matplotlib.lines import Line2D

    keys = [
        Line2D([], [], color=INK, lw=2, label="exact")
        if guide == "exact"
        else Line2D([], [], color=colour(guide), marker=MARKERS[slot(guide)], lw=2, ms=4, label=guide)
        for guide in shown
    ]
    figure.legend(handles=keys, loc="outside lower center", ncols=min(len(keys), 8))
    return figure


def _forest_sites(name: str) -> tuple[str, ...]:
    task = find_task(name)
    return task.forest if task else ()


def _scalars(site: str, count: int) -> list[str]:
    """Return a name for each scalar of a site."""
    return [site] if count == 1 else [f"{site}[{index}]" for index in range(count)]


def _intervals(path: Path, sites: Sequence[str]) -> dict[str, list[float]]:
    """Return the five quantiles of each scalar of the sites in a kept posterior; nothing if its file is gone or damaged."""
    import numpy as np
    import xarray

    found: dict[str, list[float]] = {}
    if not path.exists():
        return found
    try:
        opened = xarray.open_dataset(path, group="posterior", engine="h5netcdf")
    except (OSError, KeyError, ValueError):  # a file that is damaged: the other guides are drawn all the same
        return found
    with opened as posterior:
        for site in sites:
            if site in posterior.data_vars:
                drawn = posterior[site].stack(joint=("chain", "draw")).transpose("joint", ...).values
                flat = drawn.reshape(len(drawn), -1)
                for index, name in enumerate(_scalars(site, flat.shape[1])):
                    found[name] = np.quantile(flat[:, index], QUANTILES).tolist()
    return found
