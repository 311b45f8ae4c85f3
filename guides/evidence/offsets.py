"""Offsets per data point to what an encoder says: from one guide, a guide of the same family that is free for each row."""

from __future__ import annotations

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import Independent, LowRankMultivariateNormal, MultivariateNormal, Normal, TransformedDistribution

from guides.distributions.normals import LowRankNormal
from guides.errors import UnsupportedModelError
from guides.program.sites import nodes

__all__ = ["OffsetLayout", "Refine"]

Offset = tuple[Tensor, ...]
"""Changes of location and scale of one site; zeros change nothing."""

_NO_SHAPE = torch.Size()


class Refine(Messenger):
    r"""Move and reshape the Gaussian that a guide draws each site from, by offsets that belong to the rows.

    .. math:: \mathcal{N}(\mu, L L^\top) \to \mathcal{N}(\mu + L T \delta,\ L T T^\top L^\top)

    with T a diagonal of :math:`e^\rho` for independent coordinates and lower triangular for a full covariance (a low-rank
    one gets a new factor and diagonal in units of the standard deviations). Zero offsets change nothing, and where location
    and scale are free of other draws every member of the family can be reached. Transformations on top, such as flows, stay.

    :param offsets: by site.
    :param sticking: densities take the offsets as constants, so that gradients reach them through the draws alone and
        have no noise at a guide that is exact (Roeder, Wu & Duvenaud 2017, *Sticking the landing*).
    """

    def __init__(self, offsets: dict[str, Offset], sticking: bool = False) -> None:
        super().__init__()
        self._offsets = offsets
        self._sticking = sticking

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self._offsets:
            msg["fn"] = _refined(msg["fn"], self._offsets[msg["name"]], self._sticking)


class OffsetLayout:
    """Where the offsets of all sites lie in one flat vector.

    :param guide_trace: the guide's draw for the rows that offsets are wanted for.
    :param names: the sites.
    :raises UnsupportedModelError: naming a site whose distribution is not built on a Gaussian.
    """

    def __init__(self, guide_trace: Trace, names: tuple[str, ...]) -> None:
        sites = nodes(guide_trace)
        self._shapes = {name: _offset_shapes(name, sites[name]["fn"]) for name in names}

    @property
    def size(self) -> int:
        """Length of the flat vector."""
        return sum(shape.numel() for shapes in self._shapes.values() for shape in shapes)

    def split(self, flat: Tensor) -> dict[str, Offset]:
        """Return the offsets by site."""
        shapes = [shape for group in self._shapes.values() for shape in group]
        parts = iter(part.reshape(shape) for part, shape in zip(flat.split([s.numel() for s in shapes]), shapes))
        return {name: tuple(next(parts) for _ in group) for name, group in self._shapes.items()}


def _gaussian(fn: Any) -> Any:
    """Return the Gaussian under a distribution's transformations and event dimensions, or what is there instead."""
    while isinstance(fn, Independent | TransformedDistribution):
        fn = fn.base_dist
    return fn


def _offset_shapes(name: str, fn: Any) -> tuple[torch.Size, ...]:
    base = _gaussian(fn)
    if isinstance(base, Normal):
        return base.loc.shape, base.loc.shape
    if isinstance(base, MultivariateNormal):
        return base.loc.shape, base.scale_tril.shape
    if isinstance(base, LowRankMultivariateNormal):
        return base.loc.shape, base.loc.shape, base.cov_factor.shape
    raise UnsupportedModelError(
        f"the guide draws site {name!r} from {type(base).__name__}; the best member of its family can be sought for "
        "Gaussians, diagonal, low-rank or full, and for flows on top of them"
    )


class _Sticking(TorchDistribution):
    """Draws of one distribution with the density of another of equal parameters."""

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = True

    def __init__(self, live: Any, frozen: Any) -> None:
        self._live, self._frozen = live, frozen
        super().__init__(live.batch_shape, live.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        return self._live.support

    def rsample(self, sample_shape: Any = _NO_SHAPE) -> Tensor:
        draw: Tensor = self._live.rsample(sample_shape)
        return draw

    def log_prob(self, value: Tensor) -> Tensor:
        density: Tensor = self._frozen.log_prob(value)
        return density


def _refined(fn: Any, offset: Offset, sticking: bool) -> Any:
    if isinstance(fn, Independent):
        return dist.Independent(_refined(fn.base_dist, offset, sticking), fn.reinterpreted_batch_ndims)
    if isinstance(fn, TransformedDistribution):
        return dist.TransformedDistribution(_refined(fn.base_dist, offset, sticking), fn.transforms)
    live = _moved(fn, offset)
    return _Sticking(live, _moved(fn, tuple(part.detach() for part in offset))) if sticking else live


def _moved(fn: Any, offset: Offset) -> Any:
    """Return the Gaussian ``fn`` with another location and scale."""
    if isinstance(fn, Normal):
        shift, rho = offset
        scale = fn.scale * rho.exp()
        return dist.Normal(fn.loc + scale * shift, scale)
    if isinstance(fn, MultivariateNormal):
        shift, below = offset
        tril = torch.tril(below, -1) + torch.diag_embed(torch.diagonal(below, dim1=-2, dim2=-1).exp())
        tril = fn.scale_tril @ tril
        return dist.MultivariateNormal(fn.loc + (tril @ shift.unsqueeze(-1)).squeeze(-1), scale_tril=tril)
    shift, rho, factor = offset
    scale = fn.cov_diag.sqrt() * rho.exp()
    return LowRankNormal(fn.loc + scale * shift, fn.cov_factor + scale.unsqueeze(-1) * factor, scale * scale)
