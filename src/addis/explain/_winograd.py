"""Convolutions of 3 x 3 with fixed weights, in 4/9 of the multiplications.

Paper: A. Lavin, S. Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016,
arXiv:1509.09308. A tile of 2 x 2 outputs is A'[(G w G') * (B' d B)]A for a patch ``d`` of 4 x 4
inputs: 16 products in place of 36. Over tiles, channels and images these are 16 matrix products.
On a CPU PyTorch has no such kernel.
"""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["WinogradConv2d", "suits"]

_FEWEST_CHANNELS = 256
"""With fewer the transforms take what the products save (measured with one thread)."""
_SMALLEST = 4
"""Side of an image under which most of a tile lies outside of it."""

_B = torch.tensor([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
_G = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
_A = torch.tensor([[1, 1, 1, 0], [0, 1, -1, -1]])
_TURNED = torch.tensor([3, 1, 2, 0])
"""The rows of G w when w is turned round are these rows of G w."""
_TURNED_BOTH = (4 * _TURNED[:, None] + _TURNED).flatten()

_WEIGHT = torch.kron(_G, _G)
_INPUT, _OUTPUT = torch.kron(_B, _B), torch.kron(_A, _A)
_INPUT_BACK, _OUTPUT_BACK = _INPUT[_TURNED_BOTH], _OUTPUT[:, _TURNED_BOTH]


def suits(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether :class:`WinogradConv2d` can take the place of a module, and is faster."""
    return (
        type(module) is nn.Conv2d
        and module.kernel_size == (3, 3)
        and module.stride == module.dilation == (1, 1)
        and module.padding in ((1, 1), "same")
        and module.padding_mode == "zeros"
        and module.groups == 1
        and min(module.in_channels, module.out_channels) >= _FEWEST_CHANNELS
        and isinstance(module._parameters.get("weight"), Tensor)
        and module.weight.dtype in (torch.float32, torch.float64)
        and module.weight.device.type == "cpu"
    )


class WinogradConv2d(nn.Conv2d):
    """A convolution of 3 x 3 with padding 1 whose weights do not change any more.

    The output and the gradient of the input are those of ``conv``, up to rounding; the weights get
    no gradient. Small images, other precisions and autocast run ``conv``'s own kernel.

    Args:
        conv: A convolution that :func:`suits`; its parameters are shared.
    """

    transformed: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(
            conv.in_channels, conv.out_channels, 3, padding=1, bias=False, device="meta"
        )
        self.weight, self.bias = conv.weight, conv.bias
        weight = conv.weight.detach()
        flat = weight.transpose(0, 1).reshape(-1, 9).t()
        products = (_WEIGHT.to(weight) @ flat).view(16, conv.in_channels, conv.out_channels)
        self.register_buffer("transformed", products, persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() != 4 or min(input.shape[2:]) < _SMALLEST or torch.is_autocast_enabled("cpu"):
            return super().forward(input)
        bias = None if self.bias is None else self.bias.detach()
        output: Tensor = _Winograd.apply(input, self.transformed, bias, False)
        return output


class _Winograd(torch.autograd.Function):
    """The gradient of the input is the same convolution, channels swapped and weights turned."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, back: bool) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.back = back
        into, out_of = (_INPUT_BACK, _OUTPUT_BACK) if back else (_INPUT, _OUTPUT)
        output = _convolved(x, weight, into, out_of)
        if bias is None:  # a view must not leave this function: what follows may work in place
            return output.clone(memory_format=torch.channels_last)
        return output + bias[:, None, None]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors
        back = _Winograd.apply(grad, weight.transpose(1, 2), None, not ctx.back)
        return back, None, None, None


def _convolved(x: Tensor, weight: Tensor, into: Tensor, out_of: Tensor) -> Tensor:
    """The convolution of ``(N, I, H, W)`` by transformed weights ``(16, I, O)``, channels last."""
    n, _, h, w = x.shape
    rows, columns = -(-h // 2), -(-w // 2)
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 2 * columns - w + 1, 1, 2 * rows - h + 1))
    image, row, column, channel = padded.stride()
    patches = padded.as_strided(
        (4, 4, n, rows, columns, x.shape[1]),
        (row, column, image, 2 * row, 2 * column, channel),
    )
    spectra = (into.to(x) @ patches.reshape(16, -1)).view(16, n * rows * columns, -1)
    products = torch.bmm(spectra, weight).view(16, -1)
    tiles = (out_of.to(x) @ products).view(2, 2, n, rows, columns, -1)
    whole = tiles.permute(2, 3, 0, 4, 1, 5).reshape(n, 2 * rows, 2 * columns, -1)
    return whole[:, :h, :w].permute(0, 3, 1, 2)
