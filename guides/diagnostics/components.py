"""Which components of a mixture carry the posterior, and which have died?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from guides.diagnostics.finding import DrawsLike, Finding, PosteriorLike, diagnostics_registry

__all__ = ["Components", "components"]

DEAD = 1e-4


@dataclass(frozen=True, kw_only=True)
class Components(Finding):
    """Weights of the components of a mixture guide; empty for other guides.

    :param weights: one list per restart.
    :param effective: exponential of the weights' entropy, one per restart.
    :param dead: components with a weight below 1e-4, one list per restart.
    """

    title: ClassVar[str] = "components"
    weights: Sequence[Sequence[float]]
    effective: Sequence[float]
    dead: Sequence[Sequence[int]]

    def rows(self) -> list[tuple[str, str]]:
        """Return how many components carry the posterior; nothing for a guide that is no mixture."""
        return [(self.title, self.text)] if self.weights else []


@diagnostics_registry.register("components")
def components(posterior: PosteriorLike, draws: DrawsLike) -> Finding:
    r"""Count the components that a mixture uses.

    .. math:: K_{\mathrm{eff}} = \exp\Big(-\sum_k \pi_k \log \pi_k\Big)

    A component with :math:`\pi_k < 10^{-4}` is dead: it costs time and describes nothing. That is no fault of the fit, since
    weights follow the evidence, but a component may also die before it has arrived anywhere.

    **Blind spot.** Many components in use do not say that all modes were found, and one in use does not say that there is
    only one: like every figure taken from draws of the guide, this one knows nothing of a mode that no component reached.

    References: Jaakkola & Jordan (1998), *Improving the mean field approximation via the use of mixture distributions*.
    """
    found: tuple[dict[str, Any], ...] = getattr(posterior, "info", ())
    weights = [list(info["weights"]) for info in found if "weights" in info]
    if not weights:
        return Components(level="unknown", text="the guide is no mixture", weights=(), effective=(), dead=())
    effective = [math.exp(-sum(w * math.log(w) for w in row if w > 0)) for row in weights]
    dead = [[k for k, w in enumerate(row) if w < DEAD] for row in weights]
    worst = max(range(len(weights)), key=lambda r: len(dead[r]))
    text = f"{effective[worst]:.1f} of {len(weights[worst])} components in use"
    advice = ""
    if dead[worst]:
        numbers = ", ".join(map(str, dead[worst]))
        text += f", {len(dead[worst])} dead (weight below {DEAD:g}: {numbers})"
        advice = (
            "fit with guides.SELBO(warmup=...), so that components arrive before they compete, or guide.reseed() and go on"
        )
    return Components(level="good", text=text, advice=advice, weights=weights, effective=effective, dead=dead)
