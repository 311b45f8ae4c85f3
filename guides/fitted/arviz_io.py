"""Posteriors as ArviZ objects: ``InferenceData`` under ArviZ 0.x, ``xarray.DataTree`` under ArviZ 1.x.

The conversion has two halves. :func:`from_groups` turns dictionaries of numpy arrays into the object of
whichever ArviZ is installed; it knows nothing of torch or Pyro and is the only place where the two
generations differ. :func:`to_arviz` collects those dictionaries from a fitted posterior.
"""

from __future__ import annotations

import datetime
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from guides.errors import OptionError, UnsupportedModelError
from guides.fitted.labels import labels_of
from guides.program.guide import is_point_mass, is_sampled
from guides.program.inputs import named_arguments
from guides.program.prior import run_once, sample_prior

if TYPE_CHECKING:
    import torch
    import xarray

__all__ = ["from_groups", "import_arviz", "to_arviz"]

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


def to_arviz(
    posterior: Any,
    *,
    num_samples: int = 1000,
    prior_samples: int = 500,
    seed: int | None = None,
    corrected: bool = False,
    groups: Collection[str] | None = None,
    predictions: tuple[Any, ...] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
) -> Any:
    """Convert a fitted posterior to ArviZ: ``InferenceData`` under ArviZ 0.x, ``DataTree`` under ArviZ 1.x.

    It offers NumPyro's ``arviz.from_numpyro_svi`` to Pyro users. Chains are restarts (``fit(replicates=R)``).

    Groups and their variables:

    * ``posterior``: latent sites, then deterministic ones, (chain, draw, ...);
    * ``posterior_predictive``: observed sites drawn anew;
    * ``predictions``: observed and deterministic sites at the arguments ``predictions``;
    * ``log_likelihood``: observed sites, one number per observation, nats; where the model masks observations out, of the
      others alone, along a dimension ``<site>_point`` that bears their labels. Guides that are point masses (``map``,
      ``ensemble``, ``dropout``) have it only if ``groups`` names it, as ``arviz.compare`` would rank them first for nothing;
    * ``sample_stats``: ``lp`` (log joint density) and ``log_q`` (the guide's log density), nats, (chain, draw); of samplers
      ``diverging``, ``energy``, ``step_size`` and their like in the place of ``log_q``;
    * ``prior``, ``prior_predictive``: draws from the model with nothing observed; one chain;
    * ``observed_data``: values of the observed sites;
    * ``constant_data``: other tensor arguments of the model, under their argument names, and latents that ``pyro.condition``
      holds fixed.

    Names that a netCDF file cannot hold are changed: slashes become points, an empty name ``unnamed``, a site ``chain`` or
    ``draw`` gets ``_site`` appended, a plate ``_plate``; the variable's attribute ``site`` keeps the name.

    Dimensions are named by plates, those of events ``<site>_dim_<i>``. A plate that bears the name of a
    variable becomes ``<name>_plate``. What data frames call their rows and columns becomes ``coords``: rows of the plates
    that follow them, columns of the argument and of the latents that belong to them.

    :param posterior: the fit.
    :param num_samples: draws per chain.
    :param prior_samples: draws from the prior; 0 leaves the prior groups out.
    :param seed: makes the draws repeatable; the caller's random state is left as it was.
    :param corrected: resample the draws by their importance weights, as :meth:`guides.Posterior.sample` does.
    :param groups: the groups wanted; all of them if None.
    :param predictions: arguments of the model at which to predict, such as ``(x_new,)``.
    :param dims: names that replace the inferred ones: site -> one name per dimension.
    :param coords: labels: dimension -> one label per index.
    :raises ValueError: for an unknown group, a name in ``dims`` that is no site, or labels of the wrong
        number.

    Example::

        >>> import pyro, pyro.distributions as dist, torch, guides
        >>> def model(sigma, y=None):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        ...     with pyro.plate("school", len(sigma)):
        ...         theta = pyro.sample("theta", dist.Normal(mu, 1.0))
        ...         pyro.sample("y", dist.Normal(theta, sigma), obs=y)
        >>> posterior = guides.fit(model, "mean_field", torch.ones(2), torch.tensor([28.0, 8.0]), steps=50)
        >>> tree = posterior.to_arviz(num_samples=10, coords={"school": ["Choate", "Deerfield"]})
        >>> tree["posterior"]["theta"].dims
        ('chain', 'draw', 'school')
    """
    wanted = _wanted(groups, prior_samples, predictions)
    point = is_point_mass(posterior.guide) and not is_sampled(posterior.guide)
    if groups is None and point:
        wanted.discard("log_likelihood")
    sites, source = posterior.sites, posterior.source
    inferred = {name: list(site.dims) for name, site in sites.items()}
    unknown = sorted(set(dims or {}) - set(inferred))
    if unknown:
        raise OptionError(f"dims names {unknown[0]!r}, which is no site of the model; its sites are {sorted(inferred)}")
    dims = {**inferred, **(dims or {})}

    coords = {**labels_of(source), **(coords or {})}
    collected: dict[str, dict[str, Any]] = {name: {} for name in GROUPS if name in wanted}
    if wanted & {"posterior", "posterior_predictive", "log_likelihood", "sample_stats"}:
        draws = _left_out_if_impossible(
            "posterior_predictive" in wanted,
            groups,
            "posterior_predictive",
            lambda predictive: posterior.draws(num_samples, seed=seed, predictive=predictive, corrected=corrected),
        )
        parts = {
            "posterior": {**draws.latents, **draws.deterministic},
            "posterior_predictive": {name: value for name, value in draws.predictive.items() if name in sites},
            "sample_stats": {"lp": draws.log_p, **(draws.statistics or {"log_q": draws.log_q})},
        }
        collected |= {name: _arrays(part) for name, part in parts.items() if name in wanted}
        if "log_likelihood" in wanted:
            collected["log_likelihood"], labels = _points(draws, inferred, coords)
            coords = {**labels, **coords}
    if predictions is not None:
        new = _arrays(posterior.predict(*predictions, num_samples=num_samples, seed=seed, corrected=corrected))
        collected["predictions"] = new if posterior.replicates > 1 else {k: v[None] for k, v in new.items()}
    if wanted & {"prior", "prior_predictive"}:
        of_prior = _left_out_if_impossible(
            True, groups, "prior", lambda drawn: _of_prior(source, sites, prior_samples, seed) if drawn else {}
        )
        collected |= {name: part for name, part in of_prior.items() if name in wanted}
    if wanted & {"observed_data", "constant_data"}:
        observed, constant, constant_dims = _data(source)
        dims |= {name: value for name, value in constant_dims.items() if name not in dims}
        collected |= {k: v for k, v in (("observed_data", observed), ("constant_data", constant)) if k in wanted}
    attrs = {"guide": posterior.family, "objective": source.objective}
    if groups is None and point:
        attrs["log_likelihood"] = "left out: draws of a point mass are no posterior, to cross-validate by"
    return from_groups(collected, dims, coords, attrs)


