"""The C++ compiler: which one, of which version, and for how long at most."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

__all__ = ["CompilerError", "built_by", "compiler", "has_compiler", "processor", "run_compiler"]

_COMPILERS = ("g++", "clang++", "c++")
_SECONDS_TO_ANSWER = 60.0
_GIVEN_UP: dict[tuple[str, ...], str] = {}  # compilers that this process no longer waits for, and what they did

# What a compiler starts is in a group of processes with it, which ends when nobody holds the other end of this input: when
# the caller gives up, and when it dies, however that happens.
_WATCH = """
import os, subprocess, sys, threading
def watch():
    os.read(0, 1)
    os.killpg(0, 9)
threading.Thread(target=watch, daemon=True).start()
try:
    code = subprocess.call(sys.argv[1:], stdin=subprocess.DEVNULL)
except OSError as error:
    code = 127
    print(f"error: {error}", file=sys.stderr, flush=True)
os._exit(code if 0 <= code < 128 else 1)
"""


class CompilerError(RuntimeError):
    """A compiler that is not there, fails, or takes too long; the message is of one line."""


def compiler() -> tuple[str, ...] | None:
    """Return the C++ compiler's command: ``$CXX``, which may have several words, or the first that is there.

    After those that systems have comes the one that the package ``ziglang`` brings.
    """
    chosen = os.environ.get("CXX", "")
    commands: list[tuple[str, ...]] = [(chosen,)] if chosen else []
    with contextlib.suppress(ValueError):  # a quotation that does not end
        commands.append(tuple(shlex.split(chosen)))
    commands += [(name,) for name in _COMPILERS]
    found = next((command for command in commands if command and shutil.which(command[0])), None)
    if found is None and sys.executable and importlib.util.find_spec("ziglang") is not None:
        return (sys.executable, "-m", "ziglang", "c++")
    return found


def has_compiler() -> bool:
    """Tell whether a C++ compiler is there."""
    return compiler() is not None


@functools.cache
def built_by(command: tuple[str, ...] | None) -> tuple[str, ...]:
    """Return a compiler's command and what it says of itself, which a library made by another does not have in its key.

    :raises CompilerError: if it does not answer.
    """
    return () if command is None else (*command, run_compiler(command, ("--version",), _SECONDS_TO_ANSWER))


@functools.cache
def processor() -> str:
    """Return what tells processors apart that may share a folder of libraries: their names and what they can do."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = [platform.processor()]
    return repr(
        (platform.machine(), sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))
    )


def run_compiler(command: tuple[str, ...], arguments: Sequence[str], limit: float) -> str:
    """Run a compiler and return what it printed; it and all that it started end with this process at the latest.

    :param limit: seconds to wait for it. After that it is stopped, and not tried again in this process.
    :raises CompilerError: if it fails or takes longer.
    """
    name = " ".join(command)
    if command in _GIVEN_UP:
        raise CompilerError(f"{name} {_GIVEN_UP[command]}")
    with tempfile.TemporaryFile() as printed:
        watched = (sys.executable, "-I", "-S", "-c", _WATCH) if sys.executable and os.name == "posix" else ()
        process = subprocess.Popen(
            (*watched, *command, *arguments),
            stdin=subprocess.PIPE,
            stdout=printed,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert process.stdin is not None
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            _GIVEN_UP[command] = f"did not end within {limit:.0f} seconds and was stopped"
            raise CompilerError(f"{name} {_GIVEN_UP[command]}") from None
        finally:
            process.stdin.close()
            if not watched:
                process.kill()
            process.wait()
        printed.seek(0)
        lines = printed.read().decode(errors="replace").splitlines()
    if code:
        reasons = [line for line in lines if "error" in line and "ld returned" not in line]
        said = next(iter(reasons or lines), "no reason given")
        raise CompilerError(f"{name} failed: {said}")
    return "\n".join(lines)
