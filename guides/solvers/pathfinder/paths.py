"""Multi-path Pathfinder on any log density."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from guides.errors import NonFiniteLossError
from guides.solvers.pathfinder.normals import PathNormals
from guides.solvers.pathfinder.search import Evaluate, Paths

__all__ = ["Found", "default_history", "find_paths", "rank_of"]

_TRIES = 100
_REACH, _NEAR = 2.0, 0.2  # paths start uniformly within so much of the start, or where nothing is finite, so much
_WEIGHING = 100  # draws of each path's normal by which the paths are weighed
_PATIENCE = 50  # steps of a path after its best normal
_FEWEST, _MOST, _NUMBERS = 10, 100, 20_000  # steps that are remembered, and numbers of a path's steps in all
_ROUNDS = 20  # evaluations for each iteration, at most


@dataclass(frozen=True)
class Found:
    r"""The best normal of each path, and the mixture of them, :math:`q = \sum_p w_p\, \mathcal{N}_p`.

    :ivar normals: one per path that found one.
    :ivar log_weights: :math:`\log w_p`, ``(P,)``.
    :ivar elbo: of each normal by itself, in nats, ``(P,)``.
    :ivar iterations: of L-BFGS up to the best normal, ``(P,)``.
    :ivar gradients: evaluations of log density and gradient by L-BFGS, all paths together.
    :ivar densities: evaluations of the log density at draws.
    """

    normals: PathNormals
    log_weights: Tensor
    elbo: Tensor
    iterations: Tensor
    gradients: int
    densities: int

    @property
    def best(self) -> int:
        """The path of the largest weight."""
        return int(self.log_weights.argmax())


def find_paths(
    evaluate: Evaluate,
    start: Tensor,
    *,
    paths: int = 8,
    iterations: int = 500,
    history: int | None = None,
    elbo_draws: int = 10,
    seed: int = 0,
) -> Found:
    """Follow L-BFGS from many starts, and keep of each path the normal with the largest ELBO.

    :param evaluate: log density and gradient of vectors ``(B, D)``.
    :param start: a point ``(D,)`` near which paths start.
    :param paths: their number; ``iterations``: most steps of each; ``history``: steps whose curvature is remembered, by
        default as :func:`default_history` says;
        ``elbo_draws``: for the ELBO of each normal on the way, the same noise for all of a path.
    :raises NonFiniteLossError: if no start, or no normal on any path, has a finite density.
    """
    source = torch.Generator().manual_seed(seed % 2**63)
    starts, tried = _starts(evaluate, start, paths, source)
    count, size = starts.shape
    search = Paths(evaluate, starts, default_history(size) if history is None else history)
    noise = torch.randn(elbo_draws, 1, size, generator=source, dtype=torch.float64)
    best = _Best(starts, rank_of(size, history))
    for _ in range(_ROUNDS * iterations):
        if bool(search.over.all()):
            break
        moved, normals = search.advance()
        if len(moved):
            best.offer(moved, normals, _elbo(evaluate, normals, noise), search.iterations[moved])
        idle = torch.isfinite(best.elbo) & (search.iterations - best.at > _PATIENCE)
        search.over |= idle | (search.iterations >= iterations)
    found = torch.isfinite(best.elbo).nonzero().squeeze(-1)
    if not len(found):
        raise NonFiniteLossError(
            f"none of the normals along {count} paths of L-BFGS has a finite ELBO: the density is zero in much of the "
            "space that they cover, or falls off faster than it can be computed. Standardise the data, or bound latents by "
            "their supports instead of by factors"
        )
    more = torch.randn(_WEIGHING, len(found), size, generator=source, dtype=torch.float64)
    log_weights, elbo = _weigh(evaluate, best.normals[found], more)
    return Found(
        normals=best.normals[found],
        log_weights=log_weights,
        elbo=elbo,
        iterations=best.at[found],
        gradients=tried + search.evaluations,
        densities=elbo_draws * best.offered + _WEIGHING * len(found),
    )


class _Best:
    """The normal of the largest ELBO of each path, so far."""

    def __init__(self, starts: Tensor, rank: int) -> None:
        count, size = starts.shape
        basis = starts.new_zeros(count, size, rank)
        core = torch.eye(rank, dtype=starts.dtype).repeat(count, 1, 1)
        self.normals = PathNormals(torch.zeros_like(starts), torch.ones_like(starts), basis, core)
        self.elbo = starts.new_full((count,), -math.inf)
        self.at, self.offered = torch.zeros(count, dtype=torch.long), 0

    def offer(self, paths: Tensor, normals: PathNormals, elbo: Tensor, iterations: Tensor) -> None:
        """Take normals that are better than those before."""
        self.offered += len(paths)
        better = elbo > self.elbo[paths]
        which = paths[better]
        self.normals.put(which, normals[better])
        self.elbo[which], self.at[which] = elbo[better], iterations[better]


def default_history(size: int) -> int:
    """Return how many steps are remembered in D dimensions: nearly all where these are few, ten where they are many."""
    return max(_FEWEST, min(4 * size, _MOST, _NUMBERS // size))


def rank_of(size: int, history: int | None) -> int:
    """Return in how many directions a normal of D dimensions is no diagonal."""
    return min(size, 2 * (default_history(size) if history is None else history))


def _starts(evaluate: Evaluate, start: Tensor, paths: int, source: torch.Generator) -> tuple[Tensor, int]:
    """Return points ``(P, D)`` where density and gradient are finite, and how many were tried.

    :raises NonFiniteLossError: if there is none; fewer than asked for are repeated.
    """
    tried, good = 0, start.new_zeros(0, len(start))
    for attempt in range(2 * _TRIES):
        reach = _REACH if attempt < _TRIES else _NEAR
        noise = torch.rand(paths, len(start), generator=source, dtype=torch.float64)
        points = start + reach * (2.0 * noise - 1.0)
        value, gradient = evaluate(points)
        tried += paths
        good = torch.cat([good, points[torch.isfinite(value) & torch.isfinite(gradient).all(-1)]])
        if len(good) >= paths:
            return good[:paths], tried
    if not len(good):
        raise NonFiniteLossError(
            f"the log density is not finite at any of {tried} starts around medians of the prior; is a latent bounded by "
            "data, or a scale of the data far from 1? Give the model a prior that covers the data, or standardise them"
        )
    return good, tried


def _log_density(evaluate: Evaluate, z: Tensor) -> Tensor:
    """Return the log density at points ``(K, P, D)``, minus infinity where it is none."""
    value = evaluate(z.reshape(-1, z.shape[-1]))[0].reshape(z.shape[:-1])
    return torch.where(torch.isfinite(value), value, -math.inf)


def _elbo(evaluate: Evaluate, normals: PathNormals, noise: Tensor) -> Tensor:
    z, log_q = normals.draws(noise)
    return (_log_density(evaluate, z) - log_q).mean(0)


def _weigh(evaluate: Evaluate, normals: PathNormals, noise: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return log weights of a mixture of the normals, and the ELBO of each.

    One step of mirror ascent on the ELBO of the mixture, from equal weights:
    :math:`w_p \propto \exp \mathbb{E}_{q_p} \log (p / \bar q)`. Of modes that are apart it makes what each holds, of paths
    that end in the same place equal weights, and none of a path that ended nowhere.
    """
    z, log_q = normals.draws(noise)
    log_p = _log_density(evaluate, z)
    count = len(normals.loc)
    mixed = torch.logsumexp(normals.log_prob(z.reshape(-1, z.shape[-1])), -1).reshape(log_p.shape) - math.log(count)
    gain = (log_p - mixed).mean(0)
    if not bool(torch.isfinite(gain).any()):  # the few draws on the way were finite, and some of many are not
        gain = torch.nan_to_num(log_p - mixed, nan=-1e30, neginf=-1e30).mean(0)
    return torch.log_softmax(gain, 0), (log_p - log_q).mean(0)
