"""Sums, extremes, and what is made of them: means, norms, softmax."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Node

from guides.compile.native.context import Context, Operations
from guides.compile.native.expressions import Const, Unsupported, Value

__all__ = ["REDUCTIONS", "reduced"]

REDUCTIONS = Operations()

_LONGEST_RUN = 64


def reduced(context: Context, value: Value, dims: Sequence[int], keep: bool, reduction: str = "+") -> Value:
    """Return sums, or extremes, over some dimensions.

    :param keep: leave these dimensions in, with one element.
    :param reduction: ``"+"``, ``"max"`` or ``"min"``.
    """
    rank = len(value.shape)
    over = {d % rank for d in dims} if rank else set()
    small = tuple(1 if d in over else n for d, n in enumerate(value.shape))
    count = math.prod(value.shape[d] for d in over)
    start = {"+": 0, "max": -math.inf, "min": math.inf}[reduction]
    if count == 1:
        result = Value(small, value.tree)
    elif isinstance(value.tree, Const) and value.size:
        number = value.tree.value * count if reduction == "+" else value.tree.value
        result = Value(small, Const(number, value.dtype))
    elif not value.size:
        result = Value(small, Const(start, value.dtype))
    else:
        if reduction != "+" and not value.dtype.is_floating_point:
            raise Unsupported(f"{reduction} of {value.dtype}")
        result = context.schedule.new(small, value.dtype)
        context.schedule.reduce(value, result.expand(value.shape), reduction, result.size, Const(start, value.dtype))
    return result if keep else _without(result, over)


def _without(value: Value, dims: set[int]) -> Value:
    for d in sorted(dims, reverse=True):
        value = value.select(d, 0)
    return value


def _dims(value: Value, dims: Any) -> list[int]:
    """Return the dimensions that an argument names: all if it is empty, or of another kind."""
    if isinstance(dims, int):
        return [dims]
    return list(dims) if isinstance(dims, list) and dims else list(range(len(value.shape)))


def _count(value: Value, dims: Sequence[int]) -> int:
    return math.prod(value.shape[d] for d in dims)


@REDUCTIONS("sum")
def _sum(context: Context, node: Node, x: Value, dims: Any = None, keep: bool = False, dtype: Any = None) -> Value:
    value = context.cast(x, node.meta["val"].dtype)
    return reduced(context, value, _dims(value, dims), keep)


@REDUCTIONS("mean")
def _mean(context: Context, node: Node, x: Value, dims: Any = None, keep: bool = False, dtype: Any = None) -> Value:
    count = _count(x, _dims(x, dims))
    return context.apply("({0} / {1})", _sum(context, node, x, dims, keep), float(count) if count else math.nan)


@REDUCTIONS("amax")
def _amax(context: Context, node: Node, x: Value, dims: Any = (), keep: bool = False) -> Value:
    return reduced(context, x, _dims(x, dims), keep, "max")


@REDUCTIONS("amin")
def _amin(context: Context, node: Node, x: Value, dims: Any = (), keep: bool = False) -> Value:
    return reduced(context, x, _dims(x, dims), keep, "min")


def _first(context: Context, x: Value, dim: int, keep: bool, reduction: str) -> tuple[Value, Value]:
    """Return the extremes along one dimension, and where they first stand."""
    if not x.shape:
        return x, context.constant(torch.zeros((), dtype=torch.long))
    value, size = context.stored(x), x.shape[dim]
    extreme = reduced(context, value, [dim], True, reduction)
    places = context.constant(
        torch.arange(size, dtype=value.dtype).reshape(-1, *(1,) * (len(x.shape) - 1 - dim % len(x.shape)))
    )
    # What is not a number is the extreme of all, and equals nothing.
    found = context.apply("({0} == {1} || {0} != {0} ? {2} : {3})", value, extreme, places, float(size - 1))
    where = context.cast(reduced(context, found, [dim], True, "min"), torch.long)
    over = {dim % len(x.shape)}
    return (extreme, where) if keep else (_without(extreme, over), _without(where, over))


@REDUCTIONS("max")
def _max(context: Context, node: Node, x: Value, dim: int | None = None, keep: bool = False) -> Any:
    if dim is None:
        return reduced(context, x, _dims(x, None), keep, "max")
    return list(_first(context, x, dim, keep, "max"))


@REDUCTIONS("min")
def _min(context: Context, node: Node, x: Value, dim: int | None = None, keep: bool = False) -> Any:
    if dim is None:
        return reduced(context, x, _dims(x, None), keep, "min")
    return list(_first(context, x, dim, keep, "min"))


@REDUCTIONS("any")
def _any(context: Context, node: Node, x: Value, dims: Any = None, keep: bool = False) -> Value:
    holds = context.cast(context.apply("({0} != 0)", x, dtype=torch.bool), torch.long)
    return context.apply("({0} != 0)", reduced(context, holds, _dims(x, dims), keep), dtype=torch.bool)


@REDUCTIONS("all")
def _all(context: Context, node: Node, x: Value, dims: Any = None, keep: bool = False) -> Value:
    fails = context.cast(context.apply("({0} == 0)", x, dtype=torch.bool), torch.long)
    return context.apply("({0} == 0)", reduced(context, fails, _dims(x, dims), keep), dtype=torch.bool)


@REDUCTIONS("var")
def _var(context: Context, node: Node, x: Value, dims: Any = None, correction: Any = None, keep: bool = False) -> Value:
    value, over = context.stored(x), _dims(x, dims)
    count = _count(value, over)
    mean = context.schedule.store(context.apply("({0} / {1})", reduced(context, value, over, True), float(count)))
    squares = reduced(context, context.apply("(({0} - {1}) * ({0} - {1}))", value, mean), over, keep)
    return context.apply("({0} / {1})", squares, float(max(0, count - (1 if correction is None else correction))))


@REDUCTIONS("linalg_vector_norm")
def _linalg_vector_norm(
    context: Context, node: Node, x: Value, order: float = 2, dims: Any = None, keep: bool = False, dtype: Any = None
) -> Value:
    if order != 2:
        raise Unsupported(f"linalg_vector_norm of order {order}")
    return context.apply("z_sqrt({0})", reduced(context, context.apply("({0} * {0})", x), _dims(x, dims), keep))


@REDUCTIONS("cumprod")
def _cumprod(context: Context, node: Node, x: Value, dim: int, *_: Any) -> Value:
    if not x.shape:
        return x
    dim %= len(x.shape)
    if x.shape[dim] > _LONGEST_RUN:
        raise Unsupported(f"cumprod of {x.shape[dim]} elements")
    x, whole = context.stored(x), context.schedule.new(x.shape, x.dtype)
    for i in range(x.shape[dim]):
        now = x.select(dim, i)
        product = context.apply("({0} * {1})", whole.select(dim, i - 1), now) if i else now
        context.schedule.store(product, whole.select(dim, i))
    return whole


@REDUCTIONS("prod")
def _prod(context: Context, node: Node, x: Value, dim: int | None = None, keep: bool = False, dtype: Any = None) -> Value:
    if not isinstance(dim, int) or not x.shape or not 0 < x.shape[dim] <= _LONGEST_RUN:
        raise Unsupported(f"a product of the elements of {x.shape}")
    x, dim = context.stored(x), dim % len(x.shape)
    product = x.select(dim, 0)
    for i in range(1, x.shape[dim]):
        product = context.apply("({0} * {1})", product, x.select(dim, i))
    return product.unsqueeze(dim) if keep else product


@REDUCTIONS("cumsum")
def _cumsum(context: Context, node: Node, x: Value, dim: int, *_: Any) -> Value:
    value = context.stored(x)
    if not value.shape:
        return value
    dim %= len(value.shape)
    size = value.shape[dim]
    if size > _LONGEST_RUN:
        raise Unsupported(f"cumsum of {size} elements")
    order = [d for d in range(len(value.shape)) if d != dim] + [dim]
    last = value.permute(order).unsqueeze(len(order) - 1)
    terms = context.apply("({1} ? {0} : 0)", last, context.constant(torch.ones(size, size, dtype=torch.bool).tril()))
    return reduced(context, terms, [-1], False).permute([order.index(d) for d in range(len(order))])


@REDUCTIONS("logsumexp")
def _logsumexp(context: Context, node: Node, x: Value, dims: Any, keep: bool = False) -> Value:
    value, over = context.stored(x), _dims(x, dims)
    top = reduced(context, value, over, True, "max")
    top = context.schedule.store(context.apply("(z_abs({0}) == INFINITY ? 0 : {0})", top))
    total = reduced(context, context.apply("z_exp({0} - {1})", value, top), over, True)
    result = context.apply("(z_log({0}) + {1})", total, top)
    return result if keep else _without(result, {d % len(value.shape) for d in over})


@REDUCTIONS("_log_softmax")
def _log_softmax(context: Context, node: Node, x: Value, dim: int, *_: Any) -> Value:
    value = context.stored(x)
    top = reduced(context, value, [dim], True, "max")
    total = reduced(context, context.apply("z_exp({0} - {1})", value, top), [dim], True)
    return context.apply("({0} - {1} - {2})", value, top, context.schedule.store(context.apply("z_log({0})", total)))


@REDUCTIONS("_softmax")
def _softmax(context: Context, node: Node, x: Value, dim: int, *_: Any) -> Value:
    value = context.stored(x)
    top = reduced(context, value, [dim], True, "max")
    weights = context.schedule.store(context.apply("z_exp({0} - {1})", value, top))
    return context.apply("({0} / {1})", weights, reduced(context, weights, [dim], True))


@REDUCTIONS("_log_softmax_backward_data")
def _log_softmax_backward(context: Context, node: Node, grad: Value, output: Value, dim: int, *_: Any) -> Value:
    slope, y = context.stored(grad), context.stored(output)
    return context.apply("({0} - z_exp({1}) * {2})", slope, y, reduced(context, slope, [dim], True))


@REDUCTIONS("_softmax_backward_data")
def _softmax_backward(context: Context, node: Node, grad: Value, output: Value, dim: int, *_: Any) -> Value:
    slope, y = context.stored(grad), context.stored(output)
    total = reduced(context, context.apply("({0} * {1})", slope, y), [dim], True)
    return context.apply("({1} * ({0} - {2}))", slope, y, total)
