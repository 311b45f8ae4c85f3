"""The ArviZ converter: its numpy half under whichever ArviZ is installed, then whole fits."""

import subprocess
import sys

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray

import guides
from guides.fitted.arviz_io import to_arviz
from guides.fitted.groups import GROUPS, from_groups, import_arviz
from guides.program.prior import sample_prior, unobserved

CHAINS, DRAWS, POINTS = 2, 40, 6


def arrays():
    rng = np.random.default_rng(0)
    return {
        "posterior": {"mu": rng.normal(size=(CHAINS, DRAWS)), "theta": rng.normal(size=(CHAINS, DRAWS, POINTS))},
        "log_likelihood": {"y": rng.normal(size=(CHAINS, DRAWS, POINTS)) / 10},
        "sample_stats": {"lp": rng.normal(size=(CHAINS, DRAWS))},
        "prior": {"mu": rng.normal(size=(1, 7))},
        "observed_data": {"y": np.zeros(POINTS)},
        "constant_data": {"x": np.zeros((POINTS, 3))},
    }


# -- numpy half, no torch needed ---------------------------------------------------------------------------------------


def test_the_object_is_that_of_the_installed_arviz_and_its_functions_take_it(tmp_path):
    arviz = import_arviz()
    tree = from_groups(arrays(), dims={"theta": ["school"], "y": ["school"], "x": ["school"]})
    if arviz.__version__.startswith("0."):
        assert isinstance(tree, arviz.InferenceData)
        groups = set(tree.groups())
    else:
        assert isinstance(tree, xarray.DataTree)
        groups = set(tree.children)
    assert groups == set(arrays())
    assert tree["posterior"]["theta"].dims == ("chain", "draw", "school")
    assert tree["constant_data"]["x"].dims == ("school", "x_dim_1")
    assert tree["prior"].sizes == {"chain": 1, "draw": 7}
    assert tree["posterior"].attrs["inference_library"] == "pyro"
    assert list(arviz.summary(tree).index[:2]) == ["mu", "theta[0]"]
    assert arviz.loo(tree, pointwise=True).n_data_points == POINTS
    tree.to_netcdf(tmp_path / "tree.nc")
    again = arviz.from_netcdf(tmp_path / "tree.nc")
    np.testing.assert_array_equal(again["posterior"]["theta"], arrays()["posterior"]["theta"])


def test_coordinates_label_dimensions_and_their_number_is_checked():
    tree = from_groups(arrays(), dims={"theta": ["school"]}, coords={"school": list("abcdef"), "unused": [1]})
    assert tree["posterior"]["theta"].sel(school="c").shape == (CHAINS, DRAWS)
    with pytest.raises(ValueError, match=r"coords\['school'\] has 2 labels, but the dimension has size 6"):
        from_groups(arrays(), dims={"theta": ["school"]}, coords={"school": ["a", "b"]})


def test_a_plate_named_like_a_variable_is_renamed():
    groups = {"posterior": {"theta": np.zeros((1, 3, 4))}, "constant_data": {"theta_plate": np.zeros(2)}}
    tree = from_groups(groups, dims={"theta": ["theta"]}, coords={"theta": list("abcd")})
    assert tree["posterior"]["theta"].dims == ("chain", "draw", "theta_plate")
    assert list(tree["posterior"]["theta_plate"].values) == list("abcd")


def test_sizes_that_disagree_are_an_error():
    groups = {"posterior": {"a": np.zeros((1, 3, 4)), "b": np.zeros((1, 3, 5))}}
    with pytest.raises(ValueError, match=r"dimension 'plate' of 'b' in group 'posterior' has size 5, elsewhere 4"):
        from_groups(groups, dims={"a": ["plate"], "b": ["plate"]})


def test_importing_the_package_neither_imports_arviz_nor_shows_its_notice(tmp_path):
    code = (
        "import warnings; warnings.simplefilter('error'); import sys, guides; assert 'arviz' not in sys.modules;"
        "from guides.fitted.groups import import_arviz; import_arviz()"
    )
    # An empty cache folder makes ArviZ 0.23 show its notice of the day.
    done = subprocess.run([sys.executable, "-c", code], env={"HOME": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


# -- whole fits ----------------------------------------------------------------------------------------------------------


def schools(sigma, y=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfNormal(5.0))
    with pyro.plate("school", len(sigma)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * z, event_dim=0)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


SIGMA = torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18])
Y = torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12])


