"""One argument of a model, whatever it came as: arrays, lists, data frames and their like as tensors.

Libraries are recognised by what their objects can do; none of them is imported.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from guides.errors import DataError
from guides.program.data import Form

__all__ = ["Reading", "is_named", "readings"]

_SHOWN = 6
_LOST = 0.01


@dataclass(frozen=True)
class Reading:
    """One way to give an argument to a model.

    :ivar note: what is odd about the argument, to be told if no reading works.
    """

    value: Any
    form: Form
    note: str = ""


def readings(where: str, value: Any, *, doubles: bool = True, tensors_first: bool = False) -> list[Reading]:
    """Return the ways in which an argument can be meant, the likeliest first.

    :param where: what to call the argument in messages.
    :param doubles: float64 tensors may stay what they are.
    :param tensors_first: rows are wanted, so that a list of numbers is better taken as a tensor.
    :raises DataError: for what can be no argument of a fit.
    """
    if isinstance(value, Tensor):
        return _of_tensor(where, value, doubles)
    if hasattr(value, "__next__"):
        raise DataError(
            f"{where} is a {type(value).__name__}, which can be read only once, and a fit reads its data at every step; "
            "pass a tensor, or list(...) of it"
        )
    if isinstance(value, np.generic):
        return [Reading(value.item(), Form())]
    if isinstance(value, np.ndarray):
        return _of_array(where, value)
    if hasattr(value, "tocsr") or hasattr(value, "todense"):
        note = f"{where} is a sparse matrix ({type(value).__name__}); pass it dense, as torch.as_tensor(x.toarray())"
        return [Reading(value, Form(kept=True), note)]
    if hasattr(value, "data_vars"):
        note = f"{where} is a {type(value).__name__} of several arrays; pass them one by one"
        return [Reading(value, Form(kept=True), note)]
    if is_named(value):
        return _of_named(where, value)
    if isinstance(value, list | tuple):
        return _of_list(where, value, tensors_first)
    return [Reading(value, Form(kept=True))]


def is_named(value: Any) -> bool:
    """Tell whether a value is a data frame, a series or a labelled array of pandas, polars, xarray or the like."""
    return hasattr(value, "to_numpy") and (hasattr(value, "columns") or hasattr(value, "dtype"))


def _of_tensor(where: str, value: Tensor, doubles: bool) -> list[Reading]:
    value = value.detach() if value.requires_grad else value
    default = torch.get_default_dtype()
    if value.layout is not torch.strided or value.is_nested:
        raise DataError(f"{where} is a {value.layout} tensor; pass it dense, as x.to_dense()")
    if value.is_complex():
        raise DataError(f"{where} is complex; pass its real and imaginary parts as two arguments, x.real and x.imag")
    if value.dtype in (torch.float16, torch.bfloat16):  # exact, and sums of halves overflow
        types = [default]
    elif value.dtype is torch.float64 and default is not torch.float64:
        types = [value.dtype, default] if doubles else [default, value.dtype]
    elif value.dtype is torch.uint8:  # which indexes like a mask
        types = [value.dtype, torch.int64, default]
    elif value.is_floating_point():
        types = [value.dtype]
    else:
        types = [value.dtype, default]
    return [Reading(_cast(where, value, t), Form(dtype=t)) for t in types]


def _of_array(where: str, value: np.ndarray) -> list[Reading]:
    if isinstance(value, np.ma.MaskedArray):
        hidden = int(np.ma.getmaskarray(value).sum())
        if hidden:
            raise DataError(
                f"{where} is a masked array with {hidden} masked values, and a tensor has no mask; fill them (x.filled(0)) "
                "and pass the mask to the model, for obs_mask= or poutine.mask"
            )
        value = value.data
    if value.dtype.kind == "O" and value.size and all(isinstance(v, int | float | np.number) for v in value.flat):
        value = value.astype(float)
    if value.dtype.kind == "c":
        raise DataError(f"{where} is complex; pass its real and imaginary parts as two arguments, x.real and x.imag")
    if value.dtype.kind not in "fiub":
        return [Reading(value, Form(kept=True), f"{where} {_holds(value)}")]
    if value.dtype.kind in "iu" and value.dtype != np.uint8:
        value = value.astype(np.int64)  # small whole numbers index nothing, and arithmetic on them wraps
    native = np.ascontiguousarray(value.astype(value.dtype.newbyteorder("="), copy=False))
    if value.dtype.kind == "f" and value.dtype.itemsize > 8:
        native = native.astype(np.float64)
    return _of_tensor(where, torch.as_tensor(native if native.flags.writeable else native.copy()), doubles=False)


def _of_list(where: str, value: list[Any] | tuple[Any, ...], tensors_first: bool) -> list[Reading]:
    kept = Reading(value, Form(kept=True))
    if not value or any(isinstance(v, Tensor | str | bytes | dict) or v is None for v in value):
        if any(isinstance(v, str) for v in value):
            kept = replace(kept, note=f"{where} {_holds(np.asarray(value, dtype=object))}")
        elif not value:
            kept = replace(kept, note=f"{where} is an empty {type(value).__name__}; a fit needs at least one data point")
        elif not isinstance(value[0], Tensor):
            kept = replace(kept, note=f"{where} is a {type(value).__name__} that holds {value[0]!r}; pass numbers")
        return [kept]
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        return [replace(kept, note=f"{where} is a {type(value).__name__} that is no table of numbers: {error}")]
    if array.dtype.kind not in "fiub":
        return [replace(kept, note=f"{where} is a {type(value).__name__} that {_holds(array)}")]
    tensors = _of_array(where, array)
    return [*tensors, kept] if tensors_first else [kept, *tensors]


def _of_named(where: str, value: Any) -> list[Reading]:
    """Return a frame, series or labelled array as a tensor, and as it is for models that know what it is."""
    columns = getattr(value, "columns", None)
    categories: tuple[Any, ...] = ()
    note = ""
    array: np.ndarray | None
    if columns is not None:
        parts = [_column(value[c]) for c in columns]
        odd = [(c, p) for c, p in zip(columns, parts) if p.dtype.kind not in "fiub" or _categories(value[c]) is not None]
        if not parts:
            odd, note = [("", np.zeros(0))], f"{where} has no columns"
        elif odd:
            kind = _holds(odd[0][1]) if _categories(value[odd[0][0]]) is None else _IS_CATEGORICAL
            note = f"column {odd[0][0]!r} of {where} {kind}"
        array = None if odd else np.column_stack(parts)
    else:
        found = _categories(value)
        plain = _column(value)
        if found is not None:
            array, categories = _codes(where, value, found), found
        elif plain.dtype.kind in "fiub":
            array = plain
        else:
            array, note = None, f"{where} {_holds(plain)}"
    kept = Reading(value, Form(kept=True), note)
    if array is None:
        return [kept]
    form = Form(dims=_dims(value, array.ndim), labels=_labels(value, array.shape), categories=categories)
    tensors = [replace(r, form=replace(form, dtype=r.form.dtype)) for r in _of_array(where, array)]
    return [*tensors, kept]


_IS_CATEGORICAL = (
    "is categorical; its codes would be numbers whose order and distances mean something. Pass it as an argument of its own "
    "(codes then index, or are labels), or as indicators (pandas.get_dummies)"
)


def _column(value: Any) -> np.ndarray:
    """Return one column's values; missing whole numbers, which pandas keeps as objects, as NaN."""
    array = np.asarray(value.to_numpy())
    named = str(getattr(value, "dtype", ""))
    if array.dtype.kind == "O" and named.startswith(("Int", "UInt", "Float", "boolean")):
        array = np.asarray(value.to_numpy(dtype=float, na_value=math.nan))
    return array