def _left_out_if_impossible(draw: bool, groups: Any, name: str, take: Callable[[bool], Any]) -> Any:
    """Return ``take(draw)``; where a site cannot be drawn from and nobody asked for its group, ``take(False)``."""
    try:
        return take(draw)
    except UnsupportedModelError as error:
        if not draw or groups is not None:
            raise
        warnings.warn(f"there is no group {name!r}: {error}", UserWarning, stacklevel=4)
        return take(False)


def _wanted(groups: Collection[str] | None, prior_samples: int, predictions: tuple[Any, ...] | None) -> set[str]:
    wanted = set(GROUPS if groups is None else groups)
    unknown = sorted(wanted - set(GROUPS))
    if unknown:
        raise OptionError(f"there is no group {unknown[0]!r}; choose from {', '.join(GROUPS)}")
    if predictions is None:
        wanted.discard("predictions")
    if prior_samples < 1:
        wanted -= {"prior", "prior_predictive"}
    return wanted


def _arrays(values: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: value.detach().cpu().numpy() for name, value in values.items()}


def _points(
    draws: Any, dims: Mapping[str, Sequence[str]], coords: Mapping[str, Sequence[Any]]
) -> tuple[dict[str, Any], dict[str, Sequence[Any]]]:
    """Return the log-likelihood of the observations that the model counts, and labels for them where it leaves some out."""
    found: dict[str, Any] = {}
    labels: dict[str, Sequence[Any]] = {}
    for name, value in draws.log_likelihood.items():
        counted = draws.counted[name]
        if bool(counted.all()):
            found[name] = _arrays({name: value})[name]
        elif bool(counted.any()):
            flat = value.flatten(2)[..., counted.flatten()]
            found[name] = ((f"{name}_point",), _arrays({name: flat})[name])
            kept = counted.flatten().nonzero().squeeze(-1).tolist()
            rows = coords.get(dims[name][0]) if counted.dim() == 1 and dims[name] else None
            labels[f"{name}_point"] = kept if rows is None else [rows[k] for k in kept]
    return found, labels


