"""A mixture of approximate posteriors: several modes, each with its own shape and weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import InitMessenger, init_to_value
from pyro.nn.module import PyroParam
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor, nn
from torch.distributions import Normal, constraints

from guides.distributions.mixtures import MixtureDensity, chosen, weight_entropy
from guides.errors import GuideMismatchError, OptionError, UnsupportedModelError
from guides.families.base import Family, Finished, FitContext, FlatFamily, check_scale, init_function
from guides.program.guide import Components
from guides.program.marks import continuous_part
from guides.program.sites import nodes
from guides.registries import families

__all__ = ["DEAD", "Mixture"]

DEAD = 1e-4
"""A component with less weight than this takes no part in the posterior."""

_CANDIDATES = 10
_BISECTIONS = 60


@families.register("mixture")
class Mixture(FlatFamily):
    r"""Mixture of K members of another family over the unconstrained latents, with weights of its own.

    .. math:: q(z) = \sum_{k=1}^K \pi_k\, q_k(z), \qquad \pi = \mathrm{softmax}(\rho)

    Every step draws each component once (stratified sampling) and weighs it by :math:`\pi_k`; the density is that of the
    whole mixture, exact. All components are evaluated as one batch. They start apart, since equal components would stay
    alike: each at that of ten draws from the prior which is farthest from the starts before it.

    Learned weights follow the evidence: components that do not overlap end with
    :math:`\pi_k \propto e^{\mathrm{ELBO}_k}`. In a large network one of them takes nearly all; where each is as good an
    answer as the others, as the modes of a network are, ``weights="uniform"`` keeps them all.
    ``guides.SELBO(warmup=...)`` fits each component alone at first.

    A component whose weight falls below 1e-4 is *dead*: it is reported in ``posterior.info`` and by ``diagnose``, and
    :meth:`reseed` lets a fit go on with it in another place. A weight that underflows to zero takes its component out of the
    objective. Scales that collapse to zero or grow without bound, as for a posterior that has no finite mass, make the loss
    infinite or NaN: the fit then stops at its last finite parameters and says where.

    **When:** posteriors of several modes or of a shape that no normal has; networks. **When not:** one mode that
    ``full_rank`` or ``low_rank`` describes. k-hat cannot see a mode that no component reached: use more components than
    modes.

    :param model: a Pyro model with continuous latents.
    :param components: their number K.
    :param family: registry name of the components' family, any that has a density over the flat latents.
    :param options: options of that family, such as ``{"rank": 5}``, the same for all components.
    :param weights: ``"learned"`` or ``"uniform"``.
    :param init_loc_fn: where each component starts; by default ``"spread"``, draws from the prior (its median for bounded
        sites). Ten are drawn for each component, so that they start apart; see :class:`guides.MAP` for other names.
    :param init_scale: initial standard deviation of every latent in the unconstrained space; by default the family's.
    :param create_plates: see :class:`guides.MAP`.
    :raises OptionError: for K below 1, components of several families (they have to be one batch), a family that is a point
        mass or whose parameters cannot be batched, or other weights than these.
    :raises GuideMismatchError: if the components do not find the same latent sites, because the model changes between runs.

    References: Bishop et al. (1998), *Approximating posterior distributions in belief networks using mixtures*; Morningstar
    et al. (2021), *Automatic differentiation variational inference with mixtures*.

    Example::

        >>> import pyro, pyro.distributions as dist, torch, guides
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(z**2, 0.5), obs=x)
        >>> posterior = guides.fit(model, ("mixture", {"components": 4}), torch.ones(20), steps=500, lr=0.05)
        >>> share = float((posterior.sample(4000)["z"] > 0).float().mean())
        >>> 0.3 < share < 0.7
        True
    """

    def __init__(
        self,
        model: Callable[..., Any],
        components: int = 5,
        family: str = "mean_field",
        options: Mapping[str, Any] | None = None,
        weights: str = "learned",
        init_loc_fn: str | Callable[..., Any] = "spread",
        init_scale: float | None = None,
        create_plates: Callable[..., Any] | None = None,
    ) -> None:
        if not isinstance(components, int) or components < 1:
            raise OptionError(f"components must be a whole number of 1 or more, not {components!r}")
        if not isinstance(family, str):
            raise OptionError(f"family must be one registry name, so that all components are one batch, not {family!r}")
        if weights not in ("learned", "uniform"):
            raise OptionError(f"weights={weights!r} is not known; use 'learned' or 'uniform'")
        member = families[family]
        if not issubclass(member, FlatFamily) or member.is_point_mass or member.finish is not Family.finish:
            raise OptionError(f"family={family!r} cannot be a component: it has no density that a step could use")
        of_members = dict(options or {})
        if init_scale is not None:
            if "init_scale" in of_members:
                raise OptionError("init_scale is given twice, also in options; give it once")
            of_members["init_scale"] = check_scale(init_scale)
        super().__init__(model, create_plates=create_plates, init_loc_fn=init_function(init_loc_fn))
        self.num_strata = components
        self.weights = weights
        self._family = member
        self._options = of_members

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        members = []
        for start in self._starts(*args, **kwargs):
            # The innermost handler decides first, so that the family's own choice of a start never comes to pass.
            member = self._family(
                InitMessenger(init_to_value(values=start))(continuous_part(self.plain_model)), **self._options
            )
            member._setup_prototype(*args, **kwargs)
            members.append(member)
        # Parameters are ordered by their first use: weights first, here as in a draw.
        if self.weights == "learned":
            self.logits = nn.Parameter(self._init_loc().new_zeros(self.num_strata))
        first = members[0]
        supports = {n: constraints.real for n, _ in first.named_parameters() if not n.endswith("_unconstrained")}
        supports |= {n: constraint for n, (constraint, _) in first._pyro_params.items()}
        for name, support in supports.items():
            value = torch.stack([getattr(m, name).detach() for m in members])
            setattr(self, name, nn.Parameter(value) if support is constraints.real else PyroParam(value, support))
            delattr(first, name)
        self._names = tuple(supports)
        self._member = (first,)  # in a tuple: its parameters are ours
        with torch.no_grad():
            found = self._components()
        if tuple(found.batch_shape) != (self.num_strata,):
            raise OptionError(
                f"family={first.__class__.__name__} cannot be a component: given parameters with a first dimension of "
                f"{self.num_strata}, its get_posterior has batch shape {tuple(found.batch_shape)}"
            )

    def _starts(self, *args: Any, **kwargs: Any) -> list[dict[str, Tensor]]:
        """Return K starts apart from each other: each is that of some candidates which is farthest from those before it."""
        drawn = [self._candidate(*args, **kwargs) for _ in range(1 + _CANDIDATES * (self.num_strata - 1))]
        flat = torch.stack([self.flatten(values) for values in drawn])
        if len(flat) > 1:
            flat = flat / flat.std(0).clamp(min=torch.finfo(flat.dtype).tiny)
        chosen = [0]
        for first in range(1, len(drawn), _CANDIDATES):
            distance = torch.cdist(flat[first : first + _CANDIDATES], flat[chosen]).amin(-1)
            chosen.append(first + int(distance.argmax()))
        return [drawn[c] for c in chosen]

    def _candidate(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        trace = prune_subsample_sites(poutine.block(poutine.trace(self.model).get_trace)(*args, **kwargs))
        found = {n: nodes(trace)[n]["value"].detach() for n, _ in trace.iter_stochastic_nodes()}
        shapes = {n: tuple(v.shape) for n, v in found.items()}
        wanted = {n: tuple(s["value"].shape) for n, s in self.latent_sites()}
        if shapes != wanted:
            raise GuideMismatchError(
                f"components found different latent sites: {_said(shapes)}, before {_said(wanted)}; the model must have the "
                "same sites and shapes at every run"
            )
        return found

    @contextmanager
    def _with(self, values: Mapping[str, Tensor]) -> Iterator[Any]:
        """Lend the family its parameters, all components' or one's."""
        member = self._member[0]
        vars(member).update(values)
        try:
            yield member
        finally:
            for name in values:
                del vars(member)[name]

    def _components(self, index: Tensor | None = None) -> Any:
        """Return the components as one distribution, or those that ``index`` names, in its batch shape."""
        values = {n: getattr(self, n) for n in self._names}
        if index is not None:
            values = {n: chosen(v, index) for n, v in values.items()}
        with self._with(values) as member:
            return member.get_posterior()

    def flat_quantiles(self, quantiles: Tensor) -> Tensor:
        r"""Return quantiles of every element of the flat vector, ``(Q, D)``: where its distribution function is p.

        .. math:: \sum_k \pi_k\, \Phi\big((z_i - \mu_{ki}) / \sigma_{ki}\big) = p
        """
        with self._with({n: getattr(self, n) for n in self._names}) as member:
            loc, scale = (part.double() for part in member._loc_scale())
        normal = Normal(loc, scale, validate_args=False)
        log_weights = self.log_weights()
        weights, p = log_weights.double().exp(), quantiles.to(loc)[:, None]
        ends = normal.icdf(p.unsqueeze(-1))  # (Q, K, D): the mixture's quantile is among those of its components
        low, high = ends.amin(1), ends.amax(1)
        for _ in range(_BISECTIONS):
            middle = 0.5 * (low + high)
            above = (weights @ normal.cdf(middle.unsqueeze(-2))) > p
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return (0.5 * (low + high)).to(log_weights)

    def log_weights(self) -> Tensor:
        """Return the normalised log weights of the components, shape ``(K,)``."""
        if self.weights == "uniform":
            like: Tensor = getattr(self, self._names[0])
            return like.new_full((self.num_strata,), -math.log(self.num_strata))
        return torch.log_softmax(self.logits, dim=-1)

    def get_posterior(self, *args: Any, **kwargs: Any) -> Any:
        """Return the mixture as a distribution over the flat unconstrained latents."""
        return dist.MixtureSameFamily(dist.Categorical(logits=self.log_weights()), self._components())

    def sample_latent(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the flat latents of one component, chosen at random unless the caller fixes the stratum."""
        log_weights = self.log_weights()
        infer: Any = {"is_auxiliary": True, "stratum": True}
        index = pyro.sample(self.choice_site, _Choice(logits=log_weights), infer=infer)
        density = MixtureDensity(log_weights, self._components(), self._components(index), chosen(log_weights, index))
        return pyro.sample(self.latent_site, density, infer={"is_auxiliary": True})

    @property
    def choice_site(self) -> str:
        """The auxiliary site that chooses a component."""
        return f"_{self._pyro_name}_component"

    def density(self, guide_trace: Trace) -> MixtureDensity:
        """Return the mixture that a trace of this guide drew from, with the component that it drew from."""
        found: MixtureDensity = nodes(guide_trace)[self.latent_site]["fn"]
        return found

    def log_stratum_weight(self, guide_trace: Trace) -> Tensor:
        r"""Return :math:`\log (K \pi_k)` of the component k that a trace drew from: its weight in a mean over strata."""
        index = nodes(guide_trace)[self.choice_site]["value"]
        log_weights = self.density(guide_trace).log_weights
        return chosen(log_weights, index) + math.log(self.num_strata)

    def _of_component(self, guide_trace: Trace) -> Trace:
        """Return a trace as the chosen component alone would have made it."""
        member = self._member[0]
        trace = guide_trace.copy()
        site = nodes(guide_trace)[self.latent_site]
        trace.add_node(member.latent_site, **{**site, "name": member.latent_site, "fn": self.density(guide_trace).chosen})
        return trace

    def mixture_components(self, guide_trace: Trace) -> Components:
        """Return the mixture that a trace of this guide drew from, and the component that was drawn from."""
        sites = tuple(name for name, _ in self.latent_sites())
        density, draw = self.density(guide_trace), self.flat_draw(guide_trace)
        return Components(density, draw, partial(self.component_factors, guide_trace), sites, self.latent_site)

    def component_factors(self, guide_trace: Trace) -> dict[str, tuple[Normal, Tensor]]:
        """Return, per site, the chosen component's normal factor and its draw, if the family has independent factors."""
        member: FlatFamily = self._member[0]
        return member.unconstrained_factors(self._of_component(guide_trace))

    def around_model(self, guide_trace: Trace) -> AbstractContextManager[Any]:
        """Return the context in which the model multiplies by weights drawn from the chosen component."""
        member: FlatFamily = self._member[0]
        return member.around_model(self._of_component(guide_trace))

    def finish(self, context: FitContext) -> Finished:
        """Report the weights; the optimum is the posterior."""
        parameters = context.program.parameters.constrained(context.flat)
        logits = parameters.get(f"{self._pyro_name}.logits", context.flat.new_zeros(self.num_strata))
        log_weights = torch.log_softmax(logits.detach().double(), dim=-1)
        info = {
            "weights": [float(w) for w in log_weights.exp()],
            "effective_components": float(weight_entropy(log_weights).exp()),
            "dead_components": [k for k, w in enumerate(log_weights.exp()) if w < DEAD],
        }
        return Finished(self, parameters, info)

    @torch.no_grad()
    def reseed(self, scale: float = 3.0, seed: int = 0) -> list[int]:
        """Move every dead component to a place near the heaviest one, and share that one's weight with it.

        Go on with ``guides.fit(model, posterior.guide, ...)``.

        :param scale: how far to move the mean, in standard deviations of the heaviest component's draws.
        :param seed: of the directions.
        :returns: the components that were moved.
        :raises UnsupportedModelError: if the weights are uniform, or the family has no mean called ``loc``.
        """
        if self.weights == "uniform" or "loc" not in self._names:
            raise UnsupportedModelError("reseed needs learned weights and components with a parameter loc")
        weights = self.log_weights().exp()
        heaviest, dead = int(weights.argmax()), [k for k, w in enumerate(weights) if w < DEAD]
        if not dead:
            return dead
        generator = torch.Generator().manual_seed(seed)
        spread = self._components(torch.tensor(heaviest, device=weights.device)).variance.sqrt()
        raw = [self.get_parameter(n if n in self._parameters else f"{n}_unconstrained") for n in self._names]
        for k in dead:
            for value in raw:
                value[k] = value[heaviest]
            direction = torch.randn(spread.shape, generator=generator, dtype=spread.dtype).to(spread.device)
            self.loc[k] += scale * spread * direction
        self.logits[[heaviest, *dead]] = self.logits[heaviest] - math.log(1 + len(dead))
        return dead


class _Choice(dist.Categorical):
    """The choice of a component. Its probability is a part of the mixture's density, so it counts for nothing by itself;
    its gradient is there for estimators of the score-function kind, such as stock ``Trace_ELBO``."""

    def log_prob(self, value: Tensor) -> Tensor:
        found = super().log_prob(value)
        return found - found.detach()


def _said(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {shape}" for name, shape in shapes.items())
