"""Honest marginal likelihoods: importance-weighted log p(x) of every data point, with what is known of its error."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from guides.compile.executable import COMPILE_MODES
from guides.errors import DataError, OptionError, UnsupportedModelError, check_known
from guides.evidence.importance_weights import WeightKernel, rows_apart
from guides.evidence.stream import StreamCheckpoint, WeightStream
from guides.fitted.fitted import FittedGuide
from guides.program.checks import check_values
from guides.program.data import Data
from guides.program.fingerprint import arguments, digest, operations, program_parts
from guides.program.guide import is_point_mass
from guides.program.inputs import read_like
from guides.program.isolation import quiet, seeded
from guides.program.parameters import isolated_store
from guides.program.progress import shows_progress
from guides.program.row_keys import row_keys
from guides.psis import MIN_DRAWS, pareto_k_threshold
from guides.showing.tables import panel

__all__ = ["LogMarginal", "log_marginal", "rows_to_evaluate"]

_ROWS_PER_CHECK = 1024
_ROWS_FOR_CHECKPOINT = 2


@dataclass(frozen=True, repr=False)
class LogMarginal:
    r"""Importance-weighted log p(x) of data points, made by :func:`log_marginal`. In nats, float64, on the CPU.

    :ivar values: :math:`\log \hat p(x_n)`, shape ``(N,)``; ``(1,)`` where latents are shared by the rows.
    :ivar standard_error: Monte Carlo standard error of each value, shape as ``values``; NaN for one draw.
    :ivar k_hat: Pareto k-hat of each point's importance weights; NaN for fewer than 25 draws.
    :ivar num_samples: S, the draws behind each value.
    :ivar num_points: N, the data points that the values are about.
    :ivar split: what the caller said that the rows are: ``"test"``, ``"train"`` or ``None``.
    """

    values: Tensor
    standard_error: Tensor
    k_hat: Tensor
    num_samples: int
    num_points: int
    split: str | None = None

    @property
    def mean(self) -> float:
        """Mean of the values over points (the total, if there is one value)."""
        return float(self.values.mean())

    @property
    def mean_standard_error(self) -> float:
        """Monte Carlo standard error of :attr:`mean` for these very points: what other draws would change."""
        return float(self.standard_error.square().sum().sqrt()) / len(self.values)

    @property
    def sampling_error(self) -> float:
        """Standard error of :attr:`mean` over points: what other points of the same kind would change. NaN for one value."""
        return float(self.values.std()) / math.sqrt(len(self.values)) if len(self.values) > 1 else math.nan

    @property
    def bias(self) -> Tensor:
        r"""What the values lack on average, to first order: :math:`-\tfrac12` times the squared standard error.

        The mean weight is unbiased, its logarithm is not: in expectation a value is a lower bound on log p(x), the one that
        IWAE maximises.
        """
        return -0.5 * self.standard_error.square()

    @property
    def k_threshold(self) -> float:
        """The largest k-hat at which S draws give usable values and standard errors."""
        return pareto_k_threshold(self.num_samples)

    @property
    def share_above_threshold(self) -> float:
        """Share of the points whose k-hat is above :attr:`k_threshold`; NaN for fewer than 25 draws."""
        if self.num_samples < MIN_DRAWS:
            return math.nan
        return float((~(self.k_hat <= self.k_threshold)).double().mean())

    def __str__(self) -> str:
        rows = "1 data point" if self.num_points == 1 else f"{self.num_points:,} data points"
        what = rows if len(self.values) == self.num_points else f"all {rows} together"
        of = f"{self.split} " if self.split else ""
        lines = [f"log p(x) of {of}{what}: {self.mean:.3f} ± {self.mean_standard_error:.2g} nats (S = {self.num_samples})"]
        if len(self.values) > 1:
            lines[0] += f", ± {self.sampling_error:.2g} over points"
        if self.num_samples < MIN_DRAWS:
            lines.append(f"fewer than {MIN_DRAWS} draws: no k-hat, so nothing says whether the errors can be believed")
        elif self.share_above_threshold > 0:
            lines.append(
                f"k-hat is above {self.k_threshold:.2f} for {100 * self.share_above_threshold:.3g} % of the values (median "
                f"{float(self.k_hat.nanmedian()):.2f}): those are lower bounds that more draws would raise, with standard "
                "errors that are too small"
            )
        else:
            lines.append(f"k-hat is at most {float(self.k_hat.max()):.2f} (limit {self.k_threshold:.2f})")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        head, *lines = str(self).splitlines()
        return panel(head, "", lines)


def log_marginal(
    posterior: FittedGuide,
    *data: Any,
    num_samples: int = 1000,
    chunk: int | None = None,
    seed: int = 0,
    split: str | None = None,
    denominator: str = "full",
    checkpoint: str | Path | None = None,
    progress: bool | None = None,
    compile: str = "auto",
) -> LogMarginal:
    r"""Estimate log p(x) of every data point by importance sampling from the guide.

    .. math::
        \log \hat p(x_n) = \log \frac1S \sum_{s=1}^S w_{ns}, \qquad w_{ns} = \frac{p(x_n, z_{ns})}{q(z_{ns} \mid x_n)},
        \quad z_{ns} \sim q(z \mid x_n)

        \mathrm{se}_n^2 = \frac{1}{S - 1} \Big( \frac{S \sum_s w_{ns}^2}{(\sum_s w_{ns})^2} - 1 \Big)

    The error is that of the logarithm (delta method). The expectation is at most log p(x_n), for any guide, and rises with
    S; k-hat says whether S was enough. Models whose observations are y given x, such as a conditional VAE, give
    log p(y | x) by the same call with ``(x, y)``.

    Rows and draws are taken in chunks, and of the weights only running sums and the largest :math:`3 \sqrt S` of the rows at
    hand are kept, so memory does not grow with S.

    Where latents are shared by the rows (weights of a network, say) a row has no marginal likelihood of its own: the result
    is then the log evidence of all training data together, one value. For new rows under such a posterior use
    ``posterior.log_likelihood(...)`` with :func:`guides.predictive.log_predictive_density`.

    :param posterior: one fit whose guide has a density.
    :param data: arguments of the model; the training data by default.
    :param num_samples: S, draws per data point.
    :param chunk: draws of a row (rows times draws) to evaluate at once; by default as many as need about 128 MiB, or
        1 GiB of a GPU.
    :param seed: the same seed and chunk give the same values.
    :param split: ``"test"`` promises that the posterior was not fitted to these rows, which is checked; ``"train"`` that it
        was; ``None`` promises nothing.
    :param denominator: for guides that are mixtures: ``"full"`` divides by the density of the whole mixture,
        ``"component"`` by that of the component drawn from. On paper that is unbiased too; with components that do not
        overlap it is too low by up to log K, and neither standard error nor k-hat show it.
    :param checkpoint: a file to save to every 20 seconds, and to continue from if it exists. What is continued equals
        what was not interrupted, bit by bit.
    :param progress: show a progress bar; by default if standard error is a terminal.
    :param compile: as for :func:`guides.fit`; ``"auto"`` takes what pays.
    :raises OptionError: for S or ``chunk`` below 1, unknown words, several replicates, or a checkpoint of another run.
    :raises DataError: for values that are not finite or outside a support, or training rows under ``split="test"``.
    :raises UnsupportedModelError: for a guide without a density, or new rows that the guide cannot follow.

    References: Burda, Grosse & Salakhutdinov (2016), *Importance weighted autoencoders*; Owen (2013), *Monte Carlo theory,
    methods and examples*, chapter 9; Vehtari et al. (2024), *Pareto smoothed importance sampling*.

    Example::

        >>> import pyro, pyro.distributions as dist, torch, guides
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     slope = pyro.param("slope", torch.tensor(0.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(slope * x, 0.8))
        >>> guide.amortized = frozenset({"z"})
        >>> posterior = guides.fit(model, guide, torch.randn(100), steps=300)
        >>> found = guides.log_marginal(posterior, torch.zeros(1), num_samples=1000, split="test")
        >>> exact = dist.Normal(0.0, 2**0.5).log_prob(torch.zeros(1))
        >>> bool((found.values - exact).abs() < 4 * found.standard_error)
        True
    """
    rows = _checked(posterior, data, num_samples, chunk, split, compile)
    flat = posterior.flat[0]
    with isolated_store(), quiet(), torch.no_grad(), seeded(seed):
        kernel = WeightKernel(
            posterior.program, flat, rows, num_samples, chunk=chunk, denominator=denominator, compile=compile
        )
        run = WeightStream(kernel, num_samples, seed, flat.device)
        saver = None
        if checkpoint is not None:
            saver = StreamCheckpoint(Path(checkpoint), _fingerprint(posterior, rows, run, denominator))
            saver.restore(run)
        show = shows_progress(progress)
        total = num_samples * (rows.size if kernel.apart else 1)
        with tqdm(
            total=total, desc="log p(x)", unit="draw", unit_scale=True, disable=not show, delay=1.0, leave=False
        ) as bar:
            bar.update(run.evaluated)
            try:
                while not run.done:
                    bar.update(run.advance())
                    if saver is not None:
                        saver.save_sometimes(run)
            finally:
                if saver is not None:
                    saver.save(run)
    values, errors, k_hats = (torch.cat(parts) for parts in zip(*run.state.finished))
    return LogMarginal(values, errors, k_hats, num_samples, max(rows.size, 1), split)


def _checked(
    posterior: FittedGuide, data: tuple[Any, ...], num_samples: int, chunk: int | None, split: str | None, compile: str
) -> Data:
    """Return the rows to evaluate, after all checks."""
    for name, value in (("num_samples", num_samples), ("chunk", chunk)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise OptionError(f"{name} must be a whole number of at least 1, not {value!r}")
    check_known("split", split, ("test", "train", None))
    check_known("compile", compile, COMPILE_MODES)
    if posterior.replicates > 1:
        raise OptionError(f"this posterior holds {posterior.replicates} fits; take one: posterior.replicate(0)")
    if is_point_mass(posterior.guide):
        raise UnsupportedModelError(
            f"guide {posterior.family!r} is a point mass: it has no density, so there are no importance weights; use "
            "another guide, or score held-out data by posterior.log_likelihood"
        )
    rows = rows_to_evaluate(posterior, data)
    if not rows_apart(posterior.program):
        _check_training_rows(posterior, rows)
    if split == "test":
        _check_held_out(posterior, rows)
    return rows


def rows_to_evaluate(posterior: FittedGuide, data: tuple[Any, ...]) -> Data:
    """Return new rows, on which the model was seen to run, or the training data if there are none.

    :raises DataError: for values that are not finite, or outside the support of an observed site.
    """
    if not data:
        return posterior.training
    rows = read_like(posterior.model, posterior.training, data, None, posterior.device)
    if rows_apart(posterior.program):  # others are the training data, or refused
        with isolated_store(), seeded(0):
            check_values(posterior.model, rows, min(rows.size, _ROWS_PER_CHECK))
    return rows


def _check_training_rows(posterior: FittedGuide, rows: Data) -> None:
    """Check that a guide which cannot follow new rows is given those that it was fitted to."""
    program, training = posterior.program, posterior.training
    if rows is training or (rows.size == training.size and torch.equal(row_keys(rows), row_keys(training))):
        return
    shared = [name for name in program.latents if name not in program.follows.local]
    if shared:
        raise UnsupportedModelError(
            f"latent site {shared[0]!r} is shared by all rows, so new rows have no marginal likelihood of their own; score "
            "them by posterior.log_likelihood(...) and guides.predictive.log_predictive_density, or leave the data out for "
            "the log evidence of the training data"
        )
    held = sorted(program.follows.local - program.amortized)[0]
    raise UnsupportedModelError(
        f"latent site {held!r} has one value per row, and guide {posterior.family!r} keeps values for the training rows "
        "only; use the guide 'amortized', or name the site in your guide's attribute amortized"
    )


def _check_held_out(posterior: FittedGuide, rows: Data) -> None:
    """Check that at least half of the rows are none that the posterior was fitted to."""
    seen = rows.size
    if rows is not posterior.training:
        seen = int(torch.isin(row_keys(rows), row_keys(posterior.training)).sum())
    if 2 * seen > rows.size:
        raise DataError(
            f"split='test', but {seen} of the {rows.size} rows are rows that the posterior was fitted to; pass held-out "
            "rows, or split='train'"
        )


def _fingerprint(posterior: FittedGuide, rows: Data, run: WeightStream, denominator: str) -> dict[str, Any]:
    kernel, program = run.kernel, posterior.program
    some = rows.head(min(rows.size, _ROWS_FOR_CHECKPOINT)) if rows_apart(program) else rows
    layout = program.noise_for(some)
    return {
        "num_samples": run.num_samples,
        "seed": run.seed,
        "denominator": denominator,
        "compile": kernel.mode,
        "chunks": f"{kernel.plan.rows} rows, {kernel.plan.draws} draws",
        **arguments("", [rows]),
        "parameters": digest(posterior.flat[0]),
        **program_parts(program),
        "the operations of model and guide": operations(replace(program, noise=layout), posterior.flat[0], some),
    }
