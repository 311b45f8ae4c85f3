"""Laplace's approximation against closed forms, exact Hessians, and Pyro's."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from guide_models import SCHOOLS, hyper, line, linear, linear_posterior, logistic, network, schools
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoLaplaceApproximation, init_to_value
from torch import nn
from torch.distributions import constraints

import guides
from guides import errors
from guides.families.laplace import curvature
from guides.families.laplace.curvature import Curvature, positive_part
from guides.program.data import Data
from guides.program.program import Program


@pytest.fixture(scope="module")
def data():
    return line()


def at_point(model, data, **values):
    """Laplace's curvature of a model at given latents."""
    guide = guides.Laplace(model, init_loc_fn=init_to_value(values=values))
    data = Data.of(data)
    program = Program.build(model, guide, guides.ELBO(), data, batch_size=None, seed=0)
    return Curvature(program, program.parameters.initial, data)


def fit_at(model, data, options=None, **values):
    """A Laplace posterior at given latents, without any optimisation."""
    guide = ("laplace", {"init_loc_fn": init_to_value(values=values), **(options or {})})
    return guides.fit(model, guide, *data, steps=1, lr=1e-12)


def covariance(posterior):
    with torch.no_grad():
        return posterior.guide.get_posterior().covariance_matrix.double()


@pytest.mark.parametrize("curvature", ["ggn", "hessian"])
def test_it_is_the_posterior_and_the_evidence_of_a_linear_model(curvature, data):
    mean, want, evidence = linear_posterior(*data)
    posterior = guides.fit(
        linear, ("laplace", {"curvature": curvature}), *data, steps=800, lr=0.1, schedule="cosine", compile="trace"
    )
    loc = posterior.parameters["LaplaceNormal.loc"].double()
    assert ((loc - mean).abs() < 0.02 * want.diagonal().sqrt()).all()
    torch.testing.assert_close(covariance(posterior), want, rtol=1e-3, atol=1e-6)
    assert posterior.info[0]["log_evidence"] == pytest.approx(evidence, abs=0.01)
    assert posterior.info[0]["repaired"] == 0
    draws = posterior.draws(2000)
    ratio = (draws.log_p - draws.log_q)[0]
    torch.testing.assert_close(ratio, torch.full_like(ratio, evidence), rtol=0, atol=0.05)
    error = 4 * want.diagonal().sqrt() / math.sqrt(2000)
    assert ((draws.latents["w"][0].double().mean(0) - mean).abs() < error).all()


def poisson(x, y=None):
    w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Poisson((0.3 * x @ w).exp()), obs=y)


def softmax(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3, 4]).to_event(2))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Categorical(logits=x @ w), obs=y)


def correlated(x, y=None):
    """A prior far narrower in one direction than its diagonal tells, and data that leave the wide one to it."""
    w = pyro.sample("w", dist.MultivariateNormal(torch.zeros(3), 0.1 * torch.eye(3) + 0.9))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(0.1 * (x @ w), 3.0), obs=y)


CANONICAL = [linear, logistic, poisson, softmax, correlated]


def response(model, data):
    pyro.set_rng_seed(0)
    return (
        model(data[0]) if model in (linear, logistic) else pyro.poutine.trace(model).get_trace(data[0]).nodes["y"]["value"]
    )


@pytest.mark.parametrize("model", CANONICAL)
def test_gauss_newton_is_the_hessian_for_canonical_likelihoods(model, data):
    x = data[0]
    y = response(model, data)
    shape = (3, 4) if model is softmax else (3,)
    at = at_point(model, (x, y), w=0.3 * torch.randn(shape))
    exact = at.hessian()
    torch.testing.assert_close(at.ggn() + at.prior(), exact, rtol=1e-3, atol=1e-3)
    latent = at.loc.double().requires_grad_()
    torch.testing.assert_close(exact, -autograd_hessian(model, x, y, latent, shape), rtol=1e-3, atol=1e-3)


