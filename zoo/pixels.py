"""Likelihoods of images: from a decoder's outputs to a distribution of pixels, and the check that pixels are of its kind.

A decoder gives one number for each pixel, or several in a last dimension of their own: ``(rows, *image)`` or
``(rows, *image, K)``.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo._checks import check_positive, one_of
from zoo.discretized_logistic import DiscretizedLogistic

__all__ = [
    "LIKELIHOODS",
    "BernoulliPixels",
    "CategoricalPixels",
    "DiscretizedLogisticPixels",
    "GaussianPixels",
    "PixelLikelihood",
    "check_finite",
    "pixel_likelihood",
]


class PixelLikelihood(nn.Module):
    """What the likelihoods of images share.

    :ivar outputs: numbers that a decoder has to give for each pixel; where it is more than one they are its last dimension.
    """

    outputs: int = 1

    def forward(self, outputs: Tensor) -> Any:
        """Return the distribution of every pixel given a decoder's outputs; its batch is the pixels' shape."""
        raise NotImplementedError

    def check(self, name: str, x: Tensor) -> None:
        """Raise ``ValueError`` if pixels are not of the kind that this is a likelihood of; ``name`` is the site's."""
        raise NotImplementedError

    def event_shape(self, output_shape: torch.Size) -> torch.Size:
        """Return the shape of the image that one output of a decoder describes.

        :raises ValueError: if it does not have the numbers needed for each pixel.
        """
        if self.outputs == 1:
            return output_shape
        if len(output_shape) < 2 or output_shape[-1] != self.outputs:
            raise ValueError(
                f"the decoder returns {tuple(output_shape)} for an image, but {type(self).__name__} needs "
                f"{self.outputs} numbers per pixel in a last dimension, (*image, {self.outputs}); append "
                f"torch.nn.Unflatten(-1, (pixels, {self.outputs})) to it"
            )
        return output_shape[:-1]


class BernoulliPixels(PixelLikelihood):
    r"""Black and white pixels, independent given the code.

    .. math:: x_d \sim \operatorname{Bernoulli}(\sigma(o_d))

    Grey levels are no data of a Bernoulli. Its "density" at 0.4 does not integrate to one, so the numbers that come out
    are neither likelihoods nor comparable with anybody's; :meth:`check` refuses them.

    References: Loaiza-Ganem and Cunningham (2019), The continuous Bernoulli: fixing a pervasive error in variational
        autoencoders.
    """

    def forward(self, outputs: Tensor) -> Any:
        """Return a Bernoulli whose logits are the outputs."""
        return dist.Bernoulli(logits=outputs)

    def check(self, name: str, x: Tensor) -> None:
        """Raise ``ValueError`` unless every pixel is 0 or 1."""
        check_finite(name, x)
        _check_float(name, x)
        _check_unit(name, x)
        if bool(((x != 0) & (x != 1)).any()):
            where = tuple(int(i) for i in ((x != 0) & (x != 1)).nonzero()[0])
            raise ValueError(
                f"{name!r} holds grey levels ({float(x[where]):.3g} at {list(where)}), and a Bernoulli likelihood is one of "
                "0 and 1 only: at grey levels it does not integrate to one, so its values are no log-likelihoods and "
                "compare with nobody's. Use black and white pixels, fixed (zoo.datasets.binarized_mnist()) or drawn from "
                "the grey levels (zoo.datasets.mnist(binarize='dynamic')), or keep the grey levels under "
                "likelihood='discretized_logistic'"
            )


class CategoricalPixels(PixelLikelihood):
    r"""Pixels that are one of K levels without an order assumed: integers from 0 to ``K - 1``, independent given the code.

    .. math:: x_d \sim \operatorname{Categorical}(\operatorname{softmax}(o_{d1}, \ldots, o_{dK}))

    :param levels: K, at least 2.
    :raises ValueError: for fewer.

    References: van den Oord, Kalchbrenner and Kavukcuoglu (2016), Pixel recurrent neural networks.
    """

    def __init__(self, levels: int = 256) -> None:
        super().__init__()
        self.outputs = _check_levels(levels)

    def forward(self, outputs: Tensor) -> Any:
        """Return a categorical distribution; its mean is the mean level."""
        return _Levels(logits=outputs)

    def check(self, name: str, x: Tensor) -> None:
        """Raise ``ValueError`` unless every pixel is an integer from 0 to ``levels - 1``."""
        check_finite(name, x)
        if bool(((x < 0) | (x > self.outputs - 1) | (x != x.round())).any()):
            raise ValueError(
                f"{name!r} must hold levels, integers from 0 to {self.outputs - 1}; it holds values from "
                f"{float(x.min()):.3g} to {float(x.max()):.3g}. "
                f"Grey levels in [0, 1] become levels by (x * {self.outputs - 1}).round()"
            )

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        return f"levels={self.outputs}"


