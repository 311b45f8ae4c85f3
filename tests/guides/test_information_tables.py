"""Discrete tables: closed forms of textbooks, identities on random tables, and tables that are none."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guides.errors import DataError, OptionError
from guides.information import Table

NAMES = ("x", "y", "z")
steady = settings(derandomize=True, deadline=None)


@st.composite
def tables(draw, axes=3):
    """Random joint tables, with exact zeros in many of them."""
    shape = tuple(draw(st.integers(1, 4)) for _ in range(axes))
    weights = draw(st.lists(st.just(0.0) | st.floats(1e-6, 1.0), min_size=math.prod(shape), max_size=math.prod(shape)))
    weights[draw(st.integers(0, len(weights) - 1))] += 0.1
    values = torch.tensor(weights, dtype=torch.double).reshape(shape)
    return Table(values / values.sum(), *NAMES[:axes])


def close(a, b):
    expected = torch.as_tensor(b, dtype=torch.double)
    torch.testing.assert_close(torch.as_tensor(a, dtype=torch.double), expected, atol=1e-10, rtol=1e-9)


# -- closed forms ------------------------------------------------------------------------------------------------------


def test_the_notes_coin_and_die():
    die = Table(torch.full((6,), 1 / 6), "die")
    assert die.entropy(unit="bits").item() == pytest.approx(2.585, abs=1e-3)
    coin = Table(torch.tensor([0.5, 0.5]), "coin")
    assert coin.entropy(unit="bits").item() == pytest.approx(1.0)
    assert coin.entropy().item() == pytest.approx(math.log(2))
    bent = Table(torch.tensor([0.9, 0.1]), "coin")
    assert bent.surprise("bits")[1].item() == pytest.approx(-math.log2(0.1), rel=1e-6)
    assert bent.kl_divergence(coin, "bits").item() == pytest.approx(1 - bent.entropy(unit="bits").item())


def test_the_textbook_joint_table():
    """Cover & Thomas, example 2.2.1: H(X) = 7/4, H(Y) = 2, H(X | Y) = 11/8, H(Y | X) = 13/8, H(X, Y) = 27/8 bits."""
    rows = [[1 / 8, 1 / 16, 1 / 32, 1 / 32], [1 / 16, 1 / 8, 1 / 32, 1 / 32], [1 / 16] * 4, [1 / 4, 0, 0, 0]]
    joint = Table(torch.tensor(rows), "y", "x")
    found = [joint.entropy("x", unit="bits"), joint.entropy("y", unit="bits")]
    found += [joint.entropy("x", given="y", unit="bits"), joint.entropy("y", given="x", unit="bits")]
    found += [joint.entropy(unit="bits"), joint.mutual_information("x", "y", unit="bits")]
    close(torch.stack(found), [7 / 4, 2, 11 / 8, 13 / 8, 27 / 8, 3 / 8])


def test_an_exclusive_or_tells_nothing_alone_and_everything_together():
    table = torch.zeros(2, 2, 2)
    for x in range(2):
        for y in range(2):
            table[x, y, x ^ y] = 0.25
    joint = Table(table, *NAMES)
    assert joint.mutual_information("x", "y").item() == 0.0
    close(joint.mutual_information("x", "y", given="z", unit="bits"), 1.0)
    close(joint.mutual_information(("x", "y"), "z", unit="bits"), 1.0)


def test_independence_is_zero_to_rounding():
    p, q = torch.rand(30, dtype=torch.double).softmax(0), torch.rand(40, dtype=torch.double).softmax(0)
    assert Table(p[:, None] * q, "x", "y").mutual_information("x", "y").item() < 1e-13


def test_outcomes_without_probability():
    p, q = Table(torch.tensor([0.5, 0.5, 0.0]), "x"), Table(torch.tensor([1.0, 0.0, 0.0]), "x")
    assert p.kl_divergence(q).item() == math.inf == p.cross_entropy(q).item()
    close(q.kl_divergence(p), math.log(2))
    assert q.entropy().item() == 0.0
    tiny = Table(torch.tensor([[1.0, 0.0], [0.0, 1e-320]], dtype=torch.double), "x", "y")
    assert 0 <= tiny.mutual_information("x", "y").item() < 1e-300


def test_measures_can_be_differentiated():
    logits = torch.tensor([0.3, -1.0, 0.2], dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: Table(t.softmax(0), "x").entropy(), logits)
    square = torch.randn(2, 3, dtype=torch.double, requires_grad=True)
    softmax = lambda t: t.flatten().softmax(0).reshape(t.shape)  # noqa: E731
    assert torch.autograd.gradcheck(lambda t: Table(softmax(t), "x", "y").mutual_information("x", "y"), square)


# -- identities --------------------------------------------------------------------------------------------------------


@steady
@given(tables())
def test_chain_rules(table):
    close(table.entropy(), table.entropy("x") + table.entropy("y", given="x") + table.entropy("z", given=("x", "y")))
    whole = table.mutual_information(("x", "y"), "z")
    close(whole, table.mutual_information("x", "z") + table.mutual_information("y", "z", given="x"))


@steady
@given(tables())
def test_mutual_information_is_what_entropies_lose(table):
    for known in ((), ("z",)):
        information = table.mutual_information("x", "y", given=known)
        close(information, table.mutual_information("y", "x", given=known))
        close(information, table.entropy("x", given=known) - table.entropy("x", given=("y", *known)))
        assert information >= 0
    close(table.mutual_information("x", "y"), table.marginal("x", "y").kl_divergence(product(table)))


def product(table):
    p, q = table.marginal("x").probabilities, table.marginal("y").probabilities
    return Table(p[:, None] * q, "x", "y")


@steady
@given(tables())
def test_entropy_lies_between_zero_and_the_logarithm_of_the_outcomes(table):
    for name in NAMES:
        entropy = table.entropy(name)
        assert -1e-12 <= entropy <= math.log(table.marginal(name).probabilities.numel()) + 1e-12
        assert table.entropy(name, given=[n for n in NAMES if n != name]) <= entropy + 1e-10


@steady
@given(tables(axes=2), tables(axes=2))
def test_processing_loses_information(table, channel):
    """x -> y -> z: what z says about x it has from y."""
    p_xy = table.probabilities
    rows = torch.rand(p_xy.shape[1], 3, generator=torch.Generator().manual_seed(channel.probabilities.numel())).double()
    chain = Table(p_xy.unsqueeze(-1) * (rows / rows.sum(1, keepdim=True)), "x", "y", "z")
    assert chain.mutual_information("x", "z") <= chain.mutual_information("x", "y") + 1e-12
    assert chain.mutual_information("x", "z", given="y") < 1e-12


@steady
@given(tables(axes=2))
def test_divergence_shrinks_under_processing_and_is_cross_entropy_less_entropy(table):
    q = torch.rand(table.probabilities.shape, generator=torch.Generator().manual_seed(0)).double() + 0.1
    other = Table(q / q.sum(), "x", "y")
    divergence = table.kl_divergence(other)
    assert divergence >= 0
    close(divergence, table.cross_entropy(other) - table.entropy())
    assert table.marginal("x").kl_divergence(other.marginal("x")) <= divergence + 1e-12
    close(divergence, table.kl_divergence(other.marginal("y", "x")))
    assert table.kl_divergence(table) == 0


@steady
@given(tables())
def test_units_and_the_order_of_axes(table):
    close(table.entropy(unit="bits") * math.log(2), table.entropy())
    turned = table.marginal("z", "x", "y")
    close(turned.probabilities, table.probabilities.permute(2, 0, 1))
    close(turned.mutual_information("x", ("y", "z")), table.mutual_information("x", ("z", "y")))


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "names", "message"),
    [
        ([0.5, 0.6], ("x",), "sum to 1.1, not to one; divide counts by their sum"),
        ([3, 1], ("x",), "sum to 4, not to one"),
        ([1.5, -0.5], ("x",), "1 negative or NaN entries"),
        ([math.nan, 1.0], ("x",), "1 negative or NaN entries"),
        ([0.5, 0.5], (), r"1 axes .* and the names \(\)"),
        ([[0.5, 0.5]], ("x", "x"), "all different"),
        ([[0.5, 0.5], [0.1, 0.9]], ("x", "y"), r"conditional probabilities p\(y \| x\)"),
    ],
)
def test_what_is_no_table_is_refused(values, names, message):
    with pytest.raises(DataError, match=message):
        Table(torch.tensor(values), *names)


def test_wrong_names_and_units_are_refused():
    table = Table(torch.full((2, 2), 0.25), "x", "y")
    with pytest.raises(OptionError, match="no variable 'w'; it has 'x', 'y'"):
        table.entropy("w")
    with pytest.raises(OptionError, match="'x' stands on both sides"):
        table.entropy("x", given="x")
    with pytest.raises(OptionError, match="'y' stands on both sides"):
        table.mutual_information("x", "y", given="y")
    with pytest.raises(OptionError, match="named twice"):
        table.entropy("x", "x")
    with pytest.raises(OptionError, match=r"'nats' .* or 'bits'"):
        table.entropy(unit="bytes")
    with pytest.raises(DataError, match="different variables"):
        table.kl_divergence(table.marginal("x"))
