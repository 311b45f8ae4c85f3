"""Parts of a guide made of layers of mixtures whose weights are fractions of a stick: heads, weights, what was drawn."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from guides.distributions.kumaraswamy import Kumaraswamy

__all__ = ["LayerHead", "log_fractions", "mean_log_fractions"]

_CONCENTRATIONS = 0.1, 100.0
_SCALES = 1e-3, 1e3


class LayerHead(nn.Module):
    """From features to one layer: the distribution of the fractions, means and scales of the components.

    :param features: a batch of them.
    :param starts: where the components' means are at first, ``(K, D)``.
    :param init_scale: what their standard deviations are at first.
    """

    def __init__(self, features: Tensor, starts: Tensor, init_scale: float) -> None:
        super().__init__()
        where: dict[str, Any] = {"device": features.device, "dtype": features.dtype}
        self.shape = starts.shape
        self.init_scale = init_scale
        width, (count, size) = features.shape[1], starts.shape
        self.loc = nn.Linear(width, count * size, **where)
        self.rho = nn.Linear(width, count * size, **where)
        self.sticks = nn.Linear(width, 2 * (count - 1), **where) if count > 1 else None
        nn.init.zeros_(self.rho.bias)
        with torch.no_grad():
            self.loc.bias.add_(starts.reshape(-1).to(self.loc.bias))
        if self.sticks is not None:
            nn.init.zeros_(self.sticks.bias)

    def forward(self, features: Tensor) -> tuple[Kumaraswamy | None, Tensor, Tensor]:
        """Return fractions of batch shape ``(rows, K - 1)``, and means and scales ``(rows, K, D)``."""
        loc, rho = (part(features).unflatten(-1, self.shape) for part in (self.loc, self.rho))
        start = torch.as_tensor(self.init_scale, dtype=rho.dtype, device=rho.device)
        return self._fractions(features), loc, _bounded(rho, start, *_SCALES)

    def _fractions(self, features: Tensor) -> Kumaraswamy | None:
        if self.sticks is None:
            return None
        numbers = self.sticks(features).unflatten(-1, (2, -1))
        # At zero a = 1 and b = K - k, the fractions of uniform weights on the simplex.
        rest = torch.arange(self.shape[0] - 1, 0, -1, dtype=numbers.dtype, device=numbers.device)
        start = torch.stack([torch.ones_like(rest), rest.clamp(max=_CONCENTRATIONS[1] / 2)])
        a, b = _bounded(numbers, start, *_CONCENTRATIONS).unbind(-2)
        return Kumaraswamy(a, b, validate_args=False)


def _bounded(numbers: Tensor, start: Tensor, low: float, high: float) -> Tensor:
    """Return numbers between ``low`` and ``high``: ``start`` at zero, and growing like an exponential halfway."""
    centre, reach = 0.5 * math.log(low * high), 0.5 * math.log(high / low)
    at_zero = reach * torch.atanh((start.log() - centre) / reach)
    return (centre + reach * torch.tanh((numbers + at_zero) / reach)).exp()


def log_fractions(fractions: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return :math:`\log v` and :math:`\log (1 - v)`, finite for fractions that are rounded to 0 or 1."""
    info = torch.finfo(fractions.dtype)
    inside = fractions.clamp(info.tiny / info.eps, 1 - info.eps)
    return inside.log(), torch.log1p(-inside)


def mean_log_fractions(fractions: Kumaraswamy) -> tuple[Tensor, Tensor]:
    r"""Return :math:`\log \mathbb{E} v` and :math:`\log \mathbb{E}(1 - v)`."""
    mean = fractions.mean.clamp(max=1 - torch.finfo(fractions.a.dtype).eps)
    return fractions.log_mean, torch.log1p(-mean)
