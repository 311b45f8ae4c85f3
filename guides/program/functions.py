"""Gradients that are written by hand, in the form that :mod:`torch.func` can follow.

PyTorch's draws from a Dirichlet or a Beta, and Pyro's logarithm with a bounded slope, are autograd functions of the old
form, which neither ``vmap`` nor ``torch.func.grad`` takes: whatever used them ran eagerly, one draw after the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro.ops import special
from torch import Tensor
from torch.autograd import Function
from torch.distributions import dirichlet

__all__ = ["followable"]


class _Slope(Function):
    """PyTorch's kernel of the derivatives of a draw, which takes any leading dimensions, but has no rule for ``vmap``."""

    @staticmethod
    def forward(draw: Tensor, concentration: Tensor, total: Tensor) -> Tensor:
        return torch._dirichlet_grad(draw, concentration, total)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Keep nothing: there is no second derivative."""

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *tensors: Tensor) -> tuple[Tensor, int]:
        first = [t.unsqueeze(0) if d is None else t.movedim(d, 0) for t, d in zip(tensors, in_dims)]
        shape = torch.broadcast_shapes(*(t.shape for t in first))
        return _Slope.apply(*(t.expand(shape).contiguous() for t in first)), 0


class _Dirichlet(Function):
    """A draw from a Dirichlet with its pathwise gradient, by PyTorch's own kernels."""

    generate_vmap_rule = True

    @staticmethod
    def forward(concentration: Tensor) -> Tensor:
        return torch._sample_dirichlet(concentration)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(output, inputs[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        draw, concentration = ctx.saved_tensors
        total = concentration.sum(-1, True).expand_as(concentration)
        slope: Tensor = _Slope.apply(draw, concentration, total)
        return slope * (grad - (draw * grad).sum(-1, True))


class _SafeLog(Function):
    """The logarithm, with a slope that is bounded near zero."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.log()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad / x.clamp(min=torch.finfo(x.dtype).eps)


_OURS: tuple[tuple[Any, str, type[Function]], ...] = ((dirichlet, "_Dirichlet", _Dirichlet), (special, "_SafeLog", _SafeLog))


@contextmanager
def followable() -> Iterator[None]:
    """Inside the block, :mod:`torch.func` vectorises and differentiates such functions; their numbers are the same."""
    before = [(module, name, getattr(module, name)) for module, name, _ in _OURS]
    for module, name, function in _OURS:
        setattr(module, name, function)
    try:
        yield
    finally:
        for module, name, function in before:
            setattr(module, name, function)
