"""Operations that treat every element alike, as C++ expressions."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["POINTWISE", "Pointwise"]


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
    "zero.default": Pointwise("0"),
    "copy.default": Pointwise("{1}"),
    "_to_copy.default": Pointwise("{0}"),
    "clone.default": Pointwise("{0}"),
    "fill.Scalar": Pointwise("{1}"),
}
