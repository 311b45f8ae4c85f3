"""Runs cells: plans them, groups those that one vectorised fit can do, records each as it finishes."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from tqdm import tqdm

import guides
from _posterior_zoo_registry import Registry, UnknownNameError
from benchmarks.evaluation import predictions as evaluation
from benchmarks.protocol.labels import stops_by_itself
from benchmarks.protocol.split import Split
from benchmarks.protocol.task import SUITES, TASKS, Setting, Suite, Task
from benchmarks.running import provenance
from benchmarks.running.netcdf import netcdf
from benchmarks.running.records import failure_of, losses_of, now, record_of, small, thinned
from benchmarks.running.store import Cell, Record, ResultsFolder, write_atomically, write_images
from benchmarks.running.workers import in_processes, picklable, usable_cores

__all__ = ["Outcome", "Plan", "plan", "run"]


@dataclass(frozen=True)
class Plan:
    """What a run is going to do.

    :param target: the suite or task asked for.
    :param cells: every cell, in the order of running.
    :param settings: how each guide runs on each task, by ``(task, guide)``.
    :param skipped: guides that a task does not run, by ``(task, guide)``, with the reason.
    """

    target: str
    cells: tuple[Cell, ...]
    settings: Mapping[tuple[str, str], Setting]
    skipped: Mapping[tuple[str, str], str] = field(default_factory=dict)

    @property
    def protocols(self) -> dict[str, Mapping[str, Any]]:
        """The protocol of every pair, as the manifest keeps it."""
        return {f"{task} | {guide}": setting.protocol for (task, guide), setting in self.settings.items()}


@dataclass(frozen=True)
class Outcome:
    """What a run did.

    :param run: how many cells it ran, failed ones included.
    :param kept: how many of the plan's cells were there already.
    :param failed: records of the plan's cells that failed in this run.
    """

    run: int
    kept: int
    failed: tuple[Record, ...]


def find_suite(target: str) -> Suite:
    """Return the suite called ``target``, or a suite of one for a task of that name.

    :raises UnknownNameError: naming the nearest of both, if there is neither.
    """
    if target in SUITES:
        return SUITES[target]
    if target in TASKS:
        return Suite(target, TASKS[target].summary, (target,))
    both: Registry[object] = Registry("suite or task", group="")
    for name in (*SUITES, *TASKS):
        both.add(name, name)
    both[target]
    raise UnknownNameError(target)  # unreachable: the line above raises with the nearest name


def plan(
    target: str,
    *,
    guide_labels: Sequence[str] | None = None,
    tasks: Sequence[str] | None = None,
    splits: int | None = None,
    seeds: int = 1,
    overrides: Mapping[str, Any] | None = None,
    num_samples: int | None = None,
    variant: str | None = None,
) -> Plan:
    """Work out the cells of a run.

    :param target: the name of a suite or a task.
    :param guide_labels: guides to run, ``name`` or ``name:option=value``; default the suite's.
    :param tasks: which tasks of the suite, optional ones included; default those it runs by default.
    :param splits: how many splits of each task; default the suite's.
    :param seeds: how many seeds for each split.
    :param overrides: settings of ``guides.fit`` that replace the tasks' own (they change the protocol).
    :param num_samples: draws behind every number instead of the tasks' own count (which changes the protocol).
    :param variant: a variant of the suite, whose tasks run instead of its default ones.
    :raises UnknownNameError: for a suite, task or guide that nobody registered, with the nearest name.
    :raises ValueError: for counts below 1, more splits than exist, a variant that the suite does not have or that is given
        together with tasks, or a plan without a cell.
    """
    suite = find_suite(target)
    if variant is not None:
        tasks = _tasks_of_variant(suite, variant, tasks)
    for name, count in (("--splits", splits), ("--seeds", seeds), ("--samples", num_samples)):
        if count is not None and count < 1:
            raise ValueError(f"{name} {count}: give a number of 1 or more")
    chosen = [TASKS[name] for name in (tasks or suite.tasks)]
    outside = [task.name for task in chosen if task.name not in (*suite.tasks, *suite.optional)]
    if outside:
        raise ValueError(
            f"--tasks {','.join(outside)}: not in suite {suite.name!r}, which has "
            f"{', '.join((*suite.tasks, *suite.optional))}; run a task by itself with `run {outside[0]}`"
        )
    settings: dict[tuple[str, str], Setting] = {}
    skipped: dict[tuple[str, str], str] = {}
    cells: list[Cell] = []
    for task in chosen:
        count = splits or min(suite.splits or task.splits, task.splits)
        if count > task.splits:
            raise ValueError(f"--splits {count}: task {task.name!r} has {task.splits} splits")
        for label in dict.fromkeys(guide_labels or suite.labels(task.name)):
            setting = task.setting(label, overrides, num_samples)
            reason = task.reason_to_skip(label)
            if reason:
                skipped[task.name, label] = reason
                continue
            settings[task.name, label] = setting
            cells += [Cell(task.name, label, split, seed) for split in range(count) for seed in range(seeds)]
    if not cells:
        reasons = "; ".join(f"{guide} on {task}: {reason}" for (task, guide), reason in skipped.items())
        raise ValueError(f"nothing to run: {reasons}")
    return Plan(suite.name, tuple(cells), settings, skipped)


def _tasks_of_variant(suite: Suite, variant: str, tasks: Sequence[str] | None) -> tuple[str, ...]:
    """Return the tasks of a suite's variant.

    :raises ValueError: if the suite has no such variant, or tasks are given as well.
    """
    flag = f"--{variant.replace('_', '-')}"
    if variant not in suite.variants:
        having = ", ".join(name for name, other in SUITES.items() if variant in other.variants)
        raise ValueError(f"{flag}: {suite.name!r} has no such variant; it is for {having or 'no suite'}")
    if tasks:
        raise ValueError(f"{flag} says which tasks run ({', '.join(suite.variants[variant])}); leave out --tasks")
    return suite.variants[variant]


def run(
    work: Plan,
    folder: ResultsFolder,
    *,
    device: str = "auto",
    resume: bool = False,
    progress: bool = True,
    command: str = "",
    jobs: int = 1,
) -> Outcome:
    """Run what is missing of a plan and record every cell as it finishes.

    A cell that raises is recorded as failed, with its error, and the others go on; a later run with ``resume`` tries it
    again. An interrupt (or a kill) loses only cells that had not finished.

    :param work: the plan.
    :param folder: where results go.
    :param device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
    :param resume: whether ``folder`` may hold results of this plan already.
    :param progress: whether to show a progress bar.
    :param command: the command line, for the manifest.
    :param jobs: how many processes share the tasks that use one thread; 0 takes one for each core.
    :raises ResultsFolderError: if the folder cannot be used; see :meth:`ResultsFolder.prepare`.
    :raises ValueError: if the device is not there.
    """
    device = provenance.choose_device(device)
    with folder.locked():
        folder.prepare(work.target, work.protocols, resume=resume, command=command)
        present = folder.done()
        missing = [cell for cell in work.cells if cell not in present]
        failed: list[Record] = []
        with tqdm(total=len(missing), unit="cell", disable=not progress, dynamic_ncols=True) as bar:
            for record in _run_groups(missing, work, folder, device, bar, jobs):
                folder.append(record)
                bar.update()
                if record["status"] != "done":
                    failed.append(record)
                    bar.write(f"failed: {record['task']} · {record['guide']}: {record['error']['message']}")
    return Outcome(len(missing), len(work.cells) - len(missing), tuple(failed))


def _run_groups(
    cells: Sequence[Cell], work: Plan, folder: ResultsFolder, device: str, bar: tqdm, jobs: int
) -> Iterator[Record]:
    """Yield the record of each cell, groups of one task and guide together, several groups at once where that pays."""
    groups = [list(group) for _, group in groupby(cells, key=lambda cell: (cell.task, cell.guide))]
    parts = [(group, work.settings[group[0].task, group[0].guide], folder, device) for group in groups]
    alone = [part for part in parts if device != "cpu" or TASKS[part[0][0].task].threads != 1 or not picklable(part)]
    shared = [part for part in parts if not any(part is other for other in alone)]
    jobs = jobs or usable_cores()
    if jobs < 2 or len(shared) < 2:
        alone, shared = parts, []
    for index, record in in_processes(_run_group, shared, jobs):
        bar.set_description(_title(shared[index][0]))
        yield record
    inner_bar = not bar.disable and sys.stderr.isatty()
    loaded: tuple[str, dict[int, Split]] = ("", {})
    for part in alone:
        bar.set_description(_title(part[0]))
        if loaded[0] != part[0][0].task:
            loaded = (part[0][0].task, {})
        yield from _run_group(*part, loaded[1], inner_bar)


def _title(group: Sequence[Cell]) -> str:
    return f"{group[0].task} · {group[0].guide}"


def _run_group(
    cells: Sequence[Cell],
    setting: Setting,
    folder: ResultsFolder,
    device: str,
    loaded: dict[int, Split] | None = None,
    progress: bool = False,
) -> Iterator[Record]:
    """Yield the record of each cell of one task and guide.

    :param loaded: splits of the task that are at hand already, to be added to.
    """
    task = TASKS[cells[0].task]
    loaded = {} if loaded is None else loaded
    ready: list[tuple[Cell, Split]] = []
    for cell in cells:
        try:
            if cell.split not in loaded:
                loaded[cell.split] = task.load(cell.split)
            ready.append((cell, loaded[cell.split]))
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
    chunk: list[tuple[Cell, Split]], task: Task, setting: Setting, folder: ResultsFolder, device: str, progress: bool
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


def _results(cell: Cell, task: Task, setting: Setting, split: Split, posterior: Any, folder: ResultsFolder) -> Record:
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
            write_atomically(folder.path / cell.file, lambda path: path.write_bytes(content))
            kept = cell.file
    images = ""
    if measured.images:
        images = cell.images_file
        write_images(folder.path / images, measured.images)
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
