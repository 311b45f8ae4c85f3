"""Networks of every kind inside models: recurrent, convolutional, attending, normalising, dropping out."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import guides
import zoo
from guides import errors
from guides.errors import EagerFallbackWarning
from guides.program.noise import Noise, NoiseTape
from guides.program.vectorise import Vectorised

N, TIME, IN, HIDDEN = 8, 4, 2, 3
X = torch.randn(N, TIME, IN, generator=torch.Generator().manual_seed(0))
Y = X.sum((1, 2)) / 3


class Recurrent(nn.Module):
    """A recurrent layer, of padded or packed sequences, then a linear one."""

    def __init__(self, layer: type[nn.RNNBase], packed: bool = False, **options: object) -> None:
        super().__init__()
        self.layer = layer(IN, HIDDEN, batch_first=True, **options)
        self.out = nn.Linear(HIDDEN * (2 if self.layer.bidirectional else 1), 1)
        self.packed = packed

    def forward(self, x: Tensor) -> Tensor:
        if not self.packed:
            return self.out(self.layer(x)[0].mean(1))
        lengths = torch.arange(len(x)) % TIME + 1
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return self.out(pad_packed_sequence(self.layer(packed)[0], batch_first=True)[0].mean(1))


class Cell(nn.Module):
    """A cell, called time by time."""

    def __init__(self, cell: type[nn.Module]) -> None:
        super().__init__()
        self.cell = cell(IN, HIDDEN)
        self.out = nn.Linear(HIDDEN, 1)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for t in range(TIME):
            state = self.cell(x[:, t], state)
        assert state is not None
        return self.out(state[0] if isinstance(state, tuple) else state)


class Attention(nn.Module):
    """Attention of each time to all, then the mean over times."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(IN, 2, dropout=dropout, batch_first=True)
        self.out = nn.Linear(IN, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.attention(x, x, x, need_weights=False)[0].mean(1))


class Embedded(nn.Module):
    """Integers, embedded and averaged."""

    def __init__(self, bag: bool) -> None:
        super().__init__()
        self.embed = nn.EmbeddingBag(5, HIDDEN) if bag else nn.Embedding(5, HIDDEN)
        self.out = nn.Linear(HIDDEN, 1)

    def forward(self, x: Tensor) -> Tensor:
        words = (2 * x[..., 0].abs()).long().clamp(max=4)
        found = self.embed(words)
        return self.out(found if found.dim() == 2 else found.mean(1))


class Flip(nn.Module):
    """Channels before times."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mT


def _convolution() -> nn.Module:
    return nn.Sequential(Flip(), nn.Conv1d(IN, 2, 2), nn.GroupNorm(1, 2), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(2, 1))


def _transposed() -> nn.Module:
    head = (nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(2, 1))
    return nn.Sequential(Flip(), nn.ConvTranspose1d(IN, 2, 2), nn.BatchNorm1d(2).eval(), *head)


def _transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(IN, 1, 4, dropout=0.0, batch_first=True)
    return nn.Sequential(layer, nn.LayerNorm(IN), nn.Flatten(), nn.Linear(IN * TIME, 1))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: Recurrent(nn.LSTM),
    "gru": lambda: Recurrent(nn.GRU, bidirectional=True, num_layers=2),
    "rnn": lambda: Recurrent(nn.RNN, nonlinearity="relu", bias=False),
    "packed lstm": lambda: Recurrent(nn.LSTM, packed=True, bidirectional=True),
    "packed gru": lambda: Recurrent(nn.GRU, packed=True),
    "lstm cell": lambda: Cell(nn.LSTMCell),
    "gru cell": lambda: Cell(nn.GRUCell),
    "convolution": _convolution,
    "transposed convolution": _transposed,
    "attention": Attention,
    "transformer": _transformer,
    "embedding": lambda: Embedded(bag=False),
    "embedding bag": lambda: Embedded(bag=True),
}


class Around(nn.Module):
    """A regression whose mean is a network of fixed or learned weights."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        pyro.module("network", self.network)
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
        with pyro.plate("data", len(x)):
            mean = pyro.deterministic("f", self.network(x).squeeze(-1))
            return pyro.sample("y", dist.Normal(mean, scale), obs=y)


def _network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[name]()


