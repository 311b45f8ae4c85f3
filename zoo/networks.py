"""Ready networks for models of images: fully connected and convolutional, for encoders and decoders.

Any ``nn.Module`` does in their place. What they share is what the models ask for: nothing in them mixes rows (no batch
normalisation), and a network for a Gaussian returns the pair ``(loc, scale)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo._checks import one_of

__all__ = ["ACTIVATIONS", "GaussianNetwork", "JointNetwork", "convolutional", "mlp"]

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "leaky_relu": nn.LeakyReLU,
    "relu": nn.ReLU,
    "selu": nn.SELU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}


class GaussianNetwork(nn.Module):
    r"""A network for the location and scale of independent Gaussians: a body and two linear heads.

    .. math:: h = \mathrm{body}(x), \qquad \mu = h A + a, \qquad s = \operatorname{softplus}(h B + b) + s_0

    :param body: from the inputs to features ``(..., F)``; called with whatever the network is called with.
    :param features: F.
    :param latent_dim: how many Gaussians.
    :param min_scale: the floor :math:`s_0` of the scales.
    :raises ValueError: for fewer than one feature or Gaussian.

    Example::

        >>> import torch
        >>> from zoo.networks import GaussianNetwork, mlp
        >>> loc, scale = GaussianNetwork(mlp((64, 50), output_activation="tanh"), 50, 8)(torch.rand(10, 64))
        >>> loc.shape == scale.shape == (10, 8), bool((scale > 0).all())
        (True, True)
    """

    def __init__(self, body: nn.Module, features: int, latent_dim: int, min_scale: float = 1e-4) -> None:
        super().__init__()
        _check_sizes((features, latent_dim))
        self.body = body
        self.loc = nn.Linear(features, latent_dim)
        self.raw_scale = nn.Linear(features, latent_dim)
        self.min_scale = min_scale

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(loc, scale)``, each ``(..., latent_dim)``."""
        features = self.body(*inputs)
        return self.loc(features), F.softplus(self.raw_scale(features)) + self.min_scale


