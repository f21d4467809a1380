"""How many bytes each way of training keeps for its backward pass.

Every tensor that autograd saves passes a hook. A storage counts once, with all its bytes, as long
as some saved tensor needs it; parameters and buffers do not count, for all ways have them.
Workspaces of the kernels are not seen.
"""

from __future__ import annotations

import contextlib
import math
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from addis.train.local._block import Block, Values, run_stage

__all__ = ["KeptBytes", "MemoryReport", "measure_memory"]


@dataclass(frozen=True, slots=True)
class MemoryReport:
    """Peaks of the bytes kept for backward on one batch.

    Attributes:
        backprop_bytes: By back-propagation through the user's model.
        checkpoint_bytes: By back-propagation that recomputes segments of blocks; the better of one
            block a segment and about ``√B`` segments.
        local_bytes: By local training (with ``detach=False``: by deep supervision).
        blocks: ``(name, bytes)``: what each block keeps when its loss is known; the largest is
            ``local_bytes``.
        cuda_bytes: Peaks of allocated memory over what was there before, in the same order as the
            three; ``None`` off CUDA.
        batch: Samples ``n``.
    """

    backprop_bytes: int
    checkpoint_bytes: int
    local_bytes: int
    blocks: tuple[tuple[str, int], ...]
    cuda_bytes: tuple[int, int, int] | None
    batch: int

    @property
    def ratio(self) -> float:
        """``local_bytes / backprop_bytes``."""
        return self.local_bytes / self.backprop_bytes

    def __str__(self) -> str:
        rows = (
            ("back-propagation", self.backprop_bytes),
            ("checkpointing", self.checkpoint_bytes),
            ("local", self.local_bytes),
            *((f"  {name}", size) for name, size in self.blocks),
        )
        lines = [f"kept for backward, batch of {self.batch}"]
        for name, size in rows:
            lines.append(f"{name:<28}{size / 2**20:10.2f} MiB {size / self.backprop_bytes:7.3f}")
        return "\n".join(lines)


class KeptBytes:
    """A context that counts the bytes of tensors saved for backward; ``peak`` is the most at once.

    Example:
        >>> w = torch.ones(3, requires_grad=True)
        >>> with KeptBytes() as kept:
        ...     loss = (w * torch.ones(3)).square().sum()
        >>> kept.peak
        24

    Args:
        without: Tensors whose storages do not count.
    """

    def __init__(self, without: Iterable[Tensor] = ()) -> None:
        self.live = self.peak = 0
        self._ignored = {t.untyped_storage().data_ptr() for t in without}
        self._count: Counter[int] = Counter()
        self._hooks = saved_tensors_hooks(self._pack, self._unpack)

    def __enter__(self) -> KeptBytes:
        self._hooks.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.__exit__()

    def _pack(self, tensor: Tensor) -> _Saved:
        storage = tensor.untyped_storage()
        saved, key, size = _Saved(tensor.detach()), storage.data_ptr(), storage.nbytes()
        if key in self._ignored or size == 0:
            return saved
        if not self._count[key]:
            self.live += size
            self.peak = max(self.peak, self.live)
        self._count[key] += 1
        weakref.finalize(saved, self._let_go, key, size)
        return saved

    def _unpack(self, saved: _Saved) -> Tensor:
        return saved.tensor

    def _let_go(self, key: int, size: int) -> None:
        self._count[key] -= 1
        if not self._count[key]:
            self.live -= size


