"""RISE: the mean of random masks, weighted by the class's probability under each.

Paper: V. Petsiuk, A. Das, K. Saenko, "RISE: Randomized Input Sampling for Explanation of Black-box
Models", BMVC 2018, arXiv:1806.07421, equation 6.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from addis.explain._evidence import judging
from addis.explain._gradients import Target
from addis.explain._inputs import check_input

__all__ = ["rise"]


def rise(
    model: nn.Module,
    x: Tensor,
    target: Target,
    *,
    masks: int = 2000,
    cells: int = 7,
    keep: float = 0.5,
    seed: int = 0,
    batch_size: int = 32,
) -> Tensor:
    """Masks images at random; a pixel's score is the class's expected probability given that it is
    seen.

    What a mask hides becomes 0, the mean colour of a normalised image. The probability is the
    softmax of the logits, or the sigmoid of a single one.

    Args:
        model: A classifier with logits ``(N, K)``.
        x: ``(N, C, H, W)``.
        target: Class of each image ``(N,)`` or one for all.
        masks: Number of masks, the same for all images. The paper uses 4000 to 8000 on ImageNet.
        cells: Side of the coarse grid that is enlarged to a mask.
        keep: Probability that a cell of it is seen, in ``(0, 1)``.
        seed: Seed of the masks.
        batch_size: Masked images in one pass.

    Returns:
        ``(N, H, W)`` of the dtype of ``x``, in ``[0, 1]`` up to the noise of the masks. They are
        summed in float32 at least.

    Raises:
        ValueError: A setting is out of its range, or ``x`` is not a batch of images.
    """
    check_input(x)
    if x.dim() != 4:
        raise ValueError(f"x must be (N, C, H, W), got shape {tuple(x.shape)}")
    if masks < 1 or cells < 1 or batch_size < 1 or not 0 < keep < 1:
        raise ValueError(
            "need masks, cells and batch_size >= 1 and 0 < keep < 1, got "
            f"{masks}, {cells}, {batch_size} and {keep}"
        )
    generator = torch.Generator().manual_seed(seed)
    grids = torch.rand(masks, cells + 1, cells + 1, generator=generator) < keep
    shifts = torch.rand(masks, 2, generator=generator)
    precise = torch.promote_types(x.dtype, torch.float32)
    step = max(batch_size // len(x), 1)
    with judging(model, x, target) as judge:
        total = torch.zeros((len(x), *x.shape[2:]), dtype=precise, device=x.device)
        for grid, shift in zip(
            torch.split(grids.float(), step), torch.split(shifts, step), strict=True
        ):
            mask = _masks(grid, shift, tuple(x.shape[2:])).to(total)
            seen = (x[:, None] * mask[None, :, None].to(x.dtype)).flatten(0, 1)
            chosen = torch.arange(len(x)).repeat_interleave(len(mask))
            weights = judge(seen, chosen, softmax=True).view(len(x), -1).to(total)
            total += torch.einsum("nm,mhw->nhw", weights, mask)
    return (total / (masks * keep)).to(x.dtype)


def _masks(grids: Tensor, shifts: Tensor, size: tuple[int, ...]) -> Tensor:
    """Coarse binary grids, enlarged linearly and shifted by a part of a cell, ``(M, H, W)``.

    Args:
        grids: ``(M, cells + 1, cells + 1)``.
        shifts: ``(M, 2)``, each part of a cell in ``[0, 1)``.
        size: ``(H, W)``.
    """
    cell = [-(-side // (grids.shape[-1] - 1)) for side in size]
    large = F.interpolate(
        grids[:, None],
        size=[grids.shape[-1] * side for side in cell],
        mode="bilinear",
        align_corners=False,
    )[:, 0]
    corners = (shifts * torch.tensor(cell)).long().tolist()
    return torch.stack(
        [
            mask[top : top + size[0], left : left + size[1]]
            for mask, (top, left) in zip(large, corners, strict=True)
        ]
    )
