"""The cases as one writes them in plain PyTorch: parameters, a loss, Adam."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.speed.cases import Case

__all__ = ["parameters", "particle_loss"]

HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)

Tensors = dict[str, Tensor]


def parameters(case: Case, start: Tensors) -> Tensors:
    """Return what is optimised, by name: means and raw scales of the guide, or the weights of the VAE's networks."""
    if case.kind == "vae":
        return {name: value.clone() for name, value in start.items()}
    found = {}
    for name, value in start.items():
        found[f"{name}.loc"] = value.log() if name in ("sigma", "tau") else value.clone()
        found[f"{name}.raw"] = torch.full_like(value, math.log(math.expm1(case.init_scale)))
    return found


def particle_loss(case: Case, p: Tensors, x: Tensor, y: Tensor | None) -> Tensor:
    """Return minus the ELBO at one draw of the guide, in nats, scaled to all the data."""
    if case.kind == "vae":
        return _vae(case, p, x)
    draws, log_q = {}, x.new_zeros(())
    for name in (key.removesuffix(".loc") for key in p if key.endswith(".loc")):
        loc, scale = p[f"{name}.loc"], F.softplus(p[f"{name}.raw"])
        noise = torch.randn_like(loc)
        draws[name] = loc + scale * noise
        log_q = log_q - (0.5 * noise.square() + scale.log() + HALF_LOG_TWO_PI).sum()
    assert y is not None
    log_p = _schools(draws, x, y) if case.kind == "schools" else _mlp(case, draws, x, y)
    return log_q - log_p


def _normal(value: Tensor, loc: Tensor | float, scale: Tensor | float) -> Tensor:
    log_scale = scale.log() if isinstance(scale, Tensor) else math.log(scale)
    return -(0.5 * ((value - loc) / scale).square() + log_scale + HALF_LOG_TWO_PI).sum()


def _mlp(case: Case, draws: Tensors, x: Tensor, y: Tensor) -> Tensor:
    h, log_p = x, x.new_zeros(())
    layers = len(case.sizes) - 1
    for i in range(layers):
        weight, bias = draws[f"layers.{i}.weight"], draws[f"layers.{i}.bias"]
        h = torch.addmm(bias, torch.relu(h) if i else h, weight)
        log_p = log_p + _normal(weight, 0.0, case.sizes[i] ** -0.5) + _normal(bias, 0.0, 1.0)
    scale = case.rows / len(x)
    if case.likelihood == "multiclass":
        return log_p - scale * F.cross_entropy(h, y, reduction="sum")
    log_sigma = draws["sigma"]
    residual = (y - h.squeeze(-1)) / log_sigma.exp()
    log_likelihood = -(0.5 * residual.square() + log_sigma + HALF_LOG_TWO_PI).sum()
    return log_p + _normal(log_sigma, -2.0, 1.0) + scale * log_likelihood


def _schools(draws: Tensors, sigma: Tensor, y: Tensor) -> Tensor:
    log_tau = draws["tau"]
    tau = log_tau.exp()
    half_cauchy = math.log(2 / (5 * math.pi)) - torch.log1p((tau / 5).square())
    theta = draws["mu"] + tau * draws["theta_trans"]
    priors = _normal(draws["mu"], 0.0, 5.0) + half_cauchy + log_tau + _normal(draws["theta_trans"], 0.0, 1.0)
    return priors + _normal(y, theta, sigma)


def _vae(case: Case, p: Tensors, x: Tensor) -> Tensor:
    def layer(name: str, h: Tensor) -> Tensor:
        return torch.addmm(p[f"{name}.bias"], h, p[f"{name}.weight"])

    hidden = F.softplus(layer("encoder.hidden", x))
    loc, log_scale = layer("encoder.loc", hidden), layer("encoder.log_scale", hidden)
    noise = torch.randn_like(loc)
    z = loc + log_scale.exp() * noise
    logits = layer("decoder.logits", F.softplus(layer("decoder.hidden", z)))
    log_ratio = (0.5 * noise.square() + log_scale - 0.5 * z.square()).sum()
    log_likelihood = -F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
    return -(case.rows / len(x)) * (log_likelihood + log_ratio)
