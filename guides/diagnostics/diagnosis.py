"""All diagnostics of one fit, with a verdict and a sentence."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, cast

import torch

from guides.diagnostics.answers import Answers, answers
from guides.diagnostics.chains import ChainFigures
from guides.diagnostics.convergence import Convergence
from guides.diagnostics.finding import DrawsLike, Finding, Level, PosteriorLike, Undefined, diagnostics_registry
from guides.diagnostics.importance import CorrectedMoments, ImportanceESS, SiteMoments
from guides.diagnostics.loo import Elpd, ElpdLOO
from guides.diagnostics.pareto import ParetoK
from guides.diagnostics.rhat import RHat
from guides.diagnostics.row_weights import RowWeights, some_rows
from guides.errors import OptionError
from guides.fitted.fitted import FittedGuide
from guides.fitted.resampled import affordable
from guides.program.guide import amortized_sites, is_sampled
from guides.psis import MIN_DRAWS, pareto_k_threshold
from guides.showing.figures import new_figure
from guides.showing.tables import Table, panel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["DRAWS", "Diagnosis", "diagnose"]

Verdict = Literal["good", "corrected", "usable", "unreliable"]

_SEVERITY: tuple[Level, ...] = ("unknown", "good", "corrected", "usable", "unreliable")
_FIRST = ("chains", "answers", "pareto_k", "row_weights", "importance_ess", "r_hat", "convergence", "elpd_loo")
_WEIGHED = frozenset(("answers", "pareto_k", "importance_ess", "psis_moments"))  # by draws until the answers are settled
_OF_SAMPLERS = frozenset(("chains",))  # of draws that are a sampler's
_OF_CHAINS = _OF_SAMPLERS | {"elpd_loo"}
_JOINT = _WEIGHED | {"elpd_loo"}  # of all rows' latents at once
DRAWS = 1000  # per chain, unless more or fewer are asked for
_MOST_SCORES = 2**27  # log-likelihoods that are kept unasked; 512 MiB in float32
_MAX_ROWS = 20  # of draws for guides with an encoder, whose diagnostics draw for themselves


@dataclass(frozen=True)
class Diagnosis:
    """What the diagnostics found about one fit; print it for a table.

    ``verdict`` is about the answers that draws give, the mean and standard deviation of every latent and deterministic site:

    * ``"good"``: raw draws are right to a tenth of a posterior standard deviation and a fifth of its size; restarts agree;
    * ``"corrected"``: they are not, and draws corrected by importance weights are, ``posterior.sample(corrected=True)``;
    * ``"usable"``: nothing speaks against it, but the errors cannot be told, as of an ensemble of point masses;
    * ``"unreliable"``: neither can be shown to be right.

    A network whose weights are judged unreliable can predict well, which :mod:`guides.predictive` measures.

    What no figure here can see: a mode of the posterior that no restart visited.

    :param family: registry name of the guide's family.
    :param num_samples: S, draws per chain behind the answers and the importance weights; R-hat and LOO have at most 1000.
    :param chains: number of restarts.
    :param verdict: the worst level among the findings.
    :param summary: one or two sentences in plain words: what was found and what to try next.
    :param findings: diagnostic name -> its :class:`~guides.diagnostics.finding.Finding`, with all figures.
    """

    family: str
    num_samples: int
    chains: int
    verdict: Verdict
    summary: str
    findings: Mapping[str, Finding]

    @property
    def k_hat(self) -> float | None:
        """Pareto k-hat, the worst over chains; the median over data points where an encoder computes the latents of each;
        None where it is not defined."""
        finding = self._of(ParetoK) or self._of(RowWeights)
        if isinstance(finding, RowWeights):
            return finding.median if len(finding.k_hats) else None
        return None if finding is None else finding.k_hat

    @property
    def k_threshold(self) -> float:
        """The largest k-hat that ``num_samples`` draws can cope with."""
        return pareto_k_threshold(self.num_samples)

    @property
    def ess(self) -> tuple[float, ...] | None:
        """Importance effective sample size per chain; None where it is not defined."""
        finding = self._of(ImportanceESS)
        return None if finding is None else finding.ess

    @property
    def r_hat(self) -> float | None:
        """Largest R-hat over restarts; None with one restart."""
        finding = self._of(RHat)
        return None if finding is None else finding.r_hat

    @property
    def convergence(self) -> str | None:
        """Verdict on the loss trace, such as ``"converged"``; None where nothing was optimised."""
        finding = self._of(Convergence)
        return None if finding is None else finding.status

    @property
    def elpd(self) -> Mapping[str, Elpd]:
        """PSIS-LOO per observed site, empty where it is not defined."""
        finding = self._of(ElpdLOO)
        return {} if finding is None else finding.sites

    @property
    def moments(self) -> Mapping[str, SiteMoments]:
        """Raw and PSIS-corrected moments per latent site, empty where they are not defined."""
        finding = self._of(CorrectedMoments)
        return {} if finding is None else finding.sites

    def _of(self, kind: type[Any]) -> Any:
        return next((finding for finding in self.findings.values() if isinstance(finding, kind)), None)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain Python for ``json``; numbers that are not finite become None."""
        return {
            "family": self.family,
            "num_samples": self.num_samples,
            "chains": self.chains,
            "verdict": self.verdict,
            "summary": self.summary,
            "findings": {name: finding.to_dict() for name, finding in self.findings.items()},
        }

    def __str__(self) -> str:
        what = "chains" if self._of(ChainFigures) else "restarts"
        restarts = f", {self.chains} {what}" if self.chains > 1 else ""
        rows = [row for finding in self.findings.values() for row in finding.rows()]
        width = max((len(label) for label, _ in rows), default=0)
        lines = [
            f"{self.family}: {self.verdict.upper()}  ({self.num_samples} draws{restarts})",
            self.summary,
            "",
        ]
        return "\n".join([*lines, *(f"{label:<{width}}  {text}" for label, text in rows)])

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        rows = [row for finding in self.findings.values() for row in finding.rows()]
        return panel(
            f"{self.family}, {self.num_samples} draws", self.verdict, [self.summary], [Table(("", ""), rows, left=2)]
        )

    def plot(self) -> Figure:
        """Draw the importance weights, the loss traces and the Pareto k of each observation, where defined.

        :returns: a matplotlib figure that belongs to no window; save it with ``figure.savefig(path)``.
        """
        panels = [
            (draw, finding)
            for kind, draw in (
                (ParetoK, _plot_weights),
                (RowWeights, _plot_rows),
                (Convergence, _plot_losses),
                (ElpdLOO, _plot_pointwise),
            )
            if (finding := self._of(kind)) is not None and finding.rows()
        ]
        figure = new_figure(4.2 * max(len(panels), 1), 3.4)
        for axes, (draw, finding) in zip(figure.subplots(1, len(panels), squeeze=False)[0] if panels else [], panels):
            draw(axes, finding)
        figure.suptitle(f"{self.family}: {self.verdict}")
        return figure


