"""Do the latents of an encoder say anything about the data, or has the posterior collapsed onto the prior?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch

from guides.diagnostics.finding import DrawsLike, Finding, Level, PosteriorLike, Undefined, diagnostics_registry
from guides.errors import OptionError, UnsupportedModelError
from guides.information.latent import LatentInformation, latent_information
from guides.program.guide import amortized_sites

__all__ = ["LatentUse", "latent_use"]

_MAX_ROWS, _MAX_DRAWN = 300, 100
_LITTLE = 0.5  # nats; more than that without an active unit is a prior of small scale, which 0.01 is no limit for

_ADVICE = (
    "let the divergence come in slowly, objective=guides.ELBO(kl_weight=guides.KLAnnealing(steps)) over a good part of the"
    " steps; or make some of it free, guides.ELBO(free_bits=0.1); or weaken the decoder, so that it cannot explain the data"
    " alone"
)


@dataclass(frozen=True, kw_only=True)
class LatentUse(Finding):
    """What the latents of an amortised guide say about the rows; empty for other guides.

    :param measures: one per restart, over at most 300 rows of the training data;
        ``guides.information.latent_information(posterior)`` takes all of them.
    """

    title: ClassVar[str] = "latents in use"
    measures: Sequence[LatentInformation]

    def rows(self) -> list[tuple[str, str]]:
        """Return active units and the rate of the restart with the fewest; nothing for a guide without an encoder."""
        if not self.measures:
            return []
        worst = min(self.measures, key=_used)
        rate = f"rate {float(worst.rate):.2f}, I(x; z) {_information(worst)} nats"
        return [(self.title, f"{worst.active_units} of {worst.units} units active, {rate}  ({worst.num_rows} rows)")]


@diagnostics_registry.register("latent_use")
def latent_use(posterior: PosteriorLike, draws: DrawsLike) -> Finding:
    r"""Tell a collapsed posterior from a good one, where an encoder computes the latents of each row.

    .. math:: I_q(x; z) = E_n KL(q(z \mid x_n) \| q(z)), \qquad Var_n(E[z_d \mid x_n]) > 0.01 \ \text{(unit d is active)}

    A posterior has collapsed if no unit is active and the codes say less than half a nat about their rows. A layer without
    an active unit is not used. Some inactive units in a layer are usual and harmless.

    **Blind spot.** Collapse is measured on the guide. If the model's likelihood ignores the latents, the prior *is* the
    exact posterior, and importance weights call the fit perfect. Nor can it be seen whether the encoder or the model is to
    blame; a linear model whose noise is set too large collapses without any mistake of the guide. And codes that say much
    need not say what matters: look at reconstructions.

    References: Bowman et al. (2016), *Generating sentences from a continuous space*; Burda, Grosse & Salakhutdinov (2016),
    *Importance weighted autoencoders*; Hoffman & Johnson (2016), *ELBO surgery*; Lucas, Tucker, Grosse & Norouzi (2019),
    *Don't blame the ELBO!*
    """
    if not amortized_sites(posterior.guide):
        return LatentUse(level="unknown", text="the guide has no encoder", measures=())
    fitted = cast(Any, posterior)
    rows = fitted.training
    if rows.size > _MAX_ROWS:
        order = torch.randperm(rows.size, generator=torch.Generator().manual_seed(0))[:_MAX_ROWS]
        rows = rows.take(order.to(fitted.device))
    try:
        measures = tuple(
            latent_information(fitted.replicate(r), *rows.args, max_drawn=_MAX_DRAWN, model_kwargs=rows.kwargs)
            for r in range(fitted.replicates)
        )
    except (OptionError, UnsupportedModelError) as error:
        return Undefined(label=LatentUse.title, level="unknown", text=f"not defined: {error}")
    level, text, advice = _verdict(min(measures, key=_used))
    return LatentUse(level=level, text=text, advice=advice, measures=measures)


def _used(measure: LatentInformation) -> tuple[int, float]:
    return measure.active_units, float(measure.mutual_information)


def _information(measure: LatentInformation) -> str:
    value = float(measure.mutual_information)
    if value > measure.limit - 1:
        return f"at least {value:.2f}"
    return f"{value:.2f}"


def _verdict(measure: LatentInformation) -> tuple[Level, str, str]:
    figure = f"{measure.active_units} of {measure.units} latent units are active"
    if not measure.active_units and float(measure.mutual_information) < _LITTLE:
        return (
            "unreliable",
            f"posterior collapse: no latent unit is active, the codes say {_information(measure)} nats about their data "
            "points, and the model explains the data without them",
            _ADVICE,
        )
    silent = [name for name, active in measure.active.items() if not bool(active.any())]
    if silent and measure.active_units:
        names = ", ".join(map(repr, silent))
        return (
            "usable",
            f"{figure}, none of them in {names}: a layer that the model does not use",
            f"{_ADVICE}; or leave the layer out",
        )
    return "good", f"{figure}; the codes say {_information(measure)} nats about their data points", ""
