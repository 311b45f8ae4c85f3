"""Why is an ELBO below log p(x)? The part that the family costs, and the part that sharing an encoder costs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from guides.compile.executable import Executable
from guides.errors import OptionError, UnsupportedModelError
from guides.evidence.importance_weights import WeightKernel, rows_apart
from guides.evidence.marginal import rows_to_evaluate
from guides.evidence.offsets import OffsetLayout, Refine
from guides.fitted.fitted import FittedGuide
from guides.optimise.optimisers import adam
from guides.program.data import Data
from guides.program.guide import as_guide
from guides.program.isolation import quiet, seeded
from guides.program.noise import Noise, NoiseTape
from guides.program.parameters import isolated_store
from guides.program.program import Program
from guides.program.progress import shows_progress
from guides.program.vectorise import Vectorised
from guides.psis import MIN_DRAWS, float_tolerance, psis

__all__ = ["InferenceGap", "inference_gap"]

_RATES = 4.0


@dataclass(frozen=True)
class InferenceGap:
    r"""What separates the ELBO of each data point from log p(x), made by :func:`inference_gap`. In nats, on the CPU.

    All tensors are float64 of shape ``(N,)``. The errors are Monte Carlo standard errors; gaps are differences over the same
    noise, so theirs are smaller than those of their parts.

    :ivar log_marginal: :math:`\log \hat p(x_n)`, importance-weighted with the best member of the family.
    :ivar best_elbo: ELBO of the best member found for the data point.
    :ivar elbo: ELBO of the guide.
    :ivar approximation_error: standard error of :attr:`approximation_gap`.
    :ivar amortisation_error: standard error of :attr:`amortisation_gap`.
    :ivar total_error: standard error of :attr:`total_gap`.
    :ivar k_hat: Pareto k-hat behind ``log_marginal``; NaN for fewer than 25 draws.
    :ivar num_samples: S, draws behind each figure.
    :ivar steps: optimisation steps per data point.
    """

    log_marginal: Tensor
    best_elbo: Tensor
    elbo: Tensor
    approximation_error: Tensor
    amortisation_error: Tensor
    total_error: Tensor
    k_hat: Tensor
    num_samples: int
    steps: int

    @property
    def approximation_gap(self) -> Tensor:
        """What the best member of the family lacks: log p(x) minus its ELBO."""
        return self.log_marginal - self.best_elbo

    @property
    def amortisation_gap(self) -> Tensor:
        """What the guide lacks of the best member of its family."""
        return self.best_elbo - self.elbo

    @property
    def total_gap(self) -> Tensor:
        """The inference gap, log p(x) minus the guide's ELBO: the sum of the two."""
        return self.log_marginal - self.elbo

    def mean(self, name: str) -> tuple[float, float]:
        """Return the mean over data points and its Monte Carlo standard error.

        :param name: ``"approximation"``, ``"amortisation"`` or ``"total"``.
        """
        gap, error = getattr(self, f"{name}_gap"), getattr(self, f"{name}_error")
        return float(gap.mean()), float(error.square().sum().sqrt()) / len(gap)

    def __str__(self) -> str:
        lines = [f"inference gap of {len(self.elbo):,} data points, nats (S = {self.num_samples}, {self.steps} steps each)"]
        for name, text in (
            ("approximation", "the family"),
            ("amortisation", "the encoder"),
            ("total", "together"),
        ):
            mean, error = self.mean(name)
            lines.append(f"{name:<14} {mean:8.3f} ± {error:.2g}  ({text})")
        return "\n".join(lines)


