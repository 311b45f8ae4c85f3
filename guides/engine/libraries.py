"""Loops of steps that never return to Python, and libraries of machine code that later processes find again."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from abc import ABC, abstractmethod
from pathlib import Path

from torch import Tensor
from torch.fx import GraphModule

from guides.engine.tracing import close

__all__ = ["COMPILING", "CompiledLoop", "LibraryLoop", "cache_folder", "compiler", "has_compiler"]

Inputs = tuple[Tensor, ...]

COMPILING = "compiling-"
"""How the names of folders begin in which compilers work."""

_COMPILERS = ("g++", "clang++", "c++")
_CHECKED_STEPS = 3
_KEPT = 200
_ABANDONED = 3600.0


def compiler() -> str | None:
    """Return the C++ compiler: ``$CXX``, or the first one that is there."""
    return next((name for name in (os.environ.get("CXX"), *_COMPILERS) if name and shutil.which(name)), None)


def has_compiler() -> bool:
    """Tell whether a C++ compiler is there."""
    return compiler() is not None


def cache_folder() -> Path:
    """Return where compiled loops are kept: ``$GUIDES_CACHE``, or a folder of the user's cache."""
    chosen = os.environ.get("GUIDES_CACHE")
    if chosen:
        return Path(chosen)
    base = Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    return Path(os.environ.get("XDG_CACHE_HOME", base)) / "guides" / "compiled"


class CompiledLoop(ABC):
    """Up to ``capacity`` repetitions of a graph in one call that never returns to Python.

    Subclasses are made from a graph and example tensors, of which only the shapes count: state (carried from step to step),
    shared (the same at every step) and varying (all steps' tensors, shape ``(R, steps, ...)`` each).

    :param graph: from (state..., shared..., this step's tensors...) to (new state..., losses ``(R,)``).
    :param capacity: most steps in one call.
    :param ready: nothing has to be compiled.
    """

    seconds: float
    """About how long compiling takes."""

    def __init__(self, graph: GraphModule, capacity: int, ready: bool) -> None:
        self._graph = graph
        self.capacity = capacity
        self.ready = ready

    def check(self, state: Inputs, shared: Inputs, varying: Inputs) -> None:
        """Make it ready, and see that it does what the graph does.

        :raises RuntimeError: if it does not; compilers raise what they like.
        """
        self._prepare(state, shared, varying)
        # A few steps: over many, rounding alone leads two trajectories apart.
        first = tuple(v[:, :_CHECKED_STEPS] for v in varying)
        new, losses = self(state, shared, first)
        expected = state
        for k in range(losses.shape[1]):
            *expected, loss = self._graph(*expected, *shared, *(v[:, k] for v in first))
        if not all(close(a, b) for a, b in zip((*new, losses[:, -1]), (*expected, loss))):
            self._discard()
            raise RuntimeError("the compiled loop gives other numbers")

    @abstractmethod
    def _prepare(self, state: Inputs, shared: Inputs, varying: Inputs) -> None:
        """Do whatever has to be done before the first call."""

    def _discard(self) -> None:  # noqa: B027  # most have nothing to discard
        """Forget what others may find and should not."""

    @abstractmethod
    def __call__(self, state: Inputs, shared: Inputs, varying: Inputs) -> tuple[Inputs, Tensor]:
        """Return the state after all steps, and losses ``(R, steps)``.

        :param varying: the tensors of the steps, shape ``(R, steps, ...)`` each, with at most ``capacity`` steps.
        """


class LibraryLoop(CompiledLoop):
    """A loop in a library, which is compiled once and kept in :func:`cache_folder`, for other processes too.

    :param path: where the library is or will be.
    """

    def __init__(self, graph: GraphModule, capacity: int, path: Path) -> None:
        super().__init__(graph, capacity, path.exists())
        self.path = path

    def _prepare(self, state: Inputs, shared: Inputs, varying: Inputs) -> None:
        if self.path.exists():
            os.utime(self.path)
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._compile(state, shared, varying, self.path)
            _forget_oldest(self.path.parent, self.path.suffix)
        self._load()

    def _discard(self) -> None:
        self.path.unlink(missing_ok=True)

    @abstractmethod
    def _compile(self, state: Inputs, shared: Inputs, varying: Inputs, path: Path) -> None:
        """Make the library under another name and rename it."""

    @abstractmethod
    def _load(self) -> None:
        """Make the library ready to be called."""


def _forget_oldest(folder: Path, suffix: str) -> None:
    """Keep the libraries used last, and no folder of a compiler that was killed."""
    kept = sorted(folder.glob(f"*{suffix}"), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in kept[_KEPT:]:
        old.unlink(missing_ok=True)
    for left in folder.glob(f"{COMPILING}*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _ABANDONED:
                shutil.rmtree(left, ignore_errors=True)