def _flat(output: object) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    return [t for part in output if part is not None for t in _flat(part)]  # type: ignore[attr-defined]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("layer", "options"),
    [
        (nn.LSTM, {}),
        (nn.LSTM, {"num_layers": 2, "bidirectional": True, "batch_first": True}),
        (nn.LSTM, {"num_layers": 2, "bidirectional": True, "bias": False, "proj_size": 2}),
        (nn.GRU, {"batch_first": True}),
        (nn.GRU, {"num_layers": 2, "bidirectional": True, "bias": False}),
        (nn.RNN, {"num_layers": 2, "bidirectional": True}),
        (nn.RNN, {"nonlinearity": "relu", "bias": False}),
    ],
)
@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_recurrent_layers_are_torchs_own(layer: type[nn.RNNBase], options: dict[str, object], packed: bool) -> None:
    torch.manual_seed(0)
    net = layer(IN, HIDDEN, **options)
    first = bool(options.get("batch_first"))
    x = torch.randn(5, 5, IN)
    lengths = torch.tensor([5, 3, 4, 1, 3])
    inputs = pack_padded_sequence(x, lengths, batch_first=first, enforce_sorted=False) if packed else x

    def run() -> list[Tensor]:
        output = net(inputs)
        found = _flat(output)
        if isinstance(output[0], PackedSequence):
            found += _flat(pad_packed_sequence(output[0], batch_first=first, total_length=7, padding_value=-1.0))
        loss = sum((f**2).sum() for f in found if f.is_floating_point())
        return [*found, *torch.autograd.grad(loss, list(net.parameters()))]  # type: ignore[arg-type]

    expected = run()
    with NoiseTape():
        found = run()
    assert len(found) == len(expected)
    for a, b in zip(found, expected):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", list(NETWORKS))
