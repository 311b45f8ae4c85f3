"""The guide that Pathfinder ends in: a mixture of the normals of its paths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.nn.module import PyroParam
from torch import Tensor, nn
from torch.distributions import constraints

from guides.distributions.bent import BentNormal
from guides.families.base import FlatFamily, init_function
from guides.families.full_rank import FullRank
from guides.families.mixture import Mixture
from guides.solvers.pathfinder.paths import Found, rank_of

__all__ = ["PathMixture", "values_of"]

_DENSE = 500  # latents, up to which components hold a whole Cholesky factor
_NO_WEIGHT = -1e3  # a logit that makes none, and is still a number
_DEAD = 1e-6


class PathMixture(Mixture):
    """A mixture of normals, with learned weights, as ``pathfinder`` fills it; a guide in its own right.

    Components are ``full_rank`` up to 500 latents, and a diagonal but for some directions above.

    :param model: a Pyro model with continuous latents.
    :param components: their number.
    :param history: steps that L-BFGS remembers, as for ``pathfinder``.
    """

    def __init__(self, model: Callable[..., Any], components: int, history: int | None) -> None:
        FlatFamily.__init__(self, model, init_loc_fn=init_function("median"))
        self.num_strata = components
        self.weights = "learned"
        self._history = history

    def _starts(self, *args: Any, **kwargs: Any) -> list[dict[str, Tensor]]:
        """Return one start for all components, which are going to be filled; their number of latents says what they are."""
        dense = self.latent_dim <= _DENSE
        self._family = FullRank if dense else _Bent
        self._options = {} if dense else {"rank": rank_of(self.latent_dim, self._history)}
        return [{name: site["value"].detach() for name, site in self.latent_sites()}] * self.num_strata


def values_of(found: Found, components: int) -> dict[str, Tensor]:
    """Return the parameters at which a :class:`PathMixture` is the mixture that was found, by the last part of their names.

    :param components: of the guide; those that no path stands for have no weight.
    """
    weights = found.log_weights.exp()
    alive = torch.where(weights > _DEAD, torch.arange(len(weights)), found.best)  # what has no weight may be no number
    normals = found.normals[torch.cat([alive, alive.new_full((components - len(alive),), found.best)])]
    logits = torch.full((components,), _NO_WEIGHT, dtype=torch.float64)
    logits[: len(weights)] = torch.where(weights > _DEAD, found.log_weights - found.log_weights.max(), _NO_WEIGHT)
    values = {"logits": logits, "loc": normals.loc}
    if normals.loc.shape[-1] <= _DENSE:
        tril = normals.tril()
        scale = tril.diagonal(dim1=-2, dim2=-1)
        return values | {"scale": scale, "scale_tril": tril / scale[..., None]}
    core = normals.core - torch.eye(normals.core.shape[-1], dtype=normals.core.dtype)
    return values | {"scale": normals.scale, "basis": normals.basis, "core": core}


class _Bent(FlatFamily):
    """One component for many latents."""

    def __init__(self, model: Callable[..., Any], rank: int) -> None:
        super().__init__(model, init_loc_fn=init_function("median"))
        self._rank = rank

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        self.loc = nn.Parameter(self._init_loc())
        self.scale = PyroParam(torch.ones_like(self.loc), constraints.positive)
        self.basis = nn.Parameter(self.loc.new_zeros(len(self.loc), self._rank))
        self.core = nn.Parameter(self.loc.new_zeros(self._rank, self._rank))

    def get_posterior(self, *args: Any, **kwargs: Any) -> BentNormal:
        """Return the normal over the flat unconstrained latents."""
        scale: Any = self.scale
        return BentNormal(self.loc, scale, self.basis, self.core)

    def _loc_scale(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return self.loc, self.get_posterior().variance.sqrt()
