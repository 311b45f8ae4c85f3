"""L-BFGS of many paths at once: whole tensors, one evaluation of all paths at a time."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from guides.solvers.pathfinder.normals import PathNormals, curvature_of, has_curvature, next_diagonal

__all__ = ["Evaluate", "Paths"]

Evaluate = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From vectors ``(B, D)`` to log densities ``(B,)`` and gradients ``(B, D)``, in float64."""

_ENOUGH = 1e-4  # Armijo's share of the decrease that the slope promises
_FLAT = 0.9  # Wolfe's share of the slope that may be left
_ROUNDING = 1e-13  # of the log density: decreases below it cannot be seen
_TRIALS, _LAST_TRIALS = 30, 5
_AT_THE_MODE = 1e-8  # nats that a step could still gain, by the curvature that is known, ...
_IN_A_ROW = 5  # ... at so many points: what is not known of a narrow valley shows after some


class Paths:
    """The state of P paths downhill on minus a log density; see Nocedal & Wright, *Numerical Optimization*, chapters 3, 7.

    A path goes its own way: in every call of :meth:`advance` each path that is not over tries one point, and goes on from it
    if the weak Wolfe conditions hold there. Points where the density is not finite are too far, like those that are uphill.

    :ivar x: where the paths are, ``(P, D)``; ``f``, ``g``: minus the log density there, and its gradient.
    :ivar over: which have ended; ``stuck``: those that found no way on.
    :ivar iterations: steps that each has taken; ``evaluations``: points that all have tried.
    """

    def __init__(self, evaluate: Evaluate, starts: Tensor, history: int) -> None:
        self._evaluate, (count, size) = evaluate, starts.shape
        zeros = starts.new_zeros(count)
        self.x, self.evaluations = starts.clone(), 0
        self.f, self.g = self._look(starts)
        self.over = ~self._finite(self.f, self.g)
        self.stuck = self.over.clone()
        self.iterations, self._small = torch.zeros(count, dtype=torch.long), torch.zeros(count, dtype=torch.long)
        self._s, self._y = starts.new_zeros(count, history, size), starts.new_zeros(count, history, size)
        self._diagonal = torch.ones_like(starts)
        self._way, self._slope = torch.zeros_like(starts), zeros.clone()
        self._t, self._low, self._high, self._tries = zeros.clone(), zeros.clone(), zeros + math.inf, zeros.clone()
        self._steepest(torch.arange(count))

    def _look(self, points: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = self._evaluate(points)
        self.evaluations += len(points)
        return -value, -gradient

    @staticmethod
    def _finite(f: Tensor, g: Tensor) -> Tensor:
        return torch.isfinite(f) & torch.isfinite(g).all(-1)

    def _steepest(self, index: Tensor) -> None:
        """Send paths down the gradient, with nothing remembered: a first step of length one at most."""
        self._s[index], self._y[index], self._diagonal[index] = 0.0, 0.0, 1.0
        length = self.g[index].norm(dim=-1)
        self._head(index, -self.g[index], (1.0 / length).clamp(max=1.0))

    def _head(self, index: Tensor, way: Tensor, t: Tensor | float) -> None:
        self._way[index], self._slope[index] = way, (way * self.g[index]).sum(-1)
        self._t[index], self._low[index], self._high[index], self._tries[index] = t, 0.0, math.inf, 0.0

    def advance(self) -> tuple[Tensor, PathNormals]:
        """Let every path that is not over try a point.

        :returns: which paths have made a step, ``(M,)``, and the normal that each sees from where it is now: the centre is
            that of the quadratic that the gradient and the remembered curvature describe.
        """
        index = (~self.over).nonzero().squeeze(-1)
        way, t = self._way[index], self._t[index]
        points = self.x[index] + t[:, None] * way
        f, g = self._look(points)
        fine = self._finite(f, g)
        slack = _ROUNDING * self.f[index].abs()
        down = fine & (f <= self.f[index] + _ENOUGH * t * self._slope[index] + slack)
        flat = (g * way).sum(-1) >= _FLAT * self._slope[index]
        self._tries[index] += 1
        at_the_end = (self._small[index] > 0) & torch.isfinite(self._high[index])  # nothing but rounding is left
        exhausted = self._tries[index] >= torch.where(at_the_end, _LAST_TRIALS, _TRIALS)
        taken = down & (flat | exhausted)
        self._bracket(index, down, t)
        moved = index[taken]
        made = self._move(moved, points[taken], f[taken], g[taken])
        self._give_up(index[exhausted & ~taken])
        return made

    def _bracket(self, index: Tensor, down: Tensor, t: Tensor) -> None:
        self._high[index] = torch.where(down, self._high[index], t)
        self._low[index] = torch.where(down, t, self._low[index])
        low, high = self._low[index], self._high[index]
        self._t[index] = torch.where(torch.isinf(high), 2.0 * low, 0.5 * (low + high))

    def _give_up(self, index: Tensor) -> None:
        """Send paths that found no step down the gradient, or end those that went there already, or are at the mode."""
        nothing = (self._s[index] == 0).all(-1).all(-1) | (self._small[index] > 0)
        self.over[index[nothing]] = True
        self.stuck[index[nothing]] = True
        self._steepest(index[~nothing])

    def _move(self, index: Tensor, points: Tensor, f: Tensor, g: Tensor) -> tuple[Tensor, PathNormals]:
        s, y = points - self.x[index], g - self.g[index]
        self.x[index], self.f[index], self.g[index] = points, f, g
        self.iterations[index] += 1
        bent = has_curvature(s, y)
        with_pair = index[bent]
        self._diagonal[with_pair] = next_diagonal(self._diagonal[with_pair], s[bent], y[bent])
        for kept, new in ((self._s, s[bent]), (self._y, y[bent])):
            kept[with_pair] = torch.cat([kept[with_pair][:, 1:], new[:, None]], 1)
        scale, basis, core, fine = curvature_of(self._diagonal[index], self._s[index], self._y[index])
        self._steepest(index[~fine])
        found = PathNormals(points, scale, basis, core)[fine]
        index, points, g = index[fine], points[fine], g[fine]
        step = -found.covariance_times(g)
        gain = -(step * g).sum(-1)
        self._small[index] = torch.where(gain < _AT_THE_MODE, self._small[index] + 1, 0)
        self.over[index] |= self._small[index] >= _IN_A_ROW
        self._head(index, step, 1.0)
        return index, PathNormals(points + step, found.scale, found.basis, found.core)
