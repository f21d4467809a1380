"""Which part of an image decides its class: bits per pixel on digits hidden in noise.

A small network learns to name a digit that lies anywhere on a noisy canvas, so that the true region
is known. The information bottleneck, Grad-CAM and saliency, plain and blurred, are asked for it.
Run it with `python examples/02_iba.py`. It needs no download and one core.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from addis import data, explain

SIDE = 24
DIGIT = 8


def canvas(digits: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Digits ``(N, 1, 8, 8)`` at random places of noise, and their corners ``(N, 2)``."""
    images = torch.rand(len(digits), 1, SIDE, SIDE, generator=generator) * 0.35
    corners = torch.randint(SIDE - DIGIT + 1, (len(digits), 2), generator=generator)
    for image, digit, (top, left) in zip(images, digits, corners.tolist(), strict=True):
        window = image[:, top : top + DIGIT, left : left + DIGIT]
        window.copy_(torch.maximum(window, digit))
    return images, corners


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 24, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Conv2d(24, 32, 3, padding=1), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(),
        nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip


def inside(maps: Tensor, corners: Tensor) -> float:
    """Mean fraction of the 64 highest pixels that lie on the digit."""
    hits = []
    for scores, (top, left) in zip(maps, corners.tolist(), strict=True):
        best = scores.flatten().topk(DIGIT * DIGIT).indices
        rows, cols = best // SIDE, best % SIDE
        on = (rows >= top) & (rows < top + DIGIT) & (cols >= left) & (cols < left + DIGIT)
        hits.append(on.float().mean())
    return float(torch.stack(hits).mean())


def main() -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    digits, test = data.load("digits", "train"), data.load("digits", "test")
    model = network()
    adam = torch.optim.Adam(model.parameters(), lr=3e-3)
    for epoch in range(6):
        images, _ = canvas(digits.floats(), generator)
        for rows in torch.randperm(len(images), generator=generator).split(50):
            adam.zero_grad()
            F.cross_entropy(model(images[rows]), digits.targets[rows]).backward()
            adam.step()
        seen, corners = canvas(test.floats(), generator)
        accuracy = (model(seen).argmax(1) == test.targets).float().mean()
        print(f"epoch {epoch + 1}: accuracy {accuracy:.2f} on new canvases")
    model.eval()

    iba = explain.InformationBottleneck(model, layer="1", seed=0)
    iba.stats = iba.estimate(images)
    x, target, corners = seen[:20], test.targets[:20], corners[:20]
    found = iba.attribute(x, target)
    area = DIGIT * DIGIT / SIDE**2
    print(f"\nof the {DIGIT * DIGIT} highest pixels, on the digit (chance {area:.2f}):")
    print(f"  information bottleneck {inside(found.map, corners):.2f}")
    for name in ("gradcam", "saliency", "blurred_saliency", "random"):
        print(f"  {name:22} {inside(explain.BASELINES[name](model, x, target), corners):.2f}")

    print(f"\nbits that pass the first layer: {found.total_bits.mean():.1f} an image")
    floor = found.map.flatten(1).amax(dim=1) * 0.01
    masked = explain.masked_prediction(iba, x, target, found.map, threshold=floor)
    print(
        f"with the {masked.kept.mean():.0%} of the positions over 1 % of the highest bits alone, "
        f"the class has {masked.sufficient.mean():.2f} of {masked.full.mean():.2f}; "
        f"without them {masked.necessary.mean():.2f}"
    )


if __name__ == "__main__":
    main()
