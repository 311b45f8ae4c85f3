r"""Discrete draws that a guide marks, summed out: the mean over them instead of a draw, as ``TraceEnum_ELBO`` takes it.

A guide may draw discrete latents itself and mark them, :math:`q(k) = \prod_i q(k_i \mid k_{<i})`. Guide and model are run
with all values at once, and every term of the bound is averaged over the draws that it depends on, the last one first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from guides.errors import UnsupportedModelError
from guides.program.discrete.enumeration import AllValues, Enumerated, add_values, nesting
from guides.program.marks import is_marked
from guides.program.sites import contribution, density_sites, is_latent, log_prob, nodes

__all__ = ["GuideSums"]


class _Marked(Messenger):
    """Let the marked sites of a guide ask for all values at once, in the shape that they ask for, and no others."""

    def _pyro_sample(self, msg: Any) -> None:
        if msg["infer"].get("enumerate"):
            msg["infer"] = {**msg["infer"], "enumerate": "parallel" if is_marked(msg) else None}


@dataclass(frozen=True)
class GuideSums:
    """The discrete draws that a guide has summed out.

    :ivar sites: their names.
    :ivar nesting: how many dimensions of a density plates and batches take; the values stand left of them.
    """

    sites: frozenset[str]
    nesting: int

    @classmethod
    def of(cls, model_trace: Trace, guide_trace: Trace) -> GuideSums | None:
        """Return the draws that a guide marks, given a run in which it draws them; ``None`` if it marks none."""
        sites = frozenset(n for n, s in nodes(guide_trace).items() if is_marked(s))
        return cls(sites, nesting(model_trace, guide_trace)) if sites else None

    def dimensions(self, guide: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
        """Return how many dimensions the values take."""
        sites = nodes(self._of_guide(guide, args, kwargs)).values()
        return max(-s["infer"]["_enumerate_dim"] for s in sites if s["name"] in self.sites) - self.nesting

    def _of_guide(
        self, guide: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], held: Trace | None = None
    ) -> Trace:
        with poutine.replay(trace=held or Trace()), AllValues(-1 - self.nesting), _Marked():
            return poutine.trace(guide).get_trace(*args, **kwargs)

    def traces(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        held: Trace | None = None,
    ) -> tuple[Trace, Trace]:
        """Return model and guide traces of a run with all values of the summed draws at once.

        :param held: other sites of the guide, which are not drawn anew.
        """
        guide_trace = self._of_guide(guide, args, kwargs, held)
        if isinstance(model, Enumerated):  # which tells its own dimensions from others
            known = Trace()
            add_values(known, {n: s["value"] for n, s in nodes(guide_trace).items() if s["type"] == "sample"})
            return poutine.trace(poutine.replay(model, trace=known)).get_trace(*args, **kwargs), guide_trace
        # The trace is innermost, as it keeps what a site is when it comes by, and the dimensions are noted last.
        with poutine.replay(trace=guide_trace), AllValues(), poutine.trace() as found:
            model(*args, **kwargs)
        return found.trace, guide_trace

    def check(
        self, model: Callable[..., Any], guide: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        """Check that model and guide leave the dimensions of the values alone.

        The densities of all sites are compared with those of a run in which every draw has one value.

        :raises UnsupportedModelError: if they do not, or a site outside a plate depends on a draw inside it.
        """
        plain_guide = poutine.trace(guide).get_trace(*args, **kwargs)
        plain_model = poutine.trace(poutine.replay(model, trace=plain_guide)).get_trace(*args, **kwargs)
        held, free = Trace(), nodes(self._of_guide(guide, args, kwargs))
        others = {n: s["value"] for n, s in density_sites(plain_guide).items() if n not in self.sites}
        add_values(held, {n: value.expand(free[n]["value"].shape) for n, value in others.items()})
        traces = self.traces(model, guide, args, kwargs, held)
        self.mean(*traces)
        mean = self._mean_of(traces[1])
        chosen = {n: _position(nodes(traces[1])[n]["fn"], nodes(plain_guide)[n]["value"]) for n in self.sites}
        for found, plain in zip(traces, (plain_model, plain_guide)):
            for name, site in density_sites(found).items():
                wanted = log_prob(density_sites(plain)[name])
                density = mean.at(name, site, chosen)
                if density.numel() > wanted.numel() or not torch.allclose(
                    density.expand(wanted.shape), wanted, rtol=1e-3, atol=1e-3, equal_nan=True
                ):
                    raise UnsupportedModelError(
                        f"the density of site {name!r} with all values at once of the discrete latents that the guide sums "
                        f"out ({', '.join(map(repr, sorted(self.sites)))}) is not that with one of their values. The values "
                        "stand in a dimension of their own, left of all plates, and model and guide have to leave it alone: "
                        "index by them (means[k]) or broadcast, and reduce over the last dimensions alone"
                    )

    def mean(self, model_trace: Trace, guide_trace: Trace) -> tuple[Tensor, list[Tensor]]:
        """Return the mean log-likelihood in nats at one draw of all other sites, and the mean divergence of each latent.

        :raises UnsupportedModelError: if a site outside a plate depends on a draw inside it.
        """
        log_q = density_sites(guide_trace)
        mean = self._mean_of(guide_trace)
        likelihood, divergence = [torch.zeros(())], {n: [mean(n, s)] for n, s in log_q.items()}
        for name, site in density_sites(model_trace).items():
            if is_latent(site):
                divergence.setdefault(name, []).append(-mean(name, site))
            else:
                likelihood.append(mean(name, site))
        return torch.stack(likelihood).sum(), [torch.stack(d).sum() for d in divergence.values()]

    def _mean_of(self, guide_trace: Trace) -> _Mean:
        return _Mean({n: s for n, s in nodes(guide_trace).items() if n in self.sites}, self.nesting)


def _position(fn: Any, value: Tensor) -> Tensor:
    """Return which of a discrete distribution's values each one is, shape of the batch."""
    values = fn.enumerate_support(expand=False)
    values = values.reshape(
        values.shape[:1] + (1,) * (value.dim() - fn.event_dim) + values.shape[values.dim() - fn.event_dim :]
    )
    same = values == value
    return (same.flatten(same.dim() - fn.event_dim).all(-1) if fn.event_dim else same).to(torch.uint8).argmax(0)


