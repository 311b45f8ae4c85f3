"""The report's and the README's pictures, drawn from records and kept posteriors alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.protocol.task import TASKS
from benchmarks.reporting.metrics import metric
from benchmarks.reporting.pictures.adaptive import ADAPTIVE_PICTURES
from benchmarks.reporting.pictures.densities import DENSITY_PICTURES
from benchmarks.reporting.pictures.drawing import (
    DASHES,
    INK,
    MARKERS,
    Picture,
    colour,
    done,
    find_task,
    grid,
    guides_of,
    new_figure,
    slot,
    styled,
    tasks_of,
)
from benchmarks.reporting.pictures.forest import forest
from benchmarks.reporting.pictures.images import IMAGE_PICTURES
from benchmarks.reporting.tables import estimate, standings, values
from benchmarks.running.store import Record, write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["PICTURES", "README", "write"]


def _band(axes: Axes, record: Record, tint: str) -> None:
    """Draw the predictive median with its central 50 and 95 % bands, and the data, on ``axes``."""
    bands = record["curves"]["bands"]
    x, q = bands["x"], bands["quantiles"]
    axes.fill_between(x, q["0.025"], q["0.975"], color=tint, alpha=0.18, lw=0, label="95 % of predictions")
    axes.fill_between(x, q["0.25"], q["0.75"], color=tint, alpha=0.38, lw=0, label="50 %")
    axes.plot(x, q["0.5"], color=tint, lw=1.8, label="median")
    if bands.get("truth"):
        axes.plot(x, bands["truth"], color=INK, lw=1.0, ls=(0, (4, 2)), label="true curve")
    points = bands["points"]
    axes.plot(points["x"], points["y"], "o", ms=2.6, color=INK, alpha=0.55, mew=0, label="training data")


def _banded(records: Sequence[Record], task: str) -> dict[str, Record]:
    """Return the first record with bands of each guide on a task."""
    found: dict[str, Record] = {}
    for record in done(records):
        if record["task"] == task and record.get("curves", {}).get("bands"):
            found.setdefault(record["guide"], record)
    return {guide: found[guide] for guide in guides_of(list(found.values()))}


def _bands(records: Sequence[Record], task: str, guides: Sequence[str] | None, across: int) -> Figure | None:
    found = _banded(records, task)
    shown = [guide for guide in (guides or found) if guide in found]
    if not shown or (guides and len(shown) < len(guides)):
        return None
    rows, columns = grid(len(shown), across)
    figure = new_figure(figsize=(min(11.5, 3.0 + 2.9 * columns), 0.8 + 2.5 * rows))
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    titles = {"map": "map: a plain net", "mean_field": "mean_field: Bayes by Backprop"} if guides else {}
    for place, guide in zip(axes.flat, shown):
        _band(place, found[guide], colour(guide))
        place.set_title(titles.get(guide, guide))
    for place in axes.flat[len(shown) :]:
        place.set_axis_off()
    points = found[shown[0]]["curves"]["bands"]["points"]["y"]
    low, high = min(points), max(points)
    margin = 0.75 * (high - low)
    axes.flat[0].set_ylim(low - margin, high + margin)
    definition = find_task(task)
    for column in range(columns):
        lowest = max(index for index in range(len(shown)) if index % columns == column)
        axes.flat[lowest].set_xlabel("input x")
        axes.flat[lowest].tick_params(labelbottom=True)
    for row in axes:
        row[0].set_ylabel(definition.target if definition else "y")
    handles, names = axes.flat[0].get_legend_handles_labels()
    if len(shown) < axes.size:
        axes.flat[len(shown)].legend(handles, names, loc="center left")
    else:
        figure.legend(handles, names, loc="outside lower center", ncols=len(names))
    return figure


def _blundell(records: Sequence[Record], folder: Path) -> Figure | None:
    return _bands(records, "blundell_curve", ("mean_field", "map"), 2)


def _gap(records: Sequence[Record], folder: Path) -> Figure | None:
    return _bands(records, "foong_gap", None, 4)


def _curve_grid(
    records: Sequence[Record], key: str, draw: Callable[[Axes, str, list[Record]], bool], width: float = 3.3
) -> tuple[Figure, Any] | None:
    """Draw one set of axes for each task that has ``key`` among its curves, one call of ``draw`` for each guide."""
    having = [record for record in done(records) if record.get("curves", {}).get(key)]
    tasks = tasks_of(having)
    if not tasks:
        return None
    rows, columns = grid(len(tasks), 3)
    figure = new_figure(figsize=(min(11.5, 0.6 + width * columns), 0.7 + 2.7 * rows))
    axes = figure.subplots(rows, columns, squeeze=False)
    handles: dict[str, Any] = {}
    for place, task in zip(axes.flat, tasks):
        place.set_title(task)
        for guide in guides_of(having):
            mine = [record for record in having if record["task"] == task and record["guide"] == guide]
            if mine and draw(place, guide, mine):
                handles.setdefault(guide, place.lines[-1])
    for place in axes.flat[len(tasks) :]:
        place.set_axis_off()
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(len(handles), 8))
    return figure, axes


def _mean_columns(mine: list[Record], key: str, name: str) -> list[float]:
    rows = [record["curves"][key][name] for record in mine]
    return [estimate(column).mean for column in zip(*rows)]


def _calibration(records: Sequence[Record], folder: Path) -> Figure | None:
    def draw(axes: Axes, guide: str, mine: list[Record]) -> bool:
        stated = _mean_columns(mine, "calibration", "stated")
        observed = _mean_columns(mine, "calibration", "observed")
        if not any(line.get_label() == "_ideal" for line in axes.lines):
            axes.plot([0, 1], [0, 1], color="#999999", lw=1, label="_ideal")
            axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
            axes.set_xlabel(mine[0]["curves"]["calibration"].get("stated_is", "stated probability"))
            axes.set_ylabel("observed share")
        pairs = [(s, o) for s, o in zip(stated, observed) if not (math.isnan(s) or math.isnan(o))]
        index = slot(guide)
        axes.plot(*zip(*pairs), color=colour(guide), marker=MARKERS[index], ms=3.6, ls=DASHES[index], lw=1.3)
        return True

    drawn = _curve_grid(records, "calibration", draw)
    return drawn[0] if drawn else None


def _losses(records: Sequence[Record], folder: Path) -> Figure | None:
    def draw(axes: Axes, guide: str, mine: list[Record]) -> bool:
        trace = mine[0]["curves"]["loss"]
        pairs = [(s, v) for s, v in zip(trace["step"], trace["value"]) if v is not None]
        if len(pairs) < 2:
            return False
        axes.plot(*zip(*pairs), color=colour(guide), ls=DASHES[slot(guide)], lw=1.3)
        axes.set(xlabel="optimisation step", ylabel="loss (nats)", xscale="log")
        return True

    drawn = _curve_grid(records, "loss", draw)
    if drawn is None:
        return None
    figure, axes = drawn
    from matplotlib.ticker import MaxNLocator

    for place in axes.flat:
        later = [sorted(line.get_ydata()[len(line.get_ydata()) // 10 :]) for line in place.lines]
        if later:
            # the descent from a random start and single wild steps would flatten what one reads a trace for
            low = min(float(part[0]) for part in later)
            high = max(float(part[int(0.97 * (len(part) - 1))]) for part in later)
            span = high - low or 1.0
            place.set_ylim(low - 0.05 * span, high + 0.15 * span)
            place.yaxis.set_major_locator(MaxNLocator(5))
    return figure


def _khat(records: Sequence[Record], folder: Path) -> Figure | None:
    having = [record for record in done(records) if record["metrics"].get("khat") is not None]
    tasks, guides = tasks_of(having), guides_of(having)
    if not tasks:
        return None
    figure = new_figure(figsize=(9.0, 1.1 + 0.5 * len(tasks)))
    axes = figure.subplots()
    top = 1.5
    axes.axvspan(-1, 0.5, color="#009E73", alpha=0.10, lw=0)
    axes.axvspan(0.5, 0.7, color="#E69F00", alpha=0.14, lw=0)
    axes.axvspan(0.7, top + 1, color="#D55E00", alpha=0.10, lw=0)
    for row, task in enumerate(tasks):
        for index, guide in enumerate(guides):
            found = values(having, task, guide, "khat")
            if not found:
                continue
            height = row + (index - (len(guides) - 1) / 2) * 0.72 / max(len(guides), 2)
            for value in found.values():
                beyond = value > top
                axes.plot(
                    min(value, top),
                    height,
                    marker=">" if beyond else MARKERS[slot(guide)],
                    ms=5.5,
                    color=colour(guide),
                    alpha=0.8,
                    mew=0,
                    clip_on=False,
                )
    from matplotlib.lines import Line2D

    keys = [Line2D([], [], color=colour(g), marker=MARKERS[slot(g)], ls="", ms=5.5, label=g) for g in guides]
    low = min((record["metrics"]["khat"] for record in having), default=0.0)
    axes.set(xlim=(min(-0.1, max(low - 0.1, -1.0)), top), ylim=(len(tasks) - 0.5, -0.5))
    axes.set_yticks(range(len(tasks)), tasks)
    axes.set_xlabel(f"Pareto k-hat of the importance weights ({top:g} and beyond: arrows at the edge)")
    for x, word in ((0.25, "good"), (0.6, "usable"), (1.1, "unreliable")):
        axes.text(x, 1.01, word, transform=axes.get_xaxis_transform(), ha="center", fontsize=8.5, color="#555555")
    figure.legend(handles=keys, loc="outside lower center", ncols=min(len(keys), 8))
    return figure


def _scores(records: Sequence[Record], folder: Path) -> Figure | None:
    """Forest plot of the decisive metric: difference to the best guide of each task, with two standard errors."""
    shown: list[tuple[str, str, dict[str, Any]]] = []
    for name in tasks_of(done(records)):
        task = find_task(name)
        if task is None:
            continue
        measure = metric(task.metrics[0])
        results = {guide: values(records, name, guide, measure.name) for guide in guides_of(records)}
        results = {guide: found for guide, found in results.items() if found}
        if len(results) > 1 and measure.better != "none":
            shown.append((name, measure.label + (f" ({measure.unit})" if measure.unit else ""), results))
    if not shown:
        return None
    rows, columns = grid(len(shown), 3)
    most = max(len(results) for _, _, results in shown)
    figure = new_figure(figsize=(min(11.5, 0.8 + 3.7 * columns), 0.5 + rows * (0.9 + 0.24 * most)))
    axes = figure.subplots(rows, columns, squeeze=False)
    for place, (name, label, results) in zip(axes.flat, shown):
        task = TASKS[name]
        ranks = standings(results, metric(task.metrics[0]))
        gaps: list[float] = []
        for row, guide in enumerate(results):
            difference = ranks[guide].difference
            mean = difference.mean if difference.count else 0.0
            error = 0.0 if math.isnan(difference.error) else difference.error
            gaps.append(mean)
            place.errorbar(
                mean, row, xerr=2 * error, fmt=MARKERS[slot(guide)], ms=5, color=colour(guide), lw=1.4, capsize=2.5
            )
        place.axvline(0, color="#999999", lw=1)
        place.set_yticks(range(len(results)), list(results))
        place.set_ylim(len(results) - 0.5, -0.5)
        usual = sorted(gaps)[max(0, math.ceil(0.7 * len(gaps)) - 1)]
        if usual > 0 and max(gaps) > 8 * usual:
            place.set_xlim(-0.5 * usual, 4 * usual)
            for row, gap in enumerate(gaps):
                if gap > 4 * usual:
                    place.text(3.9 * usual, row, f"{gap:.3g} →", va="center", ha="right", fontsize=8, color="#555555")
        place.set_title(name)
        place.set_xlabel(f"behind the best, {label}", fontsize=8.5)
    for place in axes.flat[len(shown) :]:
        place.set_axis_off()
    return figure


PICTURES: tuple[Picture, ...] = (
    *ADAPTIVE_PICTURES,
    *IMAGE_PICTURES,
    *DENSITY_PICTURES,
    Picture(
        "blundell_bands",
        "Knowing what one does not know: Blundell's curve",
        "The same network on the same points. Bayes by Backprop widens where there are no data; the plain net, one set of "
        "weights with its noise estimate, is as sure there as anywhere.",
        _blundell,
    ),
    Picture(
        "gap_bands",
        "Between two clusters of data: Foong's gap",
        "A posterior that knows what it has not seen opens between the clusters, as the linearised Laplace does. With one "
        "hidden layer of ReLU units, mean-field and dropout cannot (Foong et al. 2020 prove it); a full covariance could, "
        "but needs far more optimisation to get there.",
        _gap,
    ),
    Picture(
        "scores",
        "Guides side by side",
        "Each task's decisive metric as the difference to its best guide, paired over splits and seeds; bars are two "
        "standard errors. Left is better.",
        _scores,
    ),
    Picture(
        "khat",
        "Can the posterior be trusted?",
        "One mark for each cell. The k-hat of the importance weights of the true posterior against the guide: it sees "
        "wrong shapes and unfinished optimisation, and is blind to modes that the guide never visits.",
        _khat,
    ),
    Picture(
        "calibration",
        "Calibration on held-out data",
        "Regression: the share of targets inside central intervals. Classification: accuracy against confidence. On the "
        "diagonal, probabilities mean what they say; below it, the guide is too sure of itself.",
        _calibration,
    ),
    Picture(
        "forest",
        "Posteriors of eight schools",
        "Treatment effects and hyperparameters of the non-centred model, beside the exact posterior by quadrature. MAP and "
        "ensembles have no width; the mode that Laplace starts from is not where the mass is.",
        forest,
    ),
    Picture(
        "losses",
        "Loss traces",
        "The first cell of each guide, smoothed in 200 blocks. Objectives differ between guides (a MAP loss has no KL "
        "term), so shapes compare and levels may not.",
        _losses,
    ),
)
"""Every picture, in the report's order."""

README: tuple[str, ...] = ("blundell_bands", "gap_bands", "forest")
"""The pictures that the README shows."""


def write(records: Sequence[Record], folder: Path, out: Path, names: Sequence[str] | None = None) -> list[Path]:
    """Draw pictures into ``out`` as PNG files and return their paths, leaving out those without data.

    :param records: the cells.
    :param folder: the results folder, for kept posteriors.
    :param out: where the files go.
    :param names: which pictures; default all.
    """
    paths = []
    with styled():
        for picture in PICTURES:
            if names is not None and picture.name not in names:
                continue
            figure = picture.draw(records, folder)
            if figure is None:
                continue
            path = out / f"{picture.name}.png"
            write_atomically(path, partial(figure.savefig, format="png"))
            paths.append(path)
    return paths
