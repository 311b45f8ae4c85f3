"""An encoder's answer for each data point, improved by a few gradient steps on that data point's own parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from pyro import poutine
from torch import Tensor, nn
from torch.distributions import TransformedDistribution

from guides.errors import OptionError, check_known
from guides.families.amortized import Amortized
from guides.families.encoders.heads import Gaussian
from guides.program.rows import log_density
from guides.program.sites import density_sites, is_observed
from guides.registries import families

__all__ = ["SemiAmortized"]

_GRADIENTS = ("first_order", "through")
_LEAST_CURVATURE = 0.99

Local = dict[str, tuple[Tensor, Tensor]]
"""Per site, location and log scale of every row, ``(rows, size)`` each."""


@families.register("semi_amortized")
class SemiAmortized(Amortized):
    r"""Amortised inference refined by k gradient steps per data point.

    The encoder gives location and scale :math:`\lambda_n = (\mu_n, \log \sigma_n)` of each data point to start from; then, k
    times,

    .. math::
        \sigma_n^{-2} \leftarrow (1 - \eta)\, \sigma_n^{-2} + \eta\, \hat\Lambda_n, \qquad
        \mu_n \leftarrow \mu_n + \eta\, \sigma_n^2\, \nabla_{\mu_n} \mathcal{L}_n, \qquad
        \hat\Lambda_n = \sigma_n^{-2} (1 - \nabla_{\log \sigma_n} \mathcal{L}_n)

    with :math:`\mathcal{L}_n = \mathbb{E}_q[\log p(x_n, z_n) - \log q(z_n)]` and :math:`\hat\Lambda_n`, the expected
    curvature of :math:`-\log p`, taken as zero where it is negative. These are natural gradients of a diagonal normal, so
    that one step size serves sharp and vague posteriors, and a step cannot overshoot by its scale. Gradients are estimated
    from one antithetic pair of draws by their path alone (sticking the landing), without noise where q is exact. The steps
    run wherever the guide does: in training, and for new data points. What they gain over the encoder is the amortisation
    gap, or its greater part. A start that is ten times too sharp or too vague takes some tens of steps.

    What gradient reaches the encoder: with ``gradient="first_order"`` that of the refined :math:`\mathcal{L}_n` with respect
    to the *refined* parameters, as if the steps had added constants. With ``"through"`` that with respect to the encoder's
    own output, through all steps, which takes second derivatives of the model. Model parameters are trained at the refined
    posterior either way.

    **When:** the encoder cannot be made good enough, or its shortfall is to be measured. **When not:** several stochastic
    layers; when time matters: each step costs about as much as a training step without it.

    :param model: a Pyro model whose local latents stand in a plate that follows the rows of the data.
    :param encoder: one module, for all local sites; what it returns is described at :class:`guides.Amortized`, as are the
        options from ``inputs`` to ``init_scale``.
    :param inputs: which of the model's arguments the encoder is called with.
    :param covariance: of each site given the data point; only ``"diagonal"`` can be refined.
    :param rank: of a low-rank covariance.
    :param flow: on top of the Gaussian; a flow cannot be refined.
    :param num_flows: how many of them.
    :param rest: family of the global latents, if there are any.
    :param init_scale: initial standard deviation in the unconstrained space.
    :param refinements: the number k of steps.
    :param refinement_lr: the step size :math:`\eta`; 1 jumps to the optimum of a normal posterior with independent latents.
    :param gradient: ``"first_order"`` or ``"through"``.
    :raises OptionError: for options that do not go together.
    :raises GuideMismatchError: if the encoder does not fit the latents.
    :raises UnsupportedModelError: if no latent has one value per row.

    References: Kim et al. (2018), *Semi-amortized variational autoencoders*; Cremer, Li & Duvenaud (2018), *Inference
    suboptimality in variational autoencoders*; Khan et al. (2018), *Fast and scalable Bayesian deep learning by
    weight-perturbation in Adam*; Roeder, Wu & Duvenaud (2017), *Sticking the landing*.

    Example::

        >>> import pyro, pyro.distributions as dist, torch, guides
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 0.5).expand([len(x)]), obs=x)
        >>> x = torch.randn(500)
        >>> class Blind(torch.nn.Module):
        ...     def forward(self, x):
        ...         return torch.ones(len(x), 1)
        >>> options = {"encoder": Blind(), "refinements": 10, "refinement_lr": 0.5}
        >>> posterior = guides.fit(model, ("semi_amortized", options), x, batch_size=50, epochs=5)
        >>> draws = posterior.draws(1000, torch.tensor([-1.0, 1.0])).latents["z"]  # the encoder alone cannot tell them apart
        >>> (draws.mean((0, 1)) - torch.tensor([-0.8, 0.8])).abs().max() < 0.15
        tensor(True)
    """

    def __init__(
        self,
        model: Callable[..., Any],
        encoder: nn.Module,
        inputs: Sequence[int | str] = (0,),
        covariance: str = "diagonal",
        rank: int | None = None,
        flow: str | None = None,
        num_flows: int = 2,
        rest: str | tuple[str, dict[str, Any]] = "mean_field",
        init_scale: float = 0.1,
        refinements: int = 5,
        refinement_lr: float = 0.2,
        gradient: str = "first_order",
    ) -> None:
        if not isinstance(refinements, int) or refinements < 0:
            raise OptionError(f"refinements must be a whole number of at least 0, not {refinements!r}")
        if not 0 < refinement_lr <= 1:
            raise OptionError(f"refinement_lr must be in (0, 1], not {refinement_lr!r}")
        check_known("gradient", gradient, _GRADIENTS)
        super().__init__(
            model,
            encoder,
            inputs,
            covariance=covariance,
            rank=rank,
            flow=flow,
            num_flows=num_flows,
            rest=rest,
            init_scale=init_scale,
        )
        if len(self.encoders) > 1:
            raise OptionError(
                f"semi_amortized refines one stochastic layer, so it takes one encoder, not {len(self.encoders)}"
            )
        self.refinements = refinements
        self.refinement_lr = refinement_lr
        self.gradient = gradient

    @contextmanager
    def unrefined(self) -> Iterator[None]:
        """Leave the encoder's answer as it is inside the block."""
        before, self.refinements = self.refinements, 0
        try:
            yield
        finally:
            self.refinements = before

    def _answer(
        self, gaussians: dict[str, Gaussian], values: dict[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> dict[str, Gaussian]:
        first_order = self.gradient == "first_order"
        encoded: Local = {n: (g.loc, g.scale.log()) for n, g in gaussians.items()}
        start = {n: (loc.detach(), rho.detach()) for n, (loc, rho) in encoded.items()} if first_order else encoded
        refined = start

        def bound(local: Local, fixed: Local) -> Tensor:
            return self._bound(local, fixed, gaussians, values, args, kwargs)

        for _ in range(self.refinements):
            slopes = torch.func.grad(bound)(refined, refined)
            refined = {n: self._step(*refined[n], *slopes[n]) for n in refined}
        found = {}
        for name, gaussian in gaussians.items():
            loc, rho = refined[name]
            if first_order:
                loc = gaussian.loc + (loc - start[name][0]).detach()
                rho = encoded[name][1] + (rho - start[name][1]).detach()
            found[name] = replace(gaussian, loc=loc, scale=rho.exp())
        return found

    def _step(self, loc: Tensor, rho: Tensor, loc_slope: Tensor, rho_slope: Tensor) -> tuple[Tensor, Tensor]:
        """Return location and log scale one natural-gradient step further."""
        rho = rho - 0.5 * torch.log1p(-self.refinement_lr * rho_slope.clamp(max=_LEAST_CURVATURE))
        return loc + self.refinement_lr * (2 * rho).exp() * loc_slope, rho

    def _bound(
        self,
        local: Local,
        fixed: Local,
        gaussians: dict[str, Gaussian],
        values: dict[str, Tensor],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Tensor:
        """Return log p - log q in nats, summed over rows and averaged over a draw and its mirror image.

        :param fixed: the same parameters as ``local``, for the density that is not to be differentiated.
        """
        pairs = {}
        for name, (loc, rho) in local.items():
            head, (fixed_loc, fixed_rho) = self._head(name), fixed[name]
            moving = head.distribution(replace(gaussians[name], loc=loc, scale=rho.exp()))
            still = head.distribution(replace(gaussians[name], loc=fixed_loc, scale=fixed_rho.exp()))
            transforms = moving.transforms if isinstance(moving, TransformedDistribution) else []
            moving, still = (d.base_dist if transforms else d for d in (moving, still))
            pairs[name] = (moving.rsample(), moving.mean, still, transforms)
        total = torch.zeros(())
        for sign in (1.0, -1.0):
            latents, log_q = dict(values), torch.zeros(())
            for name, (draw, mean, still, transforms) in pairs.items():
                value = mean + sign * (draw - mean)
                log_q = log_q + still.log_prob(value).sum()
                for transform in transforms:
                    before, value = value, transform(value)
                    log_q = log_q - transform.log_abs_det_jacobian(before, value).sum()
                latents[name] = value
            with poutine.block(expose_types=["param"]):
                trace = poutine.trace(poutine.condition(self.model, data=latents)).get_trace(*args, **kwargs)
            seen = [site for site in density_sites(trace).values() if is_observed(site)]
            total = total + 0.5 * (torch.as_tensor(sum(log_density(s, None, scaled=False) for s in seen)) - log_q)
        return total
