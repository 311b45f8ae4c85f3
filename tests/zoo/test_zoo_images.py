"""The loaders of images on small made-up folders and on the real files, and what completion takes away and puts back."""

import gzip
import hashlib
import pickle
import struct
import warnings
from pathlib import Path

import numpy as np
import pooch
import pytest
import requests
import torch

from zoo import datasets
from zoo.datasets import images
from zoo.datasets.files import CorruptDataError, DataHashWarning, MissingDataError

PARTS = {"train": 5, "test": 3, "valid": 2}


def refuse(self, url, output_file, pooch, check_only=False):
    raise requests.exceptions.ConnectionError(f"no network in a test: {url}")


@pytest.fixture
def root(tmp_path, monkeypatch):
    """ZOO_DATA with nothing in it yet; the network and the cache are away."""
    monkeypatch.setenv("ZOO_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "cache")
    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", refuse)
    return tmp_path / "data"


def hash_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def amat(root, monkeypatch):
    """Ten images of 784 pixels in the published layout."""
    folder = root / "binarized_mnist"
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 2, (10, 784))
    first, table = 0, {}
    for part, rows in PARTS.items():
        path = folder / f"binarized_mnist_{part}.amat"
        path.write_text("".join(" ".join(map(str, row)) + "\n" for row in pixels[first : first + rows]))
        table[part] = (hash_of(path), rows)
        first += rows
    monkeypatch.setattr(images, "_BINARIZED", table)
    return folder, torch.from_numpy(pixels).float()


