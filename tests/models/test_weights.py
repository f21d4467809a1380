"""Weight files: strict loading, and files that are damaged or hostile."""

from __future__ import annotations

import json
import os
import pickle
import random
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from addis import models
from addis.models import load_weights, read_weights


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 3))


def state() -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net().state_dict().items()}


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".bin", ".ckpt"])
def test_what_was_saved_is_what_is_loaded(suffix: str, tmp_path: Path) -> None:
    want, path = state(), tmp_path / f"w{suffix}"
    if suffix == ".safetensors":
        save_file(want, path)
    else:
        torch.save(want if suffix != ".ckpt" else {"state_dict": want, "epoch": 3}, path)
    model = net()
    load_weights(model, path)
    for name, value in model.state_dict().items():
        assert torch.equal(value, want[name]), name
    assert read_weights(str(path)).keys() == want.keys()


def test_half_precision_is_cast_to_the_models_type(tmp_path: Path) -> None:
    want = {k: v.half() if v.is_floating_point() else v for k, v in state().items()}
    save_file(want, tmp_path / "w.safetensors")
    model = net()
    load_weights(model, tmp_path / "w.safetensors")
    assert model[0].weight.dtype == torch.float32
    assert torch.equal(model[0].weight, want["0.weight"].float())


def test_counter_of_batches_may_be_missing(tmp_path: Path) -> None:
    want = state()
    del want["1.num_batches_tracked"]
    save_file(want, tmp_path / "w.safetensors")
    model = net()
    load_weights(model, tmp_path / "w.safetensors")
    found = model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in want.items())


def test_every_disagreement_is_listed_by_name_and_the_model_left_alone(tmp_path: Path) -> None:
    wrong = state()
    del wrong["0.bias"]
    wrong |= {"extra": torch.ones(1), "3.weight": torch.ones(3, 5), "3.bias": torch.ones(3).long()}
    save_file(wrong, tmp_path / "w.safetensors")
    model = net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="do not fit Sequential") as caught:
        load_weights(model, tmp_path / "w.safetensors")
    for part in (
        "missing: 0.bias;",
        "unexpected: extra;",
        "wrong shape: 3.weight: file (3, 5), model (3, 2);",
        "wrong kind of number: 3.bias: file torch.int64, model torch.float32",
    ):
        assert part in str(caught.value)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_tied_weights_of_two_values_are_refused(tmp_path: Path) -> None:
    tied = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    tied[1].weight = tied[0].weight
    ones, twos = torch.ones(2, 2), torch.full((2, 2), 2.0)
    torch.save({"0.weight": ones, "1.weight": ones}, tmp_path / "w.pt")
    load_weights(tied, tmp_path / "w.pt")
    torch.save({"0.weight": ones, "1.weight": twos}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"of two values: 0\.weight and 1\.weight"):
        load_weights(tied, tmp_path / "w.pt")
    assert torch.equal(tied[0].weight, ones)


def test_long_lists_are_cut_with_their_length(tmp_path: Path) -> None:
    save_file({"x": torch.ones(1)}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"missing: conv1.weight, .* and \d+ more; unexpected: x"):
        models.create("resnet20", weights=tmp_path / "w.safetensors")


def test_model_without_values_is_refused(tmp_path: Path) -> None:
    save_file(state(), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="meta"):
        load_weights(net().to("meta"), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="lazy"):
        load_weights(nn.LazyLinear(3), tmp_path / "w.safetensors")


def test_absent_file_and_other_suffixes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file .*none.safetensors"):
        read_weights(tmp_path / "none.safetensors")
    with pytest.raises(FileNotFoundError):
        read_weights(tmp_path)
    (tmp_path / "w.h5").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"suffixes .bin, .ckpt, .pt, .pth, .safetensors, got"):
        read_weights(tmp_path / "w.h5")


# --- pretrained --------------------------------------------------------------------------------


def test_weights_and_pretrained_exclude_each_other() -> None:
    with pytest.raises(ValueError, match=r"pretrained=True or weights=, not both"):
        models.create("cifar10_resnet20", pretrained=True, weights="w.safetensors")


def test_model_without_published_weights_names_those_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ADDIS_DATA", raising=False)
    with pytest.raises(ValueError, match=r"'vgg8b' has no published weights; .*cifar10_resnet20"):
        models.create("vgg8b", pretrained=True)


