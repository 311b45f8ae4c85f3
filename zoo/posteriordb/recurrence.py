"""Linear recurrences without a loop over time."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["linear_recurrence"]


def linear_recurrence(coefficient: Tensor, inputs: Tensor) -> Tensor:
    r"""Return :math:`x_t = a\, x_{t-1} + u_t`, with :math:`x_0 = 0`.

    By doubling: :math:`x^{(k)}_t = \sum_{j < 2^k} a^j u_{t-j}` gives :math:`x^{(k+1)}_t = x^{(k)}_t + a^{2^k}
    x^{(k)}_{t-2^k}`, so that T steps take :math:`\log_2 T` operations on whole series.

    :param coefficient: a, ``()``.
    :param inputs: u, ``(T,)``.

    Example::

        >>> linear_recurrence(torch.tensor(0.5), torch.tensor([1.0, 1.0, 1.0]))
        tensor([1.0000, 1.5000, 1.7500])
    """
    found, power, shift = inputs, coefficient, 1
    while shift < len(inputs):
        found = torch.cat([found[:shift], found[shift:] + power * found[:-shift]])
        power, shift = power.square(), 2 * shift
    return found