class JointNetwork(nn.Module):
    """A network of several inputs: it sees them side by side in one vector.

    Inputs ``(rows, ...)`` are flattened to vectors and concatenated in the order of the call.

    :param body: a network of vectors as long as all inputs together.

    Example::

        >>> import torch
        >>> from zoo.networks import JointNetwork, mlp
        >>> JointNetwork(mlp((9, 20, 3)))(torch.rand(5, 2, 2), torch.rand(5, 5)).shape
        torch.Size([5, 3])
    """

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return what the body makes of ``inputs``."""
        return self.body(torch.cat([each.flatten(1) for each in inputs], dim=-1))


def mlp(
    sizes: Sequence[int],
    activation: str = "relu",
    *,
    output_activation: str | None = None,
    in_shape: Sequence[int] | None = None,
    out_shape: Sequence[int] | None = None,
) -> nn.Sequential:
    """Return a fully connected network.

    :param sizes: widths, from the inputs to the outputs: ``(784, 500, 25)``.
    :param activation: between the layers, by name (``"relu"``, ``"tanh"``, ...).
    :param output_activation: after the last layer; give one where features are wanted that other layers go on from, as an
        encoder's are.
    :param in_shape: shape of one input, if it is no vector; it has to have ``sizes[0]`` elements.
    :param out_shape: shape of one output, if it is no vector; it has to have ``sizes[-1]`` elements.
    :raises ValueError: for fewer than two sizes, one below 1, an unknown activation, or a shape of another size.

    Example::

        >>> import torch
        >>> from zoo.networks import mlp
        >>> mlp((2, 50, 64), "tanh", out_shape=(1, 8, 8))(torch.randn(10, 2)).shape
        torch.Size([10, 1, 8, 8])
    """
    _check_sizes(sizes)
    if len(sizes) < 2:
        raise ValueError(f"sizes={tuple(sizes)}: a network needs at least the widths of its inputs and of its outputs")
    layers: list[nn.Module] = []
    if in_shape is not None:
        _check_shape("in_shape", in_shape, sizes[0])
        layers.append(nn.Flatten(-len(in_shape)))
    for fan_in, fan_out in pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), _activation(activation)]
    layers.pop()
    if output_activation is not None:
        layers.append(_activation(output_activation))
    if out_shape is not None:
        _check_shape("out_shape", out_shape, sizes[-1])
        layers.append(nn.Unflatten(-1, tuple(out_shape)))
    return nn.Sequential(*layers)


def convolutional(
    latent_dim: int,
    image_shape: Sequence[int] = (1, 28, 28),
    *,
    channels: Sequence[int] = (32, 64),
    features: int = 256,
    activation: str = "relu",
    levels: int = 1,
    flat: bool = True,
) -> tuple[nn.Sequential, nn.Sequential]:
    """Return a small convolutional encoder and the decoder that mirrors it.

    Each of ``channels`` halves height and width on the way in and doubles them on the way out. The encoder ends in
    ``features`` activated features, to which a guide adds its heads; wrap it in a :class:`GaussianNetwork` where a pair
    ``(loc, scale)`` is needed.

    :param latent_dim: the dimension of the code that the decoder starts from.
    :param image_shape: channels, height and width of an image; both divisible by two as often as there are ``channels``.
    :param channels: of the convolutions, image side first.
    :param features: width of the fully connected layer in both.
    :param activation: by name, as for :func:`mlp`.
    :param levels: outputs of the decoder for each pixel, last in its shape; 1 and no such dimension by default.
    :param flat: images are vectors on both sides, as :mod:`zoo.datasets` has them; otherwise ``(C, H, W)``.
    :raises ValueError: for sizes below 1, an unknown activation, or an image that cannot be halved so often.

    References: Radford, Metz and Chintala (2016), Unsupervised representation learning with deep convolutional generative
        adversarial networks.

    Example::

        >>> import torch
        >>> from zoo.networks import convolutional
        >>> encoder, decoder = convolutional(5, (1, 8, 8), channels=(8, 16), features=30)
        >>> encoder(torch.rand(3, 64)).shape, decoder(torch.randn(3, 5)).shape
        (torch.Size([3, 30]), torch.Size([3, 64]))
    """
    _check_sizes((latent_dim, *image_shape, *channels, features, levels))
    factor = 2 ** len(channels)
    if len(image_shape) != 3 or image_shape[1] % factor or image_shape[2] % factor:
        raise ValueError(
            f"image_shape={tuple(image_shape)} must be (channels, height, width), height and width divisible by {factor} "
            f"for {len(channels)} convolutions; use fewer channels or pad the images"
        )
    image_channels, height, width = image_shape
    smallest = (channels[-1], height // factor, width // factor) if channels else (image_channels, height, width)
    size = math.prod(smallest)

    encoder: list[nn.Module] = [nn.Unflatten(-1, tuple(image_shape))] if flat else []
    for before, after in zip((image_channels, *channels), channels):
        encoder += [nn.Conv2d(before, after, 4, stride=2, padding=1), _activation(activation)]
    encoder += [nn.Flatten(-3), nn.Linear(size, features), _activation(activation)]

    decoder: list[nn.Module] = [nn.Linear(latent_dim, features), _activation(activation), nn.Linear(features, size)]
    decoder += [_activation(activation), nn.Unflatten(-1, smallest)]
    outward = (*reversed(channels), image_channels * levels)
    for before, after in pairwise(outward):
        decoder += [nn.ConvTranspose2d(before, after, 4, stride=2, padding=1), _activation(activation)]
    decoder.pop()
    if levels > 1:
        decoder.append(_LevelsLast(levels))
    if flat:
        decoder.append(nn.Flatten(1, 3))
    return nn.Sequential(*encoder), nn.Sequential(*decoder)


class _LevelsLast(nn.Module):
    """From ``(rows, C * K, H, W)`` to ``(rows, C, H, W, K)``."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (-1, self.levels)).movedim(2, -1)


def _activation(name: str) -> nn.Module:
    return ACTIVATIONS[one_of("activation", name, ACTIVATIONS)]()


def _check_sizes(sizes: Sequence[int]) -> None:
    if any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in sizes):
        raise ValueError(f"sizes must be integers of at least 1, got {tuple(sizes)}")


def _check_shape(argument: str, shape: Sequence[int], size: int) -> None:
    if math.prod(shape) != size:
        raise ValueError(f"{argument}={tuple(shape)} has {math.prod(shape)} elements, the layer beside it {size}")
