"""Images for generative models: MNIST in its fixed binarisation and in grey, and scikit-learn's small digits."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from zoo._checks import one_of
from zoo._registries import datasets as registry
from zoo.datasets.dataset import Dataset
from zoo.datasets.embedded import digits
from zoo.datasets.files import CorruptDataError, find_file
from zoo.datasets.pixel_files import read_idx, read_zeros_and_ones

__all__ = ["binarize_pixels", "binarized_mnist", "digits_images", "mnist"]

BINARIZED_URL = "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/{file}"
MNIST_URL = "https://storage.googleapis.com/cvdf-datasets/mnist/{file}"
_PIXELS = 784

# Part, then: SHA-256 of the file, images in it.
_BINARIZED: dict[str, tuple[str, int]] = {
    "train": ("ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d", 50_000),
    "test": ("e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c", 10_000),
    "valid": ("1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2", 10_000),
}
_MNIST: dict[str, str] = {
    "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}


@registry.register("binarized_mnist")
def binarized_mnist() -> Dataset:
    """MNIST in Larochelle and Murray's fixed binarisation, 70,000 images of 28 by 28 black (0) and white (1) pixels.

    The one published split, ``binarized_mnist().split(0)``, has 50,000 images to train, 10,000 to validate and 10,000 to
    test. There are no labels: ``y`` has no columns. Log-likelihoods on this set compare with each other, and not with those
    under dynamic binarisation, which are 1 to 2 nats better.

    Files are looked for in ``$ZOO_DATA/binarized_mnist/``, then in the user's cache, then downloaded (110 MB).

    :raises MissingDataError: if a file is neither on this machine nor to be had from the network.
    :raises CorruptDataError: if a file is cut off or otherwise wrong, or a download has another hash.

    References:
        Larochelle and Murray (2011), The neural autoregressive distribution estimator.
        Salakhutdinov and Murray (2008), On the quantitative analysis of deep belief networks.
    """
    parts = []
    for part, (sha256, rows) in _BINARIZED.items():
        file = f"binarized_mnist_{part}.amat"
        path = find_file("binarized_mnist", file, BINARIZED_URL.format(file=file), sha256)
        parts.append(torch.from_numpy(read_zeros_and_ones(path, rows, _PIXELS)))
    x = torch.cat(parts).float()
    return Dataset(
        name="binarized_mnist",
        x=x,
        y=torch.empty(len(x), 0),
        task="unlabelled",
        target_name="",
        description="MNIST, fixed binarisation of Larochelle and Murray: 50,000 / 10,000 / 10,000 images of 28 by 28",
        num_splits=1,
        splitter=_binarized_parts,
    )


@registry.register("mnist")
def mnist(binarize: str | None = None, seed: int = 0) -> Dataset:
    """MNIST, 70,000 handwritten digits of 28 by 28 pixels with labels; grey levels from 0 to 1 unless binarised.

    The one published split, ``mnist().split(0)``, has 60,000 images to train and 10,000 to test; ``hold_out`` takes a
    validation part out of the first.

    Grey levels are no data of a Bernoulli likelihood: binarise them, or use a likelihood of grey levels
    (``"discretized_logistic"``).

    Files are looked for in ``$ZOO_DATA/mnist/``, then in the user's cache, then downloaded (12 MB). A file under
    ``$ZOO_DATA`` that is not the published one is warned about with both hashes: say so beside results from it.

    :param binarize: ``None``: grey levels; ``"threshold"``: white from 0.5; ``"dynamic"``: a draw, white with the grey level
        as its probability. Dynamic binarisation in the literature's sense draws anew for every epoch: another ``seed`` is
        another draw, and :func:`binarize_pixels` makes one from grey levels at hand.
    :param seed: of the draw.
    :raises ValueError: for another ``binarize``.
    :raises MissingDataError: if a file is neither on this machine nor to be had from the network.
    :raises CorruptDataError: if a file is cut off or otherwise wrong, or a download has another hash.

    References:
        LeCun, Bottou, Bengio and Haffner (1998), Gradient-based learning applied to document recognition.
        Salakhutdinov and Murray (2008), On the quantitative analysis of deep belief networks.
        Burda, Grosse and Salakhutdinov (2016), Importance weighted autoencoders.
    """
    images, labels = zip(_mnist_part("train"), _mnist_part("t10k"))
    grey = torch.cat([torch.from_numpy(each.copy()).flatten(1) for each in images]).float() / 255
    return Dataset(
        name="mnist",
        x=binarize_pixels(grey, binarize, seed),
        y=torch.cat([torch.from_numpy(each.astype(np.int64)) for each in labels]),
        task="multiclass",
        target_name="digit",
        description=f"MNIST, 60,000 / 10,000 images of 28 by 28, {_said(binarize)}",
        num_classes=10,
        num_splits=1,
        splitter=partial(_mnist_parts, len(images[0])),
    )


@registry.register("digits_images")
def digits_images(binarize: str | None = "threshold", seed: int = 0) -> Dataset:
    """Handwritten digits, 1797 images of 8 by 8 pixels with labels, black and white by default: the set that needs no file.

    The images of :func:`digits`, binarised for a Bernoulli likelihood.

    :param binarize: ``"threshold"``: white from 0.5; ``"dynamic"``: a draw, white with the grey level as its probability;
        ``None``: the 17 grey levels from 0 to 1.
    :param seed: of the draw.
    :raises ValueError: for another ``binarize``.

    References:
        Alpaydin and Kaynak (1998), Optical recognition of handwritten digits, UCI.

    Example::

        >>> data = digits_images()
        >>> data.x.shape, data.x.unique()
        (torch.Size([1797, 64]), tensor([0., 1.]))
    """
    data = digits()
    return Dataset(
        name="digits_images",
        x=binarize_pixels(data.x, binarize, seed),
        y=data.y,
        task=data.task,
        target_name=data.target_name,
        description=f"{data.description}; {_said(binarize)}",
        num_classes=data.num_classes,
    )


def binarize_pixels(grey: Tensor, how: str | None, seed: int = 0) -> Tensor:
    """Return black and white images made of grey ones; the caller's random state is not touched.

    :param grey: grey levels from 0 to 1, any shape.
    :param how: ``"threshold"``: 1 from 0.5; ``"dynamic"``: 1 with the grey level as its probability; ``None``: as they are.
    :param seed: of the draw.
    :raises ValueError: for another ``how``, and levels outside [0, 1].

    Example::

        >>> import torch
        >>> from zoo.datasets import binarize_pixels
        >>> binarize_pixels(torch.tensor([0.0, 0.4, 0.6, 1.0]), "threshold")
        tensor([0., 0., 1., 1.])
    """
    if how is None:
        return grey
    one_of("binarize", how, ("dynamic", "threshold"))
    if not bool(((grey >= 0) & (grey <= 1)).all()):
        raise ValueError(f"grey levels must be from 0 to 1, got {float(grey.min()):.3g} to {float(grey.max()):.3g}")
    if how == "threshold":
        return (grey >= 0.5).to(grey.dtype)
    return torch.bernoulli(grey, generator=torch.Generator(grey.device).manual_seed(seed))


def _mnist_parts(train: int, index: int) -> tuple[slice, slice]:
    return slice(0, train), slice(train, None)


def _binarized_parts(index: int) -> tuple[slice, ...]:
    first = 0
    parts = []
    for _, rows in _BINARIZED.values():
        parts.append(slice(first, first + rows))
        first += rows
    return tuple(parts)


def _mnist_part(part: str) -> tuple[np.ndarray, np.ndarray]:
    files = (f"{part}-images-idx3-ubyte.gz", f"{part}-labels-idx1-ubyte.gz")
    images_path, labels_path = (find_file("mnist", f, MNIST_URL.format(file=f), _MNIST[f]) for f in files)
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    if images.shape[1:] != (28, 28):
        raise CorruptDataError(
            f"{images_path}: images of {images.shape[1]} by {images.shape[2]} pixels where MNIST's have 28 by 28"
        )
    if len(images) != len(labels):
        raise CorruptDataError(f"{labels_path}: {len(labels)} labels for the {len(images)} images of {images_path.name}")
    if (labels > 9).any():
        place = int((labels > 9).argmax())
        raise CorruptDataError(f"{labels_path}, entry {place + 1}: label {labels[place]} is no digit")
    return images, labels


def _said(how: str | None) -> str:
    return {None: "grey levels", "threshold": "white from 0.5", "dynamic": "one draw with the grey levels as probabilities"}[
        how
    ]
