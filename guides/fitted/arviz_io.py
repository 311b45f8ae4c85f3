"""Posteriors as ArviZ objects: ``InferenceData`` under ArviZ 0.x, ``xarray.DataTree`` under ArviZ 1.x.

The conversion has two halves. :func:`from_groups` turns dictionaries of numpy arrays into the object of
whichever ArviZ is installed; it knows nothing of torch or Pyro and is the only place where the two
generations differ. :func:`to_arviz` collects those dictionaries from a fitted posterior.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from guides.errors import OptionError, UnsupportedModelError
from guides.fitted.groups import GROUPS, from_groups
from guides.fitted.labels import labels_of
from guides.program.guide import is_point_mass, is_sampled
from guides.program.inputs import named_arguments
from guides.program.prior import run_once, sample_prior

if TYPE_CHECKING:
    import torch

__all__ = ["to_arviz"]


def to_arviz(
    posterior: Any,
    *,
    num_samples: int = 1000,
    prior_samples: int = 500,
    seed: int | None = None,
    corrected: bool | None = None,
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
