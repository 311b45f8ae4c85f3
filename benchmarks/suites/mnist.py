"""Fixed binarised MNIST under two published protocols, beside published numbers."""

from __future__ import annotations

from benchmarks.protocol.task import SUITES, Suite
from benchmarks.reporting.image_tables import sections

__all__: list[str] = []

IWAE = "amortized:objective=iwae:num_particles=5"
IWAE_MANY = "amortized:objective=iwae:num_particles=20"
FLOW = "amortized:flow=iaf"

SUITES.add(
    "mnist",
    Suite(
        name="mnist",
        summary="VAEs on fixed binarised MNIST, log p(x) by importance sampling, beside published numbers",
        tasks=("mnist_vae", "mnist_dlgm", "mnist_vamp"),
        guides={
            "mnist_vae": ("amortized", IWAE, IWAE_MANY, FLOW),
            "mnist_dlgm": ("amortized",),
            "mnist_vamp": ("amortized",),
            "mnist_dlgmm": ("deep_mixture_amortized",),
            "mnist_plane": ("amortized",),
            "mnist_burda": ("amortized", "amortized:objective=iwae:num_particles=50"),
            "mnist_burda_two": ("amortized:objective=iwae:num_particles=50",),
        },
        optional=("mnist_burda", "mnist_burda_two", "mnist_dlgmm", "mnist_plane"),
        sections=sections,
    ),
)
