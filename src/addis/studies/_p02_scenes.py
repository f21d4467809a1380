"""What study 02 explains: a model, images of classes that are known, and a layer to restrict."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from addis import data, models, train

__all__ = ["Scene", "Skipped", "canvas", "cifar", "digits", "photos", "watermark"]

CANVAS, MARK = 24, 6
NOISE = 0.35
"""Brightness of the canvas: uniform in ``[0, NOISE)`` (the spec's tiny configuration)."""


class Skipped(Exception):  # noqa: N818
    """Says in words why a scene cannot be had here."""


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """A setting of the study.

    Args:
        model: The classifier, in evaluation mode.
        x: Images as it takes them, ``(N, C, H, W)``.
        target: Their classes, ``(N,)``.
        calibration: Images for the bottleneck's statistics, ``(M, C, H, W)``.
        layer: The layer to restrict.
        others: Other layers to restrict, name in the tables to layer.
        last: The last layer with a feature map, for Grad-CAM.
        patches: Sides of occluded patches, the smaller first.
        pictures: ``x`` as colours in ``[0, 1]``.
        boxes: What decides the class, ``(x0, y0, x1, y1)``, ``(N, 4)``; ``None`` where not known.
        accuracy: Of the model on the images that ``x`` was taken from.
    """

    model: nn.Module
    x: Tensor
    target: Tensor
    calibration: Tensor
    layer: str
    last: str
    patches: tuple[int, int]
    pictures: Tensor
    others: tuple[tuple[str, str], ...] = ()
    boxes: Tensor | None = None
    accuracy: float = float("nan")

    def to(self, device: str) -> Scene:
        """The scene with all that is computed on moved to a device; the model itself is moved."""
        return replace(
            self, model=self.model.to(device), x=self.x.to(device), target=self.target.to(device),
            calibration=self.calibration.to(device),
        )  # fmt: skip


def canvas(marks: Tensor, generator: torch.Generator, side: int = CANVAS) -> tuple[Tensor, Tensor]:
    """Puts each mark ``(N, 1, h, w)`` at a random place of a noisy canvas, the brighter wins.

    Returns:
        Canvases ``(N, 1, side, side)`` and boxes ``(N, 4)``.
    """
    n, _, h, w = marks.shape
    noise = NOISE * torch.rand(n, 1, side, side, generator=generator)
    top = torch.randint(side - h + 1, (n,), generator=generator)
    left = torch.randint(side - w + 1, (n,), generator=generator)
    rows = top[:, None] + torch.arange(h)
    columns = left[:, None] + torch.arange(w)
    at = (torch.arange(n)[:, None, None], 0, rows[:, :, None], columns[:, None, :])
    noise[at] = torch.maximum(noise[at], marks[:, 0])
    return noise, torch.stack([left, top, left + w, top + h], 1)


def digits(seed: int, *, images: int, epochs: int, train_images: int = 1300) -> Scene:
    """Digits of 8x8 pixels at random places of a noisy 24x24 canvas, and a small net trained on
    them.
    """
    learn, test = data.load("digits", "train"), data.load("digits", "test")
    batches = data.Batches(
        (learn.floats(range(train_images)), learn.targets[:train_images]), 50, seed=seed,
        transform=lambda marks, generator: canvas(marks, generator)[0],
    )  # fmt: skip
    model = _train(_digit_net(seed), batches, epochs, lr=3e-3)
    generator = torch.Generator().manual_seed(1_000 + seed)
    x, boxes = canvas(test.floats(), generator)
    calibration, _ = canvas(learn.floats(range(train_images)), generator)
    accuracy = _accuracy(model, x, test.targets)
    chosen = torch.randperm(len(test), generator=generator)[:images]
    x, boxes = x[chosen], boxes[chosen]
    return Scene(
        model, x, test.targets[chosen], calibration, layer="1", last="8", patches=(4, 8),
        pictures=x, boxes=boxes, accuracy=accuracy, others=(("conv 2", "3"), ("conv 3", "6")),
    )  # fmt: skip


def cifar(name: str, *, images: int, calibration: int = 5000) -> Scene:
    """CIFAR-10 test images that a pretrained ResNet classifies correctly; layer ``layer2``."""
    model = models.create(name, pretrained=True).eval()
    known = models.info(name)
    test, learn = data.load("cifar10", "test"), data.load("cifar10", "train")
    asked = 2 * images + 50
    x = _normalised(test.floats(range(asked)), known)
    right = _predicted(model, x) == test.targets[:asked]
    chosen = right.nonzero()[:images, 0]
    return Scene(
        model, x[chosen], test.targets[:asked][chosen],
        _normalised(learn.floats(range(calibration)), known), layer="layer2", last="layer3",
        patches=(4, 8), pictures=test.floats(chosen), accuracy=float(right.double().mean()),
    )  # fmt: skip


def photos(name: str, *, images: int) -> Scene:
    """ImageNet photos that a model classifies correctly, cropped to 224x224.

    SqueezeNet is restricted after ``features.6``, its 27x27 stage (the pooled output of
    ``features.5``); VGG-16 after ``features.17`` and ResNet-50 after ``layer2``, as in the paper.

    Raises:
        Skipped: The photos or the weights are not at hand.
    """
    layer, last, file = {
        "imagenet_squeezenet1_0": ("features.6", "features.12", ""),
        "torchvision/vgg16": ("features.17", "features.29", "vgg16-397923af.pth"),
        "torchvision/resnet50": ("layer2", "layer4", "resnet50-0676ba61.pth"),
    }[name]
    if file and not (Path(torch.hub.get_dir()) / "checkpoints" / file).is_file():
        raise Skipped(f"{file} is not in the folder checkpoints of torch.hub.get_dir()")
    # Channels last, which a CPU convolves twice as fast at this size (measured).
    form = torch.channels_last
    model = models.create(name, pretrained=True).eval().to(memory_format=form)
    pictures, labels = _photos()
    x = _normalised(pictures, models.info("imagenet_squeezenet1_0")).contiguous(memory_format=form)
    asked = min(len(x), 2 * images + 8)
    right = torch.cat([_predicted(model, one) for one in x[:asked, None]]) == labels[:asked]
    chosen = right.nonzero()[:images, 0]
    # The calibration set is all the photos: no more of ImageNet is at hand.
    return Scene(
        model, x[chosen].contiguous(memory_format=form), labels[chosen], x, layer=layer, last=last,
        patches=(14, 28),
        pictures=pictures[chosen], accuracy=float(right.double().mean()),
    )  # fmt: skip


def watermark(seed: int, *, images: int, epochs: int = 2, train_images: int = 6000) -> Scene:
    """Fashion-MNIST with a planted 6x6 mark, one of ten patterns, that alone decides the label.

    The garment says nothing of the label: labels are drawn apart from it. The mark stands at a
    random place, black on white and white on black alike.
    """
    generator = torch.Generator().manual_seed(2_000 + seed)
    patterns = (torch.rand(10, 1, MARK, MARK, generator=generator) < 0.5).float()
    sets = []
    for split, count in (("train", train_images), ("test", 4 * images)):
        clothes = data.load("fashion_mnist", split).floats(range(count)).clone()
        labels = torch.randint(10, (count,), generator=generator)
        top = torch.randint(28 - MARK + 1, (count,), generator=generator)
        left = torch.randint(28 - MARK + 1, (count,), generator=generator)
        rows, columns = top[:, None] + torch.arange(MARK), left[:, None] + torch.arange(MARK)
        at = (torch.arange(count)[:, None, None], 0, rows[:, :, None], columns[:, None, :])
        clothes[at] = patterns[labels, 0]
        sets.append((clothes, labels, torch.stack([left, top, left + MARK, top + MARK], 1)))
    (x, y, _), (seen, wanted, boxes) = sets
    model = _train(_mark_net(seed), data.Batches((x, y), 50, seed=seed), epochs, lr=3e-3)
    right = _predicted(model, seen) == wanted
    chosen = right.nonzero()[:images, 0]
    return Scene(
        model, seen[chosen], wanted[chosen], x[:2000], layer="3", last="6", patches=(4, 8),
        pictures=seen[chosen], boxes=boxes[chosen], accuracy=float(right.double().mean()),
    )  # fmt: skip


def _digit_net(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 24, 3, padding=1), nn.ReLU(),
            nn.MaxPool2d(2), nn.Conv2d(24, 32, 3, padding=1), nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(),
            nn.Linear(32, 10),
        ).to(memory_format=torch.channels_last)  # fmt: skip


