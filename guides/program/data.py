"""The arguments of a model as data: which of them have rows, and how many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from guides.errors import DataError, OptionError

__all__ = ["Data", "Form", "forms_from", "plain_forms", "stack"]


@dataclass(frozen=True)
class Form:
    """How one argument was read, so that later data are read alike.

    :ivar kept: the model gets the argument as it came (a data frame that the model takes apart by itself, say).
    :ivar dtype: otherwise the type of the tensor that it became; ``None`` where it is none.
    :ivar dims: what the argument itself calls its dimensions; empty strings where it does not.
    :ivar labels: names of its rows, columns, ... where it has any, one array or ``None`` per dimension.
    :ivar categories: what the codes 0, 1, ... of a categorical argument stand for.
    """

    kept: bool = False
    dtype: torch.dtype | None = None
    dims: tuple[str, ...] = ()
    labels: tuple[np.ndarray | None, ...] = ()
    categories: tuple[Any, ...] = ()

    def take(self, index: Any) -> Form:
        """Return the form of some of the rows."""
        if not self.labels or self.labels[0] is None:
            return self
        return replace(self, labels=(self.labels[0][index], *self.labels[1:]))


@dataclass(frozen=True)
class Data:
    """Positional and keyword arguments of a model.

    :ivar args: positional arguments; arrays have become tensors.
    :ivar kwargs: keyword arguments, never minibatched.
    :ivar rows: positions in ``args`` of the tensors whose first dimension runs over data points.
    :ivar size: number of data points N; 0 if no argument has rows.
    :ivar forms: how arguments were read, by position or keyword; see :mod:`guides.program.inputs`.
    :ivar notes: what to say of arguments that no model is likely to take, should it fail.
    :ivar batch_size: data points per step that a data loader among the arguments asks for.
    :ivar gaps: in words, what has NaN among the arguments: missing values, which a model may know how to leave out.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    rows: tuple[int, ...] = ()
    size: int = 0
    forms: Mapping[int | str, Form] = field(default_factory=dict, repr=False, compare=False)
    notes: tuple[str, ...] = ()
    batch_size: int | None = None
    gaps: tuple[str, ...] = ()

    @classmethod
    def of(cls, args: Sequence[Any], kwargs: dict[str, Any] | None = None, device: torch.device | None = None) -> Data:
        """Check and wrap the arguments of a model; numpy arrays become tensors, float64 ones of the default type.

        The first tensor argument with a dimension sets N; every tensor with N rows has rows.

        NaN is noted in ``gaps``, for :meth:`without_gaps` or the model to refuse.

        :raises DataError: for infinite values, an empty data set, or tensors whose rows do not match.
        """
        converted = tuple(_tensor(a, device) for a in args)
        keywords = {k: _tensor(v, device) for k, v in (kwargs or {}).items()}
        named = {f"argument {i}": a for i, a in enumerate(converted)} | {f"argument {k!r}": a for k, a in keywords.items()}
        gaps = tuple(filter(None, (_check_values(name, value) for name, value in named.items())))
        tall = [i for i, a in enumerate(converted) if isinstance(a, Tensor) and a.dim() > 0]
        if not tall:
            return cls(converted, keywords, gaps=gaps)
        size = converted[tall[0]].shape[0]
        rows = tuple(i for i in tall if converted[i].shape[0] == size)
        odd = [i for i in tall if i not in rows]
        if odd:
            shapes = ", ".join(f"argument {i}: {tuple(converted[i].shape)}" for i in tall)
            raise DataError(
                f"the data arguments have different numbers of rows ({shapes}); the first dimension of every tensor must "
                "run over the same data points (pass other tensors by keyword, through model_kwargs)"
            )
        return cls(converted, keywords, rows, size, gaps=gaps)

    def without_gaps(self) -> Data:
        """Return the data, if no value is missing.

        :raises DataError: naming an argument with NaN in it, and what can be done.
        """
        if self.gaps:
            raise DataError(self.gaps[0])
        return self

    def to(self, device: torch.device) -> Data:
        """Return the same data on ``device``."""
        move = lambda a: a.to(device) if isinstance(a, Tensor) else a  # noqa: E731
        return replace(self, args=tuple(map(move, self.args)), kwargs={k: move(v) for k, v in self.kwargs.items()})

    def take(self, index: Tensor) -> Data:
        """Return the data points in ``index``."""
        args = tuple(a.index_select(0, index) if i in self.rows else a for i, a in enumerate(self.args))
        return self._some(args, len(index), index.cpu().numpy())

    def head(self, count: int) -> Data:
        """Return the first ``count`` data points."""
        return self.rows_from(0, count)

    def rows_from(self, start: int, count: int) -> Data:
        """Return up to ``count`` data points from number ``start`` on."""
        some = slice(start, start + count)
        args = tuple(a[some] if i in self.rows else a for i, a in enumerate(self.args))
        return self._some(args, min(count, self.size - start), some)

    def _some(self, args: tuple[Any, ...], size: int, index: Any) -> Data:
        forms = {k: f.take(index) if k in self.rows else f for k, f in self.forms.items()}
        return replace(self, args=args, size=size, forms=forms)

    def split(self, fraction: float, seed: int) -> tuple[Data, Data]:
        """Return (training, validation) data, a random ``fraction`` of the rows held out.

        :raises OptionError: if either part would be empty.
        """
        held_out = round(fraction * self.size)
        if not 0 < held_out < self.size:
            raise OptionError(
                f"validation={fraction} of {self.size} data points leaves a part empty; use a fraction between"
            )
        device = self.args[self.rows[0]].device
        order = torch.randperm(self.size, generator=torch.Generator().manual_seed(seed)).to(device)
        return self.take(order[held_out:]), self.take(order[:held_out])


