"""The trials of study 24 that count and time: kept bytes, multiply-adds, seconds a step."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from addis.studies._p24_nets import LEAKY, RELU_WAYS, loss_of, network
from addis.study import Value
from addis.train.local import UpdateRules, localize

__all__ = ["Cost", "Facts", "Memory", "cost", "facts", "memory"]

_ALIKE = UpdateRules(winograd=False)
"""All ways are timed and counted with PyTorch's convolutions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Kept bytes of a net of equal convolutions (64 channels) on random images of 32 pixels."""

    depth: int
    batch: int


def memory(args: Memory) -> Mapping[str, Value]:
    """MiB kept for backward at the peak in each way."""
    torch.manual_seed(0)
    x, y = torch.randn(args.batch, 3, 32, 32), torch.randint(10, (args.batch,))
    found: dict[str, Value] = {}
    for loss in ("pred", "predsim"):
        layers: list[nn.Module] = []
        for i in range(args.depth):
            layers += [nn.Conv2d(3 if i == 0 else 64, 64, 3, padding=1), nn.BatchNorm2d(64)]
            layers.append(LEAKY(inplace=True) if loss == "predsim" else nn.ReLU(inplace=True))
        net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
        report = localize(net, x[:2], loss=loss_of(loss)).memory_report(x, y)
        found[f"{loss}_mib"] = report.local_bytes / 2**20
        found["global_mib"] = report.backprop_bytes / 2**20
        found["checkpoint_mib"] = report.checkpoint_bytes / 2**20
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """The cost of one step of the study's network on random images.

    Args:
        net: As in `Train`.
        width: As in `Train`.
        channels: Of the images.
        side: Of the images, in pixels.
        batch: Images a step.
        dim_in_decoder: Most inputs of a decoder.
        repeats: Timed steps; the median is taken.
        device: Torch device.
    """

    net: str
    width: float
    channels: int
    side: int
    batch: int
    dim_in_decoder: int
    repeats: int
    device: str


_STEPS: Final = ("pred", "sim", "predsim", "pred-bpf", "sim-bpf", "predsim-bpf")


def cost(args: Cost) -> Mapping[str, Value]:
    """Seconds, multiply-adds and kept bytes of a step in each way, over the global one's."""
    torch.manual_seed(0)
    x = torch.randn(args.batch, args.channels, args.side, args.side, device=args.device)
    y = torch.randint(10, (args.batch,), device=args.device)
    x = x.to(memory_format=torch.channels_last)
    steps: dict[str, Callable[[], object]] = {}
    found: dict[str, Value] = {}
    build = partial(
        network,
        args.net,
        args.width,
        channels=args.channels,
        side=args.side,
        classes=10,
        dropout=0.0,
    )
    for leaky in (False, True):
        net = build(leaky=leaky).to(args.device).to(memory_format=torch.channels_last)
        steps["global leaky" if leaky else "global"] = _plain_step(net, x, y)
    for way in (*_STEPS, "deep supervision"):
        leaky = way not in RELU_WAYS
        net = build(leaky=leaky).to(args.device).to(memory_format=torch.channels_last)
        deep = way == "deep supervision"
        local = localize(
            net,
            x[:2],
            loss="predsim" if deep else loss_of(way),
            detach=not deep,
            dim_in_decoder=args.dim_in_decoder,
            rules=_ALIKE,
        )
        steps[way] = partial(local.train_step, x, y)
        report = local.memory_report(x, y)
        found[f"kept {way}"] = report.ratio
        found[f"kept checkpoint for {way}"] = report.checkpoint_bytes / report.backprop_bytes
    flops = {way: _flops(step) for way, step in steps.items()}
    seconds = _seconds(steps, args.repeats, args.device)
    for way in (*_STEPS, "deep supervision"):
        base = "global" if way in RELU_WAYS else "global leaky"
        found[f"flops {way}"] = flops[way] / flops[base]
        found[f"time {way}"] = seconds[way] / seconds[base]
    found["ms global"] = 1e3 * seconds["global"]
    return found


def _plain_step(net: nn.Module, x: Tensor, y: Tensor) -> Callable[[], object]:
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-4, fused=True)

    def step() -> None:
        torch.autograd.backward(F.cross_entropy(net(x), y))
        optimizer.step()
        optimizer.zero_grad()

    return step


def _flops(step: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        step()
    total: int = counter.get_total_flops()
    return total


def _seconds(
    steps: Mapping[str, Callable[[], object]], repeats: int, device: str
) -> dict[str, float]:
    """Median seconds, the ways in turn; the first round is not counted."""
    taken: dict[str, list[float]] = {way: [] for way in steps}
    for turn in range(repeats + 1):
        for way, step in steps.items():
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            start = time.perf_counter()
            step()
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            if turn:
                taken[way].append(time.perf_counter() - start)
    return {way: statistics.median(t) for way, t in taken.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """The published networks at full size: what can be counted without training them."""

    net: str = "vgg8b"


def facts(args: Facts) -> Mapping[str, Value]:
    """Parameters, multiply-adds of a forward pass, and those of a step beside the global one's."""
    x, y = torch.randn(2, 3, 32, 32), torch.tensor([0, 1])
    build = partial(network, args.net, 1.0, channels=3, side=32, classes=10, dropout=0.2)
    net = build(leaky=True)
    forward = _flops(lambda: net(x)) / 2 / len(x)
    step = _flops(_plain_step(net, x, y))
    found: dict[str, Value] = {
        "parameters": sum(p.numel() for p in net.parameters()),
        "forward GMAC an image": forward / 1e9,
    }
    for loss in ("pred", "predsim"):
        local = localize(build(leaky=True), x, loss=loss_of(loss), rules=_ALIKE)
        found[f"parameters {loss}"] = sum(p.numel() for p in local.parameters())
        found[f"flops {loss}"] = _flops(partial(local.train_step, x, y)) / step
    return found
