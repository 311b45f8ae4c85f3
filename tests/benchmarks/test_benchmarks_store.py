"""The results folder: torn lines, atomic files, strict JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from benchmarks.protocol.describe import describe, differences, fingerprint
from benchmarks.running.store import Cell, ResultsFolder, ResultsFolderError, read_folders, write_atomically


def record(split: int, status: str = "done", **more: object) -> dict:
    return {"task": "t", "guide": "g", "split": split, "seed": 0, "status": status, "metrics": {"rmse": 1.0 * split}} | more


def prepared(path: Path, protocol: dict | None = None, **options) -> ResultsFolder:
    folder = ResultsFolder(path)
    settings = {"resume": False, "command": "test"} | options
    folder.prepare("t", {"t | g": protocol or {"fit": {"epochs": 4}}}, **settings)
    return folder


@pytest.mark.parametrize("cut", [1, 10, 40])
def test_torn_last_line_is_passed_over_and_then_mended(tmp_path: Path, cut: int) -> None:
    folder = prepared(tmp_path / "r")
    for split in range(3):
        folder.append(record(split))
    content = folder.cells_file.read_bytes()
    folder.cells_file.write_bytes(content[:-cut])
    # without its line feed the last line may be whole JSON all the same; torn further it is no record
    assert len(folder.records()) == (3 if cut == 1 else 2)
    prepared(tmp_path / "r", resume=True)
    assert [found["split"] for found in folder.records()] == [0, 1]
    folder.append(record(2))
    assert [found["split"] for found in folder.records()] == [0, 1, 2]
    assert folder.damaged_lines == 0


def test_damaged_line_in_the_middle_costs_only_its_cell(tmp_path: Path) -> None:
    folder = prepared(tmp_path / "r")
    folder.append(record(0))
    with folder.cells_file.open("ab") as file:
        file.write(b"\x00\x00\xff garbage\n[1, 2]\n\n")
    folder.append(record(1))
    assert [found["split"] for found in folder.records()] == [0, 1]
    assert folder.damaged_lines == 2


def test_last_record_of_a_cell_counts(tmp_path: Path) -> None:
    folder = prepared(tmp_path / "r")
    folder.append(record(0, "failed"))
    assert folder.done() == set()
    folder.append(record(0))
    assert folder.done() == {Cell("t", "g", 0, 0)}
    assert len(folder.records()) == 1


def test_records_are_strict_json(tmp_path: Path) -> None:
    folder = prepared(tmp_path / "r")
    folder.append(record(0, values=[math.nan, math.inf, 0.1], tensor=torch.tensor([1.0, math.nan]), odd={1: {2}}))
    (found,) = folder.records()
    assert found["values"] == [None, None, 0.1]
    assert found["tensor"] == [1.0, None]
    json.loads(folder.cells_file.read_text(), parse_constant=pytest.fail)


def test_other_protocol_is_refused_with_what_differs(tmp_path: Path) -> None:
    prepared(tmp_path / "r")
    with pytest.raises(ResultsFolderError, match=r"another protocol for t \| g[^§]*fit\.epochs: 4, now 8[^§]*--out"):
        prepared(tmp_path / "r", {"fit": {"epochs": 8}}, resume=True)


def test_new_pairs_may_join_a_folder(tmp_path: Path) -> None:
    folder = prepared(tmp_path / "r")
    folder.prepare("t", {"t | other": {"fit": {}}}, resume=True, command="again")
    assert folder.manifest()["protocols"].keys() == {"t | g", "t | other"}
    assert [entry["command"] for entry in folder.manifest()["commands"]] == ["test", "again"]


def test_two_runs_cannot_share_a_folder(tmp_path: Path) -> None:
    folder = ResultsFolder(tmp_path / "r")
    with folder.locked():
        with pytest.raises(ResultsFolderError, match="another run"), ResultsFolder(tmp_path / "r").locked():
            pass
        prepared(tmp_path / "r")  # the lock itself does not make the folder look used
    with folder.locked():
        pass


def test_broken_manifest_says_what_to_do(tmp_path: Path) -> None:
    folder = prepared(tmp_path / "r")
    folder.manifest_file.write_text("{")
    with pytest.raises(ResultsFolderError, match="not valid JSON"):
        prepared(tmp_path / "r", resume=True)


def test_out_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsFolderError, match="is a file"):
        prepared(tmp_path / "file")


def test_reading_a_folder_without_results_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ResultsFolderError, match="no results"):
        read_folders([tmp_path])


def test_writing_is_all_or_nothing(tmp_path: Path) -> None:
    target = tmp_path / "a" / "file.txt"
    write_atomically(target, lambda path: path.write_text("old"))

    def half(path: Path) -> None:
        path.write_text("ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(target, half)
    assert target.read_text() == "old"
    assert list(target.parent.iterdir()) == [target]


def test_description_tells_protocols_apart_and_nothing_else() -> None:
    from functools import partial

    one = describe({"load": partial(describe, thing=1), "fit": {"lr": 1e-3, "epochs": 3}})
    same = describe({"fit": {"epochs": 3, "lr": 1e-3}, "load": partial(describe, thing=1)})
    other = describe({"load": partial(describe, thing=2), "fit": {"lr": 1e-3, "epochs": 3}})
    assert fingerprint(one) == fingerprint(same) != fingerprint(other)
    assert differences(one, same) == []
    assert differences(one, other) == ["load.thing: 1, now 2"]
    assert fingerprint({"epochs": 3}) == "cc6325ab488e"  # printf '{"epochs":3}' | sha256sum
    for bad in (lambda: 0, torch.zeros(2), object()):
        with pytest.raises(TypeError, match="cannot be part of a protocol"):
            describe({"x": bad})
