"""Conditional VAE and the plain network it is compared with: outputs with many answers to one input."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro.infer.util import is_validation_enabled
from torch import Tensor, nn

from zoo._checks import check_target
from zoo._decoding import check_rows, decode_rows, gaussian
from zoo._plates import data_plate
from zoo._registries import models
from zoo.networks import GaussianNetwork, JointNetwork, mlp
from zoo.pixels import PixelLikelihood, check_finite, pixel_likelihood

__all__ = ["ConditionalRegressor", "ConditionalVAE"]


@models.register("conditional_vae")
class ConditionalVAE(nn.Module):
    r"""An output image given an input, with a code for what the input leaves open.

    .. math::

        z_n \mid x_n \sim \mathcal{N}\big(\mu(x_n), \operatorname{diag} s^2(x_n)\big), \qquad
        y_n \mid x_n, z_n \sim p\big(y \mid \mathrm{decoder}(x_n, z_n)\big)

    The recognition network :math:`q(z \mid x, y)` belongs to the guide: ``guides.fit(cvae, ("amortized", {"encoder":
    encoder, "inputs": (0, 1)}), x, y)``. Without ``y`` codes come from the prior network, so predictions of a new input need
    no recognition.

    *When to use.* Outputs of many dependent dimensions of which several are plausible for one input: the missing part of an
    image, a segmentation. *When not.* One plausible answer, or outputs that are independent given the input:
    :class:`ConditionalRegressor` is simpler and as good.

    Sites in the plate ``"data"``: latent ``"z"`` ``(N, latent_dim)``, observed ``"y"`` ``(N, *image)``. Parameters are
    registered as ``"conditional_vae"``.

    :param prior_network: from inputs ``(rows, ...)`` to ``(loc, scale)`` of the code: a
        :class:`~zoo.networks.GaussianNetwork`, say.
    :param decoder: called with inputs and codes, ``(rows, ...)`` and ``(rows, latent_dim)``; returns what the likelihood
        needs, ``(rows, *image)`` or ``(rows, *image, K)``. :class:`~zoo.networks.JointNetwork` makes one of a network of one
        input.
    :param latent_dim: dimension of the code.
    :param likelihood: of the output, as for :class:`~zoo.VAE`.
    :param regressor: a network from inputs to a first guess of the output, in the shape of the decoder's output. The decoder
        then returns a correction of it, and the code has to explain only what the guess leaves open. Train it first (as a
        :class:`ConditionalRegressor`) and freeze it, or train it along.
    :param encoder: the guide's recognition network, called with ``(x, y)``; handed on in :attr:`natural_guide`.
    :param data_size: size of the whole data set when calls see minibatches of it under stock SVI.
    :raises ValueError: for ``latent_dim`` below 1, networks whose outputs do not fit, and ``y`` of another shape or with
        pixels that the likelihood is not one of (looked at whenever Pyro's validation is on).

    References:
        Sohn, Lee and Yan (2015), Learning structured output representation using deep conditional generative models.
        The Pyro tutorial "Conditional variational auto-encoder", pyro.ai/examples/cvae.html.

    Example::

        >>> model, (x, y) = ConditionalVAE.example()
        >>> model(x).shape == model(x, y).shape == y.shape
        True
    """

    def __init__(
        self,
        prior_network: nn.Module,
        decoder: nn.Module,
        latent_dim: int,
        likelihood: str | PixelLikelihood = "bernoulli",
        regressor: nn.Module | None = None,
        encoder: nn.Module | None = None,
        data_size: int | None = None,
    ) -> None:
        super().__init__()
        if latent_dim < 1:
            raise ValueError(f"latent_dim={latent_dim} must be at least 1")
        self.prior_network = prior_network
        self.decoder = decoder if regressor is None else _Correction(regressor, decoder)
        self.latent_dim = latent_dim
        self.likelihood = pixel_likelihood(likelihood)
        self.data_size = data_size
        self._encoder = (encoder,)  # in a tuple, so that it does not become a part of the model

    @classmethod
    def example(cls) -> tuple[ConditionalVAE, tuple[Tensor, Tensor]]:
        """Return a small model and data ``(x, y)``: 24 inputs of 3 pixels, outputs of 4 that are all equal."""
        generator = torch.Generator().manual_seed(0)
        x = torch.bernoulli(torch.full((24, 3), 0.5), generator=generator)
        y = torch.bernoulli(torch.full((24, 1), 0.5), generator=generator).expand(24, 4).clone()
        prior = GaussianNetwork(mlp((3, 6), output_activation="tanh"), 6, 2)
        decoder = JointNetwork(mlp((5, 8, 4), "tanh"))
        return cls(prior, decoder, 2, encoder=JointNetwork(mlp((7, 8), output_activation="tanh"))), (x, y)

    @property
    def natural_guide(self) -> tuple[str, dict[str, Any]]:
        """An amortised guide with the recognition network that the model was given."""
        if self._encoder[0] is None:
            raise AttributeError("this model was given no encoder, so it has no natural guide")
        return "amortized", {"encoder": self._encoder[0], "inputs": (0, 1)}

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Draw or observe ``y``.

        :param x: inputs ``(N, ...)``.
        :param y: observed outputs ``(N, *image)``.
        """
        _check_values(self.likelihood, x, y)
        pyro.module("conditional_vae", self)
        with data_plate(len(x), self.data_size, observed=y is not None):
            outputs = self.decode(x, pyro.sample("z", self.prior(x)))
            _check_shape(outputs, x, y)
            return pyro.sample("y", outputs, obs=y)

    def prior(self, x: Tensor) -> Any:
        """Return the distribution of codes given inputs: batch shape ``(N,)``, event shape ``(latent_dim,)``."""
        return gaussian("z", self.prior_network(x), torch.Size((len(x), self.latent_dim)))

    def decode(self, x: Tensor, z: Tensor) -> Any:
        """Return the distribution of outputs given inputs ``(N, ...)`` and codes ``(..., N, latent_dim)``."""
        return decode_rows(self.decoder, self.likelihood, x, z)


@models.register("conditional_regressor")
class ConditionalRegressor(nn.Module):
    r"""The plain network: the pixels of an output are independent given the input, and there is no code.

    .. math:: y_n \mid x_n \sim p\big(y \mid \mathrm{network}(x_n)\big)

    The baseline of :class:`ConditionalVAE`. It has no latent variable, so a fit is maximum likelihood of the network:
    ``guides.fit(regressor, "map", x, y)``, and its value the log-likelihood itself.

    *When to use.* To see what a code adds, and as the first guess of a conditional VAE. *When not.* Outputs of which several
    are plausible: it answers with their average.

    Sites in the plate ``"data"``: observed ``"y"`` ``(N, *image)``. Parameters are registered as
    ``"conditional_regressor"``.

    :param network: from inputs ``(rows, ...)`` to what the likelihood needs, ``(rows, *image)`` or ``(rows, *image, K)``.
    :param likelihood: of the output, as for :class:`~zoo.VAE`.
    :param data_size: size of the whole data set when calls see minibatches of it under stock SVI.
    :raises ValueError: for a network whose outputs do not fit, and ``y`` of another shape or with pixels that the likelihood
        is not one of (looked at whenever Pyro's validation is on).

    References: Sohn, Lee and Yan (2015), Learning structured output representation using deep conditional generative models.

    Example::

        >>> model, (x, y) = ConditionalRegressor.example()
        >>> model(x).shape == model(x, y).shape == y.shape
        True
    """

    natural_guide: tuple[str, dict[str, Any]] = ("map", {})

    def __init__(
        self, network: nn.Module, likelihood: str | PixelLikelihood = "bernoulli", data_size: int | None = None
    ) -> None:
        super().__init__()
        self.network = network
        self.likelihood = pixel_likelihood(likelihood)
        self.data_size = data_size

    @classmethod
    def example(cls) -> tuple[ConditionalRegressor, tuple[Tensor, Tensor]]:
        """Return a small model and data ``(x, y)``: those of :meth:`ConditionalVAE.example`."""
        return cls(mlp((3, 8, 4), "tanh")), ConditionalVAE.example()[1]

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Draw or observe ``y``.

        :param x: inputs ``(N, ...)``.
        :param y: observed outputs ``(N, *image)``.
        """
        _check_values(self.likelihood, x, y)
        pyro.module("conditional_regressor", self)
        with data_plate(len(x), self.data_size, observed=y is not None):
            outputs = self.decode(x)
            _check_shape(outputs, x, y)
            return pyro.sample("y", outputs, obs=y)

    def decode(self, x: Tensor) -> Any:
        """Return the distribution of outputs given inputs ``(N, ...)``."""
        return decode_rows(self.network, self.likelihood, x)


class _Correction(nn.Module):
    """A decoder that adds what it says to a first guess."""

    def __init__(self, regressor: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.regressor = regressor
        self.decoder = decoder

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        guess, correction = self.regressor(x), self.decoder(x, z)
        if guess.shape != correction.shape:
            found = f"{tuple(guess.shape)} and {tuple(correction.shape)}"
            raise ValueError(f"regressor and decoder return {found}; one corrects the other, so give them the same shape")
        return guess + correction


def _check_values(likelihood: PixelLikelihood, x: Tensor, y: Tensor | None) -> None:
    check_rows("x", x)
    if is_validation_enabled():  # values can be looked at: this is no vectorised or traced call
        check_finite("x", x)
        if y is not None:
            likelihood.check("y", y)


def _check_shape(outputs: Any, x: Tensor, y: Tensor | None) -> None:
    if y is not None:
        check_target(y, (len(x), *outputs.event_shape))
