"""Diagnoses of guides with an encoder: one that is exact, wrong ones, and one that is wrong in the blind spot."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from latent_models import LinearGaussian

import guides
from guides.diagnostics import RowWeights, Undefined, diagnose
from guides.diagnostics.row_weights import some_rows
from guides.program.data import Data

PCA = LinearGaussian(orthogonal=False)
X = PCA.rows(400)


def of(**wrong):
    return PCA.fitted(X, **wrong)


def test_an_exact_encoder_is_good_and_joint_figures_are_left_out():
    diagnosis = diagnose(of())
    finding = diagnosis.findings["row_weights"]
    assert isinstance(finding, RowWeights)
    assert diagnosis.verdict == "good" and diagnosis.k_hat == finding.median == 0.0
    assert finding.k_hats.shape == (100,) and finding.share_above == 0
    assert set(diagnosis.findings).isdisjoint({"pareto_k", "importance_ess", "psis_moments", "elpd_loo", "r_hat"})
    assert "k-hat per data point" in str(diagnosis) and "0 of 100 points" in str(diagnosis)
    rows = some_rows(Data.of((X,)), 100)
    assert finding.log_marginal[0] == pytest.approx(float(PCA.log_marginal(rows.args[0]).mean()), abs=1e-4)


def test_encoders_that_are_a_little_or_very_wrong():
    a_little, very = diagnose(of(shift=0.3, stretch=0.8)), diagnose(of(stretch=0.4))
    assert a_little.verdict == "usable" and 0.05 < a_little.findings["row_weights"].share_above <= 0.5
    assert very.verdict == "unreliable" and very.findings["row_weights"].share_above > 0.5
    assert "inference_gap" in very.summary and "% of 100 data points" in very.summary


def test_it_is_blind_to_a_mode_that_the_encoder_never_visits():
    """The blind spot: z and -z explain x alike, the encoder knows z > 0 only, and half of p(x) is missing."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 3.0))
            pyro.sample("x", dist.Normal(z.abs(), 0.1), obs=x)

    def guide(x):
        idle = pyro.param("idle", torch.tensor(0.0))
        variance = 1 / (1 / 9 + 100)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(100 * variance * x + 0 * idle, variance**0.5))

    guide.amortized = frozenset({"z"})
    x = 3.0 + torch.rand(50)
    posterior = guides.fit(model, guide, x, steps=1)
    assert diagnose(posterior).verdict == "good"  # and it is not
    exact = dist.Normal(0.0, (9 + 0.01) ** 0.5).log_prob(x) + torch.tensor(2.0).log()
    missing = exact - guides.log_marginal(posterior, x).values
    torch.testing.assert_close(missing, torch.full_like(missing, 2.0).log(), atol=1e-3, rtol=0)
    assert "never visits" in guides.diagnostics.row_weights.__doc__


def test_latents_that_rows_share_leave_it_undefined_and_keep_their_r_hat():
    def model(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(mean, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    encoder = torch.nn.Sequential(torch.nn.Unflatten(0, (-1, 1)), torch.nn.Linear(1, 3))
    posterior = guides.fit(model, ("amortized", {"encoder": encoder}), torch.randn(50), steps=50, replicates=2)
    diagnosis = diagnose(posterior)
    assert isinstance(diagnosis.findings["row_weights"], Undefined)
    assert list(diagnosis.findings["r_hat"].sites) == ["mean"]
    assert "pareto_k" not in diagnosis.findings


def test_asked_for_by_name_a_joint_figure_says_why_there_is_none():
    finding = diagnose(of(), only=["pareto_k"]).findings["pareto_k"]
    assert isinstance(finding, Undefined) and "row_weights" in finding.text


def test_other_guides_show_nothing_of_it():
    posterior = guides.fit(PCA.model, "mean_field", X[:20], steps=30)
    diagnosis = diagnose(posterior)
    assert diagnosis.findings["row_weights"].rows() == []
    assert "pareto_k" in diagnosis.findings and "per data point" not in str(diagnosis)


def test_the_worst_of_several_restarts_counts_and_json_and_plot_work():
    options = {"encoder": torch.nn.Linear(4, 6), "covariance": "full"}
    posterior = guides.fit(PCA.model, ("amortized", options), X, batch_size=100, steps=300, lr=0.02, replicates=2)
    diagnosis = posterior.diagnose(num_samples=500)
    singles = [posterior.replicate(r).diagnose(num_samples=500).k_hat for r in range(2)]
    assert diagnosis.k_hat == pytest.approx(max(singles))
    assert diagnosis.to_dict()["findings"]["row_weights"]["num_samples"] == 500
    assert len(diagnosis.plot().axes) == 2


def test_weights_that_are_not_finite_are_named():
    """A decoder that overflows where the encoder sends five of the rows."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 0.01))
            large = (200 * z).exp()
            pyro.sample("x", dist.Normal(z + (large - large), 1.0), obs=x)

    def guide(x):
        idle = pyro.param("idle", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2 + 0 * idle, 0.01))

    guide.amortized = frozenset({"z"})
    posterior = guides.fit(model, guide, torch.zeros(30), steps=1)
    posterior.training.args[0][:5] = 2.0
    diagnosis = diagnose(posterior, only=["row_weights"])
    assert diagnosis.verdict == "unreliable" and "5 of 30 data points are not finite" in diagnosis.summary
