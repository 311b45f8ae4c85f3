"""A small sample of the faults that ``python -m tests.faults`` tries, and the table of all of them."""

import pytest
from faults.fits import ready
from faults.harness import try_it
from faults.table import ALL

QUICK = [one for one in ALL if one.quick]


@pytest.fixture(scope="module", autouse=True)
def _ready():
    ready(QUICK)


@pytest.mark.parametrize("one", QUICK, ids=str)
def test_a_fault_holds(one):
    outcome = try_it(one)
    if outcome.word == "skipped":
        pytest.skip(outcome.why)
    assert outcome.word == "held", outcome.why
