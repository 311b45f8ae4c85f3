"""Packages that only some of what we do needs, and the extra of ours that installs each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

__all__ = ["EXTRAS", "MissingExtraError", "check_extra", "needs"]

EXTRAS = {
    "data": ("pooch", "sklearn"),
    "report": ("arviz", "h5netcdf", "jinja2", "matplotlib", "xarray"),
}
"""What each extra installs, by the names that are imported; those that a function asks for before it works."""


class MissingExtraError(ImportError):
    """A package that comes with one of our extras is not installed; the message says which extra that is."""


@contextmanager
def needs(extra: str, what: str) -> Iterator[None]:
    """Say which extra to install where an import in the block fails for want of a package.

    :param extra: name of the extra, ``"report"``.
    :param what: what cannot be done without it.
    :raises MissingExtraError: if a package is missing.

    Example::

        >>> with needs("report", "a picture"):
        ...     import matplotlib
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise _missing(extra, what, str(error.name).partition(".")[0]) from error


def check_extra(extra: str, what: str) -> None:
    """Check that all packages of an extra are installed, before any work that ends in one of them.

    :raises MissingExtraError: naming the first that is not.

    Example::

        >>> check_extra("report", "a report")
    """
    for package in EXTRAS[extra]:
        if find_spec(package) is None:
            raise _missing(extra, what, package)


def _missing(extra: str, what: str, package: str) -> MissingExtraError:
    return MissingExtraError(
        f"{what} needs the package {package!r}, which is not installed: pip install 'pyro-posterior-zoo[{extra}]'",
        name=package,
    )
