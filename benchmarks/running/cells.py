"""One piece of work: cells that one vectorised fit may do, run and measured where the piece lands."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import guides
from benchmarks.evaluation import predictions as evaluation
from benchmarks.protocol.labels import stops_by_itself
from benchmarks.protocol.split import Split
from benchmarks.protocol.task import TASKS, Setting, Task
from benchmarks.running import provenance
from benchmarks.running.netcdf import netcdf
from benchmarks.running.records import failure_of, losses_of, now, record_of, small, thinned
from benchmarks.running.store import Cell, Record, write_atomically, write_images

__all__ = ["Loaded", "Part", "run_part"]


@dataclass(frozen=True)
class Part:
    """Cells of one task and guide, no more than one vectorised fit takes.

    :param cells: the cells, in the order of running.
    :param setting: how the guide runs on the task.
    :param device: ``"cpu"`` or ``"cuda"``, or ``"auto"`` for what the machine has that runs it.
    """

    cells: tuple[Cell, ...]
    setting: Setting
    device: str

    @property
    def title(self) -> str:
        """Task and guide, in words."""
        return f"{self.cells[0].task} · {self.cells[0].guide}"

    def one_by_one(self) -> list[Part]:
        """Return a part for each of the cells."""
        return [replace(self, cells=(cell,)) for cell in self.cells]


class Loaded:
    """Splits of the task that ran last: guides of one task share them, and no second task's are kept."""

    def __init__(self) -> None:
        self._task: Task | None = None
        self._splits: dict[int, Split] = {}

    def __call__(self, task: Task, index: int) -> Split:
        """Return a split of a task, loaded if it is not at hand."""
        if self._task is not task:
            self._task, self._splits = task, {}
        if index not in self._splits:
            self._splits[index] = task.load(index)
        return self._splits[index]


def run_part(part: Part, folder: Path, loaded: Loaded, progress: bool = False) -> Iterator[Record]:
    """Yield the record of each cell as it finishes; files that belong to it are in ``folder`` by then.

    A cell that raises is recorded as failed, and the others go on.

    :param folder: where the files of a record go, under the names that the record gives.
    :param loaded: the splits that are at hand.
    """
    task, setting = TASKS[part.cells[0].task], part.setting
    device = provenance.choose_device(part.device)
    ready: list[tuple[Cell, Split]] = []
    for cell in part.cells:
        try:
            ready.append((cell, loaded(task, cell.split)))
        except Exception as error:  # whatever one cell raises must not cost the others
            yield record_of(cell, setting, device, now()) | failure_of(error)
    for chunk in _chunks(ready, task.replicates):
        yield from _run_chunk(chunk, task, setting, folder, device, progress)


def _chunks(ready: Sequence[tuple[Cell, Split]], most: int) -> Iterator[list[tuple[Cell, Split]]]:
    """Group cells whose data have the same shapes, at most ``most`` at a time."""
    by_shape: dict[Any, list[tuple[Cell, Split]]] = {}
    for cell, split in ready:
        by_shape.setdefault(split.shape, []).append((cell, split))
    for alike in by_shape.values():
        for start in range(0, len(alike), most):
            yield alike[start : start + most]


