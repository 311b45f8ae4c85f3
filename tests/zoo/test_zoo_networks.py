"""The MLP's options, the likelihoods, and any module made Bayesian."""

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Predictive
from torch import nn

import zoo
from zoo.mlp import ACTIVATIONS


def trace_of(model, *data):
    return pyro.poutine.trace(model).get_trace(*data)


X = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))

OPTIONS = {
    "deep": ({"hidden": (5, 4, 3)}, (7,)),
    "linear": ({"hidden": ()}, (7,)),
    "fixed prior": ({"prior": 0.5}, (7,)),
    "learned prior": ({"prior": "learned", "hidden": (4, 4)}, (7,)),
    "prior as parameter": ({"prior": "param", "noise": "param"}, (7,)),
    "prior per layer": ({"prior": [1.0, "learned"]}, (7,)),
    "fixed noise": ({"noise": 0.1}, (7,)),
    "noise parameter": ({"noise": "param"}, (7,)),
    "heteroscedastic": ({"noise": "heteroscedastic"}, (7,)),
    "two targets": ({"out_features": 2}, (7, 2)),
    "two targets, heteroscedastic": ({"out_features": 2, "noise": "heteroscedastic"}, (7, 2)),
    "binary": ({"likelihood": "binary"}, (7,)),
    "two labels": ({"likelihood": "binary", "out_features": 2}, (7, 2)),
    "multiclass": ({"likelihood": "multiclass", "out_features": 4}, (7,)),
    "function": ({"activation": torch.cos}, (7,)),
    **{name: ({"activation": name}, (7,)) for name in ACTIVATIONS},
}


@pytest.mark.parametrize("options", OPTIONS)
def test_mlp_options(options):
    torch.manual_seed(0)
    arguments, shape = OPTIONS[options]
    model = zoo.BayesianMLP(3, **{"hidden": (5,), **arguments})
    y = model(X)
    assert y.shape == shape
    trace = trace_of(model, X, y)
    assert torch.isfinite(trace.log_prob_sum())
    assert trace.nodes["y"]["fn"].batch_shape == (7,)
    assert trace.nodes["y"]["cond_indep_stack"][0].name == "data"
    for parallel in (False, True):
        drawn = Predictive(model, num_samples=6, parallel=parallel)(X)
        assert drawn["y"].shape == (6, *shape)


def test_mlp_sites_and_priors():
    model = zoo.BayesianMLP(3, hidden=(16,), prior=["scaled", 0.2])
    nodes = trace_of(model, X, torch.zeros(7)).nodes
    scales = {name: site["fn"].base_dist.scale.unique().item() for name, site in nodes.items() if name.startswith("layers")}
    expected = {"layers.0.weight": 3**-0.5, "layers.0.bias": 1.0, "layers.1.weight": 0.2, "layers.1.bias": 0.2}
    assert scales == pytest.approx(expected)
    assert nodes["layers.0.weight"]["value"].shape == (3, 16)
    assert nodes["sigma"]["value"].shape == ()


def test_mlp_computes_what_it_says():
    model = zoo.BayesianMLP(3, hidden=(4,), activation="tanh", noise=0.1)
    nodes = trace_of(model, X).nodes
    w0, b0, w1, b1 = (nodes[f"layers.{i}.{part}"]["value"] for i in (0, 1) for part in ("weight", "bias"))
    expected = (torch.tanh(X @ w0 + b0) @ w1 + b1).squeeze(-1)
    torch.testing.assert_close(nodes["f"]["value"], expected)
    torch.testing.assert_close(nodes["y"]["fn"].mean, expected)
    assert nodes["y"]["fn"].stddev.unique() == pytest.approx(0.1)


def test_mlp_learned_scale():
    nodes = trace_of(zoo.BayesianMLP(3, hidden=(16,), prior="learned"), X).nodes
    scale = nodes["layers.1.scale"]
    assert scale["fn"].base_dist.loc.exp() == pytest.approx(16**-0.5) and scale["fn"].base_dist.scale == 1.0
    assert nodes["layers.1.weight"]["fn"].base_dist.scale.unique() == scale["value"]
    assert nodes["layers.1.bias"]["fn"].base_dist.scale.unique() == 1.0


