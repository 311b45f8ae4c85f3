"""Normal components with their conjugate priors, for :class:`zoo.conjugate.ConjugateMixture`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from zoo.conjugate import Natural

__all__ = ["NormalGamma", "NormalWishart", "bartlett_degrees", "bartlett_factor", "bartlett_index"]

LOG_2, LOG_2PI = math.log(2), math.log(2 * math.pi)
PRECISION = 1e-13


class _Gaussian:
    r"""What full and diagonal Gaussian components share: natural parameters of location, spread and their counts.

    ``"mean_precision"`` :math:`\kappa` and ``"degrees_of_freedom"`` :math:`\nu`, ``(R, K)``; ``"first"`` :math:`\kappa m`,
    ``(R, K, D)``; ``"second"`` :math:`S + \kappa m m^\top` or its diagonal. Data are centred at ``centre``: second moments
    far from the origin would lose the digits that the scatter needs.
    """

    def __init__(
        self,
        num_components: int,
        mean: Tensor,
        mean_precision: float,
        degrees_of_freedom: float,
        scatter: Tensor,
        centre: Tensor,
    ) -> None:
        self.centre = centre
        shifted = mean - centre
        second = scatter + mean_precision * self._outer(shifted)
        whole = {
            "mean_precision": shifted.new_tensor(mean_precision),
            "degrees_of_freedom": shifted.new_tensor(degrees_of_freedom),
            "first": mean_precision * shifted,
            "second": second,
        }
        self.prior: Natural = {k: v.expand(1, num_components, *v.shape) for k, v in whole.items()}
        self.prior_scatter = scatter

    def _outer(self, vector: Tensor) -> Tensor:
        raise NotImplementedError

    def _diagonal(self, matrix: Tensor) -> Tensor:
        raise NotImplementedError

    def rows(self, x: Tensor) -> Tensor:
        """Centred data in float64, rows last: ``(D, N)``."""
        return (x.double() - self.centre).mT.contiguous()

    def log_base(self, rows: Tensor) -> Tensor:
        """The normalising constants of N times D standard normals."""
        return rows.new_tensor(-0.5 * LOG_2PI * rows.numel())

    def _standard(self, natural: Natural) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        r"""Return :math:`\kappa, m, \nu, S`."""
        kappa = natural["mean_precision"]
        mean = natural["first"] / kappa.unsqueeze(-1)
        second = natural["second"]
        scatter = second - kappa.reshape(*kappa.shape, *[1] * (second.dim() - kappa.dim())) * self._outer(mean)
        if bool((self._diagonal(scatter) <= PRECISION * self._diagonal(second)).any()):
            raise ValueError(_LOST)
        return kappa, mean, natural["degrees_of_freedom"], scatter

    def describe(self, natural: Natural) -> dict[str, Tensor]:
        """Location, its precision factor, degrees of freedom and scatter, in the coordinates of the data."""
        kappa, mean, dof, scatter = self._standard(natural)
        return {
            "mean": mean + self.centre,
            "mean_precision": kappa,
            "degrees_of_freedom": dof,
            "scatter": scatter,
        }


class NormalGamma(_Gaussian):
    r"""Diagonal components: :math:`\lambda_{kd} \sim \operatorname{Gamma}(\nu/2, S_d/2)`,
    :math:`\mu_{kd} \sim \mathcal{N}(m_d, (\kappa\lambda_{kd})^{-1})`."""

    def _outer(self, vector: Tensor) -> Tensor:
        return vector.square()

    def _diagonal(self, matrix: Tensor) -> Tensor:
        return matrix

    def statistics(self, rows: Tensor, responsibilities: Tensor) -> Natural:
        """Counts, sums and sums of squares."""
        counts = responsibilities.sum(-1)
        first, second = responsibilities @ rows.mT, responsibilities @ rows.square().mT
        return {"mean_precision": counts, "degrees_of_freedom": counts, "first": first, "second": second}

    def log_normaliser(self, natural: Natural) -> Tensor:
        """Of K times D normal-gammas."""
        kappa, _, dof, scatter = self._standard(natural)
        dimension = scatter.shape[-1]
        shared = torch.lgamma(dof / 2) + 0.5 * dof * LOG_2 - 0.5 * kappa.log()
        return (dimension * shared - 0.5 * dof * scatter.log().sum(-1)).sum(-1)

    def expected_log_density(self, rows: Tensor, natural: Natural) -> Tensor:
        """Expectation of the normal's log density."""
        kappa, mean, dof, scatter = self._standard(natural)
        dimension = scatter.shape[-1]
        log_precision = dimension * (torch.digamma(dof / 2) + LOG_2) - scatter.log().sum(-1)
        constant = 0.5 * log_precision - 0.5 * dimension * (1 / kappa + LOG_2PI)
        precision = dof.unsqueeze(-1) / scatter
        constant = constant - 0.5 * (precision * mean.square()).sum(-1)
        return (precision * mean) @ rows - 0.5 * precision @ rows.square() + constant.unsqueeze(-1)

    def log_predictive(self, rows: Tensor, natural: Natural) -> Tensor:
        """Products of Student's t densities."""
        kappa, mean, dof, scatter = self._standard(natural)
        scale = (scatter * ((kappa + 1) / (kappa * dof)).unsqueeze(-1)).sqrt()
        t = torch.distributions.StudentT(dof[..., None, None], mean.unsqueeze(-1), scale.unsqueeze(-1))
        return t.log_prob(rows).sum(-2)

    def sample(self, natural: Natural) -> dict[str, Tensor]:
        """Draw ``"precision"`` and ``"loc"``."""
        kappa, mean, dof, scatter = self._standard(natural)
        precision = torch.distributions.Gamma(dof.unsqueeze(-1) / 2, scatter / 2).sample()
        spread = (kappa.unsqueeze(-1) * precision).rsqrt()
        return {"precision": precision, "loc": mean + self.centre + spread * torch.randn_like(mean)}


