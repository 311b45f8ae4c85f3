"""Stick-breaking variational autoencoder: codes that are weights of a Dirichlet process."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from zoo._checks import check_positive
from zoo._registries import models
from zoo._sticks import log_stick_weights, stick_prior
from zoo.networks import mlp
from zoo.pixels import PixelLikelihood
from zoo.vae import VAE

__all__ = ["StickBreakingVAE"]


@models.register("stick_breaking_vae")
class StickBreakingVAE(VAE):
    r"""A VAE whose code is a point of the simplex, drawn by breaking a stick.

    .. math::

        v_k \sim \operatorname{Beta}(1, \alpha) \quad (k < K), \qquad
        \pi_k = v_k \prod_{j<k} (1 - v_j), \qquad \pi_K = \prod_{j<K} (1 - v_j), \qquad
        x \mid \pi \sim p(x \mid \mathrm{decoder}(\pi))

    The prior is the GEM distribution, truncated at K. Dimensions are ordered: a data point uses as many as it needs, and the
    weight of the rest fades, so K is a bound and not a choice of the code's dimension.

    *When to use.* Codes of an adaptive number of dimensions, and codes that are proportions. *When not.* When samples have
    to look best: a Gaussian code (:class:`~zoo.VAE`) usually has the higher likelihood.

    Sites, all in the plate ``"data"``: latent ``"sticks"`` ``(N, K - 1)``, deterministic ``"weights"`` ``(N, K)``, observed
    ``"x"`` ``(N, *image)``. Parameters are registered as ``"vae"``.

    :param decoder: any network from weights ``(rows, K)`` to what the likelihood needs; see :class:`~zoo.VAE`.
    :param num_components: truncation K, at least 2.
    :param concentration: :math:`\alpha`; the first weight is :math:`1 / (1 + \alpha)` on average.
    :param likelihood: of the pixels; see :class:`~zoo.VAE`.
    :param encoder: the guide's encoder, which returns features ``(rows, F)``; handed on in :attr:`natural_guide`.
    :param data_size: size of the whole data set when calls see minibatches of it under stock SVI.
    :raises ValueError: for a truncation below 2 and a concentration that is not positive; otherwise as :class:`~zoo.VAE`.

    References:
        Nalisnick and Smyth (2017), Stick-breaking variational autoencoders.

    Example::

        >>> import zoo
        >>> from zoo.networks import mlp
        >>> x = zoo.datasets.digits_images().x
        >>> vae = zoo.StickBreakingVAE(mlp((10, 100, 64)), num_components=10, concentration=3.0)
        >>> vae(x).shape, vae.generate(9, seed=1).shape
        (torch.Size([1797, 64]), torch.Size([9, 64]))
    """

    def __init__(
        self,
        decoder: nn.Module,
        num_components: int,
        concentration: float = 1.0,
        likelihood: str | PixelLikelihood = "bernoulli",
        encoder: nn.Module | None = None,
        data_size: int | None = None,
    ) -> None:
        if num_components < 2:
            raise ValueError(f"num_components={num_components} leaves no stick to break; use at least 2")
        super().__init__(decoder, num_components, likelihood, encoder=encoder, data_size=data_size)
        self.num_components = num_components
        self.concentration = check_positive("concentration", concentration)

    @classmethod
    def example(cls) -> tuple[StickBreakingVAE, tuple[Tensor]]:
        """Return a small model of black and white pixels and data ``(x,)``: 24 images of 6 pixels."""
        encoder = mlp((6, 8), output_activation="tanh")
        return cls(mlp((3, 8, 6), "tanh"), num_components=3, encoder=encoder), VAE.example()[1]

    @property
    def natural_guide(self) -> tuple[str, dict[str, Any]]:
        """Kumaraswamy sticks computed by the encoder that the model was given."""
        return "amortized_kumaraswamy", super().natural_guide[1]

    @property
    def latent_sites(self) -> tuple[str, ...]:
        """The name of the latent site."""
        return ("sticks",)

    def prior(self) -> Any:
        """Return the prior of the sticks of one data point, of event shape ``(K - 1,)``."""
        like = next(chain(self.parameters(), self.buffers()), torch.empty(()))
        return stick_prior("gem", self.concentration, self.num_components, like)

    def _codes(self) -> Tensor:
        """Draw the weights."""
        sticks = pyro.sample("sticks", self.prior())
        return pyro.deterministic("weights", log_stick_weights(sticks).exp(), event_dim=1)
