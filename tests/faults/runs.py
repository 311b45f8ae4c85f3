"""Runs of the benchmarks on full disks, in unwritable folders, ended by signals; results that are damaged."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from click.testing import CliRunner

from benchmarks.cli import main
from benchmarks.reporting import report, summary
from benchmarks.running import store
from benchmarks.running.netcdf import netcdf

from .harness import ROOT, as_another_user, fault, full_after, small_disk

TASK = "eight_schools"
COMMAND = ("run", TASK, "--guides", "mean_field,map", "--epochs", "30", "--quiet", "--jobs", "1", "--samples", "50")


@cache
def finished() -> Path:
    """Return a folder with a short run, made once."""
    folder = Path(tempfile.mkdtemp(prefix="faults-run-")) / "out"
    process = os.fork()
    if process == 0:
        said = invoke("--out", str(folder))
        os._exit(said.exit_code)
    _, status = os.waitpid(process, 0)
    assert status == 0, "the run that faults are made in failed"
    return folder


def invoke(*more: str, command: tuple[str, ...] = COMMAND) -> Any:
    torch.set_num_threads(1)
    return CliRunner().invoke(main, [*command, *more])


def copied(folder: Path) -> Path:
    return Path(shutil.copytree(finished(), folder / "out"))


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "cells.jsonl").read_text().splitlines()]


def rewrite(out: Path, change: Callable[[dict[str, Any]], object]) -> None:
    records = lines(out)
    for record in records:
        change(record)
    (out / "cells.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def one_line(said: Any, words: str) -> None:
    assert said.exit_code in (1, 2), (said.exit_code, said.output, said.exception)
    assert isinstance(said.exception, SystemExit), repr(said.exception)
    assert words in said.output, said.output
    assert "Traceback" not in said.output


@fault("runs", "a disk that is full after 64 KB", "one line, the process lives, what was finished stays")
def _full(folder: Path) -> None:
    with small_disk(folder, "64k") as place:
        said = invoke("--out", str(place / "out"))
        assert said.exit_code != 0
        assert isinstance(said.exception, SystemExit), repr(said.exception)
        assert "o space left" in said.output, said.output


@fault("runs", "no file beyond 4 KB", "one line, the process lives, the failed cells say why")
def _limited(folder: Path) -> None:
    invoke("--help", command=())
    full_after(4096)
    said = invoke("--out", str(folder / "out"))
    one_line(said, "File too large")


@fault("runs", "a posterior as netCDF on a full disk", "an error, not the end of the process", quick=True)
def _netcdf(folder: Path) -> None:
    import arviz

    data = arviz.from_dict(posterior={"a": torch.randn(1, 5000).numpy()})
    full_after(4096)
    with suppress(OSError):
        store.write_atomically(folder / "a.nc", lambda path: path.write_bytes(netcdf(data)))
        raise AssertionError
    assert list(folder.iterdir()) == []


@fault("runs", "a folder that may not be written to", "one line")
def _unwritable(folder: Path) -> None:
    invoke("--help", command=())
    as_another_user(folder)
    (folder / "closed").mkdir(mode=0o500)
    one_line(invoke("--out", str(folder / "closed" / "out")), "Permission denied")


@fault("runs", "results that may not be added to", "one line")
def _read_only(folder: Path) -> None:
    out = copied(folder)
    as_another_user(folder)
    (out / "cells.jsonl").unlink()
    out.chmod(0o500)
    one_line(invoke("--out", str(out), "--resume"), "Permission denied")


@fault("runs", "a report into a folder that may not be written to", "one line")
def _report(folder: Path) -> None:
    out = copied(folder)
    report.build(out)  # which imports what a process of fewer rights could not read
    as_another_user(folder)
    out.chmod(0o500)
    one_line(invoke(str(out), command=("report",)), "Permission denied")


@fault("runs", "--out is a file", "one line")
def _file(folder: Path) -> None:
    (folder / "out").write_text("mine")
    one_line(invoke("--out", str(folder / "out")), "is a file")
    assert (folder / "out").read_text() == "mine"


def _ended(folder: Path, number: int) -> None:
    command = [sys.executable, "-m", "benchmarks", "run", TASK, "--seeds", "40", *COMMAND[2:], "--out", str(folder / "out")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    cells = folder / "out" / "cells.jsonl"
    deadline = time.monotonic() + 150
    while time.monotonic() < deadline and not (cells.exists() and cells.stat().st_size):
        time.sleep(0.05)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number, (process.returncode, said)
    assert "finished cells are kept" in said, said
    assert "Traceback" not in said, said
    for line in cells.read_text().splitlines():
        json.loads(line)


for _number in (signal.SIGTERM, signal.SIGINT):

    @fault("runs", f"{_number.name} in the middle", "one line, finished cells are kept", _number)
    def _signalled(folder: Path, number: int) -> None:
        _ended(folder, number)


def _resumed(out: Path) -> None:
    """Resume, and see that what was missing is there again."""
    said = invoke("--out", str(out), "--resume")
    assert said.exit_code == 0, (said.output, said.exception)
    for record in store.ResultsFolder(out).records():
        assert record["status"] == "done"
        assert not record["posterior"] or (out / record["posterior"]).is_file()


LOST: dict[str, Callable[[Path], object]] = {
    "a finished cell's netCDF is deleted": lambda out: next((out / "posteriors").rglob("*.nc")).unlink(),
    "all netCDF files are deleted": lambda out: shutil.rmtree(out / "posteriors"),
    "the list of cells is deleted": lambda out: (out / "cells.jsonl").unlink(),
    "the last line is torn": lambda out: os.truncate(out / "cells.jsonl", (out / "cells.jsonl").stat().st_size - 20),
    "a line is of bytes that are no text": lambda out: (out / "cells.jsonl").write_bytes(b"\xff\xfe\x00\n"),
    "a line is JSON but no record": lambda out: (out / "cells.jsonl").write_text('[1]\n3\n"a"\nnull\n{}\n'),
    "a killed writer left parts": lambda out: (out / ".manifest.json.0123.part").write_text("half"),
}
for _what, _lose in LOST.items():

    @fault("runs", f"{_what} before --resume", "made again, the rest is kept", _lose)
    def _lost(folder: Path, lose: Callable[[Path], object]) -> None:
        out = copied(folder)
        lose(out)
        _resumed(out)
        assert not list(out.glob(".*.part"))


def _reported(out: Path) -> tuple[str, str]:
    report.build(out)
    json.dumps(summary.summarise(out))
    said = invoke(str(out), command=("compare",))
    assert said.exit_code == 0, (said.output, said.exception)
    return (out / "report.md").read_text(), (out / "report.html").read_text()


KEYS = ("metrics", "curves", "verdict", "fit", "warnings", "versions", "machine", "protocol", "posterior", "started")
OTHERS = ("finished", "status", "commit", "images")
CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    **{
        f"without {key!r}": lambda record, key=key: record.pop(key, None)
        for key in (*KEYS, "finished", "status", "commit", "images")
    },
    "whose every optional key is null": lambda record: record.update(dict.fromkeys(KEYS)),
    "whose metrics are words": lambda record: record.update(metrics={"khat": "many", "seconds": [1]}),
    "that failed and does not say how": lambda record: record.update(status="failed"),
    "whose verdict is of another version": lambda record: record.update(verdict={"level": "splendid"}),
}
for _what, _change in CHANGES.items():

    @fault("reports", f"records {_what}", "the report is written", _change)
    def _lacking(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
        out = copied(folder)
        rewrite(out, change)
        _reported(out)


@fault("reports", "a netCDF that is damaged", "the report is written")
def _damaged(folder: Path) -> None:
    out = copied(folder)
    for path in (out / "posteriors").rglob("*.nc"):
        os.truncate(path, 100)
    _reported(out)


MANIFESTS = {"no JSON": b"{", "no text": b"\xff\xfe", "a list": b"[]"}
for _what, _bytes in MANIFESTS.items():

    @fault("reports", f"a manifest that is {_what}", "one line", _bytes)
    def _manifest(folder: Path, content: bytes) -> None:
        out = copied(folder)
        (out / "manifest.json").write_bytes(content)
        one_line(invoke(str(out), command=("report",)), "manifest.json")


@fault(
    "reports",
    "names and messages that are HTML and Markdown",
    "report.md shows them as report.html does: as text",
)
def _injected(folder: Path) -> None:
    out = copied(folder)
    odd = "<img src=x onerror=alert(1)>|`\n# title"
    records = lines(out)
    failed = {"type": odd, "message": odd, "traceback": odd}
    more = [records[0] | {"guide": odd}, records[0] | {"guide": odd, "seed": 7, "status": "failed", "error": failed}]
    (out / "cells.jsonl").write_text("".join(json.dumps(r) + "\n" for r in (*records, *more)))
    for text in _reported(out):
        assert "onerror=alert(1)" in text
        assert "<img src=x" not in text
    assert "\n# title" not in (out / "report.md").read_text()
