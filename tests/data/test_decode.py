from __future__ import annotations

import io
import os
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from addis import data
from addis.data._decode import Layout, Rows, decode, decode_photos
from tests.data.fakes import CIFAR, encoded, pictures, write_cifar, write_parquet

RGB = Layout({"image": "RGB"})


def rows(images: list[object], labels: list[object] | None = None) -> Rows:
    labels = [0] * len(images) if labels is None else labels
    half = len(images) // 2
    chunks = [
        {"image": images[part], "label": labels[part]} for part in (slice(half), slice(half, None))
    ]
    return Rows("here", chunks if half else chunks[1:], CIFAR)


def test_pixels_are_planes_in_the_order_of_the_rows_over_chunks() -> None:
    pixels = pictures(5, 4, 6, 3)
    found = decode(rows([encoded(p) for p in pixels], [0, 1, 2, 0, 1]), RGB)
    assert np.array_equal(found.arrays["image"], pixels.transpose(0, 3, 1, 2))
    assert found.arrays["image"].flags.c_contiguous
    assert found.arrays["label"].tolist() == [0, 1, 2, 0, 1]
    assert found.texts == {"classes": CIFAR}


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_both_lossless_formats_are_exact(kind: str) -> None:
    pixels = pictures(2, 8, 8, 3)
    found = decode(rows([encoded(p, kind) for p in pixels]), RGB)
    assert np.array_equal(found.arrays["image"], pixels.transpose(0, 3, 1, 2))


def test_modes_widen_without_loss_and_one_bit_is_0_and_255() -> None:
    grey = pictures(2, 4, 4)
    files = [encoded(g) for g in grey]
    rgb = decode(rows(files), RGB).arrays["image"]
    assert np.array_equal(rgb, np.repeat(grey[:, None], 3, 1))
    rgba = decode(rows(files), Layout({"image": "RGBA"})).arrays["image"]
    assert np.array_equal(rgba[:, :3], rgb)
    assert (rgba[:, 3] == 255).all()
    bits = [encoded(g, mode="1") for g in grey]
    found = decode(rows(bits), Layout({"image": "1"})).arrays["image"]
    expected = [np.array(PIL.Image.open(io.BytesIO(b))) * 255 for b in bits]
    assert np.array_equal(found[:, 0], expected)


def test_a_palettes_numbers_not_its_colours_are_an_index() -> None:
    numbers = np.arange(16, dtype=np.uint8).reshape(4, 4)
    image = PIL.Image.fromarray(numbers)
    image.putpalette([255 - i // 3 for i in range(768)])
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    found = decode(rows([buffer.getvalue()]), Layout({"image": "index"}))
    assert np.array_equal(found.arrays["image"][0, 0], numbers)


GOOD = encoded(pictures(1, 32, 32, 3)[0])
HEADER = b"IHDR" + (9000).to_bytes(4, "big") * 2 + GOOD[24:29]  # width, height, kind
HUGE = GOOD[:12] + HEADER + zlib.crc32(HEADER).to_bytes(4, "big") + GOOD[33:]
FRAMES = io.BytesIO()
PIL.Image.new("RGB", (32, 32)).save(
    FRAMES, "WEBP", save_all=True, append_images=[PIL.Image.new("RGB", (32, 32), "red")]
)
GIF = io.BytesIO()
PIL.Image.new("RGB", (32, 32)).save(GIF, "GIF")


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (None, "no bytes of an image file, got NoneType"),
        ("/etc/passwd", "no bytes of an image file, got str"),
        (b"", "not an image file"),
        (b"\x80\x04cos\nsystem\n", "not an image file"),
        (GIF.getvalue(), "not an image file"),
        (GOOD[: len(GOOD) // 2], "damaged image file"),
        (GOOD[:20], "not an image file|damaged"),
        (GOOD[:1500] + b"\xff\x00\xff" * 200 + GOOD[2100:], "damaged image file"),
        (HUGE, r"\(9000, 9000\) pixels"),
        (FRAMES.getvalue(), "more than one frame"),
        (encoded(pictures(1, 32, 31, 3)[0]), r"\(31, 32\) pixels, the first has \(32, 32\)"),
        (encoded(pictures(1, 32, 32, 4)[0]), "mode 'RGBA', needs one of"),
    ],
    ids=[
        "none", "path", "empty", "pickle", "gif", "half", "header", "flipped", "huge", "frames",
        "size", "mode",
    ],
)  # fmt: skip
def test_a_malformed_image_is_an_error_that_names_its_row(cell: object, message: str) -> None:
    with pytest.raises(ValueError, match=rf"here, row 3, column 'image': .*({message})"):
        decode(rows([GOOD, GOOD, GOOD, cell, GOOD]), RGB)


def test_a_flipped_bit_of_a_png_is_an_error_wherever_it_is() -> None:
    steps = np.add.outer(np.arange(32), np.arange(32)).astype(np.uint8) // 5  # as masks: few values
    file = encoded(steps)
    layout = Layout({"image": "index"})
    assert np.array_equal(decode(rows([file]), layout).arrays["image"], [[steps]])
    for bit in range(8 * len(file)):
        wrong = bytearray(file)
        wrong[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match=r"here, row 0, column 'image': .* image file"):
            decode(rows([bytes(wrong)]), layout)


def test_what_follows_the_end_of_a_png_is_ignored() -> None:
    for more in (b"", b"x", bytes(100), b"no chunk at all"):
        assert decode(rows([GOOD + more]), RGB).arrays["image"].shape == (1, 3, 32, 32)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (None, "whole number of 64 bits, got None"), (3, "3 is none of the 3"),
        (-1, "-1 is none"), (1.0, "1.0"), (2**63, "64 bits, got 9"), (-(2**63) - 1, "64 bits"),
    ],
)  # fmt: skip
def test_a_malformed_label_is_an_error_that_names_its_row(label: object, message: str) -> None:
    with pytest.raises(ValueError, match=rf"here, row 2, column 'label': .*{message}"):
        decode(rows([GOOD] * 4, [0, 1, label, 0]), RGB)


