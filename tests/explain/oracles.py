"""Slow or independent computations that the package must agree with."""

from __future__ import annotations

import numpy as np
import torch
from scipy.ndimage import convolve1d
from torch import Tensor


def kl_of_channel(r: Tensor, mask: Tensor) -> Tensor:
    """Information of each cell by torch.distributions: N(lambda r, (1 - lambda)^2) from N(0, 1)."""
    channel = torch.distributions.Normal(mask * r, 1 - mask)
    prior = torch.distributions.Normal(torch.zeros_like(r), torch.ones_like(r))
    return torch.distributions.kl_divergence(channel, prior)


def gaussian_blur(maps: np.ndarray, std: float) -> np.ndarray:
    """Blur of the last two axes by scipy: ``2 * round(2 std) + 1`` taps, mirrored ends."""
    radius = round(2 * std)
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / std) ** 2)
    taps /= taps.sum()
    for axis in (-2, -1):
        maps = convolve1d(maps, taps, axis=axis, mode="mirror")
    return maps


def scalar_optimum(
    r: float, mean: float, std: float, weight: float, wanted: float, beta: float
) -> float:
    """Mask that minimises the expected loss of a linear head on one feature, by a fine grid.

    The loss is ``E(w Z - y)^2 + beta I`` with ``Z = lambda r + (1 - lambda) eps``.
    """
    mask = np.linspace(1e-6, 1 - 1e-6, 2_000_001)
    z = (r - mean) / std
    bits = 0.5 * ((mask * z) ** 2 + (1 - mask) ** 2 - 1 - 2 * np.log(1 - mask))
    miss = (weight * (mask * r + (1 - mask) * mean) - wanted) ** 2
    loss = miss + weight**2 * (1 - mask) ** 2 * std**2 + beta * bits
    return float(mask[loss.argmin()])


def fit_one_image(
    head: torch.nn.Module,
    features: Tensor,
    mean: Tensor,
    std: Tensor,
    target: int,
    noises: list[Tensor],
    *,
    beta: float,
    lr: float,
    blur_std: float,
) -> Tensor:
    """The algorithm of the paper for one image, written plainly: capacity ``(C, H, W)`` in nats."""
    radius = round(2 * blur_std)
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1.0).double() / blur_std) ** 2)
    kernel = torch.outer(taps, taps) / taps.sum() ** 2
    channels = features.shape[0]
    weight = kernel.expand(channels, 1, -1, -1).to(features)

    def blurred(mask: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(mask[None], [radius] * 4, mode="reflect")
        return torch.nn.functional.conv2d(padded, weight, groups=channels)[0]

    alpha = torch.full_like(features, 5.0, requires_grad=True)
    adam = torch.optim.Adam([alpha], lr=lr)
    for noise in noises:  # (D, C, H, W)
        mask = blurred(alpha.sigmoid())
        z = mask * features + (1 - mask) * (mean + std * noise)
        logits = head(z)
        labels = torch.full((len(noise),), target)
        wrong = torch.nn.functional.cross_entropy(logits, labels)
        information = kl_of_channel((features - mean) / std, mask)
        adam.zero_grad()
        (wrong + beta * information.mean()).backward()
        adam.step()
    return kl_of_channel((features - mean) / std, blurred(alpha.detach().sigmoid()))
