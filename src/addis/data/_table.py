"""Data sets of rows of numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from addis.data._images import Indices, as_index

__all__ = ["Table"]


@dataclass(frozen=True, eq=False, repr=False)
class Table:
    """Labelled rows of numbers.

    Args:
        x: ``(N, D)``, float64.
        targets: ``(N,)``, int64, indices into ``classes``.
        classes: Names of the classes.
        features: Names of the D columns.
        name: Name of the set, as :func:`addis.data.load` takes it.
        split: Name of the split.
        symbols: By feature, for those that are symbols: what their values 0, 1, ... in ``x`` stand
            for.

    Raises:
        TypeError: ``x`` is not float64 or ``targets`` is not int64.
        ValueError: A shape is not as above.
    """

    x: Tensor
    targets: Tensor
    classes: tuple[str, ...]
    features: tuple[str, ...]
    name: str
    split: str
    symbols: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.x.dtype != torch.float64 or self.targets.dtype != torch.int64:
            raise TypeError(
                f"x must be float64 and targets int64, got {self.x.dtype} and {self.targets.dtype}"
            )
        if self.x.dim() != 2 or self.x.shape[1] != len(self.features):
            raise ValueError(f"x must be (N, {len(self.features)}), got {tuple(self.x.shape)}")
        if self.targets.shape != (len(self.x),):
            raise ValueError(f"targets must be ({len(self.x)},), got {tuple(self.targets.shape)}")

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        return (
            f"Table({self.name} {self.split}: {len(self)} x {len(self.features)},"
            f" {len(self.classes)} classes)"
        )

    def subset(self, indices: Indices) -> Table:
        """A copy of the rows at ``indices``, ``(n,)`` of any integer type."""
        index = as_index(indices, self.x.device)
        return replace(
            self, x=self.x.index_select(0, index), targets=self.targets.index_select(0, index)
        )

    def one_hot(self) -> Table:
        """The same rows with a column of 0 and 1 for each symbol in place of each symbolic column.

        KDD Cup 99 goes from 41 to the 121 columns of the literature.
        """
        blocks: list[Tensor] = []
        names: list[str] = []
        for column, feature in zip(self.x.unbind(1), self.features, strict=True):
            if (symbols := self.symbols.get(feature)) is None:
                blocks.append(column[:, None])
                names.append(feature)
            else:
                blocks.append(F.one_hot(column.long(), len(symbols)).to(torch.float64))
                names += [f"{feature}={symbol}" for symbol in symbols]
        return replace(self, x=torch.cat(blocks, 1), features=tuple(names), symbols={})
