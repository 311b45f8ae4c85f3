"""Around a fit: who owns the trained networks, copies, replicates, interruptions, memory, threads."""

import subprocess
import sys
from pathlib import Path

import torch
from guide_models import line, linear, network

import guides

QUICK = {"steps": 60, "lr": 0.05}

_PEAK = """
import resource, torch, guides
from guide_models import linear
torch.manual_seed(0)
x = torch.randn(20, 100_000)
posterior = guides.fit(linear, "mean_field", x, x[:, 0], steps=2, compile="eager")
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
posterior.predict(x, num_samples=20)
before = peak()
posterior.predict(x, num_samples=1000)
posterior.log_likelihood(num_samples=1000)
print(peak() - before)
"""


def test_predictions_do_not_hold_the_weights_of_all_draws():
    """100,000 weights: the draws of 1000 are 400 MB, which a prediction of 20 rows has no use for."""
    folder = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", _PEAK], cwd=folder, capture_output=True, text=True, env={"PYTHONPATH": f"{folder.parents[1]}"}
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 150


def test_what_a_model_makes_on_the_way_bounds_the_chunk():
    """A deep network makes far more numbers than its rows and weights tell of; only a count of them bounds the memory."""
    data = line(rows=4)
    seen = []

    def wide(x, y=None):
        for _ in range(20):
            torch.ones(100_000) + x.sum()
        seen.append(1)
        return linear(x, y)

    posterior = guides.fit(wide, "mean_field", *data, steps=2, compile="eager")
    seen.clear()
    posterior.sample(100)
    few = len(seen)
    posterior.predict(num_samples=100)
    assert len(seen) - few > 5  # 4 million numbers a draw, 33 million a chunk


def test_all_draws_are_there_whatever_the_chunk(monkeypatch):
    posterior = guides.fit(network, "mean_field", *line(), replicates=2, **QUICK)
    monkeypatch.setattr("guides.draws._ELEMENTS_PER_CHUNK", 2000)
    draws = posterior.draws(30, predictive=True)
    whole = torch.cat([draws.latents["w1"].flatten(), draws.predictive["y"].flatten(), draws.log_p.flatten()])
    assert torch.isfinite(whole).all()
    assert len(draws.latents["w1"][:, :, 0, 0].unique()) == 60
    want = posterior.draws(30, predictive=True)
    torch.testing.assert_close(draws.log_likelihood["y"], want.log_likelihood["y"], rtol=0, atol=0)
