"""What the README's pictures show."""

from benchmarks.protocol.task import SUITES, Suite

__all__: list[str] = []

SUITES.add(
    "pictures",
    Suite(
        name="pictures",
        summary="One split of the tasks that the README's pictures show",
        tasks=("blundell_curve", "foong_gap", "eight_schools"),
        splits=1,
    ),
)
