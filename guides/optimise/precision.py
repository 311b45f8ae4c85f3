"""Matrix products in fewer bits, everything else in float32."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from guides.errors import check_known

__all__ = ["ReducedPrecision", "products_in"]

_PRODUCTS = {
    torch.matmul,
    torch.Tensor.matmul,
    torch.Tensor.__matmul__,
    torch.Tensor.__rmatmul__,
    torch.mm,
    torch.Tensor.mm,
    torch.bmm,
    torch.Tensor.bmm,
    torch.addmm,
    functional.linear,
    functional.conv1d,
    functional.conv2d,
    functional.conv3d,
    functional.conv_transpose1d,
    functional.conv_transpose2d,
    functional.conv_transpose3d,
}

_DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


class ReducedPrecision(TorchFunctionMode):
    """Inside the block, take products of float32 matrices and convolutions in ``dtype`` and return them as float32.

    A product is where the time goes and where few bits do least harm: it averages over many terms. Whatever happens at a
    sample site (its parameters, its draw, its density, and the sum of densities) stays in float32 at every site.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _PRODUCTS:
            return func(*args, **kwargs)
        product = func(*map(self._lowered, args), **{name: self._lowered(value) for name, value in kwargs.items()})
        return product.float() if product.dtype is self._dtype else product

    def _lowered(self, value: Any) -> Any:
        return value.to(self._dtype) if isinstance(value, Tensor) and value.dtype is torch.float32 else value


def products_in(precision: str) -> AbstractContextManager[Any]:
    """Return the context for a precision by name: ``"float32"``, ``"bfloat16"`` or ``"float16"``.

    :raises OptionError: for another name.
    """
    check_known("precision", precision, _DTYPES)
    dtype = _DTYPES[precision]
    return nullcontext() if dtype is None else ReducedPrecision(dtype)
