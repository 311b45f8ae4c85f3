"""The state of a fit between chunks of steps, on file and in memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from guides.engine.state_file import StateFile
from guides.engine.step import Replicates

__all__ = ["Checkpoint", "State"]


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

    def stop(self, replicate: int, step: int, reason: str) -> None:
        """Stop one replicate for good."""
        self.active[replicate] = False
        self.stopped_at[replicate] = step
        self.reasons[replicate] = reason


class Checkpoint:
    """A file that a fit saves its state to now and then, and continues from.

    :param fingerprint: what must be equal for a saved state to be continued.
    """

    def __init__(self, path: Path, fingerprint: str) -> None:
        self._file = StateFile(path, fingerprint, "a fit with other options, data or model")

    def restore(self, state: State, replicates: Replicates) -> None:
        """Fill ``state`` from the file, if there is one.

        :raises OptionError: if the file belongs to another fit.
        """
        saved = self._file.read()
        if saved is None:
            return
        for name, value in saved["state"].items():
            setattr(state, name, value)
        for generator, old in zip(replicates.noise_generators, saved["noise"]):
            generator.set_state(old)
        for stream, old in zip(replicates.streams, saved["streams"]):
            stream.restore(old)

    def save_sometimes(self, state: State, replicates: Replicates) -> None:
        """Save if the last time is long enough ago."""
        if self._file.due:
            self.save(state, replicates)

    def save(self, state: State, replicates: Replicates) -> None:
        """Save the state."""
        self._file.write(
            {
                "state": dict(vars(state)),
                "noise": [g.get_state() for g in replicates.noise_generators],
                "streams": [s.state() for s in replicates.streams],
            }
        )
