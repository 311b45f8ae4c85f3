"""Encoders compute, layer by layer, a mixture of normals whose weights are latents of the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn
from torch.distributions import constraints

from guides.distributions.mixtures import MixtureDensity
from guides.errors import GuideMismatchError, OptionError, UnsupportedModelError, check_whole
from guides.families.amortized import Amortized
from guides.families.encoders.component_heads import (
    ComponentChoice,
    RowMixture,
    check_spread,
    checked_features,
    log_sticks,
    of_component,
    spread_out,
)
from guides.families.encoders.stick_heads import LayerHead, log_fractions, mean_log_fractions
from guides.program.guide import MixtureLayer, MixtureLayers
from guides.program.local_sites import check_rows_alone
from guides.program.sites import nodes
from guides.program.supports import has_elements_in
from guides.registries import families

__all__ = ["DeepMixtureAmortized"]

_MOST_PATHS = 27


@families.register("deep_mixture_amortized")
class DeepMixtureAmortized(Amortized):
    r"""Layers of mixtures whose weights are latents of the model as well, all computed by encoders from the data point.

    .. math::

        q(v_l \mid z_{l-1}) = \prod_{k<K} \operatorname{Kumaraswamy}(v_{lk} \mid a_{lk}, b_{lk}), \qquad
        \pi_{lk} = v_{lk} \prod_{j<k} (1 - v_{lj})

        q(z_l \mid z_{l-1}, \pi_l) = \sum_{k=1}^K \pi_{lk}\,
        \mathcal{N}(z_l \mid \mu_{lk}, \operatorname{diag} \sigma_{lk}^2), \qquad z_0 = x

    The weights of the mixture that a code is drawn from are the very weights that the model's prior of the code has: the
    guide of a deep latent Gaussian mixture model. Concentrations a and b stay between 0.1 and 100 and scales between 1e-3
    and 1e3, by a smooth map, and weights are logarithms throughout, so that weights, scales and divergences are finite, and
    their gradients too, whatever numbers the heads arrive at.

    A step draws every component once for every row: all :math:`K^L` paths through the layers, or those through the lowest
    ``enumerated`` layers, with the components of the layers above drawn at random, half of them by the weights and half
    uniformly, and weighed by what that is short of. Either is unbiased, in value and in gradient. ``"dlgmm"``
    (:class:`guides.DLGMMELBO`) is the objective for it; ``"elbo"``, ``"selbo"`` and ``"siwae"`` know it too.

    **When:** a model whose weights belong to the data point, such as ``zoo.DeepLatentGaussianMixture``. **When not:** the
    model's prior is no mixture, and only the posterior is to be one (use ``mixture_amortized``).

    :param model: a Pyro model whose latents all stand in the plate that follows the rows of the data: for each layer a
        vector of K - 1 fractions (none if K is 1), and a vector of real numbers, the code. The model draws layers from the
        top down.
    :param encoder: a module that returns features ``(rows, F)``, or a sequence of them, one per layer, bottom (next to the
        data) first; each but the first is called with the code of the layer below. Trained in place.
    :param components: K, that of the model.
    :param inputs: which of the model's arguments the first encoder is called with: positions, or names of keyword arguments.
        If one of them is missing or ``None``, latents are left to the model's prior.
    :param enumerated: how many layers have all of their components drawn; by default as many as make at most 27 paths, and
        at least one.
    :param init_scale: initial standard deviation of each component.
    :param init_spread: standard deviation of the numbers by which the means of components differ at the start.
    :raises OptionError: for K below 1, ``enumerated`` outside 1 to L, or a scale or spread that is not positive.
    :raises GuideMismatchError: if the model has another K or another number of layers, or an encoder returns no features.
    :raises UnsupportedModelError: if the latents are not of the kind above.

    References: Nalisnick, Hertel & Smyth (2016), *Approximate inference for deep latent Gaussian mixtures*; Nalisnick &
    Smyth (2017), *Stick-breaking variational autoencoders*; Hesterberg (1995), *Weighted average importance sampling and
    defensive mixture distributions*.

    Example::

        >>> import pyro, pyro.distributions as dist, torch, guides
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         v = pyro.sample("v", dist.Beta(torch.ones(1), torch.ones(1)).to_event(1))
        ...         mixing, ends = dist.Categorical(torch.cat([v, 1 - v], -1)), torch.tensor([-2.0, 2.0]).expand(len(x), 2)
        ...         z = pyro.sample("z", dist.MixtureSameFamily(mixing, dist.Normal(ends.unsqueeze(-1), 0.5).to_event(1)))
        ...         pyro.sample("x", dist.Normal(z.squeeze(-1), 0.5), obs=x)
        >>> x = torch.cat([torch.randn(100) - 2, torch.randn(100) + 2])
        >>> encoder = torch.nn.Sequential(torch.nn.Unflatten(0, (-1, 1)), torch.nn.Linear(1, 8), torch.nn.Tanh())
        >>> guide = ("deep_mixture_amortized", {"encoder": encoder, "components": 2})
        >>> posterior = guides.fit(model, guide, x, objective="dlgmm", batch_size=50, steps=800, lr=0.02)
        >>> weight = 1 - posterior.draws(1000, torch.tensor([2.0])).latents["v"].mean()  # of the component at 2; 2/3
        >>> 0.6 < float(weight) < 0.73
        True
    """

    def __init__(
        self,
        model: Callable[..., Any],
        encoder: nn.Module | Sequence[nn.Module],
        components: int,
        inputs: Sequence[int | str] = (0,),
        enumerated: int | None = None,
        init_scale: float = 0.1,
        init_spread: float = 0.5,
    ) -> None:
        super().__init__(model, encoder, inputs, init_scale=init_scale)
        check_whole("components", components, 1)
        check_spread(init_spread)
        depth = len(self.encoders)
        if enumerated is None:
            enumerated = max(n for n in range(1, depth + 1) if n == 1 or components**n <= _MOST_PATHS)
        check_whole("enumerated", enumerated, 1)
        if enumerated > depth:
            raise OptionError(f"enumerated={enumerated}, but there are {depth} layers, one for each encoder")
        self.components = components
        self.enumerated = enumerated
        self.num_strata = components**enumerated
        self._init_spread = init_spread

    @property
    def row_plate(self) -> str:
        """Name of the plate that follows the rows."""
        return next(iter(self._sites.values())).row_plate

    def _choice_site(self, number: int) -> str:
        return f"_{self._pyro_name}_component_{number + 1}"

    def _arrange_layers(self) -> list[list[str]]:
        """Return the sites of every layer, fractions before the code, bottom first."""
        check_rows_alone(self.prototype_trace, self._sites, "deep_mixture_amortized")
        sticks = [name for name in self._sites if self._has_support(name, constraints.unit_interval)]
        codes = [name for name in self._sites if self._has_support(name, constraints.real)]
        others = [n for n, s in self._sites.items() if n not in {*sticks, *codes} or s.event_dim != 1]
        if others:
            raise UnsupportedModelError(
                f"latent site {others[0]!r} is no vector of fractions or of real numbers; deep_mixture_amortized is for "
                "codes and the fractions that break a stick into their weights: use 'amortized' for other latents"
            )
        for name in sticks:
            if self._sites[name].size + 1 != self.components:
                raise GuideMismatchError(
                    f"components={self.components}, but latent site {name!r} has {self._sites[name].size} fractions, which "
                    f"make {self._sites[name].size + 1} weights; give components={self._sites[name].size + 1}"
                )
        if len(sticks) != (0 if self.components == 1 else len(codes)):
            raise GuideMismatchError(
                f"components={self.components}, but the model has {len(codes)} codes ({', '.join(codes)}) and "
                f"{len(sticks)} vectors of fractions ({', '.join(sticks) or 'none'}); every code needs one, unless there is "
                "one component: use 'mixture_amortized' for weights that are no latents of the model"
            )
        if len(codes) != len(self.encoders):
            raise GuideMismatchError(
                f"{len(self.encoders)} encoders for {len(codes)} layers of codes ({', '.join(reversed(codes))}); give one "
                "per layer, bottom first"
            )
        pairs = zip(sticks, codes) if sticks else zip(codes)
        return [list(pair) for pair in pairs][::-1]

    def _has_support(self, name: str, wanted: Any) -> bool:
        return has_elements_in(nodes(self.prototype_trace)[name], wanted)

    def _make_heads(self, inputs: list[Any]) -> None:
        self.heads = nn.ModuleList()
        rows = next(len(i) for i in inputs if isinstance(i, Tensor) and i.dim() > 0)
        below = inputs
        for number, names in enumerate(self.layers):
            features = self._layer_features(number, below, rows)
            size = self._sites[names[-1]].size
            starts = spread_out(self.components, size, self._init_spread)
            self.heads.append(LayerHead(features, starts, self.head_options.init_scale))
            below = [nodes(self.prototype_trace)[names[-1]]["value"]]

    def _layer_features(self, number: int, below: list[Any], rows: int) -> Tensor:
        return checked_features(self.encoders[number](*below), rows, number + 1, "deep_mixture_amortized")

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draw weights and codes of every row from the bottom up, if the encoder's inputs are given."""
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        self._create_plates(*args, **kwargs)
        below = self._encoder_inputs(args, kwargs)
        values: dict[str, Tensor] = {}
        if below is None:
            return values
        plate = self.plates[self.row_plate]
        stratified = False
        for number, (*sticks, code) in enumerate(self.layers):
            fractions, loc, scale = self.heads[number](self._layer_features(number, below, plate.subsample_size))
            with plate:
                log_weights = loc.new_zeros(loc.shape[:2])
                for name in sticks:
                    values[name] = pyro.sample(name, fractions.to_event(1))
                    log_weights = log_sticks(*log_fractions(values[name]))
                mixture = RowMixture(log_weights, loc, scale, None)
                index = self._choose(number, log_weights, stratified)
                density = MixtureDensity(log_weights, mixture.components(), mixture.chosen(index))
                values[code] = pyro.sample(code, density)
            stratified = index.dim() == 0 or stratified
            below = [values[code]]
        return values

    def _choose(self, number: int, log_weights: Tensor, stratified: bool) -> Tensor:
        """Return the component to draw from: of all rows, the one that the stratum stands for, or of every row.

        :param stratified: the components of the layers below were not drawn at random, so that those drawn are weighed.
        """
        if stratified:  # half uniformly, so that what was drawn is never weighed by more than 2
            log_weights = (0.5 * (log_weights.detach().exp() + 1 / self.components)).log()
        digit = (self.components**number, self.components) if number < self.enumerated else "drawn"
        infer: Any = {"is_auxiliary": True, "stratum": digit}
        index: Tensor = pyro.sample(self._choice_site(number), ComponentChoice(logits=log_weights), infer=infer)
        return index

    def mixture_layers(self, guide_trace: Trace) -> MixtureLayers:
        """Return what a trace of this guide drew, layer by layer, bottom first."""
        layers = (self._layer(number, names, nodes(guide_trace)) for number, names in enumerate(self.layers))
        return MixtureLayers(tuple(layers), self.row_plate)

    def _layer(self, number: int, names: list[str], trace: dict[str, Any]) -> MixtureLayer:
        *sticks, code = names
        choice = trace[self._choice_site(number)]
        index, drawn = choice["value"], trace[code]["fn"].log_weights
        mean = drawn
        for name in sticks:
            mean = log_sticks(*mean_log_fractions(trace[name]["fn"].base_dist))
        if choice["infer"]["stratum"] == "drawn":
            log_probability = of_component(choice["fn"].logits, index)
        else:
            log_probability = drawn.new_full((), -math.log(self.components))
        weights = (of_component(values, index) - log_probability for values in (drawn, mean))
        return MixtureLayer(code, sticks[0] if sticks else None, *weights)

    def log_stratum_weight(self, guide_trace: Trace) -> Tensor:
        r"""Return the logarithm of the weight of the path that a trace drew, times the number of paths, ``(rows,)``."""
        weights = torch.stack([layer.log_drawn for layer in self.mixture_layers(guide_trace).layers])
        return weights.sum(0)
