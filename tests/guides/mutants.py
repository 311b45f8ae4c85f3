"""Steps in which one operation is wrong, for the check of compiled loops; ``python -m tests.guides.mutants`` counts them.

A mutant is the graph of a step in which one operation is dropped (its first operand of the same shape stands for it), done
twice, done with its operands exchanged, or negated. A mutant that changes no number is none: one whose results in double
precision are nowhere further from the step's than the last place of single precision, at any of the points looked at.
"""

from __future__ import annotations

import copy
import random
import warnings
from collections import Counter
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide.initialization import init_to_value
from torch import Tensor, nn
from torch.fx import GraphModule, Node

import guides
from guides.compile import executable
from guides.compile.agreement import Difference, Judge
from guides.compile.evaluation import Reference, in_precision
from guides.compile.native.expressions import Unsupported
from guides.optimise import step

FAMILIES = ("mean_field", "full_rank", "low_rank", "map", "mixture", "amortized")
LOCATIONS = (0.0, 1e6)
_TELLABLE = 10.0
KINDS = ("drop", "repeat", "swap", "negate")


@dataclass
class Recorded:
    """What a fit would compile: a graph, and the tensors that it would start from."""

    graph: GraphModule
    state: tuple[Tensor, ...]
    shared: tuple[Tensor, ...]
    varying: tuple[Tensor, ...]
    judge: Judge

    @cached_property
    def reference(self) -> Reference:
        """The graph as the check knows it."""
        return Reference(self.graph)

    def run(self, graph: GraphModule) -> Any:
        """Return a loop of a graph."""

        def loop(state: Any, shared: Any, varying: Any) -> Any:
            losses = []
            for k in range(varying[0].shape[1]):
                *state, loss = graph(*state, *shared, *(v[:, k] for v in varying))
                losses.append(loss)
            return tuple(state), torch.stack(losses, 1)

        return loop

    def difference(self, graph: GraphModule) -> Difference | None:
        """Return what the check finds in a loop of another graph."""
        return self.judge.difference(self.run(graph), self.reference, self.state, self.shared, self.varying)

    def same(self, graph: GraphModule) -> bool:
        """Tell whether another graph gives the same numbers up to rounding, at some points near the state.

        What rounding does is the difference of results in single and double precision.
        """
        moved = (self.state[0] + 0.1, *(0.3 * s.abs().amax() + 0.01 + 0 * s for s in self.state[1:]))
        other, results = in_precision(graph, torch.float64), []
        for state in (self.state, moved):
            for k in range(min(3, self.varying[0].shape[1])):
                inputs = (*state, *self.shared, *(v[:, k] for v in self.varying))
                results.append(tuple(g(*inputs) for g in (other, self.reference.other, self.graph)))
        for found, meant, rounded in (zip(*run) for run in zip(*(zip(*r) for r in results))):
            found, meant, rounded = (torch.stack(t) for t in (found, meant, rounded))
            last = torch.finfo(torch.float32).eps * meant.abs()
            noise = torch.maximum(last, (rounded - meant).abs()).amax(0)
            if not bool(((found - meant).abs() <= _TELLABLE * noise).all()):
                return False
        return True


def line(location: float, x: Tensor, y: Tensor | None = None) -> None:
    """A regression whose intercept is near a number."""
    base = pyro.sample("base", dist.Normal(location, 10.0))
    slope = pyro.sample("slope", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(base + x @ slope, scale), obs=y)


class Codes(nn.Module):
    """A small autoencoder of rows whose location is near a number."""

    def __init__(self, location: float) -> None:
        super().__init__()
        self.location = location
        self.mean = nn.Parameter(torch.tensor(location))
        self.decoder = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 4))

    def model(self, x: Tensor) -> None:
        pyro.module("codes", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z) + self.mean, 1.0).to_event(1), obs=x)


