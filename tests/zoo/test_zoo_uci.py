"""The UCI loader: on small made-up folders for everything that can go wrong, on the real files where they are."""

import hashlib
import warnings
from pathlib import Path

import numpy as np
import pooch
import pytest
import requests
import torch

from zoo import datasets
from zoo.datasets import uci_sets
from zoo.datasets.files import CorruptDataError, DataHashWarning, MissingDataError

ROWS, FEATURES = 10, 3


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A tiny yacht: 10 rows, 3 features, one split of 8:2; ZOO_DATA names its root, the network and the cache are away."""
    path = tmp_path / "data" / "uci" / "yacht"
    path.mkdir(parents=True)
    table = np.arange(ROWS * (FEATURES + 1)).reshape(ROWS, FEATURES + 1) / 7
    (path / "data.txt").write_text("\n".join(" " + "\t".join(f"{v:.6e}" for v in row) + " " for row in table) + "\n\n")
    (path / "index_features.txt").write_text("".join(f"{i}\n" for i in range(FEATURES)))
    (path / "index_target.txt").write_text(f"{FEATURES}\n")
    (path / "index_train_0.txt").write_text("".join(f"{i:.18e}\n" for i in range(8)))
    (path / "index_test_0.txt").write_text("8 \n9 \n")
    monkeypatch.setenv("ZOO_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "cache")
    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", refuse)
    publish(monkeypatch, path)
    return path


def refuse(self, url, output_file, pooch, check_only=False):
    raise requests.exceptions.ConnectionError(f"no network in a test: {url}")


def publish(monkeypatch, path):
    """Make the present data.txt the published one."""
    digest = hashlib.sha256((path / "data.txt").read_bytes()).hexdigest()
    monkeypatch.setitem(uci_sets._SETS, "yacht", (digest, 20, "resistance"))
    return digest


def test_reads_the_published_layout(folder):
    data = datasets.uci("yacht")
    assert data.x.shape == (ROWS, FEATURES) and data.x.dtype == torch.float32
    torch.testing.assert_close(data.y, torch.arange(3, 40, 4) / 7)
    split = datasets.uci("yacht", split=0)
    assert torch.equal(split.x_train, data.x[:8]) and torch.equal(split.y_test, data.y[8:])
    assert data.num_splits == 20 and split.target_name == "resistance"


def test_another_hash_under_zoo_data_is_a_warning_with_both_hashes(folder, monkeypatch):
    published = publish(monkeypatch, folder)
    file = folder / "data.txt"
    file.write_text(file.read_text().replace("e+00", "e+01", 1))
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    with pytest.warns(DataHashWarning, match=f"{found}.*{published}"):
        assert len(datasets.uci("yacht")) == ROWS


@pytest.mark.parametrize("zoo_data", [True, False])
def test_neither_file_nor_network(folder, monkeypatch, zoo_data):
    if not zoo_data:
        monkeypatch.delenv("ZOO_DATA")
    else:
        (folder / "data.txt").unlink()
    with pytest.raises(MissingDataError) as error:
        datasets.uci("yacht")
    message = str(error.value)
    where = str(folder / "data.txt") if zoo_data else "$ZOO_DATA/uci/yacht/data.txt"
    for part in (
        where,
        "https://raw.githubusercontent.com/yaringal/",
        "UCI_Datasets/yacht/data/data.txt",
        "ConnectionError",
    ):
        assert part in message


def test_a_missing_split_file_is_named(folder):
    with pytest.raises(MissingDataError, match=r"index_train_7\.txt"):
        datasets.uci("yacht", split=7)


def serve(folder, spoil=False):
    def download(self, url, output_file, pooch, check_only=False):
        source = folder / url.rsplit("/", 1)[-1]
        Path(output_file).write_bytes(b"<html>not found</html>" if spoil else source.read_bytes())

    return download


def test_downloads_go_to_the_cache_and_are_reused(folder, monkeypatch, tmp_path):
    monkeypatch.delenv("ZOO_DATA")
    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", serve(folder))
    split = datasets.uci("yacht", split=0)
    assert (tmp_path / "cache" / "uci" / "yacht" / "index_test_0.txt").is_file()
    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", refuse)
    assert torch.equal(datasets.uci("yacht", split=0).x_train, split.x_train)


def test_a_download_with_another_hash_is_an_error(folder, monkeypatch, tmp_path):
    monkeypatch.delenv("ZOO_DATA")
    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", serve(folder, spoil=True))
    with pytest.raises(CorruptDataError, match=r"data\.txt is not the published file.*hash"):
        datasets.uci("yacht")
    assert not (tmp_path / "cache" / "uci" / "yacht" / "data.txt").exists()


def replace(old, new, count=1):
    return lambda text: text.replace(old, new, count)


CORRUPT = {
    "a word": ("data.txt", replace("1.428571e-01", "n/a"), r"data\.txt, line 1, column 2: 'n/a' is not a finite number"),
    "NaN": ("data.txt", replace("5.714286e-01", "nan"), r"data\.txt, line 2, column 1: 'nan'"),
    "infinite": ("data.txt", replace("5.714286e-01", "inf"), r"data\.txt, line 2, column 1: 'inf'"),
    "cut inside a row": ("data.txt", lambda text: text.rstrip()[:-13], r"data\.txt, line 10: 3 columns where .* 4"),
    "cut after a row": ("data.txt", lambda text: "\n".join(text.splitlines()[:6]), r"entry 7: 6 is no index from 0 to 5"),
    "empty": ("data.txt", lambda text: "\n \n", r"data\.txt holds no numbers"),
    "feature out of range": ("index_features.txt", replace("2", "4"), r"index_features\.txt, entry 3: 4 is no index"),
    "feature twice": ("index_features.txt", replace("2", "1"), r"index_features\.txt, entry 3: index 1 occurs twice"),
    "target among features": ("index_target.txt", replace("3", "2"), r"index_features\.txt: column 2 is the target"),
    "two targets": ("index_target.txt", lambda text: "2\n3\n", r"index_target\.txt: 2 target columns"),
    "several per line": ("index_test_0.txt", replace(" \n", " "), r"index_test_0\.txt, line 1: 2 columns"),
    "row out of range": ("index_test_0.txt", replace("9", "10"), r"index_test_0\.txt, entry 2: 10 is no index from 0 to 9"),
    "negative row": ("index_test_0.txt", replace("9", "-1"), r"index_test_0\.txt, entry 2: -1 is no index"),
    "half a row": ("index_test_0.txt", replace("9", "8.5"), r"index_test_0\.txt, entry 2: 8\.5 is no index"),
    "overlap": ("index_test_0.txt", replace("9", "0"), r"index_test_0\.txt: row 0 is in index_train_0\.txt too"),
    "index cut off": ("index_test_0.txt", replace("9 \n", ""), r"name 8 and 1 of the 10 rows .* cut off"),
    "empty index": ("index_train_0.txt", lambda text: "", r"index_train_0\.txt holds no numbers"),
}


@pytest.mark.parametrize("case", CORRUPT)
def test_corrupt_files_are_named(folder, case):
    file, spoil, message = CORRUPT[case]
    before = (folder / file).read_text()
    (folder / file).write_text(spoil(before))
    assert (folder / file).read_text() != before
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataHashWarning)
        with pytest.raises(CorruptDataError, match=message):
            datasets.uci("yacht", split=0)


def test_a_binary_file_is_named(folder):
    (folder / "index_test_0.txt").write_bytes(b"\x1f\x8b\x08\xff\xfe")
    with pytest.raises(CorruptDataError, match=r"index_test_0\.txt is not text"):
        datasets.uci("yacht", split=0)


def test_unknown_names_and_splits(folder):
    with pytest.raises(ValueError, match="Did you mean 'yacht'"):
        datasets.uci("yatch")
    with pytest.raises(ValueError, match="20 published splits, got split=20; split must be from 0 to 19"):
        datasets.uci("yacht", split=20)
    with pytest.raises(ValueError, match="got split=-1"):
        datasets.uci("yacht", split=-1)


def test_boston_says_what_is_wrong_with_it():
    doc = datasets.boston_housing.__doc__
    assert "Black" in doc and "withdrew" in doc


SHAPES = {
    "bostonHousing": (506, 13),
    "concrete": (1030, 8),
    "energy": (768, 8),
    "kin8nm": (8192, 8),
    "naval-propulsion-plant": (11934, 16),
    "power-plant": (9568, 4),
    "protein-tertiary-structure": (45730, 9),
    "wine-quality-red": (1599, 11),
    "yacht": (308, 6),
}


@pytest.mark.parametrize("name", SHAPES)
def test_real_files(provided_data, monkeypatch, name):
    if not (provided_data / "uci" / name).is_dir():
        pytest.skip(f"real data sets: there is no {provided_data / 'uci' / name}")
    monkeypatch.setenv("ZOO_DATA", str(provided_data))
    data = datasets.registry[name]()
    assert data.x.shape == SHAPES[name]
    last = data.split(data.num_splits - 1).standardise()
    assert len(last.x_test) == pytest.approx(len(data) / 10, abs=1)
    assert torch.isfinite(last.x_test).all() and abs(last.y_train.mean()) < 1e-4