def autograd_hessian(model, x, y, latent, shape):
    def log_joint(flat):
        conditioned = pyro.poutine.condition(model, {"w": flat.reshape(shape).float()})
        return pyro.poutine.trace(conditioned).get_trace(x, y).log_prob_sum().double()

    return torch.autograd.functional.hessian(log_joint, latent)


def test_only_the_rows_and_columns_asked_for(data):
    at = at_point(network, data)
    index = torch.tensor([20, 3, 7])
    for full, part in (
        (at.hessian(), at.hessian(index)),
        (at.ggn(), at.ggn(index=index)),
        (at.prior(), at.prior(index=index)),
    ):
        torch.testing.assert_close(part, full[index][:, index])


def test_gauss_newton_of_a_network_is_positive_where_the_hessian_is_not(data):
    pyro.set_rng_seed(2)
    at = at_point(network, data, w1=torch.randn(3, 5), w2=torch.randn(5, 1))
    assert torch.linalg.eigvalsh(at.hessian())[0] < -0.1
    assert torch.linalg.eigvalsh(at.ggn())[0] > -1e-6 * torch.linalg.eigvalsh(at.ggn())[-1]


def test_gauss_newton_is_the_same_in_parts_and_by_either_mode(data, monkeypatch):
    at = at_point(network, data)
    whole, diagonal = at.ggn(), at.ggn_diagonal()
    torch.testing.assert_close(diagonal, whole.diagonal(), rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(curvature, "_ELEMENTS_PER_CHUNK", 50)  # parts of four rows: reverse mode, chunk by chunk
    assert len(list(at._parts())) > 1
    torch.testing.assert_close(at.ggn(), whole, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(at.ggn_diagonal(), diagonal, rtol=1e-4, atol=1e-3)


def test_an_indefinite_hessian_is_repaired_and_reported(data):
    pyro.set_rng_seed(2)
    values = {"w1": torch.randn(3, 5), "w2": torch.randn(5, 1)}
    posterior = fit_at(network, data, {"curvature": "hessian"}, **values)
    info = posterior.info[0]
    assert info["repaired"] > 0
    assert info["min_eigenvalue"] < 0
    assert info["floor"] == pytest.approx(0.99)
    assert torch.linalg.eigvalsh(covariance(posterior))[-1] <= 1 / 0.99 + 1e-4
    assert posterior.sample(100)["w1"].isfinite().all()
    exact = at_point(network, data, **values).hessian()
    assert info["repaired"] == int((torch.linalg.eigvalsh(exact) < info["floor"]).sum())


@pytest.mark.parametrize("curvature", ["ggn", "hessian", "diagonal", "kron"])
def test_a_floor_that_is_asked_for_is_kept(curvature, data):
    posterior = fit_at(network, data, {"curvature": curvature, "floor": 50.0})
    assert torch.linalg.eigvalsh(covariance(posterior))[-1] <= 1 / 50 + 1e-5
    assert posterior.info[0]["repaired"] > 0
    assert posterior.info[0]["floor"] == 50.0


@pytest.mark.parametrize("curvature", ["ggn", "hessian"])
def test_a_correlated_prior_needs_no_repair(curvature, data):
    x = data[0]
    posterior = fit_at(correlated, data, {"curvature": curvature})
    prior = torch.linalg.inv(0.1 * torch.eye(3).double() + 0.9)
    want = torch.linalg.inv(prior + 0.01 * x.double().T @ x.double() / 9)
    torch.testing.assert_close(covariance(posterior), want, rtol=1e-3, atol=1e-4)
    assert posterior.info[0]["repaired"] == 0


def test_positive_part():
    vectors = torch.linalg.qr(torch.randn(3, 3).double()).Q
    matrix = vectors @ torch.diag(torch.tensor([-2.0, 0.5, 3.0]).double()) @ vectors.T
    repaired, report = positive_part(matrix, 1.0)
    torch.testing.assert_close(torch.linalg.eigvalsh(repaired), torch.tensor([1.0, 1.0, 3.0]).double())
    assert report["repaired"] == 2
    assert report["min_eigenvalue"] == pytest.approx(-2.0)
    assert positive_part(repaired, 0.9)[0] is repaired


def stored(transposed, width=2):
    """One layer with several outputs and a noise that differs between them."""

    def model(x, y=None):
        if transposed:
            w = pyro.sample("w", dist.Normal(0.0, 0.7).expand([width, x.shape[-1]]).to_event(2))
            f = nn.functional.linear(x, w)
        else:
            w = pyro.sample("w", dist.Normal(0.0, 0.7).expand([x.shape[-1], width]).to_event(2))
            f = x @ w
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(f, torch.tensor([0.3, 0.8])).to_event(1), obs=y)

    return model


@pytest.mark.parametrize("transposed", [False, True])
def test_kronecker_factors_are_exact_for_one_layer_with_constant_noise(transposed, data):
    x = data[0]
    y = torch.randn(len(x), 2)
    model = stored(transposed)
    dense, factored = (fit_at(model, (x, y), {"curvature": c}) for c in ("ggn", "kron"))
    torch.testing.assert_close(covariance(factored), covariance(dense), rtol=1e-3, atol=1e-5)
    assert factored.info[0]["log_evidence"] == pytest.approx(dense.info[0]["log_evidence"], abs=0.05)
    assert [b.kind for b in factored.guide.blocks] == ["kron"]


def test_kronecker_factors_are_exact_for_one_data_point(data):
    x, y = data[0][:1], data[1][:1]
    factored = fit_at(network, (x, y), {"curvature": "kron"})
    at = at_point(network, (x, y))
    values = {n: s["value"] for n, s in factored.program.prototype.nodes.items() if n in ("w1", "w2")}
    assert values.keys() == {"w1", "w2"}
    at.flat = at.at(factored.parameters["LaplaceNormal.loc"])
    precision = at.ggn() + at.prior()
    for block, part in zip(factored.guide.blocks, factored.guide.slices().values()):
        want = torch.linalg.inv(precision[part, part])
        torch.testing.assert_close(covariance(factored)[part, part], want, rtol=1e-3, atol=1e-4)
        assert block.kind == ("kron" if block.name in ("w1", "w2") else "dense")


def test_kronecker_factors_refuse_what_they_cannot_describe(data):
    def embedded(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3, 3]).to_event(2))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal((torch.tanh(x @ w) @ w).sum(-1), 1.0), obs=y)

    with pytest.raises(errors.UnsupportedModelError, match=r"site 'w' multiplies.*again.*curvature='ggn'"):
        fit_at(embedded, data, {"curvature": "kron"})


