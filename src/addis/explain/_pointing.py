"""Does a map point at the object? Boxes around it, or the one cell of a mosaic that shows its
class.

Papers: the bounding-box ratio is that of K. Schulz et al., "Restricting the Flow: Information
Bottlenecks for Attribution", ICLR 2020, arXiv:2001.00396, section 4.4; the grid pointing game is
that of M. Böhle, M. Fritz, B. Schiele, "Convolutional Dynamic Alignment Networks for Interpretable
Classifications", CVPR 2021, arXiv:2104.00032, section 4.2.
Departures: pixels of equal relevance at the edge of the ranking count with the part of them that is
inside, the mean over all ways to order them. Mosaics draw any images of distinct classes; Böhle et
al. take the most confident ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from addis.explain._evidence import check_maps

__all__ = ["Mosaics", "bbox_ratio", "grid_pointing", "mosaics"]


def bbox_ratio(map: Tensor, boxes: Tensor | Sequence[Tensor], *, max_area: float = 0.33) -> Tensor:
    """Fraction of the n most relevant pixels that lie in the boxes, n being the number of pixels in
    the boxes.

    A random map gets the fraction of the image that the boxes cover, a map that fills them alone
    gets 1.

    Args:
        map: Relevances ``(N, H, W)``, floating, any unit: only their order counts.
        boxes: Integer pixel coordinates ``(x0, y0, x1, y1)``, of which x0 and y0 are inside and x1
            and y1 are the first outside: ``(N, 4)``, ``(N, B, 4)``, or for each image a tensor
            ``(B, 4)`` with a B of its own, at least 1. Boxes of one image are united.
        max_area: Images of which the boxes cover more than this fraction are left out. The paper
            uses 0.33.

    Returns:
        float64 ``(N,)``; NaN for the images left out, so that results stay beside their images
        (``ratio[~ratio.isnan()].mean()`` is the paper's number).

    Raises:
        ValueError: A shape is wrong, a box is empty or reaches outside the image, or ``max_area``
            is not in ``(0, 1]``.
        TypeError: ``map`` is not floating, or a box is not of integers.
        FloatingPointError: ``map`` holds a value that is not finite.

    Example:
        >>> import torch
        >>> map = torch.zeros(1, 4, 4)
        >>> map[0, 0, :2] = 1
        >>> bbox_ratio(map, torch.tensor([[0, 0, 2, 1]]))
        tensor([1.], dtype=torch.float64)
        >>> bbox_ratio(map, torch.tensor([[1, 0, 3, 1]]))
        tensor([0.5000], dtype=torch.float64)
    """
    check_maps(map)
    if not 0 < max_area <= 1:
        raise ValueError(f"max_area must be in (0, 1], got {max_area}")
    inside = _inside(boxes, len(map), map.shape[1], map.shape[2]).to(map.device).flatten(1)
    values = map.detach().flatten(1)
    size = inside.sum(1)
    edge = values.sort(1, descending=True).values.gather(1, size[:, None] - 1)
    above, level = values > edge, values == edge
    open_places = (size - above.sum(1)).double()  # for the pixels that equal the n-th
    part = (level & inside).sum(1) / level.sum(1).double()
    ratio = ((above & inside).sum(1) + open_places * part) / size
    return ratio.masked_fill(size > max_area * values.shape[1], torch.nan)


def grid_pointing(map: Tensor, cell: Tensor, *, grid: int = 2) -> Tensor:
    """Fraction of the positive relevance that lies in the cell of a mosaic which shows the
    explained class.

    A random map gets ``1 / grid**2``. A map without positive relevance points nowhere and gets 0.

    Args:
        map: Relevances of mosaics ``(N, H, W)``, floating; H and W are multiples of ``grid``.
        cell: The target's cell in each mosaic, int64 ``(N,)``, counted row by row from 0.
        grid: Cells on a side. The paper's mosaics are 2x2, those of Böhle et al. 3x3.

    Returns:
        float64 ``(N,)`` in ``[0, 1]``.

    Raises:
        ValueError: A shape is wrong, H or W is not a multiple of ``grid``, or a cell is not in
            ``[0, grid**2)``.
        TypeError: ``map`` is not floating, or ``cell`` is not int64.
        FloatingPointError: ``map`` holds a value that is not finite.
    """
    check_maps(map)
    n, h, w = map.shape
    if grid < 1 or h % grid or w % grid:
        raise ValueError(f"grid must divide the map's {h}x{w}, got {grid}")
    if cell.dtype != torch.int64:
        raise TypeError(f"cell must be int64, got {cell.dtype}")
    if cell.shape != (n,) or int(cell.min()) < 0 or int(cell.max()) >= grid**2:
        raise ValueError(f"cell must be ({n},) with values in [0, {grid**2}), got {cell.tolist()}")
    positive = map.detach().double().clamp_min(0)
    cells = positive.view(n, grid, h // grid, grid, w // grid).sum((2, 4)).flatten(1)
    total = cells.sum(1)
    chosen = cells.gather(1, cell.to(map.device)[:, None])[:, 0]
    return torch.where(total > 0, chosen / total, 0.0)


@dataclass(frozen=True, slots=True, eq=False)
class Mosaics:
    """M mosaics of ``grid**2`` images each.

    Args:
        images: ``(M, C, grid * H, grid * W)``.
        targets: Class shown by each cell, int64 ``(M, grid**2)``, row by row; distinct within a
            mosaic.
        sources: Number of the image in each cell, int64 ``(M, grid**2)``.
    """

    images: Tensor
    targets: Tensor
    sources: Tensor


def mosaics(
    images: Tensor,
    targets: Tensor,
    *,
    count: int,
    grid: int = 2,
    generator: torch.Generator | None = None,
) -> Mosaics:
    """Builds mosaics whose cells show images of distinct classes, drawn at random.

    Classes are drawn uniformly without replacement, then an image of each class uniformly.

    Args:
        images: ``(N, C, H, W)``, any dtype.
        targets: Class of each image, int64 ``(N,)``.
        count: M, the number of mosaics.
        grid: Cells on a side.
        generator: CPU source of the draw. ``None`` means torch's default.

    Raises:
        ValueError: A shape is wrong, ``count < 1``, ``grid < 1``, or there are fewer classes than
            cells.
    """
    if images.dim() != 4 or targets.shape != images.shape[:1]:
        raise ValueError(
            "images must be (N, C, H, W) and targets (N,), "
            f"got shapes {tuple(images.shape)} and {tuple(targets.shape)}"
        )
    if count < 1 or grid < 1:
        raise ValueError(f"count and grid must be >= 1, got {count} and {grid}")
    classes, sizes = torch.unique(targets.cpu(), return_counts=True)
    if len(classes) < grid**2:
        raise ValueError(f"targets must hold {grid**2} classes for grid={grid}, got {len(classes)}")
    by_class = targets.cpu().argsort(stable=True)
    first = sizes.cumsum(0) - sizes
    drawn = torch.rand(count, len(classes), generator=generator).argsort(1)[:, : grid**2]
    place = (torch.rand(drawn.shape, generator=generator) * sizes[drawn]).long()
    sources = by_class[first[drawn] + place.minimum(sizes[drawn] - 1)]
    _, c, h, w = images.shape
    cells = images[sources.to(images.device)].view(count, grid, grid, c, h, w)
    return Mosaics(
        cells.permute(0, 3, 1, 4, 2, 5).reshape(count, c, grid * h, grid * w),
        classes[drawn],
        sources,
    )


def _inside(boxes: Tensor | Sequence[Tensor], n: int, h: int, w: int) -> Tensor:
    """The union of each image's boxes, boolean ``(N, H, W)``."""
    each = _corners(boxes, n)
    x0, y0, x1, y1 = torch.cat(each).unbind(-1)
    wrong = (x0 < 0) | (y0 < 0) | (x1 > w) | (y1 > h) | (x0 >= x1) | (y0 >= y1)
    parts = torch.split(wrong, [len(corners) for corners in each])
    bad = [bool(part.any()) or not len(part) for part in parts]
    if any(bad):
        image = bad.index(True)
        raise ValueError(
            f"boxes must be (x0, y0, x1, y1) with 0 <= x0 < x1 <= {w} and 0 <= y0 < y1 <= {h}, one "
            f"at least for each image, got {each[image].tolist()} for image {image}"
        )
    padded = torch.nn.utils.rnn.pad_sequence(each, batch_first=True)  # by boxes that hold no pixel
    x0, y0, x1, y1 = padded.unbind(-1)  # (N, B)
    rows, columns = torch.arange(h), torch.arange(w)
    down = (rows >= y0[..., None]) & (rows < y1[..., None])  # (N, B, H)
    across = (columns >= x0[..., None]) & (columns < x1[..., None])  # (N, B, W)
    return torch.einsum("nbh,nbw->nhw", down.float(), across.float()) > 0


def _corners(boxes: Tensor | Sequence[Tensor], n: int) -> list[Tensor]:
    """The boxes of each image, int64 ``(B, 4)`` on the CPU."""
    if isinstance(boxes, Tensor):
        boxes = list(boxes)
    each = [box[None] if box.dim() == 1 else box for box in boxes]
    if any(box.is_floating_point() or box.dtype == torch.bool for box in each):
        raise TypeError("boxes must be of integers: whole pixels")
    if len(each) != n or any(box.dim() != 2 or box.shape[1] != 4 for box in each):
        shapes = [tuple(box.shape) for box in each[:4]]
        raise ValueError(
            f"boxes must hold (B, 4) for each of {n} images, got {len(each)} of {shapes}"
        )
    return [box.cpu().long() for box in each]
