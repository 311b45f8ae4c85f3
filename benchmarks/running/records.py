"""What is recorded of a cell, whatever became of it."""

from __future__ import annotations

import platform
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import torch

from benchmarks.protocol.task import TASKS, Setting
from benchmarks.running import provenance
from benchmarks.running.store import Cell, Record

__all__ = ["failure_of", "losses_of", "now", "record_of", "small", "thinned"]

TRACE_POINTS = 200


def record_of(cell: Cell, setting: Setting, device: str, started: str) -> Record:
    """Return what every record says, whatever became of its cell."""
    return {
        "task": cell.task,
        "guide": cell.guide,
        "split": cell.split,
        "seed": cell.seed,
        "fit_seed": cell.fit_seed,
        "protocol": setting.hash,
        "started": started,
        "finished": now(),
        "versions": provenance.versions(),
        "machine": provenance.machine(device),
        "host": platform.node(),
        "threads": TASKS[cell.task].threads or torch.get_num_threads(),
        **provenance.commit(),
    }


def failure_of(error: Exception) -> Record:
    """Return what a record says about a cell that raised."""
    frames = traceback.format_tb(error.__traceback__)[-6:]
    message = " ".join(str(error).split())[:1000] or type(error).__name__
    return {
        "status": "failed",
        "error": {"type": type(error).__name__, "message": message, "traceback": "".join(frames)},
    }


def now() -> str:
    """Return the time, in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def losses_of(posterior: Any) -> torch.Tensor:
    """Return the loss of every step that the fit took, without the places of steps after it stopped."""
    trace = posterior.losses.detach().flatten(0, -2)[0].double().cpu()
    taken = (~trace.isnan()).nonzero()
    return trace[: int(taken[-1]) + 1] if taken.numel() else trace[:0]


def thinned(trace: torch.Tensor, points: int = TRACE_POINTS) -> dict[str, Any]:
    """Return a loss trace as at most ``points`` block means, with the step at the middle of each block."""
    if not trace.numel():
        return {"step": [], "value": []}
    blocks = torch.tensor_split(trace, min(points, trace.numel()))
    ends = torch.tensor([block.numel() for block in blocks]).cumsum(0)
    middles = [float(end - (block.numel() + 1) / 2 + 1) for end, block in zip(ends, blocks)]
    return {"step": middles, "value": [float(block.mean()) for block in blocks]}


def small(info: Mapping[str, Any], most: int = 16) -> dict[str, Any]:
    """Return the entries of ``info`` that fit into a line: numbers, words, short lists."""
    kept: dict[str, Any] = {}
    for key, value in info.items():
        if isinstance(value, Mapping):
            kept[key] = small(value, most)
        elif value is None or isinstance(value, bool | int | float | str):
            kept[key] = value
        elif isinstance(value, torch.Tensor):
            if value.numel() <= most:
                kept[key] = value.detach().cpu().tolist()
        elif isinstance(value, list | tuple) and len(value) <= most:
            kept[key] = [str(entry) if not isinstance(entry, int | float) else entry for entry in value]
    return kept
