"""What one path through layers of mixtures says about the evidence, where the weights of the layers are random."""

from __future__ import annotations

from typing import Any

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from guides.errors import OptionError, check_known
from guides.objectives.components import of_site, weighed
from guides.objectives.divergence import site_kl
from guides.program.guide import MixtureLayers, as_guide
from guides.program.sites import density_sites, is_latent

__all__ = ["WEIGHTS", "check_no_layers", "layer_terms"]

WEIGHTS = ("mean", "drawn")


def check_no_layers(guide: Any, guide_trace: Trace, objective: str) -> None:
    """Refuse layers of mixtures for an objective that takes weights to be numbers and not draws.

    :raises OptionError: naming the objective to use instead.
    """
    if as_guide(guide).mixture_layers(guide_trace) is not None:
        raise OptionError(
            f"objective {objective!r} knows one mixture whose weights are no draws; use 'dlgmm' for guide "
            f"{type(guide).__name__}"
        )


def layer_terms(mixture: MixtureLayers, model_trace: Trace, densities: Trace, kl: str, weights: str) -> dict[str, Tensor]:
    r"""Return what one path contributes to log-likelihood and divergence of every row, weighed, in nats.

    The mean over all paths, or the expectation over those that are drawn at random, is that of the guide; all have the
    scales of a minibatch. See :class:`guides.DLGMMELBO` for the formula.

    :param densities: the trace to take the guide's densities from: that of its draw, or one with constant parameters.
    :param kl: ``"closed_form"`` takes the divergence of the fractions without their draws where torch has one.
    :param weights: ``"mean"`` or ``"drawn"``.
    :returns: ``log_likelihood`` and ``kl``, each ``(rows,)``.
    """
    check_known("weights", weights, WEIGHTS)
    layers, plate = mixture.layers, mixture.row_plate
    prior, posterior = density_sites(model_trace), density_sites(densities)
    like = torch.zeros_like(layers[0].log_drawn)

    def gap(name: str) -> Tensor:
        return of_site(posterior[name], plate, like) - of_site(prior[name], plate, like)

    def of_fractions(name: str) -> Tensor:
        closed = site_kl(posterior[name], prior[name]) if kl == "closed_form" else None
        return gap(name) if closed is None else closed

    likelihood = sum((of_site(s, plate, like) for s in prior.values() if not is_latent(s)), start=like)
    path = torch.stack([layer.log_drawn for layer in layers]).sum(0)
    divergence, below = like, like
    for number, layer in enumerate(layers):
        above = layers[number + 1].log_mean if number + 1 < len(layers) else like
        to_fractions, to_code = (below, below + layer.log_drawn + above) if weights == "mean" else (path, path)
        if layer.sticks is not None:
            divergence = divergence + weighed(to_fractions, of_fractions(layer.sticks))
        divergence = divergence + weighed(to_code, gap(layer.code))
        below = below + layer.log_mean
    return {
        "log_likelihood": weighed(layers[0].log_mean if weights == "mean" else path, likelihood),
        "kl": divergence,
    }