class _Mean:
    """The mean of a site's density over the discrete draws.

    :param draws: the guide's sites that are summed out.
    """

    def __init__(self, draws: Mapping[str, Any], nesting: int) -> None:
        self._draws, self._nesting = draws, nesting
        self._own = {n: s["infer"]["_enumerate_dim"] for n, s in draws.items()}
        self._ids = {s["infer"]["_dim_to_id"][self._own[n]]: n for n, s in draws.items()}
        self._order = {n: i for i, n in enumerate(draws)}

    def __call__(self, name: str, site: Any) -> Tensor:
        """Return the mean of what a site adds to the log joint density, a scalar in nats."""
        value = contribution(site)
        impossible = value == -torch.inf
        value = torch.where(impossible, torch.zeros_like(value), value)
        within = self._within(name, site, value)
        missed = self._over(name, site, impossible.to(value), within)
        return torch.where(missed > 0, -torch.inf, self._over(name, site, value, within)).sum()

    def at(self, name: str, site: Any, chosen: Mapping[str, Tensor]) -> Tensor:
        """Return a site's density where every draw has one value, by its position among the values."""
        value = log_prob(site)
        for draw, dim in self._within(name, site, value).items():
            index = chosen[draw].reshape((1,) * (value.dim() - chosen[draw].dim()) + chosen[draw].shape)
            value = torch.take_along_dim(*_alike(value, index, dim), dim)
        return value.reshape(value.shape[max(0, value.dim() - self._nesting) :])

    def _over(self, name: str, site: Any, value: Tensor, within: Mapping[str, int]) -> Tensor:
        left = dict(within)
        while left:
            last = max(left, key=self._order.__getitem__)
            draw, dim = self._draws[last], left.pop(last)
            self._check_plates(name, site, last)
            weight = log_prob(draw).exp()
            for other, where in self._within(last, draw, weight).items():
                if other != last:
                    left.setdefault(other, where)
            value = (value * weight).sum(dim, keepdim=True)
        return value

    def _within(self, name: str, site: Any, value: Tensor) -> dict[str, int]:
        """Return the summed draws that a density depends on, and the dimension in which the values of each stand."""
        dims = [d for d in range(-value.dim(), -self._nesting) if value.shape[d] > 1]
        known = site["infer"].get("_dim_to_id")
        if known is not None:
            return {self._ids[known[d]]: d for d in dims}
        owners = {d: n for n, d in self._own.items()}
        if len(owners) < len(self._own):
            raise UnsupportedModelError(
                f"the guide draws {', '.join(map(repr, self._own))} inside pyro.markov, and the model sums out discrete "
                f"latents that site {name!r} depends on; leave pyro.markov out of the guide"
            )
        return {owners[d]: d for d in dims}

    def _check_plates(self, name: str, site: Any, draw: str) -> None:
        frames = {f.name for f in site["cond_indep_stack"] if f.vectorized}
        missing = [f.name for f in self._draws[draw]["cond_indep_stack"] if f.vectorized and f.name not in frames]
        if missing:
            raise UnsupportedModelError(
                f"site {name!r} depends on the discrete latent {draw!r}, which the guide sums out, and is not in its plate "
                f"{', '.join(map(repr, missing))}, so that it depends on all of the latent's values together, whose "
                f"combinations cannot be summed; put {name!r} into the plate"
            )


def _alike(value: Tensor, index: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return both expanded to common shapes, apart from one dimension."""
    common = list(torch.broadcast_shapes(value.select(dim, 0).shape, index.select(dim, 0).shape))
    where = value.dim() + dim
    shapes = ([*common[:where], size, *common[where:]] for size in (value.shape[dim], 1))
    return value.expand(next(shapes)), index.expand(next(shapes))
