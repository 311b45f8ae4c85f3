import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def provided_data() -> Path:
    """The folder of real data: what ZOO_DATA names, else ../shared/data; without either the test is skipped."""
    named = os.environ.get("ZOO_DATA")
    for folder in (Path(named) if named else None, REPOSITORY.parent / "shared" / "data"):
        if folder is not None and (folder / "uci").is_dir():
            return folder
    pytest.skip("real data sets: neither $ZOO_DATA/uci nor ../shared/data/uci exists")
