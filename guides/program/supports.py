"""Where a latent may lie, and the map to it from all real numbers: the one place that answers for every guide.

A distribution does not always state its support: that of a transformed one is its last transform's codomain, whatever the
base covers (a mirrored half-normal claims all real numbers), a mixture wraps its components', an angle calls itself real. A
guide that maps normals to the stated support then draws impossible values. So the support is worked out here from what the
distribution is made of, and expressed by constraints that :func:`torch.distributions.biject_to` knows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import reduce
from typing import Any

import torch
from pyro.distributions import (
    Empirical,
    MaskedMixture,
    SineBivariateVonMises,
    SineSkewed,
    Uniform,
    VonMises,
)
from pyro.distributions.mixture import MaskedConstraint
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import (
    Independent,
    MixtureSameFamily,
    TransformedDistribution,
    biject_to,
    constraints,
    transform_to,
)
from torch.distributions.transforms import ComposeTransform, IndependentTransform, Transform

from guides.errors import UnsupportedModelError
from guides.program.bijections import BoundedTransform, LowerCholeskyVector, PositiveDefiniteVector
from guides.program.stating import Stating, is_improper

__all__ = [
    "Mapped",
    "PlainSupports",
    "has_elements_in",
    "is_discrete",
    "is_unconstrained",
    "plain_support",
    "same_support",
    "stated_support",
    "support_of",
    "support_tensors",
    "unconstraining",
]

_ANGLES = constraints.interval(-math.pi, math.pi)
_PER_TYPE: dict[Any, Callable[[], Transform]] = {
    type(constraints.lower_cholesky): LowerCholeskyVector,
    type(constraints.positive_definite): PositiveDefiniteVector,
    type(constraints.positive_semidefinite): PositiveDefiniteVector,
}

Bounds = tuple[Any, Any]


class Mapped(constraints.Constraint):
    """The image of all real numbers under a bijection.

    :param transform: the bijection.
    :param inside: tells whether values lie in the image.
    :param fixed: the bijection has no numbers in it that a model could choose.
    """

    def __init__(self, transform: Transform, inside: constraints.Constraint, fixed: bool) -> None:
        self.transform, self.inside, self.fixed = transform, inside, fixed
        super().__init__()

    @property
    def event_dim(self) -> int:  # type: ignore[override]
        """Dimensions of one value."""
        return int(self.transform.codomain.event_dim)

    def check(self, value: Tensor) -> Tensor:
        """Tell whether values lie in the image."""
        found: Tensor = self.inside.check(value)
        return found

    def __repr__(self) -> str:
        return repr(self.inside)


biject_to.register(Mapped, lambda c: c.transform)
transform_to.register(Mapped, lambda c: c.transform)


def plain_support(fn: Any) -> constraints.Constraint:
    """Return the support of a distribution as a constraint that ``biject_to`` knows; a discrete one as it is.

    :raises NotImplementedError: saying what the support is, if there is no map from all real numbers to it.
    """
    if isinstance(fn, MaskedDistribution | ExpandedDistribution | SineSkewed):
        return plain_support(fn.base_dist)
    if isinstance(fn, Independent):
        return _stacked(plain_support(fn.base_dist), fn.reinterpreted_batch_ndims)
    if isinstance(fn, Empirical):
        raise NotImplementedError("a set of points")
    if isinstance(fn, VonMises):
        return _ANGLES
    if isinstance(fn, SineBivariateVonMises):
        return _stacked(_ANGLES, 1)
    if isinstance(fn, MixtureSameFamily):
        return _of_mixture(fn.component_distribution)
    if isinstance(fn, MaskedMixture):
        parts = plain_support(fn.component0), plain_support(fn.component1)
        return _either(fn.mask, *parts, fn.event_dim)
    if isinstance(fn, TransformedDistribution) and _states_codomain(fn):
        return reduce(_image, _flattened(fn.transforms), plain_support(fn.base_dist))
    return _plain(fn.support)


def support_of(site: Any) -> constraints.Constraint:
    """Return the plain support of a site of a trace.

    :raises UnsupportedModelError: naming site and support, if there is no map from all real numbers to it.
    """
    try:
        return plain_support(site["fn"])
    except NotImplementedError as error:
        raise UnsupportedModelError(
            f"latent site {site['name']!r} ({_called(site['fn'])}) has no map from all real numbers to its support, "
            f"{str(error) or 'which it does not state'}. Give it a prior with another support, write the value as a "
            "function of latents that have one (pyro.infer.reparam does that for many), or use the guide 'map' or one of "
            "your own"
        ) from error


def unconstraining(site: Any) -> Transform:
    """Return the bijection from all real numbers to the support of a site of a trace made under :class:`PlainSupports`.

    Such a site states its support, which is then not worked out again at every draw.

    :raises UnsupportedModelError: naming site and support, if there is none.
    """
    try:
        found: Transform = biject_to(site["fn"].support)
    except NotImplementedError:
        found = biject_to(support_of(site))
    return found


def is_unconstrained(site: Any) -> bool:
    """Tell whether the support of a site of a trace made under :class:`PlainSupports` is all real numbers."""
    return has_elements_in(site, constraints.real)


def has_elements_in(site: Any, wanted: constraints.Constraint) -> bool:
    """Tell whether such a site's support is ``wanted``, element by element of its value."""
    stated = stated_support(site["fn"])
    return stated is not None and same_support(_core(stated), wanted)


