"""The trials of study 24 that train: every way, every block read by a linear probe."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from addis import data
from addis.studies._p24_nets import RELU_WAYS, Way, loss_of, network
from addis.study import Value
from addis.train.local import BlockShape, LocalModel, local_fit, localize, milestones
from addis.train.local._shape import Pool

__all__ = ["Source", "Train", "Way", "train"]


class Source(NamedTuple):
    """Which images: apart, to train on, to choose by and to report on.

    Args:
        dataset: Its name in ``addis.data``.
        scale: Whole number of times that each pixel is repeated along both sides.
        train: Images to train on, from the training split.
        validation: Others of the training split, to choose a control's learning rate by.
        augment: Shift by up to 2 pixels and flip the training images.
    """

    dataset: str
    scale: int
    train: int
    validation: int
    augment: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Train:
    """One training of one network.

    Args:
        source: The images.
        net: ``"mlp"``, ``"conv4"``, ``"vgg8b"``, ``"resnet20"`` or ``"resnet32"``.
        width: Units of the MLP, channels of the four convolutions, factor of VGG8B's channels.
        way: How it is trained.
        blocks: Least layers a block; 0 for a block a layer or residual region.
        epochs: Passes over the training images.
        lr: Of Adam, or of SGD in the tuned control.
        dropout: Of the networks that have it.
        dim_in_decoder: Most inputs of a decoder.
        batch_size: Images a step.
        seed: Of the split, the weights, the order and the masks.
        probe: Whether to read every block by a linear classifier afterwards.
        device: Torch device.
    """

    source: Source
    net: str
    width: float
    way: Way
    blocks: int
    epochs: int
    lr: float
    dropout: float
    dim_in_decoder: int
    batch_size: int
    seed: int
    probe: bool
    device: str


class Sets(NamedTuple):
    """Normalised images and labels."""

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


@lru_cache(maxsize=2)
def sets(source: Source, seed: int) -> Sets:
    """Splits the training images by the seed; the test images are those of the data set."""
    pool, test = data.load(source.dataset), data.load(source.dataset, "test")
    assert isinstance(pool, data.Images)
    assert isinstance(test, data.Images)
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))
    chosen = order[: source.train + source.validation]
    images = _enlarged(pool.floats(chosen), source.scale)
    held_out = _enlarged(test.floats(), source.scale)
    mean, std = images[: source.train].mean(), images[: source.train].std()
    images, held_out = (images - mean) / std, (held_out - mean) / std
    y = pool.targets[chosen]
    n = source.train
    return Sets((images[:n], y[:n]), (images[n:], y[n:]), (held_out, test.targets))


def _enlarged(images: Tensor, scale: int) -> Tensor:
    return images.repeat_interleave(scale, 2).repeat_interleave(scale, 3)


def train(args: Train) -> Mapping[str, Value]:
    """Trains once; gives errors in percent, the linear probe of every block, and seconds a step."""
    torch.manual_seed(args.seed)
    images = sets(args.source, args.seed)
    x, y = images.train
    classes = int(y.max()) + 1
    model = network(
        args.net,
        args.width,
        channels=x.shape[1],
        side=x.shape[2],
        classes=classes,
        dropout=args.dropout,
        leaky=args.way not in RELU_WAYS,
    ).to(args.device)
    if x.shape[2] > 1 and args.net != "mlp":
        model = model.to(memory_format=torch.channels_last)
    batches = data.Batches(
        images.train,
        args.batch_size,
        seed=args.seed,
        drop_last=True,
        device=args.device,
        transform=_moved if args.source.augment else None,
    )
    start = time.perf_counter()
    trained = _by_back_propagation if "global" in args.way else _by_local_errors
    model = trained(args, model, batches, classes).eval()
    seconds = (time.perf_counter() - start) / (args.epochs * len(batches))
    probes = _probes(model, images, args.device) if args.probe else []
    return {
        "test_error": _error(model, images.test, args.device),
        "validation_error": _error(model, images.validation, args.device),
        "step_seconds": seconds,
        "probes": np.array(probes),
    }


def _moved(x: Tensor, generator: torch.Generator) -> Tensor:
    x = data.random_crop(x, 2, generator=generator)
    return data.random_flip(x, generator=generator)


def _by_local_errors(
    args: Train, model: nn.Module, batches: data.Batches, classes: int
) -> nn.Module:
    example = next(iter(batches))[0][:2]
    batches.set_epoch(0)
    name, _, beta = args.way.partition(" ")
    deep = args.way == "deep supervision"
    local = localize(
        model,
        example,
        loss="predsim" if deep else loss_of(name),
        num_classes=classes,
        beta=float(beta) if beta and not deep else None,
        blocks=args.blocks or "auto",
        dim_in_decoder=args.dim_in_decoder,
        optimizer=partial(torch.optim.Adam, lr=args.lr, fused=True),
        detach=not deep,
    )
    for _ in local_fit(local, batches, epochs=args.epochs):
        pass
    return local.inference()


def _by_back_propagation(
    args: Train, model: nn.Module, batches: data.Batches, classes: int
) -> nn.Module:
    """The paper's baseline (its Adam and schedule), or SGD with weight decay and a cosine."""
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    model.train()
    if args.way == "tuned global":
        optimizer = torch.optim.SGD(
            model.parameters(), lr=args.lr, momentum=0.9, nesterov=True, weight_decay=5e-4
        )
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)
    else:
        optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, fused=True)
        scheduler = torch.optim.lr_scheduler.MultiStepLR(
            optimizer, list(milestones(args.epochs)), 0.25
        )
    for _ in range(args.epochs):
        for x, y in batches:
            torch.autograd.backward(F.cross_entropy(model(x), y))
            optimizer.step()
            optimizer.zero_grad()
        scheduler.step()
    return model


