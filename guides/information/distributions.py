"""Measures of information of torch and Pyro distributions: closed forms, or Monte Carlo with its error."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions import kl_divergence as registered_kl

from guides.errors import DataError, OptionError
from guides.information.measure import Measure, Unit, per_nat
from guides.program.isolation import seeded

__all__ = [
    "conditional_entropy",
    "cross_entropy",
    "entropy",
    "joint_entropy",
    "kl_divergence",
    "mutual_information",
]

Conditional = Callable[[Tensor], Any]
"""From draws of one variable, ``(S, *batch, *event)``, to the distribution of another of batch shape ``(S, *batch)``."""

_ELEMENTS_AT_ONCE = 2**24


def entropy(p: Distribution, num_samples: int = 10_000, seed: int = 0, unit: Unit = "nats") -> Measure:
    r"""Return the entropy :math:`-E_p[\log p(x)]`: differential for densities, of the outcomes for discrete distributions.

    :param p: a torch or Pyro distribution.
    :param num_samples: draws S, used where ``p.entropy()`` is not defined.
    :param seed: the same seed gives the same draws; the caller's random state is left alone.
    :param unit: ``"nats"`` or ``"bits"``.
    :returns: one value per distribution of the batch.
    :raises OptionError: for fewer than two draws or another unit.

    Example::

        >>> import pyro.distributions as dist
        >>> entropy(dist.Bernoulli(0.5), unit="bits")
        1.000 bits
        >>> halves = dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(torch.tensor([-9.0, 9.0]), 1.0))
        >>> entropy(halves)  # log 2 more than that of one half, which is 1.419
        2.115 ± 0.007 nats (10000 draws)
    """
    per_nat(unit)
    value = _registered_entropy(p)
    if value is not None:
        return Measure.closed_form(value, unit)
    return Measure.of_draws(_at_draws(lambda x: -_log_prob(p, x), p, num_samples, seed), unit)


def cross_entropy(
    p: Distribution, q: Distribution, num_samples: int = 10_000, seed: int = 0, unit: Unit = "nats"
) -> Measure:
    r"""Return the mean surprise of q at draws of p, :math:`-E_p[\log q(x)] = H(p) + KL(p \| q)`.

    :param p: where the draws come from.
    :param q: the distribution that is surprised, over the same space.
    :param num_samples: draws S, used where entropy or divergence has no closed form.
    :param seed: the same seed gives the same draws.
    :param unit: ``"nats"`` or ``"bits"``.
    :raises DataError: if p and q are over different spaces.
    :raises OptionError: for fewer than two draws or another unit.

    Example::

        >>> import pyro.distributions as dist
        >>> cross_entropy(dist.Bernoulli(0.9), dist.Bernoulli(0.5), unit="bits")
        1.000 bits
    """
    per_nat(unit)
    p = _same_space(p, q)
    own, divergence = _registered_entropy(p), _registered_kl(p, q)
    if own is not None and divergence is not None:
        return Measure.closed_form(own + divergence, unit)
    return Measure.of_draws(_at_draws(lambda x: -_log_prob(q, x), p, num_samples, seed), unit)


def kl_divergence(
    p: Distribution, q: Distribution, num_samples: int = 10_000, seed: int = 0, unit: Unit = "nats"
) -> Measure:
    r"""Return the Kullback-Leibler divergence :math:`E_p[\log p(x) - \log q(x)]`.

    :param p: where the expectation is taken.
    :param q: the distribution it is compared with, over the same space.
    :param num_samples: draws S, used where torch has no closed form for this pair.
    :param seed: the same seed gives the same draws.
    :param unit: ``"nats"`` or ``"bits"``.
    :returns: infinite where a draw of p lies outside the support of q.
    :raises DataError: if p and q are over different spaces.
    :raises OptionError: for fewer than two draws or another unit.

    Example::

        >>> import pyro.distributions as dist
        >>> kl_divergence(dist.Normal(1.0, 1.0), dist.Normal(0.0, 1.0))
        0.500 nats
        >>> kl_divergence(dist.Normal(0.0, 1.0), dist.StudentT(5.0))
        0.032 ± 0.002 nats (10000 draws)
    """
    per_nat(unit)
    p = _same_space(p, q)
    value = _registered_kl(p, q)
    if value is not None:
        return Measure.closed_form(value, unit)
    return Measure.of_draws(_at_draws(lambda x: _log_prob(p, x) - _log_prob(q, x), p, num_samples, seed), unit)


def conditional_entropy(
    given: Distribution, conditional: Conditional, num_samples: int = 10_000, seed: int = 0, unit: Unit = "nats"
) -> Measure:
    r"""Return :math:`H(x \mid z) = E_{p(z)}[H(p(x \mid z))]`.

    :param given: p(z).
    :param conditional: p(x | z), a function from draws of z, ``(S, *batch, *event)``, to a distribution of batch shape
        ``(S, *batch)``.
    :param num_samples: draws S of z (and of x, where p(x | z) has no entropy in closed form).
    :param seed: the same seed gives the same draws.
    :param unit: ``"nats"`` or ``"bits"``.
    :raises DataError: if ``conditional`` does not return one distribution per draw.
    :raises OptionError: for fewer than two draws or another unit.

    Example::

        >>> import pyro.distributions as dist
        >>> conditional_entropy(dist.Normal(0.0, 1.0), lambda z: dist.Normal(z, 1.0)).value
        tensor(1.4189)
    """
    per_nat(unit)

    def at(z: Tensor) -> Tensor:
        return _entropy_or_draw(_conditional(conditional, z, given))

    return Measure.of_draws(_at_draws(at, given, num_samples, seed), unit)


def joint_entropy(
    given: Distribution, conditional: Conditional, num_samples: int = 10_000, seed: int = 0, unit: Unit = "nats"
) -> Measure:
    r"""Return :math:`H(x, z) = H(z) + H(x \mid z)`.

    :param given: p(z).
    :param conditional: p(x | z); see :func:`conditional_entropy`.
    :param num_samples: draws S of z (and of x, where p(x | z) has no entropy in closed form).
    :param seed: the same seed gives the same draws.
    :param unit: ``"nats"`` or ``"bits"``.
    :raises DataError: if ``conditional`` does not return one distribution per draw.
    :raises OptionError: for fewer than two draws or another unit.

    Example::

        >>> import pyro.distributions as dist
        >>> joint_entropy(dist.Normal(0.0, 1.0), lambda z: dist.Normal(z, 1.0)).value
        tensor(2.8379)
    """
    per_nat(unit)
    own = _registered_entropy(given)

    def at(z: Tensor) -> Tensor:
        return _entropy_or_draw(_conditional(conditional, z, given)) + (-_log_prob(given, z) if own is None else own)

    return Measure.of_draws(_at_draws(at, given, num_samples, seed), unit)


def mutual_information(
    given: Distribution,
    conditional: Conditional,
    marginal: Distribution,
    num_samples: int = 10_000,
    seed: int = 0,
    unit: Unit = "nats",
) -> Measure:
    r"""Return :math:`I(x; z) = E_{p(z)}[KL(p(x \mid z) \| p(x))]`.

    The divergences are taken in closed form where torch has one, and at one draw of x per draw of z otherwise.

    :param given: p(z).
    :param conditional: p(x | z), a function from draws of z, ``(S, *batch, *event)``, to a distribution of batch shape
        ``(S, *batch)``.
    :param marginal: p(x). It has to be the marginal of the other two: with any other distribution the result is too large,
        by its divergence from the marginal.
    :param num_samples: draws S of z.
    :param seed: the same seed gives the same draws.
    :param unit: ``"nats"`` or ``"bits"``.
    :raises DataError: if ``conditional`` does not return one distribution per draw, or not over the space of ``marginal``.
    :raises OptionError: for fewer than two draws or another unit.

    References: Cover & Thomas (2006), *Elements of Information Theory*, section 8.5.

    Example::

        >>> import pyro.distributions as dist
        >>> noise = lambda z: dist.Normal(z, 1.0)
        >>> mutual_information(dist.Normal(0.0, 1.0), noise, dist.Normal(0.0, 2**0.5))  # log(2) / 2 = 0.347
        0.348 ± 0.004 nats (10000 draws)
    """
    per_nat(unit)

    def at(z: Tensor) -> Tensor:
        x_given_z = _conditional(conditional, z, given)
        _same_space(x_given_z, marginal)
        value = _registered_kl(x_given_z, marginal)
        if value is not None:
            return value
        x = x_given_z.sample()
        return _log_prob(x_given_z, x) - _log_prob(marginal, x)

    return Measure.of_draws(_at_draws(at, given, num_samples, seed), unit)


def _entropy_or_draw(p: Distribution) -> Tensor:
    """Return the entropy in nats where it has a closed form, and one draw's estimate of it elsewhere."""
    value = _registered_entropy(p)
    return -_log_prob(p, p.sample()) if value is None else value


