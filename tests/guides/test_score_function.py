"""Score-function gradients against enumeration; baselines; discrete draws from the tape, traced and replicated."""

import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch
from estimates import has_mean, replicate_estimates
from torch import nn

import guides
from guides import errors
from guides.program.noise import Noise, NoiseTape

X = torch.tensor([-1.5, 0.4, 2.0])
LOCS = torch.tensor([-1.0, 0.5, 2.0])


class Predictor(nn.Module):
    """A baseline that sees the data, for the signal of each row."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(1, 1)

    def forward(self, x, *_):
        return self.net(x.unsqueeze(-1))


BASELINES = {
    "none": lambda: guides.ScoreFunction(num_particles=1, baseline="none"),
    "leave one out": lambda: guides.ScoreFunction(num_particles=2),
    "module": lambda: guides.ScoreFunction(num_particles=1, baseline=Predictor()),
}


def sides(x):
    """One category per row, with learned locations."""
    locs = pyro.param("locs", LOCS.clone())
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(torch.tensor([0.5, 0.3, 0.2])))
        pyro.sample("x", dist.Normal(locs[k], 0.7), obs=x)


def classifier(x):
    slope = pyro.param("slope", torch.tensor([-0.5, 0.2, 0.4]))
    with pyro.plate("data", len(x)):
        pyro.sample("k", dist.Categorical(logits=slope * x.unsqueeze(-1)))


classifier.amortized = frozenset({"k"})


def exact_elbo_of_sides(x, slope, locs):
    log_q = torch.log_softmax(slope * x.unsqueeze(-1), -1)
    log_p = torch.tensor([0.5, 0.3, 0.2]).log() + dist.Normal(locs, 0.7).log_prob(x.unsqueeze(-1))
    return (log_q.exp() * (log_p - log_q)).sum()


def gradients_of(function, **parameters):
    """The value and the gradients by name of a function of parameters."""
    leaves = {n: p.double().clone().requires_grad_() for n, p in parameters.items()}
    value = function(**leaves)
    return value.detach(), dict(zip(leaves, torch.autograd.grad(value, list(leaves.values()))))


@pytest.mark.parametrize("name", BASELINES)
def test_the_gradient_is_that_of_the_enumerated_bound(name):
    value, want = gradients_of(
        lambda slope, locs: exact_elbo_of_sides(X.double(), slope, locs), slope=torch.tensor([-0.5, 0.2, 0.4]), locs=LOCS
    )
    found, gradients = replicate_estimates(BASELINES[name](), sides, classifier, (X,), 20_000, factor=1.0)
    assert has_mean(found, value)
    for parameter, gradient in want.items():
        assert has_mean(gradients[parameter], gradient)
        assert not has_mean(gradients[parameter], 0.0)


def test_minibatches_scale_signal_and_not_its_square():
    _, want = gradients_of(
        lambda slope, locs: 4 * exact_elbo_of_sides(X.double(), slope, locs),
        slope=torch.tensor([-0.5, 0.2, 0.4]),
        locs=LOCS,
    )
    for make in BASELINES.values():
        _, found = replicate_estimates(make(), sides, classifier, (X,), 20_000, factor=4.0)
        assert all(has_mean(found[n], want[n]) for n in want)


def mixed(x):
    """A continuous global latent, then one category per row, then a second one that depends on the first."""
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Bernoulli(0.4))
        b = pyro.sample("b", dist.Bernoulli(0.2 + 0.6 * a))
        pyro.sample("x", dist.Normal(m + a - 2 * b, 0.8), obs=x)


def mixed_guide(x):
    p = pyro.param("p", torch.tensor([0.3, -0.4, 0.5, 0.2, 1.0]))
    m = pyro.sample("m", dist.Normal(p[0], 0.5))
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Bernoulli(logits=p[1] * x + p[4] * m))
        pyro.sample("b", dist.Bernoulli(logits=p[2] * x + p[3] * a))


def exact_elbo_of_mixed(p):
    """Discrete latents enumerated row by row; the normal one by Gauss-Hermite quadrature."""
    import numpy

    nodes, weights = (torch.tensor(v) for v in numpy.polynomial.hermite_e.hermegauss(40))
    x = X.double()
    total = -(0.5 * (0.25 + p[0] ** 2 - 1) - torch.tensor(0.5).double().log())
    m = (p[0] + 0.5 * nodes)[:, None]
    for a, b in itertools.product((0.0, 1.0), repeat=2):
        a, b = torch.tensor(a).double(), torch.tensor(b).double()
        log_q = dist.Bernoulli(logits=p[1] * x + p[4] * m).log_prob(a) + dist.Bernoulli(logits=p[2] * x + p[3] * a).log_prob(
            b
        )
        log_p = (
            dist.Bernoulli(torch.tensor(0.4).double()).log_prob(a)
            + dist.Bernoulli(0.2 + 0.6 * a).log_prob(b)
            + dist.Normal(m + a - 2 * b, 0.8).log_prob(x)
        )
        total = total + (weights / weights.sum()) @ (log_q.exp() * (log_p - log_q)).sum(-1)
    return total


@pytest.mark.parametrize("name", BASELINES)
def test_pathwise_and_score_function_sites_mix(name):
    """The global draw moves the guide of the local ones, so that its path leads through their signal too."""
    value, want = gradients_of(exact_elbo_of_mixed, p=torch.tensor([0.3, -0.4, 0.5, 0.2, 1.0]))
    found, gradients = replicate_estimates(BASELINES[name](), mixed, mixed_guide, (X,), 40_000)
    assert has_mean(found, value)
    assert has_mean(gradients["p"], want["p"])
    assert (want["p"].abs() > 6 * gradients["p"].std(0) / 200).all()  # each of them can be told from zero


def test_a_discrete_latent_shared_by_all_rows():
    def model(x):
        k = pyro.sample("k", dist.Bernoulli(0.3))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    def guide(x):
        pyro.sample("k", dist.Bernoulli(logits=pyro.param("logit", torch.tensor(0.4))))

    def exact(logit):
        q = torch.stack([torch.sigmoid(-logit), torch.sigmoid(logit)])
        likelihood = torch.stack([dist.Normal(k, 1.0).log_prob(X.double()).sum() for k in (0.0, 1.0)])
        return (q * (likelihood + torch.tensor([0.7, 0.3]).double().log() - q.log())).sum()

    value, want = gradients_of(exact, logit=torch.tensor(0.4))
    for make in (BASELINES["none"], BASELINES["leave one out"]):
        found, gradients = replicate_estimates(make(), model, guide, (X,), 20_000)
        assert has_mean(found, value)
        assert has_mean(gradients["logit"], want["logit"])


def test_rows_do_not_disturb_each_other():
    """The noise of one row's gradient does not grow with the number of other rows."""

    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(3 * k, 0.5), obs=x)

    def guide(x):
        logits = pyro.param("logits", torch.zeros(len(x)))
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Bernoulli(logits=logits))

    objective = guides.ScoreFunction(num_particles=1, baseline="none")
    few = replicate_estimates(objective, model, guide, (torch.ones(1),), 2000)[1]["logits"]
    many = replicate_estimates(objective, model, guide, (torch.ones(30),), 2000)[1]["logits"]
    assert many.var(0).mean() < 1.3 * few.var(0).mean()


