"""One optimisation step of all replicates as a pure function of tensors, and chunks of such steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from guides.compile.agreement import Judge
from guides.compile.executable import Executable
from guides.compile.failures import at_site
from guides.compile.fallback import warn_slower
from guides.compile.loops import CompiledLoop
from guides.compile.tracing import said
from guides.optimise.batches import IndexStream
from guides.optimise.optimisers import Optimiser
from guides.optimise.precision import products_in
from guides.program.data import Data, stack
from guides.program.program import Program
from guides.program.vectorise import Vectorised

__all__ = ["ChunkRunner", "Inputs", "Replicates"]

_FIRST_CHECK = 50
_FIRST_LOOK = 2000


class Replicates:
    """The data, noise and minibatches of R fits of one program.

    :ivar args: the model's tensors, with a first dimension R unless ``shared``.
    """

    def __init__(
        self,
        program: Program,
        datasets: Sequence[Data],
        seeds: Sequence[int],
        batch_size: int | None,
        precision: str = "float32",
    ) -> None:
        first = datasets[0]
        self._precision = precision
        device = program.parameters.initial.device
        self.program = program
        self.count = len(seeds)
        self.size = first.size
        self.batch_size = batch_size
        self.batch = batch_size or first.size
        self.factor = first.size / self.batch if batch_size else 1.0
        self.shared = all(d is first for d in datasets)
        self._all_args = first.args if self.shared else stack(datasets)
        self._kwargs = first.kwargs
        self._tensors = tuple(i for i, a in enumerate(self._all_args) if isinstance(a, Tensor))
        self._rows = frozenset(first.rows)
        self.args = tuple(self._all_args[i] for i in self._tensors)
        self._over_replicates = Vectorised("replicates")
        self.noise_generators = [torch.Generator(device).manual_seed(s) for s in seeds]
        sizes = [(first.size, batch_size)] if batch_size is not None else []
        sizes += list(program.own.streams.values())
        self.streams = [
            IndexStream(size, part, torch.Generator(device).manual_seed(s + 2**31 + k))
            for k, (size, part) in enumerate(sizes)
            for s in seeds
        ]

    def inputs(self, steps: int) -> Inputs:
        """Draw noise and minibatch indices of the next ``steps`` steps."""
        noise = self.program.noise.draw_each((steps, self.program.particles), self.noise_generators)
        groups = [self.streams[k : k + self.count] for k in range(0, len(self.streams), self.count)]
        return (noise.normals, noise.uniforms, *(torch.stack([s.take(steps) for s in group]) for group in groups))

    def select(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Return the model's tensors for the replicates ``rows``."""
        if self.shared or len(rows) == self.count:
            return self.args
        return tuple(a.index_select(0, rows) for a in self.args)

    def chosen(self, index: Sequence[Tensor]) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Return, of one step's index tensors, the minibatch, and the rows of each plate that the model subsamples."""
        batched = self.batch_size is not None
        rows = dict(zip(self.program.own.streams, index[1:] if batched else index))
        return (index[0] if batched else None), rows

    def arguments(self, tensors: Sequence[Tensor], index: Tensor | None) -> tuple[Any, ...]:
        """Return one replicate's model arguments: its tensors, cut to a minibatch, among the others."""
        args = list(self._all_args)
        for i, a in zip(self._tensors, tensors):
            args[i] = a.index_select(0, index) if index is not None and i in self._rows else a
        return tuple(args)

    @property
    def kwargs(self) -> dict[str, Any]:
        """Keyword arguments of the model."""
        return self._kwargs

    def surrogate_and_value(
        self, flat: Tensor, tensors: Sequence[Tensor], inputs: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return surrogate and value of every replicate at one step, shape ``(R,)`` each.

        :param inputs: the step's number, ``(R, 1)``, noise and, under minibatching, indices.
        """

        def one(flat: Tensor, tensors: tuple[Tensor, ...], inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
            number, normals, uniforms, *index = inputs
            batch, rows = self.chosen(index)
            args = self.arguments(tensors, batch)
            step = number.squeeze(-1)
            with products_in(self._precision):
                estimate = self.program.estimate(flat, normals, uniforms, args, self._kwargs, self.factor, step, rows)
            return estimate.surrogate, estimate.value

        if flat.shape[0] == 1:
            single = tuple(tensors) if self.shared else tuple(t[0] for t in tensors)
            surrogate, value = one(flat[0], single, tuple(i[0] for i in inputs))
            return surrogate.unsqueeze(0), value.unsqueeze(0)
        dims = (0, None if self.shared else 0, 0)
        return self._over_replicates(one, dims, flat, tuple(tensors), tuple(inputs))


Inputs = tuple[Tensor, ...]
"""Noise ``(R, steps, particles, n)`` twice and indices ``(R, steps, rows)`` of minibatches and of subsampled plates."""


class ChunkRunner:
    """Run chunks of steps, as fast as ``mode`` allows.

    :param mode: ``"eager"`` calls the model at every step; ``"trace"`` replays a graph of it; ``"native"`` compiles a loop
        over that graph, and on a GPU records the step as a CUDA graph; ``"auto"`` traces, and compiles once the time left is
        worth it.
    :param clip_norm: largest gradient norm per replicate.
    """

    def __init__(self, replicates: Replicates, optimiser: Optimiser, clip_norm: float | None, mode: str) -> None:
        self._replicates = replicates
        self._optimiser = optimiser
        self._clip_norm = clip_norm
        self._frozen = replicates.program.frozen
        self._plain = False
        data = 1 + optimiser.moments
        fixed = frozenset(range(data, data + len(replicates.args))) if replicates.shared else frozenset()
        judge = Judge(replicates.program.parameters.parts, optimises=True)
        self._step = Executable(self._one_step, "the model", mode, fixed=fixed, judge=judge)
        self._next_check = 0
        self._next_look = _FIRST_LOOK
        self._looked = 0
        self._used: CompiledLoop | None = None
        self._last: tuple[CompiledLoop, Inputs, Inputs, Inputs, int] | None = None

    def _one_step(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Take flat, moments, data, the step's clock and inputs; return state and losses."""
        moments_end = 1 + self._optimiser.moments
        flat, moments = inputs[0], inputs[1:moments_end]
        data_end = moments_end + len(self._replicates.args)
        tensors, (clock, *step_inputs) = inputs[moments_end:data_end], inputs[data_end:]
        rate, number, factors = clock[:, :1], clock[:, 1:2], clock[:, 2:]

        def loss(flat: Tensor) -> tuple[Tensor, Tensor]:
            surrogate, value = self._replicates.surrogate_and_value(flat, tensors, (number, *step_inputs))
            return -surrogate.sum(), -value

        grad, losses = self._gradient(loss, flat)
        if self._frozen is not None:
            grad = torch.where(self._frozen, torch.zeros_like(grad), grad)
        if self._clip_norm is not None:
            norm = grad.norm(dim=-1, keepdim=True)
            grad = grad * (self._clip_norm / norm.clamp(min=self._clip_norm))
        direction, moments = self._optimiser.update(grad, moments, factors)
        return (flat - rate * direction, *moments, losses)

    def _gradient(self, loss: Callable[[Tensor], tuple[Tensor, Tensor]], flat: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradient of the summed loss, and the losses; by plain autograd where torch.func cannot follow."""
        if not self._plain:
            try:
                grad, (_, losses) = torch.func.grad_and_value(loss, has_aux=True)(flat)
                return grad, losses
            except (torch.OutOfMemoryError, torch.linalg.LinAlgError):
                raise
            except RuntimeError as error:
                reason = f"torch.func cannot take its gradient ({said(error)})"
                if "setup_context" in str(error):
                    what = "written by hand, in an autograd function without setup_context"
                    reason = f"a gradient{at_site(error)} is one that torch.func cannot take ({what})"
            found = self._plain_gradient(loss, flat)  # which raises what the model raises by itself
            self._plain = True
            self._step.run_as_it_is()
            warn_slower(f"the model runs without acceleration: {reason}")
            return found
        return self._plain_gradient(loss, flat)

    @staticmethod
    def _plain_gradient(loss: Callable[[Tensor], tuple[Tensor, Tensor]], flat: Tensor) -> tuple[Tensor, Tensor]:
        flat = flat.detach().requires_grad_()
        total, losses = loss(flat)
        return torch.autograd.grad(total, flat)[0], losses.detach()

    def __call__(
        self, state: tuple[Tensor, ...], rows: Tensor, inputs: Inputs, clock: Tensor, first: int, left: int
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Run one chunk.

        :param state: flat parameters and the optimiser's moments of the replicates ``rows``, shape ``(len(rows), size)``
            each.
        :param clock: these steps of :meth:`Optimiser.clock`.
        :param first: 0-based number of the first step.
        :param left: steps still to come after this chunk, for deciding what is worth compiling.
        :returns: the new state, and losses of shape ``(len(rows), steps)``.
        """
        tensors = self._replicates.select(rows)
        steps, count = len(clock), len(rows)
        chosen = inputs if count == self._replicates.count else tuple(i[rows] for i in inputs)
        varying = (clock.expand(count, -1, -1), *chosen)
        self._check_now_and_then(state, tensors, varying, first)
        losses: list[Tensor] = []
        done = 0
        while done < steps:
            now = (*state, *tensors, *(v[:, done] for v in varying))
            loop = self._step.loop(state, tensors, varying, now, steps - done + left, done)
            if loop is not None:
                rest = tuple(v[:, done:] for v in varying) if done else varying
                if loop is not self._used:
                    self._used, self._looked = loop, first + done + 1  # the step before which it was compared
                state, run = loop(state, tensors, rest)
                losses.append(run)
                self._last = loop, state, tensors, rest, first + steps
                if self._next_look <= first + steps < left:  # else the look at the end comes soon
                    self.finish()
                break
            *new, loss = self._step(*now)
            state = tuple(s.detach() for s in new)
            losses.append(loss.detach().unsqueeze(1))
            done += 1
        return state, torch.cat(losses, dim=1) if len(losses) > 1 else losses[0]

    def _check_now_and_then(self, state: Inputs, tensors: Inputs, varying: Inputs, first: int) -> None:
        """Compare graph and model again, at steps ever further apart: a branch may be taken late in a fit only."""
        if first >= self._next_check:
            self._next_check = 2 * first + _FIRST_CHECK
            if first:
                self._step.check(*state, *tensors, *(v[:, 0] for v in varying))

    def finish(self) -> None:
        """Compare the loop that ran last with its graph once more, near the state that it led to.

        Graphs are compared with the model from chunk to chunk, loops with graphs: what a loop does for other numbers than
        those that it began with, and whether its memory is still its own, only later steps can tell.
        """
        if self._last is None:
            return
        loop, state, tensors, varying, step = self._last
        self._last, self._next_look = None, 4 * step
        since = f"; its steps since step {self._looked}, when it was right, may be wrong: fit again with compile='trace'"
        self._step.check_again(loop, state, tensors, varying, since)
        self._looked = step
