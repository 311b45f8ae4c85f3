"""Pathfinder: a mixture of normals, each the best of those that L-BFGS passes on its way to a mode."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from guides.density.density import LogDensity
from guides.errors import check_whole
from guides.families.base import FlatFamily
from guides.registries import solvers
from guides.solvers.base import Solution, Solver
from guides.solvers.pathfinder.mixture import PathMixture, values_of
from guides.solvers.pathfinder.paths import Found, find_paths

__all__ = ["Pathfinder"]


@dataclass(frozen=True)
class _Mixed(Solution):
    """The mixture that was found; ``loc`` and ``root`` are those of its heaviest component.

    :ivar mixture: parameters of the guide.
    """

    mixture: dict[str, Tensor] | None = None

    def values(self) -> dict[str, Tensor]:
        """Return the parameters of the mixture."""
        assert self.mixture is not None
        return self.mixture


@solvers.register("pathfinder")
@dataclass(frozen=True, kw_only=True)
class Pathfinder(Solver):
    r"""Multi-path Pathfinder: the best of the normals that quasi-Newton paths to the modes pass, in a mixture.

    L-BFGS climbs the log density :math:`\log \pi` of the unconstrained latents from many starts at once. At every point
    :math:`z_l` of a path, the gradient and the inverse Hessian :math:`H_l` that L-BFGS has gathered on its way (a diagonal,
    changed in a few directions) describe a normal,

    .. math:: q_l = \mathcal{N}\bigl(z_l + H_l \nabla \log \pi(z_l),\; H_l\bigr)

    and each path p keeps the one with the largest evidence lower bound :math:`\mathbb{E}_{q_l} \log (\pi / q_l)`, which is
    not the last where a density has its mode far from its mass. The guide is their mixture,
    :math:`q = \sum_p w_p q_p` with :math:`w_p \propto \exp \mathbb{E}_{q_p} \log (\pi / \bar q)`, where :math:`\bar q` has
    equal weights: paths to one mode share it equally, modes that are apart get what each holds, and a path that led nowhere
    gets nothing. (The paper weighs all paths equally and leaves the rest to the resampling.)
    Draws are resampled by their Pareto-smoothed weights, the last step of the paper, by
    ``posterior.sample(corrected=True)``; ``posterior.diagnose()`` says whether that is needed, and whether it is enough.

    **When:** the first guide to try on continuous latents: some hundred gradients and nothing to tune, at home
    in badly scaled and correlated spaces; a start for other methods. **When not:** funnels (it says so: reparametrise), and
    posteriors that no mixture of a few normals resembles.

    :param paths: starts, uniform within 2 of the medians of the prior in the unconstrained space, and components.
    :param max_iterations: steps of each path, at most. A path also ends at a mode, and 50 steps after its best normal.
    :param history: steps whose curvature is remembered; by default 4 D, between 10 and 100, and fewer from 200 latents on.
    :param elbo_draws: by which the evidence lower bound of each normal is estimated, the same for all.
    :raises OptionError: for a value that makes no sense.
    :raises NonFiniteLossError: if the density is finite at no start, or no normal has a finite bound.
    :raises UnsupportedModelError: for a model with parameters to be trained, or random beside its sites.

    ``posterior.info`` holds ``gradients`` (evaluations by L-BFGS, of all paths), ``densities`` (evaluations at draws, by
    which normals are chosen and weighed), and for each path that found a normal ``weights``, ``elbo`` (nats) and
    ``iterations`` up to it.

    References: Zhang, Carpenter, Gelman, Vehtari (2022), *Pathfinder: parallel quasi-Newton variational inference*, JMLR 23,
    https://jmlr.org/papers/v23/21-0889.html; Gilbert & Lemaréchal (1989), *Some numerical experiments with variable-storage
    quasi-Newton algorithms* (the diagonal).

    Example::

        >>> import pyro, pyro.distributions as dist, torch, guides
        >>> def model(x, y):
        ...     b = pyro.sample("b", dist.Normal(0.0, 100.0).expand([2]).to_event(1))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("y", dist.Normal(b[0] + b[1] * x, 1.0), obs=y)
        >>> x = torch.linspace(1990.0, 2020.0, 31)  # years, which make the two coefficients all but one
        >>> posterior = guides.fit(model, "pathfinder", x, 0.1 * (x - 2000))
        >>> b = posterior.sample(4000)["b"]
        >>> # 0.0861 in closed form: the prior draws the intercept of -200 towards 0
        >>> abs(float(b[:, 1].mean()) - 0.0861) < 0.002, float(torch.corrcoef(b.T)[0, 1]) < -0.99
        (True, True)
        >>> posterior.info[0]["gradients"] < 1000
        True
    """

    paths: int = 8
    max_iterations: int = 500
    history: int | None = None
    elbo_draws: int = 10

    def __post_init__(self) -> None:
        for name in ("paths", "max_iterations", "elbo_draws"):
            check_whole(name, getattr(self, name), least=1)
        if self.history is not None:
            check_whole("history", self.history, least=1)

    def guide(self, model: Callable[..., object]) -> FlatFamily:
        """Return a mixture with a component for each path."""
        return PathMixture(model, self.paths, self.history)

    def run(self, density: LogDensity, start: np.ndarray, seed: int) -> Solution:
        """Follow the paths and weigh their normals."""
        found = self.find(density, seed)
        best = found.normals[torch.tensor([found.best])]
        farthest, many = int(found.iterations.max()), len(found.log_weights)
        return _Mixed(
            loc=best.loc[0].numpy(),
            root=best.deviations()[0].numpy(),
            reason=f"took the best normal of each of {many} paths, after {int(found.iterations.min())} to {farthest} steps",
            converged=True,
            iterations=farthest,
            gradients=found.gradients,
            info={
                "densities": found.densities,
                "weights": found.log_weights.exp().tolist(),
                "elbo": found.elbo.tolist(),
                "iterations": found.iterations.tolist(),
            },
            mixture=values_of(found, self.paths),
        )

    def find(self, density: LogDensity, seed: int) -> Found:
        """Return the normals of the paths on a log density, for whoever starts from them."""
        return find_paths(
            density.value_and_gradient,
            density.start,
            paths=self.paths,
            iterations=self.max_iterations,
            history=self.history,
            elbo_draws=self.elbo_draws,
            seed=seed,
        )
