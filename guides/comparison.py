"""``compare``: several guides on one model and data, in one table."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from guides.density.method import applying, method_of
from guides.density.method import label as method_label
from guides.diagnostics import Diagnosis, diagnose
from guides.diagnostics.diagnosis import DRAWS
from guides.diagnostics.truth import held_against, together
from guides.errors import OptionError
from guides.families.choose import guide_factory
from guides.fitting import fit
from guides.posterior import Posterior
from guides.program.guide import amortized_sites, is_point_mass
from guides.program.keywords import check_names, keywords_of
from guides.program.sending import Raised, called_on
from guides.psis import MIN_DRAWS
from guides.samplers.reference import reference as _draw_reference
from guides.showing.figures import new_figure
from guides.showing.tables import Table, panel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Comparison", "ComparisonRow", "compare"]

_ROW_DRAWS = 100_000
_TRUTH_DRAWS = 4000
_TRUTH = ("mean error (sd)", "sd off (factor)", "corrected", "W1 (sd)", "gradients")


@dataclass(frozen=True)
class ComparisonRow:
    """One guide's line in the table; ``nan`` where a figure is not defined for the guide.

    :ivar elbo: evidence lower bound in nats over ``num_samples`` draws, and its Monte Carlo standard error.
    :ivar k_hat: Pareto k-hat of the importance weights; of guides with an encoder the median over data points.
    :ivar elpd: expected log predictive density by PSIS-LOO in nats, and its standard error.
    :ivar seconds: wall time of the fit.
    :ivar error: what went wrong, or empty.
    :ivar mean_error: largest error of a mean over all elements of latent and deterministic sites, in standard deviations of
        the reference; ``mean_error_average``: their mean. These and the next are there with a reference only.
    :ivar sd_off: largest factor between a standard deviation and the reference's, 1 or more.
    :ivar corrected_mean_error: ``mean_error`` of draws corrected by their weights; ``corrected_sd_off`` likewise.
    :ivar wasserstein: mean 1-Wasserstein distance of the marginals, in standard deviations of the reference.
    :ivar gradients: evaluations of the model's gradient that the fit took.
    """

    guide: str
    elbo: float = math.nan
    elbo_se: float = math.nan
    k_hat: float = math.nan
    elpd: float = math.nan
    elpd_se: float = math.nan
    seconds: float = math.nan
    verdict: str = ""
    error: str = ""
    mean_error: float = math.nan
    mean_error_average: float = math.nan
    sd_off: float = math.nan
    corrected_mean_error: float = math.nan
    corrected_sd_off: float = math.nan
    wasserstein: float = math.nan
    gradients: float = math.nan


@dataclass(frozen=True, repr=False)
class Comparison:
    """Guides side by side, best ELBO first; print it for a table.

    :ivar rows: one per guide.
    :ivar posteriors: by guide; without those that failed.
    :ivar diagnoses: by guide.
    :ivar reference: draws of the posterior that guides were held against, if that was asked for.
    """

    rows: tuple[ComparisonRow, ...]
    posteriors: Mapping[str, Posterior] = field(repr=False)
    diagnoses: Mapping[str, Diagnosis] = field(repr=False)
    reference: Posterior | None = field(repr=False, default=None)

    @property
    def best(self) -> str:
        """The guide with the highest ELBO whose fit is not judged unreliable, or else the highest ELBO."""
        ranked = [r for r in self.rows if not math.isnan(r.elbo)] or list(self.rows)
        return next((r.guide for r in ranked if r.verdict != "unreliable"), ranked[0].guide)

    def to_dict(self) -> list[dict[str, Any]]:
        """Return the rows as plain Python; figures that are not defined become None."""
        clean = lambda v: None if isinstance(v, float) and math.isnan(v) else v  # noqa: E731
        return [{k: clean(v) for k, v in asdict(r).items()} for r in self.rows]

    def _table(self) -> Table:
        head: tuple[str, ...] = ("guide", "verdict", "ELBO (nats)", "k-hat", "elpd LOO (nats)", "seconds")
        rows: list[tuple[str, ...]] = [_cells(r) for r in self.rows]
        if self.reference is not None:
            head = (*head, *_TRUTH)
            rows = [row + _truth_cells(r) for row, r in zip(rows, self.rows)]
        return Table(head, rows, left=2)

    def _failures(self) -> list[str]:
        return [f"{row.guide} failed: {row.error}" for row in self.rows if row.error]

    def __str__(self) -> str:
        return "\n".join([self._table().text(), *self._failures()])

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return panel("Guides, best ELBO first", "", self._failures(), [self._table()])

    def plot(self, site: str | None = None) -> Figure:
        """Draw each guide's ELBO with its error, and the posterior of one latent site as intervals (a forest plot).

        :param site: a latent site; the smallest one by default. At most eight of its elements are drawn.
        """
        figure = new_figure(11, 1.5 + 0.5 * len(self.rows) + 1.0)
        left, right = figure.subplots(1, 2)
        ranked = [r for r in reversed(self.rows) if not math.isnan(r.elbo)]
        left.errorbar([r.elbo for r in ranked], [r.guide for r in ranked], xerr=[2 * r.elbo_se for r in ranked], fmt="o")
        left.set(xlabel="ELBO (nats, ±2 s.e.)", title="Evidence lower bound")
        latents = {n: s for p in self.posteriors.values() for n, s in p.sites.items() if s.kind == "latent"}
        chosen = site or min(latents, key=lambda n: math.prod(latents[n].shape))
        if chosen not in latents:
            raise OptionError(f"site={chosen!r} is not a latent site; the model has {', '.join(latents)}")
        for j, (name, posterior) in enumerate(self.posteriors.items()):
            draws = posterior.draws(500).latents[chosen].flatten(0, 1).cpu()
            draws = draws.reshape(len(draws), -1)[:, :8]
            low, mid, high = (draws.quantile(q, dim=0) for q in (0.03, 0.5, 0.97))
            y = [i + 0.8 * j / max(1, len(self.posteriors)) for i in range(draws.shape[1])]
            right.errorbar(mid, y, xerr=[mid - low, high - mid], fmt="o", ms=4, label=name)
        right.set(xlabel=chosen, ylabel="element", title=f"{chosen}: median and 94% interval")
        right.legend(fontsize="small")
        return figure


def compare(
    model: Callable[..., Any],
    guides: Sequence[Any],
    *data: Any,
    num_samples: int | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    reference: bool | Posterior = False,
    executor: Executor | None = None,
    **fit_options: Any,
) -> Comparison:
    """Fit several guides to the same model and data, diagnose each, and put them in one table.

    A guide whose fit fails gets a line that says why; the others go on. All guides are looked up before the first fit.

    :param guides: anything that :func:`guides.fit` takes as a guide, samplers such as ``"nuts"`` among them.
    :param data: the model's positional arguments.
    :param num_samples: draws behind each figure; by default as many as :func:`guides.diagnose` needs for its verdict.
    :param options: fit options for single guides, by name, on top of ``fit_options``.
    :param reference: hold every guide against draws of the posterior, too: ``True`` draws them by :func:`guides.reference`
        (seconds to minutes; kept on disk), or a posterior that came from it.
    :param executor: where to fit and diagnose the guides beside each other instead of here one after the other: any executor
        of :mod:`concurrent.futures`, such as ``ProcessPoolExecutor()`` or a Dask client's ``get_executor()``.
    :param fit_options: options of :func:`guides.fit`, the same for all; samplers and solvers are spared those of an
        optimisation.
    :raises OptionError: if no guide is given or two have the same name, or a model cannot be sent to the executor's workers.
    :raises NoReferenceError: before any fit, if there is no reference of this posterior.

    Example::

        >>> import pyro, pyro.distributions as dist, torch, guides
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> table = guides.compare(model, ["mean_field", "laplace"], torch.ones(3), steps=500, num_samples=200)
        >>> sorted(row.guide for row in table.rows)
        ['laplace', 'mean_field']
    """
    if num_samples is not None and num_samples < MIN_DRAWS:
        raise OptionError(f"num_samples={num_samples} is too few to diagnose by; use at least {MIN_DRAWS}")
    check_names("compare", fit_options, keywords_of(fit), "arguments of the model go by position, or in model_kwargs={...}")
    if isinstance(guides, str) or not isinstance(guides, Sequence) or _is_spec(guides):
        said = repr(guides) if isinstance(guides, str | tuple) else f"a {type(guides).__name__}"
        raise OptionError(
            f"guides is {said}; compare takes a list of guides after the model, such as ['mean_field', 'laplace']"
        )
    labels = [_label(model, g) for g in guides]
    unknown = sorted(set(options or {}) - set(labels))
    if unknown:
        raise OptionError(
            f"options names the guide {unknown[0]!r}, which is not compared; the guides are {', '.join(labels)}"
        )
    if not labels:
        raise OptionError("guides is empty; pass at least one name")
    if len(set(labels)) < len(labels):
        raise OptionError(f"two guides have the same label among {', '.join(labels)}; give them different options")
    truth = None
    if reference is not False:
        truth = (
            _draw_reference(model, *data, model_kwargs=fit_options.get("model_kwargs")) if reference is True else reference
        )
    known = {} if truth is None else together(truth.draws(log_likelihood=False))
    rows, posteriors, diagnoses = [], {}, {}
    calls = []
    for label, guide in zip(labels, guides):
        common = fit_options if method_of(guide, {}) is None else applying(fit_options)
        calls.append((model, guide, data, {**common, **(options or {}).get(label, {})}, num_samples))
    for label, found in zip(labels, called_on(executor, _fitted, calls)):
        if isinstance(found, Raised):
            if not found.lost and not isinstance(found.error, ValueError | RuntimeError):
                raise found.error
            rows.append(ComparisonRow(label, verdict="failed", error=_one_line(found.error)))
            continue
        posterior, diagnosis = posteriors[label], diagnoses[label] = found
        row = _row(label, posterior, diagnosis, num_samples)
        rows.append(row if truth is None else _against(row, posterior, known))
    rows.sort(key=lambda r: (math.isnan(r.elbo), -r.elbo if not math.isnan(r.elbo) else 0.0))
    return Comparison(tuple(rows), posteriors, diagnoses, truth)


def _fitted(
    model: Callable[..., Any], guide: Any, data: Sequence[Any], options: Mapping[str, Any], num_samples: int | None
) -> tuple[Posterior, Diagnosis]:
    """Fit and diagnose one guide, wherever this is called."""
    posterior = fit(model, guide, *data, **options)
    if posterior.interrupted:
        raise KeyboardInterrupt  # the user wants all of this to end
    return posterior, diagnose(posterior, num_samples=num_samples)


def _against(row: ComparisonRow, posterior: Posterior, truth: Mapping[str, Tensor]) -> ComparisonRow:
    """Return a row with how far a posterior's answers are from those of draws of the truth."""
    raw, corrected = held_against(posterior, truth, _TRUTH_DRAWS, _TRUTH_DRAWS)
    return replace(
        row,
        mean_error=raw.mean_error,
        mean_error_average=float(raw.bias.abs().mean()),
        sd_off=raw.sd_off,
        corrected_mean_error=math.nan if corrected is None else corrected.mean_error,
        corrected_sd_off=math.nan if corrected is None else corrected.sd_off,
        wasserstein=float(raw.distance.mean()),
        gradients=float(posterior.evaluations),
    )


