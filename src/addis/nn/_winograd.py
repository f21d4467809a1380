"""Convolutions of 3 x 3 in a quarter of the multiplications, on a CPU.

Paper: A. Lavin, S. Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016,
arXiv:1509.09308. A tile of 4 x 4 outputs is A[(G w G') * (B d B')]A' for a patch ``d`` of 6 x 6
inputs: 36 products in place of 144. Over tiles, channels and images these are 36 matrix products.

PyTorch has no such kernel for a CPU. Rounding is about six times that of its direct kernel, ten
times where oneDNN multiplies, which sums a long row from one end to the other. A number that is not
finite makes NaN of the whole tile of outputs that its patch reaches, in all channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Self, TypeGuard, cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

from addis.nn._points import FixedPoints, Points, transformed
from addis.nn._scheme import FORWARD, PATCH, TILE, WEIGHT
from addis.nn._tiles import parts, patches_of, place, spectra_of, tiles_of

__all__ = ["Winograd", "WinogradConv2d", "suits"]

_FEWEST_CHANNELS = 96
"""With fewer the transforms take what the products save (measured with one thread)."""
_FEWEST_TILES, _FEWEST_FIXED_TILES = 64, 16
"""With fewer in a batch reading or transforming the weights takes what the products save."""
_LEAST_SAVED = {1: 10_000, 2: 13_000}
"""By threads: multiplications a tile and channel that pay for the transforms (measured). With more
threads, which were not measured, PyTorch's kernel runs: it divides its work better.
"""
_CHUNK_TILES = 128
"""Tiles at a time and thread: what passes between the steps stays in a cache."""


def suits(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether :class:`WinogradConv2d` can take the place of a module, and is faster."""
    return (
        type(module) is nn.Conv2d
        and module.kernel_size == (3, 3)
        and module.padding_mode == "zeros"
        and isinstance(module._parameters.get("weight"), Tensor)
        and _computes(module.weight)
        and _fits(module.weight, module.stride, module.padding, module.dilation, module.groups)
    )


class WinogradConv2d(nn.Conv2d):
    """A convolution of 3 x 3 with padding 1 whose weights do not change any more.

    The output and the gradient of the input are those of ``conv``, up to rounding; the weights get
    no gradient. Batches that gain nothing, other precisions and autocast run ``conv``'s own kernel;
    the first that gains pays for the weights' transform, four times their memory. From 512 channels
    on a later one changes the order of what was transformed, for the output and, in the next
    backward pass, with four times the memory again, for the gradient.

    Args:
        conv: A convolution that :func:`suits`; its parameters are shared.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(
            conv.in_channels, conv.out_channels, 3, padding=1, bias=False, device="meta"
        )
        self.weight, self.bias = conv.weight, conv.bias
        self._points: FixedPoints | None = None

    def forward(self, input: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.detach()
        if not _gains(input, self.weight, _FEWEST_FIXED_TILES):
            own: Tensor = self._conv_forward(input, self.weight.detach(), bias)
            return own
        if self._points is None:
            self._points = FixedPoints(self.weight.detach())
        output: Tensor = _FixedConvolution.apply(input, self._points, bias, False)
        return output

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._points = None
        return cast("Self", super()._apply(fn, recurse))  # type: ignore[no-untyped-call]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_points": None}  # made again where the copy is used


class Winograd(TorchFunctionMode):
    """Within this context 3 x 3 convolutions run by Winograd's scheme wherever that is faster.

    That is on a CPU with one or two threads, in float32 or float64, with stride and padding 1 and
    96 channels or more on both sides. Outputs, gradients and layouts are those of PyTorch's kernel,
    up to rounding, as long as all numbers are finite: an infinite input makes NaN of the 16 outputs
    of each tile that it reaches. Forward-mode derivatives take PyTorch's kernel. No module is
    changed. A forward pass within it is enough for its backward pass.

    Example:
        >>> conv, x = torch.nn.Conv2d(128, 128, 3, padding=1), torch.rand(8, 128, 8, 8)
        >>> with Winograd():
        ...     y = conv(x)
        >>> torch.allclose(y, conv(x), atol=1e-4)
        True
    """

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.conv2d:
            return _conv2d(*args, **kwargs)
        return func(*args, **kwargs)


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    if (
        type(input) is Tensor
        and _fits(weight, stride, padding, dilation, groups)
        and _gains(input, weight, _FEWEST_TILES)
        and torch._C._functorch.peek_interpreter_stack() is None  # torch.func has its own rules
    ):
        output: Tensor = _Convolution.apply(input, weight, bias)
        return output
    return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)


def _fits(weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int) -> bool:
    return (
        groups == 1
        and weight.dim() == 4
        and weight.shape[2:] == (3, 3)
        and min(weight.shape[:2]) >= _FEWEST_CHANNELS
        and _are_ones(stride)
        and _are_ones(dilation)
        and (padding == "same" or _are_ones(padding))
    )


def _computes(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.float64)


def _are_ones(value: Any) -> bool:
    return value == 1 or (isinstance(value, tuple | list) and tuple(value) in ((1,), (1, 1)))


def _gains(input: Tensor, weight: Tensor, fewest_tiles: int) -> bool:
    """Whether the products save more than the transforms take at this size, and all else fits."""
    least = _LEAST_SAVED.get(torch.get_num_threads())
    if least is None or input.dim() != 4 or forward_ad._current_level >= 0:
        return False
    n, channels, height, width = input.shape
    tiles = _tiles(height, width)
    saved = 9 * height * width - PATCH**2 * tiles
    return (
        _computes(weight)
        and n * tiles >= fewest_tiles
        and min(weight.shape[:2]) * saved >= least * tiles
        and channels == weight.shape[1]
        and input.dtype == weight.dtype
        and input.device == weight.device
        and not torch.is_autocast_enabled("cpu")
    )


def _tiles(height: int, width: int) -> int:
    return -(-height // TILE) * -(-width // TILE)


class _FixedConvolution(torch.autograd.Function):
    """The gradient of the input is the same convolution, backwards."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, points: FixedPoints, bias: Tensor | None, back: bool
    ) -> Tensor:
        ctx.points, ctx.back = points, back
        multiply = partial(points.tiles, back=back)
        return _convolved(x, multiply, points.channels(back), bias, _layout(x))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        back = _FixedConvolution.apply(grad, ctx.points, None, not ctx.back)
        return back, None, None, None


