"""As :mod:`guides.program.discrete.log_space`, remembering how sums were made, so that their terms can be drawn afterwards.

Forward filtering, backward sampling on any tree of sums: Pyro's, with operations that vmap can follow.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator
from typing import Any

import torch
from pyro.ops import packed
from pyro.ops.einsum.adjoint import Backward, einsum_backward_sample, transpose, unflatten
from pyro.ops.einsum.util import Tensordot
from pyro.ops.rings import SampleRing

from guides.program.discrete import log_space

__all__ = ["PlainSampleRing", "einsum", "tensordot", "transpose"]


class PlainSampleRing(SampleRing):
    """Pyro's ring of sums that can be drawn from, with this module for its arithmetic."""

    _backend = __name__


class _Drawn(Backward):
    """How to draw the indices that one sum ran over, given those drawn after it."""

    def __init__(self, output: str, operands: tuple[Any, ...]) -> None:
        self.output, self.operands = output, operands

    def process(self, message: Any) -> Iterator[Any]:
        """Draw, and say to each operand what of it is known now."""
        terms, free = list(self.operands), self.output
        for index, dim in zip(() if message is None else message, "" if message is None else message._pyro_sample_dims):
            free = free.replace(dim, "")
            for i, term in enumerate(terms):
                if dim in term._pyro_dims:
                    index._pyro_dims = message._pyro_dims[1:]
                    terms[i] = packed.gather(term, index, dim)
        summed = "".join(sorted(set().union(*(x._pyro_dims for x in self.operands)) - set(self.output)))
        drawn = None
        if summed:
            logits = functools.reduce(operator.add, packed.broadcast_all(*terms, dims=free + summed))
            shape = logits.shape[len(free) :]
            weights = torch.softmax(logits.flatten(len(free)), -1)
            flat = torch.multinomial(weights.reshape(-1, weights.shape[-1]), 1).reshape(logits.shape[: len(free)])
            drawn = unflatten(flat, free, summed, shape)
        yield from einsum_backward_sample(self.operands, _together(drawn, message), None)


def _together(drawn: Any, message: Any) -> Any:
    """Return indices that were drawn now and those that were known before, each at the others.

    Row by row, since Pyro's own takes the numbers of both for sizes of one dimension, and ends where these differ.
    """
    if drawn is None or message is None:
        return message if drawn is None else drawn
    new, known = _rows(drawn), _rows(message)
    for dim, index in known.items():
        for name, row in new.items():
            if dim in row._pyro_dims:
                new[name] = packed.gather(row, index, dim)
    rows = packed.broadcast_all(*new.values(), *known.values())
    found: Any = torch.stack(rows)
    found._pyro_dims = drawn._pyro_dims[:1] + rows[0]._pyro_dims
    found._pyro_sample_dims = "".join([*new, *known])
    return found


def _rows(sample: Any) -> dict[str, Any]:
    rows: dict[str, Any] = dict(zip(sample._pyro_sample_dims, sample))
    for row in rows.values():
        row._pyro_dims = sample._pyro_dims[1:]
    return rows


def einsum(equation: str, *operands: Any) -> Any:
    """Return what :func:`guides.program.discrete.log_space.einsum` does, for tensors whose dimensions are named."""
    equation = packed.rename_equation(equation, *operands)
    result: Any = log_space.einsum(equation, *operands)
    result._pyro_dims = equation.split("->")[1]
    if any(hasattr(x, "_pyro_backward") for x in operands):
        result._pyro_backward = _Drawn(result._pyro_dims, operands)
    return result


tensordot = Tensordot(einsum)
