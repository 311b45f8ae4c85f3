"""The check of compiled loops: what it finds, what it does not take for an error, and what it says."""

from __future__ import annotations

import warnings

import mutants
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide.initialization import init_to_value

import guides
from guides import errors
from guides.compile.evaluation import in_precision
from guides.compile.loops import has_compiler
from guides.compile.native.build import NativeLoop
from guides.compile.tracing import close

compiles = pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")


def shifted(y):
    """A location near 1000, whose last place is larger than a step, and one near 0."""
    far = pyro.sample("far", dist.Normal(1000.0, 10.0))
    near = pyro.sample("near", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(far + near, 1.0), obs=y)


def fit(y, **options):
    start = init_to_value(values={"far": torch.tensor(1000.0), "near": torch.tensor(0.0)})
    defaults = {"steps": 120, "lr": 0.01, "compile": "native"}
    return guides.fit(shifted, ("mean_field", {"init_loc_fn": start}), y, **{**defaults, **options})


@pytest.fixture
def data():
    return 1000 + torch.randn(20)


def stands_still(loop, state, shared, varying):
    new, losses = run(loop, state, shared, varying)
    return (state[0], *new[1:]), losses


def forgets(loop, state, shared, varying):
    new, losses = run(loop, state, shared, varying)
    return (*new[:-1], state[-1]), losses


def repeats_its_losses(loop, state, shared, varying):
    new, losses = run(loop, state, shared, varying)
    return new, losses[:, :1].expand_as(losses)


run = NativeLoop.__call__


@compiles
@pytest.mark.parametrize(
    ("wrong", "what"), [(stands_still, "the parameter"), (forgets, "state 2"), (repeats_its_losses, "the loss")]
)
def test_a_loop_that_does_not_do_what_its_graph_does_is_refused(wrong, what, data, monkeypatch):
    monkeypatch.setattr(NativeLoop, "__call__", wrong)
    with pytest.warns(errors.EagerFallbackWarning, match=f"gives other numbers: {what}.* step 3 is .* where .* is right"):
        traced = fit(data)
    torch.testing.assert_close(traced.losses, fit(data, compile="trace").losses)


@compiles
def test_a_loop_that_goes_wrong_later_is_found_at_the_end(data, monkeypatch):
    steps = [0]

    def late(loop, state, shared, varying):
        steps.append(varying[0].shape[1])
        return (stands_still if max(steps[:-1]) > 50 else run)(loop, state, shared, varying)

    monkeypatch.setattr(NativeLoop, "__call__", late)
    with pytest.warns(errors.EagerFallbackWarning, match="since step 3, when it was right, may be wrong"):
        fit(data)


@pytest.mark.parametrize(("family", "location"), [("mean_field", 0.0), ("mean_field", 1e6)])
def test_steps_with_one_wrong_operation_are_found(family, location):
    """A few; ``python -m tests.guides.mutants`` is for the others."""
    recorded = mutants.record(family, location)
    assert recorded.difference(recorded.graph) is None
    tried = mutants.sample(recorded, count=8, seed=1)
    assert {name.split()[0] for name, _ in tried} == set(mutants.KINDS)
    missed = [name for name, graph in tried if recorded.difference(graph) is None]
    print(f"caught: {len(tried) - len(missed)} of {len(tried)}")
    assert not missed


def test_gradients_of_rounding_size_are_no_difference():
    """At the optimum of a point estimate all gradients are rounding, and the signs of Adam's steps with them."""
    recorded = mutants.record("map", 0.0)
    state = recorded.state
    now = [v[:, 0] for v in recorded.varying]
    for k in range(600):
        now[0][:, 0] = 0.05 * (1 - k / 600)
        *state, _ = recorded.graph(*state, *recorded.shared, *now)
    now[0][:, 0] = 0.01
    start = (state[0], *(torch.zeros_like(s) for s in state[1:]))
    recorded.state = start

    def dithered(state, shared, varying):
        """The same steps with rounding errors of their own."""
        new, losses = recorded.run(in_precision(recorded.graph, torch.float64))(state, shared, varying)
        return tuple(n.float() for n in new), losses.float()

    steps = tuple(v[:, :1] for v in recorded.varying)
    one, other = (loop(start, recorded.shared, steps)[0][0] for loop in (dithered, recorded.run(recorded.graph)))
    assert not close(one, other), "what rounding decides is far more than rounding"
    assert recorded.judge.difference(dithered, recorded.reference, start, recorded.shared, recorded.varying) is None


def test_a_graph_in_double_precision_reads_large_data_as_they_are():
    x = torch.randn(1000, 3)
    index = torch.tensor([3, 5])
    graph = torch.fx.experimental.proxy_tensor.make_fx(lambda x, i: x.index_select(0, i).exp())(x, index)
    other = in_precision(graph, torch.float64)
    converted = [n for n in other.graph.nodes if "_to_copy" in str(n.target)]
    assert [n.args[0].target for n in converted] == [torch.ops.aten.index_select.default]
    torch.testing.assert_close(other(x, index), x[index].double().exp())


def test_a_right_loop_says_nothing(data):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(data, compile="auto", steps=60)


def test_a_warning_shows_the_line_of_the_caller(data):
    """However deep it arises: in tracing, and in vectorising particles."""

    def branches(y):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(z if z > 0 else 2 * z, 1.0), obs=y)

    for options in ({"compile": "trace"}, {"compile": "eager", "num_particles": 2}):
        with pytest.warns(errors.EagerFallbackWarning) as caught:
            guides.fit(branches, "mean_field", data, steps=3, **options)
        assert {warning.filename for warning in caught} == {__file__}
