"""Small questions about draws, losses, arguments and options of a fitted guide."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from guides.errors import DataError
from guides.program.data import Data
from guides.program.words import describe, in_words

__all__ = ["holds_module", "mean_of_last", "quantiles_over", "row_shape", "told_of_shapes", "unlike"]


def unlike(data: Data, training: Data) -> str | None:
    """Return what is unlike the training data in an argument of a shape that broadcasts where it should not.

    The first dimension, the data points, may have any size. So may the middle ones of an argument of three or more, such
    as the steps of a series, but for 1, which would be repeated.
    """
    for i, (new, old) in enumerate(zip(data.args, training.args)):
        if not (isinstance(new, Tensor) and isinstance(old, Tensor)):
            continue
        want = ("rows", *old.shape[1:]) if i in training.rows else tuple(old.shape)
        said = f"argument {i} has shape {tuple(new.shape)}, the training data's was ({', '.join(map(str, want))})"
        if new.dim() != old.dim():
            return f"{said}; give it {old.dim()} dimensions{_reshaped(new, old)}"
        if new.dim() > 1 and new.shape[-1] != old.shape[-1]:
            return f"{said}; give it {old.shape[-1]} columns, the same as in training"
        if any(a != b and 1 in (a, b) for a, b in zip(new.shape[1:], old.shape[1:])):
            return f"{said}; a dimension of size 1 would be repeated"
    return None


def told_of_shapes(take: Callable[[], Any], data: Data, training: Data) -> Any:
    """Run something on data; tell of shapes that the model cannot be run on.

    :raises DataError: naming the argument.
    """
    try:
        return take()
    except (RuntimeError, ValueError, IndexError) as error:
        shapes = [
            (i, new, old) for i, (new, old) in enumerate(zip(data.args, training.args)) if row_shape(new) != row_shape(old)
        ]
        if not shapes or type(error).__module__ == DataError.__module__:
            raise
        i, new, old = shapes[0]
        raise DataError(
            f"argument {i} has shape {describe(new)}, the training data's was {describe(old)}, and the model cannot be run "
            f"on it: {in_words(error)}"
        ) from error


def quantiles_over(draws: Tensor, q: Tensor, axis: int) -> Tensor:
    """Return quantiles over dimension ``axis``, which stand there; of numbers of draws that torch's own cannot take too."""
    kind = draws.dtype if draws.is_floating_point() else torch.get_default_dtype()
    ordered = draws.to(kind).sort(axis).values
    place = q.to(kind) * (ordered.shape[axis] - 1)
    low, high = (ordered.index_select(axis, p.long()) for p in (place.floor(), place.ceil()))
    between = (place - place.floor()).reshape(-1, *[1] * (ordered.dim() - axis - 1))
    return torch.lerp(low, high, between.expand_as(low))


def mean_of_last(losses: Tensor, count: int) -> Tensor:
    """Return the mean of the last losses that there are; infinity if there are none."""
    finite = losses[torch.isfinite(losses)]
    return finite[-count:].mean() if len(finite) else losses.new_tensor(math.inf)


def row_shape(value: Any) -> tuple[int, ...]:
    """Return the shape of one row of an argument."""
    return tuple(value.shape[1:]) if isinstance(value, Tensor) else ()


def _reshaped(new: Tensor, old: Tensor) -> str:
    if new.dim() == 1 and old.dim() == 2:
        return f": x[None, :] for one row of {old.shape[1]}" if len(new) == old.shape[1] else ", (rows, columns)"
    return ""


def holds_module(value: Any) -> bool:
    """Tell whether an option of a guide is a module, or a sequence or mapping with one in it."""
    if isinstance(value, list | tuple):
        return any(map(holds_module, value))
    if isinstance(value, dict):
        return any(map(holds_module, value.values()))
    return isinstance(value, nn.Module)
