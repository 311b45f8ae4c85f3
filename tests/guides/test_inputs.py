"""What users pass as data, models and options: taken where its meaning is plain, otherwise refused before the first step."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, WeightedRandomSampler

import guides
import zoo
from guides import errors
from guides.predictive import class_probabilities

QUICK = {"steps": 30, "lr": 0.05}
NEVER = {"steps": 10**9}


def linear(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)


def logistic(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=x @ w), obs=y)


def categorical(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3, 3]).to_event(2))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Categorical(logits=x @ w), obs=y)


def groups(g, y):
    with pyro.plate("group", 3):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(a[g], 1.0), obs=y)


@pytest.fixture(scope="module")
def data():
    torch.manual_seed(0)
    x = torch.randn(24, 3)
    return x, x @ torch.tensor([1.0, -1.0, 0.5]) + 0.1 * torch.randn(24)


def same(fitted, other):
    assert torch.equal(fitted.losses, other.losses)
    return True


class Items(Dataset):
    def __init__(self, *columns):
        self.columns = columns

    def __len__(self):
        return len(self.columns[0])

    def __getitem__(self, index):
        return tuple(c[index] for c in self.columns)


class Stream(IterableDataset):
    def __iter__(self):
        return iter([])


def test_lists_arrays_and_data_sets_are_the_tensors_that_they_hold(data):
    x, y = data
    wanted = guides.fit(linear, "mean_field", x, y, **QUICK)
    ways = [
        (x.tolist(), y.tolist()),
        (tuple(map(tuple, x.tolist())), tuple(y.tolist())),
        ([row.numpy() for row in x], list(y.numpy())),
        (x.numpy().astype(float), y.numpy().astype(object)),
        (np.ma.masked_invalid(x.numpy()), y),
        (TensorDataset(x, y),),
        (Items(x, y.numpy()),),
    ]
    for way in ways:
        assert same(guides.fit(linear, "mean_field", *way, **QUICK), wanted)


def test_a_data_loader_brings_rows_and_batch_size(data):
    x, y = data
    wanted = guides.fit(linear, "mean_field", x, y, batch_size=8, **QUICK)
    state = torch.random.get_rng_state()
    loader = DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True)
    fitted = guides.fit(linear, "mean_field", loader, **QUICK)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert same(fitted, wanted)
    assert all(torch.equal(a, b) for a, b in zip(fitted.data, (x, y), strict=True))
    assert guides.fit(linear, "mean_field", loader, epochs=2).steps == 6
    assert guides.fit(linear, "mean_field", loader, epochs=2, batch_size=12).steps == 4
    assert torch.equal(fitted.predict(loader, num_samples=5)["y"], fitted.predict(x, y, num_samples=5)["y"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x, y: DataLoader(TensorDataset(x, y), sampler=WeightedRandomSampler([1.0] * 24, 24)), "sampler.*weights of"),
        (lambda x, y: DataLoader(Stream()), "argument 0 is a DataLoader.*stream"),
        (lambda x, y: Stream(), "argument 0.*a stream without a length; read it into tensors"),
        (lambda x, y: TensorDataset(x[:0]), "argument 0 .*TensorDataset.* is empty"),
        (lambda x, y: Items([{"x": v} for v in x]), "must give rows of tensors or tuples of tensors"),
        (lambda x, y: Items([x[0], x[0, :2]] * 3), "rows of argument 0 .a Items. cannot be put together"),
        (lambda x, y: Items(torch.zeros(2**27, 1).expand(2**27, 60)), "holds 134217728 rows, 30.0 GB"),
    ],
)
def test_data_sets_that_are_no_tensors(make, message, data):
    with pytest.raises(errors.DataError, match=message):
        guides.fit(linear, "mean_field", make(*data), **NEVER)


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16])
def test_other_types_of_floats(kind, data):
    x, y = (v.to(torch.bfloat16).float() for v in data)
    wanted = guides.fit(linear, "mean_field", x, y, **QUICK)
    fitted = guides.fit(linear, "mean_field", x.to(kind), y.to(kind), **QUICK)
    assert torch.allclose(fitted.losses.float(), wanted.losses, rtol=1e-2 if kind is torch.float16 else 1e-5)
    assert fitted.predict(x.to(kind), num_samples=3)["y"].isfinite().all()


def test_whole_numbers_and_booleans_where_the_model_multiplies(data):
    x, y = data
    whole, positive = (3 * x).round(), y > 0
    wanted = guides.fit(logistic, "mean_field", whole, positive.float(), **QUICK)
    for features in (whole.long(), whole.int(), whole.long().numpy().astype(np.int8), whole.long().tolist()):
        for targets in (positive, positive.long(), positive.numpy(), positive.long().numpy().astype(np.uint8)):
            fitted = guides.fit(logistic, "mean_field", features, targets, **QUICK)
            assert same(fitted, wanted)
    assert fitted.predict(whole.long(), num_samples=3)["y"].shape == (3, 24)


def test_whole_numbers_stay_what_they_are_where_the_model_indexes(data):
    g, y = torch.arange(24) % 3, data[1]
    wanted = guides.fit(groups, "mean_field", g, y, **QUICK)
    for index in (g.int(), g.to(torch.uint8), g.numpy().astype(np.int8), g.numpy().astype(np.uint8), g.tolist()):
        assert same(guides.fit(groups, "mean_field", index, y, **QUICK), wanted)


def test_whole_numbers_through_an_encoder():
    counts = torch.poisson(torch.full((20, 5), 3.0), generator=torch.Generator().manual_seed(0))

    class Counts(PyroModule):
        def forward(self, x):
            rate = pyro.param("rate", torch.ones(5), constraint=dist.constraints.positive)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Poisson(rate * z[:, None].exp()).to_event(1), obs=x)

    encoder = ("amortized", {"encoder": torch.nn.Linear(5, 2)})
    assert guides.fit(Counts(), encoder, counts.long(), **QUICK).losses.isfinite().all()


def test_numbers_that_float32_cannot_tell_apart(data):
    times = 1.7e9 + torch.arange(24, dtype=torch.float64)
    for x in (torch.stack([times] * 3, -1).numpy(), torch.stack([times] * 3, -1).tolist()):
        with pytest.raises(errors.DataError, match=r"argument 0 \(column 0\) runs from 17.*float32 cannot tell apart"):
            guides.fit(linear, "mean_field", x, data[1], **NEVER)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda y: (v for v in y), "argument 1 is a generator, which can be read only once.*list"),
        (lambda y: map(float, y), "argument 1 is a map, which can be read only once"),
        (lambda y: y + 0j, "argument 1 is complex.*x.real and x.imag"),
        (lambda y: y.numpy() + 0j, "argument 1 is complex"),
        (lambda y: np.ma.masked_greater(y.numpy(), 0.0), "argument 1 is a masked array with .* masked values.*obs_mask"),
        (lambda y: y.to_sparse(), "argument 1 is a torch.sparse_coo tensor; pass it dense"),
        (lambda y: ["a", "b"] * 12, r"cannot be run.*argument 1 holds the strings 'a', 'b'; pass whole numbers.*unique"),
        (lambda y: np.array(["a", "b"] * 12), "argument 1 holds the strings 'a', 'b'; pass whole numbers"),
        (lambda y: [None] * 24, "argument 1 is a list that holds None; pass numbers"),
        (lambda y: [[1.0], [1.0, 2.0]] * 12, "argument 1 is a list that is no table of numbers"),
        (lambda y: [], "argument 1 is an empty list; a fit needs at least one data point"),
        (lambda y: np.array(["2020-01-01"] * 24, dtype="datetime64[D]"), "argument 1 holds dates or times"),
    ],
)
def test_arguments_that_are_no_numbers(spoil, message, data):
    x, y = data
    with pytest.raises(errors.DataError, match=rf"(?s){message}"):
        guides.fit(linear, "mean_field", x, spoil(y), **NEVER)


def test_sparse_matrices(data):
    scipy = pytest.importorskip("scipy.sparse")
    with pytest.raises(errors.DataError, match=r"argument 0 is a sparse matrix .*csr.*; pass it dense.*toarray"):
        guides.fit(linear, "mean_field", scipy.csr_matrix(data[0].numpy()), data[1], **NEVER)


@pytest.mark.parametrize(
    ("model", "change", "message"),
    [
        (
            logistic,
            lambda y: 2 * y - 1,
            r"at site 'y', the value \(argument 1\).*labels found are -1, 1;.*\(y \+ 1\) / 2",
        ),
        (logistic, lambda y: y + 1, "support .Boolean. of Bernoulli.*labels found are 1, 2;.*0 to 1: pass y - 1"),
        (categorical, lambda y: y + 2, "of Categorical; .* labels found are 2, 3;.*0 to 2: pass torch.unique"),
        (categorical, lambda y: torch.arange(24) % 3 + 1, "labels found are 1, 2, 3;.*0 to 2: pass y - 1"),
        (categorical, lambda y: torch.arange(24) % 4, "labels found are 0, 1, 2, 3;.*3 labels for 4 values"),
    ],
)
def test_labels_that_do_not_count_from_zero(model, change, message, data):
    x, y = data
    with pytest.raises(errors.DataError, match=message) as error:
        guides.fit(model, "mean_field", x, change((y > 0).long()), **NEVER)
    assert "Trace Shapes" not in str(error.value)
    assert "tensor(" not in str(error.value)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda x, y: guides.fit(linear, "mean_field", x, y, learning_rate=1.0),
            errors.OptionError,
            "did you mean lr",
        ),
        (lambda x, y: guides.fit(linear, "mean_field", x, y, n_steps=1), errors.OptionError, "did you mean steps"),
        (
            lambda x, y: guides.fit(linear, "mean_field", x, y, batchsize=1),
            errors.OptionError,
            "did you mean batch_size",
        ),
        (lambda x, y: guides.fit(linear, "mean_field", x, y, compiled=1), errors.OptionError, "did you mean compile"),
        (
            lambda x, y: guides.fit(linear, "mean_field", x, y=y),
            errors.OptionError,
            "by position, or in model_kwargs",
        ),
        (
            lambda x, y: guides.fit_many(linear, "mean_field", [(x, y)], stpes=1),
            errors.OptionError,
            "did you mean steps",
        ),
        (lambda x, y: guides.compare(linear, ["map"], x, y, n_iter=1), errors.OptionError, "did you mean steps"),
        (
            lambda x, y: guides.compare(linear, "mean_field", x, y),
            errors.OptionError,
            "guides is 'mean_field'.*a list",
        ),
        (
            lambda x, y: guides.compare(linear, ("low_rank", {"rank": 2}), x, y),
            errors.OptionError,
            "takes a list of guides",
        ),
        (lambda x, y: guides.compare(linear, x, ["map"], y), errors.OptionError, "guides is a Tensor.*takes a list"),
        (lambda x, y: guides.compare(linear, ["map"], x, y, options={"maq": {}}), errors.OptionError, "guide 'maq'"),
        (
            lambda x, y: guides.fit(linear, x, "mean_field", y),
            errors.OptionError,
            r"'mean_field' stands among the data",
        ),
        (
            lambda x, y: guides.fit(linear, x, y, "map"),
            errors.OptionError,
            r"'map' stands among the data \(argument 2\)",
        ),
        (lambda x, y: guides.fit(linear, ["map"], x, y), errors.OptionError, "guide is a list.*compare"),
        (
            lambda x, y: guides.fit("mean_field", linear, x, y),
            errors.OptionError,
            "the model is 'mean_field'; pass a Pyro",
        ),
        (
            lambda x, y: guides.fit(x, "mean_field", y),
            errors.OptionError,
            "the model is a Tensor; pass a Pyro model first",
        ),
        (
            lambda x, y: guides.fit(zoo.BayesianMLP, x, y),
            errors.OptionError,
            r"class BayesianMLP; pass an instance, Ba",
        ),
        (
            lambda x, y: guides.fit(linear, "map", x, y, x),
            errors.DataError,
            r"takes linear\(x, y=None\) and was given 3",
        ),
        (lambda x, y: guides.fit(linear, "map"), errors.DataError, "given 0 positional arguments: missing.*'x'"),
        (
            lambda x, y: guides.fit(linear, "map", x, y, model_kwargs={"y": y}),
            errors.DataError,
            "2 positional arguments and the keywords y: multiple values for argument 'y'",
        ),
        (
            lambda x, y: guides.fit(linear, "map", x, y, model_kwargs={"z": y}),
            errors.DataError,
            "unexpected keyword.*'z'",
        ),
    ],
)
def test_calls_that_are_not_meant_so(call, error, message, data):
    with pytest.raises(error, match=message):
        call(*data)


def test_observations_that_were_left_out(data):
    x = data[0]
    calls = []

    def transformed(x, sizes=None, y=None):
        calls.append(1)
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("target", dist.Normal(w * x[:, 0], 1.0), obs=None if y is None else y.unsqueeze(-1)[..., 0] * 2.0)

    for given in ((x,), (x, None), (x, 3)):
        with pytest.raises(errors.DataError, match=r"argument 'y' was left out .*'target' would be.* latent.*prior"):
            guides.fit(transformed, "mean_field", *given, **NEVER)
    assert len(calls) < 50
    with pytest.raises(errors.DataError, match="argument 'y' was left out"):
        guides.fit(linear, "mean_field", x, model_kwargs={"y": None}, batch_size=8, **NEVER)
    with pytest.raises(errors.DataError, match="argument 'y' was left out"):
        guides.fit(zoo.BayesianLinearRegression(3), x, **NEVER)

    def unknown(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        if y is not None:
            pyro.sample("y", dist.Normal(w, 1.0), obs=torch.as_tensor(y["target"]))

    with pytest.raises(errors.DataError, match="nothing is observed: the model's argument 'y' was left out"):
        guides.fit(unknown, "mean_field", x, **NEVER)


def test_a_model_that_observes_nothing_on_purpose(data):
    x, y = data

    def prior(scale=None):
        pyro.sample("z", dist.Normal(0.0, 1.0 if scale is None else scale))

    def one_of_two(x, y=None):  # a latent beside an observation, as in semi-supervised models
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

    def factor(y=None):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("f", -z.square())

    def given_by_condition(x, y=None):
        linear(x, y)

    assert guides.fit(prior, "mean_field", **QUICK).losses.isfinite().all()
    assert guides.fit(one_of_two, "mean_field", x, **QUICK).losses.isfinite().all()
    assert guides.fit(factor, "mean_field", **QUICK).losses.isfinite().all()
    conditioned = pyro.condition(given_by_condition, {"y": y})
    assert guides.fit(conditioned, "mean_field", x, **QUICK).losses.isfinite().all()


def test_predictions_at_inputs_that_would_broadcast(data):
    x, y = data

    def sums(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("y", dist.Normal((x * w).sum(-1), 0.5), obs=y)

    posterior = guides.fit(sums, "mean_field", x, y, **QUICK)
    for ask in (posterior.predict, posterior.log_likelihood):
        with pytest.raises(errors.DataError, match=r"argument 0 has shape \(3,\).*\(rows, 3\).*x\[None, :\] for one row"):
            ask(x[0])
        with pytest.raises(errors.DataError, match=r"argument 0 has shape \(24,\), the training data's was \(rows, 3\)"):
            ask(x[:, 0])
        with pytest.raises(errors.DataError, match=r"argument 0 has shape \(24, 1\).*give it 3 columns"):
            ask(x[:, :1])
        with pytest.raises(errors.DataError, match=r"argument 0 has shape \(1, 24, 3\).*give it 2 dimensions"):
            ask(x[None])
    with pytest.raises(errors.DataError, match=r"argument 1 has shape \(24, 1\), the training data's was \(rows\)"):
        posterior.log_likelihood(x, y[:, None])
    with pytest.raises(errors.DataError, match="was given 3 positional arguments: too many"):
        posterior.predict(x, y, x)
    assert posterior.predict(x[:1], num_samples=2)["y"].shape == (2, 1)
    assert posterior.predict(x[:5].numpy(), num_samples=2)["y"].shape == (2, 5)


def test_messages_print_no_tensors():
    def unscaled(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(0.0, x.mean(-1, keepdim=True) - 1e6).to_event(1), obs=x)

    with pytest.raises(errors.DataError, match=r"scale of Normal must satisfy .*; 50 of 50 .* from -.*\(line \d+ of test"):
        guides.fit(unscaled, "mean_field", torch.rand(50, 4), **NEVER)


def test_data_far_from_the_scale_of_a_network():
    torch.manual_seed(0)  # what an untrained network makes of such data hangs on its weights

    def vae():
        return zoo.VAE(torch.nn.Linear(2, 4), latent_dim=2, likelihood="gaussian")

    encoder = ("amortized", {"encoder": torch.nn.Linear(4, 4)})
    values = 200 * torch.rand(50, 4)
    with pytest.raises(
        errors.DataError, match=r"'Amortized' cannot be run.*Normal.*up to .*e\+0.*scale of about 1"
    ) as error:
        guides.fit(vae(), encoder, 1e5 * values, **NEVER)
    assert "tensor(" not in str(error.value)
    assert len(str(error.value)) < 400
    with pytest.raises(errors.NonFiniteLossError, match=r"Argument 0 has values up to .* scale of about 1"):
        guides.fit(vae(), encoder, values, steps=5)
    with pytest.warns(errors.NonFiniteLossWarning, match=r"Argument 0 has values up to .* scale of about 1"):
        fitted = guides.fit(vae(), encoder, 0.2 * values, steps=100, lr=10.0)
    assert "scale of about 1" in fitted.stop_reasons[0]


@pytest.fixture
def frames(data):
    pandas = pytest.importorskip("pandas")
    x, y = data
    index = [f"p{i}" for i in range(24)]
    table = pandas.DataFrame(x.double().numpy(), columns=["age", "bmi", "dose"], index=index)
    return pandas, table, pandas.Series(y.numpy(), index=index, name="y")


def test_data_frames_are_their_numbers_and_name_the_coordinates(frames, data, tmp_path):
    _, x, y = frames
    fitted = guides.fit(linear, "mean_field", x, y, **QUICK)
    assert same(fitted, guides.fit(linear, "mean_field", *data, **QUICK))
    fitted.save(tmp_path / "fit")
    for posterior in (fitted, guides.Posterior.load(tmp_path / "fit", linear)):
        tree = posterior.to_arviz(num_samples=2, prior_samples=2)
        assert tree["posterior"].coords["w_dim_0"].values.tolist() == ["age", "bmi", "dose"]
        assert tree["prior"].coords["w_dim_0"].values.tolist() == ["age", "bmi", "dose"]
        assert tree["constant_data"].coords["x_dim_1"].values.tolist() == ["age", "bmi", "dose"]
        assert tree["log_likelihood"].coords["data"].values.tolist() == list(x.index)
        wanted = posterior.predict(x, num_samples=3)["y"]
        assert torch.equal(posterior.predict(x[["dose", "age", "bmi"]], num_samples=3)["y"], wanted)
        assert torch.equal(posterior.predict(x.to_numpy(), num_samples=3)["y"], wanted)
        with pytest.raises(errors.DataError, match="argument 0 lacks the column 'dose' of the training data"):
            posterior.predict(x[["age", "bmi"]])
    renamed = fitted.to_arviz(num_samples=2, prior_samples=0, coords={"w_dim_0": [1, 2, 3]})
    assert renamed["posterior"].coords["w_dim_0"].values.tolist() == [1, 2, 3]


def test_a_dimension_that_only_has_the_size_of_the_columns_gets_no_labels(frames, data):
    _, x, _ = frames

    def classes(x, y):  # three columns and three classes
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3, 3]).to_event(2))
        b = pyro.sample("b", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(logits=x @ w + b), obs=y)

    fitted = guides.fit(classes, "mean_field", x, torch.arange(24) % 3, **QUICK)
    tree = fitted.to_arviz(num_samples=2, prior_samples=0)
    assert tree["posterior"].coords["w_dim_0"].values.tolist() == ["age", "bmi", "dose"]
    assert tree["posterior"].coords["w_dim_1"].values.tolist() == [0, 1, 2]
    assert tree["posterior"].coords["b_dim_0"].values.tolist() == [0, 1, 2]


def test_labelled_arrays(data):
    xarray = pytest.importorskip("xarray")
    x = xarray.DataArray(data[0].numpy(), dims=("person", "feature"), coords={"feature": ["a", "b", "c"]})
    fitted = guides.fit(linear, "mean_field", x, data[1], **QUICK)
    assert same(fitted, guides.fit(linear, "mean_field", *data, **QUICK))
    tree = fitted.to_arviz(num_samples=2, prior_samples=0)
    assert tree["posterior"].coords["w_dim_0"].values.tolist() == ["a", "b", "c"]
    with pytest.raises(errors.DataError, match="argument 0 is a Dataset of several arrays"):
        guides.fit(linear, "mean_field", x.to_dataset(name="x"), data[1], **NEVER)


def test_a_model_that_takes_the_frame_apart_gets_the_frame(frames):
    pandas, x, y = frames

    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        age = torch.as_tensor(x["age"].to_numpy(), dtype=torch.float)
        with pyro.plate("data", len(age)):
            pyro.sample("y", dist.Normal(w * age, 1.0), obs=y)

    fitted = guides.fit(model, "mean_field", x, y, **QUICK)
    assert fitted.predict(x.iloc[:4], num_samples=2)["y"].shape == (2, 4)
    assert fitted.predict(pandas.DataFrame({"age": [1.0], "b": ["?"]}), num_samples=2)["y"].shape == (2, 1)


def test_categories_are_codes_where_they_stand_alone(frames, data):
    pandas, x, y = frames
    g = pandas.Series(list("bca") * 8, dtype="category")
    wanted = guides.fit(groups, "mean_field", torch.tensor([1, 2, 0] * 8), data[1], **QUICK)
    fitted = guides.fit(groups, "mean_field", g, data[1], **QUICK)
    assert same(fitted, wanted)
    assert fitted.predict(g[:2], torch.zeros(2), num_samples=2)["y"].shape == (2, 2)
    with pytest.raises(errors.DataError, match=r"argument 0 has the categories 'b', 'c', .* were 'a', 'b', 'c'"):
        fitted.predict(pandas.Series(["b", "c"], dtype="category"), torch.zeros(2))
    with pytest.raises(errors.DataError, match=r"argument 0 is categorical \('a', 'b', 'c'\) with missing values"):
        guides.fit(groups, "mean_field", g.where(g != "c"), data[1], **NEVER)
    for column, message in (
        (g.to_numpy(), "column 'dose' of argument 0 holds the strings 'a', 'b', 'c'"),
        (g.set_axis(x.index), "column 'dose' of argument 0 is categorical.*get_dummies"),
        (pandas.date_range("2020", periods=24), "column 'dose' of argument 0 holds dates"),
        ([None, *range(22), "x"], "column 'dose' of argument 0 holds None, which is no number"),
    ):
        with pytest.raises(errors.DataError, match=message):
            guides.fit(linear, "mean_field", x.assign(dose=column), y, **NEVER)


def test_a_saved_posterior_of_another_model(data, tmp_path):
    guides.fit(linear, "mean_field", *data, **QUICK).save(tmp_path / "fit")

    def other(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([4]).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(w.sum(), 1.0), obs=y)

    with pytest.raises(errors.DataError, match=r"not those of this model: .* latent sites w \(3,\), this one has w \(4,\)"):
        guides.Posterior.load(tmp_path / "fit", other)
    with pytest.raises(
        errors.DataError, match=r"saved posterior is of a model with the latent sites w \(3,\), which this is no"
    ):
        guides.Posterior.load(tmp_path / "fit", lambda x: None)


def test_class_probabilities_take_log_likelihoods_of_every_label(data):
    x = data[0]
    posterior = guides.fit(categorical, "mean_field", x, torch.arange(24) % 3, **QUICK)
    logs = [posterior.log_likelihood(x, torch.full((24,), c), seed=0)["y"] for c in range(3)]
    probabilities = class_probabilities(logs)
    assert probabilities.shape == (24, 3)
    assert torch.allclose(probabilities.sum(-1), torch.ones(24))
    for wrong, message in (
        (torch.randn(1000, 24, 3), r"one tensor of shape \(1000, 24, 3\).*softmax\(-1\).mean\(0\)"),
        ([torch.randn(2, 1000, 24)] * 3, r"shapes \[\(2, 1000, 24\)\]"),
        ([logs[0], logs[1][:, :3], logs[2]], r"shapes \[\(1000, 3\), \(1000, 24\)\]"),
        (logs[:2], "add up to .* at a point instead of 1.*same seed"),
        ([torch.randn(1000, 24) for _ in range(3)], "add up to .* instead of 1"),
    ):
        with pytest.raises(ValueError, match=message):
            class_probabilities(wrong)


def test_point_masses_have_no_log_likelihood_to_compare_by(data):
    for guide in ("map", "ensemble"):
        posterior = guides.fit(linear, guide, *data, **QUICK)
        tree = posterior.to_arviz(num_samples=2, prior_samples=0)
        assert "log_likelihood" not in tree.groups()
        assert "point mass" in tree["posterior"].attrs["log_likelihood"]
        asked = posterior.to_arviz(num_samples=2, groups=["posterior", "log_likelihood"])
        assert asked["log_likelihood"]["y"].shape == (1, 2, 24)
    assert "log_likelihood" in guides.fit(linear, "laplace", *data, **QUICK).to_arviz(num_samples=2).groups()


def test_covariates_without_columns(data):
    def trend(y, covariates):
        level = pyro.sample("level", dist.Normal(0.0, 1.0))
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([covariates.shape[-1] + 1]).to_event(1))
        with pyro.plate("time", len(y)):
            pyro.sample("y", dist.Normal(level + covariates @ w[1:], 1.0), obs=y)

    fitted = guides.fit(trend, "mean_field", data[1], torch.empty(24, 0), **QUICK)
    assert fitted.predict(data[1][:7], torch.empty(7, 0), num_samples=2)["y"].shape == (2, 7)
