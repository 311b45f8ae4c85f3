"""The optimisation loop over replicates: chunks of pure steps, with everything that needs the host between chunks."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from tqdm.auto import tqdm

from guides.engine.batches import IndexStream
from guides.engine.data import Data, stack
from guides.engine.noise import Noise
from guides.engine.optimisers import make_optimiser, make_schedule
from guides.engine.parameters import isolated_store
from guides.engine.program import Program, quiet
from guides.errors import NonFiniteLossError, OptionError

__all__ = ["Settings", "Trained", "train"]

_NOISE_PER_CHUNK = 2**20
_STEPS_PER_CHUNK = 100
_CHECKPOINT_SECONDS = 20.0


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


@dataclass
class _State:
    """What a checkpoint holds."""

    flat: Tensor
    optimiser: tuple[Tensor, ...]
    active: Tensor
    stopped_at: Tensor
    best_flat: Tensor
    best_score: Tensor
    best_round: Tensor
    step: int = 0
    round: int = 0
    losses: list[Tensor] = field(default_factory=list)
    scores: list[Tensor] = field(default_factory=list)
    reasons: dict[int, str] = field(default_factory=dict)


class _Replicates:
    """The data, noise and indices of R replicates, and the vectorised step over any subset of them."""

    def __init__(self, program: Program, datasets: Sequence[Data], seeds: Sequence[int], settings: Settings) -> None:
        self.program = program
        self.settings = settings
        self.count = len(seeds)
        first = datasets[0]
        self.kwargs = first.kwargs
        self.rows = first.rows
        self.size = first.size
        self.shared = all(d is first for d in datasets)
        self.args = first.args if self.shared else stack(datasets)
        self.batch = settings.batch_size or first.size
        self.factor = first.size / self.batch if settings.batch_size else 1.0
        device = program.parameters.initial.device
        self.noise_generators = [torch.Generator(device).manual_seed(s) for s in seeds]
        self.streams = [IndexStream(first.size, self.batch, torch.Generator(device).manual_seed(s + 2**31)) for s in seeds]

    def inputs(self, steps: int) -> tuple[Noise, Tensor | None]:
        """Draw noise ``(R, steps, particles, n)`` and indices ``(R, steps, batch)`` of the next steps."""
        layout, particles = self.program.noise, self.program.particles
        drawn = [layout.draw((steps, particles), g) for g in self.noise_generators]
        noise = Noise(torch.stack([n.normals for n in drawn]), torch.stack([n.uniforms for n in drawn]))
        if self.settings.batch_size is None:
            return noise, None
        return noise, torch.stack([s.take(steps) for s in self.streams])

    def select(self, rows: Tensor) -> tuple[Any, ...]:
        """Return the arguments of the replicates ``rows``."""
        if self.shared or len(rows) == self.count:
            return self.args
        return tuple(a.index_select(0, rows) if isinstance(a, Tensor) else a for a in self.args)

    def value_and_surrogate(
        self, flat: Tensor, normals: Tensor, uniforms: Tensor, args: tuple[Any, ...], index: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return value and surrogate of every replicate, shape ``(R,)`` each."""

        def one(flat: Tensor, normals: Tensor, uniforms: Tensor, args: Any, index: Tensor | None) -> tuple[Tensor, Tensor]:
            if index is not None:
                args = tuple(a.index_select(0, index) if i in self.rows else a for i, a in enumerate(args))
            estimate = self.program.estimate(flat, normals, uniforms, args, self.kwargs, self.factor)
            return estimate.value, estimate.surrogate

        return self._over_replicates(one, flat, normals, uniforms, args, index)

    def _over_replicates(
        self, one: Callable[..., Any], flat: Tensor, normals: Tensor, uniforms: Tensor, args: Any, index: Any
    ) -> Any:
        if flat.shape[0] == 1:
            single = args if self.shared else tuple(a[0] if isinstance(a, Tensor) else a for a in args)
            out = one(flat[0], normals[0], uniforms[0], single, None if index is None else index[0])
            return tuple(o.unsqueeze(0) for o in out)
        arg_dims = tuple(0 if isinstance(a, Tensor) and not self.shared else None for a in args)
        dims = (0, 0, 0, arg_dims, None if index is None else 0)
        return torch.vmap(one, in_dims=dims, randomness="different")(flat, normals, uniforms, args, index)


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
    """Maximise the objective from ``initial``, shape ``(replicates, size)``.

    :raises NonFiniteLossError: if a replicate's loss is not finite at its first step.
    """
    replicates = _Replicates(program, datasets, seeds, settings)
    optimiser = make_optimiser(settings.optimizer)
    schedule = make_schedule(settings.schedule)
    epoch = math.ceil(replicates.size / replicates.batch) if replicates.size else 1
    steps_per_round = epoch if validations else _STEPS_PER_CHUNK
    per_step = max(1, program.particles * (program.noise.normals + program.noise.uniforms))
    chunk = max(1, min(steps_per_round, _NOISE_PER_CHUNK // per_step))
    score = _validation_score(replicates, validations, seeds) if validations else None

    frozen = program.frozen
    count = len(seeds)
    flat = initial.clone()
    state = _State(
        flat=flat,
        optimiser=optimiser.init(flat),
        active=torch.ones(count, dtype=torch.bool),
        stopped_at=torch.full((count,), settings.steps),
        best_flat=flat.clone(),
        best_score=torch.full((count,), -math.inf, device=flat.device),
        best_round=torch.zeros(count, dtype=torch.long, device=flat.device),
    )
    saver = _Checkpoint(checkpoint, replicates, settings, initial) if checkpoint else None
    if saver:
        saver.restore(state, replicates)

    def run_chunk(rows: Tensor, first: int, noise: Noise, index: Tensor | None, steps: int, state: _State) -> Tensor:
        """Run ``steps`` steps of the replicates ``rows`` and return their losses, shape ``(len(rows), steps)``."""
        flat = state.flat[rows]
        moments = tuple(m[rows] for m in state.optimiser)
        normals, uniforms = noise.normals[rows], noise.uniforms[rows]
        chosen = None if index is None else index[rows]
        args = replicates.select(rows)
        losses = []
        for k in range(steps):
            flat = flat.detach().requires_grad_()
            value, surrogate = replicates.value_and_surrogate(
                flat, normals[:, k], uniforms[:, k], args, None if chosen is None else chosen[:, k]
            )
            (grad,) = torch.autograd.grad(-surrogate.sum(), flat)
            with torch.no_grad():
                if frozen is not None:
                    grad = torch.where(frozen, 0.0, grad)
                if settings.clip_norm is not None:
                    norm = grad.norm(dim=-1, keepdim=True)
                    grad = grad * (settings.clip_norm / norm.clamp(min=settings.clip_norm))
                lr = settings.lr * schedule((first + k) / settings.steps)
                direction, moments = optimiser.update(grad, moments, first + k + 1)
                flat = flat - lr * direction
            losses.append(-value.detach())
        state.flat = state.flat.index_copy(0, rows, flat.detach())
        state.optimiser = tuple(m.index_copy(0, rows, new) for m, new in zip(state.optimiser, moments))
        return torch.stack(losses, dim=1)

    bar = tqdm(
        total=settings.steps,
        initial=state.step,
        desc="fit" if count == 1 else f"fit x {count}",
        unit="step",
        disable=not settings.progress,
        delay=1.0,
        leave=False,
    )
    with isolated_store(), quiet(), torch.random.fork_rng(), torch.enable_grad(), bar:
        torch.manual_seed(seeds[0] + state.step)
        while state.step < settings.steps and bool(state.active.any()):
            stop_round = min(state.step + steps_per_round, settings.steps)
            while state.step < stop_round:
                steps = min(chunk, stop_round - state.step)
                noise, index = replicates.inputs(steps)
                rows = state.active.nonzero().squeeze(-1).to(flat.device)
                before = (state.flat, state.optimiser)
                losses = run_chunk(rows, state.step, noise, index, steps, state)
                record = losses.new_full((count, steps), math.nan)
                record[rows] = losses
                broken = (~torch.isfinite(losses)).any(1) | ~torch.isfinite(state.flat[rows]).all(1)
                for r in rows[broken].tolist():
                    _rewind(r, before, noise, index, steps, state, run_chunk, record, replicates)
                state.losses.append(record)
                state.step += steps
                bar.update(steps)
            bar.set_postfix(loss=f"{float(torch.nanmean(state.losses[-1][:, -1])):.4g}", refresh=False)
            state.round += 1
            if score is not None:
                _early_stopping(state, score(state.flat), settings.patience)
            if saver:
                saver.save_sometimes(state, replicates)
    if score is not None:
        keep = torch.isfinite(state.best_score)
        state.flat = torch.where(keep.unsqueeze(-1), state.best_flat, state.flat)
    if saver:
        saver.save(state, replicates)
    losses = torch.cat(state.losses, dim=1) if state.losses else flat.new_zeros((count, 0))
    done = f"ran all {settings.steps} steps"
    reasons = tuple(state.reasons.get(r, done) for r in range(count))
    validation = torch.stack(state.scores, dim=1) if state.scores else flat.new_zeros((count, 0))
    return Trained(state.flat.detach(), losses.cpu(), state.stopped_at, reasons, validation.cpu())


def _rewind(
    r: int,
    before: tuple[Tensor, tuple[Tensor, ...]],
    noise: Noise,
    index: Tensor | None,
    steps: int,
    state: _State,
    run_chunk: Callable[..., Tensor],
    record: Tensor,
    replicates: _Replicates,
) -> None:
    """Take replicate ``r`` back to its last parameters with a finite loss, and stop it there.

    The steps are pure, so running the chunk again up to the bad step gives the parameters just before it.
    """
    row = torch.tensor([r], device=before[0].device)
    state.flat = state.flat.index_copy(0, row, before[0][row])
    state.optimiser = tuple(m.index_copy(0, row, old[row]) for m, old in zip(state.optimiser, before[1]))
    good = 0
    for k in range(steps):
        kept = (state.flat[row], tuple(m[row] for m in state.optimiser))
        one = Noise(noise.normals[:, k : k + 1], noise.uniforms[:, k : k + 1])
        loss = run_chunk(row, state.step + k, one, None if index is None else index[:, k : k + 1], 1, state)
        if not (torch.isfinite(loss).all() and torch.isfinite(state.flat[row]).all()):
            finite_loss = bool(torch.isfinite(loss).all())
            state.flat = state.flat.index_copy(0, row, kept[0])
            state.optimiser = tuple(m.index_copy(0, row, o) for m, o in zip(state.optimiser, kept[1]))
            break
        good += 1
    step = state.step + good
    site = _first_bad_site(replicates, r, state.flat[r], noise, index, min(good, steps - 1))
    what = "the gradient" if good < steps and finite_loss else "the loss"
    reason = f"{what} was not finite at step {step}, first at {site}; kept the last finite parameters"
    if step == 0:
        raise NonFiniteLossError(
            f"{what} is not finite before the first step, first at {site}. Check the data's scale, the prior, or start "
            "elsewhere (init='sample')"
        )
    state.active[r] = False
    state.stopped_at[r] = step
    state.reasons[r] = reason
    record[r, good:] = math.nan


def _first_bad_site(replicates: _Replicates, r: int, flat: Tensor, noise: Noise, index: Tensor | None, k: int) -> str:
    """Name the first site whose value or log density is not finite at one step's parameters, noise and batch."""
    args = replicates.args
    if not replicates.shared:
        args = tuple(a[r] if isinstance(a, Tensor) else a for a in args)
    if index is not None:
        args = tuple(a.index_select(0, index[r, k]) if i in replicates.rows else a for i, a in enumerate(args))
    draw = Noise(noise.normals[r, k, 0], noise.uniforms[r, k, 0])
    with torch.no_grad():
        model_trace, guide_trace = replicates.program.traces(flat, args, replicates.kwargs, draw)
        for owner, trace in (("guide", guide_trace), ("model", model_trace)):
            name = _bad_site(trace)
            if name is not None:
                return f"{owner} site {name!r}"
    return "the parameters (every site's log density is finite; the gradient is not)"


def _bad_site(trace: Trace) -> str | None:
    for name, site in trace.nodes.items():
        if site["type"] != "sample" or not isinstance(site["value"], Tensor):
            continue
        if not torch.isfinite(site["value"]).all():
            return str(name)
        if hasattr(site["fn"], "log_prob") and not torch.isfinite(site["fn"].log_prob(site["value"])).all():
            return str(name)
    return None


def _early_stopping(state: _State, score: Tensor, patience: int | None) -> None:
    """Keep the best parameters by validation score; stop replicates that have not improved for ``patience`` rounds."""
    active = state.active.to(score.device)
    better = active & (score > state.best_score)
    state.best_score = torch.where(better, score, state.best_score)
    state.best_flat = torch.where(better.unsqueeze(-1), state.flat, state.best_flat)
    state.best_round = torch.where(better, state.round, state.best_round)
    state.scores.append(torch.where(active, score, math.nan))
    if patience is None:
        return
    waited = (state.round - state.best_round >= patience) & active
    for r in waited.nonzero().squeeze(-1).tolist():
        state.active[r] = False
        state.stopped_at[r] = state.step
        state.reasons[r] = (
            f"no better validation score for {patience} epochs; restored the parameters of epoch {int(state.best_round[r])}"
        )


def _validation_score(
    replicates: _Replicates, validations: Sequence[Data], seeds: Sequence[int]
) -> Callable[[Tensor], Tensor]:
    """Return a function from parameters to the mean log predictive density per validation point, in nats.

    The draws' noise is fixed, so that scores of different epochs differ by the parameters only.
    """
    program, samples = replicates.program, replicates.settings.validation_samples
    shared = all(v is validations[0] for v in validations)
    args = validations[0].args if shared else stack(validations)
    rows = len(validations[0].args[validations[0].rows[0]])
    if rows == 0:
        raise OptionError("the validation data are empty")
    device = program.parameters.initial.device
    draws = [program.noise.draw((samples,), torch.Generator(device).manual_seed(s + 2**33)) for s in seeds]
    normals = torch.stack([d.normals for d in draws])
    uniforms = torch.stack([d.uniforms for d in draws])
    strata = program.strata(device)

    def one(flat: Tensor, normals: Tensor, uniforms: Tensor, *args: Any) -> Tensor:
        def log_likelihood(normals: Tensor, uniforms: Tensor, stratum: Tensor) -> Tensor:
            return program.log_likelihood(flat, Noise(normals, uniforms), stratum, args, replicates.kwargs)

        which = strata.repeat(math.ceil(samples / len(strata)))[:samples]
        per_draw = torch.vmap(log_likelihood, randomness="different")(normals, uniforms, which)
        return (torch.logsumexp(per_draw, 0) - math.log(samples)).mean()

    arg_dims = tuple(0 if isinstance(a, Tensor) and not shared else None for a in args)

    def score(flat: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.vmap(one, in_dims=(0, 0, 0, *arg_dims), randomness="different")(flat, normals, uniforms, *args)

    return score


class _Checkpoint:
    """Save the state of a fit now and then, and take it up again."""

    def __init__(self, path: Path, replicates: _Replicates, settings: Settings, initial: Tensor) -> None:
        self._path = path
        self._last = time.monotonic()
        shapes = [tuple(a.shape) if isinstance(a, Tensor) else repr(a) for a in replicates.args]
        options = {k: v for k, v in asdict(settings).items() if k != "progress"}
        sums = [float(a.double().sum()) for a in replicates.args if isinstance(a, Tensor)]
        self._fingerprint = repr((options, shapes, sums, tuple(initial.shape), float(initial.double().sum())))

    def restore(self, state: _State, replicates: _Replicates) -> None:
        """Fill ``state`` from the file, if there is one.

        :raises OptionError: if the file belongs to another fit.
        """
        if not self._path.exists():
            return
        saved = torch.load(self._path, weights_only=True)
        if saved["fingerprint"] != self._fingerprint:
            raise OptionError(
                f"checkpoint {self._path} belongs to a fit with other options, data or model; delete it or give another path"
            )
        for name, value in saved["state"].items():
            setattr(state, name, value)
        for generator, old in zip(replicates.noise_generators, saved["noise"]):
            generator.set_state(old)
        for stream, (left, old) in zip(replicates.streams, saved["streams"]):
            stream.left = left
            stream._generator.set_state(old)

    def save_sometimes(self, state: _State, replicates: _Replicates) -> None:
        """Save if the last time is long enough ago."""
        if time.monotonic() - self._last > _CHECKPOINT_SECONDS:
            self.save(state, replicates)

    def save(self, state: _State, replicates: _Replicates) -> None:
        """Write the state under a temporary name and rename it."""
        self._last = time.monotonic()
        content = {
            "fingerprint": self._fingerprint,
            "state": dict(vars(state)),
            "noise": [g.get_state() for g in replicates.noise_generators],
            "streams": [(s.left, s._generator.get_state()) for s in replicates.streams],
        }
        temporary = self._path.with_name(self._path.name + ".tmp")
        torch.save(content, temporary)
        os.replace(temporary, self._path)
