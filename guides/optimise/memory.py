"""How much a step makes, how much room there is, and how many replicates fit into it."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["CountElements", "free_bytes", "most_replicates"]

_SHARE = 0.5
_BYTES = 4


class CountElements(TorchDispatchMode):
    """Count the numbers in everything that operations inside the block return.

    :ivar elements: the count so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else (out,):
            if isinstance(value, Tensor):
                self.elements += value.numel()
        return out


def free_bytes(device: torch.device) -> int | None:
    """Return how many bytes are free on a device; ``None`` where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def most_replicates(elements: int, free: int | None) -> int | None:
    """Return how many replicates to run at once so that half of the free memory holds all that their step makes.

    Much of it is released during the step, so this errs on the safe side; batches that large gain nothing from being larger.

    :param elements: numbers that one replicate's step makes.
    :param free: bytes; ``None`` sets no limit.
    """
    return None if free is None else max(1, int(_SHARE * free) // max(1, _BYTES * elements))
