"""Maximum a posteriori: the posterior as its highest point."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.infer.autoguide import AutoDelta
from torch import Tensor

from guides.families.base import Family, init_function
from guides.registries import families

__all__ = ["MAP"]


@families.register("map")
class MAP(Family, AutoDelta):
    r"""Point estimate at the maximum of the posterior density; Pyro's ``AutoDelta``.

    .. math:: q(z) = \delta(z - \hat z), \qquad \hat z = \arg\max_z \log p(x, z)

    The maximum is taken in the constrained space of each site, so it depends on the parametrisation. It carries no
    uncertainty. A model with parameters and no latent site is fitted by maximum likelihood.

    **When:** as a baseline, a start for other guides, or where a plain network is what is wanted (with normal
    priors it is a network with weight decay).

    **When not:** whenever the predictive uncertainty matters.

    :param model: a Pyro model.
    :param init_loc_fn: where each site starts: ``"median"`` of prior draws (default), ``"sample"``, ``"feasible"``,
        ``"spread"`` (a draw from the prior, its median for bounded sites), or any of Pyro's ``init_to_...`` functions.
    :param create_plates: a function of the model's arguments that returns a plate, or several, for the guide to use in the
        place of its own, as with Pyro's autoguides: this is how a guide is told which rows of a plate a step sees.

    References: Bishop (2006), *Pattern Recognition and Machine Learning*, section 1.2.5.

    Example::

        >>> import pyro, pyro.distributions as dist, torch, guides
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> posterior = guides.fit(model, "map", torch.ones(3), steps=500, lr=0.05)
        >>> abs(float(posterior.sample(1)["z"]) - 0.75) < 1e-2
        True
    """

    is_point_mass: bool = True
    may_stand_still: bool = True
    allows_no_latents: bool = True

    def __init__(
        self,
        model: Callable[..., Any],
        init_loc_fn: str | Callable[..., Any] = "median",
        *,
        create_plates: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(model, init_loc_fn=init_function(init_loc_fn), create_plates=create_plates)

    @torch.no_grad()
    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Return the point, site by site."""
        return {name: value.detach() for name, value in self(*args, **kwargs).items()}

    @torch.no_grad()
    def quantiles(self, quantiles: Sequence[float] | Tensor, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Return quantiles of every latent, shape ``(Q, *site shape)``: the point, for every probability."""
        return {n: v.expand(len(quantiles), *v.shape).clone() for n, v in self.median(*args, **kwargs).items()}
