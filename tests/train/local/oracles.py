"""Slow references: double loops in float64, and blocks written from the paper's text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def similarity(x: Tensor) -> Tensor:
    """S(X) by a loop over pairs; maps of more than 3 channels and 1 row as their deviations."""
    rows = []
    for sample in x:
        if sample.dim() == 3 and sample.shape[0] > 3 and sample.shape[1] > 1:
            sample = torch.stack([c.flatten().var(unbiased=True).sqrt() for c in sample])
        row = sample.flatten()
        row = row - row.sum() / row.numel()
        rows.append(row / (1e-8 + row.pow(2).sum().sqrt()))
    matrix = torch.empty(len(x), len(x), dtype=x.dtype)
    for i, a in enumerate(rows):
        for j, b in enumerate(rows):
            matrix[i, j] = (a * b).sum().clamp(-1, 1)
    return matrix


def similarity_loss(h: Tensor, targets: Tensor) -> Tensor:
    """Mean over all pairs of the squared difference of two similarity matrices."""
    total = torch.zeros((), dtype=h.dtype)
    s = similarity(h)
    for i in range(len(h)):
        for j in range(len(h)):
            total = total + (s[i, j] - targets[i, j]) ** 2
    return total / len(h) ** 2


def window(channels: int, side: int, limit: int) -> tuple[int, int]:
    """The pooling window of the text: double the height, then the width if still too large."""
    kh = kw = 1
    size = channels * side * side
    while size > limit and kh < side:
        kh = kh * 2
        size = channels * math.ceil(side / kh) * math.ceil(side / kw)
        if size > limit:
            kw = kw * 2
            size = channels * math.ceil(side / kh) * math.ceil(side / kw)
    return kh, kw


class ReferenceBlock:
    """Encoder, norm and activation with the losses of the text, autograd throughout.

    Args:
        encoder: Linear or Conv2d, with norm and activation.
        g: The layer of the similarity loss, or ``None``.
        decoder: The layer of the prediction loss, or ``None``.
        kernel: Window of the pooling before the decoder.
        beta: Weight of the similarity loss.
    """

    def __init__(
        self,
        encoder: nn.Module,
        g: nn.Module | None,
        decoder: nn.Module | None,
        kernel: tuple[int, int],
        beta: float,
    ) -> None:
        self.encoder, self.g, self.decoder, self.kernel, self.beta = (
            encoder,
            g,
            decoder,
            kernel,
            beta,
        )

    def modules(self) -> list[nn.Module]:
        return [m for m in (self.encoder, self.g, self.decoder) if m is not None]

    def loss(self, h: Tensor, y: Tensor, classes: int) -> Tensor:
        pred = sim = torch.zeros((), dtype=h.dtype)
        if self.g is not None:
            onehot = F.one_hot(y, classes).to(h.dtype)
            sim = similarity_loss(self.g(h), similarity(onehot))
        if self.decoder is not None:
            z = F.avg_pool2d(h, self.kernel) if h.dim() == 4 else h
            pred = F.cross_entropy(self.decoder(z.flatten(1)), y)
        if self.g is None:
            return pred
        if self.decoder is None:
            return sim
        return (1 - self.beta) * pred + self.beta * sim


def naive_steps(
    blocks: Sequence[ReferenceBlock],
    between: Sequence[Callable[[Tensor], Tensor]],
    output: nn.Module,
    batches: Sequence[tuple[Tensor, Tensor]],
    *,
    classes: int,
    output_weight: float,
    make: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
) -> None:
    """Computes all losses on detached features, then all gradients, then takes all steps."""
    groups = [[p for m in block.modules() for p in m.parameters()] for block in blocks]
    optimizers = [make(group) for group in [*groups, list(output.parameters())]]
    for x, y in batches:
        losses = []
        for block, then in zip(blocks, between, strict=True):
            h = block.encoder(x.detach())
            losses.append(block.loss(h, y, classes))
            x = then(h.detach())
        losses.append(output_weight * F.cross_entropy(output(x.detach()), y))
        for loss in losses:
            loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
