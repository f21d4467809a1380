"""Convolutions of 3 x 3 in a quarter of the multiplications, on a CPU.

Paper: A. Lavin, S. Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016,
arXiv:1509.09308. A tile of 4 x 4 outputs is A[(G w G') * (B d B')]A' for a patch ``d`` of 6 x 6
inputs: 36 products in place of 144. Over tiles, channels and images these are 36 matrix products.
Products of polynomials are found from their values at 0, +-3/4, +-3/2 and infinity, where float32
rounds half as much as at 0, +-1, +-2 and infinity, the paper's.

PyTorch has no such kernel for a CPU. Rounding is about seven times that of its direct kernel. A
number that is not finite makes NaN of the whole tile of outputs that its patch reaches, in all
channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

__all__ = ["Winograd", "WinogradConv2d", "suits"]

_TILE, _PATCH = 4, 6
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


class _Scheme(NamedTuple):
    """How patches enter ``(36, 36)``, and how tiles leave ``(16, 36)``."""

    into: Tensor
    out_of: Tensor


def _toom_cook(points: Sequence[Fraction | None]) -> tuple[Tensor, Tensor, Tensor]:
    """``A (4, 6)``, ``B (6, 6)`` and ``G (6, 3)`` of six points, one of them ``None``: infinity.

    A row of ``G`` is the filter's polynomial at a point, over the product of the distances to the
    other finite points; one of ``B`` the polynomial of those others.
    """
    finite = [p for p in points if p is not None]
    a: list[list[Fraction]] = []
    b: list[list[Fraction]] = []
    g: list[list[Fraction]] = []
    for point in points:
        others = [p for p in finite if p != point]
        polynomial = [Fraction(1)]
        scale = Fraction(1)
        for p in others:
            shifted, same = [Fraction(0), *polynomial], [*polynomial, Fraction(0)]
            polynomial = [s - p * c for s, c in zip(shifted, same, strict=True)]
            scale *= 1 if point is None else point - p
        b.append((polynomial + [Fraction(0)] * _PATCH)[:_PATCH])
        g.append([_power(point, k, 2) / scale for k in range(3)])
        a.append([_power(point, k, _TILE - 1) for k in range(_TILE)])
    double = torch.float64
    return (
        torch.tensor([[float(v) for v in row] for row in a], dtype=double).t().contiguous(),
        torch.tensor([[float(v) for v in row] for row in b], dtype=double),
        torch.tensor([[float(v) for v in row] for row in g], dtype=double),
    )


def _power(point: Fraction | None, exponent: int, highest: int) -> Fraction:
    return Fraction(exponent == highest) if point is None else point**exponent


def _schemes() -> tuple[_Scheme, _Scheme, Tensor]:
    """Forwards, backwards, and how weights enter ``(36, 9)``, the same both ways.

    Backwards the filter is turned round. A turned polynomial at 1/p is that at p over p squared, so
    the same products of weights serve at the inverse points, up to a factor each.
    """
    quarter = Fraction(1, 4)
    points = [Fraction(0), 3 * quarter, -3 * quarter, 6 * quarter, -6 * quarter, None]
    a, b, g = _toom_cook(points)
    inverse = [None if p == 0 else Fraction(0) if p is None else 1 / p for p in points]
    a_back, b_back, g_back = _toom_cook(inverse)
    factor = g_back.sum(1) / g.sum(1)  # of the filter (1, 1, 1), which is its own reverse
    b_back *= factor[:, None]
    return (
        _Scheme(torch.kron(b, b), torch.kron(a, a)),
        _Scheme(torch.kron(b_back, b_back), torch.kron(a_back, a_back)),
        torch.kron(g, g),
    )


_FORWARD, _BACKWARD, _WEIGHT = _schemes()


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
    the first that gains pays for the weights' transform, four times their memory.

    Args:
        conv: A convolution that :func:`suits`; its parameters are shared.
    """

    transformed: Tensor | None

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(
            conv.in_channels, conv.out_channels, 3, padding=1, bias=False, device="meta"
        )
        self.weight, self.bias = conv.weight, conv.bias
        self.register_buffer("transformed", None, persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.detach()
        if not _gains(input, self.weight, _FEWEST_FIXED_TILES):
            own: Tensor = self._conv_forward(input, self.weight.detach(), bias)
            return own
        if self.transformed is None:
            with torch.inference_mode(False):  # or no later pass could go backwards
                flat = self.weight.detach().permute(2, 3, 1, 0).reshape(9, -1)
                products = _WEIGHT.to(flat) @ flat
            self.transformed = products.view(-1, self.in_channels, self.out_channels)
        output: Tensor = _FixedConvolution.apply(input, self.transformed, bias, False)
        return output


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
    saved = 9 * height * width - _PATCH**2 * tiles
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
    return -(-height // _TILE) * -(-width // _TILE)


class _FixedConvolution(torch.autograd.Function):
    """The gradient of the input is the same convolution, backwards."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, back: bool) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.back = back
        return _convolved(x, (weight,), bias, _BACKWARD if back else _FORWARD, _layout(x))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors
        back = _FixedConvolution.apply(grad, weight.transpose(1, 2), None, not ctx.back)
        return back, None, None, None


class _Convolution(torch.autograd.Function):
    """With the gradient of the weights; derivatives of the second order are PyTorch's own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.bias = None if bias is None else list(bias.shape)
        return _convolved(x, _transformed(weight), bias, _FORWARD, _layout(x, weight))

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
            products = [part.transpose(1, 2) for part in _transformed(weight)]
            dx = _convolved(grad, products, None, _BACKWARD, _layout(x, weight))
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


def _transformed(weight: Tensor) -> list[Tensor]:
    """Weights ``(O, I, 3, 3)`` at the points, six times ``(6, I, O)``."""
    flat = weight.permute(2, 3, 0, 1).reshape(9, -1)
    return [
        (rows @ flat).view(_PATCH, *weight.shape[:2]).transpose(1, 2)
        for rows in _WEIGHT.to(weight).chunk(_PATCH)
    ]


class _Part(NamedTuple):
    """Images and rows of tiles that are worked on at a time."""

    images: slice
    rows: slice


def _parts(n: int, rows: int, columns: int) -> Iterator[_Part]:
    tiles = _CHUNK_TILES * torch.get_num_threads()
    images = max(1, tiles // (rows * columns))
    band = rows if rows * columns <= 2 * tiles else max(1, tiles // columns)
    for image in range(0, n, images):
        for row in range(0, rows, band):
            yield _Part(slice(image, min(image + images, n)), slice(row, min(row + band, rows)))


def _convolved(
    x: Tensor,
    weight: Sequence[Tensor],
    bias: Tensor | None,
    scheme: _Scheme,
    layout: torch.memory_format,
) -> Tensor:
    """The convolution of ``(N, I, H, W)`` by weights at the points, ``(36, I, O)`` in parts."""
    n, _, h, w = x.shape
    columns, channels = -(-w // _TILE), weight[0].shape[2]
    into, out_of = scheme.into.to(x), scheme.out_of.to(x)
    output = torch.empty((n, channels, h, w), dtype=x.dtype, memory_format=layout)
    for part in _parts(n, -(-h // _TILE), columns):
        spectra = _spectra(x, part, into)
        products = spectra.new_empty(_PATCH**2, spectra.shape[1], channels)
        shares = (spectra.chunk(len(weight)), weight, products.chunk(len(weight)))
        for spectrum, factor, product in zip(*shares, strict=True):
            torch.bmm(spectrum, factor, out=product)
        tiles = out_of @ products.flatten(1)
        if bias is not None:
            tiles.view(_TILE**2, -1, channels).add_(bias)
        _place(tiles, output, part, columns)
    return output


def _place(tiles: Tensor, output: Tensor, part: _Part, columns: int) -> None:
    """Writes tiles ``(16, tiles * O)`` of a part into ``(N, O, H, W)``, cut at the borders."""
    h, w = output.shape[2:]
    rows = part.rows.stop - part.rows.start
    tiles = tiles.view(_TILE, _TILE, -1, rows, columns, output.shape[1])
    top = _TILE * part.rows.start
    target = output[part.images, :, top : top + _TILE * rows].permute(0, 2, 3, 1)
    if target.shape[1] == _TILE * rows and w == _TILE * columns:
        tiles = tiles.permute(2, 3, 0, 4, 1, 5)
        target.view(tiles.shape).copy_(tiles)
    else:
        whole = tiles.permute(2, 3, 0, 4, 1, 5).flatten(3, 4).flatten(1, 2)
        target.copy_(whole[:, : h - top, :w])


def _weight_gradient(x: Tensor, grad: Tensor, weight: Tensor) -> Tensor:
    """The gradient of the weights ``(O, I, 3, 3)``, of the layout of ``weight``."""
    n, _, h, w = x.shape
    rows, columns = -(-h // _TILE), -(-w // _TILE)
    into, out_of = _FORWARD.into.to(x), _FORWARD.out_of.to(x).t()
    o, i = weight.shape[:2]
    sums = [x.new_zeros(_PATCH, o, i) for _ in range(_PATCH)]
    for part in _parts(n, rows, columns):
        spectra = _spectra(x, part, into)
        tiles = _tiled(grad, part, columns)
        spread = (out_of @ tiles).view(_PATCH**2, -1, o)
        for total, s, g in zip(sums, spectra.chunk(_PATCH), spread.chunk(_PATCH), strict=True):
            total.baddbmm_(g.transpose(1, 2), s)
    flat = x.new_zeros(9, o * i)
    for total, back in zip(sums, _WEIGHT.to(x).chunk(_PATCH), strict=True):
        flat.addmm_(back.t(), total.view(_PATCH, -1))
    return torch.empty_like(weight).copy_(flat.view(3, 3, o, i).permute(2, 3, 0, 1))


def _spectra(x: Tensor, part: _Part, into: Tensor) -> Tensor:
    """Patches of a part at the points, ``(36, tiles, I)``."""
    columns = -(-x.shape[3] // _TILE)
    margin = _PATCH - _TILE
    padded = _cut(x, part, 1, _TILE * columns + margin, margin)
    n, channels = padded.shape[0], padded.shape[3]
    rows = part.rows.stop - part.rows.start
    image, row, column, channel = padded.stride()
    patches = padded.as_strided(
        (_PATCH, _PATCH, n, rows, columns, channels),
        (row, column, image, _TILE * row, _TILE * column, channel),
    )
    return (into @ patches.reshape(_PATCH**2, -1)).view(_PATCH**2, -1, channels)


def _tiled(grad: Tensor, part: _Part, columns: int) -> Tensor:
    """Tiles of a part, ``(16, tiles * O)``."""
    padded = _cut(grad, part, 0, _TILE * columns, 0)
    n, _, _, channels = padded.shape
    tiles = padded.view(n, -1, _TILE, columns, _TILE, channels)
    return tiles.permute(2, 4, 0, 1, 3, 5).reshape(_TILE**2, -1)


def _cut(x: Tensor, part: _Part, before: int, width: int, margin: int) -> Tensor:
    """A part of ``(N, C, H, W)``, channels last, with zeros where it lies outside."""
    h, w = x.shape[2:]
    top = _TILE * part.rows.start - before
    height = _TILE * (part.rows.stop - part.rows.start) + margin
    low, high = max(top, 0), min(top + height, h)
    inner = x[part.images, :, low:high].permute(0, 2, 3, 1)
    return F.pad(
        inner, (0, 0, before, width - w - before, low - top, top + height - high)
    ).contiguous()
