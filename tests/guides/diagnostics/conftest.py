"""A posterior whose target and guide are distributions, so that every diagnostic has a known answer."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor


@dataclass
class KnownFit:
    target: torch.distributions.Distribution
    guide_density: list[torch.distributions.Distribution]  # one per chain
    likelihood: object = None  # z (C, S, d) -> (C, S, N)
    losses: Tensor = field(default_factory=lambda: 0.5 * torch.randn(1, 3000))
    point_mass: bool = False
    family: str = "mean_field"
    stop_reasons: tuple[str, ...] = ()
    break_log_p: object = None

    def __post_init__(self):
        self.stop_reasons = self.stop_reasons or ("ran all steps",) * len(self.losses)

    @property
    def guide(self):
        return SimpleNamespace(is_point_mass=self.point_mass)

    @property
    def replicates(self):
        return len(self.guide_density)

    def draws(self, num_samples=1000, *data, seed=None, log_likelihood=True):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            z = torch.stack([q.sample((num_samples,)) for q in self.guide_density])
        log_q = torch.stack([q.log_prob(row) for q, row in zip(self.guide_density, z)])
        log_p = self.target.log_prob(z) - 3.0  # an unknown constant, as a log evidence would be
        if self.break_log_p is not None:
            log_p = self.break_log_p(log_p)
        likelihood = {} if self.likelihood is None else {"y": self.likelihood(z)}
        return SimpleNamespace(
            latents={"z": z},
            log_p=log_p,
            log_q=log_q,
            log_likelihood=likelihood,
            counted={name: torch.ones(value.shape[2:], dtype=torch.bool) for name, value in likelihood.items()},
            deterministic={},
            predictive={},
        )


@pytest.fixture
def known_fit():
    torch.manual_seed(0)
    return KnownFit
