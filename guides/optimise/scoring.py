"""The validation score: how well parameters do on rows that were held out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import torch
from torch import Tensor

from guides.compile.executable import Executable
from guides.optimise.step import Replicates
from guides.program.data import Data, stack
from guides.program.noise import Noise, NoiseLayout
from guides.program.sites import is_latent, is_observed, nodes
from guides.program.vectorise import Vectorised

__all__ = ["validation_score"]

_ELEMENTS_PER_CHUNK = 2**22


def validation_score(
    replicates: Replicates, validations: Sequence[Data], seeds: Sequence[int], samples: int, mode: str, calls: int
) -> Callable[[Tensor], Tensor]:
    """Return a function from parameters ``(R, size)`` to a score per validation point in nats, ``(R,)``.

    Where all latents are global, the score is the mean log predictive density. Where a guide computes latents from the rows
    it is given, it is the value of the objective on the held-out rows, each standing for its share of the training rows. The
    draws' noise is fixed, so that scores of different epochs differ by the parameters only.

    :param mode: how it runs; see :class:`~guides.optimise.step.ChunkRunner`.
    :param calls: how often it will be called at most.
    """
    if replicates.program.amortized:
        return _objective_score(replicates, validations, seeds, mode, calls)
    return _predictive_score(replicates, validations, seeds, samples, mode, calls)


class _Arguments:
    """The validation data of all replicates as one list of tensors, stacked unless they are shared."""

    def __init__(self, validations: Sequence[Data]) -> None:
        first = validations[0]
        self.shared = all(v is first for v in validations)
        self._args = first.args if self.shared else stack(validations)
        self._tensors = tuple(i for i, a in enumerate(self._args) if isinstance(a, Tensor))
        self._rows = first.rows
        self.dims = tuple(None if self.shared else 0 for _ in self._tensors)
        self.kwargs = first.kwargs

    def tensors(self, start: int = 0, stop: int | None = None) -> tuple[Tensor, ...]:
        """Return the tensors, those with rows cut to some of them."""
        cut = (slice(start, stop),) if self.shared else (slice(None), slice(start, stop))
        return tuple(self._args[i][cut] if i in self._rows else self._args[i] for i in self._tensors)

    def fill(self, values: Sequence[Tensor]) -> list[Any]:
        """Return one replicate's model arguments."""
        arguments: list[Any] = list(self._args)
        for i, value in zip(self._tensors, values):
            arguments[i] = value
        return arguments


def _predictive_score(
    replicates: Replicates, validations: Sequence[Data], seeds: Sequence[int], samples: int, mode: str, calls: int
) -> Callable[[Tensor], Tensor]:
    program, arguments = replicates.program, _Arguments(validations)
    device = program.parameters.initial.device
    strata = program.strata(device)
    samples = len(strata) * math.ceil(samples / len(strata))  # every component as often as every other
    layout = program.noise_for(validations[0])  # dropout, for one, draws as often as there are rows
    normals, uniforms = _draw(layout, samples, [torch.Generator(device).manual_seed(s + 2**33) for s in seeds])
    which = strata.repeat(samples // len(strata))
    over_samples, over_replicates = Vectorised("draws"), Vectorised("replicates")

    def one(flat: Tensor, normals: Tensor, uniforms: Tensor, *values: Tensor) -> Tensor:
        def log_likelihood(normals: Tensor, uniforms: Tensor, stratum: Tensor) -> Tensor:
            noise = Noise(normals, uniforms)
            return program.log_likelihood(flat, noise, stratum, arguments.fill(values), arguments.kwargs)

        per_draw = over_samples(log_likelihood, (0, 0, 0), normals, uniforms, which)
        scores = torch.logsumexp(per_draw, 0) - math.log(samples)
        first = Noise(normals[0], uniforms[0])
        there = program.rows_there(flat, first, arguments.fill(values), arguments.kwargs)
        return scores.mean() if there is None else torch.where(there, scores, 0.0).sum() / there.sum().clamp(min=1)

    dims = (0, 0, 0, *arguments.dims)
    executable = Executable(lambda *i: (over_replicates(one, dims, *i),), "the validation score", mode)
    left = count(calls, -1)

    def score(flat: Tensor) -> Tensor:
        with torch.no_grad():
            return executable.only((flat, normals, uniforms, *arguments.tensors()), next(left))

    return score


def _objective_score(
    replicates: Replicates, validations: Sequence[Data], seeds: Sequence[int], mode: str, calls: int
) -> Callable[[Tensor], Tensor]:
    program, arguments, rows = replicates.program, _Arguments(validations), validations[0].size
    device = program.parameters.initial.device
    per_row = _elements_per_row(replicates) * program.particles * len(seeds)
    size = max(1, min(rows, _ELEMENTS_PER_CHUNK // per_row))
    pieces = [(start, min(start + size, rows)) for start in range(0, rows, size)]
    layouts = {n: program.noise_for(validations[0].head(n)) for n in {stop - start for start, stop in pieces}}
    step = torch.tensor(math.inf, device=device)
    over_replicates = Vectorised("replicates")

    def one(rows: Tensor, flat: Tensor, normals: Tensor, uniforms: Tensor, *values: Tensor) -> Tensor:
        factor = replicates.size / len(rows)
        args = arguments.fill(values)
        estimate = program.estimate(flat, normals, uniforms, args, arguments.kwargs, factor, step)
        return estimate.value / replicates.size

    dims = (None, 0, 0, 0, *arguments.dims)

    def all_replicates(*inputs: Tensor) -> tuple[Tensor]:
        if len(seeds) > 1:
            return (over_replicates(one, dims, *inputs),)
        return (one(*(i if d is None else i[0] for i, d in zip(inputs, dims))).unsqueeze(0),)

    executable = Executable(all_replicates, "the validation score", mode)
    left = count(calls * len(pieces), -1)

    def score(flat: Tensor) -> Tensor:
        generators = [torch.Generator(device).manual_seed(s + 2**33) for s in seeds]
        total = flat.new_zeros(len(flat))
        with torch.no_grad():
            for start, stop in pieces:
                noise = _draw(layouts[stop - start], program.particles, generators)
                length = torch.empty(stop - start, device=device)  # which tells the sizes of pieces apart
                mean = executable.only((length, flat, *noise, *arguments.tensors(start, stop)), next(left))
                total = total + mean * ((stop - start) / rows)
        return total

    return score


def _draw(layout: NoiseLayout, count: int, generators: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
    """Return normals and uniforms, shape ``(R, count, n)`` each."""
    draws = [layout.draw((count,), g) for g in generators]
    return torch.stack([d.normals for d in draws]), torch.stack([d.uniforms for d in draws])


def _elements_per_row(replicates: Replicates) -> int:
    """Return how many numbers the model's sites hold per row of the data."""
    program = replicates.program
    rows = program.setup_rows
    sampled = [s for s in nodes(program.prototype).values() if is_latent(s) or is_observed(s)]
    return max(1, sum(s["value"].numel() for s in sampled) // max(1, rows))
