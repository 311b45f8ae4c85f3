"""The posterior that Laplace returns: a normal around the mode with the structure of the curvature."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro import poutine
from torch import Tensor, nn

from guides.distributions.normals import Block, BlockNormal
from guides.errors import UnsupportedModelError
from guides.families.base import (
    FlatFamily,
    init_function,
)
from guides.families.laplace.curvature import Curvature, positive_part
from guides.families.laplace.evidence import SMALLEST_PRECISION
from guides.families.laplace.kronecker import kronecker
from guides.program.isolation import seeded
from guides.program.sites import nodes
from guides.program.supports import is_unconstrained, unconstraining

__all__ = ["LaplaceNormal"]

_PRIOR_DRAWS = 400


_Factorised = tuple[tuple[Tensor, ...], float, dict[str, Any]]
"""A block's factors, the log determinant of its precision, and what was repaired."""


class LaplaceNormal(FlatFamily):
    """The normal that :class:`guides.Laplace`, its parent, ends in; a guide in its own right."""

    def __init__(self, parent: Any) -> None:
        super().__init__(parent.plain_model, create_plates=parent.create_plates, init_loc_fn=init_function("median"))
        self._parent = (parent,)
        self.linearised = False  # until the parent has seen the model
        self.blocks: tuple[Block, ...] | None = None

    def _lay_out(self, *args: Any, **kwargs: Any) -> None:
        """Choose the blocks of the covariance."""
        parent = self._parent[0]
        if parent.prototype_trace is None:
            with poutine.block():  # this runs inside whatever traces the guide's first call
                parent(*args, **kwargs)
        self.linearised = parent.linearised
        slices = parent.slices()
        index = {n: torch.arange(s.start, s.stop, device=parent.loc.device) for n, s in slices.items()}
        fixed = [n for n in slices if n not in parent.chosen]
        blocks: list[Block] = []
        if parent.curvature == "kron":
            for n in parent.chosen:
                shape = tuple(parent.unconstrained_shape(n))
                factored = n in parent.uses and is_unconstrained(parent.latent_site_prototype(n))
                blocks.append(Block(n, index[n], "kron" if factored else "dense", shape))
        else:
            kind = "diagonal" if parent.curvature == "diagonal" else "dense"
            blocks.append(Block("latent", torch.cat([index[n] for n in parent.chosen]), kind))
        if fixed:
            blocks.append(Block("fixed", torch.cat([index[n] for n in fixed]), "fixed"))
        self.blocks = tuple(blocks)

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        self._lay_out(*args, **kwargs)
        assert self.blocks is not None
        self.loc = nn.Parameter(self._init_loc())
        for i, block in enumerate(self.blocks):
            for j, shape in enumerate(block.factor_shapes):
                start = torch.eye(shape[0]) if len(shape) == 2 and shape[0] == shape[1] else torch.ones(shape)
                setattr(self, f"factor_{i}_{j}", nn.Parameter(start.to(self.loc)))

    def _factors(self) -> tuple[tuple[Tensor, ...], ...]:
        assert self.blocks is not None
        return tuple(
            tuple(getattr(self, f"factor_{i}_{j}") for j in range(len(b.factor_shapes))) for i, b in enumerate(self.blocks)
        )

    def get_posterior(self, *args: Any, **kwargs: Any) -> BlockNormal:
        """Return the normal over the flat unconstrained latents."""
        assert self.blocks is not None
        return BlockNormal(self.loc, self.blocks, self._factors())

    def _loc_scale(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return self.loc, self.get_posterior().variance.sqrt()

    def named_factors(self, loc: Tensor, factors: list[tuple[Tensor, ...]]) -> dict[str, Tensor]:
        """Return the guide's parameters by name."""
        named = {f"{self._pyro_name}.loc": loc}
        for i, group in enumerate(factors):
            for j, value in enumerate(group):
                named[f"{self._pyro_name}.factor_{i}_{j}"] = value.to(loc.dtype)
        return named

    def factorise(self, at: Curvature) -> tuple[list[tuple[Tensor, ...]], dict[str, Any]]:
        """Return the factors of every block, and what had to be repaired on the way."""
        assert self.blocks is not None
        report: dict[str, Any] = {"repaired": 0, "prior_repaired": 0, "min_eigenvalue": math.inf, "log_det": 0.0}
        report["floor"], report["dimension"] = math.inf, 0
        factors: list[tuple[Tensor, ...]] = []
        for block in self.blocks:
            if block.kind == "fixed":
                factors.append(())
                continue
            make = {"diagonal": self._diagonal, "dense": self._dense, "kron": self._kronecker}[block.kind]
            group, log_det, found = make(at, block)
            factors.append(group)
            report["repaired"] += found["repaired"]
            report["prior_repaired"] += found.get("prior_repaired", 0)
            report["min_eigenvalue"] = min(report["min_eigenvalue"], found["min_eigenvalue"])
            report["floor"] = min(report["floor"], found["floor"])
            report["log_det"] += log_det
            report["dimension"] += len(block.index)
        return factors, report

    def _floor(self, smallest: float, diagonal: Tensor, at: Curvature, block: Block) -> float:
        """Return the smallest precision to allow.

        :param smallest: the prior's smallest precision. If it is not positive, as on the shoulder of a scale mixture, the
            spread of its draws tells how wide it is; under flat priors, which have none, the diagonal of all of the
            precision at least tells the latents' scales.
        """
        asked = self._parent[0].floor
        if asked:
            return asked
        if smallest > 0:
            return 0.99 * smallest
        widest = float(_prior_spread(at)[block.index].max())
        if 0 < widest < math.inf:
            return 0.99 / widest**2
        inside = diagonal[diagonal > 0]
        return SMALLEST_PRECISION * (float(inside.min()) if len(inside) else 1.0)

    def _diagonal(self, at: Curvature, block: Block) -> _Factorised:
        prior = at.prior_diagonal()[block.index]
        value = at.ggn_diagonal()[block.index] + prior
        if at.exact:
            value = value + at.exact_diagonal()[block.index]
        value, prior = _finite(value, block, at), prior.detach()
        value, found = _clamped(value, self._floor(float(prior.min()), value, at, block))
        return (value.rsqrt(),), float(value.log().sum()), found

    def _dense(self, at: Curvature, block: Block) -> _Factorised:
        prior = _finite(at.prior(index=block.index), block, at)
        smallest = float(torch.linalg.eigvalsh(prior)[0])
        if self._parent[0].curvature == "hessian":
            data = at.hessian(block.index) - prior
        else:
            data = at.ggn(index=block.index)
            if at.exact:
                data = data + at.exact_terms(index=block.index)
        data = _finite(data, block, at)
        total = data + prior
        # An indefinite prior says nothing about how wide it is; its diagonal at least says how wide each latent is.
        floor = self._floor(smallest if smallest > 0 else float(prior.diagonal().min()), total.diagonal(), at, block)
        matrix, found = positive_part(total, floor)
        if found["repaired"] and smallest < 0 and self._parent[0].curvature != "hessian":
            positive, repair = positive_part(prior, 0.0)
            matrix, found = positive_part(data + positive, floor)
            found["prior_repaired"] = repair["repaired"]
        tril, log_det = _inverse_cholesky(matrix)
        return (tril,), log_det, found

    def _kronecker(self, at: Curvature, block: Block) -> _Factorised:
        use = self._parent[0].uses[block.name]
        left, right = kronecker(at, use)
        if use.transposed:
            left, right = right, left
        prior = _finite(at.prior_diagonal()[block.index], block, at).mean()
        a, u = torch.linalg.eigh(_finite(left, block, at))
        b, v = torch.linalg.eigh(_finite(right, block, at))
        value = a.clamp(min=0)[:, None] * b.clamp(min=0)[None, :] + prior
        value, found = _clamped(value, self._floor(float(prior), value.reshape(-1), at, block))
        return (u, v, value.rsqrt()), float(value.log().sum()), found


def _prior_spread(at: Curvature) -> Tensor:
    """Return half of the width that 68% of every latent's prior draws have, given the others at the optimum, ``(D,)``.

    It is infinite for latents whose prior cannot be drawn from.
    """
    spread = torch.full_like(at.loc, math.inf)
    slices: dict[str, slice] = at.program.guide.slices()  # type: ignore[attr-defined]
    with at.evaluating(), seeded(0), torch.no_grad():
        sites = nodes(at.traces(at.loc)[0])
        for name, part in slices.items():
            site = sites[name]
            try:
                draws = site["fn"].sample((_PRIOR_DRAWS,))
            except NotImplementedError:
                continue
            flat = unconstraining(site).inv(draws).reshape(_PRIOR_DRAWS, -1).to(at.loc)
            ordered = flat.sort(0).values  # torch.quantile takes no more than 16 million numbers
            spread[part] = 0.5 * (ordered[-_PRIOR_DRAWS * 4 // 25] - ordered[_PRIOR_DRAWS * 4 // 25])
    return spread


def _finite(matrix: Tensor, block: Block, at: Curvature) -> Tensor:
    """Return a block's matrix.

    :raises UnsupportedModelError: if it is not finite, naming the sites.
    """
    if bool(torch.isfinite(matrix).all()):
        return matrix.detach()
    wrong = (~torch.isfinite(matrix)).reshape(len(matrix), -1).any(-1)
    slices: dict[str, slice] = at.program.guide.slices()  # type: ignore[attr-defined]
    inside = block.index[wrong] if len(wrong) == len(block.index) else block.index
    names = [n for n, s in slices.items() if bool(((inside >= s.start) & (inside < s.stop)).any())]
    raise UnsupportedModelError(
        f"the curvature of latent {', '.join(map(repr, names))} at the optimum is not finite, so it has no Laplace "
        "approximation. Are the data or the prior's scale far from 1? Rescale them, or use a guide that takes no second "
        "derivatives, such as 'full_rank'"
    )


def _clamped(precision: Tensor, floor: float) -> tuple[Tensor, dict[str, Any]]:
    """Raise elements below ``floor`` to it, and say how many and how far."""
    found = {"repaired": int((precision < floor).sum()), "min_eigenvalue": float(precision.min()), "floor": floor}
    return precision.clamp(min=floor), found


def _inverse_cholesky(matrix: Tensor) -> tuple[Tensor, float]:
    """Return the lower Cholesky factor of the inverse of a positive definite matrix, and its log determinant."""
    flipped = torch.linalg.cholesky(matrix.flip(0, 1)).flip(0, 1)  # upper U with U U^T = matrix
    eye = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    return torch.linalg.solve_triangular(flipped, eye, upper=True).T, float(2 * flipped.diagonal().log().sum())