def test_heteroscedastic_noise_is_the_second_half_of_the_output():
    output = torch.tensor([[1.0, 2.0, -4.0, 0.0], [3.0, 4.0, 5.0, -100.0]])
    nodes = trace_of(zoo.Likelihood("regression", "heteroscedastic"), output).nodes
    assert torch.equal(nodes["f"]["value"], output[:, :2])
    torch.testing.assert_close(nodes["y"]["fn"].stddev, 1e-3 + (1 + output[:, 2:].exp()).log())


def test_noise_parameter_is_positive():
    pyro.clear_param_store()
    zoo.BayesianMLP(3, noise="param")(X)
    assert list(pyro.get_param_store().keys()) == ["noise_scale"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"activation": "rellu"}, "Did you mean 'relu'"),
        ({"likelihood": "regresion"}, "Did you mean 'regression'"),
        ({"noise": "heteroskedastic"}, "Did you mean 'heteroscedastic'"),
        ({"noise": 0.0}, "noise must be a positive"),
        ({"prior": "scale"}, "Did you mean 'scaled'"),
        ({"prior": [1.0]}, "1 entries for 2 layers"),
        ({"hidden": (0,)}, "at least one unit"),
        ({"likelihood": "multiclass"}, "out_features >= 2"),
        ({"data_size": 0}, "data_size must be at least 1"),
    ],
)
def test_mlp_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        zoo.BayesianMLP(3, **arguments)


def test_logistic_regression_with_several_classes():
    model = zoo.BayesianLogisticRegression(3, num_classes=4)
    nodes = trace_of(model, X).nodes
    assert nodes["weight"]["value"].shape == (3, 4) and nodes["f"]["value"].shape == (7, 4)
    assert "bias" not in trace_of(zoo.BayesianLogisticRegression(3, bias=False), X)
    with pytest.raises(ValueError, match="num_classes must be at least 2"):
        zoo.BayesianLogisticRegression(3, num_classes=1)


def test_eight_schools_centred():
    sigma, y = zoo.EightSchools.data()
    nodes = trace_of(zoo.EightSchools(centered=True), sigma, y).nodes
    assert not nodes["theta"]["is_observed"] and "theta_trans" not in nodes
    assert trace_of(zoo.EightSchools(), sigma, y).nodes["theta"]["is_observed"]


def test_eight_schools_is_one_model_in_two_forms():
    sigma, y = zoo.EightSchools.data()
    mu, tau, unit = torch.tensor(3.0), torch.tensor(2.0), torch.randn(8)
    centred = pyro.condition(zoo.EightSchools(centered=True), {"mu": mu, "tau": tau, "theta": mu + tau * unit})
    other = pyro.condition(zoo.EightSchools(), {"mu": mu, "tau": tau, "theta_trans": unit})
    values = [trace_of(model, sigma, y).log_prob_sum() for model in (centred, other)]
    torch.testing.assert_close(values[0] + 8 * tau.log(), values[1])


def network():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.ReLU(), nn.Linear(4, 2))


def test_bayesianize_does_not_touch_the_module():
    net = network().train()
    before, modes = copy.deepcopy(net.state_dict()), [m.training for m in net.modules()]
    model = zoo.bayesianize(net, noise=0.1)
    model.train()
    model(X, torch.zeros(7, 2))
    model.double()
    after = net.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert [m.training for m in net.modules()] == modes
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert not any(m.training for m in model.network.modules()), "dropout and batch statistics would draw in secret"


def test_bayesianize_computes_what_the_module_does():
    net = network().eval()
    model = zoo.bayesianize(net)
    weights = {name: p.detach() for name, p in net.named_parameters()}
    f = trace_of(pyro.condition(model, data=weights), X).nodes["f"]["value"]
    torch.testing.assert_close(f, net(X).detach())


