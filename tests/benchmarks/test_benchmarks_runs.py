"""Runs in a process of their own: entry points, kill and resume, failing cells, wrong folders and names."""

from __future__ import annotations

import json
import re
import signal
import time
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks import TASKS, Split
from benchmarks.running.store import Cell, ResultsFolder


def test_guide_of_another_package_is_listed_run_and_compared(command_line, tmp_path: Path) -> None:
    listed, _ = command_line("list", "guides")
    assert re.search(r"^ *borrowed +A guide of another package", listed, re.MULTILINE)
    assert "mean_field" in listed
    out, _ = command_line(
        "run",
        "tiny",
        "--guides",
        "borrowed,mean_field",
        "--splits",
        "2",
        "--seeds",
        "2",
        "--out",
        str(tmp_path / "r"),
        "--quiet",
    )
    assert "borrowed" in out
    records = ResultsFolder(tmp_path / "r").records()
    assert {Cell.of(record) for record in records} == {
        Cell("tiny", guide, split, seed) for guide in ("borrowed", "mean_field") for split in (0, 1) for seed in (0, 1)
    }
    table, _ = command_line("compare", str(tmp_path / "r"))
    assert re.search(r"^borrowed +−?\d+\.\d+ ± ", table, re.MULTILINE)
    for record in records:
        assert record["status"] == "done"
        assert record["versions"].keys() >= {"python", "torch", "pyro-ppl", "arviz"}
        assert record.keys() >= {"commit", "dirty", "seed", "protocol", "machine", "started", "finished"}
        assert record["metrics"]["seconds"] > 0
        assert record["fit"]["peak_memory_mib"] > 0
        assert record["fit"]["vectorised_with"] == 4  # equal shapes run together
        assert (tmp_path / "r" / record["posterior"]).is_file()
        assert record["metrics"]["elbo"] < 0


def test_killed_run_resumes_with_what_is_missing(command_line, tmp_path: Path) -> None:
    folder = ResultsFolder(tmp_path / "r")
    arguments = ("run", "tiny_slow", "--guides", "mean_field,map", "--out", str(folder.path), "--quiet", "--no-report")
    process = command_line.start(*arguments)
    deadline = time.monotonic() + 60
    while len(folder.records()) < 3 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = {Cell.of(record): record for record in folder.records()}
    assert 3 <= len(before) < 12
    with folder.cells_file.open("ab") as file:  # the line that the kill tore
        file.write(b'{"task":"tiny_slow","guide":"map","split":5,"se')

    out, _ = command_line(*arguments, "--resume")
    assert f"{len(before)} cells were there already, {12 - len(before)} ran." in out
    lines = folder.cells_file.read_text().splitlines()
    assert len(lines) == 12
    after = {Cell.of(json.loads(line)): json.loads(line) for line in lines}
    assert len(after) == 12
    again = {Cell.of(record): record for record in folder.records()}
    assert all(again[cell] == record for cell, record in before.items())
    assert all((folder.path / record["posterior"]).is_file() for record in after.values())
    assert not list(folder.path.glob("**/*.part"))


def test_failing_cell_costs_no_other_and_fails_the_run(invoke, tmp_path: Path) -> None:
    out = str(tmp_path / "r")
    arguments = ("run", "tiny_broken", "--guides", "mean_field", "--splits", "3", "--out", out, "--quiet")
    output = invoke(*arguments, status=1).output
    assert "1 of 3 cells failed" in output
    assert "tiny_broken · mean_field · split 1 · seed 0: OSError: row 7 of the data file is torn" in output
    records = {record["split"]: record for record in ResultsFolder(out).records()}
    assert [records[split]["status"] for split in range(3)] == ["done", "failed", "done"]
    assert "load_or_fail" in records[1]["error"]["traceback"]
    assert "1 of 1 cells failed" in invoke(*arguments, "--resume", status=1).output
    assert "row 7 of the data file" in (tmp_path / "r" / "report.html").read_text()


def test_one_bad_data_set_in_a_vectorised_run_costs_no_other(invoke, tiny_tasks, monkeypatch, tmp_path: Path) -> None:
    def load(index: int) -> Split:
        return Split(train=(torch.full((8,), float("nan") if index == 2 else 1.0),))

    monkeypatch.setitem(TASKS._entries, "tiny", replace(tiny_tasks.tiny, load=load))
    invoke("run", "tiny", "--guides", "map", "--splits", "5", "--out", str(tmp_path / "r"), "--quiet", status=1)
    records = ResultsFolder(tmp_path / "r").records()
    assert {record["split"]: record["status"] for record in records} == {
        split: "failed" if split == 2 else "done" for split in range(5)
    }
    assert {record["split"]: record.get("fit", {}).get("vectorised_with") for record in records} == {
        0: 2, 1: 2, 2: None, 3: 2, 4: 2
    }  # fmt: skip


def test_folder_of_another_protocol_or_target_is_refused(invoke, tmp_path: Path) -> None:
    out = str(tmp_path / "r")
    arguments = ("--guides", "map", "--splits", "1", "--out", out, "--quiet", "--no-report")
    invoke("run", "tiny", *arguments)
    output = invoke("run", "tiny", *arguments, status=2).output
    assert "already holds 1 finished" in output
    assert "--resume" in output
    output = invoke("run", "tiny", *arguments, "--resume", "--epochs", "7", status=2).output
    assert "another protocol for tiny | map" in output
    assert "fit.epochs: absent, now 7" in output
    assert "fit.steps: 20, now absent" in output
    output = invoke("run", "tiny_slow", *arguments, "--resume", status=2).output
    assert "'tiny'" in output
    assert "'tiny_slow'" in output
    assert len(ResultsFolder(out).records()) == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    assert "not empty" in invoke("run", "tiny", "--out", str(tmp_path / "mine"), status=2).output


def test_resume_adds_splits_seeds_and_guides(invoke, tmp_path: Path) -> None:
    arguments = ("run", "tiny", "--out", str(tmp_path / "r"), "--quiet", "--no-report", "--resume")
    invoke(*arguments, "--guides", "map", "--splits", "1")
    invoke(*arguments, "--guides", "map,mean_field", "--splits", "2", "--seeds", "2")
    records = ResultsFolder(tmp_path / "r").records()
    assert len(records) == 8
    assert len(ResultsFolder(tmp_path / "r").cells_file.read_text().splitlines()) == 8
    assert len({record["fit_seed"] for record in records if record["guide"] == "map"}) == 4
