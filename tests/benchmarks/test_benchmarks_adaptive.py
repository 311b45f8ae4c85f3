"""The suite adaptive: its tasks on few small images, what is measured and said, and the report's printed sign."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from click.testing import CliRunner

import guides
from benchmarks import SUITES, TASKS, Override, Split
from benchmarks.cli import main
from benchmarks.data import images as image_data
from benchmarks.evaluation.adaptive import adaptive
from benchmarks.evaluation.adaptive_objectives import AsPrinted, Rising, penalised
from benchmarks.evaluation.latent_modes import ascend, count_modes
from benchmarks.reporting.pictures.adaptive import ADAPTIVE_PICTURES
from benchmarks.reporting.report import build
from benchmarks.running.runner import plan, run
from benchmarks.running.store import ResultsFolder, read_images
from benchmarks.suites import adaptive as suite

ROWS = 200
LABELS = ["amortized", "mixture_amortized", "stick_breaking_rnn:penalty=0.5:epsilon=0.1"]


def few_digits(index: int) -> Split:
    """Black and white digits of 8 by 8 pixels, with labels."""
    from zoo.datasets import digits as labelled
    from zoo.datasets import digits_images

    x, y = (digits_images().x > 0.5).float(), labelled().y.flatten()
    return Split(train=(x[:ROWS],), validation=(x[400:440],), test=(x[600:660],), labels=y[600:660])


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tasks under the names of the suite's own."""
    for name in ("mnist_adaptive", "mnist_as_printed"):
        task = TASKS[name]
        small = replace(
            task,
            load=few_digits,
            model=partial(image_data.vae, hidden=(16,), latent_dim=3, activation="relu"),
            evaluate=partial(adaptive, shape=(8, 8), most=3),
            guides={
                family: replace(override, options={"components": 3} | ({"hidden": 8} if "rnn" in family else {}))
                for family, override in task.guides.items()
            },
            fit=task.fit | {"epochs": 2, "batch_size": 40, "patience": None},
            num_samples=30,
            threads=1,
        )
        monkeypatch.setitem(TASKS._entries, name, small)


