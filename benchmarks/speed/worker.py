"""A process that runs implementations on request, so that PyTorch and JAX do not fight over one process's threads.

Run as a script, ``python worker.py SIDE``: SIDE is a module, or a Python file for an interpreter that has only the libraries
that the file imports. Hence nothing here imports anything but the standard library. A side offers ``open(case, arrays,
contender)``, which returns an object with ``steps`` (in one call), ``run(steps)`` and ``train(steps)``, and ``facts()``.

Requests and answers are lines of JSON. Answers go to the standard output that the process was started with; everything that
libraries print goes to standard error.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import json
import os
import sys
import time
import traceback
from typing import Any

__all__ = ["main"]


def _load(side: str) -> Any:
    if not side.endswith(".py"):
        return importlib.import_module(side)
    spec = importlib.util.spec_from_file_location("speed_side", side)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load {side}")
    module = importlib.util.module_from_spec(spec)
    sys.modules["speed_side"] = module
    spec.loader.exec_module(module)
    return module


class _Server:
    """Keeps the contenders of this process."""

    def __init__(self, side: Any) -> None:
        self._side = side
        self._open: dict[str, Any] = {}

    def facts(self) -> dict[str, Any]:
        """Return versions of the libraries."""
        return dict(self._side.facts())

    def throughput(self) -> dict[str, Any]:
        """Return what the accelerator can do at most."""
        return dict(self._side.throughput())

    def open(self, key: str, case: dict[str, Any], arrays: str, contender: str) -> dict[str, Any]:
        """Build one implementation of a case and run it until nothing remains to be compiled."""
        start = time.perf_counter()
        self._open[key] = self._side.open(case, arrays, contender)
        notes = list(getattr(self._open[key], "notes", ()))
        return {"seconds": time.perf_counter() - start, "steps": self._open[key].steps, "notes": notes}

    def train(self, key: str, steps: int) -> dict[str, Any]:
        """Return the losses of the first steps since opening, in nats, averaged over replicates."""
        return {"losses": self._open[key].train(steps)}

    def time(self, key: str, steps: int) -> dict[str, Any]:
        """Run steps and return the seconds that they took."""
        contender = self._open[key]
        gc.collect()
        start = time.perf_counter()
        contender.run(steps)
        return {"seconds": time.perf_counter() - start}

    def memory(self, key: str, steps: int) -> dict[str, Any]:
        """Run steps and return by how many MiB the process's memory rose above what it held before them."""
        contender = self._open[key]
        gc.collect()
        before = _resident("VmRSS:")
        try:
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")
        except OSError:
            before = None
        contender.run(steps)
        peak = _resident("VmHWM:")
        return {"mebibytes": None if before is None or peak is None else peak - before}

    def close(self, key: str) -> dict[str, Any]:
        """Forget one implementation."""
        self._open.pop(key, None)
        gc.collect()
        return {}


def _resident(line: str) -> float | None:
    """Return a figure of ``/proc/self/status`` in MiB, ``None`` on systems without it."""
    try:
        with open("/proc/self/status") as file:
            return next(int(found.split()[1]) / 1024 for found in file if found.startswith(line))
    except (OSError, StopIteration):
        return None


def main(side: str) -> None:
    """Answer requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    server: _Server | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            server = server or _Server(_load(side))
            answer = getattr(server, request.pop("op"))(**request)
        except Exception as error:  # one implementation that fails must not end the others
            traceback.print_exc()
            said = str(error).strip().splitlines()
            answer = {"error": f"{type(error).__name__}: {said[0] if said else ''}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    sys.path.pop(0)  # this file's folder, whose names are not meant to be imported from the top
    main(sys.argv[1])
