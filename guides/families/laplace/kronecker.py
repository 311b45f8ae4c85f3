"""Kronecker factors of the Gauss-Newton matrix, one pair for every weight matrix."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from guides.errors import UnsupportedModelError
from guides.families.laplace.curvature import Curvature
from guides.families.laplace.fisher import over_data
from guides.families.laplace.likelihoods import coordinates
from guides.program.linear import LinearUse, Product, apply_weight
from guides.program.sites import nodes

__all__ = ["check_factors", "kronecker"]


def check_factors(uses: Iterable[LinearUse], observed: Mapping[str, Any], fisher: frozenset[str], size: int) -> None:
    """Check that Kronecker factors can describe a model, before any work.

    :param uses: the weight matrices to be factored.
    :param observed: observed sites and factors by name.
    :param fisher: those whose Fisher information is known.
    :param size: number of data points.
    :raises UnsupportedModelError: naming the site that they cannot describe.
    """
    for name, site in observed.items():
        if name not in fisher:
            raise UnsupportedModelError(
                f"site {name!r} is {type(site['fn']).__name__}, which has no known Fisher information here, and Kronecker "
                "factors need one. Use curvature='ggn', which takes the exact Hessian of such a site"
            )
        shape = coordinates(name, over_data(site)).value.shape
        if shape[0] != size:
            raise UnsupportedModelError(
                f"observed site {name!r} has {shape[0]} rows for {size} data points; Kronecker factors need one each. Use "
                "curvature='ggn'"
            )
    for use in uses:
        again = len(use.shapes) > 1
        odd = next((s for s in use.shapes if s[:-1].numel() != size), use.shapes[0] if again else None)
        if odd is not None:
            raise UnsupportedModelError(
                f"site {use.name!r} multiplies inputs of shape {tuple(odd)}{' again' * again} for {size} data points; "
                "Kronecker factors need one row per data point, multiplied once. Use curvature='ggn'"
            )


def kronecker(at: Curvature, use: LinearUse) -> tuple[Tensor, Tensor]:
    r"""Return the Kronecker factors of one weight matrix's Gauss-Newton block, in float64.

    For :math:`s_n = a_n W` the block :math:`\sum_n a_n a_n^\top \otimes B_n`, with :math:`B_n` the Gauss-Newton matrix
    of the pre-activation, is approximated by :math:`\big(\sum_n a_n a_n^\top\big) \otimes \big(\tfrac1N \sum_n B_n\big)`
    (Martens & Grosse 2015).

    :param use: one that :func:`check_factors` has let pass.
    :returns: factors ``(in, in)`` and ``(out, out)``.
    """
    captured: list[Tensor] = []
    size = at.data.size

    def outputs(shift: Tensor) -> dict[str, Tensor]:
        def rules(trace: Trace) -> dict[int, Product]:
            weight = nodes(trace)[use.name]["value"]

            def product(inputs: Tensor, transposed: bool) -> Tensor:
                captured.append(inputs.detach())
                return apply_weight(inputs, weight, transposed) + shift

            return {id(weight): product}

        trace, _ = at.traces(at.loc, rules=rules)
        return {n: coordinates(n, over_data(nodes(trace)[n])).value for n in found}

    with at.evaluating():
        _, found, weights = at.outputs(at.data)
        width = nodes(at.program.prototype)[use.name]["value"].shape[0 if use.transposed else 1]
        probe = torch.zeros(size, width, dtype=at.loc.dtype, device=at.loc.device)
        values, pull = torch.func.vjp(outputs, probe)[:2]
        inputs = captured[0].reshape(-1, captured[0].shape[-1]).double()
        middle = torch.zeros(width, width, dtype=torch.float64, device=at.loc.device)
        for n, c in found.items():
            k = c.value.shape[-1]
            information = (c.fisher * weights[n]).detach().reshape(size, -1, k, k).double()
            for e in range(information.shape[1]):
                rows = []
                for j in range(k):  # data points are independent, so one pull-back serves all of them
                    seed = {m: torch.zeros_like(v) for m, v in values.items()}
                    seed[n].view(size, -1, k)[:, e, j] = 1.0
                    rows.append(pull(seed)[0])
                jacobian = torch.stack(rows, 1).double()
                middle += torch.einsum("nki,nkl,nlj->ij", jacobian, information[:, e], jacobian)
    return inputs.T @ inputs, middle / size
