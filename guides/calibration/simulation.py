"""Latents and data drawn together from a model, as data sets that it can be fitted to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from guides.errors import DataError, UnsupportedModelError
from guides.program.data import Data
from guides.program.parameters import reachable_modules
from guides.program.prior import run_once, sample_prior
from guides.program.sites import role

__all__ = ["Simulated", "simulate"]

_TRIED = 4  # draws by which it is seen whether data enter a model otherwise than as what is observed


@dataclass(frozen=True)
class Simulated:
    """Draws of a model's latents and data.

    :ivar truth: latent and deterministic sites, shape ``(N, *site shape)``.
    :ivar datasets: the model's arguments with the data in their places, one tuple for each draw.
    """

    truth: dict[str, Tensor]
    datasets: list[tuple[Any, ...]]


def simulate(model: Callable[..., Any], data: Data, num_datasets: int, seed: int) -> Simulated:
    """Draw latents from the prior, and data given them, in the shape of the data given.

    :param data: the model's arguments. Those that are observed lend their shapes; the others stay as they are.
    :raises UnsupportedModelError: for a model whose draws are not from the density that a fit is to: flat priors, factors,
        scaled or masked densities, learnt parameters, data that enter otherwise than as what is observed.
    :raises DataError: if what is observed is no argument of the model.
    """
    nodes = run_once(model, data.args, data.kwargs)
    _check(model, nodes)
    places = {name: _place(name, node["value"], data) for name, node in nodes.items() if role(node) == "observed"}
    if not places:
        raise UnsupportedModelError("the model observes nothing: there are no data to simulate, and nothing to learn from")
    drawn = sample_prior(model, *data.args, num_samples=num_datasets, seed=seed, model_kwargs=data.kwargs)
    _check_drawn(drawn, nodes)
    with_data = [_filled(data, places, drawn, row) for row in range(num_datasets)]
    _check_only_observed(model, data, places, with_data[0], seed)
    kept = ("latent", "enumerated", "deterministic")
    return Simulated({name: value for name, value in drawn.items() if role(nodes[name]) in kept}, with_data)


def _check(model: Callable[..., Any], nodes: Mapping[str, Any]) -> None:
    """Refuse a model whose draws are not draws from its density."""
    odd: dict[str, str] = {}
    for name, node in nodes.items():
        kind = role(node)
        if kind == "factor":
            odd[name] = "it is a factor, which changes the density and draws nothing"
        elif kind == "subsample" and len(node["value"]) != node["fn"].size:
            odd[name] = "it chooses rows at random; call the model with all of them"
        elif kind == "conditioned":
            odd[name] = "pyro.condition holds it, so that it is not drawn; give it by obs="
        elif kind in ("latent", "enumerated", "observed") and not _is_one(node.get("scale", 1.0)):
            odd[name] = "its density is scaled, and draws are not"
        elif kind in ("latent", "enumerated") and _masks(node):
            odd[name] = "its prior is masked out, and so is not what it is drawn from"
        elif node["type"] == "param":
            odd[name] = "it is a parameter that the model learns, and has no prior to be drawn from; give it one"
    learnt = {n for m in reachable_modules(model) for n, p in m.named_parameters(recurse=False) if p.requires_grad}
    odd |= dict.fromkeys(sorted(learnt), "it is a parameter that the model learns, and has no prior; give it one")
    if odd:
        name = next(iter(odd))
        raise UnsupportedModelError(
            f"site {name!r}: {odd[name]}. Calibration by simulation needs draws of latents and data from the very density "
            "that is fitted"
        )


def _is_one(scale: Any) -> bool:
    return bool((torch.as_tensor(scale) == 1).all())


def _masks(node: Any) -> bool:
    mask = node.get("mask")
    masked = mask is not None and not bool(torch.as_tensor(mask).all())
    inner = getattr(node["fn"], "_mask", None)
    return masked or (inner is not None and not bool(torch.as_tensor(inner).all()))


def _place(name: str, value: Tensor, data: Data) -> int | str:
    """Return which argument an observed site has its value from.

    :raises DataError: if none.
    """
    named: dict[int | str, Any] = dict(enumerate(data.args)) | data.kwargs
    tensors = {place: a for place, a in named.items() if isinstance(a, Tensor)}
    same = [place for place, a in tensors.items() if a is value]
    same += [place for place, a in tensors.items() if a.shape == value.shape and bool((a == value).all())]
    if not same:
        raise DataError(
            f"what site {name!r} observes, {tuple(value.shape)}, is no argument of the model, so that no simulated data "
            "can be put in its place: let the model take it as an argument and pass that to obs= as it is"
        )
    return same[0]


def _filled(data: Data, places: Mapping[str, int | str], drawn: Mapping[str, Tensor], row: int) -> tuple[Any, ...]:
    """Return the positional arguments with one draw of the data in their places."""
    args = list(data.args)
    for name, place in places.items():
        if isinstance(place, str):
            raise DataError(f"what site {name!r} observes is the keyword argument {place!r}; pass it by position")
        args[place] = drawn[name][row].to(args[place].dtype)
    return tuple(args)


def _check_drawn(drawn: Mapping[str, Tensor], nodes: Mapping[str, Any]) -> None:
    for name, value in drawn.items():
        if role(nodes[name]) == "observed" and value.is_floating_point() and not bool(value.isfinite().all()):
            bad = (~value.isfinite()).reshape(len(value), -1).any(-1)
            raise UnsupportedModelError(
                f"of {len(value)} data sets drawn from the model, {int(bad.sum())} have values at site {name!r} that are "
                "not finite: its prior is too wide for numbers to hold; make it narrower"
            )


def _check_only_observed(
    model: Callable[..., Any], data: Data, places: Mapping[str, int | str], other: tuple[Any, ...], seed: int
) -> None:
    """Refuse a model in which data enter otherwise than as what is observed: with other data its draws would be others."""
    as_given, as_drawn = (
        sample_prior(model, *args, num_samples=_TRIED, seed=seed, model_kwargs=data.kwargs) for args in (data.args, other)
    )
    for name, value in as_given.items():
        if not torch.equal(value.nan_to_num(), as_drawn[name].nan_to_num()):
            what = ", ".join(f"argument {place}" for place in dict.fromkeys(places.values()))
            raise UnsupportedModelError(
                f"the draws of site {name!r} depend on the observed data ({what}), as in a series that is predicted from "
                "its past: data drawn all at once are then no data of the model. Calibration by simulation is for models "
                "that use them as obs= alone"
            )
