"""Hamiltonian Monte Carlo with paths of one length."""

from __future__ import annotations

import math
from dataclasses import dataclass

from guides.density.density import LogDensity
from guides.errors import OptionError
from guides.registries import samplers
from guides.samplers.base import Chains, Sampler, Start, check_share
from guides.samplers.of_pyro import run_pyro

__all__ = ["HMC"]


@samplers.register("hmc")
@dataclass(frozen=True, kw_only=True)
class HMC(Sampler):
    r"""Hamiltonian Monte Carlo: paths of a fixed length, accepted by the change of their energy.

    A leapfrog integrator follows :math:`\dot z = M^{-1} r,\ \dot r = \nabla \log \pi(z)` from
    :math:`r \sim \mathcal{N}(0, M)` for the time ``trajectory_length``; its end is accepted with probability
    :math:`\min(1, e^{-\Delta H})`. Step size and the diagonal of M are adapted in the warm-up. Pyro's kernel on the compiled
    :func:`guides.log_density`.

    **When:** to teach, and to see what ``nuts`` adds. **When not:** otherwise; paths of a length that suits one latent are
    too short or too long for another.

    :param draws: kept per chain; ``tune``: steps of warm-up before them; ``chains``: independent chains, one after another.
    :param target_accept: mean acceptance that the step size is adapted to.
    :param trajectory_length: time of a path, in units in which latents have about the spread 1 once M is adapted.
    :raises OptionError: for a value that makes no sense.

    References: Neal (2011), *MCMC using Hamiltonian dynamics*, https://arxiv.org/abs/1206.1901

    Example::

        >>> import pyro, pyro.distributions as dist, torch, guides
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> posterior = guides.fit(model, "hmc", torch.ones(3), draws=200, tune=100, chains=2, trajectory_length=2.0)
        >>> abs(float(posterior.sample()["z"].mean()) - 0.75) < 0.2
        True
    """

    target_accept: float = 0.8
    trajectory_length: float = math.pi / 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("target_accept", self.target_accept)
        if not isinstance(self.trajectory_length, int | float) or not 0 < self.trajectory_length < math.inf:
            raise OptionError(f"trajectory_length must be positive and finite, not {self.trajectory_length!r}")

    def run(self, density: LogDensity, start: Start, seed: int, progress: bool) -> Chains:
        """Draw."""
        options = {"target_accept_prob": self.target_accept, "trajectory_length": float(self.trajectory_length)}
        return run_pyro("HMC", options, density, start, self.chains, self.draws, self.tune, seed, progress)
