"""Surprise under posterior predictives that are known."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import guides
from guides.errors import DataError, OptionError, UnsupportedModelError
from guides.information import surprise

T = torch.tensor


class Exact(nn.Module):
    """The posterior of a normal mean: N(sum x / (n + 1), 1 / (n + 1))."""

    def __init__(self, x):
        super().__init__()
        self.loc, self.scale = nn.Parameter(x.sum() / (len(x) + 1)), (len(x) + 1) ** -0.5

    def forward(self, x=None):
        pyro.module("guide", self)
        pyro.sample("z", dist.Normal(self.loc, self.scale))


def mean(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def held(model, guide, *data, **options):
    return guides.fit(model, guide, *data, steps=1, lr=1e-12, compile="eager", **options)


@pytest.fixture(scope="module")
def known():
    x = torch.randn(4, generator=torch.Generator().manual_seed(0))
    predictive = dist.Normal(x.sum() / 5, (1 + 1 / 5) ** 0.5)
    return held(mean, Exact(x), x), predictive


def within(measure, value, errors=4.0):
    assert not measure.exact and (measure.standard_error > 0).all()
    assert ((measure.value - value).abs() < errors * measure.standard_error).all()


def test_new_points_under_a_normal_predictive(known):
    posterior, predictive = known
    x = torch.linspace(-3, 3, 7)
    found = surprise(posterior, x, num_samples=4000)
    assert found.value.shape == (7,)
    assert (found.standard_error < 0.1).all()
    within(found, -predictive.log_prob(x))
    in_bits = surprise(posterior, x, num_samples=4000, unit="bits")
    torch.testing.assert_close(in_bits.value * math.log(2), found.value)


def test_the_standard_error_is_the_spread_over_seeds(known):
    posterior, _ = known
    runs = [surprise(posterior, T([0.0, 2.0]), num_samples=500, seed=seed) for seed in range(60)]
    spread = torch.stack([run.value for run in runs]).std(0)
    claimed = torch.stack([run.standard_error for run in runs]).mean(0)
    assert ((spread / claimed - 1).abs() < 4 / math.sqrt(2 * 59)).all()


def test_training_points_replicates_and_seeds(known):
    posterior, predictive = known
    within(surprise(posterior), -predictive.log_prob(posterior.data[0]))
    twice = held(mean, "mean_field", T([0.0, 1.0]), replicates=2)
    assert surprise(twice, T([0.0, 1.0, 2.0])).value.shape == (2, 3)
    assert torch.equal(surprise(posterior, seed=4).value, surprise(posterior, seed=4).value)
    assert not torch.equal(surprise(posterior, seed=4).value, surprise(posterior, seed=5).value)


def test_observations_of_a_row_count_together():
    def model(x, y):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0).expand([len(x)]), obs=x)
            pyro.sample("y", dist.Normal(z, torch.ones(len(x), 2)).to_event(1), obs=y)

    class Guide(Exact):
        def forward(self, x, y):
            super().forward()

    posterior = held(model, Guide(torch.zeros(1)), torch.zeros(1), torch.zeros(1, 2))  # z ~ N(0, 1/2)
    found = surprise(posterior, T([1.0]), T([[0.5, -1.0]]), num_samples=8000)
    truth = dist.MultivariateNormal(torch.zeros(3), torch.eye(3) + 0.5).log_prob(T([1.0, 0.5, -1.0]))
    within(found, -truth)


def local(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def test_a_point_is_not_explained_by_its_own_latent():
    """A guide without an encoder knows the latents of its training rows; using them would make these look expected."""
    x = T([0.0, 3.0])
    posterior = guides.fit(local, "mean_field", x, steps=300, lr=0.05, compile="eager")
    within(surprise(posterior, num_samples=8000), -dist.Normal(0.0, 2**0.5).log_prob(x))


def test_an_encoder_is_used_for_importance_sampling():
    def guide(x):
        slope = pyro.param("slope", T(0.4))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(slope * x, 0.8))

    guide.amortized = frozenset({"z"})
    posterior = held(local, guide, torch.randn(10))
    x = T([0.0, 6.0])
    found = surprise(posterior, x, num_samples=4000, unit="bits")
    within(found, -dist.Normal(0.0, 2**0.5).log_prob(x) / math.log(2))
    marginal = guides.log_marginal(posterior, x, num_samples=4000)
    torch.testing.assert_close(found.value * math.log(2), -marginal.values)


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_bad_input(known):
    posterior, _ = known
    with pytest.raises(OptionError, match="at least 2 draws"):
        surprise(posterior, num_samples=1)
    with pytest.raises(OptionError, match="'nats'"):
        surprise(posterior, unit="decibans")


def test_observations_are_needed_and_have_rows():
    def model(x, y=None):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z * x, 1.0).to_event(1), obs=y)

    posterior = held(model, "mean_field", torch.ones(3), torch.ones(3))
    with pytest.raises(DataError, match="pass the observations too"):
        surprise(posterior, torch.ones(3))
    with pytest.raises(DataError, match=r"'y' has log densities of shape \(\) for 3 data points.*pyro\.plate"):
        surprise(posterior, torch.ones(3), torch.ones(3))


def test_an_encoder_beside_shared_latents_is_refused():
    def model(x):
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + shift, 1.0), obs=x)

    def guide(x):
        pyro.sample("shift", dist.Normal(pyro.param("loc", T(0.0)), 0.1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    guide.amortized = frozenset({"z"})
    posterior = held(model, guide, torch.randn(10))
    with pytest.raises(UnsupportedModelError, match="latents that all rows share"):
        surprise(posterior)
    with pytest.raises(OptionError, match="leave model_kwargs out"):
        surprise(posterior, model_kwargs={})
