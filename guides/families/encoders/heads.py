"""From what an encoder says about rows to distributions of a latent: Gaussians of several covariances, and flows on top."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions.transforms import ReshapeTransform
from torch.nn.functional import softplus

from guides.distributions.flows import FLOWS, conditional_flow
from guides.distributions.normals import LowRankNormal
from guides.errors import GuideMismatchError, OptionError, check_known
from guides.program.local_sites import LocalSite

__all__ = ["Gaussian", "Head", "HeadOptions", "check_encoded"]

COVARIANCES = ("diagonal", "low_rank", "full")


@dataclass(frozen=True)
class HeadOptions:
    """What the distributions of an amortised guide look like; see :class:`guides.Amortized` for each.

    :raises OptionError: for a value that makes no sense.
    """

    covariance: str = "diagonal"
    rank: int | None = None
    flow: str | None = None
    num_flows: int = 2
    init_scale: float = 0.1

    def __post_init__(self) -> None:
        check_known("covariance", self.covariance, COVARIANCES)
        if self.flow is not None and self.flow not in FLOWS:
            raise OptionError(f"flow={self.flow!r} is not known; use None, {' or '.join(map(repr, FLOWS))}")
        if self.rank is not None and self.covariance != "low_rank":
            raise OptionError(f"rank={self.rank!r} means something for covariance='low_rank' only")
        for name in ("rank", "num_flows"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int) and value >= 1):
                raise OptionError(f"{name} must be a whole number of at least 1, not {value!r}")
        if not (isinstance(self.init_scale, int | float) and 0 < self.init_scale < math.inf):
            raise OptionError(f"init_scale must be positive, not {self.init_scale!r}")


@dataclass(frozen=True)
class Gaussian:
    """A normal per row over a site's unconstrained numbers, and what a flow on top of it is conditioned on.

    :ivar loc: shape ``(rows, size)``, as ``scale``, the standard deviations apart from ``factor``.
    :ivar factor: ``(rows, size, rank)`` of a low-rank covariance, ``(rows, size, size)`` unit lower triangular of a full
        one, both in units of ``scale``; ``None`` for a diagonal one.
    """

    loc: Tensor
    scale: Tensor
    factor: Tensor | None
    context: Tensor


class Head(nn.Module):
    """The part of an amortised guide that belongs to one site.

    :param width: number of features F of the encoder; ``None`` if it returns location and scale itself.
    """

    def __init__(self, site: LocalSite, width: int | None, options: HeadOptions, like: Tensor) -> None:
        super().__init__()
        self.site = site
        self.options = options
        alone = options.covariance == "diagonal" and options.flow is None
        if not alone and not site.stands_alone:
            raise OptionError(
                f"latent site {site.name!r} stands in other plates than that of the rows; covariance='diagonal' without a "
                "flow is what it can have"
            )
        where: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
        size = site.size
        self.factor: nn.Linear | None = None
        if width is not None:
            self.loc = nn.Linear(width, size, **where)
            self.rho = nn.Linear(width, size, **where)
            nn.init.constant_(self.rho.bias, math.log(math.expm1(options.init_scale)))
            if options.covariance != "diagonal" and size > 1:
                self.rank = options.rank or max(1, round(math.sqrt(size)))
                columns = self.rank if options.covariance == "low_rank" else size
                self.factor = nn.Linear(width, size * columns, **where)
                nn.init.normal_(self.factor.weight, std=0.01)
                nn.init.normal_(self.factor.bias, std=0.01)
        elif options.covariance != "diagonal":
            raise OptionError(
                f"covariance={options.covariance!r} needs an encoder that returns features (rows, F); this one returns "
                f"location and scale of site {site.name!r} itself"
            )
        context = width if width is not None else 2 * size
        count = options.num_flows if options.flow is not None else 0
        self.flows = nn.ModuleList(conditional_flow(str(options.flow), size, context, k).to(**where) for k in range(count))

    def _flows(self) -> list[Any]:
        return list(self.flows)

    def gaussian(self, encoded: Tensor | tuple[Tensor, Tensor]) -> Gaussian:
        """Return the normal that an encoder's output stands for."""
        if isinstance(encoded, tuple):
            loc, scale = (part.flatten(1) if part.dim() > 1 else part.unsqueeze(-1) for part in encoded)
            return Gaussian(loc, scale, None, torch.cat([loc, scale], -1))
        factor = None
        if self.factor is not None:
            factor = self.factor(encoded).reshape(len(encoded), self.site.size, -1)
            if self.options.covariance == "full":
                factor = factor.tril(-1) + torch.eye(self.site.size, dtype=factor.dtype, device=factor.device)
        return Gaussian(self.loc(encoded), softplus(self.rho(encoded)), factor, encoded)

    def distribution(self, gaussian: Gaussian) -> Any:
        """Return the distribution of the site, with its batch and event shapes."""
        site = self.site
        transforms: list[Any] = [] if site.transform is None else [site.transform.with_cache()]
        if gaussian.factor is None and not len(self.flows):
            base = dist.Normal(site.arrange(gaussian.loc), site.arrange(gaussian.scale)).to_event(
                len(site.unconstrained_event)
            )
            return dist.TransformedDistribution(base, transforms) if transforms else base
        batch = [1] * site.batch_dims
        batch[site.row_position] = len(gaussian.loc)
        loc, scale = gaussian.loc.reshape(*batch, -1), gaussian.scale.reshape(*batch, -1)
        factor = None if gaussian.factor is None else gaussian.factor.reshape(*batch, *gaussian.factor.shape[1:])
        context = gaussian.context.reshape(*batch, -1)
        if site.unconstrained_event != (site.size,):
            transforms.insert(0, ReshapeTransform(torch.Size((site.size,)), site.unconstrained_event, cache_size=1))
        transforms = [*(flow.condition(context) for flow in self._flows()), *transforms]
        if factor is None:
            base = dist.Normal(loc, scale).to_event(1)
        elif self.options.covariance == "full":
            base = dist.MultivariateNormal(loc, scale_tril=scale.unsqueeze(-1) * factor)
        else:
            base = LowRankNormal(loc, scale.unsqueeze(-1) * factor, scale * scale)
        return dist.TransformedDistribution(base, transforms) if transforms else base


