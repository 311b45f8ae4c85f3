"""Memory of tensors that are put together, in which products of matrices may lie from the start."""

from __future__ import annotations

import torch
from torch.fx import Node

from guides.compile.native.expressions import Read, Value, checked
from guides.compile.native.kernels import Schedule
from guides.compile.native.nodes import arguments, name_of

__all__ = ["Homes"]

_PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.bmm.default)
_RESHAPES = ("view", "_unsafe_view", "squeeze", "unsqueeze")


class Homes:
    """Where concatenations and their pieces lie, by their nodes."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._homes: dict[Node, tuple[Node, int]] = {}
        self._wholes: dict[Node, Value] = {}

    def find(self, cat: Node) -> None:
        """Note which products of matrices are only made to be put together with others, so that they go there at once."""
        for number, piece in enumerate(cat.args[0]):  # type: ignore[arg-type]
            while isinstance(piece, Node) and len(piece.users) == 1:
                if piece.target in _PRODUCTS:
                    self._homes[piece] = (cat, number)
                    break
                if name_of(piece) == "t" and name_of(piece.args[0]) == "t" and len(piece.args[0].users) == 1:  # type: ignore
                    piece = piece.args[0].args[0]  # type: ignore[union-attr]
                elif name_of(piece) in _RESHAPES:
                    piece = piece.args[0]
                else:
                    break

    def whole(self, cat: Node) -> Value:
        """Return the memory of tensors that are put together."""
        if cat not in self._wholes:
            self._wholes[cat] = self._schedule.new(tuple(cat.meta["val"].shape), checked(cat.meta["val"].dtype))
        return self._wholes[cat]

    def places(self, cat: Node) -> list[Value]:
        """Return where the tensors lie that are put together."""
        pieces, dim = arguments(cat)
        shape, start, places = tuple(cat.meta["val"].shape), 0, []
        dim %= len(shape)
        for piece in pieces:
            size = piece.meta["val"].shape[dim] if piece.meta["val"].dim() == len(shape) else 0
            places.append(self.whole(cat).slice(dim, start, start + size))
            start += size
        return places

    def home(self, node: Node) -> Value | None:
        """Return the place ``(batch, m, n)`` for a product, if one is known where it can lie."""
        if node not in self._homes:
            return None
        cat, number = self._homes[node]
        meta = node.meta["val"]
        place = self.places(cat)[number].reshape((*(1,) * (3 - len(meta.shape)), *meta.shape))
        if place is None or not isinstance(place.tree, Read) or place.tree.strides[2] != 1:
            return None
        return place if place.dtype == meta.dtype else None
