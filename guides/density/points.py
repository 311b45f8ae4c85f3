"""A guide that is one point of the flat unconstrained space: it knows where every latent lies in it."""

from __future__ import annotations

from typing import Any

from pyro.distributions import Delta
from torch import Tensor

from guides.families.base import FlatFamily

__all__ = ["Point"]


class Point(FlatFamily):
    """All latents at one point of the flat vector, with the map between the two that all flat families share."""

    is_point_mass: bool = True
    loc: Tensor

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        self.register_buffer("loc", self._init_loc())  # no parameter: nothing is trained

    def get_posterior(self, *args: Any, **kwargs: Any) -> Delta:
        """Return the point mass."""
        return Delta(self.loc).to_event(1)
