from __future__ import annotations

import subprocess
import sys
import typing

import pytest

from addis import data
from addis.data import _load


@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("cifar_10", "'cifar10'"),
        ("fashion-mnist", "'fashion_mnist'"),
        ("thyroid", "'anomaly/thyroid'"),
        ("emoji", "'emoji/google'"),
    ],
)
def test_an_unknown_name_is_an_error_with_the_closest_names(name: str, close: str) -> None:
    with pytest.raises(ValueError, match=rf"unknown data set: '{name}'; did you mean .*{close}"):
        data.load(name)


def test_an_unknown_name_like_no_other_is_an_error_with_all_names() -> None:
    with pytest.raises(ValueError, match=r"unknown data set: 'zzzzz'; known: .*digits.*wine"):
        data.load("zzzzz")


@pytest.mark.parametrize(
    ("split", "hint"), [("tset", "did you mean 'test'"), ("zz", "known: train, test")]
)
def test_an_unknown_split_is_an_error_with_the_closest(split: str, hint: str) -> None:
    with pytest.raises(ValueError, match=rf"unknown split of 'cifar10': '{split}'; {hint}"):
        data.load("cifar10", split)


def test_every_name_is_typed_and_every_typed_name_is_known() -> None:
    typed = {*typing.get_args(_load.ImagesName), *typing.get_args(_load.TableName)}
    others = {"camvid", "imagenet_samples", "shakespeare", "nasbench201"}
    assert typed | others == {*data.names()}
    assert not typed & others


def test_the_default_split_is_train_where_there_is_one() -> None:
    for name in data.names():
        splits = data.splits(name)
        assert splits[0] == "train" or "train" not in splits, name
    assert data.load("digits").split == "train"


def test_importing_the_room_loads_no_heavy_library() -> None:
    code = (
        "import sys, addis.data\n"
        "print({'datasets', 'sklearn', 'pandas', 'torchvision', 'pyarrow'} & {*sys.modules})"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.stdout, run.stderr) == ("set()\n", "")
