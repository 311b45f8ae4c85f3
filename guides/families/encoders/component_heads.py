"""Mixtures of normals, one per row of the data: from an encoder's features to weights, means and covariances."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, softplus

from guides.distributions.kumaraswamy import Kumaraswamy
from guides.distributions.normals import LowRankNormal
from guides.errors import GuideMismatchError, OptionError
from guides.families.encoders.heads import HeadOptions

__all__ = [
    "WEIGHTS",
    "ComponentChoice",
    "ComponentHead",
    "RowMixture",
    "check_spread",
    "checked_features",
    "log_sticks",
    "log_weights_of",
    "of_component",
    "spread_out",
    "stick_offsets",
]

WEIGHTS = ("softmax", "logistic", "kumaraswamy", "uniform")

_SMALLEST = 1e-4
_CANDIDATES = 10


@dataclass(frozen=True)
class RowMixture:
    """A mixture of K normals over vectors of D numbers for every row.

    :ivar log_weights: normalised, shape ``(rows, K)``; minus infinity for components that take no part.
    :ivar loc: shape ``(rows, K, D)``, as ``scale``, the standard deviations apart from ``factor``.
    :ivar factor: ``(rows, K, D, rank)`` of a low-rank covariance, ``(rows, K, D, D)`` unit lower triangular of a full one,
        both in units of ``scale``; ``None`` for a diagonal one.
    """

    log_weights: Tensor
    loc: Tensor
    scale: Tensor
    factor: Tensor | None
    covariance: str = "diagonal"

    def components(self) -> Any:
        """Return the components, a distribution of batch shape ``(rows, K)``."""
        return _normal(self.loc, self.scale, self.factor, self.covariance)

    def chosen(self, index: Tensor) -> Any:
        """Return one component of every row, a distribution of batch shape ``(rows,)``.

        :param index: a scalar, the same component for all rows, or ``(rows,)``.
        """
        factor = None if self.factor is None else of_component(self.factor, index)
        return _normal(of_component(self.loc, index), of_component(self.scale, index), factor, self.covariance)

    def rows(self, index: Tensor) -> RowMixture:
        """Return the mixtures of some rows."""
        log_weights, loc, scale = (part.index_select(0, index) for part in (self.log_weights, self.loc, self.scale))
        factor = None if self.factor is None else self.factor.index_select(0, index)
        return RowMixture(log_weights, loc, scale, factor, self.covariance)


def _normal(loc: Tensor, scale: Tensor, factor: Tensor | None, covariance: str) -> Any:
    if factor is None:
        return dist.Normal(loc, scale).to_event(1)
    if covariance == "full":
        return dist.MultivariateNormal(loc, scale_tril=scale.unsqueeze(-1) * factor)
    return LowRankNormal(loc, scale.unsqueeze(-1) * factor, scale * scale)


def of_component(values: Tensor, index: Tensor) -> Tensor:
    """Return the part of one component of every row, ``(rows, ...)``.

    :param values: shape ``(rows, K, ...)``.
    :param index: a scalar, the same component for all rows, or ``(rows,)``.
    """
    if index.dim() == 0:
        return values.index_select(1, index.reshape(1)).squeeze(1)
    wide = index.reshape(-1, *[1] * (values.dim() - 1)).expand(-1, 1, *values.shape[2:])
    return values.gather(1, wide).squeeze(1)


class ComponentChoice(dist.Categorical):
    """The choice of components. Its probability is a part of the mixture's density, so it counts for nothing by itself; its
    gradient is there for estimators of the score-function kind."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Return zeros whose gradient is that of the log probability."""
        found = super().log_prob(value)
        return found - found.detach()


