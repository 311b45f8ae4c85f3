"""log_marginal against closed forms, its bounds on memory, and runs that are cut short."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from guide_models import line, linear, linear_posterior
from latent_models import LinearGaussian
from torch import nn

import guides
import guides.evidence.importance_weights
import guides.evidence.stream
from guides import log_marginal
from guides.compile.loops import has_compiler
from guides.compile.native.build import NativeLoop
from guides.evidence.importance_weights import Plan, WeightKernel
from guides.evidence.stream import Sums
from guides.program.data import Data
from guides.program.row_keys import row_keys
from guides.psis import psis, tail_length

PCA = LinearGaussian(orthogonal=False)
X = PCA.rows(60)
NEW = PCA.rows(50, seed=2)


@pytest.fixture(scope="module")
def wrong():
    return PCA.fitted(X, shift=0.2, stretch=1.2)


# -- the estimate ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compile", ["eager", "trace"])
def test_agrees_with_the_closed_form_within_the_stated_error(wrong, compile):
    found = log_marginal(wrong, NEW, num_samples=2000, split="test", compile=compile, chunk=5000)
    z = (found.values - PCA.log_marginal(NEW)) / found.standard_error
    assert z.abs().max() < 4.5
    assert 0.7 < float(z.std()) < 1.35, "the stated error is the error made"
    assert abs(found.mean - float(PCA.log_marginal(NEW).mean())) < 4 * found.mean_standard_error
    assert found.values.shape == found.standard_error.shape == found.k_hat.shape == (50,)
    assert found.num_samples == 2000 and found.num_points == 50


def test_is_exact_without_error_at_the_exact_posterior():
    found = log_marginal(PCA.fitted(X), NEW, num_samples=100)
    torch.testing.assert_close(found.values, PCA.log_marginal(NEW), rtol=0, atol=2e-5)
    assert found.standard_error.max() < 1e-6
    assert (found.k_hat == 0).all() and found.share_above_threshold == 0
    assert "at most 0.00" in str(found)


def test_the_standard_error_is_that_of_repetitions(wrong):
    runs = [log_marginal(wrong, NEW[:4], num_samples=400, seed=s) for s in range(60)]
    spread = torch.stack([r.values for r in runs]).std(0)
    stated = torch.stack([r.standard_error for r in runs]).mean(0)
    assert ((stated / spread) > 0.7).all() and ((stated / spread) < 1.4).all()
    means = torch.tensor([r.mean for r in runs])
    assert 0.7 < runs[0].mean_standard_error / float(means.std()) < 1.4


def test_is_a_lower_bound_on_average_that_rises_with_the_draws():
    far = PCA.fitted(X, shift=0.6, stretch=0.9)
    many = NEW.repeat(40, 1)
    means = [log_marginal(far, many, num_samples=s, seed=s).mean for s in (1, 5, 50)]
    exact = float(PCA.log_marginal(NEW).mean())
    assert means[0] < means[1] < means[2] < exact
    first = log_marginal(far, many, num_samples=200)
    assert first.mean - exact < 0 and abs(first.mean - float(first.bias.mean()) - exact) < abs(first.mean - exact)


def test_one_draw_is_the_elbo_and_has_no_error(wrong):
    found = log_marginal(wrong, NEW, num_samples=1)
    assert found.standard_error.isnan().all() and found.k_hat.isnan().all()
    assert "no k-hat" in str(found) and math.isnan(found.share_above_threshold)


def test_k_hat_warns_of_an_encoder_that_is_too_narrow():
    found = log_marginal(PCA.fitted(X, stretch=0.4), NEW, num_samples=1000)
    assert found.share_above_threshold > 0.5
    assert "lower bounds" in str(found)


def test_conditional_models_are_evaluated_given_their_inputs():
    """y | x with a latent per row, the posterior of which is known: z ~ N(x, 1), y ~ N(z, 1)."""

    def model(x, y=None):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x, 1.0))
            return pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    def guide(x, y=None):
        idle = pyro.param("idle", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x + y) / 2 + 0 * idle, 0.9))

    guide.amortized = frozenset({"z"})
    x, y = torch.randn(30), torch.randn(30)
    found = log_marginal(guides.fit(model, guide, x, y, steps=1), x[:7], y[:7], num_samples=3000)
    exact = dist.Normal(x[:7], math.sqrt(2)).log_prob(y[:7])
    assert ((found.values - exact) / found.standard_error).abs().max() < 4.5


# -- latents that rows share -------------------------------------------------------------------------------------------


def test_shared_latents_give_one_log_evidence_of_all_training_data():
    x, y = line()
    posterior = guides.fit(linear, "full_rank", x, y, steps=1500, lr=0.02, schedule="cosine")
    found = log_marginal(posterior, num_samples=4000)
    *_, evidence = linear_posterior(x, y)
    assert found.values.shape == (1,) and found.num_points == 30 and math.isnan(found.sampling_error)
    assert abs(found.mean - evidence) < 4 * found.mean_standard_error + 1e-3
    assert "together" in str(found)
    with pytest.raises(guides.errors.UnsupportedModelError, match=r"'w' is shared by all rows.*log_likelihood"):
        log_marginal(posterior, x[:5], y[:5])


def test_a_guide_that_keeps_values_of_rows_takes_the_training_rows_only():
    posterior = guides.fit(PCA.model, "mean_field", X, steps=20)
    assert log_marginal(posterior, X, num_samples=50).values.shape == (1,)
    with pytest.raises(guides.errors.UnsupportedModelError, match=r"'z' has one value per row.*'amortized'"):
        log_marginal(posterior, NEW)


def test_guides_without_a_density_are_refused():
    x, y = line()
    with pytest.raises(guides.errors.UnsupportedModelError, match="'map' is a point mass"):
        log_marginal(guides.fit(linear, "map", x, y, steps=20))


def test_sites_outside_of_the_plate_are_named():
    def guide(x):
        idle = pyro.param("idle", torch.tensor(0.0))
        pyro.sample("z", dist.Normal(PCA.posterior_mean(x) + 0 * idle, 1.0).to_event(2))

    guide.amortized = frozenset({"z"})
    posterior = guides.fit(PCA.model, guide, X, steps=1)
    with pytest.raises(guides.errors.UnsupportedModelError, match="one plate of the"):
        log_marginal(posterior, NEW)


# -- mixtures ----------------------------------------------------------------------------------------------------------


def two_sided(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        return pyro.sample("x", dist.Normal(z**2, 0.5), obs=x)


def test_mixtures_divide_by_their_whole_density_or_by_the_component():
    """Blind spot of the latter: components that are apart see one mode each, so half of p(x), with a good k-hat."""
    x = torch.full((5,), 1.2)
    posterior = guides.fit(two_sided, ("mixture", {"components": 2}), x, steps=600, lr=0.05)
    grid = torch.linspace(-6, 6, 20001).double()
    joint = dist.Normal(0.0, 1.0).log_prob(grid) + dist.Normal(grid[:, None] ** 2, 0.5).log_prob(x.double()).sum(1)
    exact = float(joint.logsumexp(0)) + math.log(12 / 20000)
    full, component = (log_marginal(posterior, num_samples=20000, denominator=d) for d in ("full", "component"))
    assert abs(full.mean - exact) < 4 * full.mean_standard_error
    assert abs(component.mean - (exact - math.log(2))) < 0.05
    assert component.k_hat < 0.7 and component.standard_error < 0.01
    with pytest.raises(guides.errors.OptionError, match="no mixture"):
        log_marginal(guides.fit(two_sided, "mean_field", x, steps=5), denominator="component")
    with pytest.raises(guides.errors.OptionError, match="use 'full'"):
        log_marginal(posterior, denominator="all")


# -- chunks and memory -------------------------------------------------------------------------------------------------


def test_chunks_reach_the_end_of_rows_and_draws(wrong):
    for rows, draws, chunk in ((1, 26, 7), (7, 31, 10), (50, 40, 999), (13, 200, 64)):
        found = log_marginal(wrong, NEW[:rows], num_samples=draws, chunk=chunk)
        assert found.values.shape == (rows,) and found.values.isfinite().all()


def test_what_is_in_memory_does_not_grow_with_the_draws(wrong, monkeypatch):
    """Tensors of a chunk are bounded by the plan, and between chunks only the tail of one block of rows is kept."""
    for samples in (100, 5000, 10**8):
        plan = Plan.make(10_000, samples, elements=8000, chunk=None, device=torch.device("cpu"))
        assert plan.rows * plan.draws * plan.elements <= 2**25
        kept = plan.rows * (tail_length(samples) + 1 + max(plan.draws, guides.evidence.stream._DRAWS_PER_GROUP))
        assert 8 * 4 * kept < 2**28, "four copies in float64"
    seen = []
    call = WeightKernel.__call__
    monkeypatch.setattr(WeightKernel, "__call__", lambda self, *a: seen.append((w := call(self, *a)).shape) or w)
    add = Sums.add
    kept = []
    monkeypatch.setattr(Sums, "add", lambda self, w, keep: kept.append((s := add(self, w, keep)).largest.shape) or s)
    log_marginal(wrong, NEW, num_samples=3000, chunk=200)
    assert max(rows * draws for rows, draws in seen) <= 200
    assert max(columns for _, columns in kept) == tail_length(3000) + 1


def test_streamed_results_are_those_of_all_weights_at_once(wrong):
    torch.manual_seed(0)
    weights = 2 * torch.randn(5, 3000).double() - 100
    sums = Sums.start(5, torch.device("cpu"))
    for part in weights.split(170, dim=1):
        sums = sums.add(part, tail_length(3000) + 1)
    values, errors, k_hats = sums.results()
    torch.testing.assert_close(values, weights.logsumexp(1) - math.log(3000))
    w = (weights - weights.amax(1, keepdim=True)).exp()
    torch.testing.assert_close(errors, w.std(1) / w.mean(1) / math.sqrt(3000))
    torch.testing.assert_close(k_hats, psis(weights)[1])


def test_weights_that_are_not_finite_are_not_hidden():
    sums = Sums.start(2, torch.device("cpu"))
    weights = torch.zeros(2, 100).double()
    weights[0, 3] = math.nan
    weights[1] = -math.inf
    values, _, k_hats = sums.add(weights, tail_length(100) + 1).results()
    assert values[0].isnan() and values[1] == -math.inf and k_hats.isnan().all()


def test_same_seed_same_values_and_no_global_state(wrong):
    state = torch.get_rng_state()
    one, two, other = (log_marginal(wrong, NEW, num_samples=100, seed=s) for s in (0, 0, 1))
    assert torch.equal(one.values, two.values) and not torch.equal(one.values, other.values)
    assert torch.equal(torch.get_rng_state(), state)
    assert not list(pyro.get_param_store().keys())


@pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")
def test_compiled_weights_are_the_traced_ones(monkeypatch):
    calls, run = [], NativeLoop.__call__
    monkeypatch.setattr(NativeLoop, "__call__", lambda self, *args: calls.append(1) or run(self, *args))
    guide = ("amortized", {"encoder": nn.Linear(4, 6), "covariance": "full"})
    posterior = guides.fit(PCA.model, guide, X, steps=3, compile="eager")
    traced, compiled = (log_marginal(posterior, NEW, num_samples=500, chunk=1000, compile=c) for c in ("trace", "native"))
    assert len(calls) > 25, "every chunk"
    torch.testing.assert_close(traced.values, compiled.values, rtol=0, atol=1e-3)


def test_weights_that_cannot_be_compiled_are_traced_and_that_is_said(wrong):
    with pytest.warns(guides.errors.EagerFallbackWarning, match="linalg_inv"):
        found = log_marginal(wrong, NEW, num_samples=20, chunk=100, compile="native")
    traced = log_marginal(wrong, NEW, num_samples=20, chunk=100, compile="trace")
    torch.testing.assert_close(found.values, traced.values)


# -- cut short and continued -------------------------------------------------------------------------------------------


def _cut(monkeypatch, after):
    """Raise KeyboardInterrupt after so many chunks."""
    call, count = WeightKernel.__call__, 0

    def counted(self, *args):
        nonlocal count
        count += 1
        if count > after:
            raise KeyboardInterrupt
        return call(self, *args)

    monkeypatch.setattr(WeightKernel, "__call__", counted)


@pytest.mark.parametrize("after", [3, 17, 40])
def test_a_run_that_is_continued_equals_one_that_was_not_interrupted(wrong, tmp_path, monkeypatch, after):
    """Cut inside the first group, inside a block of rows, and between blocks."""
    options = {"num_samples": 3000, "chunk": 2000}
    whole = log_marginal(wrong, NEW, **options)
    path = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        _cut(patch, after)
        log_marginal(wrong, NEW, checkpoint=path, **options)
    content = torch.load(path, weights_only=True)
    assert content["finished"] or content["chunk"] or after == 3
    again = log_marginal(wrong, NEW, checkpoint=path, **options)
    for name in ("values", "standard_error", "k_hat"):
        assert torch.equal(getattr(again, name), getattr(whole, name))
    assert not path.with_name("run.tmp").exists()


def test_draws_that_are_not_built_from_normals_are_continued_too(tmp_path, monkeypatch):
    """Gamma draws come from torch's own generator; z ~ Gamma(2, 1), x ~ Poisson(z), the guide wrong in its shape."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(torch.full((len(x),), 2.0), 1.0))
            return pyro.sample("x", dist.Poisson(z), obs=x)

    def guide(x):
        idle = pyro.param("idle", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Gamma(0.8 * (x + 2.0) + 0 * idle, 1.8))

    guide.amortized = frozenset({"z"})
    x = torch.arange(6.0)
    posterior = guides.fit(model, guide, x, steps=1, compile="eager")
    options = {"num_samples": 3000, "chunk": 600}
    whole = log_marginal(posterior, x, **options)
    exact = dist.NegativeBinomial(2.0, torch.tensor(0.5)).log_prob(x)
    assert ((whole.values - exact) / whole.standard_error).abs().max() < 4.5
    path = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        _cut(patch, 17)
        log_marginal(posterior, x, checkpoint=path, **options)
    assert torch.equal(log_marginal(posterior, x, checkpoint=path, **options).values, whole.values)