def _run_chunk(
    chunk: list[tuple[Cell, Split]], task: Task, setting: Setting, folder: Path, device: str, progress: bool
) -> Iterator[Record]:
    """Fit a chunk in one run and yield its records; a chunk that fails is tried again in halves.

    Halving finds the one bad cell among good ones, and also makes room where memory ran out.
    """
    began, started = now(), time.perf_counter()
    caught: list[str] = []
    memory = provenance.PeakMemory(device)
    failure: Exception | None = None
    try:
        with memory, _working(task.threads, caught):
            with torch.random.fork_rng():  # networks start at random: one start for all of a chunk, see Task.replicates
                torch.manual_seed(chunk[0][0].fit_seed)
                model = setting.model(chunk[0][1])
                guide = setting.guide(model)
            posteriors = _fitted(chunk, setting, model, guide, device, progress)
            if any(posterior.interrupted for posterior in posteriors):
                raise KeyboardInterrupt  # no result of the cell: the user wants the run to end
    except Exception as error:  # whatever one cell raises must not cost the others
        failure = error
    if failure is not None and len(chunk) == 1:
        yield record_of(chunk[0][0], setting, device, began) | failure_of(failure) | {"warnings": caught}
        return
    if failure is not None:
        failure = None  # with its traceback go the tensors that did not fit
        middle = len(chunk) // 2
        yield from _run_chunk(chunk[:middle], task, setting, folder, device, progress)
        yield from _run_chunk(chunk[middle:], task, setting, folder, device, progress)
        return
    fit_seconds = (time.perf_counter() - started) / len(chunk)
    for (cell, split), posterior in zip(chunk, posteriors):
        started = time.perf_counter()
        messages = list(caught)
        record = record_of(cell, setting, device, began)
        evaluating = provenance.PeakMemory(device)
        try:
            with evaluating, _working(task.threads, messages), torch.random.fork_rng():
                torch.manual_seed(cell.fit_seed)
                record |= _results(cell, task, setting, split, posterior, folder)
        except Exception as error:  # as above
            record |= failure_of(error)
        seconds = fit_seconds + time.perf_counter() - started
        record["fit"] = record.get("fit", {}) | {
            "seconds_wall": fit_seconds,
            "vectorised_with": len(chunk),
            "peak_memory_mib": max(memory.mebibytes, evaluating.mebibytes),
            "peak_memory_exact": memory.exact,
        }
        record["metrics"] = record.get("metrics", {}) | {"seconds": seconds}
        record["warnings"] = messages
        record["finished"] = now()
        yield record


def _fitted(
    chunk: list[tuple[Cell, Split]], setting: Setting, model: Any, guide: Any, device: str, progress: bool
) -> Sequence[Any]:
    """Return a posterior for each cell: of a sampler or solver one after the other, of a guide all in one vectorised fit."""
    if stops_by_itself(setting.family):
        return [guides.fit(model, guide, *split.train, seed=cell.fit_seed, progress=False) for cell, split in chunk]
    return guides.fit_many(
        model,
        guide,
        [split.train for _, split in chunk],
        validations=[split.validation for _, split in chunk if split.validation is not None] or None,
        seeds=[cell.fit_seed for cell, _ in chunk],
        device=device,
        progress=progress,
        **setting.fit_arguments(),
    )


def _results(cell: Cell, task: Task, setting: Setting, split: Split, posterior: Any, folder: Path) -> Record:
    """Measure one fitted posterior, keep its draws and the images that it made."""
    trust = evaluation.trust(posterior, num_samples=setting.num_samples, seed=cell.fit_seed)
    measured = task.evaluate(posterior, split, num_samples=setting.num_samples, seed=cell.fit_seed)
    losses = losses_of(posterior)
    curves = trust.curves | measured.curves | {"loss": thinned(losses)}
    kept = ""
    if task.keep_draws:
        data = evaluation.kept_inference_data(posterior, task.keep_draws, seed=cell.fit_seed)
        if data is not None:
            content = netcdf(data)
            write_atomically(folder / cell.file, lambda path: path.write_bytes(content))
            kept = cell.file
    images = ""
    if measured.images:
        images = cell.images_file
        write_images(folder / images, measured.images)
    return {
        "status": "done",
        "metrics": trust.metrics | measured.metrics | {"steps": float(losses.numel())},
        "curves": curves,
        "verdict": trust.verdict | measured.verdict,
        "posterior": kept,
        "images": images,
        "fit": {
            "stop_reason": ", ".join(dict.fromkeys(posterior.stop_reasons)),
            "seconds": dict(posterior.seconds),
            "objective": posterior.objective,
            "parameters": sum(part.numel() for part in posterior.parameters.values()),
            "info": small(posterior.info[0]),
        },
    }


@contextmanager
def _working(threads: int | None, into: list[str]) -> Iterator[None]:
    """Use so many CPU threads, and put warnings into the cell's record instead of between the progress bar's lines."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        try:
            yield
        finally:
            torch.set_num_threads(before)
            for warning in caught:
                text = " ".join(str(warning.message).split())[:500]
                if text not in into:
                    into.append(text)