@pytest.fixture(scope="module")
def fitted():
    return guides.fit(schools, "mean_field", SIGMA, Y, steps=200, replicates=2, progress=False)


def test_every_group_of_a_fit_with_dimensions_from_plates(fitted):
    state = torch.get_rng_state()
    tree = to_arviz(fitted, num_samples=50, prior_samples=20, predictions=(2 * SIGMA,))
    assert torch.equal(state, torch.get_rng_state())
    expected = {
        "posterior": {"mu", "tau", "z", "theta"},
        "posterior_predictive": {"y"},
        "predictions": {"y", "theta"},
        "log_likelihood": {"y"},
        "sample_stats": {"lp", "log_q"},
        "prior": {"mu", "tau", "z", "theta"},
        "prior_predictive": {"y"},
        "observed_data": {"y"},
        "constant_data": {"sigma"},
    }
    assert set(expected) == set(GROUPS)
    for group, names in expected.items():
        assert set(tree[group].data_vars) == names, group
    assert tree["posterior"]["theta"].dims == tree["log_likelihood"]["y"].dims == ("chain", "draw", "school")
    assert tree["posterior"].sizes == {"chain": 2, "draw": 50, "school": 8}
    assert tree["prior"].sizes["chain"] == 1
    assert tree["predictions"].sizes == {"chain": 2, "draw": 50, "school": 8}
    assert tree["predictions"]["y"].std() > tree["posterior_predictive"]["y"].std()
    assert tree["constant_data"]["sigma"].dims == ("school",)
    np.testing.assert_allclose(tree["observed_data"]["y"], Y)
    posterior = tree["posterior"]
    np.testing.assert_allclose(posterior["theta"], posterior["mu"] + posterior["tau"] * posterior["z"], rtol=1e-4, atol=1e-4)


def test_log_p_log_q_and_likelihood_are_those_of_the_draws(fitted):
    tree = to_arviz(fitted.replicate(0), num_samples=5, groups=("posterior", "sample_stats", "log_likelihood"))
    posterior, stats = tree["posterior"], tree["sample_stats"]
    for s in range(5):
        site = {name: torch.tensor(posterior[name].values[0, s]) for name in ("mu", "tau", "z", "theta")}
        likelihood = dist.Normal(site["theta"], SIGMA).log_prob(Y)
        np.testing.assert_allclose(tree["log_likelihood"]["y"].values[0, s], likelihood, rtol=1e-4)
        prior = dist.Normal(0.0, 5.0).log_prob(site["mu"]) + dist.HalfNormal(5.0).log_prob(site["tau"])
        log_p = prior + dist.Normal(0.0, 1.0).log_prob(site["z"]).sum() + likelihood.sum()
        assert stats["lp"].values[0, s] == pytest.approx(float(log_p), rel=1e-4)
        latents = {name: site[name] for name in ("mu", "tau", "z")}
        assert stats["log_q"].values[0, s] == pytest.approx(float(fitted.replicate(0).log_prob(latents)), rel=1e-3, abs=1e-3)


def test_the_same_seed_gives_the_same_object(fitted):
    first, again, other = (to_arviz(fitted, num_samples=5, prior_samples=5, seed=seed) for seed in (3, 3, 4))
    for group in ("posterior", "posterior_predictive", "prior", "prior_predictive"):
        for name in first[group].data_vars:
            assert first[group][name].equals(again[group][name])
            assert not first[group][name].equals(other[group][name])


def test_parts_overrides_and_bad_requests(fitted):
    tree = to_arviz(fitted, num_samples=5, groups=("posterior",), dims={"z": ["who"]}, coords={"who": list("abcdefgh")})
    assert tree["posterior"]["z"].dims == ("chain", "draw", "who")
    assert not hasattr(tree, "prior")
    with pytest.raises(ValueError, match="there is no group 'posteriors'"):
        to_arviz(fitted, groups=("posteriors",))
    with pytest.raises(ValueError, match="dims names 'zz', which is no site"):
        to_arviz(fitted, num_samples=5, dims={"zz": ["who"]})


