"""Matrix products with factors that do not change, by oneDNN.

oneDNN reads factors in an order of its own, which it would otherwise make anew at every product.
PyTorch has this for its compiler alone: the operators are no part of its public interface, and
where they are absent nothing here is used.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

__all__ = ["PackedFactors"]

_NONE: Final = [0, 0]
_ONE: Final = [1, 1]
_PATIENCE = 400
"""Rows that take as long to multiply as the factors to make in another order (measured)."""
_READING = 5
"""Rows that take as long to multiply as the factors to read once more (measured)."""


class PackedFactors:
    """Factors in the order that suits a number of rows and of threads.

    With another number oneDNN may want another order, and would need fifty times as long. So any
    number is cut into pieces of this one, and the last is filled up.

    Args:
        factors: One matrix for each point, turned, ``(P, O, I)``, in float32 on the CPU.
        rows: Rows that are multiplied by each of them.
    """

    def __init__(self, factors: Tensor, rows: int) -> None:
        self.rows = rows
        self._points, self._outputs, inputs = factors.shape
        self._threads = torch.get_num_threads()
        self._wasted = 0
        kernels = factors.view(-1, inputs, 1, 1)
        image = [1, self._points * inputs, rows, 1]
        self._kernels = _operators()._reorder_convolution_weight(
            kernels, _NONE, _ONE, _ONE, self._points, image
        )

    @staticmethod
    def available() -> bool:
        """Whether this build of PyTorch has the operators, and the user has not turned them off."""
        backend: Any = torch.backends.mkldnn
        names = ("_reorder_convolution_weight", "_convolution_pointwise")
        found = backend.is_available() and all(hasattr(_operators(), name) for name in names)
        return bool(found and backend.enabled)

    def suit(self, rows: int) -> bool:
        """Whether to go on with this order for so many rows: not if other numbers than
        :attr:`rows` have cost as much by now as an order of their own.
        """
        if torch.get_num_threads() != self._threads:
            return False
        extra = self.room(rows) - rows + _READING * (self.room(rows) // self.rows - 1)
        self._wasted = self._wasted + extra if extra else 0
        return self._wasted <= _PATIENCE

    def room(self, rows: int) -> int:
        """Rows that so many take, filled up."""
        return -(-rows // self.rows) * self.rows

    def multiply(self, rows: Tensor) -> Tensor:
        """Rows ``(R, P, I)`` by the factor of each point, ``(R, P, O)``; R as of :meth:`room`."""
        found = [self._product(piece) for piece in torch.split(rows, self.rows)]
        return found[0] if len(found) == 1 else torch.cat(found)

    def _product(self, piece: Tensor) -> Tensor:
        image = piece.view(1, self.rows, 1, -1).permute(0, 3, 1, 2)  # a row is a pixel
        found: Tensor = _operators()._convolution_pointwise(
            image, self._kernels, None, _NONE, _ONE, _ONE, self._points, "none", [], ""
        )
        return found.permute(0, 2, 3, 1).view(self.rows, self._points, self._outputs)


def _operators() -> Any:
    return torch.ops.mkldnn
