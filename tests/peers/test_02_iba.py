from __future__ import annotations

import contextlib
import os
import sys
import types
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from addis import explain

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore"),
]


def small_cnn(inplace: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace),
        nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.ReLU(inplace),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    ).eval()  # fmt: skip
    model[7].weight.data.mul_(40)
    return model


def images(n: int = 3) -> Tensor:
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(1))


TARGET = torch.tensor([0, 3, 1])


@pytest.fixture
def captum():
    return pytest.importorskip("captum.attr")


def test_saliency_is_captums(captum):
    model = small_cnn()
    want = captum.Saliency(model).attribute(images(), TARGET).amax(1)
    torch.testing.assert_close(explain.saliency(model, images(), TARGET), want, atol=1e-5, rtol=0)
    want = captum.Saliency(model).attribute(images(), TARGET, abs=False).sum(1)
    torch.testing.assert_close(explain.gradient(model, images(), TARGET), want, atol=1e-5, rtol=0)
    want = captum.InputXGradient(model).attribute(images(), TARGET).sum(1).detach()
    ours = explain.gradient_x_input(model, images(), TARGET)
    torch.testing.assert_close(ours, want, atol=1e-5, rtol=0)


@pytest.mark.parametrize("steps", [1, 7, 50])
def test_integrated_gradients_are_captums(captum, steps):
    model, x = small_cnn(), images()
    start = x.mean((2, 3), keepdim=True).expand_as(x)
    want = captum.IntegratedGradients(model).attribute(x, start, TARGET, n_steps=steps).sum(1)
    ours = explain.integrated_gradients(model, x, TARGET, steps=steps)
    torch.testing.assert_close(ours, want.float(), atol=1e-5, rtol=0)


def test_guided_backprop_is_captums(captum):
    model = small_cnn()
    want = captum.GuidedBackprop(model).attribute(images(), TARGET).abs().amax(1)
    ours = explain.guided_backprop(small_cnn(inplace=True), images(), TARGET)
    torch.testing.assert_close(ours, want, atol=1e-5, rtol=0)


def test_gradcam_is_captums_then_relu_and_interpolation(captum):
    model = small_cnn()
    raw = captum.LayerGradCam(model, model[3]).attribute(images(), TARGET)
    want = F.interpolate(raw.relu(), (16, 16), mode="bilinear")[:, 0].detach()
    ours = explain.gradcam(model, images(), TARGET, "3")
    torch.testing.assert_close(ours, want, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("patch", "stride"), [(4, 4), (5, 3), (6, 6)])
def test_occlusion_is_captums(captum, patch, stride):
    model, x = small_cnn(), images()
    cover = x.mean((2, 3), keepdim=True).expand_as(x)
    want = captum.Occlusion(model).attribute(
        x, (3, patch, patch), (3, stride, stride), baselines=cover, target=TARGET
    )
    ours = explain.occlusion(model, x, TARGET, patch=patch, stride=stride)
    torch.testing.assert_close(ours, want[:, 0].float(), atol=1e-5, rtol=1e-5)


def test_lrp_of_a_plain_network_is_captums_z_rule(captum):
    zennit = pytest.importorskip("zennit.composites")
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 196, 4, bias=False)
    ).eval()
    composite = zennit.LayerMapComposite(
        [(nn.Conv2d, zennit.Epsilon(1e-9)), (nn.Linear, zennit.Epsilon(1e-9))]
    )
    ours = explain.lrp(model, images(), TARGET, composite=composite)
    logit = model(images()).gather(1, TARGET[:, None])
    want = (
        captum.InputXGradient(model).attribute(images(), TARGET).detach() / logit[..., None, None]
    )
    torch.testing.assert_close(ours, want.sum(1).detach(), atol=1e-3, rtol=1e-3)


# The authors' library


