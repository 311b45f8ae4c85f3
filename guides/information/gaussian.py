"""Mutual information of the blocks of a Gaussian vector."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from guides.errors import DataError, OptionError
from guides.information.measure import Measure, Unit, per_nat

__all__ = ["gaussian_mutual_information"]


def gaussian_mutual_information(
    covariance: Tensor, first: Sequence[int], second: Sequence[int], given: Sequence[int] = (), unit: Unit = "nats"
) -> Measure:
    r"""Return the mutual information of two blocks of a Gaussian vector, in closed form.

    .. math:: I(a; b \mid c) = \tfrac12 \log \frac{|\Sigma_{ac}|\, |\Sigma_{bc}|}{|\Sigma_{abc}|\, |\Sigma_c|}

    :param covariance: ``(..., D, D)``, positive definite.
    :param first: coordinates of the one block.
    :param second: coordinates of the other.
    :param given: coordinates that are known; none for plain mutual information.
    :param unit: ``"nats"`` or ``"bits"``.
    :raises DataError: if the matrix is not square, not symmetric or not positive definite.
    :raises OptionError: if blocks are empty or overlap, or a coordinate does not exist.

    Example::

        >>> gaussian_mutual_information(torch.tensor([[1.0, 0.6], [0.6, 1.0]]), [0], [1])  # -log(1 - 0.6²) / 2
        0.223 nats
    """
    per_nat(unit)
    a, b, known = list(first), list(second), list(given)
    size = covariance.shape[-1]
    if covariance.dim() < 2 or covariance.shape[-2] != size:
        raise DataError(f"covariance has shape {tuple(covariance.shape)}; it must be square, (..., D, D)")
    used = [*a, *b, *known]
    if not a or not b or len(set(used)) != len(used) or not all(0 <= i < size for i in used):
        raise OptionError(
            f"blocks {a}, {b} and {known} must be disjoint, the first two not empty, with coordinates from 0 to {size - 1}"
        )
    matrix = covariance.double()
    if not torch.allclose(matrix, matrix.mT, rtol=1e-5, atol=1e-8):
        raise DataError("covariance is not symmetric")
    if bool(torch.linalg.cholesky_ex(matrix).info.any()):
        raise DataError("covariance is not positive definite; a coordinate that is a function of others tells everything")
    one, other, both, condition = (_log_det(matrix, block) for block in ([*a, *known], [*b, *known], used, known))
    return Measure.closed_form((0.5 * (one + other - both - condition)).clamp(min=0.0), unit)


def _log_det(matrix: Tensor, block: list[int]) -> Tensor:
    index = torch.tensor(block, dtype=torch.long, device=matrix.device)
    part = matrix.index_select(-1, index).index_select(-2, index)
    return torch.linalg.slogdet(part).logabsdet if block else matrix.new_zeros(matrix.shape[:-2])