class NormalWishart(_Gaussian):
    r"""Full components: :math:`\Lambda_k \sim \operatorname{Wishart}(\nu, S^{-1})`,
    :math:`\mu_k \sim \mathcal{N}(m, (\kappa\Lambda_k)^{-1})`."""

    def _outer(self, vector: Tensor) -> Tensor:
        return vector.unsqueeze(-1) * vector.unsqueeze(-2)

    def _diagonal(self, matrix: Tensor) -> Tensor:
        return matrix.diagonal(dim1=-2, dim2=-1)

    def statistics(self, rows: Tensor, responsibilities: Tensor) -> Natural:
        """Counts, sums and second moments, these as one product over the pairs of columns."""
        counts = responsibilities.sum(-1)
        dimension = rows.shape[0]
        i, j = torch.tril_indices(dimension, dimension, device=rows.device)
        pairs = responsibilities @ (rows[i] * rows[j]).mT
        place = torch.empty(dimension, dimension, dtype=torch.long, device=rows.device)
        place[i, j] = place[j, i] = torch.arange(len(i), device=rows.device)
        first, second = responsibilities @ rows.mT, pairs[..., place]
        return {"mean_precision": counts, "degrees_of_freedom": counts, "first": first, "second": second}

    def log_normaliser(self, natural: Natural) -> Tensor:
        """Of K normal-Wisharts."""
        kappa, _, dof, scatter = self._standard(natural)
        dimension = scatter.shape[-1]
        log_det = 2 * _cholesky(scatter).diagonal(dim1=-2, dim2=-1).log().sum(-1)
        gamma = torch.mvlgamma(dof / 2, dimension) + 0.5 * dof * dimension * LOG_2
        return (gamma - 0.5 * dof * log_det - 0.5 * dimension * kappa.log()).sum(-1)

    def expected_log_density(self, rows: Tensor, natural: Natural) -> Tensor:
        """Expectation of the normal's log density."""
        kappa, mean, dof, scatter = self._standard(natural)
        chol, dimension = _cholesky(scatter), scatter.shape[-1]
        below = torch.arange(dimension, dtype=dof.dtype, device=dof.device)
        log_precision = torch.digamma((dof.unsqueeze(-1) - below) / 2).sum(-1) + dimension * LOG_2
        log_precision = log_precision - 2 * chol.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        constant = 0.5 * log_precision - 0.5 * dimension * (1 / kappa + LOG_2PI)
        whiten = dof.sqrt()[..., None, None] * _inverse(chol)
        return constant.unsqueeze(-1) - 0.5 * _squares(rows, whiten, mean)

    def log_predictive(self, rows: Tensor, natural: Natural) -> Tensor:
        r"""Multivariate Student's t densities with :math:`\nu - D + 1` degrees of freedom."""
        kappa, mean, dof, scatter = self._standard(natural)
        chol, dimension = _cholesky(scatter), scatter.shape[-1]
        t_dof = dof - dimension + 1
        ratio = (kappa * t_dof / (kappa + 1)).sqrt()
        squares = _squares(rows, ratio[..., None, None] * _inverse(chol), mean)
        log_det = chol.diagonal(dim1=-2, dim2=-1).log().sum(-1) - dimension * ratio.log()
        constant = torch.lgamma((t_dof + dimension) / 2) - torch.lgamma(t_dof / 2)
        constant = constant - 0.5 * dimension * (t_dof * math.pi).log() - log_det
        t_dof = t_dof.unsqueeze(-1)
        return constant.unsqueeze(-1) - 0.5 * (t_dof + dimension) * torch.log1p(squares / t_dof)

    def sample(self, natural: Natural) -> dict[str, Tensor]:
        """Draw ``"bartlett_chi2"``, ``"bartlett_normal"`` (none in one dimension) and ``"loc"``."""
        kappa, mean, dof, scatter = self._standard(natural)
        dimension = scatter.shape[-1]
        drawn = torch.distributions.Chi2(bartlett_degrees(dof.unsqueeze(-1), dimension)).sample()
        normals = torch.randn(*dof.shape, dimension * (dimension - 1) // 2, dtype=dof.dtype, device=dof.device)
        factor = _inverse(_cholesky(scatter)).mT @ bartlett_factor(
            drawn, normals, bartlett_index(dimension).to(drawn.device)
        )
        # the same precision, written as the prior's factor times one of Bartlett's
        own = _cholesky(self.prior_scatter).mT @ factor
        i, j = torch.triu_indices(dimension, dimension, offset=1, device=own.device)
        sites = {"bartlett_chi2": own.diagonal(dim1=-2, dim2=-1).square()}
        if dimension > 1:
            sites["bartlett_normal"] = own[..., i, j]
        noise = torch.linalg.solve_triangular(factor.mT, torch.randn_like(mean).unsqueeze(-1), upper=False).squeeze(-1)
        return {**sites, "loc": mean + self.centre + noise / kappa.sqrt().unsqueeze(-1)}


def bartlett_degrees(degrees_of_freedom: Tensor, dimension: int) -> Tensor:
    """Return degrees of freedom ``(..., D)`` of the squared diagonal of :func:`bartlett_factor`."""
    return degrees_of_freedom - torch.arange(dimension - 1, -1, -1).to(degrees_of_freedom)


def bartlett_index(dimension: int) -> Tensor:
    """Return where :func:`bartlett_factor` takes its entries from, ``(D, D)``: 0 for zero, then diagonal, then the rest."""
    index = torch.diag(torch.arange(1, dimension + 1))
    i, j = torch.triu_indices(dimension, dimension, offset=1)
    index[i, j] = dimension + 1 + torch.arange(len(i))
    return index


def bartlett_factor(chi2: Tensor, normals: Tensor, index: Tensor) -> Tensor:
    r"""Return the upper triangular :math:`A` of Bartlett's decomposition, ``(..., D, D)``.

    With independent ``chi2`` of :func:`bartlett_degrees` and standard ``normals``, :math:`V A A^\top V^\top` is Wishart with
    scale matrix :math:`V V^\top`, V upper triangular.

    :param chi2: squared diagonal, ``(..., D)``.
    :param normals: what stands above the diagonal, row by row, ``(..., D (D - 1) / 2)``.
    :param index: :func:`bartlett_index` of D.
    """
    values = torch.cat([torch.zeros_like(chi2[..., :1]), chi2.sqrt(), normals], -1)
    return values[..., index]


def _squares(rows: Tensor, whiten: Tensor, mean: Tensor) -> Tensor:
    """Return the squared length of ``whiten @ (row - mean)``, ``(R, K, N)``, as one matrix product."""
    batch, dimension = whiten.shape[:-2], whiten.shape[-1]
    shift = (whiten @ mean.unsqueeze(-1)).reshape(-1, 1)
    white = torch.addmm(shift, whiten.reshape(-1, dimension), rows, beta=-1)
    return white.square_().view(*batch, dimension, -1).sum(-2)


def _inverse(chol: Tensor) -> Tensor:
    eye = torch.eye(chol.shape[-1], dtype=chol.dtype, device=chol.device)
    return torch.linalg.solve_triangular(chol, eye, upper=False)


def _cholesky(scatter: Tensor) -> Tensor:
    chol, info = torch.linalg.cholesky_ex(scatter)
    if bool((info > 0).any()):
        raise ValueError(_LOST)
    return chol


_LOST = (
    "the scatter of a component has lost its digits in float64: its cluster is narrower in some direction than its distance "
    "from the others by more than rounding allows; raise the prior's scatter"
)
