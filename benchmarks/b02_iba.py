"""Heat maps: addis beside the authors' library and Captum, ResNet-18 with random weights."""

from __future__ import annotations

import contextlib
import gc
import math
import resource
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from addis import explain
from addis.study import Row, absent, peer_repository, timed_row

COMMIT = "7b2fbd5"
LIBRARY = "BioroboticsLab/IBA"
CLASS = 3


def rows(*, full: bool = False, device: str = "cpu") -> Iterator[Row]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model = torchvision.models.resnet18().eval().to(device)
        x = torch.randn(1, 3, 224, 224, device=device)
        data = torch.randn(8, 3, 224, 224, device=device)
        yield from _library_rows(model, x, data, full, device)
        yield _floor(model, x, data, device)
        yield from _captum_rows(model, x, data, full, device)
        yield _statistics(device)
        yield _noise(model, x, data)
        yield _memory(500)


def _bottleneck(
    model: nn.Module, layer: str, data: Tensor, **options: Any
) -> explain.InformationBottleneck:
    iba = explain.InformationBottleneck(model, layer, **{"seed": 0, **options})
    iba.stats = iba.estimate(data)
    return iba


def _times(count: int, work: Callable[[], object]) -> None:
    for _ in range(count):
        work()


def _library() -> Any | None:
    """The authors' package; its ``contextmanager`` from ``decorator`` is stood in for."""
    path = peer_repository("BioroboticsLab+IBA", COMMIT)
    if path is None or find_spec("skimage") is None:
        return None
    shim = types.ModuleType("decorator")
    vars(shim)["contextmanager"] = contextlib.contextmanager
    sys.modules.setdefault("decorator", shim)
    sys.path.insert(0, str(path))
    try:
        from IBA import pytorch
    finally:
        sys.path.remove(str(path))
    return pytorch


def _library_rows(
    model: nn.Module, x: Tensor, data: Tensor, full: bool, device: str
) -> Iterator[Row]:
    """One image, 10 steps of 10 draws, the map before the last update in both."""
    library = _library()
    target = 0.05 if device.startswith("cuda") else 0.1
    for layer in ("layer3", "layer2") if full else ("layer3",):
        work = f"IBA, ResNet-18, 224 px, {layer}, 10 steps x 10 draws, one image"
        if library is None:
            why = "ADDIS_PEERS names no checkout, or skimage is absent"
            yield absent(work, LIBRARY, why, target=target)
            continue
        iba = _bottleneck(model, layer, data, official_timing=True)
        peer = library.IBA(model.get_submodule(layer))
        peer.estimate(model, [(data,)])
        labels = torch.full((10,), CLASS, device=device)

        def theirs(peer: Any = peer, labels: Tensor = labels) -> Any:
            torch.manual_seed(0)
            return peer.analyze(x, lambda b: F.cross_entropy(model(b), labels), mode="capacity")

        def ours(iba: explain.InformationBottleneck = iba) -> explain.Attribution:
            return iba.attribute(x, CLASS)

        found, wanted = ours().capacity, torch.as_tensor(theirs())
        assert found is not None
        apart = float((found[0].cpu() / math.log(2) - wanted).abs().max() / wanted.max())
        note = f"equal maps: apart by {apart:.1e} of the largest cell at the same noise"
        yield timed_row(
            work, ours, LIBRARY, COMMIT, theirs, target=target if layer == "layer3" else None,
            repeats=5 if full else 3, warmup=0, device=device, note=note,
        )  # fmt: skip
        if layer == "layer3":
            four = torch.randn(4, *x.shape[1:], device=device)
            yield timed_row(
                work.replace("one image", "four images: one batch beside one by one"),
                partial(iba.attribute, four, CLASS),
                LIBRARY,
                COMMIT,
                partial(_times, 4, theirs),
                target=target,
                repeats=1,
                warmup=0,
                device=device,
            )
        peer.detach()
        model.zero_grad(set_to_none=True)


def _floor(model: nn.Module, x: Tensor, data: Tensor, device: str) -> Row:
    """What the network's last stage takes, forward and back to the input, by PyTorch's kernels."""
    iba = _bottleneck(model, "layer3", data)
    parts = [model.get_submodule(name) for name in ("layer4", "avgpool")]
    suffix = nn.Sequential(*parts, nn.Flatten(), model.get_submodule("fc"))
    features = torch.rand(10, 256, 14, 14, device=device)
    labels = torch.full((10,), CLASS, device=device)

    def network_alone() -> None:
        for _ in range(10):
            leaf = features.clone().requires_grad_()
            torch.autograd.grad(F.cross_entropy(suffix(leaf), labels), leaf)

    return timed_row(
        "IBA, ResNet-18, 224 px, layer3, 10 steps x 10 draws, one image",
        partial(iba.attribute, x, CLASS),
        "layer4 and the classifier alone, 10 times forward and back",
        torch.__version__,
        network_alone,
        repeats=3,
        device=device,
        note="no bottleneck, no first pass; below 1 by Winograd's convolutions alone",
    )


