"""What the analyses ask of data: samples by index, disjoint test sets, and independent streams of
random numbers.
"""

from __future__ import annotations

import hashlib
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

__all__ = ["Labelled", "check_disjoint", "inputs_of", "nested_sample", "stream", "take"]


class Labelled(Protocol):
    """A map-style data set of ``(input, class)`` pairs."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def stream(seed: int, name: str) -> torch.Generator:
    """A CPU generator for one purpose, so that drawing more for one purpose changes no other draw
    of a seed.
    """
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def take(dataset: Labelled, indices: Tensor) -> Labelled:
    """The samples at ``indices`` in that order, in the data set's own kind where it can be kept.

    Args:
        dataset: With a method ``subset``, a ``TensorDataset``, or any map-style data set.
        indices: int64 ``(n,)``.
    """
    if hasattr(dataset, "subset"):
        return cast("Labelled", dataset.subset(indices))
    if isinstance(dataset, TensorDataset):
        return TensorDataset(*(tensor[indices] for tensor in dataset.tensors))
    return Subset(cast("Dataset[Any]", dataset), indices.tolist())


def nested_sample(size: int, n: int, seed: int) -> Tensor:
    """Draws ``n`` of ``size`` indices without replacement; of one seed the larger sample holds the
    smaller one.

    Raises:
        ValueError: ``n`` is not in ``1 ... size``.
    """
    if not 1 <= n <= size:
        raise ValueError(f"n must be in 1 ... {size}, the size of the dataset, got {n}")
    return torch.randperm(size, generator=stream(seed, "sample"))[:n]


def inputs_of(dataset: Labelled) -> Tensor:
    """All inputs of a data set as one tensor ``(N, ...)``, of the dtype that it gives them in."""
    if hasattr(dataset, "floats"):
        return cast("Tensor", dataset.floats())
    if hasattr(dataset, "xy"):
        return cast("Tensor", dataset.xy[0])
    if isinstance(dataset, TensorDataset):
        return dataset.tensors[0]
    return torch.stack([torch.as_tensor(dataset[i][0]) for i in range(len(dataset))])


def check_disjoint(train: Tensor, test: Tensor, *, name: str = "X_test") -> None:
    """Refuses a test set that shares a sample with the training set.

    Args:
        train: ``(N, ...)``.
        test: ``(M, ...)`` of the same sample shape.
        name: The argument's name in the message.

    Raises:
        ValueError: A test sample equals a training sample to the last bit.
    """
    seen = set(_digests(train))
    shared = [i for i, digest in enumerate(_digests(test)) if digest in seen]
    if shared:
        raise ValueError(
            f"{name} shares {len(shared)} of its {len(test)} samples with the training set, "
            f"first at index {shared[0]}"
        )


def _digests(samples: Tensor) -> list[bytes]:
    rows = samples.detach().cpu().double().flatten(1).contiguous().numpy()
    return [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows]
