"""Two ways to run E copies of any model: a loop over the copies, and ``vmap`` over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from addis.train._stacked_state import Stack, named_tensors

__all__ = ["Forward", "Loop", "Loss", "Vmap", "per_copy", "together"]

Loss = Callable[[Any, Tensor], Tensor]


class Forward(Protocol):
    """Runs the stack: outputs with the copies along axis 0, losses ``(E,)``, its random streams."""

    streams: list[torch.Generator]

    def outputs(self, x: Tensor, *, training: bool) -> Any:
        """Outputs ``(E, N, ...)`` for ``x (E, N, ...)``; updates the buffers if ``training``."""

    def losses(self, outputs: Any, y: Tensor, loss: Loss) -> Tensor:
        """Loss of each copy, ``(E,)``."""

    def gradients(self, losses: Tensor) -> list[Tensor | None]:
        """Of each trained parameter, ``(E, *shape)``."""


class Loop:
    """One copy after another: the same kernels in the same order as E separate training loops.

    Each copy is a module of its own whose tensors are rows of the stack, and gets a copy of its
    batch, so that what a forward pass changes stays with its copy.
    """

    def __init__(self, stack: Stack, seeds: Sequence[int], device: torch.device) -> None:
        self._stack, self._device = stack, device
        self.streams = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        self._bind()

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._bind()  # a copied parameter is no row of the copied stack

    def _bind(self) -> None:
        """Lets the modules work on the stack's memory, each row with its own count of changes."""
        stacked = self._stack.tensors()
        self._training: bool | None = None
        self._leaves: list[dict[str, Tensor]] = []
        self._buffers: list[list[tuple[nn.Module, str, Tensor]]] = []
        for i, module in enumerate(self._stack.templates):
            self._leaves.append(named_tensors(module))
            for name, tensor in self._leaves[i].items():
                tensor.data = stacked[name].detach()[i]
            self._buffers.append(
                [(part, n, t) for part in module.modules() for n, t in part._buffers.items()
                 if t is not None]
            )  # fmt: skip

    def outputs(self, x: Tensor, *, training: bool) -> Any:
        if training is not self._training:
            for module in self._stack.templates:
                module.train(training)
            self._training = training
        outputs = []
        for copy, (x_copy, stream) in enumerate(zip(x, self.streams, strict=True)):
            with _global_stream(stream, self._device):
                outputs.append(self._stack.templates[copy](x_copy.clone()))
            self._take_back(copy)
        return pytree.tree_map(lambda *row: torch.stack(row), *outputs)

    @torch.no_grad()
    def _take_back(self, copy: int) -> None:
        """Writes buffers that the model set anew, not in place, to the stack."""
        for part, name, own in self._buffers[copy]:
            new = part._buffers[name]
            if new is not own and new is not None:
                own.copy_(new)
                part._buffers[name] = own

    def losses(self, outputs: Any, y: Tensor, loss: Loss) -> Tensor:
        return torch.stack([loss(_copy(outputs, i), y_copy) for i, y_copy in enumerate(y)])

    def gradients(self, losses: Tensor) -> list[Tensor | None]:
        names = list(self._stack.params)
        leaves = [own[n] for n in names for own in self._leaves]
        grads = torch.autograd.grad(losses.sum(), leaves, allow_unused=True)
        e = self._stack.copies
        return [_stacked(grads[i * e : (i + 1) * e]) for i in range(len(names))]


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
            out, buffers = run(trained, self._stack.buffers, x.clone())  # it may work in place
        _keep(self._stack, buffers)
        return out

    def losses(self, outputs: Any, y: Tensor, loss: Loss) -> Tensor:
        return per_copy(outputs, y, loss)

    def gradients(self, losses: Tensor) -> list[Tensor | None]:
        return together(losses, self._stack)


def per_copy(outputs: Any, y: Tensor, loss: Loss) -> Tensor:
    """``loss`` of each copy by ``vmap``, ``(E,)``."""
    return torch.vmap(loss, randomness="different")(outputs, y)


def together(losses: Tensor, stack: Stack) -> list[Tensor | None]:
    """Gradients of the stacked parameters themselves."""
    return list(torch.autograd.grad(losses.sum(), [*stack.params.values()], allow_unused=True))


def _stacked(grads: Sequence[Tensor | None]) -> Tensor | None:
    """``(E, *shape)``, zero for a copy that does not use the parameter while others do."""
    used = next((grad for grad in grads if grad is not None), None)
    if used is None:
        return None
    return torch.stack([torch.zeros_like(used) if grad is None else grad for grad in grads])


def _copy(outputs: Any, index: int) -> Any:
    return pytree.tree_map(lambda t: t[index], outputs)


def _keep(stack: Stack, buffers: dict[str, Tensor]) -> None:
    """Writes back buffers that the model set anew instead of changing them in place."""
    with torch.no_grad():
        for name, new in buffers.items():
            if new.data_ptr() != stack.buffers[name].data_ptr():
                stack.buffers[name].copy_(new)


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
