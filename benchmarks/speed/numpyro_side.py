"""The implementations that run on NumPyro. ``worker.py`` loads this file in an interpreter that may have nothing of ours."""

from __future__ import annotations

import importlib.metadata
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

try:
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from numpyro.infer import SVI, Trace_ELBO
    from numpyro.infer.autoguide import AutoNormal
    from numpyro.infer.initialization import init_to_value
except ImportError:  # an optional extra: without it nobody runs this file, but tools may look at it
    pass

__all__ = ["facts", "open"]

CONTENDERS = ("numpyro_update", "numpyro_scan")
WARM_UP_CALLS = 3


def _mlp(case: dict[str, Any]) -> Callable[..., None]:
    sizes = case["sizes"]

    def model(x: Any, y: Any) -> None:
        h = x
        for i, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
            prior = dist.Normal(0.0, fan_in**-0.5).expand((fan_in, fan_out)).to_event(2)
            weight = numpyro.sample(f"layers.{i}.weight", prior)
            bias = numpyro.sample(f"layers.{i}.bias", dist.Normal(0.0, 1.0).expand((fan_out,)).to_event(1))
            h = (jax.nn.relu(h) if i else h) @ weight + bias
        if case["likelihood"] == "multiclass":
            likelihood = dist.Categorical(logits=h)
        else:
            likelihood = dist.Normal(h.squeeze(-1), numpyro.sample("sigma", dist.LogNormal(-2.0, 1.0)))
        with numpyro.handlers.scale(scale=case["rows"] / x.shape[0]), numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", likelihood, obs=y)

    return model


def _schools(x: Any, y: Any) -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("schools", x.shape[0]):
        theta = mu + tau * numpyro.sample("theta_trans", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(theta, x), obs=y)


def _vae(case: dict[str, Any], start: dict[str, Any]) -> tuple[Callable[..., None], Callable[..., None]]:
    latents = case["sizes"][-1]

    def layer(name: str, h: Any) -> Any:
        weight = numpyro.param(f"{name}.weight", start[f"{name}.weight"])
        return h @ weight + numpyro.param(f"{name}.bias", start[f"{name}.bias"])

    def model(x: Any) -> None:
        with numpyro.handlers.scale(scale=case["rows"] / x.shape[0]), numpyro.plate("data", x.shape[0]):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand((latents,)).to_event(1))
            logits = layer("decoder.logits", jax.nn.softplus(layer("decoder.hidden", z)))
            numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(x: Any) -> None:
        with numpyro.handlers.scale(scale=case["rows"] / x.shape[0]), numpyro.plate("data", x.shape[0]):
            hidden = jax.nn.softplus(layer("encoder.hidden", x))
            loc, scale = layer("encoder.loc", hidden), jnp.exp(layer("encoder.log_scale", hidden))
            numpyro.sample("z", dist.Normal(loc, scale).to_event(1))

    return model, guide


class _Contender:
    """A jitted ``svi.update``, called once per step or, by ``lax.scan``, once per chunk of steps; replicates by ``vmap``.

    Minibatches are gathered inside the compiled function from rows drawn before anything is timed.
    """

    def __init__(self, case: dict[str, Any], start: dict[str, Any], data: tuple[Any, ...], scan: bool) -> None:
        if case["kind"] == "vae":
            model, guide = _vae(case, start)
        else:
            model = _schools if case["kind"] == "schools" else _mlp(case)
            initial = init_to_value(values={name: jnp.asarray(value) for name, value in start.items()})
            guide = AutoNormal(model, init_loc_fn=initial, init_scale=case["init_scale"])
        svi = SVI(model, guide, numpyro.optim.Adam(case["lr"]), Trace_ELBO(num_particles=case["particles"]))
        batch, count = case["batch"], case["replicates"]
        state = svi.init(jax.random.PRNGKey(0), *(a[: batch or len(a)] for a in data))
        if count > 1:
            copies = jax.tree_util.tree_map(lambda a: jnp.broadcast_to(a, (count, *jnp.shape(a))), state)
            state = copies._replace(rng_key=jax.random.split(jax.random.PRNGKey(1), count))

        def step(state: Any, rows: Any, *data: Any) -> Any:
            def one(state: Any, rows: Any) -> Any:
                return svi.update(state, *(a[rows] if batch else a for a in data))

            return one(state, rows) if count == 1 else jax.vmap(one)(state, rows)

        def loop(state: Any, rows: Any, *data: Any) -> Any:
            return jax.lax.scan(lambda state, rows: step(state, rows, *data), state, rows)

        self._call = jax.jit(loop if scan else step)
        self._state, self._data = state, tuple(jnp.asarray(a) for a in data)
        self.steps: int = case["chunk"] if scan else 1
        draw = np.random.default_rng(1)
        shape = (*((self.steps,) if scan else ()), *((count,) if count > 1 else ()), batch or 1)
        self._rows = [draw.integers(0, case["rows"], shape, dtype=np.int32) for _ in range(4 if scan else 64)]
        self._next = 0
        self._history: list[float] = []

    def run(self, steps: int) -> list[Any]:
        """Take steps and return their losses, computed."""
        collected = []
        for _ in range(max(1, steps // self.steps)):
            self._next = (self._next + 1) % len(self._rows)
            self._state, losses = self._call(self._state, self._rows[self._next], *self._data)
            collected.append(losses)
        jax.block_until_ready((self._state, collected))
        return collected

    def train(self, steps: int) -> list[float]:
        """Return the losses of the first ``steps`` steps, taking those that are still missing."""
        while len(self._history) < steps:
            for losses in self.run(max(self.steps, min(50, steps - len(self._history)))):
                found = np.asarray(losses).reshape(self.steps, -1).mean(1)
                self._history += [float(loss) for loss in found]
        return self._history[:steps]


def open(case: dict[str, Any], arrays: str, contender: str) -> _Contender:
    """Build an implementation of a case and run it a few times, so that everything is compiled."""
    with np.load(arrays) as found:
        values = {name: found[name] for name in found.files}
    start = {name.removeprefix("start/"): value for name, value in values.items() if name.startswith("start/")}
    data = tuple(values[name] for name in ("x", "y") if name in values)
    if contender not in CONTENDERS:
        raise ValueError(f"{contender!r} is none of {', '.join(CONTENDERS)}")
    ready = _Contender(case, start, data, scan=contender == "numpyro_scan")
    ready.train(WARM_UP_CALLS * ready.steps)
    return ready


def facts() -> dict[str, Any]:
    """Return versions and the device."""
    names = ("numpyro", "jax", "jaxlib", "numpy")
    devices = [str(device) for device in jax.devices()]
    return {"versions": {name: importlib.metadata.version(name) for name in names}, "devices": devices}
