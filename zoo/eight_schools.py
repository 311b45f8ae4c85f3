"""The eight schools: the smallest hierarchical model with a funnel."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from zoo._checks import check_target
from zoo._registries import models

__all__ = ["EightSchools"]


@models.register("eight_schools")
class EightSchools(nn.Module):
    r"""Effects of coaching in eight schools, partially pooled.

    .. math::

        \mu \sim \mathcal{N}(0, 5^2), \qquad \tau \sim \operatorname{HalfCauchy}(5), \qquad
        \theta_j \sim \mathcal{N}(\mu, \tau^2), \qquad y_j \sim \mathcal{N}(\theta_j, \sigma_j^2)

    Centred, :math:`\theta` is sampled as written and its posterior has a funnel where :math:`\tau` is small. Non-centred,
    :math:`\theta_j = \mu + \tau \tilde\theta_j` with :math:`\tilde\theta_j \sim \mathcal{N}(0, 1)`, which unfolds it.

    *When to use.* To see what a guide does with a hierarchy, and what reparameterisation buys. The centred form is a known
    failure of mean-field guides, so a diagnostic has to object to it. *When not.* As evidence that a method scales.

    Sites, named as in posteriordb: latent ``"mu"`` and ``"tau"`` ``()``; in the plate ``"schools"``: ``"theta"`` ``(J,)``
    (latent if centred, else deterministic), latent ``"theta_trans"`` ``(J,)`` if not centred, observed ``"y"`` ``(J,)``.

    :param centered: which of the two forms.
    :raises ValueError: if ``y`` has not the shape of ``sigma``.

    References:
        Rubin (1981), Estimation in parallel randomized experiments.
        Gelman, Carlin, Stern, Dunson, Vehtari and Rubin (2013), Bayesian Data Analysis, section 5.5.
        Yao, Vehtari, Simpson and Gelman (2018), Yes, but did it work? Evaluating variational inference.

    Example::

        >>> model, (sigma, y) = EightSchools.example()
        >>> model(sigma).shape
        torch.Size([8])
    """

    natural_guide: tuple[str, dict] = ("mean_field", {})

    def __init__(self, centered: bool = False) -> None:
        super().__init__()
        self.centered = centered

    @staticmethod
    def data() -> tuple[Tensor, Tensor]:
        """Return ``(sigma, y)``: standard errors and estimated effects in SAT points, schools A to H, each ``(8,)``."""
        sigma = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
        y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
        return sigma, y

    @classmethod
    def example(cls) -> tuple[EightSchools, tuple[Tensor, Tensor]]:
        """Return the non-centred model and its data ``(sigma, y)``."""
        return cls(), cls.data()

    def forward(self, sigma: Tensor, y: Tensor | None = None) -> Tensor:
        """Draw or observe ``y``.

        :param sigma: known standard errors ``(J,)``, positive.
        :param y: observed effects ``(J,)``.
        """
        if y is not None:
            check_target(y, tuple(sigma.shape))
        five = sigma.new_full((), 5.0)
        mu = pyro.sample("mu", dist.Normal(torch.zeros_like(five), five))
        tau = pyro.sample("tau", dist.HalfCauchy(five))
        with pyro.plate("schools", sigma.shape[-1]):
            if self.centered:
                theta = pyro.sample("theta", dist.Normal(mu, tau))
            else:
                unit = pyro.sample("theta_trans", dist.Normal(torch.zeros_like(five), torch.ones_like(five)))
                theta = pyro.deterministic("theta", mu + tau * unit, event_dim=0)
            return pyro.sample("y", dist.Normal(theta, sigma), obs=y)

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        return f"centered={self.centered}"
