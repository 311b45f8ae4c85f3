"""What is measured: five models, their sizes, and the data and starting point that every implementation gets."""

from __future__ import annotations

import gzip
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from _posterior_zoo_registry import Registry

__all__ = ["ALL", "CASES", "GPU", "Case", "draw", "site_shapes"]

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Case:
    """One model at one size, as plain data, so that another process and another library can build the same.

    :param name: how the command line calls it.
    :param title: what it is, for tables.
    :param kind: ``"mlp"`` (Bayesian network, mean-field guide), ``"vae"`` or ``"schools"``.
    :param sizes: widths of the layers, input first; for the VAE: pixels, hidden units, latents.
    :param likelihood: of an ``mlp``: ``"regression"`` or ``"multiclass"``.
    :param rows: data points N.
    :param batch: rows of a step's minibatch, drawn afresh at every step; 0 takes all of them.
    :param particles: draws of the guide per step.
    :param replicates: independent fits at once.
    :param chunk: steps in one call, for those who run several per call.
    :param lr: Adam's learning rate.
    :param init_scale: initial standard deviation of the guide.
    :param threads: PyTorch's threads; 0 takes one for each core.
    :param compared: steps after which the losses of all implementations must agree.
    :param device: ``"cpu"`` or ``"cuda"``.
    """

    name: str
    title: str
    kind: str
    sizes: tuple[int, ...] = ()
    likelihood: str = "regression"
    rows: int = 308
    batch: int = 128
    particles: int = 1
    replicates: int = 1
    chunk: int = 200
    lr: float = 5e-3
    init_scale: float = 0.05
    threads: int = 1
    compared: int = 1000
    device: str = "cpu"

    @property
    def spec(self) -> dict[str, Any]:
        """The case as JSON."""
        return asdict(self) | {"sizes": list(self.sizes)}

    @property
    def summary(self) -> str:
        """The title, for lists."""
        return self.title

    @property
    def products(self) -> float:
        """Floating-point operations of a step's matrix products, forward and backward."""
        if self.kind == "schools":
            return 0.0
        first = self.sizes[0] * self.sizes[1]
        layers = [a * b for a, b in zip(self.sizes, self.sizes[1:])]
        if self.kind == "vae":
            pixels, hidden, latents = self.sizes
            layers = [first, 2 * hidden * latents, latents * hidden, hidden * pixels]
        # Each costs the same again for the gradient of its weights, and again for that of its input, unless that is data.
        each = 2.0 * (self.batch or self.rows) * (3 * sum(layers) - first)
        return each * self.particles * self.replicates


_BNN = Case("bnn", "Bayesian network 6-50-1, 308 rows, batch 128", "mlp", (6, 50, 1), rows=308, batch=128)

ALL: tuple[Case, ...] = (
    _BNN,
    replace(_BNN, name="bnn20", title=f"{_BNN.title}, 20 replicates", replicates=20, compared=600),
    Case("eight_schools", "eight schools, non-centred", "schools", rows=8, batch=0, init_scale=0.1, compared=2000),
    Case(
        "vae",
        "variational autoencoder 784-500-25, batch 100",
        "vae",
        (784, 500, 25),
        rows=10_000,
        batch=100,
        chunk=20,
        lr=1e-3,
        threads=0,
        compared=60,
    ),
    Case(
        "classifier",
        "Bayesian network 784-1200-1200-10, batch 128",
        "mlp",
        (784, 1200, 1200, 10),
        "multiclass",
        rows=10_000,
        batch=128,
        chunk=5,
        lr=1e-3,
        init_scale=0.02,
        threads=0,
        compared=15,
    ),
)
"""Every case on a CPU, in the order of tables."""

GPU: tuple[Case, ...] = (
    replace(_BNN, name="bnn1000", title=f"{_BNN.title}, 1000 replicates", replicates=1000, compared=600, device="cuda"),
    replace(ALL[3], name="vae4096", title="variational autoencoder 784-500-25, batch 4096", batch=4096, device="cuda"),
)
"""Cases for a GPU."""

