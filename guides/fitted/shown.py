"""A fitted guide on one screen: what it is, what of, how the fit went, which sites there are; and its pictures."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from guides.errors import OptionError
from guides.fitted.fitted import FittedGuide
from guides.showing.figures import new_figure
from guides.showing.tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["described", "plot_fit", "plot_predictions"]

_MOST_SITES = 12
_MOST_ELEMENTS = 24
_MOST_STEPS = 2000
_NEXT = "diagnose() says whether to trust it; then summary(), sample(), predict(x), to_arviz(), plot()"


def described(posterior: FittedGuide) -> tuple[str, list[str], Table]:
    """Return a heading, lines on how the fit went and what to do next, and a table of the sites."""
    model = posterior.model
    name = getattr(model, "__name__", type(model).__name__)
    several = f"{posterior.replicates} fits" if posterior.replicates > 1 else "a fit"
    title = f"{posterior.family} posterior of {name}: {several}, seed {posterior.seed}"
    lines = [_progress(posterior)] if posterior.losses.numel() else []
    bad = [reason for reason in posterior.stop_reasons if "not finite" in reason or reason.startswith("interrupted")]
    lines += bad[:2]
    lines += posterior.info[0].get("auto", [])
    sites = list(posterior.sites.values())
    rows = [(site.name, site.kind, str(site.shape), ", ".join(site.dims)) for site in sites[:_MOST_SITES]]
    if len(sites) > _MOST_SITES:
        rows.append((f"and {len(sites) - _MOST_SITES} more", "", "", ""))
    return title, [*lines, _NEXT], Table(("site", "kind", "shape", "dims"), rows, left=4)


def _progress(posterior: FittedGuide) -> str:
    seconds = sum(posterior.seconds.values())
    ends = posterior.final_losses.tolist()
    loss = f"{ends[0]:.4g}" if len(ends) == 1 else f"{min(ends):.4g} to {max(ends):.4g}"
    return f"{posterior.steps} steps of {posterior.objective} in {seconds:.1f} s; loss at the end {loss} nats"


def plot_fit(posterior: FittedGuide, num_samples: int, seed: int | None) -> Figure:
    """Draw the loss at every step, and each latent's median with its 50 % and 90 % intervals."""
    drawn = posterior.sample(num_samples, seed)
    lead = min(posterior.replicates - 1, 1)
    labels, columns = _elements({n: v.flatten(0, 1) if lead else v for n, v in drawn.items()})
    trained = posterior.losses.numel() > 0
    figure = new_figure(9 if trained else 5, max(3.0, 0.24 * len(labels) + 1.0))
    axes = figure.subplots(1, 1 + trained, squeeze=False)[0]
    if trained:
        _losses(axes[0], posterior)
    at = list(range(len(labels)))
    for (low, high), width in (((0.05, 0.95), 1.2), ((0.25, 0.75), 3.5)):
        bounds = columns.quantile(torch.tensor([low, high], dtype=columns.dtype), dim=0)
        axes[-1].hlines(at, *bounds.tolist(), linewidth=width, color="tab:blue")
    axes[-1].plot(columns.median(0).values.tolist(), at, "o", markersize=4, color="white", markeredgecolor="tab:blue")
    axes[-1].set_yticks(at, labels, fontsize="small")
    axes[-1].invert_yaxis()
    axes[-1].set(title="median, 50 % and 90 % of draws")
    return figure


def _elements(drawn: dict[str, Tensor]) -> tuple[list[str], Tensor]:
    """Return names and draws, ``(S, elements)``, of elements of the latents: small sites whole, parts of large."""
    taken, left = {}, _MOST_ELEMENTS
    for number, (name, value) in enumerate(sorted(drawn.items(), key=lambda item: item[1][0].numel())):
        taken[name] = min(value[0].numel(), left // max(1, len(drawn) - number))
        left -= taken[name]
    labels, columns = [], []
    for name, value in drawn.items():
        flat = value.detach().cpu().double().reshape(len(value), -1)
        places = itertools.product(*(range(size) for size in value.shape[1:]))
        for place, column in itertools.islice(zip(places, flat.unbind(1)), taken[name]):
            labels.append(f"{name}[{', '.join(map(str, place))}]" if place else name)
            columns.append(column)
    return labels, torch.stack(columns, 1)


def _losses(axes: Axes, posterior: FittedGuide) -> None:
    """Draw the loss of each replicate, and the range of its last half as limits."""
    steps = posterior.losses.shape[1]
    stride = max(1, math.ceil(steps / _MOST_STEPS))
    at = torch.arange(0, steps, stride)
    for row in posterior.losses.detach().cpu():
        axes.plot((at + 1).tolist(), row[at].tolist(), linewidth=0.7)
    finite = posterior.losses[posterior.losses.isfinite()].double().cpu()
    if len(finite):
        low, high = float(finite.min()), float(finite[: 2**20].quantile(0.97))
        axes.set_ylim(low - 0.05 * (high - low) - 1e-9, high + 0.05 * (high - low) + 1e-9)
    axes.set(xlabel="step", ylabel="loss (nats)", title=f"{posterior.family}: {posterior.objective}")


def plot_predictions(posterior: FittedGuide, data: tuple[Any, ...], site: str | None, options: dict[str, Any]) -> Figure:
    """Draw bands of predictions against the one column of the first argument, or else in order of their medians."""
    predicted = posterior.predict(*data, **options)
    observed = [name for name, each in posterior.sites.items() if each.kind == "observed"]
    name = site if site is not None else next((n for n in observed if n in predicted), None)
    if name is None or name not in predicted:
        raise OptionError(f"site={site!r} is not predicted; there are {', '.join(map(repr, predicted)) or 'none'}")
    lead = min(posterior.replicates - 1, 1)
    draws = (predicted[name].flatten(0, 1) if lead else predicted[name]).detach().cpu().double()
    if draws.dim() != 2:
        raise OptionError(
            f"site {name!r} has shape {tuple(draws.shape[1:])} in a draw; a band needs one number for each row"
        )
    at, label = _across(posterior, data, draws)
    order = at.argsort()
    figure = new_figure(6.4, 3.8)
    axes = figure.subplots()
    for low, high in ((0.05, 0.95), (0.25, 0.75)):
        bounds = draws.quantile(torch.tensor([low, high], dtype=draws.dtype), dim=0)[:, order]
        said = f"{100 * (high - low):.0f} % of predictions"
        axes.fill_between(at[order].tolist(), *bounds.tolist(), alpha=0.25, color="tab:blue", linewidth=0, label=said)
    axes.plot(at[order].tolist(), draws.median(0).values[order].tolist(), color="tab:blue", linewidth=1.2, label="median")
    axes.set(xlabel=label, ylabel=name, title=f"{posterior.family}: predictions")
    axes.legend(fontsize="small")
    return figure


def _across(posterior: FittedGuide, data: tuple[Any, ...], draws: Tensor) -> tuple[Tensor, str]:
    """Return where the predictions stand: at the first argument if that is one column, or else by their order."""
    first = torch.as_tensor(data[0] if data else posterior.data[0]).detach().cpu().double()
    if first.numel() == draws.shape[1]:
        return first.reshape(-1), "input"
    return draws.median(0).values.argsort().argsort().double(), "data point, by its median"
