"""Wrong input on the command line: one line that helps, exit status 2, no traceback."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

import guides
from benchmarks import SUITES, TASKS
from benchmarks.cli import KINDS, main
from benchmarks.running import runner
from benchmarks.running.store import ResultsFolder


def invoke(*arguments: str):
    return CliRunner().invoke(main, list(arguments))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("run", "quikc"), "'quick'"),
        (("run", "blundel_curve"), "'blundell_curve'"),
        (("run", "blundell_curve", "--guides", "mean_feild"), "'mean_field'"),
        (("run", "quick", "--tasks", "digits_clases"), "'digits_classes'"),
        (("run", "quick", "--tasks", "uci_yacht"), "not in suite 'quick'"),
        (("run", "blundell_curve", "--splits", "0"), "--splits 0"),
        (("run", "blundell_curve", "--seeds", "-1"), "--seeds -1"),
        (("run", "blundell_curve", "--splits", "1000"), "has 20 splits"),
        (("run", "blundell_curve", "--epochs", "0"), "--epochs 0"),
        (("run", "breast_cancer", "--guides", "map:init"), "key=value"),
        (("run", "blundell_curve", "--guides", ","), "one or more names"),
        (("compare", "no/such/folder"), "holds no results"),
        (("report", "no/such/folder"), "holds no results"),
        (("rnu", "quick"), "'run'"),
        (("list", "guidse"), "guides"),
    ],
)
def test_wrong_input_is_named_with_the_nearest_right_one(arguments: tuple[str, ...], expected: str, tmp_path: Path) -> None:
    with CliRunner().isolated_filesystem(tmp_path):
        result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert expected in result.output
    assert "Traceback" not in result.output
    assert isinstance(result.exception, SystemExit)


def test_absent_cuda_device_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    result = invoke("run", "blundell_curve", "--device", "cuda", "--out", str(tmp_path / "r"))
    assert result.exit_code == 2
    assert "--device cuda" in result.output
    assert not (tmp_path / "r").exists()


def test_help_of_every_command_has_an_example() -> None:
    assert "python -m benchmarks run quick" in invoke("--help").output
    for name in main.commands:
        assert f"python -m benchmarks {name}" in invoke(name, "--help").output, name


@pytest.mark.parametrize("kind", KINDS)
def test_list_says_something_of_every_entry(kind: str) -> None:
    result = invoke("list", kind)
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines
    assert all(len(line.split()) > 1 for line in lines), "an entry without a first line"


def test_list_without_a_kind_lists_everything() -> None:
    output = invoke("list").output
    assert all(name in output for name in (*SUITES, *TASKS, *KINDS))


def test_list_says_what_a_guide_is_for() -> None:
    line = next(line for line in invoke("list", "guides").output.splitlines() if line.split()[0] == "mean_field")
    assert "For: the first guide to try" in line and "several modes" not in line and "`" not in line


def test_a_dry_run_names_cells_and_time_and_runs_nothing(tmp_path: Path) -> None:
    asked = ("run", "eight_schools", "--guides", "map", "--seeds", "2", "--dry-run", "--out")
    said = invoke(*asked, str(tmp_path / "a"))
    assert said.exit_code == 0 and "2 cells, time not known" in said.output and not (tmp_path / "a").exists()
    work = runner.plan("eight_schools", guide_labels=["map"])
    folder = ResultsFolder(tmp_path / "a")
    folder.prepare(work.target, work.protocols, resume=False, command="")
    done = {"task": "eight_schools", "guide": "map", "split": 0, "seed": 0, "status": "done", "metrics": {"seconds": 3.0}}
    folder.append(done | {"protocol": work.settings["eight_schools", "map"].hash})
    folder.append(done | {"protocol": "another", "seed": 1, "status": "failed", "metrics": {"seconds": 900.0}})
    assert "2 cells, about 3.0 s each" in invoke(*asked, str(tmp_path / "b")).output, "by the folder beside it"
    assert "2 cells, 1 there already, about 3.0 s each" in invoke(*asked, str(tmp_path / "a")).output


def test_a_report_opens_in_the_browser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("click.launch", opened.append)
    (tmp_path / "report.html").write_text("")
    assert invoke("open", str(tmp_path)).exit_code == 0
    assert opened == [str(tmp_path / "report.html")]
    assert invoke("open", str(tmp_path / "none")).exit_code == 2 and len(opened) == 1


def test_version() -> None:
    assert invoke("--version").output.split()[-1] == guides.__version__