def diagnose(
    posterior: PosteriorLike,
    num_samples: int | None = None,
    seed: int | None = 0,
    only: Collection[str] | None = None,
) -> Diagnosis:
    """Judge a fit: errors of the answers, k-hat, importance ESS, R-hat, convergence, elpd, and what to try next.

    Where the guide computes the latents of a row from the row, figures of all latents together mean nothing: k-hat is then
    one per data point, and R-hat is that of the latents that rows share, if there are any. At most 100 rows are looked at.

    :param posterior: a fitted posterior; see :class:`~guides.diagnostics.finding.PosteriorLike` for what is
        read.
    :param num_samples: S, draws per restart; of a sampler all are looked at. By default 1000, and four times as many again
        (up to 64,000, and to 2^25 numbers) until more would change the verdict only by an unlikely accident.
    :param seed: seed of the draws.
    :param only: names of diagnostics to run; every registered one if None.
    :raises ValueError: for fewer than 25 draws.
    :raises UnknownNameError: for a name in ``only`` that no diagnostic has, with the nearest that exists.

    Example::

        >>> import pyro, pyro.distributions as dist, torch, guides
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> posterior = guides.fit(model, "mean_field", torch.ones(3), steps=1500, lr=0.05, schedule="cosine")
        >>> guides.diagnose(posterior).verdict
        'good'
    """
    if num_samples is not None and num_samples < MIN_DRAWS:
        raise OptionError(
            f"num_samples is {num_samples}; diagnostics need at least {MIN_DRAWS} draws (1000 is a good number)"
        )
    if isinstance(posterior, FittedGuide) and posterior.corrects:
        posterior = posterior.correcting(False)  # its guide is judged, and draws as that gives them
    sampled = is_sampled(posterior.guide)
    names = [n for n in diagnostics_registry if (n in _OF_CHAINS if sampled else n not in _OF_SAMPLERS)]
    names = names if only is None else list(only)
    functions = {name: diagnostics_registry[name] for name in sorted(names, key=_rank)}
    with torch.no_grad():
        local = amortized_sites(posterior.guide)
        count = cast(Any, posterior).points.shape[1] if sampled else num_samples or DRAWS
        points = _points(posterior)
        scored = points * count <= _MOST_SCORES or (only is not None and "elpd_loo" in only)
        draws = _draws(posterior, local, count, seed, scored)
        weighed, settled = draws, dict[str, Finding]()
        if not (num_samples or local or sampled) and "answers" in functions:
            weighed, settled["answers"] = _settled(posterior, draws, seed)
        without = frozenset() if not local else _JOINT if draws.latents else _JOINT | {"r_hat"}
        findings = {
            name: _joint(name)
            if name in without
            else settled.get(name) or function(posterior, weighed if name in _WEIGHED else draws)
            for name, function in functions.items()
            if only is not None or name not in without
        }
        if not scored and "elpd_loo" in findings and not local:
            findings["elpd_loo"] = _unscored(points, count)
    verdict, summary = _conclude(findings)
    return Diagnosis(
        family=posterior.family,
        num_samples=int(weighed.log_p.shape[1]),
        chains=int(draws.log_p.shape[0]),
        verdict=verdict,
        summary=summary,
        findings=findings,
    )


