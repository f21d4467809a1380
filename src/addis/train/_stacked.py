"""Trains many small copies of one model side by side, each with its own seed, data and lr."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn, optim
from torch.nn import functional as F

from addis.train._stacked_choice import Backend, choose, runs_in_blocks
from addis.train._stacked_forward import Forward, Loop, Loss, Vmap
from addis.train._stacked_grouped import Grouped
from addis.train._stacked_optim import CopiesOptimizer, OptimizerFactory
from addis.train._stacked_state import check_alike, seeded, stack
from addis.train._stacked_widths import padding_masks, shapes_differ

__all__ = ["StackedScores", "StackedTrainer"]

Schedule = Callable[[int], float]


class StackedScores(NamedTuple):
    """Scores of each copy.

    Attributes:
        loss: Mean loss, ``(E,)``.
        accuracy: Fraction of right classes in ``[0, 1]``, ``(E,)``; NaN if the outputs and targets
            are not logits and classes.
    """

    loss: Tensor
    accuracy: Tensor


class StackedTrainer:
    """Trains E independent copies of one model in one process, a step of all of them at a time.

    Each copy has its own parameters, batch-norm statistics, optimiser state and random stream;
    nothing that happens to one copy reaches another. Three backends do the same arithmetic:

    * ``grouped`` puts the copies side by side in the channels: each convolution becomes one with E
      times the groups, each batch normalisation one over E C channels, each linear layer a batched
      product. It takes models of convolutions, normalisations, pooling, activations, dropout,
      linear layers and sums.
    * ``vmap`` transforms any model that :func:`torch.vmap` can transform.
    * ``loop`` runs one copy after the other, and takes any model.

    The first two run the code of one model for all, so they refuse models that differ in other
    attributes than tensors (a number, a function); ``grouped`` also a forward pass that changes
    attributes or buffers, but for the statistics of normalisations. In the loop each copy keeps its
    own. A forward pass may change its input in place: it gets a copy.

    Models may differ in width (channels and features): the narrow ones stand in the stack of the
    widest, their last channels zero and kept so, with their own results up to rounding. That needs
    the grouped form and layers that do not mix channels except by weights; each copy costs the work
    of the widest. Dropout draws for the widest, so its draws are not those of the narrow net alone.

    Args:
        models: E models of one structure, left as they are, or a function that builds one from
            torch's default generator (see :func:`seeded`).
        seeds: One for each copy: initialisation (if ``models`` is a function) and random layers.
            ``None``, allowed for a list of models, means ``0, 1, ..., E - 1``.
        optimizer: ``optimizer(groups, lr=...)`` builds a ``torch.optim`` optimiser. Settings that
            all copies share are bound with ``functools.partial(torch.optim.SGD, momentum=0.9)``.
        lr: Initial learning rate, one for all or one for each copy, ``> 0``.
        weight_decay: The optimiser's, one for all or one for each copy, ``>= 0``. ``None`` leaves
            it to ``optimizer``.
        schedule: Factor of ``lr`` at gradient step ``t = 0, 1, ...``, one for all or one for each
            copy.
        loss: ``loss(outputs, targets)`` of one copy's batch, a scalar: ``(N, K)`` and ``(N,)`` for
            a classifier. Means are over that copy's N.
        backend: ``auto`` is ``loop`` for one copy, where the result is that of an ordinary training
            loop bit for bit, and for models that differ in attributes; else ``grouped`` where the
            model has that form and, on a CPU, its convolutions take no more than 25 channels in the
            mean; else ``vmap`` on a GPU and ``loop`` on a CPU, where it is the faster of the two.
            :attr:`backend` says which one it is. On a CPU, PyTorch's kernels in ``grouped`` and
            what ``auto`` takes for several copies run in ``channels_last``; else a model's weights
            keep their memory format.
        native: Whether ``grouped`` may run convolutions, batch normalisations, ReLU and max-pooling
            in kernels of addis, which a C compiler makes on this machine (once, some seconds): on a
            CPU, in float32 or float64, where all convolutions are ``nn.Conv2d`` with zero padding
            and no layer is an ``nn.GroupNorm``. Else, for batches under 16 and under autocast
            PyTorch's run. :attr:`native` says whether they may.
        device: Where to train.

    Raises:
        ValueError: An argument is out of range or of a wrong length, the models differ in
            structure, or the model has no form for ``backend="grouped"`` (the message names the
            layer).
        TypeError: ``models`` is one module, or the optimiser needs a closure.

    Example:
        >>> from functools import partial
        >>> from addis.train import StackedTrainer
        >>> def net() -> nn.Module:
        ...     conv = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()]
        ...     return nn.Sequential(*conv, nn.Flatten(), nn.Linear(144, 2))
        >>> trainer = StackedTrainer(net, seeds=[0, 1, 2], lr=[0.1, 0.1, 0.3])
        >>> trainer.backend
        'grouped'
        >>> x, y = torch.rand(16, 1, 8, 8), torch.arange(16) % 2
        >>> trainer.step(x, y, shared=True).shape
        torch.Size([3])
        >>> trainer.evaluate(x, y).accuracy.shape
        torch.Size([3])
        >>> type(trainer.unstack(2)).__name__
        'Sequential'
    """

    def __init__(
        self,
        models: Sequence[nn.Module] | Callable[[], nn.Module],
        *,
        seeds: Sequence[int] | None = None,
        optimizer: OptimizerFactory = optim.SGD,
        lr: float | Sequence[float] | Tensor,
        weight_decay: float | Sequence[float] | Tensor | None = None,
        schedule: Schedule | Sequence[Schedule] | None = None,
        loss: Loss = F.cross_entropy,
        backend: Literal["auto", "grouped", "vmap", "loop"] = "auto",
        native: bool = True,
        device: str | torch.device = "cpu",
    ) -> None:
        models, seeds = _built(models, seeds)
        self._device, self._loss = torch.device(device), loss
        self._stack_up(models, seeds, backend, native)
        options = _options(len(models), lr, weight_decay)
        schedules = list(schedule) if isinstance(schedule, Sequence) else [schedule] * len(models)
        if len(schedules) != len(models):
            raise ValueError(f"schedule must be one or {len(models)}, got {len(schedules)}")
        self._optimizer = CopiesOptimizer(optimizer, self._stack.params, options, schedules)
        self._steps = 0

    def _stack_up(
        self, models: Sequence[nn.Module], seeds: Sequence[int], backend: str, native: bool
    ) -> None:
        check_alike(models, widths=True)
        several = shapes_differ(models)
        if not several:
            check_alike(models, widths=False)
        self._backend = choose(models, backend, self._device, several)
        grouped = self._backend == "grouped"
        fast = grouped or (backend == "auto" and len(models) > 1)
        cpu = self._device.type == "cpu"
        self._native = native and grouped and cpu and runs_in_blocks(models[0])
        last = fast and cpu and not self._native
        layout = torch.channels_last if last else torch.contiguous_format
        self._stack = stack(models, self._device, layout if grouped or last else None)
        self._masks = padding_masks(models, self._stack.params)
        self._forward: Forward
        if grouped:
            self._forward = Grouped(self._stack, seeds, self._device, blocks=self._native)
        else:
            form = Vmap if self._backend == "vmap" else Loop
            self._forward = form(self._stack, seeds, self._device)

    @property
    def copies(self) -> int:
        """E."""
        return self._stack.copies

    @property
    def backend(self) -> Backend:
        """How the copies are run."""
        return self._backend

    @property
    def native(self) -> bool:
        """Whether the kernels of addis run batches of 16 or more."""
        return self._native

    @property
    def steps(self) -> int:
        """Gradient steps taken."""
        return self._steps

    def step(self, x: Tensor, y: Tensor, *, shared: bool = False) -> Tensor:
        """Takes one gradient step of every copy, in training mode.

        Args:
            x: Inputs, ``(E, N, ...)``: a batch for each copy.
            y: Targets, ``(E, N, ...)``.
            shared: One batch for all copies instead: ``x (N, ...)`` and ``y (N, ...)``.

        Returns:
            Loss of each copy before the step, ``(E,)``, detached, on the trainer's device: reading
            its numbers is what waits for a GPU.

        Raises:
            ValueError: ``x`` or ``y`` is not one batch for each copy.
        """
        x, y = self._placed(x, y, shared)
        losses = self._forward.losses(self._forward.outputs(x, training=True), y, self._loss)
        self._check_losses(losses)
        grads = dict(zip(self._stack.params, self._forward.gradients(losses), strict=True))
        self._optimizer.step(self._own(grads), self._steps)
        self._steps += 1
        return losses.detach()

    @torch.no_grad()
    def outputs(self, x: Tensor, *, shared: bool = True) -> Any:
        """Outputs of every copy in evaluation mode, ``(E, N, K)`` logits for a classifier.

        Args:
            x: ``(N, ...)``, one batch for all copies, or ``(E, N, ...)`` if not ``shared``.
            shared: Whether all copies see the same batch.
        """
        (x,) = self._placed_each(shared, x=x)
        return self._forward.outputs(x, training=False)

    @torch.no_grad()
    def evaluate(
        self, x: Tensor, y: Tensor, *, shared: bool = True, batch_size: int = 1000
    ) -> StackedScores:
        """Scores every copy in evaluation mode.

        Args:
            x: ``(N, ...)``, one set for all copies, or ``(E, N, ...)`` if not ``shared``.
            y: ``(N, ...)``, or ``(E, N, ...)`` if not ``shared``.
            shared: Whether all copies see the same set.
            batch_size: Samples at once, ``>= 1``. The loss is averaged over batches by their sizes,
                which is right for a loss that is a mean over its batch.

        Raises:
            ValueError: ``batch_size < 1``, no sample, or wrong shapes.
        """
        x, y = self._placed(x, y, shared)
        if batch_size < 1:
            raise ValueError(f"batch_size must be >= 1, got {batch_size}")
        total = torch.zeros(2, self.copies, device=self._device, dtype=torch.float64)
        for rows, targets in zip(*(torch.split(t, batch_size, 1) for t in (x, y)), strict=True):
            outputs = self._forward.outputs(rows, training=False)
            losses = self._forward.losses(outputs, targets, self._loss)
            total += torch.stack([losses * targets.shape[1], _right(outputs, targets)])
        return StackedScores(*(total / x.shape[1]).float())

    def unstack(self, index: int) -> nn.Module:
        """Copy ``index`` as an ordinary module of the user's class, apart from the stack."""
        return self._stack.unstack(range(self.copies)[index])

    def models(self) -> list[nn.Module]:
        """Every copy as an ordinary module."""
        return [self.unstack(i) for i in range(self.copies)]

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs, in copies: tensors, numbers and plain containers.

        As in torch's own, attributes of the models that are no tensors of theirs are not in it.
        """
        return {
            "backend": self._backend,
            "steps": self._steps,
            "tensors": {n: t.detach().clone() for n, t in self._stack.tensors().items()},
            "optimizer": copy.deepcopy(self._optimizer.state_dict()),
            "streams": [stream.get_state() for stream in self._forward.streams],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on exactly where :meth:`state_dict` was taken.

        Raises:
            ValueError: The state is of another model, number of copies, backend or optimiser.
        """
        if state["backend"] != self._backend:
            raise ValueError(f"state is of backend {state['backend']!r}, not {self._backend!r}")
        mine = self._stack.tensors()
        ours, theirs = ({n: tuple(t.shape) for n, t in s.items()} for s in (mine, state["tensors"]))
        for name in ours | theirs:
            if ours.get(name) != theirs.get(name):
                raise ValueError(
                    f"state has shape {theirs.get(name)} at {name!r}, the trainer {ours.get(name)}"
                )
        self._optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        with torch.no_grad():
            for name, tensor in mine.items():
                tensor.copy_(state["tensors"][name])
        for stream, saved in zip(self._forward.streams, state["streams"], strict=True):
            stream.set_state(saved.cpu())
        self._steps = state["steps"]

    def _placed(self, x: Tensor, y: Tensor, shared: bool) -> tuple[Tensor, Tensor]:
        x, y = self._placed_each(shared, x=x, y=y)
        if x.shape[1] != y.shape[1]:
            raise ValueError(f"x and y must have one N, got {x.shape[1]} and {y.shape[1]}")
        return x, y

    def _placed_each(self, shared: bool, **batches: Tensor) -> tuple[Tensor, ...]:
        """``(E, N, ...)`` on the device; a shared batch is expanded, not copied."""
        placed = []
        for name, batch in batches.items():
            least = 1 if shared else 2
            if batch.dim() < least or batch.shape[least - 1] == 0:
                raise ValueError(f"{name} must hold at least one sample, got {tuple(batch.shape)}")
            if not shared and batch.shape[0] != self.copies:
                raise ValueError(
                    f"{name} must be (E, N, ...) with E = {self.copies}, got shape "
                    f"{tuple(batch.shape)}; pass shared=True for one batch (N, ...) for all copies"
                )
            batch = batch.to(self._device, non_blocking=True)
            placed.append(batch.expand(self.copies, *batch.shape) if shared else batch)
        return tuple(placed)

    def _own(self, grads: dict[str, Tensor | None]) -> list[Tensor | None]:
        """Gradients with those of padding, in a stack of several widths, set to zero."""
        for name, mask in self._masks.items():
            if (grad := grads[name]) is not None:
                grads[name] = grad.masked_fill(~mask, 0)
        return list(grads.values())

    def _check_losses(self, losses: Tensor) -> None:
        if losses.shape != (self.copies,):
            shape = tuple(losses.shape[1:])
            raise ValueError(f"loss must return a scalar for a copy, got shape {shape}")


