"""Probabilistic PCA: the variational autoencoder whose evidence, posterior and information are known exactly."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from zoo._checks import check_features, check_positive
from zoo._plates import affine, data_plate, normal
from zoo._registries import models

__all__ = ["ProbabilisticPCA"]


@models.register("probabilistic_pca")
class ProbabilisticPCA(nn.Module):
    r"""A linear map of a Gaussian code with Gaussian noise; a variational autoencoder that has closed forms.

    .. math::

        z_n \sim \mathcal{N}(0, I_L), \qquad x_n \sim \mathcal{N}(z_n W + b, \sigma^2 I_D)

        \log p(x_n) = \log \mathcal{N}(x_n; b, W^\top W + \sigma^2 I), \qquad
        p(z_n \mid x_n) = \mathcal{N}\big(\Sigma W (x_n - b) / \sigma^2, \Sigma\big), \quad
        \Sigma^{-1} = I + W W^\top / \sigma^2

        I(x; z) = \tfrac12 \log\det(I + W W^\top / \sigma^2)

    *When to use.* As ground truth for guides, objectives and measures of latent-variable models: one that is wrong here is
    wrong. And for data that lie near a linear subspace. *When not.* Images and other data on curved sets: use
    :class:`~zoo.VAE`.

    Sites, both in the plate ``"data"``: latent ``"z"`` ``(N, L)`` and observed ``"x"`` ``(N, D)``.

    :param weight: the loadings :math:`W`, ``(L, D)``. With orthogonal rows the exact posterior has independent coordinates.
    :param bias: the mean of the data, ``(D,)``; zero by default.
    :param noise: the standard deviation :math:`\sigma > 0`, in units of ``x``.
    :param learned: whether weight, bias and noise are parameters that a fit changes, or constants.
    :param data_size: size of the whole data set when calls see minibatches of it under stock SVI.
    :raises ValueError: for a weight that is no matrix, a bias of another width, noise that is not positive, and ``x`` of
        another shape.

    References:
        Tipping and Bishop (1999), Probabilistic principal component analysis.
        Lucas, Tucker, Grosse and Norouzi (2019), Don't blame the ELBO! A linear VAE perspective on posterior collapse.

    Example::

        >>> model, (x,) = ProbabilisticPCA.example()
        >>> model.log_marginal(x).shape, model.exact_posterior(x).mean.shape
        (torch.Size([40]), torch.Size([40, 2]))
        >>> round(float(model.mutual_information()), 2)
        2.62
    """

    weight: Tensor
    bias: Tensor
    log_noise: Tensor

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        noise: float = 1.0,
        learned: bool = False,
        data_size: int | None = None,
    ) -> None:
        super().__init__()
        if weight.dim() != 2 or not weight.dtype.is_floating_point:
            raise ValueError(f"weight has shape {tuple(weight.shape)}, {weight.dtype}; it must be a float matrix (L, D)")
        bias = torch.zeros_like(weight[0]) if bias is None else bias
        if tuple(bias.shape) != tuple(weight.shape[1:]):
            raise ValueError(
                f"bias has shape {tuple(bias.shape)}; a weight of {tuple(weight.shape)} needs ({weight.shape[1]},)"
            )
        log_noise = weight.new_tensor(math.log(check_positive("noise", noise)))
        for name, value in (("weight", weight), ("bias", bias), ("log_noise", log_noise)):
            value = value.detach().clone()
            if learned:
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)
        self.learned = learned
        self.data_size = data_size

    @classmethod
    def example(cls) -> tuple[ProbabilisticPCA, tuple[Tensor]]:
        """Return a small model with orthogonal loadings and data ``(x,)`` drawn from it: 40 points in 5 dimensions."""
        generator = torch.Generator().manual_seed(0)
        weight = torch.linalg.qr(torch.randn(5, 2, generator=generator))[0].mT * torch.tensor([[2.0], [1.0]])
        model = cls(weight, bias=torch.linspace(-1, 1, 5), noise=0.4)
        z, noise = torch.randn(40, 2, generator=generator), torch.randn(40, 5, generator=generator)
        return model, (affine(z, model.weight, model.bias) + 0.4 * noise,)

    @classmethod
    def maximum_likelihood(cls, x: Tensor, latent_dim: int) -> ProbabilisticPCA:
        r"""Return the model under which the data are most probable.

        .. math:: W = (\Lambda_L - \sigma^2 I)^{1/2} U_L^\top, \qquad \sigma^2 = \frac{1}{D - L} \sum_{i > L} \lambda_i

        with :math:`\lambda_i` the eigenvalues of the covariance (denominator N), in descending order, and :math:`U_L` the
        eigenvectors of the largest.

        :param x: data ``(N, D)``.
        :param latent_dim: the dimension L of the code, from 1 to ``D - 1``.
        :raises ValueError: for another ``latent_dim``, or data that lie in L dimensions exactly.
        """
        check_features(x, x.shape[-1])
        if not 1 <= latent_dim < x.shape[1]:
            raise ValueError(f"latent_dim={latent_dim} must be from 1 to {x.shape[1] - 1}, one less than the columns of x")
        mean = x.double().mean(0)
        centred = x.double() - mean
        values, vectors = torch.linalg.eigh(centred.mT @ centred / len(x))
        noise = float(values[:-latent_dim].mean())
        if not noise > 1e-12 * float(values[-1]):
            raise ValueError(f"x lies in {latent_dim} dimensions, so the noise would be zero; use a smaller latent_dim")
        loadings = (values[-latent_dim:] - noise).clamp(min=0).sqrt().unsqueeze(-1) * vectors[:, -latent_dim:].mT
        return cls(loadings.flip(0).to(x.dtype), mean.to(x.dtype), math.sqrt(noise))

    @property
    def natural_guide(self) -> tuple[str, dict[str, Any]]:
        """A linear encoder with a full covariance: the exact posterior is one of these."""
        return "amortized", {"encoder": nn.Identity(), "covariance": "full"}

    @property
    def latent_dim(self) -> int:
        """The dimension of the code."""
        return self.weight.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        """Observe ``x``.

        :param x: data ``(N, D)``.
        """
        check_features(x, self.weight.shape[1])
        if self.learned:
            pyro.module("probabilistic_pca", self)
        with data_plate(len(x), self.data_size):
            z = pyro.sample("z", normal(x.new_ones(()), (self.latent_dim,)))
            return pyro.sample("x", self.decode(z), obs=x)

    def decode(self, z: Tensor) -> dist.Independent:
        """Return the distribution of ``x`` given codes ``(..., L)``."""
        return dist.Normal(affine(z, self.weight, self.bias), self.log_noise.exp()).to_event(1)

    def log_marginal(self, x: Tensor) -> Tensor:
        """Return log p(x) of every row in nats, float64 of shape ``(N,)``."""
        check_features(x, self.weight.shape[1])
        weight, bias, noise = self._double()
        eye = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
        covariance = weight.mT @ weight + noise**2 * eye
        return dist.MultivariateNormal(bias, covariance).log_prob(x.double())

    def exact_posterior(self, x: Tensor) -> dist.MultivariateNormal:
        """Return p(z | x) of every row: batch ``(N,)``, event ``(L,)``, in ``x``'s dtype; computed in float64."""
        check_features(x, self.weight.shape[1])
        weight, bias, noise = self._double()
        covariance = torch.linalg.inv(self._gain())
        mean = (x.double() - bias) @ weight.mT @ covariance / noise**2
        scale_tril = torch.linalg.cholesky(covariance).expand(len(x), -1, -1)
        return dist.MultivariateNormal(mean.to(x.dtype), scale_tril=scale_tril.to(x.dtype))

    def mutual_information(self) -> Tensor:
        """Return I(x; z) in nats: a float64 scalar."""
        return 0.5 * torch.linalg.slogdet(self._gain()).logabsdet

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        return f"latent_dim={self.latent_dim}, features={self.weight.shape[1]}, learned={self.learned}"

    def _gain(self) -> Tensor:
        """The posterior precision, I + W W' / noise^2."""
        weight, _, noise = self._double()
        return torch.eye(len(weight), dtype=weight.dtype, device=weight.device) + weight @ weight.mT / noise**2

    def _double(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.weight.double(), self.bias.double(), self.log_noise.double().exp()
