"""The engine against the reference: eager, traced, compiled, replicated, in minibatches."""

import math
import os

import pyro
import pyro.distributions as dist
import pytest
import reference
import torch
from guide_models import GENERAL, line, network, regression

import guides
from guides import errors
from guides.compile.agreement import Judge
from guides.compile.loops import has_compiler
from guides.compile.native.build import NativeLoop
from guides.optimise import memory
from guides.optimise.optimisers import make_optimiser

STEPS, LR = 40, 0.05
CLOSE = {"rtol": 2e-4, "atol": 2e-3}


@pytest.fixture(scope="module")
def data():
    return line()


def set_up(family, options, data):
    """A guide with its parameters made, and their unconstrained values."""
    pyro.set_rng_seed(3)
    start = {} if family == "structured" else {"init_loc_fn": spread}  # which hands its options on to groups alone
    guide = guides.families[family](regression, **start, **options)
    with pyro.get_param_store().scope():
        guide(*data)
    return guide, {n.removesuffix("_unconstrained"): v.detach().clone() for n, v in guide.named_parameters()}


def spread(site=None):
    if site is None:
        return spread
    return site["fn"].sample() * 0.3 + 0.5


def test_every_family_and_objective_has_a_reference():
    assert {case[0] for case in reference.CASES.values()} == set(GENERAL)
    assert "elbo" in guides.objectives  # the others have tests of their own, in test_mixture.py and beside them


def follow(case, mode, data, chunk=None):
    """Fit a case with the engine and with the reference and compare losses and parameters."""
    family, options, objective_options, particles, objective, sizes = reference.CASES[case]
    guide, start = set_up(family, options, data)
    model = reference.Regression(*data)
    normals, uniforms = reference.noise(5, STEPS, particles, *sizes(len(data[0])), chunk)
    losses, end = reference.svi(lambda p, k: objective(model, p, normals[k], uniforms[k]), start, STEPS, LR)
    elbo = guides.ELBO(**objective_options)
    posterior = guides.fit(regression, guide, *data, objective=elbo, steps=STEPS, lr=LR, seed=5, compile=mode)
    torch.testing.assert_close(posterior.losses[0], losses, **CLOSE)
    assert losses[-1] < losses[0] - 1
    if family != "laplace":  # whose guide has become another one by now
        trained = {n.removesuffix("_unconstrained"): v for n, v in guide.named_parameters()}
        for name, value in end.items():
            torch.testing.assert_close(trained[name].detach(), value, **CLOSE)


@pytest.mark.parametrize("mode", ["eager", "trace"])
@pytest.mark.parametrize("case", reference.CASES)
def test_losses_and_parameters_follow_the_reference(case, mode, data):
    follow(case, mode, data)


@pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")
@pytest.mark.parametrize("case", reference.CASES)
def test_compiled_losses_follow_the_reference(case, data, monkeypatch):
    """The first two steps trace and check the graph; a few steps check the loop, which then runs every chunk."""
    monkeypatch.setattr("guides.optimise.loop._STEPS_PER_CHUNK", 10)
    calls = count_compiled_chunks(monkeypatch)
    follow(case, "native", data, chunk=10)
    chunks = [steps for steps in calls if steps > 2]  # the check takes one or two
    assert len(chunks) == math.ceil(STEPS / 10)


def count_compiled_chunks(monkeypatch):
    calls, run = [], NativeLoop.__call__

    def spy(self, *args):
        calls.append(args[2][0].shape[1])
        return run(self, *args)

    monkeypatch.setattr(NativeLoop, "__call__", spy)
    return calls


def fit(family, *data, **options):
    defaults = {"steps": STEPS, "lr": LR, "compile": "eager"}
    return guides.fit(regression, family, *data, **{**defaults, **options})


@pytest.mark.parametrize("family", GENERAL)
def test_replicate_r_is_the_single_fit_with_seed_plus_r(family, data):
    options = {"batch_size": 12, "num_particles": 2, "clip_norm": 5.0, "schedule": "cosine", "steps": 25}
    together = fit(family, *data, seed=7, replicates=3, compile="trace", **options)
    for r in (0, 2):
        single, part = fit(family, *data, seed=7 + r, **options), together.replicate(r)
        torch.testing.assert_close(part.losses, single.losses, **CLOSE)
        torch.testing.assert_close(part.flat, single.flat, **CLOSE)
        assert part.seed == single.seed
    assert (together.losses[0] - together.losses[1]).abs().max() > 0.1