def _built(
    models: Sequence[nn.Module] | Callable[[], nn.Module], seeds: Sequence[int] | None
) -> tuple[list[nn.Module], list[int]]:
    if isinstance(models, nn.Module):
        raise TypeError("models must be a list of modules or a function, got a module")
    if callable(models):
        if seeds is None or len(seeds) == 0:
            raise ValueError("seeds must name at least one copy where models is a function")
        return seeded(models, seeds), list(seeds)
    seeds = range(len(models)) if seeds is None else seeds
    if len(seeds) != len(models):
        raise ValueError(f"seeds must be one for each of {len(models)} models, got {len(seeds)}")
    return list(models), list(seeds)


def _options(
    copies: int,
    lr: float | Sequence[float] | Tensor,
    weight_decay: float | Sequence[float] | Tensor | None,
) -> list[dict[str, float]]:
    """Group options of each copy."""
    columns = {"lr": _each("lr", lr, copies)}
    if weight_decay is not None:
        columns["weight_decay"] = _each("weight_decay", weight_decay, copies)
    for value in columns["lr"]:
        if not value > 0:
            raise ValueError(f"lr must be > 0, got {value}")
    for value in columns.get("weight_decay", ()):
        if not value >= 0:
            raise ValueError(f"weight_decay must be >= 0, got {value}")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _each(name: str, value: float | Sequence[float] | Tensor, copies: int) -> list[float]:
    values = value.tolist() if isinstance(value, Tensor) else value
    if isinstance(values, (int, float)):
        return [float(values)] * copies
    if len(values) != copies:
        raise ValueError(f"{name} must be one number or {copies}, got {len(values)}")
    return [float(v) for v in values]


def _right(outputs: Any, y: Tensor) -> Tensor:
    """How many classes each copy has right, ``(E,)``; NaN if these are no logits and classes."""
    if isinstance(outputs, Tensor) and outputs.dim() == y.dim() + 1 and not y.is_floating_point():
        return (outputs.argmax(2) == y).flatten(1).sum(1)
    return torch.full((len(y),), torch.nan, device=y.device)
