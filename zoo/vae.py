"""Variational autoencoder: a deep latent-variable model of images, with one or several stochastic layers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import pyro
import torch
from pyro.infer.util import is_validation_enabled
from torch import Tensor, nn

from zoo._checks import one_of
from zoo._decoding import check_rows, decode_rows, gaussian, run_rows
from zoo._plates import data_plate, normal
from zoo._registries import models
from zoo.networks import mlp
from zoo.pixels import PixelLikelihood, pixel_likelihood
from zoo.vamp_prior import VampPrior

__all__ = ["VAE"]

PRIORS = ("normal", "vamp")


@models.register("vae")
class VAE(nn.Module):
    r"""A deep latent-variable model: codes from a prior, images from a network of the code.

    .. math::

        z_L \sim p(z_L), \qquad z_l \mid z_{l+1} \sim \mathcal{N}(\mu_l(z_{l+1}), \operatorname{diag} s_l^2(z_{l+1})), \qquad
        x \mid z_1 \sim p(x \mid \mathrm{decoder}(z_1))

    This is the generative half. The recognition half, an encoder, belongs to the guide: ``guides.fit(vae, ("amortized",
    {"encoder": encoder}), x)``, or ``guides.fit(vae, x)`` for a model that was told its encoder. Maximum likelihood for the
    networks, variational inference for the codes: a fit trains both.

    *When to use.* Images, and other data with many dependent dimensions: to generate, to compress, to compare data by their
    density. *When not.* Linear structure (:class:`~zoo.ProbabilisticPCA` is exact), or where an output depends on an input
    (:class:`~zoo.ConditionalVAE`).

    Sites, all in the plate ``"data"``: latent ``"z"`` ``(N, latent_dim)``, or ``"z_1"`` (next to the data) to ``"z_L"``
    (top) for several layers; observed ``"x"`` ``(N, *image)``. Parameters are registered as ``"vae"``.

    :param decoder: any network from codes ``(rows, latent_dim)`` to what the likelihood needs: ``(rows, *image)``, or
        ``(rows, *image, K)`` where it needs several numbers for each pixel. See :mod:`zoo.networks` for ready ones.
    :param latent_dim: dimension of the code; a sequence for several stochastic layers, the layer next to the data first.
    :param likelihood: ``"bernoulli"`` (black and white), ``"categorical"`` (256 levels), ``"gaussian"`` (learned scale),
        ``"discretized_logistic"`` (256 grey levels in [0, 1]), or an object of :mod:`zoo.pixels` with other options.
    :param prior: of the top layer: ``"normal"``, the standard normal, or ``"vamp"``, a learned mixture
        (:class:`~zoo.vamp_prior.VampPrior`), which needs ``encoder`` and ``pseudo_inputs``.
    :param layers: for several stochastic layers: networks from ``z_{l+1}`` to ``(loc, scale)`` of ``z_l``, lowest first.
    :param encoder: the guide's encoder, or a sequence with one for each layer. The model itself uses it for
        ``prior="vamp"`` only; otherwise it is handed on in :attr:`natural_guide`.
    :param pseudo_inputs: for ``prior="vamp"``: where the pseudo-inputs start, ``(K, *image)``, say K training images.
    :param data_size: size of the whole data set when calls see minibatches of it under stock SVI.
    :raises ValueError: for a dimension below 1, ``layers`` that do not fit ``latent_dim``, a VampPrior without what it needs
        or over several layers, networks whose outputs do not fit, and ``x`` of another shape or with pixels that the
        likelihood is not one of (looked at whenever Pyro's validation is on).

    References:
        Kingma and Welling (2014), Auto-encoding variational Bayes.
        Rezende, Mohamed and Wierstra (2014), Stochastic backpropagation and approximate inference in deep generative models.
        Tomczak and Welling (2018), VAE with a VampPrior.

    Example::

        >>> import zoo
        >>> from zoo.networks import mlp
        >>> x = zoo.datasets.digits_images().x
        >>> vae = zoo.VAE(mlp((5, 100, 64)), latent_dim=5, encoder=mlp((64, 100), output_activation="relu"))
        >>> vae(x).shape, vae.generate(9, seed=1).shape
        (torch.Size([1797, 64]), torch.Size([9, 64]))
    """

    def __init__(
        self,
        decoder: nn.Module,
        latent_dim: int | Sequence[int],
        likelihood: str | PixelLikelihood = "bernoulli",
        prior: str = "normal",
        layers: Sequence[nn.Module] = (),
        encoder: nn.Module | Sequence[nn.Module] | None = None,
        pseudo_inputs: Tensor | None = None,
        data_size: int | None = None,
    ) -> None:
        super().__init__()
        self.latent_dims = (latent_dim,) if isinstance(latent_dim, int) else tuple(latent_dim)
        if not self.latent_dims or min(self.latent_dims) < 1:
            raise ValueError(f"latent_dim={latent_dim} must be an integer of at least 1, or a sequence of them")
        if len(layers) != len(self.latent_dims) - 1:
            raise ValueError(
                f"latent_dim={latent_dim} has {len(self.latent_dims)} stochastic layers, so layers needs "
                f"{len(self.latent_dims) - 1} networks from one to the next below, got {len(layers)}"
            )
        self.decoder = decoder
        self.layers = nn.ModuleList(layers)
        self.likelihood = pixel_likelihood(likelihood)
        self.vamp_prior = self._vamp_prior(encoder, pseudo_inputs) if one_of("prior", prior, PRIORS) == "vamp" else None
        self.data_size = data_size
        self._encoder = (encoder,)  # in a tuple, so that it does not become a part of the model

    def _vamp_prior(self, encoder: Any, pseudo_inputs: Tensor | None) -> VampPrior:
        if len(self.latent_dims) > 1:
            raise ValueError("prior='vamp' is for one stochastic layer; use prior='normal' with several")
        if not isinstance(encoder, nn.Module) or pseudo_inputs is None:
            raise ValueError(
                "prior='vamp' is made of the guide's answers to pseudo-inputs: pass encoder=, a network that returns "
                "(loc, scale) such as zoo.networks.GaussianNetwork, and pseudo_inputs=, say 500 training images"
            )
        return VampPrior(encoder, pseudo_inputs)

    @classmethod
    def example(cls) -> tuple[VAE, tuple[Tensor]]:
        """Return a small model of black and white pixels and data ``(x,)``: 24 images of 6 pixels."""
        generator = torch.Generator().manual_seed(0)
        grey = torch.rand(24, 1, generator=generator).expand(24, 6)
        x = torch.bernoulli(grey, generator=generator)
        return cls(mlp((2, 8, 6), "tanh"), latent_dim=2, encoder=mlp((6, 8), output_activation="tanh")), (x,)

    @property
    def natural_guide(self) -> tuple[str, dict[str, Any]]:
        """An amortised guide with the encoder that the model was given."""
        if self._encoder[0] is None:
            raise AttributeError("this model was given no encoder, so it has no natural guide")
        return "amortized", {"encoder": self._encoder[0]}

    @property
    def latent_sites(self) -> tuple[str, ...]:
        """The names of the latent sites, the one next to the data first."""
        depth = len(self.latent_dims)
        return ("z",) if depth == 1 else tuple(f"z_{layer}" for layer in range(1, depth + 1))

    def forward(self, x: Tensor) -> Tensor:
        """Observe ``x``.

        :param x: images ``(N, *image)``.
        """
        check_rows("x", x)
        if is_validation_enabled():  # values can be looked at: this is no vectorised or traced call
            self.likelihood.check("x", x)
        pyro.module("vae", self)
        with data_plate(len(x), self.data_size):
            images = self.decode(self._codes())
            if images.event_shape != x.shape[1:]:
                raise ValueError(
                    f"the decoder describes images of shape {tuple(images.event_shape)}, x has {tuple(x.shape[1:])}; change "
                    "the decoder's output, or reshape x"
                )
            return pyro.sample("x", images, obs=x)

    def prior(self) -> Any:
        """Return the prior of one code of the top layer, of event shape ``(latent_dims[-1],)``."""
        if self.vamp_prior is not None:
            return self.vamp_prior()
        like = next(chain(self.parameters(), self.buffers()), torch.empty(()))
        return normal(like.new_ones(()), self.latent_dims[-1:])

    def _codes(self) -> Tensor:
        """Draw codes from the top layer down and return those next to the data."""
        *lower, top = self.latent_sites
        z = pyro.sample(top, self.prior())
        for name, network, size in zip(reversed(lower), reversed(self.layers), reversed(self.latent_dims[:-1])):
            answer = run_rows(f"the network of site {name!r}", network, z)
            z = pyro.sample(name, gaussian(name, answer, torch.Size((*z.shape[:-1], size))))
        return z

    def decode(self, z: Tensor) -> Any:
        """Return the distribution of images given codes next to the data: batch shape ``(...)`` for ``z`` ``(..., D)``."""
        return decode_rows(self.decoder, self.likelihood, z)

    @torch.no_grad()
    def generate(self, n: int, seed: int = 0) -> Tensor:
        """Return the mean images of ``n`` codes drawn from the prior, ``(n, *image)``; the caller's seed is not touched."""
        with torch.random.fork_rng(), pyro.poutine.block(), pyro.plate("data", n):
            torch.manual_seed(seed)
            return self.decode(self._codes()).mean
