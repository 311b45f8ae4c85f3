"""A pure function of tensors that is called often: as it is, by its graph, or by a library, whichever pays.

What is done for steps, validation scores, importance weights and searches is decided here: when to trace, when to compile,
what to say where that cannot be done.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from guides.compile.agreement import Judge
from guides.compile.compilers import CompilerError
from guides.compile.cuda_graphs import RecordedLoop
from guides.compile.fallback import warn_slower
from guides.compile.loops import CompiledLoop, has_compiler
from guides.compile.native.build import NativeLoop
from guides.compile.native.expressions import Unsupported
from guides.compile.tracing import Traced, said

__all__ = ["COMPILE_MODES", "Executable"]

COMPILE_MODES = ("auto", "eager", "trace", "native")
"""Ways to run a function: ``"eager"`` calls it; ``"trace"`` replays its graph; ``"native"`` compiles that; ``"auto"`` takes
what pays."""

Inputs = tuple[Tensor, ...]

_GAIN = 0.7  # of the time of a traced call is what a compiled one saves
_UNTYPICAL = 2  # calls, which trace and check
_MEASURED, _LONG = 10, 0.1  # calls, or seconds of calls, that tell how long one takes
_LARGE = 2000  # operations of a graph
_SECONDS_PER_NODE = 4e-3  # to write C++ for a large graph


class Executable:
    """A function that runs as fast as its mode allows, and as it pays.

    :param function: pure, from tensors to a tuple of tensors.
    :param what: names it in warnings.
    :param mode: one of ``COMPILE_MODES``.
    :param fixed: positions of inputs that have the same values at every call; see :class:`~guides.compile.tracing.Traced`.
    :param judge: what is known of the function's results, for comparing a library with its graph.
    :param seconds: how long a traced call takes, where what is done must not depend on the clock, nor on whether a library
        is there already; by default calls are timed.
    """

    def __init__(
        self,
        function: Callable[..., Inputs],
        what: str,
        mode: str,
        *,
        fixed: frozenset[int] = frozenset(),
        judge: Judge | None = None,
        seconds: float | None = None,
    ) -> None:
        self._graphs = Traced(function, what, enabled=mode != "eager", fixed=fixed)
        self._what, self._mode = what, mode
        self._judge = judge or Judge()
        self._seconds = seconds
        self._timings: dict[Any, _Timing] = {}
        self._shapes: dict[Any, torch.Size] = {}
        self._candidates: dict[Any, CompiledLoop | None] = {}
        self._loops: dict[Any, CompiledLoop] = {}

    def __call__(self, *inputs: Tensor) -> Inputs:
        """Return what the function returns, at most by its graph."""
        start = time.perf_counter()
        found = self._graphs(*inputs)
        self._timings.setdefault(_shapes(inputs), _Timing()).add(time.perf_counter() - start)
        return found

    def only(self, inputs: Inputs, left: int) -> Tensor:
        """Return the function's only result, by a library if that pays.

        :param left: how often the function will still be called.
        """
        loop = self.loop((), inputs, (), inputs, left)
        if loop is not None:
            return loop((), inputs, ())[1].reshape(self._shapes[_shapes(inputs)])
        (found,) = self(*inputs)
        self._shapes[_shapes(inputs)] = found.shape
        return found

    def run_as_it_is(self) -> None:
        """Stop tracing."""
        self._graphs.enabled = False

    def check(self, *inputs: Tensor) -> bool:
        """Tell whether the function still does what its graph does; warn and stop using that and all libraries if not."""
        if self._graphs.check(*inputs):
            return True
        self._mode = "eager"
        self._loops.clear()
        return False

    def check_again(self, loop: CompiledLoop, state: Inputs, shared: Inputs, varying: Inputs, since: str) -> None:
        """Compare a library with its graph once more; warn and stop using libraries if it does something else.

        :param since: what is to be said then of what it did before.
        """
        try:
            loop.check(state, shared, varying, self._judge)
        except RuntimeError as error:
            self._loops.clear()
            self._stay_traced(error, since)

    def loop(
        self, state: Inputs, shared: Inputs, varying: Inputs, inputs: Inputs, left: int, done: int = 0
    ) -> CompiledLoop | None:
        """Return a library that makes steps of these shapes, compiling it if that pays.

        :param varying: tensors of the steps of a chunk, of which ``done`` have been taken.
        :param inputs: of one call.
        :param left: calls that are still to come.
        """
        key, capacity = _shapes(inputs), varying[0].shape[1] if varying else 1
        loop = self._loops.get(key)
        if loop is not None and loop.capacity >= capacity:
            return loop
        if self._mode not in ("auto", "native") or inputs[0].device.type not in ("cpu", "cuda"):
            return None
        saved = self._saved(key, left)
        if key not in self._candidates or _capacity(self._candidates[key]) < capacity:
            graph = self._graphs.graph(*inputs)
            if graph is None or not self._worth_a_look(graph, saved):
                return None
            self._candidates[key] = self._candidate(graph, state, shared, varying)
        loop = self._candidates[key]
        if loop is None or not self._wanted(loop, saved):
            return None
        try:
            if not (loop.ready or has_compiler()):
                raise CompilerError("there is no C++ compiler (g++ or clang++)")
            loop.check(state, shared, tuple(v[:, done:] for v in varying), self._judge)
        except Exception as error:  # compilers fail in many ways, and none of them may end a fit
            self._stay_traced(error)
            return None
        self._loops[key] = loop
        return loop

    def _saved(self, key: Any, calls: int) -> float:
        """Return how many seconds a library would save in so many calls; 0 as long as a call's time is not known."""
        timing = self._timings.get(key, _Timing())
        seconds = self._seconds if self._seconds is not None else timing.best if timing.settled else 0.0
        return _GAIN * seconds * calls

    def _wanted(self, loop: CompiledLoop, saved: float) -> bool:
        there = loop.ready and self._seconds is None
        return self._mode != "auto" or there or saved > loop.seconds

    def _worth_a_look(self, graph: GraphModule, saved: float) -> bool:
        """Tell whether to find out what compiling would take, which for a large graph takes long itself."""
        nodes = len(graph.graph.nodes)
        return self._mode != "auto" or nodes <= _LARGE or saved > _SECONDS_PER_NODE * nodes

    def _candidate(self, graph: GraphModule, state: Inputs, shared: Inputs, varying: Inputs) -> CompiledLoop | None:
        """Return a loop that could be compiled, ``None`` where there is none: that is said if it was asked for by name."""
        if not varying and any(i.device.type == "cuda" for i in shared):
            return None
        try:
            if varying and state[0].device.type == "cuda":
                return RecordedLoop(graph, state, shared, varying)
            return NativeLoop(graph, state, shared, varying)
        except Unsupported as error:
            if self._mode == "native":
                self._stay_traced(error)
        except CompilerError as error:
            self._stay_traced(error)
        return None

    def _stay_traced(self, error: Exception, more: str = "") -> None:
        warn_slower(f"{self._what} runs traced, not compiled: {said(error)}{more}")
        self._mode = "trace"


@dataclass
class _Timing:
    """How long a call takes: the shortest of those after the first ones, which trace and check."""

    calls: int = 0
    best: float = math.inf
    total: float = 0.0

    def add(self, seconds: float) -> None:
        self.calls += 1
        if self.calls > _UNTYPICAL:
            self.best = min(self.best, seconds)
            self.total += seconds

    @property
    def settled(self) -> bool:
        return self.calls >= _UNTYPICAL + _MEASURED or self.total > _LONG


def _capacity(loop: CompiledLoop | None) -> float:
    return math.inf if loop is None else loop.capacity


def _shapes(inputs: Inputs) -> Any:
    return tuple((i.shape, i.dtype) for i in inputs)
