"""What a fault is, and how it is tried: in a child process, which may crash, hang or fill a disk without harm."""

from __future__ import annotations

import functools
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = [
    "FAULTS",
    "Fault",
    "NotHere",
    "Outcome",
    "as_another_user",
    "child",
    "fault",
    "full_after",
    "no_warning",
    "small_disk",
    "try_it",
]

ROOT = Path(__file__).parents[2]
_SKIPPED = 77
_SECONDS = 240.0


class NotHere(Exception):
    """A fault that cannot be made on this system; the message says why."""


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong.

    :param part: what it goes wrong in.
    :param what: the fault, in words.
    :param right: what has to happen, in words.
    :param make: makes the fault in an empty folder and raises AssertionError unless that happens.
    :param quick: belongs to the sample that the suite tries.
    """

    part: str
    what: str
    right: str
    make: Callable[[Path], None]
    quick: bool = False

    def __str__(self) -> str:
        return f"{self.part}: {self.what}"


@dataclass(frozen=True)
class Outcome:
    """How it went: ``"held"``, ``"failed"`` or ``"skipped"``, and why."""

    word: str
    why: str
    seconds: float


FAULTS: list[Fault] = []


def fault(part: str, what: str, right: str, *given: Any, quick: bool = False) -> Callable[[Any], Any]:
    """File the decorated function as a fault.

    :param given: further arguments of the function, after the folder.
    """

    def file(make: Callable[..., None]) -> Callable[..., None]:
        FAULTS.append(Fault(part, what, right, lambda folder: make(folder, *given), quick))
        return make

    return file


def try_it(one: Fault) -> Outcome:
    """Make a fault in a forked process and say how it went."""
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="fault-"))
    said = folder / "said"
    try:
        with said.open("wb") as out:
            sys.stdout.flush()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that threads of libraries do not survive a fork
                process = os.fork()
            if process == 0:
                _child(one, folder / "work", out.fileno())
        code = _wait(process, began)
        text = said.read_text(errors="replace").strip()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    last = text.splitlines()[-1] if text else ""
    seconds = time.monotonic() - began
    if code == 0:
        return Outcome("held", "", seconds)
    if code == _SKIPPED:
        return Outcome("skipped", last.removeprefix("skipped: "), seconds)
    return Outcome("failed", f"ended by {signal.Signals(-code).name}" if code and code < 0 else last, seconds)


def _child(one: Fault, folder: Path, out: int) -> None:
    code = 1
    try:
        os.setsid()
        for stream in (1, 2):
            os.dup2(out, stream)
        folder.mkdir()
        os.environ["GUIDES_CACHE"] = str(folder / "cache")
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        one.make(folder)
        code = 0
    except NotHere as reason:
        print(f"skipped: {reason}", flush=True)
        code = _SKIPPED
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        sys.stdout.flush()
        os._exit(code)


def _wait(process: int, began: float) -> int:
    while time.monotonic() - began < _SECONDS:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return -signal.SIGALRM


def child(script: str, *arguments: object, seconds: float = 200.0, **environment: str | None) -> subprocess.CompletedProcess:
    """Run a script in a fresh interpreter, with variables set, or unset where they are ``None``."""
    given = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'guides'}", "OMP_NUM_THREADS": "1", **environment}
    whole = {**os.environ, **{k: v for k, v in given.items() if v is not None}}
    for name in [k for k, v in given.items() if v is None]:
        whole.pop(name, None)
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, env=whole, text=True, capture_output=True, timeout=seconds)


def no_warning() -> None:
    """Let warnings be errors, as they are inside a fault anyway."""
    warnings.simplefilter("error")


def as_another_user(folder: Path, number: int = 54321) -> None:
    """Go on as a user whom the system does not know, who owns nothing but ``folder``."""
    if os.geteuid() != 0:
        raise NotHere("only root can become another user")
    for path in (folder, *folder.rglob("*")):
        os.chown(path, number, number, follow_symlinks=False)
    folder.parent.chmod(0o755)
    os.setgroups([])
    os.setgid(number)
    os.setuid(number)
    if not os.access(os.path.realpath(sys.executable), os.X_OK):  # a home's Python; another does for watching compilers
        sys.executable = shutil.which("python3", path="/usr/bin:/bin") or ""


def full_after(size: int) -> None:
    """Let no file grow beyond so many bytes from now on: writes fail as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Mount a disk of so many bytes."""
    place = folder / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "none", str(place)], capture_output=True
    )
    if mounted.returncode:
        raise NotHere("no disk may be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], capture_output=True)


@functools.cache
def has_command(name: str) -> bool:
    """Tell whether a program is there."""
    return shutil.which(name) is not None
