"""Speed: everybody computes the same, blocks take turns, targets are judged from numbers; nothing depends on a clock."""

from __future__ import annotations

import copy
import importlib.util
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch
from click.testing import CliRunner
from pyro.infer import Trace_ELBO

from benchmarks.cli import main
from benchmarks.speed import (
    cases,
    command,
    contenders,
    extras,
    handwritten,
    measure,
    pictures,
    report,
    scaling,
    session,
    sides,
    torch_side,
)
from benchmarks.speed import targets as targets_
from benchmarks.speed.cases import CASES, Case
from benchmarks.speed.contenders import CONTENDERS
from benchmarks.speed.measure import Effort
from benchmarks.speed.models import model_and_guide
from benchmarks.speed.sides import Failure, Side, find_numpyro

SMALL = {
    "bnn": replace(CASES["bnn"], sizes=(3, 4, 1), rows=20, batch=10, chunk=5, compared=40),
    "classifier": replace(CASES["bnn"], sizes=(3, 4, 4, 3), likelihood="multiclass", rows=20, batch=20),
    "eight_schools": CASES["eight_schools"],
    "vae": replace(CASES["vae"], sizes=(6, 5, 2), rows=20, batch=10),
}


def tensors(case: Case, seed: int = 0) -> tuple[dict[str, torch.Tensor], tuple[torch.Tensor, ...]]:
    if case.name == "bnn" and case.likelihood == "multiclass":
        arrays = cases.draw(replace(case, likelihood="regression"), seed)
        arrays["y"] = np.random.default_rng(seed).integers(0, case.sizes[-1], case.rows)
        arrays = {k: v for k, v in arrays.items() if k != "start/sigma"}
    elif case.kind == "vae":
        generator = np.random.default_rng(seed)
        arrays = {f"start/{n}": 0.3 * generator.normal(size=s) for n, s in cases.site_shapes(case).items()}
        arrays["x"] = generator.integers(0, 2, (case.rows, case.sizes[0]))
        arrays = {k: v.astype(np.float32) for k, v in arrays.items()}
    else:
        arrays = cases.draw(case, seed)
    found = {name: torch.from_numpy(np.asarray(value)) for name, value in arrays.items()}
    start = {name.removeprefix("start/"): value for name, value in found.items() if name.startswith("start/")}
    return start, tuple(found[name] for name in ("x", "y") if name in found)


# -- everybody computes the same -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_by_hand_and_in_pyro_the_elbo_is_the_same_at_the_same_noise(name):
    case = SMALL[name]
    start, data = tensors(case)
    batch = tuple(a[: case.batch or len(a)] for a in data)
    model, guide = model_and_guide(case, start, stock=True)
    guide(*batch)  # an autoguide looks at the model first, which draws
    torch.manual_seed(3)
    wanted = Trace_ELBO().loss(model, guide, *batch)
    torch.manual_seed(3)
    found = handwritten.particle_loss(case, handwritten.parameters(case, start), *batch, *([None] if len(data) == 1 else []))
    assert float(found) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("name", ["bnn", "eight_schools", "vae"])
def test_our_engine_starts_where_stock_pyro_does(name, tmp_path):
    case = replace(SMALL[name], lr=1e-12, chunk=10)
    start, data = tensors(case)
    np.savez(tmp_path / "arrays.npz", **{f"start/{n}": v for n, v in start.items()}, **dict(zip("xy", data)))
    ours = torch.tensor(torch_side.open(case.spec, str(tmp_path / "arrays.npz"), "ours_trace").train(150))
    model, guide = model_and_guide(case, start, stock=True)
    drawn = []
    for _ in range(150):
        rows = torch.randperm(case.rows)[: case.batch] if case.batch else torch.arange(case.rows)
        drawn.append(Trace_ELBO().loss(model, guide, *(a[rows] for a in data)))
    stock = torch.tensor(drawn)
    error = (ours.var() / len(ours) + stock.var() / len(stock)).sqrt()
    assert abs(float(ours.mean() - stock.mean())) < 4 * float(error)
    assert float(error) < 0.05 * abs(float(stock.mean())), "a difference would have been seen"


