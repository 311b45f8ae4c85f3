"""An amortised guide for fractions: Kumaraswamy's distribution of every local latent in (0, 1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import softplus

from guides.distributions.kumaraswamy import Kumaraswamy
from guides.errors import OptionError, UnsupportedModelError
from guides.families.amortized import Amortized
from guides.families.encoders.heads import Gaussian, Head
from guides.program.local_sites import LocalSite
from guides.program.sites import nodes
from guides.program.supports import has_elements_in
from guides.registries import families

__all__ = ["AmortizedKumaraswamy"]

_SMALLEST = 1e-4


@families.register("amortized_kumaraswamy")
class AmortizedKumaraswamy(Amortized):
    r"""Fractions of each data point, such as sticks, as Kumaraswamy variables whose parameters an encoder computes.

    .. math:: q(v_n \mid x_n) = \prod_k a_k b_k v_{nk}^{a_k - 1} (1 - v_{nk}^{a_k})^{b_k - 1}, \qquad (a, b) = \text{encoder}

    Draws invert the distribution function and so are differentiable, and the divergence to a Beta prior is a series
    (:class:`guides.ELBO` takes it in place of a Monte Carlo estimate). Unlike a normal through a sigmoid it can pile up at 0
    and at 1, as fractions of a stick that is used up or not broken at all do. Other local latents get independent normals,
    as in :class:`guides.Amortized`, which says the rest.

    **When:** stick-breaking weights with Beta priors, as in a stick-breaking VAE. **When not:** no local latent is a
    fraction (use ``amortized``).

    :param model: a Pyro model with local latents of which at least one has the support (0, 1).
    :param encoder: a module that returns features ``(rows, F)``, from which the guide takes what each site needs by linear
        heads. It is trained in place.
    :param inputs: which of the model's arguments the encoder is called with: positions, or names of keyword arguments.
    :param rest: family of the global latents, if there are any, or ``(name, options)``.
    :raises OptionError: if the encoder is not one module or does not return features.
    :raises UnsupportedModelError: if no local latent has the support (0, 1).

    References: Kumaraswamy (1980), *A generalized probability density function for double-bounded random processes*;
    Nalisnick & Smyth (2017), *Stick-breaking variational autoencoders*.

    Example::

        >>> import pyro, pyro.distributions as dist, torch, guides
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         v = pyro.sample("v", dist.Beta(torch.tensor(2.0), torch.tensor(3.0)))
        ...         pyro.sample("x", dist.Binomial(10, v).expand([len(x)]), obs=x)
        >>> x = torch.arange(11.0).repeat(20)
        >>> encoder = torch.nn.Sequential(torch.nn.Unflatten(0, (-1, 1)), torch.nn.Linear(1, 16), torch.nn.Tanh())
        >>> posterior = guides.fit(model, ("amortized_kumaraswamy", {"encoder": encoder}), x, steps=1500)
        >>> draws = posterior.draws(1000, torch.tensor([1.0, 8.0])).latents["v"]  # exact means: 3 / 15 and 10 / 15
        >>> (draws.mean((0, 1)) - torch.tensor([0.2, 0.667])).abs().max() < 0.05
        tensor(True)
    """

    def __init__(
        self,
        model: Callable[..., Any],
        encoder: nn.Module,
        inputs: Sequence[int | str] = (0,),
        rest: str | tuple[str, dict[str, Any]] = "mean_field",
    ) -> None:
        if not isinstance(encoder, nn.Module) or isinstance(encoder, nn.ModuleList):
            raise OptionError(f"encoder must be one torch.nn.Module, not {type(encoder).__name__}")
        super().__init__(model, encoder, inputs=inputs, rest=rest)

    def _make_heads(self, inputs: list[Any]) -> None:
        if not any(self._is_fraction(name) for name in self._sites):
            raise UnsupportedModelError(
                f"no local latent has the support (0, 1) (latents: {', '.join(self._sites)}); use 'amortized'"
            )
        super()._make_heads(inputs)

    def _make_head(self, site: LocalSite, width: int | None, like: Tensor) -> Head:
        if not self._is_fraction(site.name):
            return super()._make_head(site, width, like)
        if width is None:
            raise OptionError(
                "the encoder returns a pair (loc, scale), which means nothing for fractions; return features (rows, F)"
            )
        return _KumaraswamyHead(site, width, self.head_options, like)

    def _is_fraction(self, name: str) -> bool:
        return has_elements_in(nodes(self.prototype_trace)[name], constraints.unit_interval)


class _KumaraswamyHead(Head):
    """Linear heads of both concentrations, uniform at first."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        for part in (self.loc, self.rho):
            nn.init.constant_(part.bias, math.log(math.expm1(1.0)))

    def distribution(self, gaussian: Gaussian) -> Any:
        """Return the distribution of the site; ``loc`` and ``scale`` stand for its concentrations."""
        a = softplus(self.site.arrange(gaussian.loc)).clamp(min=_SMALLEST)
        b = self.site.arrange(gaussian.scale).clamp(min=_SMALLEST)
        return Kumaraswamy(a, b, validate_args=False).to_event(len(self.site.unconstrained_event))
