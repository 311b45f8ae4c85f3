"""Monte Carlo dropout as an approximate posterior over weights."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pyro.distributions as dist
import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn

from guides.errors import OptionError, UnsupportedModelError
from guides.families.base import FlatFamily, init_function
from guides.program.linear import LinearRules, Product, apply_weight, linear_uses
from guides.program.supports import is_unconstrained
from guides.registries import families

__all__ = ["Dropout"]


@families.register("dropout")
class Dropout(FlatFamily):
    r"""Weights whose rows are switched off at random: Monte Carlo dropout.

    .. math::
        W = \mathrm{diag}(b / (1 - p))\, M, \qquad b_i \sim \mathrm{Bernoulli}(1 - p)

    for every weight matrix that the model multiplies data by (``x @ w`` or ``torch.nn.functional.linear``); other sites are
    points. Training drops inputs per data point, as a dropout layer does; posterior draws switch rows off for all data at
    once, so that each draw is a function. It has no density, so importance diagnostics are not defined.

    **When:** as a baseline for networks. **When not:** models without weight matrices.

    :param model: a Pyro model that multiplies data by latent weight matrices.
    :param rate: the probability p of dropping an input of a layer.
    :param init_loc_fn: where the weights start; see :class:`guides.MAP`.
    :raises OptionError: if ``rate`` is not in [0, 1).
    :raises UnsupportedModelError: if no latent weight matrix multiplies data.

    References: Gal & Ghahramani (2016), *Dropout as a Bayesian approximation*; Mukhoti, Stenetorp & Gal (2018), *On the
    importance of strong baselines in Bayesian deep learning*.

    Example::

        >>> import pyro, pyro.distributions as dist, torch, guides
        >>> def model(x, y=None):
        ...     w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3, 1]).to_event(2))
        ...     f = (x @ w).squeeze(-1)
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("y", dist.Normal(f, 0.5), obs=y)
        >>> x = torch.randn(50, 3)
        >>> posterior = guides.fit(model, ("dropout", {"rate": 0.1}), x, x.sum(-1), steps=300)
        >>> posterior.predict(x[:4], num_samples=20)["y"].shape
        torch.Size([20, 4])
    """

    is_point_mass: bool = True

    def __init__(
        self, model: Callable[..., Any], rate: float = 0.05, init_loc_fn: str | Callable[..., Any] = "spread"
    ) -> None:
        if not 0 <= rate < 1:
            raise OptionError(f"rate must be in [0, 1), not {rate!r}")
        super().__init__(model, init_loc_fn=init_function(init_loc_fn))
        self.rate = rate

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        self.loc = nn.Parameter(self._init_loc())
        values = {n: s["value"] for n, s in self.latent_sites()}
        uses = linear_uses(self.plain_model, values, args, kwargs)
        self._uses = {n: use for n, use in uses.items() if is_unconstrained(self.latent_site_prototype(n))}
        if not self._uses:
            raise UnsupportedModelError(
                "dropout needs unconstrained latent weight matrices that the model multiplies data by (x @ w or "
                f"linear(x, w), with w as pyro.sample returned it), and found none among {', '.join(values)}; use another "
                "guide"
            )
        slot, slots = torch.zeros(self.latent_dim, dtype=torch.long), 1
        for name, use in self._uses.items():
            rows, columns = self.unconstrained_shape(name)
            inputs = torch.arange(slots, slots + (columns if use.transposed else rows))
            grid = inputs.expand(rows, columns) if use.transposed else inputs[:, None].expand(rows, columns)
            slot[self.slices()[name]] = grid.reshape(-1)
            slots += len(inputs)
        self._slot, self._slots = slot.to(self.loc.device), slots

    def _keep(self, like: Tensor) -> Tensor:
        return (torch.rand_like(like) >= self.rate).to(like.dtype) / (1 - self.rate)

    def get_posterior(self, *args: Any, **kwargs: Any) -> Any:
        """Return a point mass at weights with rows switched off at random."""
        keep = self._keep(self.loc.new_empty(self._slots - 1))
        factor = torch.cat([self.loc.new_ones(1), keep]).index_select(0, self._slot)
        return dist.Delta(self.loc * factor).to_event(1)

    def flat_quantiles(self, quantiles: Tensor) -> Tensor:
        """Return quantiles of every weight, which is zero with probability ``rate``, and of every point, ``(Q, D)``."""
        p, kept = quantiles.to(self.loc).unsqueeze(-1), self.loc / (1 - self.rate)
        zero = torch.where(self.loc > 0, p <= self.rate, p > 1 - self.rate)
        return torch.where(self._slot == 0, self.loc, torch.where(zero, torch.zeros_like(kept), kept))

    def around_model(self, guide_trace: Trace) -> AbstractContextManager[Any]:
        """Return the context in which inputs of each data point are dropped independently."""

        def rule(weight: Tensor) -> Product:
            return lambda inputs, transposed: apply_weight(inputs * self._keep(inputs), weight, transposed)

        weights = {n: self.loc[self.slices()[n]].reshape(self.unconstrained_shape(n)) for n in self._uses}
        return LinearRules({id(guide_trace.nodes[n]["value"]): rule(w) for n, w in weights.items()})
