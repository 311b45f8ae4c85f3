"""Graphs lose what does nothing, and keep their numbers and what has an effect."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from guides.compile.simplify import simplified, with_constants_computed

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


def operations(graph):
    return [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]


def both(function, *inputs):
    """Return the simplified graph and the one that is replayed, after seeing that they give the function's numbers."""
    graph = simplified(make_fx(function)(*inputs))
    replayed = with_constants_computed(graph)
    for other in (inputs, tuple(2 * i + 1 for i in inputs)):
        torch.testing.assert_close(graph(*other), function(*other), rtol=0, atol=0)
        torch.testing.assert_close(replayed(*other), function(*other), rtol=0, atol=0)
    return graph, replayed


@pytest.mark.parametrize(
    "nothing",
    [
        lambda x: x * 1.0,
        lambda x: (x + 0.0) / 1,
        lambda x: x**1.0,
        lambda x: torch.neg(-x),
        lambda x: x.view(12).view(4, 3),
        lambda x: x.unsqueeze(0).expand(1, 4, 3).squeeze(0),
        lambda x: x.detach().reshape(4, 1, 3).sum(1),
        lambda x: x.reshape(4, 1, 3).mean(1),
    ],
)
def test_what_does_nothing_is_left_out(nothing):
    graph, _ = both(lambda x: torch.exp(nothing(x)), X)
    assert operations(graph) == ["aten.exp.default"]


@pytest.mark.parametrize(
    "something",
    [
        lambda x: x * 2.0,
        lambda x: x + 1,
        lambda x: 1.0 / x,
        lambda x: 1 - x,
        lambda x: x.double() * 1,
        lambda x: x.long() * 1.0,
        lambda x: x.sum(0),
        lambda x: x.view(3, 4),
        lambda x: x.reshape(4, 3, 1).expand(4, 3, 2),
    ],
)
def test_what_does_something_stays(something):
    graph, _ = both(something, X)
    assert operations(graph)


def test_what_a_later_view_needs_stays():
    """A product with one copies an expanded tensor, so that its elements lie one after the other."""
    both(lambda x: (x.unsqueeze(0).expand(2, 4, 3) * 1.0).view(24), X)


def test_equal_operations_are_done_once():
    graph, _ = both(lambda x: torch.exp(x) + torch.exp(x), X)
    assert operations(graph).count("aten.exp.default") == 1


def test_constants_are_computed_for_a_replay_and_left_to_a_compiler():
    def function(x):
        return x * torch.log(x.new_full((3,), 2.0)) + torch.zeros_like(x).exp()

    graph, replayed = both(function, X)
    assert "aten.log.default" in operations(graph)
    assert operations(replayed) == ["aten.mul.Tensor", "aten.add.Tensor"]


def test_random_numbers_are_drawn_anew():
    graph = with_constants_computed(simplified(make_fx(lambda x: x + torch.randn(3))(X)))
    assert not torch.equal(graph(X), graph(X))


def test_a_graph_that_writes_is_left_alone():
    def function(x):
        total = torch.zeros_like(x)
        total.add_(x)
        return total * 1.0

    _, replayed = both(function, X)
    assert torch.equal(replayed(X), replayed(X))