def _data(posterior: Any) -> tuple[dict[str, np.ndarray], dict[str, Any], dict[str, list[str]]]:
    """Return the observed values, the other tensor arguments, and names for the dimensions of the latter."""
    import torch

    args, kwargs = posterior.data, posterior.training.kwargs
    nodes = run_once(posterior.program.visible, args, kwargs, _with_parameters(posterior))
    sites = posterior.sites
    observed = {name: nodes[name]["value"] for name, site in sites.items() if site.kind == "observed"}
    constant = {
        name: value
        for name, (_, value) in named_arguments(posterior.model, args, kwargs).items()
        if isinstance(value, torch.Tensor) and not any(torch.equal(value, seen) for seen in observed.values())
    }
    constant |= {name: nodes[name]["value"] for name, site in sites.items() if site.kind == "conditioned"}
    rows = {(sites[name].dims[0], value.shape[0]) for name, value in observed.items() if sites[name].dims}
    dims = {}
    for name, value in constant.items():
        if name in sites:
            continue
        plates = [plate for plate, size in rows if value.dim() and value.shape[0] == size]
        if len(plates) == 1:
            dims[name] = [plates[0], *(f"{name}_dim_{i}" for i in range(1, value.dim()))]
    arrays = {name: _as_argument(name, array, sites) for name, array in _arrays(constant).items()}
    return _arrays(observed), arrays, dims


def _as_argument(name: str, array: np.ndarray, sites: Mapping[str, Any]) -> Any:
    """Return an argument with dimensions of its own where a site of the same name has another shape."""
    if name not in sites or array.shape == tuple(sites[name].shape):
        return array
    return tuple(f"{name}_dim_{i}" for i in range(array.ndim)), array


def _with_parameters(posterior: Any) -> Callable[[Callable[[], Any]], Any]:
    """Return what calls a function with the model's learnt parameters, those of the first restart, in place."""
    return lambda function: posterior.program.call(posterior.flat[0], function)


def _of_prior(posterior: Any, sites: Mapping[str, Any], num_samples: int, seed: int | None) -> dict[str, dict[str, Any]]:
    """Return the groups of draws from the prior, latents and observations apart, as one chain."""
    found: dict[str, dict[str, Any]] = {"prior": {}, "prior_predictive": {}}
    for name, values in _prior(posterior, num_samples, seed).items():
        if sites[name].kind != "conditioned":
            found["prior_predictive" if sites[name].kind == "observed" else "prior"][name] = values[None]
    return found


def _prior(posterior: Any, num_samples: int, seed: int | None) -> dict[str, np.ndarray]:
    draws = sample_prior(
        posterior.program.visible,
        *posterior.data,
        num_samples=num_samples,
        seed=posterior.seed if seed is None else seed,
        model_kwargs=posterior.training.kwargs,
        run=_with_parameters(posterior),
    )
    sites = posterior.sites
    return {name: value for name, value in _arrays(draws).items() if name in sites}
