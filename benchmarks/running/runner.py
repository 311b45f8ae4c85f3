"""Runs cells: plans them, groups those that one vectorised fit can do, records each as it finishes."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from tqdm import tqdm

from _posterior_zoo_registry import Registry, UnknownNameError
from benchmarks.protocol.task import SUITES, TASKS, Setting, Suite
from benchmarks.running import provenance
from benchmarks.running.away import Finished, Refusal, check, here, run_away
from benchmarks.running.cells import Loaded, Part, run_part
from benchmarks.running.dispatch import Fleet, Lost, WorkerError, dispatch
from benchmarks.running.local import LocalPool, usable_cores
from benchmarks.running.records import failure_of, now, record_of
from benchmarks.running.store import Cell, Record, ResultsFolder, write_atomically

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
    executor: Executor | None = None,
) -> Outcome:
    """Run what is missing of a plan and record every cell as it finishes.

    A cell that raises is recorded as failed, with its error, and the others go on; a later run with ``resume`` tries it
    again. A cell whose worker dies runs again, twice at most, and is then recorded as failed. An interrupt (or a kill)
    loses only cells that had not finished. Only this process writes to the folder.

    :param work: the plan.
    :param folder: where results go.
    :param device: ``"auto"``, ``"cpu"`` or ``"cuda"``; with an executor, what its workers use.
    :param resume: whether ``folder`` may hold results of this plan already.
    :param progress: whether to show a progress bar.
    :param command: the command line, for the manifest.
    :param jobs: how many processes share the tasks that use one thread; 0 takes one for each core.
    :param executor: where cells run instead of processes of this machine: any executor of :mod:`concurrent.futures`.
    :raises ResultsFolderError: if the folder cannot be used; see :meth:`ResultsFolder.prepare`.
    :raises ValueError: if the device is not there.
    :raises WorkerError: if workers are not what this process needs them to be, or cannot be reached any more.
    """
    if executor is None:
        device = provenance.choose_device(device)
    with folder.locked():
        present = folder.done()
        missing = [cell for cell in work.cells if cell not in present]
        parts = list(_parts(missing, work, device))
        if executor is not None:
            _check_workers(executor, parts, device)
        folder.prepare(work.target, work.protocols, resume=resume, command=command)
        failed: list[Record] = []
        with tqdm(total=len(missing), unit="cell", disable=not progress, dynamic_ncols=True) as bar:
            records = _run_here(parts, folder, bar, jobs) if executor is None else _run_on(executor, parts, folder, bar)
            for record in records:
                folder.append(record)
                bar.update()
                if record["status"] != "done":
                    failed.append(record)
                    bar.write(f"failed: {record['task']} · {record['guide']}: {record['error']['message']}")
    return Outcome(len(missing), len(work.cells) - len(missing), tuple(failed))


def _parts(cells: Sequence[Cell], work: Plan, device: str) -> Iterator[Part]:
    """Yield cells of one task and guide together, as many as its vectorised fits take."""
    for (task, guide), group in groupby(cells, key=lambda cell: (cell.task, cell.guide)):
        alike = list(group)
        for start in range(0, len(alike), TASKS[task].replicates):
            some = tuple(alike[start : start + TASKS[task].replicates])
            yield Part(some, work.settings[task, guide], device)


def _run_here(parts: Sequence[Part], folder: ResultsFolder, bar: tqdm, jobs: int) -> Iterator[Record]:
    """Yield the record of each cell: parts that use one thread in processes beside each other, then the others."""
    alone = [part for part in parts if part.device != "cpu" or TASKS[part.cells[0].task].threads != 1 or _obstacle(part)]
    shared = [part for part in parts if not any(part is other for other in alone)]
    jobs = min(jobs or usable_cores(), len(shared))
    if jobs < 2:
        alone, shared = list(parts), []
    if shared:
        pool = LocalPool(jobs)
        try:
            yield from _run_on(pool, shared, folder, bar)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        pool.shutdown()
    inner_bar = not bar.disable and sys.stderr.isatty()
    loaded = Loaded()
    for part in alone:
        bar.set_description(part.title)
        yield from run_part(part, folder.path, loaded, inner_bar)


def _run_on(executor: Executor, parts: Sequence[Part], folder: ResultsFolder, bar: tqdm) -> Iterator[Record]:
    """Yield the record of each cell as an executor's workers finish them, when its files are in the folder."""
    call: Callable[[Part], Finished | Refusal] = partial(run_away, expected=here())
    for part, found in dispatch(executor, call, parts, Part.one_by_one):
        bar.set_description(part.title)
        if isinstance(found, Refusal):
            raise WorkerError(found.message)
        if isinstance(found, Lost):
            error = WorkerError(f"its worker was lost each time it ran: {found.error}")
            for cell in part.cells:
                yield record_of(cell, part.setting, part.device, now()) | failure_of(error)
            continue
        for name, content in found.files:
            write_atomically(folder.path / name, partial(_write, content))
        yield from found.records


def _write(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def _obstacle(part: Part) -> str:
    """Return why a part cannot be sent to another process, empty if it can."""
    try:
        pickle.dumps(part)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return ""


def _check_workers(executor: Executor, parts: Sequence[Part], device: str) -> None:
    """Check before any work that parts can be sent and that workers are what they need to be.

    :raises WorkerError: naming the worker or the function, and what to do.
    """
    for part in parts:
        obstacle = _obstacle(part)
        if obstacle:
            raise WorkerError(
                f"{part.title} cannot be sent to a worker ({obstacle}); define its functions at the top of a module that "
                "workers can import, or leave out --executor"
            )
    needed = tuple({part.cells[0].task: part.cells[0].split for part in reversed(parts)}.items())
    if not parts:
        return
    try:
        if isinstance(executor, Fleet):
            refusals = executor.everywhere(check, here(), device, needed)
        else:
            refusals = [executor.submit(check, here(), device, needed).result()]
    except (ImportError, AttributeError) as error:
        raise WorkerError(
            f"a worker cannot load the package ({type(error).__name__}: {error}); install pyro-posterior-zoo there, of the "
            "version that is here"
        ) from error
    found = [refusal for refusal in refusals if refusal is not None]
    if found:
        raise WorkerError(found[0].message)
