"""The cases as Pyro models and guides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.infer.autoguide import AutoNormal, init_to_value
from torch import Tensor, nn

import zoo
from benchmarks.speed.cases import Case

__all__ = ["VAE", "model_and_guide"]

Callables = tuple[Callable[..., Any], Callable[..., Any]]


class VAE(nn.Module):
    """A variational autoencoder as Pyro's tutorial writes it: a model with a decoder, a guide with an encoder.

    :param sizes: pixels, hidden units, latents.
    :param data_size: rows of the whole data, for stock SVI; ``None`` leaves the scaling of minibatches to ``guides.fit``.
    """

    def __init__(self, sizes: tuple[int, ...], start: dict[str, Tensor], data_size: int | None) -> None:
        super().__init__()
        pixels, hidden, latents = sizes
        self.latents = latents
        self.data_size = data_size
        self.encoder = nn.ModuleDict(
            {
                "hidden": nn.Linear(pixels, hidden),
                "loc": nn.Linear(hidden, latents),
                "log_scale": nn.Linear(hidden, latents),
            }
        )
        self.decoder = nn.ModuleDict({"hidden": nn.Linear(latents, hidden), "logits": nn.Linear(hidden, pixels)})
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                parameter.copy_(start[name].mT if start[name].dim() == 2 else start[name])

    def _plate(self, rows: int) -> pyro.plate:
        if self.data_size is None:
            return pyro.plate("data", rows)
        return pyro.plate("data", self.data_size, subsample=torch.arange(rows))

    def model(self, x: Tensor) -> None:
        """Draw latents and observe images ``x`` ``(rows, pixels)``."""
        pyro.module("decoder", self.decoder)
        with self._plate(len(x)):
            prior = dist.Normal(x.new_zeros(len(x), self.latents), x.new_ones(())).to_event(1)
            z = pyro.sample("z", prior)
            logits = self.decoder["logits"](F.softplus(self.decoder["hidden"](z)))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """Draw latents from what the encoder makes of ``x``."""
        pyro.module("encoder", self.encoder)
        with self._plate(len(x)):
            hidden = F.softplus(self.encoder["hidden"](x))
            loc, scale = self.encoder["loc"](hidden), self.encoder["log_scale"](hidden).exp()
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    guide.amortized = frozenset({"z"})  # type: ignore[attr-defined]  # tells guides.fit that minibatches are fine


def model_and_guide(case: Case, start: dict[str, Tensor], stock: bool) -> Callables:
    """Return model and guide of a case, at the common starting point.

    :param start: value of every site, or weight of the VAE's networks, by name.
    :param stock: for stock SVI, where the model itself scales minibatches to the whole data.
    """
    data_size = case.rows if stock and case.batch else None
    if case.kind == "vae":
        vae = VAE(case.sizes, start, data_size).to(case.device)
        return vae.model, vae.guide
    model: Callable[..., Any] = zoo.EightSchools()
    if case.kind == "mlp":
        inputs, *hidden, outputs = case.sizes
        likelihood = case.likelihood
        model = zoo.BayesianMLP(inputs, hidden, outputs, likelihood=likelihood, data_size=data_size)
    return model, AutoNormal(model, init_loc_fn=init_to_value(values=start), init_scale=case.init_scale)
