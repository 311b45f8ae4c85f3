"""Minimising in a space that its own curvature rounds, by scipy's trust region with products with the Hessian."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import optimize

from guides.density.density import LogDensity
from guides.solvers.fixed_draws import FixedDraws

__all__ = ["Minimum", "minimise"]

_DENSE = 500  # latents, up to which the Hessian at one point is worth its D products
_PER_ROUND = 20  # iterations, after which the curvature is looked at anew
_FLATTEST = 1e-4  # curvature in a direction that is taken for none
_AT_THE_END = 1e-3  # the gradient's norm in the rounded space: about so many standard deviations from the end
_FAR = 1e8  # standard deviations: the longest step
_GAIN = 1e-6  # nats in a round, below which the search has ended, as near as rounding lets it come


@dataclass(frozen=True)
class Minimum:
    """Where the search ended.

    :ivar eta: means and logarithms of standard deviations, ``(2 D,)``; ``value``: minus the bound there, nats.
    :ivar slope: norm of the gradient in the rounded space.
    :ivar iterations: steps of the trust region.
    """

    eta: np.ndarray
    value: float
    slope: float
    iterations: int

    @property
    def reached(self) -> bool:
        """Whether there is nothing left to gain."""
        return self.slope <= _AT_THE_END


def minimise(bound: FixedDraws, density: LogDensity, start: np.ndarray, most: int) -> Minimum:
    """Minimise the bound at fixed draws from a point of the latents, in at most so many iterations.

    The means move along the axes of the density's Hessian at the means, in lengths that its curvature gives, so that
    latents of very different scales, and the strongly correlated, cost no more than others. It is computed anew every 20
    iterations, as the curvature of the start says little about that of the end.
    """
    size, done = bound.size, 0
    dense = size <= _DENSE
    found = Minimum(np.concatenate([start, np.full(size, -1.0)]), np.inf, np.inf, 0)
    if dense:
        steepness = np.abs(np.diagonal(_hessian(bound, density, start)))
        found.eta[size:] = -0.5 * np.log(np.maximum(steepness, _FLATTEST))
    while done < most and not found.reached:
        rounded = _Rounded(bound, density, found.eta, dense)
        newton = float(np.linalg.norm(rounded.value_and_gradient(np.zeros(2 * size))[1]))  # the length of its step
        result = optimize.minimize(
            rounded.value_and_gradient,
            np.zeros(2 * size),
            jac=True,
            hessp=rounded.product,
            method="trust-ncg",
            options={
                "gtol": _AT_THE_END,
                "maxiter": min(_PER_ROUND, most - done),
                "initial_trust_radius": min(max(newton, 1.0), _FAR / 2),
                "max_trust_radius": _FAR,
            },
        )
        done += max(1, int(result.nit))
        before, found = found, Minimum(rounded.place(result.x), float(result.fun), float(np.linalg.norm(result.jac)), done)
        if before.value - found.value < _GAIN:
            break
    return found


class _Rounded:
    """The bound as a function of steps from a point, in units of about a standard deviation."""

    def __init__(self, bound: FixedDraws, density: LogDensity, at: np.ndarray, dense: bool) -> None:
        self._bound, self._at, self._size = bound, at, bound.size
        self._axes = np.exp(at[self._size :])
        if dense:
            curvature, vectors = np.linalg.eigh(_hessian(bound, density, at[: self._size]))
            self._axes = vectors / np.sqrt(np.maximum(np.abs(curvature), _FLATTEST))

    def place(self, step: np.ndarray) -> np.ndarray:
        """Return the point after a step."""
        found: np.ndarray = self._at + self._forward(step)
        return found

    def value_and_gradient(self, step: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the bound and its gradient after a step."""
        value, slope = self._bound.value_and_gradient(self.place(step))
        return value, self._back(slope)

    def product(self, step: np.ndarray, along: np.ndarray) -> np.ndarray:
        """Return the Hessian after a step times a vector."""
        bent = self._back(self._bound.product(self.place(step), self._forward(along)))
        return bent if np.isfinite(bent).all() else along  # scipy would ask for ever

    def _forward(self, step: np.ndarray) -> np.ndarray:
        means, scales = step[: self._size], step[self._size :]
        moved = self._axes @ means if self._axes.ndim == 2 else self._axes * means
        return np.concatenate([moved, np.sqrt(0.5) * scales])

    def _back(self, slope: np.ndarray) -> np.ndarray:
        means, scales = slope[: self._size], slope[self._size :]
        moved = self._axes.T @ means if self._axes.ndim == 2 else self._axes * means
        return np.concatenate([moved, np.sqrt(0.5) * scales])


def _hessian(bound: FixedDraws, density: LogDensity, point: np.ndarray) -> np.ndarray:
    """Return minus the Hessian of the log density at a point; zero where it is not finite."""
    bound.products += bound.size
    found: np.ndarray = np.nan_to_num(-density.hessian(torch.from_numpy(point)).numpy(), nan=0.0, posinf=0.0, neginf=0.0)
    return (found + found.T) / 2
