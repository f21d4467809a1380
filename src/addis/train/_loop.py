"""The training loop that the caller owns.

``for epoch in train.epochs(...)`` trains one epoch between two turns of the caller's ``for``;
pruning masks, measurements and early stopping are ordinary code in its body. Lightning Fabric does
devices, precision and several processes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from addis.train import _batches, _checks, _fabric, _random
from addis.train._meter import Meter
from addis.train._progress import Bar
from addis.train._resume import Resumable, Resume

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Epoch", "Step", "epochs"]

Step = Callable[[Any, Any], Tensor | Mapping[str, Tensor]]
"""From the model and a batch to the loss (or a mapping with it under ``"loss"``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """One epoch of training.

    Args:
        index: From 0; in a resumed run, counted from the beginning of the first.
        step: Gradient steps taken so far, this epoch's included.
        loss: Mean of the loss over the epoch's samples, each at the weights of its own step.
        metrics: Means of the other values that ``step`` returned, in the same way.
        samples: Samples of the epoch, over all processes.
        seconds: Time of the training itself, without the caller's code.
    """

    index: int
    step: int
    loss: float
    metrics: Mapping[str, float]
    samples: int
    seconds: float


def epochs(
    model: nn.Module,
    loader: Iterable[Any],
    step: Step,
    optimizer: Optimizer,
    *,
    epochs: int,
    scheduler: LRScheduler | None = None,
    accumulate: int = 1,
    clip_norm: float | None = None,
    seed: int | None = None,
    fabric: Fabric | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    state: Mapping[str, Resumable] | None = None,
    progress: bool = False,
) -> Generator[Epoch, None, None]:
    """Trains a model and yields after each epoch.

    An epoch is one pass over ``loader``. The model is in training mode during it, but for those
    parts that were in evaluation mode, at the call or between epochs, while the model as a whole
    was not (a frozen BatchNorm): they stay so to the end of the run. ``model.eval()`` freezes
    nothing. Between epochs the caller may do as it likes with model and optimizer. Nothing waits
    for the device before an epoch's end: there the losses are read, and one that is not finite ends
    the run. At the end of the run, or where the caller leaves it, modes are what they were at the
    call and there are no gradients.

    With ``checkpoint`` the run is kept in that file and, where the file exists, goes on from it:
    run the same program again. **An epoch is kept once the caller's code after it has ended**, that
    is when the ``for`` asks for the next epoch (or finds that there is none), so what that code
    changed is in the file and is never done twice. A run killed in an epoch, in the caller's code
    or in the writing of the file goes on from the epoch before, to the same weights, bit for bit,
    as a run left alone. An epoch that the caller leaves by ``break`` or an exception is not kept.

    In several processes (``fabric.launch()`` called before) every process must see the same
    batches: each trains on its own share of every batch, and gradients and means are those of the
    whole batch. A loader that gives each process other samples (``fabric.setup_dataloaders``, or a
    sampler of ``torch.utils.data.DistributedSampler``) is used as it is; then the processes'
    batches should be of one size. BatchNorm sees its own process's share.

    Args:
        model: Any module; it is moved to the device and trained in place.
        loader: Gives the batches, anew for each epoch. Epoch ``e`` is announced by ``set_epoch(e)``
            where the loader or its sampler has that method (:class:`addis.data.Batches` has), so a
            second run over the same loader sees the same orders.
        step: From the model and a batch on the device to a scalar, the **mean** loss over the
            batch; or a mapping of scalar tensors of which ``"loss"`` is trained and the others are
            averaged into ``Epoch.metrics``. It is given the model as Fabric wraps it: call it, for
            precision and several processes to work.
        optimizer: Over parameters of ``model`` (and perhaps others).
        epochs: Epochs of the whole run, ``>= 0``, those before a resumption included.
        scheduler: Any of torch's, stepped once after **every gradient step**, not after an epoch;
            see :mod:`addis.train.schedules`.
        accumulate: Batches whose gradients make one step, ``>= 1``. The gradient is that of the
            mean over all their samples, also for uneven batches and for the fewer batches at an
            epoch's end.
        clip_norm: Largest norm of the whole gradient, ``> 0``; ``None`` does not clip.
        seed: Draws dropout and whatever else an epoch takes from torch's global generators from
            ``(seed, epoch, rank)`` alone and leaves the caller's global state as it was; ``None``
            goes on from the global state, which the checkpoint then keeps (as it keeps Python's and
            numpy's).
        fabric: Device, precision and processes. ``None`` is one process on the model's own device
            in the model's own precision.
        checkpoint: File of the run; its folder must exist.
        state: Further parts of the run, by name, to keep in the checkpoint: generators, and
            whatever has ``state_dict`` and ``load_state_dict``.
        progress: Shows a bar with an estimate on standard error, in the first process.

    Yields:
        An :class:`Epoch`, for every epoch that was not in the checkpoint.

    Raises:
        TypeError: An argument is of the wrong kind; ``step`` does not return what it should.
        ValueError: An argument is out of its range; the loader is empty; the optimizer holds none
            of the model's parameters; the loss does not depend on a parameter; the checkpoint is of
            a run with another model, optimizer, loader or setting.
        FloatingPointError: A loss of the epoch was NaN or infinite. The checkpoint is of the epoch
            before.
        RuntimeError: The checkpoint is damaged.

    Examples:
        >>> import torch
        >>> from addis import train
        >>> x = torch.arange(8.0).reshape(8, 1)
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        >>> def step(model, batch):
        ...     return torch.nn.functional.mse_loss(model(batch[0]), batch[1])
        >>> for epoch in train.epochs(model, [(x, 3 * x)], step, optimizer, epochs=200):
        ...     if epoch.loss < 1e-3:
        ...         break
        >>> epoch.index < 199 and abs(model.weight.item() - 3) < 0.1
        True
    """
    _checks.check_run(model, loader, step, optimizer, scheduler, state)
    _checks.check_numbers(epochs, accumulate, clip_norm, seed)
    path = _checks.check_path(checkpoint)
    run = _Run(model, loader, step, optimizer, scheduler, accumulate, clip_norm, seed, fabric)
    return _epochs(run, epochs, path, dict(state or {}), progress)


def _epochs(
    run: _Run, count: int, path: Path | None, state: dict[str, Resumable], progress: bool
) -> Generator[Epoch, None, None]:
    with run:
        resume = None if path is None else Resume(path, run, state)
        first = resume.load(count) if resume else 0
        shown = progress and run.fabric.is_global_zero
        with Bar(count, first, _batches.length(run.loader), shown=shown) as bar:
            for index in range(first, count):
                bar.begin(index)
                epoch = run.epoch(index, bar)
                bar.end(epoch.loss)
                yield epoch
                if resume:
                    resume.save(index + 1)


@dataclass(slots=True)
class _Run:
    """A model under training: the arguments of :func:`epochs` and what Fabric makes of them."""

    plain_model: nn.Module
    loader: Iterable[Any]
    step: Step
    plain_optimizer: Optimizer
    scheduler: LRScheduler | None
    accumulate: int
    clip_norm: float | None
    seed: int | None
    given_fabric: Fabric | None
    steps: int = 0
    fabric: Fabric = field(init=False)
    model: Any = field(init=False)
    optimizer: Any = field(init=False)
    sharded: bool = field(init=False)
    modes: dict[nn.Module, bool] = field(init=False)
    frozen: set[nn.Module] = field(init=False, default_factory=set)

    def __enter__(self) -> None:
        self.fabric = self.given_fabric or _fabric.on_device_of(self.plain_model)
        _checks.check_strategy(self.fabric)
        self.modes = {module: module.training for module in self.plain_model.modules()}
        self.model, self.optimizer = self.fabric.setup(self.plain_model, self.plain_optimizer)
        self.sharded = self.fabric.world_size == 1 or _batches.is_sharded(self.loader)
        if not self.sharded:
            _checks.check_common_order(self.loader)

    def __exit__(self, *error: object) -> None:
        if sys.is_finalizing():
            return  # a run that was never closed: nothing is left to put back
        for module, training in self.modes.items():
            module.training = training
        self._drop_gradients()
        self.model = self.optimizer = None

    def epoch(self, index: int, bar: Bar) -> Epoch:
        """Trains one epoch."""
        start = perf_counter()
        before = self.steps
        meter = Meter()
        self._training_mode()
        _batches.set_epoch(self.loader, index)
        device, rank = self.fabric.device, self.fabric.global_rank
        with _random.seeded(self.seed, index, rank, device=device):
            batches = iter(self.loader)
            while group := list(islice(batches, self.accumulate)):
                self._gradient_step(group, meter)
                for _ in group:
                    bar.advance()
        if meter.names is None:
            raise ValueError(f"loader gave no batch in epoch {index}")
        self._drop_gradients()
        _fabric.share_buffers(self.plain_model, self.fabric)
        reading = meter.read(self.fabric)
        if reading.first_bad is not None:
            at = before + reading.first_bad // self.accumulate
            raise FloatingPointError(
                f"the loss of batch {reading.first_bad} of epoch {index}, gradient step {at}, is "
                "not finite; lower the learning rate, or set clip_norm"
            )
        loss = reading.means.pop("loss")
        return Epoch(
            index=index, step=self.steps, loss=loss, metrics=reading.means,
            samples=reading.samples, seconds=perf_counter() - start,
        )  # fmt: skip

    def _drop_gradients(self) -> None:
        self.plain_model.zero_grad()
        self.plain_optimizer.zero_grad()  # it may hold parameters that are not the model's

    def frozen_names(self) -> list[str]:
        """What the caller froze, until now, in a model that was itself in training mode."""
        parts = list(self.plain_model.named_modules())
        if self.plain_model.training:
            self.frozen.update(part for _, part in parts if not part.training)
        return [name for name, part in parts if part in self.frozen]

    def _training_mode(self) -> None:
        """Sets training mode, but for what is frozen."""
        self.frozen_names()
        self.plain_model.train()
        for part in self.frozen:
            part.training = False

    def _gradient_step(self, group: list[Any], meter: Meter) -> None:
        """One step on the mean loss over the samples of all batches of the group.

        Batch ``i`` of ``N_i`` samples, of which this process has ``n_i``, adds its mean loss times
        ``n_i / sum N`` and, as the processes' gradients are averaged, times their number.
        """
        self.optimizer.zero_grad()
        shares = [_batches.mine(batch, self.fabric, sharded=self.sharded) for batch in group]
        total = sum(share.joint for share in shares)
        last = len(group) - 1
        for place, share in enumerate(shares):
            batch = self.fabric.to_device(share.batch)
            with self.fabric.no_backward_sync(self.model, enabled=place < last):
                names, values = _checks.check_step(self.step(self.model, batch))
                meter.add(names, values, share.own)
                scale = share.own * share.processes / total
                self.fabric.backward(values[0] if scale == 1 else values[0] * scale)
        if self.clip_norm is not None:
            self.fabric.clip_gradients(
                self.model, self.optimizer, max_norm=self.clip_norm, error_if_nonfinite=False
            )
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        self.steps += 1
