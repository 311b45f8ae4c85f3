"""Many evaluations at once, or one after the other where a model cannot be vectorised."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from guides.compile.fallback import warn_slower
from guides.compile.tracing import said

__all__ = ["Gathered", "Vectorised", "over_draws", "over_rows"]


_NOT_FOR_LACK_OF_A_RULE = (torch.OutOfMemoryError, torch.linalg.LinAlgError, MemoryError)


class Vectorised:
    """``torch.vmap`` of functions, or a loop over them from the first time that one does not allow it.

    An operation without a rule for vectorising, or Python that looks at values, fails in many ways. What tells such a
    failure from one of the function's own is that the function works by itself.

    :param what: what the evaluations run over, for the warning (``"particles"``).
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._looping = False

    @property
    def looping(self) -> bool:
        """Whether evaluations run one by one, because a model did not allow otherwise."""
        return self._looping

    def __call__(self, function: Callable[..., Any], in_dims: Sequence[int | None], *inputs: Any) -> Any:
        """Return what ``function`` returns for each row of its inputs, stacked.

        :param in_dims: 0 for inputs (tensors, or tuples of them) to take rows of, ``None`` for those to pass whole.
        :param inputs: random draws inside the function differ between rows.
        """
        reason = None
        if not self._looping:
            try:
                return torch.vmap(function, in_dims=tuple(in_dims), randomness="different")(*inputs)
            except _NOT_FOR_LACK_OF_A_RULE:
                raise
            except Exception as error:  # of any kind; what the function raises by itself comes again below
                reason = said(error)
        first = inputs[list(in_dims).index(0)]
        count = len(first[0] if isinstance(first, tuple) else first)
        results = [function(*(_row(i, d, k) for i, d in zip(inputs, in_dims))) for k in range(count)]
        if reason is not None:
            self._looping = True
            warn_slower(f"the model cannot be vectorised over {self._what}, which are taken one by one: {reason}")
        return _stack(results)


class Gathered:
    """Results of pieces of work, written into tensors of the whole as they come, so that nothing is held twice.

    :param leading: the dimensions of the whole that come before those of one result.
    :ivar values: the (nested) dict of tensors of the whole.
    """

    def __init__(self, leading: tuple[int, ...]) -> None:
        self._leading = leading
        self.values: dict[str, Any] = {}

    def add(self, *position_and_values: Any) -> None:
        """Put tensors that run over the last leading dimension to where they start: its index, after those before it."""
        *position, values = position_and_values
        self._put(self.values, tuple(position), values)

    def _put(self, whole: dict[str, Any], position: tuple[int, ...], values: dict[str, Any]) -> None:
        *before, start = position
        for name, value in values.items():
            if isinstance(value, dict):
                self._put(whole.setdefault(name, {}), position, value)
                continue
            if name not in whole:
                whole[name] = value.new_empty((*self._leading, *value.shape[1:]))
            whole[name][(*before, slice(start, start + len(value)))] = value


def over_draws(
    function: Callable[[Tensor], Any],
    count: int,
    chunk: int,
    device: torch.device,
    take: Callable[[int, dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Call ``function`` with draw numbers ``0 .. count-1`` and put what it returns along a new first dimension.

    :param function: from a scalar integer tensor to a (nested) dict of tensors; random draws differ between calls.
    :param chunk: draws to vectorise at a time.
    :param take: what to do with the number of a chunk's first draw and its results; by default they are put together.
    """
    gathered, vectorised = Gathered((count,)), Vectorised("draws")
    for start in range(0, count, chunk):
        values = vectorised(function, (0,), torch.arange(start, min(start + chunk, count), device=device))
        (take or gathered.add)(start, values)
    return gathered.values


def over_rows(function: Callable[[Tensor], Any], rows: Tensor, chunk: int, what: str) -> Any:
    """Return what ``function`` makes of each row of a tensor, a tensor or a dict of them, along a new first dimension.

    :param chunk: rows to vectorise at a time.
    :param what: what the rows are, for the warning.
    """
    vectorised = Vectorised(what)
    parts = [vectorised(function, (0,), part) for part in rows.split(chunk)]
    if isinstance(parts[0], dict):
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return torch.cat(parts)


def _row(value: Any, dim: int | None, k: int) -> Any:
    if dim is None:
        return value
    return tuple(v[k] for v in value) if isinstance(value, tuple) else value[k]


def _stack(results: list[Any]) -> Any:
    first = results[0]
    if isinstance(first, dict):
        return {k: _stack([r[k] for r in results]) for k in first}
    if isinstance(first, tuple):
        return tuple(_stack([r[i] for r in results]) for i in range(len(first)))
    return torch.stack(results)
