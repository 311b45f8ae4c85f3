"""The evidence lower bound of a deep latent Gaussian mixture model, whose weights are random."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from guides.errors import check_known
from guides.objectives.layers import WEIGHTS, layer_terms
from guides.objectives.selbo import SELBO
from guides.program.guide import as_guide
from guides.program.joint import joint_traces
from guides.registries import objectives

__all__ = ["DLGMMELBO"]


@objectives.register("dlgmm")
class DLGMMELBO(SELBO):
    r"""Evidence lower bound of layers of mixtures with random weights, with a draw from every component.

    For one layer, with the weights :math:`\pi` a function of the fractions v:

    .. math::
        \mathcal{L} = \sum_k \mathbb{E}[\pi_k]\, \mathbb{E}_{q_k}[\log p(x \mid z)]
        + \mathbb{E}_{q(v)} \sum_k \pi_k\, \mathbb{E}_{q_k}\Big[\log p(z \mid \pi) - \log \sum_j \pi_j\, q_j(z)\Big]
        - \mathrm{KL}(q(v \mid x) \,\|\, p(v))

    An unbiased estimate of the ELBO, with reparameterised gradients for everything. The divergence of the fractions is in
    closed form, a series (:class:`guides.distributions.kumaraswamy.Kumaraswamy`). A term in which the weights do not occur
    is weighed by their *mean*, which is known; that is exact, and leaves no noise of the weights in the likelihood. Terms
    in which they do occur, the densities of z, are weighed by the *drawn* weights that occur in them: there the mean would
    be wrong, as :math:`\mathbb{E}[\pi_k f(\pi)] \ne \mathbb{E}[\pi_k]\, \mathbb{E} f(\pi)`. (Equation 38 of the report
    leaves the weights of the entropy out; its proof, equation 51, has them.)

    With several layers a path through them has a weight for each, and the rule is the same: means for the layers below the
    one that a term is about and for the layer above it, from which its prior comes, the drawn weight for its own. The
    likelihood needs the lowest layer alone, and the divergence of a layer's fractions only the layers below it.

    For a guide without such layers it is the :class:`guides.SELBO`, and for one that is no mixture the :class:`guides.ELBO`
    with drawn divergences.

    :param num_particles: draws of every path per step.
    :param kl: of the fractions: ``"closed_form"`` where possible (default), or ``"monte_carlo"``.
    :param weights: ``"mean"``, as above, for models like ``zoo.DeepLatentGaussianMixture``: a layer's weights enter its own
        code's prior and nothing else, and a code depends on the code above alone, the data on the lowest. ``"drawn"`` weighs
        every term by the drawn weights of the whole path, which is right for any model, and has more noise.
    :raises OptionError: for any other ``kl`` or ``weights``.

    References: Nalisnick, Hertel & Smyth (2016), *Approximate inference for deep latent Gaussian mixtures*; Casella &
    Robert (1996), *Rao-Blackwellisation of sampling schemes*.

    Example::

        >>> import pyro, pyro.distributions as dist, torch, guides
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         v = pyro.sample("v", dist.Beta(torch.ones(1), torch.ones(1)).to_event(1))
        ...         mixing, ends = dist.Categorical(torch.cat([v, 1 - v], -1)), torch.tensor([-2.0, 2.0]).expand(len(x), 2)
        ...         z = pyro.sample("z", dist.MixtureSameFamily(mixing, dist.Normal(ends.unsqueeze(-1), 0.5).to_event(1)))
        ...         pyro.sample("x", dist.Normal(z.squeeze(-1), 0.5), obs=x)
        >>> encoder = torch.nn.Sequential(torch.nn.Unflatten(0, (-1, 1)), torch.nn.Linear(1, 8), torch.nn.Tanh())
        >>> guide = ("deep_mixture_amortized", {"encoder": encoder, "components": 2})
        >>> objective = guides.DLGMMELBO(num_particles=2)
        >>> guides.fit(model, guide, torch.randn(50), objective=objective, steps=100).objective
        'dlgmm'
    """

    bounds: ClassVar[str] = "log evidence, from below"

    def __init__(self, num_particles: int = 1, kl: str = "closed_form", weights: str = "mean") -> None:
        check_known("weights", weights, WEIGHTS)
        super().__init__(num_particles, kl)
        self.weights = weights

    def particle(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> dict[str, Tensor]:
        """Return what one path contributes to the bound of every row, its weight included."""
        model_trace, guide_trace = joint_traces(model, guide, args, kwargs)
        layers = as_guide(guide).mixture_layers(guide_trace)
        if layers is None:
            return self.of_traces(guide, model_trace, guide_trace)
        terms = layer_terms(layers, model_trace, guide_trace, self.kl, self.weights)
        nothing = torch.zeros_like(terms["kl"])
        return {"alone": terms["log_likelihood"] - terms["kl"], "excess": nothing, "log_weight": nothing}