def test_item_r_of_fit_many_is_the_single_fit_of_its_data(data):
    x, y = data
    datasets = [(x, y), (x.flip(0), y.flip(0) + 1), (x * 2, y)]
    many = guides.fit_many(regression, "mean_field", datasets, seeds=[3, 9, 4], steps=STEPS, lr=LR, batch_size=10)
    for posterior, arguments, seed in zip(many, datasets, [3, 9, 4]):
        single = fit("mean_field", *arguments, seed=seed, batch_size=10)
        torch.testing.assert_close(posterior.losses, single.losses, **CLOSE)
        assert posterior.seed == seed
        assert posterior.data[0] is arguments[0]
        torch.testing.assert_close(posterior.sample(50)["w"], single.sample(50)["w"], **CLOSE)


def test_a_replicate_does_not_depend_on_the_others(data):
    x, y = data
    first = guides.fit_many(regression, "mean_field", [(x, y), (x, y + 1)], steps=STEPS, lr=LR)[0]
    second = guides.fit_many(regression, "mean_field", [(x, y), (-x, 3 * y)], steps=STEPS, lr=LR)[0]
    torch.testing.assert_close(first.losses, second.losses, rtol=1e-5, atol=1e-4)


def test_laplace_finishes_each_replicate_by_itself(data):
    x, y = data
    many = guides.fit_many(regression, "laplace", [(x, y), (x, y + 1)], steps=200, lr=0.1)
    for r, posterior in enumerate(many):
        single = fit("laplace", x, y + r, steps=200, lr=0.1, seed=r)
        assert posterior.info[0]["log_evidence"] == pytest.approx(single.info[0]["log_evidence"], abs=1e-2)
        for name, value in single.parameters.items():
            torch.testing.assert_close(posterior.parameters[name], value, rtol=2e-3, atol=2e-3)


def test_minibatches_follow_the_reference(data, monkeypatch):
    monkeypatch.setattr("guides.optimise.loop._STEPS_PER_CHUNK", 9)  # the stream of rows goes on from chunk to chunk
    family, options, objective_options, particles, objective, sizes = reference.CASES["mean_field"]
    guide, start = set_up(family, options, data)
    x, y = data
    size = 7  # does not divide 30, so that batches span passes
    normals, uniforms = reference.noise(5, STEPS, particles, *sizes(size), chunk=9)
    rows = reference.batches(5, STEPS, len(x), size)

    def step(p, k):
        return objective(reference.Regression(x[rows[k]], y[rows[k]], len(x) / size), p, normals[k], uniforms[k])

    losses, _ = reference.svi(step, start, STEPS, LR)
    elbo = guides.ELBO(**objective_options)
    posterior = fit(guide, x, y, objective=elbo, batch_size=size, seed=5, compile="trace")
    torch.testing.assert_close(posterior.losses[0], losses, **CLOSE)


def test_sgd_clipping_and_schedules_follow_torch(data):
    guide, start = set_up("laplace", {}, data)
    model = reference.Regression(*data)
    p = start["loc"].clone().requires_grad_()
    sgd = torch.optim.SGD([p], lr=1.0, momentum=0.9)
    losses = []
    for k in range(STEPS):
        sgd.param_groups[0]["lr"] = 0.01 * (1 - k / STEPS)
        sgd.zero_grad()
        loss = -model(p)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p], 3.0)
        sgd.step()
        losses.append(loss.item())
    options = {"optimizer": "sgd", "lr": 0.01, "schedule": "linear", "clip_norm": 3.0}
    posterior = fit(guide, *data, **options)
    torch.testing.assert_close(posterior.losses[0], torch.tensor(losses), **CLOSE)


def test_chunks_do_not_change_the_trajectory_of_the_same_noise(data, monkeypatch):
    """Noise is drawn chunk by chunk; step numbers, moments and rates must not restart with a chunk."""
    monkeypatch.setattr("guides.optimise.loop._STEPS_PER_CHUNK", 7)
    guide, start = set_up("mean_field", {}, data)
    objective, sizes = reference.CASES["mean_field"][4:]
    normals, uniforms = reference.noise(5, STEPS, 1, *sizes(30), chunk=7)
    model = reference.Regression(*data)
    losses, _ = reference.svi(lambda p, k: objective(model, p, normals[k], uniforms[k]), start, STEPS, LR)
    torch.testing.assert_close(fit(guide, *data, seed=5).losses[0], losses, **CLOSE)


def branching(x, y=None):
    """A Python branch on a latent: what tracing would freeze."""
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    loc = z if z > 0.3 else 2 * z
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(loc, 0.5), obs=y)


def test_a_branch_on_a_latent_runs_eagerly_and_says_why(data):
    x, y = data[0][:, 0], data[1]
    with pytest.warns(errors.EagerFallbackWarning, match="cannot be traced") as caught:
        traced = guides.fit(branching, "mean_field", x, y, steps=STEPS, lr=LR, compile="trace")
    assert len(caught) == 1
    eager = guides.fit(branching, "mean_field", x, y, steps=STEPS, lr=LR, compile="eager")
    torch.testing.assert_close(traced.losses, eager.losses)


