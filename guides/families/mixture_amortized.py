"""Encoders compute a mixture of normals for the latents of each data point."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.util import sum_rightmost
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from guides.distributions.mixtures import MixtureDensity
from guides.errors import OptionError, check_known
from guides.families.amortized import Amortized
from guides.families.encoders.component_heads import (
    WEIGHTS,
    ComponentChoice,
    ComponentHead,
    RowMixture,
    check_spread,
    checked_features,
    log_weights_of,
    of_component,
    spread_out,
)
from guides.program.guide import Components
from guides.program.local_sites import LocalSite, check_rows_alone
from guides.program.sites import nodes
from guides.registries import families

__all__ = ["MixtureAmortized"]


@families.register("mixture_amortized")
class MixtureAmortized(Amortized):
    r"""The posterior of each data point's latents as a mixture of normals that an encoder computes from the data point.

    .. math:: q(z_n \mid x_n) = \sum_{k=1}^K \pi_k(x_n)\, \mathcal{N}(z_n \mid \mu_k(x_n), \Sigma_k(x_n))

    over the unconstrained values of all latents of a row together. Every step draws each component once for every row
    (stratified sampling), so that weights, means and scales all get reparameterised gradients; the density, and with it
    ``guides.log_marginal``, is that of the whole mixture. ``"elbo"`` (the default), ``"selbo"``, ``"entropy_bound"`` and
    ``"siwae"`` are the objectives for it. The encoder runs once for all components, the model once per component.

    Who computes the components:

    - one ``encoder``: K heads on its features;
    - a sequence of K encoders: one each;
    - one ``encoder`` with ``one_hot=True``: it is called once, with every row K times and, as its last argument, the
      number of the component one-hot, ``(K * rows, K)``; one head serves all components.

    Weights: ``"softmax"`` of K numbers; ``"logistic"``, sticks :math:`v_k = \operatorname{sigmoid}(\cdot)` broken one after
    the other, :math:`\pi_k = v_k \prod_{j<k} (1 - v_j)`; ``"kumaraswamy"``, sticks that are random,
    :math:`v_k \sim \mathrm{Kumaraswamy}(a_k, b_k)`, whose weights average to
    :math:`\mathbb{E}\pi_k = \mathbb{E} v_k \prod_{j<k} (1 - \mathbb{E} v_j)`, those of the mixture that z has with the
    sticks integrated out; or ``"uniform"``. The last stick takes the remainder, and all start at equal weights. A weight
    that underflows to zero takes its component out of the objective for that row.

    A component that is ahead by chance takes the weight of others before they have arrived anywhere;
    ``guides.SELBO(warmup=...)`` fits each by itself at first, and finds modes that are lost without it.

    **When:** posteriors of single data points have several modes or a shape that no normal has. **When not:** one mode,
    which ``amortized`` describes; latents shared by the rows (use ``mixture``).

    :param model: a Pyro model whose latents all stand in the plate that follows the rows of the data.
    :param encoder: a module, or a sequence of K of them, that returns features ``(rows, F)``. Trained in place.
    :param components: their number K; by default that of the encoders, or 5 for a single one.
    :param one_hot: tell a single encoder which component it is to compute.
    :param inputs: which of the model's arguments the encoders are called with: positions, or names of keyword arguments. If
        one of them is missing or ``None``, latents are left to the model's prior.
    :param weights: ``"softmax"``, ``"logistic"``, ``"kumaraswamy"`` or ``"uniform"``.
    :param covariance: of each component: ``"diagonal"``, ``"low_rank"`` or ``"full"``.
    :param rank: columns of a low-rank factor; by default about the root of the number of latents of a row.
    :param init_scale: initial standard deviation of each component in the unconstrained space.
    :param init_spread: standard deviation of the numbers by which the means of components differ at the start. They
        are drawn so as to be apart, ten for each component.
    :raises OptionError: for K below 1 or other than the number of encoders, or options that do not go together.
    :raises GuideMismatchError: if an encoder does not return features.
    :raises UnsupportedModelError: if no latent has one value per row, some latent is shared by the rows, or stands in other
        plates besides.

    References: Morningstar et al. (2021), *Automatic differentiation variational inference with mixtures*; Nalisnick,
    Hertel & Smyth (2016), *Approximate inference for deep latent Gaussian mixtures*; Nalisnick & Smyth (2017),
    *Stick-breaking variational autoencoders*.

    Example::

        >>> import pyro, pyro.distributions as dist, torch, guides
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        ...         pyro.sample("x", dist.Normal(z**2, 0.3), obs=x)
        >>> x = torch.randn(200) ** 2
        >>> encoder = torch.nn.Sequential(torch.nn.Unflatten(0, (-1, 1)), torch.nn.Linear(1, 8), torch.nn.Tanh())
        >>> guide = ("mixture_amortized", {"encoder": encoder, "components": 3, "init_spread": 1.0})
        >>> objective = guides.SELBO(warmup=300)
        >>> posterior = guides.fit(model, guide, x, objective=objective, batch_size=50, steps=600, lr=0.02)
        >>> draws = posterior.draws(1000, torch.tensor([1.0])).latents["z"]  # of a new data point: near 1 and -1
        >>> 0.2 < float((draws > 0).float().mean()) < 0.8
        True
    """

    def __init__(
        self,
        model: Callable[..., Any],
        encoder: nn.Module | Sequence[nn.Module],
        components: int | None = None,
        one_hot: bool = False,
        inputs: Sequence[int | str] = (0,),
        weights: str = "softmax",
        covariance: str = "diagonal",
        rank: int | None = None,
        init_scale: float = 0.1,
        init_spread: float = 0.5,
    ) -> None:
        super().__init__(model, encoder, inputs, covariance=covariance, rank=rank, init_scale=init_scale)
        several = len(self.encoders) > 1
        count = (len(self.encoders) if several else 5) if components is None else components
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise OptionError(f"components must be a whole number of 1 or more, not {components!r}")
        if several and count != len(self.encoders):
            raise OptionError(f"components={count} and {len(self.encoders)} encoders; give one encoder or one per component")
        if several and one_hot:
            raise OptionError("one_hot=True is for one encoder that serves all components; give one encoder")
        check_known("weights", weights, WEIGHTS)
        check_spread(init_spread)
        self.num_strata = count
        self.one_hot = one_hot
        self.weights = weights
        self._init_spread = init_spread
        self._held: RowMixture | None = None

    @property
    def latent_site(self) -> str:
        """The auxiliary site that holds the unconstrained latents of every row, ``(rows, D)``."""
        return f"_{self._pyro_name}_latent"

    @property
    def _choice_site(self) -> str:
        return f"_{self._pyro_name}_component"

    @property
    def row_plate(self) -> str:
        """Name of the plate that follows the rows."""
        return next(iter(self._sites.values())).row_plate

    def latent_sites(self) -> list[tuple[str, Any]]:
        """Return name and prototype of every latent site."""
        return [(name, nodes(self.prototype_trace)[name]) for name in self._sites]

    def _arrange_layers(self) -> list[list[str]]:
        """Check that all latents are of rows, and take them together."""
        check_rows_alone(self.prototype_trace, self._sites, "mixture_amortized")
        return [list(self._sites)]

    def _make_heads(self, inputs: list[Any]) -> None:
        numbers, self._log_weights = log_weights_of(self.weights)
        size = sum(site.size for site in self._sites.values())
        starts = spread_out(self.num_strata, size, self._init_spread)
        found = self._features(inputs)
        if self.one_hot:  # one head for all components, which start apart by a number of their own
            self.starts = nn.Parameter(starts.to(found[0]))
            parts = [torch.zeros_like(starts[:1])]
        else:
            parts = [starts] if len(found) == 1 else list(starts.unsqueeze(1))
        self.heads = nn.ModuleList(
            ComponentHead(f.shape[1], numbers, self.head_options, part, f) for f, part in zip(found, parts)
        )

    def _features(self, inputs: list[Any]) -> list[Tensor]:
        """Return what each encoder says."""
        rows, count = _rows_of(inputs), self.num_strata
        if not self.one_hot:
            return [
                checked_features(e(*inputs), rows, number + 1, "mixture_amortized") for number, e in enumerate(self.encoders)
            ]
        like = next(i for i in inputs if isinstance(i, Tensor) and i.dim() > 0)
        which = torch.eye(count, dtype=torch.get_default_dtype(), device=like.device).repeat_interleave(rows, 0)
        tall = [i.repeat(count, *[1] * (i.dim() - 1)) if _has_rows(i, rows) else i for i in inputs]
        return [checked_features(self.encoders[0](*tall, which), count * rows, 1, "mixture_amortized")]

    def _mixture(self, inputs: list[Any]) -> RowMixture:
        """Return the mixtures that the encoders compute."""
        found = [head(features) for head, features in zip(self.heads, self._features(inputs))]
        if self.one_hot:
            parts = [_by_row(part, self.num_strata) for part in found[0]]
        else:
            parts = [None if some[0] is None else torch.cat(some, 1) for some in zip(*found)]
        numbers, loc, scale, factor = parts
        assert numbers is not None and loc is not None and scale is not None
        loc = loc + self.starts if self.one_hot else loc
        covariance = "diagonal" if factor is None else self.head_options.covariance
        return RowMixture(self._log_weights(numbers), loc, scale, factor, covariance)

    def mixture(self, *args: Any, **kwargs: Any) -> RowMixture:
        """Return weights, means and covariances of the components of every row, in the unconstrained space.

        :param args: arguments of the model.
        :raises OptionError: if the encoder's inputs are not among them.
        """
        return self._mixture(self._given(args, kwargs))

    def _given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        inputs = self._encoder_inputs(args, kwargs)
        if inputs is None:
            raise OptionError(f"the encoder's inputs (arguments {', '.join(map(repr, self._inputs))}) are needed; give all")
        return inputs

    @contextmanager
    def holding(self, mixture: RowMixture) -> Iterator[None]:
        """Draw from a mixture that was computed before, instead of asking the encoders, inside the block."""
        before, self._held = self._held, mixture
        try:
            yield
        finally:
            self._held = before

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draw the latents of every row, if the encoder's inputs are given."""
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        self._create_plates(*args, **kwargs)
        inputs = self._encoder_inputs(args, kwargs)
        if inputs is None:
            return {}
        mixture = self._mixture(inputs) if self._held is None else self._held
        with self.plates[self.row_plate]:
            infer: Any = {"is_auxiliary": True, "stratum": True}
            index = pyro.sample(self._choice_site, ComponentChoice(logits=mixture.log_weights), infer=infer)
            density = MixtureDensity(mixture.log_weights, mixture.components(), mixture.chosen(index))
            flat = pyro.sample(self.latent_site, density, infer={"is_auxiliary": True})
            return {name: pyro.sample(name, self._point(site, flat)) for name, site in self._sites.items()}

    def _slices(self) -> dict[str, slice]:
        found, position = {}, 0
        for name, site in self._sites.items():
            found[name] = slice(position, position + site.size)
            position += site.size
        return found

    def _point(self, site: LocalSite, flat: Tensor) -> Any:
        """Return a point mass at a site's value whose density is the Jacobian of the transform to its support."""
        unconstrained = site.arrange(flat[..., self._slices()[site.name]])
        if site.transform is None:
            return dist.Delta(unconstrained, event_dim=site.event_dim)
        value = site.transform(unconstrained)
        jacobian = site.transform.inv.log_abs_det_jacobian(value, unconstrained)
        jacobian = sum_rightmost(jacobian, jacobian.dim() - value.dim() + site.event_dim)
        return dist.Delta(value, log_density=jacobian, event_dim=site.event_dim)

    def density(self, guide_trace: Trace) -> MixtureDensity:
        """Return the mixtures that a trace of this guide drew from, with the components that it drew from."""
        found: MixtureDensity = nodes(guide_trace)[self.latent_site]["fn"]
        return found

    def flat_draw(self, guide_trace: Trace) -> Tensor:
        """Return the unconstrained latents of every row that a trace of this guide drew, ``(rows, D)``."""
        draw: Tensor = nodes(guide_trace)[self.latent_site]["value"]
        return draw

    def log_stratum_weight(self, guide_trace: Trace) -> Tensor:
        r"""Return :math:`\log (K \pi_{nk})` of every row n and the component k that a trace drew from, ``(rows,)``."""
        index = nodes(guide_trace)[self._choice_site]["value"]
        return of_component(self.density(guide_trace).log_weights, index) + math.log(self.num_strata)

    def mixture_components(self, guide_trace: Trace) -> Components:
        """Return the mixtures that a trace of this guide drew from, and the component that each row was drawn from."""
        factors = partial(self.component_factors, guide_trace)
        density, draw = self.density(guide_trace), self.flat_draw(guide_trace)
        return Components(density, draw, factors, tuple(self._sites), self.latent_site, self.row_plate)

    def component_factors(self, guide_trace: Trace) -> dict[str, tuple[Normal, Tensor]]:
        """Return, per site, the drawn component's normal factor of every row and its draw, if components have such."""
        chosen = self.density(guide_trace).chosen
        base = chosen.base_dist if isinstance(chosen, Independent) else None
        if not isinstance(base, Normal):
            return {}
        flat, found = self.flat_draw(guide_trace), {}
        for name, cut in self._slices().items():
            loc, scale, draw = (self._sites[name].arrange(part[..., cut]) for part in (base.loc, base.scale, flat))
            found[name] = (Normal(loc, scale, validate_args=False), draw)
        return found

    def site_values(self, latents: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the vectors of every row's latents as the value of the auxiliary site."""
        parts = []
        for name, site in self._sites.items():
            value = latents[name] if site.transform is None else site.transform.inv(latents[name])
            parts.append(site.flatten(value))
        return {self.latent_site: torch.cat(parts, -1)}


def _rows_of(inputs: list[Any]) -> int:
    return next(len(i) for i in inputs if isinstance(i, Tensor) and i.dim() > 0)


def _has_rows(value: Any, rows: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and len(value) == rows


def _by_row(part: Tensor | None, count: int) -> Tensor | None:
    """Return ``(K * rows, 1, ...)``, component by component, as ``(rows, K, ...)``."""
    return None if part is None else part.squeeze(1).unflatten(0, (count, -1)).movedim(0, 1)
