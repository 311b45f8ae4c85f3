"""Splits, embedded sets and toy curves."""

import pickle

import pytest
import torch

from zoo import datasets

EMBEDDED = {"diabetes": (442, 10, 0), "breast_cancer": (569, 30, 2), "digits": (1797, 64, 10)}


def test_registry_holds_every_loader():
    loaders = {fn.__name__: name for name, fn in datasets.registry.items() if fn.__module__.startswith("zoo")}
    assert set(loaders) < set(datasets.__all__)
    assert set(datasets.UCI_NAMES) < set(datasets.registry)
    assert all(fn.__doc__ and "References:" in fn.__doc__ for fn in datasets.registry.values())
    with pytest.raises(KeyError, match="Did you mean 'bostonHousing'"):
        datasets.registry["boston_Housing"]


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_sets(name):
    data = datasets.registry[name]()
    rows, features, classes = EMBEDDED[name]
    assert data.x.shape == (rows, features) and data.y.shape == (rows,) and len(data) == rows
    assert len(data.feature_names) == features and data.num_classes == classes
    assert data.x.dtype == torch.float32 and data.y.dtype == (torch.int64 if name == "digits" else torch.float32)
    with pytest.raises(ValueError, match="use random_split"):
        data.split(0)


@pytest.mark.parametrize("ratio", [(0.7, 0.1, 0.2), (70, 10, 20), (0.9, 0.1), (1, 1, 1)])
def test_random_splits_partition_the_rows(ratio):
    data = datasets.diabetes()
    split = data.random_split(ratio, seed=5)
    parts = [split.x_train, split.x_valid, split.x_test] if len(ratio) == 3 else [split.x_train, split.x_test]
    assert torch.cat(parts).sort(0).values.equal(data.x.sort(0).values)
    assert [len(p) for p in parts] == pytest.approx([442 * r / sum(ratio) for r in ratio], abs=1)
    assert (split.x_valid is None) == (len(ratio) == 2)


def test_random_splits_are_seeded_and_leave_the_global_state():
    data, before = datasets.diabetes(), torch.random.get_rng_state()
    one, same, other = (data.random_split((0.8, 0.2), seed=s).x_test for s in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    datasets.blundell(seed=1), datasets.foong(seed=1)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("ratio", [(1.0,), (0.5, 0.2, 0.2, 0.1), (0.9, 0.0, 0.1), (0.9, -0.1), (1, 1e-9)])
def test_impossible_ratios(ratio):
    with pytest.raises(ValueError, match="ratio"):
        datasets.diabetes().random_split(ratio)


def test_standardising_uses_the_training_part_only():
    raw = datasets.diabetes().random_split(seed=1)
    split = raw.standardise()
    torch.testing.assert_close(split.x_train.mean(0), torch.zeros(10), atol=1e-5, rtol=0)
    torch.testing.assert_close(split.x_train.std(0, correction=0), torch.ones(10))
    assert split.y_mean == pytest.approx(raw.y_train.mean().item()) and split.x_test.mean(0).abs().max() > 1e-2
    mean, scale = raw.x_train.mean(0), raw.x_train.std(0, correction=0)
    torch.testing.assert_close(split.x_test, (raw.x_test - mean) / scale, rtol=1e-4, atol=1e-4)
    for part in ("y_train", "y_valid", "y_test"):
        torch.testing.assert_close(split.unstandardise(getattr(split, part)), getattr(raw, part))
    again = split.standardise()
    assert again.y_scale == pytest.approx(split.y_scale) and again.y_mean == pytest.approx(split.y_mean)


def test_constant_columns_and_labels_survive_standardising():
    split = datasets.digits().random_split(seed=0).standardise()
    assert torch.isfinite(split.x_test).all()
    assert torch.equal(split.x_train[:, 0], torch.zeros(len(split.x_train)))
    assert split.y_test.dtype == torch.int64 and (split.y_mean, split.y_scale) == (0.0, 1.0)


def test_holding_out():
    split = datasets.diabetes().random_split((0.9, 0.1))
    held = split.hold_out(0.25, seed=2)
    assert len(held.x_valid) == len(held.y_valid) == pytest.approx(0.25 * len(split.x_train), abs=1)
    assert torch.equal(torch.cat([held.x_train, held.x_valid]).sort(0).values, split.x_train.sort(0).values)
    with pytest.raises(ValueError, match="validation part of"):
        held.hold_out(0.1)
    for fraction in (0.0, 1.0, 1.5):
        with pytest.raises(ValueError, match="ratio"):
            split.hold_out(fraction)


def test_frozen_and_picklable():
    data = datasets.blundell()
    with pytest.raises(AttributeError):
        data.name = "other"
    assert torch.equal(pickle.loads(pickle.dumps(data)).split(0).x_test, data.split(0).x_test)


def test_blundell_curve():
    split = datasets.blundell(num_train=500, num_test=20, noise=0.0, seed=3).split(0)
    x = split.x_train.squeeze(-1)
    assert len(split.x_test) == 20 and x.min() >= 0 and x.max() <= 0.5
    curve = x + 0.3 * torch.sin(2 * torch.pi * x) + 0.3 * torch.sin(4 * torch.pi * x)
    torch.testing.assert_close(split.y_train, curve)
    noisy = datasets.blundell(num_train=500, num_test=20, seed=3).split(0).y_train - curve
    slope = 1 + 0.6 * torch.pi * torch.cos(2 * torch.pi * x) + 1.2 * torch.pi * torch.cos(4 * torch.pi * x)
    assert (noisy / slope)[slope.abs() > 1].std() == pytest.approx(0.02, rel=0.2)


def test_foong_gap():
    split = datasets.foong(seed=2).split(0)
    x = split.x_train.squeeze(-1)
    left, right = x[x < 0], x[x > 0]
    assert len(left) == len(right) == 50
    assert left.min() >= -1 and left.max() <= -0.7 and right.min() >= 0.5 and right.max() <= 1
    assert (split.y_train - torch.cos(4 * x + 0.8)).std() == pytest.approx(0.1, rel=0.2)
    with pytest.raises(ValueError, match="num_train"):
        datasets.foong(num_test=0)
