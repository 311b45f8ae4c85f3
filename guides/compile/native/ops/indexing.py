"""Elements of memory to which other memory leads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Node

from guides.compile.native.context import Context, Operations
from guides.compile.native.expressions import Gather, Read, Unsupported, Value

__all__ = ["INDEXING"]

INDEXING = Operations()

Indices = Sequence[Value | None]
"""One for each dimension, ``None`` for all of it."""


def _followed(context: Context, value: Value, indices: Indices) -> Value:
    """Return the elements of stored memory at ``indices``."""
    assert isinstance(value.tree, Read)
    given = [d for d, index in enumerate(indices) if index is not None]
    found = [index for index in indices if index is not None]
    if any(index.dtype != torch.int64 for index in found) or given != list(range(given[0], given[-1] + 1)):
        raise Unsupported("an index that is a mask, or indices of dimensions that are apart")
    middle = tuple(torch.broadcast_shapes(*(index.shape for index in found)))
    before, after = value.shape[: given[0]], value.shape[given[-1] + 1 :]
    shape, strides = (*before, *middle, *after), value.tree.strides
    gathers = []
    for d, index in zip(given, found):
        led = context.stored(index).expand(middle)
        for _ in after:
            led = led.unsqueeze(len(led.shape))
        gathers.append(Gather(led.expand(shape).tree, value.shape[d], strides[d]))
    steps = (*strides[: given[0]], *(0 for _ in middle), *strides[given[-1] + 1 :])
    return Value(shape, Read(value.tree.buffer, value.tree.offset, steps, tuple(gathers)))


def _along(context: Context, value: Value, dim: int, index: Value) -> Value:
    """Return the elements of stored memory at ``index`` along a dimension and at the same place along the others."""
    assert isinstance(value.tree, Read)
    if not value.shape or index.dtype != torch.int64:
        raise Unsupported("gather or scatter of a scalar")
    dim %= len(value.shape)
    strides = tuple(0 if d == dim else s for d, s in enumerate(value.tree.strides))
    gather = Gather(context.stored(index).tree, value.shape[dim], value.tree.strides[dim])
    return Value(index.shape, Read(value.tree.buffer, value.tree.offset, strides, (gather,)))


def _in_dimension(value: Value, dim: int, index: Value) -> Indices:
    return [index if d == dim % len(value.shape) else None for d in range(len(value.shape))]


@INDEXING("index_select")
def _index_select(context: Context, node: Node, x: Value, dim: int, index: Value) -> Value:
    return context.schedule.store(_followed(context, context.stored(x), _in_dimension(x, dim, index)))


@INDEXING("index")
def _index(context: Context, node: Node, x: Value, indices: Indices) -> Value:
    return context.schedule.store(_followed(context, context.stored(x), indices))


@INDEXING("gather")
def _gather(context: Context, node: Node, x: Value, dim: int, index: Value, *_: Any) -> Value:
    return context.schedule.store(_along(context, context.stored(x), dim, index))


@INDEXING("index_put", "_unsafe_index_put")
def _index_put(context: Context, node: Node, x: Value, indices: Indices, values: Value, accumulate: bool = False) -> Value:
    whole = context.schedule.store(x)
    places = _followed(context, whole, indices)
    if accumulate:
        context.schedule.reduce(values.expand(places.shape), places, "+", whole.size)
    else:
        context.schedule.store(values.expand(places.shape), places)
    return whole


@INDEXING("index_add")
def _index_add(context: Context, node: Node, x: Value, dim: int, index: Value, source: Value, alpha: float = 1) -> Value:
    whole = context.schedule.store(x)
    places = _followed(context, whole, _in_dimension(x, dim, index))
    context.schedule.reduce(context.apply("({0} * {1})", source, alpha), places, "+", whole.size)
    return whole


@INDEXING("scatter_add")
def _scatter_add(context: Context, node: Node, x: Value, dim: int, index: Value, source: Value) -> Value:
    whole = context.schedule.store(x)
    for d, size in enumerate(index.shape):
        source = source.slice(d, 0, size)
    context.schedule.reduce(source, _along(context, whole, dim, index), "+", whole.size)
    return whole