def _points(posterior: PosteriorLike) -> int:
    """Return how many numbers the observed sites hold, 0 if that is not known."""
    sites = getattr(posterior, "sites", {}).values()
    return sum(math.prod(site.shape) for site in sites if site.kind == "observed")


def _unscored(points: int, draws: int) -> Undefined:
    return Undefined(
        label=ElpdLOO.title,
        level="unknown",
        text=f"not computed: {draws} draws of {points} observations are {4e-9 * draws * points:.1f} GB",
        advice="ask for it by name, diagnose(only=['elpd_loo'], num_samples=...), with as many draws as memory holds",
    )


def _draws(posterior: PosteriorLike, local: frozenset[str], num_samples: int, seed: int | None, scored: bool) -> Any:
    """Return draws on the training data; without the latents of rows, and on few rows, where an encoder computes them."""
    if not local:
        return _judged(posterior, posterior.draws(num_samples, seed=seed, log_likelihood=scored))
    rows = some_rows(cast(Any, posterior).training, _MAX_ROWS)
    draws = posterior.draws(num_samples, *rows.args, seed=seed)
    return replace(draws, latents={name: value for name, value in draws.latents.items() if name not in local})


def _settled(posterior: PosteriorLike, draws: DrawsLike, seed: int | None) -> tuple[DrawsLike, Finding]:
    """Return so many draws that the level of the answers would hardly change with more, or as many as there may be, and the
    answers."""
    count = draws.log_p.shape[1]
    most = affordable(getattr(posterior, "sites", {}))
    found = answers(posterior, draws)
    while isinstance(found, Answers) and not found.settled and count * 4 <= most:
        count *= 4
        draws = _judged(posterior, posterior.draws(count, seed=seed, log_likelihood=False))
        found = answers(posterior, draws)
    return draws, found


def _judged(posterior: PosteriorLike, draws: Any) -> Any:
    """Return draws without the discrete latents that were summed out.

    Given the others they are drawn exactly, and one that is the same in all draws is no chain that never moved.
    """
    summed = {name for name, site in getattr(posterior, "sites", {}).items() if site.kind == "enumerated"}
    kept = {name: value for name, value in draws.latents.items() if name not in summed}
    return replace(draws, latents=kept) if summed else draws


def _joint(name: str) -> Undefined:
    text = f"not defined: {name!r} judges all latents at once, and those of rows are judged row by row, see 'row_weights'"
    return Undefined(label=name, level="unknown", text=text)


def _rank(name: str) -> tuple[int, str]:
    return (_FIRST.index(name) if name in _FIRST else len(_FIRST), name)


