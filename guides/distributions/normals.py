"""Normals over a vector whose covariance has structure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pyro.distributions import LowRankMultivariateNormal
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution, constraints

__all__ = ["Block", "BlockNormal", "LowRankNormal"]


_NO_SHAPE = torch.Size()


@dataclass(frozen=True)
class Block:
    """One block of coordinates that vary together.

    :ivar name: for messages and parameter names.
    :ivar index: the coordinates, shape ``(d,)``.
    :ivar kind: ``"dense"`` (a lower Cholesky factor ``(d, d)`` of the covariance), ``"diagonal"`` (standard deviations
        ``(d,)``), ``"kron"`` (eigenvectors ``(m, m)`` and ``(n, n)`` of both sides and standard deviations ``(m, n)`` in
        that basis), or ``"fixed"`` (no factors, no variance).
    :ivar shape: of the site, for ``"kron"``.
    """

    name: str
    index: Tensor
    kind: str
    shape: tuple[int, ...] = ()

    @property
    def factor_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the factors that describe the block's covariance."""
        d = len(self.index)
        if self.kind == "kron":
            m, n = self.shape
            return (m, m), (n, n), (m, n)
        return {"dense": ((d, d),), "diagonal": ((d,),), "fixed": ()}[self.kind]


class BlockNormal(TorchDistribution):
    r"""Normal with mean ``loc`` and a covariance of independent blocks.

    :param loc: mean, shape ``(D,)``.
    :param blocks: a partition of the coordinates.
    :param factors: per block, tensors of the block's ``factor_shapes``.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"loc": constraints.real_vector}
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        loc: Tensor,
        blocks: tuple[Block, ...],
        factors: tuple[tuple[Tensor, ...], ...],
        validate_args: bool | None = None,
    ) -> None:
        self.loc = loc
        self.blocks = blocks
        self.factors = factors
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> BlockNormal:
        """Return the distribution with its mean expanded to ``batch_shape``."""
        return BlockNormal(self.loc.expand(*batch_shape, self.loc.shape[-1]), self.blocks, self.factors, False)

    @property
    def mean(self) -> Tensor:
        """The mean, shape ``(D,)``."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """Marginal variances, shape ``(D,)``."""
        out = torch.zeros_like(self.loc)
        for block, factors in zip(self.blocks, self.factors):
            if block.kind == "dense":
                out = out.index_copy(-1, block.index, factors[0].square().sum(-1))
            elif block.kind == "diagonal":
                out = out.index_copy(-1, block.index, factors[0].square())
            elif block.kind == "kron":
                left, right, scale = factors
                out = out.index_copy(-1, block.index, (left.square() @ scale.square() @ right.square().T).reshape(-1))
        return out

    @property
    def covariance_matrix(self) -> Tensor:
        """The covariance, shape ``(D, D)``."""
        out = self.loc.new_zeros(self.loc.shape[-1], self.loc.shape[-1])
        for block, factors in zip(self.blocks, self.factors):
            if block.kind == "dense":
                part = factors[0] @ factors[0].T
            elif block.kind == "diagonal":
                part = factors[0].square().diag()
            elif block.kind == "kron":
                left, right, scale = factors
                columns = torch.einsum("am,bn,mn->abmn", left, right, scale).reshape(len(block.index), -1)
                part = columns @ columns.T
            else:
                continue
            out[block.index[:, None], block.index] = part
        return out

    def covariance_times(self, vector: Tensor) -> Tensor:
        """Return the product of the covariance and a vector ``(D,)``, without forming the matrix."""
        out = torch.zeros_like(self.loc)
        for block, factors in zip(self.blocks, self.factors):
            v = vector[block.index]
            if block.kind == "dense":
                part = factors[0] @ (factors[0].T @ v)
            elif block.kind == "diagonal":
                part = factors[0].square() * v
            elif block.kind == "kron":
                left, right, scale = factors
                part = (left @ (scale.square() * (left.T @ v.reshape(block.shape) @ right)) @ right.T).reshape(-1)
            else:
                continue
            out = out.index_copy(-1, block.index, part)
        return out

    def rsample(self, sample_shape: Any = _NO_SHAPE) -> Tensor:
        """Return reparameterised draws, shape ``(*sample_shape, D)``."""
        shape = self._extended_shape(sample_shape)
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        value = self.loc.expand(shape)
        for block, factors in zip(self.blocks, self.factors):
            if block.kind == "fixed":
                continue
            e = noise.index_select(-1, block.index)
            if block.kind == "dense":
                step = e @ factors[0].T
            elif block.kind == "diagonal":
                step = e * factors[0]
            else:
                left, right, scale = factors
                step = (left @ (e.reshape(*e.shape[:-1], *block.shape) * scale) @ right.T).flatten(-2)
            value = value.index_add(-1, block.index, step)
        return value

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density in nats over the coordinates that vary."""
        total = value.new_zeros(value.shape[:-1])
        for block, factors in zip(self.blocks, self.factors):
            if block.kind == "fixed":
                continue
            d = (value - self.loc).index_select(-1, block.index)
            if block.kind == "dense":
                # Under vmap a triangular solve copies the factor for every draw; its inverse is computed once for all.
                eye = torch.eye(len(block.index), dtype=torch.float64, device=d.device)
                inverse = torch.linalg.solve_triangular(factors[0].double(), eye, upper=False)
                e = (d.double() @ inverse.mT).to(d.dtype)
                log_det = factors[0].diagonal(dim1=-2, dim2=-1).log().sum(-1)
            elif block.kind == "diagonal":
                e, log_det = d / factors[0], factors[0].log().sum(-1)
            else:
                left, right, scale = factors
                e = ((left.T @ d.reshape(*d.shape[:-1], *block.shape) @ right) / scale).flatten(-2)
                log_det = scale.log().sum()
            total = total - 0.5 * e.square().sum(-1) - log_det - 0.5 * len(block.index) * math.log(2 * math.pi)
        return total


class LowRankNormal(LowRankMultivariateNormal):
    r"""Torch's normal with covariance :math:`W W^\top + \mathrm{diag}(d)`, without a check of its factorisation.

    Torch raises an error for parameters that are not finite, in the middle of a step. Here the density becomes NaN, as
    those of other distributions do, so that a fit can stop at its last finite parameters.

    :param loc: mean, shape ``(*batch, D)``.
    :param cov_factor: W, shape ``(*batch, D, r)``.
    :param cov_diag: d, shape ``(*batch, D)``.
    """

    def __init__(self, loc: Tensor, cov_factor: Tensor, cov_diag: Tensor, validate_args: bool | None = None) -> None:
        self.loc, self.cov_factor, self.cov_diag = loc, cov_factor, cov_diag
        self._unbroadcasted_cov_factor, self._unbroadcasted_cov_diag = cov_factor, cov_diag
        scaled = cov_factor.mT / cov_diag.unsqueeze(-2)
        capacitance = scaled @ cov_factor + torch.eye(cov_factor.shape[-1], dtype=loc.dtype, device=loc.device)
        self._capacitance_tril = torch.linalg.cholesky_ex(capacitance).L
        Distribution.__init__(self, loc.shape[:-1], loc.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> LowRankNormal:
        """Return the same normal with another batch shape."""
        batch = torch.Size(batch_shape)
        loc, diagonal = self.loc.expand(batch + self.loc.shape[-1:]), self.cov_diag.expand(batch + self.loc.shape[-1:])
        return type(self)(loc, self.cov_factor.expand(batch + self.cov_factor.shape[-2:]), diagonal, validate_args=False)
