"""Steps on a GPU, recorded as a CUDA graph: one launch for a whole step, and no look at a result in between."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.fx import GraphModule

from guides.compile.loops import CompiledLoop

__all__ = ["RecordedLoop", "record"]

Inputs = tuple[Tensor, ...]

_WARM_UP = 3  # runs before a recording, in which libraries choose algorithms and allocate what they work in


def record(step: Callable[[], None]) -> Callable[[], None]:
    """Return a function that repeats what ``step`` does on the GPU, after having done it some times."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UP):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    replay: Callable[[], None] = graph.replay
    return replay


class RecordedLoop(CompiledLoop):
    """Steps of a graph between tensors that stay where they are.

    A recording repeats the same operations on the same memory. So state, data and the inputs of all steps of a chunk are
    copied into memory of its own, a counter there says which step is next, and a step ends by replacing the state and
    counting on. The host launches steps and waits for none of them.
    """

    seconds = 0.0

    def __init__(self, graph: GraphModule, state: Inputs, shared: Inputs, varying: Inputs) -> None:
        super().__init__(graph, varying[0].shape[1], ready=True)
        self._state = tuple(s.clone() for s in state)
        self._shared = tuple(t.clone() for t in shared)
        self._varying = tuple(v.contiguous().clone() for v in varying)
        self._losses = state[0].new_zeros((len(state[0]), self.capacity))
        self._next = torch.zeros(1, dtype=torch.long, device=state[0].device)
        self._replay: Callable[[], None] | None = None

    def _step(self) -> None:
        now = (v.index_select(1, self._next).squeeze(1) for v in self._varying)
        *new, loss = self._graph(*self._state, *self._shared, *now)
        for old, value in zip(self._state, new):
            old.copy_(value)
        self._losses.index_copy_(1, self._next, loss.unsqueeze(1))
        self._next.add_(1).remainder_(self.capacity)

    def _prepare(self, state: Inputs, shared: Inputs, varying: Inputs) -> None:
        self._replay = record(self._step)

    def __call__(self, state: Inputs, shared: Inputs, varying: Inputs) -> tuple[Inputs, Tensor]:
        """Return the state after all steps, and losses ``(R, steps)``; see the base class."""
        assert self._replay is not None
        steps = varying[0].shape[1]
        for mine, given in zip((*self._state, *self._shared), (*state, *shared)):
            mine.copy_(given)
        for mine, given in zip(self._varying, varying):
            mine[:, :steps].copy_(given)
        self._next.zero_()
        for _ in range(steps):
            self._replay()
        return tuple(s.clone() for s in self._state), self._losses[:, :steps].clone()
