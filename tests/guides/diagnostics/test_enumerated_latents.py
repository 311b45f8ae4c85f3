"""Discrete latents that are summed out are no answers of the guide: a rare value is not a draw that never came."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import config_enumerate

import guides

VISITS = torch.tensor([3.0, 5.0, 4.0, 2.0, 5.0, 4.0, 15.0, 17.0, 14.0, 16.0])


@config_enumerate
def days(visits):
    quiet = pyro.sample("quiet", dist.Gamma(4.0, 1.0))
    more = pyro.sample("more", dist.Gamma(20.0, 2.0))
    with pyro.plate("day", len(visits)):
        busy = pyro.sample("busy", dist.Bernoulli(0.3))
        pyro.sample("visits", dist.Poisson(quiet + busy * more), obs=visits)


@pytest.mark.parametrize(
    ("guide", "options"),
    [("laplace", {"steps": 150, "compile": "eager"}), ("nuts", {"draws": 300, "tune": 300, "chains": 2})],
)
def test_labels_that_are_summed_out_do_not_decide_a_verdict(guide, options):
    posterior = guides.fit(days, guide, VISITS, **options)
    assert bool((posterior.sample(100)["busy"][:, 3] == 0).all()), "a label that is the same in every draw"
    found = posterior.diagnose()
    assert "busy" not in str(found) and found.verdict in ("good", "corrected"), str(found)
