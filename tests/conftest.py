"""What every test starts from: a seed, an empty parameter store, validation on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import pyro
import pytest
import torch

matplotlib.use("Agg")
torch.set_num_threads(1)
# So have processes that tests start: two threads each, of several processes, wait for one another by spinning.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _isolated() -> Iterator[None]:
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    with pyro.validation_enabled(True):
        yield
    pyro.clear_param_store()


@pytest.fixture(scope="session", autouse=True)
def _no_compiled_loops_of_other_runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Whether something is compiled must not depend on what ran on this machine before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GUIDES_CACHE", str(tmp_path_factory.mktemp("compiled")))
        patch.setenv("GUIDES_VERIFY", "1")  # every generated program is followed element by element
        yield


@pytest.fixture(scope="session")
def provided_data() -> Path:
    """The folder of provided data; the test is skipped where there is none."""
    for folder in (os.environ.get("ZOO_DATA"), Path(__file__).resolve().parents[2] / "shared" / "data"):
        if folder and Path(folder).is_dir():
            return Path(folder)
    pytest.skip("no provided data: neither ZOO_DATA nor ../shared/data exists")
