"""What heads and training steps refuse at the door."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["check_batch", "check_fraction"]


def check_batch(
    model: nn.Module, x: Tensor, y: Tensor | None, sample: Sequence[int], num_classes: int
) -> None:
    """Refuses a batch that would fail, or mislead, half way through the blocks.

    Class numbers are looked at only on the CPU; on a GPU that would make the step wait.

    Args:
        model: The model, for its BatchNorm layers.
        x: ``(n, *sample)``.
        y: Class numbers ``(n,)`` or soft labels ``(n, K)``; ``None`` if the losses are the user's
            own.
        sample: Shape that the heads were built for.
        num_classes: ``K``.

    Raises:
        ValueError: A shape or a class number that does not fit, or a batch of one with BatchNorm.
        TypeError: Labels of another kind.
    """
    if tuple(x.shape[1:]) != tuple(sample) or len(x) == 0:
        raise ValueError(f"x must be (n >= 1, {', '.join(map(str, sample))}), got {tuple(x.shape)}")
    if len(x) == 1 and any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
        raise ValueError(
            "x is a batch of one, which BatchNorm cannot normalise; drop the last batch"
        )
    if y is None:
        return
    if y.dim() == 2 and y.is_floating_point():
        if tuple(y.shape) != (len(x), num_classes):
            raise ValueError(f"soft labels must be {(len(x), num_classes)}, got {tuple(y.shape)}")
        return
    if y.dim() != 1 or y.dtype != torch.int64:
        raise TypeError(
            "y must be int64 class numbers (n,) or soft labels (n, K), got "
            f"{y.dtype} of shape {tuple(y.shape)}; for other targets give a head as loss and an "
            "output_loss"
        )
    if len(y) != len(x):
        raise ValueError(f"x and y must have one length, got {len(x)} and {len(y)}")
    if y.device.type == "cpu":
        low, high = (int(v) for v in torch.aminmax(y))
        if low < 0 or high >= num_classes:
            raise ValueError(
                f"y must be in [0, {num_classes - 1}], got values from {low} to {high}"
            )


def check_fraction(name: str, value: float) -> None:
    """Raises ``ValueError`` outside ``[0, 1]``."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {value}")
