"""Data sets of photos, each of its own size."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.utils.data import Dataset

__all__ = ["Photos"]


@dataclass(frozen=True, eq=False, repr=False)
class Photos(Dataset[tuple[Tensor, int]]):
    """Labelled photos of various sizes, decoded, and the files that they came in.

    Args:
        pixels: uint8, the planes ``(3, H, W)`` of all photos one after the other; may be mapped
            from a cache file.
        shapes: ``(N, 2)``, int64, height and width of each.
        files: uint8, the bytes of all files one after the other.
        file_sizes: ``(N,)``, int64, the size in bytes of each file.
        targets: ``(N,)``, int64, indices into ``classes``.
        classes: Names of the classes.
        wnids: WordNet ids of the N photos' classes.
        original_shapes: ``(N, 2)``, int64, height and width before any resizing.
        name: Name of the set, as :func:`addis.data.load` takes it.
        split: Name of the split.

    Example:
        >>> from addis import data
        >>> photos = data.load("imagenet_samples", "original")  # doctest: +SKIP
        >>> image, target = photos[0]  # doctest: +SKIP
    """

    pixels: Tensor
    shapes: Tensor
    files: Tensor
    file_sizes: Tensor
    targets: Tensor
    classes: tuple[str, ...]
    wnids: tuple[str, ...]
    original_shapes: Tensor
    name: str
    split: str

    def __post_init__(self) -> None:
        pixels, size = 3 * int(self.shapes.prod(1).sum()), int(self.file_sizes.sum())
        if len(self.pixels) != pixels or len(self.files) != size:
            raise ValueError(
                f"pixels and files must have {pixels} and {size} bytes, got {len(self.pixels)} and"
                f" {len(self.files)}"
            )

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """One photo, uint8 ``(3, H, W)``, sharing the set's memory, and its class."""
        i = range(len(self))[index]
        height, width = self.shapes[i].tolist()
        start = 3 * int(self.shapes[:i].prod(1).sum())
        planes = self.pixels[start : start + 3 * height * width].view(3, height, width)
        return planes, int(self.targets[i])

    def __repr__(self) -> str:
        return f"Photos({self.name} {self.split}: {len(self)}, {len(self.classes)} classes)"

    def file(self, index: int) -> bytes:
        """The bytes of the file, a JPEG, that the photo was decoded from."""
        i = range(len(self))[index]
        start = int(self.file_sizes[:i].sum())
        return self.files[start : start + int(self.file_sizes[i])].numpy().tobytes()