CASES: Registry[Case] = Registry("case", group="")
for _case in (*ALL, *GPU):
    CASES.add(_case.name, _case)


def site_shapes(case: Case) -> dict[str, tuple[int, ...]]:
    """Return the shape of every latent site (of every weight of the VAE's networks) by name, in the models' order."""
    if case.kind == "schools":
        return {"mu": (), "tau": (), "theta_trans": (case.rows,)}
    if case.kind == "vae":
        pixels, hidden, latents = case.sizes
        layers = {
            "encoder.hidden": (pixels, hidden),
            "encoder.loc": (hidden, latents),
            "encoder.log_scale": (hidden, latents),
            "decoder.hidden": (latents, hidden),
            "decoder.logits": (hidden, pixels),
        }
    else:
        layers = {f"layers.{i}": fans for i, fans in enumerate(zip(case.sizes, case.sizes[1:]))}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, (fan_in, fan_out) in layers.items():
        shapes |= {f"{name}.weight": (fan_in, fan_out), f"{name}.bias": (fan_out,)}
    if case.kind == "mlp" and case.likelihood == "regression":
        shapes["sigma"] = ()
    return shapes


def draw(case: Case, seed: int = 0) -> Arrays:
    """Return the data of a case, ``"x"`` and ``"y"``, and where everybody starts: ``"start/<site>"`` for every site.

    Images are MNIST's test set if the folder that ``ZOO_DATA`` names has it, and else random ones of that shape: the time
    of a step depends on shapes only.
    """
    generator = np.random.default_rng(seed)
    arrays = _data(case, generator)
    for name, shape in site_shapes(case).items():
        if name == "sigma":
            start = np.asarray(math.exp(-1.0))
        elif case.kind == "schools":
            start = np.ones(shape) if name == "tau" else np.zeros(shape)
        else:
            spread = shape[0] ** -0.5 if len(shape) == 2 else 0.0
            start = spread * generator.standard_normal(shape)
        arrays[f"start/{name}"] = start.astype(np.float32)
    return arrays


def _data(case: Case, generator: np.random.Generator) -> Arrays:
    if case.kind == "schools":
        errors = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0], np.float32)
        effects = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0], np.float32)
        return {"x": errors, "y": effects}
    if case.sizes[0] == 784:
        images, labels = _mnist(os.environ) or _like_mnist(case.rows, generator)
        images, labels = images[: case.rows], labels[: case.rows]
        return {"x": (images > 0.5).astype(np.float32)} if case.kind == "vae" else {"x": images, "y": labels}
    x = generator.standard_normal((case.rows, case.sizes[0])).astype(np.float32)
    y = np.sin(x[:, 0]) + 0.1 * generator.standard_normal(case.rows)
    return {"x": x, "y": y.astype(np.float32)}


def _like_mnist(rows: int, generator: np.random.Generator) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return random images around ten random templates, ``(rows, 784)`` in [0, 1], and which template each is of."""
    templates = generator.random((10, 784)) ** 4
    labels = generator.integers(0, 10, rows)
    images = np.clip(templates[labels] + 0.2 * generator.standard_normal((rows, 784)), 0, 1)
    return images.astype(np.float32), labels


def _mnist(environment: Mapping[str, str]) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """Return MNIST's test images in [0, 1] and labels, if they are at hand."""
    folder = Path(environment.get("ZOO_DATA", "")) / "mnist"
    files = [folder / "t10k-images-idx3-ubyte.gz", folder / "t10k-labels-idx1-ubyte.gz"]
    if not environment.get("ZOO_DATA") or not all(file.is_file() for file in files):
        return None
    images, labels = (np.frombuffer(gzip.decompress(file.read_bytes()), np.uint8) for file in files)
    return images[16:].reshape(-1, 784).astype(np.float32) / 255, labels[8:].astype(np.int64)
