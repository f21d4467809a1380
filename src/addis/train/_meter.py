"""Means over an epoch that never make the device wait."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from addis.train import _fabric

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Meter", "Reading"]

_BLOCK = 512  # batches whose values share one tensor


@dataclass(frozen=True, slots=True)
class Reading:
    """What a meter held.

    Args:
        means: Sample-weighted mean of each value, over all ranks.
        samples: Samples of all ranks.
        first_bad: Place of the first batch whose first value, the loss, is not finite; or ``None``.
    """

    means: dict[str, float]
    samples: int
    first_bad: int | None


class Meter:
    """Sample-weighted means of a step's values, read from the device once an epoch.

    The values are copied: a loss may live in memory that the next step of a CUDA graph overwrites.
    """

    def __init__(self) -> None:
        self.names: tuple[str, ...] | None = None
        self._blocks: list[Tensor] = []
        self._weights: list[float] = []

    def add(self, names: tuple[str, ...], values: list[Tensor], weight: float) -> None:
        """Keeps the values of one batch; ``weight`` is its number of samples.

        Raises:
            ValueError: The names are not those of the batches before.
        """
        if self.names is None:
            self.names = names
        elif self.names != names:
            raise ValueError(f"step returned {names} after {self.names} earlier in the epoch")
        place = len(self._weights) % _BLOCK
        if place == 0:
            loss = values[0]
            wide = torch.float32 if loss.device.type == "mps" else torch.float64
            self._blocks.append(torch.zeros(_BLOCK, len(names), dtype=wide, device=loss.device))
        block = self._blocks[-1]
        row = [value.detach().to(block.dtype) for value in values]  # or stack would find a narrower
        block[place].copy_(torch.stack(row) if len(row) > 1 else row[0])
        self._weights.append(weight)

    def read(self, fabric: Fabric) -> Reading:
        """Waits for the device and reads the means; every rank must call it."""
        assert self.names is not None
        weights = torch.tensor(self._weights, dtype=torch.float64)
        values = torch.cat(self._blocks)[: len(weights)].to("cpu", torch.float64)  # batches, names
        used = (weights > 0).nonzero().squeeze(1)  # a rank may have had no sample of a batch
        values, weights = values[used], weights[used]
        bad = used[~values[:, 0].isfinite()]
        first = float(bad[0]) if len(bad) else math.inf
        sums = [*(weights @ values).tolist(), weights.sum().item()]
        sums, first = _over_ranks(fabric, sums, first)
        total = sums.pop()
        means = (value / total for value in sums)
        return Reading(
            dict(zip(self.names, means, strict=True)),
            round(total),
            None if first == math.inf else int(first),
        )


def _over_ranks(fabric: Fabric, sums: list[float], first: float) -> tuple[list[float], float]:
    if fabric.world_size == 1:
        return sums, first
    own = torch.tensor([*sums, first], dtype=torch.float64)
    gathered = torch.stack(_fabric.gather(own, fabric))  # (processes, names + 2)
    return gathered[:, :-1].sum(0).tolist(), float(gathered[:, -1].min())