class _Saved:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def measure_memory(
    model: nn.Module,
    blocks: Sequence[Block],
    loss: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    *,
    detach: bool = True,
) -> MemoryReport:
    """Runs the three ways of training on one batch, without updates; see `MemoryReport`.

    All three compute in the types of the blocks' mixed precision. Gradients, buffers and the random
    state are as before afterwards.

    Raises:
        RuntimeError: The blocks are on several devices.
    """
    if len({p.device for block in blocks for p in block.parameters}) > 1:
        raise RuntimeError("memory_report needs all blocks on one device")
    source = blocks[0].piece.body.inputs[0]
    kept: list[tuple[str, int]] = []

    def local(meter: KeptBytes) -> None:
        values, total = {source: x.detach()}, []
        for block in blocks:
            before = meter.live
            h, entering = block.forward(model, values, detach=detach)
            total.append(block.loss(h, entering, y)[0])
            kept.append((block.piece.name, meter.live - before))
            del h, entering
            if detach:
                torch.autograd.backward(total.pop())
        if total:
            torch.autograd.backward(torch.stack(total).sum())

    def backprop(output: Callable[[], Tensor], meter: KeptBytes) -> None:
        with _autocast(blocks, x):
            total = loss(output(), y)
        torch.autograd.backward(total)

    def recomputed(segments: int) -> Callable[[KeptBytes], None]:
        return partial(backprop, partial(_checkpointed, model, blocks, x, segments))

    root = round(math.sqrt(len(blocks)))
    peaks = [
        _peak(work, model, blocks, x)
        for work in (
            partial(backprop, partial(model, x)),
            recomputed(root),
            recomputed(len(blocks)),
            local,
        )
    ]
    (bp, bp_cuda), *recomputing, (own, own_cuda) = peaks
    least, least_cuda = min(recomputing)
    cuda = (bp_cuda, least_cuda, own_cuda) if x.is_cuda else None
    return MemoryReport(bp, least, own, tuple(kept), cuda, len(x))


def _autocast(blocks: Sequence[Block], x: Tensor) -> contextlib.AbstractContextManager[object]:
    dtype = blocks[0].rules.autocast
    return contextlib.nullcontext() if dtype is None else torch.autocast(x.device.type, dtype)


def _checkpointed(model: nn.Module, blocks: Sequence[Block], x: Tensor, segments: int) -> Tensor:
    """The model's output, recomputed in backward a segment of blocks at a time."""
    values: Values = {blocks[0].piece.body.inputs[0]: x.detach()}
    anchor = torch.empty(0, device=x.device, requires_grad=True)  # for integers x need one
    bounds = [i * len(blocks) // segments for i in range(segments + 1)]
    for low, high in pairwise(bounds):
        names = list(values)
        leaving: list[str] = []

        def run(_: Tensor, *inputs: Any, part: Sequence[Block] = blocks[low:high],
                names: list[str] = names, leaving: list[str] = leaving,
        ) -> tuple[Any, ...]:  # fmt: skip
            inner = dict(zip(names, inputs, strict=True))
            for block in part:
                run_stage(block.piece.glue, model, inner)
                run_stage(block.piece.body, model, inner)
            leaving[:] = list(inner)
            return tuple(inner.values())

        found = checkpoint(run, anchor, *values.values(), use_reentrant=True)
        values = dict(zip(leaving, found, strict=True))
    output: Tensor = values[blocks[-1].piece.features]
    return output


def _peak(
    work: Callable[[KeptBytes], None], model: nn.Module, blocks: Sequence[Block], x: Tensor
) -> tuple[int, int]:
    """Peaks of kept bytes and of allocated CUDA memory."""
    parameters = [p for block in blocks for p in block.parameters]
    with _restored(model, [*model.parameters(), *parameters], x):
        if x.is_cuda:
            torch.cuda.reset_peak_memory_stats(x.device)
        before = torch.cuda.memory_allocated(x.device) if x.is_cuda else 0
        with KeptBytes([*model.parameters(), *model.buffers(), *parameters]) as meter:
            work(meter)
        after = torch.cuda.max_memory_allocated(x.device) if x.is_cuda else 0
    return meter.peak, after - before


@contextmanager
def _restored(model: nn.Module, parameters: Sequence[Tensor], x: Tensor) -> Iterator[None]:
    gradients = [(p, p.grad) for p in parameters]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        with torch.random.fork_rng([x.device] if x.is_cuda else []):
            for p in parameters:
                p.grad = None
            yield
    finally:
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        for p, gradient in gradients:
            p.grad = gradient
