"""The shape of a block's features, and the pooling that brings them to a decoder's size.

Paper: A. Nøkland, L. H. Eidnes, "Training Neural Networks with Local Error Signals", ICML 2019,
arXiv:1901.06656; the pooling rule is that of the authors' code.
Departures: tokens ``(n, T, D)``, which the paper does not treat, are maps of ``D`` channels and
``T`` pixels. A window never grows past a map's width, which in the authors' code only matters for
maps that are not square.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

__all__ = ["BlockShape", "Pool", "pool_window"]


@dataclass(frozen=True, slots=True)
class BlockShape:
    """The features that a block hands to its head.

    Args:
        name: The block's name.
        shape: Without the batch: ``(D,)``, ``(C, L)``, ``(C, H, W)``, ``(C, D, H, W)``, ``(T, D)``
            or ``(H, W, D)``.
        layout: Where the features stand: ``"flat"``, channels first (``"maps"``) or last
            (``"tokens"``).
    """

    name: str
    shape: tuple[int, ...]
    layout: Literal["flat", "maps", "tokens"]

    @property
    def channels(self) -> int:
        """``C`` or ``D``."""
        return self.shape[-1] if self.layout == "tokens" else self.shape[0]

    @property
    def map_shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of `maps`."""
        if self.layout == "flat":
            return self.shape[0], 1, 1
        if self.layout == "tokens":
            return self.channels, math.prod(self.shape[:-1]), 1
        *depth, last = self.shape[1:]
        return (self.channels, last, 1) if not depth else (self.channels, math.prod(depth), last)

    def maps(self, h: Tensor) -> Tensor:
        """Features ``(n, *shape)`` as ``(n, D)`` if flat, otherwise as maps ``(n, C, H, W)``."""
        if self.layout == "flat" or (self.layout == "maps" and len(self.shape) == 3):
            return h
        if self.layout == "tokens":
            return h.flatten(1, -2).transpose(1, 2).unsqueeze(3)
        return h.reshape(len(h), *self.map_shape)


def pool_window(channels: int, height: int, width: int, limit: int) -> tuple[int, int]:
    """The window of the average pooling before a block's decoder.

    The window's height is doubled until at most ``limit`` features are left or it spans the map;
    its width follows after each doubling that left too many.

    Example:
        >>> [pool_window(c, s, s, 4096) for c, s in [(128, 32), (256, 32), (512, 16), (512, 4)]]
        [(8, 4), (8, 8), (8, 4), (2, 1)]

    Args:
        channels: ``C``.
        height: ``H`` of the maps.
        width: ``W`` of the maps.
        limit: Most inputs of the decoder; the paper takes 4096, 2048 or 1024.
    """
    kh = kw = 1
    while channels * math.ceil(height / kh) * math.ceil(width / kw) > limit and kh < height:
        kh *= 2
        if channels * math.ceil(height / kh) * math.ceil(width / kw) > limit and kw < width:
            kw *= 2
    return kh, kw


class Pool(nn.Module):
    """Average pooling to at most ``limit`` features.

    Zeros pad a side that the window does not divide, and count.
    """

    def __init__(self, shape: BlockShape, limit: int) -> None:
        super().__init__()
        self.shape = shape
        channels, height, width = shape.map_shape
        self.window = pool_window(channels, height, width, limit)
        kh, kw = self.window
        self.padding = (kh // 2 if height % kh else 0, kw // 2 if width % kw else 0)
        self.features = channels * math.ceil(height / kh) * math.ceil(width / kw)

    def forward(self, h: Tensor) -> Tensor:
        maps = self.shape.maps(h)
        if self.window == (1, 1):
            return maps
        return F.avg_pool2d(maps, self.window, padding=self.padding)

    def linear(self, h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """A linear layer ``(n, out)`` on the pooled features, which are not kept for backward."""
        if self.window == (1, 1):
            return F.linear(self.shape.maps(h).flatten(1), weight, bias)
        maps = self.shape.maps(h)
        out: Tensor = _PooledLinear.apply(maps, weight, bias, self.window, self.padding)
        return out

    def extra_repr(self) -> str:
        return f"window={self.window}, padding={self.padding}"


class _PooledLinear(torch.autograd.Function):
    """``avg_pool(maps) · Wᵀ + b``; only the maps are kept, which the block keeps anyway."""

    @staticmethod
    def forward(
        ctx: Any,
        maps: Tensor,
        weight: Tensor,
        bias: Tensor,
        window: tuple[int, int],
        padding: tuple[int, int],
    ) -> Tensor:
        ctx.save_for_backward(maps, weight)
        ctx.window, ctx.padding = window, padding
        return F.linear(F.avg_pool2d(maps, window, padding=padding).flatten(1), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        maps, weight = ctx.saved_tensors
        pooled = F.avg_pool2d(maps, ctx.window, padding=ctx.padding)
        dpooled = (grad @ weight.to(grad.dtype)).view(pooled.shape).to(maps.dtype)
        if not pooled.is_contiguous():  # else the kernel brings the whole map to dpooled's layout
            dpooled = dpooled.contiguous(memory_format=torch.channels_last)
        dmaps = torch.ops.aten.avg_pool2d_backward(
            dpooled, maps, ctx.window, ctx.window, ctx.padding, False, True, None
        )
        dweight = (grad.T @ pooled.flatten(1).to(grad.dtype)).to(weight.dtype)
        return dmaps, dweight, grad.sum(0).to(weight.dtype), None, None
