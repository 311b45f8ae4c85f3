"""A package that no one installed: a guide and tasks that arrive through entry points, as another package's would."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner, Result

from benchmarks import TASKS
from benchmarks.cli import main

ROOT = Path(__file__).resolve().parents[2]

PLUGIN = '''
import time
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from benchmarks import Override, Split, Task
from benchmarks.evaluation import predictions as evaluation
from guides import MeanField


class Borrowed(MeanField):
    """A guide of another package."""


def load(index, *, size=8):
    generator = torch.Generator().manual_seed(index)
    return Split(train=(torch.randn(size, generator=generator),))


def load_or_fail(index):
    if index == 1:
        raise OSError("row 7 of the data file is torn")
    return load(index)


def normal_mean(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", x.shape[0]):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def model(split):
    return normal_mean


def slow(posterior, split, *, num_samples, seed):
    time.sleep(0.25)
    return evaluation.Evaluation({"rmse": 1.0 + 0.1 * (seed % 3)})


common = dict(
    summary="the mean of a normal", model=model, metrics=("elbo",), splits=6, fit={"steps": 20}, num_samples=50, keep_draws=5
)
tiny = Task(name="tiny", load=load, evaluate=evaluation.fit_only, **common)
tiny_slow = Task(name="tiny_slow", load=partial(load, size=9), evaluate=slow, replicates=2, **common)
tiny_broken = Task(name="tiny_broken", load=load_or_fail, evaluate=evaluation.fit_only, **common)
'''

ENTRY_POINTS = """
[guides.families]
borrowed = borrowed_package:Borrowed

[benchmarks.tasks]
tiny = borrowed_package:tiny
tiny_slow = borrowed_package:tiny_slow
tiny_broken = borrowed_package:tiny_broken
"""


class CommandLine:
    """Runs ``python -m benchmarks`` in a process of its own, with the borrowed package on its path."""

    def __init__(self, package: Path) -> None:
        self.environment = os.environ | {
            "PYTHONPATH": os.pathsep.join((str(package), str(ROOT))),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",
        }
        self.folder = package.parent

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "benchmarks", *arguments],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *arguments: str, status: int = 0) -> tuple[str, str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=120)
        assert process.returncode == status, f"exit status {process.returncode}\n{out}\n{err}"
        return out, err


@pytest.fixture(autouse=True)
def _one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks that a test registers exist in its own process only."""
    monkeypatch.setattr("benchmarks.running.runner.usable_cores", lambda: 1)


@pytest.fixture(scope="session")
def borrowed_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds an installed package with entry points."""
    folder = tmp_path_factory.mktemp("borrowed") / "site"
    (folder / "borrowed_package-1.0.dist-info").mkdir(parents=True)
    (folder / "borrowed_package.py").write_text(PLUGIN)
    information = folder / "borrowed_package-1.0.dist-info"
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: borrowed-package\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(ENTRY_POINTS)
    return folder


@pytest.fixture
def tiny_tasks(borrowed_package: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The borrowed package, imported, with its tasks in this process's registry for one test."""
    monkeypatch.syspath_prepend(str(borrowed_package))
    module = importlib.import_module("borrowed_package")
    for name in ("tiny", "tiny_slow", "tiny_broken"):
        monkeypatch.setitem(TASKS._entries, name, getattr(module, name))
    return module


@pytest.fixture
def invoke(tiny_tasks: ModuleType) -> Callable[..., Result]:
    """Runs the command line in this process and checks its exit status."""

    def run(*arguments: str, status: int = 0) -> Result:
        result = CliRunner().invoke(main, list(arguments))
        assert result.exit_code == status, result.output
        assert "Traceback (" not in result.output
        return result

    return run


@pytest.fixture
def command_line(borrowed_package: Path) -> CommandLine:
    return CommandLine(borrowed_package)
