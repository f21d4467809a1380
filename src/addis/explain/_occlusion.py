"""Occlusion: the fall of a class's logit when a patch of the image is covered.

Paper: M. Zeiler, R. Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014,
arXiv:1311.2901.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from addis.explain._fold import folded
from addis.explain._gradients import Target, baseline_image
from addis.explain._inputs import as_targets, check_input, class_scores
from addis.explain._layers import undisturbed
from addis.explain._local import Box, PatchedForward

__all__ = ["occlusion"]


def occlusion(
    model: nn.Module,
    x: Tensor,
    target: Target,
    *,
    patch: int = 8,
    stride: int | None = None,
    baseline: Literal["channel_mean", "zero"] | Tensor = "channel_mean",
    batch_size: int = 16,
) -> Tensor:
    """Covers every patch in turn; a pixel gets the mean fall of the logit over the patches that
    cover it.

    Patches start at the multiples of the stride; those at the far border are cut off by it.

    Args:
        model: A classifier with logits ``(N, K)``.
        x: ``(N, C, H, W)``.
        target: Class of each image ``(N,)`` or one for all.
        patch: Side of the square in pixels, ``>= 1``.
        stride: Step between patches, ``1`` to ``patch``; ``None`` means ``patch``, no overlap.
        baseline: What covers: each image's mean colour, zero, or a tensor that broadcasts to ``x``.
        batch_size: Covered images in one pass.

    Returns:
        ``(N, H, W)``, signed, in logits.

    Raises:
        ValueError: A size is out of its range, ``x`` is not a batch of images, or the baseline is
            unknown or does not broadcast to it.
    """
    check_input(x)
    step = patch if stride is None else stride
    if x.dim() != 4:
        raise ValueError(f"x must be (N, C, H, W), got shape {tuple(x.shape)}")
    if not 1 <= step <= patch or batch_size < 1:
        raise ValueError(
            f"need 1 <= stride <= patch and batch_size >= 1, got stride {step}, patch {patch}, "
            f"batch_size {batch_size}"
        )
    rows, cols = (_intervals(size, patch, step) for size in x.shape[2:])
    cover = baseline_image(x, baseline)
    with undisturbed(model) as inner, torch.no_grad():
        logits = class_scores(inner(x.clone()), len(x))  # the model may work in place
        classes = as_targets(target, logits)
        boxes = [(*row, *col) for row in rows for col in cols]
        scores = _covered_scores(inner, x, cover, classes, boxes, batch_size)
    fall = (logits.gather(1, classes[:, None]) - scores).view(len(x), len(rows), len(cols))
    weights_h, weights_w = (
        _membership(r, n, x) for r, n in zip((rows, cols), x.shape[2:], strict=True)
    )
    total = weights_h.T @ fall.to(x.dtype) @ weights_w
    count = weights_h.sum(dim=0)[:, None] * weights_w.sum(dim=0)
    return total / count


def _intervals(size: int, patch: int, step: int) -> list[tuple[int, int]]:
    count = max(-(-(size - patch) // step), 0) + 1
    return [(i * step, min(i * step + patch, size)) for i in range(count)]


def _membership(intervals: list[tuple[int, int]], size: int, like: Tensor) -> Tensor:
    """``(P, size)``: 1 where an interval covers a position."""
    positions = torch.arange(size, device=like.device)
    bounds = torch.tensor(intervals, device=like.device)
    inside = (positions >= bounds[:, :1]) & (positions < bounds[:, 1:])
    return inside.to(like.dtype)


def _covered_scores(
    model: nn.Module,
    x: Tensor,
    cover: Tensor,
    classes: Tensor,
    boxes: list[Box],
    batch_size: int,
) -> Tensor:
    """Target logit with each patch covered, ``(N, P)``."""
    n, places = len(x), len(boxes)
    longest = max(max(bottom - top, right - left) for top, bottom, left, right in boxes)
    forward = PatchedForward(folded(model, x), x, longest)
    scores = torch.empty(n * places, dtype=x.dtype, device=x.device)
    for chunk in torch.split(torch.arange(n * places), batch_size):
        image = chunk // places
        covered = [boxes[place] for place in (chunk % places).tolist()]
        logits = class_scores(forward(image.tolist(), covered, cover), len(chunk))
        wanted = classes[image.to(classes.device)][:, None]
        scores[chunk.to(x.device)] = logits.gather(1, wanted)[:, 0].to(x.dtype)
    return scores.view(n, places)
