"""The posteriors of posteriordb: the density is Stan's up to a constant, and the reference draws are draws from it."""

import json
import math
import zipfile

import numpy as np
import pyro
import pyro.poutine as poutine
import pytest
import torch
from scipy import stats
from scipy.integrate import solve_ivp
from torch.distributions import biject_to

from zoo.datasets import CorruptDataError, MissingDataError
from zoo.posteriordb import posteriors
from zoo.posteriordb.database import read_data, read_posterior

NAMES = list(posteriors)


# -- Stan's densities, written again in numpy from the Stan programs -----------------------------------------------------


def normal(x, mean, sd):
    return stats.norm.logpdf(x, mean, sd).sum()


def regression(*columns, target, beta, sigma):
    return normal(target, np.stack([np.ones_like(target), *columns], -1) @ beta, sigma)


def ar(d, p):
    mean = [p["alpha"] + sum(p["beta"][k] * d["y"][t - k - 1] for k in range(d["K"])) for t in range(d["K"], d["T"])]
    prior = normal(p["alpha"], 0, 10) + normal(p["beta"], 0, 10) + stats.cauchy.logpdf(p["sigma"], 0, 2.5)
    return prior + normal(d["y"][d["K"] :], mean, p["sigma"])


def arma(d, p):
    y, errors = d["y"], []
    for t in range(d["T"]):
        before, error = (y[t - 1], errors[t - 1]) if t else (p["mu"], 0.0)
        errors.append(y[t] - (p["mu"] + p["phi"] * before + p["theta"] * error))
    prior = normal(p["mu"], 0, 10) + normal(p["phi"], 0, 2) + normal(p["theta"], 0, 2)
    return prior + stats.cauchy.logpdf(p["sigma"], 0, 2.5) + normal(errors, 0, p["sigma"])


def diamond(d, p):
    x = d["X"][:, 1:] - d["X"][:, 1:].mean(0)
    prior = normal(p["b"], 0, 1) + stats.t.logpdf(p["Intercept"], 3, 8, 10) + stats.t.logpdf(p["sigma"], 3, 0, 10)
    return prior + normal(d["Y"], p["Intercept"] + x @ p["b"], p["sigma"])


def logearn(d, p):
    return regression(d["height"], d["male"], d["height"] * d["male"], target=np.log(d["earn"]), **p)


def schools(d, p):
    prior = stats.cauchy.logpdf(p["tau"], 0, 5) + normal(p["mu"], 0, 5)
    return prior + normal(p["theta"], p["mu"], p["tau"]) + normal(d["y"], p["theta"], d["sigma"])


def noncentered(d, p):
    prior = stats.cauchy.logpdf(p["tau"], 0, 5) + normal(p["mu"], 0, 5) + normal(p["theta_trans"], 0, 1)
    return prior + normal(d["y"], p["theta_trans"] * p["tau"] + p["mu"], d["sigma"])


def garch(d, p):
    y, beta1 = d["y"], p["beta1_share"] * (1 - p["alpha1"])
    variance = [d["sigma1"] ** 2]
    for t in range(1, d["T"]):
        variance.append(p["alpha0"] + p["alpha1"] * (y[t - 1] - p["mu"]) ** 2 + beta1 * variance[-1])
    return normal(y, p["mu"], np.sqrt(variance)) + np.log(1 - p["alpha1"])


def gp(d, p):
    square = (d["x"][:, None] - d["x"]) ** 2
    covariance = p["alpha"] ** 2 * np.exp(-square / (2 * p["rho"] ** 2)) + p["sigma"] * np.eye(d["N"])
    prior = stats.gamma.logpdf(p["rho"], 25, scale=1 / 4) + normal(p["alpha"], 0, 2) + normal(p["sigma"], 0, 1)
    return prior + stats.multivariate_normal.logpdf(d["y"], np.zeros(d["N"]), covariance)


def hmm(d, p):
    moves = np.log(np.stack([p["theta1"], p["theta2"]]))
    forward = stats.norm.logpdf(d["y"][0], p["mu"], 1)
    for value in d["y"][1:]:
        forward = np.logaddexp(*(forward[:, None] + moves)) + stats.norm.logpdf(value, p["mu"], 1)
    return normal(p["mu"], [3, 10], 1) + np.logaddexp(*forward)


def volterra(d, p):
    alpha, beta, gamma, delta = p["theta"]

    def change(t, z):
        return [(alpha - beta * z[1]) * z[0], (-gamma + delta * z[0]) * z[1]]

    z = solve_ivp(change, (0, d["ts"][-1]), p["z_init"], "DOP853", d["ts"], rtol=1e-10, atol=1e-10).y.T
    prior = normal(p["theta"], [1, 0.05, 1, 0.05], [0.5, 0.05, 0.5, 0.05])
    prior += stats.lognorm.logpdf(p["sigma"], 1, scale=math.exp(-1)).sum()
    prior += stats.lognorm.logpdf(p["z_init"], 1, scale=10).sum()
    return (
        prior + normal(np.log(d["y_init"]), np.log(p["z_init"]), p["sigma"]) + normal(np.log(d["y"]), np.log(z), p["sigma"])
    )


