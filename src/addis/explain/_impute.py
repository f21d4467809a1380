"""Noisy linear imputation: missing pixels that do not betray the shape of what was removed.

Paper: Y. Rong, T. Leemann, V. Borisov, G. Kasneci, E. Kasneci, "A Consistent and Efficient
Evaluation Strategy for Attribution Methods" (ROAD), ICML 2022, arXiv:2202.00449, section 5.
Departures: the authors solve a sparse system an image on the host; here all images are solved at
once on their device, by conjugate gradients preconditioned with a multigrid cycle, to the same
solution. An image of which nothing is known becomes its own channel means (its system is singular,
and the authors' code fails).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["noisy_linear"]

_DAMPING = 0.8
"""Of the Jacobi smoother. Any value in (0, 1] converges; 0.8 needs the fewest cycles on photographs
(measured).
"""


def noisy_linear(
    images: Tensor,
    missing: Tensor,
    *,
    noise: float = 0.01,
    tolerance: float = 1e-6,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Replaces the missing pixels by weighted means of their neighbours, solved jointly, plus
    noise.

    A missing pixel equals the weighted mean of its up to eight neighbours in the image, missing
    ones included: weight 1/6 for the four that share a side, 1/12 for the four that share a corner,
    divided by their sum (which is 1 away from the border). That is one linear system an image,
    symmetric and positive definite, with the channels as right-hand sides. Ten to twenty iterations
    solve it whatever the size and the shape of the image.

    Args:
        images: ``(N, C, H, W)``, floating; what stands at the missing pixels is not read.
        missing: Boolean ``(N, H, W)``.
        noise: Standard deviation of the Gaussian noise added to each imputed value, in the units of
            ``images``. The authors use 0.01.
        tolerance: Largest residual of an equation allowed, as a fraction of the image's largest
            known value. The default leaves errors of about 1e-5 of that value in float32.
        generator: CPU source of the noise. ``None`` means torch's default.

    Returns:
        A new tensor ``(N, C, H, W)`` of the same dtype and device, without a gradient. Known pixels
        are unchanged.

    Raises:
        ValueError: A shape is wrong, ``noise < 0`` or ``tolerance <= 0``.
        TypeError: ``images`` is not floating, or ``missing`` is not boolean.
        RuntimeError: The tolerance is not reached, which means that it is below the precision of
            the dtype.
    """
    _check(images, missing, noise, tolerance)
    solved = solve(images, missing, tolerance=tolerance)
    if noise:
        draw = torch.randn(images.shape, generator=generator).to(images.device, images.dtype)
        solved = torch.where(missing[:, None], solved + noise * draw, solved)
    return solved


def solve(images: Tensor, missing: Tensor, *, tolerance: float) -> Tensor:
    """Imputation without noise and checks: the harmonic extension of the known pixels."""
    images = images.detach()
    precise = images if images.dtype == torch.float64 else images.float()
    hidden = missing[:, None]
    known = (~hidden).to(precise.dtype)
    given = precise.masked_fill(hidden, 0)
    levels = _levels(1 - known)
    target = levels[0].mask * _neighbours(given)
    start = levels[0].mask * _pull_push(given, known)
    limit = 12 * tolerance * given.abs().amax((1, 2, 3), keepdim=True)
    found = _conjugate_gradients(levels, target, start, limit)
    nothing = missing.flatten(1).all(1)[:, None, None, None]
    found = torch.where(nothing, precise.mean((2, 3), keepdim=True), found)
    return torch.where(hidden, found, precise).to(images.dtype)


@dataclass(frozen=True, slots=True)
class _Level:
    """The system on one grid; values live on it as ``(N, C, h, w)``, zero outside the mask.

    Args:
        mask: 1 at the unknowns, ``(N, 1, h, w)``.
        diagonal: Of the matrix, ``(1, 1, h, w)``.
        inverse: Damped inverse of the diagonal, zero outside the mask, ``(N, 1, h, w)``.
    """

    mask: Tensor
    diagonal: Tensor
    inverse: Tensor

    def apply(self, values: Tensor) -> Tensor:
        """The matrix of the system times ``values``."""
        return (self.diagonal * values).sub_(_neighbours(values)).mul_(self.mask)

    def smooth(self, values: Tensor, target: Tensor) -> Tensor:
        """One damped Jacobi step."""
        return torch.addcmul(values, self.inverse, target - self.apply(values))


