"""The evidence lower bound with score-function gradients, for latents that cannot be reparameterised."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pyro
import torch
from torch import Tensor, nn

from guides.errors import DataError, OptionError
from guides.objectives.base import Objective
from guides.objectives.components import check_no_mixture
from guides.program.joint import joint_traces
from guides.program.objective import OWN_MODULE, Estimate
from guides.program.rows import log_density, outermost_plate
from guides.program.sites import density_sites, is_latent
from guides.registries import objectives

__all__ = ["ScoreFunction"]


@objectives.register("score_function")
class ScoreFunction(Objective):
    r"""Evidence lower bound with score-function (REINFORCE) gradients where draws cannot be reparameterised.

    For a site :math:`z_s` whose distribution in the guide has no ``rsample`` (Bernoulli, categorical, Poisson),

    .. math::
        \nabla_\phi \mathcal{L} = \mathbb{E}_{q_\phi(z)}\big[(f_s(z) - b_s)\, \nabla_\phi \log q_\phi(z_s)\big] + \dots,
        \qquad f_s = \sum_{t \ge s} \log p(\cdot_t) - \sum_{t \ge s} \log q(z_t)

    The dots are the pathwise gradient of all other sites. The learning signal :math:`f_s` leaves out what cannot depend on
    :math:`z_s` (Rao-Blackwellisation): terms that come before it in model and guide, and, for a site in a plate, the terms
    of the plate's other elements. So a local latent is taught by its own row only. What remains is noisy; a baseline
    :math:`b_s` that does not depend on :math:`z_s` takes noise away and leaves the mean alone.

    The value is the ELBO. For a guide whose draws can all be reparameterised this is ``ELBO(kl="monte_carlo")``.

    :param num_particles: draws of the guide per step.
    :param baseline: ``"leave_one_out"``, the mean signal of the other particles, which needs no parameters but at least two
        particles; ``"none"``; or an ``nn.Module`` that predicts the signal of each row from the data (neural variational
        inference and learning). Called with the model's arguments, it returns a tensor of shape ``(rows,)`` or a number, in
    :raises OptionError: for another ``baseline``, one particle with ``"leave_one_out"``, or, in use, a mixture guide.
    :raises OptionError: for another ``baseline``, or one particle with ``"leave_one_out"``.

    References: Williams (1992), *Simple statistical gradient-following algorithms for connectionist reinforcement
    learning*; Ranganath, Gerrish & Blei (2014), *Black box variational inference*; Mnih & Gregor (2014), *Neural variational
    inference and learning in belief networks*; Mnih & Rezende (2016), *Variational inference for Monte Carlo objectives*;
    Kool, van Hoof & Welling (2019), *Buy 4 REINFORCE samples, get a baseline for free!*; Schulman et al. (2015), *Gradient
    estimation using stochastic computation graphs*.

    Example::

        >>> import pyro, pyro.distributions as dist, torch, guides
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         side = pyro.sample("side", dist.Bernoulli(0.5))
        ...         pyro.sample("x", dist.Normal(2 * side - 1, 1.0), obs=x)
        >>> def guide(x):
        ...     slope = pyro.param("slope", torch.tensor(0.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("side", dist.Bernoulli(logits=slope * x))
        >>> x = torch.randn(50) + torch.tensor([-1.0, 1.0]).repeat(25)
        >>> posterior = guides.fit(model, guide, x, objective="score_function", steps=300, lr=0.05)
        >>> 1.9 < float(posterior.parameters["slope"]) < 2.1  # the exact posterior has logits 2 x
        True
    """

    bounds: ClassVar[str] = "log evidence, from below"
    reparameterised_only: ClassVar[bool] = False

    def __init__(self, num_particles: int = 2, baseline: str | nn.Module = "leave_one_out") -> None:
        if not isinstance(baseline, nn.Module) and baseline not in ("none", "leave_one_out"):
            raise OptionError(f"baseline must be 'none', 'leave_one_out' or a torch.nn.Module, not {baseline!r}")
        if baseline == "leave_one_out" and num_particles < 2:
            raise OptionError(
                f"baseline='leave_one_out' compares particles with each other, and num_particles={num_particles}; use 2 or "
                "more, or baseline='none'"
            )
        super().__init__(num_particles)
        self.baseline = baseline

    def particle(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> dict[str, Tensor]:
        """Return the log weight of one draw and, for each site without ``rsample``, its log density and learning signal."""
        model_trace, guide_trace = joint_traces(model, guide, args, kwargs)
        check_no_mixture(guide, guide_trace, "score_function")
        log_p, log_q = density_sites(model_trace), density_sites(guide_trace)
        scored = {n: s for n, s in log_q.items() if _is_scored(s)}
        terms = [log_density(s, None, scaled=True) for s in log_p.values()]
        # A score-function site's own log q has a gradient of mean zero: only the signal below needs to see it.
        of_guide = {n: log_density(s, None, scaled=True) for n, s in log_q.items()}
        terms += [-(value.detach() if n in scored else value) for n, value in of_guide.items()]
        found = {"elbo": torch.as_tensor(sum(terms))}
        for name, site in scored.items():
            plate = outermost_plate([site])
            signal = _signal(name, plate, log_p) - _signal(name, plate, log_q)
            found[f"log_q.{name}"] = torch.atleast_1d(log_density(site, plate, scaled=False))
            found[f"signal.{name}"] = torch.atleast_1d(signal.detach())
            found[f"scale.{name}"] = torch.as_tensor(site["scale"]).to(signal)
        if scored and isinstance(self.baseline, nn.Module):
            pyro.module(OWN_MODULE, self.baseline)
            predicted = self.baseline(*args, **kwargs)
            for name in scored:
                one = predicted[name] if isinstance(predicted, dict) else predicted
                found[f"baseline.{name}"] = _fitted(name, one, found[f"signal.{name}"].shape)
        return found

    def combine(self, particles: dict[str, Tensor], step: Tensor) -> Estimate:
        """Average over particles, with each site's signal less its baseline; and add what trains a baseline."""
        value = particles["elbo"].mean()
        surrogate = value
        for name in (key.removeprefix("log_q.") for key in particles if key.startswith("log_q.")):
            scale, log_q = particles[f"scale.{name}"][0], particles[f"log_q.{name}"]
            signal = particles[f"signal.{name}"] / scale
            if self.baseline == "leave_one_out":
                signal = (signal - signal.mean(0)) * (len(signal) / (len(signal) - 1))
            elif self.baseline != "none":
                error = signal - particles[f"baseline.{name}"]
                surrogate = surrogate - 0.5 * error.square().sum(-1).mean()
                signal = error.detach()
            surrogate = surrogate + scale * (log_q * signal).sum(-1).mean()
        return Estimate(value.detach(), surrogate)


def _is_scored(site: Any) -> bool:
    return is_latent(site) and not site["infer"].get("stratum") and not getattr(site["fn"], "has_rsample", False)


def _signal(name: str, plate: str | None, sites: dict[str, Any]) -> Tensor:
    """Return the sum of the log densities that may depend on one site's draw, per row of ``plate``, with their scales."""
    names = list(sites)
    later = [sites[n] for n in names[names.index(name) :]]
    parts = []
    for site in later:
        inside = plate is not None and any(f.name == plate for f in site["cond_indep_stack"])
        parts.append(log_density(site, plate if inside else None, scaled=True))
    return sum(parts[1:], start=parts[0])


def _fitted(name: str, value: Tensor, shape: torch.Size) -> Tensor:
    """Return a baseline's prediction in the shape of the signal.

    :raises DataError: if it cannot have that shape.
    """
    value = torch.atleast_1d(value.squeeze(-1) if value.dim() > 1 else value)
    if value.shape not in (shape, torch.Size([1])):
        raise DataError(
            f"the baseline returned shape {tuple(value.shape)} for site {name!r}, whose signal has shape {tuple(shape)}; it "
            "must return one number per row, or one for all"
        )
    return value.expand(shape)
