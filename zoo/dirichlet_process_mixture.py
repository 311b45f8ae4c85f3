"""Truncated Dirichlet process mixture of Gaussians."""

from __future__ import annotations

import pyro
import torch
from torch import Tensor

from zoo._registries import models
from zoo._sticks import log_stick_weights, stick_prior
from zoo.conjugate import StickWeights, Weights
from zoo.gaussian_mixture import GaussianMixture

__all__ = ["DirichletProcessMixture"]


@models.register("dirichlet_process_mixture")
class DirichletProcessMixture(GaussianMixture):
    r"""A mixture of Gaussians whose weights are a Dirichlet process, truncated at K sticks.

    .. math::

        v_k \sim \operatorname{Beta}(1, \alpha) \quad (k < K), \qquad v_K = 1, \qquad
        \pi_k = v_k \prod_{j<k} (1 - v_j)

        p(x_n \mid \pi, \mu, \Lambda) = \sum_k \pi_k \, \mathcal{N}(x_n \mid \mu_k, \Lambda_k^{-1})

    with the components of :class:`~zoo.GaussianMixture`. The weights fall with k in expectation, and K is a bound on the
    number of clusters rather than their number; the expected prior mass beyond it is
    :math:`(\alpha / (1 + \alpha))^{K-1}`, left to the last component. The assignments are summed out.

    *When to use.* As :class:`~zoo.GaussianMixture`, with the number of clusters unknown. *When not.* To *count* clusters:
    the posterior number of components of a Dirichlet process mixture is no consistent estimate of it.

    Sites: latent ``"sticks"`` ``(K - 1,)``, deterministic ``"weights"`` ``(K,)``, and the others of
    :class:`~zoo.GaussianMixture`.

    :param num_components: truncation K, at least 2.
    :param in_features: D, number of columns of ``x``.
    :param covariance: ``"full"`` or ``"diagonal"``.
    :param concentration: :math:`\alpha`; about :math:`\alpha \log N` clusters are expected among N points.
    :param mean: prior mean :math:`m`, a number or one for each column.
    :param mean_precision: :math:`\kappa`, how many data points the prior mean is worth.
    :param degrees_of_freedom: :math:`\nu`, above ``in_features - 1`` for full covariances; D by default.
    :param scatter: prior scatter :math:`S`; see :class:`~zoo.GaussianMixture`.
    :param data_size: size of the whole data set when calls see minibatches of it under stock SVI.
    :raises ValueError: for a truncation below 2; otherwise as :class:`~zoo.GaussianMixture`.

    References:
        Sethuraman (1994), A constructive definition of Dirichlet priors.
        Ishwaran and James (2001), Gibbs sampling methods for stick-breaking priors.
        Blei and Jordan (2006), Variational inference for Dirichlet process mixtures.
        Miller and Harrison (2013), A simple example of Dirichlet process mixture inconsistency for the number of components.

    Example::

        >>> import torch
        >>> model = DirichletProcessMixture(10, in_features=2)
        >>> model(torch.randn(8, 2)).shape
        torch.Size([8, 2])
    """

    @classmethod
    def _check_components(cls, num_components: int) -> int:
        if super()._check_components(num_components) < 2:
            raise ValueError(
                f"num_components={num_components} leaves no stick to break; use 2 or more, or zoo.GaussianMixture"
            )
        return num_components

    @classmethod
    def example(cls) -> tuple[DirichletProcessMixture, tuple[Tensor]]:
        """Return a small model and data ``(x,)``: 30 points in two clusters, truncation 3."""
        return cls(3, 2, covariance="diagonal", degrees_of_freedom=4.0), GaussianMixture.example()[1]

    def _weights(self, like: Tensor) -> Tensor:
        sticks = pyro.sample("sticks", stick_prior("gem", self.concentration, self.num_components, like))
        return pyro.deterministic("weights", log_stick_weights(sticks).exp(), event_dim=1)

    def _conjugate_weights(self, like: Tensor) -> Weights:
        alpha = torch.tensor(self.concentration, dtype=torch.float64, device=like.device)
        return StickWeights(alpha, self.num_components)