def test_bayesianize_hides_parameters():
    net = network().eval()
    model = zoo.bayesianize(net, hide=["1.*", "0.bias"])
    assert sorted(model.priors) == ["0.weight", "4.bias", "4.weight"]
    model = zoo.bayesianize(net, hide=lambda name, p: p.dim() == 1)
    assert sorted(model.priors) == ["0.weight", "4.weight"]
    last = zoo.bayesianize(net, hide="[!4]*")
    assert sorted(last.priors) == ["4.bias", "4.weight"]
    assert Predictive(last, num_samples=5, parallel=True)(X)["y"].shape == (5, 7, 2)


def test_bayesianize_priors():
    net = nn.Linear(4, 3)
    scale = {"scaled": (0.5, 1.0), "number": (2.0, 2.0), "mapping": (0.5, 0.1), "callable": (0.3, 0.3), "scalar": (4, 4)}
    priors = {
        "scaled": "scaled",
        "number": 2.0,
        "mapping": {"weight": "scaled", "*": 0.1},
        "callable": lambda name, p: dist.Normal(p, 0.3),
        "scalar": dist.Normal(0.0, 4.0),
    }
    for name, prior in priors.items():
        nodes = trace_of(zoo.bayesianize(net, prior), X.new_zeros(7, 4)).nodes
        for site, expected in zip(("weight", "bias"), scale[name]):
            assert nodes[site]["fn"].event_shape == getattr(net, site).shape
            assert nodes[site]["fn"].stddev.unique() == pytest.approx(expected), (name, site)
    centred = trace_of(zoo.bayesianize(net, priors["callable"]), X.new_zeros(7, 4)).nodes["weight"]["fn"].mean
    assert torch.equal(centred, net.weight.detach())


def test_bayesianize_with_a_likelihood_of_ones_own():
    model = zoo.bayesianize(nn.Linear(3, 1), likelihood=lambda f: dist.Poisson(f.squeeze(-1).exp()))
    y = model(X)
    assert y.shape == (7,) and torch.isfinite(trace_of(model, X, y).log_prob_sum())
    several = zoo.bayesianize(nn.Linear(3, 2), likelihood=lambda f: dist.StudentT(4.0, f, 1.0))
    assert several(X).shape == (7, 2)
    assert trace_of(several, X).nodes["y"]["fn"].batch_shape == (7,)


def test_bayesianize_a_module_that_returns_a_vector():
    class Vector(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(3))
            self.scale = nn.Parameter(torch.zeros(()))

        def forward(self, x):
            return self.scale * (x @ self.w)

    model = zoo.bayesianize(Vector())
    for parallel in (False, True):
        assert Predictive(model, num_samples=5, parallel=parallel)(X)["f"].shape == (5, 7)


class Sigma(nn.Module):
    def __init__(self):
        super().__init__()
        self.sigma = nn.Parameter(torch.zeros(3))


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        (nn.ReLU(), {}, "nothing to sample"),
        (nn.Linear(2, 2), {"hide": "*"}, "nothing to sample"),
        (nn.Linear(2, 2), {"hide": ["layer.*"]}, "fits no parameter"),
        (nn.Linear(2, 2), {"prior": {"weight": 1.0}}, "no pattern for parameter 'bias'"),
        (nn.Linear(2, 2), {"prior": -1.0}, "prior of 'weight' must be a positive"),
        (nn.Linear(2, 2), {"prior": "learned"}, "Valid: 'scaled'"),
        (nn.Linear(2, 2), {"prior": dist.Normal(torch.zeros(5), 1.0)}, r"shape \(5,\), the parameter \(2, 2\)"),
        (nn.Linear(2, 2), {"prior": lambda name, p: p}, "must be a pyro.distributions object"),
        (Sigma(), {}, "name of a site"),
        ("Linear", {}, "must be a torch.nn.Module"),
    ],
)
def test_bayesianize_errors(module, arguments, message):
    with pytest.raises(ValueError, match=message):
        zoo.bayesianize(module, **arguments)


def test_a_likelihood_that_is_no_distribution_is_refused():
    model = zoo.bayesianize(nn.Linear(3, 1), likelihood=lambda f: f)
    with pytest.raises(ValueError, match="likelihood must return a pyro"):
        model(X)
