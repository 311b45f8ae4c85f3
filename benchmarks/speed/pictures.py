"""Cost against width, batch, particles and replicates, as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.reporting.pictures.drawing import MARKERS, PALETTE, STYLE
from benchmarks.running.store import write_atomically
from benchmarks.speed.contenders import CONTENDERS
from benchmarks.speed.scaling import AXES, GROWING

__all__ = ["draw"]


def draw(result: Mapping[str, Any], path: Path) -> bool:
    """Draw a result's scaling to a PNG file; return whether there was anything to draw."""
    axes = [axis for axis in AXES if result["scaling"].get(axis)]
    if not axes:
        return False
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.0 + 2.6 * len(axes), 3.4))
        places = figure.subplots(1, len(axes), squeeze=False)[0]
        shown: dict[str, Any] = {}
        for place, axis in zip(places, axes):
            for index, name in enumerate(GROWING):
                points = [
                    (point["value"], point["contenders"][name]["microseconds"])
                    for point in result["scaling"][axis]
                    if "microseconds" in point["contenders"].get(name, {})
                ]
                points = [(value, micro) for value, micro in points if "median" in micro]
                if not points:
                    continue
                values = [value for value, _ in points]
                middle = [micro["median"] for _, micro in points]
                reach = [[m["median"] - m["low"] for _, m in points], [m["high"] - m["median"] for _, m in points]]
                style = {"color": PALETTE[index], "marker": MARKERS[index], "ms": 4.5, "capsize": 2}
                shown[CONTENDERS[name].label] = place.errorbar(values, middle, yerr=reach, **style)
            place.set(xscale="log", yscale="log", xlabel=axis)
            place.set_title(f"{axis}")
        places[0].set_ylabel("µs per step")
        for place, axis in zip(places, axes):
            if axis == "replicates":
                place.set_ylabel("µs per step and replicate")
        figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=len(shown))
        write_atomically(path, partial(figure.savefig, format="png"))
    return True
