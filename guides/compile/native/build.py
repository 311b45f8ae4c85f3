"""Generated loops as libraries."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule

from guides.compile.compilers import CompilerError, built_by, compiler, processor, run_compiler
from guides.compile.loops import LibraryLoop
from guides.compile.native.codegen import source
from guides.compile.native.kernels import ALIGNMENT
from guides.compile.native.lowering import lower
from guides.compile.native.printing import kernels, memory_plan
from guides.compile.native.verify import verify

__all__ = ["MachineCode", "NativeLoop"]

Inputs = tuple[Tensor, ...]

_NUMPY = {torch.float32: np.float32, torch.float64: np.float64}

_SECONDS_PER_CHARACTER = 3e-5  # of generated code, as compilers take for it
_LIMIT, _LATE = 120.0, 20.0  # seconds that a compiler has, and times what it should take
# No number depends on these but by rounding: products and sums may become one operation, and zero has no sign.
_FLAGS = (
    *("-O3", "-std=c++17", "-shared", "-fPIC", "-w"),
    *("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros"),
)


@dataclass(frozen=True)
class MachineCode:
    """A step in memory: ``run(1, places)`` with the places of inputs, constants, results, and aligned memory to work in.

    :ivar address: of ``run``; ``memory``: bytes that it works in, with those that aligning them may cost.
    :ivar owner: what keeps it loaded.
    """

    address: int
    constants: tuple[Tensor, ...]
    results: int
    memory: int
    owner: Any


class NativeLoop(LibraryLoop):
    """Steps as C++ that is generated for them: loops over memory that is laid out beforehand, without a call per operation.

    Without state and varying tensors it is a function of the shared ones, to be called for one step.

    :raises Unsupported: if the graph has an operation that the generator does not know.
    :raises CompilerError: if the compiler does not answer.
    """

    def __init__(self, graph: GraphModule, state: Inputs, shared: Inputs, varying: Inputs) -> None:
        lowered = lower(graph)
        threads = torch.get_num_threads()
        results = lowered.outputs[-1]
        self._results, self._type = results.size, results.dtype
        emitted = source(lowered, len(state), len(shared), results.size, threads)
        if os.environ.get("GUIDES_VERIFY"):
            verify(lowered, emitted)
        self._source, self._lowered, self._emitted = emitted.text, lowered, emitted
        self._flags = (*_FLAGS, *_processor_flags(), "-fopenmp" if threads > 1 else "-fopenmp-simd")
        self._constants = tuple(value for _, value in lowered.constants)
        self._memory = torch.empty(emitted.size + ALIGNMENT, dtype=torch.uint8)
        self._run: Callable[..., None] | None = None
        self._compiler = compiler()
        parts = (processor(), built_by(self._compiler), self._flags, self._source)
        key = hashlib.sha256(repr(parts).encode()).hexdigest()[:40]
        super().__init__(graph, sys.maxsize, key, ".so")
        self.seconds = _SECONDS_PER_CHARACTER * len(self._source)

    def _compile(self, state: Inputs, shared: Inputs, varying: Inputs, path: Path) -> None:
        if self._compiler is None:
            raise CompilerError("there is no C++ compiler (g++ or clang++)")
        text = path.with_suffix(".cpp")
        text.write_text(self._source)
        limit = _LIMIT + _LATE * self.seconds
        run_compiler(self._compiler, (*self._flags, "-o", str(path), str(text)), limit)

    def _load(self, path: Path) -> None:
        run = ctypes.CDLL(str(path)).run
        run.argtypes, run.restype = (ctypes.c_int64, ctypes.c_void_p), None
        self._run = run

    def described(self) -> dict[str, str]:
        """Return the graph, the kernels, where they keep their numbers, and the C++."""
        plan = memory_plan(self._lowered, self._emitted)
        return {**super().described(), "kernels.txt": kernels(self._lowered), "memory.txt": plan, "loop.cpp": self._source}

    def __call__(self, state: Inputs, shared: Inputs, varying: Inputs) -> tuple[Inputs, Tensor]:
        """Return the state after all steps, and losses ``(R, steps)``; see the base class."""
        assert self._run is not None
        steps = varying[0].shape[1] if varying else 1
        new = tuple(torch.empty_like(s, memory_format=torch.contiguous_format) for s in state)
        losses = torch.empty((self._results, steps), dtype=self._type)
        # As a list, so that none is freed before the call is over.
        given = [t.contiguous() for t in (*state, *new, *shared, *self._constants, *(v for v in varying if v.numel()))]
        places: list[Any] = [t.data_ptr() for t in (*given, losses)]
        places.append(-(-self._memory.data_ptr() // ALIGNMENT) * ALIGNMENT)
        self._run(steps, (ctypes.c_void_p * len(places))(*places))
        return new, losses

    def machine_code(self) -> MachineCode:
        """Return where a step without state lies, and what it works on."""
        address = ctypes.cast(self._run, ctypes.c_void_p).value  # type: ignore[arg-type]
        assert address is not None
        constants = tuple(c.contiguous() for c in self._constants)
        return MachineCode(address, constants, self._results, self._memory.numel(), self)

    def function(self) -> Callable[..., np.ndarray]:
        """Return one step without state as a function of arrays, one per shared tensor, with memory of its own.

        It is for one thread at a time, does not check shapes, and returns the same array, filled anew, at every call. Other
        Python threads run meanwhile.
        """
        assert self._run is not None
        run, constants = self._run, tuple(c.contiguous() for c in self._constants)
        inputs = [np.empty(b.size, _NUMPY[b.dtype]) for b in self._lowered.inputs]
        result, memory = np.empty(self._results, _NUMPY[self._type]), np.empty(self._memory.numel(), np.uint8)
        places: list[Any] = [*(i.ctypes.data for i in inputs), *(c.data_ptr() for c in constants), result.ctypes.data]
        places.append(-(-memory.ctypes.data // ALIGNMENT) * ALIGNMENT)
        given = (ctypes.c_void_p * len(places))(*places)

        # What the addresses point to lives as long as the function that holds it.
        def call(*values: np.ndarray, kept: Any = (constants, memory)) -> np.ndarray:
            for place, value in zip(inputs, values):
                place[:] = value
            run(1, given)
            return result

        return call


def _processor_flags() -> tuple[str, ...]:
    """Return what makes the compiler use all that the processor can do."""
    return ("-mcpu=native",) if platform.machine() in ("arm64", "aarch64") else ("-march=native",)
