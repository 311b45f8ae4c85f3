"""What a number was made with: versions, commit, machine, memory."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

__all__ = ["ROOT", "PeakMemory", "choose_device", "commit", "machine", "source", "versions"]

ROOT = Path(__file__).resolve().parents[2]


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of Python and of every library that can change a number."""
    found = {"python": platform.python_version()}
    for package in ("torch", "pyro-ppl", "arviz", "numpy", "pyro-posterior-zoo"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


@functools.cache
def commit() -> dict[str, Any]:
    """Return the commit of the code that runs and whether it was changed since, or ``None`` outside a checkout."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=20, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    if not (ROOT / ".git").exists():  # installed somewhere inside a stranger's repository
        return {"commit": None, "dirty": None}
    revision = git("rev-parse", "HEAD")
    status = git("status", "--porcelain", "--", "zoo", "guides", "benchmarks", "_posterior_zoo_registry")
    return {"commit": revision, "dirty": None if status is None else bool(status)}


@functools.cache
def source() -> str:
    """Return a fingerprint of the packages' Python files: an installed version's number does not tell checkouts apart."""
    digest = hashlib.sha256()
    for package in ("_posterior_zoo_registry", "zoo", "guides", "benchmarks"):
        for path in sorted((ROOT / package).rglob("*.py")):
            digest.update(f"{path.relative_to(ROOT)}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


@functools.cache
def machine(device: str) -> dict[str, Any]:
    """Return what the numbers were computed on.

    :param device: ``"cpu"`` or ``"cuda"``.
    """
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    facts: dict[str, Any] = {"device": device, "cpu": name, "cores": os.cpu_count(), "system": platform.system()}
    if device.startswith("cuda"):
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def choose_device(wanted: str) -> str:
    """Return ``"cuda"`` or ``"cpu"`` for ``"auto"``, ``"cpu"`` or ``"cuda"``.

    :raises ValueError: if CUDA is asked for and this machine has none.
    """
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: PyTorch sees no CUDA device on this machine; use --device cpu or auto")
    return wanted


class PeakMemory:
    """Measures the peak memory of what runs inside the ``with`` block, in MiB.

    On a GPU, what PyTorch allocated; else the resident set of the process, which includes the libraries themselves
    (some 300 MiB). Where the system cannot forget an earlier peak (:attr:`exact` is then false), the peak since the
    process began.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.exact = False
        self.mebibytes = 0.0

    def __enter__(self) -> PeakMemory:
        if self.device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats()
            self.exact = True
            return self
        try:
            Path("/proc/self/clear_refs").write_text("5")
            self.exact = True
        except OSError:
            self.exact = False
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.startswith("cuda"):
            self.mebibytes = torch.cuda.max_memory_allocated() / 2**20
            return
        try:
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    self.mebibytes = int(line.split()[1]) / 2**10
                    return
        except OSError:
            pass
        try:
            import resource
        except ImportError:
            return
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self.mebibytes = peak / (2**20 if sys.platform == "darwin" else 2**10)
