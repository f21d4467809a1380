"""How tiles of an image and weights of 3 x 3 enter Winograd's products, and how they leave them.

Paper: A. Lavin, S. Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016,
arXiv:1509.09308. A tile of 4 x 4 outputs is A[(G w G') * (B d B')]A' for a patch ``d`` of 6 x 6
inputs. Products of polynomials are found from their values at 0, +-3/4, +-3/2 and infinity, where
float32 rounds half as much as at 0, +-1, +-2 and infinity, the paper's.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Final, NamedTuple

import torch
from torch import Tensor

__all__ = ["BACKWARD", "FORWARD", "PATCH", "TILE", "WEIGHT", "Scheme"]

TILE: Final = 4
PATCH: Final = 6


class Scheme(NamedTuple):
    """How patches enter ``(36, 36)``, and how tiles leave ``(16, 36)``."""

    into: Tensor
    out_of: Tensor


def _toom_cook(points: Sequence[Fraction | None]) -> tuple[Tensor, Tensor, Tensor]:
    """``A (4, 6)``, ``B (6, 6)`` and ``G (6, 3)`` of six points, one of them ``None``: infinity.

    A row of ``G`` is the filter's polynomial at a point, over the product of the distances to the
    other finite points; one of ``B`` the polynomial of those others.
    """
    finite = [p for p in points if p is not None]
    a: list[list[Fraction]] = []
    b: list[list[Fraction]] = []
    g: list[list[Fraction]] = []
    for point in points:
        others = [p for p in finite if p != point]
        polynomial = [Fraction(1)]
        scale = Fraction(1)
        for p in others:
            shifted, same = [Fraction(0), *polynomial], [*polynomial, Fraction(0)]
            polynomial = [s - p * c for s, c in zip(shifted, same, strict=True)]
            scale *= 1 if point is None else point - p
        b.append((polynomial + [Fraction(0)] * PATCH)[:PATCH])
        g.append([_power(point, k, 2) / scale for k in range(3)])
        a.append([_power(point, k, TILE - 1) for k in range(TILE)])
    double = torch.float64
    return (
        torch.tensor([[float(v) for v in row] for row in a], dtype=double).t().contiguous(),
        torch.tensor([[float(v) for v in row] for row in b], dtype=double),
        torch.tensor([[float(v) for v in row] for row in g], dtype=double),
    )


def _power(point: Fraction | None, exponent: int, highest: int) -> Fraction:
    return Fraction(exponent == highest) if point is None else point**exponent


def _schemes() -> tuple[Scheme, Scheme, Tensor]:
    """Forwards, backwards, and how weights enter ``(36, 9)``, the same both ways.

    Backwards the filter is turned round. A turned polynomial at 1/p is that at p over p squared, so
    the same products of weights serve at the inverse points, up to a factor each.
    """
    quarter = Fraction(1, 4)
    points = [Fraction(0), 3 * quarter, -3 * quarter, 6 * quarter, -6 * quarter, None]
    a, b, g = _toom_cook(points)
    inverse = [None if p == 0 else Fraction(0) if p is None else 1 / p for p in points]
    a_back, b_back, g_back = _toom_cook(inverse)
    factor = g_back.sum(1) / g.sum(1)  # of the filter (1, 1, 1), which is its own reverse
    b_back *= factor[:, None]
    return (
        Scheme(torch.kron(b, b), torch.kron(a, a)),
        Scheme(torch.kron(b_back, b_back), torch.kron(a_back, a_back)),
        torch.kron(g, g),
    )


FORWARD, BACKWARD, WEIGHT = _schemes()
