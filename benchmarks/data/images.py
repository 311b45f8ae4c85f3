"""Images, and models of them, as tasks need them; what a function is called with is part of the protocol."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import zoo
from benchmarks.protocol.split import Split
from zoo import datasets
from zoo.networks import GaussianNetwork, JointNetwork, mlp
from zoo.pixels import DiscretizedLogisticPixels

__all__ = [
    "binarized_mnist",
    "burda_schedule",
    "completion",
    "conditional_net",
    "conditional_vae",
    "deep_latent_gaussian_mixture",
    "deep_vae",
    "digits",
    "encoder",
    "labelled_binarized_mnist",
    "matched",
    "stick_breaking_vae",
    "vae",
]

DIGIT_LEVELS = 17
NEARLY_BLACK = 1e-4


def digits(index: int, *, ratio: tuple[float, ...]) -> Split:
    """Return a random split of scikit-learn's digits, 8 by 8 pixels with 17 grey levels in [0, 1].

    :param index: seed of the permutation.
    :param ratio: sizes of training, validation and test part.
    """
    found = datasets.digits_images(binarize=None).random_split(ratio, seed=index)
    assert found.x_valid is not None
    return Split(train=(found.x_train,), validation=(found.x_valid,), test=(found.x_test,))


def binarized_mnist(index: int) -> Split:
    """Return Larochelle and Murray's fixed binarisation in its own three parts, whatever the index."""
    found = datasets.binarized_mnist().split(0)
    assert found.x_valid is not None
    return Split(train=(found.x_train,), validation=(found.x_valid,), test=(found.x_test,))


def labelled_binarized_mnist(index: int) -> Split:
    """Return the same three parts with the digits that the test images show, which that data set comes without.

    Each of its test images was drawn from one grey test image of MNIST, in another order. That is the one which it is most
    probable under, by tens of nats but for a few ones that are nearly equal to each other.

    :param index: passed on.
    :raises ValueError: if some image cannot have been drawn from its match, so that labels cannot be trusted.
    """
    split = binarized_mnist(index)
    assert split.test is not None
    with warnings.catch_warnings():  # of grey files from elsewhere: that they hold the right images is checked below
        warnings.simplefilter("ignore", datasets.DataHashWarning)
        grey = datasets.mnist().split(0)
    which = matched(split.test[0], grey.x_test)
    levels = grey.x_test[which]
    wrong = ((levels == 1 - split.test[0]) & (levels.frac() == 0)).any(1)
    if wrong.any():
        raise ValueError(
            f"{int(wrong.sum())} of the binarised test images have pixels that no grey image of MNIST allows; is one of the "
            "data sets another one?"
        )
    return replace(split, labels=grey.y_test[which].flatten())


def matched(black: Tensor, grey: Tensor) -> Tensor:
    """Return for every binarised image the grey one that it is most probable to have been drawn from, shape ``(N,)``.

    :param black: zeros and ones, ``(N, pixels)``.
    :param grey: levels in [0, 1], ``(M, pixels)``.
    """
    levels = grey.clamp(NEARLY_BLACK, 1 - NEARLY_BLACK)
    odds, nothing = torch.logit(levels).T, torch.log1p(-levels).sum(1)
    return torch.cat([(rows @ odds + nothing).argmax(1) for rows in black.split(1000)])


def completion(index: int, *, given: int | str) -> Split:
    """Return the same images as inputs with some pixels given, and targets: the others.

    :param index: passed on.
    :param given: how many quadrants, 1 to 3, or ``"middle_columns"``.
    """
    whole = binarized_mnist(index)

    def cut(part: tuple[Tensor, ...] | None) -> tuple[Tensor, Tensor]:
        assert part is not None
        found = datasets.quadrants(part[0], given) if isinstance(given, int) else datasets.middle_columns(part[0])
        return found.inputs, found.targets

    return Split(train=cut(whole.train), validation=cut(whole.validation), test=cut(whole.test))


def conditional_vae(split: Split, *, hidden: Sequence[int], latent_dim: int, activation: str) -> Any:
    """Return a conditional VAE whose prior network, decoder and encoder are fully connected with the same hidden layers.

    :param split: gives the numbers of pixels.
    :param hidden: widths of hidden layers, input side first.
    :param latent_dim: latents for each image.
    :param activation: of the hidden layers.
    """
    given, asked = (part.shape[-1] for part in split.train)

    def body(size: int) -> Any:
        return mlp((size, *hidden), activation, output_activation=activation)

    return zoo.ConditionalVAE(
        GaussianNetwork(body(given), hidden[-1], latent_dim),
        JointNetwork(mlp((given + latent_dim, *hidden, asked), activation)),
        latent_dim,
        encoder=JointNetwork(body(given + asked)),
    )


def conditional_net(split: Split, *, hidden: Sequence[int], activation: str) -> Any:
    """Return the plain net: the conditional VAE's decoder without a code.

    :param split: gives the numbers of pixels.
    :param hidden: widths of hidden layers, input side first.
    :param activation: of the hidden layers.
    """
    given, asked = (part.shape[-1] for part in split.train)
    return zoo.ConditionalRegressor(mlp((given, *hidden, asked), activation))


