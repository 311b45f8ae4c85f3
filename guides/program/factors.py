"""Matrices that cannot be factored: NaN in the place of an error, so that one bad draw is one bad draw."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["FactorsOrNaN"]


class FactorsOrNaN(TorchFunctionMode):
    """Inside the block, factors, inverses and solutions that do not exist are NaN.

    torch raises an error instead, which ends everything at once: all draws and replicates that are evaluated together.

    :ivar failed: names of the functions that failed, as far as that can be told (not inside ``vmap``).
    """

    def __init__(self) -> None:
        super().__init__()
        self.failed: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.linalg.cholesky, torch.cholesky, Tensor.cholesky):
            upper = kwargs.get("upper", args[1] if len(args) > 1 else False)
            return self._checked("Cholesky factor", *torch.linalg.cholesky_ex(args[0], upper=upper))
        if func in (torch.linalg.inv, torch.inverse, Tensor.inverse):
            return self._checked("inverse", *torch.linalg.inv_ex(args[0]))
        return func(*args, **kwargs)

    def _checked(self, what: str, found: Tensor, info: Tensor) -> Tensor:
        wrapped = torch._C._functorch.is_functorch_wrapped_tensor(info)
        if not wrapped and bool((info != 0).any()):
            self.failed.add(what)
        return torch.where((info == 0)[..., None, None], found, torch.full_like(found, float("nan")))
