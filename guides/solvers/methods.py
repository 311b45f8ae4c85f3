"""Whatever stands on a model's log density, run by one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from guides.density.density import LogDensity
from guides.density.method import Method
from guides.posterior import Posterior
from guides.samplers.base import Sampler
from guides.samplers.sampling import sample
from guides.solvers.base import Solver
from guides.solvers.solving import solve

__all__ = ["run_method"]


def run_method(
    model: Callable[..., Any],
    method: Method,
    data: tuple[Any, ...],
    *,
    progress: bool | None,
    density: LogDensity | None = None,
    **options: Any,
) -> Posterior:
    """Return the posterior that a solver or a sampler gives.

    :param density: the model's, if there is one already.
    :param options: ``seed``, ``compile`` and ``model_kwargs``, as for ``guides.fit``.
    """
    if isinstance(method, Solver):
        return solve(model, method, data, density=density, **options)
    assert isinstance(method, Sampler)
    return sample(model, method, data, progress=progress, density=density, **options)
