from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import datasets

from addis import data


def test_digits_are_those_of_scikit_learn_to_the_last_step() -> None:
    bunch = datasets.load_digits()
    images = data.load("digits", "all")
    assert images.images.shape == (1797, 1, 8, 8)
    assert images.levels == 16
    assert torch.equal(images.floats()[:, 0], torch.from_numpy(bunch.images).float() / 16)
    assert images.targets.tolist() == bunch.target.tolist()
    assert images.classes == tuple("0123456789")


def test_digits_bytes_are_the_steps_scaled_to_255_and_all_differ() -> None:
    found = data.load("digits", "all").images.unique()
    assert found.tolist() == [round(255 * step / 16) for step in range(17)]


@pytest.mark.parametrize(("name", "n", "d"), [("breast_cancer", 569, 30), ("wine", 178, 13)])
def test_tables_are_those_of_scikit_learn(name: str, n: int, d: int) -> None:
    bunch = getattr(datasets, f"load_{name}")()
    table = data.load(name, "all")
    assert isinstance(table, data.Table)
    assert table.x.shape == (n, d)
    assert np.array_equal(table.x.numpy(), bunch.data)
    assert table.targets.tolist() == bunch.target.tolist()
    assert table.classes == tuple(bunch.target_names)
    assert table.features == tuple(bunch.feature_names)


@pytest.mark.parametrize("name", ["digits", "breast_cancer", "wine", "sprites"])
def test_train_and_test_partition_all_and_each_class_gives_a_fifth(name: str) -> None:
    whole, train, test = (data.load(name, split) for split in ("all", "train", "test"))
    x = [
        getattr(part, "x" if isinstance(part, data.Table) else "images")
        for part in (whole, train, test)
    ]
    rows = [sorted(row.numpy().tobytes() for row in part) for part in x]
    assert sorted(rows[1] + rows[2]) == rows[0]
    for label in whole.targets.unique():
        n = int((whole.targets == label).sum())
        assert int((test.targets == label).sum()) == round(n / 5)
    assert (train.split, test.split) == ("train", "test")


def test_the_split_is_the_same_every_time() -> None:
    """Frozen: results on the embedded sets must stay comparable."""
    assert data.load("digits", "test").targets[:12].tolist() == [6, 4, 5, 8, 5, 5, 7, 0, 0, 7, 3, 6]
    assert data.load("wine", "test").x[:4, 0].tolist() == [14.06, 14.1, 14.75, 13.05]
    a, b = data.load("digits", "test"), data.load("digits", "test")
    assert torch.equal(a.images, b.images)
