"""How many modes has the posterior of a data point's latents? Counted without asking a guide."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["ascend", "count_modes"]

LR = 0.1


def ascend(log_joint: Callable[[Tensor], Tensor], starts: Tensor, steps: int) -> Tensor:
    """Return where gradient ascent of ``log_joint`` ends, shape as ``starts``.

    :param log_joint: from latents ``(S, N, D)`` to log p(x, z) in nats, ``(S, N)``, each from its own latents alone.
    :param starts: shape ``(S, N, D)``.
    :param steps: of Adam, with a step size that falls to zero.
    """
    z = starts.clone().requires_grad_()
    optimiser = torch.optim.Adam([z], lr=LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    with torch.enable_grad():
        for _ in range(steps):
            optimiser.zero_grad()
            (-log_joint(z).sum()).backward()
            optimiser.step()
            schedule.step()
    return z.detach()


def count_modes(ends: Tensor, heights: Tensor, apart: float, within: float) -> Tensor:
    """Return how many different places of a data point ascents have ended at, shape ``(N,)``.

    From the highest end down, an end counts if it is far from all that have counted.

    :param ends: shape ``(S, N, D)``.
    :param heights: log p(x, z) there in nats, ``(S, N)``.
    :param apart: the least distance between two modes.
    :param within: modes further below the highest one, in nats, carry next to nothing and do not count.

    Example::

        >>> ends = torch.tensor([0.0, 0.01, 3.0, 9.0]).reshape(4, 1, 1)
        >>> count_modes(ends, torch.tensor([[-1.0], [-1.0], [-2.0], [-50.0]]), apart=0.5, within=7.0)
        tensor([2])
    """
    order = heights.argsort(0, descending=True)
    heights = heights.gather(0, order)
    ends = ends.gather(0, order.unsqueeze(-1).expand_as(ends))
    far = torch.cdist(ends.transpose(0, 1), ends.transpose(0, 1)) > apart  # (N, S, S)
    counts = (heights > heights[0] - within).T  # (N, S)
    for end in range(1, len(ends)):
        others = counts[:, :end] & ~far[:, end, :end]
        counts[:, end] &= ~others.any(1)
    return counts.sum(1)
