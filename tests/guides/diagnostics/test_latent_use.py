"""A collapsed posterior is told from a good one, in words that say what to try."""

from __future__ import annotations

import json

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import guides
import zoo
from guides import diagnostics as D

WEIGHT = torch.tensor([[1.0, 1.0, 0.0, 1.0], [0.5, -1.0, 1.0, 0.0]])


@pytest.fixture(scope="module")
def rows():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(400, 2, generator=generator) @ WEIGHT + 0.5 * torch.randn(400, 4, generator=generator)


def fit(rows, weight=WEIGHT, **options):
    encoder = ("amortized", {"encoder": nn.Sequential(nn.Linear(4, 16), nn.Tanh())})
    model = zoo.ProbabilisticPCA(weight, noise=0.5)
    return guides.fit(model, encoder, rows, batch_size=100, steps=250, lr=0.02, compile="eager", seed=0, **options)


def finding(posterior):
    return D.diagnose(posterior, num_samples=25, only=["latent_use"])


def test_a_good_fit_is_called_good(rows):
    found = finding(fit(rows))
    measure = found.findings["latent_use"].measures[0]
    assert found.verdict == "good"
    assert measure.active_units == measure.units == 2
    assert measure.num_rows == 300
    assert "2 of 2 latent units are active" in found.findings["latent_use"].text
    assert "latents in use  2 of 2 units active, rate " in str(found)


def test_a_collapsed_fit_is_reported_with_what_to_try(rows):
    found = finding(fit(rows, objective=guides.ELBO(kl_weight=200.0)))
    assert found.verdict == "unreliable"
    assert "posterior collapse: no latent unit is active" in found.summary.lower()
    for hint in ("KLAnnealing", "free_bits", "weaken the decoder"):
        assert hint in found.summary
    assert "0 of 2 units active" in str(found)


def test_a_decoder_that_ignores_the_latents_is_a_collapse_too(rows):
    """The blind spot of importance weights: the guide is exact, and useless as a code."""
    found = finding(fit(rows, weight=torch.zeros(2, 4)))
    assert found.verdict == "unreliable"
    assert float(found.findings["latent_use"].measures[0].rate) < 0.05


def test_the_worst_of_several_restarts_counts(rows):
    found = finding(fit(rows, replicates=2)).findings["latent_use"]
    assert len(found.measures) == 2
    assert float(found.measures[0].rate) != float(found.measures[1].rate)
    assert "nats" in json.dumps(found.to_dict())


class Layers(nn.Module):
    """Two layers of which the model uses the lower one."""

    def forward(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z_2", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            z1 = pyro.sample("z_1", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z1, 0.5).to_event(1), obs=x)


class Guide(nn.Module):
    amortized = frozenset({"z_1", "z_2"})

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.8))

    def forward(self, x):
        pyro.module("guide", self)
        with pyro.plate("data", len(x)):
            pyro.sample("z_1", dist.Normal(self.slope * x, 0.45).to_event(1))
            pyro.sample("z_2", dist.Normal(torch.zeros(1), 1.0).to_event(1))


def test_a_layer_without_use_is_named():
    posterior = guides.fit(Layers(), Guide(), torch.randn(100, 1), steps=1, compile="eager")
    found = finding(posterior)
    assert found.verdict == "usable"
    assert "1 of 2 latent units are active, none of them in 'z_2'" in found.summary
    assert "leave the layer out" in found.summary


def test_other_guides_are_left_alone(rows):
    found = finding(guides.fit(zoo.ProbabilisticPCA(WEIGHT), "mean_field", rows[:5], steps=1, compile="eager"))
    assert found.findings["latent_use"].measures == ()
    assert "latents in use" not in str(found)


def test_what_cannot_be_measured_is_said():
    posterior = guides.fit(Layers(), Guide(), torch.randn(1, 1), steps=1, compile="eager")
    found = finding(posterior).findings["latent_use"]
    assert isinstance(found, D.Undefined)
    assert "takes at least 2" in found.text


def test_a_small_scale_is_no_collapse():
    """Units that move by a hundredth say as much as others if the prior is as small."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 0.01))
            pyro.sample("x", dist.Normal(100 * z, 0.3), obs=x)

    def guide(x):
        slope = pyro.param("slope", torch.tensor(0.009))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(slope * x, 0.003))

    guide.amortized = frozenset({"z"})
    found = finding(guides.fit(model, guide, torch.randn(200), steps=1, lr=1e-9, compile="eager"))
    assert found.findings["latent_use"].measures[0].active_units == 0
    assert found.verdict == "good"
