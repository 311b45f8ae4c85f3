"""Handlers, roles and plates, alone and in pairs, against what stock Pyro says of the same draws."""

from __future__ import annotations

import contextlib
import copy
import itertools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.contrib.autoname import scope
from pyro.infer import Trace_ELBO
from pyro.infer.reparam import AutoReparam, DiscreteCosineReparam, HaarReparam, LocScaleReparam, TransformReparam
from torch import Tensor

import guides

Y = torch.tensor([0.5, 1.5, -0.3, 2.0, 0.8, 1.1])
PANEL = torch.arange(12.0).reshape(4, 3) / 5 - 1
DATA = {"no plate": Y[0], "a plate": Y, "two plates": PANEL, "nested": PANEL, "an event": PANEL, "part": Y, "one row": Y[:1]}


@dataclass
class Around:
    """What stands around the sites of a model, and around the model."""

    latent: list[Callable[[], Any]] = field(default_factory=list)
    data: list[Callable[[Tensor], Any]] = field(default_factory=list)
    model: list[Callable[[Any, Tensor], Any]] = field(default_factory=list)
    fixed: set[str] = field(default_factory=set)
    observe: bool = True
    masked: bool = False


def half(y: Tensor) -> Tensor:
    return y > 0.6


def fix(around: Around) -> None:
    around.fixed.add("s")
    around.model.append(lambda model, y: pyro.condition(model, {"s": torch.tensor(1.7)}))


def give(around: Around) -> None:
    around.observe = False
    around.model.append(lambda model, y: pyro.condition(model, {"y": y}))


def mask_rows(around: Around) -> None:
    around.masked = True
    around.data.append(lambda y: poutine.mask(mask=half(y)))


HANDLERS: dict[str, Callable[[Around], None]] = {
    "tempered": lambda a: a.model.append(lambda m, y: poutine.scale(m, 2.5)),
    "scaled by a tensor": lambda a: a.model.append(lambda m, y: poutine.scale(m, torch.tensor(0.3))),
    "scaled prior": lambda a: a.latent.append(lambda: poutine.scale(scale=0.2)),
    "weighted rows": lambda a: a.data.append(lambda y: poutine.scale(scale=y.square() + 0.1)),
    "flat prior": lambda a: a.latent.append(lambda: poutine.mask(mask=False)),
    "mask that is true": lambda a: a.latent.append(lambda: poutine.mask(mask=True)),
    "masked rows": mask_rows,
    "fixed latent": fix,
    "data by condition": give,
    "do": lambda a: a.model.append(lambda m, y: poutine.do(m, {"s": torch.tensor(1.7)})),
    "lift": lambda a: a.model.append(lambda m, y: poutine.lift(m, {"loc": dist.Normal(0.0, 2.0)})),
    "substitute": lambda a: a.model.append(lambda m, y: poutine.substitute(m, {"loc": torch.tensor(-0.4)})),
    "decentred": lambda a: a.model.append(lambda m, y: poutine.reparam(m, {"theta": LocScaleReparam(0.0)})),
    "partly centred": lambda a: a.model.append(lambda m, y: poutine.reparam(m, {"theta": LocScaleReparam()})),
    "transformed": lambda a: a.model.append(lambda m, y: poutine.reparam(m, {"s": TransformReparam()})),
    "reparametrised": lambda a: a.model.append(lambda m, y: poutine.reparam(m, AutoReparam())),
    "blocked": lambda a: a.model.append(lambda m, y: poutine.block(m, hide=["twice"])),
    "configured": lambda a: a.model.append(lambda m, y: poutine.infer_config(m, lambda site: {"note": 1})),
    "Markov": lambda a: a.model.append(lambda m, y: poutine.markov(m)),
}