def record(family: str, location: float) -> Recorded:
    """Return what a fit of a small model at a location would compile."""
    found: list[Recorded] = []
    judges: list[Judge] = []

    def refuse(graph: GraphModule, *tensors: Any) -> None:
        found.append(Recorded(graph, *tensors, judges[-1]))
        raise Unsupported("nothing is compiled here")

    def told(*args: Any, **options: Any) -> Judge:
        judges.append(Judge(*args, **options))
        return judges[-1]

    pyro.set_rng_seed(0)
    options: dict[str, Any] = {"steps": 40, "lr": 0.01, "compile": "native", "clip_norm": 1e7}
    noise = torch.randn(12, 3)
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        patch.setattr(executable, "NativeLoop", refuse)
        patch.setattr(step, "Judge", told)
        if family == "amortized":
            rows = location + torch.randn(12, 4)
            guide = (family, {"encoder": nn.Sequential(nn.Linear(4, 6), nn.Tanh())})
            guides.fit(Codes(location).model, guide, rows, batch_size=6, **options)
        else:
            start = {"base": torch.tensor(location), "slope": torch.tensor([0.3, -0.2]), "scale": torch.tensor(0.7)}
            guide = (family, {"init_loc_fn": init_to_value(values=start)})
            guides.fit(partial(line, location), guide, noise[:, :2], location + noise.sum(1), **options)
    return found[0]


def mutant(graph: GraphModule, kind: str, name: str) -> GraphModule | None:
    """Return a graph in which one operation is wrong, ``None`` if it cannot be wrong in that way."""
    body = copy.deepcopy(graph.graph)
    node = next(n for n in body.nodes if n.name == name)
    if not _mutated(body, node, kind):
        return None
    body.eliminate_dead_code()
    return GraphModule(graph, body)


def _mutated(body: Any, node: Node, kind: str) -> bool:
    alike = [a for a in node.args if isinstance(a, Node) and _is_float(a) and _shape(a) == _shape(node)]
    operands = [i for i, a in enumerate(node.args) if isinstance(a, Node) and _is_float(a)]
    if "_." in str(node.target):
        return False
    if kind == "drop" and alike:
        node.replace_all_uses_with(alike[0])
        return True
    if kind == "swap" and len(operands) > 1 and _shape(node.args[operands[0]]) == _shape(node.args[operands[1]]):
        args = list(node.args)
        args[operands[0]], args[operands[1]] = args[operands[1]], args[operands[0]]
        node.args = tuple(args)
        return True
    if kind in ("negate", "repeat"):
        with body.inserting_after(node):
            if kind == "negate":
                again = body.call_function(torch.ops.aten.neg.default, (node,))
            elif alike:
                again = body.call_function(node.target, node.args, node.kwargs)
            else:
                return False
        again.meta = dict(node.meta)
        node.replace_all_uses_with(again, delete_user_cb=lambda user: user is not again)
        if kind == "repeat":
            place = node.args.index(alike[0])
            again.args = (*node.args[:place], node, *node.args[place + 1 :])
        return True
    return False


def _is_float(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()


def _shape(node: Any) -> Any:
    return tuple(node.meta["val"].shape)


def sample(recorded: Recorded, count: int, seed: int) -> list[tuple[str, GraphModule]]:
    """Return some mutants that change numbers, of all kinds in turn."""
    chosen: list[tuple[str, GraphModule]] = []
    names = [node.name for node in recorded.graph.graph.nodes if node.op == "call_function" and _is_float(node)]
    ways = {kind: random.Random(seed + k).sample(names, len(names)) for k, kind in enumerate(KINDS)}
    while len(chosen) < count and any(ways.values()):
        for kind, left in ways.items():
            while left:
                name = left.pop()
                graph = mutant(recorded.graph, kind, name)
                if graph is not None and not recorded.same(graph):
                    chosen.append((f"{kind} {name}", graph))
                    break
    return chosen[:count]


def main(count: int = 10_000) -> None:
    """Print how many mutants the check finds, of each family and location."""
    torch.set_num_threads(1)
    total: Counter[str] = Counter()
    for family in FAMILIES:
        for location in LOCATIONS:
            recorded = record(family, location)
            assert recorded.difference(recorded.graph) is None
            missed = []
            tried = sample(recorded, count, seed=0)
            for name, graph in tried:
                if recorded.difference(graph) is None:
                    missed.append(name)
            total.update(tried=len(tried), missed=len(missed))
            print(f"{family:<12} near {location:<9g} {len(tried) - len(missed)} of {len(tried)} {missed}", flush=True)
    print(f"caught: {total['tried'] - total['missed']} of {total['tried']}")


if __name__ == "__main__":
    import sys

    main(*map(int, sys.argv[1:]))