def kidscore(d, p):
    hs, iq = d["mom_hs"], d["mom_iq"]
    columns = (hs, iq, hs * iq) if len(p["beta"]) == 4 else (iq,)
    return stats.cauchy.logpdf(p["sigma"], 0, 2.5) + regression(*columns, target=d["kid_score"], **p)


def gauss_mix(d, p):
    parts = stats.norm.logpdf(d["y"][:, None], p["mu"], p["sigma"]) + np.log([p["theta"], 1 - p["theta"]])
    return (
        normal(p["sigma"], 0, 2) + normal(p["mu"], 0, 2) + stats.beta.logpdf(p["theta"], 5, 5) + np.logaddexp(*parts.T).sum()
    )


def mesquite(d, p):
    logs = [np.log(d[name]) for name in ("diam1", "diam2", "canopy_height", "total_height", "density")]
    return regression(*logs, d["group"], target=np.log(d["weight"]), **p)


def volume(d, p):
    return regression(np.log(d["diam1"] * d["diam2"] * d["canopy_height"]), target=np.log(d["weight"]), **p)


def election(d, p):
    ages = [(d["age_discrete"] == group) * 1.0 for group in (2, 3, 4)]
    columns = (d["real_ideo"], d["race_adj"], *ages, d["educ1"], d["gender"], d["income"])
    return regression(*columns, target=d["partyid7"], **p)


def linear(d, p):
    return normal(p["beta"], 0, 10) + normal(p["sigma"], 0, 10) + normal(d["y"], d["X"] @ p["beta"], p["sigma"])


STAN = {
    "arK-arK": ar,
    "arma-arma11": arma,
    "diamonds-diamonds": diamond,
    "earnings-logearn_interaction": logearn,
    "eight_schools-eight_schools_centered": schools,
    "eight_schools-eight_schools_noncentered": noncentered,
    "garch-garch11": garch,
    "gp_pois_regr-gp_regr": gp,
    "hmm_example-hmm_example": hmm,
    "hudson_lynx_hare-lotka_volterra": volterra,
    "kidiq-kidscore_interaction": kidscore,
    "kidiq-kidscore_momiq": kidscore,
    "low_dim_gauss_mix-low_dim_gauss_mix": gauss_mix,
    "mesquite-logmesquite": mesquite,
    "mesquite-logmesquite_logvolume": volume,
    "nes1980-nes": election,
    "sblrc-blr": linear,
}


THINNED = {
    "arK-arK": 5,
    "arma-arma11": 5,
    "diamonds-diamonds": 20,
    "garch-garch11": 5,
    "hudson_lynx_hare-lotka_volterra": 5,
    "low_dim_gauss_mix-low_dim_gauss_mix": 10,
}
"""Every how many reference draws enter a check that takes long."""


# -- the checks ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def provided(provided_data, monkeypatch):
    monkeypatch.delenv("POSTERIORDB", raising=False)
    monkeypatch.setenv("ZOO_DATA", str(provided_data))


def pooled(posterior):
    """The latents at the reference draws, ``(10,000, ...)``."""
    return {name: value.flatten(0, 1) for name, value in posterior.latents(posterior.draws()).items()}


def log_joint_of(posterior):
    data = tuple(part.double() for part in posterior.data())

    def log_joint(latents):
        return poutine.trace(poutine.condition(posterior.model, data=latents)).get_trace(*data).log_prob_sum()

    return log_joint, data


def bijections(posterior, latents, data):
    trace = poutine.trace(poutine.condition(posterior.model, data={k: v[0] for k, v in latents.items()})).get_trace(*data)
    return {name: biject_to(trace.nodes[name]["fn"].support) for name in latents}


def moved(posterior, latents, data, count=4):
    """Latents within their supports, off the posterior: draws, moved by random amounts where all numbers are allowed."""
    generator = torch.Generator().manual_seed(1)
    maps = bijections(posterior, latents, data)
    free = {name: maps[name].inv(value[:count]) for name, value in latents.items()}
    spread = {name: 0.1 * value.new_empty(value.shape).normal_(generator=generator) for name, value in free.items()}
    return [{name: maps[name](value[i] + spread[name][i]) for name, value in free.items()} for i in range(count)]