def _captum_rows(
    model: nn.Module, x: Tensor, data: Tensor, full: bool, device: str
) -> Iterator[Row]:
    name = "Captum"
    works: list[tuple[str, float | None]] = [
        (
            "heat map, ResNet-18, 224 px: IBA at layer3, 10 x 10, beside Integrated Gradients, 50",
            0.25,
        ),
        (
            "heat map, ResNet-18, 224 px: IBA at layer3, 10 x 4, beside Integrated Gradients, 50",
            None,
        ),
        ("Occlusion, ResNet-18, 224 px, patch 14", 0.5),
        ("Integrated Gradients, ResNet-18, 224 px, 50 steps", None),
        ("Grad-CAM, ResNet-18, 224 px", None),
        ("Guided Backprop, ResNet-18, 224 px", None),
    ]
    if find_spec("captum") is None:
        for work, target in works:
            yield absent(work, name, "captum is not installed: addis[peers]", target=target)
        return
    import captum.attr as peer

    mean = x.mean((2, 3), keepdim=True).expand_as(x)
    ten, four = (_bottleneck(model, "layer3", data, draws=draws) for draws in (10, 4))
    path = peer.IntegratedGradients(model)
    cam = peer.LayerGradCam(model, model.get_submodule("layer4"))
    plain = torchvision.models.resnet18().eval().to(device)  # Captum's hooks need it out of place
    for module in plain.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    patch = 8 if full else 14

    def integrate() -> Any:
        return path.attribute(x, mean, CLASS, n_steps=50)

    pairs: list[tuple[Callable[[], object], Callable[[], object]]] = [
        (lambda: ten.attribute(x, CLASS), integrate),
        (lambda: four.attribute(x, CLASS), integrate),
        (
            lambda: explain.occlusion(model, x, CLASS, patch=patch),
            lambda: peer.Occlusion(model).attribute(
                x, (3, patch, patch), (3, patch, patch), baselines=mean, target=CLASS
            ),
        ),
        (lambda: explain.integrated_gradients(model, x, CLASS), integrate),
        (
            lambda: explain.gradcam(model, x, CLASS, "layer4"),
            lambda: peer.LayerAttribution.interpolate(
                cam.attribute(x, CLASS, relu_attributions=True), (224, 224), "bilinear"
            ),
        ),
        (
            lambda: explain.guided_backprop(model, x, CLASS),
            lambda: peer.GuidedBackprop(plain).attribute(x, CLASS),
        ),
    ]
    for place, ((work, target), (ours, theirs)) in enumerate(zip(works, pairs, strict=True)):
        short = place >= 4
        yield timed_row(
            work.replace("patch 14", f"patch {patch}"), ours, name, version("captum"), theirs,
            target=target, repeats=5 if short or full else 3, warmup=1, device=device,
        )  # fmt: skip


def _statistics(device: str) -> Row:
    """Mean, deviation and activity of 1000 maps of 8 x 16 x 16, in batches of 100."""
    work = "statistics of 1000 maps of 8x16x16"
    library = _library()
    if library is None:
        return absent(work, LIBRARY, "ADDIS_PEERS names no checkout", target=0.05)
    batches = torch.randn(10, 100, 8, 16, 16, device=device)

    def theirs() -> Tensor:
        estimator = library.TorchWelfordEstimator()
        for batch in batches:
            estimator(batch)
        return torch.as_tensor(estimator.std())

    def ours() -> Tensor:
        stats = explain.BottleneckStats((8, 16, 16)).to(device)
        for batch in batches:
            stats.update(batch)
        return stats.std

    return timed_row(work, ours, LIBRARY, COMMIT, theirs, target=0.05, device=device)


def _noise(model: nn.Module, x: Tensor, data: Tensor) -> Row:
    """What fewer draws cost: the map's standard deviation over noise seeds."""
    spread = {}
    for draws in (10, 4):
        iba = _bottleneck(model, "layer3", data, draws=draws)
        small = iba.repeat(x, CLASS, repeats=6 if draws == 4 else 3, reduce="bits_per_cell")
        assert small.std is not None
        spread[draws] = float(small.std.mean() / small.map.mean())
    return Row(
        work="standard deviation of an IBA map over noise seeds, 4 draws beside 10",
        peer="10 draws", version="addis", unit="of the map's mean", addis=spread[4],
        peer_value=spread[10], ratio=spread[4] / spread[10], target=None,
        note="what the shorter run of the row with 10 x 4 costs in precision",
    )  # fmt: skip


def _memory(calls: int) -> Row:
    """Growth of the process over consecutive calls, new bottlenecks among them."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, 4),
    ).eval()  # fmt: skip
    x, data = torch.randn(4, 3, 32, 32), torch.randn(8, 3, 32, 32)
    iba = _bottleneck(model, "1", data)
    for _ in range(50):
        iba.attribute(x, CLASS)
    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for call in range(calls):
        if call % 10 == 0:
            iba = _bottleneck(model, "1", data)
        iba.attribute(x, CLASS)
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return Row(
        work=f"memory over {calls} consecutive calls, a new bottleneck every 10", peer="none",
        version="", unit="MiB more at the peak", addis=growth, peer_value=None, ratio=None,
        target=None, note="flat means a few MiB at most",
    )  # fmt: skip
