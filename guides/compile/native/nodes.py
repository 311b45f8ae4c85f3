"""What the nodes of a graph say of themselves."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from guides.compile.native.expressions import Unsupported

__all__ = ["arguments", "name_of", "writes"]


def name_of(node: Node) -> str:
    """Return the name of an operation, without its overload."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return str(node.target)
    return node.target._schema.name.split("::")[1]


def arguments(node: Node) -> list[Any]:
    """Return all arguments in the order of the operation's schema, with defaults filled in."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        raise Unsupported(str(node.target))
    found = list(node.args)
    for argument in schema.arguments[len(found) :]:
        found.append(node.kwargs.get(argument.name, argument.default_value))
    return found


def writes(node: Node) -> bool:
    """Tell whether an operation changes its first argument."""
    return name_of(node).endswith("_") and not name_of(node).endswith("__")