def test_malformed_text_an_absent_column_and_no_rows_are_errors() -> None:
    chunk = {"image": [GOOD], "label": [0], "id": [7]}
    with pytest.raises(ValueError, match="here, row 0, column 'id': needs text, got 7"):
        decode(Rows("here", [chunk], CIFAR), Layout({"image": "RGB"}, texts=("id",)))
    with pytest.raises(ValueError, match=r"here: no column 'image', only \['label'\]"):
        decode(Rows("here", [{"label": [0]}], CIFAR), RGB)
    with pytest.raises(ValueError, match="here: no rows"):
        decode(Rows("here", [], CIFAR), RGB)


def test_photos_of_various_sizes_keep_their_pixels_and_their_files() -> None:
    sizes = [(4, 6), (5, 3), (1, 1)]
    files: list[object] = [encoded(pictures(1, h, w, 3)[0], "JPEG") for h, w in sizes]
    found = decode_photos(rows(files, [2, 0, 1]), Layout({}))
    assert found.arrays["shape"].tolist() == [list(size) for size in sizes]
    start = 0
    for file, (h, w) in zip(files, sizes, strict=True):
        planes = found.arrays["pixels"][start : start + 3 * h * w].reshape(3, h, w)
        expected = np.array(PIL.Image.open(io.BytesIO(file)))  # type: ignore[arg-type]
        assert np.array_equal(planes, expected.transpose(2, 0, 1))
        start += 3 * h * w
    assert found.arrays["files"].tobytes() == b"".join(files)  # type: ignore[arg-type]
    assert found.arrays["file_size"].tolist() == [len(file) for file in files]  # type: ignore[arg-type]


def test_a_malformed_photo_is_an_error_that_names_its_row() -> None:
    with pytest.raises(ValueError, match="here, row 1, column 'image'"):
        decode_photos(rows([GOOD, b"no"]), Layout({}))


class TestOfAParquetFile:
    def test_a_row_without_bytes_is_named_and_its_path_is_not_opened(self, folder: Path) -> None:
        secret = folder / "secret.png"
        secret.write_bytes(GOOD)
        write_parquet(
            folder / "cifar10" / "train.parquet",
            {"image": [GOOD, {"bytes": None, "path": str(secret)}], "label": [0, 1]},
            classes=CIFAR,
        )
        with pytest.raises(ValueError, match=r"train\.parquet, row 1, column 'image': no bytes"):
            data.load("cifar10")

    def test_rows_are_counted_over_chunks(self, folder: Path) -> None:
        cells = [GOOD] * 1003 + [b"no"]
        path = folder / "cifar10" / "train.parquet"
        write_parquet(path, {"image": cells, "label": [0] * 1004}, classes=CIFAR)
        with pytest.raises(ValueError, match="row 1003, column 'image'"):
            data.load("cifar10")

    @pytest.mark.parametrize("damage", ["empty", "text", "half", "flipped"])
    def test_a_file_that_is_no_parquet_is_an_error_that_names_it(
        self, folder: Path, damage: str
    ) -> None:
        write_cifar(folder, 200)
        path = folder / "cifar10" / "train.parquet"
        whole = path.read_bytes()
        wrong = bytearray(whole)
        wrong[-300:-10] = bytes(290)
        path.write_bytes(
            {"empty": b"", "text": b"hello", "half": whole[: len(whole) // 2], "flipped": wrong}[
                damage
            ]
        )
        with pytest.raises(
            ValueError, match=r"cifar10/train\.parquet: not a readable parquet file"
        ):
            data.load("cifar10")

    @pytest.mark.parametrize("name", ["a[b]*c?", "ü 名", os.fsdecode(b"n\xff\xfe")])
    def test_a_folder_is_read_whatever_its_name(
        self, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        folder = tmp_path / name
        monkeypatch.setenv("ADDIS_DATA", str(folder))
        pixels = write_cifar(folder)
        with pytest.warns(UserWarning, match="other pixels, labels or order than the official"):
            images = data.load("cifar10")
        assert np.array_equal(images.images.permute(0, 2, 3, 1).numpy(), pixels)

    @pytest.mark.parametrize("name", ["emoji/google", "camvid/train"])
    def test_pixels_or_masks_other_than_the_official_ones_are_told(
        self, folder: Path, name: str
    ) -> None:
        words = ("unified", "name", "category", "subcategory", "split", "id")
        write_parquet(
            folder / f"{name}.parquet",
            {"image": [GOOD], "mask": [encoded(np.zeros((32, 32), np.uint8))]}
            | {word: ["train"] for word in words},
            images=("image", "mask"),
        )
        for _ in ("decoded", "from the cache"):
            with pytest.warns(UserWarning, match=f"{name}.* other pixels, .* damaged copy"):
                data.load(name.removesuffix("/train"))
