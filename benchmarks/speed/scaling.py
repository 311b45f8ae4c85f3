"""How the cost of a step grows with width, batch, particles and replicates."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.speed.cases import CASES, Case

__all__ = ["AXES", "GROWING", "along"]

GROWING = ("pyro", "torch", "numpyro_scan", "ours_loop")
"""Whose cost is followed."""

AXES: dict[str, tuple[int, ...]] = {
    "width": (10, 50, 200, 1000),
    "batch": (32, 128, 512, 2048),
    "particles": (1, 4, 16, 64),
    "replicates": (1, 5, 20, 100),
}
"""What grows, and its values; everything else is as in the case ``bnn``, with 4096 rows."""


def along(axis: str, quick: bool = False) -> list[tuple[int, Case]]:
    """Return the cases along an axis: values and cases.

    :param quick: the two smallest values only.
    """
    base = replace(CASES["bnn"], rows=4096, compared=200, chunk=100)
    cases = []
    for value in AXES[axis][: 2 if quick else None]:
        changed: dict[str, object] = {axis: value}
        if axis == "width":
            changed = {"sizes": (base.sizes[0], value, base.sizes[-1])}
        case = replace(base, name=f"{axis}{value}", title=f"bnn, {axis} {value}", **changed)  # type: ignore[arg-type]
        cases.append((value, case))
    return cases
