"""Normals with structured covariances against torch's dense one."""

import pytest
import torch
from torch.distributions import LowRankMultivariateNormal, MultivariateNormal

from guides.distributions.normals import Block, BlockNormal, LowRankNormal


def block_normal():
    """Dense, diagonal, Kronecker and fixed blocks over interleaved coordinates."""
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    blocks = (
        Block("dense", order[:3], "dense"),
        Block("diagonal", order[3:6], "diagonal"),
        Block("kron", order[6:18], "kron", (3, 4)),
        Block("fixed", order[18:], "fixed"),
    )
    tril = torch.randn(3, 3).tril(-1) + torch.diag(torch.rand(3) + 0.5)
    left, right = torch.linalg.qr(torch.randn(3, 3)).Q, torch.linalg.qr(torch.randn(4, 4)).Q
    factors = ((tril,), (torch.rand(3) + 0.5,), (left, right, torch.rand(3, 4) + 0.5), ())
    for block, group in zip(blocks, factors):
        assert tuple(tuple(f.shape) for f in group) == block.factor_shapes
    return BlockNormal(torch.randn(20), blocks, factors), order[18:]


def test_a_block_normal_is_the_normal_with_its_covariance():
    q, fixed = block_normal()
    covariance = q.covariance_matrix
    assert covariance[fixed].abs().max() == 0
    varying = torch.tensor([i for i in range(20) if i not in fixed])
    dense = MultivariateNormal(q.mean[varying], covariance[varying][:, varying])
    draws = q.rsample((20_000,))
    torch.testing.assert_close(q.log_prob(draws[:50]), dense.log_prob(draws[:50, varying]), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(q.variance, covariance.diagonal())
    assert (draws[:, fixed] == q.loc[fixed]).all()
    empirical = torch.cov(draws.T)
    spread = (covariance.diagonal().outer(covariance.diagonal()) + covariance**2).sqrt() / 20_000**0.5
    assert ((empirical - covariance).abs() <= 4.5 * spread + 1e-6).all()
    assert ((draws.mean(0) - q.mean).abs() <= 4 * q.variance.sqrt() / 20_000**0.5 + 1e-6).all()


def test_a_kronecker_block_lies_in_the_sites_order():
    """Covariance of w[a, b] and w[c, d]: sum over m, n of left[a, m] left[c, m] right[b, n] right[d, n] scale[m, n]^2."""
    left, right, scale = torch.linalg.qr(torch.randn(3, 3)).Q, torch.linalg.qr(torch.randn(4, 4)).Q, torch.rand(3, 4) + 0.5
    q = BlockNormal(torch.zeros(12), (Block("w", torch.arange(12), "kron", (3, 4)),), ((left, right, scale),))
    want = torch.einsum("am,cm,bn,dn,mn->abcd", left, left, right, right, scale**2).reshape(12, 12)
    torch.testing.assert_close(q.covariance_matrix, want)


def test_expanding_keeps_the_distribution():
    q, _ = block_normal()
    assert q.expand((4,)).rsample().shape == (4, 20)
    assert q.expand((4,)).log_prob(q.loc).shape == (4,)


def test_low_rank_normal_is_torchs_but_for_numbers_that_are_not_finite():
    loc, factor, diagonal = torch.randn(5), torch.randn(5, 2), torch.rand(5) + 0.1
    ours, torchs = LowRankNormal(loc, factor, diagonal), LowRankMultivariateNormal(loc, factor, diagonal)
    value = torch.randn(7, 5)
    torch.testing.assert_close(ours.log_prob(value), torchs.log_prob(value))
    torch.testing.assert_close(ours.covariance_matrix, torchs.covariance_matrix)
    torch.testing.assert_close(ours.entropy(), torchs.entropy())
    torch.manual_seed(0)
    draw = ours.rsample((3,))
    torch.manual_seed(0)
    torch.testing.assert_close(draw, torchs.rsample((3,)))
    broken = factor * torch.nan
    with pytest.raises(RuntimeError):
        LowRankMultivariateNormal(loc, broken, diagonal, validate_args=False)
    assert LowRankNormal(loc, broken, diagonal, validate_args=False).log_prob(loc).isnan()
