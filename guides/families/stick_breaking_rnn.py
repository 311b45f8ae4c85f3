"""A recurrent network breaks a stick into as many components as a data point needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from guides.errors import OptionError, UnsupportedModelError, check_known
from guides.families.encoders.component_heads import ComponentHead, RowMixture
from guides.families.mixture_amortized import MixtureAmortized
from guides.registries import families

__all__ = ["StickBreakingRNN"]

CELLS = {"lstm": 4, "gru": 3}


@families.register("stick_breaking_rnn")
class StickBreakingRNN(MixtureAmortized):
    r"""Mixture whose number of components differs by data point: a recurrent network emits one per step until it stops.

    .. math::
        h_k = \mathrm{LSTM}(h_{k-1}, x), \quad (\mu_k, \sigma_k, \gamma_k) = \mathrm{heads}(h_k), \quad
        \pi_k = \gamma_k \prod_{j<k} (1 - \gamma_j)

    A data point is done when what remains of its stick, :math:`\prod_{j \le k} (1 - \gamma_j)`, is below :math:`\epsilon`,
    or after K steps; the last component that ran takes the remainder, so that weights sum to one at any :math:`\epsilon`.
    (The report drops the remainder, and has :math:`h_k` depend on itself in its equation 63.)
    :meth:`components_run` says how many a data point has.

    In the compiled engine, whose shapes are fixed, K components are computed and the model is run on K draws for every row;
    those after the last have weight zero. ``guides.objectives.compacted.Compacted(objective)``, with Pyro's own
    SVI, runs both on the rows alone that are not done, to the same values and gradients.

    Fewer components come from ``guides.EntropyBoundELBO(penalty=...)``, which takes :math:`\lambda H[\pi]` off the
    objective. Let it start from zero (a schedule): a data point that stops at its first step has no gradient with respect to
    :math:`\gamma_1` any more, and goes on only if what the network learns from other data points makes it.

    **When:** data points differ in how difficult their posteriors are, and components are expensive. **When not:** all need
    the same number (``mixture_amortized`` is as good and simpler).

    :param model: a Pyro model whose latents all stand in the plate that follows the rows of the data.
    :param encoder: a module that returns features ``(rows, F)``, once per row, for all steps of the network; by default the
        row itself.
    :param components: the largest number of them, K.
    :param cell: ``"lstm"`` or ``"gru"``.
    :param hidden: size of the network's state.
    :param epsilon: the remainder of a stick, in (0, 1), at which a data point is done.
    :param skip: let the heads see the encoder's features beside the state, :math:`\mathrm{heads}(h_k, f(x))`. Components
        then start alike and differ by what the state adds. Gates pass on only a part of a signal, which costs many epochs
        where an encoder has something to say.
    :param inputs: which of the model's arguments the encoder is called with: positions, or names of keyword arguments.
    :param covariance: of each component: ``"diagonal"``, ``"low_rank"`` or ``"full"``.
    :param rank: columns of a low-rank factor.
    :param init_scale: initial standard deviation of each component in the unconstrained space.
    :param init_fraction: the fraction of its stick that a step takes at the start, in (0, 1). With fractions of a half,
        early components begin with more weight than late ones. That matters under a penalty: the entropy of the weights is
        the same whichever component takes them all, and where that is the last, all of them run.
    :raises OptionError: for K or ``hidden`` below 1, epsilon outside (0, 1), ``init_fraction`` outside (0, 1), or
        another cell.
    :raises GuideMismatchError: if the encoder does not return features.
    :raises UnsupportedModelError: as for :class:`guides.MixtureAmortized`.

    References: Graves (2016), *Adaptive computation time for recurrent neural networks*; Nalisnick & Smyth (2017),
    *Stick-breaking variational autoencoders*; Hochreiter & Schmidhuber (1997), *Long short-term memory*; Cho et al. (2014),
    *Learning phrase representations using RNN encoder-decoder*.

    Example::

        >>> import pyro, pyro.distributions as dist, torch, guides
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        ...         pyro.sample("x", dist.Normal(z**2, 0.3), obs=x)
        >>> options = {"components": 3, "hidden": 8, "epsilon": 0.01}
        >>> x = torch.rand(40)
        >>> posterior = guides.fit(model, ("stick_breaking_rnn", options), x, objective="entropy_bound", steps=50)
        >>> posterior.guide.components_run(torch.rand(5)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        model: Callable[..., Any],
        encoder: nn.Module | None = None,
        components: int = 5,
        cell: str = "lstm",
        hidden: int = 200,
        epsilon: float = 0.01,
        skip: bool = False,
        inputs: Sequence[int | str] = (0,),
        covariance: str = "diagonal",
        rank: int | None = None,
        init_scale: float = 0.1,
        init_fraction: float = 0.5,
    ) -> None:
        if encoder is not None and (not isinstance(encoder, nn.Module) or isinstance(encoder, nn.ModuleList)):
            raise OptionError(f"encoder must be one torch.nn.Module, not {type(encoder).__name__}")
        check_known("cell", cell, CELLS)
        if not isinstance(hidden, int) or hidden < 1:
            raise OptionError(f"hidden must be a whole number of at least 1, not {hidden!r}")
        if isinstance(epsilon, bool) or not isinstance(epsilon, int | float) or not 0 < epsilon < 1:
            raise OptionError(f"epsilon must be in (0, 1), not {epsilon!r}")
        if not isinstance(init_fraction, int | float) or not 0 < init_fraction < 1:
            raise OptionError(f"init_fraction must be in (0, 1), not {init_fraction!r}")
        super().__init__(
            model,
            _Row() if encoder is None else encoder,
            components,
            inputs=inputs,
            covariance=covariance,
            rank=rank,
            init_scale=init_scale,
        )
        self.cell, self.hidden, self.epsilon, self.skip = cell, hidden, float(epsilon), skip
        self._logit = math.log(init_fraction / (1 - init_fraction))

    def _make_heads(self, inputs: list[Any]) -> None:
        (features,) = self._features(inputs)
        where: dict[str, Any] = {"device": features.device, "dtype": features.dtype}
        gates = CELLS[self.cell] * self.hidden
        # As torch's own cells; the row's part of the gates is the same at every step, and so computed once.
        self.from_row = nn.Linear(features.shape[1], gates, **where)
        self.from_state = nn.Linear(self.hidden, gates, **where)
        bound = 1 / math.sqrt(self.hidden)
        for parameter in (*self.from_row.parameters(), *self.from_state.parameters()):
            nn.init.uniform_(parameter, -bound, bound)
        size = sum(site.size for site in self._sites.values())
        width = self.hidden + (features.shape[1] if self.skip else 0)
        self.heads = nn.ModuleList([ComponentHead(width, 1, self.head_options, torch.zeros(1, size), features)])

    def _step(self, row: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the state one step further, the hidden part first.

        :param row: the row's part of the gates.
        """
        hidden, gates = state[0], self.from_state(state[0])
        if self.cell == "lstm":
            i, f, g, o = (row + gates).chunk(4, -1)
            memory = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
            return o.sigmoid() * memory.tanh(), memory
        reset, update, new = row.chunk(3, -1)
        from_reset, from_update, from_new = gates.chunk(3, -1)
        update = (update + from_update).sigmoid()
        return ((1 - update) * (new + (reset + from_reset).sigmoid() * from_new).tanh() + update * hidden,)

    def _component(self, hidden: Tensor, features: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return the number that decides on a component's fraction of the stick, its location, scale and factor."""
        found: tuple[Tensor, Tensor, Tensor, Tensor | None] = self.heads[0](
            torch.cat([hidden, features], -1) if self.skip else hidden
        )
        return found

    def _start(self, row: Tensor) -> tuple[Tensor, ...]:
        zeros = row.new_zeros(len(row), self.hidden)
        return (zeros, zeros) if self.cell == "lstm" else (zeros,)

    def _mixture(self, inputs: list[Any]) -> RowMixture:
        """Return all K components of every row, those after its last with weight zero."""
        (features,) = self._features(inputs)
        row = self.from_row(features)
        state, remaining, running = self._start(row), row.new_zeros(len(row)), row.new_ones(len(row), dtype=torch.bool)
        steps = []
        for k in range(self.num_strata):
            state = self._step(row, state)
            numbers, *component = self._component(state[0], features)
            weight, remaining, running = self._break(k, numbers[:, 0, 0], remaining, running)
            steps.append((weight, *component))
        return self._stacked(steps)

    def _break(self, k: int, number: Tensor, remaining: Tensor, running: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the log weight of component k, the log of what remains of the stick, and which rows go on.

        :param remaining: log of what remained before.
        :param running: rows that have a k-th component.
        """
        if k == self.num_strata - 1:
            return torch.where(running, remaining, -math.inf), remaining, torch.zeros_like(running)
        logit = number + self._logit
        left = remaining + logsigmoid(-logit)
        goes_on = running & (left >= math.log(self.epsilon))
        weight = torch.where(goes_on, remaining + logsigmoid(logit), remaining)
        return torch.where(running, weight, -math.inf), left, goes_on

    def _stacked(self, steps: list[tuple[Tensor | None, ...]]) -> RowMixture:
        log_weights, loc, scale, factor = zip(*steps)
        factors = None if factor[0] is None else torch.cat(factor, 1)
        covariance = "diagonal" if factors is None else self.head_options.covariance
        return RowMixture(torch.stack(log_weights, 1), torch.cat(loc, 1), torch.cat(scale, 1), factors, covariance)

    def present_components(self, *args: Any, **kwargs: Any) -> RowMixture:
        """Return :meth:`compact_mixture` for objectives, which cut the data by it.

        :raises UnsupportedModelError: if the model would take some rows for all of them.
        """
        if self.prototype_trace is None:
            self(*args, **kwargs)
        if any(site.whole is not None for site in self._sites.values()):
            raise UnsupportedModelError(
                f"plate {self.row_plate!r} is one of all the data of which the model is given some rows, so a part of the "
                'rows would be weighed as if it were all of them; use pyro.plate("data", len(x))'
            )
        return self.compact_mixture(*args, **kwargs)

    def compact_mixture(self, *args: Any, **kwargs: Any) -> RowMixture:
        """Return the mixtures as :meth:`mixture` does, with every step run on the rows alone that are not done.

        Components after a row's last are not computed; they stand there as standard normals of weight zero.
        """
        with self._pyro_context:  # Pyro's SVI trains the parameters that it sees used
            (features,) = self._features(self._given(args, kwargs))
            row = self.from_row(features)
            active = torch.arange(len(row), device=row.device)
            state, remaining = self._start(row), row.new_zeros(len(row))
            steps: list[tuple[Tensor | None, ...]] = []
            for k in range(self.num_strata):
                state = self._step(row.index_select(0, active), state)
                numbers, *component = self._component(state[0], features.index_select(0, active))
                weight, remaining, running = self._break(k, numbers[:, 0, 0], remaining, torch.ones_like(active).bool())
                steps.append(self._filled(weight, component, active, len(row)))
                kept = running.nonzero().squeeze(-1)
                active, remaining = active.index_select(0, kept), remaining.index_select(0, kept)
                state = tuple(s.index_select(0, kept) for s in state)
        return self._stacked(steps)

    def _filled(
        self, weight: Tensor, component: list[Tensor | None], active: Tensor, rows: int
    ) -> tuple[Tensor | None, ...]:
        """Return the weight and the component of some rows as those of all rows."""

        def fill(values: Tensor | None, like: Tensor | float) -> Tensor | None:
            if values is None:
                return None
            whole = values.new_zeros(rows, *values.shape[1:]) + like
            return whole.index_copy(0, active, values)

        loc, scale, factor = component
        none = torch.eye(factor.shape[-2]).to(factor) if factor is not None and self.heads[0].covariance == "full" else 0.0
        return fill(weight, -math.inf), fill(loc, 0.0), fill(scale, 1.0), fill(factor, none)

    @torch.no_grad()
    def components_run(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return how many components ran for each row, ``(rows,)``, from 1 to K.

        :param args: arguments of the model.
        """
        return (self.compact_mixture(*args, **kwargs).log_weights > -math.inf).sum(-1)


class _Row(nn.Module):
    """The row itself as its features."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) if x.dim() > 1 else x.unsqueeze(-1)
