"""Coordinate ascent in closed form: exact where the posterior is, monotone, and equal to scikit-learn's."""

import itertools
import math
import time
import warnings

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import Predictive
from sklearn.cluster import KMeans
from sklearn.mixture import BayesianGaussianMixture

import guides
import zoo
from guides import errors
from zoo.conjugate import ConjugateMixture, DirichletWeights

MODELS = [zoo.GaussianMixture, zoo.DirichletProcessMixture]
every = pytest.mark.parametrize("covariance", ["diagonal", "full"])
each = pytest.mark.parametrize("cls", MODELS)


def clusters(rows=200, columns=2, count=3, spread=3.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = spread * torch.randn(count, columns, generator=generator, dtype=torch.float64)
    labels = torch.arange(rows) % count
    return centres[labels] + torch.randn(rows, columns, generator=generator, dtype=torch.float64), labels


def falls(posterior):
    """The largest fall of the ELBO from one iteration to the next, over all restarts, relative to its size."""
    return float((-posterior.elbos.diff() / posterior.elbos[:, :-1].abs()).nan_to_num(-math.inf).max())


# -- exactness ---------------------------------------------------------------------------------------------------------


@every
def test_with_one_component_the_bound_is_the_evidence(covariance):
    x, _ = clusters(rows=20)
    model = zoo.GaussianMixture(1, 2, covariance, degrees_of_freedom=3.0)
    posterior = guides.cavi(model, x)
    structure = model.conjugate(x)
    evidence = 0.0
    for n in range(20):
        seen = guides.cavi(model, x[:n]) if n else None
        natural = {k: v.unsqueeze(0) for k, v in seen.natural.items()} if seen else structure.prior
        one = seen.structure if seen else structure
        evidence += float(one.log_predictive(one.rows(x[n : n + 1]), natural).sum())
    assert posterior.elbo == pytest.approx(evidence, rel=1e-10)
    assert posterior.converged and posterior.iterations == (1,)
    bound, error = posterior.marginal_elbo(4000)
    assert abs(bound - evidence) < 4 * error


@each
@every
def test_the_bounds_are_below_the_evidence_summed_over_all_assignments(cls, covariance):
    x, _ = clusters(rows=9, spread=1.5)
    model = cls(2, 2, covariance, degrees_of_freedom=3.0)
    structure = model.conjugate(x)
    labels = torch.tensor(list(itertools.product((0, 1), repeat=9)))
    hot = torch.nn.functional.one_hot(labels, 2).double().mT
    natural = {k: structure.prior[k] + v for k, v in structure.statistics(structure.rows(x), hot).items()}
    terms = structure.log_normaliser(natural) - structure.log_normaliser(structure.prior)
    evidence = float(terms.logsumexp(0) + structure.log_base(structure.rows(x)))
    posterior = guides.cavi(model, x, restarts=5, init="random", tolerance=1e-12)
    bound, error = posterior.marginal_elbo(1000)
    assert posterior.elbo < bound + 4 * error < evidence + 8 * error
    assert evidence - posterior.elbo < 4, "two labellings (log 2) and what mean field loses on nine points"


@each
@every
def test_the_bound_is_likelihood_less_divergences(cls, covariance):
    """The ELBO from its definition: E log p(x, z | theta) + H[q(z)] - KL(q(theta) || p(theta))."""
    x, _ = clusters()
    posterior = guides.cavi(cls(4, 2, covariance), x, tolerance=1e-12)
    structure, r = posterior.structure, posterior.responsibilities
    natural = {k: v.unsqueeze(0) for k, v in posterior.natural.items()}
    joint = (r * structure.expected_log_joint(structure.rows(x), natural)[0].mT).sum()
    assert posterior.elbo == pytest.approx(float(joint + torch.special.entr(r).sum()) - posterior.kl(), rel=1e-8)
    assert posterior.kl() > 0


# -- the ELBO never decreases ------------------------------------------------------------------------------------------


@each
@every
@pytest.mark.parametrize("init", ["kmeans", "random"])
def test_the_elbo_never_decreases(cls, covariance, init):
    for seed, (columns, rows) in enumerate(((1, 50), (2, 150), (6, 100))):
        x, _ = clusters(rows, columns, count=4, spread=1.0, seed=seed)
        posterior = guides.cavi(cls(6, columns, covariance, concentration=0.1), x, init=init, restarts=4, tolerance=1e-10)
        assert falls(posterior) < 1e-8
        assert posterior.elbos.diff().nan_to_num(0).max() > 0
        assert max(posterior.iterations) > 5


@every
def test_the_elbo_never_decreases_far_from_the_origin_in_single_precision(covariance):
    x = (clusters(rows=500)[0] * 10 + 1e5).float()
    model = zoo.GaussianMixture(5, 2, covariance, mean=1e5, scatter=100.0)
    posterior = guides.cavi(model, x, init="random", restarts=3, tolerance=1e-12)
    assert falls(posterior) < 1e-8
    assert posterior.responsibilities.dtype == torch.float64


# -- scikit-learn ------------------------------------------------------------------------------------------------------


def sklearns(x, kind, covariance, iterations, concentration=0.3):
    columns = x.shape[1]
    scatter = np.cov(x.T).reshape(columns, columns) if covariance == "full" else x.var(0)
    mixture = BayesianGaussianMixture(
        n_components=4,
        covariance_type="full" if covariance == "full" else "diag",
        weight_concentration_prior_type=kind,
        weight_concentration_prior=concentration,
        mean_prior=np.full(columns, 0.3),
        mean_precision_prior=0.7,
        degrees_of_freedom_prior=columns + 2.0,
        covariance_prior=scatter,
        reg_covar=0,
        tol=0,
        max_iter=iterations,
        random_state=np.random.RandomState(3),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no convergence after so few iterations, as asked for
        mixture.fit(x)
    labels = KMeans(4, n_init=1, random_state=np.random.RandomState(3)).fit(x).labels_
    options = {"mean": 0.3, "mean_precision": 0.7, "degrees_of_freedom": columns + 2.0, "scatter": torch.tensor(scatter)}
    return mixture, torch.tensor(labels), {"concentration": concentration} | options


class OpenSticks:
    """Scikit-learn's weights: all K sticks are random, and what is left beyond the last belongs to no component."""

    def __init__(self, concentration, count):
        self.prior = {"sticks": torch.tensor([1.0, concentration], dtype=torch.float64).expand(1, count, 2)}

    def statistics(self, counts):
        beyond = counts.flip(-1).cumsum(-1).flip(-1) - counts
        return {"sticks": torch.stack([counts, beyond], -1)}

    def log_normaliser(self, natural):
        sticks = natural["sticks"]
        return (torch.lgamma(sticks).sum(-1) - torch.lgamma(sticks.sum(-1))).sum(-1)

    def expected_log(self, natural):
        logs = torch.digamma(natural["sticks"]) - torch.digamma(natural["sticks"].sum(-1, keepdim=True))
        return logs[..., 0] + logs[..., 1].cumsum(-1) - logs[..., 1]

    def expected(self, natural):
        means = (natural["sticks"] / natural["sticks"].sum(-1, keepdim=True)).log()
        weights = (means[..., 0] + means[..., 1].cumsum(-1) - means[..., 1]).exp()
        return weights / weights.sum(-1, keepdim=True)

    def sample(self, natural):
        return {}


class With:
    """A model that offers another conjugate structure in place of its own."""

    def __init__(self, structure):
        self.conjugate = structure


def assert_equal_mixtures(posterior, mixture, iterations, tolerance):
    found = posterior.parameters
    dof = mixture.degrees_of_freedom_.reshape(-1, *[1] * (mixture.covariances_.ndim - 1))
    np.testing.assert_allclose(found["mean"], mixture.means_, atol=10 * tolerance)
    np.testing.assert_allclose(found["weights"], mixture.weights_, atol=tolerance)
    np.testing.assert_allclose(found["scatter"], mixture.covariances_ * dof, rtol=100 * tolerance)
    offset = posterior.elbos[0, 1:] - torch.tensor(mixture.lower_bounds_)[: posterior.iterations[0]]
    assert posterior.iterations[0] > iterations / 2 and float(offset.max() - offset.min()) < 100 * tolerance
    assert float(posterior.elbos[0, -1] - posterior.elbos[0, 1]) > 1, "the offset is constant while the bound rises"


@pytest.mark.parametrize(("covariance", "columns"), [("full", 1), ("full", 3), ("diagonal", 1)])
def test_equal_to_scikit_learn(covariance, columns):
    x, _ = clusters(400, columns, count=4, spread=1.5)
    mixture, labels, options = sklearns(x.numpy(), "dirichlet_distribution", covariance, 20)
    model = zoo.GaussianMixture(4, columns, covariance, **options)
    posterior = guides.cavi(model, x, init=labels, max_iterations=20, tolerance=0)
    assert_equal_mixtures(posterior, mixture, 20, 1e-8)
    np.testing.assert_allclose(posterior.assign(x), mixture.predict_proba(x.numpy()), atol=1e-7)


@pytest.mark.parametrize(("covariance", "columns"), [("full", 1), ("full", 3), ("diagonal", 1)])
def test_equal_to_scikit_learns_dirichlet_process_given_its_sticks(covariance, columns):
    x, _ = clusters(400, columns, count=4, spread=1.5)
    mixture, labels, options = sklearns(x.numpy(), "dirichlet_process", covariance, 20)
    components = zoo.DirichletProcessMixture(4, columns, covariance, **options).conjugate(x).components
    model = With(lambda x: ConjugateMixture(OpenSticks(0.3, 4), components))
    posterior = guides.cavi(model, x, init=labels, max_iterations=20, tolerance=0)
    assert_equal_mixtures(posterior, mixture, 20, 1e-8)


def log_determinant_of_a_wishart(natural):
    """What scikit-learn adds to the expected log density of diagonal components."""
    dof, columns = natural["degrees_of_freedom"], natural["first"].shape[-1]
    wishart = torch.digamma((dof.unsqueeze(-1) - torch.arange(columns)) / 2).sum(-1)
    return 0.5 * (wishart - columns * torch.digamma(dof / 2)).unsqueeze(-1)


def test_scikit_learns_diagonal_covariances_differ_by_one_term():
    """It takes their log determinant from a full Wishart; all else is equal, and with much data the difference is small."""
    x, _ = clusters(400, 3, count=4, spread=1.5)
    mixture, labels, options = sklearns(x.numpy(), "dirichlet_distribution", "diagonal", 20)
    structure = zoo.GaussianMixture(4, 3, "diagonal", **options).conjugate(x)
    rows, responsibilities = structure.rows(x), torch.nn.functional.one_hot(labels.long(), 4).double().mT.unsqueeze(0)
    for _ in range(21):
        statistics = structure.statistics(rows, responsibilities)
        natural = {k: v + statistics[k] for k, v in structure.prior.items()}
        log_joint = structure.expected_log_joint(rows, natural)
        responsibilities = (log_joint + log_determinant_of_a_wishart(natural)).softmax(-2)
    theirs, ours = structure.describe(natural), guides.cavi(With(lambda x: structure), x, init=labels, tolerance=1e-10)
    np.testing.assert_allclose(theirs["mean"][0], mixture.means_, atol=1e-7)
    np.testing.assert_allclose(theirs["weights"][0], mixture.weights_, atol=1e-8)
    np.testing.assert_allclose(ours.parameters["mean"], mixture.means_, atol=0.05)
    np.testing.assert_allclose(ours.parameters["weights"], mixture.weights_, atol=0.01)
    assert abs(ours.parameters["weights"].numpy() - mixture.weights_).max() > 1e-6


@pytest.mark.slow
@every
def test_a_hundred_thousand_points_print_their_time_beside_scikit_learn(covariance, capsys):
    """Twenty components, ten columns, ten iterations of both in one run; ``pytest -s -m slow`` shows the ratio."""
    x, _ = clusters(100_000, 10, count=20, spread=2.0)
    mixture = BayesianGaussianMixture(
        n_components=20,
        covariance_type="full" if covariance == "full" else "diag",
        weight_concentration_prior_type="dirichlet_distribution",
        init_params="random_from_data",
        tol=0,
        max_iter=10,
        random_state=0,
    )
    posterior = guides.cavi(zoo.GaussianMixture(20, 10, covariance), x, init="random", max_iterations=10, tolerance=0)
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mixture.fit(x.numpy())
    theirs, ours = time.perf_counter() - start, posterior.seconds["train"]
    with capsys.disabled():
        print(f"\n{covariance}: cavi {ours:.2f} s, scikit-learn {theirs:.2f} s, ratio {theirs / ours:.1f}")
    assert posterior.iterations == (mixture.n_iter_,) == (10,)
    assert falls(posterior) < 1e-8


# -- what comes out ----------------------------------------------------------------------------------------------------


@each
@every
def test_clusters_are_found_and_new_rows_assigned(cls, covariance):
    x, labels = clusters(300, spread=8.0)
    posterior = guides.cavi(cls(3, 2, covariance), x, restarts=3)
    for k in range(3):
        assert len(posterior.labels[labels == k].unique()) == 1
    assert sorted(posterior.parameters["weights"].tolist()) == pytest.approx([1 / 3] * 3, abs=0.01)
    assert torch.allclose(posterior.assign(x), posterior.responsibilities)
    assert posterior.responsibilities.sum(1) == pytest.approx(np.ones(300))
    order = posterior.labels[:3]
    centres = torch.stack([x[labels == k].mean(0) for k in range(3)])
    assert torch.allclose(posterior.parameters["mean"][order], centres * 100 / 101, atol=1e-6), (
        "the prior is worth one point"
    )


@each
def test_components_without_data_lose_their_weight(cls):
    x, _ = clusters(600, spread=8.0)
    posterior = guides.cavi(cls(10, 2, concentration=0.01), x, init="random", restarts=5, tolerance=1e-10)
    assert (posterior.parameters["weights"] > 0.01).sum() == 3
    assert posterior.elbo > guides.cavi(cls(2, 2, concentration=0.01), x).elbo


@each
@every
def test_the_predictive_density_integrates_to_one_and_is_the_average_over_draws(cls, covariance):
    x, _ = clusters(60, columns=1, count=2)
    posterior = guides.cavi(cls(2, 1, covariance, degrees_of_freedom=5.0), x)
    grid = torch.linspace(-300, 300, 200_001, dtype=torch.float64)
    density = posterior.log_predictive(grid.unsqueeze(-1)).exp()
    assert float(torch.trapezoid(density, grid)) == pytest.approx(1, abs=1e-4)
    draws = posterior.sample(2000)
    new = torch.linspace(-4, 4, 7, dtype=torch.float64).unsqueeze(-1)
    predicted = Predictive(lambda x: posterior.model(x), posterior_samples=draws, return_sites=("x",), parallel=True)
    assert predicted(x)["x"].shape == (2000, 60, 1)

    def log_density(latents):
        trace = pyro.poutine.trace(pyro.poutine.condition(posterior.model, data=latents)).get_trace(new)
        trace.compute_log_prob()
        return trace.nodes["x"]["log_prob"]

    with pyro.validation_enabled(False):
        values = torch.func.vmap(log_density)(draws).exp()
    error = values.std(0) / math.sqrt(2000)
    assert ((values.mean(0) - posterior.log_predictive(new).exp()).abs() < 5 * error).all()


def test_restarts_side_by_side_are_restarts_one_by_one():
    x, _ = clusters(spread=1.0)
    model = zoo.GaussianMixture(4, 2)
    together = guides.cavi(model, x, init="random", restarts=3, seed=5, tolerance=1e-8)
    alone = [guides.cavi(model, x, init="random", seed=5 + r, tolerance=1e-8) for r in range(3)]
    assert together.iterations == tuple(a.iterations[0] for a in alone)
    for r, single in enumerate(alone):
        length = single.iterations[0] + 1
        torch.testing.assert_close(together.elbos[r, :length], single.elbos[0])
        assert together.elbos[r, length:].isnan().all()
    best = max(alone, key=lambda a: a.elbo)
    assert together.elbo == pytest.approx(best.elbo) and alone[together.best] is best
    torch.testing.assert_close(together.responsibilities, best.responsibilities)
    assert len({round(a.elbo, 6) for a in alone}) > 1, "starts that end in different optima"


def test_rows_by_rows_is_all_rows_at_once(monkeypatch):
    x, _ = clusters(1000, spread=1.0)
    whole = guides.cavi(zoo.GaussianMixture(4, 2), x)
    monkeypatch.setattr("guides.conjugate.structure._ELEMENTS_PER_CHUNK", 1)
    pieces = guides.cavi(zoo.GaussianMixture(4, 2), x)
    torch.testing.assert_close(whole.elbos, pieces.elbos)
    torch.testing.assert_close(whole.log_predictive(x), pieces.log_predictive(x))


def test_the_start_may_be_given():
    x, labels = clusters()
    model = zoo.GaussianMixture(3, 2)
    by_labels = guides.cavi(model, x, init=labels)
    soft = torch.nn.functional.one_hot(labels, 3).float()
    by_weights = guides.cavi(model, x, init=soft)
    torch.testing.assert_close(by_labels.elbos, by_weights.elbos)


def test_seeds_decide_and_global_state_is_untouched():
    x, _ = clusters(spread=1.0)
    before = torch.get_rng_state(), str(np.random.get_state())  # noqa: NPY002
    runs = [guides.cavi(zoo.GaussianMixture(4, 2), x, init="random", seed=seed) for seed in (1, 1, 2)]
    draws = [runs[0].sample(5), runs[1].sample(5), runs[0].sample(5, seed=9)]
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == str(np.random.get_state())  # noqa: NPY002
    assert torch.equal(runs[0].elbos, runs[1].elbos) and runs[0].elbos[0, 0] != runs[2].elbos[0, 0]
    assert torch.equal(draws[0]["loc"], draws[1]["loc"]) and not torch.equal(draws[0]["loc"], draws[2]["loc"])


def test_it_says_why_it_stopped(capsys):
    x, _ = clusters(spread=1.0)
    short = guides.cavi(zoo.GaussianMixture(4, 2), x, max_iterations=2, tolerance=0, progress=True)
    assert not short.converged and short.stop_reasons == ("all 2 iterations were run",)
    assert "cavi" in capsys.readouterr().err
    long = guides.cavi(zoo.GaussianMixture(4, 2), x)
    assert long.converged and "1e-07" in long.stop_reasons[0]
    assert set(long.seconds) == {"setup", "train"}
    assert "elbos" not in repr(long)


@pytest.mark.slow
@every
def test_gradient_descent_on_the_marginalised_model_agrees(covariance):
    """Two codes that share nothing: closed-form updates, and SVI on the Pyro model with its assignments summed out."""
    x, _ = clusters(100, count=2, spread=2.0)
    model = zoo.GaussianMixture(2, 2, covariance, degrees_of_freedom=4.0)
    bound, error = guides.cavi(model, x, restarts=3, tolerance=1e-10).marginal_elbo(1000)
    guide = ("mean_field", {"init_loc_fn": "spread", "init_scale": 0.05})
    fitted = guides.fit(model, guide, x.float(), steps=1500, lr=0.02, schedule="cosine", replicates=3)
    drawn = fitted.draws(1000)
    elbo = float((drawn.log_p - drawn.log_q).mean(1).max())
    assert -3 < elbo - bound < 0.5 + 4 * error, "independent log-normals against the conjugate family"


# -- another model of the same kind ------------------------------------------------------------------------------------


class PoissonComponents:
    """Counts: rate_k ~ Gamma(a, b), x | z = k ~ Poisson(rate_k)."""

    def __init__(self, a, b, count):
        shared = torch.ones(1, count, dtype=torch.float64)
        self.prior = {"shape": a * shared, "rate": b * shared}

    def rows(self, x):
        return x.double().unsqueeze(0)

    def statistics(self, rows, responsibilities):
        return {"shape": responsibilities @ rows[0], "rate": responsibilities.sum(-1)}

    def log_normaliser(self, natural):
        return (torch.lgamma(natural["shape"]) - natural["shape"] * natural["rate"].log()).sum(-1)

    def log_base(self, rows):
        return -torch.lgamma(rows + 1).sum()

    def expected_log_density(self, rows, natural):
        mean = natural["shape"] / natural["rate"]
        log_mean = torch.digamma(natural["shape"]) - natural["rate"].log()
        return log_mean.unsqueeze(-1) * rows - mean.unsqueeze(-1) - torch.lgamma(rows + 1)

    def log_predictive(self, rows, natural):
        ratio = natural["rate"] / (natural["rate"] + 1)
        binomial = torch.distributions.NegativeBinomial(natural["shape"].unsqueeze(-1), 1 - ratio.unsqueeze(-1))
        return binomial.log_prob(rows)

    def sample(self, natural):
        return {"rate": torch.distributions.Gamma(natural["shape"], natural["rate"]).sample()}

    def describe(self, natural):
        return {"mean": natural["shape"] / natural["rate"]}


class PoissonMixture:
    natural_guide = ("mean_field", {})

    def __init__(self, components=PoissonComponents):
        self.components = components

    def conjugate(self, x):
        return ConjugateMixture(DirichletWeights(torch.ones(2, dtype=torch.float64)), self.components(1.0, 0.1, 2))


def test_any_conjugate_mixture_will_do():
    x = torch.cat([torch.poisson(torch.full((150,), 2.0)), torch.poisson(torch.full((50,), 20.0))])
    posterior = guides.cavi(PoissonMixture(), x, restarts=2)
    assert falls(posterior) < 1e-8
    assert sorted(posterior.parameters["mean"].tolist()) == pytest.approx([2, 20], rel=0.15)
    assert posterior.log_predictive(torch.arange(500)).exp().sum() == pytest.approx(1, abs=1e-6)
    assert posterior.sample(7)["rate"].shape == (7, 2)


def test_a_structure_that_does_not_hold_together_is_found_out():
    class Wrong(PoissonComponents):
        def expected_log_density(self, rows, natural):
            return -super().expected_log_density(rows, natural)

    x = torch.cat([torch.poisson(torch.full((150,), 2.0)), torch.poisson(torch.full((50,), 20.0))])
    with pytest.raises(errors.UnsupportedModelError, match=r"the ELBO fell from .* do not belong together"):
        guides.cavi(PoissonMixture(Wrong), x)


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init": "k-means"}, "init='k-means' is not known; use 'kmeans', 'random'"),
        ({"init": torch.zeros(3, dtype=torch.long)}, "init as labels needs 200 whole numbers from 0 to 1"),
        ({"init": torch.full((200,), 2)}, "init as labels"),
        ({"init": torch.ones(200, 2)}, "rows that sum to one"),
        ({"init": torch.ones(200, 3) / 3}, r"needs shape \(200, 2\)"),
        ({"restarts": 0}, "restarts must be at least 1"),
        ({"max_iterations": 0}, "max_iterations must be at least 1"),
        ({"tolerance": -1.0}, "tolerance is a share of the ELBO"),
        ({"tolerance": math.nan}, "tolerance is a share of the ELBO"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(errors.OptionError, match=message):
        guides.cavi(zoo.GaussianMixture(2, 2), clusters()[0], **options)


def test_data_that_no_mixture_can_use():
    model = zoo.GaussianMixture(3, 2)
    x, _ = clusters()
    with pytest.raises(errors.DataError, match="2 data points for 3 components"):
        guides.cavi(model, x[:2])
    with pytest.raises(errors.DataError, match=r"takes \(rows, 2\)"):
        guides.cavi(model, x[:, :1])
    with pytest.raises(errors.DataError, match="argument 0 is empty"):
        guides.cavi(model, x[:0])
    bad = x.clone()
    bad[3, 1] = math.nan
    with pytest.raises(errors.DataError, match=r"NaN|not finite|infinite"):
        guides.cavi(model, bad)
    with pytest.raises(errors.OptionError, match="num_samples must be at least 1"):
        guides.cavi(model, x).sample(0)


def test_a_model_without_closed_forms_is_told_so():
    with pytest.raises(errors.UnsupportedModelError, match=r"BayesianMLP has no method conjugate\(x\).*use guides.fit"):
        guides.cavi(zoo.BayesianMLP(2), clusters()[0])


@each
@every
@pytest.mark.parametrize("init", ["kmeans", "random"])
def test_singular_data_have_a_posterior_because_the_prior_is_proper(cls, covariance, init):
    same = torch.ones(30, 2)
    column = torch.stack([torch.linspace(-1, 1, 30), torch.full((30,), 7.0)], 1)
    pairs = torch.tensor([[0.0, 1.0], [2.0, 3.0]]).repeat(15, 1)
    for x in (same, column, pairs):
        posterior = guides.cavi(cls(4, 2, covariance), x, init=init, tolerance=1e-10)
        assert math.isfinite(posterior.elbo) and falls(posterior) < 1e-8
        assert all(v.isfinite().all() for v in posterior.parameters.values())
        assert posterior.log_predictive(x).isfinite().all()


def test_as_many_components_as_data_points():
    x, _ = clusters(rows=6)
    posterior = guides.cavi(zoo.GaussianMixture(6, 2), x)
    assert math.isfinite(posterior.elbo) and falls(posterior) < 1e-8
