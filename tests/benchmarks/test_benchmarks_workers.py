"""Groups of cells in several processes give the cells that one process gives."""

import os
import signal

import pytest

from benchmarks.running import runner, workers
from benchmarks.running.store import ResultsFolder


def squares(number, count):
    for power in range(count):
        yield number**power


def fails(number):
    yield number
    raise ValueError(f"{number} is no good")


def dies(number):
    yield number
    os.kill(os.getpid(), signal.SIGKILL)


def test_results_come_from_all_processes():
    found = sorted(workers.in_processes(squares, [(2, 3), (3, 2), (5, 1)], jobs=2))
    assert found == [(0, 1), (0, 2), (0, 4), (1, 1), (1, 3), (2, 1)]
    assert list(workers.in_processes(squares, [], jobs=2)) == []


def test_an_error_in_a_process_is_raised_here():
    with pytest.raises(RuntimeError, match="ValueError: 7 is no good"):
        list(workers.in_processes(fails, [(7,)], jobs=2))


def test_a_process_that_dies_is_noticed():
    with pytest.raises(RuntimeError, match="status -9"):
        list(workers.in_processes(dies, [(7,)], jobs=1))


@pytest.mark.slow
def test_two_processes_record_what_one_does(tmp_path):
    plan = runner.plan("blundell_curve", guide_labels=["map", "mean_field"], overrides={"epochs": 5, "steps": None})
    found = {}
    for jobs in (1, 2):
        folder = ResultsFolder(tmp_path / str(jobs))
        outcome = runner.run(plan, folder, device="cpu", progress=False, jobs=jobs)
        assert outcome.run == len(plan.cells) and not outcome.failed
        found[jobs] = {(r["task"], r["guide"], r["split"]): r["metrics"]["log_likelihood"] for r in folder.records()}
    assert found[1] == pytest.approx(found[2], rel=1e-4)
