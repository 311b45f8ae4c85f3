"""What docs/native.md shows of one small model; ``python -m tests.guides.native_page`` writes it into the page."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule

import guides
from guides.compile import executable
from guides.compile.dumping import readable
from guides.compile.native.codegen import source
from guides.compile.native.expressions import Unsupported
from guides.compile.native.lowering import lower
from guides.compile.native.printing import kernels, memory_plan

PAGE = Path(__file__).resolve().parents[2] / "docs/native.md"


def model(y: Tensor) -> None:
    """Return nothing: a mean of known noise."""
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def blocks() -> dict[str, str]:
    """Return graph, kernels, memory and C++ of a step of the page's model."""
    found: list[Any] = []

    def refuse(graph: GraphModule, *tensors: Any) -> None:
        found.append((graph, tensors))
        raise Unsupported("nothing is compiled here")

    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch, pyro.validation_enabled(False):
        warnings.simplefilter("ignore")
        patch.setattr(executable, "NativeLoop", refuse)
        guides.fit(model, "map", torch.ones(5), steps=10, compile="native")
    graph, (state, shared, _) = found[0]
    lowered = lower(graph)
    emitted = source(lowered, len(state), len(shared), 1, 1)
    return {
        "graph": _fenced(readable(graph), "text"),
        "kernels": _fenced(kernels(lowered), "text"),
        "memory": _fenced(memory_plan(lowered, emitted), "text"),
        "source": _fenced(emitted.own, "cpp"),
    }


def _fenced(text: str, language: str) -> str:
    return f"```{language}\n{text.strip()}\n```"


def main() -> None:
    """Write the blocks into the page."""
    text = PAGE.read_text()
    for name, block in blocks().items():
        begin, end = f"<!-- native:{name} -->", f"<!-- end native:{name} -->"
        pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
        text = pattern.sub(lambda _, b=block, s=begin, e=end: f"{s}\n{b}\n{e}", text)
    PAGE.write_text(text)


if __name__ == "__main__":
    main()
