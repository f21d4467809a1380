"""What the loop knows of a batch: how many samples it holds, and which of them are a rank's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Share", "generators", "is_sharded", "length", "mine", "set_epoch", "share", "size"]


def size(batch: Any) -> int | None:
    """The samples of a batch: the first dimension of its first tensor, or ``None`` without one."""
    for tensor in _tensors(batch):
        if tensor.dim():
            return tensor.shape[0]
    return None


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from _tensors(value)
    elif isinstance(batch, (tuple, list)):
        for value in batch:
            yield from _tensors(value)


class Share(NamedTuple):
    """What one process gets of a batch.

    Args:
        batch: The process's samples.
        own: How many of them count.
        joint: How many the processes have together.
        processes: How many processes share the batch.
    """

    batch: Any
    own: int
    joint: int
    processes: int


def mine(batch: Any, fabric: Fabric, *, sharded: bool) -> Share:
    """This process's share of a batch, at least one sample, which then counts 0.

    A batch without tensors counts as one sample. A loader whose batches are already one process's
    (``sharded``) is left as it is.
    """
    n = size(batch)
    n = 1 if n is None else n
    if n == 0:
        raise ValueError("loader gave a batch of 0 samples")
    if sharded:
        return Share(batch, n, n, 1)
    own = share(batch, fabric.global_rank, fabric.world_size)
    if (count := size(own)) == 0:
        own = share(batch, 0, n)  # the first sample: a process must take part in every step
    return Share(own, count or 0, n, fabric.world_size)


def share(batch: Any, rank: int, world_size: int) -> Any:
    """The samples of one rank: of ``N``, the ``rank``-th of ``world_size`` near-equal runs.

    Every tensor whose first dimension is the batch's is cut; what is not such a tensor is handed
    on. A rank left without samples gets a batch of length 0.
    """
    n = size(batch)
    if n is None:
        raise TypeError(f"a batch of type {type(batch).__name__} without tensors cannot be shared")
    first, last = rank * n // world_size, (rank + 1) * n // world_size
    return _cut(batch, n, first, last)


def _cut(batch: Any, n: int, first: int, last: int) -> Any:
    if isinstance(batch, Tensor):
        return batch[first:last] if batch.dim() and batch.shape[0] == n else batch
    if isinstance(batch, Mapping):
        return {key: _cut(value, n, first, last) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_cut(value, n, first, last) for value in batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(_cut(value, n, first, last) for value in batch)
    return batch


def length(loader: Iterable[Any]) -> int | None:
    """``len(loader)``, or ``None`` for a loader that does not know it (an iterable data set)."""
    try:
        return len(loader)  # type: ignore[arg-type]
    except TypeError:
        return None


def is_sharded(loader: Iterable[Any]) -> bool:
    """Whether each rank's loader gives that rank's samples only, so that nothing is left to cut."""
    from lightning_fabric import is_wrapped

    return bool(is_wrapped(loader)) or any(
        isinstance(part, DistributedSampler) for part in _parts(loader)
    )


def set_epoch(loader: Iterable[Any], epoch: int) -> None:
    """Tells the loader, and a torch loader's samplers, which epoch comes next."""
    for part in _parts(loader):
        if callable(tell := getattr(part, "set_epoch", None)):
            tell(epoch)
    if hasattr(loader, "_num_iter_calls"):
        # Fabric's loader tells its sampler the epoch by this count of its own, which a resumed
        # process would begin at 0 again.
        loader._num_iter_calls = epoch


def generators(loader: Iterable[Any]) -> list[torch.Generator]:
    """The generators that a torch loader and its samplers draw from, each once."""
    found = [getattr(part, "generator", None) for part in _parts(loader)]
    unique = {id(g): g for g in found if isinstance(g, torch.Generator)}
    return list(unique.values())


def _parts(loader: Iterable[Any]) -> Iterator[Any]:
    yield loader
    if isinstance(loader, DataLoader) or hasattr(loader, "_num_iter_calls"):
        sampler, batch_sampler = (
            getattr(loader, "sampler", None),
            getattr(loader, "batch_sampler", None),
        )
        inner = getattr(batch_sampler, "sampler", None)
        yield from (part for part in (sampler, batch_sampler) if part is not None)
        if inner is not None and inner is not sampler:
            yield inner
