"""An objective of a mixture per row, with model and encoder run only on the rows that a component is for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from guides.errors import OptionError, UnsupportedModelError
from guides.objectives.base import Objective
from guides.objectives.entropy_bound import EntropyBoundELBO
from guides.objectives.selbo import SELBO
from guides.objectives.siwae import SIWAE
from guides.program.guide import as_guide
from guides.program.objective import Estimate
from guides.program.strata import Stratum

__all__ = ["Compacted"]

_ABSENT = {"log_weight": -math.inf, "log_ratio": -math.inf}


class Compacted(Objective):
    r"""The objective of a stick-breaking guide, at a cost that falls with the components that data points do without.

    Value and gradient are those of ``objective``; but component k of the guide is evaluated, and the model run on its draws,
    for the rows alone that have a k-th component. How many they are is known only as the numbers arrive, so this is for
    Pyro's own :class:`pyro.infer.SVI` and for evaluation (:meth:`~guides.Objective.estimate`): in ``guides.fit``, which
    needs the shapes of all tensors beforehand, every component is run for every row, with the same values.

    :param objective: a :class:`guides.EntropyBoundELBO`, :class:`guides.SELBO` or :class:`guides.SIWAE`.
    :ivar rows_run: rows that the model was run on in the last estimate.
    :ivar rows_asked: rows that it would have been run on with all components.
    :raises OptionError: for another objective, or a warm-up, in which every component counts.
    :raises UnsupportedModelError: in use, if the guide is not a mixture per row, or the model's plate is one of all the data
        of which it is given some rows.

    Example::

        >>> import pyro, pyro.distributions as dist, torch, guides
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        ...         pyro.sample("x", dist.Normal(z**2, 0.3), obs=x)
        >>> x = torch.rand(20)
        >>> guide = guides.StickBreakingRNN(model, components=3, hidden=4)
        >>> objective = Compacted(guides.EntropyBoundELBO(penalty=1.0))
        >>> svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), loss=objective)
        >>> losses = [svi.step(x) for _ in range(3)]
        >>> objective.rows_asked, objective.rows_run
        (60, 60)
    """

    bounds: ClassVar[str] = "log evidence, from below"

    def __init__(self, objective: Objective) -> None:
        if not isinstance(objective, EntropyBoundELBO | SELBO | SIWAE):
            raise OptionError(
                f"Compacted takes an EntropyBoundELBO, SELBO or SIWAE, not {type(objective).__name__}: they weigh every "
                "row's components"
            )
        if isinstance(objective, EntropyBoundELBO | SELBO) and objective.warmup:
            raise OptionError(f"warmup={objective.warmup} fits all components of all rows, which leaves nothing to spare")
        super().__init__(objective.num_particles)
        self.objective = objective
        self.rows_run = self.rows_asked = 0

    def particle(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> dict[str, Tensor]:
        """Return what one draw of one component of every row contributes."""
        return self.objective.particle(model, guide, args, kwargs)

    def combine(self, particles: dict[str, Tensor], step: Tensor) -> Estimate:
        """Combine particles as the objective does."""
        return self.objective.combine(particles, step)

    def estimate(
        self,
        model: Callable[..., Any],
        guide: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        step: float = math.inf,
    ) -> Estimate:
        """Return one estimate, with every component drawn for the rows that have it.

        :param step: the number of the optimisation step, from 1; schedules are at their end without it.
        """
        mixture = as_guide(guide).present_components(*args, **kwargs)
        if mixture is None:
            raise UnsupportedModelError(
                f"Compacted is for guides whose rows differ in their number of components, such as 'stick_breaking_rnn', "
                f"not {type(guide).__name__}"
            )
        rows, count = mixture.log_weights.shape
        present = [(mixture.log_weights[:, k] > -math.inf).nonzero().squeeze(-1) for k in range(count)]
        draws = []
        for _ in range(self.num_particles):
            for k, index in enumerate(present):
                if not len(index):
                    continue
                some_args = tuple(_cut(a, index, rows) for a in args)
                some_kwargs = {n: _cut(a, index, rows) for n, a in kwargs.items()}
                with Stratum(torch.tensor(k, device=index.device)), guide.holding(mixture.rows(index)):
                    found = self.particle(model, guide, some_args, some_kwargs)
                draws.append({n: _spread(n, v, index, rows) for n, v in found.items()})
        self.rows_run = self.num_particles * sum(len(i) for i in present)
        self.rows_asked = self.num_particles * rows * count
        absent = self.num_particles * count - len(draws)
        draws += [{n: torch.full_like(v, _ABSENT.get(n, 0.0)) if v.dim() else v for n, v in draws[0].items()}] * absent
        particles = {n: torch.stack([d[n] for d in draws]) for n in draws[0]}
        return self.combine(particles, torch.tensor(float(step), device=mixture.log_weights.device))


def _cut(value: Any, index: Tensor, rows: int) -> Any:
    return value.index_select(0, index) if isinstance(value, Tensor) and value.dim() > 0 and len(value) == rows else value


def _spread(name: str, value: Tensor, index: Tensor, rows: int) -> Tensor:
    """Return the numbers of some rows as those of all rows, the others absent."""
    if value.dim() == 0:
        return value
    return torch.full((rows,), _ABSENT.get(name, 0.0), dtype=value.dtype, device=value.device).index_copy(0, index, value)
