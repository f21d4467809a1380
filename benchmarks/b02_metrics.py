"""The metrics of paper 02 beside Quantus 0.6: degradation, imputation, localisation.

Two kinds of rows tell where the time goes. Where both judge the same images, a net's forward passes
are most of the cost and no library can be much ahead. Where Quantus must step tile by tile to reach
the end of a curve, or works a pixel at a time on the host, the difference is one of method.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import io
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from addis import explain, models
from addis.study import Row, absent, timed_row

_WORKS = (
    "degradation, LeRF - MoRF to the end, 8x8 tiles of 224x224 (the paper's), SqueezeNet, 1 image",
    "degradation, LeRF - MoRF to the end, 1x1 tiles of 32x32, ResNet-20, 4 images",
    "degradation, the same 2 x 64 images of each, 4x4 tiles of 32x32, ResNet-20, 16 images",
    "degradation without a net: making the 2 x 64 images of each, 4x4 tiles, 32 images",
    "noisy linear imputation, half of 224x224 missing in 14x14 tiles, 1 image",
    "noisy linear imputation, 9 of 10 tiles of 224x224 missing, 14x14 tiles, 1 image",
    "noisy linear imputation, half of 32x32 missing in 4x4 tiles, 64 images",
    "bounding-box ratio, 256 maps of 64x64",
)


def rows(*, full: bool = False, device: str = "cpu") -> Iterator[Row]:
    """Yields a row a work; ``full`` takes four times the images."""
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            import quantus
    except ImportError:
        for work in _WORKS:
            yield absent(work, "Quantus", "install addis[peers]", target=_target(work))
        return
    version = importlib.metadata.version("quantus")
    more = 4 if full else 1
    large = models.create("imagenet_squeezenet1_0").eval().to(device)
    yield _curve(quantus, version, _WORKS[0], large, more, 224, 8, device)
    net = models.create("resnet20").eval().to(device)
    yield _curve(quantus, version, _WORKS[1], net, 4 * more, 32, 1, device)
    yield _curve(quantus, version, _WORKS[2], net, 16 * more, 32, 4, device)
    yield _curve(quantus, version, _WORKS[3], _Mean().eval(), 32 * more, 32, 4, device)
    yield _imputation(version, _WORKS[4], 1, 224, 14, 0.5, device)
    yield _imputation(version, _WORKS[5], 1, 224, 14, 0.9, device)
    yield _imputation(version, _WORKS[6], 64, 32, 4, 0.5, device)
    yield _box(quantus, version, _WORKS[7], device)


class _Mean(nn.Module):
    """A net that costs nothing: logits are the mean colours."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def _target(work: str) -> float | None:
    """The spec's, 10 times faster, for whole curves; the other rows inform."""
    return 0.1 if "to the end" in work else None


def _curve(
    quantus: Any, version: str, work: str, net: nn.Module, n: int, side: int, tile: int,
    device: str,
) -> Row:  # fmt: skip
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, 3, side, side, generator=g)
    target = torch.randint(3, (n,), generator=g)
    maps = torch.rand(n, side, side, generator=g)
    metrics = [
        quantus.RegionPerturbation(
            patch_size=tile, regions_evaluation=(side // tile) ** 2, order=order,
            perturb_baseline=0.0, normalise=False, abs=False, disable_warnings=True,
        )
        for order in ("morf", "lerf")
    ]  # fmt: skip
    pixels, labels, relevance = x.numpy(), target.numpy(), maps[:, None].numpy()
    on = [t.to(device) for t in (x, target, maps)]
    fill = torch.zeros(1)
    found: dict[str, float] = {}

    def ours() -> None:
        curve = explain.degradation(net, *on, tile=tile, fill=fill)
        found["ours"] = float(torch.trapezoid(curve.lerf - curve.morf, curve.fractions).mean())

    def theirs() -> None:
        morf, lerf = (
            np.array(
                metric(
                    model=net, x_batch=pixels, y_batch=labels, a_batch=relevance, device=device,
                    softmax=True, batch_size=n,
                )
            )
            for metric in metrics
        )  # fmt: skip
        area = np.trapezoid(np.pad(morf - lerf, ((0, 0), (1, 0))), dx=1 / morf.shape[1])
        found["theirs"] = float(area.mean())

    stages = min(100, (side // tile) ** 2)
    few = tile == 4
    row = timed_row(
        work, ours, "Quantus RegionPerturbation", version, theirs, target=_target(work),
        repeats=3 if few else 1, warmup=int(few), device=device,
    )  # fmt: skip
    gap = abs(found["ours"] - found["theirs"])
    note = (
        f"{2 * stages} altered images judged here, {2 * (side // tile) ** 2} there; "
        f"the mean areas differ by {gap:.1e}"
    )
    return dataclasses.replace(row, note=note)


def _imputation(
    version: str, work: str, n: int, side: int, tile: int, share: float, device: str
) -> Row:
    from quantus.functions.perturb_func import noisy_linear_imputation

    g = torch.Generator().manual_seed(1)
    x = torch.randn(n, 3, side, side, generator=g)
    across = side // tile
    holes = torch.rand(n, across * across, generator=g).argsort(1) < round(share * across * across)
    missing = explain.Tiling(side, side, tile).spread(holes)
    places = [hole.flatten().nonzero()[:, 0].numpy() for hole in missing]
    on = x.to(device), missing.to(device)

    def theirs() -> list[Any]:
        return [
            noisy_linear_imputation(image.numpy().copy(), place, noise=0.0)
            for image, place in zip(x, places, strict=True)
        ]

    solved = np.array(theirs()).reshape(x.shape)
    error = float(np.abs(explain.noisy_linear(*on, noise=0.0).cpu().numpy() - solved).max())
    return timed_row(
        work, lambda: explain.noisy_linear(*on, noise=0.0), "Quantus (ROAD)", version, theirs,
        repeats=3, device=device, note=f"largest difference {error:.1e}",
    )  # fmt: skip


def _box(quantus: Any, version: str, work: str, device: str) -> Row:
    g = torch.Generator().manual_seed(2)
    maps = torch.rand(256, 64, 64, generator=g)
    boxes = torch.tensor([[5, 8, 30, 29]]).expand(256, 4)
    masks = np.zeros((256, 1, 64, 64), dtype=int)
    masks[:, :, 8:29, 5:30] = 1
    metric = quantus.RelevanceRankAccuracy(normalise=False, abs=False, disable_warnings=True)
    images, labels, on = maps[:, None].numpy(), np.zeros(256, dtype=int), maps.to(device)

    def theirs() -> Any:
        return metric(
            model=_Mean(), x_batch=images, y_batch=labels, a_batch=images, s_batch=masks,
            device="cpu",
        )  # fmt: skip

    return timed_row(
        work, lambda: explain.bbox_ratio(on, boxes), "Quantus RelevanceRankAccuracy", version,
        theirs, device=device,
    )  # fmt: skip
