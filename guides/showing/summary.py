"""Means, spreads and quantiles of latents, which print as one table."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from guides.showing.tables import Table, panel

__all__ = ["Summary"]

_MOST_ROWS = 20


class Summary(dict[str, dict[str, Tensor]]):
    """By site, and then by ``"mean"``, ``"std"``, ``"median"``, ``"5.0%"`` and ``"95.0%"``, a tensor of the site's shape.

    :ivar title: what stands above the table: the guide, and its verdict if it was asked for.
    :ivar verdict: the verdict, or nothing.
    :ivar said: what the verdict rests on, or nothing.

    Example::

        >>> import torch
        >>> found = Summary({"z": {"mean": torch.tensor([0.5, -12.0]), "std": torch.tensor([0.1, 3.0])}}, "map")
        >>> found
        map
        site   mean   std
        z[0]   0.50  0.10
        z[1]  -12.0   3.0
    """

    def __init__(self, sites: Mapping[str, dict[str, Tensor]], title: str, verdict: str = "", said: str = "") -> None:
        super().__init__(sites)
        self.title, self.verdict, self.said = title, verdict, said

    def _elements(self) -> Iterator[tuple[str, ...]]:
        """Yield a line of every element."""
        for name, figures in self.items():
            values = [figure.double().reshape(-1).tolist() for figure in figures.values()]
            shape = next(iter(figures.values())).shape
            places = itertools.product(*(range(size) for size in shape))
            for place, *row in zip(places, *values):
                digits = _digits(dict(zip(figures, row)).get("std", 0.0))
                label = f"{name}[{', '.join(map(str, place))}]" if place else name
                yield (label, *(f"{value:.{digits}f}" for value in row))

    def _table(self) -> tuple[Table, str]:
        """Return the first lines, and how many more there are in words."""
        total = sum(next(iter(figures.values())).numel() for figures in self.values())
        rows = list(itertools.islice(self._elements(), _MOST_ROWS))
        head = ("site", *next(iter(self.values()), {}))
        rest = f"and {total - len(rows)} more; summary()[site]['mean'] has all" if total > len(rows) else ""
        return Table(head, rows), rest

    def __repr__(self) -> str:
        table, rest = self._table()
        title = f"{self.title}: {self.verdict.upper()}" if self.verdict else self.title
        return "\n".join(filter(None, (title, self.said, table.text(), rest)))

    def _repr_html_(self) -> str:
        table, rest = self._table()
        return panel(self.title, self.verdict, filter(None, (self.said, rest)), [table])

    def __reduce__(self) -> Any:
        return (Summary, (dict(self), self.title, self.verdict, self.said))


def _digits(spread: float) -> int:
    """Return the decimals that show two figures of a standard deviation."""
    if not (math.isfinite(spread) and spread > 0):
        return 3
    return min(6, max(0, 1 - math.floor(math.log10(spread))))