def idx(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


@pytest.fixture
def mnist(root, monkeypatch):
    """Six and four images in the published layout."""
    folder = root / "mnist"
    folder.mkdir(parents=True)
    random = np.random.default_rng(1)
    table, content = {}, {}
    for part, rows in (("train", 6), ("t10k", 4)):
        pixels, labels = random.integers(0, 256, (rows, 28, 28)), random.integers(0, 10, rows)
        for name, array in ((f"{part}-images-idx3-ubyte.gz", pixels), (f"{part}-labels-idx1-ubyte.gz", labels)):
            (folder / name).write_bytes(gzip.compress(idx(array)))
            table[name], content[name] = hash_of(folder / name), array
    monkeypatch.setattr(images, "_MNIST", table)
    return folder, content


# -- fixed binarisation ------------------------------------------------------------------------------------------------


def test_fixed_binarisation_has_the_published_parts(amat):
    _, pixels = amat
    data = datasets.binarized_mnist()
    assert torch.equal(data.x, pixels) and data.x.dtype == torch.float32
    assert data.y.shape == (10, 0) and data.task == "unlabelled"
    split = data.split(0)
    assert torch.equal(split.x_train, pixels[:5])
    assert torch.equal(split.x_test, pixels[5:8]) and torch.equal(split.x_valid, pixels[8:])
    assert split.x_train.data_ptr() == data.x.data_ptr()  # a view: the images are not held twice
    assert torch.equal(pickle.loads(pickle.dumps(data)).split(0).x_valid, split.x_valid)


def test_the_last_newline_may_be_missing(amat):
    folder, pixels = amat
    path = folder / "binarized_mnist_train.amat"
    path.write_text(path.read_text()[:-1])
    with pytest.warns(DataHashWarning):
        assert torch.equal(datasets.binarized_mnist().x, pixels)


WIDTH = 2 * 784
SPOILED = {
    "cut inside a line": (
        lambda b: b[: 2 * WIDTH + 500],
        r"train\.amat, line 3: the file ends after 3636 bytes; 5 lines of 784",
    ),
    "cut after a line": (lambda b: b[: 4 * WIDTH], r"line 5: the file ends"),
    "one line more": (lambda b: b + b[:WIDTH], r"line 6: the file goes on"),
    "empty": (lambda b: b"", r"line 1: the file ends after 0 bytes"),
    "grey": (lambda b: b[: WIDTH + 6] + b"7" + b[WIDTH + 7 :], r"line 2, column 7: found '7' where 0 or 1 is expected"),
    "tabs": (lambda b: b.replace(b" ", b"\t"), r"line 1, column 2: found '\\t' where a space"),
    "a pixel missing": (lambda b: b[2:], r"line 1, column 1566: found '\\n' where a space"),
    "no line ends": (lambda b: b.replace(b"\n", b" "), r"line 1, column 1568: found ' ' where the end of the line"),
    "a web page": (lambda b: b"<html>" + b[6:], r"line 1, column 1: found '<'"),
}


@pytest.mark.parametrize("case", SPOILED)
def test_spoiled_lines_are_named(amat, case):
    folder, _ = amat
    spoil, message = SPOILED[case]
    path = folder / "binarized_mnist_train.amat"
    path.write_bytes(spoil(path.read_bytes()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataHashWarning)
        with pytest.raises(CorruptDataError, match=message):
            datasets.binarized_mnist()


def test_another_file_under_zoo_data_is_a_warning_and_a_download_an_error(amat, monkeypatch):
    folder, pixels = amat
    path = folder / "binarized_mnist_test.amat"
    published = hash_of(path)
    content = path.read_bytes()
    path.write_bytes((b"1" if content[:1] == b"0" else b"0") + content[1:])
    with pytest.warns(DataHashWarning, match=f"{hash_of(path)}.*{published}"):
        assert (datasets.binarized_mnist().x != pixels).sum() == 1

    def serve(self, url, output_file, pooch, check_only=False):
        Path(output_file).write_bytes((folder / url.rsplit("/", 1)[-1]).read_bytes())

    monkeypatch.delenv("ZOO_DATA")
    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", serve)
    with pytest.raises(
        CorruptDataError, match=r"larocheh/public/datasets/binarized_mnist/binarized_mnist_test\.amat is not"
    ):
        datasets.binarized_mnist()


@pytest.mark.parametrize("loader", ["binarized_mnist", "mnist"])
def test_neither_file_nor_network(root, loader):
    with pytest.raises(MissingDataError, match=f"put it at {root / loader}"):
        datasets.registry[loader]()


# -- grey levels -------------------------------------------------------------------------------------------------------


def test_grey_levels_and_labels(mnist):
    _, content = mnist
    data = datasets.mnist()
    pixels = np.concatenate([content["train-images-idx3-ubyte.gz"], content["t10k-images-idx3-ubyte.gz"]])
    assert torch.equal(data.x, torch.from_numpy(pixels).flatten(1).float() / 255)
    assert data.y.dtype == torch.int64 and data.num_classes == 10
    split = data.split(0)
    assert len(split.x_train) == 6 and split.y_test.tolist() == content["t10k-labels-idx1-ubyte.gz"].tolist()
    assert [len(x) for x in (split.hold_out(0.5).x_train, split.hold_out(0.5).x_valid)] == [3, 3]


def test_binarising(mnist):
    grey, before = datasets.mnist().x, torch.random.get_rng_state()
    assert torch.equal(datasets.mnist(binarize="threshold").x, (grey > 0.5).float())
    one, same, other = (datasets.mnist(binarize="dynamic", seed=seed).x for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other) and set(one.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(before, torch.random.get_rng_state())
    draws = torch.stack([datasets.binarize_pixels(grey, "dynamic", seed) for seed in range(400)])
    error = (draws.mean(0) - grey).abs() / (grey * (1 - grey) / 400).sqrt().clamp(min=0.01)
    assert error.max() < 5.5  # 7,840 pixels
    with pytest.raises(ValueError, match=r"binarize='treshold' is not known. Did you mean 'threshold'\?"):
        datasets.mnist(binarize="treshold")
    with pytest.raises(ValueError, match="grey levels must be from 0 to 1, got 0 to 255"):
        datasets.binarize_pixels(grey * 255, "dynamic")


def test_another_compression_is_a_warning_with_both_hashes(mnist):
    folder, _ = mnist
    path = folder / "t10k-images-idx3-ubyte.gz"
    published = hash_of(path)
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), compresslevel=1, mtime=1))
    with pytest.warns(DataHashWarning, match=f"{hash_of(path)}.*{published}"):
        assert len(datasets.mnist()) == 10


