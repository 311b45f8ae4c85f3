"""Loops of steps compiled by PyTorch's Inductor: what the generator of C++ cannot express."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import logging
import operator
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from guides.compile.compilers import built_by, compiler, processor
from guides.compile.loops import LibraryLoop
from guides.compile.simplify import with_small_pieces_added

__all__ = ["InductorLoop", "silent_compiler"]

Inputs = tuple[Tensor, ...]

_FORMAT = 1
_LEAST_SECONDS = 15.0
_SMALL_GRAPH = 160  # operations


class _Loop(nn.Module):
    """Repetitions of a graph in one ``while_loop``, of which one repetition needs none; see :class:`InductorLoop`.

    :param graph: takes its constants as its last inputs; they come last among the shared ones.
    """

    def __init__(self, graph: GraphModule, carried: int, shared: int, constants: int, capacity: int) -> None:
        super().__init__()
        self._graph = graph
        self._constants = constants
        self._carried, self._shared, self._capacity = carried, shared, capacity

    def forward(self, limit: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        from torch._higher_order_ops.while_loop import while_loop

        end = self._carried + self._shared
        state, fixed, varying = inputs[: self._carried], inputs[self._carried : end], inputs[end:]
        fixed, constants = fixed[: len(fixed) - self._constants], fixed[len(fixed) - self._constants :]
        if self._capacity == 1:
            *new, loss = self._graph(*state, *fixed, *(v[:, 0] for v in varying), *constants)
            return (*new, loss.unsqueeze(1))
        losses = torch.zeros(state[0].shape[0], self._capacity, dtype=state[0].dtype, device=state[0].device)

        def more(i: Tensor, *_: Tensor) -> Tensor:
            return i < limit

        # What the body only reads is captured, not carried: what is carried is copied at every step.
        def body(i: Tensor, losses: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
            k = i.reshape(1)
            now = [v.index_select(1, k).squeeze(1) for v in varying]
            *new, loss = self._graph(*state, *fixed, *now, *constants)
            return (i + 1, losses.index_copy(1, k, loss.unsqueeze(1)), *new)

        _, losses, *new = while_loop(more, body, (torch.zeros((), dtype=torch.long), losses, *state))
        return (*new, losses)


class InductorLoop(LibraryLoop):
    """Steps compiled by PyTorch's Inductor, ahead of time: any operation, at the price of a long compilation.

    One library serves whatever the values of the graph's constants. There is one for each graph, shapes, number of threads,
    processor and version of PyTorch.
    """

    def __init__(self, graph: GraphModule, state: Inputs, shared: Inputs, varying: Inputs) -> None:
        lifted, self._constants = _with_constants_as_inputs(with_small_pieces_added(graph))
        split = (len(state), len(shared) + len(self._constants), len(self._constants))
        capacity = varying[0].shape[1]
        self._loop = _Loop(lifted, *split, capacity)
        key = _key(lifted, (*state, *shared, *self._constants, *varying), split)
        super().__init__(graph, capacity, key, ".pt2")
        # A step is one function for the C++ compiler, whose time grows with the square of its length: 160 operations take
        # 15 seconds, 650 more than 200.
        self.seconds = _LEAST_SECONDS * max(1.0, len(graph.graph.nodes) / _SMALL_GRAPH) ** 2
        self._limit = torch.tensor(self.capacity)
        self._run: Any = None

    def _compile(self, state: Inputs, shared: Inputs, varying: Inputs, path: Path) -> None:
        _compile(self._loop, (self._limit, *self._inputs(state, shared, varying)), path)

    def _load(self, path: Path) -> None:
        self._run = _load(path)

    def __call__(self, state: Inputs, shared: Inputs, varying: Inputs) -> tuple[Inputs, Tensor]:
        """Return the state after all steps, and losses ``(R, steps)``; see the base class."""
        steps = varying[0].shape[1]
        inputs = self._inputs(state, shared, varying)
        *new, losses = self._run([self._limit if steps == self.capacity else torch.tensor(steps), *inputs])
        return tuple(new), losses if steps == self.capacity else losses[:, :steps]

    def _inputs(self, state: Inputs, shared: Inputs, varying: Inputs) -> Inputs:
        """Return what the library takes: as many steps as it has room for, in memory in the order of its examples."""
        if varying[0].shape[1] < self.capacity:
            varying = tuple(_padded(v, self.capacity) for v in varying)
        return tuple(t.contiguous() for t in (*state, *shared, *self._constants, *varying))


def _padded(varying: Tensor, capacity: int) -> Tensor:
    padded = varying.new_zeros((varying.shape[0], capacity, *varying.shape[2:]))
    padded[:, : varying.shape[1]] = varying
    return padded


def _with_constants_as_inputs(graph: GraphModule) -> tuple[GraphModule, Inputs]:
    """Return the graph with its tensor constants as further inputs, so that one library serves whatever their values."""
    body = copy.deepcopy(graph.graph)
    constants: list[Tensor] = []
    last = [node for node in body.nodes if node.op == "placeholder"][-1]
    for node in [node for node in body.nodes if node.op == "get_attr"]:
        value = operator.attrgetter(node.target)(graph)
        if isinstance(value, Tensor):
            with body.inserting_after(last):
                last = body.placeholder(f"constant_{len(constants)}")
            constants.append(value.detach())
            node.replace_all_uses_with(last)
            body.erase_node(node)
    return GraphModule(graph, body), tuple(constants)


def _key(graph: GraphModule, examples: Sequence[Tensor], split: tuple[int, ...]) -> str:
    """Return a name for everything that the compiled library depends on."""
    made_for = (processor(), torch.backends.cpu.get_cpu_capability(), torch.get_num_threads(), built_by(compiler()))
    described = [(tuple(e.shape), str(e.dtype), str(e.device)) for e in examples]
    whole = repr((_FORMAT, torch.__version__, made_for, split, described, graph.code))
    return hashlib.sha256(whole.encode()).hexdigest()[:40]


def _compile(loop: _Loop, examples: Inputs, path: Path) -> None:
    from torch._inductor import aoti_compile_and_package

    with silent_compiler(), torch.no_grad():
        exported = torch.export.export(loop, tuple(e.clone() for e in examples))
        aoti_compile_and_package(exported, package_path=str(path))


def _load(path: Path) -> Any:
    """Return a function from a list of tensors to a list of tensors.

    The class behind ``torch._inductor.aoti_load_package`` is used by itself where it has the expected form: the function
    imports the whole compiler first, which takes seconds.
    """
    try:
        return torch._C._aoti.AOTIModelPackageLoader(str(path), "model", False, 1, -1).run
    except (AttributeError, TypeError):
        from torch._inductor import aoti_load_package

        return aoti_load_package(str(path)).loader.run


@contextlib.contextmanager
def silent_compiler() -> Iterator[None]:
    """Keep the compiler's remarks off the caller's terminal."""
    logs = [logging.getLogger(name) for name in ("torch._inductor", "torch._export", "torch.export")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(logs, levels):
            log.setLevel(level)
