"""The small fit that is done under most faults, and what it has to give."""

from __future__ import annotations

import contextlib
import functools
import os
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch

import guides
from guides.compile.compilers import has_compiler

from .harness import Fault, NotHere

X = torch.randn(30, 2, generator=torch.Generator().manual_seed(3))
Y = X @ torch.tensor([1.0, -0.5]) + 0.1


def regression(x: torch.Tensor, y: torch.Tensor | None = None) -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)


def fit(model: Any = regression, guide: Any = "mean_field", *data: Any, **options: Any) -> guides.Posterior:
    """Fit a small model with few steps."""
    return guides.fit(model, guide, *(data or (X, Y)), **{"steps": 30, "lr": 0.05, "compile": "native", **options})


@functools.cache
def template() -> tuple[Path, torch.Tensor]:
    """Return a folder with the library of :func:`fit`, made by another process, and the right parameters."""
    if not has_compiler():
        raise NotHere("there is no C++ compiler")
    folder = Path(tempfile.mkdtemp(prefix="faults-template-"))
    process = os.fork()
    if process == 0:
        os.environ["GUIDES_CACHE"] = str(folder)
        warnings.simplefilter("ignore")
        fit()
        os._exit(0)
    os.waitpid(process, 0)
    before = os.environ.get("GUIDES_CACHE", "")
    os.environ["GUIDES_CACHE"] = str(folder)
    fit()  # so that all is imported that a process of fewer rights could not read
    os.environ["GUIDES_CACHE"] = before
    return folder, fit(compile="eager").flat


def same(posterior: guides.Posterior) -> None:
    """Check that a fit gave the right numbers."""
    torch.testing.assert_close(posterior.flat, template()[1], rtol=1e-3, atol=1e-4)


def ready(chosen: Sequence[Fault]) -> None:
    """Do once, before the faults, what many of them need."""
    from .runs import finished

    with contextlib.suppress(NotHere):
        template()
    if any(one.part in ("runs", "reports") and not one.quick for one in chosen):
        finished()
