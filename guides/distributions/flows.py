"""Pyro's conditional autoregressive flows, made to run under torch.func transforms."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any, cast

import torch
from pyro.distributions.transforms import (
    ConditionalAffineAutoregressive,
    ConditionalSplineAutoregressive,
    SplineAutoregressive,
)
from pyro.nn import ConditionalAutoRegressiveNN
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["FLOWS", "conditional_flow"]

FLOWS = ("iaf", "spline")
_BINS = 8
_BOUND = 5.0


def conditional_flow(name: str, size: int, context: int, number: int) -> nn.Module:
    """Return an autoregressive transform of ``size`` numbers, conditioned on ``context`` others.

    Drawing from it takes one run of its network; the density of a value that it did not draw takes ``size`` of them.

    :param name: ``"iaf"``, affine with gates in the manner of an LSTM, or ``"spline"``, monotonic rational-linear splines.
    :param number: of the flow in a chain; every other one takes the dimensions from last to first.
    """
    order = torch.arange(size) if number % 2 == 0 else torch.arange(size).flip(0)
    hidden = [max(2 * size, 32)] * 2
    outputs = [1, 1] if name == "iaf" else [_BINS, _BINS, _BINS - 1, _BINS]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="ConditionalAutoRegressiveNN input_dim = 1")
        network = ConditionalAutoRegressiveNN(
            size,
            context,
            hidden,
            param_dims=outputs,
            permutation=cast(torch.LongTensor, order),
            nonlinearity=nn.ELU(),
        )
    if name == "iaf":
        return ConditionalAffineAutoregressive(network, stable=True)
    return _ConditionalSplines(size, network, count_bins=_BINS, bound=_BOUND, order="linear")


class _ConditionalSplines(ConditionalSplineAutoregressive):
    def condition(self, context: Tensor) -> SplineAutoregressive:
        network: Any = partial(self.nn, context=context)
        network.permutation = self.nn.permutation
        network.get_permutation = self.nn.get_permutation
        return _Splines(self.input_dim, network, **self.kwargs)


class _Splines(SplineAutoregressive):
    def _call(self, x: Tensor) -> Tensor:
        with _MaskedAssignment():
            return super()._call(x)

    def _inverse(self, y: Tensor) -> Tensor:
        with _MaskedAssignment():
            return super()._inverse(y)


class _MaskedAssignment(TorchFunctionMode):
    """Carry out ``a[mask] = b[mask]`` with shapes that do not depend on the mask, which vmap and graphs need.

    Pyro's splines leave numbers outside of a box alone in this way. Reading by a mask gives everything, writing by the same
    mask chooses.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[1], Tensor) and args[1].dtype == torch.bool:
            if func is Tensor.__getitem__:
                return args[0]
            target, mask, value = args
            target.copy_(torch.where(mask, value, target))
            return None
        return func(*args, **(kwargs or {}))
