"""VAEs on the digits that come with scikit-learn: no file, two minutes."""

from __future__ import annotations

from benchmarks.protocol.task import SUITES, Suite
from benchmarks.reporting.image_tables import sections

__all__: list[str] = []

SUITES.add(
    "digits",
    Suite(
        name="digits",
        summary="VAEs on embedded 8 by 8 digits: an encoder, refined for each image, and with a flow",
        tasks=("digits_vae", "digits_plane"),
        guides={
            "digits_vae": ("amortized", "semi_amortized", "amortized:flow=iaf"),
            "digits_plane": ("amortized",),
        },
        splits=1,
        sections=sections,
    ),
)
