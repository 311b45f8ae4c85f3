"""Normals that are a diagonal but for a few directions."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

__all__ = ["BentNormal"]

_NO_SHAPE = torch.Size()


class BentNormal(TorchDistribution):
    r"""Normal of :math:`z = \mu + \sigma \odot (I + Q C Q^\top) u`, u standard normal: wider or narrower in r directions.

    A normal of diagonal plus low rank is only ever wider. Density by Woodbury's and Sylvester's identities, in
    :math:`O(D r + r^3)`.

    :param loc: :math:`\mu`, ``(*batch, D)``.
    :param scale: :math:`\sigma`, positive, ``(*batch, D)``.
    :param basis: Q, ``(*batch, D, r)``; its columns need not be orthonormal.
    :param core: C, ``(*batch, r, r)``; zero for a diagonal.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"loc": constraints.real_vector, "scale": constraints.positive}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, loc: Tensor, scale: Tensor, basis: Tensor, core: Tensor, validate_args: bool | None = None) -> None:
        self.loc, self.scale, self.basis, self.core = loc, scale, basis, core
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> BentNormal:
        """Return the same normal in a larger batch."""
        batch = torch.Size(batch_shape)
        loc, scale = (p.expand(batch + p.shape[-1:]) for p in (self.loc, self.scale))
        basis, core = (p.expand(batch + p.shape[-2:]) for p in (self.basis, self.core))
        return BentNormal(loc, scale, basis, core, validate_args=False)

    @property
    def mean(self) -> Tensor:
        """The mean, ``(*batch, D)``."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """Marginal variances, ``(*batch, D)``."""
        turned = self.basis @ self.core
        gram = self.basis.mT @ self.basis
        change = 2.0 * (turned * self.basis).sum(-1) + ((turned @ gram) * turned).sum(-1)
        return self.scale.square() * (1.0 + change)

    def rsample(self, sample_shape: Any = _NO_SHAPE) -> Tensor:
        """Return reparameterised draws, ``(*sample_shape, *batch, D)``."""
        shape = self._extended_shape(sample_shape)
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        inside = self.core @ (self.basis.mT @ noise.unsqueeze(-1))
        return self.loc + self.scale * (noise + (self.basis @ inside).squeeze(-1))

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density in nats."""
        whole = ((value - self.loc) / self.scale).unsqueeze(-1)
        eye = torch.eye(self.core.shape[-1], dtype=self.core.dtype, device=self.core.device)
        inner = eye + self.core @ (self.basis.mT @ self.basis)
        bent = torch.linalg.solve(inner, self.core @ (self.basis.mT @ whole))
        noise = (whole - self.basis @ bent).squeeze(-1)
        log_det = self.scale.log().sum(-1) + torch.linalg.slogdet(inner).logabsdet
        return -0.5 * noise.square().sum(-1) - log_det - 0.5 * self.loc.shape[-1] * math.log(2 * math.pi)
