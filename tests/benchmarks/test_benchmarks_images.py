"""Tasks of image models: how their guides are written, what they measure, what they draw, and what reports say of it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from matplotlib.figure import Figure

import guides
from benchmarks import SUITES, TASKS, Override, Split, Task
from benchmarks.cli import main
from benchmarks.data import images as image_data
from benchmarks.evaluation import images as image_evaluation
from benchmarks.protocol.labels import sort_options
from benchmarks.reporting.image_tables import sections
from benchmarks.reporting.pictures.images import IMAGE_PICTURES, tile
from benchmarks.reporting.published import published
from benchmarks.reporting.report import build
from benchmarks.reporting.summary import write
from benchmarks.running.runner import plan, run
from benchmarks.running.store import ResultsFolder, read_images, write_images
from benchmarks.suites import cvae
from docs.writer.readme import results

ROWS = 120
SHORT = {"epochs": 2, "steps": None, "batch_size": 40, "patience": None}


def few_digits(index: int) -> Split:
    """The digits task's images, fewer of them."""
    split = image_data.digits(index, ratio=(0.7, 0.1, 0.2))
    cut = lambda part: tuple(each[:ROWS] for each in part)  # noqa: E731
    return Split(train=cut(split.train), validation=cut(split.validation), test=cut(split.test))


def few_completions(index: int) -> Split:
    """Black and white digits of 8 by 8 pixels with one quadrant given."""
    from zoo.datasets import digits_images, quadrants

    found = quadrants(digits_images().x, given=1)
    parts = [(found.inputs[at], found.targets[at]) for at in (slice(0, ROWS), slice(200, 240), slice(300, 340))]
    return Split(train=parts[0], validation=parts[1], test=parts[2])


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tasks under the names of the suites' own."""
    vae = replace(
        TASKS["digits_plane"],
        load=few_digits,
        model=partial(image_data.vae, hidden=(16,), latent_dim=2, activation="tanh", grey_levels=17),
        fit=TASKS["digits_plane"].fit | SHORT,
        num_samples=30,
    )
    net = partial(image_data.conditional_net, hidden=(16,), activation="tanh")
    completion = replace(
        TASKS["cvae_1_quadrant"],
        load=few_completions,
        model=partial(image_data.conditional_vae, hidden=(16,), latent_dim=3, activation="tanh"),
        evaluate=partial(image_evaluation.completion, shape=(8, 8)),
        guides={"map": Override(model=net)},
        fit=TASKS["cvae_1_quadrant"].fit | SHORT,
        num_samples=30,
    )
    monkeypatch.setitem(TASKS._entries, "digits_plane", vae)
    monkeypatch.setitem(TASKS._entries, "cvae_1_quadrant", completion)


def test_options_in_a_label_go_to_guide_fit_or_objective() -> None:
    assert sort_options("mean_field", {"init_scale": 1, "num_particles": 5, "lr": 0.1}, {}) == (
        {"init_scale": 1},
        {"num_particles": 5, "lr": 0.1},
        {},
    )
    written = {"objective": "iwae", "num_particles": 5, "gradient": "dreg", "flow": "iaf", "nonsense": 1}
    options, fit, objective = sort_options("amortized", written, {})
    assert options == {"flow": "iaf", "nonsense": 1}, "the guide's constructor complains of what nobody knows"
    assert fit == {"objective": "iwae", "num_particles": 5}
    assert objective == {"gradient": "dreg"}
    assert sort_options("amortized", {"gradient": "dreg"}, {"objective": "iwae"})[2] == {"gradient": "dreg"}


def test_objective_of_a_label_is_what_the_fit_gets() -> None:
    task = TASKS["digits_vae"]
    plain = task.setting("amortized:objective=iwae:num_particles=5")
    assert plain.fit_arguments().items() >= {"objective": "iwae", "num_particles": 5}.items()
    dreg = task.setting("amortized:objective=iwae:num_particles=5:gradient=dreg")
    made = dreg.fit_arguments()["objective"]
    assert isinstance(made, guides.objectives["iwae"])
    assert (made.num_particles, made.gradient) == (5, "dreg")
    assert "num_particles" not in dreg.fit_arguments()
    assert len({task.setting(label).hash for label in ("amortized", plain.label, dreg.label)}) == 3