@pytest.mark.slow
def test_a_run_that_was_killed_is_continued(wrong, tmp_path):
    """As by kill -9: nothing is saved at the end, only now and then on the way."""
    script = f"""
import sys, torch
sys.path.insert(0, {str(Path(__file__).parent)!r})
torch.set_num_threads(1)
import guides, guides.evidence.stream
from latent_models import LinearGaussian
guides.checkpoint_file._SECONDS_BETWEEN = 0.0
pca = LinearGaussian(orthogonal=False)
posterior = pca.fitted(pca.rows(60), shift=0.2, stretch=1.2)
guides.log_marginal(posterior, pca.rows(50, seed=2), num_samples=20000, chunk=500, checkpoint={str(tmp_path / "run")!r})
"""
    process = subprocess.Popen([sys.executable, "-c", script], cwd=Path(guides.__file__).parents[1])
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "run").exists() and time.monotonic() < deadline:
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    saved = torch.load(tmp_path / "run", weights_only=True)
    assert len(saved["finished"]) < 5
    options = {"num_samples": 20000, "chunk": 500}
    again = log_marginal(wrong, NEW, checkpoint=tmp_path / "run", **options)
    whole = log_marginal(wrong, NEW, **options)
    for name in ("values", "standard_error", "k_hat"):
        assert torch.equal(getattr(again, name), getattr(whole, name))


