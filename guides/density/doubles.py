"""Double precision inside a block, whatever a model says about single precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from guides.program.alone import LOCK

__all__ = ["double_by_default", "doubled", "in_double"]

_LOOKS = frozenset(["__get__", "__set__", "__setitem__", "__delete__", "grad", "backward", "size", "dim"])


@contextmanager
def in_double() -> Iterator[None]:
    """Compute in double precision inside the block; the caller's default type is put back, other threads wait.

    A model makes numbers of the default type, closes over tensors in single precision, holds networks with weights in it
    and may ask for it in words (``x.float()``). All of them become double where an operation meets them.
    """
    with double_by_default(), _Doubles():
        yield


@contextmanager
def double_by_default() -> Iterator[None]:
    """Make double precision the default inside the block, on which operations in a graph depend, too; see above."""
    with LOCK:
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def doubled(value: Any) -> Any:
    """Return a tensor of floating point numbers in double precision, as a copy of its own; anything else as it is."""
    return value.detach().clone().double() if isinstance(value, Tensor) and value.is_floating_point() else value


class _Doubles(TorchFunctionMode):
    """Make single precision double wherever an operation is given it."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in _LOOKS or (name.endswith("_") and not name.endswith("__")):  # what looks, or writes in place
            return func(*args, **(kwargs or {}))
        if func is Tensor.float:
            func = Tensor.double
        return func(*map(_double, args), **{k: _double(v) for k, v in (kwargs or {}).items()})


def _double(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.to(torch.float64) if value.dtype is torch.float32 else value
    if value is torch.float32:
        return torch.float64
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return type(value)(map(_double, value))
    return value
