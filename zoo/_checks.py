"""Checks of arguments, worded once: what was wrong, what was found, what to do."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable

from torch import Tensor

__all__ = ["check_features", "check_positive", "check_target", "one_of"]


def one_of(argument: str, value: object, valid: Iterable[str]) -> str:
    """Return ``value`` if it is one of ``valid``.

    :raises ValueError: otherwise; the message lists the valid names and the nearest one.
    """
    names = sorted(valid)
    if isinstance(value, str) and value in names:
        return value
    near = difflib.get_close_matches(str(value), names, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{argument}={value!r} is not known.{hint} Valid: {', '.join(map(repr, names))}.")


def check_positive(argument: str, value: float) -> float:
    """Return ``value`` as a float if it is a positive finite number, else raise ``ValueError``."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value > 0):
        raise ValueError(f"{argument} must be a positive finite number, got {value!r}")
    return float(value)


def check_features(x: Tensor, in_features: int) -> None:
    """Raise ``ValueError`` unless ``x`` has shape ``(N, in_features)`` and a floating-point dtype, with ``N >= 1``."""
    if x.dim() != 2 or x.shape[-1] != in_features:
        raise ValueError(
            f"x has shape {tuple(x.shape)}; this model takes (rows, {in_features}), "
            f"so pass {in_features} features or build the model with in_features={x.shape[-1] if x.dim() else 1}"
        )
    if not x.dtype.is_floating_point:
        raise ValueError(f"x has dtype {x.dtype}; pass x.float() or x.double()")
    if x.shape[0] == 0:
        raise ValueError("x has no rows; a model needs at least one data point")


def check_target(y: Tensor, expected: tuple[int, ...]) -> None:
    """Raise ``ValueError`` unless ``y`` has exactly the shape ``expected``.

    A column ``(N, 1)`` against an output ``(N,)`` would otherwise broadcast to ``(N, N)`` without a word.
    """
    if tuple(y.shape) != tuple(expected):
        column = tuple(y.shape) == (*expected, 1)
        advice = "pass y.squeeze(-1)" if column else "give x and y the same rows"
        raise ValueError(
            f"site 'y': the observed values have shape {tuple(y.shape)} but the model produces {tuple(expected)}; {advice}"
        )
