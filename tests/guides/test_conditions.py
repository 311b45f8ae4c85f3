"""What ``pyro.condition`` holds, and what it gives as data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.contrib.autoname import scope
from torch import Tensor

import guides

Y = torch.tensor([0.5, 1.5, -0.3, 2.0, 0.8, 1.1])
ONE = torch.tensor(1.0)


def kinds(model: Callable[..., Any], *data: Any, guide: str = "mean_field") -> dict[str, str]:
    posterior = guides.fit(model, guide, *data, steps=1, lr=1e-7, compile="eager")
    return {name: site.kind for name, site in posterior.sites.items() if site.kind in ("conditioned", "observed")}


def pair() -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    z = pyro.sample("z1", dist.Normal(0.0, 1.0))
    pyro.sample("z2", dist.Normal(z + w, 1.0))


def rows(y: Tensor) -> None:
    k = pyro.sample("k", dist.Bernoulli(0.5))
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    theta = pyro.sample("theta", dist.Normal(mu, 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(theta + k, 1.0), obs=y)


def factor(y: Tensor) -> None:
    s = pyro.sample("s", dist.LogNormal(0.0, 0.3))
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.factor("likelihood", dist.Normal(mu, s).log_prob(y).sum())


def series(latent: bool) -> Callable[[], None]:
    def model() -> None:
        phi = pyro.sample("phi", dist.Normal(0.0, 0.5)) if latent else pyro.param("phi", torch.tensor(0.5))
        x = pyro.sample("x0", dist.Normal(0.0, 1.0))
        for t in range(1, 4):
            x = pyro.sample(f"x{t}", dist.Normal(phi * x, 1.0))

    return model


def test_names_that_differ_in_digits_do_not_make_data() -> None:
    assert kinds(pyro.condition(pair, {"z1": ONE, "z2": 2 * ONE})) == {"z1": "conditioned", "z2": "observed"}


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_discrete_latent_is_held(value: float) -> None:
    assert kinds(pyro.condition(rows, {"k": torch.tensor(value)}), Y) == {"k": "conditioned", "y": "observed"}


@pytest.mark.parametrize("around", [lambda m: scope(m, prefix="a"), lambda m: poutine.do(m, {"k": ONE})])
def test_a_latent_is_held_whatever_renames_it(around: Any) -> None:
    found = kinds(around(pyro.condition(rows, {"k": ONE})), Y)
    assert {n.rpartition("/")[2]: kind for n, kind in found.items()} == {"k": "conditioned", "y": "observed"}


def test_a_latent_that_a_factor_depends_on_is_held() -> None:
    assert kinds(pyro.condition(factor, {"s": ONE}), Y) == {"s": "conditioned"}


@pytest.mark.parametrize("latent", [True, False])
def test_a_series_that_begins_with_zero_is_data(latent: bool) -> None:
    data = {f"x{t}": torch.tensor(float(t)) for t in range(4)}
    found = kinds(pyro.condition(series(latent), data), guide="mean_field" if latent else "map")
    assert found == dict.fromkeys(data, "observed")


def test_the_first_of_a_series_alone_is_held() -> None:
    assert kinds(pyro.condition(series(True), {"x0": ONE, "x3": ONE})) == {"x0": "conditioned", "x3": "observed"}


def test_uncondition_leaves_what_is_computed() -> None:
    def model(y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(y)):
            with poutine.uncondition():
                pyro.deterministic("twice", 2 * z + y)
                pyro.factor("tilt", -0.1 * z.square().expand(len(y)))
            pyro.sample("y", dist.Normal(z, 0.5), obs=y)

    draws = guides.fit(model, "mean_field", Y, steps=1, compile="eager").draws(1)
    assert set(draws.latents) == {"z"}
    z = draws.latents["z"][0, 0]
    torch.testing.assert_close(draws.deterministic["twice"][0, 0], 2 * z + Y)
    wanted = dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(z, 0.5).log_prob(Y).sum() - 0.6 * z.square()
    torch.testing.assert_close(draws.log_p[0, 0], wanted)