@pytest.mark.parametrize("contender", [c.name for c in contenders.ALL if c.side == "torch"])
def test_every_contender_on_torch_learns_and_agrees(contender, tmp_path, monkeypatch):
    if contender in ("torch_compiled", "ours_step", "ours_loop", "ours_default"):
        monkeypatch.setattr(torch, "compile", lambda function: function)  # compiling takes too long for a test
        monkeypatch.setattr("guides.compile.executable.has_compiler", lambda: False)
    case = SMALL["bnn"]
    np.savez(tmp_path / "arrays.npz", **cases.draw(case))
    made = torch_side.open(case.spec, str(tmp_path / "arrays.npz"), contender)
    losses = made.train(100)
    assert len(losses) == 100
    assert np.mean(losses[-50:]) < 0.9 * np.mean(losses[:10])
    made.run(10)
    assert made.train(10) == losses[:10], "the first losses are kept"
    assert torch.get_num_threads() == 1
    assert not list(pyro.get_param_store()), "contenders keep their parameters apart"


def test_replicates_and_particles_by_hand(tmp_path):
    case = replace(SMALL["bnn"], replicates=3, particles=2)
    np.savez(tmp_path / "arrays.npz", **cases.draw(case))
    found = {}
    for contender in ("torch", "ours_trace"):
        found[contender] = np.mean(torch_side.open(case.spec, str(tmp_path / "arrays.npz"), contender).train(60)[:5])
    assert found["torch"] == pytest.approx(found["ours_trace"], rel=0.3)
    with pytest.raises(NotImplementedError, match="replicates"):
        torch_side.open(case.spec, str(tmp_path / "arrays.npz"), "pyro")


@pytest.mark.skipif(importlib.util.find_spec("numpyro") is None, reason="NumPyro is an optional extra")
def test_numpyro_agrees(tmp_path):
    for case in (SMALL["bnn"], replace(SMALL["bnn"], replicates=3), SMALL["eight_schools"]):
        steps = 200
        np.savez(tmp_path / "arrays.npz", **cases.draw(case))
        with sides.torch_side() as ours, sides.numpyro_side(sys.executable) as numpyro:
            losses = {}
            for side, contender in ((ours, "torch"), (numpyro, "numpyro_update"), (numpyro, "numpyro_scan")):
                side("open", key="k", case=case.spec, arrays=str(tmp_path / "arrays.npz"), contender=contender)
                losses[contender] = side("train", key="k", steps=steps)["losses"]
        for contender in ("numpyro_update", "numpyro_scan"):
            for part in (slice(0, 20), slice(150, 200)):
                wanted = losses["torch"][part]
                assert np.mean(losses[contender][part]) == pytest.approx(np.mean(wanted), rel=0.2)


# -- cases ---------------------------------------------------------------------------------------------------------------


def test_every_case_has_data_and_a_start_for_every_site():
    for case in cases.ALL:
        arrays = cases.draw(replace(case, rows=8 if case.kind == "schools" else 40))
        assert {n.removeprefix("start/") for n in arrays if n.startswith("start/")} == set(cases.site_shapes(case))
        assert all(np.isfinite(a).all() for a in arrays.values())
        assert json.loads(json.dumps(case.spec)) == case.spec, "another process gets the same case"
        assert len(arrays["x"]) == (8 if case.kind == "schools" else 40)
    again = cases.draw(CASES["bnn"])
    assert all(np.array_equal(value, again[name]) for name, value in cases.draw(CASES["bnn"]).items())


def test_operations_are_counted():
    assert replace(CASES["bnn"], sizes=(3, 5), batch=7).products == 2 * 7 * 3 * 5 * 2, "the data needs no gradient"
    assert replace(CASES["bnn"], sizes=(3, 5, 2), batch=7).products == 2 * 7 * (2 * 3 * 5 + 3 * 5 * 2)
    vae = replace(CASES["vae"], sizes=(6, 4, 2), batch=3)
    assert vae.products == 2 * 3 * (2 * 24 + 3 * (2 * 8 + 8 + 24))
    assert replace(vae, replicates=3, particles=2).products == 6 * vae.products


