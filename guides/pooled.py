"""Several fits of one model as one posterior: the mixture of what they found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from guides.diagnostics import Diagnosis, diagnose
from guides.errors import DataError, OptionError, UnsupportedModelError, check_known
from guides.fitted.arviz_io import to_arviz
from guides.fitted.draws import Draws
from guides.fitted.fitted import FittedGuide
from guides.fitted.own_sites import trace_at
from guides.fitted.sites import Site
from guides.program.data import Data
from guides.program.guide import as_guide
from guides.program.isolation import quiet
from guides.program.parameters import isolated_store
from guides.program.program import Program
from guides.program.vectorise import over_draws

__all__ = ["Pooled", "pool_weights"]

_DRAWS_AT_ONCE = 256


@dataclass(frozen=True, repr=False)
class Pooled:
    r"""The mixture of the replicates of a posterior, made by :meth:`guides.Posterior.pooled`.

    .. math:: q(z) = \sum_{r=1}^R w_r \, q_r(z)

    Its draws are shared out among the replicates by weight and shuffled; their density is that of the mixture. It draws,
    predicts, scores and is diagnosed as one posterior; there is no single guide, and no vector of parameters.

    :ivar of: the posterior with R replicates.
    :ivar weights: :math:`w_r`, shape ``(R,)``, adding to one.
    """

    of: FittedGuide
    weights: Tensor

    @property
    def family(self) -> str:
        """The family of the replicates, and how many are pooled."""
        return f"{self.of.family} x {len(self.weights)}"

    @property
    def source(self) -> FittedGuide:
        """The posterior with R replicates."""
        return self.of

    @property
    def replicates(self) -> int:
        """One: the replicates are parts of it."""
        return 1

    @property
    def sites(self) -> dict[str, Site]:
        """The latent, observed and deterministic sites of the model."""
        return self.of.sites

    @property
    def guide(self) -> Any:
        """The guide of a replicate, which says what kind they are."""
        return self.of.guide

    @property
    def training(self) -> Data:
        """The training data."""
        return self.of.training

    @property
    def losses(self) -> Tensor:
        """Minus the objective in nats at every step of the replicates, shape ``(R, steps)``."""
        return self.of.losses

    @property
    def validation(self) -> Tensor:
        """Scores of the replicates per epoch in nats, shape ``(R, epochs)``."""
        return self.of.validation

    @property
    def stop_reasons(self) -> tuple[str, ...]:
        """One sentence per replicate."""
        return self.of.stop_reasons

    @property
    def program(self) -> Program:
        """Refused, as :attr:`flat` is.

        :raises UnsupportedModelError: always.
        """
        raise UnsupportedModelError(
            "replicates that are pooled have no single vector of parameters, which this needs; take one: "
            "pooled.of.best() or pooled.of.replicate(0)"
        )

    @property
    def flat(self) -> Tensor:
        """Refused, as there are several vectors of parameters.

        :raises UnsupportedModelError: always.
        """
        return self.program.parameters.initial

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
        """Return draws with one chain, C = 1; see :meth:`guides.Posterior.draws`."""
        _check_raw(corrected)
        base = self.of.seed if seed is None else seed
        counts = self._counts(num_samples, base)
        parts = [
            self._part(r).draws(
                count,
                *data,
                seed=base + r,
                predictive=predictive,
                log_likelihood=log_likelihood,
                model_kwargs=model_kwargs,
            )
            for r, count in enumerate(counts)
            if count
        ]
        order = torch.randperm(num_samples, generator=torch.Generator().manual_seed(base))
        merged = {f.name: _merged([getattr(p, f.name) for p in parts], order) for f in fields(Draws) if f.name != "counted"}
        whole = Draws(**merged, counted=parts[0].counted)
        if whole.log_q.isnan().any():  # latents of new rows came from the prior
            return whole
        return replace(whole, log_q=self._log_q(whole.latents, self.of._arguments(data, model_kwargs)).unsqueeze(0))

    def sample(
        self, num_samples: int = 1000, seed: int | None = None, *, corrected: bool | None = None
    ) -> dict[str, Tensor]:
        """Return draws of the latent sites, shape ``(S, *site shape)`` each.

        :raises OptionError: for ``corrected``, which restarts have without being pooled first.
        """
        _check_raw(corrected)
        return self._shared_out(num_samples, seed, lambda part, count, seed: part.sample(count, seed=seed))

    def predict(
        self,
        *data: Any,
        num_samples: int = 1000,
        seed: int | None = None,
        corrected: bool | None = None,
        model_kwargs: dict[str, Any] | None = None,
    ) -> dict[str, Tensor]:
        """Return draws of every observed and deterministic site for new inputs; see :meth:`guides.Posterior.predict`."""
        _check_raw(corrected)

        def predict(part: FittedGuide, count: int, seed: int) -> dict[str, Tensor]:
            return part.predict(*data, num_samples=count, seed=seed, model_kwargs=model_kwargs)

        return self._shared_out(num_samples, seed, predict)

    def log_likelihood(
        self,
        *data: Any,
        num_samples: int = 1000,
        seed: int | None = None,
        corrected: bool | None = None,
        model_kwargs: dict[str, Any] | None = None,
    ) -> dict[str, Tensor]:
        """Return the pointwise log-likelihood of ``data`` under each draw; see :meth:`guides.Posterior.log_likelihood`."""
        _check_raw(corrected)

        def score(part: FittedGuide, count: int, seed: int) -> dict[str, Tensor]:
            return part.log_likelihood(*data, num_samples=count, seed=seed, model_kwargs=model_kwargs)

        return self._shared_out(num_samples, seed, score)

    def log_prob(self, latents: dict[str, Tensor]) -> Tensor:
        """Return log q in nats at given values of all latent sites, shape ``()``."""
        each = self.of.log_prob(latents)
        return torch.logsumexp(each + self.weights.log().to(each), 0)

    def __repr__(self) -> str:
        shares = ", ".join(f"{float(w):.2f}" for w in self.weights)
        return f"{len(self.weights)} fits as one posterior, with weights {shares}\n{self.of!r}"

    def diagnose(self, **options: Any) -> Diagnosis:
        """Say whether the mixture can be trusted; see :func:`guides.diagnose`."""
        return diagnose(self, **options)

    def to_arviz(self, **options: Any) -> Any:
        """Return ``InferenceData`` or ``DataTree`` of one chain; see :func:`guides.to_arviz`."""
        return to_arviz(self, **options)

    def _part(self, replicate: int) -> FittedGuide:
        row = slice(replicate, replicate + 1)
        return replace(self.of, flat=self.of.flat[row])

    def _counts(self, num_samples: int, seed: int) -> list[int]:
        """Return how many draws each replicate gives: its share, and what is left over at random."""
        if num_samples < 1:
            raise OptionError(f"num_samples must be at least 1, not {num_samples}")
        shares = num_samples * self.weights.double()
        counts = (shares + 1e-9).floor()
        left = num_samples - int(counts.sum())
        if left:
            rest = (shares - counts).clamp(min=1e-12)
            chosen = torch.multinomial(rest, left, generator=torch.Generator().manual_seed(seed))
            counts[chosen] += 1
        return [int(c) for c in counts]

    def _shared_out(self, num_samples: int, seed: int | None, take: Any) -> dict[str, Tensor]:
        base = self.of.seed if seed is None else seed
        counts = self._counts(num_samples, base)
        parts = [take(self._part(r), count, base + r) for r, count in enumerate(counts) if count]
        order = torch.randperm(num_samples, generator=torch.Generator().manual_seed(base))
        return {name: torch.cat([p[name] for p in parts])[order.to(parts[0][name].device)] for name in parts[0]}

    def _log_q(self, latents: dict[str, Tensor], data: Data) -> Tensor:
        """Return the density of the mixture at draws ``(1, S, ...)`` in nats, shape ``(S,)``."""
        program, count = self.of.program, len(next(iter(latents.values()))[0])
        missing = [name for name in program.latents if name not in latents]
        if missing:
            raise DataError(f"the draws lack latent site {missing[0]!r}, so the pooled density is not defined")
        density = as_guide(program.guide).log_density

        def at(number: Tensor) -> dict[str, Tensor]:
            values: dict[str, Any] = {n: v[0].index_select(0, number.reshape(1)).squeeze(0) for n, v in latents.items()}

            def run() -> Tensor:
                return torch.as_tensor(density(trace_at(program.guide, values, data.args, data.kwargs)))

            return {"log_q": torch.stack([program.call(flat, run) for flat in self.of.flat])}

        with isolated_store(), quiet(), torch.no_grad():
            each = over_draws(at, count, _DRAWS_AT_ONCE, self.of.device)["log_q"]
        return torch.logsumexp(each + self.weights.log().to(each), -1)


def _check_raw(corrected: bool | None) -> None:
    if corrected:
        raise OptionError(
            "corrected=True: draws of several restarts are weighed and pooled in one go: use "
            "pooled.of.sample(corrected=True), and likewise for predictions and ArviZ"
        )


def pool_weights(posterior: FittedGuide, weights: str | Sequence[float], objectives: Tensor) -> Tensor:
    """Return the weights of replicates.

    :param objectives: of each replicate at the end, in nats, shape ``(R,)``.
    :raises OptionError: for weights that are none, or an unknown word.
    """
    if isinstance(weights, str):
        check_known("weights", weights, ("equal", "elbo"))
        scores = torch.zeros(posterior.replicates) if weights == "equal" else objectives
        return torch.softmax(scores.double(), 0)
    given = torch.as_tensor(weights, dtype=torch.double)
    total = float(given.sum()) if given.shape == (posterior.replicates,) and bool((given >= 0).all()) else math.nan
    if not (total > 0 and math.isfinite(total)):
        raise OptionError(
            f"weights must be {posterior.replicates} numbers of at least 0, one per replicate, not {weights!r}"
        )
    return given / total


def _merged(values: list[Any], order: Tensor) -> Any:
    if isinstance(values[0], dict):
        return {name: _merged([v[name] for v in values], order) for name in values[0]}
    return torch.cat(values, dim=1)[:, order.to(values[0].device)]
