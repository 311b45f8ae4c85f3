"""Recorded steps: the bookkeeping around a recording on any machine, the recording itself where there is a GPU."""

from __future__ import annotations

import pytest
import torch

import guides
import zoo
from guides.compile import cuda_graphs
from guides.compile.cuda_graphs import RecordedLoop
from tests.guides.test_native import traced


def step(a, b, shift, x):
    return a * 0.9 + x + shift, b + a, (a * b).sum(1)


@pytest.fixture
def example():
    torch.manual_seed(0)
    return (torch.randn(2, 4), torch.randn(2, 4)), (torch.randn(4),), (torch.randn(2, 6, 4),)


@pytest.mark.parametrize("steps", [6, 4, 1])
def test_a_chunk_of_replays_is_as_many_steps_of_the_graph(steps, example, monkeypatch):
    """A recording is stood in for by the function itself, run some times beforehand, as a recording is."""
    state, shared, varying = example

    def record(function):
        for _ in range(4):
            function()
        return function

    monkeypatch.setattr(cuda_graphs, "record", record)
    graph = traced(step, *state, *shared, *(v[:, 0] for v in varying))
    loop = RecordedLoop(graph, state, shared, varying)
    loop.check(state, shared, varying)
    for attempt in range(2):  # the second with other data
        data = tuple(t + attempt for t in shared)
        new, losses = loop(state, data, tuple(v[:, :steps] for v in varying))
        expected, each = state, []
        for k in range(steps):
            *expected, loss = graph(*expected, *data, *(v[:, k] for v in varying))
            each.append(loss)
        torch.testing.assert_close(losses, torch.stack(each, 1))
        torch.testing.assert_close(tuple(new), tuple(expected))


def test_a_recording_that_does_something_else_is_found(example, monkeypatch):
    state, shared, varying = example
    monkeypatch.setattr(cuda_graphs, "record", lambda function: lambda: None)
    loop = RecordedLoop(traced(step, *state, *shared, *(v[:, 0] for v in varying)), state, shared, varying)
    with pytest.raises(RuntimeError, match="other numbers"):
        loop.check(state, shared, varying)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_recorded_fit_is_the_eager_fit():
    x = torch.randn(300, 3)
    y = x[:, 0].sin()
    model = zoo.BayesianMLP(3, hidden=(20,))
    options = {"steps": 60, "batch_size": 50, "replicates": 3, "device": "cuda"}
    recorded = guides.fit(model, "mean_field", x, y, compile="auto", **options)
    eager = guides.fit(model, "mean_field", x, y, compile="eager", **options)
    torch.testing.assert_close(recorded.losses, eager.losses, rtol=1e-3, atol=1e-2)