def test_mnist_is_used_where_it_is(provided_data, monkeypatch):
    monkeypatch.setenv("ZOO_DATA", str(provided_data))
    if not (provided_data / "mnist").is_dir():
        pytest.skip("no MNIST among the provided data")
    real = cases.draw(replace(CASES["classifier"], rows=100, sizes=(784, 3, 10)))
    assert real["x"].shape == (100, 784) and real["x"].max() == 1 and real["y"][:5].tolist() == [7, 2, 1, 0, 4]
    monkeypatch.delenv("ZOO_DATA")
    assert cases.draw(replace(CASES["vae"], rows=50))["x"].shape == (50, 784)


def test_axes_change_one_thing():
    for axis in scaling.AXES:
        points = scaling.along(axis)
        assert [value for value, _ in points] == list(scaling.AXES[axis])
        changing = ("width", "batch", "particles", "replicates")
        seen = {
            key: {(c.sizes, c.batch, c.particles, c.replicates)[changing.index(key)] for _, c in points} for key in changing
        }
        assert {key for key, values in seen.items() if len(values) > 1} == {axis}
        assert all(case.batch <= case.rows for _, case in points)
        assert len(scaling.along(axis, quick=True)) == 2


# -- measuring -----------------------------------------------------------------------------------------------------------


class Stub:
    """A side whose clock is a table: seconds per step by contender, doubled in every second round."""

    def __init__(self, speeds: dict[str, float], losses: dict[str, float] | None = None) -> None:
        self.speeds, self.losses, self.asked, self.timed = speeds, losses or {}, [], {}

    def __call__(self, op: str, key: str = "", **request):
        self.asked.append((op, key))
        if op == "facts":
            return {"versions": {"torch": "2"}, "gpu": None}
        if self.speeds.get(key) is None:
            raise Failure("ValueError: it is broken")
        if op == "open":
            return {"seconds": 1.0, "steps": 4, "notes": []}
        if op == "train":
            return {"losses": [100.0, *([self.losses.get(key, 10.0)] * (request["steps"] - 1))]}
        if op == "time":
            self.timed[key] = self.timed.get(key, -1) + 1
            return {"seconds": self.speeds[key] * request["steps"] * (1 + self.timed[key] % 2)}
        return {}


def test_blocks_take_turns_and_ratios_are_taken_within_a_round():
    stub = Stub({"pyro": 4e-3, "ours_loop": 1e-4})
    ticks = []
    effort = Effort(rounds=4, seconds=0.01)
    two = [CONTENDERS["pyro"], CONTENDERS["ours_loop"]]
    found = measure.measure(CASES["bnn"], two, {"torch": stub}, effort, lambda what, count: ticks.append(count))
    assert sum(ticks) == 2 * (1 + effort.rounds)
    blocks = [key for op, key in stub.asked if op == "time"][2:]
    assert blocks == ["pyro", "ours_loop", "ours_loop", "pyro"] * 2
    entry = found["contenders"]["ours_loop"]
    assert entry["microseconds"]["steps_per_block"] % entry["steps_per_call"] == 0
    assert entry["microseconds"]["blocks"] == pytest.approx([200, 100, 200, 100])
    assert entry["microseconds"]["median"] == pytest.approx(150)
    ratio = measure.paired_ratio(found, "pyro", "ours_loop")
    assert ratio == pytest.approx({"median": 40, "low": 40, "high": 40}), "what a round does to all cancels"
    assert [op for op, _ in stub.asked if op == "close"] == ["close", "close"]


def test_replicates_divide_the_time():
    stub = Stub({"ours_loop": 1e-4})
    found = measure.measure(CASES["bnn20"], [CONTENDERS["ours_loop"]], {"torch": stub}, Effort(rounds=1, seconds=0.01))
    assert found["contenders"]["ours_loop"]["microseconds"]["median"] in (pytest.approx(5), pytest.approx(10))