def _conjugate_gradients(
    levels: list[_Level], target: Tensor, found: Tensor, limit: Tensor, most: int = 100
) -> Tensor:
    """Solves all systems at once, a step size for each channel of each image."""
    system = levels[0]
    residual = target - system.apply(found)
    direction = torch.zeros_like(found)
    before = torch.ones_like(found[:, :, :1, :1])
    tiny = torch.finfo(found.dtype).tiny
    for _ in range(most):
        if bool((residual.abs() <= limit).all()):
            # The recursion's residual shrinks for ever; the equations say how good the values are.
            residual = target - system.apply(found)
            if bool((residual.abs() <= limit).all()):
                return found
            direction = torch.zeros_like(found)
        step = _cycle(levels, residual)
        energy = _inner(residual, step)
        direction = step + (energy / before) * direction
        image = system.apply(direction)
        # A system that is solved exactly has no direction left: 0 / 0 must be 0.
        rate = energy / _inner(direction, image).clamp_min(tiny)
        found = found + rate * direction
        residual = residual - rate * image
        before = energy.clamp_min(tiny)
    raise RuntimeError(
        f"noisy linear imputation did not reach its tolerance in {most} steps of {found.dtype}; "
        "raise tolerance or use a wider dtype"
    )


def _cycle(levels: list[_Level], residual: Tensor) -> Tensor:
    """A symmetric multigrid V-cycle: an approximate inverse of the system's matrix, applied to
    ``residual``.

    A coarse pixel is an unknown where all the fine ones that it holds are. Restriction sums them,
    prolongation repeats one: transposes of each other, with the same smoothing before and after, so
    that the cycle is symmetric as conjugate gradients need. Of a row of pixels the coarse system
    joins two that are twice as far apart, half as strongly: instead, the sum is doubled.
    """
    level = levels[0]
    guess = level.inverse * residual
    if len(levels) == 1:
        for _ in range(4):
            guess = level.smooth(guess, residual)
        return guess
    left = residual - level.apply(guess)
    coarse = 4 * _halved(left) * levels[1].mask
    update = _cycle(levels[1:], coarse)
    for axis in (-1, -2):
        if residual.shape[axis] > 1:
            update = update.repeat_interleave(2, axis).narrow(axis, 0, residual.shape[axis])
    return level.smooth(guess + level.mask * update, residual)


def _levels(mask: Tensor) -> list[_Level]:
    """The system and its coarser versions, down to a grid of four pixels a side at most."""
    levels = []
    while True:
        # A grid of one pixel has no neighbours, and no unknown if anything at all is known.
        diagonal = _neighbours(torch.ones_like(mask[:1])).clamp_min(2)
        levels.append(_Level(mask, diagonal, _DAMPING * mask / diagonal))
        if max(mask.shape[-2:]) <= 4:
            return levels
        mask = (_halved(mask, "replicate") == 1).to(mask.dtype)


def _halved(values: Tensor, beyond: Literal["constant", "replicate"] = "constant") -> Tensor:
    """Means of pairs along both axes, but along one of length 1."""
    h, w = values.shape[-2:]
    pairs = (1 + (h > 1), 1 + (w > 1))
    framed = F.pad(values, (0, (w > 1) * (w % 2), 0, (h > 1) * (h % 2)), mode=beyond)
    return F.avg_pool2d(framed, pairs)


def _neighbours(values: Tensor) -> Tensor:
    """Weighted sum of the neighbours inside the image: 2 direct, 1 diagonal, twelve times the
    weights of the paper.

    That is the sum over the 3x3 square with weights ``(1, 2, 1) x (1, 2, 1)`` less four times the
    centre. Whole weights keep the row sums of the matrix exact; with rounded twelfths a large hole
    drifts by 4e-4 (measured, float32).
    """
    framed = F.pad(values, (1, 1, 1, 1))
    across = framed[..., :-2] + framed[..., 2:]
    across.add_(framed[..., 1:-1], alpha=2)
    square = across[..., :-2, :] + across[..., 2:, :]
    return square.add_(across[..., 1:-1, :], alpha=2).sub_(values, alpha=4)


def _pull_push(images: Tensor, known: Tensor) -> Tensor:
    """First guess: averages of the known pixels on ever coarser grids, read back where the finer
    ones know nothing.
    """
    h, w = images.shape[-2:]
    if max(h, w) == 1:
        return images * known
    weight = F.avg_pool2d(known, 2, ceil_mode=True)
    coarse = F.avg_pool2d(images * known, 2, ceil_mode=True) / weight.clamp_min(1e-9)
    filled = _pull_push(coarse, (weight > 0).to(known.dtype))
    return torch.where(known > 0, images, F.interpolate(filled, size=(h, w), mode="bilinear"))


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((2, 3), keepdim=True)


def _check(images: Tensor, missing: Tensor, noise: float, tolerance: float) -> None:
    if not images.is_floating_point():
        raise TypeError(f"images must be floating, got {images.dtype}")
    if missing.dtype != torch.bool:
        raise TypeError(f"missing must be boolean, got {missing.dtype}")
    if images.dim() != 4 or missing.shape != (len(images), *images.shape[2:]):
        raise ValueError(
            "images must be (N, C, H, W) and missing (N, H, W), "
            f"got shapes {tuple(images.shape)} and {tuple(missing.shape)}"
        )
    if noise < 0:
        raise ValueError(f"noise must be >= 0, got {noise}")
    if tolerance <= 0:
        raise ValueError(f"tolerance must be > 0, got {tolerance}")
