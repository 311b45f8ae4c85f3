"""Files of long work: told apart by all that their content depends on, written whole or not at all, trained longer."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from guide_models import linear
from torch import nn

import guides

GENERATOR = torch.Generator().manual_seed(3)
X = torch.randn(40, 2, generator=GENERATOR)
Y = (torch.rand(40, generator=GENERATOR) < 0.5).float()
Y[:20], Y[20:] = 0.0, 1.0  # balanced: 1 - y has the same sum
QUICK = {"steps": 12, "lr": 0.05, "compile": "eager"}


def normal(scale=1.0, prior=1.0, depth=1):
    def model(x, y=None, offset=0.0, net=None):
        w = pyro.sample("w", dist.Normal(torch.zeros(2), prior).to_event(1))
        mean = x @ w + offset
        for _ in range(depth):
            mean = mean + 0.0 if net is None else net(mean[:, None]).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, scale), obs=y)

    return model


def studentised(x, y=None, offset=0.0, net=None):
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.StudentT(1e6, x @ w + offset, 1.0), obs=y)  # hardly another number, but another model


class Labels:
    """A callable with a number of its own."""

    def __init__(self, scale):
        self.scale = scale

    def __call__(self, x, y=None):
        normal(self.scale)(x, y)


ORDER = torch.randperm(40, generator=GENERATOR)
OTHERS = {
    "likelihood sd 100": {"model": normal(100.0)},
    "likelihood sd 1.001": {"model": normal(1.001)},
    "prior sd": {"model": normal(prior=2.0)},
    "another family": {"model": studentised},
    "a callable's number": {"model": Labels(3.0)},
    "labels 1 - y": {"data": (X, 1 - Y)},
    "permuted rows": {"data": (X[ORDER], Y[ORDER])},
    "permuted targets": {"data": (X, Y[ORDER])},
    "two values swapped": {"data": (X[:, [1, 0]], Y)},
    "model_kwargs": {"model_kwargs": {"offset": 1.0}},
    "a tensor among model_kwargs": {"model_kwargs": {"offset": torch.linspace(-1, 1, 40)}},
    "validation data": {"validation": (X[:5], Y[:5] + 1)},
    "validation": {"validation": (X[5:10], Y[5:10])},
    "guide's option": {"guide": ("mean_field", {"init_scale": 0.2})},
    "guide": {"guide": "full_rank"},
    "objective": {"objective": "iwae"},
    "objective's setting": {"objective": guides.ELBO(kl_weight=0.5)},
    "warmup": {"objective": guides.ELBO(kl_weight=guides.KLAnnealing(7))},
    "seed": {"seed": 1},
    "precision": {"precision": "bfloat16"},
    "patience": {"validation": (X[:5], Y[:5]), "patience": 2},
}


def fit(path=None, **other):
    arguments = {**QUICK, "guide": "mean_field", "data": (X, Y), "model": normal(), **other}
    model, guide, data = (arguments.pop(name) for name in ("model", "guide", "data"))
    return guides.fit(model, guide, *data, checkpoint=path, **arguments)


@pytest.mark.parametrize("what", OTHERS)
def test_a_checkpoint_of_any_other_fit_is_refused(what, tmp_path):
    path = tmp_path / "state"
    base = {"validation": (X[:5], Y[:5])} if what in ("validation data", "validation", "patience") else {}
    if what == "a callable's number":
        base = {"model": Labels(1.0)}
    if what == "a tensor among model_kwargs":
        base = {"model_kwargs": {"offset": torch.linspace(1, -1, 40)}}
    first = fit(path, **base)
    again = fit(path, **base)
    torch.testing.assert_close(again.flat, first.flat, rtol=0, atol=0)
    with pytest.raises(guides.errors.OptionError, match="belongs to a fit with other options, data or model; delete it"):
        fit(path, **{**base, **OTHERS[what]})


@pytest.mark.parametrize(
    ("what", "named"),
    [
        ("labels 1 - y", "What differs: argument 1$"),
        ("likelihood sd 100", "the operations of model, guide and objective"),
        ("guide", r"the guide \('MeanField' there, 'FullRank' here\)"),
        ("seed", r"seeds \(\[0\] there, \[1\] here\)"),
        ("guide's option", "the guide's options"),
    ],
)
def test_the_refusal_says_what_differs(what, named, tmp_path):
    fit(tmp_path / "state")
    with pytest.raises(guides.errors.OptionError, match=named):
        fit(tmp_path / "state", **OTHERS[what])


def test_a_model_that_cannot_be_traced_is_told_by_its_code_and_what_it_computes(tmp_path):
    def branching(scale):
        def model(x, y=None):
            w = pyro.sample("w", dist.Normal(0.0, 1.0))
            sign = 1.0 if w > -1000 else -1.0
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Normal(sign * x[:, 0] * w, scale), obs=y)

        return model

    fit(tmp_path / "state", model=branching(1.0))
    fit(tmp_path / "state", model=branching(1.0))
    with pytest.raises(guides.errors.OptionError, match="belongs to a fit with other"):
        fit(tmp_path / "state", model=branching(1.5))


def test_the_same_fit_goes_on_although_its_networks_were_trained_meanwhile(tmp_path):
    """The caller's network holds what the first fit found; the second one starts there, and is the same fit."""
    net = nn.Linear(1, 1)

    def model(x, y=None):
        pyro.module("net", net)
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(net(x[:, :1]).squeeze(-1) + w, 1.0), obs=y)

    first = fit(tmp_path / "state", model=model)
    torch.testing.assert_close(fit(tmp_path / "state", model=model).flat, first.flat, rtol=0, atol=0)
    longer = fit(tmp_path / "state", model=model, steps=20)
    assert longer.losses.shape == (1, 20)
    with torch.no_grad():
        net.weight.add_(1.0)
    with pytest.raises(guides.errors.OptionError, match=r"where parameter 'net\$\$\$weight' starts"):
        fit(tmp_path / "state", model=model)


