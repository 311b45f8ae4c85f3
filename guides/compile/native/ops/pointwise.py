"""Operations that treat every element alike, as C++ expressions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from guides.compile.native.context import Context, Operations
from guides.compile.native.expressions import Const, Tree, Unsupported, Value

__all__ = ["COMPOSED", "POINTWISE", "Pointwise", "pointwise"]

COMPOSED = Operations()


@dataclass(frozen=True)
class Pointwise:
    """A C++ expression of an operation's arguments, in the order of its schema.

    :ivar code: ``{0}``, ``{1}``, ... stand for the arguments; those that it does not name are left out.
    :ivar types: one letter for each argument: ``r``, converted to the result's type; ``p``, to what the arguments are
        promoted to; ``b``, to bool.
    """

    code: str
    types: str = "rrrrrr"


_FUNCTIONS = (
    *("exp", "expm1", "log", "log1p", "sqrt", "tanh", "sigmoid", "sin", "cos", "tan", "atan", "erf", "erfc"),
    *("sinh", "cosh", "asin", "acos", "asinh", "acosh", "atanh"),
    *("lgamma", "digamma", "floor", "ceil", "trunc", "abs", "sign"),
)
_COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_LOGIC = {"and": "&&", "or": "||", "xor": "!="}

POINTWISE: dict[str, Pointwise] = {
    **{f"{name}.default": Pointwise(f"z_{name}({{0}})") for name in _FUNCTIONS},
    **{
        f"{name}.{kind}": Pointwise(f"({{0}} {sign} {{1}})", "pp")
        for name, sign in _COMPARISONS.items()
        for kind in ("Tensor", "Scalar")
    },
    **{f"logical_{name}.default": Pointwise(f"({{0}} {sign} {{1}})", "bb") for name, sign in _LOGIC.items()},
    # Of numbers these would be something else; the caller sees to it that they are of bools.
    **{f"bitwise_{name}.Tensor": Pointwise(f"({{0}} {sign} {{1}})", "bb") for name, sign in _LOGIC.items()},
    "bitwise_not.default": Pointwise("(!{0})", "b"),
    **{
        f"{op}.{kind}": Pointwise(code)
        for op, code in {
            "add": "({0} + {2} * {1})",
            "sub": "({0} - {2} * {1})",
            "rsub": "({1} - {2} * {0})",
            "mul": "({0} * {1})",
            "div": "({0} / {1})",
        }.items()
        for kind in ("Tensor", "Scalar")
    },
    "logical_not.default": Pointwise("(!{0})", "b"),
    "neg.default": Pointwise("(-{0})"),
    "reciprocal.default": Pointwise("(1 / {0})"),
    "rsqrt.default": Pointwise("(1 / z_sqrt({0}))"),
    "log2.default": Pointwise("(z_log({0}) * 1.4426950408889634)"),
    "exp2.default": Pointwise("z_exp({0} * 0.6931471805599453)"),
    "sgn.default": Pointwise("z_sign({0})"),
    "isnan.default": Pointwise("({0} != {0})", "p"),
    "isinf.default": Pointwise("(z_abs({0}) == INFINITY)", "p"),
    "pow.Tensor_Scalar": Pointwise("z_pow({0}, {1})"),
    "pow.Tensor_Tensor": Pointwise("z_pow({0}, {1})"),
    "pow.Scalar": Pointwise("z_pow({0}, {1})"),
    "xlogy.Tensor": Pointwise("({0} == 0 ? 0 : {0} * z_log({1}))"),
    "logaddexp.default": Pointwise("z_logaddexp({0}, {1})"),
    "atan2.default": Pointwise("z_atan2({0}, {1})"),
    "maximum.default": Pointwise("z_max({0}, {1})"),
    "minimum.default": Pointwise("z_min({0}, {1})"),
    "clamp_min.default": Pointwise("z_max({0}, {1})"),
    "clamp_max.default": Pointwise("z_min({0}, {1})"),
    "clamp_min.Tensor": Pointwise("z_max({0}, {1})"),
    "clamp_max.Tensor": Pointwise("z_min({0}, {1})"),
    "where.self": Pointwise("({0} ? {1} : {2})", "brr"),
    "masked_fill.Scalar": Pointwise("({1} ? {2} : {0})", "rbr"),
    "masked_fill.Tensor": Pointwise("({1} ? {2} : {0})", "rbr"),
    "lerp.Scalar": Pointwise("({0} + {2} * ({1} - {0}))"),
    "lerp.Tensor": Pointwise("({0} + {2} * ({1} - {0}))"),
    "addcmul.default": Pointwise("({0} + {3} * {1} * {2})"),
    "addcdiv.default": Pointwise("({0} + {3} * {1} / {2})"),
    "relu.default": Pointwise("z_max({0}, 0)"),
    "threshold_backward.default": Pointwise("({1} <= {2} ? 0 : {0})"),
    "leaky_relu.default": Pointwise("({0} > 0 ? {0} : {1} * {0})"),
    "leaky_relu_backward.default": Pointwise("({1} > 0 ? {0} : {2} * {0})"),
    "sigmoid_backward.default": Pointwise("({0} * {1} * (1 - {1}))"),
    "tanh_backward.default": Pointwise("({0} * (1 - {1} * {1}))"),
    "silu.default": Pointwise("({0} * z_sigmoid({0}))"),
    "silu_backward.default": Pointwise("z_silu_backward({0}, {1})"),
    "softplus.default": Pointwise("z_softplus({0}, {1}, {2})"),
    "softplus_backward.default": Pointwise("z_softplus_backward({0}, {1}, {2}, {3})"),
    "log_sigmoid_backward.default": Pointwise("({0} * z_sigmoid(-{1}))"),
    "elu.default": Pointwise("z_elu({0}, {1}, {2}, {3})"),
    "elu_backward.default": Pointwise("z_elu_backward({0}, {1}, {2}, {3}, {4}, {5})"),
    "remainder.Scalar": Pointwise("z_remainder({0}, {1})"),
    "remainder.Tensor": Pointwise("z_remainder({0}, {1})"),
    "floor_divide.default": Pointwise("z_floor_divide({0}, {1})"),
    "zero.default": Pointwise("0"),
    "copy.default": Pointwise("{1}"),
    "_to_copy.default": Pointwise("{0}"),
    "clone.default": Pointwise("{0}"),
    "fill.Scalar": Pointwise("{1}"),
    "fill.Tensor": Pointwise("{1}"),
}


def pointwise(context: Context, node: Node, overload: str, args: Sequence[Any]) -> Value:
    """Return what an operation of the table makes of a node's arguments."""
    meta = node.meta["val"]
    dtype, shape = meta.dtype, tuple(meta.shape)
    if overload.startswith("bitwise") and dtype != torch.bool:
        raise Unsupported(f"{node.target} of numbers")
    if overload in ("pow.Tensor_Tensor", "pow.Tensor_Scalar", "pow.Scalar") and not dtype.is_floating_point:
        raise Unsupported(f"{node.target} of integers")
    operation = POINTWISE[overload]
    used = [n for n in range(len(args)) if f"{{{n}}}" in operation.code]
    promoted = dtype
    if "p" in operation.types:
        metas = [args[n].meta["val"] if isinstance(args[n], Node) else args[n] for n in used]
        promoted = metas[0].dtype if len(metas) == 1 else torch.result_type(*metas)
    trees: list[Tree] = []
    for n, argument in enumerate(args):
        if n not in used:
            trees.append(Const(0, dtype))
            continue
        wanted = {"r": dtype, "p": promoted, "b": torch.bool}[operation.types[n]]
        value = context.get(argument)
        if isinstance(value, Value):
            trees.append(context.cast(value.expand(shape), wanted).tree)
        elif isinstance(value, bool | int | float):
            trees.append(Const(value, wanted))
        else:
            raise Unsupported(f"{node.target} of {type(value).__name__}")
    if operation.code in ("{0}", "{1}"):
        return Value(shape, trees[used[0]])
    return Value(shape, context.call(operation.code, trees, dtype))