def test_python_state_that_changes_the_model_is_found_by_the_check(data):
    """Annealing by a counter leaves no trace in the graph: a graph of the first step would repeat its factor for ever."""
    x, y = data
    calls = []

    def annealed(x, y=None):
        calls.append(None)
        with pyro.poutine.scale(scale=float(len(calls))):
            w = pyro.sample("w", dist.Normal(torch.zeros(3), 0.1).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)

    with pytest.warns(errors.EagerFallbackWarning, match="depend on the values"):
        guides.fit(annealed, "mean_field", x, y, steps=STEPS, compile="trace")


def test_a_branch_taken_late_in_the_fit_is_found(data, monkeypatch):
    monkeypatch.setattr("guides.optimise.loop._STEPS_PER_CHUNK", 50)
    x, y = data
    runs, early = [], math.inf

    def late(x, y=None):
        runs.append(None)  # by the model itself only: a replayed graph does not get here
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0 if len(runs) <= early else 0.1).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)

    guides.fit(late, "mean_field", x, y, steps=STEPS, compile="trace")
    early = len(runs)  # what set-up, tracing and the first check take
    runs.clear()
    with pytest.warns(errors.EagerFallbackWarning, match="since an earlier check"):
        guides.fit(late, "mean_field", x, y, steps=120, compile="trace")


@pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")
def test_a_compiled_loop_is_found_again_and_used_at_once(data, monkeypatch, tmp_path):
    monkeypatch.setenv("GUIDES_CACHE", str(tmp_path))
    first = fit("mean_field", *data, compile="native")
    (library,) = tmp_path.iterdir()
    monkeypatch.setattr(NativeLoop, "_compile", None)  # to compile again would fail, and warn
    calls = count_compiled_chunks(monkeypatch)
    again = fit("mean_field", *data, compile="auto")
    assert calls
    torch.testing.assert_close(again.losses, first.losses)
    monkeypatch.setattr(Judge, "difference", lambda *_: "nothing is right")
    with pytest.warns(errors.EagerFallbackWarning, match="other numbers"):
        traced = fit("mean_field", *data, compile="native")
    assert not library.exists()
    torch.testing.assert_close(traced.losses, first.losses, **CLOSE)


def test_a_compiler_that_fails_leaves_the_fit_traced(data, monkeypatch, tmp_path):
    def broken(*_):
        raise OSError("no space left on device")

    monkeypatch.setenv("GUIDES_CACHE", str(tmp_path))
    monkeypatch.setattr(NativeLoop, "_compile", broken)
    with pytest.warns(errors.EagerFallbackWarning, match="no space left") as caught:
        fitted = fit("mean_field", *data, compile="native")
    assert len(caught) == 1
    torch.testing.assert_close(fitted.losses, fit("mean_field", *data).losses, **CLOSE)


@pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")
def test_what_a_killed_compiler_left_is_cleared_away(data, monkeypatch, tmp_path):
    monkeypatch.setenv("GUIDES_CACHE", str(tmp_path))
    for name in ("compiling-long-ago", "compiling-now"):
        (tmp_path / name).mkdir()
    os.utime(tmp_path / "compiling-long-ago", (0, 0))
    fit("mean_field", *data, compile="native")
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["compiling-now"]


def test_no_compiler_is_said_once(data, monkeypatch, tmp_path):
    monkeypatch.setenv("GUIDES_CACHE", str(tmp_path))
    monkeypatch.setattr("guides.compile.executable.has_compiler", lambda: False)
    with pytest.warns(errors.EagerFallbackWarning, match=r"no C\+\+ compiler") as caught:
        fit("mean_field", *data, compile="native")
    assert len(caught) == 1


def test_a_fit_too_short_to_gain_is_not_traced(data, monkeypatch):
    monkeypatch.setattr("guides.compile.tracing.make_fx", None)  # to use it would fail, and warn
    guides.fit(regression, "mean_field", *data, steps=3)


def test_a_network_traced_and_replicated_in_minibatches_is_the_eager_fit(data):
    options = {"steps": STEPS, "lr": LR, "batch_size": 8, "seed": 2}
    local = ("mean_field", {"estimator": "local"})
    traced = guides.fit(network, local, *data, replicates=2, compile="trace", **options)
    eager = guides.fit(network, local, *data, compile="eager", **options)
    torch.testing.assert_close(traced.replicate(0).losses, eager.losses, rtol=1e-3, atol=1e-2)


@pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")
def test_compiled_replicates_in_minibatches_are_the_single_eager_fits(data, monkeypatch):
    monkeypatch.setattr("guides.optimise.loop._STEPS_PER_CHUNK", 10)
    calls = count_compiled_chunks(monkeypatch)
    options = {"batch_size": 8, "clip_norm": 5.0, "schedule": "cosine"}
    together = fit("mean_field", *data, replicates=3, compile="native", **options)
    chunks = [steps for steps in calls if steps > 2]  # the check takes one or two
    assert len(chunks) == math.ceil(STEPS / 10)
    for r in (0, 2):
        single = fit("mean_field", *data, seed=r, **options)
        torch.testing.assert_close(together.replicate(r).losses, single.losses, **CLOSE)
        torch.testing.assert_close(together.replicate(r).flat, single.flat, **CLOSE)