def test_constrained_weights_get_a_dense_block(data):
    def positive(x, y=None):
        w = pyro.sample("w", dist.LogNormal(0.0, 1.0).expand([3, 1]).to_event(2))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal((x @ w).squeeze(-1), 1.0), obs=y)

    dense, factored = (fit_at(positive, data, {"curvature": c}, w=torch.ones(3, 1)) for c in ("ggn", "kron"))
    torch.testing.assert_close(covariance(factored), covariance(dense))


def test_diagonal_precision_is_the_diagonal(data):
    posterior = fit_at(network, data, {"curvature": "diagonal"})
    at = at_point(network, data)
    at.flat = at.at(posterior.parameters["LaplaceNormal.loc"])
    want = 1 / (at.ggn() + at.prior()).diagonal()
    torch.testing.assert_close(covariance(posterior), want.diag(), rtol=1e-4, atol=1e-6)


def test_the_priors_diagonal_is_exact_for_dependent_latents_too(data):
    for model, values in ((correlated, {}), (network, {}), (schools, {"tau": torch.tensor(2.0)})):
        at = at_point(model, SCHOOLS if model is schools else data, **values)
        torch.testing.assert_close(at.prior_diagonal(), at.prior().diagonal(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("curvature", ["ggn", "kron"])
def test_last_layer_is_the_posterior_of_the_last_layer(curvature, data):
    options = {"curvature": curvature, "sites": "last_layer"}
    posterior = fit_at(network, data, options)
    draws = posterior.sample(50)
    assert draws["w1"].std(0).max() == draws["b1"].std(0).max() == 0
    assert draws["w2"].std(0).min() > 0
    assert draws["b2"].std(0).min() > 0
    assert posterior.info[0]["dimension"] == 6
    if curvature == "ggn":
        at = at_point(network, data)
        at.flat = at.at(posterior.parameters["LaplaceNormal.loc"])
        want = torch.linalg.inv((at.ggn() + at.prior())[20:, 20:])
        torch.testing.assert_close(covariance(posterior)[20:, 20:], want, rtol=1e-3, atol=1e-5)


def test_named_sites_are_the_ones_that_vary(data):
    draws = fit_at(network, data, {"sites": ["b2", "w1"]}).sample(20)
    assert {n for n, v in draws.items() if v.std(0).max() > 0} == {"b2", "w1"}
    assert {n for n, v in fit_at(network, data, {"sites": "b1"}).sample(20).items() if v.std(0).max() > 0} == {"b1"}


def test_linearised_predictions_have_the_moments_of_the_linearised_network(data):
    x, y = data
    new = torch.randn(6, 3)
    posterior = fit_at(network, (x, y))
    at = at_point(network, (x, y))
    at.flat = at.at(posterior.parameters["LaplaceNormal.loc"])
    parts = list(at.program.guide.slices().values())

    def output(flat):
        w1, b1, w2, b2 = (flat[p] for p in parts)
        return (torch.tanh(new @ w1.reshape(3, 5) + b1) @ w2.reshape(5, 1) + b2).squeeze(-1)

    jacobian = torch.autograd.functional.jacobian(output, at.loc).double()
    variance = (jacobian @ covariance(posterior) @ jacobian.T).diagonal()
    draws = posterior.predict(new, num_samples=4000)
    error = 4 * variance.sqrt() / math.sqrt(4000)
    assert ((draws["f"].mean(0) - output(at.loc)).abs() < error).all()
    assert ((draws["f"].var(0) / variance - 1).abs() < 4 * math.sqrt(2 / 4000)).all()
    assert ((draws["y"].var(0) / (variance + 0.09) - 1).abs() < 4 * math.sqrt(2 / 4000)).all()
    sampled = fit_at(network, (x, y), {"predictive": "sampled"}).predict(new, num_samples=4000)
    assert (sampled["f"].abs().max() <= draws["f"].abs().max()) or sampled["f"].var(0).sub(variance).abs().max() > 0.01


def test_linearised_and_sampled_agree_for_a_linear_model(data):
    posteriors = [fit_at(linear, data, {"predictive": p}) for p in ("sampled", "linearised")]
    first, second = (p.predict(data[0], num_samples=50, seed=1)["y"] for p in posteriors)
    assert first.shape == second.shape == (50, 30)
    likelihoods = [p.log_likelihood(*data, num_samples=50, seed=1)["y"] for p in posteriors]
    torch.testing.assert_close(*likelihoods, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("model", [logistic, softmax, poisson])
def test_linearised_predictions_lie_in_the_support(model, data):
    y = response(model, data)
    posterior = guides.fit(model, "laplace", data[0], y, steps=100, lr=0.05)
    draws = posterior.predict(data[0], num_samples=50)["y"]
    assert set(draws.unique().tolist()) <= set(range(4 if model is softmax else 2)) or model is poisson
    assert posterior.log_likelihood(data[0], y, num_samples=5)["y"].isfinite().all()


@pytest.mark.parametrize("curvature", ["ggn", "hessian", "diagonal", "kron"])
def test_a_hierarchical_model_does_not_crash(curvature):
    posterior = guides.fit(schools, ("laplace", {"curvature": curvature}), *SCHOOLS, steps=150, lr=0.1)
    assert all(v.isfinite().all() for v in posterior.sample(100).values())
    assert math.isfinite(posterior.info[0]["log_evidence"])
    assert posterior.predict(SCHOOLS[0], num_samples=20)["y"].shape == (20, 8)


def test_a_likelihood_without_fisher_information_takes_its_exact_hessian(data):
    def heavy(x, y=None):
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Logistic(x @ w, 1.0), obs=y)

    by_default, exact = (at_point(heavy, data, w=torch.full((3,), 0.3)) for _ in range(2))
    assert by_default.exact
    torch.testing.assert_close(by_default.exact_terms() + by_default.prior(), exact.hessian())
    posterior = guides.fit(heavy, "laplace", *data, steps=200, lr=0.05)
    assert posterior.predict(data[0], num_samples=3)["y"].shape == (3, 30)


def train(guide, model, data, steps=600, loss=None):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    optimiser = pyro.optim.ExponentialLR({"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, "gamma": 0.99})
    svi = SVI(model, guide, optimiser, loss=loss or Trace_ELBO())
    for _ in range(steps):
        svi.step(*data)
        optimiser.step()
    return guide


def scaled_line(x, y=None):
    """A constrained latent and a learnt noise, under Pyro's own parameters."""
    noise = pyro.param("noise", torch.tensor(3.0), constraint=constraints.positive)
    w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    factor = pyro.sample("factor", dist.LogNormal(0.0, 0.3))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(factor * (x @ w), noise), obs=y)


@pytest.mark.parametrize("model", [linear, logistic, scaled_line])
def test_it_replaces_pyros_laplace_approximation(model, data):
    y = response(model, data) if model is logistic else data[1]
    results = []
    for make in (AutoLaplaceApproximation, lambda m: guides.Laplace(m, curvature="hessian")):
        guide = train(make(model), model, (data[0], y))
        normal = guide.laplace_approximation(data[0], y)
        results.append(normal.get_posterior(data[0], y))
        draws = Predictive(model, guide=normal, num_samples=10)(data[0])
        assert draws["w"].shape[0] == 10
        assert normal.quantiles([0.5])["w"] is not None
    pyros, ours = results
    torch.testing.assert_close(ours.mean, pyros.mean, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(ours.covariance_matrix.detach(), pyros.covariance_matrix.detach(), rtol=5e-3, atol=1e-4)


def test_the_default_curvature_is_pyros_where_the_two_are_one(data):
    guide = train(guides.Laplace(linear, init_loc_fn=init_to_value(values={"w": torch.zeros(3)})), linear, data)
    _, want, _ = linear_posterior(*data)
    found = guide.laplace_approximation(*data).get_posterior().covariance_matrix
    torch.testing.assert_close(found.detach().double(), want, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("curvature", ["ggn", "hessian"])
def test_where_pyros_raises_a_linear_algebra_error_this_does_not(curvature, data):
    x, y = data[0][:6], data[1][:6]
    with pytest.raises(torch.linalg.LinAlgError):
        train(AutoLaplaceApproximation(network), network, (x, y), steps=30).laplace_approximation(x, y)
    guide = train(guides.Laplace(network, curvature=curvature), network, (x, y), steps=30)
    normal = guide.laplace_approximation(x, y)
    assert torch.linalg.eigvalsh(normal.get_posterior().covariance_matrix.detach())[0] > 0
    assert Predictive(network, guide=normal, num_samples=5)(x)["f"].isfinite().all()


def test_the_approximation_leaves_the_parameter_store_as_svi_left_it(data):
    guide = train(guides.Laplace(scaled_line), scaled_line, data, steps=20)
    before = {n: v.detach().clone() for n, v in pyro.get_param_store().items()}
    guide.laplace_approximation(*data)
    after = dict(pyro.get_param_store().items())
    assert before.keys() == after.keys()
    for name, value in before.items():
        torch.testing.assert_close(after[name].detach(), value)


def best_hyperparameters(x, y):
    """Maximise the closed-form evidence of the linear model over prior scale and noise."""
    logs = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([logs], max_iter=200, line_search_fn="strong_wolfe")

    def evidence():
        prior, noise = logs.exp()
        marginal = prior**2 * x @ x.T + noise**2 * torch.eye(len(x), dtype=torch.float64)
        return torch.distributions.MultivariateNormal(torch.zeros(len(x)).double(), marginal).log_prob(y)

    def closure():
        optimiser.zero_grad()
        loss = -evidence()
        loss.backward()
        return loss

    optimiser.step(closure)
    return logs.exp().tolist(), evidence().item()


@pytest.mark.parametrize("seed", [1, 2])
def test_marginal_likelihood_finds_the_hyperparameters_of_the_closed_form(seed):
    x, y = line(rows=40, seed=seed)
    (prior, noise), evidence = best_hyperparameters(x.double(), y.double())
    posterior = guides.fit(hyper, ("laplace", {"marginal_likelihood": 6}), x, y, steps=200, lr=0.05)
    info = posterior.info[0]
    assert info["log_evidence"] == pytest.approx(evidence, abs=2e-3)
    assert info["hyperparameters"]["noise"] == pytest.approx(noise, rel=5e-3)
    assert info["hyperparameters"]["prior_scale"] == pytest.approx(prior, rel=5e-3)
    assert info["evidence_trace"][-1] >= info["evidence_trace"][0]
    torch.testing.assert_close(posterior.parameters["noise"], torch.tensor(info["hyperparameters"]["noise"]))


def test_hyperparameters_wait_for_the_mode(data):
    """While the mode is sought they keep their initial values, or MAP would take the noise or the prior to zero."""
    posterior = guides.fit(hyper, ("laplace", {"marginal_likelihood": 1}), *data, steps=300, lr=0.05)
    alone = guides.fit(linear_with_units, "map", *data, steps=300, lr=0.05)
    torch.testing.assert_close(posterior.losses[0, -1], alone.losses[0, -1], rtol=1e-3, atol=1e-2)


def linear_with_units(x, y=None):
    w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)


def hierarchy(x, y=None):
    """A scale with a prior and another to be chosen: the prior's curvature at the mode is not positive."""
    width = pyro.param("width", torch.tensor(1.0), constraint=constraints.positive)
    tau = pyro.sample("tau", dist.HalfNormal(width))
    w = pyro.sample("w", dist.Normal(torch.zeros(3), tau).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)


def test_marginal_likelihood_of_a_hierarchy_does_not_crash(data):
    posterior = guides.fit(hierarchy, ("laplace", {"marginal_likelihood": 3}), data[0], 0.01 * data[1], steps=300, lr=0.1)
    assert math.isfinite(posterior.info[0]["log_evidence"])
    assert all(v.isfinite().all() for v in posterior.sample(20).values())


def test_local_latents_are_curved_together():
    at = at_point(schools, SCHOOLS, mu=torch.tensor(4.0), tau=torch.tensor(3.0), theta=torch.full((8,), 4.0))
    ggn = at.ggn()
    torch.testing.assert_close(ggn[2:, 2:], torch.diag(SCHOOLS[0].double() ** -2), rtol=1e-4, atol=1e-6)
    assert ggn[:2].abs().max() < 1e-6


def test_a_mask_leaves_data_points_out(data):
    x, y = data

    def masked(x, y=None):
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 2.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w, 0.5).mask(torch.arange(len(x)) < 10), obs=y)

    _, want, _ = linear_posterior(x[:10], y[:10])
    torch.testing.assert_close(covariance(fit_at(masked, (x, y))), want, rtol=1e-3, atol=1e-5)
