"""What holds for every registered task and suite."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch
from pyro import poutine

import guides
from benchmarks import SUITES, TASKS, Override, Task
from benchmarks.protocol.labels import parse_guide
from benchmarks.reporting.metrics import METRICS
from benchmarks.reporting.published import PUBLISHED
from benchmarks.running.runner import plan
from benchmarks.tasks.eight_schools import exact

PROVIDED = ("table1_", "uci_", "mnist_", "cvae_")
POSTERIORDB = SUITES["posteriordb"].tasks
AT_DEFAULTS = {*POSTERIORDB, *SUITES["synthetic"].tasks}  # where samplers stand beside guides, nothing is said
HERE = Path(__file__).resolve().parents[2]


def data_folder() -> str | None:
    for folder in (os.environ.get("ZOO_DATA"), HERE.parent / "shared" / "data"):
        if folder and (Path(folder) / "uci").is_dir():
            return str(folder)
    return None


def load(task: Task, index: int, monkeypatch: pytest.MonkeyPatch):
    if task.name.startswith(PROVIDED):
        folder = data_folder()
        name = f"uci/{task.load.keywords['dataset']}" if task.name.startswith(("table1_", "uci_")) else "binarized_mnist"
        if folder is None or not (Path(folder) / name).is_dir():
            pytest.skip(f"{task.name} needs {name} in ZOO_DATA")
        monkeypatch.setenv("ZOO_DATA", folder)
    if task.name in POSTERIORDB:
        folder = data_folder()
        if folder is None or not (Path(folder) / "posteriordb").is_dir():
            pytest.skip(f"{task.name} needs posteriordb in ZOO_DATA")
        monkeypatch.setenv("ZOO_DATA", folder)
    return task.load(index)


@pytest.mark.parametrize("name", TASKS)
def test_task_loads_and_its_model_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    task = TASKS[name]
    assert task.name == name
    assert task.summary
    split = load(task, task.splits - 1, monkeypatch)
    again = load(task, task.splits - 1, monkeypatch) if task.splits > 1 else split
    for part, other in zip(split.train, again.train):
        assert torch.equal(part, other), "the same index must give the same data"
        assert torch.isfinite(part.float()).all()
    if name not in POSTERIORDB:  # whose flat priors have no sampler; tests/zoo/test_zoo_posteriordb.py runs them
        poutine.trace(task.model(split)).get_trace(*(part[:500] for part in split.train))
    if split.test is not None:
        assert len(split.test) == len(split.train)
        assert split.target_scale > 0
    if split.curve is not None:
        assert split.curve.inputs.shape == (len(split.curve.x), 1)
        assert len(split.curve.points[0]) == len(split.train[0])


@pytest.mark.parametrize("name", TASKS)
def test_parts_of_a_split_are_disjoint_and_standardised_on_the_training_part(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = TASKS[name]
    if task.encoder is not None:
        pytest.skip(f"{name} has images, which are not standardised")
    split = load(task, 0, monkeypatch)
    if split.test is None:
        pytest.skip(f"{name} has no held-out part")
    rows = [
        {tuple(row) for row in torch.cat([part.float().reshape(len(part), -1) for part in parts], -1).tolist()}
        for parts in (split.train, split.test)
    ]
    if name.removeprefix("uci_").removeprefix("table1_") not in (
        "concrete",
        "digits_classes",
        "power",
        "wine",
    ):  # sets that hold equal rows
        assert not rows[0] & rows[1]
    if name not in ("linear_regression", "foong_gap"):  # drawn on a scale of order one
        x = split.train[0]
        moving = x.std(0, correction=0) > 0
        assert torch.allclose(x.mean(0), torch.zeros(x.shape[1]), atol=1e-3)
        assert torch.allclose(x.std(0, correction=0)[moving], torch.ones(int(moving.sum())), atol=1e-3)


@pytest.mark.parametrize("name", TASKS)
def test_protocol_of_every_guide_is_data(name: str) -> None:
    task = TASKS[name]
    hashes = {guide: task.setting(guide).hash for guide in guides.families if not task.reason_to_skip(guide)}
    assert len(set(hashes.values())) == len(hashes)
    for guide in hashes:
        setting = task.setting(guide)
        assert setting.hash == task.setting(guide).hash
        assert task.setting(guide, {"epochs": 3, "steps": None}).hash != setting.hash
        assert task.setting(f"{guide}:init_loc_fn=7").options["init_loc_fn"] == 7
        said = ("steps" in setting.fit) + ("epochs" in setting.fit)
        assert said == (0 if name in AT_DEFAULTS else 1)
    assert set(task.metrics) <= METRICS.keys()
    assert {parse_guide(label)[0] for label in (*task.guides, *task.skip)} <= set(guides.families)
    assert task.source


@pytest.mark.parametrize("name", SUITES)
def test_suite_plans_every_task_and_guide(name: str) -> None:
    suite = SUITES[name]
    assert suite.name == name
    assert suite.summary
    work = plan(name)
    assert {cell.task for cell in work.cells} == set(suite.tasks)
    for task in suite.tasks:
        assert {cell.guide for cell in work.cells if cell.task == task} <= set(suite.labels(task))
    assert len(set(work.cells)) == len(work.cells)
    if suite.optional:
        plan(name, tasks=suite.optional, splits=1)


def test_quick_runs_every_guide_on_embedded_data() -> None:
    work = plan("quick")
    assert {cell.guide for cell in work.cells} == set(guides.families)
    assert not any(cell.task.startswith(PROVIDED) for cell in work.cells)


def test_table1_is_120_cells_under_the_reports_protocol() -> None:
    work = plan("table1", splits=20)
    assert len(work.cells) == 120
    for setting in work.settings.values():
        assert (
            setting.fit.items()
            >= {"epochs": 1000, "batch_size": 128, "lr": 3e-4, "optimizer": "adam", "patience": 25}.items()
        )
        assert setting.protocol["data"]["ratio"] == [0.7, 0.1, 0.2]
        assert setting.protocol["model"]["hidden"] == [50]


def test_uci_is_the_published_splits_in_original_units() -> None:
    assert {cell.split for cell in plan("uci").cells} == set(range(20))
    for task in (TASKS[name] for name in SUITES["uci"].tasks):
        assert task.metrics[:2] == ("log_likelihood", "rmse")
        assert task.setting("mean_field").protocol["data"]["call"] == "benchmarks.data.tables.published_split"


def test_overrides_win_in_order() -> None:
    task = Task(
        name="t",
        summary="",
        load=print,
        model=print,
        evaluate=print,
        metrics=(),
        fit={"epochs": 9, "lr": 0.1, "batch_size": 8},
        guides={
            "laplace": Override({"curvature": "ggn", "a": 1}, {"lr": 0.2, "batch_size": None}),
            "laplace:curvature=kron": Override(fit={"lr": 0.3}),
        },
    )
    assert task.setting("map").fit == {"epochs": 9, "lr": 0.1, "batch_size": 8}
    plain, kron = task.setting("laplace"), task.setting("laplace:curvature=kron", {"epochs": 2})
    assert (plain.options, plain.fit) == ({"curvature": "ggn", "a": 1}, {"epochs": 9, "lr": 0.2})
    assert (kron.options, kron.fit) == ({"curvature": "kron", "a": 1}, {"epochs": 2, "lr": 0.3})
    assert kron.family == "laplace"


def test_guide_options_are_literals_or_words() -> None:
    assert parse_guide("g:a=1:b=kron:c=(1, 2):d=None") == ("g", {"a": 1, "b": "kron", "c": (1, 2), "d": None})
    with pytest.raises(ValueError, match="key=value"):
        parse_guide("g:a")


def test_published_numbers_name_their_source_and_protocol() -> None:
    datasets = {task.dataset for task in TASKS.values()} - {""}
    for entry in PUBLISHED:
        assert entry.source
        assert entry.protocol
        assert entry.dataset in datasets
        assert math.isfinite(entry.value)
        assert (entry.spread is None) == (entry.spread_is == "")
    found = {(e.suite, e.method, e.dataset, e.metric): e.value for e in PUBLISHED}
    assert len(found) == len(PUBLISHED)
    assert found["table1", "laplace", "energy", "test_error"] == 0.186
    assert found["uci", "plain Pyro SVI", "boston", "log_likelihood"] == -2.626
    assert found["uci", "tuned MC dropout", "yacht", "rmse"] == 0.666


def test_eight_schools_by_quadrature_agrees_with_importance_sampling_from_the_prior() -> None:
    sigma, y = TASKS["eight_schools"].load(0).train
    evidence, moments = exact(sigma, y)
    generator = torch.Generator().manual_seed(0)
    count = 400_000
    mu = 5 * torch.randn(count, 1, generator=generator, dtype=torch.float64)
    tau = 5 * torch.tan(0.5 * math.pi * torch.rand(count, 1, generator=generator, dtype=torch.float64))
    theta = mu + tau * torch.randn(count, 8, generator=generator, dtype=torch.float64)
    log_weights = torch.distributions.Normal(theta, sigma.double()).log_prob(y.double()).sum(-1)
    assert evidence == pytest.approx(float(log_weights.logsumexp(0)) - math.log(count), abs=0.02)
    weights = log_weights.softmax(0)
    assert float(moments["mu"][0]) == pytest.approx(float(weights @ mu.squeeze()), abs=0.1)
    mean, deviation = moments["theta"]
    second = weights @ theta.square()
    assert torch.allclose(mean, weights @ theta, atol=0.25)
    assert torch.allclose(deviation, (second - (weights @ theta).square()).sqrt(), rtol=0.05)