def test_what_is_missing_or_breaks_does_not_stop_the_others():
    stub = Stub({"pyro": 4e-3, "torch": None})
    three = [CONTENDERS[name] for name in ("torch", "pyro", "numpyro_scan")]
    ticks = []
    effort = Effort(rounds=3, seconds=0.01)
    found = measure.measure(CASES["bnn"], three, {"torch": stub}, effort, lambda what, count: ticks.append(count))
    assert sum(ticks) == 3 * (1 + effort.rounds)
    assert found["contenders"]["torch"]["failed"] == "ValueError: it is broken"
    assert found["contenders"]["numpyro_scan"]["skipped"] == "numpyro is not installed"
    assert "median" in found["contenders"]["pyro"]["microseconds"]
    assert measure.paired_ratio(found, "pyro", "torch") is None


@pytest.mark.parametrize(
    ("losses", "disagreeing"),
    [
        ({"a": 100.0, "b": 105.0, "c": 109.0}, []),
        ({"a": 100.0, "b": 100.0, "c": 300.0}, ["c"]),
        ({"a": -50.0, "b": -50.5, "c": -80.0}, ["c"]),
        ({"a": 10.0, "b": 10.0, "c": float("nan")}, ["c"]),
    ],
)
def test_losses_must_agree(losses, disagreeing):
    entries = {name: {"loss": {"last": value, "se": 1.0, "steps": 7}} for name, value in losses.items()}
    found = measure.agreement(entries)
    assert found["disagreeing"] == disagreeing and found["agree"] is (not disagreeing) and found["steps"] == 7
    assert measure.agreement({"a": {"failed": "no"}})["agree"] is None


# -- targets and tables --------------------------------------------------------------------------------------------------


def result(speeds: dict[str, float], losses: dict[str, float] | None = None) -> dict:
    stub = Stub(speeds, losses)
    chosen = [CONTENDERS[name] for name in speeds]
    sides = {"torch": stub, "numpyro": stub}
    measured = {name: measure.measure(CASES[name], chosen, sides, Effort(2, 0.01)) for name in ("bnn", "vae")}
    return {
        "command": "python -m benchmarks speed",
        "started": "2030-01-02T03:04:05+00:00",
        "machine": {"cpu": "abacus", "cores": 2, "load_at_start": 3.0},
        "versions": {"torch": "2", "pyro-ppl": "1"},
        "commit": "f" * 40,
        "dirty": False,
        "quick": False,
        "finished": True,
        "cases": measured,
        "scaling": {"width": [{"value": 10, **measured["bnn"]}, {"value": 50, **measured["bnn"]}]},
        "second_start": {"value": 2.0, "unit": "s", "steps": 10, "cold": 9.0, "warm": [2.0], "imports": 1.0},
        "memory": {"value": 1.5, "unit": "x eager", "cases": {"vae": {"ours_eager": 10.0, "ours_loop": 15.0}}},
        "table1": {"value": 20.0, "unit": "s", "splits": 20},
    }


SPEEDS = {"pyro": 4e-3, "torch": 1.6e-4, "numpyro_update": 3e-4, "numpyro_scan": 1e-4, "ours_step": 2e-4, "ours_loop": 1e-4}


def test_targets_are_judged_by_direction_and_bound():
    outcomes = [targets_.judge(result(SPEEDS), target).outcome for target in targets_.TARGETS]
    # Pyro 40 x; one call .67 x; chunk 1 x; bnn20 absent; schools absent; by hand 1.6 x; update .33 x; 20 s; 2 s; 1.5 x
    assert outcomes == ["missed", "missed", "missed", "not measured", "not measured", "met", "goal", "goal", "met", "missed"]
    quick = result({**SPEEDS, "ours_loop": 2e-5})
    assert targets_.judge(quick, targets_.TARGETS[0]).outcome == "goal"
    for target in targets_.TARGETS:
        better = max if target.unit == "x faster" else min
        assert better(target.goal, target.at_least) == target.goal
        assert target.reached(target.at_least, target.at_least) and target.reached(target.goal, target.at_least)
        assert not target.ours or (target.case in CASES and target.ours in CONTENDERS and target.other in CONTENDERS)


