"""Deep ensembles: several modes found from different starts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from guides.distributions.mixtures import chosen
from guides.errors import OptionError
from guides.families.base import FlatFamily, init_function
from guides.registries import families

__all__ = ["Ensemble"]


@families.register("ensemble")
class Ensemble(FlatFamily):
    r"""Equally weighted point masses, each a mode of the posterior reached from its own start.

    .. math:: q(z) = \frac1M \sum_{m=1}^M \delta(z - \hat z_m)

    With normal priors this is a deep ensemble with weight decay. All members are optimised in the same vectorised step. A
    baseline that is hard to beat for networks; it has no density, so importance diagnostics are not defined.

    **When:** networks, where different modes predict differently. **When not:** when a density or a bound on the evidence is
    needed.

    :param model: a Pyro model with continuous latents.
    :param members: number M of point masses.
    :param init_loc_fn: where each member starts; by default ``"spread"``, a draw from the prior (its median for bounded
        sites).
    :param create_plates: see :class:`guides.MAP`.
    :raises OptionError: if ``members`` is not positive.

    References: Lakshminarayanan, Pritzel & Blundell (2017), *Simple and scalable predictive uncertainty estimation using
    deep ensembles*. Adversarial training is left out; members differ by their starts only.

    Example::

        >>> import pyro, pyro.distributions as dist, torch, guides
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(z**2, 0.1), obs=x)
        >>> posterior = guides.fit(model, ("ensemble", {"members": 8}), torch.ones(20), steps=500, lr=0.05)
        >>> draws = posterior.sample(100)["z"]
        >>> bool((draws > 0.9).any() and (draws < -0.9).any())
        True
    """

    is_point_mass: bool = True

    def __init__(
        self,
        model: Callable[..., Any],
        members: int = 5,
        init_loc_fn: str | Callable[..., Any] = "spread",
        create_plates: Callable[..., Any] | None = None,
    ) -> None:
        if members < 1:
            raise OptionError(f"members must be at least 1, not {members!r}")
        super().__init__(model, create_plates=create_plates, init_loc_fn=init_function(init_loc_fn))
        self.num_strata = members

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        starts = [self._init_loc()]
        for _ in range(self.num_strata - 1):
            trace = poutine.block(poutine.trace(self.model).get_trace)(*args, **kwargs)
            values = {n: trace.nodes[n]["value"] for n, _ in self.latent_sites()}
            starts.append(self._flat_start(values))
        self.locs = nn.Parameter(torch.stack(starts).detach())

    @property
    def choice_site(self) -> str:
        """The auxiliary site that chooses a member."""
        return f"_{self._pyro_name}_member"

    def sample_latent(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the flat latents of one member, chosen at random unless the caller fixes the stratum."""
        logits = torch.zeros(self.num_strata, device=self.locs.device)
        infer: Any = {"is_auxiliary": True, "stratum": True}
        member = pyro.sample(self.choice_site, dist.Categorical(logits=logits).mask(False), infer=infer)
        loc = chosen(self.locs, member)
        return pyro.sample(self.latent_site, dist.Delta(loc).to_event(1), infer={"is_auxiliary": True})

    def flat_quantiles(self, quantiles: Tensor) -> Tensor:
        """Return, for every element, the smallest member's that as large a share of the members is not above, ``(Q, D)``."""
        # A share that is a multiple of 1/M but for rounding is that multiple.
        position = torch.ceil(quantiles.double() * self.num_strata - 1e-6).long().clamp(1, self.num_strata) - 1
        return self.locs.sort(0).values.index_select(0, position.to(self.locs.device))
