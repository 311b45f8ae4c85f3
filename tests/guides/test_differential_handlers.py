"""A sample of ``handler_walk.py``: handlers, roles and plates against stock Pyro; and roles that it does not have."""

from __future__ import annotations

import copy
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from handler_walk import DATA, HANDLERS, Y, check, sample_of_pairs
from pyro import poutine
from pyro.contrib.autoname import scope
from pyro.infer.reparam import DiscreteCosineReparam, HaarReparam, TransformReparam
from torch import Tensor

import guides
from guides import errors

PAIRS = sample_of_pairs(22)


@pytest.mark.parametrize(("name", "shape"), [(n, list(DATA)[k % len(DATA)]) for k, n in enumerate(HANDLERS)])
def test_a_handler_means_what_it_means_in_pyro(name: str, shape: str) -> None:
    check(shape, (name,), guide="full_rank", everything=True)


@pytest.mark.parametrize(("names", "shape"), PAIRS, ids=lambda v: v if isinstance(v, str) else " + ".join(v))
def test_two_handlers_mean_what_they_mean_in_pyro(names: tuple[str, str], shape: str) -> None:
    check(shape, names)


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

    with pytest.raises(errors.UnsupportedModelError, match=r"'z' is a point mass.*pyro\.deterministic\('z'"):
        guides.fit(model, "mean_field", Y, steps=10**9)


@pytest.mark.parametrize("strategy", [HaarReparam(dim=-1), DiscreteCosineReparam(dim=-1)])
def test_reparametrisations_whose_transforms_have_caches(strategy: Any) -> None:
    def model(y: Tensor) -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0).expand([len(y)]).to_event(1))
        pyro.sample("y", dist.Normal(x.cumsum(-1), 1.0).to_event(1), obs=y)

    handled = poutine.reparam(model, {"x": strategy})
    posterior = copy.deepcopy(guides.fit(handled, "mean_field", Y, steps=2, compile="eager"))
    draws = posterior.draws(1)
    values = {name: value[0, 0] for name, value in draws.latents.items()}
    trace = poutine.trace(poutine.condition(handled, values)).get_trace(Y)
    torch.testing.assert_close(draws.log_p[0, 0], torch.as_tensor(trace.log_prob_sum()))


def test_the_start_of_a_series_is_data_if_the_series_is() -> None:
    def model() -> None:
        phi = pyro.sample("phi", dist.Normal(0.0, 0.5))
        x = pyro.sample("x0", dist.Normal(0.0, 1.0))
        for t in range(1, len(Y)):
            x = pyro.sample(f"x{t}", dist.Normal(phi * x, 1.0))

    data = {f"x{t}": y for t, y in enumerate(Y)}
    posterior = guides.fit(pyro.condition(model, data), "mean_field", steps=2, compile="eager")
    assert set(posterior.draws(2).log_likelihood) == set(data)
    assert posterior.predict(num_samples=20)["x0"].std() > 0.3


@pytest.mark.parametrize(
    "around",
    [
        lambda m: poutine.reparam(m, {"s": TransformReparam()}),
        lambda m: scope(m, prefix="pre"),
    ],
)
def test_a_fixed_latent_is_no_data_under_handlers_that_rename_it(around: Any) -> None:
    def model(y: Tensor) -> None:
        s = pyro.sample("s", dist.LogNormal(0.0, 0.3))
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(z, s), obs=y)

    fixed = around(pyro.condition(model, {"s": torch.tensor(1.7)}))
    draws = guides.fit(fixed, "mean_field", Y, steps=1, compile="eager").draws(1)
    assert [name.rpartition("/")[2] for name in draws.log_likelihood] == ["y"]
