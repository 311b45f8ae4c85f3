"""The optimisation loop over replicates: chunks of pure steps, with everything that needs the host between chunks."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from guides.engine.data import Data
from guides.engine.memory import CountElements, free_bytes, most_replicates
from guides.engine.optimisers import make_optimiser, make_schedule
from guides.engine.parameters import isolated_store
from guides.engine.program import Program, quiet
from guides.engine.scoring import validation_score
from guides.engine.state import Checkpoint, State
from guides.engine.step import ChunkRunner, Replicates
from guides.engine.stopping import Chunk, early_stopping, rewind
from guides.engine.vectorise import Vectorised

__all__ = ["COMPILE_MODES", "Settings", "Trained", "train"]

COMPILE_MODES = ("auto", "eager", "trace", "native", "inductor")

_NOISE_PER_CHUNK = 2**20
_STEPS_PER_CHUNK = 500
_SMALL_STEP = 2**21
_WORTH_TRACING = 20


@dataclass(frozen=True)
class Settings:
    """How to optimise; see :func:`guides.fit` for the meaning of each."""

    steps: int
    batch_size: int | None
    lr: float
    optimizer: str = "adam"
    schedule: str | Callable[[float], float] = "constant"
    clip_norm: float | None = None
    patience: int | None = None
    validation_samples: int = 16
    compile: str = "auto"
    precision: str = "float32"
    progress: bool = False


@dataclass
class Trained:
    """The outcome of :func:`train`, one row per replicate.

    :ivar flat: parameters, shape ``(replicates, size)``.
    :ivar losses: minus the objective's value per step in nats, shape ``(replicates, steps)``; NaN after a replicate stopped.
    :ivar steps: steps each replicate ran.
    :ivar stop_reasons: why each stopped, in words.
    :ivar validation: score per epoch, shape ``(replicates, epochs)``, or empty.
    """

    flat: Tensor
    losses: Tensor
    steps: Tensor
    stop_reasons: tuple[str, ...]
    validation: Tensor


def train(
    program: Program,
    initial: Tensor,
    datasets: Sequence[Data],
    seeds: Sequence[int],
    settings: Settings,
    *,
    validations: Sequence[Data] | None = None,
    checkpoint: Path | None = None,
) -> Trained:
    """Maximise the objective from ``initial``, shape ``(replicates, size)``, as many replicates at once as memory allows.

    :param checkpoint: where to save the state; a number is appended for each batch of replicates if there are several.
    :raises NonFiniteLossError: if a replicate's loss is not finite at its first step.
    """
    count = len(seeds)
    most = min(count, _most_together(program, initial, datasets, seeds, settings) or count)
    if most == count:
        return _train_together(program, initial, datasets, seeds, settings, validations, checkpoint)
    parts = []
    for number, start in enumerate(range(0, count, most)):
        part = slice(start, start + most)
        path = None if checkpoint is None else checkpoint.with_name(f"{checkpoint.name}.{number}")
        held_out = None if validations is None else validations[part]
        parts.append(_train_together(program, initial[part], datasets[part], seeds[part], settings, held_out, path))
    return Trained(
        flat=torch.cat([p.flat for p in parts]),
        losses=_stacked([p.losses for p in parts]),
        steps=torch.cat([p.steps for p in parts]),
        stop_reasons=tuple(reason for p in parts for reason in p.stop_reasons),
        validation=_stacked([p.validation for p in parts]),
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
    rates = torch.tensor([settings.lr * schedule(k / settings.steps) for k in range(settings.steps)], device=initial.device)
    clock = optimiser.clock(rates)
    state = State.start(initial, optimiser.moments, settings.steps)
    saver = Checkpoint(checkpoint, _fingerprint(settings, replicates, initial)) if checkpoint else None
    if saver:
        saver.restore(state, replicates)
    running = torch.arange(len(seeds), device=initial.device)
    chunk_before: Chunk | None = None
    chunk_now: Chunk | None = None
    with _undisturbed(replicates, seeds[0] + state.step), _progress_bar(settings, len(seeds), state.step) as bar:
        while state.step < settings.steps and bool(state.active.any()):
            stop_round = min(state.step + steps_per_round, settings.steps)
            running = _worth_running(running, state.active)
            while state.step < stop_round:
                steps = min(chunk, stop_round - state.step)
                now = clock[state.step : state.step + steps]
                inputs = replicates.inputs(steps)
                chunk_before, chunk_now = chunk_now, Chunk(state.step, state.flat, state.moments, inputs, now)
                old = (state.flat[running], *(m[running] for m in state.moments))
                left = settings.steps - state.step - steps
                new, losses = runner(old, running, inputs, now, state.step, left)
                on = state.active[running.cpu()].to(running.device)
                state.write(running[on], new[0][on], tuple(m[on] for m in new[1:]))
                record = losses.new_full((len(seeds), steps), math.nan)
                record[running[on]] = losses[on]
                broken = on & ~(torch.isfinite(losses).all(1) & torch.isfinite(new[0]).all(1))
                for r in running[broken].tolist():
                    chunks = [c for c in (chunk_before, chunk_now) if c is not None]
                    step = rewind(r, chunks, state, replicates, optimiser, settings.clip_norm)
                    record[r, max(0, step - state.step) :] = math.nan
                state.losses.append(record)
                state.step += steps
                bar.update(steps)
            if settings.progress:
                bar.set_postfix(loss=f"{float(torch.nanmean(state.losses[-1][:, -1])):.4g}", refresh=False)
            state.round += 1
            if score is not None:
                early_stopping(state, score(state.flat), settings.patience)
            if saver:
                saver.save_sometimes(state, replicates)
        if saver:
            saver.save(state, replicates)
    return _outcome(state, settings, restored=score is not None)


def _outcome(state: State, settings: Settings, restored: bool) -> Trained:
    flat = state.flat
    if restored:
        flat = torch.where(torch.isfinite(state.best_score).unsqueeze(-1), state.best_flat, flat)
    count = len(flat)
    losses = torch.cat(state.losses, dim=1) if state.losses else flat.new_zeros((count, 0))
    reasons = tuple(state.reasons.get(r, f"ran all {settings.steps} steps") for r in range(count))
    validation = torch.stack(state.scores, dim=1) if state.scores else flat.new_zeros((count, 0))
    return Trained(flat.detach(), losses.cpu(), state.stopped_at, reasons, validation.cpu())


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


def _fingerprint(settings: Settings, replicates: Replicates, initial: Tensor) -> str:
    options = {k: v for k, v in asdict(settings).items() if k not in ("progress", "compile", "schedule")}
    options["schedule"] = [settings.lr * make_schedule(settings.schedule)(k / 7) for k in range(7)]
    shapes = [tuple(a.shape) for a in replicates.args]
    sums = [float(a.double().sum()) for a in (*replicates.args, initial)]
    objective, guide = replicates.program.objective, replicates.program.guide
    # Schedules that are dataclasses show their numbers; other functions cannot be compared.
    setting = {
        k: v
        for k, v in vars(objective).items()
        if k[0] != "_" and (isinstance(v, int | float | str | None) or is_dataclass(v))
    }
    names = (type(objective).__name__, setting, type(guide).__name__, replicates.program.parameters.names)
    return repr((options, names, shapes, sums))
