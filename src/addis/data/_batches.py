"""Shuffled batches of a data set in memory, and two augmentations of a whole batch at once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from addis.data._images import Images, scaled

__all__ = ["Batches", "random_crop", "random_flip"]

Transform = Callable[[Tensor, torch.Generator], Tensor]


class Batches:
    """Iterates over a data set in batches, with neither workers nor a call per sample.

    Each iteration is one epoch and the next one is another. The order of the samples and the state
    of the transform's generator are functions of ``(seed, epoch)`` alone, whatever the device:
    after :meth:`set_epoch` a resumed run sees what the unbroken one would have seen.

    Args:
        data: :class:`~addis.data.Images`, or a pair ``(x, y)`` of tensors with the same first axis.
            In a pair, uint8 ``x`` is divided by 255, other kinds are cast; a floating ``y`` stays
            floating.
        batch_size: Samples in a batch, ``>= 1``.
        shuffle: A new order each epoch; ``False`` keeps the order of ``data``.
        drop_last: Leave out a last batch that is not full.
        seed: Decides orders and augmentations.
        transform: ``transform(x, generator)`` is given each float batch and a CPU generator, and
            returns the batch to yield.
        device: Where the batches are. On a CUDA device the data are copied there once if they take
            at most half of its free memory, and each batch otherwise.

    Yields:
        ``x``, float32, ``(n, ...)``, images in ``[0, 1]``, and ``y``, int64 ``(n, ...)``.

    Raises:
        ValueError: ``batch_size < 1``, no sample, or the pair's lengths differ.

    Example:
        >>> from addis import data
        >>> batches = data.Batches(data.load("digits"), 256, seed=1)
        >>> len(batches), [len(y) for _, y in batches]
        (6, [256, 256, 256, 256, 256, 158])
    """

    def __init__(
        self,
        data: Images | tuple[Tensor, Tensor],
        batch_size: int,
        *,
        shuffle: bool = True,
        drop_last: bool = False,
        seed: int = 0,
        transform: Transform | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        x, y = (data.images, data.targets) if isinstance(data, Images) else data
        if batch_size < 1:
            raise ValueError(f"batch_size must be >= 1, got {batch_size}")
        if len(x) != len(y) or len(x) == 0:
            raise ValueError(f"x and y must have one length >= 1, got {len(x)} and {len(y)}")
        self._levels = data.levels if isinstance(data, Images) else 255
        self._device = torch.empty(0, device=device).device  # "cuda" becomes "cuda:0"
        self._x, self._y = _placed(x, y, self._device)
        self._batch_size, self._shuffle, self._drop_last = batch_size, shuffle, drop_last
        self._seed, self._transform = seed, transform
        self._epoch = 0

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration gives."""
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Makes ``epoch >= 0`` the next one to be given."""
        if epoch < 0:
            raise ValueError(f"epoch must be >= 0, got {epoch}")
        self._epoch = epoch

    def __len__(self) -> int:
        n, size = len(self._x), self._batch_size
        return n // size if self._drop_last else -(-n // size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch, self._epoch = self._epoch, self._epoch + 1
        return self._iterate(epoch)

    def _iterate(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        n = len(self._x)
        order = torch.arange(n)
        if self._shuffle:
            order = torch.randperm(n, generator=_generator(self._seed, epoch, "order"))
        order = order.to(self._x.device)
        generator = _generator(self._seed, epoch, "transform")
        for start in range(0, len(self) * self._batch_size, self._batch_size):
            index = order[start : start + self._batch_size]
            x = self._x.index_select(0, index)
            y = self._y.index_select(0, index)
            if x.device != self._device:
                x, y = (t.pin_memory().to(self._device, non_blocking=True) for t in (x, y))
            x = scaled(x, self._levels) if x.dtype == torch.uint8 else x.to(torch.float32)
            if self._transform is not None:
                x = self._transform(x, generator)
            yield x, y.to(torch.float32 if y.is_floating_point() else torch.int64)


def random_crop(
    images: Tensor, padding: int, *, generator: torch.Generator | None = None
) -> Tensor:
    """Shifts each image by up to ``padding`` pixels along each axis, with zeros moving in.

    The same as padding with zeros and cropping to the old size at a place of its own for each
    image.

    Args:
        images: ``(N, C, H, W)``, any dtype.
        padding: Largest shift in pixels, ``>= 0``. The customary value on CIFAR-10 is 4.
        generator: CPU source of the shifts, uniform over ``(2 * padding + 1) ** 2`` places.
            ``None`` means torch's default.

    Returns:
        A new tensor ``(N, C, H, W)`` of the same dtype and device.

    Raises:
        ValueError: ``padding < 0``, or ``images`` does not have four dimensions.
    """
    _check(images)
    if padding < 0:
        raise ValueError(f"padding must be >= 0, got {padding}")
    n, _, h, w = images.shape
    corner = torch.randint(2 * padding + 1, (2, n), generator=generator).to(images.device)
    padded = F.pad(images, (padding,) * 4)
    windows = padded.unfold(2, h, 1).unfold(3, w, 1)  # (N, C, 2p + 1, 2p + 1, H, W), a view
    return windows[torch.arange(n, device=images.device), :, corner[0], corner[1]]


def random_flip(images: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Mirrors each image left to right with probability one half.

    Args:
        images: ``(N, C, H, W)``, any dtype.
        generator: CPU source of the N coins. ``None`` means torch's default.

    Returns:
        A new tensor ``(N, C, H, W)`` of the same dtype and device.

    Raises:
        ValueError: ``images`` does not have four dimensions.
    """
    _check(images)
    coin = torch.randint(2, (len(images), 1, 1, 1), generator=generator).to(images.device)
    return torch.where(coin.bool(), images.flip(-1), images)


def _check(images: Tensor) -> None:
    if images.dim() != 4:
        raise ValueError(f"images must be (N, C, H, W), got shape {tuple(images.shape)}")


def _placed(x: Tensor, y: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """The pair on ``device`` if it takes at most half of the free memory there, else on the CPU."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if x.nbytes + y.nbytes > free // 2:
            return x.cpu(), y.cpu()
    return x.to(device), y.to(device)


def _generator(seed: int, epoch: int, purpose: str) -> torch.Generator:
    """A CPU generator whose stream is its own for each ``(seed, epoch, purpose)``."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{purpose}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
