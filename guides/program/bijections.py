"""Maps from all real numbers that torch lacks: between any bounds, to triangular and to positive definite matrices."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.transforms import Transform

__all__ = ["BoundedTransform", "LowerCholeskyVector", "PositiveDefiniteVector"]


class BoundedTransform(Transform):
    r"""Element by element, from all real numbers to those between two bounds, either of which may be infinite.

    .. math:: x \mapsto x, \quad l + e^x, \quad u - e^x, \quad l + (u - l)\, \sigma(x)
    """

    domain = constraints.real
    codomain = constraints.real
    bijective = True
    sign = 0

    def __init__(self, lower: Tensor, upper: Tensor) -> None:
        super().__init__()
        self.lower, self.upper = lower, upper

    def _cases(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        below, above = torch.isfinite(self.lower), torch.isfinite(self.upper)
        zero = torch.zeros(())
        return below, above, torch.where(below, self.lower, zero), torch.where(above, self.upper, zero)

    def _call(self, x: Tensor) -> Tensor:
        below, above, low, high = self._cases()
        between = low + (high - low) * torch.sigmoid(x)
        one = torch.where(below, low + x.exp(), torch.where(above, high - x.exp(), x))
        return torch.where(below & above, between, one)

    def _inverse(self, y: Tensor) -> Tensor:
        below, above, low, high = self._cases()
        both, some = below & above, below | above
        share = torch.where(both, (y - low) / torch.where(both, high - low, torch.ones(())), 0.5)
        away = torch.where(some & ~both, torch.where(below, y - low, high - y), 1.0)
        return torch.where(both, torch.logit(share), torch.where(some, away.log(), y))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the log derivative, element by element."""
        below, above, low, high = self._cases()
        both = below & above
        width = torch.where(both, high - low, torch.ones(())).log()
        sigmoid = width - torch.nn.functional.softplus(x) - torch.nn.functional.softplus(-x)
        return torch.where(both, sigmoid, torch.where(below | above, x, torch.zeros(())))


class LowerCholeskyVector(Transform):
    """From vectors of n (n + 1) / 2 numbers to lower triangular (n, n) matrices with a positive diagonal.

    The vector holds the triangle row by row, and the logarithms of the diagonal.
    """

    domain = constraints.real_vector
    codomain: Any = constraints.lower_cholesky
    bijective = True

    def _call(self, x: Tensor) -> Tensor:
        size = self._size(x.shape[-1])
        row, column = torch.tril_indices(size, size, device=x.device)
        place = torch.full((size, size), x.shape[-1], device=x.device)
        place[row, column] = torch.arange(x.shape[-1], device=x.device)
        padded = torch.nn.functional.pad(x, (0, 1))
        full = padded.index_select(-1, place.reshape(-1)).unflatten(-1, (size, size))
        eye = torch.eye(size, dtype=torch.bool, device=x.device)
        return torch.where(eye, full.exp(), full)

    def _inverse(self, y: Tensor) -> Tensor:
        size = y.shape[-1]
        row, column = torch.tril_indices(size, size, device=y.device)
        eye = torch.eye(size, dtype=torch.bool, device=y.device)
        full = torch.where(eye, torch.where(eye, y, torch.ones(())).log(), y)
        return full.flatten(-2).index_select(-1, row * size + column)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the sum of the logarithms of the diagonal."""
        return self._log_diagonal(x).sum(-1)

    def _log_diagonal(self, x: Tensor) -> Tensor:
        size = self._size(x.shape[-1])
        steps = torch.arange(1, size + 1, device=x.device)
        return x.index_select(-1, steps * (steps + 1) // 2 - 1)

    @staticmethod
    def _size(length: int) -> int:
        size = (math.isqrt(8 * length + 1) - 1) // 2
        if size * (size + 1) // 2 != length:
            raise ValueError(f"{length} numbers do not fill a triangle")
        return size

    def forward_shape(self, shape: Any) -> torch.Size:
        """Return the shape of the matrices for vectors of a shape."""
        size = self._size(shape[-1])
        return torch.Size((*shape[:-1], size, size))

    def inverse_shape(self, shape: Any) -> torch.Size:
        """Return the shape of the vectors for matrices of a shape."""
        size = shape[-1]
        return torch.Size((*shape[:-2], size * (size + 1) // 2))


class PositiveDefiniteVector(LowerCholeskyVector):
    r"""From vectors of n (n + 1) / 2 numbers to symmetric positive definite matrices :math:`L L^\top`.

    The density of a matrix is one over its lower triangle, as it is for the Wishart distribution.
    """

    codomain: Any = constraints.positive_definite

    def _call(self, x: Tensor) -> Tensor:
        lower = super()._call(x)
        return lower @ lower.mT

    def _inverse(self, y: Tensor) -> Tensor:
        return super()._inverse(torch.linalg.cholesky(y))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        r"""Return :math:`n \log 2 + \sum_{i=1}^n (n - i + 2) \log L_{ii}`."""
        diagonal = self._log_diagonal(x)
        size = diagonal.shape[-1]
        powers = torch.arange(size + 1, 1, -1, dtype=x.dtype, device=x.device)
        return size * math.log(2.0) + (powers * diagonal).sum(-1)
