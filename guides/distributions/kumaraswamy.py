"""Kumaraswamy's distribution on (0, 1), drawn by inverting its distribution function."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import Beta, constraints
from torch.distributions.kl import register_kl

__all__ = ["Kumaraswamy"]

EULER = 0.5772156649015329
TERMS, NODES, REACH = 10, 8, 5.0


class Kumaraswamy(TorchDistribution):
    r"""A distribution like the Beta with a distribution function that can be inverted, so that draws are differentiable.

    .. math:: q(v) = a b \, v^{a-1} (1 - v^a)^{b-1}, \qquad v = (1 - (1-u)^{1/b})^{1/a}, \quad u \sim U(0, 1)

    Its divergence to a :math:`\operatorname{Beta}(\alpha, \beta)` is

    .. math::
        \frac{a - \alpha}{a} \Big( -\gamma - \psi(b) - \frac1b \Big) + \log ab + \log B(\alpha, \beta) - \frac{b - 1}{b}
        + (\beta - 1) \sum_{m=1}^\infty \frac{b}{m + ab} B\Big(\frac{m}{a}, b\Big)

    (Nalisnick and Smyth). The series converges slowly and all its terms have one sign: cut after ten, as theirs is, it would
    put the ELBO nats too high. Here the remainder is taken as an integral: over a stretch by quadrature, beyond it by the
    asymptotic form of the gamma functions. The sum is right to some 1e-4.

    :param a: first concentration, positive.
    :param b: second concentration, positive.
    """

    arg_constraints = {"a": constraints.positive, "b": constraints.positive}  # noqa: RUF012
    support = constraints.unit_interval
    has_rsample = True

    def __init__(self, a: Tensor, b: Tensor, validate_args: bool | None = None) -> None:
        self.a, self.b = torch.broadcast_tensors(a, b)
        super().__init__(self.a.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Kumaraswamy:
        """Return the same distribution in a larger batch."""
        return Kumaraswamy(self.a.expand(batch_shape), self.b.expand(batch_shape), validate_args=False)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw by the inverse of the distribution function, away from 1 by a rounding, and from 0 far enough for the
        gradient of a draw's logarithm.
        """
        like = self.a
        eps = torch.finfo(like.dtype).eps
        smallest = torch.finfo(like.dtype).tiny / eps
        u = torch.rand(self._extended_shape(torch.Size(sample_shape)), dtype=like.dtype, device=like.device).clamp(
            eps, 1 - eps
        )
        rest = (u.log() / self.b).clamp(max=-eps)  # log (1 - v^a)
        return (torch.log(-torch.expm1(rest)) / self.a).exp().clamp(smallest, 1 - eps)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density in nats."""
        log_value = value.log()
        log_rest = torch.log(-torch.expm1(self.a * log_value))
        return self.a.log() + self.b.log() + (self.a - 1) * log_value + (self.b - 1) * log_rest

    @property
    def mean(self) -> Tensor:
        """The mean."""
        return self.log_mean.exp()

    @property
    def log_mean(self) -> Tensor:
        """The logarithm of the mean, finite where the mean underflows."""
        one = 1 + 1 / self.a
        return self.b.log() + torch.lgamma(one) + torch.lgamma(self.b) - torch.lgamma(one + self.b)

    def mean_log_rest(self) -> Tensor:
        r"""Return :math:`E[\log(1 - v)]`, minus the series above."""
        a, b = self.a.unsqueeze(-1), self.b.unsqueeze(-1)

        def term(t: Tensor) -> Tensor:
            return (torch.lgamma(t) + torch.lgamma(b + 1) - torch.lgamma(t + b + 1)).exp()

        terms = term(torch.arange(1, TERMS + 2, dtype=a.dtype, device=a.device) / a) / a
        low, high = (TERMS + 0.5) / a, (TERMS + 0.5) / a + REACH
        nodes, weights = (torch.as_tensor(v, dtype=a.dtype, device=a.device) for v in np.polynomial.legendre.leggauss(NODES))
        half = 0.5 * (high / low).log()
        t = (low.log() + half * (1 + nodes)).exp()
        stretch = (half * weights * t * term(t)).sum(-1)
        beyond = (torch.lgamma(b) - b * (high + b / 2).log()).exp().squeeze(-1)
        midpoints = (terms[..., -1] - terms[..., -2]) / 24  # what the sum has less than the integral of its midpoint rule
        return -(terms[..., :-1].sum(-1) + stretch + beyond + midpoints)


@register_kl(Kumaraswamy, Beta)
def _kl_kumaraswamy_beta(q: Kumaraswamy, p: Beta) -> Tensor:
    alpha, beta = p.concentration1, p.concentration0
    log_beta = torch.lgamma(alpha) + torch.lgamma(beta) - torch.lgamma(alpha + beta)
    mean_log = -(EULER + torch.digamma(q.b) + 1 / q.b) / q.a
    own = (q.a - 1) * mean_log + q.a.log() + q.b.log() - (q.b - 1) / q.b
    return own - (alpha - 1) * mean_log - (beta - 1) * q.mean_log_rest() + log_beta