def inference_gap(
    posterior: FittedGuide,
    *data: Any,
    num_samples: int = 1000,
    steps: int = 300,
    particles: int = 8,
    lr: float = 0.1,
    chunk: int | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> InferenceGap:
    r"""Split the inference gap of a guide with local latents into the family's part and the encoder's.

    .. math::
        \underbrace{\log p(x_n) - \mathcal{L}(q^*_n)}_{\text{approximation gap}}
        + \underbrace{\mathcal{L}(q^*_n) - \mathcal{L}(q(\cdot \mid x_n))}_{\text{amortisation gap}}, \qquad
        q^*_n = \arg\max_q \mathcal{L}(q)

    The best :math:`q^*_n` is sought for each data point by Adam over location and scale (or Cholesky factor, or low-rank
    factor) of every latent's Gaussian, from what the encoder says; flows on top of it, and the dependence of a layer on
    another one's draw, stay as they are. All points are optimised at once, and judged by draws that the search did not see.

    Both parts are estimates from one side: importance sampling does not exceed log p(x) on average, and a search may stop
    short, which moves nats from the amortisation gap to the approximation gap. If ``steps`` changes the figures, take more.

    :param posterior: one fit whose guide computes every latent from the rows.
    :param data: arguments of the model; the training data by default.
    :param num_samples: S, draws per data point to judge by.
    :param steps: steps of Adam per data point, with a learning rate that falls to zero.
    :param particles: draws per step.
    :param lr: first learning rate, in standard deviations of the encoder's Gaussian.
    :param chunk: rows times particles to evaluate at once.
    :param seed: of all draws.
    :param progress: show a progress bar; by default if standard error is a terminal.
    :raises OptionError: for numbers below 1, or several replicates.
    :raises DataError: for values that are not finite, or outside the support of an observed site.
    :raises UnsupportedModelError: if a latent is shared by the rows or is not computed from them, or its distribution is not
        built on a Gaussian.

    References: Cremer, Li & Duvenaud (2018), *Inference suboptimality in variational autoencoders*.

    Example::

        >>> import pyro, pyro.distributions as dist, torch, guides
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):  # the scale is the exact posterior's, the location is not
        ...     shift = pyro.param("shift", torch.tensor(1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2 + shift, 0.5**0.5))
        >>> guide.amortized = frozenset({"z"})
        >>> posterior = guides.fit(model, guide, torch.randn(100), steps=1)
        >>> gap = guides.inference_gap(posterior, torch.randn(20))
        >>> bool(gap.approximation_gap.abs().max() < 0.01 and (gap.amortisation_gap - 1.0).abs().max() < 0.2)
        True
    """
    rows = _checked(
        posterior, data, {"num_samples": num_samples, "steps": steps, "particles": particles, "chunk": chunk}, lr
    )
    generator = torch.Generator(posterior.device).manual_seed(seed)
    show = shows_progress(progress)
    with isolated_store(), quiet(), seeded(seed), torch.no_grad():
        kernel = WeightKernel(posterior.program, posterior.flat[0], rows, particles, chunk=chunk, compile="eager")
        search = _Search(kernel, posterior.program, particles, float(lr))
        parts = []
        total = kernel.blocks * (steps + math.ceil(num_samples / particles))
        with tqdm(total=total, desc="inference gap", unit="step", disable=not show, delay=1.0, leave=False) as bar:
            for block in range(kernel.blocks):
                index, kept = kernel.index(block)
                tensors = kernel.rows_of(index)
                offsets = search.best(tensors, steps, generator, bar)
                best, own = search.log_weights(offsets, tensors, num_samples, generator, bar)
                parts.append(_figures(best[:kept].cpu(), own[:kept].cpu()))
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return InferenceGap(**joined, num_samples=num_samples, steps=steps)


def _checked(posterior: FittedGuide, data: tuple[Any, ...], counts: dict[str, int | None], lr: float) -> Data:
    for name, value in counts.items():
        if value is not None and (not isinstance(value, int) or value < 1):
            raise OptionError(f"{name} must be a whole number of at least 1, not {value!r}")
    if not (isinstance(lr, int | float) and lr > 0 and math.isfinite(lr)):
        raise OptionError(f"lr must be positive and finite, not {lr!r}")
    if posterior.replicates > 1:
        raise OptionError(f"this posterior holds {posterior.replicates} fits; take one: posterior.replicate(0)")
    program = posterior.program
    if not rows_apart(program):
        name = sorted(set(program.latents) - program.amortized)[0]
        raise UnsupportedModelError(
            f"latent site {name!r} is not computed from the rows by the guide {posterior.family!r}, so nothing is amortised "
            "there; gaps per data point are those of guides such as 'amortized' in models whose latents are all local"
        )
    return rows_to_evaluate(posterior, data)


class _Search:
    """Optimise offsets of a block of rows, all blocks by the same graph."""

    def __init__(self, kernel: WeightKernel, program: Program, particles: int, lr: float) -> None:
        self._kernel, self._particles, self._lr = kernel, particles, lr
        # In units of standard deviations curvatures are about one: below the rate, gradients count by their size, so that
        # those that are rounding alone move nothing.
        self._adam = adam(epsilon=_RATES * lr)
        self._over_draws = Vectorised("draws")
        tensors = kernel.rows_of(torch.zeros(kernel.plan.rows, dtype=torch.long, device=kernel.device))
        # A guide that refines what its encoder says is no starting point: its refinements depend on the draw.
        self._start = as_guide(program.guide).unrefined
        _, guide_trace = kernel.draw(tensors, NoiseTape(), self._start())
        self._layout = OffsetLayout(guide_trace, program.latents)
        self._step = Executable(self._one_step, "the search for the best approximation", "trace")
        self._evaluate = Executable(self._both, "the search for the best approximation", "trace")

    def best(self, tensors: tuple[Tensor, ...], steps: int, generator: torch.Generator, bar: Any) -> Tensor:
        """Return the flat offsets of the best member of the family for each row."""
        state = (torch.zeros(self._layout.size, device=self._kernel.device),) * 3
        for k in range(steps):
            noise = self._kernel.layout.draw((self._particles,), generator)
            rate = state[0].new_full((1,), self._lr * (1 - k / steps))
            factors = self._adam.factors(state[0].new_full((1,), float(k + 1)))
            state = self._step(*state, rate, factors, noise.normals, noise.uniforms, *tensors)  # type: ignore[assignment]
            bar.update()
        return state[0]

    def log_weights(
        self, offsets: Tensor, tensors: tuple[Tensor, ...], num_samples: int, generator: torch.Generator, bar: Any
    ) -> tuple[Tensor, Tensor]:
        """Return log weights with and without offsets over the same noise, float64 of shape ``(rows, draws)`` each."""
        found = []
        for _ in range(math.ceil(num_samples / self._particles)):
            noise = self._kernel.layout.draw((self._particles,), generator)
            found.append(self._evaluate(offsets, noise.normals, noise.uniforms, *tensors))
            bar.update()
        best, own = (torch.cat(parts)[:num_samples].mT.double() for parts in zip(*found))
        return best, own

    @contextmanager
    def _moved(self, offsets: Tensor, sticking: bool) -> Iterator[None]:
        with self._start(), Refine(self._layout.split(offsets), sticking):
            yield

    def _draws(self, offsets: Tensor | None, noise: Noise, tensors: tuple[Tensor, ...], sticking: bool = False) -> Tensor:
        """Return log weights, shape ``(draws, rows)``, of the guide as it is or with offsets to what its encoder says."""

        def one(normals: Tensor, uniforms: Tensor) -> Tensor:
            around = None if offsets is None else self._moved(offsets, sticking)
            return self._kernel.draw(tensors, NoiseTape(Noise(normals, uniforms)), around)[0]

        found: Tensor = self._over_draws(one, (0, 0), noise.normals, noise.uniforms)
        return found

    def _one_step(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        offsets, mean, square, rate, factors, normals, uniforms, *tensors = inputs

        def loss(offsets: Tensor) -> Tensor:
            return -self._draws(offsets, Noise(normals, uniforms), tuple(tensors), sticking=True).mean(0).sum()

        gradient = torch.func.grad(loss)(offsets)
        direction, moments = self._adam.update(gradient, (mean, square), factors)
        return (offsets - rate * direction, *moments)

    def _both(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        offsets, normals, uniforms, *tensors = inputs
        noise = Noise(normals, uniforms)
        return (
            self._draws(offsets, noise, tuple(tensors)),
            self._draws(None, noise, tuple(tensors)),
        )


def _figures(best: Tensor, own: Tensor) -> dict[str, Tensor]:
    """Return fields of :class:`InferenceGap` from log weights ``(rows, draws)`` of the best member and of the guide."""
    size = best.shape[1]
    log_marginal = best.logsumexp(1) - math.log(size)
    undefined = torch.full_like(log_marginal, math.nan)
    # How much each draw moves an estimate: the error of a difference of estimates is that of the difference of these.
    weight = (best - log_marginal.unsqueeze(1)).exp()

    def error(moves: Tensor) -> Tensor:
        return moves.std(1) / math.sqrt(size) if size > 1 else undefined

    return {
        "log_marginal": log_marginal,
        "best_elbo": best.mean(1),
        "elbo": own.mean(1),
        "approximation_error": error(weight - best),
        "amortisation_error": error(best - own),
        "total_error": error(weight - own),
        "k_hat": psis(best, float_tolerance(best.float()))[1] if size >= MIN_DRAWS else undefined,
    }
