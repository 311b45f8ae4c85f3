"""Deep latent Gaussian mixture model: a VAE each of whose layers of codes is a mixture with weights of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from zoo._checks import check_positive, one_of
from zoo._decoding import gaussian, run_rows
from zoo._registries import models
from zoo._sticks import STICKS, log_stick_weights, stick_prior
from zoo.networks import mlp
from zoo.pixels import PixelLikelihood
from zoo.vae import VAE

__all__ = ["DeepLatentGaussianMixture"]

_SMALLEST, _LARGEST = 1e-3, 1e3  # scales of components: between these no density overflows, whatever the optimiser does


@models.register("deep_latent_gaussian_mixture")
class DeepLatentGaussianMixture(VAE):
    r"""A VAE whose codes come from mixtures of K Gaussians, with weights of its own for every data point and layer.

    .. math::

        \pi_l \sim \operatorname{Dirichlet}(\alpha, \ldots, \alpha) \text{ or } \operatorname{GEM}(\alpha), \qquad
        z_L \mid \pi_L \sim \sum_{k=1}^K \pi_{Lk}\, \mathcal{N}(\mu_k, \operatorname{diag} \sigma_k^2)

        z_l \mid z_{l+1}, \pi_l \sim \sum_{k=1}^K \pi_{lk}\,
        \mathcal{N}(\mu_{lk}(z_{l+1}), \operatorname{diag} \sigma_{lk}^2(z_{l+1})), \qquad
        x \mid z_1 \sim p(x \mid \mathrm{decoder}(z_1))

    Means and scales of the top layer are learned, and so are the component networks of the layers below. The weights are
    drawn by breaking a stick, with fractions :math:`v_k \sim \operatorname{Beta}(\alpha, (K - k) \alpha)` for Dirichlet
    weights, which is exact, and :math:`v_k \sim \operatorname{Beta}(1, \alpha)` for a Dirichlet process truncated at K.
    Which component a code came from is summed out, so that every latent is continuous.

    *When to use.* Data that fall into kinds, whose codes no single Gaussian describes; posteriors of codes that are mixtures
    (the guide ``deep_mixture_amortized``). *When not.* Codes that need no clusters: :class:`~zoo.VAE` costs one run of the
    decoder where this model's guide takes K, or :math:`K^L`.

    Sites, all in the plate ``"data"``: latent ``"sticks"`` ``(N, K - 1)`` unless K is 1, deterministic ``"weights"`` ``(N,
    K)``, latent ``"z"`` ``(N, latent_dim)``; for several layers ``"sticks_1"``, ``"weights_1"``, ``"z_1"`` (next to the
    data) and so on; observed ``"x"`` ``(N, *image)``. Parameters are registered as ``"vae"``.

    :param decoder: any network from codes ``(rows, latent_dim)`` to what the likelihood needs; see :class:`~zoo.VAE`.
    :param latent_dim: dimension of the code; a sequence for several stochastic layers, the layer next to the data first.
    :param num_components: K, of every layer. With one component this is a VAE with a learned Gaussian prior.
    :param weights: prior of the weights: ``"dirichlet"``, or ``"gem"``, under which they fall with k on average.
    :param concentration: :math:`\alpha`.
    :param likelihood: of the pixels; see :class:`~zoo.VAE`.
    :param layers: for several stochastic layers: networks from ``z_{l+1}`` to ``(loc, scale)`` of all K components of
        ``z_l``, each ``(rows, K * latent_dim)``, component after component; lowest layer first.
        ``zoo.networks.GaussianNetwork`` makes them.
    :param encoder: the guide's encoder, or a sequence with one for each layer, which return features ``(rows, F)``; handed
        on in :attr:`natural_guide`.
    :param data_size: size of the whole data set when calls see minibatches of it under stock SVI.
    :raises ValueError: for K below 1, unknown ``weights``, a concentration that is not positive, and component networks
        whose outputs do not fit; otherwise as :class:`~zoo.VAE`.

    References:
        Nalisnick, Hertel and Smyth (2016), Approximate inference for deep latent Gaussian mixtures.
        Sethuraman (1994), A constructive definition of Dirichlet priors.

    Example::

        >>> import zoo
        >>> from zoo.networks import GaussianNetwork, mlp
        >>> x = zoo.datasets.digits_images().x
        >>> below = GaussianNetwork(mlp((2, 20), output_activation="tanh"), 20, 3 * 5)
        >>> model = zoo.DeepLatentGaussianMixture(mlp((5, 100, 64)), (5, 2), num_components=3, layers=[below])
        >>> model(x).shape, model.generate(9, seed=1).shape
        (torch.Size([1797, 64]), torch.Size([9, 64]))
    """

    def __init__(
        self,
        decoder: nn.Module,
        latent_dim: int | Sequence[int],
        num_components: int = 3,
        weights: str = "dirichlet",
        concentration: float = 1.0,
        likelihood: str | PixelLikelihood = "bernoulli",
        layers: Sequence[nn.Module] = (),
        encoder: nn.Module | Sequence[nn.Module] | None = None,
        data_size: int | None = None,
    ) -> None:
        if isinstance(num_components, bool) or not isinstance(num_components, int) or num_components < 1:
            raise ValueError(
                f"num_components={num_components!r} must be an integer of at least 1; with 1 the prior is one Gaussian"
            )
        super().__init__(decoder, latent_dim, likelihood, layers=layers, encoder=encoder, data_size=data_size)
        self.num_components = num_components
        self.weights = one_of("weights", weights, STICKS)
        self.concentration = check_positive("concentration", concentration)
        shape = num_components, self.latent_dims[-1]
        self.loc = nn.Parameter(torch.randn(shape) if num_components > 1 else torch.zeros(shape))
        self.raw_scale = nn.Parameter(torch.zeros(shape))

    @classmethod
    def example(cls) -> tuple[DeepLatentGaussianMixture, tuple[Tensor]]:
        """Return a small model of black and white pixels and data ``(x,)``: 24 images of 6 pixels."""
        encoder = mlp((6, 8), output_activation="tanh")
        return cls(mlp((2, 8, 6), "tanh"), latent_dim=2, num_components=2, encoder=encoder), VAE.example()[1]

    @property
    def natural_guide(self) -> tuple[str, dict[str, Any]]:
        """Layers of mixtures with as many components, computed by the encoder that the model was given."""
        return "deep_mixture_amortized", {**super().natural_guide[1], "components": self.num_components}

    @property
    def latent_sites(self) -> tuple[str, ...]:
        """The names of the latent sites: sticks and code of every layer, the one next to the data first."""
        kinds = ("sticks", "z") if self.num_components > 1 else ("z",)
        return tuple(f"{kind}{suffix}" for suffix in self._suffixes for kind in kinds)

    @property
    def _suffixes(self) -> tuple[str, ...]:
        depth = len(self.latent_dims)
        return ("",) if depth == 1 else tuple(f"_{layer}" for layer in range(1, depth + 1))

    @property
    def scale(self) -> Tensor:
        """Standard deviations of the components of the top layer, ``(K, latent_dims[-1])``."""
        reach = math.log(_LARGEST)
        return (reach * torch.tanh(self.raw_scale / reach)).exp()

    def prior(self) -> Any:
        """Return the prior of one code of the top layer with its weights integrated out, a mixture with their means."""
        if self.num_components == 1:
            return _mixture(self.loc.new_zeros(1), self.loc, self.scale)
        mean = stick_prior(self.weights, self.concentration, self.num_components, self.loc).mean
        return _mixture(log_stick_weights(mean), self.loc, self.scale)

    def _codes(self) -> Tensor:
        """Draw weights and codes from the top layer down and return the codes next to the data."""
        *lower, top = self._suffixes
        z = pyro.sample(f"z{top}", _mixture(self._log_weights(top), self.loc, self.scale))
        for suffix, network, size in zip(reversed(lower), reversed(self.layers), reversed(self.latent_dims[:-1])):
            loc, scale = self._components(f"z{suffix}", network, size, z)
            z = pyro.sample(f"z{suffix}", _mixture(self._log_weights(suffix), loc, scale))
        return z

    def _log_weights(self, suffix: str) -> Tensor:
        """Draw the weights of one layer and return their logarithms, ``(..., K)``."""
        if self.num_components == 1:
            return self.loc.new_zeros(1)
        prior = stick_prior(self.weights, self.concentration, self.num_components, self.loc)
        log_weights = log_stick_weights(pyro.sample(f"sticks{suffix}", prior))
        pyro.deterministic(f"weights{suffix}", log_weights.exp(), event_dim=1)
        return log_weights

    def _components(self, site: str, network: nn.Module, size: int, above: Tensor) -> tuple[Tensor, Tensor]:
        """Return means and scales of the components of a layer given the code above, each ``(..., K, size)``."""
        answer = run_rows(f"the network of site {site!r}", network, above)
        whole = gaussian(site, answer, torch.Size((*above.shape[:-1], self.num_components * size))).base_dist
        shape = self.num_components, size
        return whole.loc.unflatten(-1, shape), whole.scale.unflatten(-1, shape).clamp(_SMALLEST, _LARGEST)


def _mixture(log_weights: Tensor, loc: Tensor, scale: Tensor) -> Any:
    """Return a mixture of Gaussians, of one event of the size of a code.

    :param log_weights: normalised, ``(..., K)``.
    :param loc: ``(..., K, D)``, or ``(K, D)`` for the same components everywhere; ``scale`` likewise.
    """
    if log_weights.shape[-1] == 1:
        return dist.Normal(loc.squeeze(-2), scale.squeeze(-2)).to_event(1)
    shape = (*log_weights.shape, loc.shape[-1])
    components = dist.Normal(loc.expand(shape), scale.expand(shape)).to_event(1)
    return _Mixture(dist.Categorical(logits=log_weights), components)


class _Mixture(dist.MixtureSameFamily):
    """A mixture that says of its support what everybody understands, so that Pyro's autoguides and NUTS take it."""

    support = constraints.real_vector