def test_a_ratio_between_different_computations_counts_for_nothing():
    verdict = targets_.judge(result(SPEEDS, {"pyro": 1e6}), targets_.TARGETS[0])
    assert verdict.outcome == "not comparable" and "pyro" in verdict.why
    fallen = result(SPEEDS)
    fallen["cases"]["bnn"]["contenders"]["ours_loop"]["notes"] = ["it cannot be traced"]
    verdict = targets_.judge(fallen, targets_.TARGETS[0])
    assert verdict.outcome == "missed" and "cannot be traced" in verdict.why


def test_report_says_what_spoils_the_numbers():
    found = result(SPEEDS, {"pyro": 1e6})
    text = "\n".join(section.text() for section in report.sections(found))
    assert "load average 3" in text and "NumPyro not installed" in text
    assert "except those of: pyro" in text
    assert "40.0" in text or "40" in text
    markdown = "\n".join(section.markdown() for section in report.sections(found))
    assert "| VAE step, against PyTorch by hand, eager | 1.5 x faster |" in markdown
    broken = copy.deepcopy(found)
    broken |= {"second_start": {"value": None, "failed": "no compiler"}, "table1": {"value": None, "failed": "no data"}}
    broken["memory"] = {"value": None, "cases": {"vae": {"ours_eager": None, "ours_loop": None, "failed": "x"}}}
    broken["finished"] = False
    text = "\n".join(section.text() for section in report.sections(broken))
    assert "no compiler" in text and "no data" in text and "interrupted" in text and "not measured" in text


def test_report_says_how_much_of_a_gpu_is_used():
    found = result(SPEEDS)
    assert "Tflop/s" not in "".join(section.text() for section in report.sections(found))
    found["cases"]["vae"]["spec"]["device"] = "cuda"
    found["gpu"] = {"flops": CASES["vae"].products / 1e-5}
    best = found["cases"]["vae"]["contenders"]["ours_loop"]["microseconds"]["median"]
    said = "".join(section.text() for section in report.sections(found))
    assert f"would take {100 * 10 / best:.2g} % of our fastest time" in said
    assert not CONTENDERS["numpyro_scan"].runs(CASES["vae4096"])


@pytest.mark.parametrize(
    ("value", "text"), [(0.456, "0.46"), (9.994, "9.99"), (9.996, "10.0"), (43.21, "43.2"), (3700.4, "3700")]
)
def test_short_numbers(value, text):
    assert report._short(value) == text