@pytest.fixture
def library(monkeypatch):
    """BioroboticsLab/IBA, read from the folder that ADDIS_PEERS names.

    It takes ``contextmanager`` from the package ``decorator``; the standard library's is put in
    its place.
    """
    root = os.environ.get("ADDIS_PEERS")
    path = Path(root or "", "BioroboticsLab+IBA")
    if not root or not path.is_dir():
        pytest.skip("ADDIS_PEERS names no folder with BioroboticsLab+IBA")
    pytest.importorskip("skimage")
    shim = types.ModuleType("decorator")
    shim.contextmanager = contextlib.contextmanager
    monkeypatch.setitem(sys.modules, "decorator", shim)
    monkeypatch.syspath_prepend(str(path))
    from IBA import pytorch, pytorch_readout

    return pytorch, pytorch_readout


def test_statistics_are_the_librarys(library):
    pytorch, _ = library
    values = torch.randn(40, 2, 3, 3).relu()
    theirs = pytorch.TorchWelfordEstimator()
    theirs(values)
    ours = explain.BottleneckStats((2, 3, 3))
    ours.update(values)
    torch.testing.assert_close(ours.mean.float(), theirs.mean(), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(ours.std.float(), theirs.std(), atol=1e-6, rtol=1e-5)
    assert torch.equal(ours.active > 0.2, theirs.active_neurons(0.2))


def peers_map(pytorch, model: nn.Module, data: Tensor, x: Tensor, target: int, seed: int) -> Tensor:
    """The library's capacity of one image in bits, ``(C, H, W)``."""
    peer = pytorch.IBA(model[2])
    try:
        peer.estimate(model, [(data,)])
        torch.manual_seed(seed)
        labels = torch.full((10,), target)
        found = peer.analyze(x, lambda b: F.cross_entropy(model(b), labels), mode="capacity")
    finally:
        peer.detach()
    return torch.as_tensor(found)


def test_per_sample_map_is_the_librarys_at_the_same_noise(library, monkeypatch):
    pytorch, _ = library
    model, data = small_cnn(), images(50)
    iba = explain.InformationBottleneck(model, "2", seed=0, official_timing=True)
    iba.stats = iba.estimate(data)
    ours = iba.attribute(images(1), 2).capacity[0] / torch.log(torch.tensor(2.0))
    theirs = peers_map(pytorch, model, data, images(1), 2, seed=0)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


def test_per_sample_maps_agree_over_many_seeds(library):
    pytorch, _ = library
    model, data, x = small_cnn(), images(50), images(1)
    seeds = range(8)
    iba = explain.InformationBottleneck(model, "2", official_timing=True)
    iba.stats = iba.estimate(data)
    ours = iba.attribute(x.expand(8, -1, -1, -1), 1, seeds=[100 + s for s in seeds]).capacity
    ours = ours.sum(1) / torch.log(torch.tensor(2.0))
    theirs = torch.stack([peers_map(pytorch, model, data, x, 1, s).sum(0) for s in seeds])
    error = (ours.mean(0) - theirs.mean(0)) / (ours.var(0) / 8 + theirs.var(0) / 8).sqrt()
    assert float(error.square().mean()) < 2.0  # 1 is expected where the two differ by noise only


def test_readout_alpha_is_the_librarys_at_the_same_weights(library):
    _, pytorch_readout = library
    model, data = small_cnn(), images(50)
    names = ["2", "4", "7"]
    stats = explain.ReadoutBottleneck.estimate(model, "2", names, data)
    ours = explain.ReadoutBottleneck(model, "2", names, stats)
    peer = pytorch_readout.IBAReadout(model[2], [model[2], model[4], model[7]], model)
    peer.estimate(model, [(data,)])
    for name, place in (("conv1", 0), ("conv2", 2), ("conv3", 4)):
        getattr(peer, name).load_state_dict(ours.net[place].state_dict())
    peer._last_input = images(2)
    torch.testing.assert_close(ours(images(2)), peer._generate_alpha(), atol=1e-4, rtol=1e-4)
