"""What data frames among the data call their rows and columns, as coordinates of a posterior's dimensions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from guides.program.inputs import named_arguments
from guides.program.prior import run_once
from guides.program.sites import contribution, role

__all__ = ["labels_of"]

_CLOSE = 1e-4


def labels_of(posterior: Any) -> dict[str, Any]:
    """Return labels for dimensions of a posterior, by dimension: the names that its data came with.

    The index of a frame or series labels the plates that follow the rows. The columns of a frame label the second dimension
    of the argument itself, and the dimensions of latents that belong to them: those which, turned round together with the
    columns, leave the log joint density as it was.
    """
    training = posterior.training
    found: dict[str, Any] = {}
    named = named_arguments(posterior.model, training.args, training.kwargs)
    for name, (key, value) in named.items():
        form = training.forms.get(key)
        if form is None or form.kept or not isinstance(value, Tensor):
            continue
        for axis, labels in enumerate(form.labels):
            if labels is None or labels.shape != (value.shape[axis],):
                continue
            if axis == 0 and key in training.rows:
                for plate in posterior.program.follows.plates:
                    found.setdefault(plate, labels)
            else:
                dims = [f"{name}_dim_{axis}", *(_latent_dims(posterior, key, axis) if len(labels) > 1 else ())]
                for dim in dims:
                    found.setdefault(dim, labels)
    return found


def _latent_dims(posterior: Any, key: int | str, axis: int) -> list[str]:
    """Return the dimensions of latents that belong to one dimension of an argument."""
    training = posterior.training
    size = (training.args[key] if isinstance(key, int) else training.kwargs[key]).shape[axis]
    places = [
        (name, i)
        for name, site in posterior.sites.items()
        if site.kind == "latent"
        for i, (dim, n) in enumerate(zip(site.dims, site.shape))
        if n == size and dim not in posterior.program.follows.plates
    ]
    if not places:
        return []
    draws = posterior.sample(1)
    latents = {n: v[0] if posterior.replicates == 1 else v[0, 0] for n, v in draws.items()}

    def density(turned: Sequence[tuple[str, int]], argument: bool) -> float:
        values = dict(latents)
        for name, i in turned:
            values[name] = values[name].flip(i)
        args, kwargs = list(training.args), dict(training.kwargs)
        if argument and isinstance(key, int):
            args[key] = args[key].flip(axis)
        elif argument:
            kwargs[str(key)] = kwargs[str(key)].flip(axis)
        return _log_joint(posterior, values, args, kwargs)

    before = density((), argument=False)

    def same(turned: Sequence[tuple[str, int]]) -> bool:
        return abs(density(turned, argument=True) - before) <= _CLOSE * (1 + abs(before))

    if same(()):  # the order of the columns plays no part
        return []
    for together in (places, *([p] for p in places)):
        if same(together):
            needed = [p for p in together if not same([q for q in together if q is not p])]
            return [posterior.sites[name].dims[i] for name, i in needed]
    return []


def _log_joint(posterior: Any, latents: Mapping[str, Tensor], args: Sequence[Any], kwargs: Mapping[str, Any]) -> float:
    model = poutine.condition(posterior.program.model, data=dict(latents))
    nodes = run_once(model, args, kwargs, lambda run: posterior.program.call(posterior.flat[0], run))
    parts = [
        contribution(site).double().sum()
        for site in nodes.values()
        if role(site) in ("latent", "observed", "conditioned", "factor")
    ]
    return float(torch.stack(parts).sum()) if parts else 0.0
