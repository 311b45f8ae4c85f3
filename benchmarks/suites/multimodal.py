"""Posteriors with several modes, known exactly."""

from benchmarks.protocol.task import SUITES, Suite

__all__: list[str] = []

SUITES.add(
    "multimodal",
    Suite(
        name="multimodal",
        summary="Posteriors with several modes: which a guide finds, and with how much mass",
        tasks=("two_moons", "ring", "two_means", "bump_network"),
        guides=("mean_field", "full_rank", "low_rank", "laplace", "ensemble", "mixture"),
        splits=3,
    ),
)
