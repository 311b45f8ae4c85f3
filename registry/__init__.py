"""Named collections that are filled where their entries are defined.

The leaf of the project: it imports nothing of ours, so that ``zoo`` and ``guides`` can both use it without knowing of
each other.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import entry_points
from typing import Generic, TypeVar

__all__ = ["Registry", "UnknownNameError"]

T = TypeVar("T")


class UnknownNameError(KeyError):
    """A name that no registry entry has; the message lists the valid names and the nearest match."""

    def __str__(self) -> str:
        return str(self.args[0])


class Registry(Mapping[str, T], Generic[T]):
    """A mapping from name to object that other installed packages can extend.

    Entries come from two places: :meth:`register`, used as a decorator where the object is defined, and the entry points
    of the group that the registry is named after. Entry points are read at the first look-up, never at import.

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
        self._entry_points_loaded = False

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that files its argument under ``name``.

        :raises ValueError: if ``name`` already belongs to another object.
        """

        def decorate(entry: T) -> T:
            self.add(name, entry)
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
        self._entry_points_loaded = True
        for point in entry_points(group=self.group):
            entry = point.load()
            if point.name not in self._entries:
                self.add(point.name, entry)

    def __getitem__(self, name: str) -> T:
        self._load_entry_points()
        try:
            return self._entries[name]
        except KeyError:
            raise UnknownNameError(self._unknown(name)) from None

    def _unknown(self, name: object) -> str:
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