def test_pictures_need_something_to_draw(tmp_path):
    assert pictures.draw(result(SPEEDS), tmp_path / "it.png")
    assert (tmp_path / "it.png").stat().st_size > 5000
    assert not pictures.draw(result(SPEEDS) | {"scaling": {}}, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_blocks_of_the_documentation(tmp_path):
    names = {"speed-targets", "speed-cases", "speed-scaling"}
    empty = report.blocks(tmp_path)
    assert set(empty) == names and all("Not published yet" in text for text in empty.values())
    session.save(result(SPEEDS), tmp_path / "docs" / "results" / "speed.json")
    full = report.blocks(tmp_path)
    assert set(full) == names
    assert "| BNN step, against Pyro SVI.step |" in full["speed-targets"] and "speed.json" in full["speed-targets"]
    assert "Bayesian network 6-50-1" in full["speed-cases"]


# -- the command ---------------------------------------------------------------------------------------------------------


def test_a_run_writes_what_it_measured(tmp_path, monkeypatch):
    stub = Stub(SPEEDS)

    class Opened(Stub):
        def __init__(self, environment):
            super().__init__(SPEEDS)
            assert environment["GUIDES_CACHE"]  # an empty one, so that compiling is timed

        def __enter__(self):
            return stub

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(session, "torch_side", Opened)
    monkeypatch.setattr(session, "find_numpyro", lambda python: None)
    monkeypatch.setattr(extras, "second_start", lambda repeats: {"value": 0.5, "steps": 1, "cold": 1.0, "imports": 1.0})
    monkeypatch.setattr(extras, "memory", lambda cases: {"value": 1.0, "cases": {}})
    monkeypatch.setattr(command, "ROOT", tmp_path / "checkout")
    wanted = command.request(cases=["bnn", "vae"], contenders=["pyro", "ours_loop", "numpyro_scan"], scaling=True, rounds=2)
    sections = command.run(wanted, tmp_path / "out", publish=True, progress=False)
    found = json.loads((tmp_path / "out" / "speed.json").read_text())
    assert found["finished"] and found["effort"]["rounds"] == 2 and found["machine"]["cores"] >= 1
    assert list(found["cases"]) == ["bnn", "vae"] and set(found["scaling"]) == set(scaling.AXES)
    assert found["cases"]["bnn"]["contenders"]["numpyro_scan"]["skipped"]
    assert "pyro" not in found["scaling"]["replicates"][1]["contenders"], "Pyro has no replicates"
    assert (tmp_path / "out" / "speed.md").read_text().startswith("# Speed")
    assert (tmp_path / "checkout" / "docs" / "results" / "speed.json").exists()
    assert (tmp_path / "checkout" / "docs" / "pictures" / "speed_scaling.png").exists()
    assert sections[0].title == "Targets"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--only", "bnm"], "Did you mean 'bnn'"),
        (["--contenders", "pyros"], "Did you mean 'pyro'"),
        (["--publish", "--quick"], "took its time"),
        (["--only", "bnn", "--numpyro-python", "/nowhere/python"], "cannot be run"),
        (["--rounds", "0"], "--rounds"),
    ],
)
def test_wrong_options_end_with_one_line(options, message, tmp_path):
    outcome = CliRunner().invoke(main, ["speed", "--out", str(tmp_path), *options])
    assert outcome.exit_code == 2 and message in outcome.output and "Traceback" not in outcome.output


def test_help_names_every_case_and_contender():
    text = CliRunner().invoke(main, ["speed", "--help"]).output
    words = set(re.findall(r"\w+", text))
    assert {*CASES, *CONTENDERS} <= words


def test_an_interpreter_without_numpyro_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert find_numpyro(None) is None
    monkeypatch.setattr(
        subprocess,
        "run",
        lambda *_, **__: subprocess.CompletedProcess([], 1, "", "ModuleNotFoundError: No module named 'numpyro'"),
    )
    with pytest.raises(Failure, match="has no NumPyro: ModuleNotFoundError"):
        find_numpyro("python")


def test_the_worker_answers_and_survives_errors(tmp_path: Path):
    side = tmp_path / "side.py"
    side.write_text(
        "import os, sys\n"
        "class It:\n"
        "    steps = 2\n"
        "    def run(self, steps): print('noise')\n"
        "    def train(self, steps): return [1.0] * steps\n"
        "def open(case, arrays, contender):\n"
        "    if contender == 'gone': os._exit(7)\n"
        "    if contender == 'bad': raise ValueError('no\\nsuch thing')\n"
        "    return It()\n"
        "def facts(): return {'versions': {}}\n"
    )
    with Side(sys.executable, str(side)) as ask:
        assert ask("facts") == {"versions": {}}
        with pytest.raises(Failure, match="ValueError: no"):
            ask("open", key="a", case={}, arrays="", contender="bad")
        assert ask("open", key="a", case={}, arrays="", contender="good")["steps"] == 2
        assert ask("train", key="a", steps=3) == {"losses": [1.0] * 3}
        assert ask("time", key="a", steps=3)["seconds"] >= 0
        assert "mebibytes" in ask("memory", key="a", steps=1)
        assert ask("close", key="a") == {}
        with pytest.raises(Failure, match="KeyError"):
            ask("time", key="a", steps=3)
        with pytest.raises(Failure, match="the process ended"):
            ask("open", key="a", case={}, arrays="", contender="gone")


def test_the_example_of_the_page_runs():
    text = (command.ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert blocks
    for block in blocks:
        exec(block, {})
    assert set(re.findall(r"<!-- begin:(speed[\w-]*) -->", text)) == set(report.blocks(command.ROOT))
