"""Families of our own side by side: one for some sites, another for others."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from pyro import poutine
from pyro.infer.autoguide import AutoGuideList
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from guides.errors import OptionError
from guides.families.base import Family, FlatFamily
from guides.families.map import MAP
from guides.registries import families

__all__ = ["Structured"]

_Spec = str | tuple[str, dict[str, Any]]


@families.register("structured")
class Structured(Family, AutoGuideList):
    r"""A family for each group of sites, independent of the others.

    .. math:: q(z) = \prod_g q_g(z_g)

    Sites are grouped by regular expressions that match their whole names; the first expression that matches a site takes it,
    and what none matches is the group of ``rest``. ``guides.fit(model, {"w.*": "low_rank", "tau": "mean_field"}, ...)`` is
    short for ``("structured", {"sites": {...}})``.

    **When:** a model has some correlated latents and many others, or a scale that wants another family than the weights
    below it. **When not:** latents of different groups are correlated in the posterior: q cannot say so.

    Every mixture or ensemble among the groups is drawn component by component, in all combinations: two mixtures of five are
    25 draws per step.

    :param model: a Pyro model with continuous latents.
    :param sites: by regular expression, the registry name of a family or ``(name, options)``. Every expression has to take
        at least one site. Families over flat latents and ``map`` can be groups; ``laplace``, which is finished after its
        optimisation, and encoders cannot.
    :param rest: the family of all other sites.
    :param create_plates: see :class:`guides.MAP`.
    :raises OptionError: for a pattern that takes no site, or a family that cannot be a group.

    References: Hoffman & Blei (2015), *Structured stochastic variational inference* (of which this is the part without
    dependence between groups); Pyro's ``AutoGuideList``.

    Example::

        >>> import pyro, pyro.distributions as dist, torch, guides
        >>> def model(x):
        ...     w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        ...     tau = pyro.sample("tau", dist.LogNormal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(w.sum(), tau), obs=x)
        >>> posterior = guides.fit(model, {"w": "full_rank", "tau": "mean_field"}, torch.randn(20), steps=800, lr=0.02)
        >>> float(torch.corrcoef(posterior.sample(2000)["w"].T)[0, 1]) < -0.5
        True
    """

    def __init__(
        self,
        model: Callable[..., Any],
        sites: Mapping[str, _Spec] | None = None,
        rest: _Spec = "mean_field",
        *,
        create_plates: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(model, create_plates=create_plates)
        self._specs = [(_compiled(pattern), _checked(spec)) for pattern, spec in (sites or {}).items()]
        self._rest = _checked(rest)

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        assert self.prototype_trace is not None
        names = [name for name, _ in self.prototype_trace.iter_stochastic_nodes()]
        left = list(names)
        for pattern, spec in self._specs:
            taken = [name for name in left if pattern.fullmatch(name)]
            if not taken:
                raise OptionError(_nothing_taken(pattern, names))
            left = [name for name in left if name not in taken]
            self._add(spec, taken)
        if left:
            self._add(self._rest, left)

    def _add(self, spec: tuple[str, dict[str, Any]], names: list[str]) -> None:
        family, options = spec
        self.append(families[family](poutine.block(self.model, expose=names), **options))

    def _parts(self) -> list[Any]:
        return list(self)

    def site_values(self, latents: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the values of the groups' own sites that stand for given values of the model's latents."""
        return {name: value for part in self._parts() for name, value in part.site_values(latents).items()}

    def around_model(self, guide_trace: Trace) -> AbstractContextManager[Any]:
        """Return the context in which every group changes how the model's arithmetic is carried out on its draws."""
        stack = ExitStack()
        for part in self._parts():
            stack.enter_context(part.around_model(guide_trace))
        return stack


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except (re.error, TypeError) as error:
        raise OptionError(f"sites has the key {pattern!r}, which is no regular expression: {error}") from None


def _checked(spec: Any) -> tuple[str, dict[str, Any]]:
    """Return family and options of a group, checked."""
    name, options = (spec, {}) if isinstance(spec, str) else spec
    family = families[name]
    allowed = isinstance(family, type) and issubclass(family, FlatFamily | MAP)
    if not allowed or family.finished_guide is not Family.finished_guide:
        raise OptionError(f"family {name!r} cannot be a group of 'structured'; use one over flat latents, or 'map'")
    return name, dict(options)


def _nothing_taken(pattern: re.Pattern[str], names: list[str]) -> str:
    before = [name for name in names if pattern.fullmatch(name)]
    if before:
        return (
            f"sites: {pattern.pattern!r} comes after patterns that take all it matches ({', '.join(before)}); put it before"
        )
    near = difflib.get_close_matches(pattern.pattern, names, n=3, cutoff=0.3) or names[:10]
    return f"sites: {pattern.pattern!r} matches no latent site of the model; near it: {', '.join(map(repr, near))}"
