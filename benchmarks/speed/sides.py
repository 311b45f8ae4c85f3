"""Processes that run implementations on request: one for PyTorch, one for JAX."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = ["Failure", "Side", "find_numpyro", "numpyro_side", "torch_side"]

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


class Failure(RuntimeError):
    """An implementation that could not do what was asked; the message says why."""


class Side:
    """A process that runs :mod:`benchmarks.speed.worker`.

    :param python: the interpreter.
    :param side: what the worker loads.
    :param environment: variables on top of this process's.
    """

    def __init__(self, python: str, side: str, environment: Mapping[str, str] | None = None) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed in __exit__)
        self._process = subprocess.Popen(
            [python, str(HERE / "worker.py"), side],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, **(environment or {})},
            text=True,
        )

    def __enter__(self) -> Side:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                stream.close()

    def __call__(self, op: str, **request: Any) -> dict[str, Any]:
        """Ask for something and return the answer.

        :raises Failure: if it could not be done or the process is gone.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"op": op, **request}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._errors.seek(0)
            said = self._errors.read().strip().splitlines()
            raise Failure(f"the process ended ({said[-1] if said else f'status {self._process.wait()}'})")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Failure(answer["error"])
        return answer


def torch_side(environment: Mapping[str, str] | None = None) -> Side:
    """Start the side of Pyro, plain PyTorch and ours."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return Side(sys.executable, "benchmarks.speed.torch_side", {"PYTHONPATH": path, **(environment or {})})


def numpyro_side(python: str) -> Side:
    """Start the side of NumPyro in an interpreter that has it."""
    return Side(python, str(HERE / "numpyro_side.py"))


def find_numpyro(python: str | None) -> str | None:
    """Return the interpreter to run NumPyro in: the one given, or this one if it has NumPyro; else ``None``.

    :raises Failure: if an interpreter was given that has no NumPyro.
    """
    if python is None:
        return sys.executable if importlib.util.find_spec("numpyro") else None
    try:
        done = subprocess.run([python, "-c", "import numpyro"], capture_output=True, text=True, timeout=300)
    except OSError as error:
        raise Failure(f"{python} cannot be run: {error}") from error
    if done.returncode:
        raise Failure(f"{python} has no NumPyro: {done.stderr.strip().splitlines()[-1]}")
    return python
