"""Wrong input on the command line: one line that helps, exit status 2, no traceback."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import SUITES, TASKS
from benchmarks.cli import KINDS, main


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