def is_discrete(fn: Any) -> bool:
    """Tell whether the values of a distribution are discrete; one that states no support is taken as continuous."""
    return bool(getattr(stated_support(fn), "is_discrete", False))


def same_support(one: Any, other: Any) -> bool:
    """Tell whether two supports are the same up to expansion."""
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        try:
            return bool(torch.isclose(torch.as_tensor(one), torch.as_tensor(other), rtol=1e-5, atol=1e-7).all())
        except RuntimeError:
            return False
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same_support, one, other))
    if isinstance(one, constraints.Constraint | Transform):
        mine, others = _numbers(one), _numbers(other)
        return mine.keys() == others.keys() and all(same_support(v, others[k]) for k, v in mine.items())
    return isinstance(one, torch.nn.Module) or bool(one == other)


def support_tensors(support: Any) -> list[Tensor]:
    """Return the tensors that a support is made of."""
    if isinstance(support, Tensor):
        return [support]
    if isinstance(support, list | tuple):
        return [t for part in support for t in support_tensors(part)]
    if isinstance(support, constraints.Constraint | Transform):
        return support_tensors(list(_numbers(support).values()))
    return []


class PlainSupports(Messenger):
    """Let every site state the support that it has, so that Pyro's own autoguides, which ask for it, are right.

    A site without a sampler (``ImproperUniform``) gets a start near the middle of its support. Sites whose support has no
    map are left as they are, for whoever needs the map to refuse.
    """

    def _pyro_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if msg["is_observed"] or not isinstance(fn, torch.distributions.Distribution):
            return
        msg["fn"] = _restated(fn)


def _restated(fn: Any) -> Any:
    """Return a distribution that states its plain support; ``fn`` itself, if it does or there is none."""
    if isinstance(fn, Independent):
        inner = _restated(fn.base_dist)
        return fn if inner is fn.base_dist else inner.to_event(fn.reinterpreted_batch_ndims)
    try:
        plain = plain_support(fn)
    except NotImplementedError:
        return fn
    stays = plain.is_discrete or isinstance(fn, Stating) or same_support(plain, stated_support(fn))
    return fn if stays and not is_improper(fn) else Stating(fn, plain)


def _called(fn: Any) -> str:
    while isinstance(fn, Independent | MaskedDistribution | ExpandedDistribution | Stating):
        fn = fn.base_dist
    return type(fn).__name__


def stated_support(fn: Any) -> Any:
    """Return the support that a distribution states, or ``None``."""
    try:
        return fn.support
    except NotImplementedError:
        return None


def _states_codomain(fn: TransformedDistribution) -> bool:
    owner = next(c for c in type(fn).__mro__ if "support" in vars(c))
    return owner is TransformedDistribution


def _numbers(value: Any) -> dict[str, Any]:
    """Return what a constraint or transform is made of, without caches."""
    ignored = ("_cached", "_inv", "_cache_size", "inside")
    return {k: v for k, v in vars(value).items() if not k.startswith(ignored) and not (k == "_inv" or k.startswith("__"))}


def _stacked(support: constraints.Constraint, dims: int) -> constraints.Constraint:
    """Return a support whose last ``dims`` further dimensions belong to one value."""
    found: constraints.Constraint = constraints.independent(support, dims) if dims else support
    return found


def _core(support: Any) -> Any:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def _plain(support: Any) -> constraints.Constraint:
    if isinstance(support, constraints.independent):
        return _stacked(_plain(support.base_constraint), support.reinterpreted_batch_ndims)
    if isinstance(support, MaskedConstraint):
        return _either(support.mask, _plain(support.constraint0), _plain(support.constraint1), support.event_dim)
    if not isinstance(support, constraints.Constraint) or constraints.is_dependent(support):
        raise NotImplementedError(f"which is stated as {support!r}")
    if support.is_discrete:
        return support
    if type(support) in _PER_TYPE:
        return Mapped(_PER_TYPE[type(support)](), support, fixed=True)
    bounds = _bounds(support)
    if bounds is not None and isinstance(support, constraints.interval | constraints.half_open_interval):
        return support if all(bool(torch.isfinite(torch.as_tensor(b)).all()) for b in bounds) else _between(*bounds)
    try:
        biject_to(support)
    except NotImplementedError:
        raise NotImplementedError(f"{support!r}") from None
    return support


