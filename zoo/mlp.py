"""Bayesian multi-layer perceptron of any depth and width."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions import constraints
from torch import Tensor, nn

from zoo._checks import check_features, check_positive, one_of
from zoo._plates import affine, normal
from zoo._registries import models
from zoo.likelihood import Likelihood

__all__ = ["BayesianMLP"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "elu": F.elu,
    "gelu": F.gelu,
    "leaky_relu": F.leaky_relu,
    "relu": F.relu,
    "selu": F.selu,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "sin": torch.sin,
    "softplus": F.softplus,
    "tanh": torch.tanh,
}
PRIORS = ("learned", "param", "scaled")


@models.register("bayesian_mlp")
class BayesianMLP(nn.Module):
    r"""A fully connected network with a Gaussian prior on every weight and bias.

    .. math::

        W_l \sim \mathcal{N}(0, s_l^2 I), \qquad b_l \sim \mathcal{N}(0, t_l^2 I), \qquad h_0 = x

        h_{l+1} = a(h_l W_l + b_l) \quad (l < L), \qquad f = h_L W_L + b_L, \qquad y_n \sim p(y \mid f_n)

    with :math:`p(y \mid f)` one of the likelihoods of :class:`~zoo.Likelihood`.

    *When to use.* Curved regression and classification on tables of up to some 10^5 rows, where the uncertainty matters.
    *When not.* Images and sequences (turn a suitable network into a Bayesian one with :func:`~zoo.bayesianize`). With
    ``prior="learned"`` avoid guides that seek a joint mode (``map``, ``laplace``): the joint density has its highest peak
    where scales and weights vanish together.

    Sites: latent ``"layers.0.weight"`` ``(in, out)`` and ``"layers.0.bias"`` ``(out,)``, and so on for each layer;
    ``"layers.0.scale"`` ``()`` where the prior is ``"learned"``; ``"sigma"`` ``()`` with ``noise="learned"``. In the plate
    ``"data"``: deterministic ``"f"`` (mean, or logits), observed ``"y"``.

    :param in_features: number of columns of ``x``.
    :param hidden: widths of the hidden layers, input side first; ``()`` gives a linear model.
    :param out_features: number of targets, or of classes for ``"multiclass"``.
    :param activation: name (``"relu"``, ``"tanh"``, ...) or a function of a tensor.
    :param prior: for all layers, or a sequence with one entry for each of the ``len(hidden) + 1`` layers. A number: the
        standard deviation of weights and biases. ``"scaled"``: :math:`s_l = 1/\sqrt{\mathrm{fan\,in}}` for weights, 1 for
        biases, so that the prior on functions does not depend on the widths. ``"learned"``: a latent scale per layer,
        :math:`s_l \sim \operatorname{LogNormal}(-\tfrac12 \log \mathrm{fan\,in}, 1)`, biases as for ``"scaled"``.
        ``"param"``: a positive ``pyro.param`` per layer, ``"layers.0.prior_scale"`` and so on, for weights (to be found
        by type-II maximum likelihood), biases as for ``"scaled"``.
    :param likelihood: ``"regression"``, ``"binary"`` or ``"multiclass"``.
    :param noise: for regression: ``"learned"`` (latent ``sigma ~ LogNormal(-2, 1)``, meant for standardised targets),
        ``"param"`` (a positive ``pyro.param`` named ``"noise_scale"``), ``"heteroscedastic"`` (the network predicts it), or
        the known standard deviation in units of ``y``.
    :param data_size: size of the whole data set when calls see minibatches of it under stock SVI.
    :raises ValueError: for an unknown name, a width or a scale that is not positive, a list of priors that does not fit the
        layers, and ``x`` or ``y`` of another shape.

    References:
        MacKay (1992), A practical Bayesian framework for backpropagation networks.
        Neal (1996), Bayesian Learning for Neural Networks.
        Blundell, Cornebise, Kavukcuoglu and Wierstra (2015), Weight uncertainty in neural networks.

    Example::

        >>> import torch
        >>> model = BayesianMLP(13, hidden=(50, 20), activation="tanh")
        >>> model(torch.randn(8, 13)).shape
        torch.Size([8])
    """

    natural_guide: tuple[str, dict] = ("mean_field", {"init_scale": 1e-2})

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int] = (50,),
        out_features: int = 1,
        activation: str | Callable[[Tensor], Tensor] = "relu",
        prior: float | str | Sequence[float | str] = "scaled",
        likelihood: str = "regression",
        noise: str | float = "learned",
        data_size: int | None = None,
    ) -> None:
        super().__init__()
        self.likelihood = Likelihood(likelihood, noise, data_size)
        self.sizes = (in_features, *hidden, self.likelihood.outputs_for(out_features))
        if min(self.sizes) < 1:
            raise ValueError(f"every layer needs at least one unit, got sizes {self.sizes}; check in_features and hidden")
        if likelihood == "multiclass" and out_features < 2:
            raise ValueError(f"likelihood='multiclass' needs out_features >= 2 (the classes), got {out_features}")
        self.activation = activation if callable(activation) else ACTIVATIONS[one_of("activation", activation, ACTIVATIONS)]
        self.priors = self._read_priors(prior)

    def _read_priors(self, prior: float | str | Sequence[float | str]) -> tuple[float | str, ...]:
        layers = len(self.sizes) - 1
        if isinstance(prior, str) or not isinstance(prior, Sequence):
            prior = [prior] * layers
        if len(prior) != layers:
            raise ValueError(f"prior has {len(prior)} entries for {layers} layers; give one per layer or one for all")
        return tuple(one_of("prior", p, PRIORS) if isinstance(p, str) else check_positive("prior", p) for p in prior)

    @classmethod
    def example(cls) -> tuple[BayesianMLP, tuple[Tensor, Tensor]]:
        """Return a small regression model and data ``(x, y)``: 24 points, 2 features."""
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(24, 2, generator=generator)
        y = torch.sin(2 * x[:, 0]) + 0.1 * torch.randn(24, generator=generator)
        return cls(2, hidden=(5,)), (x, y)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Draw or observe ``y``.

        :param x: inputs ``(N, in_features)``.
        :param y: observed targets or labels: ``(N,)``, or ``(N, out_features)`` for several targets.
        """
        check_features(x, self.sizes[0])
        h = x
        for i, fans in enumerate(zip(self.sizes, self.sizes[1:])):
            h = affine(h if i == 0 else self.activation(h), *self._sample_layer(i, fans, x))
        return self.likelihood(h, y)

    def _sample_layer(self, i: int, fans: tuple[int, int], like: Tensor) -> tuple[Tensor, Tensor]:
        prior, spread = self.priors[i], fans[0] ** -0.5
        if prior == "learned":
            log_spread = like.new_full((), math.log(spread))
            scale = pyro.sample(f"layers.{i}.scale", dist.LogNormal(log_spread, like.new_ones(())))
        elif prior == "param":
            name = f"layers.{i}.prior_scale"
            scale = pyro.param(name, lambda: like.new_full((), spread), constraint=constraints.positive)
        else:
            scale = like.new_full((), spread if prior == "scaled" else float(prior))
        bias_scale = like.new_full((), 1.0 if isinstance(prior, str) else prior)
        weight = pyro.sample(f"layers.{i}.weight", normal(scale, fans))
        bias = pyro.sample(f"layers.{i}.bias", normal(bias_scale, fans[1:]))
        return weight, bias

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        return f"sizes={self.sizes}, priors={self.priors}, likelihood={self.likelihood}"
