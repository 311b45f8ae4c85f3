"""Named collections that are filled where their entries are defined.

The leaf of the project: it imports nothing of ours, so that ``zoo`` and ``guides`` can both use it without knowing of
each other.
"""

from __future__ import annotations

import difflib
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import EntryPoint, distributions, entry_points
from typing import Generic, TypeVar, cast

__all__ = ["PluginWarning", "Registry", "UnknownNameError", "__version__"]

__version__ = "0.2.0"

T = TypeVar("T")
Entry = TypeVar("Entry")

_LOADING = threading.RLock()


class PluginWarning(RuntimeWarning):
    """A plug-in, an entry point of another package, that cannot be loaded; everything else works without it."""


class UnknownNameError(KeyError):
    """A name that no registry entry has; the message lists the valid names and the nearest match."""

    def __str__(self) -> str:
        return str(self.args[0])


class Registry(Mapping[str, T], Generic[T]):
    """A mapping from name to object that other installed packages can extend.

    Entries come from two places: :meth:`register`, used as a decorator where the object is defined, and the entry points
    of the group that the registry is named after. Entry points are read at the first look-up, never at import. One that
    cannot be loaded is named in a :class:`PluginWarning` then, and in the error of who asks for it; all others work.

    :param kind: what one entry is, in the singular, for error messages (``"guide"``).
    :param group: the entry-point group that third-party packages use (``"guides.families"``).

    Example::

        >>> shapes = Registry("shape", group="example.shapes")
        >>> @shapes.register("circle")
        ... class Circle: ...
        >>> shapes["circle"] is Circle
        True
    """

    def __init__(self, kind: str, group: str) -> None:
        self.kind = kind
        self.group = group
        self._entries: dict[str, T] = {}
        self._broken: dict[str, str] = {}
        self._entry_points_loaded = self._loading = False

    def register(self, name: str) -> Callable[[Entry], Entry]:
        """Return a decorator that files its argument under ``name``.

        :raises ValueError: if ``name`` already belongs to another object.
        """

        def decorate(entry: Entry) -> Entry:
            self.add(name, cast(T, entry))  # a loader keeps its own type, which the registry's is wider than
            return entry

        return decorate

    def add(self, name: str, entry: T) -> None:
        """File ``entry`` under ``name``; see :meth:`register`."""
        present = self._entries.get(name)
        if present is not None and present is not entry:
            raise ValueError(f"the {self.kind} name {name!r} is taken by {present!r}; choose another name")
        self._entries[name] = entry

    def _load_entry_points(self) -> None:
        if self._entry_points_loaded:
            return
        with _LOADING:
            if self._entry_points_loaded or self._loading:  # by another thread; by a plug-in that looks something up
                return
            self._loading = True
            try:
                points, unreadable = _entry_points(self.group)
                for point in points:
                    self._load(point)
                self._entry_points_loaded = True
            finally:
                self._loading = False
        for reason in (*unreadable, *self._broken.values()):
            warnings.warn(f"{reason}; everything else works without it", PluginWarning, stacklevel=3)

    def _load(self, point: EntryPoint) -> None:
        """File what an entry point names, or why it cannot be loaded."""
        try:
            entry = point.load()
            if point.name not in self._entries:
                self.add(point.name, entry)
        except (Exception, SystemExit) as error:  # whatever a plug-in does must not cost the others
            of = f" of the package {point.dist.name}" if point.dist is not None else ""
            found = f"{type(error).__name__}: {error}"
            self._broken[point.name] = (
                f"the {self.kind} plug-in {point.name!r}{of} ({point.value}) cannot be loaded: {found}"
            )

    def __getitem__(self, name: str) -> T:
        self._load_entry_points()
        try:
            return self._entries[name]
        except KeyError:
            raise UnknownNameError(self._unknown(name)) from None

    def _unknown(self, name: object) -> str:
        if name in self._broken:
            return f"{self._broken[str(name)]}. Valid names: {', '.join(sorted(self._entries))}."
        near = difflib.get_close_matches(str(name), self._entries, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        return f"there is no {self.kind} named {name!r}.{hint} Valid names: {', '.join(sorted(self._entries))}."

    def __contains__(self, name: object) -> bool:
        self._load_entry_points()
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        self._load_entry_points()
        return iter(sorted(self._entries))

    def __len__(self) -> int:
        self._load_entry_points()
        return len(self._entries)


def _entry_points(group: str) -> tuple[Iterable[EntryPoint], list[str]]:
    """Return the entry points of a group, and which packages' lists of them cannot be read."""
    try:
        return entry_points(group=group), []
    except Exception:  # one package's list is damaged: find out whose
        found: dict[str, EntryPoint] = {}
        unreadable = []
        for package in distributions():
            try:
                chosen = package.entry_points.select(group=group)
            except Exception as error:
                unreadable.append(f"the entry points of {package.metadata['Name']!r} cannot be read: {error}")
                continue
            for point in chosen:
                found.setdefault(point.name, point)
        return found.values(), unreadable
