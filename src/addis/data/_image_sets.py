"""Sets of images of one size that are decoded once into the cache."""

from __future__ import annotations

from typing import Final

from addis.data._columns import Columns
from addis.data._decode import Layout, decode
from addis.data._homes import Home, hub_rows
from addis.data._images import Images

__all__ = ["cifar10", "fashion_mnist"]

_CIFAR10: Final = Home(
    file="cifar10/{split}.parquet",
    words="uoft-cs/cifar10 on the Hugging Face hub (read by `datasets`), "
    "torchvision.datasets.CIFAR10",
    fetch=lambda split: hub_rows("uoft-cs/cifar10", split, {"img": "image"}),
)
_FASHION_MNIST: Final = Home(
    file="fashion_mnist/{split}.parquet",
    words="zalando-datasets/fashion_mnist on the Hugging Face hub (read by `datasets`), "
    "torchvision.datasets.FashionMNIST",
    fetch=lambda split: hub_rows("zalando-datasets/fashion_mnist", split, {}),
)


def cifar10(name: str, split: str) -> Images:
    """CIFAR-10, ``(N, 3, 32, 32)``, in the official order."""
    layout = Layout({"image": "RGB"})
    return _images(name, split, _CIFAR10.columns(name, split, lambda rows: decode(rows, layout)))


def fashion_mnist(name: str, split: str) -> Images:
    """Fashion-MNIST, ``(N, 1, 28, 28)``, in the official order."""
    layout = Layout({"image": "L"})
    columns = _FASHION_MNIST.columns(name, split, lambda rows: decode(rows, layout))
    return _images(name, split, columns)


def _images(name: str, split: str, columns: Columns) -> Images:
    """The columns ``image``, ``label`` and ``classes``, and what else there is, as images."""
    return Images(
        images=columns.tensor("image"),
        targets=columns.tensor("label"),
        classes=columns.texts["classes"],
        name=name,
        split=split,
        numbers={
            key: columns.tensor(key) for key in columns.arrays if key not in {"image", "label"}
        },
        texts={key: texts for key, texts in columns.texts.items() if key != "classes"},
    )