def _error(model: nn.Module, samples: tuple[Tensor, Tensor], device: str) -> float:
    """Wrong samples in percent."""
    wrong = 0.0
    with torch.no_grad():
        for x, y in _chunks(samples, device):
            wrong += float((model(x).argmax(1) != y).sum())
    return 100 * wrong / len(samples[1])


def _chunks(samples: tuple[Tensor, Tensor], device: str) -> Iterator[tuple[Tensor, Tensor]]:
    for x, y in zip(torch.split(samples[0], 500), torch.split(samples[1], 500), strict=True):
        yield x.to(device), y.to(device)


def _probes(model: nn.Module, images: Sets, device: str) -> list[float]:
    """Test error in percent of a ridge classifier on each block's pooled features, in order."""
    few = (images.train[0][:4000], images.train[1][:4000])
    local = localize(model, images.train[0][:2].to(device), loss="pred").eval()
    found = []
    fitted, tested = _pooled(local, few, device), _pooled(local, images.test, device)
    targets = F.one_hot(few[1]).double()
    for z, t in zip(fitted, tested, strict=True):
        mean = z.mean(0)
        z, t = F.pad(z - mean, (0, 1), value=1.0), F.pad(t - mean, (0, 1), value=1.0)
        gram = z.T @ z
        gram += 1e-3 * gram.diagonal().mean() * torch.eye(len(gram))
        weights = torch.linalg.solve(gram, z.T @ targets)
        found.append(100 * float(((t @ weights).argmax(1) != images.test[1]).double().mean()))
    return found


def _pooled(local: LocalModel, samples: tuple[Tensor, Tensor], device: str) -> list[Tensor]:
    parts: list[list[Tensor]] = []
    with torch.no_grad():
        for x, _ in _chunks(samples, device):
            hidden = list(local.features(x).values())[:-1]
            parts.append([_few_features(h).double().cpu() for h in hidden])
    return [torch.cat(block) for block in zip(*parts, strict=True)]


def _few_features(h: Tensor) -> Tensor:
    if h.dim() == 2:
        return h
    shape = BlockShape("probe", tuple(h.shape[1:]), "maps" if h.dim() == 4 else "tokens")
    pooled: Tensor = Pool(shape, 256)(h)
    return pooled.flatten(1)
