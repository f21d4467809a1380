"""A short training loop for those who need no other, and the paper's learning rates and batches.

Paper: A. Nøkland, L. H. Eidnes, "Training Neural Networks with Local Error Signals", ICML 2019,
arXiv:1901.06656, section 3.
Departures: the authors' sampler asks for ten classes whatever the number it is given; this one asks
for that number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from heapq import heappop, heappush, heapreplace

import torch
from torch import Tensor

from addis.train.local._model import LocalModel

__all__ = ["EpochStats", "FewClasses", "local_fit", "milestones"]


@dataclass(frozen=True, slots=True)
class EpochStats:
    """What one epoch gave.

    Attributes:
        epoch: From 0.
        losses: Mean total loss of each block and, last, of the output layer.
        errors: Training error of each block's decoder in ``[0, 1]``, while it was learning; NaN
            without one.
        validation_error: Of the whole network in ``[0, 1]``; ``None`` without validation data.
        lr: Learning rate of the epoch.
    """

    epoch: int
    losses: tuple[float, ...]
    errors: tuple[float, ...]
    validation_error: float | None
    lr: float


def milestones(epochs: int) -> tuple[int, ...]:
    """Epochs after which the paper lowers the learning rate.

    They are 1/2, 3/4, 7/8 and 15/16 of the way, rounded up.

    Example:
        >>> milestones(400), milestones(200)
        ((200, 300, 350, 375), (100, 150, 175, 188))
    """
    return tuple(-(-epochs * k // d) for k, d in ((1, 2), (3, 4), (7, 8), (15, 16)))


def local_fit(
    local: LocalModel,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    epochs: int,
    validation: Iterable[tuple[Tensor, Tensor]] | None = None,
    lr_factor: float = 0.25,
    lr_milestones: Sequence[int] | None = None,
) -> Iterator[EpochStats]:
    """Trains and yields after each epoch; what happens between epochs is the caller's.

    Args:
        local: From `localize`.
        batches: ``(x, y)``, gone through once an epoch.
        epochs: ``>= 1``.
        validation: ``(x, y)``, gone through in evaluation mode after each epoch.
        lr_factor: Factor of the learning rate at each milestone.
        lr_milestones: Epochs; ``None`` means `milestones`.

    Raises:
        ValueError: ``epochs < 1``, or an epoch without batches.
    """
    if epochs < 1:
        raise ValueError(f"epochs must be >= 1, got {epochs}")
    steps = list(milestones(epochs) if lr_milestones is None else lr_milestones)
    multi_step = partial(torch.optim.lr_scheduler.MultiStepLR, milestones=steps, gamma=lr_factor)
    return _epochs(local, batches, epochs, validation, multi_step)


def _epochs(
    local: LocalModel,
    batches: Iterable[tuple[Tensor, Tensor]],
    epochs: int,
    validation: Iterable[tuple[Tensor, Tensor]] | None,
    multi_step: partial[torch.optim.lr_scheduler.MultiStepLR],
) -> Iterator[EpochStats]:
    schedulers = local.schedulers(multi_step)
    for epoch in range(epochs):
        if not local.training:
            local.train()
        lr = local.lr
        losses, errors, seen = torch.zeros(()), torch.zeros(()), 0
        for x, y in batches:
            stats = local.train_step(x, y)
            losses = losses + len(x) * stats.losses.to(losses.device)
            errors = errors + len(x) * stats.errors.to(errors.device)
            seen += len(x)
        if not seen:
            raise ValueError(
                f"batches gave none in epoch {epoch}; they are gone through once an epoch, so they "
                "must not be empty or an iterator"
            )
        schedulers.step()
        error = None if validation is None else local.error(validation)
        means = [tuple((v / seen).tolist()) for v in (losses, errors)]
        yield EpochStats(epoch, means[0], means[1], error, lr)


class FewClasses(torch.utils.data.Sampler[list[int]]):
    """Batches of few classes, so that not nearly all pairs of a similarity loss are unlike.

    Each batch begins with random samples of up to ``classes`` classes and is filled with further
    samples of these classes, then with any. The paper takes 20 classes of CIFAR-100 until half of
    the training.

    Args:
        targets: Class numbers ``(N,)``.
        batch_size: ``>= classes``.
        classes: Classes to aim at, ``>= 1``.
        generator: CPU source of the order. ``None`` means torch's default.

    Raises:
        ValueError: ``classes < 1`` or ``batch_size < classes``.
    """

    def __init__(
        self,
        targets: Tensor,
        batch_size: int,
        *,
        classes: int,
        generator: torch.Generator | None = None,
    ) -> None:
        if not 1 <= classes <= batch_size:
            raise ValueError(f"need 1 <= classes <= batch_size, got {classes} and {batch_size}")
        self._targets: list[int] = targets.tolist()
        self._batch_size, self._classes, self._generator = batch_size, classes, generator

    def __len__(self) -> int:
        return -(-len(self._targets) // self._batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.randperm(len(self._targets), generator=self._generator).tolist()
        waiting: dict[int, list[int]] = {}  # places in the order, by class, the first one last
        for place in reversed(range(len(order))):
            waiting.setdefault(self._targets[order[place]], []).append(place)
        first = sorted((places[-1], label) for label, places in waiting.items())  # a heap
        while first:
            chosen = [heappop(first) for _ in range(min(self._classes, len(first)))]
            batch: list[int] = []
            while len(batch) < self._batch_size and (source := chosen or first):
                label = source[0][1]
                batch.append(order[waiting[label].pop()])
                if waiting[label]:
                    heapreplace(source, (waiting[label][-1], label))
                else:
                    heappop(source)
            for one in chosen:
                heappush(first, one)
            yield batch
