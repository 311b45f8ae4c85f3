"""A function of a few flat vectors as its graph, and as machine code that has memory of its own for every thread."""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule

from guides.compile.fallback import warn_slower
from guides.compile.loops import has_compiler
from guides.compile.native.build import MachineCode, NativeLoop
from guides.compile.native.expressions import Unsupported
from guides.compile.simplify import simplified, with_constants_computed
from guides.compile.tracing import recorded, said
from guides.density.doubles import double_by_default
from guides.program.vectorise import Vectorised

__all__ = ["Kernel", "Workspace"]

_AGREE = 1e-9  # of the largest number of a result: what the order of sums can change in double precision

Point = tuple[Tensor, ...]
Workspace = Callable[..., np.ndarray]
"""From one array per input to one array, which the next call overwrites; for one thread at a time."""


class Kernel:
    """A pure function from flat vectors ``(D,)`` to one ``(M,)``, in double precision.

    :param function: runs the model; slow, and right by definition.
    :param points: inputs at which graph and machine code are compared with it.
    :param what: names it in warnings.
    :param mode: one of ``COMPILE_MODES``. ``"auto"`` compiles once calls have cost about what compiling costs.
    """

    def __init__(self, function: Callable[..., Tensor], points: Sequence[Point], what: str, mode: str) -> None:
        self._function, self._points, self._what, self._mode = function, points, what, mode
        self._replay: Callable[..., Tensor] = function
        self._graph: GraphModule | None = None
        self._loop: NativeLoop | None = None
        self._native: Workspace | None = None
        self._spent = 0.0
        self._vectorised = Vectorised("points")
        if mode != "eager":
            self._trace()
        if mode == "native":
            self._compile()

    @property
    def runs(self) -> str:
        """How it runs now: ``"eager"``, ``"trace"`` or ``"native"``."""
        return "eager" if self._graph is None else "trace" if self._native is None else "native"

    def described(self) -> list[Any] | None:
        """Return the operations as text, and their constants; ``None`` if they are not known."""
        if self._graph is None:
            return None
        graph = self._graph
        names = sorted({str(n.target) for n in graph.graph.nodes if n.op == "get_attr"})
        return [graph.code, {name: operator.attrgetter(name)(graph) for name in names}]

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Return the results at each row of the inputs, ``(B, D)`` each, shape ``(B, M)``; for one thread at a time."""
        if self._native is None and self._mode == "auto" and self._spent > self._price():
            self._compile()
        if self._native is not None:
            rows = zip(*(i.numpy() for i in inputs))
            return torch.from_numpy(np.stack([self._native(*row).copy() for row in rows]))
        start = time.perf_counter()
        if len(inputs[0]) == 1:
            found = self._replay(*(i[0] for i in inputs))[None]
        else:
            found = self._vectorised(self._replay, (0,) * len(inputs), *inputs)
        self._spent += time.perf_counter() - start
        return found

    def workspace(self) -> Workspace:
        """Return the function with memory of its own, compiled if it may be: for a thread that calls it very often."""
        if self._mode in ("auto", "native") and self._native is None:
            self._compile()
        if self._loop is not None and self._native is not None:
            return self._loop.function()
        replay = self._replay

        def run(*inputs: np.ndarray) -> np.ndarray:
            found: np.ndarray = replay(*(torch.from_numpy(np.array(i)) for i in inputs)).numpy()
            return found

        return run

    def machine_code(self) -> MachineCode | None:
        """Return where the compiled function lies; ``None`` if it is not compiled."""
        return None if self._native is None or self._loop is None else self._loop.machine_code()

    def _trace(self) -> None:
        try:
            with double_by_default():  # data are the graph's own constants
                graph = _typed(simplified(recorded(lambda *inputs: (self._function(*inputs),), self._points[0])))
                module = with_constants_computed(graph)
        except Exception as error:  # whatever tracing cannot follow, the function itself can do
            warn_slower(f"{self._what} runs without acceleration: it cannot be traced ({said(error)})")
            return

        def replay(*inputs: Tensor) -> Tensor:
            with double_by_default(), torch.no_grad():
                found: Tensor = module(*inputs)[0]
            return found

        if not all(_agree(replay(*p), self._function(*p)) for p in self._points):
            warn_slower(
                f"{self._what} runs without acceleration: its operations depend on the values of latents (a Python "
                "branch on a tensor?)"
            )
            return
        self._graph, self._replay = graph, replay

    def _price(self) -> float:
        """Return about how many seconds compiling takes, infinity if that cannot be done."""
        if self._loop is None and self._graph is not None:
            try:
                with double_by_default():
                    self._loop = NativeLoop(self._graph, (), self._points[0], ())
            except Unsupported as error:
                self._stay_traced(error)
        if self._loop is None:
            return math.inf
        return 0.0 if self._loop.ready else self._loop.seconds

    def _compile(self) -> None:
        if self._price() == math.inf:
            return
        assert self._loop is not None
        try:
            if not (self._loop.ready or has_compiler()):
                raise RuntimeError("there is no C++ compiler (g++ or clang++)")
            with double_by_default():
                self._loop.check((), self._points[0], ())
            native = self._loop.function()
            for point in self._points:
                if not _agree(torch.from_numpy(native(*(p.numpy() for p in point))), self._replay(*point)):
                    raise RuntimeError("the compiled function gives other numbers")
        except Exception as error:  # compilers fail in many ways
            self._stay_traced(error)
            return
        self._native = native

    def _stay_traced(self, error: Exception) -> None:
        warn_slower(f"{self._what} runs traced, not compiled: {said(error)}")
        self._mode, self._loop = "trace", None


def _typed(graph: GraphModule) -> GraphModule:
    """Write down the types of tensors that a graph makes of nothing, which would be of whatever type is the default then."""
    for node in graph.graph.nodes:
        value, schema = node.meta.get("val"), getattr(node.target, "_schema", None)
        if schema is None or node.all_input_nodes or not isinstance(value, Tensor) or "dtype" in node.kwargs:
            continue
        if any(a.name == "dtype" for a in schema.arguments):
            node.kwargs = {**node.kwargs, "dtype": value.dtype}
    graph.recompile()
    return graph


def _agree(one: Tensor, other: Tensor) -> bool:
    """Tell whether two results of the same operations are equal up to rounding in double precision."""
    finite = other[torch.isfinite(other)]
    size = float(finite.abs().max()) if len(finite) else 0.0
    return torch.allclose(one, other, rtol=_AGREE, atol=_AGREE * size, equal_nan=True)