def _one_line(error: Exception) -> str:
    """Return an error in one line, without the shapes that Pyro's traces append to messages."""
    return f"{type(error).__name__}: {' '.join(str(error).split('Trace Shapes:')[0].split())}"


def _is_spec(guides: Sequence[Any]) -> bool:
    """Tell whether this is one guide with its options, ``(name, {...})``."""
    return isinstance(guides, tuple) and len(guides) == 2 and isinstance(guides[1], Mapping)


def _label(model: Callable[..., Any], guide: Any) -> str:
    method = method_of(guide, {})
    if method is not None:
        return method_label(method)
    _, family, options = guide_factory(model, guide)
    return f"{family}({', '.join(f'{k}={v}' for k, v in options.items())})" if options else family


def _row(label: str, posterior: Posterior, diagnosis: Diagnosis, num_samples: int | None) -> ComparisonRow:
    elbo = elbo_se = math.nan
    most = num_samples or DRAWS
    if not is_point_mass(posterior.guide):  # nor a sampler's draws, which have no density
        # With an encoder a draw holds a latent for every row: few draws of many rows say as much.
        few = max(10, _ROW_DRAWS // posterior.training.size) if amortized_sites(posterior.guide) else most
        draws = posterior.draws(min(few, most), log_likelihood=False)
        ratio = (draws.log_p - draws.log_q).flatten()
        elbo, elbo_se = float(ratio.mean()), float(ratio.std() / math.sqrt(len(ratio)))
    elpd = list(diagnosis.elpd.values())
    return ComparisonRow(
        guide=label,
        elbo=elbo,
        elbo_se=elbo_se,
        k_hat=math.nan if diagnosis.k_hat is None else diagnosis.k_hat,
        elpd=sum(e.elpd for e in elpd) if elpd else math.nan,
        elpd_se=math.sqrt(sum(e.se**2 for e in elpd)) if elpd else math.nan,
        seconds=sum(posterior.seconds.values()),
        verdict=diagnosis.verdict,
    )


def _truth_cells(row: ComparisonRow) -> tuple[str, ...]:
    number = lambda v, spec: "-" if math.isnan(v) else format(v, spec)  # noqa: E731
    return (
        number(row.mean_error, ".2f"),
        number(row.sd_off, ".2f"),
        f"{number(row.corrected_mean_error, '.2f')}, {number(row.corrected_sd_off, '.2f')}",
        number(row.wasserstein, ".2f"),
        number(row.gradients, ",.0f"),
    )


def _cells(row: ComparisonRow) -> tuple[str, ...]:
    number = lambda v, spec: "-" if math.isnan(v) else format(v, spec)  # noqa: E731
    plus = lambda v, se: "-" if math.isnan(v) else f"{v:.2f} ± {se:.2f}"  # noqa: E731
    return (
        row.guide,
        row.verdict,
        plus(row.elbo, row.elbo_se),
        number(row.k_hat, ".2f"),
        plus(row.elpd, row.elpd_se),
        number(row.seconds, ".1f"),
    )
