"""The no-U-turn sampler."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from guides.density.density import LogDensity
from guides.errors import EagerFallbackWarning, UnsupportedModelError, check_whole
from guides.fitted.groups import import_arviz
from guides.registries import samplers
from guides.samplers.address import model_at_address
from guides.samplers.base import Chains, Sampler, Start, check_share
from guides.samplers.of_pyro import run_pyro

__all__ = ["NUTS"]

_STATISTICS = {
    "diverging": "diverging",
    "energy": "energy",
    "tree_depth": "depth",
    "n_steps": "n_steps",
    "step_size": "step_size_bar",
    "acceptance_rate": "mean_tree_accept",
    "reached_max_treedepth": "maxdepth_reached",
}


@samplers.register("nuts")
@dataclass(frozen=True, kw_only=True)
class NUTS(Sampler):
    r"""The no-U-turn sampler: exact draws of the posterior, as many gradients as it takes.

    Hamiltonian dynamics :math:`\dot z = M^{-1} r,\ \dot r = \nabla \log \pi(z)` from a fresh momentum
    :math:`r \sim \mathcal{N}(0, M)`, in both directions until the path turns back; the next draw is one of the path's
    points, chosen by its density. Step size and the diagonal of M are adapted in the warm-up, M from draws and gradients.

    Run by nutpie on the compiled :func:`guides.log_density`; where nutpie is not installed (``pip install
    'pyro-posterior-zoo[nuts]'``), by Pyro's own sampler on the same density, which a warning says.

    **When:** as the truth that guides are compared with, up to some thousands of latents. **When not:** networks and data so
    large that a thousand full gradients are too many.

    :param draws: kept per chain; ``tune``: steps of warm-up before them; ``chains``: independent chains.
    :param target_accept: mean acceptance that the step size is adapted to; nearer to 1 means smaller steps, which helps
        against divergences.
    :param max_depth: most doublings of a path: 2^max_depth gradients per draw.
    :param cores: chains at a time; as many as there are processors by default.
    :raises OptionError: for a value that makes no sense.
    :raises UnsupportedModelError: if the density does not depend on a latent.

    References: Hoffman, Gelman (2014), *The No-U-Turn sampler*, https://jmlr.org/papers/v15/hoffman14a.html; Betancourt
    (2017), *A conceptual introduction to Hamiltonian Monte Carlo*, https://arxiv.org/abs/1701.02434; nutpie,
    https://github.com/pymc-devs/nutpie

    Example::

        >>> import pyro, pyro.distributions as dist, torch, guides
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> posterior = guides.fit(model, "nuts", torch.ones(3), draws=500, tune=300)
        >>> abs(float(posterior.sample()["z"].mean()) - 0.75) < 0.1
        True
        >>> posterior.diagnose().verdict
        'good'
    """

    target_accept: float = 0.8
    max_depth: int = 10
    cores: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("target_accept", self.target_accept)
        check_whole("max_depth", self.max_depth, least=1)
        if self.cores is not None:
            check_whole("cores", self.cores, least=1)

    def run(self, density: LogDensity, start: Start, seed: int, progress: bool) -> Chains:
        """Draw."""
        _check_depends(density, [start(seed + i) for i in range(self.chains)])
        if find_spec("nutpie") is None:
            warnings.warn(
                "nutpie is not installed, so Pyro's own NUTS runs on the compiled density, some ten times more slowly; "
                "pip install 'pyro-posterior-zoo[nuts]'",
                EagerFallbackWarning,
                stacklevel=4,
            )
            options = {"target_accept_prob": self.target_accept, "max_tree_depth": self.max_depth}
            return run_pyro("NUTS", options, density, start, self.chains, self.draws, self.tune, seed, progress)
        return self._by_nutpie(density, start, seed, progress)

    def _by_nutpie(self, density: LogDensity, start: Start, seed: int, progress: bool) -> Chains:
        import_arviz()  # without its notice, before nutpie imports it
        import nutpie
        from nutpie.compiled_pyfunc import from_pyfunc

        def make_density() -> Callable[[np.ndarray], tuple[float, np.ndarray]]:
            space = density.workspace()

            def function(at: np.ndarray) -> tuple[float, np.ndarray]:
                found = space(at)
                return float(found[0]), found[1:].copy()

            return function

        def expand(*_: Any) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
            return lambda at: {"z": np.array(at)}

        compiled = model_at_address(density, start) or from_pyfunc(
            density.size,
            make_density,
            expand,
            [np.dtype("float64")],
            [(density.size,)],
            ["z"],
            make_initial_point_fn=start,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = nutpie.sample(
                compiled,
                draws=self.draws,
                tune=self.tune,
                chains=self.chains,
                cores=min(self.chains, self.cores or os.cpu_count() or 1),
                seed=seed % 2**63,
                progress_bar=progress,
                save_warmup=True,
                target_accept=self.target_accept,
                maxdepth=self.max_depth,
            )
        stats = found["sample_stats"]
        steps = sum(int(found[group]["n_steps"].values.sum()) for group in ("sample_stats", "warmup_sample_stats"))
        statistics = {ours: np.array(stats[theirs].values) for ours, theirs in _STATISTICS.items()}
        return Chains(np.array(found["posterior"]["z"].values), statistics, steps)


def _check_depends(density: LogDensity, points: list[np.ndarray]) -> None:
    """Check that the density depends on every latent, without which nutpie finds no start and says nothing else.

    :raises UnsupportedModelError: naming a latent.
    """
    flat = (density.gradient(np.stack(points)).numpy() == 0.0).all(0)
    if flat.any():
        raise UnsupportedModelError(
            f"the log density does not depend on latent {density.names[int(flat.argmax())]!r}, so that there is no "
            "posterior to draw it from: give it a proper prior, or data"
        )
