"""Two ways to run E copies of any model: a loop over the copies, and ``vmap`` over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.func import functional_call
from torch.utils import _pytree as pytree

from addis.train._stacked_state import Stack

__all__ = ["Forward", "Loop", "Loss", "Vmap", "per_copy"]

Loss = Callable[[Any, Tensor], Tensor]


class Forward(Protocol):
    """Runs the stack: outputs with the copies along axis 0, losses ``(E,)``, its random streams."""

    streams: list[torch.Generator]

    def outputs(self, x: Tensor, *, training: bool) -> Any:
        """Outputs ``(E, N, ...)`` for ``x (E, N, ...)``; updates the buffers if ``training``."""

    def losses(self, outputs: Any, y: Tensor, loss: Loss) -> Tensor:
        """Loss of each copy, ``(E,)``."""


class Loop:
    """One copy after another: the same kernels in the same order as E separate training loops."""

    def __init__(self, stack: Stack, seeds: Sequence[int], device: torch.device) -> None:
        self._stack, self._device = stack, device
        self.streams = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def outputs(self, x: Tensor, *, training: bool) -> Any:
        skeleton = self._stack.skeleton.train(training)
        rows = {n: t.unbind() for n, t in self._stack.tensors().items()}
        outputs = []
        for copy, (x_copy, stream) in enumerate(zip(x, self.streams, strict=True)):
            state = {n: row[copy] for n, row in rows.items()}
            with _global_stream(stream, self._device):
                outputs.append(functional_call(skeleton, state, (x_copy,)))
            _keep(self._stack, {n: state[n] for n in self._stack.buffers}, copy)
        return pytree.tree_map(lambda *row: torch.stack(row), *outputs)

    def losses(self, outputs: Any, y: Tensor, loss: Loss) -> Tensor:
        return torch.stack([loss(_copy(outputs, i), y_copy) for i, y_copy in enumerate(y)])


class Vmap:
    """All copies at once by ``torch.vmap``, for any model that it can transform.

    Random layers draw differently in each copy, from one stream that all the seeds decide together:
    unlike the other forms, a copy's draws depend on how many copies there are.
    """

    def __init__(self, stack: Stack, seeds: Sequence[int], device: torch.device) -> None:
        self._stack, self._device = stack, device
        self.streams = [torch.Generator(device).manual_seed(hash(tuple(seeds)) & (2**63 - 1))]

    def outputs(self, x: Tensor, *, training: bool) -> Any:
        skeleton = self._stack.skeleton.train(training)
        trained = self._stack.params | self._stack.constants

        def one(params: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Any:
            state = params | buffers
            out = functional_call(skeleton, state, (x,))
            return out, {n: state[n] for n in buffers}

        run = torch.vmap(one, randomness="different")
        with _global_stream(self.streams[0], self._device):
            out, buffers = run(trained, self._stack.buffers, x)
        _keep(self._stack, buffers)
        return out

    def losses(self, outputs: Any, y: Tensor, loss: Loss) -> Tensor:
        return per_copy(outputs, y, loss)


def per_copy(outputs: Any, y: Tensor, loss: Loss) -> Tensor:
    """``loss`` of each copy by ``vmap``, ``(E,)``."""
    return torch.vmap(loss, randomness="different")(outputs, y)


def _copy(outputs: Any, index: int) -> Any:
    return pytree.tree_map(lambda t: t[index], outputs)


def _keep(stack: Stack, buffers: dict[str, Tensor], copy: int | None = None) -> None:
    """Writes back buffers that the model set anew instead of changing them in place."""
    with torch.no_grad():
        for name, new in buffers.items():
            old = stack.buffers[name] if copy is None else stack.buffers[name][copy]
            if new.data_ptr() != old.data_ptr():
                old.copy_(new)


@contextmanager
def _global_stream(stream: torch.Generator, device: torch.device) -> Iterator[None]:
    """Torch's default generator of ``device`` continues ``stream``, and is put back after."""
    default = torch.default_generator
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        default = torch.cuda.default_generators[index]
    before = default.get_state()
    default.set_state(stream.get_state())
    try:
        yield
    finally:
        stream.set_state(default.get_state())
        default.set_state(before)