def built(shape: str, names: tuple[str, ...], whole: bool = False) -> tuple[Callable[..., Any], Around]:
    around = Around()
    for name in names:
        HANDLERS[name](around)

    def latent(loc: Any) -> Tensor:
        with contextlib.ExitStack() as stack:
            for enter in around.latent:
                stack.enter_context(enter())
            theta: Tensor = pyro.sample("theta", dist.Normal(loc, 1.5))
        return theta

    def data(fn: Any, y: Tensor, rows: Tensor) -> None:
        with contextlib.ExitStack() as stack:
            for enter in around.data:
                stack.enter_context(enter(rows))
            pyro.sample("y", fn, obs=y if around.observe else None)

    def model(y: Tensor) -> Tensor:
        loc = pyro.param("loc", torch.tensor(0.3))
        s = pyro.sample("s", dist.LogNormal(0.0, 0.3))
        if shape in ("two plates", "nested"):
            rows, columns = pyro.plate("rows", 4, dim=-2), pyro.plate("columns", 3, dim=-1)
            with columns:
                theta = latent(loc)
                pyro.deterministic("twice", 2 * theta, event_dim=0)
            if shape == "two plates":
                with rows, columns:
                    data(dist.Normal(theta, s), y, y)
                return theta
            with rows:
                r = pyro.sample("r", dist.Normal(0.0, 0.5))
                pyro.sample("x", dist.Normal(r, s), obs=y[:, :1])
                with columns:
                    data(dist.Normal(theta + r, s), y, y)
            return theta
        theta = latent(loc)
        pyro.factor("tilt", -0.1 * theta.square())
        pyro.deterministic("twice", 2 * theta)
        if shape == "no plate":
            data(dist.Normal(theta, s), y, y)
        elif shape == "an event":
            with pyro.plate("rows", 4):
                data(dist.Normal(theta, s).expand([4, 3]).to_event(1), y, y[:, 1])
        else:
            part = {"subsample_size": 2} if shape == "part" and not whole else {}
            with pyro.plate("rows", len(y), **part) as i:
                z = pyro.sample("z", dist.Normal(theta, 1.0))
                data(dist.Normal(z, s), y[i], y[i])
        return theta

    handled: Any = model
    for handler in around.model:
        handled = handler(handled, DATA[shape])
    return handled, around


def is_point(fn: Any) -> bool:
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return isinstance(fn, dist.Delta)


def check(shape: str, names: tuple[str, ...], everything: bool) -> None:
    model, around = built(shape, names)
    reference, _ = built(shape, names, whole=True)
    y = DATA[shape]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the model cannot be vectorised")
        posterior = guides.fit(model, "mean_field", y, steps=2, lr=1e-7, compile="eager")
        draws = posterior.draws(2, predictive=True)
    found = poutine.trace(reference).get_trace(y).nodes
    samples = {n: s for n, s in found.items() if s["type"] == "sample" and not poutine.util.site_is_subsample(s)}
    drawn = {n for n, s in samples.items() if not s["is_observed"]}
    computed = {n for n, s in samples.items() if s["is_observed"] and is_point(s["fn"])}
    observed = {n for n in samples if n in ("x", "y")}
    assert set(draws.latents) == drawn
    assert set(draws.log_likelihood) == set(draws.predictive) == observed
    assert set(draws.deterministic) == computed
    for k in range(2):
        values = {name: value[0, k] for name, value in draws.latents.items()}
        trace = poutine.trace(poutine.condition(reference, values)).get_trace(y)
        torch.testing.assert_close(draws.log_p[0, k], torch.as_tensor(trace.log_prob_sum()), rtol=1e-4, atol=1e-4)
        for n in observed:
            torch.testing.assert_close(draws.log_likelihood[n][0, k].sum(), trace.nodes[n]["log_prob_sum"])
        for n in computed:
            torch.testing.assert_close(draws.deterministic[n][0, k], trace.nodes[n]["value"])
    if shape != "part":  # whose steps see parts of the rows
        losses = torch.tensor([Trace_ELBO().loss(reference, posterior.guide, y) for _ in range(4)])
        assert abs(float(posterior.losses.mean() - losses.mean())) < 8 * float(losses.std()) + 2e-2
    points = int(draws.counted["y"].sum())
    assert points == (
        int(half(y[:, 1] if shape == "an event" else y).sum()) if around.masked else draws.counted["y"].numel()
    )
    if everything:
        tree = posterior.to_arviz(num_samples=2, prior_samples=2)
        assert set(tree["posterior"].data_vars) == drawn | computed
        assert set(tree["observed_data"].data_vars) == observed
        assert set(tree["posterior_predictive"].data_vars) == observed
        if "fixed latent" in names:
            assert float(tree["constant_data"]["s"]) == pytest.approx(1.7)
        spread = posterior.predict(num_samples=8)["y"].std(0)
        assert bool((spread > 0.05).all())


@pytest.mark.parametrize("name", HANDLERS)
def test_a_handler_means_what_it_means_in_pyro(name: str) -> None:
    check("a plate", (name,), everything=True)


@pytest.mark.parametrize(
    ("names", "shape"),
    [(pair, list(DATA)[k % len(DATA)]) for k, pair in enumerate(itertools.combinations(HANDLERS, 2))][:22],
    ids=lambda v: v if isinstance(v, str) else " + ".join(v),
)
def test_two_handlers_mean_what_they_mean_in_pyro(names: tuple[str, str], shape: str) -> None:
    check(shape, names, everything=False)


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
