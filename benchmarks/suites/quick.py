"""The suite behind `make bench`: every guide on data that need no file."""

from benchmarks.protocol.task import SUITES, Suite

__all__: list[str] = []

SUITES.add(
    "quick",
    Suite(
        name="quick",
        summary="Every registered guide on embedded data, in a few minutes",
        tasks=(
            "linear_regression",
            "eight_schools",
            "eight_schools_centered",
            "diabetes",
            "breast_cancer",
            "digits_classes",
            "digits_vae",
            "blundell_curve",
            "foong_gap",
        ),
        splits=3,
    ),
)
