"""Which observed sites enter a Laplace approximation by their Fisher information, and which by their exact Hessian.

Settled on the first run of the model, before any optimisation: what cannot be done is refused there, not after the work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from guides.errors import UnsupportedModelError
from guides.families.laplace.hessian import Hessian
from guides.families.laplace.likelihoods import coordinates, fisher_is_known
from guides.program.discrete.enumeration import summing_out
from guides.program.isolation import quiet, seeded
from guides.program.noise import NoiseTape
from guides.program.prepare import prepare
from guides.program.sites import contribution, is_observed, nodes, role
from guides.program.supports import unconstraining

__all__ = ["Likelihoods", "likelihoods", "over_data"]

_STEP = 0.1


def over_data(site: Any) -> Any:
    """Return a site's distribution with the batch shape of its log density.

    Data, a mask or a scale may have more dimensions than the distribution that they broadcast against; every element counts.
    """
    fn, value = site["fn"], site["value"]
    batch = value.shape[: value.dim() - fn.event_dim]
    others = [a.shape for a in (site["mask"], site["scale"]) if isinstance(a, Tensor)]
    shape = torch.broadcast_shapes(fn.batch_shape, batch, *others)
    return fn if shape == fn.batch_shape else fn.expand(shape)


@dataclass(frozen=True)
class Likelihoods:
    """The terms of a log joint density that are no prior.

    :ivar terms: observed sites and factors by name, from a run of the model.
    :ivar fisher: the observed ones whose curvature is told by their Fisher information; the others have an exact Hessian.
    :ivar parameters: names of the model's own ``pyro.param`` sites.
    """

    terms: dict[str, Any]
    fisher: frozenset[str]
    parameters: tuple[str, ...]

    @property
    def unknown(self) -> tuple[str, ...]:
        """The observed sites that have no known Fisher information."""
        return tuple(n for n, s in self.terms.items() if role(s) == "observed" and n not in self.fisher)


def likelihoods(
    model: Callable[..., Any], latents: Mapping[str, Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Likelihoods:
    """Return what stands for the curvature of each likelihood.

    The Fisher information does where the distribution is known and those of its parameters that are not among its
    coordinates (degrees of freedom, a covariance) are the same wherever the latents are. The terms that remain,
    ``pyro.factor`` included, have to be differentiable twice.

    :param latents: the latent sites by name, at the values that the guide starts from.
    :raises UnsupportedModelError: for terms that are not.
    """
    maps = {n: unconstraining(s) for n, s in latents.items()}
    shapes = {n: maps[n].inv(s["value"]).shape for n, s in latents.items()}
    here = torch.cat([maps[n].inv(s["value"]).detach().reshape(-1) for n, s in latents.items()])
    along = torch.randn(len(here), generator=torch.Generator().manual_seed(0)).to(here)

    def trace_at(point: Tensor) -> Trace:
        parts = point.split([shape.numel() for shape in shapes.values()])
        values = {n: maps[n](part.reshape(shape)) for (n, shape), part in zip(shapes.items(), parts)}
        with NoiseTape():  # see Curvature.traces
            return poutine.block(poutine.trace(poutine.condition(prepared, data=values)).get_trace)(*args, **kwargs)

    with quiet(), seeded(0):
        with torch.no_grad():
            with poutine.block():  # this runs inside whatever traces the guide's first call
                prepared = summing_out(prepare(model, args, kwargs), args, kwargs)
            first, second = (nodes(trace_at(point)) for point in (here, here + _STEP * along))
        terms = {n: s for n, s in first.items() if n not in latents and role(s) in ("observed", "factor")}
        known = frozenset(n for n, s in terms.items() if is_observed(s) and n in second and _tells_all(n, s, second[n]))
        exact = [n for n in terms if n not in known]
        if exact:

            def log_density(point: Tensor) -> Tensor:
                inside = nodes(trace_at(point))
                return torch.stack([contribution(inside[n]).sum() for n in exact]).sum()

            _check_smooth(log_density, exact, here, along)
    return Likelihoods(terms, known, tuple(n for n, s in first.items() if s["type"] == "param"))


def _tells_all(name: str, here: Any, there: Any) -> bool:
    """Tell whether the coordinates of a known distribution tell all that the latents change of it."""
    if not (fisher_is_known(here["fn"]) and fisher_is_known(there["fn"])):
        return False
    fixed = [coordinates(name, s["fn"]).fixed for s in (here, there)]
    return all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(*fixed))


def _check_smooth(log_density: Callable[[Tensor], Tensor], names: list[str], here: Tensor, along: Tensor) -> None:
    """Refuse terms without a second derivative, and those whose second derivative is zero while the first one changes."""
    which = ", ".join(map(repr, names))
    try:
        first, second = (Hessian(log_density, point) for point in (here, here + _STEP * along))
        curved = first(along)
    except (RuntimeError, NotImplementedError) as error:
        raise UnsupportedModelError(
            f"guide 'laplace' takes the Hessian of the log density of {which}, which cannot be differentiated twice: "
            f"{str(error).splitlines()[0]}. Use a guide that does not, such as 'full_rank'"
        ) from error
    if bool((curved == 0).all()) and not torch.allclose(first.gradient, second.gradient):
        raise UnsupportedModelError(
            f"the log density of {which} has kinks: its second derivative is zero though its slope changes, so it has no "
            "curvature for guide 'laplace' to take. Use 'full_rank' or 'mean_field', or a smooth density"
        )
