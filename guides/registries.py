"""The registries of this package, in a leaf module so that every entry can be filed where it is defined."""

from __future__ import annotations

from typing import Any

from _posterior_zoo_registry import Registry

__all__ = ["families", "objectives", "samplers", "solvers"]

families: Registry[Any] = Registry("guide", group="guides.families")
objectives: Registry[Any] = Registry("objective", group="guides.objectives")
samplers: Registry[Any] = Registry("sampler", group="guides.samplers")
solvers: Registry[Any] = Registry("solver", group="guides.solvers")
