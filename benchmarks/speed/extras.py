"""What is not a ratio of two steps: the second start of a compiled fit, peak memory, the wall time of a whole suite."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.speed.cases import CASES, Case, draw
from benchmarks.speed.sides import ROOT, Failure, torch_side

__all__ = ["memory", "second_start", "table1"]

START_STEPS = 1000

# Everything large comes straight from the system and goes straight back, so that the resident set shows what is in use.
PLAIN_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}

# What a script of a user's does: import, build, fit. Imports are timed apart, since no fit can do anything about them.
SCRIPT = f"""
import json, time
start = time.perf_counter()
import torch, guides, zoo
imported = time.perf_counter()
torch.manual_seed(0)
x = torch.randn(308, 6)
y = torch.sin(x[:, 0]) + 0.1 * torch.randn(308)
guides.fit(zoo.BayesianMLP(6, hidden=(50,)), "mean_field", x, y, batch_size=128, steps={START_STEPS}, compile="native")
print(json.dumps({{"imports": imported - start, "fit": time.perf_counter() - imported}}))
"""


def _environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, **more}


def _run(command: Sequence[str], environment: Mapping[str, str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise Failure(said[-1] if said else f"exit status {done.returncode}")
    return done.stdout


def second_start(repeats: int = 3) -> dict[str, Any]:
    """Run a script that makes a compiled fit in new processes, the first with an empty cache.

    :param repeats: how many starts with a warm cache; their median is the value.
    :returns: ``"value"``: seconds of the fit in a later process, with its steps; ``"cold"`` and ``"imports"`` likewise.
    """
    with tempfile.TemporaryDirectory() as cache:
        environment = _environment(TORCHINDUCTOR_CACHE_DIR=cache, XDG_CACHE_HOME=cache, GUIDES_CACHE=f"{cache}/compiled")
        try:
            runs = [json.loads(_run([sys.executable, "-c", SCRIPT], environment)) for _ in range(1 + repeats)]
        except Failure as failure:
            return {"value": None, "failed": str(failure)}
    cold, *warm = runs
    return {
        "value": float(np.median([run["fit"] for run in warm])),
        "unit": "s",
        "steps": START_STEPS,
        "cold": cold["fit"],
        "warm": [run["fit"] for run in warm],
        "imports": float(np.median([run["imports"] for run in runs])),
    }


def memory(cases: Sequence[Case] | None = None) -> dict[str, Any]:
    """Measure by how much a step raises the memory of a process that has everything it needs, eager and compiled.

    :returns: ``"value"``: the largest ratio over the cases; ``"cases"``: MiB of eager and compiled steps.
    """
    found: dict[str, Any] = {}
    for case in cases or [CASES["vae"], CASES["classifier"], replace(CASES["bnn20"], name="bnn1000", replicates=1000)]:
        found[case.name] = {}
        for contender in ("ours_eager", "ours_loop"):
            try:
                found[case.name][contender] = _peak(case, contender)
            except Failure as failure:
                found[case.name][contender] = None
                found[case.name]["failed"] = f"{contender}: {failure}"
    ratios = [
        entry["ours_loop"] / entry["ours_eager"] for entry in found.values() if entry["ours_eager"] and entry["ours_loop"]
    ]
    return {"value": max(ratios) if ratios else None, "unit": "x eager", "cases": found}


def _peak(case: Case, contender: str) -> float | None:
    """Return MiB in a process of its own."""
    with torch_side(PLAIN_MALLOC) as side, tempfile.TemporaryDirectory() as folder:
        arrays = f"{folder}/arrays.npz"
        np.savez(arrays, **draw(case))  # type: ignore[arg-type]
        # A call of one step each, so that both hold one step's noise.
        name = "ours_step" if contender == "ours_loop" else contender
        side("open", key="it", case=case.spec, arrays=arrays, contender=name)
        peaks = [side("memory", key="it", steps=1)["mebibytes"] for _ in range(3)]
    return None if None in peaks else float(np.median(peaks))


def table1(splits: int = 20) -> dict[str, Any]:
    """Run the suite ``table1`` in a new process with an empty cache of compiled code, and time it from start to end."""
    command = [sys.executable, "-P", "-m", "benchmarks", "run", "table1", "--splits", str(splits), "--no-report", "--quiet"]
    with tempfile.TemporaryDirectory() as folder:
        environment = _environment(TORCHINDUCTOR_CACHE_DIR=f"{folder}/cache", GUIDES_CACHE=f"{folder}/compiled")
        start = time.perf_counter()
        try:
            _run([*command, "--out", str(Path(folder) / "results")], environment)
        except Failure as failure:
            return {"value": None, "failed": str(failure)}
        return {"value": time.perf_counter() - start, "unit": "s", "splits": splits}
