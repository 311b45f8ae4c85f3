"""What every model does with shapes: the data plate, and the slot it leaves in vectorised draws.

Pyro vectorises draws (``Predictive(parallel=True)``, ``Trace_ELBO(vectorize_particles=True)``) by an outer plate to the
left of the data plate. A global site then has the shape ``(S, 1, *event)``: the ``1`` is the data plate's slot. A matrix
product puts the data rows to the right of that slot, so the slot has to go before the data plate is entered. (When
``Predictive`` conditions on given draws it hands over ``(S, *event)`` without a slot; both are handled.)
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

__all__ = ["affine", "data_plate", "normal", "squeeze_slot"]


def affine(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``x @ weight + bias``.

    The product is taken on the sampled values themselves, with nothing in between, so that a guide can intercept it (local
    reparameterisation, Kronecker factors).

    :param x: inputs ``(N, in)`` or ``(..., N, in)``.
    :param weight: ``(in, out)`` or ``(..., in, out)``.
    :param bias: ``(out,)`` or ``(..., out)``.
    """
    out = x @ weight
    if bias is None:
        return out
    return out + (bias if bias.dim() == 1 else bias.unsqueeze(-2))


def squeeze_slot(output: Tensor) -> Tensor:
    """Remove the data plate's slot: ``(S, 1, N, K)`` becomes ``(S, N, K)``; ``(N, K)`` is returned as it is."""
    return output.squeeze(-3) if output.dim() > 2 else output


def normal(scale: Tensor, shape: tuple[int, ...]) -> TorchDistributionMixin:
    """Return independent ``Normal(0, scale)`` over an event of the given ``shape``; ``scale`` has only batch dimensions."""
    scale = scale[(..., *(None for _ in shape))]
    batch = scale.shape[: scale.dim() - len(shape)]
    return dist.Normal(torch.zeros_like(scale), scale).expand(batch + torch.Size(shape)).to_event(len(shape))


def data_plate(rows: int, data_size: int | None = None, observed: bool = True) -> pyro.plate:
    """Return the plate ``"data"`` over ``rows`` data points.

    :param rows: how many data points this call sees.
    :param data_size: size of the whole data set when calls see minibatches of it (stock SVI): the log-likelihood is then
        scaled by ``data_size / rows``. Without it the plate has the size of the rows.
    :param observed: whether the values in the plate are observed; predictions are never rescaled.
    :raises ValueError: if a batch has more rows than ``data_size``.
    """
    if data_size is None or not observed:
        return pyro.plate("data", rows)
    if rows > data_size:
        raise ValueError(f"data_size={data_size} but this batch has {rows} rows; pass the size of the whole data set")
    return pyro.plate("data", data_size, subsample=torch.arange(rows))
