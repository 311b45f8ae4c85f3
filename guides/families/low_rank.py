"""One normal whose covariance is diagonal plus low rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyro.infer.autoguide import AutoLowRankMultivariateNormal

from guides.distributions.normals import LowRankNormal
from guides.errors import OptionError
from guides.families.base import FlatFamily, check_scale, init_function
from guides.registries import families

__all__ = ["LowRank"]


@families.register("low_rank")
class LowRank(FlatFamily, AutoLowRankMultivariateNormal):
    r"""Normal with covariance of diagonal plus low rank; Pyro's ``AutoLowRankMultivariateNormal``.

    .. math:: q(z) = \mathcal{N}(z \mid \mu, W W^\top + \mathrm{diag}(d)), \qquad W \in \mathbb{R}^{D \times r}

    **When:** networks and other models too large for ``full_rank`` whose latents share a few directions.
    **When not:** when ``mean_field`` already reaches the same ELBO.

    :param model: a Pyro model with continuous latents.
    :param init_loc_fn: where the means start; see :class:`guides.MAP`.
    :param init_scale: initial standard deviation of every latent in the unconstrained space.
    :param rank: columns of W; by default about :math:`\sqrt{D}`.
    :param create_plates: see :class:`guides.MAP`.
    :raises OptionError: if ``init_scale`` or ``rank`` is not positive.

    References: Ong, Nott & Smith (2018), *Gaussian variational approximation with a factor covariance structure*.

    Example::

        >>> import pyro, pyro.distributions as dist, torch, guides
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(z.sum(), 1.0), obs=x)
        >>> posterior = guides.fit(model, guides.LowRank(model, rank=1), torch.ones(3), steps=300)
        >>> posterior.sample(10)["z"].shape
        torch.Size([10, 3])
    """

    def __init__(
        self,
        model: Callable[..., Any],
        init_loc_fn: str | Callable[..., Any] = "median",
        init_scale: float = 0.1,
        rank: int | None = None,
        *,
        create_plates: Callable[..., Any] | None = None,
    ) -> None:
        scale = check_scale(init_scale)
        if rank is not None and rank < 1:
            raise OptionError(f"rank must be at least 1, not {rank!r}")
        super().__init__(
            model, create_plates=create_plates, init_loc_fn=init_function(init_loc_fn), init_scale=scale, rank=rank
        )

    def get_posterior(self, *args: Any, **kwargs: Any) -> LowRankNormal:
        """Return the normal over the flat unconstrained latents."""
        scale: Any = self.scale
        return LowRankNormal(self.loc, scale.unsqueeze(-1) * self.cov_factor, scale * scale)
