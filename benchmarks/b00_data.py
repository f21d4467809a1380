"""Reading CIFAR-10: addis beside ``datasets``, torchvision and plain NumPy, on one core."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from addis import data
from addis.study import Row, absent, timed

FLOOR = 500_000.0  # 32x32 images a second from the cache into tensors: the design's demand


def rows(*, full: bool = False, device: str = "cpu") -> Iterator[Row]:
    root = os.environ.get("ADDIS_DATA")
    if not root or not (Path(root) / "cifar10" / "train.parquet").is_file():
        yield absent("read CIFAR-10", "all", "ADDIS_DATA has no cifar10", unit="images/s")
        return
    images = data.load("cifar10", "train")
    images.images.sum()  # touch every page
    for size in (128, 1024):
        yield from _gather(images, size)
    some = images if full else images.subset(range(10_000))
    yield from _epochs(some, Path(root) / "cifar10" / "train.parquet", device)


def _gather(images: data.Images, size: int) -> Iterator[Row]:
    """Random batches of bytes over the whole training set."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    chunks = order.split(size)
    mapped = images.images.numpy()
    ours, take, fancy = timed(
        lambda: _each(images.batch, chunks),
        lambda: _each(lambda index: torch.from_numpy(mapped.take(index.numpy(), 0)), chunks),
        lambda: _each(lambda index: images.images[index], chunks),
        repeats=7,
    )
    work = f"random uint8 batches of {size}, 50,000 CIFAR-10 images"
    n = len(images)
    yield _rate(work, "the design's floor", "", n / ours, FLOOR, target=1.0)
    yield _rate(work, "numpy.take of the mapped array", np.__version__, n / ours, n / take)
    yield _rate(work, "torch advanced indexing", torch.__version__, n / ours, n / fancy)


def _epochs(images: data.Images, parquet: Path, device: str) -> Iterator[Row]:
    """Shuffled epochs of float batches of 128: our loader and a DataLoader, both in-process."""
    n, size = len(images), 128
    plain = data.Batches(images, size, device=device)
    augmented = data.Batches(images, size, device=device, transform=_augment)
    with tempfile.TemporaryDirectory() as scratch:
        peers: list[tuple[str, str, data.Batches, Callable[[], object]]] = [
            ("torch DataLoader over datasets", version("datasets"), plain,
             _exhaust(_loader(_arrow(parquet, n, scratch), size), device)),
            ("torch DataLoader over torchvision CIFAR10", version("torchvision"), plain,
             _exhaust(_loader(_torchvision(images, augment=False), size), device)),
            ("torch DataLoader over torchvision CIFAR10, crops and flips", version("torchvision"),
             augmented, _exhaust(_loader(_torchvision(images, augment=True), size), device)),
        ]  # fmt: skip
        for peer, at, ours, theirs in peers:
            fast, slow = timed(_exhaust(ours, device), theirs, repeats=3, device=device)
            work = f"a shuffled epoch of {n:,} CIFAR-10 images as floats, batch {size}"
            yield _rate(work, peer, at, n / fast, n / slow)


def _each(get: Callable[[Tensor], object], chunks: Sequence[Tensor]) -> None:
    for index in chunks:
        get(index)


def _rate(
    work: str, peer: str, at: str, ours: float, theirs: float, target: float | None = None
) -> Row:
    return Row(
        work=work, peer=peer, version=at, unit="images/s", addis=ours, peer_value=theirs,
        ratio=theirs / ours, target=target,
    )  # fmt: skip


def _augment(x: Tensor, generator: torch.Generator) -> Tensor:
    return data.random_flip(data.random_crop(x, 4, generator=generator), generator=generator)


def _exhaust(batches: Any, device: str) -> Callable[[], object]:
    def run() -> None:
        for x, y in batches:
            x.to(device), y.to(device)

    return run


def _loader(dataset: Dataset[Any], size: int) -> DataLoader[Any]:
    return DataLoader(dataset, size, shuffle=True)


class _Arrow(Dataset[tuple[Tensor, int]]):
    """The rows of a ``datasets`` object, each decoded when it is asked for."""

    def __init__(self, rows: Any) -> None:
        from torchvision.transforms.functional import to_tensor

        self._rows, self._to_tensor = rows, to_tensor

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        row = self._rows[index]
        return self._to_tensor(row["image"]), row["label"]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, int]]:
        columns = self._rows[indices]
        pairs = zip(columns["image"], columns["label"], strict=True)
        return [(self._to_tensor(image), label) for image, label in pairs]


def _arrow(parquet: Path, n: int, scratch: str) -> Dataset[tuple[Tensor, int]]:
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    found = load_dataset("parquet", data_files=str(parquet), split="train", cache_dir=scratch)
    return _Arrow(found.select(range(n)))


def _torchvision(images: data.Images, *, augment: bool) -> Dataset[Any]:
    """The CIFAR10 of torchvision over our pixels: a PIL image of each row, then transforms."""
    from torchvision import transforms
    from torchvision.datasets import CIFAR10

    steps = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
    dataset = CIFAR10.__new__(CIFAR10)  # its constructor wants files
    dataset.data = images.images.permute(0, 2, 3, 1).contiguous().numpy()
    dataset.targets = images.targets.tolist()
    dataset.transform = transforms.Compose([*(steps if augment else ()), transforms.ToTensor()])
    dataset.target_transform = None
    return dataset
