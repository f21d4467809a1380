"""Weights at the points of Winograd's scheme, as the factors of its matrix products."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from addis.nn._packed import PackedFactors
from addis.nn._scheme import BACKWARD, FORWARD, PATCH, TILE, WEIGHT, Scheme
from addis.nn._tiles import spectra_of

__all__ = ["FixedPoints", "Points", "transformed"]

_FEWEST_PACKED_CHANNELS = 512
"""With fewer the products of MKL are as quick as oneDNN's (measured with one thread and two)."""
_USES = 32
"""Parts of a batch after which oneDNN's order has cost no more than it would have saved."""


class Points:
    """Weights at the points, ``(36, I, O)`` in parts.

    Attributes:
        channels: Channels of the output, O.
    """

    def __init__(self, parts: Sequence[Tensor], scheme: Scheme = FORWARD) -> None:
        self._parts, self._scheme = parts, scheme
        self.channels = parts[0].shape[2]

    def turned(self) -> Points:
        """The factors of the convolution backwards, from those of the convolution."""
        return Points([part.transpose(1, 2) for part in self._parts], BACKWARD)

    def tiles(self, patches: Tensor) -> Tensor:
        """Outputs ``(4, 4, n, rows, columns, O)`` of patches ``(6, 6, n, rows, columns, I)``."""
        spectra = spectra_of(patches, self._scheme.into.to(patches))
        products = spectra.new_empty(PATCH**2, spectra.shape[1], self.channels)
        count = len(self._parts)
        shares = (spectra.chunk(count), self._parts, products.chunk(count))
        for spectrum, factor, product in zip(*shares, strict=True):
            torch.bmm(spectrum, factor, out=product)
        tiles = self._scheme.out_of.to(patches) @ products.flatten(1)
        return tiles.view(TILE, TILE, *patches.shape[2:5], self.channels)


class _PackedPoints:
    """Fixed weights at the points, in the order of oneDNN's kernel for a number of tiles.

    For another number the order is made anew when that number has cost about as much.
    """

    def __init__(self, weight: Tensor, *, back: bool) -> None:
        self._weight = weight.transpose(0, 1) if back else weight
        self._scheme = BACKWARD if back else FORWARD
        self._factors: PackedFactors | None = None

    def tiles(self, patches: Tensor) -> Tensor:
        """See :meth:`Points.tiles`."""
        n, rows, columns, inputs = patches.shape[2:]
        count = n * rows * columns
        factors = self._factors  # read once: another thread may put another in its place
        if factors is None or not factors.suit(count):
            factors = self._factors = PackedFactors(_at_points(self._weight), count)
        spectra = patches.new_empty(factors.room(count), PATCH**2, inputs)
        flat = patches.permute(2, 3, 4, 0, 1, 5).reshape(count, PATCH**2, inputs)
        torch.matmul(self._scheme.into.to(patches), flat, out=spectra[:count])
        spectra[count:] = 0
        tiles = self._scheme.out_of.to(patches) @ factors.multiply(spectra)[:count]
        return tiles.view(n, rows, columns, TILE, TILE, -1).permute(3, 4, 0, 1, 2, 5)


class FixedPoints:
    """Weights ``(O, I, 3, 3)`` that do not change, at the points.

    Wide ones that are used often go over to oneDNN's order.
    """

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight
        wide = min(weight.shape[:2]) >= _FEWEST_PACKED_CHANNELS
        self._packs = wide and weight.dtype == torch.float32 and PackedFactors.available()
        self._uses = 0
        with torch.inference_mode(False):  # or no later pass could go backwards
            points = Points([_at_points(weight.transpose(0, 1))])
        self._ways: tuple[Points, Points] | tuple[_PackedPoints, _PackedPoints]
        self._ways = points, points.turned()

    def channels(self, back: bool) -> int:
        """Channels that come out."""
        return self._weight.shape[1 if back else 0]

    def tiles(self, patches: Tensor, back: bool) -> Tensor:
        """See :meth:`Points.tiles`; ``back``: of the gradient of the input."""
        self._uses += 1
        if self._packs and self._uses > _USES and isinstance(self._ways[0], Points):
            self._ways = (
                _PackedPoints(self._weight, back=False),
                _PackedPoints(self._weight, back=True),
            )
        return self._ways[back].tiles(patches)


def transformed(weight: Tensor) -> list[Tensor]:
    """Weights ``(O, I, 3, 3)`` at the points, six times ``(6, I, O)``."""
    flat = weight.permute(2, 3, 0, 1).reshape(9, -1)
    return [
        (rows @ flat).view(PATCH, *weight.shape[:2]).transpose(1, 2)
        for rows in WEIGHT.to(weight).chunk(PATCH)
    ]


def _at_points(weight: Tensor) -> Tensor:
    """Weights ``(A, B, 3, 3)`` at the points, ``(36, A, B)``."""
    flat = weight.permute(2, 3, 0, 1).reshape(9, -1)
    return (WEIGHT.to(flat) @ flat).view(-1, *weight.shape[:2])
