"""An encoder computes the posterior of each data point's latents from the data point."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import is_validation_enabled
from torch import Tensor, nn

from guides.errors import DataError, GuideMismatchError, OptionError, check_known
from guides.families.base import Family
from guides.families.encoders.heads import Gaussian, Head, HeadOptions, check_encoded
from guides.families.encoders.ladder import check_ladder, conditional_prior, precision_weighted
from guides.program.local_sites import LocalSite, find_local_sites
from guides.program.sites import is_latent, nodes
from guides.registries import families

__all__ = ["Amortized"]

_ORDERS = ("bottom_up", "ladder")

Encoded = Tensor | tuple[Tensor, Tensor]


@families.register("amortized")
class Amortized(Family):
    r"""The posterior of each data point's latents as a function of the data point: the recognition network of a VAE.

    .. math:: q(z_n \mid x_n) = \mathcal{N}(z_n \mid \mu(x_n), \Sigma(x_n)), \qquad (\mu, \Sigma) = \text{encoder}

    over the unconstrained value of every latent site with one value per data point, whatever its support and shape. Such a
    guide works with minibatches, scores validation data and encodes new data points. Divergences to priors of the same kind
    are taken in closed form (see :class:`guides.ELBO`).

    With several encoders there is one stochastic layer each, bottom (next to the data) first:
    :math:`q(z_1 \mid x)\, q(z_2 \mid z_1) \cdots` in ``"bottom_up"`` order, each encoder taking the draw of the layer below.
    In ``"ladder"`` order the encoders pass features upwards instead, draws come from the top down, and each layer below the
    top weighs what its encoder says by the model's own prior given the layers above:

    .. math::
        \sigma_l^{-2} = \hat\sigma_l^{-2} + \sigma_{p,l}^{-2}, \qquad
        \mu_l = \sigma_l^2 (\hat\mu_l \hat\sigma_l^{-2} + \mu_{p,l} \sigma_{p,l}^{-2})

    **When:** many data points, or new ones to come; deep generative models. **When not:** few data points, whose latents the
    other guides fit one by one.

    :param model: a Pyro model whose local latents stand in a plate that follows the rows of the data.
    :param encoder: a module, or a sequence of them, one per stochastic layer. It returns features ``(rows, F)``, from which
        the guide takes what each site needs by linear heads, or a pair ``(loc, scale)`` of one site's unconstrained shape.
        It is trained in place.
    :param inputs: which of the model's arguments the first encoder is called with: positions, or names of keyword
        arguments. If one of them is missing or ``None``, local latents are left to the model's prior.
    :param layers: names of the sites of each layer, bottom first; needed where a layer has several. By default one encoder
        is for all local sites, and several are for one each, the last that the model draws first.
    :param covariance: of each site given the data point: ``"diagonal"``, ``"low_rank"`` or ``"full"``.
    :param rank: columns of a low-rank factor; by default about the root of the site's size.
    :param order: of several layers: ``"bottom_up"`` or ``"ladder"``.
    :param flow: on top of the Gaussian, conditioned on the encoder's output: ``"iaf"`` (inverse autoregressive flow) or
        ``"spline"`` (autoregressive rational-linear splines).
    :param num_flows: how many of them, one after the other, in alternating order of the dimensions.
    :param rest: family of the global latents, if there are any, or ``(name, options)``.
    :param init_scale: initial standard deviation in the unconstrained space, where the guide makes the head.
    :raises OptionError: for options that do not go together.
    :raises GuideMismatchError: if encoders do not fit the latents.
    :raises UnsupportedModelError: if no latent has one value per row.

    References: Kingma & Welling (2014), *Auto-encoding variational Bayes*; Rezende, Mohamed & Wierstra (2014), *Stochastic
    backpropagation and approximate inference in deep generative models*; Sønderby et al. (2016), *Ladder variational
    autoencoders*; Kingma et al. (2016), *Improved variational inference with inverse autoregressive flow*; Durkan et al.
    (2019), *Neural spline flows*; Dolatabadi, Erfani & Leckie (2020), *Invertible generative modeling using linear rational
    splines*.

    Example::

        >>> import pyro, pyro.distributions as dist, torch, guides
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 0.5).expand([len(x)]), obs=x)
        >>> x = torch.randn(500)
        >>> encoder = torch.nn.Sequential(torch.nn.Unflatten(0, (-1, 1)), torch.nn.Linear(1, 8), torch.nn.Tanh())
        >>> options = {"batch_size": 50, "epochs": 40, "lr": 0.03, "schedule": "cosine"}
        >>> posterior = guides.fit(model, ("amortized", {"encoder": encoder}), x, **options)
        >>> draws = posterior.draws(1000, torch.tensor([-1.0, 1.0])).latents["z"]  # of new data points
        >>> (draws.mean((0, 1)) - torch.tensor([-0.8, 0.8])).abs().max() < 0.15
        tensor(True)
    """

    def __init__(
        self,
        model: Callable[..., Any],
        encoder: nn.Module | Sequence[nn.Module],
        inputs: Sequence[int | str] = (0,),
        layers: Sequence[Sequence[str]] | None = None,
        covariance: str = "diagonal",
        rank: int | None = None,
        order: str = "bottom_up",
        flow: str | None = None,
        num_flows: int = 2,
        rest: str | tuple[str, dict[str, Any]] = "mean_field",
        init_scale: float = 0.1,
    ) -> None:
        options = HeadOptions(covariance, rank, flow, num_flows, init_scale)
        encoders = _encoders(encoder)
        check_known("order", order, _ORDERS)
        if order == "ladder" and covariance != "diagonal":
            raise OptionError(f"order='ladder' weighs independent normals; covariance={covariance!r} does not go with it")
        if not inputs or isinstance(inputs, str) or not all(isinstance(i, int | str) for i in inputs):
            raise OptionError(f"inputs must be positions or names of the model's arguments, such as (0,), not {inputs!r}")
        super().__init__(model)
        self.encoders = nn.ModuleList(encoders)
        self.order = order
        self.head_options = options
        self._inputs = tuple(inputs)
        self._layer_names = None if layers is None else [list(names) for names in layers]
        self._rest = (rest, {}) if isinstance(rest, str) else rest
        self._sites: dict[str, LocalSite] = {}

    @property
    def amortized(self) -> frozenset[str]:
        """Names of the sites that the guide computes from the rows it is given."""
        return frozenset(self._sites)

    @property
    def _global_guide(self) -> Family | None:
        return self._modules.get("rest")  # type: ignore[return-value]

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        encoder_inputs = self._encoder_inputs(args, kwargs)
        if encoder_inputs is None:
            raise GuideMismatchError(
                f"the guide was first called without the encoder's inputs (arguments {', '.join(map(repr, self._inputs))}); "
                "give it all of them once, or name others by inputs="
            )
        super()._setup_prototype(*args, **kwargs)
        assert self.prototype_trace is not None
        self._sites = find_local_sites(self.model, self.prototype_trace, args, kwargs, _rows(encoder_inputs))
        self.layers = self._arrange_layers()
        if self.order == "ladder":
            check_ladder(self.prototype_trace, self.layers, self._sites)
        others = [n for n, s in nodes(self.prototype_trace).items() if is_latent(s) and n not in self._sites]
        if others:
            self.rest = self._make_rest()
            self.num_strata = self.rest.num_strata
            self.is_point_mass = self.rest.is_point_mass
        with torch.no_grad():
            self._make_heads(encoder_inputs)

    def _make_rest(self) -> Family:
        name, options = self._rest
        local = frozenset(self._sites)
        rest: Family = families[name](poutine.block(self.model, hide=list(local)), **options)
        if type(rest).finish is not Family.finish:
            raise OptionError(f"rest={name!r} is finished after its optimisation, which does not go with an encoder")
        return rest

    def _arrange_layers(self) -> list[list[str]]:
        names, count = list(self._sites), len(self.encoders)
        if self._layer_names is not None:
            named = [name for layer in self._layer_names for name in layer]
            if sorted(named) != sorted(names) or not all(self._layer_names):
                raise GuideMismatchError(
                    f"layers={self._layer_names} must name every local latent once; the model has {', '.join(names)}"
                )
            if len(self._layer_names) != count:
                raise GuideMismatchError(f"{len(self._layer_names)} layers and {count} encoders; give one encoder per layer")
            return self._layer_names
        if count == 1:
            return [names]
        if count != len(names):
            raise GuideMismatchError(
                f"{count} encoders for {len(names)} local latent sites ({', '.join(names)}); give one per stochastic layer, "
                "bottom first, or a single one for all, or say by layers= which sites each encoder is for"
            )
        return [[name] for name in reversed(names)]

    def _make_heads(self, inputs: list[Any]) -> None:
        """Run the encoders once and make the heads for what they return."""
        self._heads: dict[str, int] = {}
        self.heads = nn.ModuleList()
        rows = _rows(inputs)
        assert self.prototype_trace is not None
        values = {name: nodes(self.prototype_trace)[name]["value"] for name in self._sites}
        below: list[Any] = inputs
        for number in range(len(self.encoders)):
            encoded = self._encode(number, below, rows)
            for name in self.layers[number]:
                width = None if isinstance(encoded, tuple) else encoded.shape[1]
                like = encoded[0] if isinstance(encoded, tuple) else encoded
                self._heads[name] = len(self.heads)
                self.heads.append(self._make_head(self._sites[name], width, like))
            below = self._below(number, encoded, values)

    def _make_head(self, site: LocalSite, width: int | None, like: Tensor) -> Head:
        """Return the part of the guide that belongs to one site, for an encoder of ``width`` features."""
        return Head(site, width, self.head_options, like)

    def _head(self, name: str) -> Head:
        head: Head = self.heads[self._heads[name]]  # type: ignore[assignment]
        return head

    def _encode(self, number: int, below: list[Any], rows: int) -> Encoded:
        encoded: Encoded = self.encoders[number](*below)
        names = self.layers[number]
        like = self._head(names[0]) if names[0] in self._heads else None
        check_encoded(encoded, number + 1, [self._sites[n] for n in names], rows, like)
        if isinstance(encoded, tuple) and self.order == "ladder" and number + 1 < len(self.encoders):
            raise GuideMismatchError(
                f"encoder {number + 1} returns (loc, scale), but in ladder order the next encoder needs its features; "
                "return features (rows, F)"
            )
        return encoded

    def _below(self, number: int, encoded: Encoded, values: dict[str, Tensor]) -> list[Any]:
        """Return what the next encoder is called with."""
        if self.order == "ladder":
            return [encoded]
        return [torch.cat([self._sites[n].flatten(values[n]) for n in self.layers[number]], dim=-1)]

    def _encoder_inputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any] | None:
        """Return what the first encoder is called with, or ``None`` if some of it is missing."""
        found = []
        for which in self._inputs:
            value = kwargs.get(which) if isinstance(which, str) else (args[which] if which < len(args) else None)
            if value is None:
                return None
            found.append(value)
        if is_validation_enabled():
            _check_finite(self._inputs, found)
        return found

    def _create_plates(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        inputs = self._encoder_inputs(args, kwargs)
        following = {site.row_plate: site.whole for site in self._sites.values()}
        self.plates = {}
        for name, frame in sorted(self._prototype_frames.items()):
            if name not in following:
                self.plates[name] = pyro.plate(name, frame.full_size or frame.size, dim=frame.dim, subsample_size=frame.size)
            elif inputs is not None:
                rows, whole = _rows(inputs), following[name]
                if whole is None:
                    self.plates[name] = pyro.plate(name, rows, dim=frame.dim)
                else:  # a plate of all the data, of which the model is given some rows
                    self.plates[name] = pyro.plate(name, whole, subsample=torch.arange(rows), dim=frame.dim)
        return self.plates

    def _check_prototype(self, part_trace: Trace) -> None:
        """Accept the trace of the guide of the global latents, which shares this guide's plates."""

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draw the global latents, then those of every row, if the encoder's inputs are given."""
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        self._create_plates(*args, **kwargs)
        values: dict[str, Tensor] = {} if self._global_guide is None else dict(self.rest(*args, **kwargs))
        inputs = self._encoder_inputs(args, kwargs)
        if inputs is None:
            return values
        if self.order == "ladder":
            return self._from_the_top(inputs, values, args, kwargs)
        return self._from_the_bottom(inputs, values, args, kwargs)

    def _from_the_bottom(
        self, inputs: list[Any], values: dict[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> dict[str, Tensor]:
        rows = _rows(inputs)
        for number, names in enumerate(self.layers):
            encoded = self._encode(number, inputs, rows)
            answer = self._answer({n: self._head(n).gaussian(encoded) for n in names}, values, args, kwargs)
            for name, gaussian in answer.items():
                values[name] = self._sample(name, self._head(name).distribution(gaussian))
            inputs = self._below(number, encoded, values)
        return values

    def _answer(
        self, gaussians: dict[str, Gaussian], values: dict[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> dict[str, Gaussian]:
        """Return the normals to draw a layer from, given what the encoder says and ``values`` of other latents."""
        return gaussians

    def _from_the_top(
        self, inputs: list[Any], values: dict[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> dict[str, Tensor]:
        rows, features = _rows(inputs), []
        for number in range(len(self.encoders)):
            features.append(self._encode(number, inputs, rows))
            inputs = self._below(number, features[-1], values)
        for number in reversed(range(len(self.encoders))):
            top = number + 1 == len(self.encoders)
            for name in self.layers[number]:
                head = self._head(name)
                gaussian = head.gaussian(features[number])
                if not top:
                    prior = conditional_prior(self.model, name, values, args, kwargs)
                    gaussian = precision_weighted(gaussian, prior, self._sites[name])
                values[name] = self._sample(name, head.distribution(gaussian))
        return values

    def _sample(self, name: str, distribution: Any) -> Tensor:
        with ExitStack() as stack:
            for frame in self._sites[name].frames:
                stack.enter_context(self.plates[frame.name])
            return pyro.sample(name, distribution)

    def around_model(self, guide_trace: Trace) -> AbstractContextManager[Any]:
        """Return the context that the guide of the global latents runs the model in."""
        return nullcontext() if self._global_guide is None else self._global_guide.around_model(guide_trace)

    def site_values(self, latents: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return given values of the local latents, and what stands for those of the global ones."""
        local = {n: v for n, v in latents.items() if n in self._sites}
        others = {n: v for n, v in latents.items() if n not in self._sites}
        return local if self._global_guide is None else {**self._global_guide.site_values(others), **local}


def _encoders(encoder: Any) -> list[nn.Module]:
    several = isinstance(encoder, nn.ModuleList | list | tuple)
    found = list(encoder) if several else [encoder]
    if not found or not all(isinstance(e, nn.Module) for e in found):
        what = ", ".join(type(e).__name__ for e in found) or "nothing"
        raise OptionError(f"encoder must be a torch.nn.Module or a sequence of them, one per stochastic layer, not {what}")
    return found


def _rows(inputs: list[Any]) -> int:
    first = next((i for i in inputs if isinstance(i, Tensor) and i.dim() > 0), None)
    if first is None:
        raise GuideMismatchError("none of the encoder's inputs is a tensor with rows; name others by inputs=")
    return len(first)


def _check_finite(names: Sequence[int | str], values: list[Any]) -> None:
    for name, value in zip(names, values):
        if isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 0:
            bad = ~torch.isfinite(value).reshape(len(value), -1).all(1)
            if bad.any():
                raise DataError(
                    f"argument {name!r} of the encoder has NaN or infinite values in {int(bad.sum())} of {len(value)} rows, "
                    f"first in row {int(bad.nonzero()[0])}; drop or impute them"
                )
