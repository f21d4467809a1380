"""In which order and where the blocks work: in turn, on CUDA streams, or on several devices.

In every schedule block ``i`` reads the features that block ``i - 1`` computed of the same batch
before its own update, so all three give the same updates. What blocks draw at random on CPUs, such
as masks of Dropout, is the exception of ``devices``: they draw from states of their own, seeded
once from torch's default generator.
"""

from __future__ import annotations

import atexit
import contextlib
import queue
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from itertools import groupby, takewhile
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
        if not detach:  # one backward, so one loss scale, which changes once a step
            for block in blocks:
                block.scaler, block.rescales = blocks[0].scaler, block is blocks[-1]

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
        try:
            self._blocks[0].backward(torch.stack(losses).sum())
            for block in self._blocks:
                block.update()
        except BaseException:
            for block in self._blocks:
                block.forget()
            raise
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

    Blocks on CPUs that draw random numbers do so from states of their own, one block at a time, and
    nothing else should draw from torch's default generator while batches are under way. Which draw
    shows on the first batch, for which ``step`` waits.

    Args:
        model: The model; its blocks are moved to their devices.
        blocks: All blocks.
        devices: One a run of blocks of nearly equal length; a device may come twice.
    """

    def __init__(
        self, model: nn.Module, blocks: Sequence[Block], devices: Sequence[torch.device]
    ) -> None:
        self._pending: list[Future[list[BlockResult]]] = []
        share = [i * len(devices) // len(blocks) for i in range(len(blocks))]
        runs = [
            (devices[i], [block for _, block in group], int(torch.randint(2**62, ())))
            for i, group in groupby(zip(share, blocks, strict=True), key=lambda pair: pair[0])
        ]
        self._workers: list[_Worker] = []
        for device, run, seed in reversed(runs):
            following = self._workers[0] if self._workers else None
            self._workers.insert(0, _Worker(model, run, device, following, seed))
        for worker in self._workers:
            worker.start()
        weakref.finalize(self, self._workers[0].jobs.put, None)

    def step(self, values: Values, y: Tensor) -> Future[list[BlockResult]]:
        """Hands a batch to the first device; waits only while that still has one before it."""
        self._collect()
        job = _Job(values, y, [], Future())
        self._pending.append(job.done)
        self._workers[0].take(job)
        if any(worker.undecided for worker in self._workers):
            wait([job.done])
        return job.done

    def synchronize(self) -> None:
        """Waits until every batch has passed the last block or failed.

        Raises:
            Exception: Whatever a block raised, of the first batch that failed.
        """
        wait(self._pending)
        self._collect()

    def _collect(self) -> None:
        """Forgets the batches that have ended; raises the first error."""
        ended = list(takewhile(Future.done, self._pending))
        del self._pending[: len(ended)]
        for done in ended:
            done.result()


class _Worker(threading.Thread):
    """Learns from one batch after another and hands each on; ends at ``None``, handed on too.

    Args:
        model: The model.
        blocks: The worker's.
        device: Theirs.
        following: The next worker.
        seed: Of the blocks' random states.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Sequence[Block],
        device: torch.device,
        following: _Worker | None,
        seed: int,
    ) -> None:
        super().__init__(target=self._serve, daemon=True)
        self.jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()  # garbage collection puts
        self.following = following
        self._room = threading.Semaphore()
        self._model, self._blocks, self._device = model, blocks, device
        self._states = {
            block: torch.Generator().manual_seed(seed + i).get_state()
            for i, block in enumerate(blocks)
        }
        self._draws: dict[tuple[Block, str], bool] = {}

    @property
    def undecided(self) -> bool:
        """Whether it is still open which blocks draw random numbers."""
        return self._device.type == "cpu" and len(self._draws) < 2 * len(self._blocks)

    def take(self, job: _Job) -> None:
        """Queues a batch, once the one before it has been begun."""
        self._room.acquire()
        self.jobs.put(job)

    def _serve(self) -> None:
        while (job := self.jobs.get()) is not None:
            self._room.release()
            self._work(job)
            del job
        if self.following is not None:
            self.following.jobs.put(None)

    def _work(self, job: _Job) -> None:
        try:
            values = {k: _moved(v, self._device) for k, v in job.values.items()}
            y = _moved(job.y, self._device)
            for block in self._blocks:
                with self._random_state(block, "forward"):
                    h, x = block.forward(self._model, values)
                with self._random_state(block, "learn"):
                    job.results.append(block.learn(h, x, y))
            if self.following is None:
                job.done.set_result(job.results)
            else:
                self.following.take(_Job(values, y, job.results, job.done))
        except BaseException as error:
            job.done.set_exception(error)

    @contextlib.contextmanager
    def _random_state(self, block: Block, part: str) -> Iterator[None]:
        """The block's own random state, on a CPU whose one generator other workers share.

        A part that drew nothing on its first batch goes without, and without the lock.
        """
        if not self._draws.get((block, part), self._device.type == "cpu"):
            yield
            return
        with _CPU_RANDOM:
            outside, before = torch.get_rng_state(), self._states[block]
            torch.set_rng_state(before)
            try:
                yield
            finally:
                self._states[block] = torch.get_rng_state()
                torch.set_rng_state(outside)
        self._draws.setdefault((block, part), not torch.equal(before, self._states[block]))


@atexit.register
def _end_workers() -> None:
    """Lets the batches under way end: the interpreter aborts if a thread computes when it goes."""
    workers = [thread for thread in threading.enumerate() if isinstance(thread, _Worker)]
    for first in set(workers) - {worker.following for worker in workers}:
        first.jobs.put(None)
    for worker in workers:
        worker.join()


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