def _mark_net(seed: int) -> nn.Module:
    """Two 5x5 convolutions see a window of 9x9 about each pixel, the mark and a margin."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.Conv2d(16, 32, 5, padding=2), nn.ReLU(),
            nn.MaxPool2d(2), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveMaxPool2d(1),
            nn.Flatten(), nn.Linear(32, 10),
        )  # fmt: skip


def _train(model: nn.Module, batches: data.Batches, epochs: int, lr: float) -> nn.Module:
    adam = torch.optim.Adam(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, lr, total_steps=epochs * len(batches))

    def step(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    for _ in train.epochs(model, batches, step, adam, epochs=epochs, scheduler=schedule):
        pass
    return model.eval()


def _normalised(pictures: Tensor, known: models.ModelInfo) -> Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in (known.mean, known.std))
    return (pictures - mean) / std


@torch.no_grad()
def _predicted(model: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([model(part).argmax(1) for part in torch.split(x, 64)])


def _accuracy(model: nn.Module, x: Tensor, target: Tensor) -> float:
    return float((_predicted(model, x) == target).double().mean())


def _photos() -> tuple[Tensor, Tensor]:
    """The sample photos, cropped to 224x224 in the middle, in ``[0, 1]``, and their classes.

    Raises:
        Skipped: They are not at hand.
    """
    try:
        found = data.load("imagenet_samples")
    except FileNotFoundError as error:
        raise Skipped(f"no ImageNet photos: {error}") from error
    crops = []
    for i in range(len(found)):
        photo, _ = found[i]
        top, left = (photo.shape[1] - 224) // 2, (photo.shape[2] - 224) // 2
        crops.append(photo[:, top : top + 224, left : left + 224])
    return torch.stack(crops).float() / 255, found.targets
