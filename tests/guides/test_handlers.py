"""Handlers round models that choose their own rows, and what Pyro itself refuses, told so that one knows what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.contrib.autoname import scope
from pyro.infer.reparam import AutoReparam, LocScaleReparam, TransformReparam
from torch import Tensor

import guides

Y = torch.tensor([0.5, 1.5, -0.3, 2.0, 0.8, 1.1])


def by_size(y: Tensor) -> None:
    with pyro.plate("rows", len(y), subsample_size=2) as i:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 0.5), obs=y[i])


def by_index(y: Tensor) -> None:
    with pyro.plate("rows", len(y), subsample=torch.randperm(len(y))[:2]) as i:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 0.5), obs=y[i])


def hierarchy(y: Tensor) -> None:
    s = pyro.sample("s", dist.LogNormal(0.0, 0.3))
    with pyro.plate("rows", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, s))
        pyro.sample("y", dist.Normal(z, 0.5), obs=y)


def hides_its_choice(model: Callable[..., Any]) -> Callable[..., Any]:
    hidden: Callable[..., Any] = poutine.block(model, hide=["rows"])
    return hidden


@pytest.mark.parametrize("model", [by_size, by_index])
@pytest.mark.parametrize("around", [lambda m: scope(m, prefix="a"), hides_its_choice])
def test_latents_of_chosen_rows_under_handlers_that_rename_or_hide_the_choice(around: Any, model: Any) -> None:
    handled = around(model)
    draws = guides.fit(handled, "mean_field", Y, steps=2, compile="eager").draws(1)
    (z,) = (v[0, 0] for v in draws.latents.values())
    wanted = dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(z, 0.5).log_prob(Y)
    torch.testing.assert_close(draws.log_p[0, 0], wanted.sum())


def test_rows_whose_data_are_all_alike_are_chosen_all_the_same() -> None:
    draws = guides.fit(by_size, "mean_field", torch.ones(6), steps=2, compile="eager").draws(1)
    assert draws.latents["z"].shape == draws.log_likelihood["y"].shape == (1, 1, 6)


@pytest.mark.parametrize("model", [by_size, by_index])
def test_latents_of_rows_that_are_never_seen_are_refused(model: Any) -> None:
    with pytest.raises(guides.UnsupportedModelError, match=r"latent site 'z'.*plate 'rows'.*2 of 6 rows.*without a seed"):
        guides.fit(poutine.seed(model, 3), "mean_field", Y, steps=10**6)


def masked(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(z, 1.0), obs=y[0], obs_mask=True)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (poutine.do(poutine.reparam(hierarchy, AutoReparam()), {"s": torch.tensor(1.7)}), "site 's'.*put do inside"),
        (poutine.do(poutine.reparam(hierarchy, {"z": LocScaleReparam()}), {"z": Y}), "site 'z'.*put do inside"),
        (
            poutine.reparam(poutine.reparam(hierarchy, {"z": LocScaleReparam()}), {"z": LocScaleReparam()}),
            "site 'z'.*reparametrised already",
        ),
        (poutine.reparam(hierarchy, {"z": TransformReparam()}), "site 'z'.*cannot be applied to Normal"),
        (masked, r"obs_mask has to be a tensor.*torch\.tensor\(True\)"),
        (pyro.condition(by_size, {"z": Y}), r"site 'y'.*'rows' has 2 of 6 rows.*obs=y\[i\]"),
    ],
)
def test_what_pyro_refuses_is_told_with_a_way_out(model: Any, said: str) -> None:
    with pytest.raises(guides.DataError, match=said):
        guides.fit(model, "mean_field", Y, steps=10**6)
