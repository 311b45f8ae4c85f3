"""Many draws at once, or one after the other where a model cannot be vectorised."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["over_draws"]


def over_draws(function: Callable[[Tensor], Any], count: int, chunk: int, device: torch.device) -> dict[str, Any]:
    """Call ``function`` with draw numbers ``0 .. count-1`` and stack what it returns along a new first dimension.

    :param function: from a scalar integer tensor to a (nested) dict of tensors; random draws differ between calls.
    :param chunk: draws to vectorise at a time, which bounds memory.
    """
    numbers = torch.arange(count, device=device)
    try:
        return torch.vmap(function, randomness="different", chunk_size=chunk)(numbers)
    except RuntimeError as error:
        if "vmap" not in str(error) and "functorch" not in str(error):
            raise
        reason = str(error).splitlines()[0]
    warnings.warn(f"the model cannot be vectorised over draws, so they are taken one by one: {reason}", stacklevel=2)
    results = [function(n) for n in numbers]
    return _stack(results)


def _stack(results: list[Any]) -> Any:
    if isinstance(results[0], dict):
        return {k: _stack([r[k] for r in results]) for k in results[0]}
    return torch.stack(results)
