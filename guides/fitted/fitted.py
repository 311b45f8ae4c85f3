"""A fitted guide: parameters and data together, and draws from them."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

from guides.errors import DataError, OptionError
from guides.fitted.draws import PARTS, Draws, take_draws
from guides.fitted.own_sites import trace_at
from guides.fitted.resampled import resampled
from guides.fitted.run import Run, finished
from guides.fitted.sites import Site, sites
from guides.fitted.values import holds_module, mean_of_last, quantiles_over, told_of_shapes, unlike
from guides.optimise.loop import Trained
from guides.optimise.statistics import gather_statistics
from guides.program.data import Data
from guides.program.inputs import read_like
from guides.program.isolation import quiet, seeded
from guides.program.owning import is_owned, owned
from guides.program.parameters import isolated_store
from guides.program.program import Program
from guides.registries import objectives

__all__ = ["FittedGuide"]

_LAST_STEPS = 100


@dataclass(frozen=True)
class FittedGuide:
    """A guide fitted to data: parameters, history, draws and densities; :class:`guides.Posterior` without its judges.

    Everything that draws from a fit, weighs it or scores it needs this much and no more; what its fields mean is said there.
    Frozen: methods return new objects and leave all global state alone.
    """

    family: str
    options: dict[str, Any]
    losses: Tensor
    objective: str
    steps: int
    seed: int
    stop_reasons: tuple[str, ...]
    seconds: dict[str, float]
    info: tuple[dict[str, Any], ...]
    validation: Tensor
    program: Program = field(repr=False)
    flat: Tensor = field(repr=False)
    training: Data = field(repr=False)
    run: Run | None = field(repr=False)

    @classmethod
    def concluded(
        cls, run: Run, trained: Trained, family: str, options: dict[str, Any], *, setup: float, began: float
    ) -> Self:
        """Return what a training ends in.

        :param setup: seconds before the training; ``began``: when it did, by :func:`time.perf_counter`.
        """
        end = time.perf_counter()
        objective = run.program.objective
        program, flat = run.program.in_own_terms(trained.flat)
        program, flat = program.without_objective(flat)
        program, flat, info = finished(program, flat, run.datasets, run.seeds)
        if run.pilot_gradients:
            info = tuple({**each, "pilot_gradients": run.pilot_gradients} for each in info)
        return cls(
            family=family,
            options=options,
            losses=trained.losses,
            objective=next((n for n, o in objectives.items() if o is type(objective)), type(objective).__name__),
            steps=int(trained.steps.max()),
            seed=run.seeds[0],
            stop_reasons=trained.stop_reasons,
            seconds={"setup": setup, "train": end - began, "finish": time.perf_counter() - end},
            info=info,
            validation=trained.validation,
            program=program,
            flat=flat,
            training=run.datasets[0],
            run=run,
        )

    def with_statistics(self, run: Run) -> Self:
        """Return itself, with the running statistics of its own modules gathered at its parameters."""
        gather_statistics(self.program, self.flat[0], run.datasets[0], run.settings.batch_size, run.seeds[0])
        return self

    @property
    def model(self) -> Callable[..., Any]:
        """The trained Pyro model: ``posterior.model.generate(10)`` is that of the posterior; the best of R replicates'."""
        return self.program.model.model

    @property
    def guide(self) -> Callable[..., Any]:
        """The guide, as an object that stock Pyro can use, with the parameters of the best replicate."""
        return self.program.guide

    @property
    def replicates(self) -> int:
        """Number of independent fits R."""
        return self.flat.shape[0]

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended the fit; ``stop_reasons`` says at which step."""
        return any(reason.startswith("interrupted") for reason in self.stop_reasons)

    @property
    def source(self) -> FittedGuide:
        """The posterior that was fitted: this one. Pooled replicates name what they were pooled of."""
        return self

    @property
    def evaluations(self) -> int:
        """Evaluations of the model's gradient that the fit took, over all replicates, with those of its pilot."""
        return self.losses.numel() * self.program.particles + int(self.info[0].get("pilot_gradients", 0))

    @property
    def corrects(self) -> bool:
        """Whether draws are corrected by their weights unless they are asked for as they are, ``corrected=False``; see
        :meth:`correcting`."""
        return any(info.get("corrects", False) for info in self.info)

    def correcting(self, corrects: bool = True) -> Self:
        """Return the same posterior, whose draws are corrected by default, or are not."""
        return replace(self, info=tuple({**info, "corrects": corrects} for info in self.info))

    @property
    def data(self) -> tuple[Any, ...]:
        """Positional arguments of the training data."""
        return self.training.args

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.flat.device

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Parameters of model and guide by name, as both see them; leading dimension R if R > 1."""
        flat = self.flat if self.replicates > 1 else self.flat[0]
        return {k: v.detach() for k, v in self.program.parameters.constrained(flat).items()}

    @property
    def sites(self) -> dict[str, Site]:
        """The latent, observed and deterministic sites of the model."""
        return sites(self.program)

    def replicate(self, index: int) -> Self:
        """Return one of the R fits as a posterior of its own.

        :raises IndexError: if there is no such replicate.
        """
        if not 0 <= index < self.replicates:
            raise IndexError(f"replicate {index} of {self.replicates}; use 0 to {self.replicates - 1}")
        row = slice(index, index + 1)
        return replace(
            self,
            flat=self.flat[row].clone(),
            losses=self.losses[row],
            validation=self.validation[row],
            stop_reasons=self.stop_reasons[row],
            info=self.info[row],
            seed=self.seed + index,
            run=None if self.run is None else self.run.row(index),
        ).owning()

    def owning(self) -> Self:
        """Return the same posterior with a model and guide of its own, which hold its parameters (those of the best
        replicate)."""
        memo = {id(a): a for a in (*self.training.args, *self.training.kwargs.values()) if isinstance(a, Tensor)}
        program = owned(self.program, memo)
        program.parameters.write_back(self.flat[self._best], spared=lambda module: not is_owned(module))
        options = {k: copy.deepcopy(v, memo) if holds_module(v) else v for k, v in self.options.items()}
        run = self.run
        if run is not None:
            run = replace(run, program=program if run.program is self.program else owned(run.program, memo))
        return replace(self, program=program, options=options, run=run)

    def best(self) -> Self:
        """Return the replicate with the best validation score, or else with the lowest loss over the last tenth of the steps
        (at most 100)."""
        return self.replicate(self._best)

    def median(self, num_samples: int = 1000, seed: int | None = None) -> dict[str, Tensor]:
        """Return the median of every element of the latent sites over draws, shape of the site, or ``(R, ...)``."""
        axis = min(self.replicates - 1, 1)
        return {n: v[(slice(None),) * axis + (0,)] for n, v in self.quantiles([0.5], num_samples, seed).items()}

    def quantiles(
        self, quantiles: Sequence[float] | Tensor, num_samples: int = 1000, seed: int | None = None
    ) -> dict[str, Tensor]:
        """Return quantiles of every element of the latent sites over draws, shape ``(Q, *site shape)``, or ``(R, Q, ...)``.

        :param quantiles: probabilities, Q of them.
        """
        drawn = self.sample(num_samples, seed)
        axis = min(self.replicates - 1, 1)
        q = torch.as_tensor(quantiles, dtype=torch.double, device=self.device)
        if q.dim() != 1 or not bool(((q >= 0) & (q <= 1)).all()):
            raise OptionError(f"quantiles must be a sequence of probabilities between 0 and 1, not {quantiles!r}")
        return {n: quantiles_over(v, q, axis) for n, v in drawn.items()}

    def _moments(self, num_samples: int, seed: int | None) -> dict[str, dict[str, Tensor]]:
        """Return mean, standard deviation, median, 5 % and 95 % quantiles of every latent site over draws."""
        axis = min(self.replicates - 1, 1)
        q = torch.tensor([0.05, 0.5, 0.95], dtype=torch.double, device=self.device)
        found = {}
        for name, value in self.sample(num_samples, seed).items():
            low, middle, high = quantiles_over(value, q, axis).unbind(axis)
            real = value.to(middle.dtype)
            spread = real.std(axis) if num_samples > 1 and real.numel() else torch.full_like(middle, math.nan)
            found[name] = {"mean": real.mean(axis), "std": spread, "median": middle, "5.0%": low, "95.0%": high}
        return found

    @property
    def _best(self) -> int:
        """The replicate with the best validation score, or else the lowest loss at the end."""
        if self.validation.shape[1]:
            return int(self.validation.nan_to_num(-math.inf, posinf=-math.inf).amax(1).argmax())
        return int(self.final_losses.argmin())

    @property
    def final_losses(self) -> Tensor:
        """The mean loss of each replicate over the last tenth of its steps (at most 100) in nats, shape ``(R,)``."""
        last = max(1, min(_LAST_STEPS, self.losses.shape[1] // 10))
        return torch.stack([mean_of_last(row, last) for row in self.losses])

    def __getstate__(self) -> dict[str, Any]:
        return dict(vars(copy.deepcopy(self)))  # Pyro's guides do not survive being pickled

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        copied = object.__new__(type(self))
        for name in ("program", *vars(self)):  # the program first: others hold some of its modules
            if name not in vars(copied):
                vars(copied)[name] = copy.deepcopy(getattr(self, name), memo)
        return copied

    def draws(
        self,
        num_samples: int = 1000,
        *data: Any,
        seed: int | None = None,
        predictive: bool = False,
        log_likelihood: bool = True,
        corrected: bool | None = None,
        model_kwargs: dict[str, Any] | None = None,
    ) -> Draws:
        """Draw from the posterior and evaluate model and guide at the draws.

        :param num_samples: draws S per replicate.
        :param data: arguments to evaluate the model on; the training data by default.
        :param seed: the same seed gives the same draws; by default the seed of the fit.
        :param predictive: also draw the observed sites afresh.
        :param log_likelihood: keep it, one number per draw and data point.
        :param corrected: resample draws by their importance weights, so that they are draws from the posterior where
            :func:`guides.diagnose` says that weights can correct them; see :mod:`guides.fitted.resampled`. By default only
            if ``corrects``.
        """
        keep = PARTS if log_likelihood else PARTS - {"log_likelihood"}
        new = self._arguments(data, model_kwargs)
        return self._draws(num_samples, new, seed, predictive=predictive, score=True, keep=keep, corrected=corrected)

    def sample(
        self, num_samples: int = 1000, seed: int | None = None, *, corrected: bool | None = None
    ) -> dict[str, Tensor]:
        """Return draws of the latent sites, shape ``(S, *site shape)`` each, or ``(R, S, ...)``.

        :param corrected: resample draws by their importance weights; see :meth:`draws`.
        :raises OptionError: for ``corrected`` where a guide's draws have no weights.
        """
        keep = {"latents"}
        draws = self._draws(num_samples, self.training, seed, predictive=False, score=False, keep=keep, corrected=corrected)
        return self._squeeze(draws.latents)

    def predict(
        self,
        *data: Any,
        num_samples: int = 1000,
        seed: int | None = None,
        corrected: bool | None = None,
        model_kwargs: dict[str, Any] | None = None,
    ) -> dict[str, Tensor]:
        """Return draws of every observed and deterministic site for new inputs, shape ``(S, ...)``, or ``(R, S, ...)``.

        Observations among ``data`` are ignored, so they may be left out if the model has a default for them. Latents with
        one value per data point come from the guide if it computes them from the data and all that it needs is given.
        Otherwise they are drawn from the prior if the number of data points differs from the training data's.

        :param corrected: resample draws by their importance weights; see :meth:`draws`.
        """
        new = self._arguments(data, model_kwargs)
        keep = {"deterministic", "predictive"}
        draws = self._draws(num_samples, new, seed, predictive=True, score=False, keep=keep, corrected=corrected)
        return self._squeeze({**draws.deterministic, **draws.predictive})

    def log_likelihood(
        self,
        *data: Any,
        num_samples: int = 1000,
        seed: int | None = None,
        corrected: bool | None = None,
        model_kwargs: dict[str, Any] | None = None,
    ) -> dict[str, Tensor]:
        """Return the pointwise log-likelihood of ``data`` under each draw in nats, by observed site, ``(S, N)`` or ``(R, S,
        N)``.

        :param corrected: resample draws by their importance weights; see :meth:`draws`.
        :raises DataError: if no site is observed, as when the targets were left out.
        """
        new = self._arguments(data, model_kwargs)
        keep = {"log_likelihood"}
        draws = self._draws(num_samples, new, seed, predictive=False, score=True, keep=keep, corrected=corrected)
        if not draws.log_likelihood:
            raise DataError("no site of the model is observed on these data; pass the observations too")
        return self._squeeze(draws.log_likelihood)

    def log_prob(self, latents: dict[str, Tensor]) -> Tensor:
        """Return log q in nats at given values of all latent sites, shape ``()`` or ``(R,)``.

        :param latents: one value per latent site, of the site's shape, in its support.
        :raises DataError: if a site is missing or has another shape.
        :raises UnsupportedModelError: if the guide makes the latents from sites of its own in a way that is not known.
        """
        for name in self.program.latents:
            want = self.sites[name].shape
            if name not in latents:
                raise DataError(f"log_prob needs a value for latent site {name!r}; sites: {', '.join(self.program.latents)}")
            if tuple(latents[name].shape) != want:
                raise DataError(f"latent site {name!r} has shape {want}, the value has {tuple(latents[name].shape)}")
        values: dict[str, Any] = {name: latents[name] for name in self.program.latents}
        results, args, kwargs = [], self.training.args, self.training.kwargs
        with isolated_store(), quiet(), seeded(self.seed), torch.no_grad():
            for flat in self.flat:
                # Inside the call, as a flow's density is a network's, which reads its parameters when it is asked.
                run = lambda: trace_at(self.guide, values, args, kwargs).log_prob_sum()  # noqa: E731
                results.append(self.program.call(flat, run))
        stacked = torch.stack(results)
        return stacked if self.replicates > 1 else stacked[0]

    def _arguments(self, data: tuple[Any, ...], model_kwargs: dict[str, Any] | None) -> Data:
        if not data and model_kwargs is None:
            return self.training
        new = read_like(self.model, self.training, data, model_kwargs, self.device)
        odd = unlike(new, self.training)
        if odd is not None:
            raise DataError(odd)
        return new

    def _squeeze(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        return values if self.replicates > 1 else {k: v[0] for k, v in values.items()}

    def _draws(
        self,
        num_samples: int,
        data: Data,
        seed: int | None,
        *,
        predictive: bool,
        score: bool,
        keep: Set[str] = PARTS,
        corrected: bool | None = None,
    ) -> Draws:
        if num_samples < 1:
            raise OptionError(f"num_samples must be at least 1, not {num_samples}")
        latents = log_q = None
        if self.corrects if corrected is None else corrected:
            latents, log_q = resampled(self, num_samples, seed)
        same_rows = data.size == self.training.size
        base = self.seed if seed is None else seed
        draws = told_of_shapes(
            lambda: take_draws(
                self.program,
                self.flat,
                num_samples,
                data,
                base,
                same_rows=same_rows,
                predictive=predictive,
                score=score,
                keep=frozenset(keep),
                training=None if data is self.training else self.training,
                latents=latents,
            ),
            data,
            self.training,
        )
        return draws if log_q is None else replace(draws, log_q=log_q)
