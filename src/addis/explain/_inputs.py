"""What every attribution checks at the door: images, targets and the model's output."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = [
    "as_targets",
    "check_finite",
    "check_input",
    "class_scores",
    "rows_of",
    "target_scores",
]


def check_input(x: Tensor) -> None:
    """Refuses an input that cannot be explained.

    Raises:
        TypeError: ``x`` is not a floating-point tensor.
        ValueError: ``x`` has no batch dimension or no element.
        FloatingPointError: ``x`` holds NaN or infinity.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"x must be floating point, got {x.dtype}; scale and normalise it first")
    if x.dim() < 2 or x.numel() == 0:
        raise ValueError(f"x must be a non-empty batch (N, ...), got shape {tuple(x.shape)}")
    check_finite("x", x)


def check_finite(name: str, value: Tensor) -> None:
    """Raises ``FloatingPointError`` naming the tensor if it holds NaN or infinity."""
    if not bool(torch.isfinite(value).all()):
        raise FloatingPointError(f"{name} holds NaN or infinity")


def class_scores(output: Any, n: int | None = None) -> Tensor:
    """The model's output as logits ``(N, K)``; a model with one output per image may return
    ``(N,)``.

    Args:
        output: What the model gave.
        n: Number of images that it was given, to be checked.

    Raises:
        TypeError: The output is not a tensor.
        ValueError: It has more than two dimensions, or not a row for each image.
    """
    if not isinstance(output, Tensor):
        kind = type(output).__name__
        raise TypeError(f"the model must return a tensor of logits (N, K), got {kind}")
    if output.dim() not in (1, 2):
        raise ValueError(f"the model must return logits (N, K), got shape {tuple(output.shape)}")
    if n is not None and len(output) != n:
        shape = tuple(output.shape)
        raise ValueError(f"the model must return logits ({n}, K) for {n} images, got shape {shape}")
    return output[:, None] if output.dim() == 1 else output


def as_targets(target: Tensor | int | None, logits: Tensor) -> Tensor:
    """Checks the classes to explain.

    Args:
        target: Class of each image ``(N,)``, also a list or an array; one class for all; or
            ``None`` for a model with one output.
        logits: ``(N, K)``.

    Returns:
        ``(N,)`` int64 on the device of ``logits``.

    Raises:
        TypeError: ``target`` is not of an integer type.
        ValueError: It is missing although ``K > 1``, has another length than ``N``, or is out of
            range.
    """
    n, k = logits.shape
    if target is None:
        if k > 1:
            raise ValueError(
                f"target is missing: the model has {k} classes; name the class to explain, "
                "e.g. target=model(x).argmax(1) for the predicted one"
            )
        return torch.zeros(n, dtype=torch.int64, device=logits.device)
    classes = _as_tensor(target).to(logits.device)
    if classes.is_floating_point() or classes.is_complex() or classes.dtype is torch.bool:
        raise TypeError(f"target must hold class indices (integers), got {classes.dtype}")
    if classes.dim() == 0:
        classes = classes.expand(n)
    if classes.shape != (n,):
        raise ValueError(f"target must have shape ({n},), got {tuple(classes.shape)}")
    if n and not 0 <= int(classes.min()) <= int(classes.max()) < k:
        low, high = int(classes.min()), int(classes.max())
        raise ValueError(f"target must lie in [0, {k - 1}], got values from {low} to {high}")
    return classes.to(torch.int64)


def rows_of(target: Tensor | int | None, rows: Tensor, n: int) -> Tensor | None:
    """The targets of some rows of a batch of ``n``; one for all stays one for all.

    Raises:
        TypeError: ``target`` is neither a number nor a tensor, list or array of them.
        ValueError: It has another length than the batch.
    """
    if target is None:
        return None
    classes = _as_tensor(target)
    if classes.dim() == 0:
        return classes
    if classes.shape != (n,):
        raise ValueError(f"target must have shape ({n},), got {tuple(classes.shape)}")
    return classes[rows.to(classes.device)]


def _as_tensor(target: Any) -> Tensor:
    try:
        return torch.as_tensor(target)
    except (TypeError, ValueError, RuntimeError):
        kind = type(target).__name__
        raise TypeError(f"target must be a tensor of class indices or one, got {kind}") from None


def target_scores(output: Any, target: Tensor | int | None, n: int | None = None) -> Tensor:
    """The logit of each image's target class, ``(N,)``; arguments as in :func:`class_scores` and
    :func:`as_targets`.
    """
    logits = class_scores(output, n)
    return logits.gather(1, as_targets(target, logits)[:, None])[:, 0]
