"""Ready-made steps for the loop: from the model and a batch to the loss."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["cross_entropy_step"]


def cross_entropy_step(
    model: nn.Module, batch: tuple[Tensor, Tensor], *, label_smoothing: float = 0.0
) -> Tensor:
    """Computes the mean cross-entropy of a batch, the step of ordinary classification.

    Args:
        model: Gives logits ``(N, K)`` for inputs ``(N, ...)``.
        batch: Inputs ``(N, ...)`` and targets: classes ``(N,)`` int64 or probabilities ``(N, K)``.
        label_smoothing: Mass taken from the target and spread over all ``K`` classes, in ``[0,
            1]``. Set it with ``functools.partial``.

    Returns:
        A scalar, the mean over the batch, in nats.
    """
    inputs, targets = batch
    logits: Tensor = model(inputs)
    return nn.functional.cross_entropy(logits, targets, label_smoothing=label_smoothing)
