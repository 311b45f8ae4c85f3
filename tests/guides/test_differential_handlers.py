"""Handlers, roles and plates, alone and in pairs, against what stock Pyro says of the same draws."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

import guides

Y = torch.tensor([0.5, 1.5, -0.3, 2.0, 0.8, 1.1])


def test_rows_drawn_by_the_model_around_latents_of_rows() -> None:
    def model(y: Tensor, whole: bool = False) -> None:
        rows = {} if whole else {"subsample": torch.randperm(len(y))[:2]}
        with pyro.plate("rows", len(y), **rows) as i:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 0.5), obs=y[i])

    draws = guides.fit(model, "mean_field", Y, steps=1, compile="eager").draws(1)
    trace = poutine.trace(pyro.condition(model, {"z": draws.latents["z"][0, 0]})).get_trace(Y, whole=True)
    torch.testing.assert_close(draws.log_p[0, 0], torch.as_tensor(trace.log_prob_sum()))


def test_a_point_mass_is_no_latent() -> None:
    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        z = pyro.sample("z", dist.Delta(2 * mu))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    with pytest.raises(guides.UnsupportedModelError, match=r"'z' is a point mass.*pyro\.deterministic\('z'"):
        guides.fit(model, "mean_field", Y, steps=10**9)
