"""Compiled loops laid open: ``GUIDES_DUMP=folder`` writes how each one came about."""

from __future__ import annotations

import hashlib
import os
import warnings
from pathlib import Path

from torch import Tensor
from torch.fx import GraphModule, Node

from guides.errors import StorageWarning

__all__ = ["dump", "dump_folder", "readable"]


def dump_folder() -> Path | None:
    """Return where to lay open compiled loops, ``$GUIDES_DUMP``; ``None`` if nobody asks for it."""
    chosen = os.environ.get("GUIDES_DUMP")
    return Path(chosen).expanduser().absolute() if chosen else None


def dump(folder: Path, pieces: dict[str, str]) -> Path:
    """Write texts by the names of their files to a folder of their own in ``folder``, and return it.

    Loops of the same graph have the same folder. What cannot be written costs a warning.
    """
    where = folder / hashlib.sha256(pieces["graph.txt"].encode()).hexdigest()[:12]
    try:
        where.mkdir(parents=True, exist_ok=True)
        for name, text in pieces.items():
            (where / name).write_text(text)
    except OSError as error:
        warnings.warn(f"GUIDES_DUMP: a compiled loop cannot be written down ({error})", StorageWarning, stacklevel=2)
    return where


def readable(graph: GraphModule) -> str:
    """Return the operations of a graph, one a line, with the shape and type of each result."""
    return "".join(f"{_line(node)}\n" for node in graph.graph.nodes)


def _line(node: Node) -> str:
    value = node.meta.get("val")
    kind = f"  # {tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}" if isinstance(value, Tensor) else ""
    if node.op == "placeholder":
        return f"{node.name} = input{kind}"
    if node.op == "get_attr":
        return f"{node.name} = constant {node.target}{kind}"
    if node.op == "output":
        return f"return {node.args[0]}"
    arguments = [repr(a) for a in node.args] + [f"{k}={v!r}" for k, v in node.kwargs.items()]
    target = getattr(node.target, "__name__", None) or str(node.target)
    return f"{node.name} = {target}({', '.join(arguments)}){kind}"
