"""Products of matrices."""

from __future__ import annotations

from torch.fx import Node

from guides.compile.native.context import Context, Operations
from guides.compile.native.expressions import Read, Unsupported, Value
from guides.compile.native.ops.reductions import reduced

__all__ = ["PRODUCTS"]

PRODUCTS = Operations()

_LONGEST_PANEL = 8192


@PRODUCTS("mm")
def _mm(context: Context, node: Node, a: Value, b: Value) -> Value:
    return _product(context, a.unsqueeze(0), b.unsqueeze(0), context.homes.home(node)).select(0, 0)


@PRODUCTS("bmm")
def _bmm(context: Context, node: Node, a: Value, b: Value) -> Value:
    return _product(context, a, b, context.homes.home(node))


@PRODUCTS("mv")
def _mv(context: Context, node: Node, a: Value, b: Value) -> Value:
    return _product(context, a.unsqueeze(0), b.unsqueeze(1).unsqueeze(0)).select(2, 0).select(0, 0)


@PRODUCTS("dot")
def _dot(context: Context, node: Node, a: Value, b: Value) -> Value:
    return reduced(context, context.apply("({0} * {1})", a, b), [0], False)


@PRODUCTS("addmm")
def _addmm(context: Context, node: Node, c: Value, a: Value, b: Value, beta: float = 1, alpha: float = 1) -> Value:
    return context.apply("({2} * {0} + {3} * {1})", c, _mm(context, node, a, b), float(beta), float(alpha))


@PRODUCTS("baddbmm")
def _baddbmm(context: Context, node: Node, c: Value, a: Value, b: Value, beta: float = 1, alpha: float = 1) -> Value:
    return context.apply("({2} * {0} + {3} * {1})", c, _bmm(context, node, a, b), float(beta), float(alpha))


def _product(context: Context, a: Value, b: Value, target: Value | None = None) -> Value:
    """Return products of matrices ``(batch, m, k)`` and ``(batch, k, n)``, perhaps at ``target``."""
    if not a.dtype.is_floating_point:
        raise Unsupported(f"products of matrices of {a.dtype}")
    (batch, m, k), n = a.shape, b.shape[2]
    if 1 in (m, n, k) or not a.size or not b.size:
        return _small_product(context, a, b)
    if k > _LONGEST_PANEL:
        raise Unsupported(f"products of matrices over {k} elements")
    left, right = context.stored(a), context.stored(b)
    if target is None:
        target = context.schedule.new((batch, m, n), a.dtype)
    context.schedule.multiply(left, right, target)
    return target


def _small_product(context: Context, a: Value, b: Value) -> Value:
    """Return products of matrices one of which is a vector, as sums of products."""
    (batch, m, k), n = a.shape, b.shape[2]
    left = context.stored(a).unsqueeze(3).expand((batch, m, k, n))
    right = context.stored(b).unsqueeze(1).expand((batch, m, k, n))
    terms = context.apply("({0} * {1})", left, right)
    matrix = left if n == 1 else right
    strides = matrix.tree.strides if isinstance(matrix.tree, Read) else (0, 0, 0, 0)
    inner = strides[2]
    if k > 1 and inner != 1:  # sum over the outer loop, so that the inner one runs along memory
        return reduced(context, terms.permute([0, 2, 1, 3]), [1], False)
    return reduced(context, terms, [2], False)
