"""Distributions with exact draws: funnel, banana, many modes, heavy tails."""

from benchmarks.data.exact import TARGETS
from benchmarks.protocol.task import SUITES, Suite
from benchmarks.reporting.scoreboard import synthetic

__all__: list[str] = []

SUITES.add(
    "synthetic",
    Suite(
        name="synthetic",
        summary="Funnel, banana, wells, mixtures, Student tails with exact draws: errors, bounds, modes covered",
        tasks=tuple(TARGETS),
        guides=("mean_field", "full_rank", "low_rank", "laplace", "mixture"),
        sections=synthetic,
        page="scoreboard.md",
    ),
)
