"""Runs of a model that leave no trace behind: draws from its prior, and one run on its data."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.uncondition_messenger import UnconditionMessenger
from torch import Tensor

from guides.compile.tracing import said
from guides.errors import FailedDrawsWarning, OptionError, UnsupportedModelError
from guides.program.buffers import buffers_kept
from guides.program.factors import FactorsOrNaN
from guides.program.isolation import quiet, seeded
from guides.program.noise import NoiseTape
from guides.program.parameters import isolated_store, reachable_modules
from guides.program.sites import role
from guides.program.supports import PlainSupports
from guides.program.vectorise import over_draws

__all__ = ["run_once", "sample_prior", "unobserved"]

_ELEMENTS_PER_CHUNK = 2**25

Runner = Callable[[Callable[[], Any]], Any]


def sample_prior(
    model: Callable[..., Any],
    *data: Any,
    num_samples: int = 500,
    seed: int = 0,
    model_kwargs: Mapping[str, Any] | None = None,
    run: Runner | None = None,
) -> dict[str, Tensor]:
    """Draw every sample and deterministic site of a model from its prior, observed sites included.

    The model is run without its observations (:func:`unobserved`), vectorised over draws where it can be. The caller's
    random state and Pyro's parameter store are left as they were.

    :param model: any Pyro model.
    :param data: its arguments; observed values only lend their shapes.
    :param num_samples: S, number of draws.
    :param seed: makes the draws repeatable.
    :param model_kwargs: keyword arguments of the model.
    :param run: calls a function with the model's learnt parameters in place; without it they have their initial values.
    :returns: site name -> (S, *site shape).
    :raises ValueError: if ``num_samples`` is not positive, or a site's shape differs from draw to draw.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> draws = sample_prior(lambda: pyro.sample("z", dist.Normal(0.0, 1.0)), num_samples=7, seed=0)
        >>> draws["z"].shape
        torch.Size([7])
    """
    if num_samples < 1:
        raise OptionError(f"num_samples is {num_samples}; it must be at least 1")
    prior = unobserved(model)
    shapes: dict[str, torch.Size | None] = {}

    def one(_: Tensor) -> dict[str, Tensor]:
        call = lambda: poutine.trace(prior).get_trace(*data, **(model_kwargs or {})).nodes  # noqa: E731
        with NoiseTape():
            nodes = call() if run is None else run(call)
        values = {str(name): torch.as_tensor(node["value"]) for name, node in nodes.items() if _is_site(node)}
        for name in values.keys() | shapes.keys():
            found = values[name].shape if name in values else None
            if shapes.setdefault(name, found) != found or (found is None):
                raise UnsupportedModelError(
                    f"site {name!r} does not have one shape in every run of the model (found {shapes[name]} and {found});"
                    " leave the prior out with prior_samples=0"
                )
        return values

    first = next((item for item in data if isinstance(item, Tensor)), None)
    rows = first.shape[0] if first is not None and first.dim() else 1
    values = sum(item.numel() for item in data if isinstance(item, Tensor))
    chunk = max(1, _ELEMENTS_PER_CHUNK // (100 * rows + 20 * values))
    device = first.device if first is not None else torch.device("cpu")
    kept = buffers_kept(reachable_modules(model))
    with kept, torch.no_grad(), isolated_store(), quiet(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the model cannot be vectorised")
        try:
            with seeded(seed):
                return over_draws(one, num_samples, chunk, device)
        except torch.linalg.LinAlgError:  # at some draws: the same ones again, and NaN there
            with seeded(seed), FactorsOrNaN():
                found = over_draws(one, num_samples, chunk, device)
    bad = torch.stack([v.isnan().reshape(num_samples, -1).any(-1) for v in found.values()]).any(0)
    warnings.warn(
        f"at {int(bad.sum())} of {num_samples} draws from the prior the model cannot be run, as a matrix has no Cholesky "
        "factor or inverse, and is NaN there; add more to the matrix's diagonal, or compute in float64",
        FailedDrawsWarning,
        stacklevel=2,
    )
    return found


class _Unobserve(UnconditionMessenger):
    def _pyro_sample(self, msg: Any) -> None:
        if role(msg) == "observed":
            super()._pyro_sample(msg)


def unobserved(model: Callable[..., Any]) -> Callable[..., Any]:
    """Return the model with its observed sites drawn instead, and everything else left alone.

    ``pyro.poutine.uncondition`` also draws latents that are held fixed, and deterministic sites: inside a plate of size N,
    where ``pyro.deterministic`` takes a vector of N values for one event, that silently makes it an (N, N) matrix.

    :raises UnsupportedModelError: when it is called, naming a site whose distribution cannot be drawn from.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> def model():
        ...     with pyro.plate("data", 3):
        ...         f = pyro.deterministic("f", pyro.sample("z", dist.Normal(0.0, 1.0)))
        ...         return pyro.sample("y", dist.Normal(f, 1.0), obs=torch.zeros(3))
        >>> unobserved(model)().shape
        torch.Size([3])
    """

    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            with _Unobserve():
                return model(*args, **kwargs)
        except NotImplementedError as error:
            raise UnsupportedModelError(
                f"the model cannot be drawn from: {said(error)}. The distribution there has a density "
                "and no sampler, so there are no predictive or prior draws; the posterior and its densities do not need them"
            ) from error

    return run


def run_once(
    model: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], run: Runner | None = None
) -> Mapping[str, Any]:
    """Run a model on its arguments and return the nodes of its trace: site name -> what Pyro recorded there.

    The caller's random state and Pyro's parameter store are left as they were; ``run`` as in :func:`sample_prior`.
    """
    call = lambda: poutine.trace(model).get_trace(*args, **kwargs).nodes  # noqa: E731
    kept = buffers_kept(reachable_modules(model))
    with kept, torch.no_grad(), isolated_store(), quiet(), seeded(0), PlainSupports():  # flat priors have no sampler
        nodes: Mapping[str, Any] = call() if run is None else run(call)
    return nodes


def _is_site(node: Any) -> bool:
    return role(node) in ("latent", "enumerated", "observed", "conditioned", "deterministic")