def test_epochs_and_samples_of_the_command_line_are_protocol() -> None:
    task = TASKS["mnist_vae"]
    whole, cut, more = (
        task.setting("amortized"),
        task.setting("amortized", {"epochs": 30}),
        task.setting("amortized", None, 5000),
    )
    assert (whole.fit["epochs"], cut.fit["epochs"]) == (200, 30)
    assert (whole.num_samples, more.num_samples, more.protocol["num_samples"]) == (100, 5000, 5000)
    assert len({whole.hash, cut.hash, more.hash}) == 3
    result = CliRunner().invoke(main, ["run", "digits", "--samples", "0"])
    assert result.exit_code == 2
    assert "--samples 0" in result.output


def test_guides_run_where_their_kind_of_latent_is() -> None:
    assert "of its own" in TASKS["digits_vae"].reason_to_skip("laplace")
    assert "belongs to one data point" in TASKS["eight_schools"].reason_to_skip("amortized:flow=iaf")
    assert not TASKS["digits_vae"].reason_to_skip("amortized")
    assert not TASKS["eight_schools"].reason_to_skip("laplace")
    assert not TASKS["cvae_1_quadrant"].reason_to_skip("map"), "the plain net stands beside the conditional VAE"
    ran = {(cell.task, cell.guide) for cell in plan("quick").cells}
    assert ("digits_vae", "amortized") in ran
    assert ("digits_vae", "mean_field") not in ran
    assert ("diabetes", "amortized") not in ran


def test_suite_may_say_which_guides_run_on_which_task() -> None:
    work = plan("mnist")
    assert {cell.guide for cell in work.cells if cell.task == "mnist_dlgm"} == {"amortized"}
    assert {cell.guide for cell in work.cells if cell.task == "mnist_vae"} > {"amortized:flow=iaf"}
    only = plan("mnist", guide_labels=["amortized:covariance=full"])
    assert {cell.guide for cell in only.cells} == {"amortized:covariance=full"}


def test_burda_schedule_has_eight_stages_of_three_to_the_i_passes() -> None:
    passes = [image_data.burda_schedule(k / 3280) for k in range(3280)]
    stages = [round(-7 * math.log10(value)) for value in passes]
    assert [stages.count(i) for i in range(8)] == [3**i for i in range(8)]
    assert stages == sorted(stages)


def test_deep_model_and_its_encoders_fit_each_other() -> None:
    split = few_digits(0)
    black = Split(train=((split.train[0] > 0.5).float(),))
    model = image_data.deep_vae(black, hidden=((20,), (10,)), latent_dims=(4, 2), activation="tanh")
    guide = ("amortized", image_data.encoder(model))
    posterior = guides.fit(model, guide, *black.train, steps=3, batch_size=40, progress=False)
    drawn = posterior.draws(5).latents
    assert (drawn["z_1"].shape[2:], drawn["z_2"].shape[2:]) == ((ROWS, 4), (ROWS, 2))


def test_images_come_back_as_eight_bit_grey_levels(tmp_path: Path) -> None:
    path = tmp_path / "images" / "a.npz"
    write_images(path, {"x": torch.tensor([[[0.0, 0.5], [1.0, 7.0]]])})
    assert read_images(path)["x"].tolist() == [[[0, 128], [255, 255]]]
    assert read_images(tmp_path / "none.npz") == {}
    assert [entry.name for entry in path.parent.iterdir()] == ["a.npz"]


def test_tile_lays_images_out_black_on_white() -> None:
    images = np.stack([np.full((2, 3), 10 * (index + 1), dtype=np.uint8) for index in range(3)])
    sheet = tile(images, 2)
    assert sheet.shape == (5, 7)
    assert (sheet[0, 0], sheet[0, 4], sheet[3, 0]) == (245, 235, 225)
    assert (sheet[2] == 255).all()
    assert (sheet[3:, 4:] == 255).all()


