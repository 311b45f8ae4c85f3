"""The state of a fit between chunks of steps, on file and in memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from guides.checkpoint_file import StateFile
from guides.optimise.step import Replicates

__all__ = ["Checkpoint", "Resume", "State"]


@dataclass
class State:
    """Everything that changes during a fit; the first dimension of tensors runs over replicates.

    :ivar moments: the optimiser's vectors.
    :ivar active: replicates still running; ``stopped_at`` is the number of steps that each ran.
    :ivar best_flat: parameters of the best validation score so far, reached in round ``best_round``.
    :ivar losses: one tensor ``(R, steps)`` per chunk; ``scores``: one ``(R,)`` per round.
    :ivar reasons: why a replicate stopped early.
    """

    flat: Tensor
    moments: tuple[Tensor, ...]
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

    @classmethod
    def start(cls, initial: Tensor, moments: int, steps: int) -> State:
        """Return the state before the first step from ``initial``, shape ``(R, size)``."""
        count = len(initial)
        return cls(
            flat=initial.clone(),
            moments=tuple(torch.zeros_like(initial) for _ in range(moments)),
            active=torch.ones(count, dtype=torch.bool),
            stopped_at=torch.full((count,), steps),
            best_flat=initial.clone(),
            best_score=torch.full((count,), -torch.inf, device=initial.device),
            best_round=torch.zeros(count, dtype=torch.long, device=initial.device),
        )

    def write(self, rows: Tensor, flat: Tensor, moments: tuple[Tensor, ...]) -> None:
        """Replace parameters and moments of the replicates ``rows``."""
        self.flat = self.flat.index_copy(0, rows, flat)
        self.moments = tuple(m.index_copy(0, rows, new) for m, new in zip(self.moments, moments))

    def snapshot(self) -> State:
        """Return the state as it is, which later steps do not change."""
        return replace(
            self,
            active=self.active.clone(),
            stopped_at=self.stopped_at.clone(),
            losses=list(self.losses),
            scores=list(self.scores),
            reasons=dict(self.reasons),
        )

    def again(self, steps: int) -> State:
        """Return the state to go on from with all replicates until step ``steps``, those that had stopped too."""
        count = len(self.flat)
        return replace(
            self.snapshot(),
            active=torch.ones(count, dtype=torch.bool),
            stopped_at=torch.full((count,), steps),
            best_round=torch.full_like(self.best_round, self.round),
            reasons={},
        )

    def interrupt(self) -> None:
        """Stop all replicates that run, as the user wants."""
        for replicate in self.active.nonzero().flatten().tolist():
            self.stop(replicate, self.step, f"interrupted at step {self.step}")

    def stop(self, replicate: int, step: int, reason: str) -> None:
        """Stop one replicate for good."""
        self.active[replicate] = False
        self.stopped_at[replicate] = step
        self.reasons[replicate] = reason


@dataclass(frozen=True)
class Resume:
    """What it takes to train on where a fit ended: its state, and the state of the sources of random numbers."""

    state: State
    noise: list[Tensor]
    streams: list[tuple[Tensor, Tensor]]

    @classmethod
    def of(cls, state: State, replicates: Replicates) -> Resume:
        """Return what there is at the end of a fit."""
        losses = [torch.cat(state.losses, dim=1)] if state.losses else []
        return cls(replace(state, losses=losses), *Checkpoint.sources(replicates).values())

    def restore(self, replicates: Replicates) -> None:
        """Give the sources of random numbers their states back."""
        for generator, old in zip(replicates.noise_generators, self.noise, strict=True):
            generator.set_state(old.cpu())
        for stream, (left, old) in zip(replicates.streams, self.streams, strict=True):
            stream.restore((left, old.cpu()))

    def rows(self, rows: slice) -> Resume:
        """Return what belongs to some of the replicates."""
        state, numbers = self.state, range(len(self.state.flat))[rows]
        cut: dict[str, Any] = {name: getattr(state, name)[rows] for name in ("flat", *_PER_REPLICATE)}
        kept = replace(
            state,
            **cut,
            moments=tuple(m[rows] for m in state.moments),
            losses=[part[rows] for part in state.losses],
            scores=[part[rows] for part in state.scores],
            reasons={i: state.reasons[r] for i, r in enumerate(numbers) if r in state.reasons},
        )
        return Resume(kept, self.noise[rows], self.streams[rows])

    def anew(self, initial: Tensor) -> Resume:
        """Return the same for other replicates that have not begun, for which no time was left."""
        count, state = len(initial), self.state
        start = State.start(initial, len(state.moments), 0)
        losses = [part.new_full((count, part.shape[1]), math.nan) for part in state.losses]
        scores = [part.new_full((count,), math.nan) for part in state.scores]
        begun = replace(start, step=state.step, round=state.round, losses=losses, scores=scores)
        return Resume(begun, self.noise[:1] * count, self.streams[:1] * count)

    @classmethod
    def joined(cls, parts: list[Resume]) -> Resume:
        """Return those of all replicates together, as if the shorter fits had run as long as the others."""
        states = [p.state for p in parts]
        longest = max(states, key=lambda s: s.step)
        joint: dict[str, Any] = {name: torch.cat([getattr(s, name) for s in states]) for name in ("flat", *_PER_REPLICATE)}
        rounds = max(len(s.scores) for s in states)
        missing = [s.scores + [s.best_score.new_full((len(s.flat),), math.nan)] * (rounds - len(s.scores)) for s in states]
        width = max(sum(part.shape[1] for part in s.losses) for s in states)
        losses = [torch.cat([s.flat.new_zeros((len(s.flat), 0)), *s.losses], dim=1) for s in states]
        padded = [torch.nn.functional.pad(part, (0, width - part.shape[1]), value=math.nan) for part in losses]
        whole = replace(
            longest,
            **joint,
            moments=tuple(torch.cat(each) for each in zip(*(s.moments for s in states))),
            losses=[torch.cat(padded)],
            scores=[torch.cat(each) for each in zip(*missing)],
            reasons={},
        )
        noise = [state for p in parts for state in p.noise]
        return cls(whole, noise, [stream for p in parts for stream in p.streams])


_PER_REPLICATE = ("active", "stopped_at", "best_flat", "best_score", "best_round")


class Checkpoint:
    """A file that a fit saves its state to now and then, and continues from.

    :param fingerprint: what must be equal for a saved state to be continued.
    :param initial: where the fit starts, shape ``(R, size)``.
    :param estimates: what model, guide and objective compute at given parameters ``(size,)``, for draws that are always the
        same.
    """

    def __init__(
        self, path: Path, fingerprint: dict[str, Any], initial: Tensor, estimates: Callable[[Tensor], list[float]]
    ) -> None:
        self._file = StateFile(path, fingerprint, "a fit with other options, data or model")
        self._initial, self._estimates = initial, estimates
        self._computed: list[float] | None = None

    def restore(self, state: State, replicates: Replicates, steps: int) -> None:
        """Fill ``state`` from the file, if there is one.

        :param steps: how many to run in all; those of the file may be fewer.
        :raises OptionError: if the file belongs to another fit, or one of more steps.
        """
        saved = self._file.read(state.flat.device)
        if saved is None:
            return
        try:
            self._compare(saved, replicates)
            for name in vars(state):
                setattr(state, name, saved["state"][name])
            for generator, old in zip(replicates.noise_generators, saved["noise"], strict=True):
                generator.set_state(old.cpu())
            for stream, (left, old) in zip(replicates.streams, saved["streams"], strict=True):
                stream.restore((left, old.cpu()))
        except (KeyError, TypeError, AttributeError) as error:
            raise self._file.damaged(f"it lacks {error}") from error
        state.active, state.stopped_at = state.active.cpu(), state.stopped_at.cpu()
        state.losses = [part.cpu() for part in state.losses] if state.flat.device.type == "cpu" else state.losses
        if state.step > steps:
            raise self._file.refusal(f"steps (it has run {state.step} steps, {steps} are asked for; ask for more)")
        state.stopped_at[state.active] = steps

    def _compare(self, saved: dict[str, Any], replicates: Replicates) -> None:
        """Check that the fit starts where the saved one did, or at what it found, and computes what it computed."""
        layout = replicates.program.parameters
        here = layout.split(self._initial)
        known = [layout.split(flat) for flat in (saved["initial"], saved["state"]["flat"], saved["state"]["best_flat"])]
        moved = [n for n, v in here.items() if not any(_equal(v, other[n]) for other in known)]
        if moved:
            raise self._file.refusal(f"where parameter {moved[0]!r} starts")
        self._initial = saved["initial"]
        self._computed = self._estimates(self._initial[0])
        if not all(_near(a, b) for a, b in zip(self._computed, saved["estimates"], strict=True)):
            was, now = saved["estimates"][0], self._computed[0]
            raise self._file.refusal(
                f"what the model computes (the objective of a fixed draw, {was:.6g} there, {now:.6g} here)"
            )

    @property
    def due(self) -> bool:
        """Whether the last time is long enough ago."""
        return self._file.due

    @staticmethod
    def sources(replicates: Replicates) -> dict[str, Any]:
        """Return the state of all sources of random numbers."""
        noise = [g.get_state() for g in replicates.noise_generators]
        return {"noise": noise, "streams": [s.state() for s in replicates.streams]}

    def save(self, state: State, sources: dict[str, Any]) -> None:
        """Save the state.

        :param sources: of random numbers, at that state.
        """
        if self._computed is None:
            self._computed = self._estimates(self._initial[0])
        whole = {"state": dict(vars(state)), "initial": self._initial, "estimates": self._computed, **sources}
        self._file.write(whole)


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b.to(a), rtol=1e-5, atol=1e-7, equal_nan=True)


def _near(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-5) or (math.isnan(a) and math.isnan(b))
