"""Factors of matrices, and triangular systems of equations."""

from __future__ import annotations

import torch
from torch.fx import Node

from guides.compile.native.context import Context, Operations
from guides.compile.native.expressions import Const, Unsupported, Value
from guides.compile.native.ops.views import reshaped

__all__ = ["FACTORISATIONS"]

FACTORISATIONS = Operations()


@FACTORISATIONS("linalg_cholesky_ex")
def _cholesky(context: Context, node: Node, x: Value, upper: bool = False, check: bool = False) -> list[Value]:
    if upper:
        raise Unsupported(f"{node.target} of which the upper factor is wanted")
    factor = context.schedule.new(x.shape, x.dtype)
    context.schedule.run("z_cholesky", (x.shape[-1],), (_matrices(context, x),), _matrices(context, factor))
    return [factor, Value(x.shape[:-2], Const(0, torch.int32))]


@FACTORISATIONS("_linalg_check_errors")
def _check_errors(context: Context, node: Node, info: Value, name: str, is_matrix: bool) -> None:
    """Do nothing: where PyTorch raises an error, numbers are NaN."""


@FACTORISATIONS("linalg_solve_triangular")
def _solve_triangular(
    context: Context, node: Node, a: Value, b: Value, upper: bool, left: bool = True, unitriangular: bool = False
) -> Value:
    if not left:  # X A = B if and only if A' X' = B'
        a, b, upper = _transposed(a), _transposed(b), not upper
    batch = tuple(torch.broadcast_shapes(a.shape[:-2], b.shape[:-2]))
    size, columns = b.shape[-2:]
    solution = context.schedule.new((*batch, size, columns), b.dtype)
    target = _matrices(context, solution)
    a, b = (_matrices(context, value.expand((*batch, *value.shape[-2:]))) for value in (a, b))
    if upper:  # from the last row to the first, an upper triangle is a lower one
        a, b, target = a.flip(1).flip(2), b.flip(1), target.flip(1)
    context.schedule.run("z_solve_triangular", (size, columns, int(unitriangular)), (a, b), target)
    return solution if left else _transposed(solution)


def _transposed(value: Value) -> Value:
    rank = len(value.shape)
    return value.permute([*range(rank - 2), rank - 1, rank - 2])


def _matrices(context: Context, value: Value) -> Value:
    """Return stored matrices in one dimension of batches."""
    batches = torch.Size(value.shape[:-2]).numel()
    return context.stored(reshaped(context, value, (batches, *value.shape[-2:])))
