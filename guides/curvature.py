r"""Second derivatives of the log joint density over the flat unconstrained latents.

Writing :math:`\log p(x, z) = \log p(x \mid z) + \log p(z)` (the latter with the Jacobian of the map to each site's support),
the precision of a Laplace approximation is a likelihood part plus a prior part. Derivatives are taken in the model's dtype,
summed and factorised in float64. Where an ``index`` is given, only those rows and columns are computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from guides.engine.data import Data
from guides.engine.noise import NoiseTape
from guides.engine.parameters import isolated_store
from guides.engine.program import Program, quiet
from guides.errors import UnsupportedModelError
from guides.likelihoods import Coordinates, coordinates
from guides.linear import LinearRules, LinearUse, Product, apply_weight, linear_uses
from guides.program.sites import is_observed, nodes

__all__ = ["Curvature", "positive_part"]

Rules = Callable[[Trace], dict[int, Product]]

_ELEMENTS_PER_CHUNK = 2**24


class Curvature:
    """Derivatives of one replicate's log joint at its optimum.

    :param program: of a model and a guide whose flat latent vector is a point (its parameter ``loc``).
    :param flat: parameters at the optimum.
    :param data: the training data, all of it.
    """

    def __init__(self, program: Program, flat: Tensor, data: Data) -> None:
        self.program, self.flat, self.data = program, flat.detach().clone(), data
        layout = program.parameters
        name = f"{program.guide._pyro_name}.loc"  # type: ignore[attr-defined]
        start = sum(
            s.numel() for n, s in zip(layout.names, layout.shapes) if layout.names.index(n) < layout.names.index(name)
        )
        self._slice = slice(start, start + layout.shapes[layout.names.index(name)].numel())

    @property
    def loc(self) -> Tensor:
        """The optimum, shape ``(D,)``."""
        return self.flat[self._slice]

    def at(self, loc: Tensor, flat: Tensor | None = None) -> Tensor:
        """Return the parameters with the optimum replaced by ``loc``."""
        flat = self.flat if flat is None else flat
        return torch.cat([flat[: self._slice.start], loc, flat[self._slice.stop :]])

    def traces(
        self, loc: Tensor, data: Data | None = None, flat: Tensor | None = None, rules: Rules | None = None
    ) -> tuple[Trace, Trace]:
        """Return model and guide traces with the latents at ``loc``.

        :param rules: from the guide's trace to replacements for products with weights; see
            :class:`~guides.linear.LinearRules`.
        """
        data = data or self.data

        def run() -> tuple[Trace, Trace]:
            with NoiseTape():  # nothing is drawn, but it replaces kernels that cannot be differentiated twice or forwards
                guide_trace = poutine.trace(self.program.guide).get_trace(*data.args, **data.kwargs)
                model = poutine.trace(poutine.replay(self.program.model, trace=guide_trace))
                with LinearRules(rules(guide_trace) if rules else {}):
                    return model.get_trace(*data.args, **data.kwargs), guide_trace

        return self.program.call(self.at(loc, flat), run)

    def linear_uses(self) -> dict[str, LinearUse]:
        """Return the weight matrices among the latents that the model multiplies data by, in order of use."""
        with self.evaluating(), torch.no_grad():
            trace, _ = self.traces(self.loc)
            values = {n: nodes(trace)[n]["value"] for n in self.program.latents}
            run = lambda: linear_uses(self.program.model, values, self.data.args, self.data.kwargs)  # noqa: E731
            return self.program.call(self.flat, run)

    def log_joint(self, loc: Tensor, flat: Tensor | None = None) -> Tensor:
        """Return the log joint density of data and unconstrained latents, in nats."""
        model_trace, guide_trace = self.traces(loc, flat=flat)
        return torch.as_tensor(model_trace.log_prob_sum() - guide_trace.log_prob_sum())

    def log_prior(self, loc: Tensor, flat: Tensor | None = None) -> Tensor:
        """Return the log prior density of the unconstrained latents, in nats."""
        model_trace, guide_trace = self.traces(loc, flat=flat)
        observed = [n for n, s in nodes(model_trace).items() if is_observed(s)]
        return torch.as_tensor(model_trace.log_prob_sum(lambda n, _: n not in observed) - guide_trace.log_prob_sum())

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Isolate the evaluations inside the block from global state."""
        with isolated_store(), quiet():
            yield

    def hessian(self, index: Tensor | None = None) -> Tensor:
        """Return minus the Hessian of the log joint, ``(D, D)`` in float64; it may be indefinite."""
        return _symmetric(-self._hessian(self.log_joint, index))

    def prior(self, flat: Tensor | None = None, index: Tensor | None = None) -> Tensor:
        """Return minus the Hessian of the log prior, ``(D, D)`` in float64; it may be indefinite for hierarchical priors."""
        return _symmetric(-self._hessian(lambda z: self.log_prior(z, flat), index))

    def prior_diagonal(self) -> Tensor:
        """Return the diagonal of :meth:`prior`, ``(D,)`` in float64."""
        with self.evaluating():
            pull = torch.func.vjp(torch.func.grad(self.log_prior), self.loc)[1]
            # Two products with the Hessian tell whether it is diagonal, as it is for independent latents.
            found = -pull(torch.ones_like(self.loc))[0]
            generator = torch.Generator().manual_seed(0)
            signs = torch.where(torch.rand(len(self.loc), generator=generator) < 0.5, -1.0, 1.0).to(self.loc)
            if torch.allclose(-pull(signs)[0] * signs, found, rtol=1e-3, atol=1e-6):
                return found.double()
            chunk = self._chunk()
            ones = torch.arange(len(self.loc), device=self.loc.device)
            row = lambda i: pull((ones == i).to(self.loc))[0].index_select(0, i.reshape(1)).squeeze(0)  # noqa: E731
            return -torch.vmap(row, chunk_size=chunk)(ones).double()

    def _chunk(self) -> int:
        return max(1, _ELEMENTS_PER_CHUNK // max(len(self.loc), 64 * max(self.data.size, 1)))

    def _hessian(self, function: Callable[[Tensor], Tensor], index: Tensor | None = None) -> Tensor:
        eye = torch.eye(len(self.loc), dtype=self.loc.dtype, device=self.loc.device)
        with self.evaluating():
            # Reverse over reverse: forward mode gives 0-d float32 tensors float64 tangents (seen in torch 2.13).
            pull = torch.func.vjp(torch.func.grad(function), self.loc)[1]
            if index is None:
                return torch.vmap(lambda v: pull(v)[0], chunk_size=self._chunk())(eye).double()
            return torch.vmap(lambda v: pull(v)[0][index], chunk_size=self._chunk())(eye[index]).double()

    def precision(self, flat: Tensor) -> Tensor:
        """Return Gauss-Newton matrix plus prior curvature as a differentiable function of the model's parameters."""
        return self.ggn(flat) + self.prior(flat)

    def outputs(
        self, data: Data, flat: Tensor | None = None
    ) -> tuple[Callable[[Tensor], dict[str, Tensor]], dict[str, Coordinates], dict[str, Tensor]]:
        """Return the map from latents to each observed site's coordinates, those at the optimum, and the sites' scales."""

        def function(loc: Tensor) -> dict[str, Tensor]:
            trace, _ = self.traces(loc, data, flat)
            return {n: coordinates(n, s["fn"]).value for n, s in nodes(trace).items() if is_observed(s)}

        trace, _ = self.traces(self.loc, data, flat)
        observed = {n: s for n, s in nodes(trace).items() if is_observed(s)}
        found = {n: coordinates(n, s["fn"]) for n, s in observed.items()}
        weights = {n: _weight(s) for n, s in observed.items()}
        return function, found, weights

    def ggn(self, flat: Tensor | None = None, index: Tensor | None = None) -> Tensor:
        r"""Return the generalised Gauss-Newton matrix of the likelihood, ``(D, D)`` in float64.

        .. math:: \sum_n J_n^\top F_n J_n

        with :math:`J_n` the Jacobian of data point n's coordinates and :math:`F_n` their Fisher information; positive
        semi-definite.
        """
        size = len(self.loc) if index is None else len(index)
        total = torch.zeros(size, size, dtype=torch.float64, device=self.loc.device)
        with self.evaluating():
            for part in self._parts():
                for full, information in self._jacobians(part, flat):
                    jacobian = full if index is None else full[..., index]
                    product = (information @ jacobian).flatten(0, -2)
                    total = total + (jacobian.flatten(0, -2).T @ product).double()
        return _symmetric(total)

    @torch.no_grad()
    def ggn_diagonal(self) -> Tensor:
        """Return the diagonal of :meth:`ggn`, ``(D,)`` in float64, without forming the matrix."""
        total = torch.zeros(len(self.loc), dtype=torch.float64, device=self.loc.device)
        with self.evaluating():
            for part in self._parts():
                for jacobian, information in self._jacobians(part):
                    total += (jacobian * (information @ jacobian)).flatten(0, -2).sum(0).double()
        return total

    def _jacobians(self, data: Data, flat: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield, per observed site, the Jacobian ``(M, k, D)`` and the scaled Fisher information ``(M, k, k)``."""
        function, found, weights = self.outputs(data, flat)
        size, outputs = len(self.loc), sum(c.value.numel() for c in found.values())
        chunk = max(1, _ELEMENTS_PER_CHUNK // (64 * max(data.size, 1)))
        if size <= outputs:
            push = lambda v: torch.func.jvp(function, (self.loc,), (v,))[1]  # noqa: E731
            eye = torch.eye(size, dtype=self.loc.dtype, device=self.loc.device)
            columns: dict[str, Tensor] = torch.vmap(push, chunk_size=chunk)(eye)
            jacobians = {n: j.movedim(0, -1) for n, j in columns.items()}
        else:
            jacobians = torch.func.jacrev(function, chunk_size=chunk)(self.loc)
        for n, c in found.items():
            k = c.value.shape[-1]
            yield jacobians[n].reshape(-1, k, size).to(self.loc), (c.fisher * weights[n]).reshape(-1, k, k).to(self.loc)

    def _parts(self) -> Iterator[Data]:
        """Yield the data in parts whose Jacobians fit in memory; all at once if latents belong to data points."""
        local = any(
            f.name in self.program.plates
            for n in self.program.latents
            for f in self.program.prototype.nodes[n]["cond_indep_stack"]
        )
        rows = max(1, 4 * _ELEMENTS_PER_CHUNK // max(1, len(self.loc)))
        if local or not self.program.plates or self.data.size <= rows:
            yield self.data
            return
        for start in range(0, self.data.size, rows):
            stop = min(start + rows, self.data.size)
            yield self.data.take(torch.arange(start, stop, device=self.loc.device))

    def kronecker(self, use: LinearUse) -> tuple[Tensor, Tensor]:
        r"""Return the Kronecker factors of one weight matrix's Gauss-Newton block, in float64.

        For :math:`s_n = a_n W` the block :math:`\sum_n a_n a_n^\top \otimes B_n`, with :math:`B_n` the Gauss-Newton matrix
        of the pre-activation, is approximated by :math:`\big(\sum_n a_n a_n^\top\big) \otimes \big(\tfrac1N \sum_n B_n\big)`
        (Martens & Grosse 2015).

        :returns: factors ``(in, in)`` and ``(out, out)``.
        """
        captured: list[Tensor] = []
        size = self.data.size

        def outputs(shift: Tensor) -> dict[str, Tensor]:
            def rules(trace: Trace) -> dict[int, Product]:
                weight = nodes(trace)[use.name]["value"]

                def product(inputs: Tensor, transposed: bool) -> Tensor:
                    if captured or inputs.shape[:-1].numel() != size:
                        raise UnsupportedModelError(
                            f"site {use.name!r} multiplies inputs of shape {tuple(inputs.shape)}{' again' * bool(captured)} "
                            f"for {size} data points; Kronecker factors need one row per data point, multiplied once. Use "
                            "curvature='ggn'"
                        )
                    captured.append(inputs.detach())
                    return apply_weight(inputs, weight, transposed) + shift

                return {id(weight): product}

            trace, _ = self.traces(self.loc, rules=rules)
            return {n: coordinates(n, s["fn"]).value for n, s in nodes(trace).items() if is_observed(s)}

        with self.evaluating():
            _, found, weights = self.outputs(self.data)
            width = nodes(self.program.prototype)[use.name]["value"].shape[0 if use.transposed else 1]
            probe = torch.zeros(self.data.size, width, dtype=self.loc.dtype, device=self.loc.device)
            values, pull = torch.func.vjp(outputs, probe)[:2]
            inputs = captured[0].reshape(-1, captured[0].shape[-1]).double()
            middle = torch.zeros(width, width, dtype=torch.float64, device=self.loc.device)
            for n, c in found.items():
                if c.value.shape[0] != size:
                    raise UnsupportedModelError(
                        f"observed site {n!r} has {c.value.shape[0]} rows for {size} data points; Kronecker factors need "
                        "one each. Use curvature='ggn'"
                    )
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
        return inputs.T @ inputs, middle / self.data.size


def positive_part(matrix: Tensor, floor: float) -> tuple[Tensor, dict[str, Any]]:
    """Raise eigenvalues of a symmetric matrix below ``floor`` to it, and say how many and how far.

    :returns: the repaired matrix and ``{"repaired": count, "min_eigenvalue": smallest before, "floor": floor}``.
    """
    values, vectors = torch.linalg.eigh(matrix)
    low = values < floor
    report = {"repaired": int(low.sum()), "min_eigenvalue": float(values[0]), "floor": floor}
    if not report["repaired"]:
        return matrix, report
    return _symmetric(vectors * values.clamp(min=floor) @ vectors.T), report


def _symmetric(matrix: Tensor) -> Tensor:
    return 0.5 * (matrix + matrix.mT)


def _weight(site: Any) -> Tensor:
    """Return scale times mask of an observed site, to broadcast against its Fisher information."""
    weight = torch.as_tensor(site["scale"])
    if isinstance(site["mask"], Tensor):
        weight = weight * site["mask"]
    return weight.reshape(*weight.shape, *(1,) * (site["fn"].event_dim + 2))
