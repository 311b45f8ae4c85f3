"""The scoreboard: guides against reference draws, and verdicts against the truth."""

from benchmarks.protocol.task import SUITES, Suite
from benchmarks.reporting.scoreboard import sections
from zoo.posteriordb import posteriors

__all__: list[str] = []

SUITES.add(
    "posteriordb",
    Suite(
        name="posteriordb",
        summary="Seventeen posteriors with reference draws: errors of guides at defaults, and whether verdicts are true",
        tasks=tuple(posteriors),
        guides=("mean_field", "full_rank", "low_rank", "laplace", "mixture", "pathfinder", "dadvi", "auto", "nuts"),
        sections=sections,
        page="scoreboard.md",
    ),
)
