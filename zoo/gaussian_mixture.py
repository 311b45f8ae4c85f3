"""Bayesian mixture of Gaussians with its assignments summed out."""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from zoo._checks import check_features, check_positive, one_of
from zoo._plates import data_plate
from zoo._registries import models
from zoo.conjugate import ConjugateMixture, DirichletWeights, Weights
from zoo.conjugate_normal import NormalGamma, NormalWishart, bartlett_degrees, bartlett_factor, bartlett_index

__all__ = ["GaussianMixture"]


@models.register("gaussian_mixture")
class GaussianMixture(nn.Module):
    r"""A mixture of K Gaussians with conjugate priors on weights, means and precisions.

    .. math::

        \pi \sim \operatorname{Dirichlet}(\alpha, \ldots, \alpha), \qquad
        \Lambda_k \sim \operatorname{Wishart}(\nu, S^{-1}), \qquad
        \mu_k \sim \mathcal{N}(m, (\kappa \Lambda_k)^{-1})

        p(x_n \mid \pi, \mu, \Lambda) = \sum_k \pi_k \, \mathcal{N}(x_n \mid \mu_k, \Lambda_k^{-1})

    and for ``covariance="diagonal"`` :math:`\lambda_{kd} \sim \operatorname{Gamma}(\nu/2, S_{dd}/2)`. The assignments are
    summed out, so all latents are continuous and any guide or NUTS applies; ``guides.cavi(model, x)`` keeps them and finds
    the mean-field posterior in closed form. With full covariances, prior and bound are those of scikit-learn's
    ``BayesianGaussianMixture``.

    *When to use.* Clusters, density estimation, and a posterior with many modes (K! by the labels alone) to try guides on.
    *When not.* Hundreds of columns: use a factor model or a VAE. Labels mean nothing across draws or restarts: compare
    densities and co-assignments.

    Sites: latent ``"weights"`` ``(K,)`` (none for one component) and ``"loc"`` ``(K, D)``; for diagonal covariances latent
    ``"precision"`` ``(K, D)``; for full ones latent ``"bartlett_chi2"`` ``(K, D)`` and ``"bartlett_normal"``
    ``(K, D(D-1)/2)``, which are Bartlett's independent factors of the Wishart, and deterministic ``"precision"``
    ``(K, D, D)``. In the plate ``"data"``: observed ``"x"`` ``(N, D)``.

    :param num_components: K.
    :param in_features: D, number of columns of ``x``.
    :param covariance: ``"full"`` or ``"diagonal"``.
    :param concentration: :math:`\alpha`; below 1, components that the data do not need lose their weight.
    :param mean: prior mean :math:`m`, a number or one for each column.
    :param mean_precision: :math:`\kappa`, how many data points the prior mean is worth.
    :param degrees_of_freedom: :math:`\nu`, above ``in_features - 1`` for full covariances; D by default.
    :param scatter: prior scatter :math:`S`, so that precisions have the mean :math:`\nu S^{-1}`: a number (times the
        identity), its diagonal, or a matrix. The default suits standardised columns.
    :param data_size: size of the whole data set when calls see minibatches of it under stock SVI.
    :raises ValueError: for fewer components or columns than 1, a prior that is not proper, and ``x`` of another shape.

    References:
        Attias (2000), A variational Bayesian framework for graphical models.
        Bishop (2006), Pattern Recognition and Machine Learning, section 10.2.

    Example::

        >>> import torch
        >>> model = GaussianMixture(3, in_features=2)
        >>> model(torch.randn(8, 2)).shape
        torch.Size([8, 2])
    """

    natural_guide: tuple[str, dict] = ("mean_field", {"init_loc_fn": "spread", "init_scale": 0.1})
    prior_mean: Tensor
    prior_scatter: Tensor
    bartlett: Tensor

    def __init__(
        self,
        num_components: int,
        in_features: int,
        covariance: str = "full",
        concentration: float = 1.0,
        mean: float | Sequence[float] | Tensor = 0.0,
        mean_precision: float = 1.0,
        degrees_of_freedom: float | None = None,
        scatter: float | Sequence[float] | Tensor = 1.0,
        data_size: int | None = None,
    ) -> None:
        super().__init__()
        self.num_components = self._check_components(num_components)
        self.in_features = _count("in_features", in_features)
        self.covariance = one_of("covariance", covariance, ("diagonal", "full"))
        self.concentration = check_positive("concentration", concentration)
        self.mean_precision = check_positive("mean_precision", mean_precision)
        self.degrees_of_freedom = check_positive("degrees_of_freedom", degrees_of_freedom or in_features)
        if covariance == "full" and self.degrees_of_freedom <= in_features - 1:
            raise ValueError(
                f"degrees_of_freedom={self.degrees_of_freedom:g} gives no proper Wishart in {in_features} dimensions; "
                f"use more than {in_features - 1}"
            )
        self.data_size = data_size
        self.register_buffer("prior_mean", _vector("mean", mean, in_features), persistent=False)
        self.register_buffer("prior_scatter", _scatter(scatter, in_features, self.covariance), persistent=False)
        self.register_buffer("bartlett", bartlett_index(in_features), persistent=False)

    @classmethod
    def _check_components(cls, num_components: int) -> int:
        return _count("num_components", num_components)

    @classmethod
    def example(cls) -> tuple[GaussianMixture, tuple[Tensor]]:
        """Return a small model and data ``(x,)``: 30 points in two clusters."""
        generator = torch.Generator().manual_seed(0)
        centres = torch.tensor([[-1.0, -0.5], [1.0, 0.5]]).repeat_interleave(15, 0)
        return cls(2, 2, degrees_of_freedom=4.0), (centres + 0.3 * torch.randn(30, 2, generator=generator),)

    def forward(self, x: Tensor) -> Tensor:
        """Observe ``x``, shape ``(N, in_features)``."""
        check_features(x, self.in_features)
        weights = self._weights(x)
        loc, scale_tril = self._components(x)
        if weights.dim() == 2:  # draws that come without the data plate's slot, see zoo._plates
            weights, loc, scale_tril = weights.unsqueeze(1), loc.unsqueeze(1), scale_tril.unsqueeze(1)
        if self.covariance == "full":
            components = dist.MultivariateNormal(loc, scale_tril=scale_tril)
        else:
            components = dist.Normal(loc, scale_tril).to_event(1)
        with data_plate(x.shape[0], self.data_size):
            return pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(weights), components), obs=x)

    def _weights(self, like: Tensor) -> Tensor:
        ones = like.new_ones(self.num_components)
        if self.num_components == 1:
            return ones
        return pyro.sample("weights", dist.Dirichlet(self.concentration * ones))

    def _components(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Draw means ``(..., K, D)`` and Cholesky factors of the covariances, or standard deviations."""
        mean, scatter = self.prior_mean.to(like), self.prior_scatter.to(like)
        shape, dof = (self.num_components, self.in_features), like.new_tensor(self.degrees_of_freedom)
        if self.covariance == "diagonal":
            gamma = dist.Gamma((dof / 2).expand(shape), (scatter / 2).expand(shape))
            scale = pyro.sample("precision", gamma.to_event(2)).rsqrt()
            loc = pyro.sample("loc", dist.Normal(mean.expand(shape), scale / self.mean_precision**0.5).to_event(2))
            return loc, scale
        degrees = bartlett_degrees(dof, self.in_features).expand(shape)
        chi2 = pyro.sample("bartlett_chi2", dist.Gamma(degrees / 2, torch.full_like(degrees, 0.5)).to_event(2))
        pairs = (self.num_components, self.in_features * (self.in_features - 1) // 2)
        normals = chi2[..., :0]
        if pairs[1]:
            normals = pyro.sample("bartlett_normal", dist.Normal(like.new_zeros(pairs), like.new_ones(pairs)).to_event(2))
        eye = torch.eye(self.in_features, dtype=like.dtype, device=like.device)
        unit = torch.linalg.solve_triangular(torch.linalg.cholesky(scatter), eye, upper=False).mT
        factor = unit @ bartlett_factor(chi2, normals, self.bartlett)
        pyro.deterministic("precision", factor @ factor.mT, event_dim=3)
        scale_tril = torch.linalg.solve_triangular(factor.mT, eye, upper=False)
        prior = dist.MultivariateNormal(mean.expand(shape), scale_tril=scale_tril / self.mean_precision**0.5)
        return pyro.sample("loc", prior.to_event(1)), scale_tril

    def conjugate(self, x: Tensor) -> ConjugateMixture:
        """Return the model's conjugate structure, in float64, for closed-form coordinate ascent on ``x``.

        :param x: data ``(N, in_features)``, finite.
        """
        check_features(x, self.in_features)
        if not torch.isfinite(x).all():
            raise ValueError("x holds NaN or infinite values; remove or impute those rows")
        block = NormalWishart if self.covariance == "full" else NormalGamma
        components = block(
            self.num_components,
            self.prior_mean.to(x.device, torch.float64),
            self.mean_precision,
            self.degrees_of_freedom,
            self.prior_scatter.to(x.device, torch.float64),
            centre=x.double().mean(0),
        )
        return ConjugateMixture(self._conjugate_weights(x), components)

    def _conjugate_weights(self, like: Tensor) -> Weights:
        full = torch.full((self.num_components,), self.concentration, dtype=torch.float64, device=like.device)
        return DirichletWeights(full)

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        return (
            f"num_components={self.num_components}, in_features={self.in_features}, covariance={self.covariance!r}, "
            f"concentration={self.concentration:g}"
        )


def _count(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    return value


def _vector(name: str, value: float | Sequence[float] | Tensor, size: int) -> Tensor:
    vector = torch.as_tensor(value, dtype=torch.float64)
    if vector.dim() > 1 or (vector.dim() == 1 and len(vector) != size) or not torch.isfinite(vector).all():
        raise ValueError(f"{name} must be a finite number or {size} of them, got {value!r}")
    return vector.expand(size).clone()


def _scatter(value: float | Sequence[float] | Tensor, size: int, covariance: str) -> Tensor:
    """Return a positive definite matrix ``(D, D)``, or a positive diagonal ``(D,)``."""
    given = torch.as_tensor(value, dtype=torch.float64)
    if covariance == "full" and given.dim() == 2:
        symmetric = given.shape == (size, size) and torch.allclose(given, given.mT)
        if not symmetric or not torch.isfinite(given).all() or int(torch.linalg.cholesky_ex(given).info) > 0:
            raise ValueError(
                f"scatter must be a symmetric positive definite ({size}, {size}) matrix, got one of shape "
                f"{tuple(given.shape)} that is not; a constant column makes a covariance singular: drop that column"
            )
        return given.clone()
    diagonal = _vector("scatter", value, size)
    if (diagonal <= 0).any():
        raise ValueError(f"scatter must be positive, got {value!r}; a constant column has none: drop it, or give it a scale")
    return torch.diag(diagonal) if covariance == "full" else diagonal
