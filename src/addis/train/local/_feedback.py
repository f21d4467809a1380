"""Feedback alignment: a linear layer whose error returns through a fixed random matrix.

Paper: T. P. Lillicrap et al., "Random synaptic feedback weights support error backpropagation for
deep learning", Nature Communications 2016; used by the bpf losses of A. Nøkland, L. H. Eidnes,
arXiv:1901.06656, section 2.4.
Departures: the feedback matrix is a buffer; in the authors' code it is a parameter that never gets
a gradient.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["FeedbackAlignmentLinear"]


class _Feedback(torch.autograd.Function):
    """Passes ``out`` on; the gradient of ``h`` becomes ``grad · B`` whatever made ``out``."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, out: Tensor, feedback: Tensor) -> Tensor:
        ctx.save_for_backward(feedback)
        ctx.dtype = h.dtype
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        (feedback,) = ctx.saved_tensors
        return (grad @ feedback.to(grad.dtype)).to(ctx.dtype), grad, None


class FeedbackAlignmentLinear(nn.Module):
    """A linear layer whose error goes back through a fixed random matrix ``B``.

    Forward ``hWᵀ + b`` with ``W`` and ``b`` starting at 0; the gradient of ``W`` is ``gᵀh`` as
    ever, that of ``h`` is ``gB`` with ``B`` uniform in ``±1/√in_features``. ``B`` is a buffer.

    Args:
        in_features: ``D``.
        out_features: ``T``.
        generator: CPU source of ``B``. ``None`` means torch's default.
    """

    feedback: Tensor

    def __init__(
        self, in_features: int, out_features: int, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features))
        bound = 1 / math.sqrt(in_features)
        feedback = torch.empty(out_features, in_features).uniform_(
            -bound, bound, generator=generator
        )
        self.register_buffer("feedback", feedback)

    def forward(self, h: Tensor) -> Tensor:
        """Maps ``(n, D)`` to ``(n, T)``."""
        out: Tensor = _Feedback.apply(
            h, F.linear(h.detach(), self.weight, self.bias), self.feedback
        )
        return out
