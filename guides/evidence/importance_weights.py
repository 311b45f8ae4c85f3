"""Log importance weights of many draws for many rows, a bounded number at a time, through one graph."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from guides.compile.executable import Executable
from guides.errors import OptionError, UnsupportedModelError
from guides.optimise.memory import CountElements
from guides.program.data import Data
from guides.program.noise import Noise, NoiseLayout, NoiseTape
from guides.program.program import Program
from guides.program.rows import row_log_weights
from guides.program.sites import nodes
from guides.program.vectorise import Vectorised

__all__ = ["Plan", "WeightKernel", "log_weights", "rows_apart"]

_ELEMENTS_PER_CHUNK = {"cpu": 2**25, "cuda": 2**28}  # of all tensors that an evaluation makes: 128 MiB, 1 GiB
_DRAWS_PER_ROW = 50  # at least, if there are as many: an encoder runs once for all draws of a row in a chunk
_SECONDS_PER_ELEMENT = 10 / 2**33  # about, of work by a graph
_WORTH_TRACING = 4  # chunks
_CALLS_TO_PREPARE = 2  # to trace, and to check


@dataclass(frozen=True)
class Plan:
    """How rows and draws are cut into equal chunks; the last ones reach beyond the end, and the excess is dropped.

    :ivar rows: rows of a chunk.
    :ivar draws: draws of a chunk.
    :ivar elements: how many numbers one draw of one row makes on the way to its weight, all operations together.
    """

    rows: int
    draws: int
    elements: int

    @classmethod
    def make(cls, size: int, num_samples: int, elements: int, chunk: int | None, device: torch.device) -> Plan:
        """Cut ``size`` rows and ``num_samples`` draws into chunks of at most ``chunk`` draws of a row."""
        most = chunk or max(1, _ELEMENTS_PER_CHUNK["cuda" if device.type == "cuda" else "cpu"] // max(elements, 1))
        rows = _equal(size, max(1, most // min(num_samples, _DRAWS_PER_ROW)))
        return cls(rows, _equal(num_samples, max(1, most // rows)), elements)


def _equal(total: int, most: int) -> int:
    """Return the size of the fewest equal parts of ``total`` that have at most ``most``."""
    return math.ceil(total / math.ceil(total / most))


def rows_apart(program: Program) -> bool:
    """Tell whether every latent belongs to a row and is computed from it by the guide, so that rows are independent."""
    return set(program.latents) <= program.amortized


def log_weights(model_trace: Trace, guide_trace: Trace, denominator: str = "full") -> Tensor:
    r"""Return :math:`\log p(x_n, z_n) - \log q(z_n)` in nats, shape ``(rows,)``, or ``(1,)`` with the total.

    :param denominator: ``"full"``, or ``"component"`` to divide by the density of the component that a mixture drew from.
    :raises OptionError: for another word, or ``"component"`` where the guide is no mixture.
    """
    weights, _ = row_log_weights(model_trace, guide_trace)
    if denominator == "full":
        return weights
    mixtures = [s for s in nodes(guide_trace).values() if hasattr(s.get("fn"), "log_excess")]
    if denominator != "component" or not mixtures:
        raise OptionError(
            f"denominator={denominator!r}: use 'full'" + ", as this guide is no mixture" * (denominator == "component")
        )
    return sum((s["fn"].log_excess(s["value"]).reshape(-1) for s in mixtures), start=weights)


class WeightKernel:
    """Evaluate log weights of ``plan.draws`` draws for ``plan.rows`` rows, always the same operations.

    The operations are recorded, and compiled where that pays, before the first result, and what is done depends on the sizes
    alone: a run that is continued gives the same bits as one that was not interrupted.

    :param flat: parameters, shape ``(size,)``.
    :param data: the rows to choose from.
    :param num_samples: draws per row that will be asked for in all.
    :param chunk: draws of a row to hold in memory at once; by default as many as make 2^25 numbers (2^28 on a GPU).
    :param denominator: see :func:`log_weights`.
    :param compile: as for :func:`guides.fit`.
    """

    def __init__(
        self,
        program: Program,
        flat: Tensor,
        data: Data,
        num_samples: int,
        *,
        chunk: int | None = None,
        denominator: str = "full",
        compile: str = "auto",
    ) -> None:
        self.apart = rows_apart(program)
        self._program, self._flat, self._data, self._denominator = program, flat, data, denominator
        self._tensors = tuple(data.rows) if self.apart else ()
        self._over_draws = Vectorised("draws")
        size = data.size if self.apart else 1
        self.plan = Plan.make(size, num_samples, self._elements(), chunk, flat.device)
        self.blocks = math.ceil(size / self.plan.rows)
        self.chunks = math.ceil(num_samples / self.plan.draws)
        self.layout = self._record(self.rows_of(torch.zeros(self.plan.rows, dtype=torch.long, device=flat.device)))
        few = self.blocks * self.chunks < _WORTH_TRACING
        self.mode = "eager" if compile == "auto" and few else compile
        seconds = _SECONDS_PER_ELEMENT * self.plan.rows * self.plan.draws * self.plan.elements
        self._weights = Executable(self._many, "the model", self.mode, seconds=seconds)
        self._prepared = False

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self._flat.device

    def index(self, block: int) -> tuple[Tensor, int]:
        """Return the row numbers of a block, shape ``(plan.rows,)``, and how many of them are to be kept."""
        if not self.apart:
            return torch.zeros(1, dtype=torch.long, device=self._flat.device), 1
        start = block * self.plan.rows
        index = torch.arange(start, start + self.plan.rows, device=self._flat.device)
        return index.clamp(max=self._data.size - 1), min(self.plan.rows, self._data.size - start)

    def __call__(self, index: Tensor, generator: torch.Generator) -> Tensor:
        """Return log weights in nats, float64 of shape ``(plan.rows, plan.draws)``; call it inside ``quiet()`` without
        gradients.

        :param index: row numbers, shape ``(plan.rows,)``.
        :param generator: of the draws' noise.
        """
        noise = self.layout.draw((self.plan.draws,), generator)
        inputs = (*self.rows_of(index), noise.normals, noise.uniforms)
        if not self._prepared:
            self._prepared = True
            with torch.random.fork_rng():  # a run that is continued prepares at another draw than one that is not
                for _ in range(_CALLS_TO_PREPARE):
                    self._evaluate(inputs)
        return self._evaluate(inputs).double()

    def _evaluate(self, inputs: tuple[Tensor, ...]) -> Tensor:
        return self._weights.only(inputs, self.blocks * self.chunks)

    def rows_of(self, index: Tensor) -> tuple[Tensor, ...]:
        """Return the model's tensors for the rows ``index``."""
        return tuple(self._data.args[i].index_select(0, index) for i in self._tensors)

    def _arguments(self, tensors: tuple[Tensor, ...]) -> tuple[Any, ...]:
        args = list(self._data.args)
        for i, tensor in zip(self._tensors, tensors):
            args[i] = tensor
        return tuple(args)

    def draw(
        self, tensors: tuple[Tensor, ...], tape: NoiseTape, around: AbstractContextManager[Any] | None = None
    ) -> tuple[Tensor, Trace]:
        """Return the log weights of one draw for the rows ``tensors``, and the guide's trace.

        :param around: a context for the guide to run in.
        """
        args, kwargs = self._arguments(tensors), self._data.kwargs

        def run() -> tuple[Tensor, Trace]:
            with tape:
                with around or nullcontext():
                    guide_trace = poutine.trace(self._program.guide).get_trace(*args, **kwargs)
                model_trace = poutine.trace(poutine.replay(self._program.model, trace=guide_trace)).get_trace(
                    *args, **kwargs
                )
                return log_weights(model_trace, guide_trace, self._denominator), guide_trace

        found: tuple[Tensor, Trace] = self._program.call(self._flat, run)
        rows = len(tensors[0]) if tensors else 1
        if found[0].shape != (rows,):
            raise UnsupportedModelError(
                f"the sites of model and guide are not all in one plate of the {rows} rows, so a row has no log density of "
                f'its own (found shape {tuple(found[0].shape)}); put every site into pyro.plate("data", len(x))'
            )
        return found

    def _many(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Take rows, normals and uniforms, and return log weights of shape ``(rows, draws)``."""
        *tensors, normals, uniforms = inputs

        def one(normals: Tensor, uniforms: Tensor) -> Tensor:
            return self.draw(tuple(tensors), NoiseTape(Noise(normals, uniforms)))[0]

        found = self._over_draws(one, (0, 0), normals, uniforms).mT
        if self._over_draws.looping:
            self._weights.run_as_it_is()  # a graph of every draw by itself would be as slow, and long to make
        return (found,)

    def _record(self, tensors: tuple[Tensor, ...]) -> NoiseLayout:
        tape = NoiseTape()
        self.draw(tensors, tape)
        return tape.used

    def _elements(self) -> int:
        """Count what one draw of one row makes: the difference of two counts, without what all rows share."""
        counts = []
        for rows in (1, 2) if self.apart else (1,):
            tensors = self.rows_of(torch.zeros(rows, dtype=torch.long, device=self._flat.device))
            with CountElements() as count:
                self._record(tensors)
            counts.append(count.elements)
        return max(1, counts[-1] - counts[0] if self.apart else counts[0])
