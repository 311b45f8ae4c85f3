"""Tensors that are put together, or lie in larger ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from guides.compile.native.context import Context, Operations
from guides.compile.native.expressions import Const, Unsupported, Value
from guides.compile.native.ops.views import reshaped

__all__ = ["MEMORY"]

MEMORY = Operations()


@MEMORY("empty", "new_empty", "empty_like", "new_empty_strided", "empty_strided")
def _empty(context: Context, node: Node, *_: Any) -> None:
    return None


@MEMORY("cat")
def _cat(context: Context, node: Node, pieces: Sequence[Value], dim: int = 0) -> Value:
    whole = context.homes.whole(node)
    for piece, place in zip(pieces, context.homes.places(node)):
        if place.size and not (piece.is_stored and piece.tree.buffer is whole.tree.buffer):  # type: ignore[union-attr]
            context.schedule.store(context.cast(piece, whole.dtype), place)
    return whole


@MEMORY("stack")
def _stack(context: Context, node: Node, pieces: Sequence[Value], dim: int = 0) -> Value:
    whole = context.schedule.new(tuple(node.meta["val"].shape), node.meta["val"].dtype)
    for i, piece in enumerate(pieces):
        context.schedule.store(context.cast(piece, whole.dtype), whole.select(dim % len(whole.shape), i))
    return whole


def _filled(context: Context, node: Node, number: float, place: Callable[[Value], Value], value: Value) -> Value:
    """Return new memory of one number in which a tensor lies at some place."""
    whole = context.schedule.new(tuple(node.meta["val"].shape), node.meta["val"].dtype)
    if place(whole).size < whole.size:
        context.schedule.store(Value(whole.shape, Const(number, whole.dtype)), whole)
    context.schedule.store(value, place(whole))
    return whole


@MEMORY("select_backward")
def _select_backward(context: Context, node: Node, grad: Value, sizes: Sequence[int], dim: int, index: int) -> Value:
    dim %= len(sizes)
    if sizes[dim] == 1:
        return reshaped(context, grad, sizes)
    return _filled(context, node, 0.0, lambda w: w.select(dim, index % sizes[dim]), grad)


@MEMORY("slice_backward")
def _slice_backward(
    context: Context, node: Node, grad: Value, sizes: Sequence[int], dim: int, start: int, stop: int, step: int
) -> Value:
    dim %= len(sizes)
    where = slice(start, stop, step).indices(sizes[dim])
    return _filled(context, node, 0.0, lambda w: w.slice(dim, *where), grad)


@MEMORY("diagonal_backward")
def _diagonal_backward(
    context: Context, node: Node, grad: Value, sizes: Sequence[int], offset: int, first: int, second: int
) -> Value:
    if offset:
        raise Unsupported("diagonal_backward with an offset")
    dims = first % len(sizes), second % len(sizes)
    return _filled(context, node, 0.0, lambda w: w.diagonal(*dims), grad)


@MEMORY("constant_pad_nd")
def _constant_pad_nd(context: Context, node: Node, x: Value, padding: Sequence[int], number: float = 0) -> Value:
    margins = [(len(x.shape) - 1 - i, padding[2 * i], padding[2 * i + 1]) for i in range(len(padding) // 2)]
    for dim, before, after in margins:
        x = x.slice(dim, max(0, -before), x.shape[dim] - max(0, -after))  # less than nothing added is something cut

    def place(whole: Value) -> Value:
        for dim, before, _ in margins:
            whole = whole.slice(dim, max(0, before), max(0, before) + x.shape[dim])
        return whole

    return _filled(context, node, number, place, x)


@MEMORY("diag_embed")
def _diag_embed(context: Context, node: Node, x: Value, offset: int = 0, first: int = -2, second: int = -1) -> Value:
    rank = len(node.meta["val"].shape)
    if offset or (first % rank, second % rank) != (rank - 2, rank - 1):
        raise Unsupported("diag_embed elsewhere than on the main diagonal of the last dimensions")
    return _filled(context, node, 0.0, lambda w: w.diagonal(rank - 2, rank - 1), x)


@MEMORY("tril")
def _tril(context: Context, node: Node, x: Value, diagonal: int = 0) -> Value:
    return _masked(context, x, torch.ones(x.shape, dtype=torch.bool).tril(diagonal))


@MEMORY("triu")
def _triu(context: Context, node: Node, x: Value, diagonal: int = 0) -> Value:
    return _masked(context, x, torch.ones(x.shape, dtype=torch.bool).triu(diagonal))


def _masked(context: Context, x: Value, mask: Tensor) -> Value:
    return context.apply("({1} ? {0} : 0)", x, context.constant(mask), dtype=x.dtype)
