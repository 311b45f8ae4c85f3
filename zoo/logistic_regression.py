"""Bayesian logistic regression, binary and multi-class."""

from __future__ import annotations

import pyro
import torch
from torch import Tensor, nn

from zoo._checks import check_features, check_positive
from zoo._plates import affine, normal
from zoo._registries import models
from zoo.likelihood import Likelihood

__all__ = ["BayesianLogisticRegression"]


@models.register("bayesian_logistic_regression")
class BayesianLogisticRegression(nn.Module):
    r"""Logistic regression with Gaussian priors on weights and intercepts.

    .. math::

        W \sim \mathcal{N}(0, s^2 I), \qquad b \sim \mathcal{N}(0, s^2 I), \qquad
        y_n \sim \operatorname{Bernoulli}\big(\operatorname{logit}^{-1}(x_n^\top W + b)\big)

    or :math:`y_n \sim \operatorname{Categorical}(\operatorname{softmax}(x_n^\top W + b))` for more than two classes. The
    log posterior is concave, so there is one mode and a Laplace approximation is usually close. With more than two classes
    every class has its own weights; the prior alone fixes the direction in which all of them move together.

    *When to use.* Classification with a linear boundary and honest uncertainty on few data; a non-conjugate test case with
    a log-concave posterior. *When not.* Curved boundaries (use :class:`~zoo.BayesianMLP`).

    Sites: latent ``"weight"`` ``(in_features, K)`` and ``"bias"`` ``(K,)`` with ``K = 1`` for two classes and
    ``num_classes`` otherwise; deterministic ``"f"``, the logits, ``(N,)`` or ``(N, K)``; observed ``"y"`` ``(N,)``.

    :param in_features: number of columns of ``x``; standardise them, the prior has one scale for all.
    :param num_classes: number of classes, at least 2.
    :param prior_scale: prior standard deviation :math:`s > 0`, in logits per unit of ``x``.
    :param bias: whether there is an intercept.
    :param data_size: size of the whole data set when calls see minibatches of it under stock SVI.
    :raises ValueError: for fewer than two classes, a scale that is not positive, and ``x`` or ``y`` of another shape.

    References:
        MacKay (1992), The evidence framework applied to classification networks.
        Bishop (2006), Pattern Recognition and Machine Learning, section 4.5.

    Example::

        >>> model, (x, y) = BayesianLogisticRegression.example()
        >>> model(x).shape == y.shape
        True
    """

    natural_guide: tuple[str, dict] = ("laplace", {})

    def __init__(
        self,
        in_features: int,
        num_classes: int = 2,
        prior_scale: float = 1.0,
        bias: bool = True,
        data_size: int | None = None,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}")
        self.in_features = in_features
        self.num_classes = num_classes
        self.prior_scale = check_positive("prior_scale", prior_scale)
        self.bias = bias
        self.likelihood = Likelihood("binary" if num_classes == 2 else "multiclass", data_size=data_size)

    @classmethod
    def example(cls) -> tuple[BayesianLogisticRegression, tuple[Tensor, Tensor]]:
        """Return a small binary model and data ``(x, y)``: 40 points, 2 features, labels 0.0 and 1.0."""
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(40, 2, generator=generator)
        y = torch.bernoulli(torch.sigmoid(2 * x[:, 0] - x[:, 1]), generator=generator)
        return cls(2), (x, y)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Draw or observe ``y``.

        :param x: inputs ``(N, in_features)``.
        :param y: observed labels ``(N,)``: 0 or 1, or integers from 0 to ``num_classes - 1``.
        """
        check_features(x, self.in_features)
        outputs = 1 if self.num_classes == 2 else self.num_classes
        scale = x.new_full((), self.prior_scale)
        weight = pyro.sample("weight", normal(scale, (self.in_features, outputs)))
        bias = pyro.sample("bias", normal(scale, (outputs,))) if self.bias else None
        return self.likelihood(affine(x, weight, bias), y)

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        return f"in_features={self.in_features}, num_classes={self.num_classes}, prior_scale={self.prior_scale}"
