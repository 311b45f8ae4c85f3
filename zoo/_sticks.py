"""Weights of a mixture as the pieces of a broken stick."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

__all__ = ["STICKS", "log_stick_weights", "stick_prior"]

STICKS = ("dirichlet", "gem")


def stick_prior(kind: str, concentration: float, num_components: int, like: Tensor) -> TorchDistributionMixin:
    r"""Return the prior of the fractions that break a stick into K weights, of event shape ``(K - 1,)``.

    :param kind: ``"dirichlet"``, :math:`v_k \sim \operatorname{Beta}(\alpha, (K - k) \alpha)`, whose weights are exactly
        :math:`\operatorname{Dirichlet}(\alpha, \ldots, \alpha)`; or ``"gem"``,
        :math:`v_k \sim \operatorname{Beta}(1, \alpha)`.
    :param concentration: :math:`\alpha`.
    """
    rest = torch.arange(num_components - 1, 0, -1, dtype=like.dtype, device=like.device)
    ones = torch.ones_like(rest)
    first, second = (ones, rest) if kind == "dirichlet" else (ones / concentration, ones)
    return dist.Beta(concentration * first, concentration * second).to_event(1)


def log_stick_weights(sticks: Tensor) -> Tensor:
    r"""Return the logarithms of :math:`\pi_k = v_k \prod_{j<k} (1 - v_j)`, the last taking the remainder, ``(..., K)``.

    :param sticks: :math:`v_k` in (0, 1), ``(..., K - 1)``. A rounding away from 0 and 1, where logarithms or their
        gradients would be infinite.
    """
    info = torch.finfo(sticks.dtype)
    sticks = sticks.clamp(info.tiny / info.eps, 1 - info.eps)
    nothing = sticks.new_zeros(*sticks.shape[:-1], 1)
    left = torch.cat([nothing, torch.log1p(-sticks).cumsum(-1)], -1)
    return left + torch.cat([sticks.log(), nothing], -1)