def unpacked(change):
    return lambda content: gzip.compress(change(gzip.decompress(content)))


IMAGES, LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
DAMAGED = {
    "gzip cut off": (IMAGES, lambda c: c[:-30], r"train-images-idx3-ubyte\.gz is cut off: the gzip stream ends at byte \d+"),
    "no gzip": (IMAGES, lambda c: b"<html>" + c, r"is no gzip file"),
    "damaged inside": (IMAGES, lambda c: c[:-8] + b"\0\0\0\0" + c[-4:], r"is no gzip file, or damaged \(CRC"),
    "empty": (LABELS, lambda c: b"", r"train-labels-idx1-ubyte\.gz, byte 0: the magic number is 0x, where"),
    "labels as images": (IMAGES, unpacked(lambda c: idx(np.zeros(3))), r"magic number is 0x00000801, .* has 0x00000803"),
    "header cut off": (IMAGES, unpacked(lambda c: c[:10]), r"10 bytes, not even the 16 of the header"),
    "pixels cut off": (
        IMAGES,
        unpacked(lambda c: c[:-1]),
        r"4719 bytes unpacked, but its header promises 16 \+ 6 x 28 x 28",
    ),
    "pixels too many": (IMAGES, unpacked(lambda c: c + b"\0"), r"4721 bytes unpacked"),
    "other images": (IMAGES, unpacked(lambda c: idx(np.zeros((6, 8, 8)))), r"images of 8 by 8 pixels where MNIST's have 28"),
    "labels missing": (LABELS, unpacked(lambda c: idx(np.zeros(5))), r"labels-idx1-ubyte\.gz: 5 labels for the 6 images of"),
    "no digit": (LABELS, unpacked(lambda c: c[:-1] + b"\x0b"), r"entry 6: label 11 is no digit"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_files_are_named(mnist, case):
    folder, _ = mnist
    name, damage, message = DAMAGED[case]
    (folder / name).write_bytes(damage((folder / name).read_bytes()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataHashWarning)
        with pytest.raises(CorruptDataError, match=message):
            datasets.mnist()


# -- small digits ------------------------------------------------------------------------------------------------------


def test_small_digits():
    grey, threshold, drawn = (datasets.digits_images(binarize=how) for how in (None, "threshold", "dynamic"))
    assert torch.equal(grey.x, datasets.digits().x) and torch.equal(drawn.y, datasets.digits().y)
    assert torch.equal(threshold.x, (grey.x >= 0.5).float())
    assert not torch.equal(drawn.x, threshold.x) and set(drawn.x.unique().tolist()) == {0.0, 1.0}
    assert "one draw" in drawn.description and "grey levels" in grey.description
    split = threshold.random_split((0.8, 0.1, 0.1), seed=0)
    assert split.x_train.shape == (1438, 64) and split.num_classes == 10


# -- completion --------------------------------------------------------------------------------------------------------


def letters(task):
    """Which quarters of a 4 by 4 image are given: a, b above, c, d below."""
    corners = {"a": (0, 0), "b": (0, 3), "c": (3, 0), "d": (3, 3)}
    return {name for name, place in corners.items() if not task.unknown.view(4, 4)[place]}


@pytest.mark.parametrize(("given", "known"), [(1, {"c"}), (2, {"a", "c"}), (3, {"a", "b", "c"})])
@pytest.mark.parametrize("shape", [(16,), (4, 4), (1, 4, 4)])
def test_quadrants(given, known, shape):
    pixels = torch.rand(7, *shape)
    task = datasets.quadrants(pixels, given=given)
    assert letters(task) == known and task.inputs.shape == pixels.shape and task.targets.shape == (7, 16 - 4 * given)
    assert torch.equal(task.inputs == datasets.UNKNOWN, task.unknown.expand(7, *shape))
    assert torch.equal(task.inputs[:, ~task.unknown], pixels[:, ~task.unknown])
    assert torch.equal(task.assemble(task.targets), pixels)


def test_images_with_an_odd_side_and_colours():
    task = datasets.quadrants(torch.rand(2, 3, 5, 7), given=1)
    assert task.unknown.shape == (3, 5, 7) and int((~task.unknown[0]).sum()) == 3 * 3
    assert torch.equal(task.unknown[0], task.unknown[2])


@pytest.mark.parametrize(("columns", "given"), [(1, [13]), (2, [13, 14]), (4, [12, 13, 14, 15])])
def test_middle_columns(columns, given):
    pixels = torch.rand(3, 28, 28)
    task = datasets.middle_columns(pixels, columns)
    assert (~task.unknown).all(0).nonzero().squeeze(-1).tolist() == given and task.unknown[:, 0].all()
    assert task.targets.shape == (3, 28 * (28 - columns))
    assert torch.equal(task.assemble(task.targets), pixels)


def test_assembling_draws_of_some_rows():
    pixels = torch.rand(6, 16)
    task = datasets.quadrants(pixels, given=2)
    draws = torch.rand(10, 2, 8)
    whole = task.assemble(draws, rows=torch.tensor([4, 1]))
    assert whole.shape == (10, 2, 16)
    assert torch.equal(whole[3, 1, task.unknown], draws[3, 1]) and torch.equal(
        whole[3, 0, ~task.unknown], pixels[4, ~task.unknown]
    )
    with pytest.raises(ValueError, match=r"values has shape \(10, 2, 8\); 6 images lack 8 pixels each"):
        task.assemble(draws)


def test_impossible_completions():
    with pytest.raises(ValueError, match="given=4 quadrants: it must be 1, 2 or 3"):
        datasets.quadrants(torch.rand(2, 16), given=4)
    with pytest.raises(ValueError, match=r"images has shape \(2, 15\); pass"):
        datasets.quadrants(torch.rand(2, 15))
    with pytest.raises(ValueError, match=r"images has shape \(16,\)"):
        datasets.middle_columns(torch.rand(16))
    for columns in (0, 4):
        with pytest.raises(ValueError, match=f"columns={columns} of images 4 wide"):
            datasets.middle_columns(torch.rand(2, 16), columns)


# -- the real files ----------------------------------------------------------------------------------------------------


def test_real_fixed_binarisation(provided_data, monkeypatch):
    monkeypatch.setenv("ZOO_DATA", str(provided_data))
    split = datasets.binarized_mnist().split(0)
    assert [x.shape for x in (split.x_train, split.x_valid, split.x_test)] == [(50_000, 784), (10_000, 784), (10_000, 784)]
    assert split.x_test.unique().tolist() == [0.0, 1.0]
    assert 0.13 < split.x_train.mean() < 0.14 and split.x_train[:, 0].sum() == 0


def test_real_grey_levels(provided_data, monkeypatch):
    """The provided images differ from the published files, and the loader says so."""
    monkeypatch.setenv("ZOO_DATA", str(provided_data))
    with pytest.warns(DataHashWarning) as caught:
        data = datasets.mnist()
    published = {name: images._MNIST[name] for name in images._MNIST if "images" in name}
    assert all(any(name in str(w.message) and sha in str(w.message) for w in caught) for name, sha in published.items())
    split = data.split(0)
    assert split.x_train.shape == (60_000, 784) and split.x_test.shape == (10_000, 784)
    assert split.y_train[:5].tolist() == [5, 0, 4, 1, 9] and split.y_test[:5].tolist() == [7, 2, 1, 0, 4]
    assert data.x.min() == 0 and data.x.max() == 1 and 250 < len((data.x[:1000] * 255).unique()) <= 256