def _bounds(support: Any) -> Bounds | None:
    """Return the least and the largest number of a support of single numbers, or ``None`` for another kind."""
    support = _core(support)
    if isinstance(support, type(constraints.real)):
        return -math.inf, math.inf
    if isinstance(support, constraints.greater_than | constraints.greater_than_eq):
        return support.lower_bound, math.inf
    if isinstance(support, constraints.less_than):
        return -math.inf, support.upper_bound
    if isinstance(support, constraints.interval | constraints.half_open_interval):
        return support.lower_bound, support.upper_bound
    if isinstance(support, Mapped) and isinstance(support.transform, BoundedTransform):
        return support.transform.lower, support.transform.upper
    return None


def _between(lower: Any, upper: Any) -> constraints.Constraint:
    """Return the plain support of the numbers between two bounds, which may be infinite."""
    low, high = torch.as_tensor(lower), torch.as_tensor(upper)
    below, above = torch.isfinite(low), torch.isfinite(high)
    found: Any
    if not below.any() and not above.any():
        found = constraints.real
    elif below.all() and not above.any():
        found = constraints.positive if bool((low == 0).all()) else constraints.greater_than(lower)
    elif above.all() and not below.any():
        found = constraints.less_than(upper)
    elif below.all() and above.all():
        unit = bool((low == 0).all() and (high == 1).all())
        found = constraints.unit_interval if unit else constraints.interval(lower, upper)
    else:
        found = Mapped(BoundedTransform(low, high), constraints.interval(low, high), fixed=False)
    return found


def _of_mixture(components: Any) -> constraints.Constraint:
    """Return the support of a mixture: that of its components, if they have one in common."""
    support = plain_support(components)
    extra, bounds, core = support.event_dim, _bounds(support), _core(support)
    if bounds is None:
        if (isinstance(core, Mapped) and not core.fixed) or support_tensors(core):
            raise NotImplementedError(f"that of a mixture whose components each have their own, {support!r}")
        return support
    if not any(isinstance(b, Tensor) and b.dim() for b in bounds):
        return support
    shape = torch.Size(components.batch_shape) + torch.Size(components.event_shape)
    low, high = (torch.as_tensor(b).expand(shape).movedim(-1 - extra, -1) for b in bounds)
    order = low.argsort(-1)
    low, high = low.gather(-1, order), high.gather(-1, order)
    if bool((low == low[..., :1]).all() and (high == high[..., :1]).all()):
        return _stacked(_between(low[..., 0], high[..., 0]), extra)
    ends = high.cummax(-1).values
    if _called(components) != Uniform.__name__ or bool((low[..., 1:] > ends[..., :-1]).any()):
        raise NotImplementedError(f"that of a mixture whose components each have their own, {support!r}")
    return _stacked(_between(low[..., 0], ends[..., -1]), extra)


def _either(mask: Any, zero: Any, one: Any, event_dim: int) -> constraints.Constraint:
    """Return the support of elements that have the support ``one`` where ``mask`` is set and ``zero`` elsewhere."""
    if same_support(zero, one):
        found: constraints.Constraint = zero
        return found
    a, b = _bounds(zero), _bounds(one)
    if a is None or b is None:
        raise NotImplementedError(f"which is {one!r} or {zero!r} by a mask")
    mask = torch.as_tensor(mask).bool()
    mask = mask.reshape(mask.shape + (1,) * event_dim)
    low, high = (torch.where(mask, torch.as_tensor(y), torch.as_tensor(x)) for x, y in zip(a, b))
    return _stacked(_between(low, high), event_dim)


def _flattened(transforms: Iterable[Transform]) -> list[Transform]:
    return [p for t in transforms for p in (_flattened(t.parts) if isinstance(t, ComposeTransform) else [t])]


def _image(support: constraints.Constraint, transform: Transform) -> constraints.Constraint:
    """Return the support of a transformed value."""
    grown = max(support.event_dim, transform.domain.event_dim) - transform.domain.event_dim
    if _covers(support, transform.domain):
        return _stacked(_plain(transform.codomain), grown)
    if not transform.bijective:
        raise NotImplementedError(f"the image of {support!r} under {type(transform).__name__}, which has no inverse")
    bounds, inner = _bounds(support), transform
    while isinstance(inner, IndependentTransform):
        inner = inner.base_transform
    if bounds is not None and _core(inner.domain).event_dim == 0 and _core(inner.codomain).event_dim == 0:
        ends = [inner(torch.as_tensor(b, dtype=torch.get_default_dtype())) for b in bounds]
        low, high = torch.minimum(*ends), torch.maximum(*ends)
        if not bool(low.isnan().any() or high.isnan().any()):
            return _stacked(_between(low, high), support.event_dim)
    whole = ComposeTransform([biject_to(support), transform])
    return Mapped(whole, _stacked(transform.codomain, grown), fixed=False)


def _covers(support: Any, domain: Any) -> bool:
    """Tell whether a support is all of a transform's domain."""
    mine, wanted = _bounds(support), _bounds(domain)
    if mine is None or wanted is None:
        core = _core(support)
        core = core.inside if isinstance(core, Mapped) else core
        return type(core) is type(_core(domain)) and not support_tensors(core)
    (low, high), (least, most) = [[torch.as_tensor(b) for b in pair] for pair in (mine, wanted)]
    return bool((low <= least).all() and (high >= most).all())
