"""Completing images: what is given, what is asked for, and putting them together again."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["UNKNOWN", "Completion", "middle_columns", "quadrants"]

UNKNOWN = -1.0


@dataclass(frozen=True)
class Completion:
    """Images with pixels taken away, and those pixels.

    :param inputs: the images, with :data:`UNKNOWN` (-1) where a pixel is asked for; the shape of the images, ``(N, ...)``.
    :param targets: the pixels asked for, ``(N, U)``, row by row of the image.
    :param unknown: which pixels of one image are asked for, boolean, the shape of one image.

    Example::

        >>> import torch, zoo
        >>> task = zoo.datasets.quadrants(zoo.datasets.digits_images().x, given=2)
        >>> task.inputs.shape, task.targets.shape, torch.equal(task.assemble(task.targets), zoo.datasets.digits_images().x)
        (torch.Size([1797, 64]), torch.Size([1797, 32]), True)
    """

    inputs: Tensor = field(repr=False)
    targets: Tensor = field(repr=False)
    unknown: Tensor = field(repr=False)

    def assemble(self, values: Tensor, rows: Tensor | slice = slice(None)) -> Tensor:
        """Return whole images: what was given, and ``values`` where it was not.

        :param values: ``(..., n, U)`` for the ``n`` images of ``rows``, with any dimensions of draws before.
        :param rows: which of the images; all by default.
        :returns: ``(..., n, *image)``.
        :raises ValueError: if ``values`` has another number of pixels or images.
        """
        inputs = self.inputs[rows].flatten(1)
        if values.dim() < 2 or tuple(values.shape[-2:]) != (len(inputs), self.targets.shape[1]):
            raise ValueError(
                f"values has shape {tuple(values.shape)}; {len(inputs)} images lack {self.targets.shape[1]} pixels each, so "
                f"it must be (..., {len(inputs)}, {self.targets.shape[1]})"
            )
        whole = inputs.to(values).expand(*values.shape[:-1], -1).clone()
        whole[..., self.unknown.flatten()] = values
        return whole.unflatten(-1, self.unknown.shape)


def quadrants(images: Tensor, given: int = 1) -> Completion:
    """Give one, two or three quarters of each image and ask for the rest.

    The protocol of Pyro's tutorial on conditional VAEs: given are the bottom left quarter, then also the top left, then also
    the top right.

    :param images: ``(N, height, width)``, with channels ``(N, C, height, width)``, or flat ``(N, pixels)`` of square images.
    :param given: 1, 2 or 3.
    :raises ValueError: for another number, or flat images that are not square.

    References:
        Sohn, Lee and Yan (2015), Learning structured output representation using deep conditional generative models.
        The Pyro tutorial "Conditional variational auto-encoder", pyro.ai/examples/cvae.html.

    Example::

        >>> import torch
        >>> from zoo.datasets import quadrants
        >>> quadrants(torch.arange(16.0).reshape(1, 4, 4), given=1).inputs[0]
        tensor([[-1., -1., -1., -1.],
                [-1., -1., -1., -1.],
                [ 8.,  9., -1., -1.],
                [12., 13., -1., -1.]])
    """
    if given not in (1, 2, 3):
        raise ValueError(f"given={given!r} quadrants: it must be 1, 2 or 3")
    height, width = _height_and_width(images)
    row, column = torch.arange(height).unsqueeze(1) >= height // 2, torch.arange(width) < width // 2
    known = row & column  # bottom left
    if given >= 2:
        known = column.expand(height, width)
    if given == 3:
        known = known | ~row
    return _completion(images, ~known)


def middle_columns(images: Tensor, columns: int = 2) -> Completion:
    """Give the columns in the middle of each image and ask for the rest.

    :param images: as for :func:`quadrants`.
    :param columns: how many, centred; an odd rest leaves one column more on the right.
    :raises ValueError: for fewer than one column, or all of them.

    References: Doersch (2016), Tutorial on variational autoencoders, section 4.2.

    Example::

        >>> import torch
        >>> from zoo.datasets import middle_columns
        >>> middle_columns(torch.arange(8.0).reshape(1, 2, 4)).inputs[0]
        tensor([[-1.,  1.,  2., -1.],
                [-1.,  5.,  6., -1.]])
    """
    height, width = _height_and_width(images)
    if not 1 <= columns < width:
        raise ValueError(f"columns={columns} of images {width} wide: give at least 1 and leave at least 1 to ask for")
    first = (width - columns) // 2
    place = torch.arange(width)
    return _completion(images, ~((place >= first) & (place < first + columns)).expand(height, width))


def _height_and_width(images: Tensor) -> tuple[int, int]:
    if images.dim() in (3, 4):
        return images.shape[-2], images.shape[-1]
    side = math.isqrt(images.shape[-1]) if images.dim() == 2 else 0
    if not side or side * side != images.shape[-1]:
        raise ValueError(
            f"images has shape {tuple(images.shape)}; pass (N, height, width), (N, C, height, width), or "
            "(N, pixels) of squares"
        )
    return side, side


def _completion(images: Tensor, unknown: Tensor) -> Completion:
    unknown = unknown.flatten() if images.dim() == 2 else unknown.expand(images.shape[1:])
    unknown = unknown.to(images.device)
    inputs = torch.where(unknown, images.new_full((), UNKNOWN), images)
    return Completion(inputs, images.flatten(1)[:, unknown.flatten()], unknown)
