"""Bayesian linear regression: the one model whose posterior, evidence and predictive are known exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor, nn

from zoo._checks import check_features, check_positive, check_target, one_of
from zoo._plates import data_plate, normal
from zoo._registries import models

__all__ = ["BayesianLinearRegression", "EvidenceMaximum"]


@models.register("bayesian_linear_regression")
class BayesianLinearRegression(nn.Module):
    r"""Linear regression with a Gaussian prior on the weights; its posterior, evidence and predictive are closed forms.

    .. math::

        w \sim \mathcal{N}(0, s^2 I), \qquad y_n \sim \mathcal{N}(\phi(x_n)^\top w, \sigma^2), \qquad
        \phi(x) = (x, 1)

        p(w \mid x, y) = \mathcal{N}(m, \Lambda^{-1}), \quad
        \Lambda = \Phi^\top\Phi / \sigma^2 + I / s^2, \quad m = \Lambda^{-1}\Phi^\top y / \sigma^2

        \log p(y \mid x) = -\tfrac12\Big[ N \log 2\pi\sigma^2 + D \log s^2 + \log\det\Lambda
        + \|y - \Phi m\|^2/\sigma^2 + \|m\|^2/s^2 \Big]

    The posterior mean :math:`m` is also the mode, and it is ridge regression with penalty :math:`\sigma^2 / s^2` (the
    intercept, if there is one, is penalised like the slopes).

    *When to use.* As ground truth: a guide, an objective or a diagnostic that is wrong here is wrong. And whenever the
    relation is linear and the noise Gaussian. *When not.* Heavy-tailed noise or outliers, and curved relations.

    Sites: latent ``"w"`` of shape ``(D,)`` with ``D = in_features + bias``, the slopes first and the intercept last;
    deterministic ``"f"`` and observed ``"y"`` of shape ``(N,)`` in the plate ``"data"``; latent ``"sigma"`` if
    ``noise_scale="learned"``.

    :param in_features: number of columns of ``x``.
    :param prior_scale: prior standard deviation :math:`s > 0` of every weight, or ``"param"``: a positive ``pyro.param``
        named ``"prior_scale"``, a point estimate to be found by type-II maximum likelihood.
    :param noise_scale: known standard deviation :math:`\sigma > 0` of the noise in units of ``y``; ``"param"``: a positive
        ``pyro.param`` named ``"noise_scale"``; or ``"learned"``: a latent ``sigma ~ LogNormal(-2, 1)``, and then there is no
        closed form.
    :param bias: whether a column of ones is appended to ``x``.
    :param data_size: size of the whole data set when calls see minibatches of it under stock SVI.
    :raises ValueError: for scales that are not positive, ``x`` or ``y`` of another shape, and for a closed form asked of a
        model whose scales are not fixed.

    References:
        Bishop (2006), Pattern Recognition and Machine Learning, sections 3.3 and 3.5.
        MacKay (1992), Bayesian interpolation.

    Example::

        >>> import torch
        >>> model, (x, y) = BayesianLinearRegression.example()
        >>> model.exact_posterior(x, y).mean.shape
        torch.Size([4])
        >>> bool(model.log_evidence(x, y) < 0)
        True
    """

    natural_guide: tuple[str, dict] = ("laplace", {})

    def __init__(
        self,
        in_features: int,
        prior_scale: float | str = 1.0,
        noise_scale: float | str = 1.0,
        bias: bool = True,
        data_size: int | None = None,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.prior_scale = _scale("prior_scale", prior_scale)
        self.noise_scale = _scale("noise_scale", noise_scale, latent=True)
        self.bias = bias
        self.data_size = data_size

    @classmethod
    def example(cls) -> tuple[BayesianLinearRegression, tuple[Tensor, Tensor]]:
        """Return a small model and data ``(x, y)`` drawn from it: 30 points, 3 features."""
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(30, 3, generator=generator)
        y = x @ torch.tensor([1.0, -2.0, 0.5]) + 0.3 + 0.5 * torch.randn(30, generator=generator)
        return cls(3, prior_scale=1.5, noise_scale=0.5), (x, y)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Draw or observe ``y``.

        :param x: inputs ``(N, in_features)``.
        :param y: observed targets ``(N,)``.
        """
        phi = self.design(x)
        if y is not None:
            check_target(y, phi.shape[:1])
        prior_scale = self._prior_scale(x)
        noise_scale = self._noise_scale(x)
        w = pyro.sample("w", normal(prior_scale, (phi.shape[-1],)))
        f = phi @ w if w.dim() == 1 else w @ phi.mT
        f = f.squeeze(-2) if f.dim() > 2 else f  # the data plate's slot, see zoo._plates
        with data_plate(phi.shape[0], self.data_size, observed=y is not None):
            pyro.deterministic("f", f, event_dim=0)
            return pyro.sample("y", dist.Normal(f, noise_scale), obs=y)

    def design(self, x: Tensor) -> Tensor:
        """Return the design matrix ``(N, D)``: ``x``, with a column of ones at its end if ``bias``."""
        check_features(x, self.in_features)
        return torch.cat([x, torch.ones_like(x[:, :1])], dim=-1) if self.bias else x

    def exact_posterior(
        self, x: Tensor, y: Tensor, *, prior_scale: float | None = None, noise_scale: float | None = None
    ) -> dist.MultivariateNormal:
        """Return the posterior of ``"w"``, of event shape ``(D,)`` and in ``x``'s dtype; computed in float64.

        :param x: inputs ``(N, in_features)``.
        :param y: targets ``(N,)``.
        :param prior_scale: value to use in place of the model's own.
        :param noise_scale: value to use in place of the model's own.
        :raises ValueError: if a scale is not fixed and none is given here, or the data are not finite.
        """
        mean, chol, *_ = self._solve(x, y, *self._fixed(prior_scale, noise_scale))
        scale_tril = torch.linalg.cholesky(torch.cholesky_inverse(chol))
        return dist.MultivariateNormal(mean.to(x.dtype), scale_tril=scale_tril.to(x.dtype))

    def exact_predictive(
        self, x_new: Tensor, x: Tensor, y: Tensor, *, prior_scale: float | None = None, noise_scale: float | None = None
    ) -> dist.Normal:
        """Return the predictive density of each new target, noise included: batch shape ``(N_new,)``.

        :param x_new: inputs ``(N_new, in_features)``; the other arguments are those of :meth:`exact_posterior`.
        """
        s, sigma = self._fixed(prior_scale, noise_scale)
        mean, chol, *_ = self._solve(x, y, s, sigma)
        phi = self.design(x_new).double()
        spread = torch.linalg.solve_triangular(chol, phi.mT, upper=False)
        return dist.Normal((phi @ mean).to(x.dtype), (spread.square().sum(0) + sigma**2).sqrt().to(x.dtype))

    def log_evidence(
        self, x: Tensor, y: Tensor, *, prior_scale: float | None = None, noise_scale: float | None = None
    ) -> Tensor:
        """Return the log evidence, log p(y | x), in nats: a float64 scalar. Arguments as in :meth:`exact_posterior`."""
        s, sigma = self._fixed(prior_scale, noise_scale)
        mean, chol, phi, target = self._solve(x, y, s, sigma)
        fit = (target - phi @ mean).square().sum() / sigma**2 + mean.square().sum() / s**2
        log_det = 2 * chol.diagonal().log().sum()
        n, d = phi.shape
        return -0.5 * (n * math.log(2 * math.pi * sigma**2) + d * math.log(s**2) + log_det + fit)

    def maximise_evidence(
        self, x: Tensor, y: Tensor, *, tolerance: float = 1e-10, max_steps: int = 10_000
    ) -> EvidenceMaximum:
        r"""Find the scales that maximise the evidence by MacKay's fixed point; scales given as numbers stay as they are.

        .. math::
            \gamma = \sum_d \frac{\lambda_d}{\lambda_d + \sigma^2/s^2}, \qquad
            s^2 \leftarrow \|m\|^2 / \gamma, \qquad \sigma^2 \leftarrow \|y - \Phi m\|^2 / (N - \gamma)

        with :math:`\lambda_d` the eigenvalues of :math:`\Phi^\top\Phi` and :math:`\gamma` the well-determined parameters.

        :param x: inputs ``(N, in_features)``.
        :param y: targets ``(N,)``.
        :param tolerance: stop when no scale changes by more than this, relatively.
        :param max_steps: give up after so many steps.
        :raises ValueError: if neither scale is ``"param"``, or the noise is latent.
        :raises RuntimeError: if the evidence has no interior maximum (targets without signal, or without noise).
        """
        learned = [name for name in ("prior_scale", "noise_scale") if getattr(self, name) == "param"]
        if not learned or self.noise_scale == "learned":
            raise ValueError(
                f"maximise_evidence optimises scales that are 'param'; this model has prior_scale={self.prior_scale!r} "
                f"and noise_scale={self.noise_scale!r}"
            )
        s, sigma = (1.0 if value == "param" else float(value) for value in (self.prior_scale, self.noise_scale))
        eigenvalues = torch.linalg.eigvalsh(self.design(x).double().mT @ self.design(x).double()).clamp(min=0)
        for step in range(1, max_steps + 1):
            mean, _, phi, target = self._solve(x, y, s, sigma)
            gamma = float((eigenvalues / (eigenvalues + sigma**2 / s**2)).sum())
            residual = float((target - phi @ mean).square().sum())
            if not (gamma > 0 and len(target) > gamma and residual > 0 and float(mean.abs().max()) > 1e-150):
                break
            new_s = math.sqrt(float(mean.square().sum()) / gamma) if "prior_scale" in learned else s
            new_sigma = math.sqrt(residual / (len(target) - gamma)) if "noise_scale" in learned else sigma
            change = max(abs(new_s / s - 1), abs(new_sigma / sigma - 1))
            s, sigma = new_s, new_sigma
            if change < tolerance:
                log_evidence = float(self.log_evidence(x, y, prior_scale=s, noise_scale=sigma))
                return EvidenceMaximum(s, sigma, log_evidence, step)
        raise RuntimeError(
            f"the evidence has no maximum inside: after {step} steps prior_scale={s:.3g}, noise_scale={sigma:.3g}. "
            "Targets without signal drive prior_scale to 0, targets without noise drive noise_scale to 0; fix that scale"
        )

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        scales = f"prior_scale={self.prior_scale!r}, noise_scale={self.noise_scale!r}"
        return f"in_features={self.in_features}, {scales}, bias={self.bias}"

    def _prior_scale(self, like: Tensor) -> Tensor:
        if self.prior_scale == "param":
            return pyro.param("prior_scale", lambda: like.new_ones(()), constraint=constraints.positive)
        return like.new_full((), float(self.prior_scale))

    def _noise_scale(self, like: Tensor) -> Tensor:
        if self.noise_scale == "learned":
            return pyro.sample("sigma", dist.LogNormal(like.new_full((), -2.0), like.new_ones(())))
        if self.noise_scale == "param":
            return pyro.param("noise_scale", lambda: like.new_ones(()), constraint=constraints.positive)
        return like.new_full((), float(self.noise_scale))

    def _fixed(self, prior_scale: float | None, noise_scale: float | None) -> tuple[float, float]:
        """The two scales as numbers: those given, else the model's own if they are fixed."""
        scales = []
        for name, given in (("prior_scale", prior_scale), ("noise_scale", noise_scale)):
            value = getattr(self, name) if given is None else given
            if isinstance(value, str):
                found = "a latent variable" if value == "learned" else "a learned parameter"
                raise ValueError(f"closed forms need a known {name}, here it is {found}; pass {name}=... to this method")
            scales.append(check_positive(name, value))
        return scales[0], scales[1]

    def _solve(self, x: Tensor, y: Tensor, s: float, sigma: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Posterior mean, Cholesky factor of the posterior precision, design matrix and targets, in float64."""
        phi, target = self.design(x).double(), y.double()
        check_target(y, phi.shape[:1])
        for name, value in (("x", phi), ("y", target)):
            if not torch.isfinite(value).all():
                raise ValueError(f"{name} holds NaN or infinite values; remove or impute those rows")
        eye = torch.eye(phi.shape[-1], dtype=phi.dtype, device=phi.device)
        chol = torch.linalg.cholesky(phi.mT @ phi / sigma**2 + eye / s**2)
        mean = torch.cholesky_solve((phi.mT @ target / sigma**2).unsqueeze(-1), chol).squeeze(-1)
        return mean, chol, phi, target


@dataclass(frozen=True)
class EvidenceMaximum:
    """Where the evidence of a :class:`BayesianLinearRegression` is largest.

    :param prior_scale: standard deviation of the weights.
    :param noise_scale: standard deviation of the noise, in units of ``y``.
    :param log_evidence: log p(y | x) there, in nats.
    :param steps: fixed-point steps taken.
    """

    prior_scale: float
    noise_scale: float
    log_evidence: float
    steps: int


def _scale(name: str, value: float | str, latent: bool = False) -> float | str:
    known = ("learned", "param") if latent else ("param",)
    return one_of(name, value, known) if isinstance(value, str) else check_positive(name, value)
