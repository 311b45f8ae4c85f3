"""A posterior with reference draws: a model, the data that it is conditioned on, and draws that others checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from _posterior_zoo_registry import Registry
from zoo.posteriordb.database import read_data, read_draws, read_posterior

__all__ = ["ReferencePosterior", "posteriors", "reals"]


@dataclass(frozen=True)
class ReferencePosterior:
    """A posterior of posteriordb as a plain Pyro model and the arguments that condition it.

    The model has Stan's parameters under Stan's names and in Stan's parametrisation: what is centred there is centred here.
    Where a parameter of Stan's has a bound that moves with another one, the model has a latent in its place that does not,
    and the parameter as a deterministic site.

    :param name: its name in posteriordb, ``"arK-arK"``.
    :param model: the Pyro model; called with :meth:`data` it observes them.
    :param arguments: makes the model's arguments of the data that Stan is given.
    :param latents: makes the latents of Stan's parameters, where these are not the same.

    Example::

        >>> from zoo.posteriordb import posteriors
        >>> posterior = posteriors["eight_schools-eight_schools_centered"]
        >>> sigma, y = posterior.data()                     # doctest: +SKIP
        >>> posterior.draws()["theta"].shape                # doctest: +SKIP
        torch.Size([10, 1000, 8])
    """

    name: str
    model: Callable[..., Any]
    arguments: Callable[[Mapping[str, Any]], tuple[Tensor, ...]]
    latents: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = dict

    def data(self) -> tuple[Tensor, ...]:
        """Return what the model is called with, floats of torch's default dtype.

        :raises MissingDataError: if a file is neither on this machine nor to be had from the network.
        :raises CorruptDataError: if a file is not what it should be.
        """
        return self.arguments(read_data(read_posterior(self.name)["data_name"]))

    def draws(self) -> dict[str, Tensor]:
        """Return reference draws of every parameter, float64 of shape ``(chains, draws, *shape)``.

        :raises MissingDataError: as :meth:`data`; also if posteriordb has no reference draws of this posterior.
        :raises CorruptDataError: as :meth:`data`.
        """
        return read_draws(read_posterior(self.name).get("reference_posterior_name") or self.name)


posteriors: Registry[ReferencePosterior] = Registry("posterior", group="zoo.posteriors")


def reals(data: Mapping[str, Any], *names: str) -> tuple[Tensor, ...]:
    """Return entries of the data as floats of torch's default dtype."""
    return tuple(torch.tensor(data[name], dtype=torch.get_default_dtype()) for name in names)
