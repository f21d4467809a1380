"""In which order and where the blocks work: in turn, on CUDA streams, or on several devices.

In every schedule block ``i`` reads the features that block ``i - 1`` computed of the same batch
before its own update, so all three give the same updates. Masks of Dropout are the exception of
``devices``: its workers draw from random states of their own, seeded once from torch's default
generator.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from addis.train.local._block import Block, BlockResult, Values

__all__ = ["Devices", "Schedule", "Sequential", "Streams"]

Schedule = Literal["sequential", "streams", "devices"]
_CPU_RANDOM: Final = threading.Lock()  # workers on the CPU share torch's one generator


class Sequential:
    """Block after block; with ``detach=False`` one backward of the summed losses serves all."""

    def __init__(self, model: nn.Module, blocks: Sequence[Block], *, detach: bool = True) -> None:
        self._model, self._blocks, self._detach = model, blocks, detach

    def step(self, values: Values, y: Tensor) -> list[BlockResult]:
        """One batch through all blocks."""
        results: list[BlockResult] = []
        if self._detach:
            for block in self._blocks:
                result = block.learn(*block.forward(self._model, values), y)
                results.append(result)
            return results
        losses = []
        for block in self._blocks:
            loss, result = block.loss(*block.forward(self._model, values, detach=False), y)
            losses.append(loss)
            results.append(result)
        self._blocks[0].backward(torch.stack(losses).sum())
        for block in self._blocks:
            block.update()
        return results

    def synchronize(self) -> None:
        """Nothing is ever under way."""


class Streams:
    """Blocks on CUDA streams in turn: a backward overlaps with the next block's forward.

    A block's operations keep to its stream, so its weights are ready when the next batch comes. The
    backward of a block is issued after the forward of the next: the device then has both to choose
    from, and at most two blocks keep activations.

    Raises:
        RuntimeError: The blocks are not on one CUDA device.
    """

    def __init__(self, model: nn.Module, blocks: Sequence[Block], *, streams: int = 2) -> None:
        devices = {p.device for block in blocks for p in block.parameters}
        if not torch.cuda.is_available() or len(devices) != 1 or next(iter(devices)).type != "cuda":
            raise RuntimeError(
                "schedule='streams' needs all blocks on one CUDA device, got "
                f"{', '.join(sorted(map(str, devices)))}"
            )
        self._model, self._blocks = model, blocks
        device = next(iter(devices))
        self._streams = [torch.cuda.Stream(device=device) for _ in range(streams)]  # type: ignore[no-untyped-call]

    def step(self, values: Values, y: Tensor) -> list[BlockResult]:
        """One batch through all blocks."""
        home = torch.cuda.current_stream(y.device)
        ready: torch.cuda.Event = home.record_event()
        waiting: Callable[[], BlockResult] | None = None
        results: list[BlockResult] = []
        for i, block in enumerate(self._blocks):
            stream = self._streams[i % len(self._streams)]
            with torch.cuda.stream(stream):
                stream.wait_event(ready)
                for value in (y, *values.values()):
                    if isinstance(value, Tensor):
                        value.record_stream(stream)
                h, x = block.forward(self._model, values)
                ready = stream.record_event()
            if waiting is not None:
                results.append(waiting())
            waiting = _on(stream, block, h, x, y)
        if waiting is not None:
            results.append(waiting())
        for stream in self._streams:
            home.wait_stream(stream)
        return results

    def synchronize(self) -> None:
        """The current stream already waits for all others."""


def _on(
    stream: torch.cuda.Stream, block: Block, h: Tensor, x: Tensor | None, y: Tensor
) -> Callable[[], BlockResult]:
    def learn() -> BlockResult:
        with torch.cuda.stream(stream):
            return block.learn(h, x, y)

    return learn


@dataclass(frozen=True)
class _Job:
    values: Values
    y: Tensor
    results: list[BlockResult]
    done: Future[list[BlockResult]]


class Devices:
    """Runs of consecutive blocks on several devices, each with a worker and a queue of one batch.

    ``step`` returns at once: while the second device works on a batch the first takes the next.
    Each worker does its batches in order, so the updates are those of `Sequential`, bit for bit.
    With Dropout on CPUs nothing else should draw from torch's default generator while batches are
    under way.

    Args:
        model: The model; its blocks are moved to their devices.
        blocks: All blocks.
        devices: One a run of blocks of nearly equal length; a device may come twice.
    """

    def __init__(
        self, model: nn.Module, blocks: Sequence[Block], devices: Sequence[torch.device]
    ) -> None:
        self._model = model
        self._queues: list[queue.Queue[_Job | None]] = [queue.Queue(1) for _ in devices]
        self._pending: list[Future[list[BlockResult]]] = []
        share = [i * len(devices) // len(blocks) for i in range(len(blocks))]
        for i, group in groupby(zip(share, blocks, strict=True), key=lambda pair: pair[0]):
            run = [block for _, block in group]
            seed = int(torch.randint(2**62, ()))
            following = self._queues[i + 1] if i + 1 < len(devices) else None
            arguments = (model, run, devices[i], self._queues[i], following, seed)
            threading.Thread(target=_work, args=arguments, daemon=True).start()

    def step(self, values: Values, y: Tensor) -> Future[list[BlockResult]]:
        """Hands a batch to the first device; waits only while that still has one before it."""
        self._collect(wait=False)
        job = _Job(values, y, [], Future())
        self._pending.append(job.done)
        self._queues[0].put(job)
        return job.done

    def synchronize(self) -> None:
        """Waits until every batch has passed the last block.

        Raises:
            Exception: Whatever a block raised.
        """
        self._collect(wait=True)

    def close(self) -> None:
        """Ends the workers."""
        self._queues[0].put(None)

    def _collect(self, *, wait: bool) -> None:
        while self._pending and (wait or self._pending[0].done()):
            self._pending.pop(0).result()


def _work(
    model: nn.Module,
    blocks: Sequence[Block],
    device: torch.device,
    jobs: queue.Queue[_Job | None],
    following: queue.Queue[_Job | None] | None,
    seed: int,
) -> None:
    states = {
        block: torch.Generator().manual_seed(seed + i).get_state() for i, block in enumerate(blocks)
    }
    drawing = device.type == "cpu" and any(
        isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0 for m in model.modules()
    )
    while (job := jobs.get()) is not None:
        try:
            values = {k: _moved(v, device) for k, v in job.values.items()}
            y = _moved(job.y, device)
            for block in blocks:
                with _random_state(block, states) if drawing else contextlib.nullcontext():
                    h, x = block.forward(model, values)
                job.results.append(block.learn(h, x, y))
            if following is None:
                job.done.set_result(job.results)
            else:
                following.put(_Job(values, y, job.results, job.done))
        except BaseException as error:
            job.done.set_exception(error)
    if following is not None:
        following.put(None)


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value


@contextlib.contextmanager
def _random_state(block: Block, states: dict[Block, Tensor]) -> Iterator[None]:
    """The block's own random state, on a CPU whose one generator other workers share."""
    with _CPU_RANDOM:
        outside = torch.get_rng_state()
        torch.set_rng_state(states[block])
        try:
            yield
        finally:
            states[block] = torch.get_rng_state()
            torch.set_rng_state(outside)
