"""Pictures of mixtures for single images: what components draw, and which images use how many."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.reporting.pictures.drawing import DASHES, MARKERS, Picture, colour, done, new_figure, slot
from benchmarks.reporting.pictures.images import draw_sheets, tile
from benchmarks.running.store import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ADAPTIVE_PICTURES"]


def _rows_of(key: str) -> Any:
    """Return a picture with a sheet for each guide, in it a row for each image."""

    def draw(records: Sequence[Record], folder: Path) -> Figure | None:
        return draw_sheets(
            records,
            folder,
            (key,),
            lambda images: tile(images[key].reshape(-1, *images[key].shape[2:]), images[key].shape[1]),
        )

    return draw


def _by_digit(records: Sequence[Record], folder: Path) -> Figure | None:
    """Draw mean components run and effective components against the digit."""
    having = _mixtures(records)
    if not having:
        return None
    figure = new_figure(figsize=(9.5, 3.8))
    panels = figure.subplots(1, 2, sharey=True)
    for axes, name, words in zip(panels, ("run", "effective"), ("components run", "effective components, exp H[π]")):
        for record in having:
            found, guide = record["curves"]["components"], record["guide"]
            style: Any = {"color": colour(guide), "marker": MARKERS[slot(guide)], "ls": DASHES[slot(guide)]}
            axes.plot(found["classes"], found[name], ms=5, lw=1.1, label=guide, **style)
        axes.set(title=words, xlabel="digit")
        axes.set_xticks(having[0]["curves"]["components"]["classes"])
    panels[0].set_ylabel("mean over test images")
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2)
    return figure


def _against_modes(records: Sequence[Record], folder: Path) -> Figure | None:
    """Draw effective components of single images against the modes that gradient ascent finds there."""
    having = _mixtures(records)
    if not having:
        return None
    figure = new_figure(figsize=(9.5, 3.6))
    axes = figure.subplots()
    for place, record in enumerate(having):
        found, guide = record["curves"]["modes"], record["guide"]
        levels = sorted(set(found["modes"]))
        means = [
            _mean(used for modes, used in zip(found["modes"], found["effective"]) if modes == level) for level in levels
        ]
        shift = 0.5 * (place / len(having) - 0.5)
        at = [modes + shift for modes in found["modes"]]
        axes.plot(at, found["effective"], MARKERS[slot(guide)], ms=3, color=colour(guide), alpha=0.4, mew=0)
        axes.plot([level + shift for level in levels], means, color=colour(guide), ls=DASHES[slot(guide)], label=guide)
    axes.set(xlabel="modes of p(z | x) that gradient ascent finds", ylabel="effective components, exp H[π]")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def _mixtures(records: Sequence[Record]) -> list[Record]:
    """Return the first cell of each guide of several components."""
    found: dict[tuple[str, str], Record] = {}
    for record in done(records):
        if record.get("curves", {}).get("modes"):
            found.setdefault((record["task"], record["guide"]), record)
    return list(found.values())


def _mean(values: Any) -> float:
    listed = list(values)
    return sum(listed) / len(listed)


ADAPTIVE_PICTURES: tuple[Picture, ...] = (
    Picture(
        "component_samples",
        "What components draw",
        "Each row: a test image, then one decoded draw of each component of its posterior. White where a component did not "
        "run; components may run and have next to no weight.",
        _rows_of("component_samples"),
    ),
    Picture(
        "ambiguous",
        "Half a one and half a seven",
        "Each row: a one, the seven nearest to it, and an image between them, with every pixel that differs taken "
        "from either with probability one half; then the decoded mean of every component of its posterior. A single normal "
        "has one answer.",
        _rows_of("ambiguous"),
    ),
    Picture(
        "components_by_digit",
        "Components by digit",
        "How many components the posterior of a test image has, mean over the images of each digit.",
        _by_digit,
    ),
    Picture(
        "components_and_modes",
        "Components and modes",
        "One mark for each of 100 test images, lines through the means. Modes are counted without the guide: by gradient "
        "ascent of log p(x, z) from draws of the prior, places within 7 nats of the highest.",
        _against_modes,
    ),
)
"""Every picture of mixtures for single images, in the report's order."""
