"""Sums of products of densities, in log space and as plain tensor operations: a backend of ``opt_einsum`` for Pyro's rings.

Pyro's own backend has a custom gradient, which neither vmap nor a graph of a step can follow.
"""

from __future__ import annotations

import functools
import operator

from pyro.ops.einsum.util import Tensordot
from pyro.ops.rings import LogRing
from torch import Tensor

__all__ = ["PlainLogRing", "einsum", "tensordot", "transpose"]


class PlainLogRing(LogRing):
    """Pyro's ring of sums and products in log space, with this module for its arithmetic."""

    _backend = __name__


def transpose(a: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Return ``a`` with its dimensions in another order."""
    return a.permute(axes)


def einsum(equation: str, *operands: Tensor) -> Tensor:
    """Return the logarithm of the sum of products of ``exp(operand)``; ``equation`` as for :func:`torch.einsum`."""
    given, output = equation.split("->")
    inputs = given.split(",")
    summed = "".join(sorted(set(given) - set(output) - {","}))
    terms = [aligned(x, dims, output + summed) for x, dims in zip(operands, inputs)]
    total = functools.reduce(operator.add, terms) if len(terms) > 1 else terms[0].clone()
    return total.logsumexp(tuple(range(len(output), len(output + summed)))) if summed else total


def aligned(value: Tensor, dims: str, wanted: str) -> Tensor:
    """Return a tensor whose dimensions are named by ``dims`` with the dimensions ``wanted``, of size 1 where it has none."""
    order = [dims.index(d) for d in wanted if d in dims]
    shape = [value.shape[dims.index(d)] if d in dims else 1 for d in wanted]
    return value.permute(order).reshape(shape)


tensordot = Tensordot(einsum)