def _conclude(findings: Mapping[str, Finding]) -> tuple[Verdict, str]:
    levels = {name: finding.level for name, finding in findings.items()}
    judged, trace = findings.get("answers"), findings.get("convergence")
    if isinstance(judged, Answers):
        # The answers are what k-hat, a loss that still falls and restarts that differ a little are signs of.
        levels["pareto_k"] = "unknown"
        if judged.level != "unreliable":
            levels |= {n: "unknown" for n in ("convergence", "r_hat") if levels.get(n) == "usable"}
    elif isinstance(trace, Convergence) and trace.status == "improving" and levels.get("pareto_k") == "good":
        levels["convergence"] = "unknown"
    worst: Level = max(levels.values(), key=_SEVERITY.index, default="unknown")
    spoken = [name for name, level in levels.items() if level == worst]
    if worst in ("good", "unknown"):
        first = ("answers", "pareto_k") if isinstance(judged, Answers) else ("pareto_k", "answers")
        spoken = [name for name in ("chains", *first) if name in findings][:1] or spoken
    texts = [findings[name].text for name in spoken]
    if isinstance(trace, Convergence) and trace.level in ("usable", "unknown") and "convergence" not in spoken:
        texts.append(trace.text)
    advice = [findings[name].advice for name in spoken if findings[name].advice]
    if isinstance(trace, Convergence) and trace.advice and worst != "good":
        if trace.status in ("noisy", "short"):
            advice.append(trace.advice)
        else:
            undefined = isinstance(findings.get("pareto_k"), Undefined)
            kept = [item for item in advice if (undefined or worst == "corrected") and item != trace.advice]
            advice = [f"{trace.advice}, and diagnose again before blaming the guide", *kept]
    summary = "; ".join(texts) + "."
    summary = summary[:1].upper() + summary[1:]
    if advice:
        summary += " Next: " + "; then ".join(advice) + "."
    verdict: Verdict = worst if worst != "unknown" else "usable"
    return verdict, summary


def _plot_weights(axes: Any, finding: ParetoK) -> None:
    for chain, k in zip(finding.log_weights.double(), finding.k_hats):
        weights = chain[chain.isfinite()]
        if len(weights):
            weights = (weights - weights.logsumexp(0)).exp().sort(descending=True).values
            label = f"k-hat {k:.2f}" if math.isfinite(k) else "k-hat not defined"
            axes.loglog(torch.arange(1, len(weights) + 1).numpy(), weights.numpy(), ".", markersize=3, label=label)
    axes.axhline(1 / finding.num_samples, color="grey", linewidth=0.8, linestyle=":")
    axes.set_ylim(bottom=max(axes.get_ylim()[0], 1e-12))
    axes.set(xlabel="rank of the draw", ylabel="normalised weight p / q", title=f"k-hat, limit {finding.threshold:.2f}")
    axes.legend(fontsize="small")


def _plot_rows(axes: Any, finding: RowWeights) -> None:
    axes.plot(finding.k_hats.sort().values.numpy(), "+", markersize=4)
    axes.axhline(finding.threshold, color="grey", linewidth=0.8, linestyle="--")
    axes.set(xlabel="data point, in order", ylabel="Pareto k", title=f"k-hat per data point, limit {finding.threshold:.2f}")


def _plot_losses(axes: Any, finding: Convergence) -> None:
    for row in finding.losses:
        axes.plot(row.numpy(), linewidth=0.6)
    window = max(trend.window for trend in finding.trends)
    axes.axvspan(finding.steps - window, finding.steps, color="grey", alpha=0.15)
    finite = finding.losses[finding.losses.isfinite()].double()
    if len(finite):
        low, high = (
            float(finite.min()),
            float(finite.quantile(0.98) if len(finite) < 1_000_000 else finite.max()),
        )
        axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low) or 1.0)
    axes.set(xlabel="step", ylabel="loss (nats)", title=f"loss: {finding.status}")


def _plot_pointwise(axes: Any, finding: ElpdLOO) -> None:
    for name, site in finding.sites.items():
        axes.plot(site.pareto_k.numpy(), "+", markersize=4, label=name)
    axes.axhline(finding.threshold, color="grey", linewidth=0.8, linestyle="--")
    axes.set(xlabel="observation", ylabel="Pareto k", title=f"leave-one-out, limit {finding.threshold:.2f}")
    axes.legend(fontsize="small")
