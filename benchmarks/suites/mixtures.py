"""Guides on mixtures of Gaussians, beside coordinate ascent."""

from benchmarks.protocol.task import SUITES, Suite

__all__: list[str] = []

SUITES.add(
    "mixtures",
    Suite(
        name="mixtures",
        summary="Mixtures of Gaussians: gradient-based guides beside closed-form coordinate ascent",
        tasks=("gaussian_mixture", "dirichlet_process_mixture"),
        guides=("mean_field", "low_rank", "full_rank", "mixture", "laplace", "map"),
        splits=5,
    ),
)