def test_absent_pretrained_weights_say_where_to_get_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ADDIS_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match=r"ADDIS_DATA is not set.*akamaster/pytorch_resnet"):
        models.create("cifar10_resnet20", pretrained=True)
    monkeypatch.setenv("ADDIS_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"there is no .*/cifar10_resnet18.safetensors"):
        models.create("cifar10_resnet18", pretrained=True)


def test_pretrained_with_other_classes_keeps_the_body_and_starts_the_head_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = models.create("cifar10_vgg_small").state_dict()
    (tmp_path / "weights").mkdir()
    save_file(published, tmp_path / "weights" / "cifar10_vgg_small.safetensors")
    monkeypatch.setenv("ADDIS_DATA", str(tmp_path))
    same = models.create("cifar10_vgg_small", pretrained=True, num_classes=10).state_dict()
    assert all(torch.equal(same[name], published[name]) for name in same)
    torch.manual_seed(0)
    fewer = models.create("cifar10_vgg_small", pretrained=True, num_classes=3).state_dict()
    torch.manual_seed(0)
    fresh = models.create("cifar10_vgg_small", num_classes=3).state_dict()
    for name, value in fewer.items():
        source = fresh if name.startswith("classifier.") else published
        assert torch.equal(value, source[name]), name
    with pytest.raises(ValueError, match=r"wrong shape: features.0.weight"):
        models.create("cifar10_vgg_small", pretrained=True, in_channels=1)


# --- hostile files -----------------------------------------------------------------------------


class _Runs:
    """Unpickling it makes a folder: the trace that code ran."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("how", ["pickle", "torch", "legacy"])
def test_pickle_that_would_run_code_is_refused_and_runs_none(how: str, tmp_path: Path) -> None:
    path, trace = tmp_path / "w.pt", tmp_path / "it-ran"
    content = {"w": torch.ones(1), "evil": _Runs(trace)}
    if how == "pickle":
        path.write_bytes(pickle.dumps(_Runs(trace)))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "torch")
    with pytest.raises(ValueError, match="nothing in it was run"):
        read_weights(path)
    assert not trace.exists()
    torch.load(path, weights_only=False) if how != "pickle" else pickle.loads(path.read_bytes())
    assert trace.exists()  # it is armed indeed


@pytest.mark.parametrize(
    "content",
    [
        net(),
        [torch.ones(1)],
        torch.ones(2),
        {"w": 3},
        {"state_dict": [1]},
        {3: torch.ones(1)},
        {"w": torch.ones(2, 2).to_sparse()},
        {"w": torch.ones(1, device="meta")},
    ],
    ids=lambda value: type(value).__name__,
)
def test_pickle_of_anything_but_dense_tensors_by_name_is_refused(
    content: object, tmp_path: Path
) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"weights: .*w.pt"):
        read_weights(tmp_path / "w.pt")


def test_archive_that_unpacks_to_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(100_000)}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for name in plain.namelist():
            bomb.writestr(name, plain.read(name))
    assert read_weights(tmp_path / "plain.pt").keys() == {"w"}
    assert torch.load(tmp_path / "bomb.pt", weights_only=True).keys() == {"w"}  # torch unpacks it
    with pytest.raises(ValueError, match="would unpack to"):
        read_weights(tmp_path / "bomb.pt")


def test_flipped_bit_of_an_archive_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    want, path = {"w": torch.randn(3, 2), "b": torch.randn(5)}, tmp_path / "w.pt"
    torch.save(want, path)
    whole, dice = path.read_bytes(), random.Random(0)
    numbers = whole.index(want["w"].numpy().tobytes())
    directory = whole.index(b"PK\x01\x02")
    folder = whole.index(b"data/0", directory) - 46 - len("w/") + 38  # its external attributes
    bits = [dice.randrange(8 * len(whole)) for _ in range(200)]
    for bit in (8 * numbers + 3, 8 * folder + 4, *bits):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        assert _damaged_or(path, want, same=bit in bits)


def _damaged_or(path: Path, want: dict[str, Tensor], *, same: bool) -> bool:
    """Whether the file is refused as damaged, or, if it may be, holds the same values."""
    try:
        read = read_weights(path)
    except ValueError as error:
        return "damaged" in str(error)
    return same and all(torch.equal(read[name], want[name]) for name in want)


def header(content: object, body: bytes = b"") -> bytes:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(text)) + text + body


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 8,
        b"not weights at all",
        struct.pack("<Q", 2**63) + b"{}",
        header(b"[" * 100_000),
        header({"w": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}}, b"0000"),
        header({"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"0000"),
        header({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 2**50]}}, b"0000"),
        header({"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, b"0000"),
        header({"w": {"dtype": "NO", "shape": [1], "data_offsets": [0, 4]}}, b"0000"),
        header({"w": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}, b"0"),
        header({"__metadata__": {"a": 1}}),
        pickle.dumps({"w": 1}),
    ],
)
def test_garbage_named_safetensors_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="not a sound safetensors file"):
        read_weights(tmp_path / "w.safetensors")


@pytest.mark.parametrize("kind", [".safetensors", ".pt", "legacy.pt"])
def test_cut_or_scrambled_file_is_read_or_refused_and_nothing_else(
    kind: str, tmp_path: Path
) -> None:
    path = tmp_path / f"w{kind}"
    if kind == ".safetensors":
        save_file(state(), path)
    else:
        torch.save(state(), path, _use_new_zipfile_serialization=kind == ".pt")
    whole, dice = path.read_bytes(), random.Random(0)
    for cut in (0, 1, 8, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="weights: "):
            read_weights(path)
    for _ in range(200):
        scrambled = bytearray(whole)
        for _ in range(dice.choice((1, 2, 5, 20))):
            scrambled[dice.randrange(min(400, len(whole)))] = dice.randrange(256)
        path.write_bytes(scrambled)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch remarks on odd pickle protocols
            try:
                read = read_weights(path)
            except ValueError:
                continue
        assert all(isinstance(value, Tensor) for value in read.values())
