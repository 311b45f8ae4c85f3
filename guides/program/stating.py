"""A distribution that states another support than it does by itself."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from pyro.distributions import (
    ImproperUniform,
    TorchDistribution,
)
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from torch import Tensor
from torch.distributions import (
    Independent,
    biject_to,
    constraints,
)

__all__ = ["Stating", "as_written", "is_improper", "without_false_alarms"]


_NO_SHAPE = torch.Size()


@contextmanager
def without_false_alarms() -> Iterator[None]:
    """Silence ``torch.distributions.Wishart``, which calls every draw that is in its support singular and draws it again."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Singular sample detected", category=UserWarning)
        yield


class Stating(TorchDistribution):
    """A distribution that states another support than it does by itself."""

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, base: Any, support: constraints.Constraint) -> None:
        self.base_dist, self._support = base, support
        super().__init__(torch.Size(base.batch_shape), torch.Size(base.event_shape), validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether draws can be differentiated."""
        return bool(self.base_dist.has_rsample)

    @property
    def support(self) -> constraints.Constraint:
        """The support that it has."""
        return self._support

    @property
    def mean(self) -> Tensor:
        """The mean."""
        found: Tensor = self.base_dist.mean
        return found

    def expand(self, batch_shape: Any, _instance: Any = None) -> Stating:
        """Return it with another batch shape."""
        return Stating(self.base_dist.expand(batch_shape), self._support)

    def sample(self, sample_shape: Any = _NO_SHAPE) -> Tensor:
        """Return draws; of a distribution without a sampler, normals mapped into the support."""
        if not is_improper(self.base_dist):
            with without_false_alarms():
                drawn: Tensor = self.base_dist.sample(sample_shape)
            return drawn
        transform = biject_to(self._support)
        shape = torch.Size(sample_shape) + self.batch_shape + self.event_shape
        found: Tensor = transform(torch.randn(transform.inverse_shape(shape)))
        return found.expand(shape)

    def rsample(self, sample_shape: Any = _NO_SHAPE) -> Tensor:
        """Return draws that can be differentiated."""
        with without_false_alarms():
            drawn: Tensor = self.base_dist.rsample(sample_shape)
        return drawn

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density in nats."""
        found: Tensor = self.base_dist.log_prob(value)
        return found


def is_improper(fn: Any) -> bool:
    """Tell whether a distribution has no sampler."""
    while isinstance(fn, Independent | MaskedDistribution | ExpandedDistribution):
        fn = fn.base_dist
    return isinstance(fn, ImproperUniform)


def as_written(fn: Any) -> Any:
    """Return a distribution as the model gave it, without a :class:`Stating` around it."""
    if isinstance(fn, Independent) and (inner := as_written(fn.base_dist)) is not fn.base_dist:
        return inner.to_event(fn.reinterpreted_batch_ndims)
    return fn.base_dist if isinstance(fn, Stating) else fn
