"""One normal with a full covariance over all latents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyro.infer.autoguide import AutoMultivariateNormal

from guides.families.base import FlatFamily, check_scale, init_function
from guides.registries import families

__all__ = ["FullRank"]


@families.register("full_rank")
class FullRank(FlatFamily, AutoMultivariateNormal):
    r"""Multivariate normal with any covariance over the unconstrained latents; Pyro's ``AutoMultivariateNormal``.

    .. math:: q(z) = \mathcal{N}(z \mid \mu, L L^\top)

    Holds :math:`D(D+3)/2` parameters for D latents. It contains the exact posterior of linear-Gaussian models.

    **When:** up to a few hundred correlated latents. **When not:** networks with thousands of weights (use ``low_rank``).

    :param model: a Pyro model with continuous latents.
    :param init_loc_fn: where the means start; see :class:`guides.MAP`.
    :param init_scale: initial standard deviation of every latent in the unconstrained space.
    :param create_plates: see :class:`guides.MAP`.
    :raises OptionError: if ``init_scale`` is not positive.

    References: Kucukelbir et al. (2017), *Automatic differentiation variational inference*.

    Example::

        >>> import pyro, pyro.distributions as dist, torch, guides
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(z.sum(), 1.0), obs=x)
        >>> draws = guides.fit(model, "full_rank", torch.ones(3), steps=1500, lr=0.02).sample(4000)["z"]
        >>> float(torch.corrcoef(draws.T)[0, 1]) < -0.5
        True
    """

    def __init__(
        self,
        model: Callable[..., Any],
        init_loc_fn: str | Callable[..., Any] = "median",
        init_scale: float = 0.1,
        *,
        create_plates: Callable[..., Any] | None = None,
    ) -> None:
        scale = check_scale(init_scale)
        super().__init__(model, create_plates=create_plates, init_loc_fn=init_function(init_loc_fn), init_scale=scale)