class ComponentHead(nn.Module):
    """Linear maps from features to ``count`` components of a mixture.

    :param width: number of features.
    :param weight_numbers: how many numbers decide on the weight of a component.
    :param starts: what to add to the means at the start, shape ``(count, D)``.
    """

    def __init__(self, width: int, weight_numbers: int, options: HeadOptions, starts: Tensor, like: Tensor) -> None:
        super().__init__()
        count, size = starts.shape
        where: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
        self.count, self.size, self.weight_numbers = count, size, weight_numbers
        self.covariance = options.covariance
        self.loc = nn.Linear(width, count * size, **where)
        self.rho = nn.Linear(width, count * size, **where)
        nn.init.constant_(self.rho.bias, math.log(math.expm1(options.init_scale)))
        with torch.no_grad():
            self.loc.bias.add_(starts.reshape(-1).to(self.loc.bias))
        self.factor: nn.Linear | None = None
        if options.covariance != "diagonal" and size > 1:
            rank = options.rank or max(1, round(math.sqrt(size)))
            columns = rank if options.covariance == "low_rank" else size
            self._columns = columns
            self.factor = nn.Linear(width, count * size * columns, **where)
            nn.init.normal_(self.factor.weight, std=0.01)
            nn.init.normal_(self.factor.bias, std=0.01)
        self.weight: nn.Linear | None = None
        if weight_numbers:
            self.weight = nn.Linear(width, count * weight_numbers, **where)
            nn.init.zeros_(self.weight.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return numbers that decide on weights, ``(rows, count, weight_numbers)``, and location, scale and factor."""
        shape = (len(features), self.count, self.size)
        factor = None
        if self.factor is not None:
            factor = self.factor(features).reshape(*shape, self._columns)
            if self.covariance == "full":
                factor = factor.tril(-1) + torch.eye(self.size, dtype=factor.dtype, device=factor.device)
        numbers = features.new_zeros(len(features), self.count, 0) if self.weight is None else self.weight(features)
        numbers = numbers.reshape(len(features), self.count, self.weight_numbers)
        return numbers, self.loc(features).reshape(shape), softplus(self.rho(features)).reshape(shape), factor


def checked_features(features: Any, rows: int, number: int, family: str) -> Tensor:
    """Return what an encoder said, if it is one vector of features per row.

    :param number: of the encoder, from 1.
    :raises GuideMismatchError: if it is not.
    """
    if not isinstance(features, Tensor) or features.dim() != 2 or len(features) != rows or not features.shape[1]:
        found = f"shape {tuple(features.shape)}" if isinstance(features, Tensor) else f"a {type(features).__name__}"
        raise GuideMismatchError(
            f"encoder {number} returns {found}; {family} needs features ({rows}, F), one vector per row, from which it "
            "takes weights, means and scales"
        )
    return features


def check_spread(init_spread: float) -> None:
    """Check how far apart components are to start.

    :raises OptionError: if it is negative or not finite.
    """
    if not 0 <= init_spread < math.inf:
        raise OptionError(f"init_spread must be 0 or more, not {init_spread!r}")


def spread_out(count: int, size: int, spread: float) -> Tensor:
    """Return ``count`` points ``(count, size)`` apart from each other: each is that of ten draws from a normal of standard
    deviation ``spread`` which is farthest from the points before it. A single one is at zero.
    """
    if count == 1:
        return torch.zeros(1, size)
    points = torch.randn(1, size)
    for _ in range(count - 1):
        candidates = torch.randn(_CANDIDATES, size)
        distance = torch.cdist(candidates, points).amin(-1)
        points = torch.cat([points, candidates[distance.argmax()].unsqueeze(0)])
    return spread * points


def stick_offsets(components: int, like: Tensor) -> Tensor:
    r"""Return :math:`\log(1 / (K - k))` for k = 1 .. K - 1: the logits of fractions that break a stick into equal parts."""
    return -torch.arange(components - 1, 0, -1, dtype=like.dtype, device=like.device).log()


def log_sticks(log_taken: Tensor, log_left: Tensor) -> Tensor:
    r"""Return the logarithms of :math:`\pi_k = v_k \prod_{j<k} (1 - v_j)`, the last component taking the remainder.

    :param log_taken: :math:`\log v_k`, shape ``(..., K - 1)``.
    :param log_left: :math:`\log (1 - v_k)`, likewise.
    :returns: shape ``(..., K)``, normalised.
    """
    nothing = log_left.new_zeros(*log_left.shape[:-1], 1)
    remaining = torch.cat([nothing, log_left.cumsum(-1)], -1)
    return remaining + torch.cat([log_taken, nothing], -1)


def _softmax(numbers: Tensor) -> Tensor:
    return torch.log_softmax(numbers.squeeze(-1), -1)


def _logistic(numbers: Tensor) -> Tensor:
    logits = numbers[:, :-1, 0] + stick_offsets(numbers.shape[1], numbers)
    return log_sticks(logsigmoid(logits), logsigmoid(-logits))


def _kumaraswamy(numbers: Tensor) -> Tensor:
    # At zero a = 1 and b = K - k, whose mean 1 / (1 + b) breaks the stick into equal parts.
    a = softplus(numbers[:, :-1, 0] + math.log(math.expm1(1.0))).clamp(min=_SMALLEST)
    equal = torch.arange(numbers.shape[1] - 1, 0, -1, dtype=numbers.dtype, device=numbers.device)
    b = softplus(numbers[:, :-1, 1] + equal.expm1().log()).clamp(min=_SMALLEST)
    eps = torch.finfo(numbers.dtype).eps
    mean = Kumaraswamy(a, b, validate_args=False).mean.clamp(eps, 1 - eps)
    return log_sticks(mean.log(), torch.log1p(-mean))


def _uniform(numbers: Tensor) -> Tensor:
    return torch.full_like(numbers[..., :0].sum(-1), -math.log(numbers.shape[1]))


_LOG_WEIGHTS: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {
    "softmax": (1, _softmax),
    "logistic": (1, _logistic),
    "kumaraswamy": (2, _kumaraswamy),
    "uniform": (0, _uniform),
}


def log_weights_of(kind: str) -> tuple[int, Callable[[Tensor], Tensor]]:
    """Return how many numbers per component a kind of weights takes, and the function from ``(rows, K, numbers)`` to
    normalised log weights ``(rows, K)``.
    """
    return _LOG_WEIGHTS[kind]
