"""Loops of steps that never return to Python, and libraries of machine code that later processes find again."""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from pathlib import Path

from torch import Tensor
from torch.fx import GraphModule

from guides.compile.agreement import Judge
from guides.compile.cache import COMPILING, find, keep, remove, usable_folder
from guides.compile.compilers import has_compiler
from guides.compile.dumping import dump, dump_folder, readable
from guides.compile.evaluation import Reference

__all__ = ["CompiledLoop", "LibraryLoop", "has_compiler"]

Inputs = tuple[Tensor, ...]


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
        self._reference = Reference(graph)
        self.capacity = capacity
        self.ready = ready
        self._prepared = False

    def check(self, state: Inputs, shared: Inputs, varying: Inputs, judge: Judge | None = None) -> None:
        """Make it ready if it is not, and see that it does what the graph does near a state.

        :param judge: what is known of the state; by default nothing is.
        :raises RuntimeError: if it does something else; compilers raise what they like.
        """
        if not self._prepared:
            wanted = dump_folder()
            if wanted is not None:
                dump(wanted, self.described())
            self._prepare(state, shared, varying)
            self._prepared = True
        found = (judge or Judge()).difference(self, self._reference, state, shared, varying)
        if found is not None:
            self._discard()
            pieces = {**self.described(), "difference.txt": f"{found}\n"}
            where = dump(dump_folder() or Path(tempfile.mkdtemp(prefix="guides-refused-")), pieces)
            raise RuntimeError(f"the compiled loop gives other numbers: {found}; its source is in {where}")

    def described(self) -> dict[str, str]:
        """Return what it does in words for people, by the names of files."""
        return {"graph.txt": readable(self._graph)}

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
    """A loop in a library, which is compiled once and kept in the user's cache, for other processes too.

    :param key: a hash of all that the library depends on.
    :param suffix: of its file.
    """

    def __init__(self, graph: GraphModule, capacity: int, key: str, suffix: str) -> None:
        self._key, self._suffix = key, suffix
        self._path = find(key, suffix)
        super().__init__(graph, capacity, self._path is not None)

    def _prepare(self, state: Inputs, shared: Inputs, varying: Inputs) -> None:
        if self._path is not None:
            try:
                self._load(self._path)
                return
            except OSError:  # whole, but not for this system as it is today
                self._discard()
        with tempfile.TemporaryDirectory(dir=usable_folder(), prefix=COMPILING) as folder:
            made = Path(folder) / f"loop{self._suffix}"
            self._compile(state, shared, varying, made)
            self._path = keep(self._key, self._suffix, made.read_bytes())
        try:
            self._load(self._path)
        except OSError:
            self._discard()
            raise

    def _discard(self) -> None:
        if self._path is not None:
            remove(self._path)
        self._path = None

    @abstractmethod
    def _compile(self, state: Inputs, shared: Inputs, varying: Inputs, path: Path) -> None:
        """Make the library, in a folder that is deleted afterwards."""

    @abstractmethod
    def _load(self, path: Path) -> None:
        """Make the library ready to be called.

        :raises OSError: if the system cannot load it.
        """
