"""Guides against the truth: errors by element, which verdicts are true, and the tables that say so."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import guides
from benchmarks import SUITES, TASKS
from benchmarks.data.exact import TARGETS
from benchmarks.evaluation import reference
from benchmarks.reporting.scoreboard import confusion, lies, sections
from docs.writer import readme
from guides.diagnostics.truth import errors
from zoo.posteriordb import posteriors


def normals(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_errors_name_the_element_that_is_off():
    truth = {"a": normals(40_000), "b": 3 + 2 * normals(40_000, 2, seed=1)}
    same = errors({"a": normals(20_000, seed=2), "b": 3 + 2 * normals(20_000, 2, seed=3), "other": normals(5)}, truth)
    assert same.right and same.names == ("a", "b[1]", "b[2]") and float(same.distance.max()) < 0.03
    moved = errors({"b": 3 + 2 * normals(20_000, 2, seed=3) + torch.tensor([0.0, 0.4])}, truth)
    assert not moved.right and moved.worst == "b[2]" and moved.mean_error == pytest.approx(0.2, abs=0.03)
    narrow = errors({"a": normals(20_000, seed=2) / 1.5}, truth)
    assert not narrow.right and narrow.sd_off == pytest.approx(1.5, abs=0.03) and narrow.mean_error < 0.03
    assert errors({"a": torch.zeros(100)}, truth).sd_off == math.inf
    undefined = errors({"a": torch.tensor([math.nan, 1.0]), "b": 3 + 2 * normals(20_000, 2, seed=3)}, truth)
    assert undefined.mean_error == math.inf and undefined.worst == "a" and not undefined.right
    with pytest.raises(ValueError, match="knows none of the sites c"):
        errors({"c": normals(10)}, truth)


@pytest.mark.parametrize(
    ("verdict", "raw", "corrected", "found"),
    [
        ("good", True, True, "verdict_true"),
        ("good", False, True, "lie"),
        ("corrected", False, True, "verdict_true"),
        ("corrected", True, False, "lie"),
        ("usable", True, None, "verdict_true"),
        ("usable", False, None, "lie"),
        ("unreliable", False, False, "verdict_true"),
        ("unreliable", False, True, "too_strict"),
        ("unreliable", True, False, "too_strict"),
    ],
)
def test_a_verdict_is_true_a_lie_or_too_strict(verdict, raw, corrected, found):
    judged = reference.judged(verdict, raw, corrected)
    assert [name for name in ("verdict_true", "lie", "too_strict") if judged[name]] == [found]


def test_a_fit_is_held_against_draws_of_the_truth(monkeypatch):
    monkeypatch.setattr(reference, "RAW_DRAWS", 4000)
    monkeypatch.setattr(reference, "CORRECTED_DRAWS", 1000)

    def model(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.deterministic("twice", 2 * z)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    posterior = guides.fit(model, "mean_field", torch.ones(3), steps=300, lr=0.1, schedule="cosine", compile="eager")
    z = 0.75 + 0.5 * normals(40_000)  # exact: precision 1 + 3, mean 3 / 4
    found = reference.against(posterior, {"z": z, "twice": 2 * z}, seed=0)
    assert found.verdict["level"] == "good" and found.metrics["verdict_true"] == 1 and found.metrics["gradients"] == 300
    assert found.metrics["mean_error"] < 0.1 and found.metrics["corrected_mean_error"] < 0.15
    assert found.curves["reference"]["raw"]["names"] == ["z", "twice"]
    other = reference.against(posterior, {"z": z + 0.3}, seed=0)
    assert other.metrics["lie"] == 1 and other.curves["reference"]["raw"]["worst"] == "z"


def record(guide, seed, level, raw, corrected):
    task = "arK-arK"
    metrics = reference.judged(level, raw, corrected) | {"mean_error": 0.3, "khat": 0.4, "gradients": 2000.0}
    entry = {"task": task, "guide": guide, "split": 0, "seed": seed, "status": "done", "metrics": metrics}
    return entry | {
        "verdict": {"level": level},
        "fit": {"seconds_wall": 2.0},
        "curves": {"reference": {"raw": {"worst": "beta[2]"}}},
    }


def test_tables_count_verdicts_against_the_truth():
    records = [
        record("mean_field", 0, "good", True, True),
        record("mean_field", 1, "corrected", False, False),
        record("laplace", 0, "unreliable", False, True),
        record("laplace", 1, "unreliable", False, False),
    ]
    rows = {row[0].text: [entry.text for entry in row[1:]] for row in confusion(records).rows}
    assert rows["good"] == ["1", "1", "0", "0", "0"] and rows["corrected"] == ["1", "0", "0", "1", "1"]
    assert rows["unreliable"] == ["2", "0", "1", "1", "1"] and rows["usable"][0] == "0"
    named = [[entry.text for entry in row] for row in lies(records).rows]
    assert [row[:3] for row in named] == [
        ["arK-arK, mean_field", "1", "corrected"],
        ["arK-arK, laplace", "0", "unreliable"],
    ]
    assert named[0][-1] == "raw: beta[2]"
    parts = sections(SUITES["posteriordb"], records)
    assert "1 are called good, corrected or usable though" in parts[0].sentences[0]
    assert parts[0].sentences[1] == "The same verdict at every seed for 1 of 2 pairs of posterior and guide."
    assert all(section.markdown() for section in parts)


@pytest.mark.parametrize("name", TARGETS)
def test_exact_draws_are_draws_of_the_model(name):
    """Stein's identity for the density p: the mean of grad log p is 0; modes are numbered within their count."""
    target = TARGETS[name]
    draws = target.draws(20_000)
    model = target.model()
    trace = pyro.poutine.trace(pyro.poutine.condition(model, data={k: v[0] for k, v in draws.items()})).get_trace()
    assert {n for n, s in trace.nodes.items() if s["type"] == "sample" and n in draws} == set(draws)

    def log_p(point):
        return pyro.poutine.trace(pyro.poutine.condition(model, data=point)).get_trace().log_prob_sum()

    with pyro.validation_enabled(False):
        gradient = torch.func.vmap(torch.func.grad(log_p))({k: v.float() for k, v in draws.items()})
    for site, value in gradient.items():
        flat = value.double().reshape(len(value), -1)
        z = flat.mean(0) / (flat.std(0) / len(flat) ** 0.5)
        assert z.abs().max() < 4.5, (site, z)
    if target.mode is not None:
        share = torch.bincount(target.mode(draws), minlength=target.modes).double() / 20_000
        assert len(share) == target.modes and (not target.alike or (share - 1 / target.modes).abs().max() < 0.03)