class _Convolution(torch.autograd.Function):
    """With the gradient of the weights; derivatives of the second order are PyTorch's own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.bias = None if bias is None else list(bias.shape)
        points = Points(transformed(weight))
        return _convolved(x, points.tiles, points.channels, bias, _layout(x, weight))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        if torch.is_grad_enabled():
            one, none = [1, 1], [0, 0]
            found: tuple[Tensor | None, Tensor | None, Tensor | None]
            found = torch.ops.aten.convolution_backward(
                grad, x, weight, ctx.bias, one, one, one, False, none, 1, list(wanted)
            )
            return found
        dx = dw = db = None
        if wanted[0]:
            points = Points(transformed(weight)).turned()
            dx = _convolved(grad, points.tiles, points.channels, None, _layout(x, weight))
        if wanted[1]:
            dw = _weight_gradient(x, grad, weight)
        if wanted[2]:
            db = grad.sum((0, 2, 3))
        return dx, dw, db


def _layout(*tensors: Tensor) -> torch.memory_format:
    """Channels last if one of the tensors is, as PyTorch's convolution has it."""
    for tensor in tensors:
        if not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last):
            return torch.channels_last
    return torch.contiguous_format


def _convolved(
    x: Tensor,
    multiply: Callable[[Tensor], Tensor],
    channels: int,
    bias: Tensor | None,
    layout: torch.memory_format,
) -> Tensor:
    """The convolution ``(N, O, H, W)`` of ``(N, I, H, W)``; ``multiply`` makes tiles of patches."""
    n, _, h, w = x.shape
    columns = -(-w // TILE)
    output = torch.empty((n, channels, h, w), dtype=x.dtype, memory_format=layout)
    for part in parts(n, -(-h // TILE), columns, _CHUNK_TILES * torch.get_num_threads()):
        tiles = multiply(patches_of(x, part, columns))
        if bias is not None:
            tiles.add_(bias)
        place(tiles, output, part)
    return output


def _weight_gradient(x: Tensor, grad: Tensor, weight: Tensor) -> Tensor:
    """The gradient of the weights ``(O, I, 3, 3)``, of the layout of ``weight``."""
    n, _, h, w = x.shape
    rows, columns = -(-h // TILE), -(-w // TILE)
    into, out_of = FORWARD.into.to(x), FORWARD.out_of.to(x).t()
    o, i = weight.shape[:2]
    sums = [x.new_zeros(PATCH, o, i) for _ in range(PATCH)]
    for part in parts(n, rows, columns, _CHUNK_TILES * torch.get_num_threads()):
        spectra = spectra_of(patches_of(x, part, columns), into)
        tiles = tiles_of(grad, part, columns)
        spread = (out_of @ tiles).view(PATCH**2, -1, o)
        for total, s, g in zip(sums, spectra.chunk(PATCH), spread.chunk(PATCH), strict=True):
            total.baddbmm_(g.transpose(1, 2), s)
    flat = x.new_zeros(9, o * i)
    for total, back in zip(sums, WEIGHT.to(x).chunk(PATCH), strict=True):
        flat.addmm_(back.t(), total.view(PATCH, -1))
    return torch.empty_like(weight).copy_(flat.view(3, 3, o, i).permute(2, 3, 0, 1))