@pytest.mark.parametrize("options", [{}, {"batch_size": 8}, {"replicates": 2}])
def test_a_checkpoint_is_trained_longer(options, tmp_path, monkeypatch):
    """With a constant schedule, as if all steps had been asked for at once: rounds of so many steps draw the same noise."""
    monkeypatch.setattr("guides.optimise.loop._STEPS_PER_CHUNK", 50)
    whole = fit(steps=60, compile="auto", **options)
    path = tmp_path / "state"
    fit(path, steps=50, compile="auto", **options)
    longer = fit(path, steps=60, compile="auto", **options)
    torch.testing.assert_close(longer.flat, whole.flat, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(longer.losses[:, :50], whole.losses[:, :50], rtol=1e-4, atol=1e-3)
    assert longer.stop_reasons == whole.stop_reasons
    assert longer.steps == 60
    with pytest.raises(guides.errors.OptionError, match="it has run 60 steps, 10 are asked for"):
        fit(path, steps=10, **options)


def test_a_checkpoint_that_cannot_be_written_costs_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("guides.checkpoint_file._SECONDS_BETWEEN", -1.0)
    monkeypatch.setattr("guides.optimise.loop._STEPS_PER_CHUNK", 10)
    want = fit(steps=40)
    with pytest.warns(guides.errors.StorageWarning, match="cannot be written") as caught:
        found = fit(tmp_path / "no folder" / "state", steps=40)
    assert len(caught) == 1
    torch.testing.assert_close(found.flat, want.flat, rtol=0, atol=0)


_FULL = """
import resource, signal, sys, warnings, torch, guides
from guide_models import linear
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
x = torch.randn(200, 3)
fit = lambda **options: guides.fit(linear, "mean_field", x, x[:, 0], steps=20, compile="eager", **options)
posterior = fit(checkpoint=sys.argv[1] + "/good")
posterior.save(sys.argv[1] + "/saved")
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))  # the disk is full after 2000 bytes
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    again = fit(checkpoint=sys.argv[1] + "/state")
    found = fit(checkpoint=sys.argv[1] + "/state")
assert [w.category for w in caught] == [guides.errors.StorageWarning] * 2, caught
assert torch.equal(again.flat, posterior.flat)
for path in ("/new", "/saved"):
    try:
        posterior.save(sys.argv[1] + path)
    except guides.errors.StorageError as error:
        assert "cannot be written" in str(error), error
    else:
        raise AssertionError
model = lambda x: None
guides.Posterior.load(sys.argv[1] + "/saved", linear)
"""


def run(script, folder, **options):
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{here.parents[1]}:{here}", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", script, str(folder)], env=environment, text=True, **options)


def test_a_full_disk_costs_neither_the_fit_nor_what_was_saved_before(tmp_path):
    process = run(_FULL, tmp_path, stderr=subprocess.PIPE)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert sorted(p.name for p in tmp_path.iterdir()) == ["good", "saved"]


