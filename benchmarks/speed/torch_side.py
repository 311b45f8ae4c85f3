"""The implementations that run on PyTorch: Pyro, plain PyTorch and ours. Loaded by :mod:`benchmarks.speed.worker`."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyro
import torch
from pyro.infer import SVI, JitTrace_ELBO, Trace_ELBO
from pyro.infer.autoguide import init_to_value
from pyro.optim.optim import PyroOptim
from torch import Tensor

import guides
from benchmarks.running.provenance import versions
from benchmarks.speed import handwritten
from benchmarks.speed.cases import Case
from benchmarks.speed.models import model_and_guide
from guides.optimise.optimisers import make_optimiser
from guides.optimise.step import ChunkRunner, Replicates
from guides.program.data import Data
from guides.program.isolation import quiet, seeded
from guides.program.parameters import isolated_store
from guides.program.program import Program

__all__ = ["CONTENDERS", "facts", "open", "throughput"]

Start = dict[str, Tensor]
Rows = tuple[Tensor, ...]


class _Batches:
    """Row numbers of minibatches, drawn before anything is timed."""

    def __init__(self, case: Case, device: torch.device) -> None:
        shape = (case.replicates, case.batch) if case.replicates > 1 else (case.batch,)
        generator = torch.Generator().manual_seed(1)
        self._rows = [
            torch.randint(case.rows, shape, generator=generator).to(device) for _ in range(64 if case.batch else 0)
        ]
        self._next = 0

    def take(self, data: Rows) -> Rows:
        """Return the rows of the next step, all of them if there are no minibatches."""
        if not self._rows:
            return data
        self._next = (self._next + 1) % len(self._rows)
        return tuple(a[self._rows[self._next]] for a in data)


class _Pyro:
    """Stock Pyro: one ``SVI.step`` per step, validation off."""

    steps = 1

    def __init__(self, case: Case, start: Start, data: Rows, jit: bool) -> None:
        if case.replicates > 1:
            raise NotImplementedError("Pyro has no replicates")
        model, guide = model_and_guide(case, start, stock=True)
        vectorised: dict[str, Any] = {"num_particles": case.particles}
        if case.particles > 1:
            vectorised |= {"vectorize_particles": True, "max_plate_nesting": 1}
        objective = JitTrace_ELBO(ignore_jit_warnings=True, **vectorised) if jit else Trace_ELBO(**vectorised)
        self._svi = SVI(model, guide, PyroOptim(torch.optim.Adam, {"lr": case.lr}), objective)
        self._data, self._batches = data, _Batches(case, data[0].device)
        self._store: Any = None

    def run(self, steps: int) -> list[float]:
        with pyro.get_param_store().scope(self._store) as self._store, pyro.validation_enabled(False):
            return [self._svi.step(*self._batches.take(self._data)) for _ in range(steps)]

    def losses(self, outcome: list[float]) -> list[float]:
        return outcome


class _Handwritten:
    """Plain PyTorch with fused Adam; particles and replicates by ``vmap``."""

    steps = 1

    def __init__(self, case: Case, start: Start, data: Rows, compiled: bool) -> None:
        self._parameters = handwritten.parameters(case, start)
        if case.replicates > 1:
            self._parameters = {n: p.expand(case.replicates, *p.shape).clone() for n, p in self._parameters.items()}
        for parameter in self._parameters.values():
            parameter.requires_grad_()
        self._optimiser = torch.optim.Adam(self._parameters.values(), lr=case.lr, fused=True)
        self._data, self._batches = data, _Batches(case, data[0].device)
        self._loss = torch.compile(self._losses(case)) if compiled else self._losses(case)

    @staticmethod
    def _losses(case: Case) -> Callable[..., Tensor]:
        def one(p: Start, x: Tensor, y: Tensor | None = None) -> Tensor:
            if case.particles == 1:
                return handwritten.particle_loss(case, p, x, y)
            drawn = torch.vmap(lambda _: handwritten.particle_loss(case, p, x, y), randomness="different")
            return drawn(torch.arange(case.particles, device=x.device)).mean()

        if case.replicates == 1:
            return one
        return lambda p, *data: torch.vmap(one, randomness="different")(p, *data)

    def run(self, steps: int) -> list[Tensor]:
        collected = []
        for _ in range(steps):
            self._optimiser.zero_grad()
            losses = self._loss(self._parameters, *self._batches.take(self._data))
            losses.sum().backward()
            self._optimiser.step()
            collected.append(losses.detach())
        return collected

    def losses(self, outcome: list[Tensor]) -> list[float]:
        return [float(loss.mean()) for loss in outcome]


_TIMED = 100_000
"""Steps that have a clock of their own; what Adam needs to know of later ones no longer changes."""


class _Ours:
    """The engine behind ``guides.fit``, driven as ``fit`` drives it: noise and minibatches are drawn in the timed part.

    Noise and minibatches are drawn for a chunk of the case's steps at a time, also where a call takes one step.

    :param mode: what ``fit`` calls ``compile``.
    :param steps: steps in one call.
    :param default: the family and the objective that ``fit`` takes by itself, instead of those of the others (Pyro's
        ``AutoNormal`` and an ELBO without closed forms).
    """

    def __init__(self, case: Case, start: Start, data: Rows, mode: str, steps: int, default: bool = False) -> None:
        model, guide = model_and_guide(case, start, stock=False)
        if default:
            guide = guides.MeanField(model, init_scale=case.init_scale, init_loc_fn=init_to_value(values=start))
        objective = guides.ELBO(case.particles, kl="closed_form" if default else "monte_carlo")
        training = Data.of(data)
        batch_size = case.batch or None
        with isolated_store(), seeded(0):
            program = Program.build(model, guide, objective, training, batch_size=batch_size, seed=0)
        count = case.replicates
        self._replicates = Replicates(program, [training] * count, list(range(count)), batch_size)
        optimiser = make_optimiser("adam")
        self._runner = ChunkRunner(self._replicates, optimiser, None, mode)
        flat = program.parameters.initial.to(data[0].device).expand(count, -1).clone()
        self._state: tuple[Tensor, ...] = (flat, torch.zeros_like(flat), torch.zeros_like(flat))
        self._running = torch.arange(count, device=flat.device)
        self._clock = optimiser.clock(torch.full((_TIMED,), case.lr, device=flat.device))
        self._done = 0
        self._drawn = max(steps, case.chunk)
        self._inputs: tuple[Tensor, ...] = ()
        self.steps = steps

    def _next_inputs(self) -> tuple[Tensor, ...]:
        start = self._done % self._drawn
        if start == 0:
            self._inputs = self._replicates.inputs(self._drawn)
        return tuple(i[:, start : start + self.steps] for i in self._inputs)

    def run(self, steps: int) -> list[Tensor]:
        collected = []
        with isolated_store(), quiet(), torch.enable_grad():
            for _ in range(max(1, steps // self.steps)):
                inputs, first = self._next_inputs(), min(self._done, _TIMED - self.steps)
                clock = self._clock[first : first + self.steps]
                self._state, losses = self._runner(self._state, self._running, inputs, clock, self._done, left=10**9)
                self._done += self.steps
                collected.append(losses)
        return collected

    def losses(self, outcome: list[Tensor]) -> list[float]:
        return [float(loss) for losses in outcome for loss in losses.mean(0)]


CONTENDERS: dict[str, Callable[[Case, Start, Rows], Any]] = {
    "pyro": lambda case, start, data: _Pyro(case, start, data, jit=False),
    "pyro_jit": lambda case, start, data: _Pyro(case, start, data, jit=True),
    "torch": lambda case, start, data: _Handwritten(case, start, data, compiled=False),
    "torch_compiled": lambda case, start, data: _Handwritten(case, start, data, compiled=True),
    "ours_eager": lambda case, start, data: _Ours(case, start, data, "eager", 1),
    "ours_trace": lambda case, start, data: _Ours(case, start, data, "trace", case.chunk),
    "ours_step": lambda case, start, data: _Ours(case, start, data, "native", 1),
    "ours_loop": lambda case, start, data: _Ours(case, start, data, "native", case.chunk),
    "ours_default": lambda case, start, data: _Ours(case, start, data, "native", case.chunk, default=True),
}

WARM_UP_CALLS = 5


class _Contender:
    """Runs an implementation with its case's number of threads, waits for the device, and keeps the first losses."""

    def __init__(self, implementation: Any, case: Case) -> None:
        self._implementation = implementation
        self._threads = case.threads or os.cpu_count() or 1
        self._device = case.device
        self._history: list[float] = []
        self.steps: int = implementation.steps
        self.notes: Sequence[str] = ()

    def run(self, steps: int) -> Any:
        """Take steps and return their losses in the implementation's own form."""
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        outcome = self._implementation.run(steps)
        if self._device == "cuda":
            torch.cuda.synchronize()
        return outcome

    def train(self, steps: int) -> list[float]:
        """Return the losses of the first ``steps`` steps, taking those that are still missing."""
        while len(self._history) < steps:
            self._history += self._implementation.losses(self.run(max(self.steps, min(50, steps - len(self._history)))))
        return self._history[:steps]