class _WithoutSetup(torch.autograd.Function):
    """A gradient by hand in the form that torch.func cannot take."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad


def test_a_guide_whose_draws_torch_func_cannot_differentiate_runs_eagerly():
    def model(x):
        p = pyro.sample("p", dist.Beta(2.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Bernoulli(p), obs=x)

    def guide(x):
        ab = pyro.param("ab", torch.ones(2), constraint=dist.constraints.positive)
        ab = _WithoutSetup.apply(ab)
        pyro.sample("p", dist.Beta(ab[0], ab[1]))

    ones = torch.tensor([1.0, 0.0, 1.0, 1.0])
    with pytest.warns(errors.EagerFallbackWarning):
        posterior = guides.fit(model, guide, ones, steps=250, lr=0.1, schedule="cosine", num_particles=5)
    torch.testing.assert_close(posterior.parameters["ab"], torch.tensor([5.0, 2.0]), rtol=0.2, atol=0.0)


def test_replicates_that_do_not_fit_into_memory_run_in_batches(data, monkeypatch, tmp_path):
    options = {"replicates": 5, "validation": 0.2, "patience": 3, "epochs": 30, "steps": None, "compile": "trace"}
    together = fit("mean_field", *data, **options)
    monkeypatch.setattr("guides.optimise.loop.most_replicates", lambda elements, free: 2)
    apart = fit("mean_field", *data, checkpoint=tmp_path / "fit", **options)
    torch.testing.assert_close(apart.flat, together.flat, **CLOSE)
    torch.testing.assert_close(apart.losses, together.losses, equal_nan=True, **CLOSE)
    assert apart.stop_reasons == together.stop_reasons
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fit.0", "fit.1", "fit.2"]


def test_a_batch_of_replicates_takes_half_of_the_free_memory_at_most():
    assert memory.most_replicates(elements=1000, free=80_000) == 10
    assert memory.most_replicates(elements=1000, free=10) == 1
    assert memory.most_replicates(elements=1000, free=None) is None
    with memory.CountElements() as made:
        torch.ones(7) + torch.ones(7)
    assert made.elements == 21


def test_products_in_bfloat16_leave_the_sites_in_float32(data):
    seen = []

    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        loc = x @ w
        seen.append((w.dtype, loc.dtype, loc.detach() if loc.dim() == 1 else None))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(loc, 0.5), obs=y)

    options = {"steps": 200, "lr": 0.05, "compile": "trace"}
    exact = guides.fit(model, "map", *data, **options)
    rounded = guides.fit(model, "map", *data, precision="bfloat16", **options)
    assert {entry[:2] for entry in seen} == {(torch.float32, torch.float32)}
    assert not torch.equal(rounded.losses, exact.losses)
    torch.testing.assert_close(rounded.sample(1)["w"], exact.sample(1)["w"], rtol=0.03, atol=0.03)  # 8 bits of mantissa


def test_adam_is_adam_at_first_and_then_forgets_its_beginning():
    ours = make_optimiser("adam")
    weight = torch.zeros(1, requires_grad=True)
    theirs = torch.optim.Adam([weight], lr=1.0)
    grads = [100 * (1 + k % 3) for k in range(100)] + [1] * 900
    moments, factors = (torch.zeros(1, 1), torch.zeros(1, 1)), ours.factors(torch.arange(1.0, 1001.0)[:, None])
    for k, grad in enumerate(grads):
        before, weight.grad = weight.item(), torch.tensor([float(grad)])
        theirs.step()
        direction, moments = ours.update(weight.grad[None], moments, factors[k : k + 1])
        if k < 100:
            assert float(direction) == pytest.approx(before - weight.item(), rel=1e-3)
    assert float(direction) > 0.5 > 0.1 > before - weight.item()
    far = torch.tensor([[20000.0]])
    assert ours.factors(far).tolist() == [[1.0, pytest.approx(1e-3), 1.0]]


def test_clipped_adam_cuts_every_entry_of_the_gradient():
    plain, clipped = make_optimiser("adam"), make_optimiser("clipped_adam")
    grad = torch.tensor([[3.0, -200.0, 10.0]])
    moments, factors = (torch.zeros(1, 3), torch.zeros(1, 3)), plain.factors(torch.ones(1, 1))
    expected = plain.update(torch.tensor([[3.0, -10.0, 10.0]]), moments, factors)
    torch.testing.assert_close(clipped.update(grad, moments, factors), expected)