class _Scaled(PixelLikelihood):
    """A likelihood with a location and a scale for each pixel."""

    initial_scale: ClassVar[float] = 0.1

    def __init__(self, scale: str | float = "learned", min_scale: float = 1e-2) -> None:
        super().__init__()
        self.scale = (
            one_of("scale", scale, ("decoder", "learned")) if isinstance(scale, str) else check_positive("scale", scale)
        )
        self.min_scale = check_positive("min_scale", min_scale)
        self.outputs = 2 if scale == "decoder" else 1
        if scale == "learned":
            self.log_scale = nn.Parameter(torch.tensor(math.log(self.initial_scale)))

    def loc_and_scale(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return location and scale of every pixel."""
        if self.scale == "decoder":
            return outputs[..., 0], F.softplus(outputs[..., 1]) + self.min_scale
        if self.scale == "learned":
            return outputs, self.log_scale.exp().expand(outputs.shape)
        return outputs, outputs.new_full((), float(self.scale)).expand(outputs.shape)

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        return f"scale={self.scale!r}"


class GaussianPixels(_Scaled):
    r"""Real-valued pixels, or any real data, with independent Gaussian noise.

    .. math:: x_d \sim \mathcal{N}(o_d, s^2)

    :param scale: ``"learned"``: one standard deviation for all pixels, a parameter; ``"decoder"``: the decoder gives a
        second number for each pixel, :math:`s_d = \operatorname{softplus}(o_{d2}) + s_0`; or the known standard deviation in
        units of ``x``.
    :param min_scale: the floor :math:`s_0`. Without one the density of a pixel that never changes has no bound.
    :raises ValueError: for another ``scale``, or a floor that is not positive.

    References: Rybkin, Daniilidis and Levine (2021), Simple and effective VAE training with calibrated decoders.
    """

    def forward(self, outputs: Tensor) -> Any:
        """Return a normal distribution."""
        return dist.Normal(*self.loc_and_scale(outputs))

    def check(self, name: str, x: Tensor) -> None:
        """Raise ``ValueError`` for NaN and infinite values."""
        check_finite(name, x)
        _check_float(name, x)


class DiscretizedLogisticPixels(_Scaled):
    r"""Grey levels :math:`k / (K - 1)` as probabilities of levels, of a logistic noise rounded to them.

    See :class:`~zoo.discretized_logistic.DiscretizedLogistic`. This is the likelihood for images with grey levels: a
    probability, comparable in nats (or bits) per pixel.

    :param levels: K; 256 for images of 8 bits divided by 255, 17 for scikit-learn's digits.
    :param scale: ``"learned"``, ``"decoder"`` or a number, as in :class:`GaussianPixels`.
    :param min_scale: floor of the scales with ``"decoder"``.
    :raises ValueError: for another ``scale``, a floor that is not positive, or fewer than two levels.

    References: Salimans, Karpathy, Chen and Kingma (2017), PixelCNN++.
    """

    def __init__(self, levels: int = 256, scale: str | float = "learned", min_scale: float = 1e-2) -> None:
        super().__init__(scale, min_scale)
        self.levels = _check_levels(levels)

    def forward(self, outputs: Tensor) -> Any:
        """Return a discretised logistic distribution."""
        return DiscretizedLogistic(*self.loc_and_scale(outputs), levels=self.levels)

    def check(self, name: str, x: Tensor) -> None:
        """Raise ``ValueError`` unless every pixel is one of the levels."""
        check_finite(name, x)
        _check_float(name, x)
        _check_unit(name, x)
        steps = x * (self.levels - 1)
        if bool(((steps - steps.round()).abs() > 1e-3).any()):
            raise ValueError(
                f"{name!r} holds values between the levels k / {self.levels - 1} of this likelihood; give the number of "
                "levels, zoo.pixels.DiscretizedLogisticPixels(levels=...), or round to them: "
                f"(x * {self.levels - 1}).round() / {self.levels - 1}"
            )


LIKELIHOODS: dict[str, type[PixelLikelihood]] = {
    "bernoulli": BernoulliPixels,
    "categorical": CategoricalPixels,
    "discretized_logistic": DiscretizedLogisticPixels,
    "gaussian": GaussianPixels,
}


def pixel_likelihood(likelihood: str | PixelLikelihood) -> PixelLikelihood:
    """Return the likelihood of that name with its defaults, or ``likelihood`` itself if it is one.

    :raises ValueError: for an unknown name.
    """
    if isinstance(likelihood, PixelLikelihood):
        return likelihood
    return LIKELIHOODS[one_of("likelihood", likelihood, LIKELIHOODS)]()


def check_finite(name: str, x: Tensor) -> None:
    """Raise ``ValueError`` for NaN and infinite values, naming the first."""
    bad = ~torch.isfinite(x)
    if bool(bad.any()):
        where = [int(i) for i in bad.nonzero()[0]]
        raise ValueError(
            f"{name!r} holds {int(bad.sum())} NaN or infinite values, the first at {where}; drop or impute those rows"
        )


class _Levels(dist.Categorical):
    """A categorical distribution whose mean is that of the level's number."""

    @property
    def mean(self) -> Tensor:
        levels = torch.arange(self.probs.shape[-1], dtype=self.probs.dtype, device=self.probs.device)
        return self.probs @ levels


def _check_levels(levels: int) -> int:
    if isinstance(levels, bool) or not isinstance(levels, int) or levels < 2:
        raise ValueError(f"levels must be an integer of at least 2, got {levels!r}")
    return levels


def _check_float(name: str, x: Tensor) -> None:
    if not x.dtype.is_floating_point:
        raise ValueError(
            f"{name!r} has dtype {x.dtype}; pass x.float(), divided by the largest level if those are grey levels"
        )


def _check_unit(name: str, x: Tensor) -> None:
    low, high = float(x.min()), float(x.max())
    if low < 0 or high > 1:
        raise ValueError(
            f"{name!r} holds pixels from {low:.3g} to {high:.3g}; this likelihood takes pixels in [0, 1]: divide by the "
            "largest level (255 for 8 bits), and undo any standardising"
        )
