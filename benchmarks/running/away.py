"""What a worker does with a piece of work: check that it is the worker that the first process thinks it is, and run it."""

from __future__ import annotations

import contextlib
import io
import os
import platform
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.protocol.task import TASKS
from benchmarks.running import provenance
from benchmarks.running.cells import Loaded, Part, run_part
from benchmarks.running.store import Record

__all__ = ["Expected", "Finished", "Refusal", "check", "here", "run_away"]

_ONE_AT_A_TIME = threading.Lock()  # seeds and threads of PyTorch belong to a process, not to a worker's thread
_LOADED = Loaded()
_MUST_AGREE = ("pyro-posterior-zoo", "torch", "pyro-ppl", "python")


@dataclass(frozen=True)
class Expected:
    """What a worker must be to give the first process's numbers: see :func:`here`."""

    versions: tuple[tuple[str, str], ...]
    source: str


@dataclass(frozen=True)
class Refusal:
    """Why a worker ran nothing, in one line."""

    message: str


@dataclass(frozen=True)
class Finished:
    """What became of a part: the record of each cell, and files by their names in the results folder."""

    records: tuple[Record, ...]
    files: tuple[tuple[str, bytes], ...]


def here() -> Expected:
    """Return what this process has: versions (of PyTorch without its CUDA, of Python without its patch) and sources."""
    found = provenance.versions()
    kept = {name: found[name].partition("+")[0] for name in _MUST_AGREE}
    kept["python"] = kept["python"].rpartition(".")[0]
    return Expected(tuple(kept.items()), provenance.source())


def check(expected: Expected, device: str, needed: Sequence[tuple[str, int]]) -> Refusal | None:
    """Return why this worker cannot run the tasks, ``None`` if it can.

    :param expected: what the first process has.
    :param device: the device that is asked for.
    :param needed: a task and one of its splits, whose data must be found here.
    """
    me = f"worker {platform.node()} (process {os.getpid()})"
    mine, theirs = here(), dict(expected.versions)
    for name, version in mine.versions:
        if version != theirs[name]:
            return Refusal(f"{me} has {name} {version}, and this process {theirs[name]}; install the same on both")
    if mine.source != expected.source:
        return Refusal(
            f"{me} has other sources of pyro-posterior-zoo {theirs['pyro-posterior-zoo']} ({mine.source}, in "
            f"{provenance.ROOT}) than this process ({expected.source}); bring both to the same commit and start the "
            "workers again"
        )
    try:
        provenance.choose_device(device)
    except ValueError as error:
        return Refusal(f"{me}: {error}")
    for name, split in needed:
        if name not in TASKS:
            return Refusal(f"{me} knows no task {name!r}; install there the package that registers it")
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # a download's progress bar
                _LOADED(TASKS[name], split)
        except Exception as error:  # whatever it is, no cell can run here
            said = " ".join(str(error).split())[:300]
            return Refusal(
                f"{me} has no data of task {name!r} ({type(error).__name__}: {said}); set ZOO_DATA there to a folder that "
                "holds them, or let it download them once"
            )
    return None


def run_away(part: Part, expected: Expected) -> Finished | Refusal:
    """Run a part in a worker and return all of it, files too: only the first process writes to the results folder."""
    with _ONE_AT_A_TIME:
        refusal = check(expected, part.device, [])
        if refusal is None and part.cells[0].task not in TASKS:
            refusal = check(expected, part.device, [(part.cells[0].task, part.cells[0].split)])
        if refusal is not None:
            return refusal
        with TemporaryDirectory(prefix="cells-") as folder:
            records = tuple(run_part(part, Path(folder), _LOADED))
            files = [path for path in sorted(Path(folder).rglob("*")) if path.is_file()]
            return Finished(records, tuple((str(path.relative_to(folder)), path.read_bytes()) for path in files))
