"""Batches for stacked copies: each copy has its own order, and all are cut out in one operation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from addis.data import Batches, Images
from addis.data._images import scaled

__all__ = ["StackedBatches"]

Transform = Callable[[Tensor, torch.Generator], Tensor]


class StackedBatches:
    """Iterates over a data set in batches ``(E, N, ...)``, each copy in an order of its own.

    A batch is ``x``, float32, ``(E, N, ...)``, and ``y``, int64 or float32, ``(E, N, ...)``.
    Copy i sees the batches of ``addis.data.Batches(data, batch_size, seed=seeds[i], ...)``: its
    order and its augmentations are functions of ``(seeds[i], epoch)`` alone, whatever copies stand
    beside it.

    Args:
        data: :class:`~addis.data.Images`, or a pair ``(x, y)`` of tensors. In a pair, uint8 ``x``
            is divided by 255.
        batch_size: Samples of each copy in a batch, ``>= 1``.
        seeds: One for each copy.
        own: What a copy has of its own. ``order``: the data are the same for all, ``x (n, ...)``
            and ``y (n, ...)``. ``targets``: also its targets, ``y (E, n, ...)``, such as label
            noise. ``data``: also its inputs, ``x (E, n, ...)``.
        shuffle: A new order each epoch; ``False`` keeps the order of ``data``.
        drop_last: Leave out a last batch that is not full.
        transform: ``transform(x, generator)`` of each copy's float batch, as in ``Batches``.
        device: Where data and batches are.

    Raises:
        ValueError: ``batch_size < 1``, no seed, no sample, or the shapes do not fit ``own``.

    Example:
        >>> x, y = torch.rand(10, 3), torch.arange(10)
        >>> batches = StackedBatches((x, y), 4, seeds=[0, 1])
        >>> x, y = next(iter(batches))
        >>> tuple(x.shape), tuple(y.shape)
        ((2, 4, 3), (2, 4))
    """

    def __init__(
        self,
        data: Images | tuple[Tensor, Tensor],
        batch_size: int,
        *,
        seeds: Sequence[int],
        own: Literal["order", "targets", "data"] = "order",
        shuffle: bool = True,
        drop_last: bool = False,
        transform: Transform | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        if own not in ("order", "targets", "data"):
            raise ValueError(f"own must be order, targets or data, got {own!r}")
        if len(seeds) == 0:
            raise ValueError("seeds must name at least one copy, got none")
        x, y = (data.images, data.targets) if isinstance(data, Images) else data
        self._levels = data.levels if isinstance(data, Images) else 255
        own_x, own_y = own == "data", own != "order"
        for name, tensor, apart in (("x", x, own_x), ("y", y, own_y)):
            if apart and tensor.shape[:1] != (len(seeds),):
                raise ValueError(
                    f"{name} must be ({len(seeds)}, n, ...) with own={own!r}, "
                    f"got shape {tuple(tensor.shape)}"
                )
        n, targets = (t.shape[int(apart)] for t, apart in ((x, own_x), (y, own_y)))
        if n != targets:
            raise ValueError(f"x and y must have one length, got {n} and {targets}")
        self._device = torch.device(device)
        self._x, self._y = x.to(self._device), y.to(self._device)
        self._own_x, self._own_y = own_x, own_y
        self._copies = torch.arange(len(seeds), device=self._device)[:, None]
        self._transform = transform
        self._orders = [_Order(n, batch_size, shuffle, drop_last, seed) for seed in seeds]

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration gives."""
        return self._orders[0].batches.epoch

    def set_epoch(self, epoch: int) -> None:
        """Makes ``epoch >= 0`` the next one to be given."""
        for order in self._orders:
            order.batches.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self._orders[0].batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self._iterate(zip(*self._orders, strict=True))

    def _iterate(
        self, orders: Iterator[tuple[tuple[Tensor, torch.Generator], ...]]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        for step in orders:
            index = torch.stack([rows for rows, _ in step]).to(self._device, non_blocking=True)
            x = self._x[self._copies, index] if self._own_x else self._x[index]
            y = self._y[self._copies, index] if self._own_y else self._y[index]
            x = scaled(x, self._levels) if x.dtype == torch.uint8 else x.float()
            if self._transform is not None:
                pairs = zip(x, step, strict=True)
                x = torch.stack([self._transform(own, generator) for own, (_, generator) in pairs])
            yield x, y.float() if y.is_floating_point() else y.long()


class _Order:
    """Row numbers, and the transform's generator, that ``Batches`` gives for one seed."""

    def __init__(self, n: int, size: int, shuffle: bool, drop_last: bool, seed: int) -> None:
        self._generator = torch.Generator()
        self.batches = Batches(
            (torch.zeros(n), torch.arange(n)), size, shuffle=shuffle, drop_last=drop_last,
            seed=seed, transform=self._caught,
        )  # fmt: skip

    def __iter__(self) -> Iterator[tuple[Tensor, torch.Generator]]:
        batches = iter(self.batches)
        return ((rows, self._generator) for _, rows in batches)

    def _caught(self, x: Tensor, generator: torch.Generator) -> Tensor:
        self._generator = generator
        return x
