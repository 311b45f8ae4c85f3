"""Minibatch indices: an endless stream of shuffled passes over the data, one per replicate."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["IndexStream"]


class IndexStream:
    """Batches of ``batch_size`` row numbers, each row once per pass; a batch may span two passes.

    :param size: number of rows N.
    :param generator: source of the shuffles; its device is where indices are drawn.
    """

    def __init__(self, size: int, batch_size: int, generator: torch.Generator) -> None:
        self._size = size
        self._batch_size = batch_size
        self._generator = generator
        self._left = torch.empty(0, dtype=torch.long, device=generator.device)

    def take(self, steps: int) -> Tensor:
        """Return the indices of the next ``steps`` batches, shape ``(steps, batch_size)``."""
        need = steps * self._batch_size
        parts, have = [self._left], len(self._left)
        while have < need:
            parts.append(torch.randperm(self._size, generator=self._generator, device=self._generator.device))
            have += self._size
        stream = torch.cat(parts)
        self._left = stream[need:].clone()
        return stream[:need].view(steps, self._batch_size)

    def state(self) -> tuple[Tensor, Tensor]:
        """Return what :meth:`restore` needs to continue the stream from here."""
        return self._left, self._generator.get_state()

    def restore(self, state: tuple[Tensor, Tensor]) -> None:
        """Continue from a saved :meth:`state`."""
        self._left, generator = state
        self._generator.set_state(generator)
