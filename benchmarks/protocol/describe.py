"""Turn a protocol into plain data, so that two runs can be told apart by what they did."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Any

__all__ = ["describe", "differences", "fingerprint"]


def describe(thing: Any) -> Any:
    """Return ``thing`` as JSON-ready data: what it is called and what it was given, never where it lives in memory.

    Functions and classes become their import path, :class:`functools.partial` objects that path with their arguments,
    dataclasses and mappings a dictionary. That is why a task names its loader and model as partials: their arguments then
    count as protocol without being written twice.

    :raises TypeError: for an object with no such description (a tensor, an open file, a lambda, whose path says nothing).

    Example::

        >>> describe({"epochs": 40, "activation": int, "hidden": (50,)})
        {'activation': 'builtins.int', 'epochs': 40, 'hidden': [50]}
    """
    if thing is None or isinstance(thing, bool | int | float | str):
        return thing
    if isinstance(thing, functools.partial):
        described: dict[str, Any] = {"call": describe(thing.func)}
        if thing.args:
            described["arguments"] = describe(thing.args)
        return described | describe(thing.keywords)
    if isinstance(thing, Mapping):
        return {str(key): describe(thing[key]) for key in sorted(thing, key=str)}
    if isinstance(thing, list | tuple):
        return [describe(entry) for entry in thing]
    if isinstance(thing, set | frozenset):
        return sorted(describe(entry) for entry in thing)
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        return {field.name: describe(getattr(thing, field.name)) for field in dataclasses.fields(thing)}
    name = getattr(thing, "__qualname__", None)
    if name is None or "<lambda>" in name:
        raise TypeError(
            f"{thing!r} cannot be part of a protocol: use numbers, strings, containers of them, named functions, or "
            "functools.partial of a named function"
        )
    return f"{thing.__module__}.{name}"


def fingerprint(description: Any) -> str:
    """Return twelve hexadecimal digits of the SHA-256 of a description, the same on every machine."""
    text = json.dumps(description, sort_keys=True, separators=(",", ":"), allow_nan=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def differences(before: Any, after: Any, path: str = "") -> list[str]:
    """List, one line per entry, where two descriptions differ.

    Example::

        >>> differences({"fit": {"epochs": 40}}, {"fit": {"epochs": 80}})
        ['fit.epochs: 40, now 80']
    """
    if isinstance(before, dict) and isinstance(after, dict):
        lines = []
        for key in sorted(before.keys() | after.keys()):
            inner = f"{path}.{key}" if path else key
            if key not in after:
                lines.append(f"{inner}: {before[key]!r}, now absent")
            elif key not in before:
                lines.append(f"{inner}: absent, now {after[key]!r}")
            else:
                lines += differences(before[key], after[key], inner)
        return lines
    return [] if before == after else [f"{path}: {before!r}, now {after!r}"]
