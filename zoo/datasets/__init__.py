"""Data sets: UCI regression with its published splits, scikit-learn's embedded sets, images, and toy curves.

Every loader returns a :class:`Dataset`, which cuts itself into a :class:`Split`; a split can be standardised by its training
part. ``zoo.datasets.registry`` maps names to loaders that need no argument.
"""

from zoo._registries import datasets as registry
from zoo.datasets.completion import UNKNOWN, Completion, middle_columns, quadrants
from zoo.datasets.dataset import Dataset, Split
from zoo.datasets.embedded import breast_cancer, diabetes, digits
from zoo.datasets.files import CorruptDataError, DataHashWarning, MissingDataError
from zoo.datasets.images import binarize_pixels, binarized_mnist, digits_images, mnist
from zoo.datasets.toy import blundell, foong
from zoo.datasets.uci_sets import (
    UCI_NAMES,
    boston_housing,
    concrete,
    energy,
    kin8nm,
    naval_propulsion_plant,
    power_plant,
    protein_tertiary_structure,
    uci,
    wine_quality_red,
    yacht,
)

__all__ = [
    "UCI_NAMES",
    "UNKNOWN",
    "Completion",
    "CorruptDataError",
    "DataHashWarning",
    "Dataset",
    "MissingDataError",
    "Split",
    "binarize_pixels",
    "binarized_mnist",
    "blundell",
    "boston_housing",
    "breast_cancer",
    "concrete",
    "diabetes",
    "digits",
    "digits_images",
    "energy",
    "foong",
    "kin8nm",
    "middle_columns",
    "mnist",
    "naval_propulsion_plant",
    "power_plant",
    "protein_tertiary_structure",
    "quadrants",
    "registry",
    "uci",
    "wine_quality_red",
    "yacht",
]
