"""A reference is checked, kept, and refused where it cannot be had."""

import math
import os

import pyro
import pyro.distributions as dist
import pytest
import torch

import guides
from guides import errors
from guides.compile import cache
from guides.samplers import NUTS

Y = torch.tensor([1.2, 0.4, 2.0, 1.1, -0.3, 0.9])


def conjugate(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    with pyro.plate("row", 6):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_a_reference_is_right_and_found_again(empty_cache, monkeypatch):
    truth = guides.reference(conjugate, Y, ess=500, chains=2)
    assert abs(float(truth.points.mean()) - float(Y.sum() / 6.25)) < 4 * 0.4 / math.sqrt(500)

    def never(*args):
        raise AssertionError("drawn again")

    monkeypatch.setattr(NUTS, "run", never)
    again = guides.reference(conjugate, Y, ess=500, chains=2)
    assert torch.equal(again.points, truth.points) and again.options == truth.options
    with pytest.raises(AssertionError, match="drawn again"):
        guides.reference(conjugate, Y, ess=500, chains=2, seed=1)
    with pytest.raises(AssertionError, match="drawn again"):
        guides.reference(conjugate, Y + 1e-6, ess=500, chains=2)


def test_what_cannot_be_shown_to_be_right_is_no_reference(empty_cache):
    with pytest.raises(errors.NoReferenceError, match=r"100 draws, .*effective sample size .* of 5000"):
        guides.reference(conjugate, Y, chains=2, max_draws=100, ess=5000)
    with pytest.raises(errors.OptionError, match="chains must be at least 2"):
        guides.reference(conjugate, Y, chains=1)


def test_compare_holds_guides_against_it(empty_cache):
    narrow = {"mean_field": {"steps": 20, "lr": 1e-4}}
    table = guides.compare(
        conjugate,
        ["full_rank", "mean_field", "nuts"],
        Y,
        steps=600,
        lr=0.05,
        schedule="cosine",
        options=narrow,
        reference=True,
    )
    rows = {row.guide: row for row in table.rows}
    assert rows["nuts"].mean_error < 0.1 and rows["nuts"].sd_off < 1.1 and rows["nuts"].gradients > 8000
    assert rows["mean_field"].gradients == 20
    assert rows["mean_field"].mean_error > 0.5 and rows["mean_field"].sd_off > 1.5
    assert rows["mean_field"].wasserstein > 0.5 and math.isnan(rows["nuts"].corrected_mean_error)
    assert "mean error (sd)" in str(table) and table.reference is not None


def test_references_share_the_room_of_the_cache(monkeypatch, tmp_path):
    """Those used longest ago go when there is no room, as libraries do."""
    monkeypatch.setenv("GUIDES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_MOST_BYTES", 1000)
    for number in range(3):
        path = cache.keep(f"{number:040x}", ".draws", bytes(400))
        os.utime(path, (number, number))
    assert sorted(p.name[:40] for p in (tmp_path / "cache").iterdir()) == [f"{number:040x}" for number in (1, 2)]
