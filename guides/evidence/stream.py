"""Importance weights as a stream: of any number of draws, what is kept does not grow with it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from guides.checkpoint_file import StateFile
from guides.evidence.importance_weights import WeightKernel
from guides.psis import MIN_DRAWS, float_tolerance, tail_length, tail_shape

__all__ = ["State", "StreamCheckpoint", "Sums", "WeightStream"]

_DRAWS_PER_GROUP = 1024  # between two looks at the largest weights, and two chances to save

Results = tuple[Tensor, Tensor, Tensor]
"""Value, standard error and k-hat of some rows."""


@dataclass(frozen=True)
class Sums:
    """What is kept of the log weights of some rows: their number, two sums, and the largest."""

    count: int
    first: Tensor
    second: Tensor
    largest: Tensor

    @classmethod
    def start(cls, rows: int, device: torch.device) -> Sums:
        """Return the sums of no weights."""
        nothing = torch.full((rows,), -math.inf, dtype=torch.double, device=device)
        return cls(0, nothing, nothing, nothing.new_empty((rows, 0)))

    def add(self, log_weights: Tensor, keep: int) -> Sums:
        """Return the sums with more weights, shape ``(rows, draws)``, and the ``keep`` largest of all."""
        together = torch.cat([self.largest, log_weights], dim=1)
        return Sums(
            self.count + log_weights.shape[1],
            torch.logaddexp(self.first, log_weights.logsumexp(1)),
            torch.logaddexp(self.second, (2 * log_weights).logsumexp(1)),
            together.topk(min(keep, together.shape[1]), dim=1).values,
        )

    def results(self) -> Results:
        """Return value, standard error and k-hat of each row."""
        size = self.count
        values = self.first - math.log(size)
        spread = (math.log(size) + self.second - 2 * self.first).expm1()
        errors = (spread / (size - 1)).clamp(min=0.0).sqrt() if size > 1 else torch.full_like(values, math.nan)
        k_hats = torch.full_like(values, math.nan)
        if size >= MIN_DRAWS:
            k_hats = tail_shape(self.largest, float_tolerance(values.float()))
        return values.cpu(), errors.cpu(), k_hats.cpu()


@dataclass(frozen=True)
class State:
    """How far an evaluation has come: results of the row blocks done, and chunks of draws done of the next."""

    finished: tuple[Results, ...]
    chunk: int
    sums: Sums


class WeightStream:
    """An evaluation in progress: row blocks one after the other, each in groups of chunks of draws.

    :ivar state: replaced as a whole after every group, so that it is consistent whenever a run is interrupted.
    """

    def __init__(self, kernel: WeightKernel, num_samples: int, seed: int, device: torch.device) -> None:
        self.kernel, self.num_samples, self.seed, self._device = kernel, num_samples, seed, device
        self.state = State((), 0, Sums.start(kernel.plan.rows, device))
        self._per_group = math.ceil(_DRAWS_PER_GROUP / kernel.plan.draws)
        self._groups = math.ceil(kernel.chunks / self._per_group)

    @property
    def done(self) -> bool:
        """Whether all rows have their results."""
        return len(self.state.finished) == self.kernel.blocks

    @property
    def evaluated(self) -> int:
        """Draws of a row done so far."""
        rows = sum(len(values) for values, _, _ in self.state.finished)
        return rows * self.num_samples + (0 if self.done else self.state.sums.count * self._kept)

    @property
    def _kept(self) -> int:
        return self.kernel.index(len(self.state.finished))[1]

    def advance(self) -> int:
        """Evaluate one group of draws and return how many draws of a row that were."""
        state, kernel, kept = self.state, self.kernel, self._kept
        number = len(state.finished) * self._groups + state.chunk // self._per_group
        torch.manual_seed(self.seed + number)  # of draws that are not built from normals or uniforms
        generator = torch.Generator(self._device).manual_seed((self.seed * 1_000_003 + number) % 2**63)
        index, _ = kernel.index(len(state.finished))
        chunks = min(self._per_group, kernel.chunks - state.chunk)
        weights = torch.cat([kernel(index, generator) for _ in range(chunks)], dim=1)
        weights = weights[:, : self.num_samples - state.sums.count]
        sums = state.sums.add(weights, tail_length(self.num_samples) + 1)
        if state.chunk + chunks < kernel.chunks:
            self.state = State(state.finished, state.chunk + chunks, sums)
        else:
            values, errors, k_hats = (part[:kept] for part in sums.results())
            self.state = State((*state.finished, (values, errors, k_hats)), 0, Sums.start(kernel.plan.rows, self._device))
        return kept * weights.shape[1]


class StreamCheckpoint:
    """A file that an evaluation saves its state to now and then, and continues from."""

    def __init__(self, path: Path, fingerprint: dict[str, Any]) -> None:
        self._file = StateFile(path, fingerprint, "a run with other data, parameters, num_samples or options")

    def restore(self, run: WeightStream) -> None:
        """Continue from the file, if there is one.

        :raises OptionError: if it belongs to another run, or is damaged.
        """
        saved = self._file.read(run.state.sums.first.device)
        if saved is not None:
            try:
                finished = tuple((v.cpu(), e.cpu(), k.cpu()) for v, e, k in saved["finished"])
                run.state = State(finished, saved["chunk"], Sums(*saved["sums"]))
            except (KeyError, TypeError, ValueError) as error:
                raise self._file.damaged(f"it lacks {error}") from error

    def save_sometimes(self, run: WeightStream) -> None:
        """Save if the last time is long enough ago."""
        if self._file.due:
            self.save(run)

    def save(self, run: WeightStream) -> None:
        """Save the state."""
        state, sums = run.state, run.state.sums
        self._file.write(
            {
                "finished": state.finished,
                "chunk": state.chunk,
                "sums": (sums.count, sums.first, sums.second, sums.largest),
            }
        )
