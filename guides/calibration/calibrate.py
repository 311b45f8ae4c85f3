"""Simulation-based calibration of a guide, over many data sets in one vectorised fit."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from guides.calibration.bands import Band, ecdf_band
from guides.calibration.simulation import simulate
from guides.errors import OptionError, check_whole
from guides.fitted.draws import draws_of_each
from guides.fitting import fit_alike, read_once
from guides.showing.figures import new_figure
from guides.showing.tables import panel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Calibration", "calibrate"]

_MOST_PANELS = 12
_FEWEST = 20
_CERTAIN = 3.0  # standard errors from which a bias or a spread is named


@dataclass(frozen=True)
class Calibration:
    r"""Ranks of true latents among draws of the guide, over simulated data sets; print it for a table.

    :ivar family: the guide.
    :ivar ranks: by latent and deterministic site, how many of L draws lie below the true value, ``(N, *site shape)``:
        uniform on 0, ..., L if the guide is the exact posterior.
    :ivar num_draws: L.
    :ivar num_datasets: N, data sets that count.
    :ivar failed: data sets left out, as their fit or its draws are not finite.
    :ivar prob: probability with which all elements of an exact guide stay within their bands.
    :ivar seconds: wall time.
    """

    family: str
    ranks: dict[str, Tensor]
    num_draws: int
    num_datasets: int
    failed: int
    prob: float
    seconds: float

    @property
    def band(self) -> Band:
        """The simultaneous band for one element; wider than ``prob`` says by as much as there are elements."""
        elements = sum(math.prod(r.shape[1:]) for r in self.ranks.values())
        return ecdf_band(self.num_datasets, self.num_draws, 1 - (1 - self.prob) / elements)

    @property
    def outside(self) -> dict[str, Tensor]:
        """By site, which elements' ranks leave the band, bool, ``(*site shape)``."""
        return {name: self.band.leaves(ranks) for name, ranks in self.ranks.items()}

    @property
    def calibrated(self) -> bool:
        """Whether all elements stay within their bands."""
        return not any(bool(o.any()) for o in self.outside.values())

    def positions(self) -> dict[str, Tensor]:
        r"""Return :math:`u = (\text{rank} + 1/2) / (L + 1)`, which are uniform on (0, 1) for an exact guide."""
        return {name: (ranks + 0.5) / (self.num_draws + 1) for name, ranks in self.ranks.items()}

    @property
    def bias(self) -> dict[str, Tensor]:
        """By site, mean of u less a half, in its standard errors: positive where the guide's draws are too low."""
        error = math.sqrt(self._variance / self.num_datasets)
        return {name: (u.mean(0) - 0.5) / error for name, u in self.positions().items()}

    @property
    def spread(self) -> dict[str, Tensor]:
        """By site, mean square of u less a half over that of a uniform: above 1 where the guide is too narrow."""
        return {name: (u - 0.5).square().mean(0) / self._variance for name, u in self.positions().items()}

    @property
    def symmetry(self) -> dict[str, Tensor]:
        """By site, p-value of the Kolmogorov-Smirnov test that u and 1 - u are alike (VSBC): small where means are off."""
        from scipy.stats import ks_2samp  # a second of imports

        found = {}
        for name, ranks in self.ranks.items():  # whole numbers, whose ties are ties
            columns = ranks.reshape(len(ranks), -1).numpy().T
            values = [float(ks_2samp(column, self.num_draws - column).pvalue) for column in columns]
            found[name] = torch.tensor(values, dtype=torch.float64).reshape(ranks.shape[1:])
        return found

    @property
    def _variance(self) -> float:
        """Of a rank that is uniform on 0, ..., L, over (L + 1)^2."""
        return (1 - 1 / (self.num_draws + 1) ** 2) / 12

    def elements(self) -> Iterator[tuple[str, Tensor, bool, float, float]]:
        """Yield of every element its name, ranks, whether they leave the band, bias and spread."""
        outside, bias, spread = self.outside, self.bias, self.spread
        for name, ranks in self.ranks.items():
            columns = ranks.reshape(len(ranks), -1).unbind(1)
            for at, column in zip(itertools.product(*(range(size) for size in ranks.shape[1:])), columns):
                label = f"{name}[{', '.join(map(str, at))}]" if at else name
                yield label, column, bool(outside[name][at]), float(bias[name][at]), float(spread[name][at])

    def __str__(self) -> str:
        off = [(label, bias, spread) for label, _, leaves, bias, spread in self.elements() if leaves]
        total = sum(1 for _ in self.elements())
        head = f"{self.family}: {'CALIBRATED' if not off else 'NOT CALIBRATED'}  ({self.num_datasets} simulated data sets)"
        lines = [head]
        if not off:
            lines.append(
                f"The ranks of all {total} latents stay within their bands, as those of the exact posterior do with "
                f"probability {self.prob:g}."
            )
        else:
            lines.append(f"{len(off)} of {total} latents have ranks outside their bands (probability {self.prob:g}):")
            width = max(len(label) for label, _, _ in off[:20])
            lines += [f"{label:<{width}}  {_words(bias, spread, self.num_datasets)}" for label, bias, spread in off[:20]]
            lines += [f"and {len(off) - 20} more"] if len(off) > 20 else []
        if self.failed:
            lines.append(f"{self.failed} data sets are left out: their fits, or draws from them, are not finite.")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        head, *lines = str(self).splitlines()
        name, _, rest = head.partition(": ")
        verdict, _, of = rest.partition("  ")
        return panel(f"{name} {of}", verdict, lines)

    def plot(self) -> Figure:
        """Draw for each latent the distribution function of its u, less that of a uniform, with the band around zero.

        Above zero on the left and below it on the right: the guide is too narrow; the reverse: too wide. Above zero
        throughout: its draws are too high; below: too low. At most twelve latents are drawn, those furthest off first.

        :returns: a matplotlib figure that belongs to no window; save it with ``figure.savefig(path)``.
        """
        band = self.band
        share = band.share
        parts = sorted(self.elements(), key=lambda part: (not part[2], -abs(part[3]) - abs(math.log(max(part[4], 1e-9)))))
        parts = parts[:_MOST_PANELS]
        columns = min(4, len(parts))
        rows = math.ceil(len(parts) / columns)
        figure = new_figure(3.0 * columns, 2.4 * rows)
        for axes, (label, ranks, leaves, _, _) in zip(figure.subplots(rows, columns, squeeze=False).flat, parts):
            lower, upper = (bound / self.num_datasets - share for bound in (band.lower, band.upper))
            axes.fill_between(share.numpy(), lower.numpy(), upper.numpy(), color="grey", alpha=0.3, linewidth=0)
            difference = band.counts(ranks.cpu()) / self.num_datasets - share
            axes.plot(share.numpy(), difference.numpy(), color="tab:red" if leaves else "tab:blue")
            axes.axhline(0, color="grey", linewidth=0.6)
            axes.set_title(label, fontsize="small")
        for axes in list(figure.axes)[len(parts) :]:
            axes.set_visible(False)
        figure.supxlabel("u, position of the truth among the draws", fontsize="small")
        figure.supylabel("distribution function, less that of a uniform", fontsize="small")
        return figure


