"""DADVI: a variational approximation at fixed draws, by a second-order optimiser, with linear-response covariances."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from guides.density.density import LogDensity
from guides.errors import OptionError, UnsupportedModelError, check_known, check_whole
from guides.families.base import FlatFamily
from guides.families.full_rank import FullRank
from guides.families.mean_field import MeanField
from guides.registries import solvers
from guides.solvers.base import Solution, Solver
from guides.solvers.fixed_draws import FixedDraws, standard_draws
from guides.solvers.trust import Minimum, minimise

__all__ = ["DADVI"]

_COVARIANCES = ("linear_response", "mean_field")
_MOST = 1000  # latents of which a covariance is computed


@solvers.register("dadvi")
@dataclass(frozen=True, kw_only=True)
class DADVI(Solver):
    r"""Deterministic ADVI: independent normals at fixed draws, corrected by linear response.

    The evidence lower bound of independent normals, with the expectation replaced by the mean over M standard normal draws
    that stay the same, is an ordinary function:

    .. math::
        f(\mu, \sigma) = -\frac{1}{M} \sum_m \log \pi(\mu + \sigma \odot z_m) - \sum_d \log \sigma_d

    A trust-region Newton method minimises it and stops by itself: there is no learning rate, no number of steps and no
    noise. The means of mean field are good, its standard deviations are not. Linear response asks how the means would move
    if the posterior were tilted a little, which is the covariance: with H the Hessian of f at its minimum,

    .. math:: q(z) = \mathcal{N}\bigl(z \mid \hat\mu, (H^{-1})_{\mu\mu}\bigr)

    The draws come in pairs z, -z of mean square 1 in every coordinate, unless ``matched=False``. Mean and covariance are
    then exact wherever the posterior is normal in the unconstrained space, whatever M is.

    **When:** the first guide to try on up to some hundred latents: regressions and other models with raw covariates and
    correlated latents, whose full covariance it finds with nothing to tune. **When not:** many latents (its Hessian is of
    their square), models that are trained in minibatches, several modes, funnels (reparametrise them).

    :param num_draws: M, an even number where they are matched.
    :param matched: draws in pairs and scaled; independent draws, as published, otherwise.
    :param covariance: ``"linear_response"``, for up to 1,000 latents, or the one of ``"mean_field"``: independent latents,
        which are too narrow where they are correlated.
    :param max_iterations: of the optimiser; a warning says when they were not enough.
    :raises OptionError: for a value that makes no sense.
    :raises UnsupportedModelError: if the Hessian at the end is not finite and positive definite; for a model with parameters
        to be trained.

    ``posterior.info`` holds ``gradients`` and ``products`` (with the Hessian of the log density), ``converged``, ``bound``
    (the mean-field evidence lower bound at the fixed draws, nats), ``mean_field_sd`` (of the unconstrained latents) and
    ``sampling_error``: how far, in posterior standard deviations, a mean may be off because the draws are these and no
    others, one standard error of the worst.

    References: Giordano, Ingram, Broderick (2024), *Black box variational inference with a deterministic objective: faster,
    more accurate, and even more black box*, https://jmlr.org/papers/v25/23-1015.html; Giordano, Broderick, Jordan (2018),
    *Covariances, robustness, and variational Bayes*, https://jmlr.org/papers/v19/17-670.html

    Example::

        >>> import pyro, pyro.distributions as dist, torch, guides
        >>> def model(x, y):
        ...     b = pyro.sample("b", dist.Normal(0.0, 1000.0).expand([2]).to_event(1))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("y", dist.Normal(b[0] + b[1] * x, 1.0), obs=y)
        >>> x = torch.linspace(1990.0, 2020.0, 31)  # years, which make the two coefficients all but one
        >>> posterior = guides.fit(model, "dadvi", x, 0.1 * (x - 2000))
        >>> b = posterior.sample(4000)["b"]
        >>> abs(float(b[:, 1].mean()) - 0.1) < 0.01, float(torch.corrcoef(b.T)[0, 1]) < -0.99
        (True, True)
    """

    num_draws: int = 30
    matched: bool = True
    covariance: str = "linear_response"
    max_iterations: int = 1000

    def __post_init__(self) -> None:
        check_whole("num_draws", self.num_draws, least=2)
        check_whole("max_iterations", self.max_iterations, least=1)
        check_known("matched", self.matched, (True, False))
        check_known("covariance", self.covariance, _COVARIANCES)
        if self.matched and self.num_draws % 2:
            raise OptionError(f"num_draws must be even, as matched draws come in pairs, not {self.num_draws}")

    def check_size(self, size: int) -> None:
        """Check that the covariance can be computed."""
        if self.covariance == "linear_response" and size > _MOST:
            raise OptionError(
                f"the model has {size:,} latent numbers, and covariance='linear_response' is for up to {_MOST:,}; say "
                "covariance='mean_field', or fit 'low_rank' or 'mean_field'"
            )

    def guide(self, model: Callable[..., Any]) -> FlatFamily:
        """Return a normal of full covariance, or of independent latents."""
        return MeanField(model) if self.covariance == "mean_field" else FullRank(model)

    def run(self, density: LogDensity, start: np.ndarray, seed: int) -> Solution:
        """Minimise, and correct the covariance."""
        size = density.size
        bound = FixedDraws(density, standard_draws(self.num_draws, size, self.matched, seed))
        end = minimise(bound, density, start, self.max_iterations)
        scale = np.exp(end.eta[size:])
        info: dict[str, Any] = {"bound": -end.value, "mean_field_sd": scale.tolist()}
        root = scale
        if self.covariance == "linear_response":
            inverse = _inverse(bound.hessian(end.eta), density, end)
            covariance = inverse[:size, :size]
            root = np.linalg.cholesky((covariance + covariance.T) / 2)
            info["sampling_error"] = self._sampling_error(bound, end, inverse)
        return Solution(
            loc=end.eta[:size],
            root=root,
            reason=_reason(end),
            converged=end.reached,
            iterations=end.iterations,
            gradients=bound.gradients,
            products=bound.products,
            info=info,
        )

    def _sampling_error(self, bound: FixedDraws, end: Minimum, inverse: np.ndarray) -> float:
        """Return the largest standard error of a mean over other draws, in posterior standard deviations."""
        parts = bound.by_draw(end.eta)
        if self.matched:
            parts = (parts[: len(parts) // 2] + parts[len(parts) // 2 :]) / 2
        moved = parts @ inverse[:, : bound.size]
        errors = np.sqrt(np.square(moved).sum(0)) / len(parts)
        return float((errors / np.sqrt(np.diagonal(inverse)[: bound.size])).max())


def _reason(end: Minimum) -> str:
    if end.reached:
        return f"stopped at the minimum after {end.iterations} iterations"
    return (
        f"ended before the minimum: {end.iterations} iterations left a slope of {end.slope:.2g} standard deviations; raise "
        "max_iterations, or take 'nuts' where the posterior has no such minimum"
    )


def _inverse(hessian: np.ndarray, density: LogDensity, end: Minimum) -> np.ndarray:
    """Return the inverse of a Hessian.

    :raises UnsupportedModelError: if it is not finite and positive definite, naming a latent.
    """
    wrong = ~np.isfinite(hessian).all(1)
    if not wrong.any():
        scale = np.sqrt(np.abs(np.diagonal(hessian)).clip(min=1e-300))
        values, vectors = np.linalg.eigh(hessian / np.outer(scale, scale))
        if values[0] > len(values) * np.finfo(float).eps * values[-1]:
            inverse: np.ndarray = (vectors / values) @ vectors.T / np.outer(scale, scale)
            return inverse
        wrong[np.abs(vectors[:, 0]).argmax()] = True
    name = density.names[int(np.flatnonzero(wrong)[0]) % density.size]
    raise UnsupportedModelError(
        f"guide 'dadvi' {_reason(end)}. The Hessian there is not finite and positive definite in the direction of latent "
        f"{name!r}, so that there is no linear-response covariance: say covariance='mean_field', give that latent a prior "
        "that is no flatter than need be, or reparametrise"
    )
