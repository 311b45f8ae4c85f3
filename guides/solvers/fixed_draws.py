"""The evidence lower bound of independent normals over draws that stay the same: a function, not an expectation."""

from __future__ import annotations

import math

import numpy as np
import torch

from guides.density.density import LogDensity

__all__ = ["FixedDraws", "standard_draws"]

_AT_ONCE = 2**22  # numbers of Hessians held at a time


def standard_draws(count: int, size: int, matched: bool, seed: int) -> np.ndarray:
    """Return draws of a standard normal, ``(count, size)``.

    :param matched: in pairs z, -z, and every coordinate scaled to a mean square of 1.
    """
    source = np.random.default_rng([seed % 2**63, 2])
    if not matched:
        return source.standard_normal((count, size))
    half = source.standard_normal((count // 2, size))
    half /= np.sqrt(np.square(half).mean(0))
    return np.concatenate([half, -half])


class FixedDraws:
    r"""Minus the evidence lower bound at fixed draws, of :math:`\eta = (\mu, \log \sigma)`, 2 D numbers, in nats.

    .. math::
        f(\eta) = -\frac{1}{M} \sum_m \log \pi(\mu + \sigma \odot z_m) - \sum_d \log \sigma_d - \frac{D}{2} \log 2 \pi e

    It is infinite where a density is not finite. Counts what it asks of the density.

    :ivar gradients: evaluations of the density's gradient so far.
    :ivar products: products of its Hessian with a vector so far.
    """

    def __init__(self, density: LogDensity, noise: np.ndarray) -> None:
        self._density, self._noise = density, noise
        self.size = noise.shape[1]
        self._last: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
        self.gradients = 0
        self.products = 0

    def points(self, eta: np.ndarray) -> np.ndarray:
        """Return the draws in the space of the latents, ``(M, D)``."""
        with np.errstate(over="ignore"):
            drawn: np.ndarray = eta[: self.size] + np.exp(eta[self.size :]) * self._noise
        return drawn

    def value_and_gradient(self, eta: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the value and its gradient ``(2 D,)``, which is zero where the value is infinite."""
        values, slopes = self._evaluate(eta)
        if not (np.isfinite(values).all() and np.isfinite(slopes).all()):
            return math.inf, np.zeros_like(eta)
        rho = eta[self.size :]
        value = -values.mean() - rho.sum() - 0.5 * self.size * math.log(2 * math.pi * math.e)
        return float(value), self._by_draw(rho, slopes).mean(0)

    def by_draw(self, eta: np.ndarray) -> np.ndarray:
        """Return the gradient of each draw's part, ``(M, 2 D)``; their mean is the gradient."""
        return self._by_draw(eta[self.size :], self._evaluate(eta)[1])

    def product(self, eta: np.ndarray, vector: np.ndarray) -> np.ndarray:
        """Return the Hessian times a vector, ``(2 D,)``."""
        rho, along = eta[self.size :], vector[self.size :]
        step = self._noise * np.exp(rho)
        points, slopes = torch.from_numpy(self.points(eta)), self._evaluate(eta)[1]
        bent = self._density.hessian_product(points, torch.from_numpy(vector[: self.size] + step * along)).numpy()
        self.products += len(points)
        second = bent * step + slopes * step * along
        return -np.concatenate([bent.mean(0), second.mean(0)])

    def hessian(self, eta: np.ndarray) -> np.ndarray:
        """Return the Hessian, ``(2 D, 2 D)``: M D products with the density's."""
        d, step = self.size, self._noise * np.exp(eta[self.size :])
        points, slopes = torch.from_numpy(self.points(eta)), self._evaluate(eta)[1]
        self.products += len(points) * d
        found = np.zeros((2 * d, 2 * d))
        few = max(1, _AT_ONCE // d**2)
        for first in range(0, len(points), few):
            part = slice(first, first + few)
            bent = self._density.hessian(points[part]).numpy()
            found[:d, :d] += bent.sum(0)
            found[:d, d:] += np.einsum("mij,mj->ij", bent, step[part])
            found[d:, d:] += np.einsum("mij,mi,mj->ij", bent, step[part], step[part])
        found /= -len(points)
        found[d:, d:] -= np.diag((slopes * step).mean(0))
        found[d:, :d] = found[:d, d:].T
        whole: np.ndarray = (found + found.T) / 2
        return whole

    def _evaluate(self, eta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return log densities ``(M,)`` and their gradients ``(M, D)`` at the draws; those of the last call are kept."""
        if self._last is not None and np.array_equal(self._last[0], eta):
            return self._last[1], self._last[2]
        points = self.points(eta)
        found = np.full(len(points), -math.inf), np.zeros_like(points)
        if np.isfinite(points).all():
            values, slopes = self._density.value_and_gradient(points)
            self.gradients += len(points)
            found = values.numpy(), slopes.numpy()
        self._last = (eta.copy(), *found)
        return found

    def _by_draw(self, rho: np.ndarray, slopes: np.ndarray) -> np.ndarray:
        step = self._noise * np.exp(rho)
        return -np.concatenate([slopes, slopes * step + 1.0], 1)
