"""Pictures of image models: what they draw, and how much of their latent space they use."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.reporting.pictures.drawing import (
    INK,
    MARKERS,
    Picture,
    colour,
    done,
    find_task,
    grid,
    new_figure,
    slot,
    tasks_of,
)
from benchmarks.running.store import Record, read_images

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["IMAGE_PICTURES", "draw_sheets", "tile"]

ACTIVE = 0.01
HIDDEN = (0.80, 0.88, 0.95)
MOST_COMPLETIONS = 3


def tile(images: Any, columns: int, gap: int = 1) -> Any:
    """Return images of shape ``(n, height, width)``, 8-bit grey levels, as one sheet, black on white.

    :param images: the images.
    :param columns: how many side by side.
    :param gap: white pixels between two images.
    """
    import numpy as np

    count, height, width = images.shape
    rows = -(-count // columns)
    sheet = np.zeros((rows * (height + gap) - gap, columns * (width + gap) - gap), dtype=np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        sheet[top : top + height, left : left + width] = image
    return 255 - sheet


def _show(axes: Axes, sheet: Any) -> None:
    axes.imshow(sheet, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_axis_off()


def _drawn(records: Sequence[Record], folder: Path, *keys: str) -> list[tuple[Record, dict[str, Any]]]:
    """Return the first cell of each task and guide whose images include all of ``keys``."""
    found: dict[tuple[str, str], tuple[Record, dict[str, Any]]] = {}
    for record in done(records):
        pair = (record["task"], record["guide"])
        if pair not in found and record.get("images"):
            images = read_images(folder / record["images"])
            if all(key in images for key in keys):
                found[pair] = (record, images)
    return list(found.values())


def _title(record: Record, *, tasks: int) -> str:
    value = record["metrics"].get("log_px")
    said = "" if value is None else f"\nlog p(x) {value:.1f}".replace("-", "−")
    return (f"{record['task']}\n" if tasks > 1 else "") + record["guide"] + said


def draw_sheets(
    records: Sequence[Record],
    folder: Path,
    keys: tuple[str, ...],
    sheet: Callable[[dict[str, Any]], Any],
    width: float = 4.0,
) -> Figure | None:
    """Draw one sheet of images for each task and guide."""
    found = _drawn(records, folder, *keys)
    if not found:
        return None
    tasks = len(tasks_of([record for record, _ in found]))
    sheets = [sheet(images) for _, images in found]
    rows, columns = grid(len(found), 3)
    tallest = max(one.shape[0] / one.shape[1] for one in sheets)
    lines = 2 + (tasks > 1)
    figure = new_figure(figsize=((width + 0.25) * columns, rows * (width * tallest + 0.2 * lines + 0.1)))
    panels = figure.subplots(rows, columns, squeeze=False, gridspec_kw={"wspace": 0.08})
    for axes, (record, _), one in zip(panels.flat, found, sheets):
        _show(axes, one)
        axes.set_title(_title(record, tasks=tasks), fontsize=9)
    for axes in panels.flat[len(found) :]:
        axes.set_axis_off()
    return figure


def _samples(records: Sequence[Record], folder: Path) -> Figure | None:
    return draw_sheets(records, folder, ("samples",), lambda images: tile(images["samples"], 10))


def _reconstructions(records: Sequence[Record], folder: Path) -> Figure | None:
    import numpy as np

    def sheet(images: dict[str, Any]) -> Any:
        pairs = np.stack([images["originals"], images["reconstructions"]], 1)  # (n, 2, height, width)
        halves = [np.concatenate([half[:, 0], half[:, 1]]) for half in np.array_split(pairs, 2) if len(half)]
        return tile(np.concatenate(halves), len(halves[0]) // 2)

    return draw_sheets(records, folder, ("originals", "reconstructions"), sheet)


def _interpolation(records: Sequence[Record], folder: Path) -> Figure | None:
    def sheet(images: dict[str, Any]) -> Any:
        paths = images["interpolation"]
        return tile(paths.reshape(-1, *paths.shape[2:]), paths.shape[1])

    return draw_sheets(records, folder, ("interpolation",), sheet)


def _manifold(records: Sequence[Record], folder: Path) -> Figure | None:
    def sheet(images: dict[str, Any]) -> Any:
        plane = images["manifold"]
        return tile(plane.reshape(-1, *plane.shape[2:]), plane.shape[1])

    return draw_sheets(records, folder, ("manifold",), sheet, width=5.5)


def _completions(records: Sequence[Record], folder: Path) -> Figure | None:
    """For each task: what is given, the truth, and what each guide makes of it."""
    found = _drawn(records, folder, "truth", "mask", "completions")
    names = tasks_of([record for record, _ in found])
    if not names:
        return None
    shown = {name: [(record, images) for record, images in found if record["task"] == name] for name in names}
    rows, columns = grid(len(names), 2)
    lines = max(2 + sum(min(len(images["completions"]), MOST_COMPLETIONS) for _, images in mine) for mine in shown.values())
    wide = max(mine[0][1]["truth"].shape[0] for mine in shown.values())
    width = 5.4
    figure = new_figure(figsize=(width * columns, rows * (width * 0.82 * lines / wide + 0.45)))
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes, name in zip(panels.flat, names):
        _completed(axes, shown[name])
        task = find_task(name)
        axes.set_title(task.target if task else name)
    for axes in panels.flat[len(names) :]:
        axes.set_axis_off()
    return figure


def _completed(axes: Axes, mine: Sequence[tuple[Record, dict[str, Any]]]) -> None:
    import numpy as np

    truth, mask = mine[0][1]["truth"], mine[0][1]["mask"] > 0
    given = _on_paper(truth)
    given[:, ~mask] = HIDDEN
    labels, strips = ["given", "truth"], [given, _on_paper(truth)]
    for record, images in mine:
        draws = images["completions"][:MOST_COMPLETIONS]
        for index, draw in enumerate(draws):
            labels.append("" if index else record["guide"])
            completed = np.where(mask, truth, draw)
            strips.append(_on_paper(completed))
    height, width = mask.shape
    count = len(truth)
    sheet = np.ones((len(strips) * (height + 2), count * (width + 2), 3))
    for row, strip in enumerate(strips):
        for column, image in enumerate(strip):
            top, left = row * (height + 2), column * (width + 2)
            sheet[top : top + height, left : left + width] = image
    axes.imshow(sheet, interpolation="nearest")
    axes.set_yticks([row * (height + 2) + height / 2 for row in range(len(strips))], labels)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.grid(visible=False)
    for side in axes.spines.values():
        side.set_visible(False)


def _on_paper(images: Any) -> Any:
    """Return grey levels as red, green and blue in [0, 1], black on white."""
    import numpy as np

    return np.repeat(1 - images[..., None] / 255.0, 3, axis=-1)


def _panels(names: Sequence[str], height: float) -> tuple[Figure, list[Axes]]:
    """Return a figure with a panel for each task, three in a row."""
    rows, columns = grid(len(names), 3)
    figure = new_figure(figsize=(min(11.5, 1.0 + 3.5 * columns), 0.9 + height * rows))
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    return figure, panels


def _rate_distortion(records: Sequence[Record], folder: Path) -> Figure | None:
    having = [record for record in done(records) if record["metrics"].get("rate") is not None]
    names = tasks_of(having)
    if not names:
        return None
    figure, panels = _panels(names, height=3.0)
    handles: dict[str, Any] = {}
    for axes, name in zip(panels, names):
        for record in having:
            if record["task"] == name:
                guide = record["guide"]
                x, y = record["metrics"]["rate"], record["metrics"]["distortion"]
                (mark,) = axes.plot(x, y, MARKERS[slot(guide)], color=colour(guide), ms=7, mec="white", mew=0.6)
                handles.setdefault(guide, mark)
        _equal_elbos(axes)
        axes.set(title=name, xlabel="rate (nats)", ylabel="distortion (nats)")
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(len(handles), 3))
    return figure


def _equal_elbos(axes: Axes) -> None:
    """Give both axes the same length in nats, and join points of equal ELBO by grey lines."""
    points: Any = [line.get_xydata() for line in axes.lines]
    (left, right), (low, high) = ((min(values), max(values)) for values in zip(*(point[0] for point in points)))
    half = max(0.75 * max(right - left, high - low), 0.5)
    left, right = (left + right) / 2 - half, (left + right) / 2 + half
    low, high = (low + high) / 2 - half, (low + high) / 2 + half
    step = _round(half / 1.5)
    bound = step * math.ceil((left + low) / step)
    while bound < right + high:
        axes.plot([left, right], [bound - left, bound - right], color="#c8c8c8", lw=0.8, zorder=0)
        at = right - 0.06 * half
        if low + 0.1 * half < bound - at < high - 0.05 * half:
            text = f"ELBO {-bound:g}".replace("-", "−")
            axes.text(at, bound - at, text, fontsize=7.5, color="#777777", ha="right", va="top")
        bound += step
    axes.set(xlim=(left, right), ylim=(low, high), aspect="equal")


def _round(step: float) -> float:
    """Return 1, 2 or 5 times a power of ten near ``step``."""
    power = 10.0 ** math.floor(math.log10(max(step, 1e-9)))
    return min((1 * power, 2 * power, 5 * power, 10 * power), key=lambda value: abs(value - step))


def _active_units(records: Sequence[Record], folder: Path) -> Figure | None:
    from matplotlib.ticker import MaxNLocator

    having = [record for record in done(records) if record.get("curves", {}).get("unit_activity")]
    names = tasks_of(having)
    if not names:
        return None
    figure, panels = _panels(names, height=2.8)
    handles: dict[str, Any] = {}
    for axes, name in zip(panels, names):
        seen = set()
        for record in having:
            guide = record["guide"]
            if record["task"] != name or guide in seen:
                continue
            seen.add(guide)
            levels = sorted(record["curves"]["unit_activity"], reverse=True)
            at = range(1, len(levels) + 1)
            (line,) = axes.plot(at, levels, color=colour(guide), marker=MARKERS[slot(guide)], ms=4, lw=1.1)
            handles.setdefault(guide, line)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.axhline(ACTIVE, color=INK, lw=0.9, ls=(0, (4, 2)))
        axes.set(yscale="log", title=name, xlabel="latent, most active first", ylabel="variance of E[z | x] over x")
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(len(handles), 3))
    return figure


IMAGE_PICTURES: tuple[Picture, ...] = (
    Picture(
        "samples",
        "Samples",
        "Mean images of codes drawn from the prior. Nothing is picked: the first draws of the first cell.",
        _samples,
    ),
    Picture(
        "completions",
        "Completions",
        "The pixels that were not given, blue in the first row, filled in: by the conditional VAE for one draw of the code "
        "after another, and by the plain net (map), which has one answer and blurs what could be several.",
        _completions,
    ),
    Picture(
        "reconstructions",
        "Reconstructions",
        "Rows in pairs: test images, and below each what is left of it after encoding and decoding.",
        _reconstructions,
    ),
    Picture(
        "interpolation",
        "On the way from one code to another",
        "Each row decodes the straight line between the codes of two test images.",
        _interpolation,
    ),
    Picture(
        "manifold",
        "The latent plane",
        "Mean images of a model with two latents, at the quantiles of their prior.",
        _manifold,
    ),
    Picture(
        "rate_distortion",
        "Rate and distortion",
        "Nats that the code costs against nats that the image still costs once the code is known. Grey lines join equal "
        "ELBOs; at a rate near zero the latents are not used.",
        _rate_distortion,
    ),
    Picture(
        "active_units",
        "Active units",
        "How much the mean of each latent moves from image to image; below the dashed line it carries nothing.",
        _active_units,
    ),
)
"""Every picture of image models, in the report's order."""
