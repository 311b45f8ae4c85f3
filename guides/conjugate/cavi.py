"""Coordinate-ascent variational inference in closed form."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from _posterior_zoo_registry.extras import needs
from guides.conjugate.structure import ConjugatePosterior, ConjugateStructure, Natural, rows_per_chunk
from guides.errors import DataError, OptionError, UnsupportedModelError
from guides.program.data import Data
from guides.program.progress import shows_progress

__all__ = ["cavi"]

_ROUNDING = 1e-8


def cavi(
    model: Callable[..., Any],
    x: Tensor,
    *,
    init: str | Tensor = "kmeans",
    restarts: int = 1,
    max_iterations: int = 1000,
    tolerance: float = 1e-7,
    seed: int = 0,
    progress: bool | None = None,
) -> ConjugatePosterior:
    r"""Find the mean-field posterior of a conditionally conjugate mixture by coordinate ascent in closed form.

    .. math::
        q(\theta) \leftarrow \text{natural parameters } \chi = \chi_0 + \sum_n E_{q(z_n)}[t(x_n, z_n)], \qquad
        q(z_n = k) \leftarrow \operatorname{softmax}_k E_{q(\theta)}[\log p(x_n, z_n = k \mid \theta)]

        \mathrm{ELBO} = A(\chi) - A(\chi_0) + \sum_n H[q(z_n)] + \sum_n \log h(x_n)

    Each update is the optimum of its factor given the other, so the ELBO (here after the update of :math:`q(\theta)`) never
    decreases. There is no learning rate and no Monte Carlo noise; the optimum is a local one. Computed in float64 on the
    device of ``x``; restarts run side by side and leave the computation when they have converged.

    :param model: a model with a method ``conjugate(x)`` that returns its
        :class:`~guides.conjugate.structure.ConjugateStructure`, such as
        ``zoo.GaussianMixture`` and ``zoo.DirichletProcessMixture``.
    :param x: data, data points first.
    :param init: first responsibilities: ``"kmeans"`` (scikit-learn's, from another seed for each restart), ``"random"``
        (each row to the nearest of K rows drawn without replacement), labels ``(N,)`` or responsibilities ``(N, K)``. The
        first two order their clusters by size, which stick-breaking weights prefer.
    :param restarts: R; the one with the highest ELBO is returned, the history of all is kept.
    :param max_iterations: updates of both factors at most.
    :param tolerance: stop when the ELBO rises by less than this share of its absolute value.
    :param seed: of the initialisation; restart r has ``seed + r``.
    :param progress: show a progress bar; by default if standard error is a terminal.
    :raises DataError: for values that are not finite, fewer data points than components, and data of another shape than the
        model's.
    :raises OptionError: for an option that makes no sense.
    :raises UnsupportedModelError: if the model offers no conjugate structure, or one whose updates lower the ELBO.

    References: Attias (2000), *A variational Bayesian framework for graphical models*; Beal (2003), *Variational algorithms
    for approximate Bayesian inference*; Blei, Kucukelbir & McAuliffe (2017), *Variational inference: a review for
    statisticians*.

    Example::

        >>> import torch, zoo, guides
        >>> x = torch.cat([torch.randn(50, 2) - 4, torch.randn(50, 2) + 4])
        >>> posterior = guides.cavi(zoo.GaussianMixture(2, in_features=2), x)
        >>> posterior.converged, posterior.labels.bincount().tolist()
        (True, [50, 50])
        >>> bool((posterior.elbos.diff() >= -1e-8 * abs(posterior.elbo)).all())
        True
    """
    start = time.perf_counter()
    _check_options(restarts, max_iterations, tolerance)
    x = Data.of((x,)).without_gaps().args[0]
    structure = _structure(model, x)
    with torch.no_grad():
        rows = structure.rows(x)
        first = _initial(structure, rows, init, restarts, seed)
        ready = time.perf_counter()
        show = shows_progress(progress)
        natural, elbos, converged = _ascend(structure, rows, first, max_iterations, tolerance, show)
        iterations = (elbos.isfinite().sum(1) - 1).tolist()
        best = int(elbos.gather(1, elbos.isfinite().sum(1, keepdim=True) - 1).argmax())
        chosen = {name: value[best] for name, value in natural.items()}
        one = {name: value.unsqueeze(0) for name, value in chosen.items()}
        pieces = rows.split(rows_per_chunk(rows, first.shape[1]), -1)
        responsibilities = torch.cat([structure.expected_log_joint(piece, one)[0] for piece in pieces], -1).softmax(0)
    reasons = tuple(
        f"the ELBO rose by less than {tolerance:g} of its value" if done else f"all {max_iterations} iterations were run"
        for done in converged
    )
    return ConjugatePosterior(
        model=model,
        natural=chosen,
        responsibilities=responsibilities.mT.contiguous(),
        elbos=elbos,
        best=best,
        iterations=tuple(iterations),
        stop_reasons=reasons,
        converged=converged[best],
        seconds={"setup": ready - start, "train": time.perf_counter() - ready},
        seed=seed,
        data=x,
        structure=structure,
    )


def _check_options(restarts: int, max_iterations: int, tolerance: float) -> None:
    if not restarts >= 1:
        raise OptionError(f"restarts must be at least 1, not {restarts!r}")
    if not max_iterations >= 1:
        raise OptionError(f"max_iterations must be at least 1, not {max_iterations!r}")
    if not 0 <= tolerance < 1:
        raise OptionError(f"tolerance is a share of the ELBO, from 0 to below 1, not {tolerance!r}")


def _structure(model: Callable[..., Any], x: Tensor) -> ConjugateStructure:
    conjugate = getattr(model, "conjugate", None)
    if conjugate is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no method conjugate(x), so there are no updates in closed form; use guides.fit, or "
            "give the model a guides.conjugate.structure.ConjugateStructure"
        )
    try:
        structure: ConjugateStructure = conjugate(x)
    except ValueError as error:
        raise DataError(str(error)) from error
    return structure


def _initial(structure: ConjugateStructure, rows: Tensor, init: str | Tensor, restarts: int, seed: int) -> Tensor:
    """Return responsibilities ``(R, K, N)``."""
    size, count = rows.shape[-1], structure.expected_log_joint(rows[..., :1], structure.prior).shape[1]
    if count > size:
        raise DataError(f"{size} data points for {count} components; use at most one component for each data point")
    if isinstance(init, Tensor):
        return _given(init, size, count, rows).expand(restarts, count, size)
    starts = {"kmeans": _kmeans, "random": _nearest}
    if init not in starts:
        raise OptionError(f"init={init!r} is not known; use {', '.join(map(repr, starts))}, labels or responsibilities")
    points = rows.reshape(-1, size).mT
    labels = torch.stack([starts[init](points, count, seed + r) for r in range(restarts)])
    hot = torch.nn.functional.one_hot(labels, count).to(rows).mT
    by_size = hot.sum(-1).argsort(dim=-1, descending=True, stable=True)
    return hot.take_along_dim(by_size.unsqueeze(-1), 1)


def _given(init: Tensor, size: int, count: int, rows: Tensor) -> Tensor:
    """Return the responsibilities that the user gave, as ``(K, N)``."""
    if init.dim() == 1 and not init.dtype.is_floating_point:
        if len(init) != size or not 0 <= int(init.min()) <= int(init.max()) < count:
            raise OptionError(
                f"init as labels needs {size} whole numbers from 0 to {count - 1}, got shape {tuple(init.shape)}"
            )
        return torch.nn.functional.one_hot(init.long(), count).to(rows).mT
    given = init.to(rows)
    if given.shape != (size, count) or not (given >= 0).all() or not torch.allclose(given.sum(-1), given.new_ones(size)):
        raise OptionError(
            f"init as responsibilities needs shape ({size}, {count}), no negative value and rows that sum to one, got shape "
            f"{tuple(init.shape)}"
        )
    return given.mT


def _kmeans(points: Tensor, count: int, seed: int) -> Tensor:
    with needs("data", "k-means, which cavi starts from unless it is told init="):
        from sklearn.cluster import KMeans

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fewer distinct points than clusters: the others start empty
        labels = KMeans(count, n_init=1, random_state=seed).fit(points.cpu().numpy()).labels_
    return torch.as_tensor(labels, dtype=torch.long, device=points.device)


def _nearest(points: Tensor, count: int, seed: int) -> Tensor:
    chosen = torch.randperm(len(points), generator=torch.Generator().manual_seed(seed))[:count]
    return torch.cdist(points, points[chosen.to(points.device)]).argmin(-1)


def _ascend(
    structure: ConjugateStructure, rows: Tensor, first: Tensor, max_iterations: int, tolerance: float, progress: bool
) -> tuple[Natural, Tensor, list[bool]]:
    """Return natural parameters, the ELBO's history and which restarts converged."""
    restarts, count, _ = first.shape
    offset = structure.log_base(rows) - structure.log_normaliser(structure.prior)
    chunk = rows_per_chunk(rows, restarts * count)
    statistics, entropy = None, rows.new_zeros(restarts)
    for piece, given in zip(rows.split(chunk, -1), first.split(chunk, -1)):
        statistics = _add(statistics, structure.statistics(piece, given))
        entropy = entropy + torch.special.entr(given).sum((-2, -1))
    natural = _add(structure.prior, statistics or {})
    elbos = rows.new_full((restarts, max_iterations + 1), torch.nan)
    elbos[:, 0] = structure.log_normaliser(natural) + entropy + offset
    running = torch.arange(restarts, device=rows.device)
    converged = [False] * restarts
    with tqdm(total=max_iterations, desc="cavi", disable=not progress) as bar:
        for iteration in range(1, max_iterations + 1):
            now = {name: value[running] for name, value in natural.items()}
            statistics, entropy = _sweep(structure, rows, now, rows_per_chunk(rows, len(running) * count))
            now = _add(structure.prior, statistics)
            before, after = elbos[running, iteration - 1], structure.log_normaliser(now) + entropy + offset
            _check_rise(before, after)
            elbos[running, iteration] = after
            for name, value in natural.items():
                value[running] = now[name]
            done = after - before <= tolerance * after.abs()
            for index in running[done].tolist():
                converged[index] = True
            running = running[~done]
            bar.update()
            bar.set_postfix(elbo=f"{float(after.max()):.6g}", refresh=False)
            if not len(running):
                break
    return natural, elbos[:, : int(elbos.isfinite().sum(1).max())], converged


def _sweep(structure: ConjugateStructure, rows: Tensor, natural: Natural, chunk: int) -> tuple[Natural, Tensor]:
    """Update the responsibilities, and return the statistics under them and their entropies ``(R,)``, rows by rows."""
    statistics: Natural | None = None
    entropy = rows.new_zeros(())
    for piece in rows.split(chunk, -1):
        relative = structure.expected_log_joint(piece, natural)
        relative = relative - relative.amax(-2, keepdim=True)
        weights = relative.exp()
        total = weights.sum(-2, keepdim=True)
        responsibilities = weights / total
        entropy = entropy + total.log().sum((-2, -1)) - (responsibilities * relative).sum((-2, -1))
        statistics = _add(statistics, structure.statistics(piece, responsibilities))
    return statistics or {}, entropy


def _add(one: Natural | None, other: Natural) -> Natural:
    return other if one is None else {name: value + other[name] for name, value in one.items()}


def _check_rise(before: Tensor, after: Tensor) -> None:
    fallen = ~(after - before >= -_ROUNDING * before.abs())
    if bool(fallen.any()):
        index = int(fallen.nonzero()[0])
        raise UnsupportedModelError(
            f"the ELBO fell from {float(before[index]):.10g} to {float(after[index]):.10g} nats, which exact updates cannot "
            "do: the model's statistics, log_normaliser and expected_log_joint do not belong together, or the data "
            "are too badly scaled for float64"
        )
