"""Handlers, roles and plates, one and two at a time, against what stock Pyro says of the same draws.

``python tests/guides/handler_walk.py`` tries every handler and every ordered pair of handlers on every shape (3,600 cases,
20 minutes) and prints how many were right, refused (where stock Pyro cannot run the model either) and wrong; a slice of them
with ``python tests/guides/handler_walk.py START END STEP``. The suite takes a sample.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import traceback
import warnings
from collections import Counter
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
from pyro.infer.reparam import AutoReparam, LocScaleReparam, TransformReparam
from torch import Tensor

import guides
from guides import errors

Y = torch.tensor([0.5, 1.5, -0.3, 2.0, 0.8, 1.1])
PANEL = torch.arange(12.0).reshape(4, 3) / 5 - 1
DATA = {
    "no plate": Y[0],
    "a plate": Y,
    "two plates": PANEL,
    "nested": PANEL,
    "an event": PANEL,
    "part": Y,
    "index": Y,
    "loop": Y[:2],
    "one row": Y[:1],
}
DIMS = {
    "no plate": (),
    "a plate": ("rows",),
    "two plates": ("rows", "columns"),
    "nested": ("rows", "columns"),
    "an event": ("rows", "y_dim_1"),
    "part": ("rows",),
    "index": ("rows",),
    "loop": (),
    "one row": ("rows",),
}


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
    "scoped": lambda a: a.model.append(lambda m, y: scope(m, prefix="pre")),
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

    def data(fn: Any, y: Tensor, rows: Tensor, name: str = "y") -> None:
        with contextlib.ExitStack() as stack:
            for enter in around.data:
                stack.enter_context(enter(rows))
            pyro.sample(name, fn, obs=y if around.observe or shape == "loop" else None)

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
        elif shape == "loop":
            for i in pyro.plate("rows", len(y)):
                z = pyro.sample(f"z{i}", dist.Normal(theta, 1.0))
                data(dist.Normal(z, s), y[i], y[i], f"y{i}")
        else:
            part: dict[str, Any] = {}
            if shape in ("part", "index") and not whole:
                part = {"subsample_size": 2} if shape == "part" else {"subsample": torch.randperm(len(y))[:2]}
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


def plain(name: str) -> str:
    return name.rpartition("/")[2]


def check(shape: str, names: tuple[str, ...], guide: str = "mean_field", everything: bool = False) -> str:
    """Return ``"right"``, or ``"refused"`` where stock Pyro cannot run the model either.

    :raises AssertionError: if something is otherwise than stock Pyro has it.
    """
    model, around = built(shape, names)
    y = DATA[shape]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            poutine.trace(model).get_trace(y).compute_log_prob()
    except (AssertionError, AttributeError, ValueError):
        with pytest.raises((errors.DataError, errors.UnsupportedModelError), match=r"site '"):
            guides.fit(model, guide, y, steps=10**6)
        return "refused"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the model cannot be vectorised")
        warnings.filterwarnings(
            "ignore", message="pyro.module data did not find params"
        )  # Pyro's substitute, of lifted ones
        posterior = guides.fit(model, guide, y, steps=2, lr=1e-7, compile="eager")
        draws = posterior.draws(2, predictive=True)
        _check_draws(shape, names, posterior, draws)
        points = sum(int(v.sum()) for n, v in draws.counted.items() if plain(n).startswith("y"))
        everywhere = sum(v.numel() for n, v in draws.counted.items() if plain(n).startswith("y"))
        wanted = int(half(y[:, 1] if shape == "an event" else y).sum()) if around.masked else everywhere
        assert points == wanted, "points of an elpd"
        if everything and draws.log_likelihood:
            _check_after(shape, names, posterior, draws, wanted)
    return "right"


def _check_draws(shape: str, names: tuple[str, ...], posterior: Any, draws: Any) -> None:
    reference, _ = built(shape, names, whole=True)
    y = DATA[shape]
    found = poutine.trace(reference).get_trace(y).nodes
    samples = {n: s for n, s in found.items() if s["type"] == "sample" and not poutine.util.site_is_subsample(s)}
    drawn = {n for n, s in samples.items() if not s["is_observed"]}
    computed = {n for n, s in samples.items() if s["is_observed"] and is_point(s["fn"])}
    observed = {n for n, s in samples.items() if s["is_observed"] and plain(n)[0] in "xy"}
    assert set(draws.latents) == drawn
    assert set(draws.log_likelihood) == set(draws.predictive) == observed
    assert set(draws.deterministic) == computed
    for k in range(2):
        values = {name: value[0, k] for name, value in draws.latents.items()}
        trace = poutine.trace(poutine.condition(reference, values)).get_trace(y)
        torch.testing.assert_close(draws.log_p[0, k], torch.as_tensor(trace.log_prob_sum()), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(draws.log_q[0, k], posterior.log_prob(values), rtol=1e-4, atol=1e-3)
        for n in observed:
            torch.testing.assert_close(draws.log_likelihood[n][0, k].sum(), trace.nodes[n]["log_prob_sum"])
        for n in computed:
            torch.testing.assert_close(draws.deterministic[n][0, k], trace.nodes[n]["value"])
    if shape not in ("part", "index"):  # whose steps see parts of the rows
        warnings.filterwarnings("ignore", message="Found plate statements in guide but not model")  # scopes rename them
        losses = torch.tensor([Trace_ELBO().loss(reference, posterior.guide, y) for _ in range(4)])
        assert abs(float(posterior.losses.mean() - losses.mean())) < 8 * float(losses.std()) + 2e-2, "loss"


def _check_after(shape: str, names: tuple[str, ...], posterior: Any, draws: Any, points: int) -> None:
    tree = posterior.to_arviz(num_samples=2, prior_samples=2)

    def written(group: str) -> set[str]:
        """The sites of a group; a name with "/", which files cannot hold, is kept beside the one in its place."""
        return {str(value.attrs.get("site", name)) for name, value in tree[group].data_vars.items()}

    assert written("posterior") == set(draws.latents) | set(draws.deterministic)
    assert written("observed_data") == set(draws.log_likelihood)
    assert written("posterior_predictive") == set(draws.predictive)
    for name, variable in tree["posterior_predictive"].data_vars.items():
        if plain(name)[0] == "y":
            assert tuple(d.replace(name, plain(name)) for d in variable.dims[2:]) == DIMS[shape]
    for name, variable in tree["posterior"].data_vars.items():
        if plain(name).startswith(("theta", "twice")):
            assert variable.dims[2:] == (("columns",) if shape in ("two plates", "nested") else ())
        if plain(name) == "z":
            assert variable.dims[2:] == ("rows",)
    if names == ("fixed latent",):
        assert float(tree["constant_data"]["s"]) == pytest.approx(1.7)
    elpd = posterior.diagnose(num_samples=40).elpd
    if points > 1:  # one point has no other to be left out of
        assert sum(e.num_points for n, e in elpd.items() if plain(n)[0] == "y") == points, "points of the elpd"
    for name, value in posterior.predict(num_samples=8).items():
        if plain(name)[0] == "y":
            assert bool((value.std(0) > 0.02).all()), "predictions are drawn anew"


def ordered_pairs() -> list[tuple[str, str]]:
    """Return every ordered pair of handlers: the second stands around the first."""
    return list(itertools.permutations(HANDLERS, 2))


def sample_of_pairs(count: int) -> list[tuple[tuple[str, str], str]]:
    """Return ``count`` pairs with a shape each, spread so that every handler comes first and second, and every shape."""
    names, shapes = list(HANDLERS), list(DATA)
    found = [(names[k % len(names)], names[(k * 7 + 3) % len(names)], shapes[k % len(shapes)]) for k in range(2 * count)]
    return [((a, b), shape) for a, b, shape in found if a != b][:count]


def main(start: int = 0, end: int | None = None, step: int = 1) -> int:
    """Try ordered pairs of handlers, and single ones, on every shape; return how many were wrong."""
    jobs = [(names, shape) for names in [*((n,) for n in HANDLERS), *ordered_pairs()] for shape in DATA]
    counts: Counter[str] = Counter()
    for names, shape in jobs[start:end:step]:
        pyro.clear_param_store()
        torch.manual_seed(0)
        try:
            said = check(shape, names, everything=True)
        except Exception as error:
            said = "wrong" if isinstance(error, AssertionError) else "refused late or unclearly"
            where = traceback.extract_tb(error.__traceback__)
            line = next(f.lineno for f in reversed(where) if f.filename == __file__)
            print(
                f"{said}: {' + '.join(names)}, {shape}, line {line}: {type(error).__name__}: {str(error)[:300]}", flush=True
            )
        counts[said] += 1
    print(", ".join(f"{n} {said}" for said, n in counts.items()))
    return counts.total() - counts["right"] - counts["refused"]


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
