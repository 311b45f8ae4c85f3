"""Generated C++ against PyTorch: every kind of operation, memory that is reused, threads, and what it cannot express."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import LowRankMultivariateNormal, MultivariateNormal

import guides
from guides import errors
from guides.compile.loops import has_compiler
from guides.compile.native.build import NativeLoop
from guides.compile.native.expressions import Unsupported
from guides.compile.native.lowering import lower
from guides.compile.native.ops.pointwise import POINTWISE
from guides.compile.simplify import simplified
from guides.compile.tracing import recorded
from guides.distributions.normals import LowRankNormal
from tests.guides.guide_models import regression

pytestmark = pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")

SPECIAL = [0.0, 1.0, -1.0, 0.5, -0.5, 1e-7, -1e-7, 1e-30, 1e-40, 30.0, -30.0, 100.0, -100.0, 1e30, -1e30]
SPECIAL += [math.inf, -math.inf, math.nan]


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def traced(function, *inputs):
    return simplified(recorded(function, inputs))


def native(function, *inputs: Tensor) -> Tensor:
    """Return what generated C++ makes of a function with one result, without the check that a fit makes."""
    loop = NativeLoop(traced(lambda *i: (function(*i).flatten(),), *inputs), (), inputs, ())
    loop._prepare((), inputs, ())
    return loop((), inputs, ())[1][:, 0].reshape(function(*inputs).shape)


def compare(function, *inputs, rtol=2e-6, atol=2e-6):
    torch.testing.assert_close(native(function, *inputs), function(*inputs), rtol=rtol, atol=atol, equal_nan=True)


def together(*functions):
    """Return one function for many, so that they share a library."""
    return lambda *inputs: torch.cat([f(*inputs).to(inputs[0].dtype).flatten() for f in functions])


ELEMENTARY = {
    "exp": (torch.exp, -100, 88),
    "log": (torch.log, 1e-37, 1e37),
    "log1p": (torch.log1p, -0.999, 50),
    "expm1": (torch.expm1, -20, 80),
    "tanh": (torch.tanh, -12, 12),
    "sigmoid": (torch.sigmoid, -80, 80),
    "softplus": (F.softplus, -80, 80),
}


@pytest.mark.parametrize("name", ELEMENTARY)
def test_elementary_functions_are_right_to_a_few_units_in_the_last_place(name):
    function, low, high = ELEMENTARY[name]
    grid = torch.linspace(low, high, 20_001) if low < 0 else torch.logspace(math.log10(low), math.log10(high), 20_001)
    near_zero = torch.logspace(-12, 0, 999)
    x = torch.cat([grid, near_zero] if low > 0 else [grid, near_zero, -near_zero.clamp(max=0.99)])
    found, exact = native(function, x).double(), function(x.double())
    unit = torch.finfo(torch.float32).eps * exact.abs().clamp(min=1e-37)
    assert float(((found - exact).abs() / unit).max()) < 4


def test_functions_at_the_ends_of_the_line_are_those_of_pytorch():
    x = torch.tensor(SPECIAL)
    functions = [f for f, _, _ in ELEMENTARY.values()] + [
        torch.sqrt,
        torch.relu,
        torch.abs,
        torch.sign,
        torch.floor,
        torch.neg,
        torch.reciprocal,
        lambda x: x**2,
        lambda x: x**0.5,
        lambda x: x.clamp(-2.0, 3.0),
        lambda x: x.clamp_min(0.1),
        lambda x: torch.maximum(x, x.flip(0)),
        lambda x: torch.isnan(x),
        lambda x: torch.where(x > 0, x, -x),
        lambda x: torch.logaddexp(x, x.flip(0)),
        lambda x: torch.logsumexp(torch.stack([x, x.flip(0)]), 0),
    ]
    compare(together(*functions), x, rtol=1e-6, atol=1e-44)


def test_pointwise_operations_and_their_gradients():
    torch.manual_seed(0)
    x, y = torch.randn(40), torch.rand(40) + 0.1

    def gradient(function):
        return torch.func.grad(lambda x, y: function(x, y).sum())

    smooth = [
        lambda x, y: F.softplus(x) * y,
        lambda x, y: F.elu(x) + F.silu(y * x),
        lambda x, y: F.gelu(x) / (1 + y),
        lambda x, y: torch.lgamma(y) + torch.digamma(y + 1),
        lambda x, y: torch.xlogy(y, y) + torch.erf(x) + torch.sin(x) * torch.cos(y),
        lambda x, y: torch.lerp(x, y, 0.3) + torch.addcmul(x, x, y, value=0.5) + torch.addcdiv(x, x, y, value=2.0),
        lambda x, y: F.leaky_relu(x, 0.1) + torch.tanh(x) * torch.sigmoid(y) + F.logsigmoid(x),
        lambda x, y: torch.sinh(x) + torch.cosh(y) + torch.asinh(x) + torch.acosh(1 + y) + torch.atanh(torch.tanh(x)),
        lambda x, y: torch.asin(y / 2) + torch.acos(y / 2) + torch.tan(y) * torch.atan(x),
        lambda x, y: y**x + x**3 + y**-0.5 + 2.0**x,
        lambda x, y: torch.where((x > 0) & (y < 0.5), x, y) + torch.rsqrt(y) + torch.atan2(x, y),
    ]
    compare(together(*smooth), x, y, rtol=1e-5, atol=1e-5)
    compare(together(*(gradient(f) for f in smooth)), x, y, rtol=1e-5, atol=1e-5)
    whole = [
        lambda x, y: (x > y) | (x == 0),
        lambda x, y: (x * 10).long() % 7 + torch.arange(40),
        lambda x, y: (x * 10).floor() % 3.0,
        lambda x, y: (x * 10).long() // 7 + x // y + torch.div(x, y, rounding_mode="trunc"),
        lambda x, y: ((x > 0) ^ (y > 0.5)) & ~(x > 1),
        lambda x, y: x.double() * 2,
    ]
    compare(together(*whole), x, y)


def test_views_are_reads_at_other_places():
    x = torch.arange(120.0).reshape(2, 3, 4, 5)
    compare(
        together(
            lambda x: x.permute(3, 1, 0, 2).reshape(15, 8) * 2,
            lambda x: x[:, 1:, ::2, -3:] + 1,
            lambda x: x.transpose(1, 2).flip(0, 3),
            lambda x: x.reshape(6, 20).t() - x[0, 0].reshape(20, 1),
            lambda x: torch.cat([x[..., :2], x[..., 4:], x.exp()[..., :1]], -1),
            lambda x: torch.stack([x[0], x[1].neg()], 1),
            lambda x: x.diagonal(dim1=1, dim2=3) * x.diagonal(1, 2, 3).sum(),
            lambda x: x[0, 0].tril() + x[0, 0].triu(1) * 3,
            lambda x: F.pad(x[0, 0], (1, 2, 0, 3), value=7.0),
            lambda x: F.pad(x[0, 0], (-1, 2, 1, -2), value=7.0),
            lambda x: torch.diag_embed(x[0, 0]),
            lambda x: torch.cat([p * i for i, p in enumerate(x.split(2, -1))] + [x.unbind(-1)[2].unsqueeze(-1)], -1),
            lambda x: x.unsqueeze(2).expand(2, 3, 6, 4, 5).mean(2),
        ),
        x / 100,
    )


def test_reductions_over_any_dimensions():
    torch.manual_seed(1)
    x = torch.randn(3, 7, 33)
    compare(
        together(
            *(lambda x, d=d: x.exp().sum(d) for d in ((0,), (1,), (2,), (0, 2), (0, 1, 2))),
            *(lambda x, d=d: x.amax(d, keepdim=True) - x.mean(d, keepdim=True) for d in (0, 1, 2)),
            lambda x: x.logsumexp(1) + x.amin((1,)),
            lambda x: F.log_softmax(x, -1) * F.softmax(x, 0),
            lambda x: torch.func.grad(lambda x: (F.log_softmax(x, 1) * F.softmax(x, 2)).square().sum())(x),
            lambda x: x.cumsum(1) + x.var(1, keepdim=True) + x.cumprod(0) * x.prod(1, keepdim=True),
            lambda x: torch.linalg.vector_norm(x, dim=-1),
            lambda x: x.sum().expand(2) * torch.full((4, 5), 2.0).sum(),
            *(lambda x, d=d: x.clamp(-0.5, 0.5).max(d, keepdim=True)[1] + x.min(d, True)[0] for d in (0, 1, -1)),
            *(lambda x, d=d: (x > 1).any(d).float() - (x > -1).all(d).float() for d in (0, 1, -1)),
            lambda x: (x.max() + x.min()) * (x > 3).any() + (x > -9).all(),
        ),
        x,
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_of_matrices_of_all_sizes_and_layouts(dtype):
    """Blocks of a processor's registers are 12 x 32 elements at most, which sizes here fill, miss and exceed."""
    torch.manual_seed(2)
    sizes = [(1, 1, 1), (1, 5, 3), (5, 1, 3), (4, 6, 1), (2, 3, 4), (12, 32, 8), (13, 33, 17), (25, 70, 40)]
    pool = torch.randn(4 * 70 * 40, dtype=dtype)

    def product(m, n, k, form):
        def function(pool):
            a, b = pool[: m * k].reshape(m, k), pool[-k * n :].reshape(k, n)
            if form == "transposed":
                a, b = pool[: m * k].reshape(k, m).t(), pool[-k * n :].reshape(n, k).t()
            if form == "batch":
                a, b = pool[: 3 * m * k].reshape(3, m, k), pool[-3 * k * n :].reshape(k, 3, n).transpose(0, 1)
                return torch.bmm(a, b)
            if form == "added":
                return torch.addmm(pool[:n], a, b, beta=0.5, alpha=2.0)
            return a @ b

        return function

    functions = [product(*s, form) for s in sizes for form in ("plain", "transposed", "batch", "added")]
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    compare(together(*functions, lambda p: p[:30].reshape(5, 6) @ p[:6], lambda p: p[:9] @ p[9:18]), pool, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_factors_and_triangular_systems_of_all_sizes_and_layouts(dtype):
    """With one right-hand side the matrix is walked in the direction in which it lies in memory."""
    torch.manual_seed(8)
    sizes = [(1, 1), (1, 3), (2, 1), (5, 4), (17, 1), (20, 33)]
    pool = torch.randn(6 * 33 * 33, dtype=dtype) / 4

    def system(pool, n, m, batch, form):
        a = pool[: math.prod(batch) * n * n].reshape(*batch, n, n)
        a = (a @ a.mT if form == "factor" else a.tril() if form == "lower" else a.triu()) + torch.eye(n, dtype=dtype)
        b = pool[-6 * n * m :].reshape(3, 2, n, m)
        return a, b[1, 1] if len(batch) == 0 else b

    def solution(n, m, batch, upper, left, transposed, unitriangular):
        def function(pool):
            a, b = system(pool, n, m, batch, "lower" if upper == transposed else "upper")
            a, b = a.mT if transposed else a, b if left else b.mT
            options = {"upper": upper, "left": left, "unitriangular": unitriangular}
            return torch.linalg.solve_triangular(a, b, **options)

        return function

    def factor(n, batch, transposed):
        def function(pool):
            a = system(pool, n, 1, batch, "factor")[0]
            return torch.linalg.cholesky((a + 0.1 * a.tril(-1)).mT.triu().mT if transposed else a)

        return function

    batches = [(), (2,), (3, 1), (3, 2)]
    choices = [(False, True, False), (True, True, True), (False, False, True), (True, False, False)]
    functions = [factor(n, batch, form) for n, _ in sizes for batch, form in (((), False), ((3, 2), True))]
    for number, size in enumerate(sizes):
        for choice, options in enumerate(choices):
            functions.append(solution(*size, batches[(choice + number) % 4], *options, unitriangular=number in (3, 4)))
    tolerance = 2e-5 if dtype == torch.float32 else 1e-12
    compare(together(*functions), pool, rtol=tolerance, atol=tolerance)
    some = functions if dtype == torch.float64 else functions[::5]  # the type changes nothing but the type
    slopes = [torch.func.grad(lambda pool, f=f: f(pool).square().sum()) for f in some]
    compare(lambda pool: torch.stack([slope(pool) for slope in slopes]), pool, rtol=5 * tolerance, atol=5 * tolerance)


def test_a_matrix_without_a_factor_gives_nan():
    matrix = torch.tensor([[1.0, 2.0, 0.0], [2.0, 4.0, 0.0], [0.0, 0.0, 1.0]])
    assert native(lambda x: torch.linalg.cholesky_ex(x).L[1:, 1], matrix).isnan().any()
    with pytest.raises(Unsupported, match="cholesky"):
        lower(traced(lambda x: torch.linalg.cholesky_ex(x, upper=True).L, matrix))


def test_densities_of_correlated_normals_and_their_gradients():
    torch.manual_seed(9)
    root, x = torch.randn(4, 4) / 2, torch.randn(5, 4)

    def tril(root):
        return root.tril(-1) + torch.diag_embed(root.diagonal().exp())

    low_rank = LowRankNormal, LowRankMultivariateNormal  # the latter writes into views
    densities = [
        lambda root: MultivariateNormal(root[0], scale_tril=tril(root), validate_args=False),
        lambda root: MultivariateNormal(root[0], root @ root.mT + torch.eye(4), validate_args=False),
        lambda root: MultivariateNormal(root[0], precision_matrix=root @ root.mT + torch.eye(4), validate_args=False),
        *(lambda root, n=n: n(root[0], root[:, :2], root[1].exp(), validate_args=False) for n in low_rank),
    ]
    values = [lambda root, x, d=density: d(root).log_prob(x) for density in densities]
    compare(together(*values), root, x, rtol=1e-5, atol=1e-5)
    slopes = [torch.func.grad(lambda root, x, v=value: v(root, x).sum(), argnums=(0, 1)) for value in values]
    both = [lambda root, x, n=n, s=slope: s(root, x)[n] for slope in slopes for n in (0, 1)]
    compare(together(*both), root, x, rtol=2e-5, atol=2e-5)


def test_reading_and_adding_where_indices_lead():
    torch.manual_seed(3)
    x, index = torch.randn(6, 5), torch.tensor([0, 5, 2, 2, -1])
    columns = torch.tensor([[0, 4], [1, 1], [2, 0], [3, 3], [4, 4], [0, 1]])
    compare(
        together(
            lambda x, i, c: x.index_select(0, i.clamp(0)),
            lambda x, i, c: x[i] * 2,
            lambda x, i, c: x[:, c[:4].clamp(max=3)],
            lambda x, i, c: x[c[:5, 0], i.clamp(0, 4)],
            lambda x, i, c: x.gather(1, c),
            lambda x, i, c: torch.func.grad(lambda x: x.gather(1, c).square().sum() + x[i].exp().sum())(x),
            lambda x, i, c: torch.func.grad(lambda x: x.index_select(1, i.clamp(0, 4)).square().sum())(x),
            lambda x, i, c: x.index_add(0, i.clamp(0), x[:5], alpha=2.0),
            lambda x, i, c: x.index_put((i[:2],), x[:2]),
        ),
        x,
        index,
        columns,
        rtol=1e-5,
        atol=1e-5,
    )


def test_an_index_out_of_bounds_gives_nan_and_nothing_else():
    """PyTorch refuses it, so the graph is made with indices that are in bounds."""
    x, good, bad = torch.randn(4, 3), torch.tensor([0, 3, 1]), torch.tensor([0, 4_000_000_000, -5])
    graph = traced(lambda x, i: (x[i].sum(1),), x, good)
    loop = NativeLoop(graph, (), (x, good), ())
    loop.check((), (x, good), ())
    found = loop((), (x, bad), ())[1][:, 0]
    torch.testing.assert_close(found[0], x[0].sum())
    assert found[1:].isnan().all()


def loop_and_graph(step, state, varying):
    """Return what all steps make of the state, by the library and by the graph."""
    graph = traced(step, *state, *(v[:, 0] for v in varying))
    loop = NativeLoop(graph, state, (), varying)
    loop.check(state, (), varying)
    expected = state
    for k in range(varying[0].shape[1]):
        *expected, loss = graph(*expected, *(v[:, k] for v in varying))
    new, losses = loop(state, (), varying)
    return (*new, losses[:, -1]), (*expected, loss)


def test_what_is_written_into_a_part_is_in_the_whole_and_all_its_views():
    """Not in what was computed of them before."""

    def parts(x):
        whole = x * 2
        first, rest = whole.split([1, 3])
        flat, before = whole.view(-1), whole.exp() + first
        rest.select(1, 2).add_(x[:3, 0])
        flat[::5].mul_(first[0, 1])
        first.copy_(x[3:])
        return before + whole.t() @ rest.new_ones(4, 4) + rest.sum(0) + flat.view(4, 4)[:, :1] + first

    def strided(x):
        whole = x.clone()
        whole.as_strided((2, 3), (4, 5), 1).zero_()
        return whole + whole.as_strided((4,), (1,), 3).exp()

    compare(together(parts, strided), torch.randn(4, 4, generator=torch.Generator().manual_seed(10)), rtol=1e-5, atol=1e-5)
    for function in (lambda x: x[0].add_(1.0), lambda x: torch.linalg.cholesky_ex(x).L[0].add_(1.0)):
        with pytest.raises(Unsupported, match="others may see"):
            lower(traced(function, torch.eye(2)))


@pytest.mark.parametrize("steps", [4, 5])
def test_state_may_be_overwritten_only_when_nobody_reads_the_old_one_any_more(steps):
    """The first two exchange their values, the third is read in reverse, the fourth is updated where it lies."""
    torch.manual_seed(4)
    state = tuple(torch.randn(2, 9) for _ in range(4))

    def step(a, b, c, d, x):
        return b + x, a.clone(), c.flip(1) + d, d * 0.9 + x, (a * b).sum(1)

    for found, expected in zip(*loop_and_graph(step, state, (torch.randn(2, steps, 9),))):
        torch.testing.assert_close(found, expected)
    assert all(s.shape == (2, 9) for s in state)


def test_memory_that_several_operations_share_in_turn_is_never_shared_at_once():
    """A hundred intermediate results, each read again much later."""
    torch.manual_seed(5)

    def step(a, x):
        rows = [torch.tanh(a * (i + 1) + x).cumsum(1) for i in range(20)]
        mixed = [rows[i] @ rows[-1 - i].mT for i in range(20)]
        return a * 0.5 + sum(m @ rows[i] for i, m in enumerate(mixed)) * 1e-4, mixed[0].sum((1, 2))

    state, varying = (torch.randn(3, 6, 4),), (torch.randn(3, 4, 6, 4) * 0.1,)
    for found, expected in zip(*loop_and_graph(step, state, varying)):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_two_threads_give_what_one_gives():
    torch.manual_seed(6)
    torch.set_num_threads(2)

    def function(x, y):
        hidden = F.softplus(x @ y)
        return torch.cat(
            [(hidden.t() @ x).flatten(), hidden.sum(0), hidden.sum(1), hidden.exp().amax(0), hidden.sum()[None]]
        )

    compare(function, torch.randn(300, 200) / 10, torch.randn(200, 150) / 10, rtol=1e-4, atol=1e-4)
    compare(torch.bmm, torch.randn(400, 20, 10), torch.randn(400, 10, 30), rtol=1e-4, atol=1e-4)


def test_what_it_cannot_express_is_named():
    x = torch.randn(3, 3)
    with pytest.raises(Unsupported, match="linalg_eigh"):
        lower(traced(lambda x: torch.linalg.eigh(x)[0], x))
    with pytest.raises(Unsupported, match="random"):
        lower(traced(lambda x: x + torch.randn(3), x))

    def writes_into_a_view(x):
        y = x.clone()
        row = y[0]
        y.mul_(2.0)
        return row + y[1]

    with pytest.raises(Unsupported, match="views"):
        lower(traced(writes_into_a_view, x))


def test_names_in_the_table_are_operations_of_pytorch():
    for name in POINTWISE:
        operation, overload = name.split(".")
        packet = getattr(torch.ops.aten, operation, None) or getattr(torch.ops.aten, f"{operation}_")
        assert overload in packet.overloads() or overload in getattr(torch.ops.aten, f"{operation}_").overloads(), name


def test_a_fit_with_an_unknown_operation_stays_traced(monkeypatch):
    """Asked for by name the generator says why; ``"auto"`` takes what there is without a word."""
    torch.manual_seed(7)
    x = torch.linspace(-1, 1, 30)
    data = (x, 2 * x + 0.1 * torch.randn(30))
    asked = []

    def refuse(*_):
        asked.append(1)
        raise Unsupported("aten.nothing.default")

    monkeypatch.setattr("guides.compile.native.build.lower", refuse)
    with pytest.warns(errors.EagerFallbackWarning, match=r"aten\.nothing"):
        named = guides.fit(regression, "mean_field", *data, steps=40, compile="native")
    assert len(asked) == 1
    torch.testing.assert_close(guides.fit(regression, "mean_field", *data, steps=40).losses, named.losses)
    assert len(asked) == 2