@COMPOSED("clamp")
def _clamp(context: Context, node: Node, x: Value, low: Any = None, high: Any = None) -> Value:
    value = context.cast(x, node.meta["val"].dtype)
    for bound, code in ((low, "z_max({0}, {1})"), (high, "z_min({0}, {1})")):
        if bound is not None:
            value = context.apply(code, value, context.cast(bound, value.dtype) if isinstance(bound, Value) else bound)
    return value


@COMPOSED("div")
def _div(context: Context, node: Node, x: Value, y: Value | float, rounding_mode: str | None = None) -> Value:
    dtype = node.meta["val"].dtype
    divisor = context.cast(y, dtype) if isinstance(y, Value) else y
    code = {"floor": "z_floor_divide({0}, {1})", "trunc": "z_trunc_divide({0}, {1})"}.get(str(rounding_mode))
    if code is None:
        raise Unsupported(f"division rounded by {rounding_mode}")
    return context.apply(code, context.cast(x, dtype), divisor)


@COMPOSED("polygamma")
def _polygamma(context: Context, node: Node, order: int, x: Value) -> Value:
    if order != 1:
        raise Unsupported(f"polygamma of order {order}")
    return context.apply("z_trigamma({0})", x)


@COMPOSED("gelu")
def _gelu(context: Context, node: Node, x: Value, approximate: str = "none") -> Value:
    if approximate != "none":
        raise Unsupported("gelu by an approximation")
    return context.apply("({0} * (1 + z_erf({0} * {1})) / 2)", x, math.sqrt(0.5))


@COMPOSED("gelu_backward")
def _gelu_backward(context: Context, node: Node, grad: Value, x: Value, approximate: str = "none") -> Value:
    if approximate != "none":
        raise Unsupported("gelu by an approximation")
    code = "({0} * ((1 + z_erf({1} * {2})) / 2 + {1} * {3} * z_exp({1} * {1} / -2)))"
    return context.apply(code, grad, x, math.sqrt(0.5), 1 / math.sqrt(2 * math.pi))


@COMPOSED("log_sigmoid_forward")
def _log_sigmoid_forward(context: Context, node: Node, x: Value) -> list[Value]:
    return [context.schedule.store(context.apply("(z_min({0}, 0) - z_log1p(z_exp(-z_abs({0}))))", x)), x]
