"""Maximum a posteriori: the posterior as its highest point."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from pyro.infer.autoguide import AutoDelta

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
    :param init: where each site starts: ``"median"`` of prior draws (default), ``"sample"``, ``"feasible"``, ``"spread"``
        (a draw from the prior, its median for bounded sites), or any function that Pyro accepts as ``init_loc_fn``.

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

    is_point_mass: ClassVar[bool] = True
    allows_no_latents: ClassVar[bool] = True

    def __init__(self, model: Callable[..., Any], init: str | Callable[..., Any] = "median") -> None:
        super().__init__(model, init_loc_fn=init_function(init))
