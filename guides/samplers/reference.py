"""``guides.reference``: draws of the posterior that have been checked, to hold guides against."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from typing import Any, cast

import torch

from guides.compile.cache import find, keep
from guides.diagnostics.chains import ChainFigures
from guides.errors import NoReferenceError, check_whole
from guides.program.fingerprint import versions
from guides.program.progress import shows_progress
from guides.samplers.base import Chains
from guides.samplers.nuts import NUTS
from guides.samplers.sampled import Sampled
from guides.samplers.sampling import concluded, prepared

__all__ = ["reference"]

_R_HAT, _E_BFMI = 1.01, 0.3
_FIRST_DRAWS, _FACTOR = 1000, 4
_ACCEPT = (0.8, 0.95, 0.99)
_SUFFIX = ".draws"


def reference(
    model: Callable[..., Any],
    *data: Any,
    ess: int = 1000,
    chains: int = 4,
    max_draws: int = 16_000,
    seed: int = 0,
    cache: bool = True,
    progress: bool | None = None,
    model_kwargs: dict[str, Any] | None = None,
) -> Sampled:
    r"""Return draws of the posterior that can stand for it: long NUTS, checked, and kept on disk.

    Chains are drawn again, four times as long or with smaller steps, until every latent and deterministic has
    :math:`\hat R \le 1.01` and ``ess`` effective draws in bulk and tails, no draw diverged, and E-BFMI is above 0.3. The
    Monte Carlo error of a mean is then at most :math:`1 / \sqrt{\text{ess}}` of its standard deviation: 3 % by default.

    It is kept in the private folder of the user's cache under the hash of the log density's operations and constants (the
    data are among them), the options, and the versions; without pickle.

    :param ess: effective draws wanted of every element, in bulk and tails.
    :param chains: independent chains, at least 2.
    :param max_draws: most draws per chain to try.
    :param seed: of starts and draws.
    :param cache: look for it on disk, and keep it there.
    :param progress: show a progress bar; by default if standard error is a terminal.
    :param model_kwargs: keyword arguments of the model.
    :raises NoReferenceError: if that is not reached, with the figures: no reference is better than a wrong one.
    :raises UnsupportedModelError, DataError, DiscreteLatentError: as for :func:`guides.fit`.

    **Blind spot.** Chains that all miss the same mode agree.

    Example::

        >>> import pyro, pyro.distributions as dist, torch, guides
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> truth = guides.reference(model, torch.ones(3), ess=400)
        >>> abs(float(truth.sample()["z"].mean()) - 0.75) < 0.1
        True
    """
    check_whole("ess", ess, least=1)
    check_whole("chains", chains, least=2)
    check_whole("max_draws", max_draws, least=100)
    check_whole("seed", seed)
    ready = prepared(model, data, "reference", seed, "auto", model_kwargs)
    key = None
    operations = ready.density.operations() if cache else None
    if operations is not None:
        parts = (operations, ess, chains, max_draws, seed, versions())
        key = hashlib.sha256(repr(parts).encode()).hexdigest()[:40]
        kept = _read(key)
        if kept is not None:
            sampler, found = kept
            return concluded(ready, sampler, found)
    draws, accept, tried = min(_FIRST_DRAWS, max_draws), 0, []
    while True:
        sampler = NUTS(draws=draws, tune=max(1000, draws // 2), chains=chains, target_accept=_ACCEPT[accept])
        posterior = concluded(ready, sampler, sampler.run(ready.density, ready.start, seed, shows_progress(progress)))
        figures = cast(ChainFigures, posterior.diagnose(only=["chains"]).findings["chains"])
        wrong = _wrong(figures, ess)
        if not wrong:
            break
        tried.append(f"{draws} draws, target_accept={sampler.target_accept}: {', '.join(wrong)}")
        diverged = figures.divergences > 0 or figures.e_bfmi < _E_BFMI
        if diverged and accept + 1 < len(_ACCEPT):
            accept += 1
        elif not diverged and draws < max_draws:
            draws = min(max_draws, _FACTOR * draws)
        else:
            raise NoReferenceError(
                f"long NUTS gives no reference of this posterior ({'; '.join(tried)}). Try another parametrisation "
                "(non-centred: pyro.infer.reparam), standardised data, tighter priors, or a larger max_draws"
            )
    if key is not None:
        _write(key, sampler, posterior)
    return posterior


def _wrong(figures: ChainFigures, ess: int) -> list[str]:
    """Return in words what keeps chains from being a reference."""
    found = []
    if not figures.r_hat <= _R_HAT:
        found.append(f"R-hat {figures.r_hat:.3f}")
    least = min(figures.ess_bulk, figures.ess_tail)
    if not least >= ess:
        found.append(f"effective sample size {least:.0f} of {ess}")
    if figures.divergences > 0:
        found.append(f"{figures.divergences:.0f} divergences")
    if figures.e_bfmi < _E_BFMI:
        found.append(f"E-BFMI {figures.e_bfmi:.2f}")
    if figures.level == "unreliable" and not found:
        found.append(figures.text)
    return found


def _write(key: str, sampler: NUTS, posterior: Sampled) -> None:
    held = io.BytesIO()
    content = {
        "draws": sampler.draws,
        "tune": sampler.tune,
        "chains": sampler.chains,
        "target_accept": sampler.target_accept,
        "points": posterior.points,
        "statistics": dict(posterior.statistics),
        "gradients": posterior.gradients,
    }
    torch.save(content, held)
    keep(key, _SUFFIX, held.getvalue())


def _read(key: str) -> tuple[NUTS, Chains] | None:
    path = find(key, _SUFFIX)
    if path is None:
        return None
    held = torch.load(path, weights_only=True)
    sampler = NUTS(**{name: held[name] for name in ("draws", "tune", "chains", "target_accept")})
    statistics = {name: value.numpy() for name, value in held["statistics"].items()}
    return sampler, Chains(held["points"].numpy(), statistics, held["gradients"])
