"""What Pyro's own examples do: plates without a size, reparametrisation inside a plate, flows kept in a list."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.transforms import affine_autoregressive
from pyro.infer import config_enumerate
from pyro.infer.reparam import LocScaleReparam
from torch import Tensor, nn

import guides

X = torch.linspace(-2.0, 2.0, 8)


@pytest.mark.parametrize("guide", ["laplace", "full_rank", "mean_field"])
def test_a_reparametrisation_inside_a_plate_gives_each_element_its_own_latent(guide: str) -> None:
    def model(y: Tensor) -> None:
        with pyro.plate("rows", len(y)), poutine.reparam(config={"z": LocScaleReparam(0.0)}):
            z = pyro.sample("z", dist.Normal(torch.tensor(0.0), torch.tensor(2.0)))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    posterior = guides.fit(model, guide, X, steps=800, lr=0.05, schedule="cosine", compile="eager")
    drawn = posterior.sample(4000, seed=0)["z_decentered"]
    assert drawn.shape == (4000, 8)
    torch.testing.assert_close(2.0 * drawn.mean(0), 0.8 * X, atol=0.12, rtol=0.0)
    torch.testing.assert_close(2.0 * drawn.std(0), torch.full((8,), 0.8**0.5), atol=0.1, rtol=0.0)


def unsized(rows: int | None, marked: bool = False) -> Any:
    def model(y: Tensor) -> None:
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("rows", rows):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(y)), scale))
            if marked:
                z = z + 3.0 * pyro.sample("k", dist.Bernoulli(torch.full((len(y),), 0.3)))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    return config_enumerate(model) if marked else model


@pytest.mark.parametrize("marked", [False, True])
def test_a_plate_without_a_size_is_as_large_as_what_is_in_it(marked: bool) -> None:
    start = ("laplace", {"init_loc_fn": "feasible"})
    with_size, without = (guides.fit(unsized(n, marked), start, X, steps=20, compile="eager") for n in (8, None))
    torch.testing.assert_close(without.losses, with_size.losses)
    drawn = guides.fit(unsized(None, marked), "mean_field", X, steps=5, compile="eager")
    assert drawn.diagnose(num_samples=50).num_samples == 50
    assert drawn.log_likelihood(num_samples=20)["y"].shape == (20, 8)
    assert drawn.to_arviz(num_samples=10).posterior["z"].dims == ("chain", "draw", "rows")


def test_rows_of_a_plate_without_a_size_are_scaled_in_a_minibatch() -> None:
    def regression(sized: bool) -> Any:
        def model(y: Tensor) -> None:
            mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
            with pyro.plate("rows", len(y) if sized else None):
                pyro.sample("y", dist.Normal(mean + torch.zeros(len(y)), 1.0), obs=y)

        return model

    losses = [
        guides.fit(regression(s), "mean_field", X, steps=5, batch_size=4, compile="eager").losses for s in (True, False)
    ]
    torch.testing.assert_close(*losses)


def test_a_guide_may_keep_flows_in_a_list() -> None:
    class Guide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.flows = [affine_autoregressive(2, hidden_dims=[4])]
            self.registered = nn.ModuleList(self.flows)

        def forward(self, y: Tensor) -> None:
            pyro.module("flows", self)
            with pyro.plate("rows", len(y)):
                base = dist.Normal(torch.zeros(len(y), 2), 1.0)
                pyro.sample("z", dist.TransformedDistribution(base, self.flows))

    def model(y: Tensor) -> None:
        with pyro.plate("rows", len(y)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(z.sum(-1), 1.0), obs=y)

    posterior = guides.fit(model, Guide(), X, steps=5)
    assert posterior.sample(3)["z"].shape == (3, 8, 2)
