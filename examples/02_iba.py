"""Explains a small net on digits hidden in noise: bits per pixel, what they buy, and a control.

Run it with ``python examples/02_iba.py``. It needs no download and one core.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from addis import data, explain, train


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    digits = data.load("digits", "train")
    marks, targets = digits.floats(range(1200)), digits.targets[:1200]
    x, boxes = hidden(marks, torch.Generator().manual_seed(1))

    # Any classifier; every layer can be the bottleneck.
    net = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 24, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Conv2d(24, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveMaxPool2d(1),
        nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    batches = data.Batches((x[:1000], targets[:1000]), 50)
    for epoch in train.epochs(net, batches, train.cross_entropy_step, optimizer, epochs=8):
        print(f"epoch {epoch.index}: loss {epoch.loss:.2f}")
    net.eval()

    # How many bits of each region does the net need for its class?
    shown, label, box = x[1000:1020], targets[1000:1020], boxes[1000:1020]
    bottleneck = explain.InformationBottleneck(net, layer="1", seed=0)
    bottleneck.stats = bottleneck.estimate(x[:1000])
    found = bottleneck.attribute(shown, label)
    print("bits:", " ".join(f"{bits:.0f}" for bits in found.total_bits.tolist()))

    # The same maps by other methods: the fraction of their top pixels that are on the digit.
    last = "6"
    maps = {
        "information bottleneck": found.map,
        "Grad-CAM": explain.gradcam(net, shown, label, last),
        "saliency": explain.saliency(net, shown, label),
        "blurred saliency (control)": explain.blurred_saliency(net, shown, label),
        "random": explain.random_map(net, shown, label, seed=2),
    }
    for name, heat in maps.items():
        print(f"on the digit: {explain.bbox_ratio(heat, box).mean():.2f}  {name}")

    page = Path("iba.html")
    found.save_html(page, shown)
    print(f"maps with a scale in bits: {page}")


def hidden(marks: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Digits ``(N, 1, 8, 8)`` at random places of noisy 24x24 canvases, and their boxes."""
    places = torch.randint(17, (len(marks), 2), generator=generator)
    noise = 0.35 * torch.rand(len(marks), 1, 24, 24, generator=generator)
    placed = [
        F.pad(mark, (column, 16 - column, row, 16 - row))
        for mark, (row, column) in zip(marks, places.tolist(), strict=True)
    ]
    corner = places.flip(1)
    return torch.maximum(noise, torch.stack(placed)), torch.cat([corner, corner + 8], 1)


if __name__ == "__main__":
    main()