def test_all_seventeen_are_there():
    assert len(NAMES) == 17 and set(STAN) == set(NAMES)
    assert all(posteriors[name].name == name for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_log_density_is_stans_up_to_a_constant(name, provided):
    posterior = posteriors[name]
    given = read_data(read_posterior(name)["data_name"])
    given = {k: np.array(v, dtype=float) if isinstance(v, list) else v for k, v in given.items()}
    log_joint, data = log_joint_of(posterior)
    points = moved(posterior, pooled(posterior), data)
    ours = np.array([float(log_joint(point)) for point in points])
    stans = np.array([STAN[name](given, {k: v.numpy() for k, v in point.items()}) for point in points])
    assert np.ptp(stans) > 0.1
    # Data are float32. The solver of the differential equation takes fixed steps.
    tolerance = 5e-3 if name.endswith("lotka_volterra") else 1e-5
    np.testing.assert_allclose(ours - ours[0], stans - stans[0], atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_reference_draws_are_draws_from_it(name, provided):
    """Stein's identities over the unconstrained latents u, for the density p: E[grad log p] = 0, E[u grad log p] = -1."""
    posterior = posteriors[name]
    log_joint, data = log_joint_of(posterior)
    latents = {k: v[:: THINNED.get(name, 2)] for k, v in pooled(posterior).items()}
    maps = bijections(posterior, latents, data)
    free = {k: maps[k].inv(v) for k, v in latents.items()}

    def log_density(point):
        values = {k: maps[k](u) for k, u in point.items()}
        changes = [maps[k].log_abs_det_jacobian(u, values[k]).sum() for k, u in point.items()]
        return log_joint(values) + sum(changes)

    with pyro.validation_enabled(False):
        gradients = torch.func.vmap(torch.func.grad(log_density), chunk_size=1000)(free)
    u, gradient = (torch.cat([part[k].reshape(len(part[k]), -1) for k in free], 1) for part in (free, gradients))
    u, gradient = (u - u.mean(0)) / u.std(0), gradient * u.std(0)
    for identity in (gradient, u * gradient + 1):
        z = identity.mean(0) / (identity.std(0) / len(u) ** 0.5)
        assert z.abs().max() < 4.5, z


# -- files ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A user's clone of the repository with one small posterior; returns a function that fills a file."""
    monkeypatch.setenv("POSTERIORDB", str(tmp_path))
    root = tmp_path / "posterior_database"

    def put(place, content, inside=None):
        path = root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        if place.endswith(".zip"):
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr(inside or path.name.removesuffix(".zip"), json.dumps(content))
        else:
            path.write_text(json.dumps(content))
        return path

    put("posteriors/sblrc-blr.json", {"data_name": "small", "reference_posterior_name": "other"})
    put("data/data/small.json.zip", {"X": [[1, 2], [3, 4], [5, 6]], "y": [1, 2, 3]})
    put(DRAWS, [{"beta[1]": [0, 1], "beta[2]": [2, 3], "sigma": [4, 5]}] * 3)
    return put


DRAWS = "reference_posteriors/draws/draws/other.json.zip"


def test_a_clone_is_read(clone):
    posterior = posteriors["sblrc-blr"]
    x, y = posterior.data()
    assert x.shape == (3, 2) and y.tolist() == [1, 2, 3] and x.dtype == y.dtype == torch.get_default_dtype()
    draws = posterior.draws()
    assert draws["beta"].shape == (3, 2, 2) and draws["beta"][0].tolist() == [[0, 2], [1, 3]]
    assert draws["sigma"].dtype == torch.float64
    clone(DRAWS, [{"z[1,2]": [0.0], "z[1,1]": [1.0], "z[2,1]": [2.0], "z[2,2]": [3.0]}])
    assert posterior.draws()["z"].tolist() == [[[[1, 0], [2, 3]]]]


@pytest.mark.parametrize(
    ("chains", "words"),
    [
        ([], "list of chains"),
        ([{"beta[1]": [0.0]}, {"sigma": [0.0]}], "one lacks 'beta"),
        ([{"beta[1]": [0.0]}, {"beta[1]": [0.0, 1.0]}], "not as many numbers"),
        ([{"beta[1]": [0.0], "beta[3]": [0.0]}], r"'beta' has no element \[2\]"),
        ([{"beta[x]": [0.0]}], "no name of a parameter"),
    ],
)
def test_draws_that_are_not_draws_are_refused(chains, words, clone):
    clone(DRAWS, chains)
    with pytest.raises(CorruptDataError, match=words):
        posteriors["sblrc-blr"].draws()


def test_what_is_missing_or_damaged_is_named(clone):
    with pytest.raises(MissingDataError, match=r"POSTERIORDB=.*arK-arK\.json.*git pull"):
        posteriors["arK-arK"].data()
    clone("data/data/small.json.zip", {}, inside="large.json")
    with pytest.raises(CorruptDataError, match=r"holds large\.json, and not small\.json"):
        posteriors["sblrc-blr"].data()
    clone("data/data/small.json.zip", []).write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(CorruptDataError, match="no zip archive"):
        posteriors["sblrc-blr"].data()
    clone("data/data/small.json.zip", [1])
    with pytest.raises(CorruptDataError, match="holds a list"):
        posteriors["sblrc-blr"].data()
    clone("posteriors/sblrc-blr.json", ["x"])
    with pytest.raises(CorruptDataError, match="names no data set"):
        posteriors["sblrc-blr"].data()
