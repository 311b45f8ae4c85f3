"""Cells on executors give the cells that one process gives, whatever becomes of workers."""

import os
import pickle
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pytest
from dying import deadly, square

from benchmarks.running import away, executors, runner
from benchmarks.running.dispatch import GivenUp, Lost, WorkerDied, WorkerError, dispatch
from benchmarks.running.local import LocalPool
from benchmarks.running.store import ResultsFolder


def apart(numbers):
    return [[number] for number in numbers]


def spawned():
    return ProcessPoolExecutor(2, get_context("fork"))


def no_executor():
    return 7


def test_a_worker_that_dies_costs_its_part_which_runs_again(tmp_path):
    pool = LocalPool(1)
    found = list(dispatch(pool, partial(deadly, folder=tmp_path, runs=1), [[7, 3], [1, 2], [4]], apart))
    pool.shutdown(cancel_futures=True)
    assert sorted(found) == [([1, 2], [1, 4]), ([4], [16]), ([7, 3], [49, 9])]
    assert len(list(tmp_path.iterdir())) == 2


class Dies(Executor):
    """Calls at once, and loses the worker at 7."""

    def __init__(self):
        self.runs = []

    def submit(self, fn, numbers, /):
        future = Future()
        self.runs.append(numbers)
        future.set_exception(WorkerDied("killed")) if 7 in numbers else future.set_result(fn(numbers))
        return future


def test_what_kills_its_worker_is_given_up_after_three_runs_and_alone():
    executor = Dies()
    found = {tuple(part): result for part, result in dispatch(executor, square, [[1, 7], [4]], apart)}
    assert isinstance(found.pop((7,)), Lost)
    assert found == {(1,): [1], (4,): [16]}
    assert sorted(numbers for numbers in executor.runs if 7 in numbers) == [[1, 7], [1, 7], [7]]


def test_a_pool_that_breaks_as_a_whole_loses_only_what_broke_it(tmp_path):
    parts = [[number] for number in range(20)]
    pool = executors._Renewed("x", spawned)
    found = {part[0]: result for part, result in dispatch(pool, partial(deadly, folder=tmp_path), parts, apart)}
    pool.shutdown()
    assert sorted(found) == list(range(20))
    assert {number for number, result in found.items() if isinstance(result, Lost)} == {7}
    once = spawned()
    with pytest.raises(WorkerError, match="takes no more work"):
        list(dispatch(once, partial(deadly, folder=tmp_path), parts, apart))


class Answers(Executor):
    """Settles each call by a function."""

    def __init__(self, settle):
        self.settle = settle

    def submit(self, fn, /, *args, **kwargs):
        future = Future()
        self.settle(future)
        return future


@pytest.mark.parametrize(
    "settle, said",
    [
        (lambda future: (future.cancel(), future.set_running_or_notify_cancel()), "connection to the workers was lost"),
        (lambda future: future.set_exception(ModuleNotFoundError("No module named 'benchmarks'")), "install there"),
    ],
)
def test_what_every_part_would_meet_ends_the_work(settle, said):
    with pytest.raises(WorkerError, match=said):
        list(dispatch(Answers(settle), square, [[1], [2]], apart))


def test_an_executor_that_tried_by_itself_is_believed():
    died = lambda future: future.set_exception(GivenUp("four workers died"))  # noqa: E731
    found = list(dispatch(Answers(died), square, [[1, 2], [3]], apart))
    assert sorted(part for part, _ in found) == [[1], [2], [3]]
    assert all(isinstance(result, Lost) for _, result in found)


