"""Exact posteriors of the suite multimodal, and how guides are measured against them."""

from types import SimpleNamespace

import pytest
import torch
from pyro import poutine
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

import guides
from benchmarks import TASKS
from benchmarks.data import densities
from benchmarks.reporting.pictures.densities import DENSITY_PICTURES
from benchmarks.tasks import multimodal


@pytest.mark.parametrize("name", densities.REFERENCES)
def test_exact_draws_have_the_masses_of_the_modes(name):
    reference = densities.REFERENCES[name]()
    count = len(reference.draws)
    error = (reference.masses * (1 - reference.masses) / count).sqrt()
    assert float(reference.masses.sum()) == pytest.approx(1.0, abs=1e-6)
    assert ((densities.mode_masses(reference.draws, reference) - reference.masses).abs() < 4.5 * error).all()


@pytest.mark.parametrize("name", ["two_moons", "ring", "two_means"])
def test_the_evidence_is_that_of_the_model(name):
    """Importance sampling from normals around exact draws gives the same integral."""
    reference = densities.REFERENCES[name]()
    split = multimodal.load(0, density=name)
    model = multimodal.model(split, density=name)
    of_one = reference.draws[reference.mode(reference.draws) == 0]
    torch.manual_seed(0)
    around = MultivariateNormal(reference.draws[:1000], 0.25 * torch.cov(of_one.T))
    q = MixtureSameFamily(Categorical(torch.ones(1000)), around)
    z = q.sample((1000,))
    posterior = guides.fit(model, "mean_field", *split.train, steps=1, compile="eager")
    latent = [(n, s.shape) for n, s in posterior.sites.items() if s.kind == "latent"]
    logs = []
    for row in z.float():
        values, at = {}, 0
        for site, shape in latent:
            size = int(torch.Size(shape).numel())
            values[site] = row[at : at + size].reshape(shape)
            at += size
        trace = poutine.trace(poutine.condition(model, data=values)).get_trace(*split.train)
        logs.append(trace.log_prob_sum().detach().double())
    weights = (torch.stack(logs) - q.log_prob(z) - reference.log_evidence).exp()
    assert weights.std() < 5
    assert abs(float(weights.mean()) - 1) < 4.5 * float(weights.std()) / len(weights) ** 0.5


def test_the_networks_linear_layer_is_integrated_out():
    """Given the hidden layer, targets are normal with covariance 1.5^2 F F' + 0.3^2 I for features F."""
    x, y = (part.double() for part in densities.bump())
    hidden = torch.randn(3, 4, dtype=torch.float64)
    found, mean, precision = densities._linear_layer(hidden, x, y, 1.5)
    for k in range(3):
        units = torch.tanh(x * hidden[k, :2] + hidden[k, 2:])
        features = torch.cat([units, torch.ones(len(x), 1)], dim=1)
        covariance = 1.5**2 * features @ features.T + 0.3**2 * torch.eye(len(x))
        torch.testing.assert_close(found[k], MultivariateNormal(torch.zeros(len(x)).double(), covariance).log_prob(y))
        gradient = features.T @ (y - features @ mean[k]) / 0.3**2 - mean[k] / 1.5**2
        assert gradient.abs().max() < 1e-6
        torch.testing.assert_close(precision[k], features.T @ features / 0.3**2 + torch.eye(3).double() / 1.5**2)


def test_exact_draws_score_as_exact():
    reference = densities.REFERENCES["ring"]()
    first, second = reference.draws[:2000], reference.draws[2000:]
    assert abs(densities.energy_distance(first, second)) < 0.01
    assert densities.energy_distance(first + 0.5, second) > 0.05


def test_a_guide_of_one_mode_is_seen_to_miss_the_other():
    split = multimodal.load(0, density="two_means")
    model = multimodal.model(split, density="two_means")
    posterior = guides.fit(model, "mean_field", *split.train, steps=400, lr=0.05, compile="trace")
    found = multimodal.evaluate(posterior, split, num_samples=500, seed=0, density="two_means")
    assert found.metrics["modes_found"] == 1
    assert found.metrics["mode_mass_error"] > 0.3
    assert found.metrics["evidence_gap"] > 0.3
    assert len(found.curves["plane"]["log_density"]) == densities.SHOWN**2
    record = {"task": "two_means", "guide": "mean_field", "status": "done", "curves": found.curves}
    assert DENSITY_PICTURES[0].draw([record], SimpleNamespace()) is not None
    assert DENSITY_PICTURES[0].draw([], SimpleNamespace()) is None


@pytest.mark.slow
def test_the_mixture_finds_both_modes():
    task = TASKS["two_means"]
    setting, split = task.setting("mixture"), task.load(0)
    posterior = guides.fit(task.model(split), setting.guide(task.model(split)), *split.train, **setting.fit_arguments())
    metrics = task.evaluate(posterior, split, num_samples=2000, seed=0).metrics
    assert metrics["modes_found"] == 2
    assert metrics["mode_mass_error"] < 0.05
    assert metrics["evidence_gap"] < 0.04
