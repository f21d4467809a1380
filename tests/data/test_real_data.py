"""The facts that the sets' own pages state, found in the real files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import PIL.Image
import pyarrow.parquet
import pytest
import torch

from addis import data
from addis.data._tables import ADBENCH

pytestmark = [
    pytest.mark.data,
    pytest.mark.usefixtures("addis_data"),
    pytest.mark.filterwarnings("error:.*other pixels"),
]


def picture(cell: dict[str, bytes]) -> np.ndarray:
    """An independent path: what PIL makes of a cell."""
    return np.array(PIL.Image.open(io.BytesIO(cell["bytes"])))


def test_cifar10_has_the_official_size_classes_first_labels_mean_and_deviation() -> None:
    train, test = data.load("cifar10"), data.load("cifar10", "test")
    assert train.images.shape == (50_000, 3, 32, 32)
    assert test.images.shape == (10_000, 3, 32, 32)
    assert train.classes == test.classes == (
        "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
    )  # fmt: skip
    assert train.targets[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    assert test.targets[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]
    assert train.targets.bincount().tolist() == [5000] * 10
    assert test.targets.bincount().tolist() == [1000] * 10
    counts = np.stack(
        [np.bincount(train.images[:, c].numpy().ravel(), minlength=256) for c in range(3)]
    )
    value = np.arange(256) / 255
    mean = (counts * value).sum(1) / counts.sum(1)
    deviation = np.sqrt((counts * value**2).sum(1) / counts.sum(1) - mean**2)
    assert mean.round(4).tolist() == [0.4914, 0.4822, 0.4465]
    assert deviation.round(4).tolist() == [0.2470, 0.2435, 0.2616]


def test_cifar10_is_what_pil_reads_from_the_file(addis_data: Path) -> None:
    path = addis_data / "cifar10" / "test.parquet"
    cells = pyarrow.parquet.read_table(path)["image"].to_pylist()
    images = data.load("cifar10", "test")
    for i in (0, 999, 1000, 4242, 9999):
        assert np.array_equal(images.images[i].permute(1, 2, 0).numpy(), picture(cells[i]))


def test_fashion_mnist_has_the_official_size_classes_and_first_labels() -> None:
    train, test = data.load("fashion_mnist"), data.load("fashion_mnist", "test")
    assert train.images.shape == (60_000, 1, 28, 28)
    assert test.images.shape == (10_000, 1, 28, 28)
    assert train.classes[0] == "T - shirt / top"
    assert train.classes[-1] == "Ankle boot"
    assert train.targets[:10].tolist() == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]
    assert test.targets[:10].tolist() == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]
    assert float(train.images.double().mean() / 255) == pytest.approx(0.2860, abs=5e-5)


def test_omniglot_has_the_official_alphabets_and_the_split_of_vinyals() -> None:
    background, evaluation = data.load("omniglot"), data.load("omniglot", "evaluation")
    assert background.images.shape == (19_280, 1, 105, 105)
    assert evaluation.images.shape == (13_180, 1, 105, 105)
    assert background.images[::500].unique().tolist() == [0, 255]
    assert float(background.images[:50].float().mean()) > 200, "paper is white"
    assert (len(set(background.texts["alphabet"])), len(set(evaluation.texts["alphabet"]))) == (
        30,
        20,
    )
    assert len(background.classes) == 1623
    assert background.targets.bincount(minlength=1623).tolist() == [20] * 964 + [0] * 659
    assert background.classes[0] == "Alphabet_of_the_Magi/character01"
    assert background.numbers["drawer"][:20].tolist() == list(range(1, 21))
    characters = {
        (split, int(label))
        for part in (background, evaluation)
        for split, label in zip(part.texts["vinyals_split"], part.targets, strict=True)
    }
    count = [sum(split == name for split, _ in characters) for name in ("train", "val", "test")]
    assert count == [1028, 172, 423]


def test_camvid_has_the_official_split_and_the_masks_of_the_file(addis_data: Path) -> None:
    parts = [data.load("camvid", split) for split in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [367, 101, 233]
    train = parts[0]
    assert train.images.shape == (367, 3, 360, 480)
    assert train.classes[0] == "sky"
    assert train.ids[0] == "0001TP_006690"
    found = np.bincount(train.masks.numpy().ravel())
    assert len(found) == 12, "11 classes and void"
    assert found.argmax() == train.classes.index("road")
    assert found[:11].argmin() == train.classes.index("bicyclist")
    file = pyarrow.parquet.read_table(addis_data / "camvid" / "train.parquet").slice(366)
    row = {key: cells[0] for key, cells in file.to_pydict().items()}
    assert train.ids[366] == row["id"]
    assert np.array_equal(train.masks[366].numpy(), picture(row["mask"]))
    assert np.array_equal(train.images[366].permute(1, 2, 0).numpy(), picture(row["image"]))


def test_emoji_are_aligned_over_styles() -> None:
    styles = [
        data.load(f"emoji/{s}", "all")
        for s in ("google", "twitter", "openmoji_color", "openmoji_black")
    ]
    for images in styles:
        assert images.images.shape == (1906, 4, 64, 64)
        assert images.texts == styles[0].texts
        assert images.classes == styles[0].classes
        assert torch.equal(images.targets, styles[0].targets)
        assert int(images.images[:, 3].min()) == 0, "transparency is kept"
    assert [len(data.load("emoji/google", split)) for split in ("train", "test")] == [1532, 374]
    assert set(data.load("emoji/google", "test").texts["split"]) == {"test"}
    assert styles[0].classes[int(styles[0].targets[0])] == "Smileys & Emotion"


def test_imagenet_samples_have_their_sizes_and_files() -> None:
    resized, original = data.load("imagenet_samples"), data.load("imagenet_samples", "original")
    assert (len(resized), len(original)) == (200, 24)
    assert set(resized.shapes.min(1).values.tolist()) == {256}
    assert resized.targets.tolist() == list(range(0, 1000, 5))
    assert len(resized.classes) == 1000
    assert (resized.classes[0], resized.wnids[0]) == ("tench", "n01440764")
    assert torch.equal(original.shapes, original.original_shapes)
    for photos in (resized, original):
        image, _ = photos[3]
        file = photos.file(3)
        assert file[:3] == b"\xff\xd8\xff"
        expected = np.array(PIL.Image.open(io.BytesIO(file)).convert("RGB"))
        assert np.array_equal(image.permute(1, 2, 0).numpy(), expected)


def test_anomaly_tables_are_those_of_the_list(addis_data: Path) -> None:
    listed = pd.read_csv(addis_data / "anomaly" / "table.csv").set_index("name")
    names = [name.removeprefix("anomaly/") for name in data.names() if name.startswith("anomaly/")]
    assert len(names) == 37
    assert set(names) == set(listed.index)
    for name in names:
        table = data.load(f"anomaly/{name}")
        row = listed.loc[name]
        assert (*table.x.shape, int(table.targets.sum())) == (row["n"], row["d"], row["anomalies"])
        if row["source"].startswith("ADBench"):
            assert row["source"] == f"ADBench {ADBENCH[name]}.npz"


def test_kddcup99_has_the_121_features_of_the_papers() -> None:
    table = data.load("kddcup99")
    assert table.x.shape == (494_021, 41)
    normal = table.targets == table.classes.index("normal")
    assert (int(normal.sum()), int((~normal).sum())) == (97_278, 396_743)
    assert table.x[0, :6].tolist() == [0, 1, 22, 9, 181, 5450]
    for column, feature, symbol in ((1, "protocol_type", "tcp"), (2, "service", "http")):
        assert table.symbols[feature][int(table.x[0, column])] == symbol
    some = table.subset(range(1000)).one_hot()
    assert some.x.shape == (1000, 121)
    assert (some.x[:, [i for i, f in enumerate(some.features) if "=" in f]].sum(1) == 7).all()


def test_nasbench201_has_every_cell_and_its_formulas() -> None:
    frame = data.load("nasbench201")
    assert len(frame) == 15_625
    assert frame["index"].tolist() == list(range(15_625))
    best = frame.loc[frame["cifar10_test_200"].idxmax()]
    assert (best["index"], best["cifar10_test_200"]) == (6111, 94.37)
    n1, n3 = (frame["arch_str"].str.count(f"nor_conv_{k}x{k}") for k in (1, 3))
    assert (frame["params_cifar10"] == 73_306 + 28_000 * n1 + 243_040 * n3).all()
    assert len(data.load("nasbench201", "per_seed")) == 51


def test_shakespeare_is_cut_as_the_file_of_speeches_says(addis_data: Path) -> None:
    expected = pd.read_parquet(addis_data / "shakespeare" / "speeches.parquet")
    found = data.load("shakespeare", "all")
    assert len(found.text) == 1_115_394
    assert len(found.alphabet) == 65
    assert found.speakers == tuple(expected["speaker"])
    assert found.speeches == tuple(expected["text"])
    assert found.starts.tolist() == expected["offset"].tolist()
    for split in ("train", "test"):
        part = expected[expected["split"] == split]
        assert data.load("shakespeare", split).starts.tolist() == part["offset"].tolist()
