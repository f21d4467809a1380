from __future__ import annotations

import io
import pickle
import tracemalloc
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from addis import data
from addis.data import Photos, Segmentation, Table, _tables
from tests.data.fakes import pictures


def table() -> Table:
    return Table(
        x=torch.tensor([[0.5, 1, 7], [2.5, 0, 8], [3.5, 2, 9]]).double(),
        targets=torch.tensor([0, 1, 0]),
        classes=("n", "a"),
        features=("size", "kind", "age"),
        name="fake",
        split="all",
        symbols={"kind": ("x", "y", "z")},
    )


def test_one_hot_replaces_symbols_in_place() -> None:
    hot = table().one_hot()
    assert hot.features == ("size", "kind=x", "kind=y", "kind=z", "age")
    assert hot.x.tolist() == [[0.5, 0, 1, 0, 7], [2.5, 1, 0, 0, 8], [3.5, 0, 0, 1, 9]]
    assert hot.one_hot().features == hot.features


def test_subset_is_a_copy_of_the_rows() -> None:
    whole = table()
    part = whole.subset([2, 0])
    assert part.x[:, 0].tolist() == [3.5, 0.5]
    assert part.targets.tolist() == [0, 0]
    part.x.zero_()
    assert torch.equal(whole.x, table().x)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"x": torch.zeros(3, 3)}, TypeError),
        ({"targets": torch.zeros(3).int()}, TypeError),
        ({"x": torch.zeros(3, 2).double()}, ValueError),
        ({"targets": torch.zeros(2).long()}, ValueError),
    ],
)
def test_columns_that_do_not_fit_are_refused(
    change: dict[str, object], error: type[Exception]
) -> None:
    with pytest.raises(error):
        replace(table(), **change)  # type: ignore[arg-type]


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("/tmp/addis-was-here"),)


def save(path: Path, **arrays: object) -> None:
    path.parent.mkdir(exist_ok=True)
    np.savez(path, **arrays)  # type: ignore[arg-type]


def test_pickles_in_an_archive_are_refused_and_not_run(folder: Path) -> None:
    marker = folder / "run"
    Evil.__reduce__ = lambda self: (Path.touch, (marker,))  # type: ignore[method-assign]
    path = folder / "anomaly" / "cardio.npz"
    save(path, X=np.array([[Evil()]], object), y=np.array([0]))
    with pytest.raises(ValueError, match=r"cardio\.npz: not an npz archive .*object"):
        data.load("anomaly/cardio")
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match=r"cardio\.npz: not an npz archive"):
        data.load("anomaly/cardio")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"X": np.eye(2)}, "no item named 'y.npy'"),
        ({"X": np.eye(2), "y": np.zeros(3)}, r"got \(2, 2\) and \(3,\)"),
        ({"X": np.zeros(2), "y": np.zeros(2)}, "needs numbers X"),
        ({"X": np.array([["a"]]), "y": np.zeros(1)}, "needs numbers X"),
        ({"X": np.zeros((0, 2)), "y": np.zeros(0)}, r"got \(0, 2\) and \(0,\)"),
        ({"X": np.array([[1.0], [np.nan]]), "y": np.zeros(2)}, "row 1: X is not finite"),
        ({"X": np.eye(2), "y": np.array([0, 2])}, "row 1: .* y is neither 0 nor 1"),
    ],
)
def test_a_malformed_archive_is_an_error_that_names_it(
    folder: Path, arrays: dict[str, object], told: str
) -> None:
    save(folder / "anomaly" / "cardio.npz", **arrays)
    with pytest.raises(ValueError, match=rf"cardio\.npz.*{told}"):
        data.load("anomaly/cardio")


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_a_flipped_bit_of_an_archive_is_an_error_or_changes_nothing(
    folder: Path, write: Callable[..., None]
) -> None:
    path = folder / "anomaly" / "cardio.npz"
    path.parent.mkdir()
    x, y = np.asfortranarray(pictures(20, 3)), np.arange(20) % 2
    write(path, X=x, y=y)
    whole = path.read_bytes()
    refused = 0
    for position in range(len(whole)):
        wrong = bytearray(whole)
        wrong[position] ^= 1 << position % 8
        path.write_bytes(wrong)
        try:
            found = data.load("anomaly/cardio")
        except ValueError as error:
            assert "cardio.npz" in str(error)  # noqa: PT017
            refused += 1
        else:
            assert np.array_equal(found.x, x)
            assert np.array_equal(found.targets, y)
    assert refused > len(whole) // 2


@pytest.mark.parametrize("shape", [(10**9, 10), (10**14, 1), (10**20, 1), (10**20, 0), (-1, 1)])
@pytest.mark.parametrize("kind", ["<f8", "|O"])
def test_a_header_that_claims_another_size_is_refused_before_memory_is_taken(
    folder: Path, shape: tuple[int, int], kind: str
) -> None:
    content = io.BytesIO()
    header = {"descr": kind, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(content, header)
    path = folder / "anomaly" / "cardio.npz"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("X.npy", content.getvalue() + bytes(8))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"cardio\.npz: not an npz archive .*X has 8 bytes"):
            data.load("anomaly/cardio")
        assert tracemalloc.get_traced_memory()[1] < 1 << 22
    finally:
        tracemalloc.stop()


