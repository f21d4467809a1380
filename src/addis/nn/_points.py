"""Weights at the points of Winograd's scheme, as the factors of its matrix products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from addis.nn._packed import PackedFactors
from addis.nn._scheme import BACKWARD, FORWARD, PATCH, TILE, WEIGHT, Scheme
from addis.nn._tiles import spectra_of

__all__ = ["AnyPoints", "FixedPoints", "Points", "transformed"]

_FEWEST_PACKED_CHANNELS = 512
"""With fewer the products of MKL are as quick as oneDNN's (measured with one thread and two)."""


class AnyPoints(Protocol):
    """Weights at the points, whatever multiplies by them.

    Attributes:
        channels: Channels of the output, O.
    """

    channels: int

    def tiles(self, patches: Tensor) -> Tensor:
        """Outputs ``(4, 4, n, rows, columns, O)`` of patches ``(6, 6, n, rows, columns, I)``."""


class Points:
    """Weights at the points, ``(36, I, O)`` in parts."""

    def __init__(self, parts: Sequence[Tensor], scheme: Scheme = FORWARD) -> None:
        self._parts, self._scheme = parts, scheme
        self.channels = parts[0].shape[2]

    def turned(self) -> Points:
        """The factors of the convolution backwards, from those of the convolution."""
        return Points([part.transpose(1, 2) for part in self._parts], BACKWARD)

    def tiles(self, patches: Tensor) -> Tensor:
        """See :class:`AnyPoints`."""
        spectra = spectra_of(patches, self._scheme.into.to(patches))
        products = spectra.new_empty(PATCH**2, spectra.shape[1], self.channels)
        count = len(self._parts)
        shares = (spectra.chunk(count), self._parts, products.chunk(count))
        for spectrum, factor, product in zip(*shares, strict=True):
            torch.bmm(spectrum, factor, out=product)
        tiles = self._scheme.out_of.to(patches) @ products.flatten(1)
        return tiles.view(TILE, TILE, *patches.shape[2:5], self.channels)


class _PackedPoints:
    """Fixed weights at the points, in the order of oneDNN's kernel.

    The order is made anew for more tiles at a time than before, and for fewer when filling up has
    cost about as much as that.
    """

    def __init__(self, weight: Tensor, *, back: bool) -> None:
        self._weight, self._back = weight, back
        self._scheme = BACKWARD if back else FORWARD
        self.channels = weight.shape[1 if back else 0]
        self._factors: PackedFactors | None = None

    def tiles(self, patches: Tensor) -> Tensor:
        """See :class:`AnyPoints`."""
        n, rows, columns, inputs = patches.shape[2:]
        count = n * rows * columns
        factors = self._packed(count)
        spectra = patches.new_empty(factors.rows, PATCH**2, inputs)
        flat = patches.permute(2, 3, 4, 0, 1, 5).reshape(count, PATCH**2, inputs)
        torch.matmul(self._scheme.into.to(patches), flat, out=spectra[:count])
        spectra[count:] = 0
        tiles = self._scheme.out_of.to(patches) @ factors.multiply(spectra)[:count]
        tiles = tiles.view(n, rows, columns, TILE, TILE, self.channels)
        return tiles.permute(3, 4, 0, 1, 2, 5)

    def _packed(self, rows: int) -> PackedFactors:
        factors = self._factors
        if factors is None or not factors.suit(rows):
            (points,) = _whole(self._weight)
            factors = PackedFactors(points.transpose(1, 2) if self._back else points, rows)
            self._factors = factors
        return factors


class FixedPoints:
    """Weights ``(O, I, 3, 3)`` that do not change, at the points, in the form that is quicker.

    Attributes:
        forwards: The factors of the convolution.
        backwards: Those of the gradient of its input.
    """

    def __init__(self, weight: Tensor) -> None:
        self.forwards: AnyPoints
        self.backwards: AnyPoints
        wide = min(weight.shape[:2]) >= _FEWEST_PACKED_CHANNELS
        if wide and weight.dtype == torch.float32 and PackedFactors.available():
            self.forwards = _PackedPoints(weight, back=False)
            self.backwards = _PackedPoints(weight, back=True)
        else:
            points = Points(_whole(weight))
            self.forwards, self.backwards = points, points.turned()


def transformed(weight: Tensor) -> list[Tensor]:
    """Weights ``(O, I, 3, 3)`` at the points, six times ``(6, I, O)``."""
    flat = weight.permute(2, 3, 0, 1).reshape(9, -1)
    return [
        (rows @ flat).view(PATCH, *weight.shape[:2]).transpose(1, 2)
        for rows in WEIGHT.to(weight).chunk(PATCH)
    ]


def _whole(weight: Tensor) -> list[Tensor]:
    """Weights ``(O, I, 3, 3)`` at the points, once ``(36, I, O)``."""
    with torch.inference_mode(False):  # or no later pass could go backwards
        flat = weight.permute(2, 3, 1, 0).reshape(9, -1)
        return [(WEIGHT.to(flat) @ flat).view(-1, weight.shape[1], weight.shape[0])]