def _categories(value: Any) -> tuple[Any, ...] | None:
    known = getattr(getattr(value, "dtype", None), "categories", None)
    if known is None or not hasattr(value, "cat"):
        return None
    return tuple(known)


def _codes(where: str, value: Any, categories: tuple[Any, ...]) -> np.ndarray:
    cat = value.cat
    codes = np.asarray(cat.codes) if hasattr(cat, "codes") else np.asarray(value.to_physical().to_numpy())
    if codes.dtype.kind == "f" or (codes < 0).any():
        raise DataError(
            f"{where} is categorical ({_list(categories)}) with missing values; drop those rows, or make them a category"
        )
    return codes.astype(np.int64)


def _dims(value: Any, ndim: int) -> tuple[str, ...]:
    if hasattr(value, "dims"):
        return tuple(map(str, value.dims))
    axes = (getattr(value, "index", None), getattr(value, "columns", None))[:ndim]
    names = [getattr(a, "name", None) if not callable(a) else None for a in axes]
    return tuple("" if n is None else str(n) for n in names)


def _labels(value: Any, shape: tuple[int, ...]) -> tuple[np.ndarray | None, ...]:
    if hasattr(value, "dims"):
        coords = value.coords
        found = [np.asarray(coords[d].to_numpy()) if d in coords else None for d in value.dims]
    else:
        index, columns = getattr(value, "index", None), getattr(value, "columns", None)
        found = [
            None if index is None or callable(index) or type(index).__name__ == "RangeIndex" else np.asarray(index),
            None if columns is None else np.asarray(list(map(_plain, columns)), dtype=object),
        ]
    return tuple(a if a is not None and a.shape == (n,) else None for a, n in zip(found, shape))


