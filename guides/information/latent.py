"""What the latents of a variational autoencoder know: rate, distortion, mutual information, and units in use."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from pyro import poutine
from torch import Tensor

from guides.errors import OptionError, UnsupportedModelError
from guides.fitted.fitted import FittedGuide
from guides.information.aggregate import aggregate, row_densities, unit_densities
from guides.information.measure import Measure, Unit, per_nat
from guides.information.units import UnitVariance, unit_variances
from guides.program.data import Data
from guides.program.guide import amortized_sites
from guides.program.isolation import quiet, seeded
from guides.program.joint import joint_traces
from guides.program.parameters import isolated_store
from guides.program.rows import outermost_plate
from guides.program.sites import is_latent, is_observed, nodes

__all__ = ["LatentInformation", "latent_information"]

_ROWS_AT_ONCE = 512
_SEED_OFFSET = 0x5EED_0000  # toy data are drawn at small seeds too, and must not share their numbers with the codes' noise
_ACTIVE = 0.01


@dataclass(frozen=True, eq=False)
class LatentInformation:
    """Measures of the latents of a posterior whose guide has an encoder; print it for a table.

    Averages over rows; standard errors count both the draws and the choice of the rows that were drawn from.

    :ivar rate: E KL(q(z | x) || p(z)), what the code of one row costs.
    :ivar distortion: -E log p(x | z), what it leaves unsaid. Rate plus distortion is minus the ELBO per row.
    :ivar mutual_information: I(x; z) under the guide, over the rows given: at most log N.
    :ivar mutual_information_upper: the same with each row's own distribution left out of the mixture. Over rows that are a
        sample of something larger, the truth lies between the two in expectation.
    :ivar marginal_kl: KL(q(z) || p(z)): how far the codes of all rows together are from the prior. ``None`` if the prior
        depends on the row, as that of a conditional VAE does.
    :ivar total_correlation: KL(q(z) || prod_d q(z_d)): how far the units of the code are from independent, over all rows
        together. ``None`` if the densities of single units are not known, as with flows or several layers.
    :ivar unit_variance: by site, variance over all rows of E[z_d | x], for every unit d.
    :ivar num_rows: rows N in the aggregated posterior.
    :ivar num_drawn: rows that were drawn from.
    :ivar num_samples: draws for each of them.
    """

    rate: Measure
    distortion: Measure
    mutual_information: Measure
    mutual_information_upper: Measure
    marginal_kl: Measure | None
    total_correlation: Measure | None
    unit_variance: Mapping[str, UnitVariance]
    num_rows: int
    num_drawn: int
    num_samples: int

    @property
    def active(self) -> dict[str, Tensor]:
        """By site, which units are active: those whose mean varies over the rows, Var E[z_d | x] > 0.01."""
        return {name: variance.value > _ACTIVE for name, variance in self.unit_variance.items()}

    @property
    def active_units(self) -> int:
        """The number of active units of all sites."""
        return sum(int(value.sum()) for value in self.active.values())

    @property
    def units(self) -> int:
        """The number of units of all sites."""
        return sum(value.numel() for value in self.active.values())

    @property
    def undecided(self) -> dict[str, Tensor]:
        """By site, which units have a variance within two standard errors of the limit."""
        return {name: (v.value - _ACTIVE).abs() < 2 * v.standard_error for name, v in self.unit_variance.items()}

    @property
    def limit(self) -> float:
        """The logarithm of the number of rows: the most that ``mutual_information`` can be."""
        return math.log(self.num_rows) * per_nat(self.rate.unit)

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain Python."""
        names = ("rate", "distortion", "mutual_information", "mutual_information_upper", "marginal_kl", "total_correlation")
        found: dict[str, Any] = {}
        for name in names:
            measure = getattr(self, name)
            found[name] = None if measure is None else measure.to_dict()
        counts = {name: getattr(self, name) for name in ("active_units", "units", "num_rows", "num_drawn", "num_samples")}
        return found | counts | {"unit_variance": {name: found.value.tolist() for name, found in self.unit_variance.items()}}

    def __str__(self) -> str:
        upper = float(self.mutual_information_upper)
        rows = [
            ("rate", self.rate, "E KL(q(z|x) || p(z))"),
            (
                "  mutual information",
                self.mutual_information,
                f"I(x; z); log N = {self.limit:.2f}, upper {upper:.2f}",
            ),
            ("  marginal KL", self.marginal_kl, "KL(q(z) || p(z))"),
            ("distortion", self.distortion, "-E log p(x|z)"),
            ("total correlation", self.total_correlation, "KL(q(z) || prod q(z_d))"),
        ]
        lines = [f"latents of {self.num_rows} rows, {self.num_samples} x {self.num_drawn} draws, {self.rate.unit}"]
        for label, measure, meaning in rows:
            if measure is not None:
                lines.append(f"{label:<22}{float(measure):10.3f} ± {float(measure.standard_error):<8.3f}{meaning}")
        for name, active in self.active.items():
            count = int(self.undecided[name].sum())
            near = f", {count} within two standard errors of it" if count else ""
            label = "active units" if len(self.active) == 1 else f"active units, {name}"
            lines.append(f"{label:<22}{f'{int(active.sum())} of {active.numel()}':>10}{'':11}Var E[z_d|x] > {_ACTIVE}{near}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return str(self)


def latent_information(
    posterior: FittedGuide,
    *data: Any,
    max_drawn: int = 1000,
    num_samples: int = 1,
    seed: int = 0,
    unit: Unit = "nats",
    model_kwargs: dict[str, Any] | None = None,
) -> LatentInformation:
    r"""Measure what the latents of a variational autoencoder say about its data.

    .. math::
        \underbrace{E_n KL(q(z \mid x_n) \| p(z))}_{\text{rate}} =
        \underbrace{E_n KL(q(z \mid x_n) \| q(z))}_{I_q(x; z)} + \underbrace{KL(q(z) \| p(z))}_{\text{marginal KL}},
        \qquad q(z) = \tfrac1N \sum_m q(z \mid x_m)

    The expectations are over draws :math:`z_n \sim q(z \mid x_n)` of some rows, the mixture :math:`q(z)` is over *all* rows
    given, in blocks of bounded memory. All terms use the same draws, so the identity holds in the estimates. With these N
    rows as the whole population nothing is biased. For a population that the rows are a sample of, I is too low in
    expectation, and never above log N, because a row's own distribution is always in the mixture; with it left out
    (``mutual_information_upper``) it is too high. Where the first is near log N, only more rows tell.

    Total correlation is estimated likewise, with :math:`q(z_d) = \frac1N \sum_m q(z_d \mid x_m)`. A unit is active if
    :math:`Var_n(E[z_d \mid x_n]) > 0.01`; means without a closed form are averages of 16 draws, whose noise is subtracted.

    :param posterior: a fit whose guide names the sites it computes from rows, ``guide.amortized``.
    :param data: rows to measure on; the training data by default.
    :param max_drawn: the most rows to draw from, chosen at random. The time taken is proportional to it and to N; with flows
        and several layers, whose densities at other rows' draws take a pass of networks each, choose both small.
    :param num_samples: draws for each of them.
    :param seed: the same seed gives the same draws and rows.
    :param unit: ``"nats"`` or ``"bits"``.
    :param model_kwargs: keyword arguments of the model; those of the fit by default.
    :raises UnsupportedModelError: if the guide has no amortised site, or sites do not stand in one plate of the rows.
    :raises OptionError: for counts below 1, a single row, or several replicates.

    References: Hoffman & Johnson (2016), *ELBO surgery*; Alemi et al. (2018), *Fixing a broken ELBO*; Chen, Li, Grosse &
    Duvenaud (2018), *Isolating sources of disentanglement in VAEs*; Burda, Grosse & Salakhutdinov (2016), *Importance
    weighted autoencoders*; Poole et al. (2019), *On variational bounds of mutual information*.
    """
    per_nat(unit)
    sites = _check(posterior, max_drawn, num_samples)
    rows = posterior._arguments(data, model_kwargs)
    if rows.size < 2:
        raise OptionError(f"the data have {rows.size} rows; what latents tell apart takes at least 2")
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(rows.size, generator=generator)[:max_drawn].sort().values.to(posterior.device)
    with isolated_store(), quiet(), seeded(seed + _SEED_OFFSET), torch.no_grad():
        return posterior.program.call(posterior.flat[0], lambda: _measure(posterior, rows, chosen, num_samples, sites, unit))


def _check(posterior: FittedGuide, max_drawn: int, num_samples: int) -> list[str]:
    amortized = amortized_sites(posterior.guide)
    if not amortized:
        raise UnsupportedModelError(
            f"the guide {posterior.family!r} has no amortised site: rate, mutual information and active units are "
            "measures of latents that an encoder computes from each row. Fit with 'amortized', or name such sites in "
            "guide.amortized"
        )
    for name, value in (("max_drawn", max_drawn), ("num_samples", num_samples)):
        if value < 1:
            raise OptionError(f"{name} is {value}; at least 1 is needed")
    if posterior.replicates > 1:
        raise OptionError(f"the posterior holds {posterior.replicates} replicates; measure one: posterior.replicate(0)")
    return [name for name in posterior.program.latents if name in amortized]


def _measure(
    posterior: FittedGuide, data: Data, chosen: Tensor, num_samples: int, sites: list[str], unit: Unit
) -> LatentInformation:
    model, guide = posterior.model, posterior.guide
    parts = [data.take(index) for index in chosen.split(_ROWS_AT_ONCE)]
    terms = [_terms(posterior, part, sites) for _ in range(num_samples) for part in parts]
    log_q, log_p, log_likelihood = (torch.cat(each) for each in zip(*(t.densities for t in terms)))
    values = {name: torch.cat([t.values[name] for t in terms]) for name in sites}
    own = [t.units for t in terms if t.units is not None]

    others = aggregate(guide, data, sites, values, chosen.repeat(num_samples))
    log_n, log_rest = math.log(data.size), math.log(data.size - 1)
    mixture = torch.logaddexp(others.joint, log_q) - log_n

    def measure(per_draw: Tensor) -> Measure:
        return Measure.of_draws(per_draw.reshape(num_samples, len(chosen)).mean(0), unit)

    correlation = None
    if others.units is not None and own:
        correlation = measure(mixture - (torch.logaddexp(others.units, torch.cat(own)) - log_n).sum(-1))
    same_prior = _same_prior(model, guide, parts[0], sites)
    return LatentInformation(
        rate=measure(log_q - log_p),
        distortion=measure(-log_likelihood),
        mutual_information=measure(log_q - mixture),
        mutual_information_upper=measure(log_q - (others.joint - log_rest)),
        marginal_kl=measure(mixture - log_p) if same_prior else None,
        total_correlation=correlation,
        unit_variance=unit_variances(guide, data, sites),
        num_rows=data.size,
        num_drawn=len(chosen),
        num_samples=num_samples,
    )


class _Terms(NamedTuple):
    """One draw per row: log q(z), log p(z) and log p(x | z), the draw by site, and log q of each of its units."""

    densities: tuple[Tensor, Tensor, Tensor]
    values: dict[str, Tensor]
    units: Tensor | None


def _terms(posterior: FittedGuide, part: Data, sites: list[str]) -> _Terms:
    model_trace, guide_trace = joint_traces(posterior.model, posterior.guide, part.args, part.kwargs)
    model_sites, guide_sites = nodes(model_trace), nodes(guide_trace)
    observed = [name for name, site in model_sites.items() if is_observed(site)]
    _check_rows(model_sites, guide_sites, sites, observed, part.size)
    values = {name: guide_sites[name]["value"] for name in sites}
    units = unit_densities(guide_sites[sites[0]]["fn"], values[sites[0]]) if len(sites) == 1 else None
    densities = row_densities(guide_trace, sites), row_densities(model_trace, sites), row_densities(model_trace, observed)
    return _Terms(densities, values, None if units is None else units.reshape(part.size, -1).double())


def _check_rows(
    model_sites: dict[str, Any], guide_sites: dict[str, Any], sites: list[str], observed: list[str], size: int
) -> None:
    stand = [model_sites[name] for name in (*sites, *observed)] + [guide_sites[name] for name in sites]
    plate = outermost_plate(stand)
    sizes = {frame.size for site in stand for frame in site["cond_indep_stack"] if frame.name == plate}
    if sizes != {size} or not observed:
        raise UnsupportedModelError(
            f"the sites {', '.join(map(repr, (*sites, *observed)))} do not stand in one plate of the {size} rows, in model "
            'and guide; put them into pyro.plate("data", len(x)) so that every row has terms of its own'
        )


def _same_prior(model: Any, guide: Any, part: Data, sites: list[str]) -> bool:
    """Tell whether one code has the same prior density in two rows."""
    two = part.head(2)
    draw = nodes(poutine.trace(guide).get_trace(*two.args, **two.kwargs))
    fixed = {name: draw[name]["value"][:1].expand_as(draw[name]["value"]) for name in sites}
    others = {name: site["value"] for name, site in draw.items() if is_latent(site) and name not in sites}
    trace = poutine.trace(poutine.condition(model, data=fixed | others)).get_trace(*two.args, **two.kwargs)
    density = row_densities(trace, sites)
    return bool(torch.allclose(density[:1].expand_as(density), density, rtol=1e-5, atol=1e-5))
