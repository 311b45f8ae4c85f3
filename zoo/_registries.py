"""The two registries of this package, in a leaf of their own so that models and loaders can fill them without cycles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from _posterior_zoo_registry import Registry

__all__ = ["datasets", "models"]

models: Registry[type[Any]] = Registry("model", group="zoo.models")
datasets: Registry[Callable[..., Any]] = Registry("dataset", group="zoo.datasets")
