"""``compare`` on an executor: the same table, and one line where something cannot be sent or is lost."""

from __future__ import annotations

from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

import pyro
import pyro.distributions as dist
import pytest
import torch

import guides

X = torch.tensor([0.5, 1.0, 1.5, -0.5])
OPTIONS = {"steps": 30, "compile": "eager", "num_samples": 50, "progress": False}


def model(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


class Lost(Executor):
    """Loses the worker of every call but the first."""

    def __init__(self):
        self.calls = 0

    def submit(self, fn, /, *args, **kwargs):
        self.calls += 1
        future = Future()
        if self.calls > 1:
            future.set_exception(BrokenProcessPool("a process died"))
        else:
            future.set_result(fn(*args, **kwargs))
        return future


def test_processes_give_the_table_that_this_process_gives():
    here = guides.compare(model, ["mean_field", "map"], X, **OPTIONS)
    with ProcessPoolExecutor(1, get_context("fork")) as pool:
        there = guides.compare(model, ["mean_field", "map"], X, executor=pool, **OPTIONS)
    assert [(r.guide, r.verdict) for r in here.rows] == [(r.guide, r.verdict) for r in there.rows]
    assert here.rows[0].elbo == pytest.approx(there.rows[0].elbo, rel=1e-5)
    assert there.posteriors["mean_field"].sample(3)["z"].shape == (3,)


def test_what_cannot_be_sent_is_said_before_any_work():
    local = lambda x: model(x)  # noqa: E731
    with ProcessPoolExecutor(1, get_context("fork")) as pool:
        with pytest.raises(guides.errors.OptionError, match="cannot be sent to the executor's workers") as e:
            guides.compare(local, ["map"], X, executor=pool, **OPTIONS)
        assert "\n" not in str(e.value)
    with pytest.raises(guides.errors.OptionError, match="executor is a str; pass a concurrent"):
        guides.compare(model, ["map"], X, executor="dask", **OPTIONS)


def test_a_worker_that_dies_costs_its_guide():
    table = guides.compare(model, ["mean_field", "map"], X, executor=Lost(), **OPTIONS)
    assert {r.guide: r.verdict == "failed" for r in table.rows} == {"mean_field": False, "map": True}
    assert "a process died" in str(table)
