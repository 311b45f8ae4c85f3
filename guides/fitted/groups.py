"""Arrays as ArviZ's groups, with dimensions that are named alike wherever they are alike."""

from __future__ import annotations

import datetime
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from _posterior_zoo_registry.extras import needs
from guides.errors import OptionError

if TYPE_CHECKING:
    import xarray

__all__ = ["GROUPS", "from_groups", "import_arviz"]


GROUPS = (
    "posterior",
    "posterior_predictive",
    "predictions",
    "log_likelihood",
    "sample_stats",
    "prior",
    "prior_predictive",
    "observed_data",
    "constant_data",
)


_WITHOUT_DRAWS = ("observed_data", "constant_data", "predictions_constant_data")


def import_arviz() -> ModuleType:
    """Import ArviZ without the notice that ArviZ 0.23 shows once a day on import.

    Example::

        >>> import_arviz().__name__
        'arviz'
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"\s*ArviZ is undergoing a major refactor", category=FutureWarning)
        with needs("report", "to_arviz"):
            import arviz
    return arviz


def from_groups(
    groups: Mapping[str, Mapping[str, Any]],
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> Any:
    """Turn groups of arrays into ``arviz.InferenceData`` (ArviZ 0.x) or ``xarray.DataTree`` (ArviZ 1.x).

    Arrays of all groups except the ``..._data`` groups lead with the dimensions chain and draw.

    :param groups: group name -> variable name -> array, or a pair of dimension names (of those after chain and draw) and
        array, where they are others than elsewhere.
    :param dims: variable name -> one name per dimension after chain and draw. A variable that has fewer
        dimensions in a group, as a log-likelihood of vector-valued observations has, uses the first of them.
        Others get ``<name>_dim_<i>``.
    :param coords: dimension name -> labels; other dimensions are numbered from 0.
    :param attrs: attributes of every group.
    :raises ValueError: if the sizes of one dimension differ within a group, or labels do not fit a
        dimension's size.

    Example::

        >>> tree = from_groups({"posterior": {"mu": np.zeros((1, 10, 3))}}, dims={"mu": ["school"]})
        >>> tree["posterior"]["mu"].dims
        ('chain', 'draw', 'school')
    """
    groups, dims, coords = _plainly_named(groups, dims or {}, coords or {})
    dims, coords = _without_clashes(groups, dims, coords)
    arviz = import_arviz()
    datasets = {
        name: _dataset(name, variables, dims, coords, {**_attributes(arviz), **(attrs or {})})
        for name, variables in groups.items()
        if variables
    }
    if int(arviz.__version__.split(".")[0]) >= 1:
        from xarray import DataTree

        return DataTree.from_dict(datasets)
    return arviz.InferenceData(**datasets)


def _dataset(
    group: str,
    variables: Mapping[str, Any],
    dims: Mapping[str, Sequence[str]],
    coords: Mapping[str, Sequence[Any]],
    attrs: Mapping[str, Any],
) -> xarray.Dataset:
    import xarray

    leading = () if group in _WITHOUT_DRAWS else ("chain", "draw")
    arrays: dict[str, tuple[tuple[str, ...], np.ndarray]] = {}
    sizes: dict[str, int] = {}
    for name, value in variables.items():
        given, value = value if isinstance(value, tuple) else (dims.get(name, ()), value)
        value = np.asarray(value)
        own = list(given)[: value.ndim - len(leading)]
        own += [f"{name}_dim_{i}" for i in range(len(own), value.ndim - len(leading))]
        arrays[name] = ((*leading, *own), value)
        for dim, size in zip(arrays[name][0], value.shape, strict=True):
            if sizes.setdefault(dim, size) != size:
                raise OptionError(
                    f"dimension {dim!r} of {name!r} in group {group!r} has size {size}, elsewhere"
                    f" {sizes[dim]};"
                    f" pass dims={{{name!r}: [...]}} with another name"
                )
    labels = {dim: np.arange(size) for dim, size in sizes.items()}
    for dim in labels.keys() & coords.keys():
        if len(coords[dim]) != sizes[dim]:
            raise OptionError(
                f"coords[{dim!r}] has {len(coords[dim])} labels, but the dimension has size {sizes[dim]} in {group!r}"
            )
        labels[dim] = np.asarray(coords[dim])
    found = xarray.Dataset(arrays, coords=labels, attrs=dict(attrs))
    for name, value in variables.items():
        if isinstance(value, _Renamed):
            found[name].attrs["site"] = value.site
    return found


class _Renamed(tuple[tuple[str, ...], Any]):
    """Dimension names and array of a variable that bears another name than its site."""

    site: str


def _plainly_named(
    groups: Mapping[str, Mapping[str, Any]],
    dims: Mapping[str, Sequence[str]],
    coords: Mapping[str, Sequence[Any]],
) -> tuple[dict[str, dict[str, Any]], dict[str, Sequence[str]], dict[str, Sequence[Any]]]:
    """Rename what no netCDF file can hold, or what ArviZ has another meaning for."""
    names = dict.fromkeys(name for variables in groups.values() for name in variables)
    plates = dict.fromkeys(dim for own in dims.values() for dim in own)
    new: dict[str, str] = {}
    for name in (*names, *plates, *coords):
        if name in new:
            continue
        plain = name.replace("/", ".").replace("\0", "") or "unnamed"
        plain = f"{plain}_" if set(plain) == {"."} else plain
        if plain in ("chain", "draw") and (name in names or name in plates):
            plain += "_site" if name in names else "_plate"
        while plain != name and (plain in names or plain in new.values()):
            plain += "_"
        new[name] = plain

    def renamed(name: str, value: Any) -> Any:
        if new[name] == name:
            return value
        own, array = value if isinstance(value, tuple) else (dims.get(name, ()), value)
        marked = _Renamed((tuple(new.get(dim, dim) for dim in own), array))
        marked.site = name
        return marked

    return (
        {group: {new[name]: renamed(name, v) for name, v in variables.items()} for group, variables in groups.items()},
        {new.get(name, name): [new.get(dim, dim) for dim in own] for name, own in dims.items()},
        {new[dim]: labels for dim, labels in coords.items()},
    )


def _without_clashes(
    groups: Mapping[str, Mapping[str, Any]],
    dims: Mapping[str, Sequence[str]],
    coords: Mapping[str, Sequence[Any]],
) -> tuple[dict[str, list[str]], dict[str, Sequence[Any]]]:
    """Rename dimensions that bear a variable's name, which xarray would take for coordinates."""
    taken = {name for variables in groups.values() for name in variables}
    new = {dim: f"{dim}_plate" if dim in taken else dim for names in dims.values() for dim in names}
    return (
        {name: [new[dim] for dim in names] for name, names in dims.items()},
        {new.get(dim, dim): labels for dim, labels in coords.items()},
    )


def _attributes(arviz: ModuleType) -> dict[str, Any]:
    attributes = {
        "created_at": datetime.datetime.now(datetime.UTC).isoformat(),
        "creation_library": "pyro-posterior-zoo",
        "arviz_version": arviz.__version__,
        "inference_library": "pyro",
    }
    for key, package in (
        ("creation_library_version", "pyro-posterior-zoo"),
        ("inference_library_version", "pyro-ppl"),
    ):
        try:
            attributes[key] = version(package)
        except PackageNotFoundError:
            continue
    return attributes
