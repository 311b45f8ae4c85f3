"""Observed distributions by their natural coordinates: what linearisation and the Fisher information act on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import MaskedDistribution
from torch import Tensor
from torch.distributions import Independent

from guides.errors import UnsupportedModelError

__all__ = ["Coordinates", "coordinates"]


@dataclass(frozen=True)
class Coordinates:
    r"""A distribution as a point in unconstrained coordinates :math:`\varphi`.

    :ivar value: :math:`\varphi`, shape ``(*shape, k)``.
    :ivar fisher: :math:`\mathbb{E}_{y \sim p_\varphi}[-\partial^2_\varphi \log p_\varphi(y)]`, shape ``(*shape, k, k)``.
    :ivar rebuild: from other coordinates of that shape to the distribution there.
    """

    value: Tensor
    fisher: Tensor
    rebuild: Callable[[Tensor], Any]


def _location_scale(loc: Tensor, scale: Tensor, loc_information: Any, scale_information: Any, make: Any) -> Coordinates:
    loc, scale = torch.broadcast_tensors(loc, scale)
    info = torch.stack([loc_information * scale**-2, scale_information * torch.ones_like(scale)], -1)
    value = torch.stack([loc, scale.log()], -1)
    return Coordinates(value, torch.diag_embed(info), lambda v: make(v[..., 0], v[..., 1].exp()))


def _normal(fn: Any) -> Coordinates:
    return _location_scale(fn.loc, fn.scale, 1.0, 2.0, dist.Normal)


def _student_t(fn: Any) -> Coordinates:
    df = fn.df
    return _location_scale(
        fn.loc, fn.scale, (df + 1) / (df + 3), 2 * df / (df + 3), lambda loc, scale: dist.StudentT(df, loc, scale)
    )


def _log_normal(fn: Any) -> Coordinates:
    return _location_scale(fn.loc, fn.scale, 1.0, 2.0, dist.LogNormal)


def _bernoulli(fn: Any) -> Coordinates:
    p = torch.sigmoid(fn.logits)
    return Coordinates(fn.logits[..., None], (p * (1 - p))[..., None, None], lambda v: dist.Bernoulli(logits=v[..., 0]))


def _binomial(fn: Any) -> Coordinates:
    p, n = torch.sigmoid(fn.logits), fn.total_count
    info = (n * p * (1 - p))[..., None, None]
    return Coordinates(fn.logits[..., None], info, lambda v: dist.Binomial(n, logits=v[..., 0]))


def _categorical(fn: Any) -> Coordinates:
    p = torch.softmax(fn.logits, -1)
    return Coordinates(
        fn.logits, torch.diag_embed(p) - p[..., :, None] * p[..., None, :], lambda v: dist.Categorical(logits=v)
    )


def _poisson(fn: Any) -> Coordinates:
    return Coordinates(fn.rate.log()[..., None], fn.rate[..., None, None], lambda v: dist.Poisson(v[..., 0].exp()))


def _exponential(fn: Any) -> Coordinates:
    value = fn.rate.log()[..., None]
    return Coordinates(value, torch.ones_like(value)[..., None], lambda v: dist.Exponential(v[..., 0].exp()))


_KNOWN: dict[str, Callable[[Any], Coordinates]] = {
    "Bernoulli": _bernoulli,
    "Binomial": _binomial,
    "Categorical": _categorical,
    "Exponential": _exponential,
    "LogNormal": _log_normal,
    "Normal": _normal,
    "Poisson": _poisson,
    "StudentT": _student_t,
}


def coordinates(name: str, fn: Any) -> Coordinates:
    """Return the natural coordinates of the distribution of observed site ``name``.

    :raises UnsupportedModelError: for a distribution that is not in the list.
    """
    if isinstance(fn, Independent):
        inner = coordinates(name, fn.base_dist)
        return replace(inner, rebuild=lambda v: inner.rebuild(v).to_event(fn.reinterpreted_batch_ndims))
    if isinstance(fn, MaskedDistribution):
        inner, mask = coordinates(name, fn.base_dist), torch.as_tensor(fn._mask)
        seen = mask.reshape(*mask.shape, *(1,) * (fn.event_dim + 2))
        return Coordinates(inner.value, inner.fisher * seen, lambda v: inner.rebuild(v).mask(fn._mask))
    known = _KNOWN.get(type(fn).__name__)
    if known is None:
        raise UnsupportedModelError(
            f"observed site {name!r} is {type(fn).__name__}, whose Fisher information is not known here "
            f"({', '.join(_KNOWN)} are); use curvature='hessian' and predictive='sampled'"
        )
    return known(fn)