def vae(
    split: Split,
    *,
    hidden: Sequence[int],
    latent_dim: int,
    activation: str,
    grey_levels: int = 0,
    pseudo_inputs: int = 0,
) -> Any:
    """Return a VAE of one layer of latents, encoder and decoder fully connected and each other's mirror image.

    :param split: gives the number of pixels, and images for pseudo-inputs to start from.
    :param hidden: widths of the encoder's hidden layers, image side first.
    :param latent_dim: latents for each image.
    :param activation: of the hidden layers.
    :param grey_levels: of a pixel, under a discretised logistic; 0 for black and white under a Bernoulli.
    :param pseudo_inputs: of a VampPrior; 0 for a standard normal prior.
    """
    (images,) = split.train
    size = images.shape[-1]
    body = mlp((size, *hidden), activation, output_activation=activation)
    prior: dict[str, Any] = {}
    recognition: Any = body
    if pseudo_inputs:
        recognition = GaussianNetwork(body, hidden[-1], latent_dim)
        prior = {"prior": "vamp", "pseudo_inputs": images[:pseudo_inputs]}
    return zoo.VAE(
        mlp((latent_dim, *reversed(hidden), size), activation),
        latent_dim=latent_dim,
        likelihood=_likelihood(grey_levels),
        encoder=recognition,
        **prior,
    )


def deep_vae(split: Split, *, hidden: Sequence[Sequence[int]], latent_dims: Sequence[int], activation: str) -> Any:
    """Return a VAE of several layers of latents.

    :param split: gives the number of pixels.
    :param hidden: for each layer of latents, the one next to the image first, widths of the hidden layers below it.
    :param latent_dims: of each layer.
    :param activation: of the hidden layers.
    """
    size = split.train[0].shape[-1]
    below = (size, *latent_dims[:-1])
    encoders = [mlp((first, *widths), activation, output_activation=activation) for first, widths in zip(below, hidden)]
    layers = [
        GaussianNetwork(mlp((above, *reversed(widths)), activation, output_activation=activation), widths[0], here)
        for here, above, widths in zip(latent_dims, latent_dims[1:], hidden[1:])
    ]
    decoder = mlp((latent_dims[0], *reversed(hidden[0]), size), activation)
    return zoo.VAE(decoder, latent_dim=latent_dims, layers=layers, encoder=encoders)


def deep_latent_gaussian_mixture(
    split: Split,
    *,
    hidden: Sequence[int],
    latent_dim: int,
    components: int,
    concentration: float,
    activation: str,
    grey_levels: int = 0,
) -> Any:
    """Return a deep latent Gaussian mixture model of one layer of latents with the networks of :func:`vae`.

    :param split: gives the number of pixels.
    :param hidden: widths of the encoder's hidden layers, image side first.
    :param latent_dim: latents for each image.
    :param components: of the mixture.
    :param concentration: of the Dirichlet prior on the weights.
    :param activation: of the hidden layers.
    :param grey_levels: of a pixel, under a discretised logistic; 0 for black and white under a Bernoulli.
    """
    size = split.train[0].shape[-1]
    return zoo.DeepLatentGaussianMixture(
        mlp((latent_dim, *reversed(hidden), size), activation),
        latent_dim=latent_dim,
        num_components=components,
        concentration=concentration,
        likelihood=_likelihood(grey_levels),
        encoder=mlp((size, *hidden), activation, output_activation=activation),
    )


def stick_breaking_vae(
    split: Split,
    *,
    hidden: Sequence[int],
    sticks: int,
    concentration: float,
    activation: str,
    grey_levels: int = 0,
) -> Any:
    """Return a stick-breaking VAE with the networks of :func:`vae`.

    :param split: gives the number of pixels.
    :param hidden: widths of the encoder's hidden layers, image side first.
    :param sticks: latents for each image, one fewer than weights.
    :param concentration: of the prior on the weights.
    :param activation: of the hidden layers.
    :param grey_levels: of a pixel, under a discretised logistic; 0 for black and white under a Bernoulli.
    """
    size = split.train[0].shape[-1]
    return zoo.StickBreakingVAE(
        mlp((sticks + 1, *reversed(hidden), size), activation),
        num_components=sticks + 1,
        concentration=concentration,
        likelihood=_likelihood(grey_levels),
        encoder=mlp((size, *hidden), activation, output_activation=activation),
    )


def _likelihood(grey_levels: int) -> Any:
    return DiscretizedLogisticPixels(grey_levels) if grey_levels else "bernoulli"


def encoder(model: Any) -> dict[str, Any]:
    """Return the encoder that a model was given, and which of the model's arguments it sees, as options of a guide."""
    return dict(model.natural_guide[1])


def burda_schedule(progress: float) -> float:
    r"""Return the factor of the learning rate in Burda et al. (2016): :math:`10^{-i/7}` for :math:`3^i` passes, i = 0 to 7.

    :param progress: share of all passes done; a run of fewer than their 3280 goes through the same stages, shortened.
    """
    passes = progress * sum(3**stage for stage in range(8))
    stage = 0
    while stage < 7 and passes >= 3**stage:
        passes -= 3**stage
        stage += 1
    return 10 ** (-stage / 7)