def test_a_finished_run_is_read_and_not_repeated(wrong, tmp_path, monkeypatch):
    path = tmp_path / "run"
    first = log_marginal(wrong, NEW, num_samples=100, checkpoint=path)
    _cut(monkeypatch, 0)
    assert torch.equal(log_marginal(wrong, NEW, num_samples=100, checkpoint=path).values, first.values)


def test_a_checkpoint_of_another_run_is_refused(wrong, tmp_path):
    path = tmp_path / "run"
    log_marginal(wrong, NEW, num_samples=100, checkpoint=path)
    other = PCA.fitted(X, shift=0.2, stretch=1.2)
    other.flat.add_(1.0)
    for posterior, rows, options in (
        (wrong, NEW, {"num_samples": 101}),
        (wrong, NEW, {"seed": 1}),
        (wrong, NEW.flip(0), {}),
        (wrong, NEW[:49], {}),
        (other, NEW, {}),
    ):
        with pytest.raises(guides.errors.OptionError, match="belongs to a run with other"):
            log_marginal(posterior, rows, checkpoint=path, **{"num_samples": 100, **options})
    path.write_bytes(b"no checkpoint")
    with pytest.raises(guides.errors.OptionError, match="damaged"):
        log_marginal(wrong, NEW, num_samples=100, checkpoint=path)


