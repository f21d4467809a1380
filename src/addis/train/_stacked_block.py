"""Convolution, batch normalisation, ReLU and max-pooling of E copies in one pass over their maps.

PyTorch runs the four one after another over the maps of all copies, which leave the cache in
between, and its grouped convolution fills a vector with channels, of which a small net has few.
Here (``_stacked_block.c``) a vector holds images, and one copy goes through all four before the
next. Maps are ``(N, E C, H, W)`` as elsewhere, with the images next to each other in memory.
"""

from __future__ import annotations

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from addis.train._native import compiled

__all__ = ["BlockSpec", "Moments", "apply_block", "has_kernels"]

Pair = tuple[int, int]

_NUMBERS = {torch.float32: "float", torch.float64: "double"}


class BlockSpec(NamedTuple):
    """What a block does.

    Args:
        stride: Of the convolution, if there is one; so are the next two.
        padding: Zeros on each side.
        dilation: Distance of the taps.
        window: Of the max-pooling, and its stride; ``None`` takes the whole map.
        rectifies: Whether a ReLU ends it.
        eps: Of the batch normalisation, ``None`` without one.
    """

    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    window: Pair | None = (1, 1)
    rectifies: bool = False
    eps: float | None = None

    @property
    def finishes(self) -> bool:
        """Whether anything follows the convolution."""
        return self.eps is not None or self.rectifies or self.window != (1, 1)


class Moments(NamedTuple):
    """Mean and biased variance of each channel, ``(E O,)``, over its ``numbers`` numbers."""

    mean: Tensor
    variance: Tensor
    numbers: int


