"""How surprising an observation is: minus its log posterior predictive density."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from guides.errors import DataError, OptionError, UnsupportedModelError
from guides.evidence.marginal import log_marginal
from guides.fitted.draws import take_draws
from guides.fitted.fitted import FittedGuide
from guides.information.measure import Measure, Unit, per_nat

__all__ = ["surprise"]


def surprise(
    posterior: FittedGuide,
    *data: Any,
    num_samples: int = 1000,
    seed: int | None = None,
    unit: Unit = "nats",
    model_kwargs: dict[str, Any] | None = None,
) -> Measure:
    r"""Return the surprise of every data point under the posterior predictive, all of its observations together.

    .. math::
        -\log p(y_n) \approx -\log \hat p_n, \quad \hat p_n = \frac1S \sum_s p(y_n \mid z_s), \quad z_s \sim q, \qquad
        \mathrm{se}_n = \frac{\mathrm{sd}_s\, p(y_n \mid z_s)}{\sqrt S\, \hat p_n}

    The standard error is that of the logarithm (delta method). In expectation the estimate is a little too large, by half
    the squared error. Latents with one value per data point come from the model's prior, so that a point's surprise does not
    depend on its having been in the training data itself. Where the guide has an encoder for them, importance sampling from
    it takes their place: the surprise is then minus :func:`guides.log_marginal`, whose k-hat says whether S is enough.

    :param posterior: any fit.
    :param data: arguments of the model, observations included; the training data by default.
    :param num_samples: S, draws.
    :param seed: the same seed gives the same draws; by default the seed of the fit.
    :param unit: ``"nats"`` or ``"bits"``.
    :param model_kwargs: keyword arguments of the model; those of the fit by default.
    :returns: values ``(N,)``, or ``(R, N)`` with R replicates; the density is per unit of the observations.
    :raises DataError: if nothing is observed, or the observed sites do not have one row per data point.
    :raises OptionError: for fewer than two draws, or an encoder with keyword arguments or replicates.
    :raises UnsupportedModelError: if the guide has an encoder and other latents that all rows share.

    Example::

        >>> import pyro, pyro.distributions as dist, torch, guides
        >>> from guides.information import surprise
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> posterior = guides.fit(model, "full_rank", torch.randn(50), steps=500, lr=0.05)
        >>> surprise(posterior, torch.tensor([0.0, 5.0])).value > 5
        tensor([False,  True])
    """
    per_nat(unit)
    if num_samples < 2:
        raise OptionError(f"num_samples is {num_samples}; an estimate with a standard error needs at least 2 draws")
    if posterior.program.amortized:
        return _by_importance(posterior, data, num_samples, seed, unit, model_kwargs)
    rows = posterior._arguments(data, model_kwargs)
    base = posterior.seed if seed is None else seed
    draws = take_draws(
        posterior.program,
        posterior.flat,
        num_samples,
        rows,
        base,
        same_rows=False,
        predictive=False,
        score=True,
        keep=frozenset({"log_likelihood"}),
    )
    if not draws.log_likelihood:
        raise DataError("no site of the model is observed on these data; pass the observations too")
    log_density = sum(_of_rows(name, value, rows.size) for name, value in draws.log_likelihood.items())
    log_density = torch.as_tensor(log_density).movedim(1, 0)
    log_mean = log_density.logsumexp(0) - math.log(num_samples)
    weights = (log_density - log_mean).exp()
    measure = Measure(-log_mean, weights.std(0) / math.sqrt(num_samples), num_samples, False).to(unit)
    if posterior.replicates > 1:
        return measure
    return Measure(measure.value[0], measure.standard_error[0], num_samples, False, unit)


def _of_rows(name: str, log_likelihood: Tensor, size: int) -> Tensor:
    """Return the log-likelihood of a site summed within each row, ``(R, S, N)``, float64."""
    if log_likelihood.dim() < 3 or log_likelihood.shape[2] != size:
        raise DataError(
            f"observed site {name!r} has log densities of shape {tuple(log_likelihood.shape[2:])} for {size} data points; "
            "surprise needs one row for each: put the site into a pyro.plate"
        )
    return log_likelihood.double().flatten(3).sum(-1) if log_likelihood.dim() > 3 else log_likelihood.double()


def _by_importance(
    posterior: FittedGuide,
    data: tuple[Any, ...],
    num_samples: int,
    seed: int | None,
    unit: Unit,
    model_kwargs: dict[str, Any] | None,
) -> Measure:
    if model_kwargs is not None:
        raise OptionError("a guide with an encoder takes the data by position here; leave model_kwargs out")
    found = log_marginal(posterior, *data, num_samples=num_samples, seed=posterior.seed if seed is None else seed)
    if len(found.values) != found.num_points:
        raise UnsupportedModelError(
            "the guide has an encoder and latents that all rows share; a row has no importance weight of its own then. Use "
            "posterior.log_likelihood with guides.predictive.log_predictive_density"
        )
    return Measure(-found.values, found.standard_error, num_samples, False).to(unit)