def test_a_run_measures_draws_and_reports(tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.evaluation.adaptive.STEPS", 20)
    folder = ResultsFolder(tmp_path / "r")
    outcome = run(plan("adaptive", guide_labels=LABELS), folder, device="cpu", progress=False)
    assert not outcome.failed, outcome.failed
    records = {record["guide"]: record for record in folder.records()}
    single, fixed, recurrent = (records[label]["metrics"] for label in LABELS)
    assert (single["components_run"], single["effective_components"], single["halted_first"]) == (1, 1, 1)
    assert (fixed["components_run"], fixed["rows_saved"], fixed["halted_first"]) == (3, 0, 0)
    assert recurrent["rows_saved"] == pytest.approx(1 - recurrent["components_run"] / 3)
    for metrics in (single, fixed, recurrent):
        assert 1 <= metrics["effective_components"] <= metrics["components_run"] + 1e-9
        assert metrics["elbo_test"] < metrics["log_px"] + 0.5
        assert metrics["objective_test"] < metrics["log_px"] + 0.5
        assert metrics["importance_samples"] == 30
    assert single["objective_test"] == pytest.approx(single["elbo_test"], abs=1.0)
    assert fixed["objective_test"] == pytest.approx(fixed["elbo_test"], abs=1.0)
    assert read_images(folder.path / records["amortized"]["images"])["ambiguous"].shape[1:] == (3 + 3, 8, 8)
    for label in LABELS[1:]:
        curves = records[label]["curves"]
        assert curves["components"]["classes"] == list(range(10))
        assert {len(values) for values in curves["modes"].values()} == {100}
        images = read_images(folder.path / records[label]["images"])
        assert images["component_samples"].shape == (8, 1 + 3, 8, 8)
        assert images["ambiguous"].shape[1:] == (3 + 3, 8, 8)
        one, seven, between = (images["ambiguous"][:, place] for place in range(3))
        assert (between[one == seven] == one[one == seven]).all()
        assert (between[one != seven] > 0).any()
    build(folder.path)
    page = (folder.path / "report.md").read_text(encoding="utf-8")
    assert "decoder rows saved" in page
    assert {path.stem for path in (folder.path / "pictures").iterdir()} >= {p.name for p in ADAPTIVE_PICTURES}


def test_as_printed_is_a_variant_of_this_suite_alone(tiny: None, tmp_path: Path) -> None:
    assert {cell.task for cell in plan("adaptive", variant="as_printed").cells} == {"mnist_as_printed"}
    assert {cell.task for cell in plan("adaptive").cells} == {"mnist_adaptive"}
    for arguments, expected in (
        (("run", "quick", "--as-printed"), "'quick' has no such variant; it is for adaptive"),
        (("run", "mnist_adaptive", "--as-printed"), "it is for adaptive"),
        (("run", "adaptive", "--as-printed", "--tasks", "mnist_adaptive"), "leave out --tasks"),
    ):
        result = CliRunner().invoke(main, [*arguments, "--out", str(tmp_path / "r")])
        assert result.exit_code == 2, result.output
        assert expected in result.output
        assert "Traceback" not in result.output


def test_the_printed_objective_is_in_no_registry() -> None:
    assert not any(issubclass(entry, AsPrinted) for entry in guides.objectives.values())
    setting = TASKS["mnist_as_printed"].setting("stick_breaking_rnn")
    assert isinstance(setting.fit_arguments()["objective"], AsPrinted)
    assert setting.protocol["build_objective"] == "benchmarks.evaluation.adaptive_objectives.AsPrinted"
    plain = TASKS["mnist_adaptive"].setting("stick_breaking_rnn:penalty=2.0:epsilon=0.1")
    assert (plain.options["epsilon"], plain.objective) == (0.1, {"penalty": 2.0})
    made = plain.fit_arguments()["objective"]
    assert type(made) is guides.EntropyBoundELBO
    assert float(made.penalty(torch.tensor(1.0))) == 0
    assert float(made.penalty(torch.tensor(torch.inf))) == 2
    named = TASKS["mnist_adaptive"].setting("stick_breaking_rnn:objective=selbo")
    assert (named.build_objective, named.fit_arguments()["objective"]) == (None, "selbo")


def linear_gaussian(x: torch.Tensor) -> None:
    """z ~ N(0, I), x ~ N(z, 0.5^2 I): log p(x) is that of N(0, 1.25 I)."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)


def test_the_printed_sign_ends_above_the_evidence_and_the_right_one_does_not() -> None:
    x = 1.25**0.5 * torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    evidence = float(dist.Normal(0.0, 1.25**0.5).log_prob(x).sum())
    ends = {}
    for objective in (AsPrinted(), penalised(bound="bhattacharyya")):
        guide = ("stick_breaking_rnn", {"components": 2, "hidden": 8})
        posterior = guides.fit(linear_gaussian, guide, x, objective=objective, steps=400, lr=0.02, progress=False)
        ends[type(objective)] = -float(posterior.losses[..., -50:].mean())
    assert ends[AsPrinted] > evidence + len(x)
    assert evidence - len(x) < ends[guides.EntropyBoundELBO] < evidence


def test_a_penalty_waits_then_rises() -> None:
    weight = Rising(0.5, wait=10, rise=20)
    assert [float(weight(torch.tensor(float(t)))) for t in (1, 11, 21, 31, 1000)] == [0, 0, 0.25, 0.5, 0.5]
    assert penalised().penalty == 0


def test_modes_are_found_by_ascent() -> None:
    """p(z) with modes at 2 and -2 in one coordinate, and a third that is too low to count."""
    means, heights = torch.tensor([2.0, -2.0, 8.0]), torch.tensor([0.0, -1.0, -40.0])

    def log_joint(z: torch.Tensor) -> torch.Tensor:
        return torch.logsumexp(heights - 2 * (z - means).square(), -1)

    starts = torch.linspace(-3, 9, 24).reshape(24, 1, 1)
    ends = ascend(log_joint, starts, steps=200)
    assert count_modes(ends, log_joint(ends), apart=0.5, within=7.0).tolist() == [2]
    assert count_modes(ends, log_joint(ends), apart=0.5, within=100.0).tolist() == [3]
    assert count_modes(ends, log_joint(ends), apart=50.0, within=100.0).tolist() == [1]


def test_binarised_images_are_matched_with_the_grey_ones_that_they_were_drawn_from() -> None:
    generator = torch.Generator().manual_seed(0)
    grey = torch.rand(30, 200, generator=generator)
    order = torch.randperm(30, generator=generator)
    black = torch.bernoulli(grey[order], generator=generator)
    assert torch.equal(image_data.matched(black, grey), order)


def record(guide: str, task: str = "mnist_adaptive", **metrics: float) -> dict[str, Any]:
    usual = {"log_px_se": 0.03, "objective_test": -200.0, "components_run": 5.0, "dead_components": 0.0, "halted_first": 0.0}
    return {
        "task": task, "guide": guide, "split": 0, "seed": 0, "status": "done", "metrics": usual | metrics, "curves": {},
    }  # fmt: skip


def said(records: list[dict[str, Any]]) -> str:
    return " ".join(line for section in suite.sections(SUITES["adaptive"], records) for line in section.sentences)


def test_sentences_say_what_is_gained_saved_and_lost() -> None:
    records = [
        record("amortized", log_px=-98.0, elbo_test=-102.0),
        record("mixture_amortized", log_px=-97.0, elbo_test=-100.25, dead_components=2.0),
        record("stick_breaking_rnn:penalty=1.0", log_px=-97.5, elbo_test=-100.5, components_run=3.0),
        record("stick_breaking_rnn:penalty=9.0", log_px=-98.0, elbo_test=-102.0, components_run=1.0, halted_first=1.0),
    ]
    text = said(records)
    assert "mixture_amortized is +1.75 nats of ELBO and +1.00 nats of log p(x) from amortized" in text
    assert "penalty=1.0 runs 40 % fewer components than mixture_amortized, and is −0.25 nats of ELBO and −0.50" in text
    assert "mixture_amortized has 2 dead components" in text
    assert "penalty=9.0 halts at the first step for every image" in text
    assert "Every ELBO, and every objective, is below log p(x)" in text
    printed = record("stick_breaking_rnn", "mnist_as_printed", log_px=-140.0, elbo_test=-150.0, objective_test=-40.0)
    text = said([*records, printed])
    assert "the objective of stick_breaking_rnn is 100.00 nats above log p(x), which it is no bound on" in text
    assert "Every ELBO" not in text


@pytest.mark.parametrize(
    ("used", "does"),
    [([1.0, 2.0, 3.0] * 9, "they correlate"), ([3.0, 2.0, 1.0] * 9, "anticorrelate"), ([1.0] * 27, "nothing can correlate")],
)
def test_components_are_set_against_modes(used: list[float], does: str) -> None:
    one = record("mixture_amortized", log_px=-97.0, elbo_test=-100.0)
    by_class = {"classes": [0, 1], "run": [5.0, 5.0], "effective": [1.5, 3.5]}
    one["curves"] = {"components": by_class, "modes": {"modes": [1, 2, 3] * 9, "run": [5.0] * 27, "effective": used}}
    text = said([one])
    assert "effective components from 1.50 for the digit 0 to 3.50 for 1" in text
    assert does in text
    one["curves"]["components"] = {"classes": [0, 1], "run": [5.0, 5.0], "effective": [5.0, 5.0]}
    assert "mixture_amortized: effective components for every digit: 5.00." in said([one])


def test_pictures_of_other_records_are_left_out(tmp_path: Path) -> None:
    for picture in ADAPTIVE_PICTURES:
        assert picture.draw([record("amortized", log_px=-98.0)], tmp_path) is None


def test_objectives_of_one_benchmark_take_options_of_a_label() -> None:
    task = replace(TASKS["mnist_adaptive"], guides={"amortized": Override(objective=penalised)})
    setting = task.setting("amortized:penalty=0.5:num_particles=3")
    made = setting.fit_arguments()["objective"]
    assert (made.num_particles, made.penalty) == (3, Rising(0.5, wait=0, rise=1000))
    assert setting.hash != replace(task, guides={}).setting("amortized").hash