def plain_forms(forms: Mapping[int | str, Form]) -> dict[int | str, dict[str, Any]]:
    """Return forms as plain Python, to be saved; labels that are neither text nor numbers become text."""
    return {
        key: {
            "kept": form.kept,
            "dtype": None if form.dtype is None else str(form.dtype)[6:],
            "dims": list(form.dims),
            "labels": [None if a is None else list(map(_plain, a.tolist())) for a in form.labels],
            "categories": list(map(_plain, form.categories)),
        }
        for key, form in forms.items()
    }


def forms_from(plain: Mapping[int | str, Mapping[str, Any]]) -> dict[int | str, Form]:
    """Return the forms that :func:`plain_forms` made plain."""
    return {
        key: Form(
            kept=form["kept"],
            dtype=None if form["dtype"] is None else getattr(torch, form["dtype"]),
            dims=tuple(form["dims"]),
            labels=tuple(None if a is None else _array(a) for a in form["labels"]),
            categories=tuple(form["categories"]),
        )
        for key, form in plain.items()
    }


def _array(labels: Sequence[Any]) -> np.ndarray:
    return np.asarray(labels, dtype=object if any(isinstance(v, str) for v in labels) else None)


def _plain(label: Any) -> Any:
    return label if isinstance(label, str | int | float) else str(label)


def stack(parts: Sequence[Data]) -> tuple[Any, ...]:
    """Stack the positional arguments of equally shaped data sets along a new first dimension.

    :raises DataError: if shapes or non-tensor arguments differ.
    """
    first = parts[0]
    stacked: list[Any] = []
    for i, a in enumerate(first.args):
        column = [p.args[i] for p in parts]
        if not isinstance(a, Tensor):
            if any(c is not a and c != a for c in column):
                raise DataError(f"argument {i} differs between the data sets and is no tensor; fit them one by one")
            stacked.append(a)
        elif any(c.shape != a.shape for c in column):
            shapes = sorted({tuple(c.shape) for c in column})
            raise DataError(f"argument {i} has different shapes in the data sets: {shapes}; only equal shapes run together")
        else:
            stacked.append(torch.stack(column))
    return tuple(stacked)


def _tensor(value: Any, device: torch.device | None) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiubc":  # others stay what they are, such as names
        value = torch.as_tensor(value)
        if value.dtype == torch.float64:
            value = value.to(torch.get_default_dtype())
    return value.to(device) if isinstance(value, Tensor) and device is not None else value


def _check_values(name: str, value: Any) -> str | None:
    """Return in words what is missing in a value.

    :raises DataError: for an empty or infinite one.
    """
    if not isinstance(value, Tensor):
        return None
    if value.numel() == 0 and (value.dim() < 2 or len(value) == 0):  # rows without columns are no covariates, which is fine
        raise DataError(f"{name} is empty (shape {tuple(value.shape)}); a fit needs at least one data point")
    if value.is_floating_point():
        bad = ~torch.isfinite(value)
        if bad.any():
            where = tuple(int(i) for i in bad.nonzero()[0])
            said = f"{name} has {int(bad.sum())} NaN or infinite values, the first at index {where}; "
            if torch.isinf(value).any():
                raise DataError(f"{said}drop or impute them before fitting")
            return (
                f"{said}drop or impute them before fitting, or let the model leave them out: poutine.mask(mask=~isnan), "
                "obs_mask=, or a distribution that allows them (NanMaskedNormal)"
            )
    return None