def _plain(label: Any) -> Any:
    return label if isinstance(label, str | int | float) else str(label)


def _cast(where: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor in another type.

    :raises DataError: if numbers that differ would no longer do so, as large ones do in float32.
    """
    if value.dtype is dtype:
        return value
    cast = value.to(dtype)
    if value.dtype is torch.float64 and value.numel() > 1 and dtype.is_floating_point:
        table = value.reshape(len(value), -1) if value.dim() else value.reshape(1, 1)
        finite = torch.isfinite(table)
        error = torch.where(finite, (cast.double().reshape(table.shape) - table).abs(), 0.0).amax(0)
        low = torch.where(finite, table, math.inf).amin(0)
        high = torch.where(finite, table, -math.inf).amax(0)
        lost = (error > _LOST * (high - low)) & (high > low)
        if lost.any():
            column = int(lost.nonzero()[0])
            which = f" (column {column})" if table.shape[1] > 1 else ""
            raise DataError(
                f"{where}{which} runs from {float(low[column])!r} to {float(high[column])!r}, which {str(dtype)[6:]} cannot "
                "tell apart; subtract the mean before fitting, or set torch.set_default_dtype(torch.float64)"
            )
    return cast


def _holds(array: np.ndarray) -> str:
    """Say what an array that is not of numbers holds, and what to do about it."""
    if array.dtype.kind in "Mm":
        return f"holds dates or times ({array.dtype}); pass numbers, such as days since the first"
    items = list(array.flat)
    if items and all(isinstance(v, str) for v in items):
        return (
            f"holds the strings {_list(sorted(set(items)))}; pass whole numbers: "
            "names, codes = numpy.unique(y, return_inverse=True), and codes to the model"
        )
    odd = next((v for v in items if not isinstance(v, int | float | np.number)), None)
    return f"holds {odd!r}, which is no number; pass numbers only (NaN stands for a missing one)"


def _list(values: Any) -> str:
    shown: Iterator[str] = (repr(v.item() if isinstance(v, np.generic) else v) for v in list(values)[:_SHOWN])
    return ", ".join(shown) + (", ..." if len(values) > _SHOWN else "")
