"""Dask and submitit themselves: the same cells with the same numbers, and none lost or doubled when a worker is killed.

They start schedulers and workers and take a minute: ``python -m pytest -m fleet``, as docs/scaling.md says.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.running.store import Cell, ResultsFolder

pytestmark = [pytest.mark.slow, pytest.mark.fleet]

SECONDS = 120


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


@pytest.fixture
def cluster(command_line, tmp_path: Path) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """The address of a Dask scheduler; its process and those of its three workers."""
    pytest.importorskip("distributed", reason="the extra fleet is not installed: no Dask")
    file = tmp_path / "scheduler.json"
    log = (tmp_path / "dask.log").open("w")
    common = {"cwd": tmp_path, "env": command_line.environment, "stdout": log, "stderr": log}
    dask = [sys.executable, "-m", "dask"]
    made = [
        subprocess.Popen(
            [*dask, "scheduler", "--port", "0", "--no-dashboard", "--no-show", "--scheduler-file", str(file)], **common
        )
    ]
    try:
        wait_for(file.exists, "the scheduler did not start")
        address = json.loads(file.read_text())["address"]
        worker = [*dask, "worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard"]
        made += [subprocess.Popen(worker, **common) for _ in range(3)]
        yield address, made
    finally:
        for process in made:
            process.kill()
            process.wait()
        log.close()


def cells_of(folder: ResultsFolder) -> Counter[Cell]:
    lines = folder.cells_file.read_text().splitlines() if folder.cells_file.exists() else []
    return Counter(Cell.of(json.loads(line)) for line in lines)


def numbers(folder: Path) -> dict[Cell, dict[str, float]]:
    records = ResultsFolder(folder).records()
    timed = {"seconds"}
    return {Cell.of(r): {k: v for k, v in r["metrics"].items() if k not in timed} for r in records}


SLOW = ("run", "tiny_slow", "--guides", "mean_field,map", "--seeds", "2", "--quiet", "--no-report")
ALL = {Cell("tiny_slow", guide, split, seed) for guide in ("mean_field", "map") for split in range(6) for seed in (0, 1)}


def test_a_dask_worker_that_is_killed_costs_no_cell(command_line, cluster, tmp_path: Path) -> None:
    address, processes = cluster
    folder = ResultsFolder(tmp_path / "r")
    process = command_line.start(*SLOW, "--executor", f"dask:{address}", "--out", str(folder.path))
    wait_for(lambda: sum(cells_of(folder).values()) >= 4 or process.poll() is not None, "no cell finished")
    assert sum(cells_of(folder).values()) < len(ALL)
    processes[1].send_signal(signal.SIGKILL)
    out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, out + err
    assert cells_of(folder) == Counter(ALL)
    assert {record["host"] for record in folder.records()} == {os.uname().nodename}


def test_a_job_of_submitit_that_is_killed_costs_no_cell(command_line, tmp_path: Path) -> None:
    pytest.importorskip("submitit", reason="the extra fleet is not installed: no submitit")
    psutil = pytest.importorskip("psutil")
    folder = ResultsFolder(tmp_path / "r")
    jobs = f"submitit-local:parallel=3,folder={tmp_path / 'jobs'}"
    arguments = ("run", "tiny_slow", "--guides", "mean_field,map", "--splits", "4", "--quiet", "--no-report")
    process = command_line.start(*arguments, "--executor", jobs, "--out", str(folder.path))

    def working() -> list[psutil.Process]:
        return [p for p in psutil.Process(process.pid).children(recursive=True) if "submitit.core._submit" in p.cmdline()]

    wait_for(lambda: working() or process.poll() is not None, "no job started")
    killed = working()[0]
    killed.kill()
    out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, out + err
    assert cells_of(folder) == Counter({cell: 1 for cell in ALL if cell.seed == 0 and cell.split < 4})


def test_dask_submitit_and_processes_give_the_same_numbers(command_line, cluster, tmp_path: Path) -> None:
    pytest.importorskip("submitit", reason="the extra fleet is not installed: no submitit")
    address, _ = cluster
    found = {}
    for name in ("local", f"dask:{address}", f"submitit-local:parallel=2,folder={tmp_path / 'jobs'}"):
        folder = tmp_path / name.partition(":")[0]
        arguments = ("run", "quick", "--guides", "map,mean_field", "--tasks", "eight_schools", "--samples", "100")
        command_line(*arguments, "--epochs", "20", "--executor", name, "--quiet", "--no-report", "--out", str(folder))
        found[name] = numbers(folder)
    first, *others = found.values()
    assert len(first) > 1
    assert all(other == first for other in others)


def test_a_scheduler_that_goes_away_ends_the_run_with_one_line(command_line, cluster, tmp_path: Path) -> None:
    address, processes = cluster
    folder = ResultsFolder(tmp_path / "r")
    process = command_line.start(*SLOW, "--executor", f"dask:{address}", "--out", str(folder.path))
    wait_for(lambda: cells_of(folder) or process.poll() is not None, "no cell finished")
    processes[0].kill()
    out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    assert "connection to the workers was lost" in err
    assert "--resume" in err
    assert "Traceback" not in out + err


def test_a_scheduler_that_is_not_there_is_said_in_one_line(command_line, tmp_path: Path) -> None:
    pytest.importorskip("distributed", reason="the extra fleet is not installed: no Dask")
    _, err = command_line(*SLOW, "--executor", "dask:tcp://127.0.0.1:9", "--out", str(tmp_path / "r"), status=2)
    assert "no scheduler answers there" in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "r").exists()
