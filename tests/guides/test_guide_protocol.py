"""A guide from outside of the packages: an encoder, strata and a density of its own, said by attributes alone."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn

import guides
from guides.program.guide import Guide, as_guide

SIGN = torch.tensor([-1.0, 1.0])


def model(x: Tensor) -> None:
    """|z| is seen, the sign of z is not: two modes per row, at ±x."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 2.0))
        pyro.sample("x", dist.Normal(z**2, 0.5), obs=x)


class TwoSided(nn.Module):
    """One normal on either side of zero; which of them is a stratum. It inherits nothing of the library's."""

    amortized = frozenset({"z"})
    num_strata = 2

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.5))
        self.offset = nn.Parameter(torch.tensor(0.5))
        self.rho = nn.Parameter(torch.tensor(-1.0))
        self.asked: list[str] = []

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.offset + self.slope * x.clamp(min=0.05).sqrt(), torch.nn.functional.softplus(self.rho) + 0.01

    def forward(self, x: Tensor) -> None:
        pyro.module("two_sided", self)
        loc, scale = self.parts(x)
        with pyro.plate("data", len(x)):
            choice = dist.Categorical(logits=torch.zeros(len(x), 2)).mask(False)
            side = pyro.sample("side", choice, infer={"is_auxiliary": True, "stratum": True})
            mixture = dist.MixtureSameFamily(
                dist.Categorical(logits=torch.zeros(len(x), 2)), dist.Normal(loc.unsqueeze(-1) * SIGN, scale)
            )
            # Drawn from one side, scored by the mixture of both.
            point = loc * SIGN[side] + scale * pyro.sample(
                "noise", dist.Normal(torch.zeros(len(x)), 1.0).mask(False), infer={"is_auxiliary": True}
            )
            pyro.sample("z", dist.Delta(point, log_density=mixture.log_prob(point)))

    def log_stratum_weight(self, guide_trace: Trace) -> Tensor:
        """Both sides weigh the same: log(K / K) = 0."""
        self.asked.append("log_stratum_weight")
        return torch.zeros(())

    def log_density(self, guide_trace: Trace) -> Tensor:
        """The mixture's alone: the choice and the noise are no latents."""
        self.asked.append("log_density")
        return guide_trace.nodes["z"]["fn"].log_density.sum()


@pytest.fixture(scope="module")
def fitted() -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    x = (1.5 * torch.randn(60)) ** 2 + 0.5 * torch.randn(60)
    posterior = guides.fit(model, TwoSided(), x, objective="selbo", batch_size=20, steps=400, lr=0.02, compile="trace")
    return posterior, x


def test_what_a_guide_does_not_say_is_the_protocols_default():
    asked = as_guide(lambda x: None)
    for name in vars(Guide):
        if not name.startswith("__") and not callable(getattr(Guide, name)):
            assert getattr(asked, name) == getattr(Guide, name)
    assert asked.mixture_components(Trace()) is None and asked.finished_guide() is None
    with asked.around_model(Trace()):
        pass
    family = guides.MeanField(model)
    assert as_guide(family) is family


def test_its_encoder_strata_and_density_are_used_everywhere(fitted):
    posterior, _ = fitted
    assert posterior.program.num_strata == 2 and posterior.program.amortized == {"z"}
    assert posterior.losses[0, -50:].mean() < posterior.losses[0, :50].mean()
    new = torch.tensor([4.0, 1.0, 9.0])  # rows that it never saw: the encoder computes them
    draws = posterior.draws(2000, new, seed=1)
    z = draws.latents["z"][0]
    assert z.shape == (2000, 3)
    assert ((z > 0).double().mean(0) - 0.5).abs().max() < 0.05
    assert (z.abs().mean(0) - new.sqrt()).abs().max() < 0.35
    loc, scale = posterior.guide.parts(new)
    both = torch.stack([dist.Normal(loc, scale).log_prob(z), dist.Normal(-loc, scale).log_prob(z)]).logsumexp(0) - math.log(
        2
    )
    torch.testing.assert_close(draws.log_q[0], both.detach().sum(-1), rtol=1e-4, atol=1e-4)
    assert {"log_stratum_weight", "log_density"} <= set(posterior.guide.asked)
    assert posterior.predict(new, num_samples=10)["x"].shape == (10, 3)
    assert posterior.log_likelihood(new, num_samples=10)["x"].shape == (10, 3)
    assert posterior.to_arviz(num_samples=20).posterior["z"].shape == (1, 20, 60)
    assert posterior.diagnose(num_samples=200, only=["convergence"]).findings["convergence"]


def test_its_weights_give_the_evidence_of_both_modes(fitted):
    """log p(x) by importance sampling against quadrature over z: a guide on one side would miss log 2."""
    posterior, x = fitted
    some = x[:4]
    found = guides.log_marginal(posterior, some, num_samples=4000, seed=0)
    grid = torch.linspace(-12, 12, 20001, dtype=torch.float64)
    joint = dist.Normal(0.0, 2.0).log_prob(grid) + dist.Normal(grid**2, 0.5).log_prob(some.double()[:, None])
    exact = torch.logsumexp(joint, -1) + math.log(float(grid[1] - grid[0]))
    torch.testing.assert_close(found.values.double(), exact, rtol=0, atol=0.1)
