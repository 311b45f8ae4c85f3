"""How a network's output explains what is observed: shared by every network model of the zoo."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch.nn.functional as F
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from zoo._checks import check_positive, check_target, one_of
from zoo._plates import data_plate, squeeze_slot

__all__ = ["Likelihood"]

KINDS = ("binary", "multiclass", "regression")
NOISES = ("heteroscedastic", "learned", "param")
MIN_SCALE = 1e-3


class Likelihood:
    r"""The observation model :math:`p(y \mid f(x))` on top of a network's output.

    .. math::

        \text{regression:}\quad  & y_n \sim \mathcal{N}(f_n, \sigma^2) \\
        \text{heteroscedastic:}\quad & y_n \sim \mathcal{N}(f_n, (10^{-3} + \operatorname{softplus} g_n)^2) \\
        \text{binary:}\quad      & y_n \sim \operatorname{Bernoulli}(\operatorname{logit}^{-1} f_n) \\
        \text{multiclass:}\quad  & y_n \sim \operatorname{Categorical}(\operatorname{softmax} f_n)

    Sites: ``"y"`` (observed) and ``"f"`` (deterministic; the mean, or the logits) inside the plate ``"data"``; with
    ``noise="learned"`` also the latent ``"sigma"``.

    :param kind: ``"regression"``, ``"binary"``, ``"multiclass"``, or a callable from the output ``(..., N, K)`` to a
        distribution over ``y`` with batch shape ``(..., N)`` (further batch dimensions become event dimensions).
    :param noise: read for regression only. ``"learned"``: a latent standard deviation ``sigma ~ LogNormal(-2, 1)``, median
        0.14 and 95 % between 0.02 and 0.96, meant for standardised targets. ``"param"``: a positive ``pyro.param`` named
        ``"noise_scale"``, to be optimised (type-II maximum likelihood). ``"heteroscedastic"``: the second half of the
        output is the unconstrained standard deviation :math:`g_n`. A number: the known standard deviation, in units of
        ``y``. With several targets the three homoscedastic choices share one standard deviation.
    :param data_size: size of the whole data set when calls see minibatches of it under stock SVI.
    :raises ValueError: for an unknown ``kind`` or ``noise``, a noise scale that is not positive, and, when called, for
        observations whose shape is not the output's.

    References:
        Nix and Weigend (1994), Estimating the mean and variance of the target probability distribution.

    Example::

        >>> import torch
        >>> likelihood = Likelihood("regression", noise=0.1)
        >>> likelihood(torch.zeros(5, 1)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        kind: str | Callable[[Tensor], TorchDistributionMixin] = "regression",
        noise: str | float = "learned",
        data_size: int | None = None,
    ) -> None:
        self.kind = kind if callable(kind) else one_of("likelihood", kind, KINDS)
        self.noise: str | float = (
            one_of("noise", noise, NOISES) if isinstance(noise, str) else check_positive("noise", noise)
        )
        if data_size is not None and data_size < 1:
            raise ValueError(f"data_size must be at least 1, got {data_size}; leave it out unless you pass minibatches")
        self.data_size = data_size

    def __repr__(self) -> str:
        noise = f", noise={self.noise!r}" if self.kind == "regression" else ""
        return f"{self.kind!r}{noise}"

    @property
    def sites(self) -> tuple[str, ...]:
        """Names that this likelihood gives to sites, parameters and plates."""
        extra = {"learned": ("sigma",), "param": ("noise_scale",)}.get(str(self.noise), ())
        return ("data", "f", "y", *(extra if self.kind == "regression" else ()))

    def outputs_for(self, out_features: int) -> int:
        """Return how many network outputs ``out_features`` targets need."""
        return 2 * out_features if self.kind == "regression" and self.noise == "heteroscedastic" else out_features

    def __call__(self, output: Tensor, y: Tensor | None = None) -> Tensor:
        """Observe ``y``, or draw it.

        :param output: the network's output, ``(N, K)`` or ``(..., N, K)``.
        :param y: observed values: ``(N,)`` if ``K`` is one target or the classes of one label, else ``(N, K)``.
        :return: ``y``, observed or drawn.
        """
        output = squeeze_slot(output)
        f, event_dim, p_y = self._explain(output)
        if y is not None:
            check_target(y, p_y.shape()[len(p_y.batch_shape) - 1 :])
            y = y.to(f.dtype) if self.kind == "binary" else y
        with data_plate(output.shape[-2], self.data_size, observed=y is not None):
            pyro.deterministic("f", f, event_dim=event_dim)
            return pyro.sample("y", p_y, obs=y)

    def _explain(self, output: Tensor) -> tuple[Tensor, int, Any]:
        """Return the value of ``"f"``, its event dimensions, and the distribution of ``y``."""
        if self.kind == "multiclass":
            return output, 1, dist.Categorical(logits=output)
        if self.kind == "regression" and self.noise == "heteroscedastic":
            output, raw = output.chunk(2, dim=-1)
        event_dim = int(output.shape[-1] > 1)
        f = output.squeeze(-1)  # several targets stay as they are
        if callable(self.kind):
            p_y: Any = self.kind(output)
            if not isinstance(p_y, TorchDistributionMixin):
                raise ValueError(f"likelihood must return a pyro.distributions object, got {type(p_y).__name__}")
            return f, event_dim, p_y.to_event(max(0, len(p_y.batch_shape) - (output.dim() - 1)))
        if self.kind == "binary":
            return f, event_dim, dist.Bernoulli(logits=f).to_event(event_dim)
        if self.noise == "heteroscedastic":
            scale = MIN_SCALE + F.softplus(raw.squeeze(-1))
        else:
            scale = self._noise_scale(output)
            scale = scale.unsqueeze(-1) if event_dim else scale
        return f, event_dim, dist.Normal(f, scale).to_event(event_dim)

    def _noise_scale(self, like: Tensor) -> Tensor:
        if self.noise == "learned":
            return pyro.sample("sigma", dist.LogNormal(like.new_full((), -2.0), like.new_ones(())))
        if self.noise == "param":
            return pyro.param("noise_scale", lambda: like.new_full((), 0.1), constraint=constraints.positive)
        return like.new_full((), float(self.noise))
