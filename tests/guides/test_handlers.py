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
from guides import errors

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


@pytest.mark.filterwarnings("ignore:the model chooses the rows of plate 'rows' always alike")
@pytest.mark.parametrize("model", [by_size, by_index])
def test_latents_of_rows_that_are_never_seen_are_refused(model: Any) -> None:
    with pytest.raises(errors.UnsupportedModelError, match=r"latent site 'z'.*plate 'rows'.*2 of 6 rows.*without a seed"):
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
    with pytest.raises(errors.DataError, match=said):
        guides.fit(model, "mean_field", Y, steps=10**6)


def test_data_that_condition_holds_are_not_cut_into_batches() -> None:
    def model(y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(z, 0.5))

    with pytest.raises(errors.DataError, match=r"'rows' has 2 rows and the value 6.*as an argument of the model"):
        guides.fit(pyro.condition(model, {"y": Y}), "mean_field", Y, batch_size=2, steps=10**6)


def test_a_seed_that_fixes_the_rows_is_told() -> None:
    def model(y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(y), subsample_size=2) as i:
            pyro.sample("y", dist.Normal(z, 0.5), obs=y[i])

    with pytest.warns(errors.FixedSubsampleWarning, match=r"plate 'rows' always alike.*without a seed"):
        guides.fit(poutine.seed(model, 3), "mean_field", Y, steps=1, compile="eager")


@pytest.mark.parametrize("guide", ["mean_field", "full_rank"])
def test_latents_in_a_sequential_plate(guide: str) -> None:
    def model(y: Tensor) -> None:
        for i in pyro.plate("rows", len(y)):
            z = pyro.sample(f"z{i}", dist.Normal(0.0, 1.0))
            pyro.sample(f"y{i}", dist.Normal(z, 0.5), obs=y[i])

    draws = guides.fit(model, guide, Y[:2], steps=2, compile="eager").draws(1)
    z = torch.stack([draws.latents[f"z{i}"][0, 0] for i in range(2)])
    wanted = dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(z, 0.5).log_prob(Y[:2])
    torch.testing.assert_close(draws.log_p[0, 0], wanted.sum())


def test_latents_in_a_sequential_plate_of_some_rows_are_refused() -> None:
    def model(y: Tensor) -> None:
        for i in pyro.plate("rows", len(y), subsample_size=2):
            z = pyro.sample(f"z{i}", dist.Normal(0.0, 1.0))
            pyro.sample(f"y{i}", dist.Normal(z, 0.5), obs=y[i])

    with pytest.raises(errors.UnsupportedModelError, match=r"sequential plate 'rows'.*2 of 6.*a vectorised plate"):
        guides.fit(model, "mean_field", Y, steps=10**6)


def test_a_parameter_of_rows_in_a_plate_that_the_model_subsamples() -> None:
    def model(y: Tensor) -> None:
        with pyro.plate("rows", len(y), subsample_size=2) as i:
            b = pyro.param("b", lambda: torch.zeros(len(y)), event_dim=0)
            z = pyro.sample("z", dist.Normal(b, 1.0))
            pyro.sample("y", dist.Normal(z, 0.5), obs=y[i])

    posterior = guides.fit(model, "mean_field", Y, steps=20, lr=0.1, compile="eager")
    b = posterior.program.parameters.constrained(posterior.flat[0])["b"]
    assert b.shape == Y.shape
    assert bool((b != 0).all())
    draws = posterior.draws(1)
    z = draws.latents["z"][0, 0]
    wanted = dist.Normal(b, 1.0).log_prob(z) + dist.Normal(z, 0.5).log_prob(Y)
    torch.testing.assert_close(draws.log_p[0, 0], wanted.sum())


@pytest.mark.parametrize("event", [False, True])
def test_missing_values_that_the_distribution_masks(event: bool) -> None:
    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(y)):
            fn = dist.Normal(mu, 1.0).expand(y.shape).mask(~torch.isnan(y))
            pyro.sample("y", fn.to_event(1) if event else fn, obs=y)

    y = Y.reshape(3, 2).clone() if event else Y.clone()
    y[1] = torch.nan
    draws = guides.fit(model, "mean_field", y, steps=2, compile="eager").draws(1)
    mu, seen = draws.latents["mu"][0, 0], y[~torch.isnan(y)]
    wanted = dist.Normal(0.0, 1.0).log_prob(mu) + dist.Normal(mu, 1.0).log_prob(seen).sum()
    torch.testing.assert_close(draws.log_p[0, 0], wanted)
    assert int(draws.counted["y"].sum()) == len(y) - 1


def test_laplace_gives_the_original_of_a_reparametrised_site_as_it_is() -> None:
    def model(y: Tensor) -> None:
        s = pyro.sample("s", dist.LogNormal(0.0, 2.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(0.0, s), obs=y)

    handled = poutine.reparam(model, {"s": TransformReparam()})
    draws = guides.fit(handled, "laplace", Y[:2], steps=5, compile="eager").draws(200)
    torch.testing.assert_close(draws.deterministic["s"], draws.latents["s_base"].exp())


def test_a_deterministic_site_that_is_constant_is_diagnosed_without_a_warning() -> None:
    def model(y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.deterministic("c", torch.tensor(1.7))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(z, 0.5), obs=y)

    diagnosis = guides.fit(model, "mean_field", Y, steps=2, compile="eager").diagnose(num_samples=40)
    assert diagnosis.elpd["y"].num_points == len(Y)
