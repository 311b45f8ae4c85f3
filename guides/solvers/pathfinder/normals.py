"""Normals whose covariance is the inverse Hessian that L-BFGS sees: a diagonal with a change in a few directions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["PathNormals", "curvature_of", "has_curvature", "next_diagonal"]

_TINY = 1e-12  # of |s| |y|: pairs of less curvature are rounding


@dataclass(frozen=True)
class PathNormals:
    r"""A batch of normals over D numbers, :math:`z = \mu + \sigma \odot (u + Q (L - I) Q^\top u)` for standard normal u.

    :ivar loc: :math:`\mu`, ``(P, D)``.
    :ivar scale: :math:`\sigma`, ``(P, D)``.
    :ivar basis: Q, orthonormal columns, ``(P, D, r)``.
    :ivar core: L, lower triangular, ``(P, r, r)``.
    """

    loc: Tensor
    scale: Tensor
    basis: Tensor
    core: Tensor

    def __getitem__(self, index: Tensor | slice) -> PathNormals:
        return PathNormals(self.loc[index], self.scale[index], self.basis[index], self.core[index])

    def put(self, index: Tensor, other: PathNormals) -> None:
        """Put other normals in the place of some."""
        self.loc[index], self.scale[index] = other.loc, other.scale
        self.basis[index], self.core[index] = other.basis, other.core

    def draws(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return draws made of standard normal noise ``(K, P, D)`` or ``(K, 1, D)``, and log q of each, ``(K, P)``."""
        inside = torch.einsum("pdr,kpd->kpr", self.basis, noise.expand(-1, len(self.loc), -1))
        bent = torch.einsum("prs,kps->kpr", self.core, inside) - inside
        z = self.loc + self.scale * (noise + torch.einsum("pdr,kpr->kpd", self.basis, bent))
        return z, self._normaliser - 0.5 * noise.square().sum(-1).expand(-1, len(self.loc))

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log q of every normal at each vector of ``z``, ``(N, D)``, shape ``(N, P)``."""
        whole = (z[:, None] - self.loc) / self.scale
        inside = torch.einsum("pdr,npd->npr", self.basis, whole)
        bent = torch.linalg.solve_triangular(self.core, inside.permute(1, 2, 0), upper=False).permute(2, 0, 1)
        square = (whole - torch.einsum("pdr,npr->npd", self.basis, inside)).square().sum(-1) + bent.square().sum(-1)
        return self._normaliser - 0.5 * square

    def covariance_times(self, vector: Tensor) -> Tensor:
        """Return the covariance of each times a vector of each, ``(P, D)``."""
        inner = vector * self.scale
        inside = torch.einsum("pdr,pd->pr", self.basis, inner)
        bent = torch.einsum("prs,pqs,pq->pr", self.core, self.core, inside) - inside
        return self.scale * (inner + torch.einsum("pdr,pr->pd", self.basis, bent))

    def deviations(self) -> Tensor:
        """Return the standard deviation of every coordinate, ``(P, D)``."""
        square = self.core @ self.core.mT - torch.eye(self.core.shape[-1], dtype=self.core.dtype)
        change = torch.einsum("pdr,prs,pds->pd", self.basis, square, self.basis)
        return self.scale * (1.0 + change).clamp(min=torch.finfo(change.dtype).tiny).sqrt()

    def tril(self) -> Tensor:
        """Return the lower Cholesky factor of the covariance, ``(P, D, D)``."""
        change = self.core - torch.eye(self.core.shape[-1], dtype=self.core.dtype)
        root = torch.eye(self.loc.shape[-1], dtype=self.loc.dtype) + self.basis @ change @ self.basis.mT
        upper = torch.linalg.qr((self.scale[..., None] * root).mT).R
        sign = upper.diagonal(dim1=-2, dim2=-1).sign()
        return (sign[..., None] * upper).mT

    @property
    def _normaliser(self) -> Tensor:
        """Log density at the mean, ``(P,)``."""
        log_det = self.scale.log().sum(-1) + self.core.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return -log_det - 0.5 * self.loc.shape[-1] * math.log(2 * math.pi)


def next_diagonal(diagonal: Tensor, s: Tensor, y: Tensor) -> Tensor:
    r"""Return the diagonal that L-BFGS starts from, ``(P, D)``, after a step s along which the gradient changed by y.

    .. math::
        \frac1{\alpha'} = \frac{a}{b\,\alpha} + \frac{y^2}{b} - \frac{a\, s^2}{b\, c\, \alpha^2}, \qquad
        a = y^\top \mathrm{diag}(\alpha)\, y, \quad b = y^\top s, \quad c = s^\top \mathrm{diag}(\alpha)^{-1} s

    the diagonal of a BFGS update (Gilbert & Lemaréchal 1989), which gives every coordinate a scale of its own.
    """
    a = (diagonal * y.square()).sum(-1, keepdim=True)
    b = (y * s).sum(-1, keepdim=True)
    c = (s.square() / diagonal).sum(-1, keepdim=True)
    inverse = a / (b * diagonal) * (1.0 - s.square() / (c * diagonal)).clamp(min=0.0) + y.square() / b
    found = 1.0 / inverse
    good = torch.isfinite(found) & (found > 0)
    return torch.where(good, found, diagonal)


def has_curvature(s: Tensor, y: Tensor) -> Tensor:
    """Tell which steps have curvature above rounding, so that they may enter an update, ``(P,)``."""
    product = (s * y).sum(-1)
    return torch.isfinite(product) & (product > _TINY * s.norm(dim=-1) * y.norm(dim=-1)) & (product > 0)


def curvature_of(diagonal: Tensor, s: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""Return the inverse Hessian of L-BFGS as factors, and which of them exist.

    The compact form of Byrd, Nocedal & Schnabel (1994) in the space scaled by the diagonal, where with :math:`s^\top y = 1`
    for all pairs and :math:`R_{ij} = s_i^\top y_j` for i up to j

    .. math::
        H = I + W \begin{pmatrix} R^{-\top} (I + Y^\top Y) R^{-1} & -R^{-\top} \\ -R^{-1} & 0 \end{pmatrix} W^\top,
        \qquad W = (S \;\; Y)

    is :math:`Q L L^\top Q^\top` inside the span of W, whose orthonormal basis is Q, and one outside.

    :param diagonal: ``(P, D)``; ``s``, ``y``: the pairs, oldest first, ``(P, J, D)``, both zero where there is none.
    :returns: scale ``(P, D)``, basis ``(P, D, r)``, core ``(P, r, r)``, and which are positive definite, ``(P,)``.
    """
    scale = diagonal.sqrt()
    product = (s * y).sum(-1, keepdim=True)
    empty = product <= 0
    unit = torch.where(empty, 0.0, product.clamp(min=torch.finfo(s.dtype).tiny).rsqrt())
    s, y = s * unit / scale[:, None], y * unit * scale[:, None]
    upper = (s @ y.mT).triu() + torch.diag_embed(empty.squeeze(-1).to(s.dtype))
    eye = torch.eye(s.shape[1], dtype=s.dtype)
    inverse = torch.linalg.solve_triangular(upper, eye.expand_as(upper), upper=True)
    corner = inverse.mT @ (eye + y @ y.mT) @ inverse
    middle = torch.cat([torch.cat([corner, -inverse.mT], -1), torch.cat([-inverse, torch.zeros_like(inverse)], -1)], -2)
    basis, triangle = torch.linalg.qr(torch.cat([s, y], 1).mT)
    square = triangle @ middle @ triangle.mT + torch.eye(basis.shape[-1], dtype=s.dtype)
    fine = torch.isfinite(square).all(-1).all(-1) & torch.isfinite(basis).all(-1).all(-1)
    square = torch.where(fine[:, None, None], 0.5 * (square + square.mT), torch.eye(basis.shape[-1], dtype=s.dtype))
    core, failed = torch.linalg.cholesky_ex(square)
    return scale, basis, core, fine & (failed == 0)
