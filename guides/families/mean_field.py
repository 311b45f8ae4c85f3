"""Independent normals over every latent: Bayes by Backprop for networks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from pyro.infer.autoguide import AutoDiagonalNormal
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import Normal

from guides.errors import check_known
from guides.families.base import FlatFamily, check_scale, init_function
from guides.program.linear import LinearRules, flipout, local_reparameterisation, once
from guides.program.sites import nodes
from guides.program.supports import is_unconstrained
from guides.registries import families

__all__ = ["MeanField"]

_ESTIMATORS = {"weights": None, "local": local_reparameterisation, "flipout": flipout}


@families.register("mean_field")
class MeanField(FlatFamily, AutoDiagonalNormal):
    r"""Fully factorised normal over the unconstrained latents.

    .. math::
        q(z) = \prod_i \mathcal{N}(z_i \mid \mu_i, \sigma_i^2), \qquad \sigma_i = \mathrm{softplus}(\rho_i)

    For a neural network this is Bayes by Backprop. Cheap and robust; it underestimates the variance of correlated latents
    and covers one mode. Divergences to normal priors are taken in closed form (see :class:`guides.ELBO`).

    **When:** the first guide to try; networks with many weights. **When not:** few strongly correlated latents (use
    ``full_rank``), several modes.

    :param model: a Pyro model with continuous latents.
    :param init_loc_fn: where the means start; see :class:`guides.MAP`.
    :param init_scale: initial standard deviation of every latent in the unconstrained space, by default Pyro's. Smaller
        values, such as the 0.01 of the zoo's networks, let a network fit before its weights' noise sets in.
    :param estimator: how the noise of weights that multiply data enters. ``"weights"`` draws the weights once per step;
        ``"local"`` draws each data point's pre-activations instead (lower variance); ``"flipout"`` keeps one draw and flips
        its signs per data point. The latter two apply where the model multiplies, once, by the very tensor that
        ``pyro.sample`` returned (``x @ w``, ``torch.nn.functional.linear``) and that tensor is unconstrained; other sites
        fall back to ``"weights"``. They act in ``guides.fit`` and in stock SVI with :class:`guides.ELBO`.
    :param create_plates: see :class:`guides.MAP`.
    :raises OptionError: for an unknown estimator or a scale that is not positive.
    :raises UnsupportedModelError: if the model multiplies by one weight twice, products that these estimators would make
        independent.

    References: Blundell et al. (2015), *Weight uncertainty in neural networks*; Kucukelbir et al. (2017), *Automatic
    differentiation variational inference*; Kingma, Salimans & Welling (2015), *Variational dropout and the local
    reparameterization trick*; Wen et al. (2018), *Flipout*.

    Example::

        >>> import pyro, pyro.distributions as dist, torch, guides
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> posterior = guides.fit(model, "mean_field", torch.ones(3), steps=1000, lr=0.02)
        >>> draws = posterior.sample(4000)["z"]
        >>> abs(draws.mean() - 0.75) < 0.1 and abs(draws.std() - 0.5) < 0.1
        tensor(True)
    """

    def __init__(
        self,
        model: Callable[..., Any],
        init_loc_fn: str | Callable[..., Any] = "median",
        init_scale: float = 0.1,
        *,
        estimator: str = "weights",
        create_plates: Callable[..., Any] | None = None,
    ) -> None:
        check_known("estimator", estimator, _ESTIMATORS)
        scale = check_scale(init_scale)
        super().__init__(model, create_plates=create_plates, init_loc_fn=init_function(init_loc_fn), init_scale=scale)
        self.estimator = estimator

    def unconstrained_factors(self, guide_trace: Trace) -> dict[str, tuple[Normal, Tensor]]:
        """Return, per site, its normal factor over the unconstrained value and the draw in ``guide_trace``."""
        q = nodes(guide_trace)[self.latent_site]["fn"].base_dist
        loc, scale, draw = map(self.split, (q.loc, q.scale, self.flat_draw(guide_trace)))
        return {name: (Normal(loc[name], scale[name], validate_args=False), draw[name]) for name in draw}

    def around_model(self, guide_trace: Trace) -> AbstractContextManager[Any]:
        """Return the context in which the model multiplies by the drawn weights; see ``estimator``."""
        rule = _ESTIMATORS[self.estimator]
        if rule is None:
            return nullcontext()
        sites = nodes(guide_trace)
        rules = {}
        for name, (q, draw) in self.unconstrained_factors(guide_trace).items():
            value = sites[name]["value"]
            if value.dim() >= 2 and is_unconstrained(self.latent_site_prototype(name)):
                rules[id(value)] = once(name, rule(q, draw))
        return LinearRules(rules)