def test_baselines_take_noise_away_and_all_of_it_at_the_posterior():
    plain = replicate_estimates(guides.ScoreFunction(8, "none"), sides, classifier, (X,), 4000)[1]["slope"]
    other = replicate_estimates(guides.ScoreFunction(8), sides, classifier, (X,), 4000)[1]["slope"]
    assert other.var(0).sum() < 0.7 * plain.var(0).sum()

    def exact(x):
        logits = torch.tensor([0.5, 0.3, 0.2]).log() + dist.Normal(LOCS, 0.7).log_prob(x.unsqueeze(-1))
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Categorical(logits=logits + pyro.param("shift", torch.zeros(3))))

    at_posterior = replicate_estimates(guides.ScoreFunction(2), sides, exact, (X,), 200)
    assert at_posterior[1]["shift"].abs().max() < 1e-5
    assert at_posterior[0].std() < 1e-5


def test_reparameterised_draws_keep_their_pathwise_gradient():
    def model(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.3)), 0.5))

    same = [
        replicate_estimates(o, model, guide, (X,), 20) for o in (guides.ScoreFunction(2), guides.ELBO(2, kl="monte_carlo"))
    ]
    torch.testing.assert_close(same[0], same[1])


def test_a_module_is_trained_along_and_lowers_the_noise():
    torch.manual_seed(0)
    x = torch.linspace(-2.0, 2.0, 40)
    baseline = Predictor()
    before = [p.detach().clone() for p in baseline.parameters()]
    posterior = guides.fit(
        sides, classifier, x, objective=guides.ScoreFunction(1, baseline), steps=400, lr=0.05, batch_size=20
    )
    assert any(not torch.equal(a, b) for a, b in zip(before, baseline.parameters()))
    assert set(posterior.parameters) == {"slope", "locs"}

    trained = replicate_estimates(guides.ScoreFunction(1, baseline), sides, classifier, (x,), 2000)[1]["slope"]
    plain = replicate_estimates(guides.ScoreFunction(1, "none"), sides, classifier, (x,), 2000)[1]["slope"]
    assert trained.var(0).sum() < 0.8 * plain.var(0).sum()