class _Block(ctypes.Structure):
    """``Block`` of the C file."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("inputs", "outputs", "images", "height", "width")),
        *((name, ctypes.c_int64 * 2) for name in ("kernel", "stride", "padding", "dilation")),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("window", ctypes.c_int64 * 2),
        ("convolves", ctypes.c_int64),
        ("normalises", ctypes.c_int64),
        ("rectifies", ctypes.c_int64),
        ("batch_statistics", ctypes.c_int64),
        ("shared_input", ctypes.c_int64),
        ("eps", ctypes.c_double),
    )  # fmt: skip


def has_kernels(dtype: torch.dtype) -> bool:
    """Whether blocks of this precision can run here: it takes a C compiler."""
    return dtype in _NUMBERS and _library(dtype) is not None


def apply_block(
    spec: BlockSpec,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    statistics: tuple[Tensor, Tensor] | None,
    *,
    copies: int,
    shared: bool,
) -> tuple[Tensor, Moments]:
    """Runs a block.

    Args:
        spec: What it does.
        x: Maps ``(N, E C, H, W)``, or ``(N, C, H, W)`` if all copies share them.
        weight: Filters of all copies ``(E O, C, kh, kw)``; ``None`` without a convolution.
        bias: ``(E O,)``.
        gamma: Factors of the normalisation, ``(E O,)``.
        beta: Its shifts, ``(E O,)``.
        statistics: Mean and variance to normalise by, ``(E O,)`` each; ``None`` takes the batch's.
        copies: E; for a convolution in groups, E times the groups.
        shared: Whether the copies share ``x``, which then gets no gradient.

    Returns:
        Maps ``(N, E O, H', W')``, and what they were normalised by.

    Raises:
        ValueError: Maps are smaller than the filters or windows, hold one number to normalise, or
            have other channels than the tensors.
        TypeError: The tensors are not all of one precision, on the CPU.
    """
    for tensor in (weight, bias, gamma, beta, *(statistics or ())):
        if tensor is not None and (tensor.dtype, tensor.device) != (x.dtype, x.device):
            raise TypeError(
                f"the input is {x.dtype} on {x.device}, the model {tensor.dtype} on {tensor.device}"
            )
    given = [None if t is None else t.contiguous() for t in (weight, bias, gamma, beta)]
    block = _geometry(spec, x, weight, copies, shared, statistics is None)
    channels = copies * block.outputs
    for tensor in (*given[1:], *(statistics or ())):
        if tensor is not None and tensor.shape != (channels,):
            raise ValueError(f"a layer has {len(tensor)} channels where its maps have {channels}")
    call = _Call(block, copies, spec.finishes, statistics, torch.is_grad_enabled())
    y, mean, variance = _BlockFunction.apply(x, *given, call)
    return y, Moments(mean, variance, block.images * block.rows * block.columns)


class _Call(NamedTuple):
    block: _Block
    copies: int
    finishes: bool
    statistics: tuple[Tensor, Tensor] | None
    keeps: bool


class _BlockFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        gamma: Tensor | None,
        beta: Tensor | None,
        call: _Call,
    ) -> tuple[Tensor, Tensor, Tensor]:
        x, block = _images_last(x), call.block
        channels = call.copies * block.outputs
        if call.statistics is None:
            mean, variance = x.new_empty(2, channels)
        else:
            mean, variance = (t.detach().contiguous() for t in call.statistics)
        rows, columns = block.rows // block.window[0], block.columns // block.window[1]
        y = _maps(x, len(x), channels, rows, columns)
        apart = call.keeps and weight is not None and call.finishes
        z = _maps(x, len(x), channels, block.rows, block.columns) if apart else None
        _run(
            _library(x.dtype).block_forward, call.copies, block,
            x, weight, bias, gamma, beta, mean, variance, z, y,
        )  # fmt: skip
        z = x if weight is None else z
        ctx.save_for_backward(x, z, weight, bias, gamma, beta, mean, variance)
        ctx.block, ctx.copies = block, call.copies
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, z, weight, bias, gamma, beta, mean, variance = ctx.saved_tensors
        grads = [
            None if t is None or not wanted else torch.empty_like(t)
            for t, wanted in zip((x, weight, bias, gamma, beta), ctx.needs_input_grad, strict=False)
        ]
        _run(
            _library(x.dtype).block_backward, ctx.copies, ctx.block,
            x, z, weight, gamma, beta, mean, variance, _images_last(gradient), *grads,
        )  # fmt: skip
        return *grads, None


def _geometry(
    spec: BlockSpec, x: Tensor, weight: Tensor | None, copies: int, shared: bool, batch: bool
) -> _Block:
    sizes = (x.shape[2], x.shape[3])
    parts = 1 if shared else copies
    inputs = x.shape[1] // parts
    outputs, kernel = inputs, (1, 1)
    if weight is not None:
        outputs, kernel = weight.shape[0] // copies, (weight.shape[2], weight.shape[3])
        if weight.shape[1] * parts != x.shape[1]:
            raise ValueError(
                f"the filters take {weight.shape[1] * parts} channels, the maps have {x.shape[1]}"
            )
    after = [
        (size + 2 * padding - dilation * (taps - 1) - 1) // stride + 1
        for size, padding, dilation, taps, stride in zip(
            sizes, spec.padding, spec.dilation, kernel, spec.stride, strict=True
        )
    ]
    window = spec.window or (after[0], after[1])
    if min(after) < 1 or after[0] < window[0] or after[1] < window[1]:
        raise ValueError(
            f"maps of {sizes[0]} x {sizes[1]} are smaller than the filters or windows over them"
        )
    batch = batch and spec.eps is not None
    if batch and len(x) * after[0] * after[1] == 1:
        raise ValueError("batch normalisation needs more than 1 value a channel when training")
    pairs = [(ctypes.c_int64 * 2)(*p) for p in (kernel, spec.stride, spec.padding, spec.dilation)]
    return _Block(
        inputs, outputs, len(x), *sizes, *pairs, *after, (ctypes.c_int64 * 2)(*window),
        weight is not None, spec.eps is not None, spec.rectifies, batch, shared, spec.eps or 0,
    )  # fmt: skip


def _images_last(x: Tensor) -> Tensor:
    """``x`` with the images next to each other in memory."""
    return x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)


def _maps(like: Tensor, n: int, channels: int, rows: int, columns: int) -> Tensor:
    strides = (1, rows * columns * n, columns * n, n)
    return torch.empty_strided((n, channels, rows, columns), strides, dtype=like.dtype)


def _run(function: Any, copies: int, block: _Block, *tensors: Tensor | None) -> None:
    """Calls ``function`` for all copies, in as many threads as PyTorch may use."""
    pointers = [None if t is None else t.data_ptr() for t in tensors]

    def part(start: int, end: int) -> int:
        failed: int = function(ctypes.byref(block), *pointers, start, end)
        return failed

    threads = min(torch.get_num_threads(), copies)
    ends = [copies * i // threads for i in range(threads + 1)]
    parts = map if threads == 1 else _pool(os.getpid(), threads).map
    if any(list(parts(part, ends[:-1], ends[1:]))):
        raise MemoryError("no memory is left for the tiles of a block")


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads of this process: a fork has none of its parent's."""
    return ThreadPoolExecutor(threads, thread_name_prefix="addis-block")


@cache
def _library(dtype: torch.dtype) -> Any:
    library = compiled(
        Path(__file__).with_name("_stacked_block.c"), [f"-DNUMBER={_NUMBERS[dtype]}"]
    )
    if library is not None:
        for function, tensors in ((library.block_forward, 9), (library.block_backward, 13)):
            function.argtypes = [ctypes.c_void_p] * (1 + tensors) + [ctypes.c_int64] * 2
            function.restype = ctypes.c_int
    return library