def open(case: dict[str, Any], arrays: str, contender: str) -> Any:
    """Build an implementation of a case and run it a few times, so that everything is compiled.

    :param case: :attr:`Case.spec`.
    :param arrays: file with data and starting point, written by ``numpy.savez``.
    """
    made = Case(**{**case, "sizes": tuple(case["sizes"])})
    device = torch.device(made.device)
    with np.load(arrays) as found:
        tensors = {name: torch.from_numpy(found[name]).to(device) for name in found.files}
    start = {name.removeprefix("start/"): value for name, value in tensors.items() if name.startswith("start/")}
    data = tuple(tensors[name] for name in ("x", "y") if name in tensors)
    torch.manual_seed(0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ready = _Contender(CONTENDERS[contender](made, start, data), made)
        ready.train(WARM_UP_CALLS * ready.steps)
    ready.notes = [str(w.message) for w in caught if issubclass(w.category, guides.errors.EagerFallbackWarning)]
    return ready


def throughput(size: int = 8192, repeats: int = 10) -> dict[str, Any]:
    """Return the floating-point operations per second that the GPU reaches in a large product of float32 matrices."""
    a = torch.randn(size, size, device="cuda")
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        a @ a
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return {"flops": 2.0 * size**3 / sorted(times)[repeats // 2]}


def facts() -> dict[str, Any]:
    """Return versions and the device."""
    return {"versions": versions(), "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None}
