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

from guides.families.laplace.fisher import Likelihoods, over_data
from guides.families.laplace.hessian import Hessian
from guides.families.laplace.likelihoods import Coordinates, coordinates
from guides.program.data import Data
from guides.program.isolation import quiet
from guides.program.linear import LinearRules, Product
from guides.program.noise import NoiseTape
from guides.program.parameters import isolated_store
from guides.program.program import Program
from guides.program.sites import nodes
from guides.program.vectorise import over_rows

__all__ = ["Curvature", "positive_part", "weight_of"]

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
        likelihoods: Likelihoods = program.guide.likelihoods  # type: ignore[attr-defined]
        self._terms, self._fisher = frozenset(likelihoods.terms), likelihoods.fisher
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
        self,
        loc: Tensor,
        data: Data | None = None,
        flat: Tensor | None = None,
        rules: Rules | None = None,
        index: Tensor | None = None,
    ) -> tuple[Trace, Trace]:
        """Return model and guide traces with the latents at ``loc``.

        :param rules: from the guide's trace to replacements for products with weights; see
            :class:`~guides.program.linear.LinearRules`.
        :param index: positions that ``loc`` holds values for. Sites without any are constants then: what the model makes of
            them alone is computed once, however many directions a derivative is taken in.
        """
        data = data or self.data
        moved = {} if index is None else self._moved(loc, index)
        at = self.at(loc if index is None else self.loc, flat)

        def run() -> tuple[Trace, Trace]:
            with NoiseTape():  # nothing is drawn, but it replaces kernels that cannot be differentiated twice or forwards
                with self.program.guide.moved_to(moved):  # type: ignore[attr-defined]
                    guide_trace = poutine.trace(self.program.guide).get_trace(*data.args, **data.kwargs)
                model = poutine.trace(poutine.replay(self.program.model, trace=guide_trace))
                with LinearRules(rules(guide_trace) if rules else {}):
                    return model.get_trace(*data.args, **data.kwargs), guide_trace

        return self.program.call(at, run)

    def _moved(self, values: Tensor, index: Tensor) -> dict[str, Tensor]:
        """Return the flat unconstrained values of the sites that have positions in ``index``, with those replaced."""
        found = {}
        for name, part in self.program.guide.slices().items():  # type: ignore[attr-defined]
            inside = (index >= part.start) & (index < part.stop)
            if bool(inside.any()):
                where = inside.nonzero().squeeze(-1)
                found[name] = self.loc[part].index_copy(0, index[where] - part.start, values[where])
        return found

    @property
    def everything(self) -> Tensor:
        """All positions of the flat vector, shape ``(D,)``."""
        return torch.arange(len(self.loc), device=self.loc.device)

    @property
    def exact(self) -> bool:
        """Whether there are terms, factors among them, whose exact Hessian stands for the likelihood's curvature."""
        return len(self._terms) > len(self._fisher)

    def _is_exact(self, name: str, _: Any) -> bool:
        return name in self._terms and name not in self._fisher

    def _is_prior(self, name: str, _: Any) -> bool:
        return name not in self._terms

    def log_joint(
        self, loc: Tensor, flat: Tensor | None = None, index: Tensor | None = None, without: frozenset[str] = frozenset()
    ) -> Tensor:
        """Return the log joint density of data and unconstrained latents, in nats.

        :param without: sites to leave out.
        """
        return self._density(lambda n, s: n not in without, loc, flat, index)

    def log_prior(self, loc: Tensor, flat: Tensor | None = None, index: Tensor | None = None) -> Tensor:
        """Return the log prior density of the unconstrained latents, in nats."""
        return self._density(self._is_prior, loc, flat, index)

    def log_likelihood(self, loc: Tensor, flat: Tensor | None = None, index: Tensor | None = None) -> Tensor:
        """Return the log density of the observed sites and factors, in nats."""
        return self._density(lambda n, s: not self._is_prior(n, s), loc, flat, index)

    def _density(self, wanted: Callable[[str, Any], bool], loc: Tensor, flat: Tensor | None, index: Tensor | None) -> Tensor:
        model_trace, guide_trace = self.traces(loc, flat=flat, index=index)
        inside = nodes(model_trace)
        # The guide's density at its point is what the maps to the sites' supports change of the volume.
        volume = guide_trace.log_prob_sum(lambda n, _: n not in inside or wanted(n, inside[n]))
        return torch.as_tensor(model_trace.log_prob_sum(wanted) - volume)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Isolate the evaluations inside the block from global state."""
        with isolated_store(), quiet():
            yield

    def hessian(self, index: Tensor | None = None) -> Tensor:
        """Return minus the Hessian of the log joint, ``(D, D)`` in float64; it may be indefinite."""
        return self._minus_hessian(lambda n, s: True, index)

    def prior(self, flat: Tensor | None = None, index: Tensor | None = None) -> Tensor:
        """Return minus the Hessian of the log prior, ``(D, D)`` in float64; it may be indefinite for hierarchical priors."""
        return self._minus_hessian(self._is_prior, index, flat)

    def exact_terms(self, flat: Tensor | None = None, index: Tensor | None = None) -> Tensor:
        """Return minus the Hessian of factors and of the likelihoods without a known Fisher information, ``(D, D)``."""
        return self._minus_hessian(self._is_exact, index, flat)

    def prior_diagonal(self) -> Tensor:
        """Return the diagonal of :meth:`prior`, ``(D,)`` in float64."""
        return self._minus_hessian_diagonal(self._is_prior)

    def exact_diagonal(self) -> Tensor:
        """Return the diagonal of :meth:`exact_terms`, ``(D,)`` in float64."""
        return self._minus_hessian_diagonal(self._is_exact)

    def _chunk(self, size: int) -> int:
        return max(1, _ELEMENTS_PER_CHUNK // max(size, 64 * max(self.data.size, 1)))

    def _of(self, wanted: Callable[[str, Any], bool], index: Tensor, flat: Tensor | None = None) -> Hessian:
        """Return the Hessian of the log density of the sites that are ``wanted``."""
        return Hessian(lambda z: self._density(wanted, z, flat, index), self.loc[index])

    def _minus_hessian(self, wanted: Callable[[str, Any], bool], index: Tensor | None, flat: Tensor | None = None) -> Tensor:
        index = self.everything if index is None else index
        eye = torch.eye(len(index), dtype=self.loc.dtype, device=self.loc.device)
        with self.evaluating():
            hessian = self._of(wanted, index, flat)
            return _symmetric(-hessian.rows(hessian, eye, self._chunk(len(index))).double())

    def _minus_hessian_diagonal(self, wanted: Callable[[str, Any], bool]) -> Tensor:
        with self.evaluating():
            index = self.everything
            hessian = self._of(wanted, index)
            # Two products with the Hessian tell whether it is diagonal, as a prior's is for independent latents.
            found = -hessian(torch.ones_like(self.loc))
            generator = torch.Generator().manual_seed(0)
            signs = torch.where(torch.rand(len(self.loc), generator=generator) < 0.5, -1.0, 1.0).to(self.loc)
            if torch.allclose(-hessian(signs) * signs, found, rtol=1e-3, atol=1e-6):
                return found.double()
            row = lambda i: hessian((index == i).to(self.loc)).index_select(0, i.reshape(1)).squeeze(0)  # noqa: E731
            return -hessian.rows(row, index, self._chunk(len(index))).double()

    def precision(self, flat: Tensor) -> Tensor:
        """Return all of the curvature as a differentiable function of the model's parameters."""
        return self.ggn(flat) + self._minus_hessian(lambda n, s: n not in self._fisher, None, flat)

    def outputs(
        self, data: Data, flat: Tensor | None = None, index: Tensor | None = None
    ) -> tuple[Callable[[Tensor], dict[str, Tensor]], dict[str, Coordinates], dict[str, Tensor]]:
        """Return the map from latents to the coordinates of every observed site whose Fisher information is known, those at
        the optimum, and the sites' scales."""

        def function(loc: Tensor) -> dict[str, Tensor]:
            trace, _ = self.traces(loc, data, flat, index=index)
            return {n: coordinates(n, over_data(s)).value for n, s in nodes(trace).items() if n in self._fisher}

        trace, _ = self.traces(self.loc, data, flat)
        observed = {n: s for n, s in nodes(trace).items() if n in self._fisher}
        found = {n: coordinates(n, over_data(s)) for n, s in observed.items()}
        return function, found, {n: weight_of(s, found[n]) for n, s in observed.items()}

    def ggn(self, flat: Tensor | None = None, index: Tensor | None = None) -> Tensor:
        r"""Return the generalised Gauss-Newton matrix of the likelihoods whose Fisher information is known, in float64.

        .. math:: \sum_n J_n^\top F_n J_n

        with :math:`J_n` the Jacobian of data point n's coordinates and :math:`F_n` their Fisher information; positive
        semi-definite, shape ``(D, D)``.
        """
        index = self.everything if index is None else index
        total = torch.zeros(len(index), len(index), dtype=torch.float64, device=self.loc.device)
        with self.evaluating():
            for part in self._parts(len(index)):
                for jacobian, information in self._jacobians(part, flat, index):
                    product = (information @ jacobian).flatten(0, -2)
                    total = total + (jacobian.flatten(0, -2).T @ product).double()
        return _symmetric(total)

    def product(self, index: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the product of vectors ``(K,)`` with Gauss-Newton matrix plus prior curvature, without forming it.

        To be used inside :meth:`evaluating`.
        """
        rest = self._of(lambda n, s: n not in self._fisher, index)
        at, parts = self.loc[index], [self.outputs(part, None, index) for part in self._parts(len(index))]
        informations = [{n: c.fisher * weights[n] for n, c in found.items()} for _, found, weights in parts]

        def multiply(vector: Tensor) -> Tensor:
            total = -rest(vector)
            for (function, found, _), information in zip(parts, informations):
                if found:
                    slopes = torch.func.jvp(function, (at,), (vector,))[1]
                    _, pull = torch.func.vjp(function, at)[:2]
                    inner = {n: (information[n] @ v.unsqueeze(-1)).squeeze(-1).to(v) for n, v in slopes.items()}
                    total = total + pull(inner)[0]
            return total

        return multiply

    @torch.no_grad()
    def ggn_diagonal(self) -> Tensor:
        """Return the diagonal of :meth:`ggn`, ``(D,)`` in float64, without forming the matrix."""
        total = torch.zeros(len(self.loc), dtype=torch.float64, device=self.loc.device)
        with self.evaluating():
            for part in self._parts(len(self.loc)):
                for jacobian, information in self._jacobians(part, None, self.everything):
                    total += (jacobian * (information @ jacobian)).flatten(0, -2).sum(0).double()
        return total

    def _jacobians(self, data: Data, flat: Tensor | None, index: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield, per observed site, the Jacobian ``(M, k, D)`` and the scaled Fisher information ``(M, k, k)``."""
        function, found, weights = self.outputs(data, flat, index)
        if not found:
            return
        at, size, outputs = self.loc[index], len(index), sum(c.value.numel() for c in found.values())
        chunk = max(1, _ELEMENTS_PER_CHUNK // (64 * max(data.size, 1)))
        jacobians = _forward(function, at, chunk) if size <= outputs else None
        if jacobians is None:
            jacobians = _backward(function, at, chunk)
        for n, c in found.items():
            k = c.value.shape[-1]
            yield jacobians[n].reshape(-1, k, size).to(self.loc), (c.fisher * weights[n]).reshape(-1, k, k).to(self.loc)

    def _parts(self, size: int | None = None) -> Iterator[Data]:
        """Yield the data in parts whose Jacobians, by ``size`` latents, fit in memory; all at once if latents belong to data
        points."""
        local = any(
            f.name in self.program.plates
            for n in self.program.latents
            for f in self.program.prototype.nodes[n]["cond_indep_stack"]
        )
        rows = max(1, 4 * _ELEMENTS_PER_CHUNK // max(1, size or len(self.loc)))
        if local or not self.program.plates or self.data.size <= rows:
            yield self.data
            return
        for start in range(0, self.data.size, rows):
            stop = min(start + rows, self.data.size)
            yield self.data.take(torch.arange(start, stop, device=self.loc.device))


def _forward(function: Callable[[Tensor], dict[str, Tensor]], at: Tensor, chunk: int) -> dict[str, Tensor] | None:
    """Return the Jacobian, one latent after the other; ``None`` where an operation has no forward derivative."""
    eye = torch.eye(len(at), dtype=at.dtype, device=at.device)
    push = lambda v: torch.func.jvp(function, (at,), (v,))[1]  # noqa: E731
    try:
        columns: dict[str, Tensor] = over_rows(push, eye, chunk, "latents")
    except NotImplementedError as error:
        if "forward" not in str(error):
            raise
        return None
    return {n: j.movedim(0, -1) for n, j in columns.items()}


def _backward(function: Callable[[Tensor], dict[str, Tensor]], at: Tensor, chunk: int) -> dict[str, Tensor]:
    """Return the Jacobian, one output after the other."""
    values, pull = torch.func.vjp(function, at)[:2]
    found = {}
    for name, value in values.items():
        rest = {m: torch.zeros_like(v) for m, v in values.items() if m != name}
        eye = torch.eye(value.numel(), dtype=value.dtype, device=value.device).reshape(-1, *value.shape)
        row = lambda v, name=name, rest=rest: pull({**rest, name: v})[0]  # noqa: E731
        rows: Tensor = over_rows(row, eye, chunk, "outputs")
        found[name] = rows.reshape(*value.shape, len(at))
    return found


def positive_part(matrix: Tensor, floor: float) -> tuple[Tensor, dict[str, Any]]:
    """Raise eigenvalues of a symmetric matrix below ``floor`` to it, and say how many and how far.

    :returns: the repaired matrix and ``{"repaired": count, "min_eigenvalue": smallest before, "floor": floor}``.
    """
    values, vectors = torch.linalg.eigh(matrix)
    floor = max(floor, len(matrix) * torch.finfo(matrix.dtype).eps * float(values[-1]))  # less is rounding
    low = values < floor
    report = {"repaired": int(low.sum()), "min_eigenvalue": float(values[0]), "floor": floor}
    if not report["repaired"]:
        return matrix, report
    return _symmetric(vectors * values.clamp(min=floor) @ vectors.T), report


def _symmetric(matrix: Tensor) -> Tensor:
    return 0.5 * (matrix + matrix.mT)


def weight_of(site: Any, found: Coordinates) -> Tensor:
    """Return scale times mask of an observed site, to broadcast against its Fisher information."""
    weight = torch.as_tensor(site["scale"])
    if site["mask"] is not None:
        weight = weight * torch.as_tensor(site["mask"])
    return weight.reshape(*weight.shape, *(1,) * (found.value.dim() + 1 - len(over_data(site).batch_shape)))