@pytest.mark.slow
def test_runs_measure_draw_and_publish(tiny: None, tmp_path: Path) -> None:
    for target, labels in (("digits", ["amortized", "amortized:objective=iwae:num_particles=3"]), ("cvae", None)):
        task = {"digits": "digits_plane", "cvae": "cvae_1_quadrant"}[target]
        folder = tmp_path / target
        outcome = run(plan(target, tasks=[task], guide_labels=labels), ResultsFolder(folder), device="cpu", progress=False)
        assert not outcome.failed, outcome.failed
        records = ResultsFolder(folder).records()
        build(folder)
        (check_digits if target == "digits" else check_completions)(records, folder)
        write(folder, tmp_path / "json" / f"{target}.json")
    published_file = json.loads((tmp_path / "json" / "cvae.json").read_text())
    assert published_file["tasks"][0]["guides"]["amortized"]["metrics"]["log_py"]["n"] == 1
    page = results(tmp_path / "json")
    assert "CVAE of Pyro's tutorial" in page
    assert r"log p(y \| x)" in page, "the decisive metric is shown as well as the quoted one"


def check_digits(records: list[dict[str, Any]], folder: Path) -> None:
    for record in records:
        metrics = record["metrics"]
        assert metrics["elbo_test"] == pytest.approx(-metrics["rate"] - metrics["distortion"], abs=1e-3)
        assert metrics["elbo_test"] - 0.5 < metrics["log_px"] < 0
        assert 0 < metrics["log_px_se"] < 1
        assert metrics["epochs"] == 2
        assert record["verdict"]["level"] in ("good", "usable", "unreliable")
        assert len(record["curves"]["unit_activity"]) == 2
        assert len(json.dumps(record)) < 20_000, "images are kept out of cells.jsonl"
        images = read_images(folder / record["images"])
        assert images["samples"].shape == (60, 8, 8)
        assert images["originals"].shape == images["reconstructions"].shape == (20, 8, 8)
        assert images["interpolation"].shape == (4, 10, 8, 8)
        assert images["manifold"].shape == (16, 16, 8, 8)
        (test,) = few_digits(0).test or ()
        originals = (image_evaluation.spread(test, 20) * 255).round().to(torch.uint8).reshape(-1, 8, 8)
        assert np.array_equal(images["originals"], originals.numpy())
    assert records[0]["fit"]["objective"] == "elbo"
    assert records[1]["fit"]["objective"] == "iwae"
    drawn = {path.stem for path in (folder / "pictures").iterdir()}
    assert drawn >= {picture.name for picture in IMAGE_PICTURES} - {"completions"}


def check_completions(records: list[dict[str, Any]], folder: Path) -> None:
    cvae_record, net_record = records
    assert cvae_record["metrics"]["tutorial_loss"] + 0.5 > -cvae_record["metrics"]["log_py"]
    assert net_record["metrics"]["tutorial_loss"] == -net_record["metrics"]["log_py"]
    assert net_record["metrics"]["log_py_se"] == 0
    images = {record["guide"]: read_images(folder / record["images"]) for record in records}
    assert images["amortized"]["completions"].shape == (3, 10, 8, 8)
    assert images["map"]["completions"].shape == (1, 10, 8, 8)
    mask = images["map"]["mask"] > 0
    assert mask.sum() == 16, "one quadrant of 8 by 8 is given"
    truth = images["map"]["truth"]
    for found in images.values():
        assert (found["completions"][..., mask] == truth[:, mask]).all()
        assert (found["completions"][..., ~mask] != truth[:, ~mask]).any()
    from zoo.datasets import digits_images

    whole = image_evaluation.spread(digits_images().x[300:340], 10)
    assert np.array_equal(truth, (whole * 255).byte().reshape(-1, 8, 8).numpy())
    page = (folder / "report.md").read_text(encoding="utf-8")
    assert "the conditional VAE is" in page
    assert (folder / "pictures" / "completions.png").exists()


def test_shown_rows_are_spread_over_the_test_set() -> None:
    assert image_evaluation.spread(torch.arange(101), 5).tolist() == [0, 25, 50, 75, 100]
    assert image_evaluation.spread(torch.arange(2), 3).tolist() == [0, 0, 1]


def record(task: str, guide: str, **metrics: float) -> dict[str, Any]:
    return {"task": task, "guide": guide, "split": 0, "seed": 0, "status": "done", "metrics": metrics, "curves": {}}