def _registered_entropy(p: Any) -> Tensor | None:
    try:
        return p.entropy()
    except NotImplementedError:
        return None


def _registered_kl(p: Any, q: Any) -> Tensor | None:
    try:
        return registered_kl(p, q)
    except NotImplementedError:
        return None


def _log_prob(q: Any, x: Tensor) -> Tensor:
    """Return log q(x), minus infinity outside the support, where distributions raise or return anything."""
    inside = q.support.check(x)
    event = inside.reshape(inside.shape + (1,) * len(q.event_shape))
    stand_in = q.sample().expand(x.shape)
    return torch.where(inside, q.log_prob(torch.where(event, x, stand_in)), -math.inf)


def _at_draws(function: Callable[[Tensor], Tensor], p: Any, num_samples: int, seed: int) -> Tensor:
    """Return ``function`` at draws of p, ``(S, *batch)``, as many draws at a time as memory allows."""
    if num_samples < 2:
        raise OptionError(f"num_samples is {num_samples}; an estimate with a standard error needs at least 2 draws")
    chunk = max(1, _ELEMENTS_AT_ONCE // max(1, p.batch_shape.numel() * p.event_shape.numel()))
    sizes = [min(chunk, num_samples - start) for start in range(0, num_samples, chunk)]
    with seeded(seed), torch.no_grad():
        return torch.cat([function(p.sample((size,))) for size in sizes])


def _conditional(conditional: Conditional, z: Tensor, given: Any) -> Any:
    found = conditional(z)
    wanted = (z.shape[0], *given.batch_shape)
    if not isinstance(found, Distribution) or tuple(found.batch_shape) != wanted:
        shape = f"batch shape {tuple(found.batch_shape)}" if isinstance(found, Distribution) else type(found).__name__
        raise DataError(
            f"conditional, given draws of shape {tuple(z.shape)}, returned {shape}; it must return a distribution of batch "
            f"shape {wanted}, one per draw: declare the other dimensions an event by .to_event(...)"
        )
    return found


def _same_space(p: Any, q: Any) -> Any:
    """Check that p and q can be compared, and return p in the batch shape of both."""
    if tuple(p.event_shape) != tuple(q.event_shape):
        raise DataError(
            f"p has events of shape {tuple(p.event_shape)}, q of {tuple(q.event_shape)}; they must be over the same space "
            "(.to_event(n) makes dimensions an event)"
        )
    if p.support.is_discrete != q.support.is_discrete:
        kind = {True: "discrete", False: "continuous"}
        raise DataError(
            f"p ({type(p).__name__}) is {kind[p.support.is_discrete]} and q ({type(q).__name__}) is "
            f"{kind[q.support.is_discrete]}; probabilities and densities cannot be compared"
        )
    try:
        batch = torch.broadcast_shapes(p.batch_shape, q.batch_shape)
    except RuntimeError:
        shapes = f"{tuple(p.batch_shape)} and {tuple(q.batch_shape)}"
        raise DataError(f"p and q have batch shapes {shapes}, which do not broadcast") from None
    return p if batch == p.batch_shape else p.expand(batch)
