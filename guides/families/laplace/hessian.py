"""Products with the Hessian of a function, whatever its operations allow."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from guides.program.vectorise import over_rows

__all__ = ["Hessian", "gradient"]


def gradient(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """Return the gradient of a scalar function of one vector."""
    with torch.enable_grad():
        point = at.detach().requires_grad_()
        return torch.autograd.grad(function(point), point)[0]


class Hessian:
    """The second derivative of a scalar function of one vector, at a point, through its products with vectors.

    :param function: from a vector ``(D,)`` to a scalar.
    :param at: the point.
    :raises RuntimeError, NotImplementedError: from torch, where the function cannot be differentiated twice.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], at: Tensor) -> None:
        self._one_by_one = False
        with torch.enable_grad():
            try:
                # Reverse over reverse: forward mode gives 0-d float32 tensors float64 tangents (seen in torch 2.13).
                self.gradient, pull = torch.func.vjp(torch.func.grad(function), at)[:2]
                self._product = lambda v: pull(v)[0]
            except RuntimeError as error:
                if "functorch" not in str(error):
                    raise
                self._one_by_one = (
                    True  # an operation with a derivative of its own, as Pyro's safe_log, which vmap cannot take
                )
                point = at.detach().requires_grad_()
                (slope,) = torch.autograd.grad(function(point), point, create_graph=True)
                self.gradient = slope.detach()
                self._product = lambda v: torch.autograd.grad(slope, point, v, create_graph=True)[0]

    def __call__(self, direction: Tensor) -> Tensor:
        """Return the product with one vector ``(D,)``."""
        with torch.enable_grad():
            return self._product(direction)

    def rows(self, take: Callable[[Tensor], Tensor], inputs: Tensor, chunk: int) -> Tensor:
        """Return what ``take`` makes of each row of ``inputs``, many at once where that is possible."""
        with torch.enable_grad():
            if self._one_by_one:
                return torch.stack([take(v) for v in inputs])
            found: Tensor = over_rows(take, inputs, chunk, "latents")
            return found
