"""Observed distributions by their natural coordinates: what linearisation and the Fisher information act on.

A distribution stands here where its Fisher information has a closed form that also is its curvature on average over the data
at the optimum (exponential families, and families of a location and a scale), or where the density has kinks, so that a
second derivative says nothing (Laplace). For all others a Laplace approximation takes the exact Hessian of the log density.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import MaskedDistribution
from torch import Tensor
from torch.distributions import Independent

from guides.errors import UnsupportedModelError

__all__ = ["Coordinates", "coordinates", "fisher_is_known"]


@dataclass(frozen=True)
class Coordinates:
    r"""A distribution as a point in unconstrained coordinates :math:`\varphi`.

    :ivar value: :math:`\varphi`, shape ``(*shape, k)``.
    :ivar information: returns :attr:`fisher`; derivatives of :math:`\varphi` do without it.
    :ivar rebuild: from other coordinates of that shape to the distribution there.
    :ivar fixed: parameters that :math:`\varphi` leaves out; where they depend on a latent, it does not tell everything.
    """

    value: Tensor
    information: Callable[[], Tensor]
    rebuild: Callable[[Tensor], Any]
    fixed: tuple[Tensor, ...] = ()

    @property
    def fisher(self) -> Tensor:
        r""":math:`\mathbb{E}_{y \sim p_\varphi}[-\partial^2_\varphi \log p_\varphi(y)]`, shape ``(*shape, k, k)``."""
        return self.information()


def _location_scale(loc: Tensor, scale: Tensor, loc_information: Any, scale_information: Any, make: Any) -> Coordinates:
    loc, scale = torch.broadcast_tensors(loc, scale)

    def information() -> Tensor:
        return torch.diag_embed(torch.stack([loc_information * scale**-2, scale_information * torch.ones_like(scale)], -1))

    value = torch.stack([loc, scale.log()], -1)
    return Coordinates(value, information, lambda v: make(v[..., 0], v[..., 1].exp()))


def _normal(fn: Any) -> Coordinates:
    return _location_scale(fn.loc, fn.scale, 1.0, 2.0, dist.Normal)


def _student_t(fn: Any) -> Coordinates:
    df = fn.df
    found = _location_scale(
        fn.loc, fn.scale, (df + 1) / (df + 3), 2 * df / (df + 3), lambda loc, scale: dist.StudentT(df, loc, scale)
    )
    return replace(found, fixed=(df,))


def _laplace(fn: Any) -> Coordinates:
    return _location_scale(fn.loc, fn.scale, 1.0, 1.0, dist.Laplace)


def _asymmetric_laplace(fn: Any) -> Coordinates:
    skew = fn.asymmetry
    found = _location_scale(fn.loc, fn.scale, 1.0, 1.0, lambda loc, scale: dist.AsymmetricLaplace(loc, scale, skew))
    return replace(found, fixed=(skew,))


def _log_normal(fn: Any) -> Coordinates:
    return _location_scale(fn.loc, fn.scale, 1.0, 2.0, dist.LogNormal)


def _bernoulli(fn: Any) -> Coordinates:
    return Coordinates(
        fn.logits[..., None], lambda: _variance(fn.logits)[..., None, None], lambda v: dist.Bernoulli(logits=v[..., 0])
    )


def _variance(logits: Tensor) -> Tensor:
    return torch.sigmoid(logits) * torch.sigmoid(-logits)


def _binomial(fn: Any) -> Coordinates:
    logits, n = fn.logits, fn.total_count

    def rebuild(value: Tensor) -> Any:
        odds = value[..., 0]
        return dist.Binomial(n + torch.zeros_like(odds), logits=odds)  # vmap's binomial wants both batched

    return Coordinates(logits[..., None], lambda: (n * _variance(logits))[..., None, None], rebuild)


def _categorical(fn: Any) -> Coordinates:
    def information() -> Tensor:
        p = torch.softmax(fn.logits, -1)
        return torch.diag_embed(p) - p[..., :, None] * p[..., None, :]

    return Coordinates(fn.logits, information, lambda v: dist.Categorical(logits=v))


def _one_hot(fn: Any) -> Coordinates:
    return replace(_categorical(fn), rebuild=lambda v: dist.OneHotCategorical(logits=v))


def _multinomial(fn: Any) -> Coordinates:
    count, inner = fn.total_count, _categorical(fn)
    return replace(inner, information=lambda: count * inner.fisher, rebuild=lambda v: dist.Multinomial(count, logits=v))


def _geometric(fn: Any) -> Coordinates:
    information = lambda: torch.sigmoid(-fn.logits)[..., None, None]  # noqa: E731
    return Coordinates(fn.logits[..., None], information, lambda v: dist.Geometric(logits=v[..., 0]))


def _negative_binomial(fn: Any) -> Coordinates:
    count, logits = torch.broadcast_tensors(fn.total_count, fn.logits)
    information = lambda: (count * torch.sigmoid(logits))[..., None, None]  # noqa: E731
    return Coordinates(logits[..., None], information, lambda v: dist.NegativeBinomial(count, logits=v[..., 0]), (count,))


def _positive_pair(one: Tensor, other: Tensor, information: Callable[[Tensor, Tensor], Any], make: Any) -> Coordinates:
    """Return the coordinates of two positive parameters; ``information`` gives the upper triangle for their logarithms."""
    one, other = torch.broadcast_tensors(one, other)

    def matrix() -> Tensor:
        first, both, second = information(one, other)
        return torch.stack([torch.stack([first, both], -1), torch.stack([both, second], -1)], -2)

    value = torch.stack([one.log(), other.log()], -1)
    return Coordinates(value, matrix, lambda v: make(v[..., 0].exp(), v[..., 1].exp()))


def _gamma_information(shape: Tensor, rate: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return shape**2 * torch.polygamma(1, shape), -shape, shape


def _gamma(fn: Any) -> Coordinates:
    return _positive_pair(fn.concentration, fn.rate, _gamma_information, dist.Gamma)


def _inverse_gamma(fn: Any) -> Coordinates:
    return _positive_pair(fn.concentration, fn.rate, _gamma_information, dist.InverseGamma)


def _weibull_information(scale: Tensor, shape: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    left = 1.0 - _EULER
    return shape**2, -left * shape, torch.full_like(shape, math.pi**2 / 6 + left**2)


def _weibull(fn: Any) -> Coordinates:
    return _positive_pair(fn.scale, fn.concentration, _weibull_information, dist.Weibull)


def _beta_information(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    a, b, both = (torch.polygamma(1, v) for v in (one, other, one + other))
    return one**2 * (a - both), -one * other * both, other**2 * (b - both)


def _beta(fn: Any) -> Coordinates:
    return _positive_pair(fn.concentration1, fn.concentration0, _beta_information, dist.Beta)


def _dirichlet(fn: Any) -> Coordinates:
    shape = fn.concentration

    def information() -> Tensor:
        inner = torch.diag_embed(torch.polygamma(1, shape)) - torch.polygamma(1, shape.sum(-1))[..., None, None]
        return shape[..., :, None] * inner * shape[..., None, :]

    return Coordinates(shape.log(), information, lambda v: dist.Dirichlet(v.exp()))


def _multivariate_normal(fn: Any) -> Coordinates:
    # Its covariance is not among the coordinates: there would be as many as a matrix has entries, squared.
    tril = fn.scale_tril
    loc = fn.loc.expand(*fn.batch_shape, *fn.event_shape)
    return Coordinates(
        loc, lambda: torch.cholesky_inverse(tril), lambda v: dist.MultivariateNormal(v, scale_tril=tril), (tril,)
    )


def _poisson(fn: Any) -> Coordinates:
    return Coordinates(fn.rate.log()[..., None], lambda: fn.rate[..., None, None], lambda v: dist.Poisson(v[..., 0].exp()))


def _exponential(fn: Any) -> Coordinates:
    value = fn.rate.log()[..., None]
    return Coordinates(value, lambda: torch.ones_like(value)[..., None], lambda v: dist.Exponential(v[..., 0].exp()))


_EULER = 0.5772156649015329

_KNOWN: dict[str, Callable[[Any], Coordinates]] = {
    "AsymmetricLaplace": _asymmetric_laplace,
    "Bernoulli": _bernoulli,
    "Beta": _beta,
    "Binomial": _binomial,
    "Categorical": _categorical,
    "Dirichlet": _dirichlet,
    "Exponential": _exponential,
    "Gamma": _gamma,
    "Geometric": _geometric,
    "InverseGamma": _inverse_gamma,
    "Laplace": _laplace,
    "LogNormal": _log_normal,
    "Multinomial": _multinomial,
    "MultivariateNormal": _multivariate_normal,
    "NegativeBinomial": _negative_binomial,
    "Normal": _normal,
    "OneHotCategorical": _one_hot,
    "OneHotCategoricalStraightThrough": _one_hot,
    "Poisson": _poisson,
    "StudentT": _student_t,
    "Weibull": _weibull,
}


def fisher_is_known(fn: Any) -> bool:
    """Tell whether :func:`coordinates` knows a distribution."""
    while isinstance(fn, Independent | MaskedDistribution):
        fn = fn.base_dist
    return type(fn).__name__ in _KNOWN


def coordinates(name: str, fn: Any) -> Coordinates:
    """Return the natural coordinates of the distribution of observed site ``name``.

    :raises UnsupportedModelError: for a distribution that is not in the list.
    """
    if isinstance(fn, Independent):
        inner = coordinates(name, fn.base_dist)
        return replace(inner, rebuild=lambda v: inner.rebuild(v).to_event(fn.reinterpreted_batch_ndims))
    if isinstance(fn, MaskedDistribution):
        inner, mask = coordinates(name, fn.base_dist), torch.as_tensor(fn._mask)
        seen = mask.reshape(*mask.shape, *(1,) * (inner.value.dim() + 1 - len(fn.batch_shape)))
        return replace(inner, information=lambda: inner.fisher * seen, rebuild=lambda v: inner.rebuild(v).mask(fn._mask))
    known = _KNOWN.get(type(fn).__name__)
    if known is None:
        raise UnsupportedModelError(
            f"observed site {name!r} is {type(fn).__name__}, whose Fisher information is not known here "
            f"({', '.join(_KNOWN)} are); use predictive='sampled'"
        )
    return known(fn)
