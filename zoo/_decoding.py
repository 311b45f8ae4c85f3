"""Running a network on the rows of codes and inputs, whatever dimensions of draws stand before them."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from zoo.pixels import PixelLikelihood

__all__ = ["check_rows", "decode_rows", "gaussian", "run_rows"]


def check_rows(name: str, x: Tensor) -> None:
    """Raise ``ValueError`` unless ``x`` has rows and at least one dimension besides."""
    if x.dim() < 2 or len(x) == 0:
        raise ValueError(
            f"{name!r} has shape {tuple(x.shape)}; it must be (rows, *image) with at least one row. A single image: "
            "unsqueeze(0)"
        )


def run_rows(what: str, network: nn.Module, *inputs: Tensor) -> Any:
    """Return a network's answer to rows of one dimension, the last of ``inputs`` being codes ``(..., D)``.

    Draws stand before the rows of codes, ``(S, N, D)``, and networks such as convolutions take ``(rows, ...)`` only; so
    everything before the last dimension becomes rows, and other inputs ``(N, ...)`` are repeated to match.

    :param what: what the network is called in errors.
    :returns: tensors ``(..., *output)``, as the network returns them: one or a pair.
    :raises ValueError: if the answer does not have the rows of the inputs.
    """
    *others, z = inputs
    lead = z.shape[:-1]
    flat = [x.expand(*lead, *x.shape[1:]).flatten(0, len(lead) - 1) for x in others] if lead else others
    answer = network(*flat, z.reshape(-1, z.shape[-1]))
    parts = answer if isinstance(answer, tuple) else (answer,)
    for part in parts:
        rows = lead.numel()
        if not isinstance(part, Tensor) or part.dim() < 2 or len(part) != rows:
            found = tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__
            raise ValueError(
                f"{what} returns {found} for {rows} rows; it must return ({rows}, ...), one output for each row"
            )
    shaped = tuple(part.reshape(*lead, *part.shape[1:]) for part in parts)
    return shaped if isinstance(answer, tuple) else shaped[0]


def decode_rows(decoder: nn.Module, likelihood: PixelLikelihood, *inputs: Tensor) -> Any:
    """Return the distribution of images that a decoder describes, with the image as one event.

    :param inputs: of the decoder; the last are codes ``(..., D)``.
    :raises ValueError: if the decoder's output does not fit the likelihood.
    """
    outputs = run_rows("the decoder", decoder, *inputs)
    if not isinstance(outputs, Tensor):
        raise ValueError("the decoder returns several tensors; it must return one, (rows, *image) or (rows, *image, K)")
    return likelihood(outputs).to_event(len(likelihood.event_shape(outputs.shape[inputs[-1].dim() - 1 :])))


def gaussian(site: str, answer: Any, shape: torch.Size) -> Any:
    """Return the Gaussian of a latent site, of ``shape``, that a network described by ``(loc, scale)``.

    :param answer: what the network returned.
    :raises ValueError: if it is anything else.
    """
    if not (isinstance(answer, tuple) and len(answer) == 2 and all(part.shape == shape for part in answer)):
        found = [tuple(part.shape) for part in answer] if isinstance(answer, tuple) else f"a tensor {tuple(answer.shape)}"
        raise ValueError(
            f"the network of site {site!r} returns {found}; it must return (loc, scale), each {tuple(shape)}, as "
            "zoo.networks.GaussianNetwork does"
        )
    return dist.Normal(*answer).to_event(1)
