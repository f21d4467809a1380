"""Random features: a fixed random layer whose width is the number of parameters of the linear model
on top.

Paper: P. Nakkiran et al., "Deep Double Descent", ICLR 2020, arXiv:1912.02292, appendix on random
features; features of A. Rahimi and B. Recht, "Random Features for Large-Scale Kernel Machines",
NeurIPS 2007 (Fourier).
Departures: the features of one generator are nested (the first p are the same whatever the largest
p), so that curves along p are smooth for each seed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = ["FeatureKind", "Features", "random_features"]

FeatureKind = Literal["relu", "fourier", "erf"]

_BLOCK = (
    256  # features are drawn this many at a time: the first ones never depend on how many follow
)


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """A drawn layer of random features; index letters ``N`` samples, ``D`` inputs, ``p`` features.

    Args:
        weight: float64 ``(p_max, D)``.
        bias: float64 ``(p_max,)``; zero except for Fourier features.
        centre: float64 ``(D,)``, subtracted from the inputs.
        kind: Which non-linearity.
    """

    weight: Tensor
    bias: Tensor
    centre: Tensor
    kind: FeatureKind

    @property
    def p_max(self) -> int:
        """Number of features drawn."""
        return len(self.weight)

    def __call__(self, X: Tensor, p: int | None = None) -> Tensor:
        """The design matrix of the first ``p`` features, float64 ``(N, p)``, all of them by
        default.

        Raises:
            ValueError: ``p`` is not in ``1 ... p_max``, or the inputs have another dimension.
        """
        p = self.p_max if p is None else p
        if not 1 <= p <= self.p_max:
            raise ValueError(f"p must be in 1 ... {self.p_max}, got {p}")
        return self.unscaled(X, 0, p) / math.sqrt(p)

    def unscaled(self, X: Tensor, start: int, stop: int) -> Tensor:
        """Features ``start ... stop - 1`` before the division by ``sqrt(p)``, float64 ``(N, stop -
        start)``.
        """
        flat = X.flatten(1).to(torch.float64)
        if flat.shape[1] != self.weight.shape[1]:
            raise ValueError(
                f"X must have {self.weight.shape[1]} values a sample, got {flat.shape[1]}"
            )
        projected = (flat - self.centre) @ self.weight[start:stop].T
        if self.kind == "relu":
            return projected.relu_()
        if self.kind == "erf":
            return projected.erf_()
        return projected.add_(self.bias[start:stop]).cos_().mul_(math.sqrt(2.0))


def random_features(
    X: Tensor,
    p_max: int,
    *,
    kind: FeatureKind = "relu",
    scale: float = 3.0,
    generator: torch.Generator,
) -> Features:
    r"""Draws ``p_max`` random features for inputs like ``X``.

    With ``W`` of ``(p, D)`` Gaussian entries of standard deviation ``scale / sqrt(D)`` and centred
    inputs ``x``: ``relu(W x) / sqrt(p)``, ``erf(W x) / sqrt(p)`` or ``sqrt(2 / p) cos(W x + b)``
    with ``b`` uniform on ``[0, 2 pi)``; the last has the Gaussian kernel of bandwidth ``sqrt(D) /
    scale`` as its limit.

    >>> source = torch.Generator().manual_seed(0)
    >>> features = random_features(torch.rand(5, 64), 100, generator=source)
    >>> features(torch.rand(7, 64), 30).shape
    torch.Size([7, 30])

    Args:
        X: ``(N, ...)``, any float dtype; sets the input dimension ``D``, the centre and the device.
        p_max: Largest number of features, ``>= 1``. The first ``p`` do not depend on it.
        kind: The non-linearity.
        scale: Standard deviation of the pre-activations for inputs of unit variance, ``> 0``.
        generator: CPU source of the weights.

    Raises:
        TypeError: ``X`` is not a float tensor.
        ValueError: ``p_max < 1``, ``scale <= 0``, an unknown ``kind``, an empty ``X`` or a value
            that is not finite.
    """
    if p_max < 1:
        raise ValueError(f"p_max must be >= 1, got {p_max}")
    if not scale > 0:
        raise ValueError(f"scale must be > 0, got {scale}")
    if kind not in ("relu", "fourier", "erf"):
        raise ValueError(f"kind must be 'relu', 'fourier' or 'erf', got {kind!r}")
    if not X.is_floating_point():
        raise TypeError(f"X must be a float tensor, got {X.dtype}")
    if X.dim() < 2 or X.numel() == 0:
        raise ValueError(f"X must be (N, ...) and not empty, got shape {tuple(X.shape)}")
    flat = X.flatten(1).to(torch.float64)
    if not bool(torch.isfinite(flat).all()):
        raise ValueError("X must be finite, got NaN or infinity")
    d = flat.shape[1]
    weights, biases = [], []
    for _ in range(math.ceil(p_max / _BLOCK)):
        weights.append(torch.randn(_BLOCK, d, generator=generator, dtype=torch.float64))
        biases.append(torch.rand(_BLOCK, generator=generator, dtype=torch.float64))
    weight = torch.cat(weights)[:p_max] * (scale / math.sqrt(d))
    bias = torch.cat(biases)[:p_max] * (2 * math.pi if kind == "fourier" else 0.0)
    return Features(weight.to(flat.device), bias.to(flat.device), flat.mean(0), kind)