def test_a_posterior_fitted_with_a_module_is_saved_without_it(tmp_path):
    posterior = guides.fit(sides, classifier, X, objective=guides.ScoreFunction(1, Predictor()), steps=10)
    posterior.save(tmp_path / "posterior")
    again = guides.Posterior.load(tmp_path / "posterior", sides, guide=classifier)
    for name, value in posterior.parameters.items():
        torch.testing.assert_close(again.parameters[name], value)


@pytest.mark.parametrize("name", BASELINES)
def test_traced_and_replicated_fits_are_the_eager_ones(name):
    def fit(**options):
        torch.manual_seed(0)
        settings = {"steps": 30, "lr": 0.05, "batch_size": 5, **options}
        x = torch.linspace(-2.0, 2.0, 20)
        return guides.fit(sides, classifier, x, objective=BASELINES[name](), **settings)

    eager = [fit(seed=s, compile="eager") for s in (3, 4)]
    together = fit(seed=3, compile="trace", replicates=2)
    for r in (0, 1):
        torch.testing.assert_close(together.replicate(r).losses, eager[r].losses, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(together.replicate(r).flat, eager[r].flat, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", BASELINES)
def test_stock_svi_trains_guide_and_baseline(name):
    pyro.set_rng_seed(0)
    x = torch.linspace(-2.0, 2.0, 20)
    svi = pyro.infer.SVI(sides, classifier, pyro.optim.Adam({"lr": 0.05}), loss=BASELINES[name]())
    losses = [svi.step(x) for _ in range(100)]
    assert sum(losses[-10:]) < sum(losses[:10])
    learned = [n for n in pyro.get_param_store() if n.startswith("guides.objective")]
    assert bool(learned) == (name == "module")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: guides.ScoreFunction(1), "compares particles.*num_particles=1; use 2 or more, or baseline='none'"),
        (
            lambda: guides.ScoreFunction(baseline="mean"),
            "baseline must be 'none', 'leave_one_out' or a torch.nn.Module, not",
        ),
        (lambda: guides.ScoreFunction(baseline=None), "baseline must be 'none', 'leave_one_out' or a torch.nn.Module, not"),
    ],
)
def test_bad_options_are_named(make, message):
    with pytest.raises(errors.OptionError, match=message):
        make()


class Wide(nn.Module):
    def forward(self, x):
        return torch.zeros(len(x), 2)


def test_bad_input_is_named():
    with pytest.raises(errors.OptionError, match="num_particles=1; use 2 or more"):
        guides.fit(sides, classifier, X, objective="score_function", num_particles=1, steps=2)
    with pytest.raises(
        errors.DataError, match=r"baseline returned shape \(3, 2\) for site 'k', whose signal has shape \(3,\)"
    ):
        guides.fit(sides, classifier, X, objective=guides.ScoreFunction(1, Wide()), steps=2)
    with pytest.raises(errors.DiscreteLatentError, match=r"'k' is discrete.*objective='score_function'"):
        guides.fit(sides, classifier, X, steps=2)
    with pytest.raises(errors.DiscreteLatentError, match=r"'k' is discrete.*guide 'MeanField' needs continuous"):
        guides.fit(sides, "mean_field", X, objective="score_function", steps=2)


def test_an_impossible_category_is_never_drawn():
    probs = torch.tensor([0.0, 0.5, 0.0, 0.5, 0.0])
    uniforms = torch.cat([torch.tensor([0.0, 0.5, 1 - 2**-24]), torch.rand(997)])
    with NoiseTape(Noise(uniforms, uniforms)):
        draws = dist.Categorical(probs=probs).sample((1000,))
    assert set(draws.tolist()) == {1, 3}
    assert draws[0] == 1
    assert draws[2] == 3
    assert abs((draws == 1).double().mean() - 0.5) < 4 * 0.5 / 1000**0.5


@pytest.mark.parametrize("objective", [guides.ELBO(), guides.IWAE()])
def test_stock_svi_is_told_where_a_gradient_would_know_nothing_of_discrete_draws(objective):
    def model(x):
        with pyro.plate("rows", len(x)):
            k = pyro.sample("k", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(3 * k, 1.0), obs=x)

    def guide(x):
        with pyro.plate("rows", len(x)):
            pyro.sample("k", dist.Bernoulli(logits=pyro.param("logits", torch.zeros(len(x)))))

    x = torch.tensor([0.0, 3.0])
    with pytest.raises(errors.DiscreteLatentError, match=r"draws latent site 'k'.*guides.ScoreFunction"):
        pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), objective).step(x)
    assert pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), guides.ScoreFunction()).step(x) > 0
