"""Learning-rate schedules: plain functions from the gradient step to a factor of the initial rate.

Each function here returns a schedule ``factor(t)`` for ``t = 0, 1, 2, ...``, the number of gradient
steps taken so far, never of epochs. Give it to ``torch.optim.lr_scheduler.LambdaLR`` and give that
to :func:`addis.train.epochs`, which steps it once after every gradient step. To think in epochs,
multiply by ``len(loader)``: a drop after 30 epochs is ``multistep([30 * len(loader)])``. What torch
already has as a class (``OneCycleLR``, ``ExponentialLR``, ``SequentialLR``, ...) is taken from
there and works in the same place.

Examples:
    >>> import torch
    >>> from addis.train import schedules
    >>> optimizer = torch.optim.SGD(torch.nn.Linear(2, 1).parameters(), lr=0.1)
    >>> schedule = schedules.cosine(1000, warmup=100)
    >>> scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    >>> [round(0.1 * schedule(t), 4) for t in (0, 99, 550, 1000)]
    [0.001, 0.1, 0.05, 0.0]
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence

__all__ = ["Schedule", "constant", "cosine", "inverse_root", "multistep"]

Schedule = Callable[[int], float]
"""From the number of gradient steps taken, ``>= 0``, to the factor of the initial learning rate."""


def constant(*, warmup: int = 0) -> Schedule:
    """Builds the schedule that stays at 1 after a linear warm-up.

    Args:
        warmup: Gradient steps of the warm-up, ``>= 0``: step ``t < warmup`` has ``(t + 1) /
            warmup``.

    Raises:
        ValueError: ``warmup < 0``.
    """
    _check_warmup(warmup)
    return lambda t: (t + 1) / warmup if t < warmup else 1.0


def cosine(steps: int, *, warmup: int = 0, final: float = 0.0) -> Schedule:
    """Builds half a period of a cosine, from 1 after the warm-up to ``final`` at ``steps``.

    ``final + (1 - final) (1 + cos(pi (t - warmup) / (steps - warmup))) / 2``; from ``steps`` on it
    stays at ``final`` (I. Loshchilov, F. Hutter, 2017, arXiv:1608.03983, eq. 5 without restarts).

    Args:
        steps: Gradient steps of the whole run, ``> warmup``: ``epochs * len(loader)``.
        warmup: Gradient steps of the linear warm-up, ``>= 0``, counted within ``steps``.
        final: Last factor, in ``[0, 1]``.

    Raises:
        ValueError: An argument is out of its range.
    """
    _check_warmup(warmup)
    if steps <= warmup:
        raise ValueError(f"steps must be > warmup = {warmup}, got {steps}")
    if not 0 <= final <= 1:
        raise ValueError(f"final must be in [0, 1], got {final}")

    def factor(t: int) -> float:
        if t < warmup:
            return (t + 1) / warmup
        done = min((t - warmup) / (steps - warmup), 1.0)
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done))

    return factor


def multistep(milestones: Sequence[int], *, gamma: float = 0.1, warmup: int = 0) -> Schedule:
    """Builds the schedule that multiplies by ``gamma`` at each milestone.

    Args:
        milestones: Gradient steps at which the factor drops, rising; step ``milestones[0]`` is the
            first with ``gamma``.
        gamma: What the factor is multiplied by, ``> 0``.
        warmup: Gradient steps of the linear warm-up, ``>= 0``, before the first milestone.

    Raises:
        ValueError: The milestones do not rise from above ``warmup``, or ``gamma <= 0``.
    """
    _check_warmup(warmup)
    drops = list(milestones)
    if any(b <= a for a, b in zip([warmup, *drops], drops, strict=False)):
        raise ValueError(f"milestones must rise and lie above warmup = {warmup}, got {drops}")
    if not gamma > 0:
        raise ValueError(f"gamma must be > 0, got {gamma}")
    return lambda t: (t + 1) / warmup if t < warmup else gamma ** bisect_right(drops, t)


def inverse_root(period: int = 512) -> Schedule:
    """Builds the schedule ``1 / sqrt(1 + floor(t / period))`` of the double-descent paper.

    Args:
        period: Gradient steps between two drops, ``>= 1``. The paper uses 512 with an initial rate
            of 0.1 (P. Nakkiran et al., ICLR 2020, arXiv:1912.02292, appendix B).

    Raises:
        ValueError: ``period < 1``.

    Examples:
        >>> factor = inverse_root()
        >>> [round(0.1 * factor(t), 7) for t in (0, 511, 512, 1024)]
        [0.1, 0.1, 0.0707107, 0.057735]
    """
    if period < 1:
        raise ValueError(f"period must be >= 1, got {period}")
    return lambda t: 1 / math.sqrt(1 + t // period)


def _check_warmup(warmup: int) -> None:
    if warmup < 0:
        raise ValueError(f"warmup must be >= 0, got {warmup}")
