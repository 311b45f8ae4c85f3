"""The logistic distribution cut into levels: a likelihood of grey levels as what they are, a few hundred values."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all

__all__ = ["DiscretizedLogistic"]


class DiscretizedLogistic(TorchDistribution):
    r"""A logistic variable rounded to ``levels`` equally spaced values from 0 to 1, the outermost taking the tails.

    .. math::

        P(x = \tfrac{k}{K-1}) = \sigma\Big(\frac{x + h - \mu}{s}\Big) - \sigma\Big(\frac{x - h - \mu}{s}\Big), \qquad
        h = \frac{1}{2(K-1)}

    with the first term 1 at :math:`x = 1` and the second 0 at :math:`x = 0`. It is computed without cancellation, as
    :math:`\log\sigma(a) + \log\sigma(-b) + \log(1 - e^{b - a})`.

    :param loc: :math:`\mu`, any real.
    :param scale: :math:`s > 0`, in units of ``x``.
    :param levels: K, at least 2; 256 for images of 8 bits divided by 255.

    References:
        Salimans, Karpathy, Chen and Kingma (2017), PixelCNN++.
        Kingma, Salimans, Jozefowicz, Chen, Sutskever and Welling (2016), Improved variational inference with inverse
        autoregressive flow.

    Example::

        >>> import torch
        >>> from zoo.discretized_logistic import DiscretizedLogistic
        >>> grey = torch.arange(256) / 255
        >>> round(float(DiscretizedLogistic(torch.tensor(0.3), torch.tensor(0.1)).log_prob(grey).exp().sum()), 4)
        1.0
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"loc": constraints.real, "scale": constraints.positive}
    support = constraints.unit_interval
    loc: Tensor
    scale: Tensor

    def __init__(self, loc: Tensor, scale: Tensor, levels: int = 256, validate_args: bool | None = None) -> None:
        self.loc, self.scale = broadcast_all(loc, scale)
        self.levels = levels
        super().__init__(self.loc.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: DiscretizedLogistic | None = None) -> DiscretizedLogistic:
        """Return the distribution with another batch shape."""
        new = self._get_checked_instance(DiscretizedLogistic, _instance)
        new.loc, new.scale, new.levels = self.loc.expand(batch_shape), self.scale.expand(batch_shape), self.levels
        super(DiscretizedLogistic, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of levels in nats."""
        if self._validate_args:
            self._validate_sample(value)
        half = 0.5 / (self.levels - 1)
        below = F.logsigmoid((value + half - self.loc) / self.scale)
        above = F.logsigmoid((self.loc - value + half) / self.scale)
        between = below + above + (-torch.expm1(-2 * half / self.scale)).log()
        return torch.where(value < half, below, torch.where(value > 1 - half, above, between))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Return draws, each one of the levels."""
        with torch.no_grad():
            u = torch.rand(self._extended_shape(torch.Size(sample_shape)), dtype=self.loc.dtype, device=self.loc.device)
            x = self.loc + self.scale * (u.log() - torch.log1p(-u))
            return (x.clamp(0, 1) * (self.levels - 1)).round() / (self.levels - 1)

    @property
    def mean(self) -> Tensor:
        r"""The exact mean, :math:`\sum_{k < K - 1} P(x > k / (K - 1)) / (K - 1)`."""
        total = torch.zeros_like(self.loc)
        for k in range(self.levels - 1):
            total = total + torch.sigmoid((self.loc - (k + 0.5) / (self.levels - 1)) / self.scale)
        return total / (self.levels - 1)