def test_an_archive_that_would_fill_the_memory_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "anomaly" / "cardio.npz"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("X.npy", bytes(3 << 20))
    assert path.stat().st_size < 1 << 14
    monkeypatch.setattr(_tables, "_MAX_BYTES", 2 << 20)
    with pytest.raises(ValueError, match="unpacks to 3145728 bytes"):
        data.load("anomaly/cardio")


@pytest.mark.parametrize("name", ["kddcup99", "nasbench201"])
def test_a_frame_that_cannot_be_read_is_an_error_that_names_it(folder: Path, name: str) -> None:
    files = {
        "kddcup99": "anomaly/kddcup99_10_percent.parquet",
        "nasbench201": "nasbench201/table.parquet",
    }
    path = folder / files[name]
    path.parent.mkdir()
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(ValueError, match=rf"{path.name}: not a readable parquet file"):
        data.load(name)


@pytest.mark.parametrize(
    ("column", "cells", "told"),
    [
        ("label", ["normal", "smurf", None], "row 2, column 'label': needs a value"),
        ("protocol_type", ["tcp", None, "udp"], "row 1, column 'protocol_type': needs a value"),
        ("land", [0, 1, None], "row 2, column 'land': needs a value, got nan"),
        ("duration", [0, np.nan, 1], "row 1, column 'duration': needs a finite number, got nan"),
        ("duration", [0, 1, -np.inf], "row 2, column 'duration': needs a finite number, got -inf"),
        ("duration", ["0", "b", "2"], "row 1, column 'duration': needs a finite number, got 'b'"),
        ("duration", [[1], [2], [3]], "row 0, column 'duration': needs a finite number"),
    ],
)
def test_a_malformed_cell_of_kddcup99_is_an_error_that_names_it(
    folder: Path, column: str, cells: list[object], told: str
) -> None:
    columns = {"duration": [0.0, 1, 2], "label": "x"}
    columns |= {symbol: [0, 1, 1] for symbol in _tables._SYMBOLIC}
    path = folder / "anomaly" / "kddcup99_10_percent.parquet"
    path.parent.mkdir()
    pd.DataFrame(columns).to_parquet(path)
    assert data.load("kddcup99").x[:, :2].tolist() == [[0, 0], [1, 1], [2, 1]]
    pd.DataFrame({**columns, column: cells}).to_parquet(path)
    with pytest.raises(ValueError, match=rf"kddcup99_10_percent\.parquet, {told}"):
        data.load("kddcup99")


def test_photos_index_from_both_ends_and_give_their_files() -> None:
    photos = Photos(
        pixels=torch.arange(3 * (2 + 6)).to(torch.uint8),
        shapes=torch.tensor([[1, 2], [2, 3]]),
        files=torch.tensor([7, 8, 9]).to(torch.uint8),
        file_sizes=torch.tensor([1, 2]),
        targets=torch.tensor([4, 5]),
        classes=(),
        wnids=("a", "b"),
        original_shapes=torch.zeros(2, 2),
        name="fake",
        split="s",
    )
    image, target = photos[1]
    assert torch.equal(image.flatten(), torch.arange(6, 24).to(torch.uint8))
    assert (image.shape, target) == ((3, 2, 3), 5)
    assert torch.equal(photos[-1][0], image)
    assert torch.equal(photos[0][0].flatten(), torch.arange(6).to(torch.uint8))
    assert (photos.file(0), photos.file(-1)) == (b"\x07", b"\x08\x09")
    with pytest.raises(IndexError):
        photos[2]
    with pytest.raises(ValueError, match="pixels and files must have 24 and 3 bytes, got 23 and 3"):
        replace(photos, pixels=photos.pixels[1:])


def test_segmentation_gives_images_with_their_masks() -> None:
    masks = (torch.arange(3 * 4 * 5) % 12).to(torch.uint8).view(3, 4, 5)
    images = torch.arange(3 * 3 * 4 * 5).to(torch.uint8).view(3, 3, 4, 5)
    found = Segmentation(images, masks, ("a",), ("x", "y", "z"), "fake", "s", 11)
    x, y = found[2]
    assert torch.equal(x, images[2].float() / 255)
    assert torch.equal(y, masks[2].long())
    a, b = found.batch([2, 0])
    assert torch.equal(a, images[[2, 0]])
    assert torch.equal(b, masks[[2, 0]])
    batches = data.Batches((found.images, found.masks), 2, shuffle=False)
    assert [(tuple(x.shape), y.dtype) for x, y in batches] == [
        ((2, 3, 4, 5), torch.int64), ((1, 3, 4, 5), torch.int64)
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"masks must be \(3, 4, 5\) and ids 3"):
        replace(found, masks=masks[:, 1:])
    with pytest.raises(TypeError, match="must be uint8"):
        replace(found, masks=masks.long())
