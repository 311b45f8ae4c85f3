"""The optimisation loop over replicates: chunks of pure steps, with everything that needs the host between chunks."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from guides.optimise.memory import CountElements, free_bytes, most_replicates
from guides.optimise.optimisers import Optimiser, make_optimiser, make_schedule
from guides.optimise.scoring import validation_score
from guides.optimise.settings import Settings
from guides.optimise.state import Checkpoint, Resume, State
from guides.optimise.step import ChunkRunner, Replicates
from guides.optimise.stopping import Chunk, carefully, early_stopping, rewind
from guides.program.data import Data
from guides.program.fingerprint import arguments, estimates, operations, program_parts
from guides.program.isolation import quiet
from guides.program.parameters import isolated_store
from guides.program.program import Program
from guides.program.vectorise import Vectorised

__all__ = ["Trained", "train"]

_NOISE_PER_CHUNK = 2**20
_STEPS_PER_CHUNK = 500
_SMALL_STEP = 2**21
_WORTH_TRACING = 20


@dataclass
class Trained:
    """The outcome of :func:`train`, one row per replicate.

    :ivar flat: parameters, shape ``(replicates, size)``.
    :ivar losses: minus the objective's value per step in nats, shape ``(replicates, steps)``; NaN after a replicate stopped.
    :ivar steps: steps each replicate ran.
    :ivar stop_reasons: why each stopped, in words.
    :ivar validation: score per epoch, shape ``(replicates, epochs)``, or empty.
    :ivar resume: what it takes to train on.
    """

    flat: Tensor
    losses: Tensor
    steps: Tensor
    stop_reasons: tuple[str, ...]
    validation: Tensor
    resume: Resume

    @property
    def interrupted(self) -> bool:
        """Whether the user ended the training."""
        return any(reason.startswith("interrupted") for reason in self.stop_reasons)


def train(
    program: Program,
    initial: Tensor,
    datasets: Sequence[Data],
    seeds: Sequence[int],
    settings: Settings,
    *,
    validations: Sequence[Data] | None = None,
    checkpoint: Path | None = None,
    resume: Resume | None = None,
) -> Trained:
    """Maximise the objective from ``initial``, shape ``(replicates, size)``, as many replicates at once as memory allows.

    :param checkpoint: where to save the state; a number is appended for each batch of replicates if there are several.
    :param resume: what an earlier fit of the same kind left, to go on from instead.
    :raises NonFiniteLossError: if a replicate's loss is not finite at its first step.
    """
    count = len(seeds)
    most = min(count, _most_together(program, initial, datasets, seeds, settings) or count)
    if most == count:
        return _train_together(program, initial, datasets, seeds, settings, validations, checkpoint, resume)
    parts: list[Trained] = []
    for number, start in enumerate(range(0, count, most)):
        part = slice(start, start + most)
        path = None if checkpoint is None else checkpoint.with_name(f"{checkpoint.name}.{number}")
        held_out = None if validations is None else validations[part]
        if parts and parts[-1].interrupted:
            parts.append(_not_begun(initial[part], parts[-1]))
            continue
        before = None if resume is None else resume.rows(part)
        parts.append(_train_together(program, initial[part], datasets[part], seeds[part], settings, held_out, path, before))
    return Trained(
        flat=torch.cat([p.flat for p in parts]),
        losses=_stacked([p.losses for p in parts]),
        steps=torch.cat([p.steps for p in parts]),
        stop_reasons=tuple(reason for p in parts for reason in p.stop_reasons),
        validation=_stacked([p.validation for p in parts]),
        resume=Resume.joined([p.resume for p in parts]),
    )


def _not_begun(initial: Tensor, like: Trained) -> Trained:
    """Return the outcome of replicates that an interruption of others left no time for."""
    count = len(initial)
    return Trained(
        flat=initial,
        losses=like.losses.new_full((count, like.losses.shape[1]), math.nan),
        steps=torch.zeros(count, dtype=torch.long),
        stop_reasons=("interrupted at step 0, before it began",) * count,
        validation=like.validation.new_full((count, like.validation.shape[1]), math.nan),
        resume=like.resume.anew(initial),
    )


def _stacked(rows: Sequence[Tensor]) -> Tensor:
    """Return tensors ``(r, n)`` below each other, the shorter ones filled up with NaN."""
    width = max(r.shape[1] for r in rows)
    return torch.cat([torch.nn.functional.pad(r, (0, width - r.shape[1]), value=math.nan) for r in rows])


def _most_together(
    program: Program, initial: Tensor, datasets: Sequence[Data], seeds: Sequence[int], settings: Settings
) -> int | None:
    """Return how many replicates fit into memory; ``None`` sets no limit."""
    free = free_bytes(initial.device)
    if len(seeds) == 1 or free is None:
        return None
    # Particles of its own: that they cannot be vectorised is said once, and must not be said where nobody hears it.
    apart = replace(program, over_particles=Vectorised("particles"))
    one = Replicates(apart, datasets[:1], seeds[:1], settings.batch_size, settings.precision)
    optimiser = make_optimiser(settings.optimizer)
    runner = ChunkRunner(one, optimiser, settings.clip_norm, "eager")
    state = (initial[:1], *(torch.zeros_like(initial[:1]) for _ in range(optimiser.moments)))
    row, clock = torch.zeros(1, dtype=torch.long, device=initial.device), optimiser.clock(initial.new_zeros(1))
    with _undisturbed(one, seeds[0]), warnings.catch_warnings(), CountElements() as made:
        warnings.simplefilter("ignore")  # the fit itself gives them
        runner(state, row, one.inputs(1), clock, 0, 0)
    return most_replicates(made.elements, free)


def _train_together(
    program: Program,
    initial: Tensor,
    datasets: Sequence[Data],
    seeds: Sequence[int],
    settings: Settings,
    validations: Sequence[Data] | None,
    checkpoint: Path | None,
    resume: Resume | None,
) -> Trained:
    replicates = Replicates(program, datasets, seeds, settings.batch_size, settings.precision)
    optimiser = make_optimiser(settings.optimizer)
    schedule = make_schedule(settings.schedule)
    mode = "eager" if settings.compile == "auto" and settings.steps < _WORTH_TRACING else settings.compile
    runner = ChunkRunner(replicates, optimiser, settings.clip_norm, mode)
    epoch = math.ceil(replicates.size / replicates.batch) if replicates.size else 1
    steps_per_round = epoch if validations else _STEPS_PER_CHUNK
    score = None
    if validations:
        epochs = math.ceil(settings.steps / epoch)
        score = validation_score(replicates, validations, seeds, settings.validation_samples, mode, epochs)
    per_step = max(1, program.particles * (program.noise.normals + program.noise.uniforms))
    chunk = max(1, min(steps_per_round, _NOISE_PER_CHUNK // per_step))
    begun, new = settings.begun, settings.steps - settings.begun
    rates = torch.tensor([0.0] * begun + [settings.lr * schedule(k / new) for k in range(new)], device=initial.device)
    clock = optimiser.clock(rates)
    if resume is None:
        state = State.start(initial, optimiser.moments, settings.steps)
    else:
        state = resume.state.again(settings.steps)
        resume.restore(replicates)
    saver = None if checkpoint is None else _checkpoint(checkpoint, settings, replicates, datasets, validations, initial)
    if saver:
        saver.restore(state, replicates, settings.steps)
    work = _Work(replicates, optimiser, runner, settings, clock, chunk, steps_per_round, score, saver, state)
    began, seed = state.step, seeds[0] + state.step
    with _undisturbed(replicates, seed), _progress_bar(settings, len(seeds), state.step) as bar:
        try:
            work.run(bar)
        except KeyboardInterrupt:
            if work.settled.step == began:
                raise
            if saver:
                saver.save(*work.round)
            work.state = work.settled
            work.state.interrupt()
        runner.finish()
    return _outcome(work.state, replicates, settings, restored=score is not None)


class _Work:
    """Chunks of steps one after the other, with everything that needs the host between them.

    :ivar state: changes while a chunk runs.
    :ivar settled: the state after the last chunk that is done.
    :ivar round: the state after the last round that is done and the sources of random numbers then: all that it takes to go
        on as if nothing had happened. The sources are kept only if there is a file to save them to.
    """

    def __init__(
        self,
        replicates: Replicates,
        optimiser: Optimiser,
        runner: ChunkRunner,
        settings: Settings,
        clock: Tensor,
        chunk: int,
        steps_per_round: int,
        score: Callable[[Tensor], Tensor] | None,
        saver: Checkpoint | None,
        state: State,
    ) -> None:
        self._replicates, self._optimiser, self._runner, self._settings = replicates, optimiser, runner, settings
        self._clock, self._chunk, self._steps_per_round = clock, chunk, steps_per_round
        self._score, self._saver = score, saver
        self._running = torch.arange(replicates.count, device=clock.device)
        self._chunks: tuple[Chunk, ...] = ()
        self.state = state
        self.settled = state.snapshot()
        self.round = (self.settled, self._sources())

    def run(self, bar: tqdm) -> None:
        """Run all steps that are left."""
        state, settings = self.state, self._settings
        while state.step < settings.steps and bool(state.active.any()):
            stop_round = min(state.step + self._steps_per_round, settings.steps)
            self._running = _worth_running(self._running, state.active)
            while state.step < stop_round:
                steps = min(self._chunk, stop_round - state.step)
                self._run_chunk(steps)
                bar.update(steps)
            if settings.progress:
                bar.set_postfix(loss=f"{float(torch.nanmean(state.losses[-1][:, -1])):.4g}", refresh=False)
            state.round += 1
            if self._score is not None:
                early_stopping(state, self._scored(self._score), settings.patience)
            self.settled = state.snapshot()
            self.round = (self.settled, self._sources())
            if self._saver and self._saver.due:
                self._saver.save(*self.round)
        if self._saver:
            self._saver.save(*self.round)

    def _run_chunk(self, steps: int) -> None:
        state, running, count = self.state, self._running, self._replicates.count
        now = self._clock[state.step : state.step + steps]
        inputs = self._replicates.inputs(steps)
        self._chunks = (*self._chunks[-1:], Chunk(state.step, state.flat, state.moments, inputs, now))
        old = (state.flat[running], *(m[running] for m in state.moments))
        failed = False
        try:
            left = self._settings.steps - state.step - steps
            new, losses = self._runner(old, running, inputs, now, state.step, left)
        except torch.linalg.LinAlgError:
            failed = True
            new, losses = carefully(self._eager(), old, running, inputs, now, state.step)
        on = state.active[running.cpu()].to(running.device)
        state.write(running[on], new[0][on], tuple(m[on] for m in new[1:]))
        record = losses.new_full((count, steps), math.nan)
        record[running[on]] = losses[on]
        broken = on & ~(torch.isfinite(losses).all(1) & torch.isfinite(new[0]).all(1))
        state.losses.append(record)
        for r in running[broken].tolist():
            again = rewind(r, self._chunks, state, self._replicates, self._eager())
            for place, losses in enumerate(again, len(state.losses) - len(again)):
                row = torch.tensor([r], device=losses.device)
                state.losses[place] = state.losses[place].index_copy(0, row, losses[None])
        if failed:  # what has stopped must not fail again
            self._running = running[state.active[running.cpu()].to(running.device)]
        state.step += steps
        self.settled = state.snapshot()

    def _eager(self) -> ChunkRunner:
        return ChunkRunner(self._replicates, self._optimiser, self._settings.clip_norm, "eager")

    def _scored(self, score: Callable[[Tensor], Tensor]) -> Tensor:
        try:
            return score(self.state.flat)
        except torch.linalg.LinAlgError:  # the score of a draw without a Cholesky factor is no score
            return torch.full((self._replicates.count,), -math.inf, device=self.state.flat.device)

    def _sources(self) -> dict[str, Any]:
        return Checkpoint.sources(self._replicates) if self._saver else {}


def _outcome(state: State, replicates: Replicates, settings: Settings, restored: bool) -> Trained:
    flat = state.flat
    if restored:
        flat = torch.where(torch.isfinite(state.best_score).unsqueeze(-1), state.best_flat, flat)
    count = len(flat)
    losses = torch.cat(state.losses, dim=1) if state.losses else flat.new_zeros((count, 0))
    reasons = tuple(state.reasons.get(r, f"ran all {settings.steps} steps") for r in range(count))
    validation = torch.stack(state.scores, dim=1) if state.scores else flat.new_zeros((count, 0))
    return Trained(flat.detach(), losses.cpu(), state.stopped_at, reasons, validation.cpu(), Resume.of(state, replicates))


def _worth_running(running: Tensor, active: Tensor) -> Tensor:
    """Return the replicates to run: those that ran, until half of them have stopped (each count needs a graph)."""
    on = active[running.cpu()].to(running.device)
    return running[on] if 2 * int(on.sum()) <= len(running) else running


@contextmanager
def _undisturbed(replicates: Replicates, seed: int) -> Iterator[None]:
    """Keep the fit apart from the caller's global state, and use one thread where more would only wait for each other."""
    threads = torch.get_num_threads()
    work = (
        replicates.count
        * replicates.program.particles
        * (replicates.program.parameters.size + 50 * max(1, replicates.batch))
    )
    with isolated_store(), quiet(), torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(seed)
        if work < _SMALL_STEP:
            torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def _progress_bar(settings: Settings, count: int, done: int) -> tqdm:
    return tqdm(
        total=settings.steps,
        initial=done,
        desc="fit" if count == 1 else f"fit x {count}",
        unit="step",
        disable=not settings.progress,
        delay=1.0,
        leave=False,
    )


def _checkpoint(
    path: Path,
    settings: Settings,
    replicates: Replicates,
    datasets: Sequence[Data],
    validations: Sequence[Data] | None,
    initial: Tensor,
) -> Checkpoint:
    """Return the checkpoint of a fit, which knows everything that its result depends on but for the number of steps."""
    program, schedule = replicates.program, make_schedule(settings.schedule)
    options = {k: v for k, v in vars(settings).items() if k not in ("progress", "compile", "schedule", "steps")}
    options["schedule"] = [round(schedule(k / 7), 9) for k in range(7)]
    part = datasets[0] if settings.batch_size is None else datasets[0].head(settings.batch_size)
    fingerprint = {
        **options,
        "replicates": replicates.count,
        "seeds": [g.initial_seed() for g in replicates.noise_generators],
        **arguments("", datasets),
        **(arguments("validation ", validations) if validations else {}),
        **program_parts(program),
        "the operations of model, guide and objective": operations(program, initial[0], part),
    }
    return Checkpoint(path, fingerprint, initial, lambda flat: estimates(program, flat, part))
