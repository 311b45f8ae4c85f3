"""Looking into the generator of C++: what it prints, what it writes down, and what verifies its programs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from native_page import PAGE, blocks
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

import guides
from guides import errors
from guides.compile.agreement import Judge
from guides.compile.loops import has_compiler
from guides.compile.native.codegen import source
from guides.compile.native.expressions import Read
from guides.compile.native.kernels import Loop
from guides.compile.native.lowering import lower
from guides.compile.native.printing import kernels, memory_plan
from guides.compile.native.verify import UnsafeProgramError, verify
from guides.compile.simplify import simplified

PLAN = """320 bytes
b1: 4 float, bytes 0 to 64, kernels 0 to 2
b5: 4 float, bytes 0 to 64, kernels 3 to 4
b7: 1 float, bytes 0 to 64, kernels 5 to 6
b2: 2 float, bytes 64 to 128, kernels 1 to 2
b6: 6 float, bytes 64 to 128, kernels 4 to 5
b9: 1 float, bytes 64 to 128, kernels 6 to 6
b3: 4 float, bytes 128 to 192, kernels 2 to 3
b4: 2 float, bytes 192 to 256, kernels 2 to 3
b8: 6 float, bytes 256 to 320, kernels 5 to 5
state 0: b8 lies apart from in0
"""


def made(step, *inputs: Tensor, state: int = 1):
    """Return a step's kernels, and the C++ of a loop of it for one replicate."""
    lowered = lower(simplified(make_fx(step)(*inputs)))
    return lowered, source(lowered, state, 0, 1, 1)


def fused(a, x):
    return a * 0.9 + torch.tanh(x) * a, (a * a).sum(1)


def attention(a, x):
    return a.flip(1) + x, (torch.softmax(a @ x.mT, 1) @ x).sum().reshape(1)


def test_operations_of_one_shape_and_their_sum_share_a_loop():
    lowered, emitted = made(fused, torch.ones(1, 3), torch.ones(1, 3))
    assert kernels(lowered).splitlines() == [
        "inputs: in0, in1",
        "kernel 0: for i < 3",
        "  b1[0] += (in0[i] * in0[i]), from 0",
        "  b2[i] = ((in0[i] * 0.9) + 1 * (z_tanh(in1[i]) * in0[i]))",
        "kernel 1: once",
        "  b3[0] = b1[0]",
        "outputs: b2, b3",
    ]
    assert emitted.own.count("for (int64_t i0 = 0; i0 < 3; ++i0)") == 1


def test_results_that_are_not_needed_at_once_share_memory():
    lowered, emitted = made(attention, torch.ones(2, 3), torch.ones(2, 3))
    assert memory_plan(lowered, emitted) == PLAN


def test_state_is_replaced_where_it_lies_unless_it_is_read_at_other_places():
    """The first is; the second is read in reverse."""
    lowered, emitted = made(fused, torch.ones(1, 3), torch.ones(1, 3))
    assert emitted.in_place == (True,)
    assert "in0[i0] = v" in emitted.own and "swap" not in emitted.own
    lowered, emitted = made(attention, torch.ones(2, 3), torch.ones(2, 3))
    assert emitted.in_place == (False,)
    assert "z_swap(in0, next0);" in emitted.own
    verify(lowered, emitted)
    with pytest.raises(UnsafeProgramError, match="at other indices"):
        verify(lowered, dataclasses.replace(emitted, in_place=(True,)))


def test_memory_that_is_needed_twice_at_once_is_found():
    lowered, emitted = made(attention, torch.ones(2, 3), torch.ones(2, 3))
    places = dict(emitted.places)
    names = {buffer.name: buffer for buffer in places}
    places[names["b2"]] = places[names["b1"]]
    with pytest.raises(UnsafeProgramError, match="b1 and b2 are needed at once"):
        verify(lowered, dataclasses.replace(emitted, places=places))


def test_reads_of_what_was_not_written_are_found():
    lowered, emitted = made(attention, torch.ones(2, 3), torch.ones(2, 3))
    all_kernels = list(lowered.schedule.kernels)
    number = next(n for n, k in enumerate(all_kernels) if isinstance(k, Loop))
    del lowered.schedule.kernels[number]
    with pytest.raises(UnsafeProgramError, match="nothing was written"):
        verify(lowered, emitted)
    lowered.schedule.kernels[:] = all_kernels
    product = all_kernels[0]
    product.left = Read(product.left.buffer, 5, product.left.strides)
    with pytest.raises(UnsafeProgramError, match="kernel 0 reads outside of in0"):
        verify(lowered, emitted)


def model(y):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


@pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")
def test_every_loop_is_written_down_and_one_that_is_refused_says_where(monkeypatch, tmp_path):
    monkeypatch.setenv("GUIDES_DUMP", str(tmp_path / "there"))
    monkeypatch.setattr(Judge, "difference", lambda *_: "the loss is 1 where 2 is right")
    with pytest.warns(errors.EagerFallbackWarning, match="the loss is 1 where 2 is right; its source is in") as caught:
        guides.fit(model, "mean_field", torch.ones(5), steps=10, compile="native")
    (folder,) = (tmp_path / "there").iterdir()
    assert str(folder) in str(caught[0].message)
    names = {"graph.txt", "kernels.txt", "memory.txt", "loop.cpp", "difference.txt"}
    assert {path.name for path in folder.iterdir()} == names
    assert 'extern "C" void run(' in (folder / "loop.cpp").read_text()
    assert "# (1, 2) float32" in (folder / "graph.txt").read_text()
    monkeypatch.delenv("GUIDES_DUMP")
    with pytest.warns(errors.EagerFallbackWarning, match="its source is in") as caught:
        guides.fit(model, "mean_field", torch.ones(5), steps=10, compile="native")
    where = Path(str(caught[0].message).split("its source is in ")[1])
    assert (where / "difference.txt").read_text() == "the loss is 1 where 2 is right\n"


def test_the_page_shows_what_the_generator_makes():
    """``python -m tests.guides.native_page`` writes it anew."""
    text = PAGE.read_text()
    for name, block in blocks().items():
        assert block in text, f"{name}: run python -m tests.guides.native_page"