def test_progress_counts_draws(wrong, capsys):
    log_marginal(wrong, NEW, num_samples=20, progress=True)
    log_marginal(wrong, NEW, num_samples=20, progress=False)
    assert capsys.readouterr().out == ""


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 0}, "num_samples must be a whole number of at least 1, not 0"),
        ({"num_samples": 2.5}, "num_samples must be a whole number"),
        ({"chunk": 0}, "chunk must be"),
        ({"split": "validation"}, "split='validation' is not known"),
        ({"compile": "fast"}, "compile='fast' is not known"),
    ],
)
def test_options_that_make_no_sense_are_named(wrong, options, message):
    with pytest.raises(guides.errors.OptionError, match=message):
        log_marginal(wrong, NEW, **options)


def test_rows_with_nan_are_refused(wrong):
    rows = NEW.clone()
    rows[3, 1] = math.nan
    with pytest.raises(guides.errors.DataError, match=r"NaN or infinite values, the first at index \(3, 1\)"):
        log_marginal(wrong, rows)


def test_values_outside_a_support_are_refused_in_new_rows_too():
    """Grey levels under a Bernoulli would have a finite log_prob, and give a number that means nothing."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))
            pyro.sample("x", dist.Bernoulli(logits=z.unsqueeze(-1).expand(x.shape)).to_event(1), obs=x)

    def guide(x):
        idle = pyro.param("idle", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.mean(-1) + idle, 1.0))

    guide.amortized = frozenset({"z"})
    posterior = guides.fit(model, guide, (torch.rand(20, 3) < 0.5).float(), steps=1)
    grey = torch.full((2000, 3), 1.0)
    grey[1999] = 0.4
    for function in (log_marginal, guides.inference_gap):
        with pytest.raises(guides.errors.DataError, match="cannot be run on the data it was given"):
            function(posterior, grey)


def test_training_rows_are_no_test_rows(wrong):
    for rows in ((), (X,), (X[5:9],), (X.flip(0),), (torch.cat([X, NEW[:20]]),)):
        with pytest.raises(guides.errors.DataError, match="rows that the posterior was fitted to"):
            log_marginal(wrong, *rows, num_samples=10, split="test")
    found = log_marginal(wrong, X, num_samples=10, split="train")
    assert found.split == "train" and "train data" not in str(found) and "of train 60" in str(found)
    log_marginal(wrong, torch.cat([X[:3], NEW]), num_samples=10, split="test")


def test_several_fits_are_refused():
    x, y = line()
    posterior = guides.fit(linear, "mean_field", x, y, steps=5, replicates=2)
    with pytest.raises(guides.errors.OptionError, match=r"replicate\(0\)"):
        log_marginal(posterior)


def test_rows_are_told_apart_by_their_keys():
    """Binary images that differ in one pixel, and the same in other types; minus zero is zero."""
    x = (torch.rand(3000, 64) < 0.5).float()
    x = torch.cat([x, x[:1].clone()])
    x[-1, 7] = 1 - x[-1, 7]
    keys = row_keys(Data.of((x,)))
    assert len(keys.unique()) == len(x.unique(dim=0)) == 3001
    for same in (x.double(), x.bool(), x.int(), torch.where(x == 0, -0.0, x)):
        assert torch.equal(row_keys(Data.of((same,))), keys)
    assert torch.equal(row_keys(Data.of((x[100:200],))), keys[100:200])
