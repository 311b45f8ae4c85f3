"""Pyro's own kernels on a compiled density."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from pyro.infer import mcmc
from torch import Tensor
from tqdm import tqdm

from guides.density.density import LogDensity
from guides.program.isolation import quiet, seeded
from guides.samplers.base import Chains, Start

__all__ = ["run_pyro"]


def run_pyro(
    kernel: str,
    options: dict[str, Any],
    density: LogDensity,
    start: Start,
    chains: int,
    draws: int,
    tune: int,
    seed: int,
    progress: bool,
) -> Chains:
    """Draw by a kernel of Pyro's, one chain after the other.

    :param kernel: its class's name.
    """
    counted = 0

    def potential(values: dict[str, Tensor]) -> Tensor:
        nonlocal counted
        counted += 1
        return -density(values["z"])

    points = np.empty((chains, draws, density.size))
    diverging, energy = np.zeros((chains, draws), bool), np.empty((chains, draws))
    sizes = np.empty((chains, draws))
    for chain in range(chains):
        bar = tqdm(total=draws + tune, desc=f"chain {chain}", disable=not progress)
        with seeded(seed + chain), quiet(), bar:
            made = getattr(mcmc, kernel)(potential_fn=potential, **options)
            made.initial_params = {"z": torch.as_tensor(start(seed + chain))}
            made.setup(tune)
            at = made.initial_params
            first = _FirstKinetic(made)
            for step in range(-tune, draws):
                before = made._potential_energy_last
                first.value = None
                at = made.sample(at)
                if step >= 0:
                    points[chain, step] = at["z"].detach().numpy()
                    sizes[chain, step] = made.step_size
                    energy[chain, step] = float(before) + (math.nan if first.value is None else first.value)
                bar.update()
            diverging[chain, made.diagnostics()["divergences"]] = True
    return Chains(points, {"diverging": diverging, "energy": energy, "step_size": sizes}, counted)


class _FirstKinetic:
    """The kinetic energy that a kernel gives a fresh momentum, the first that it computes for a draw."""

    def __init__(self, kernel: Any) -> None:
        self.value: float | None = None
        self._of_kernel = kernel._kinetic_energy
        kernel._kinetic_energy = self

    def __call__(self, momentum: Any) -> Tensor:
        found: Tensor = self._of_kernel(momentum)
        self.value = float(found) if self.value is None else self.value
        return found
