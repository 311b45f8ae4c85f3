"""Views: the same memory, read at other places."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.fx import Node

from guides.compile.native.context import Context, Operations
from guides.compile.native.expressions import Unsupported, Value

__all__ = ["VIEWS", "reshaped"]

VIEWS = Operations()


def reshaped(context: Context, value: Value, shape: Sequence[int]) -> Value:
    """Return the elements in row-major order in another shape, copied if that takes a copy."""
    wanted = tuple(shape)
    if value.shape == wanted:
        return value
    found = value.reshape(wanted)
    if found is None:
        found = context.schedule.store(value).reshape(wanted)
    assert found is not None
    return found


@VIEWS("view", "_unsafe_view", "reshape", "squeeze", "unsqueeze")
def _view(context: Context, node: Node, x: Value, *_: Any) -> Value:
    return reshaped(context, x, node.meta["val"].shape)


@VIEWS("alias", "detach", "lift_fresh_copy")
def _alias(context: Context, node: Node, x: Value) -> Value:
    return x


@VIEWS("expand")
def _expand(context: Context, node: Node, x: Value, *_: Any) -> Value:
    return x.expand(tuple(node.meta["val"].shape))


@VIEWS("permute")
def _permute(context: Context, node: Node, x: Value, dims: Sequence[int]) -> Value:
    return x.permute([d % len(x.shape) for d in dims])


@VIEWS("t")
def _t(context: Context, node: Node, x: Value) -> Value:
    return x.permute(list(reversed(range(len(x.shape)))))


@VIEWS("transpose")
def _transpose(context: Context, node: Node, x: Value, first: int, second: int) -> Value:
    dims = list(range(len(x.shape)))
    dims[first], dims[second] = dims[second], dims[first]
    return x.permute(dims)


@VIEWS("select")
def _select(context: Context, node: Node, x: Value, dim: int, index: int) -> Value:
    dim %= len(x.shape)
    return x.select(dim, index % x.shape[dim])


@VIEWS("slice")
def _slice(
    context: Context, node: Node, x: Value, dim: int = 0, start: Any = None, stop: Any = None, step: int = 1
) -> Value:
    dim %= len(x.shape)
    return x.slice(dim, *slice(start, stop, step).indices(x.shape[dim]))


@VIEWS("split_with_sizes")
def _split_with_sizes(context: Context, node: Node, x: Value, sizes: Sequence[int], dim: int = 0) -> list[Value]:
    start, pieces = 0, []
    for size in sizes:
        pieces.append(x.slice(dim % len(x.shape), start, start + size))
        start += size
    return pieces


@VIEWS("split")
def _split(context: Context, node: Node, x: Value, size: int, dim: int = 0) -> list[Value]:
    return _split_with_sizes(context, node, x, [v.shape[dim] for v in node.meta["val"]], dim)


@VIEWS("unbind")
def _unbind(context: Context, node: Node, x: Value, dim: int = 0) -> list[Value]:
    dim %= len(x.shape)
    return [x.select(dim, i) for i in range(x.shape[dim])]


@VIEWS("diagonal")
def _diagonal(context: Context, node: Node, x: Value, offset: int = 0, first: int = 0, second: int = 1) -> Value:
    first, second = first % len(x.shape), second % len(x.shape)
    if offset > 0:
        x = x.slice(second, offset, x.shape[second])
    elif offset < 0:
        x = x.slice(first, -offset, x.shape[first])
    return x.diagonal(first, second)


@VIEWS("flip")
def _flip(context: Context, node: Node, x: Value, dims: Sequence[int]) -> Value:
    for d in dims:
        x = x.flip(d % len(x.shape))
    return x


@VIEWS("as_strided")
def _as_strided(
    context: Context, node: Node, x: Value, shape: Sequence[int], strides: Sequence[int], offset: int | None = None
) -> Value:
    memory = node.args[0].meta["val"]  # type: ignore[union-attr]
    if not memory.is_contiguous() or memory.untyped_storage().nbytes() != memory.numel() * memory.itemsize:
        raise Unsupported(f"{node.target} of a part of memory")
    return reshaped(context, x, (x.size,)).strided(tuple(shape), tuple(strides), offset or 0)
