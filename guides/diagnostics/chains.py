"""Did the chains of a sampler draw from the posterior? R-hat, effective sample sizes, divergences, E-BFMI."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
from torch import Tensor

from guides.diagnostics.finding import DrawsLike, Finding, Level, PosteriorLike, Undefined, diagnostics_registry
from guides.fitted.groups import from_groups, import_arviz
from guides.program.guide import is_sampled

__all__ = ["ChainFigures", "chains", "figures_of"]

_R_HAT, _FAR = 1.01, 1.05
_PER_CHAIN, _LEAST = 100, 50  # effective draws per chain
_DIVERGENT = 0.01  # a share of divergent draws that leaves parts of the posterior out
_E_BFMI = 0.3
_MAX_ELEMENTS = 500  # of one site; ArviZ loops over them in Python


@dataclass(frozen=True, kw_only=True)
class ChainFigures(Finding):
    """What chains say of themselves.

    :param r_hat: the largest rank-normalised split R-hat over all elements; NaN of one chain.
    :param ess_bulk: the least effective sample size of a mean, over all chains; ``ess_tail``: of the 5 % and 95 % quantiles.
    :param divergences: draws whose path left the level of its energy; NaN where the sampler does not count them.
    :param e_bfmi: least over chains of the energy's Bayesian fraction of missing information; NaN where it is not known.
    :param sites: by site: largest R-hat, least bulk and tail ESS.
    :param num_chains: C; ``num_draws``: S per chain.
    """

    title: ClassVar[str] = "chains"
    r_hat: float
    ess_bulk: float
    ess_tail: float
    divergences: float
    e_bfmi: float
    sites: Mapping[str, tuple[float, float, float]]
    num_chains: int
    num_draws: int

    def rows(self) -> list[tuple[str, str]]:
        """Return one row per figure, with the site that is worst."""
        names = list(self.sites)
        worst = [
            max(names, key=lambda n: np.nan_to_num(self.sites[n][0])),
            *(min(names, key=lambda n: np.nan_to_num(self.sites[n][i], nan=math.inf)) for i in (1, 2)),
        ]
        whole = self.num_chains * self.num_draws
        return [
            ("R-hat", f"{self.r_hat:.3f}  ({self.num_chains} chains, largest at {worst[0]!r})"),
            ("ESS, bulk", f"{self.ess_bulk:.0f} of {whole}  (least, at {worst[1]!r})"),
            ("ESS, tails", f"{self.ess_tail:.0f} of {whole}  (least, at {worst[2]!r})"),
            ("divergences", "not counted" if math.isnan(self.divergences) else f"{self.divergences:.0f} of {whole}"),
            ("E-BFMI", "not known" if math.isnan(self.e_bfmi) else f"{self.e_bfmi:.2f}  (least over chains)"),
        ]


@diagnostics_registry.register("chains")
def chains(posterior: PosteriorLike, draws: DrawsLike) -> Finding:
    r"""Judge the chains of a sampler by what they show, through ArviZ.

    R-hat compares the variance between chains with that within; the effective sample size is the number of independent draws
    that would give the same error of a mean (bulk) or of the 5 % and 95 % quantiles (tails). A divergence is a path whose
    energy was not kept: the posterior is too sharply curved there for the step size, and is left out. With the energies
    :math:`E_s` of consecutive draws

    .. math:: \text{E-BFMI} = \frac{\sum_s (E_s - E_{s-1})^2}{\sum_s (E_s - \bar E)^2}

    which is small where momenta change the energy little compared with its spread, so that tails are visited rarely.

    *good*: R-hat at most 1.01, 100 effective draws per chain, no divergence, E-BFMI above 0.3. *unreliable*: R-hat above
    1.05, fewer than 50 effective draws per chain, more than 1 % divergences, or a chain that never moved. *usable*: between.

    **Blind spot.** Chains that all miss the same mode agree.

    References: Vehtari, Gelman, Simpson, Carpenter, Bürkner (2021), https://doi.org/10.1214/20-BA1221; Betancourt (2016),
    *Diagnosing suboptimal cotangent disintegrations in Hamiltonian Monte Carlo*, https://arxiv.org/abs/1604.00695
    """
    if not is_sampled(posterior.guide):
        return Undefined(label=ChainFigures.title, level="unknown", text="not defined: no sampler drew this posterior")
    values = {name: v for name, v in {**draws.latents, **draws.deterministic}.items() if v.is_floating_point()}
    of_draws = cast(Any, draws).statistics
    return figures_of(values, of_draws, frozenset(draws.latents))


def figures_of(values: Mapping[str, Tensor], statistics: Mapping[str, Tensor], latents: frozenset[str]) -> ChainFigures:
    """Return the figures of chains ``(C, S, ...)`` by site.

    :param latents: the sites that have to vary.
    """
    arrays = {name: value.detach().cpu().double().reshape(*value.shape[:2], -1).numpy() for name, value in values.items()}
    still = [name for name, a in arrays.items() if name in latents and a.size and bool((np.ptp(a, axis=1) == 0).any())]
    arrays = {name: _varying(a) for name, a in arrays.items()}
    arrays = {name: a for name, a in arrays.items() if a.shape[-1]}
    count, length = next(iter(values.values())).shape[:2]
    sites = _sites(arrays, count) if arrays else {}
    r_hat = max((s[0] for s in sites.values() if not math.isnan(s[0])), default=math.nan)
    bulk, tail = (min((s[i] for s in sites.values() if not math.isnan(s[i])), default=math.nan) for i in (1, 2))
    diverging, energy = statistics.get("diverging"), statistics.get("energy")
    divergences = math.nan if diverging is None else float(diverging.sum())
    e_bfmi = math.nan if energy is None else _e_bfmi(energy.double())
    level, text, advice = _verdict(still, r_hat, min(bulk, tail), divergences, e_bfmi, count, length)
    return ChainFigures(
        level=level,
        text=text,
        advice=advice,
        r_hat=r_hat,
        ess_bulk=bulk,
        ess_tail=tail,
        divergences=divergences,
        e_bfmi=e_bfmi,
        sites=sites,
        num_chains=count,
        num_draws=length,
    )


def _varying(values: np.ndarray) -> np.ndarray:
    """Return the elements that vary, at most so many, evenly spaced."""
    varies = values[..., (np.ptp(values, axis=1) > 0).all(0)]
    return varies[..., :: max(1, math.ceil(varies.shape[-1] / _MAX_ELEMENTS))]


def _sites(arrays: Mapping[str, np.ndarray], count: int) -> dict[str, tuple[float, float, float]]:
    arviz = import_arviz()
    held = from_groups({"posterior": arrays})
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        found = [arviz.ess(held, method="bulk"), arviz.ess(held, method="tail")]
        ratios = arviz.rhat(held) if count > 1 else None
    tables = [f["posterior"] if "posterior" in getattr(f, "children", ()) else f for f in found]
    ratio = ratios["posterior"] if ratios is not None and "posterior" in getattr(ratios, "children", ()) else ratios
    return {
        name: (
            math.nan if ratio is None else float(np.nanmax(ratio[name].values)),
            float(np.nanmin(tables[0][name].values)),
            float(np.nanmin(tables[1][name].values)),
        )
        for name in map(str, tables[0].data_vars)
    }


def _e_bfmi(energy: Tensor) -> float:
    change, spread = energy.diff(dim=1).square().sum(1), (energy - energy.mean(1, keepdim=True)).square().sum(1)
    return float((change / spread).min())


def _verdict(
    still: list[str], r_hat: float, ess: float, divergences: float, e_bfmi: float, count: int, length: int
) -> tuple[Level, str, str]:
    """Return the level with the worst figure in words, and what to do."""
    longer = "draw more: draws= and tune= twice as large"
    closer = "target_accept=0.95 or nearer to 1, or another parametrisation (non-centred: pyro.infer.reparam)"
    found: list[tuple[Level, str, str]] = []
    if still:
        found.append(
            ("unreliable", f"a chain never moved (site {still[0]!r})", "another parametrisation, or a longer tune=")
        )
    if r_hat > _R_HAT:
        level: Level = "unreliable" if r_hat > _FAR else "usable"
        found.append((level, f"the chains differ (R-hat {r_hat:.3f})", f"{longer}; if they still differ, there are modes"))
    if ess < _PER_CHAIN * count:
        level = "unreliable" if ess < _LEAST * count else "usable"
        found.append((level, f"the least effective sample size is {ess:.0f} of {count * length} draws", longer))
    if divergences > 0:
        level = "unreliable" if divergences > _DIVERGENT * count * length else "usable"
        found.append((level, f"{divergences:.0f} of {count * length} draws diverged", closer))
    if e_bfmi < _E_BFMI:
        found.append(("usable", f"tails are visited rarely (E-BFMI {e_bfmi:.2f})", closer))
    if not found and count < 2:
        found.append(("usable", "one chain cannot show whether chains agree", "draw at least two: chains=4"))
    if not found:
        return "good", f"{count} chains agree (R-hat {r_hat:.3f}, effective sample size {ess:.0f})", ""
    worst: Level = "unreliable" if any(f[0] == "unreliable" for f in found) else "usable"
    spoken = [f for f in found if f[0] == worst]
    return worst, "; ".join(f[1] for f in spoken), "; then ".join(dict.fromkeys(f[2] for f in spoken))
