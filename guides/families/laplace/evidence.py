"""The Laplace log evidence as a function, and steps on the latents by their curvature."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from guides.errors import OptionError
from guides.families.laplace.curvature import Curvature, positive_part
from guides.families.laplace.hessian import gradient

__all__ = ["SMALLEST_PRECISION", "likelihood_gain", "maximise_evidence"]

SMALLEST_PRECISION = 1e-6
"""Of a normal approximation, where neither prior nor data say more."""

_PRODUCTS = 5


def likelihood_gain(at: Curvature, index: Tensor) -> float:
    r"""Return by how many nats a Newton step of some latents is expected to raise the log likelihood.

    .. math:: \tfrac12 g^\top A^{-1} g, \qquad g = \nabla \log p(x \mid z)

    Five steps of conjugate gradients, which take five products with the Gauss-Newton matrix plus the prior's curvature
    :math:`A`; they fall short of the whole gain, and see most of it.

    :param index: positions of the latents, shape ``(K,)``.
    """
    with at.evaluating():
        slope = gradient(lambda z: at.log_likelihood(z, index=index), at.loc[index]).double()
        multiply = at.product(index)
        found, residual, direction = torch.zeros_like(slope), slope, slope
        for _ in range(_PRODUCTS):
            curved = multiply(direction.to(at.loc.dtype)).double()
            along = float(direction @ curved)
            if along <= 0.0:
                break
            before = residual @ residual
            found = found + before / along * direction
            residual = residual - before / along * curved
            direction = residual + (residual @ residual) / before * direction
    return 0.5 * float(slope @ found)


def maximise_evidence(at: Curvature, rounds: int, steps: int = 20) -> tuple[Curvature, dict[str, Any]]:
    """Alternate gradient steps on the model's hyperparameters, by Laplace log evidence, with Newton steps on the mode.

    :returns: the curvature at the new mode and hyperparameters, and ``{"hyperparameters": ..., "evidence_trace": ...}``.
    :raises OptionError: if the model has no parameters of its own.
    """
    layout = at.program.parameters
    own = [n for n in layout.names if not n.startswith(f"{at.program.guide._pyro_name}.")]  # type: ignore[attr-defined]
    if not own:
        raise OptionError("marginal_likelihood=... but the model has no pyro.param hyperparameters to choose")
    mask = torch.cat([torch.full((s.numel(),), n in own) for n, s in zip(layout.names, layout.shapes)]).to(at.flat.device)
    trace: list[float] = []
    for r in range(rounds):
        flat = at.flat.clone().requires_grad_()
        optimiser = torch.optim.Adam([flat], lr=0.1)
        for k in range(steps):
            # Adam's steps do not shrink by themselves, and the next round starts where the last has settled.
            optimiser.param_groups[0]["lr"] = 0.05 * (1 + math.cos(math.pi * k / steps)) / (r + 1)
            optimiser.zero_grad()
            loss = -_evidence(at, flat)
            (slope,) = torch.autograd.grad(loss, flat)
            flat.grad = torch.where(mask, slope, 0.0)
            optimiser.step()
        at = _newton(Curvature(at.program, flat.detach(), at.data))
        with torch.no_grad():
            trace.append(float(_evidence(at, at.flat)))
    values = layout.constrained(at.flat)
    return at, {"hyperparameters": {n: values[n].tolist() for n in own}, "evidence_trace": trace}


def _evidence(at: Curvature, flat: Tensor) -> Tensor:
    """Return the Laplace log evidence as a differentiable function of the model's parameters, the mode held fixed."""
    # Eigenvalues, not a Cholesky factor: under hierarchical priors the prior's curvature may be negative.
    eigenvalues = torch.linalg.eigvalsh(at.precision(flat)).clamp(min=SMALLEST_PRECISION)
    with at.evaluating():
        joint = at.log_joint(at.loc, flat)
    return joint + 0.5 * len(at.loc) * math.log(2 * math.pi) - 0.5 * eigenvalues.log().sum().to(joint.dtype)


def _newton(at: Curvature, steps: int = 10) -> Curvature:
    """Return the curvature at the mode, found by damped Gauss-Newton steps."""
    for _ in range(steps):
        with at.evaluating():
            joint = at.log_joint(at.loc)
            slope = gradient(at.log_joint, at.loc).double()
        with torch.no_grad():
            precision, _ = positive_part(at.precision(at.flat), SMALLEST_PRECISION)
            step = torch.linalg.solve(precision, slope).to(at.loc.dtype)
        for damping in (1.0, 0.5, 0.25, 0.1, 0.01):
            flat = at.at(at.loc + damping * step)
            moved = Curvature(at.program, flat, at.data)
            with moved.evaluating(), torch.no_grad():
                if float(moved.log_joint(moved.loc)) > float(joint):
                    break
        else:
            return at
        at = moved
    return at