def test_modes_and_both_bounds_are_measured(monkeypatch):
    monkeypatch.setattr(reference, "RAW_DRAWS", 1000)
    monkeypatch.setattr(reference, "CORRECTED_DRAWS", 100)
    task = TASKS["normals_10d"]
    model = task.model(task.load(0))
    posterior = guides.fit(model, "mean_field", steps=200, lr=0.05, compile="eager", progress=False)
    found = task.evaluate(posterior, task.load(0), num_samples=100, seed=0)
    assert found.metrics["mode_coverage"] < 0.1 and found.metrics["mode_mass_error"] > 0.8  # one mode of eight
    assert found.metrics["eubo"] > 5
    assert not found.metrics["raw_right"]


def test_samplers_are_rows_of_their_own_options():
    setting = TASKS["eight_schools"].setting("nuts:num_samples=200")
    assert setting.guide(torch.nn.Module()) == ("nuts", {"num_samples": 200}) and not setting.fit
    assert TASKS["eight_schools"].reason_to_skip("nuts") == "" and not TASKS["eight_schools"].setting("nuts").options


def test_published_sections_fill_the_page(tmp_path):
    assert readme.sections(tmp_path, "scoreboard.md") == dict.fromkeys(("posteriordb", "synthetic"), "None published yet.")


def test_every_posterior_is_a_task_at_the_defaults_of_fit():
    assert set(SUITES["posteriordb"].tasks) == set(posteriors)
    assert all(not TASKS[name].fit and not TASKS[name].guides for name in posteriors)
