"""Sets that come with scikit-learn, with a train and test split of our own."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

from addis.data._images import Images
from addis.data._table import Table

__all__ = ["digits", "split_rows", "table"]


def digits(name: str, split: str) -> Images:
    """8x8 handwritten digits; the grey steps 0..16 are kept as ``round(255 * step / 16)``."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    steps = torch.from_numpy(bunch.images).view(-1, 1, 8, 8)
    images = Images(
        images=(steps * (255 / 16)).round().to(torch.uint8),
        targets=torch.from_numpy(bunch.target).long(),
        classes=tuple(str(digit) for digit in bunch.target_names),
        name=name,
        split=split,
        levels=16,
    )
    return images.subset(split_rows(name, images.targets, split))


def table(name: str, split: str) -> Table:
    """``breast_cancer`` or ``wine``."""
    from sklearn import datasets

    bunch = {"breast_cancer": datasets.load_breast_cancer, "wine": datasets.load_wine}[name]()
    rows = Table(
        x=torch.from_numpy(bunch.data).double(),
        targets=torch.from_numpy(bunch.target).long(),
        classes=tuple(str(label) for label in bunch.target_names),
        features=tuple(str(feature) for feature in bunch.feature_names),
        name=name,
        split=split,
    )
    return rows.subset(split_rows(name, rows.targets, split))


def split_rows(name: str, targets: Tensor, split: str) -> Tensor:
    """The rows of a split, ascending: ``test`` is a fifth of each class, ``train`` the rest.

    Which rows are in ``test`` is decided by a hash of the set's name and the row's number, so it is
    the same on every machine and with every version of every library.

    Args:
        name: The set's name.
        targets: ``(N,)`` classes of all rows.
        split: ``train``, ``test`` or ``all``.

    Returns:
        int64 ``(n,)``.
    """
    if split == "all":
        return torch.arange(len(targets))
    keys = np.array(
        [
            hashlib.blake2b(f"{name}/{row}".encode(), digest_size=8).hexdigest()
            for row in range(len(targets))
        ]
    )
    test = np.zeros(len(targets), bool)
    labels = targets.numpy()
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        test[rows[np.argsort(keys[rows])][: round(len(rows) / 5)]] = True
    return torch.from_numpy(np.flatnonzero(test if split == "test" else ~test))
