"""Numbers that tell rows of data apart, to find rows again and to recognise a data set."""

from __future__ import annotations

import torch
from torch import Tensor

from guides.program.data import Data

__all__ = ["row_keys"]

_MIX = 0x5851F42D4C957F2D
_ROWS_AT_ONCE = 4096


def row_keys(data: Data) -> Tensor:
    """Return one 64-bit number per row, int64 of shape ``(rows,)``: equal rows have equal ones, others almost never.

    Values are compared as float32, so that the same rows in another precision count as the same. Integer arithmetic modulo
    2^64 gives the same sum in any order, on any device.
    """
    total = torch.zeros(data.size, dtype=torch.long)
    for i in data.rows:
        flat = data.args[i].reshape(data.size, -1)
        generator = torch.Generator().manual_seed(i)
        low, high = torch.iinfo(torch.long).min, torch.iinfo(torch.long).max
        factors = (torch.randint(low, high, (flat.shape[1],), generator=generator) | 1).to(flat.device)
        parts = [_mixed(part, factors).cpu() for part in flat.split(_ROWS_AT_ONCE)]
        total = total + torch.cat(parts)
    return total


def _mixed(rows: Tensor, factors: Tensor) -> Tensor:
    bits = (rows.float() + 0.0).view(torch.int32).long()  # adding zero makes minus zero plus zero
    bits = (bits ^ (bits >> 13)) * _MIX
    return ((bits ^ (bits >> 29)) * factors).sum(-1)
