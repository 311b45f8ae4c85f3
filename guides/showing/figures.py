"""Figures that belong to no window and show themselves in a notebook."""

from __future__ import annotations

import functools
import io
from typing import TYPE_CHECKING, Any

from _posterior_zoo_registry.extras import needs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["new_figure"]


def new_figure(width: float, height: float) -> Figure:
    """Return an empty matplotlib figure that pyplot does not know and that a notebook shows as a picture.

    :param width: in inches, as ``height``.
    :raises MissingExtraError: without matplotlib.

    Example::

        >>> new_figure(3, 2)._repr_png_()[1:4]
        b'PNG'
    """
    return _shown()(figsize=(width, height), layout="constrained")


@functools.cache
def _shown() -> type[Figure]:
    with needs("report", "a picture"):
        from matplotlib.figure import Figure

    class Picture(Figure):
        """A figure with a picture of its own; matplotlib's have one only after ``%matplotlib inline``."""

        def _repr_png_(self) -> bytes:
            content = io.BytesIO()
            self.savefig(content, format="png", dpi=100)
            return content.getvalue()

        def __reduce__(self) -> Any:
            return (_again, (), self.__getstate__())

    return Picture


def _again() -> Figure:
    return new_figure(1, 1)