@pytest.mark.parametrize(
    "spec, said",
    [
        ("pigeons", "not known"),
        ("dask:", "give the scheduler's address|distributed is not installed"),
        ("no_such_module:make", "No module named"),
        (f"{__name__}:make", "no attribute 'make'"),
        (f"{__name__}:__doc__", "is a str; name a function"),
        (f"{__name__}:no_executor", "returned a int"),
        ("submitit-local:paralel=2", "'paralel' is wrong|submitit is not installed"),
        ("slurm:partition=x", "no sbatch|submitit is not installed"),
        ("local:4", "--jobs"),
    ],
)
def test_an_executor_that_is_not_there_is_named(spec, said):
    with pytest.raises(executors.ExecutorError, match=said), executors.opened(spec):
        pass


@pytest.fixture
def small_plan():
    few = {"epochs": 2, "steps": None, "compile": "eager"}
    return runner.plan("blundell_curve", guide_labels=["map", "mean_field"], splits=2, overrides=few, num_samples=30)


class Calls(Executor):
    """Calls at once, in this process, what comes out of a pickle."""

    def submit(self, fn, /, *args, **kwargs):
        future = Future()
        function, arguments = pickle.loads(pickle.dumps((fn, args)))
        future.set_result(function(*arguments))
        return future


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"source": "0123"}, "other sources of pyro-posterior-zoo"),
        ({"versions": (("torch", "1.0"),)}, "has torch 1.0"),
        ({"data": True}, "has no data of task 'blundell_curve'.*ZOO_DATA"),
        ({"device": "cuda"}, "no CUDA device"),
    ],
)
def test_a_worker_that_cannot_do_it_is_named_before_any_work(small_plan, tmp_path, monkeypatch, wrong, said):
    me, device = away.here(), wrong.pop("device", "cpu")
    if wrong.pop("data", False):
        monkeypatch.setattr(away, "_LOADED", lambda task, split: Path("/nowhere/data.npz").read_bytes())
    else:
        monkeypatch.setattr(away, "here", lambda: away.Expected(**{**vars(me), **wrong}))
    folder = ResultsFolder(tmp_path / "r")
    with pytest.raises(WorkerError, match=said) as error:
        runner.run(small_plan, folder, device=device, progress=False, executor=Calls())
    assert "\n" not in str(error.value)
    assert not folder.manifest_file.exists()


def test_what_cannot_be_pickled_is_named_before_any_work(small_plan, tmp_path):
    key = next(iter(small_plan.settings))
    object.__setattr__(small_plan.settings[key], "model", lambda split: None)
    with pytest.raises(WorkerError, match=r"cannot be sent to a worker.*define its functions at the top of a module"):
        runner.run(small_plan, ResultsFolder(tmp_path / "r"), progress=False, executor=Calls())
    assert not (tmp_path / "r" / "manifest.json").exists()


@pytest.mark.slow
def test_processes_and_executors_record_what_one_process_does(small_plan, tmp_path):
    found = {}
    for name, arguments in {"one": {"jobs": 1}, "two": {"jobs": 2}, "calls": {"executor": Calls()}}.items():
        folder = ResultsFolder(tmp_path / name)
        outcome = runner.run(small_plan, folder, device="cpu", progress=False, **arguments)
        assert outcome.run == len(small_plan.cells) and not outcome.failed
        found[name] = {(r["task"], r["guide"], r["split"]): r["metrics"]["log_likelihood"] for r in folder.records()}
        assert all((folder.path / r["posterior"]).is_file() == bool(r["posterior"]) for r in folder.records())
        assert all(r["host"] == os.uname().nodename for r in folder.records())
    assert found["one"] == pytest.approx(found["two"], rel=1e-4)
    assert found["one"] == pytest.approx(found["calls"], rel=1e-4)


def test_a_cell_whose_worker_is_always_lost_is_recorded_as_failed(small_plan, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "_check_workers", lambda *_: None)
    died = lambda future: future.set_exception(WorkerDied("killed"))  # noqa: E731
    outcome = runner.run(small_plan, ResultsFolder(tmp_path / "r"), device="cpu", progress=False, executor=Answers(died))
    assert len(outcome.failed) == outcome.run == len(small_plan.cells)
    assert "its worker was lost each time" in outcome.failed[0]["error"]["message"]
