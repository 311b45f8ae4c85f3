"""What a sampler leaves: chains of draws, with the methods of a posterior."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any, Never

import torch
from torch import Tensor

from guides.density.points import Point
from guides.errors import OptionError
from guides.fitted.draws import PARTS, Draws, take_draws
from guides.fitted.values import told_of_shapes
from guides.posterior import Posterior
from guides.program.data import Data

__all__ = ["Drawn", "Sampled"]


class Drawn(Point):
    """The guide of a posterior that a sampler drew: the mean of its draws in the unconstrained space.

    A place holder with the maps between latents and the flat vector; the posterior's draws are the sampler's.
    """

    is_sampled: bool = True

    def placed(self, points: Tensor) -> None:
        """Put it at the mean of draws ``(C, S, D)``."""
        self.loc.copy_(points.flatten(0, 1).mean(0))


@dataclass(frozen=True, repr=False)
class Sampled(Posterior):
    """A posterior as chains of draws by a sampler. It has the methods of :class:`guides.Posterior`; see there.

    ``sample``, ``predict`` and ``log_likelihood`` take draws evenly from all chains together, ``(S, ...)``; ``draws`` and
    :meth:`to_arviz` keep the chains apart, ``(C, S, ...)``. ``num_samples`` is a most: by default it is all draws there are.
    What means something for an optimised guide only (``continue_``, ``pooled``, ``log_prob``) is refused.

    :ivar latents: the draws of the latent sites, ``(C, S, *site shape)``.
    :ivar points: the same in the unconstrained space of :func:`guides.log_density`, ``(C, S, D)``, float64.
    :ivar statistics: of every draw, ``(C, S)``: ``diverging``, ``energy``, ``step_size`` and, of ``nuts``, ``tree_depth``,
        ``n_steps``, ``acceptance_rate``.
    :ivar gradients: evaluations of the gradient, warm-up included.
    """

    latents: Mapping[str, Tensor] = field(repr=False, default_factory=dict)
    points: Tensor = field(repr=False, default_factory=lambda: torch.zeros(0, 0, 0))
    statistics: Mapping[str, Tensor] = field(repr=False, default_factory=dict)
    gradients: int = 0

    @property
    def chains(self) -> int:
        """Number of chains C."""
        return self.points.shape[0]

    @property
    def evaluations(self) -> int:
        """Evaluations of the model's gradient: :attr:`gradients`."""
        return self.gradients

    def replicate(self, index: int) -> Sampled:
        """Return one chain as a posterior of its own.

        :raises IndexError: if there is no such chain.
        """
        if not 0 <= index < self.chains:
            raise IndexError(f"chain {index} of {self.chains}; use 0 to {self.chains - 1}")
        row = slice(index, index + 1)
        return replace(
            self,
            latents={n: v[row] for n, v in self.latents.items()},
            points=self.points[row],
            statistics={n: v[row] for n, v in self.statistics.items()},
        )

    def continue_(self, steps: int, **options: Any) -> Never:
        """Refuse: a sampler is run anew, with more draws."""
        raise OptionError(f"{self.family!r} is a sampler, which is not trained on; fit again with draws={steps} or more")

    def pooled(self, weights: str | Sequence[float] = "equal") -> Never:
        """Refuse: chains are of one posterior."""
        raise OptionError(f"{self.family!r} is a sampler; sample() and predict() already draw across its chains")

    def log_prob(self, latents: dict[str, Tensor]) -> Never:
        """Refuse: draws have no density."""
        raise OptionError(
            f"{self.family!r} is a sampler, whose draws have no density of their own; guides.log_density(model, ...) is the "
            "model's, up to a constant"
        )

    def draws(
        self,
        num_samples: int | None = None,
        *data: Any,
        seed: int | None = None,
        predictive: bool = False,
        log_likelihood: bool = True,
        corrected: bool | None = None,
        model_kwargs: dict[str, Any] | None = None,
    ) -> Draws:
        """Return draws by chain, and the model's densities at them; ``log_q`` is NaN. See :meth:`guides.Posterior.draws`.

        :param num_samples: most draws per chain, evenly from each; by default all.
        """
        self._check_raw(corrected)
        keep = PARTS if log_likelihood else PARTS - {"log_likelihood"}
        index = _evenly(num_samples, self.points.shape[1])
        latents = {n: v[:, index] for n, v in self.latents.items()}
        new = self._arguments(data, model_kwargs)
        found = self._evaluate(latents, new, seed, predictive=predictive, score=True, keep=keep)
        return replace(found, statistics={n: v[:, index] for n, v in self.statistics.items()})

    def sample(
        self, num_samples: int | None = None, seed: int | None = None, *, corrected: bool | None = None
    ) -> dict[str, Tensor]:
        """Return draws of the latent sites, ``(S, *site shape)`` each; see :meth:`guides.Posterior.sample`."""
        return super().sample(self._most(num_samples), seed, corrected=corrected)

    def predict(self, *data: Any, num_samples: int | None = None, **options: Any) -> dict[str, Tensor]:
        """Return draws of observed and deterministic sites, ``(S, ...)``; see :meth:`guides.Posterior.predict`."""
        return super().predict(*data, num_samples=self._most(num_samples), **options)

    def log_likelihood(self, *data: Any, num_samples: int | None = None, **options: Any) -> dict[str, Tensor]:
        """Return the log-likelihood of data points, ``(S, N)``; see :meth:`guides.Posterior.log_likelihood`."""
        return super().log_likelihood(*data, num_samples=self._most(num_samples), **options)

    def to_arviz(self, *, num_samples: int | None = None, **options: Any) -> Any:
        """Return all draws, or at most so many per chain, as an ArviZ object; see :func:`guides.to_arviz`."""
        return super().to_arviz(num_samples=num_samples or self.points.shape[1], **options)

    def _most(self, num_samples: int | None) -> int:
        every = self.points.shape[0] * self.points.shape[1]
        return every if num_samples is None else min(num_samples, every)

    def _check_raw(self, corrected: bool | None) -> None:
        if corrected:
            raise OptionError(f"{self.family!r} draws from the posterior itself: there is nothing to correct")

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
        self._check_raw(corrected)
        if num_samples < 1:
            raise OptionError(f"num_samples must be at least 1, not {num_samples}")
        every = {n: v.flatten(0, 1) for n, v in self.latents.items()}
        index = _evenly(num_samples, self.points.shape[0] * self.points.shape[1])
        latents = {n: v[index][None] for n, v in every.items()}
        return self._evaluate(latents, data, seed, predictive=predictive, score=score, keep=keep)

    def _evaluate(
        self, latents: dict[str, Tensor], data: Data, seed: int | None, *, predictive: bool, score: bool, keep: Set[str]
    ) -> Draws:
        chains, count = next(iter(latents.values())).shape[:2]

        def take() -> Draws:
            return take_draws(
                self.program,
                self.flat.expand(chains, -1),
                count,
                data,
                self.seed if seed is None else seed,
                same_rows=data.size == self.training.size,
                predictive=predictive,
                score=score,
                keep=frozenset(keep),
                training=None if data is self.training else self.training,
                latents=latents,
            )

        return told_of_shapes(take, data, self.training)

    def _content(self) -> dict[str, Any]:
        return {
            **super()._content(),
            "sampled": {
                "latents": dict(self.latents),
                "points": self.points,
                "statistics": dict(self.statistics),
                "gradients": self.gradients,
            },
        }


def _evenly(wanted: int | None, there: int) -> Tensor:
    """Return indices of at most so many of what is there, evenly spread."""
    if wanted is not None and wanted < 1:
        raise OptionError(f"num_samples must be at least 1, not {wanted}")
    count = there if wanted is None else min(wanted, there)
    return torch.linspace(0, there - 1, count).round().long() if count > 1 else torch.tensor([there - 1])