def test_a_planted_link_is_not_written_through(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("mine")
    for name in ("state.tmp", "saved.tmp"):
        (tmp_path / name).symlink_to(secret)
    fit(tmp_path / "state").save(tmp_path / "saved")
    assert secret.read_text() == "mine"
    assert not (tmp_path / "saved").is_symlink()
    assert (tmp_path / "saved").stat().st_mode == (tmp_path / "secret").stat().st_mode  # as the umask has it


def test_what_cannot_be_pickled_leaves_no_file_behind(tmp_path):
    posterior = fit(model=lambda x, y=None, offset=None, net=None: linear(x, y), model_kwargs={"net": object})
    with pytest.raises(guides.errors.OptionError, match="cannot be saved without pickle"):
        posterior.save(tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_without_an_entry_is_damaged(tmp_path):
    path = tmp_path / "state"
    fit(path)
    content = torch.load(path, weights_only=True)
    for name in ("state", "noise", "initial", "estimates"):
        torch.save({k: v for k, v in content.items() if k != name}, path)
        with pytest.raises(guides.errors.OptionError, match=r"damaged.*delete it"):
            fit(path)


class Interrupting:
    """A model during whose call number ``call`` Ctrl-C is pressed."""

    def __init__(self, model, call):
        self.model, self.call, self.count = model, call, 0

    def __call__(self, x, y=None):
        self.count += 1
        if self.count == self.call:
            raise KeyboardInterrupt
        return self.model(x, y)


def test_ctrl_c_returns_what_was_fitted(monkeypatch):
    monkeypatch.setattr("guides.optimise.loop._STEPS_PER_CHUNK", 10)
    with pytest.warns(guides.errors.InterruptedFitWarning, match="interrupted after 20 of 400 steps"):
        posterior = fit(model=Interrupting(linear, 30), steps=400)
    assert posterior.stop_reasons == ("interrupted at step 20",)
    assert posterior.steps == 20
    want = fit(model=linear, steps=20)
    torch.testing.assert_close(posterior.flat, want.flat, rtol=0, atol=0)
    torch.testing.assert_close(posterior.losses, want.losses, rtol=0, atol=0)
    assert posterior.predict(num_samples=3)["y"].shape == (3, 40)


def test_ctrl_c_before_anything_was_fitted_ends_the_fit():
    with pytest.raises(KeyboardInterrupt):
        fit(model=Interrupting(linear, 12), steps=400)


def test_an_interrupted_fit_goes_on_from_its_checkpoint_as_if_nothing_had_happened(tmp_path, monkeypatch):
    monkeypatch.setattr("guides.optimise.loop._STEPS_PER_CHUNK", 10)
    whole, path = fit(model=linear, steps=60), tmp_path / "state"
    with pytest.warns(guides.errors.InterruptedFitWarning):
        fit(path, model=Interrupting(linear, 45), steps=60)
    longer = fit(path, model=Interrupting(linear, 10**6), steps=60)
    torch.testing.assert_close(longer.flat, whole.flat, rtol=0, atol=0)


_INTERRUPTED = """
import torch, guides
from guide_models import regression
x = torch.randn(20_000, 3)
posterior = guides.fit(regression, "mean_field", x, x[:, 0], steps=10**7, progress=True)
print(posterior.stop_reasons[0], posterior.sample(5)["w"].shape)
"""


def test_ctrl_c_in_a_terminal_with_a_progress_bar(tmp_path):
    process = run(_INTERRUPTED, tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    seen = ""
    deadline = time.monotonic() + 200
    while "step/s" not in seen and time.monotonic() < deadline:
        seen += process.stderr.read(1)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert out.startswith("interrupted at step ")
    assert "InterruptedFitWarning" in errors


def test_a_comparison_ends_at_ctrl_c(monkeypatch):
    monkeypatch.setattr("guides.optimise.loop._STEPS_PER_CHUNK", 10)
    model = Interrupting(linear, 40)
    with pytest.raises(KeyboardInterrupt), pytest.warns(guides.errors.InterruptedFitWarning):
        guides.compare(model, ["mean_field", "full_rank"], X, Y, **{**QUICK, "steps": 400}, num_samples=30)


def test_a_run_of_log_marginal_of_another_model_is_refused(tmp_path):
    def rows(scale):
        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, scale), obs=x)

        return model

    def guide(x):
        slope = pyro.param("slope", torch.tensor(0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(slope * x, 0.8))

    guide.amortized = frozenset({"z"})
    x = torch.linspace(-1, 1, 10)
    first, other = (guides.fit(rows(scale), guide, x, steps=1, lr=1e-30, compile="eager") for scale in (1.0, 2.0))
    options = {"num_samples": 50, "checkpoint": tmp_path / "run"}
    want = guides.log_marginal(first, x, **options)
    assert torch.equal(guides.log_marginal(first, x, **options).values, want.values)
    with pytest.raises(guides.errors.OptionError, match=r"belongs to a run with other.*the operations of model and guide"):
        guides.log_marginal(other, x, **options)
    with pytest.warns(guides.errors.StorageWarning, match="cannot be written"):
        lost = guides.log_marginal(first, x, num_samples=50, checkpoint=tmp_path / "no folder" / "run")
    assert torch.equal(lost.values, want.values)