def test_sentences_set_guides_against_each_other_and_published_values() -> None:
    records = [
        record("mnist_vae", "amortized", log_px=-98.0, log_px_se=0.03, epochs=30, khat=0.4),
        record("mnist_vae", "amortized:objective=iwae:num_particles=5", log_px=-97.3, log_px_se=0.04, epochs=30),
    ]
    said = " ".join(sentence for section in sections(SUITES["mnist"], records) for sentence in section.sentences)
    assert "num_particles=5 is 0.70 nats better than amortized (Monte Carlo error 0.05)" in said
    assert "after 30 epochs, is 0.50 nats behind VAE, 500 hidden, S=50 (−96.80)" in said
    text = " ".join(table.text() for section in sections(SUITES["mnist"], records) for table in section.tables)
    assert "DLGMM K=5, 1500 hidden, S=50 (published)" in text


@pytest.mark.parametrize(("gaps", "does"), [((1.0, 4.0, 9.0), "grows"), ((1.0, 9.0, 4.0), "does not always grow")])
def test_completion_says_whether_the_gap_grows(gaps: tuple[float, ...], does: str) -> None:
    records = []
    for name, gap in zip(("cvae_3_quadrants", "cvae_2_quadrants", "cvae_1_quadrant"), gaps):
        records += [record(name, "amortized", log_py=-20 + gap), record(name, "map", log_py=-20.0)]
    said = " ".join(sentence for section in cvae.sections(SUITES["cvae"], records) for sentence in section.sentences)
    assert f"the gap {does} as less is given" in said
    assert "cvae_3_quadrants: the conditional VAE is 1.00 nats for each image better than the net" in said


def test_published_numbers_stand_in_the_columns_of_their_protocol() -> None:
    found = {(entry.method, entry.dataset): entry.value for entry in published("mnist")}
    assert found["VAE, 500 hidden, S=50", TASKS["mnist_vae"].dataset] == -96.801
    assert found["IWAE-50, S=5000", TASKS["mnist_burda"].dataset] == -87.10
    (one,) = (entry for entry in published("cvae", TASKS["cvae_1_quadrant"].dataset) if entry.method.startswith("CVAE"))
    assert (one.value, one.metric) == (71.8, "tutorial_loss")
    assert not published("cvae", "mnist_given_middle")


def test_pictures_of_records_without_images_are_left_out(tmp_path: Path) -> None:
    for picture in IMAGE_PICTURES:
        assert picture.draw([record("digits_vae", "amortized")], tmp_path) is None
    one = record("digits_vae", "amortized", rate=5.0, distortion=80.0)
    figure = {picture.name: picture for picture in IMAGE_PICTURES}["rate_distortion"].draw([one], tmp_path)
    assert isinstance(figure, Figure)
    (axes,) = figure.axes
    assert axes.get_xlim()[0] < 5.0 < axes.get_xlim()[1]


def test_image_tasks_are_sound() -> None:
    for name in ("digits_vae", "mnist_vae", "cvae_1_quadrant"):
        task: Task = TASKS[name]
        assert task.replicates == 1, "networks of a vectorised chunk would all start alike"
        assert task.keep_draws == 0


def test_a_mixture_of_codes_is_scored_and_drawn_by_its_code() -> None:
    task = TASKS["mnist_dlgmm"]
    assert {entry.method for entry in published("mnist", task.dataset)} >= {"DLGMM K=3, 500 hidden, S=50"}
    black_and_white = tuple((part[0] > 0.5).float() for part in (few_digits(0).train, few_digits(0).test))
    split = Split(train=black_and_white[:1], test=black_and_white[1:])
    torch.manual_seed(0)
    model = image_data.deep_latent_gaussian_mixture(
        split, hidden=(16,), latent_dim=3, components=3, concentration=1.0, activation="relu"
    )
    (label,) = SUITES["mnist"].guides["mnist_dlgmm"]
    setting = task.setting(label)
    fit = setting.fit_arguments() | SHORT | {"progress": False, "validation": 0.2}
    posterior = guides.fit(model, setting.guide(model), *split.train, **fit)
    found = image_evaluation.generation(posterior, split, num_samples=30, seed=0, shape=(8, 8))
    assert (posterior.objective, posterior.family) == ("dlgmm", label)
    assert found.metrics["elbo_test"] < found.metrics["log_px"] < 0
    assert found.images["reconstructions"].shape == (20, 8, 8)
