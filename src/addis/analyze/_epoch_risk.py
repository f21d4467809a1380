"""Epoch-wise double descent that can be solved on paper: features learnt at different speeds.

Paper: R. Heckel and F. F. Yilmaz, "Early Stopping in Deep Networks: Double Descent and How to
Eliminate it", ICLR 2021, arXiv:2007.10099, which explains the epoch-wise bump of P. Nakkiran et
al., ICLR 2020, by two superposed bias-variance trade-offs, not by one threshold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

__all__ = ["TWO_SPEEDS", "OrthogonalDesign", "epoch_risk", "simulated_epoch_risk", "turning_points"]


@dataclass(frozen=True, slots=True)
class OrthogonalDesign:
    """A linear regression with orthogonal features of different scales.

    Args:
        scales: ``s_i``, standard deviation of each feature.
        theta: True weights.
        sigma: Standard deviation of the label noise.
        n: Training samples.
        lr: Step size of gradient descent.
    """

    scales: tuple[float, ...]
    theta: tuple[float, ...]
    sigma: float
    n: int
    lr: float

    def risk(self, t: Tensor, *, equalised: bool = False) -> Tensor:
        """:func:`epoch_risk` after ``t`` steps; ``equalised`` divides each feature's step size by
        ``s_i^2``.
        """
        scales = torch.tensor(self.scales, dtype=torch.float64)
        theta = torch.tensor(self.theta, dtype=torch.float64)
        energy = scales.square()
        lr = self.lr / torch.where(energy > 0, energy, 1) if equalised else self.lr
        return epoch_risk(scales, theta, self.sigma, self.n, lr, t)


TWO_SPEEDS: Final = OrthogonalDesign(
    scales=(1.0,) * 20 + (0.1,) * 20,
    theta=((1 / 60) ** 0.5,) * 20 + ((3 / 60) ** 0.5 / 0.1,) * 20,
    sigma=1.0,
    n=60,
    lr=0.1,
)
"""Twenty fast features and twenty that are learnt a hundred times more slowly and matter three
times as much.
"""


def epoch_risk(
    scales: Tensor, theta: Tensor, sigma: float, n: int, lr: float | Tensor, t: Tensor
) -> Tensor:
    r"""Expected excess risk of gradient descent from zero on ``(1 / 2n) ||X b - y||^2`` after ``t``
    steps.

    For orthogonal features, ``X^T X / n = diag(s_i^2)``, with ``v = sigma^2 / n`` and ``q_i = (1 -
    lr s_i^2)^t``:

        ``R(t) = sum_i [ s_i^2 theta_i^2 q_i^2 + v (1 - q_i)^2 ]``.

    Each feature has a U-curve of its own, with minimum ``s^2 theta^2 v / (s^2 theta^2 + v)`` and
    end value ``v``; two speeds superpose two of them. A feature of scale 0 is not learnt and costs
    nothing.

    >>> risk = TWO_SPEEDS.risk(torch.tensor([0, 7, 34, 1386]))
    >>> [round(value, 4) for value in risk.tolist()]  # start, minimum, maximum, minimum
    [1.3333, 1.1531, 1.2499, 0.5833]

    Args:
        scales: ``s_i``, ``(D,)``; 0 is allowed.
        theta: ``theta_i``, ``(D,)``.
        sigma: Standard deviation of the label noise, ``>= 0``.
        n: Training samples, ``>= D``: orthogonal features need as many.
        lr: Step size, ``> 0``, or one for each feature ``(D,)``.
        t: Numbers of steps ``(T,)``, whole, ``>= 0``.

    Returns:
        float64 ``(T,)``.

    Raises:
        ValueError: Shapes that differ, ``n < D``, ``sigma < 0``, steps that are negative or not
            whole, or an ``lr`` that is not positive or diverges.
    """
    if scales.dim() != 1 or scales.shape != theta.shape:
        raise ValueError(
            f"scales and theta must be (D,), got {tuple(scales.shape)} and {tuple(theta.shape)}"
        )
    if n < len(scales) or sigma < 0:
        raise ValueError(f"need n >= {len(scales)} features and sigma >= 0, got {n} and {sigma}")
    t = t.double()
    if t.dim() != 1 or not bool(((t >= 0) & (t == t.floor())).all()):
        raise ValueError(f"t must be (T,), whole and >= 0, got {t}")
    energy = scales.double().square()
    rate = torch.as_tensor(lr, dtype=torch.float64)
    shrink = rate * energy
    if not (bool((rate > 0).all()) and bool((shrink < 2).all())):
        raise ValueError(
            "lr must be > 0 and lr * scales^2 < 2 to converge, "
            f"got {rate.min():.4g} and up to {shrink.max():.4g}"
        )
    left = (1 - shrink) ** t[:, None]  # q_i, (T, D)
    signal = energy * theta.double().square()
    return (signal * left.square() + sigma**2 / n * (1 - left).square()).sum(1)


def simulated_epoch_risk(
    design: OrthogonalDesign, *, steps: int, draws: int, generator: torch.Generator
) -> Tensor:
    """Excess risk of explicit gradient descent on drawn data, the check on :func:`epoch_risk`.

    A design matrix with ``X^T X / n = diag(s^2)`` is drawn once, labels ``draws`` times.

    Args:
        design: The regression.
        steps: Gradient steps, ``>= 0``.
        draws: Independent label vectors, ``>= 1``.
        generator: CPU source of the design and the labels.

    Returns:
        Risk of each draw after ``0 ... steps`` steps, float64 ``(draws, steps + 1)``.

    Raises:
        ValueError: ``steps < 0`` or ``draws < 1``.
    """
    if steps < 0 or draws < 1:
        raise ValueError(f"need steps >= 0 and draws >= 1, got {steps} and {draws}")
    scales = torch.tensor(design.scales, dtype=torch.float64)
    theta = torch.tensor(design.theta, dtype=torch.float64)
    n, d = design.n, len(scales)
    raw = torch.randn(n, d, dtype=torch.float64, generator=generator)
    X = torch.linalg.qr(raw).Q * scales * n**0.5
    noise = torch.randn(draws, n, dtype=torch.float64, generator=generator)
    y = X @ theta + design.sigma * noise  # (draws, n)
    weights = torch.zeros(draws, d, dtype=torch.float64)
    risk = torch.empty(draws, steps + 1, dtype=torch.float64)
    for step in range(steps + 1):
        risk[:, step] = ((weights - theta) * scales).square().sum(1)
        weights = weights - design.lr / n * (weights @ X.T - y) @ X
    return risk


def turning_points(risk: Tensor) -> tuple[list[int], list[int]]:
    """Indices of the interior minima and maxima of a curve, a flat stretch counted once at its
    first index.

    >>> turning_points(torch.tensor([3.0, 1.0, 1.0, 2.0, 0.0, 1.0]))
    ([1, 4], [3])

    Args:
        risk: ``(T,)``.

    Raises:
        ValueError: More than one dimension.
    """
    if risk.dim() != 1:
        raise ValueError(f"risk must be (T,), got shape {tuple(risk.shape)}")
    slope = risk.diff().sign().tolist()
    minima: list[int] = []
    maxima: list[int] = []
    last, since = 0.0, 0
    for index, direction in enumerate(slope):
        if direction == 0:
            continue
        if last * direction < 0:
            (minima if direction > 0 else maxima).append(since)
        last, since = direction, index + 1
    return minima, maxima