def test_a_learned_network_fits_alike_eagerly_traced_and_vectorised(name: str) -> None:
    network = _network(name)
    losses = {}
    for how in ("eager", "trace"):
        model = Around(copy.deepcopy(network))
        losses[how] = guides.fit(model, "mean_field", X, Y, steps=5, compile=how).losses
    torch.testing.assert_close(losses["trace"], losses["eager"], rtol=1e-4, atol=1e-4)
    both = guides.fit(Around(copy.deepcopy(network)), "mean_field", X, Y, steps=5, replicates=2, num_particles=2)
    for r in range(2):
        one = Around(copy.deepcopy(network))
        alone = guides.fit(one, "mean_field", X, Y, steps=5, seed=r, num_particles=2, compile="eager")
        torch.testing.assert_close(both.losses[r], alone.losses[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", list(NETWORKS))
def test_a_bayesian_network_fits_predicts_and_is_diagnosed(name: str) -> None:
    model = zoo.bayesianize(_network(name), noise=0.5)
    options = {"steps": 4, "replicates": 2, "num_particles": 2, "batch_size": 4, "validation": (X, Y)}
    posterior = guides.fit(model, "mean_field", X, Y, **options)
    assert torch.isfinite(posterior.losses).all()
    assert torch.isfinite(posterior.predict(X[:3], num_samples=2)["y"]).all()
    posterior.diagnose(num_samples=25)
    posterior.to_arviz(num_samples=2, prior_samples=2)


@pytest.mark.parametrize("name", ["lstm", "packed gru", "lstm cell", "transformer"])
def test_laplace_of_a_network_that_has_fused_kernels(name: str) -> None:
    model = zoo.bayesianize(_network(name), noise=0.5)
    posterior = guides.fit(model, ("laplace", {"curvature": "ggn"}), X, Y, steps=4)
    assert torch.isfinite(posterior.predict(X[:3], num_samples=2)["y"]).all()


def _lstm(x: Tensor) -> Tensor:
    torch.manual_seed(0)
    return nn.LSTM(1, 2)(x.reshape(1, 1, 1))[0].sum()


@pytest.mark.parametrize(
    "function",
    [
        _lstm,  # no rule, and no fallback
        lambda x: torch.tensor(float(x) ** 2),
        lambda x: torch.as_tensor(x.detach().numpy() ** 2),
        lambda x: x**2 if x > 0 else x,
    ],
    ids=["no rule", "float", "numpy", "branch"],
)
def test_what_cannot_be_vectorised_is_looped_over(function: Callable[[Tensor], Tensor]) -> None:
    x = torch.tensor([1.0, 2.0, 3.0])
    vectorised = Vectorised("draws")
    with pytest.warns(EagerFallbackWarning, match="draws, which are taken one by one"):
        found = vectorised(function, (0,), x)
    torch.testing.assert_close(found, torch.stack([function(k) for k in x]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vectorised(function, (0,), x)


def test_what_fails_by_itself_fails_in_its_own_words() -> None:
    def function(x: Tensor) -> Tensor:
        raise KeyError("no such thing")

    with pytest.raises(KeyError, match="no such thing"):
        Vectorised("draws")(function, (0,), torch.ones(2))


class _Cubed(torch.autograd.Function):
    """An operation whose gradient only plain autograd can take: its backward leaves torch."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x**3

    @staticmethod
    def setup_context(ctx: object, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)  # type: ignore[attr-defined]

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return grad * torch.as_tensor(3 * x.detach().numpy() ** 2)


def test_a_gradient_that_torch_func_cannot_take_is_autograds() -> None:
    def model(y: Tensor, cube: Callable[[Tensor], Tensor]) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(cube(z), 1.0), obs=y)

    expected = guides.fit(model, "mean_field", Y, model_kwargs={"cube": lambda z: z**3}, steps=5, compile="eager")
    with pytest.warns(EagerFallbackWarning) as caught:
        found = guides.fit(model, "mean_field", Y, model_kwargs={"cube": _Cubed.apply}, steps=5)
    assert len(caught) == 1
    torch.testing.assert_close(found.losses, expected.losses)


DROPPING: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "dropout": (nn.Dropout(0.3), (50, 40)),
    "in place": (nn.Dropout(0.3, inplace=True), (50, 40)),
    "alpha": (nn.AlphaDropout(0.3), (50, 40)),
    "channels": (nn.Dropout2d(0.3), (50, 40, 2, 2)),
    "channels alpha": (nn.FeatureAlphaDropout(0.3), (50, 40, 2, 2)),
    "rectifier": (nn.RReLU(), (50, 40)),
    "between layers": (nn.LSTM(4, 3, num_layers=2, dropout=0.5), (50, 20, 4)),
    "transformer": (nn.TransformerEncoderLayer(4, 2, 8, dropout=0.5), (20, 30, 4)),
}


@pytest.mark.parametrize("name", list(DROPPING))
def test_dropout_is_torchs_own_and_comes_from_the_tape(name: str) -> None:
    layer, shape = DROPPING[name]
    torch.manual_seed(0)
    x = torch.randn(shape)

    def run() -> Tensor:
        return _flat(layer(x.clone()))[0].detach()

    own = run()
    with NoiseTape() as tape:
        run()
    noise = Noise(torch.zeros(0), torch.rand(tape.used.uniforms))
    found = []
    for _ in range(2):
        with NoiseTape(noise):
            found.append(run())
    assert torch.equal(*found)
    assert tape.used.uniforms > 0
    deviation = own.std() / own[..., 0].numel() ** 0.5
    assert float((found[0].mean() - own.mean()).abs()) < 6 * float(deviation)
    assert float(found[0].std() / own.std()) == pytest.approx(1.0, abs=0.1)
    assert float((found[0] == 0).float().mean()) == pytest.approx(float((own == 0).float().mean()), abs=0.05)


def test_dropout_in_a_model_differs_between_steps_and_not_between_fits() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(IN * TIME, 1))

    def fit(compile: str) -> Tensor:
        model = Around(copy.deepcopy(network))
        options = {"lr": 1e-9, "validation": (X[:3], Y[:3]), "batch_size": 4}
        return guides.fit(model, "map", X, Y, steps=12, compile=compile, **options).losses

    losses = fit("trace")
    assert float(losses.std()) > 0.1
    torch.testing.assert_close(fit("eager"), losses)
    torch.testing.assert_close(fit("native"), losses)


def _normalising(training: bool, layer: type[nn.Module] = nn.BatchNorm1d) -> nn.Module:
    torch.manual_seed(0)
    first = nn.Flatten() if layer is nn.BatchNorm1d else nn.Identity()
    normalise = layer(IN * TIME if layer is nn.BatchNorm1d else TIME, track_running_stats=True)
    return nn.Sequential(first, normalise, nn.Flatten(), nn.Linear(IN * TIME, 1)).train(training)


def _statistics(network: nn.Module) -> list[Tensor]:
    return [b.clone() for b in network.buffers()]


def _check_unmoved(network: nn.Module, before: list[Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(_statistics(network), before))


@pytest.mark.parametrize("layer", [nn.BatchNorm1d, nn.InstanceNorm1d])
def test_normalisation_in_training_mode_is_by_the_batch(layer: type[nn.Module]) -> None:
    network = _normalising(training=True, layer=layer)
    model = Around(copy.deepcopy(network))
    posterior = guides.fit(model, "mean_field", X, Y, steps=6, compile="eager")
    found = model.network[1]
    x = X.flatten(1) if layer is nn.BatchNorm1d else X
    mean = x.mean(0) if layer is nn.BatchNorm1d else x.mean((0, 2))
    torch.testing.assert_close(found.running_mean, mean, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(posterior.model.network[1].running_mean, mean, rtol=1e-3, atol=1e-3)

    stateless = copy.deepcopy(network)
    stateless[1] = layer(network[1].num_features)
    stateless[1].track_running_stats = False
    stateless[1].running_mean = stateless[1].running_var = None
    expected = guides.fit(Around(stateless), "mean_field", X, Y, steps=6)
    torch.testing.assert_close(posterior.losses, expected.losses)

    after = _statistics(model), _statistics(posterior.model)
    posterior.predict(X, num_samples=3)
    posterior.diagnose(num_samples=25)
    posterior.to_arviz(num_samples=2, prior_samples=2)
    guides.fit(Around(_normalising(training=True)), "mean_field", X, Y, steps=6, num_particles=2, batch_size=4)
    _check_unmoved(model, after[0])
    _check_unmoved(posterior.model, after[1])


def test_normalisation_in_evaluation_mode_keeps_its_statistics() -> None:
    network = _normalising(training=True)
    network(X)
    model = Around(network.eval())
    before = _statistics(model)
    posterior = guides.fit(model, "mean_field", X, Y, steps=4, replicates=2, num_particles=2)
    posterior.predict(X[:1], num_samples=2)
    _check_unmoved(model, before)


def test_what_normalisation_cannot_share_is_refused_before_any_step() -> None:
    model = Around(_normalising(training=True))
    before = _statistics(model)
    with pytest.raises(errors.OptionError, match=r"BatchNorm1d is in training mode.*\.eval\(\)"):
        guides.fit(model, "mean_field", X, Y, steps=4, replicates=2)
    with pytest.raises(errors.UnsupportedModelError, match=r"depends on the others of its batch.*\.eval\(\)"):
        guides.fit(model, "laplace", X, Y, steps=4)
    with pytest.raises(errors.DataError):
        guides.fit(model, "mean_field", X, torch.ones(N, 3), steps=4)
    _check_unmoved(model, before)


class Counting(nn.Module):
    """A network that counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(IN * TIME, 1)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.out(x.flatten(1))


def test_a_buffer_that_the_model_changes_is_refused_by_name() -> None:
    model = Around(Counting())
    with pytest.raises(errors.UnsupportedModelError, match=r"changes the buffer 'network\.calls' of a Counting"):
        guides.fit(model, "mean_field", X, Y, steps=4, batch_size=4)
    assert float(model.network.calls) == 0.0


def _sum_of(latents: int) -> Callable[[Tensor], None]:
    def model(y: Tensor) -> None:
        total = sum(pyro.sample(f"z_{i}", dist.Normal(0.0, 1.0)) for i in range(latents))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(total, 1.0), obs=y)

    return model


def test_a_large_graph_is_not_lowered_to_find_out_that_it_does_not_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    lowered: list[int] = []
    monkeypatch.setattr("guides.compile.executable._LARGE", 50)
    monkeypatch.setattr("guides.compile.executable.NativeLoop", lambda *_: lowered.append(1))
    posterior = guides.fit(_sum_of(3), "mean_field", Y, steps=20)
    assert not lowered
    assert torch.isfinite(posterior.losses).all()


def test_lengths_among_the_data_are_not_taken_for_constants() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.LSTM(IN, HIDDEN, batch_first=True)
            self.out = nn.Linear(HIDDEN, 1)

        def forward(self, x: Tensor, lengths: Tensor, y: Tensor) -> None:
            pyro.module("model", self)
            scale = pyro.sample("scale", dist.HalfNormal(1.0))
            packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            mean = self.out(self.layer(packed)[1][0][-1]).squeeze(-1)
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Normal(mean, scale), obs=y)

    torch.manual_seed(0)
    model, lengths = Model(), torch.arange(N) % TIME + 1
    data, options = (X, lengths, Y), {"steps": 6, "batch_size": 4}
    expected = guides.fit(copy.deepcopy(model), "mean_field", *data, compile="eager", **options)
    with pytest.warns(EagerFallbackWarning, match="cannot be traced"):
        found = guides.fit(copy.deepcopy(model), "mean_field", *data, compile="trace", **options)
    torch.testing.assert_close(found.losses, expected.losses)