def test_vector_observations_and_unnamed_arguments():
    def model(*inputs):
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(inputs[0])):
            pyro.sample("y", dist.Normal(inputs[0] @ torch.diag(w), 1.0).to_event(1), obs=inputs[1])

    x, y = torch.randn(5, 2), torch.randn(5, 2)
    tree = to_arviz(guides.fit(model, "mean_field", x, y, steps=5, progress=False), num_samples=10, prior_samples=5)
    assert tree["posterior"]["w"].dims == ("chain", "draw", "w_dim_0")
    assert tree["log_likelihood"]["y"].dims == ("chain", "draw", "data")
    assert tree["posterior_predictive"]["y"].dims == ("chain", "draw", "data", "y_dim_1")
    assert list(tree["constant_data"].data_vars) == ["inputs_0"]
    assert tree["constant_data"]["inputs_0"].dims[0] == "data"


# -- prior draws -----------------------------------------------------------------------------------------------------------


def test_prior_draws_have_the_moments_of_the_prior():
    draws = sample_prior(schools, SIGMA, Y, num_samples=4000, seed=1)
    assert draws["y"].shape == draws["theta"].shape == (4000, 8)
    assert float(draws["mu"].mean()) == pytest.approx(0, abs=4 * 5 / 4000**0.5)
    variance = 25 + 25 + SIGMA.square()
    assert ((draws["y"].var(0) / variance - 1).abs() < 6 * (2 / 4000) ** 0.5).all()


def test_prior_draws_of_sites_that_cannot_be_vectorised():
    def model():
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        if rate > 1e9:  # a branch on a value, which vmap refuses
            return
        pyro.sample("n", dist.Poisson(rate), obs=torch.tensor(3.0))

    draws = sample_prior(model, num_samples=500)
    assert len(draws["n"].unique()) > 3
    assert float(draws["rate"].mean()) == pytest.approx(2, abs=4 * 2**0.5 / 500**0.5)


def test_prior_draws_of_changing_shape_are_an_error():
    def model():
        n = int(pyro.sample("n", dist.Poisson(5.0)))
        pyro.sample("z", dist.Normal(torch.zeros(n), 1.0).to_event(1))

    with pytest.raises(ValueError, match="site 'z' does not have one shape"):
        sample_prior(model, num_samples=20)
    with pytest.raises(ValueError, match="num_samples is 0"):
        sample_prior(model, num_samples=0)


def test_prior_draws_leave_store_and_random_state_alone():
    def model():
        scale = pyro.param("scale", torch.tensor(2.0))
        return pyro.sample("z", dist.Normal(0.0, scale))

    state = torch.get_rng_state()
    sample_prior(model, num_samples=3)
    assert torch.equal(state, torch.get_rng_state())
    assert len(pyro.get_param_store()) == 0


def test_a_deterministic_site_in_a_plate_keeps_its_shape():
    def model():
        with pyro.plate("data", 3):
            f = pyro.deterministic("f", pyro.sample("z", dist.Normal(0.0, 1.0)))  # without event_dim
            return pyro.sample("y", dist.Normal(f, 1.0), obs=torch.zeros(3))

    assert unobserved(model)().shape == (3,)
    assert sample_prior(model, num_samples=4)["f"].shape == (4, 3)


def test_plates_called_chain_and_draw_are_dimensions_of_their_own():
    def model(y):
        with pyro.plate("draw", 2), pyro.plate("chain", 3, dim=-2):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(a.sum(), 1.0), obs=y)

    posterior = guides.fit(model, "mean_field", torch.ones(4), steps=2, compile="eager")
    tree = guides.to_arviz(posterior, num_samples=5, prior_samples=4)
    for group, draws in (("posterior", 5), ("prior", 4)):
        assert dict(tree[group]["a"].sizes) == {"chain": 1, "draw": draws, "chain_plate": 3, "draw_plate": 2}


def test_an_argument_of_which_a_site_of_its_name_sees_a_part():
    def model(y, rows):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y), subsample=rows) as i:
            pyro.sample("y", dist.Normal(a, 1.0), obs=y[i])

    rows = {"rows": torch.tensor([0, 2, 4])}
    posterior = guides.fit(model, "mean_field", 10 + torch.arange(8.0), model_kwargs=rows, steps=2, compile="eager")
    tree = guides.to_arviz(posterior, num_samples=2, prior_samples=2)
    assert dict(tree["observed_data"]["y"].sizes) == {"data": 3}
    assert dict(tree["constant_data"]["y"].sizes) == {"y_dim_0": 8}
    assert dict(tree["constant_data"]["rows"].sizes) == {"data": 3}
