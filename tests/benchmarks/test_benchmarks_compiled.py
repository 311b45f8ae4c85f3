"""Which models run compiled: what is said of one that does, one that does not, one that a guide refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from benchmarks.speed import compiled
from benchmarks.speed.pyro_models import MODELS


def test_a_model_with_a_branch_on_a_value_runs_eagerly_and_says_why() -> None:
    def example() -> Any:
        def model(y: Tensor) -> None:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z if float(z) > 0 else 2.0 * z, 1.0), obs=y)

        return model, (torch.tensor(1.0),)

    record = compiled.try_one("branch", example, "mean_field", compile="trace")
    assert record is not None and record["runs"] == "eager" and record["why"]
    plain = compiled.try_one("Gaussian process", MODELS["Gaussian process"], "mean_field", compile="trace")
    assert plain == {"model": "Gaussian process", "guide": "mean_field", "runs": "compiled", "why": ""}
    refused = compiled.try_one("Gaussian process", MODELS["Gaussian process"], "amortized", compile="trace")
    assert refused is not None and refused["runs"] == "refused" and "encoder" in refused["why"]
    assert compiled.try_one("Gaussian process", MODELS["Gaussian process"], "natural") is None


def test_the_table_counts_fits_and_not_refusals(tmp_path: Path) -> None:
    records = [
        {"model": "a", "guide": "mean_field", "runs": "compiled", "why": ""},
        {"model": "a", "guide": "laplace", "runs": "traced", "why": "a convolution"},
        {"model": "b", "guide": "mean_field", "runs": "compiled", "why": ""},
        {"model": "b", "guide": "laplace", "runs": "refused", "why": "no latents"},
    ]
    assert "`python -m benchmarks compiled --publish`" in compiled.block(tmp_path)["compiled"]
    compiled.publish(records, "the command", tmp_path)
    text = compiled.block(tmp_path)["compiled"]
    assert "Of 3 fits of 2 models 2 run compiled (67 %), 1 traced, 0 eagerly; 1 models" in text
    assert "| a | compiled: `mean_field`; traced: `laplace` | a convolution |" in text and "the command" in text