def calibrate(
    model: Callable[..., Any],
    guide: Any,
    *data: Any,
    num_datasets: int = 1000,
    num_draws: int = 99,
    prob: float = 0.95,
    seed: int = 0,
    device: str | torch.device = "auto",
    model_kwargs: dict[str, Any] | None = None,
    **options: Any,
) -> Calibration:
    r"""Find out whether a guide knows the truth as often as it says, over data sets of the model's own making.

    For :math:`n = 1, \dots, N` latents are drawn from the prior and data given them, :math:`z^n \sim p(z)`,
    :math:`x^n \sim p(x \mid z^n)`; the guide is fitted to every :math:`x^n`, all in one vectorised run; and of every element
    of every latent and deterministic site the rank of :math:`z^n` among L draws of :math:`q_n` is taken. Under the exact
    posterior ranks are uniform. Ranks that gather at both ends are those of a guide that is too narrow, in the middle of one
    that is too wide, at one end of one whose means are off. They pass as uniform as long as their distribution function
    stays within a band that uniform ones, of all elements together, leave with probability ``1 - prob``.

    It judges the guide as it is fitted here, with these options, on data such as the prior makes, and on average over them:
    a guide that fails on one data set in a hundred passes. Judge the fit to your own data by :func:`guides.diagnose`.

    Models that draw data otherwise than they weigh them are refused: flat priors, ``pyro.factor``, scaled densities, learnt
    parameters, series whose past is an argument.

    :param model: any Pyro model with proper priors; what it observes is an argument.
    :param guide: a registered name, ``(name, options)``, a class, or a guide, as for :func:`guides.fit`.
    :param data: the model's arguments. Those that are observed lend their shapes alone.
    :param num_datasets: N, at least 20.
    :param num_draws: L, draws of each posterior; 99 make 100 ranks.
    :param prob: probability that an exact guide is called calibrated.
    :param seed: seed of the simulations, the fits and the draws.
    :param device: as for :func:`guides.fit`.
    :param model_kwargs: keyword arguments of the model, as they are.
    :param options: of the fits: ``steps``, ``lr``, ``objective`` and the others of :func:`guides.fit_many`.
    :raises UnsupportedModelError: for models as above, and models whose priors have no sampler.
    :raises DataError: if what the model observes is no argument of it.
    :raises OptionError: for numbers that make no sense.

    References: Talts, Betancourt, Simpson, Vehtari and Gelman (2018), *Validating Bayesian inference algorithms with
    simulation-based calibration*, https://arxiv.org/abs/1804.06788; Yao, Vehtari, Simpson and Gelman (2018), *Yes, but did
    it work?*, https://proceedings.mlr.press/v80/yao18a.html (VSBC); Säilynoja, Bürkner and Vehtari (2022), *Graphical
    test for discrete uniformity*, https://doi.org/10.1007/s11222-022-10090-6

    Example::

        >>> import pyro, pyro.distributions as dist, torch, guides
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> found = guides.calibrate(
        ...     model, "mean_field", torch.zeros(5), num_datasets=100, steps=600, lr=0.1, schedule="cosine"
        ... )
        >>> found.calibrated, found.ranks["z"].shape
        (True, torch.Size([100]))
    """
    check_whole("num_datasets", num_datasets, least=_FEWEST)
    check_whole("num_draws", num_draws, least=1)
    check_whole("seed", seed)
    if not (isinstance(prob, float) and 0 < prob < 1):
        raise OptionError(f"prob must be a number between 0 and 1, not {prob!r}")
    started = time.perf_counter()
    given = read_once(model, guide, data, model_kwargs, device)
    simulated = simulate(model, given, num_datasets, seed)
    posterior = fit_alike(model, guide, simulated.datasets, seed=seed, device=device, model_kwargs=model_kwargs, **options)
    assert posterior.run is not None
    drawn = draws_of_each(posterior.program, posterior.flat, posterior.run.datasets, num_draws, seed + 1)
    truth = {name: value for name, value in simulated.truth.items() if name in drawn}
    kept = torch.ones(num_datasets, dtype=torch.bool)
    for name in truth:
        kept &= torch.isfinite(drawn[name].cpu().double()).reshape(num_datasets, -1).all(-1)
    if int(kept.sum()) < _FEWEST:
        raise OptionError(
            f"of {num_datasets} fits only {int(kept.sum())} are finite, too few to judge by: {posterior.stop_reasons[0]}"
        )
    generator = torch.Generator().manual_seed(seed)
    ranks = {name: _ranks(drawn[name].cpu()[kept], value.cpu()[kept], generator) for name, value in truth.items()}
    return Calibration(
        family=posterior.family,
        ranks=ranks,
        num_draws=num_draws,
        num_datasets=int(kept.sum()),
        failed=num_datasets - int(kept.sum()),
        prob=prob,
        seconds=time.perf_counter() - started,
    )


def _ranks(draws: Tensor, truth: Tensor, generator: torch.Generator) -> Tensor:
    """Return ranks ``(N, *shape)`` of true values ``(N, *shape)`` among draws ``(N, L, *shape)``; ties go either way."""
    truth = truth.reshape(len(truth), 1, *draws.shape[2:])
    below, equal = (draws < truth).sum(1), (draws == truth).sum(1)
    return below + (torch.rand(below.shape, generator=generator) * (equal + 1)).long()


def _words(bias: float, spread: float, num_datasets: int) -> str:
    """Say what is wrong with an element whose ranks leave the band."""
    parts = []
    if abs(bias) > _CERTAIN:
        parts.append(f"its draws are too {'low' if bias > 0 else 'high'} ({abs(bias):.1f} standard errors)")
    if abs(spread - 1) > _CERTAIN * math.sqrt(0.8 / num_datasets):
        kind = "narrow" if spread > 1 else "wide"
        parts.append(f"too {kind} (mean square of its positions {spread:.2f} of a uniform's)")
    return "; ".join(parts) or "its ranks have another shape"