def check_encoded(encoded: Any, number: int, sites: list[LocalSite], rows: int, like: Head | None) -> None:
    """Check that an encoder's output fits the latents that it is for.

    :param number: of the encoder, from 1.
    :param like: a head that exists already, to compare the width with.
    :raises GuideMismatchError: naming what was found.
    """
    which = f"encoder {number}"
    names = ", ".join(repr(s.name) for s in sites)
    if isinstance(encoded, tuple):
        if len(encoded) != 2 or not all(isinstance(part, Tensor) for part in encoded):
            raise GuideMismatchError(f"{which} returns a tuple of {len(encoded)}; return features or a pair (loc, scale)")
        if len(sites) > 1:
            raise GuideMismatchError(
                f"{which} returns one pair (loc, scale) for {len(sites)} latent sites, {names}; return features (rows, F), "
                "from which the guide takes what each needs"
            )
        want = (rows, *sites[0].row_shape)
        for part, name in zip(encoded, ("loc", "scale")):
            if tuple(part.shape) != want:
                raise GuideMismatchError(
                    f"{which} returns {name} of shape {tuple(part.shape)} for latent site {names}, which needs {want}: "
                    "rows first, then one row's value in the unconstrained space"
                )
        return
    if not isinstance(encoded, Tensor):
        raise GuideMismatchError(f"{which} returns {type(encoded).__name__}; return features (rows, F) or (loc, scale)")
    if encoded.dim() != 2 or len(encoded) != rows or not encoded.shape[1]:
        raise GuideMismatchError(
            f"{which} returns features of shape {tuple(encoded.shape)} for {rows} rows (latent {names}); they must be "
            f"({rows}, F), one vector per row: end it with nn.Flatten() if need be"
        )
    if like is not None and like.loc.in_features != encoded.shape[1]:
        raise GuideMismatchError(
            f"{which} returned {like.loc.in_features} features per row at first and returns {encoded.shape[1]} now"
        )
