r"""Mathematics of mixtures :math:`q(z) = \sum_k \pi_k q_k(z)`: densities, bounds, and how much components overlap.

Pure functions of tensors. The last dimension of weights and of everything that belongs to components is K; dimensions before
it are batches, such as the rows of the data where every row has a mixture of its own. All in nats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pyro.distributions.score_parts import ScoreParts
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import Independent, LowRankMultivariateNormal, MultivariateNormal, Normal, constraints

from guides.errors import OptionError, check_known

__all__ = [
    "BOUNDS",
    "MixtureDensity",
    "Pairs",
    "chosen",
    "entropy_bound",
    "log_density",
    "pairs_of",
    "pairwise_diagonal",
    "pairwise_full",
    "pairwise_low_rank",
    "siwae",
    "weight_entropy",
    "weighted_sum",
]

BOUNDS = ("jensen", "bhattacharyya")

_NO_SHAPE = torch.Size()


def weighted_sum(log_weights: Tensor, values: Tensor) -> Tensor:
    r"""Return :math:`\sum_k \pi_k v_k`, shape ``(...)``; a component whose weight has underflown to zero adds nothing, even
    if its value is not finite.

    :param log_weights: normalised, shape ``(..., K)``.
    :param values: shape ``(..., K)``.
    """
    weights = log_weights.exp()
    return (weights * torch.where(weights > 0, values, torch.zeros_like(values))).sum(-1)


def chosen(values: Tensor, index: Tensor) -> Tensor:
    """Return the rows of ``values``, shape ``(K, ...)``, that ``index`` names, shape ``(*index shape, ...)``."""
    return values.index_select(0, index.reshape(-1)).reshape(index.shape + values.shape[1:])


def log_density(log_weights: Tensor, log_components: Tensor) -> Tensor:
    r"""Return :math:`\log \sum_j \pi_j q_j(z)`, shape ``(...)``.

    :param log_weights: normalised, shape ``(..., K)``.
    :param log_components: log density of every component at one z, shape ``(..., K)``.
    """
    return torch.logsumexp(log_weights + log_components, dim=-1)


def siwae(log_weights: Tensor, log_ratios: Tensor) -> Tensor:
    r"""Return :math:`\log \frac1T \sum_t \sum_k \pi_k\, p(x, z_{kt}) / q(z_{kt})`, shape ``(...)``.

    :param log_weights: normalised, shape ``(..., K)``.
    :param log_ratios: :math:`\log p(x, z_{kt}) - \log q(z_{kt})`, shape ``(T, ..., K)``.
    """
    return torch.logsumexp(log_weights + log_ratios, dim=(0, -1)) - math.log(log_ratios.shape[0])


def weight_entropy(log_weights: Tensor) -> Tensor:
    r"""Return :math:`H[\pi] = -\sum_k \pi_k \log \pi_k`, shape ``(...)``.

    :param log_weights: normalised, shape ``(..., K)``.
    """
    return -weighted_sum(log_weights, log_weights)


@dataclass(frozen=True)
class Pairs:
    r"""How far every pair of normal components is apart.

    :ivar quadratic: :math:`(\mu_k - \mu_j)^\top (S_k + S_j)^{-1} (\mu_k - \mu_j)`, shape ``(..., K, K)``, float64.
    :ivar log_det: :math:`\log |S_k + S_j|`, shape ``(..., K, K)``, float64.
    :ivar dim: D, the number of latents.
    """

    quadratic: Tensor
    log_det: Tensor
    dim: int

    @property
    def log_overlap(self) -> Tensor:
        r""":math:`\log \mathcal N(\mu_k; \mu_j, S_k + S_j)`, which is :math:`\log \int q_k q_j`, shape ``(..., K, K)``."""
        return -0.5 * (self.dim * math.log(2 * math.pi) + self.log_det + self.quadratic)

    @property
    def log_affinity(self) -> Tensor:
        r"""Minus the Bhattacharyya distance, :math:`\log \int \sqrt{q_k q_j}`, shape ``(..., K, K)``."""
        own = self.own_log_det
        return -0.25 * self.quadratic - 0.5 * (
            self.log_det - self.dim * math.log(2) - 0.5 * (own.unsqueeze(-1) + own.unsqueeze(-2))
        )

    @property
    def own_log_det(self) -> Tensor:
        r""":math:`\log |S_k|`, shape ``(..., K)``."""
        return torch.diagonal(self.log_det, dim1=-2, dim2=-1) - self.dim * math.log(2)

    @property
    def entropy(self) -> Tensor:
        """Entropy of every component by itself, shape ``(..., K)``."""
        return 0.5 * (self.dim * (1 + math.log(2 * math.pi)) + self.own_log_det)


def entropy_bound(log_weights: Tensor, pairs: Pairs, bound: str = "jensen") -> Tensor:
    r"""Return a closed-form lower bound on the entropy of a mixture of normals, shape ``(...)``.

    ``"jensen"`` (Huber et al. 2008; equations 57 to 62 of the report) takes the logarithm out of the expectation,

    .. math:: H[q] \ge -\sum_k \pi_k \log \sum_j \pi_j\, \mathcal N(\mu_k; \mu_j, S_k + S_j)

    and is :math:`\tfrac D2 (1 - \log 2)` below the entropy of components that do not overlap, so also of one component.
    ``"bhattacharyya"`` (Kolchinsky & Tracey 2017) is exact there,

    .. math:: H[q] \ge \sum_k \pi_k H[q_k] - \sum_k \pi_k \log \sum_j \pi_j \int \sqrt{q_k q_j}

    and the tighter of the two in more than a few dimensions.

    :param log_weights: normalised, shape ``(..., K)``.
    :param pairs: of the components.
    :raises OptionError: for an unknown ``bound``.
    """
    check_known("bound", bound, BOUNDS)
    log_weights = log_weights.double()
    if bound == "jensen":
        return -weighted_sum(log_weights, log_density(log_weights.unsqueeze(-2), pairs.log_overlap))
    apart = pairs.entropy - log_density(log_weights.unsqueeze(-2), pairs.log_affinity)
    return weighted_sum(log_weights, apart)


def pairwise_diagonal(loc: Tensor, scale: Tensor) -> Pairs:
    r"""Return the pairs of normals with covariances :math:`\mathrm{diag}(\sigma_k^2)`.

    :param loc: shape ``(..., K, D)``; ``scale`` likewise.
    """
    loc, variance = loc.double(), scale.double().square()
    total = variance.unsqueeze(-2) + variance.unsqueeze(-3)
    apart = loc.unsqueeze(-2) - loc.unsqueeze(-3)
    return Pairs((apart.square() / total).sum(-1), total.log().sum(-1), loc.shape[-1])


def pairwise_full(loc: Tensor, scale_tril: Tensor) -> Pairs:
    r"""Return the pairs of normals with covariances :math:`L_k L_k^\top`.

    :param loc: shape ``(..., K, D)``.
    :param scale_tril: L, lower triangular, shape ``(..., K, D, D)``.
    """
    loc, tril = loc.double(), scale_tril.double()
    covariance = tril @ tril.mT
    total = torch.linalg.cholesky_ex(covariance.unsqueeze(-3) + covariance.unsqueeze(-4)).L
    apart = (loc.unsqueeze(-2) - loc.unsqueeze(-3)).unsqueeze(-1)
    whitened = torch.linalg.solve_triangular(total, apart, upper=False).squeeze(-1)
    log_det = 2 * torch.diagonal(total, dim1=-2, dim2=-1).log().sum(-1)
    return Pairs(whitened.square().sum(-1), log_det, loc.shape[-1])


def pairwise_low_rank(loc: Tensor, cov_factor: Tensor, cov_diag: Tensor) -> Pairs:
    r"""Return the pairs of normals with covariances :math:`W_k W_k^\top + \mathrm{diag}(d_k)`, by Woodbury's identity with
    the columns of both components.

    :param loc: shape ``(..., K, D)``.
    :param cov_factor: W, shape ``(..., K, D, r)``.
    :param cov_diag: d, shape ``(..., K, D)``.
    """
    loc, factor, diagonal = loc.double(), cov_factor.double(), cov_diag.double()
    total = diagonal.unsqueeze(-2) + diagonal.unsqueeze(-3)
    one, other = torch.broadcast_tensors(factor.unsqueeze(-3), factor.unsqueeze(-4))
    columns = torch.cat([one, other], dim=-1)  # (..., K, K, D, 2r)
    scaled = columns.mT / total.unsqueeze(-2)
    inner = scaled @ columns + torch.eye(columns.shape[-1], dtype=torch.float64, device=loc.device)
    tril = torch.linalg.cholesky_ex(inner).L
    apart = loc.unsqueeze(-2) - loc.unsqueeze(-3)
    whitened = torch.linalg.solve_triangular(tril, scaled @ apart.unsqueeze(-1), upper=False).squeeze(-1)
    quadratic = (apart.square() / total).sum(-1) - whitened.square().sum(-1)
    log_det = total.log().sum(-1) + 2 * torch.diagonal(tril, dim1=-2, dim2=-1).log().sum(-1)
    return Pairs(quadratic, log_det, loc.shape[-1])


def pairs_of(components: Any) -> Pairs:
    """Return the pairs of the normals that a distribution of batch shape ``(..., K)`` over vectors holds.

    :raises OptionError: if they are not normal.
    """
    if isinstance(components, Independent) and isinstance(components.base_dist, Normal):
        return pairwise_diagonal(components.base_dist.loc, components.base_dist.scale)
    if isinstance(components, LowRankMultivariateNormal):
        return pairwise_low_rank(components.loc, components._unbroadcasted_cov_factor, components._unbroadcasted_cov_diag)
    if isinstance(components, MultivariateNormal):
        return pairwise_full(components.loc, components.scale_tril)
    raise OptionError(
        f"components of {type(components).__name__} have no closed-form bound on the entropy of their mixture; use normal "
        "components (mean_field, low_rank, full_rank), or objective='selbo'"
    )


class MixtureDensity(TorchDistribution):
    r"""A mixture whose draws come from one component that was chosen before, and whose density is that of them all.

    :param log_weights: normalised, shape ``(..., K)``.
    :param components: a distribution of batch shape ``(..., K)`` over vectors.
    :param chosen: the component to draw from, of batch shape ``(...)``.
    :param log_choice: log weight of that component, ``(...)``, where it was chosen at random: Pyro's ``Trace_ELBO`` then
        gets a gradient for the weights.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, log_weights: Tensor, components: Any, chosen: Any, log_choice: Tensor | None = None) -> None:
        self.log_weights = log_weights
        self.log_choice = log_choice
        self.components = components
        self.chosen = chosen
        super().__init__(chosen.batch_shape, chosen.event_shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> MixtureDensity:
        """Return the same mixture in a larger batch."""
        batch = torch.Size(batch_shape)
        if batch == self.batch_shape:
            return self
        components = self.components.expand(batch + self.components.batch_shape[-1:])
        choice = None if self.log_choice is None else self.log_choice.expand(batch)
        return MixtureDensity(self.log_weights.expand(components.batch_shape), components, self.chosen.expand(batch), choice)

    def rsample(self, sample_shape: Any = _NO_SHAPE) -> Tensor:
        """Return reparameterised draws of the chosen component, shape ``(*sample_shape, ..., D)``."""
        draw: Tensor = self.chosen.rsample(sample_shape)
        return draw

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of the whole mixture in nats."""
        return log_density(self.log_weights, self.components.log_prob(value.unsqueeze(-2)))

    def score_parts(self, x: Tensor, *args: Any, **kwargs: Any) -> ScoreParts:
        """Return what Pyro's objectives take gradients of.

        The learning signal that ``Trace_ELBO`` gives the choice of a component is made of the model's densities alone, as
        no auxiliary site is in it. The part of this density is added here.
        """
        parts: ScoreParts = super().score_parts(x, *args, **kwargs)
        if self.log_choice is None:
            return parts
        score = self.log_choice - self.log_choice.detach()
        return parts._replace(entropy_term=parts.entropy_term + parts.log_prob.detach() * score)

    def log_excess(self, value: Tensor) -> Tensor:
        r"""Return :math:`\log q(z) - \log q_k(z)` for the chosen component k, in nats."""
        own = self.chosen.log_prob(value)
        return log_density(self.log_weights, self.components.log_prob(value.unsqueeze(-2)) - own.unsqueeze(-1))
