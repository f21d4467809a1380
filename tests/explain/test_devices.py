"""Maps and metrics on another device are those of the CPU, where it draws no noise of its own."""

from __future__ import annotations

import pytest
import torch

from addis import explain
from addis.explain import (
    BASELINES,
    BottleneckStats,
    InformationBottleneck,
    Patterns,
    ReadoutBottleneck,
    pattern_attribution,
)
from tests.explain.test_baselines import TARGET, images, run, small_cnn

DRAWN_ON_DEVICE = frozenset({"smoothgrad"})


def both(device):
    """The same model and images on the CPU and on the device, in float64."""
    model, x = small_cnn().double(), images().double()
    return (model, x), (small_cnn().double().to(device), x.to(device))


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_gives_its_map_on_the_device(device, name):
    (model, x), (there, x_there) = both(device)
    found = run(name, there, x_there, TARGET)
    assert found.device == x_there.device
    if name not in DRAWN_ON_DEVICE:
        torch.testing.assert_close(found.cpu(), run(name, model, x, TARGET), rtol=1e-6, atol=1e-8)


def test_statistics_are_those_of_the_cpu(device):
    (model, x), (there, x_there) = both(device)
    ours = BottleneckStats.estimate(there, "4", x_there.repeat(400, 1, 1, 1))
    theirs = BottleneckStats.estimate(model, "4", x.repeat(400, 1, 1, 1))
    assert ours.mean.device == x_there.device
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name].cpu(), value, rtol=1e-9, atol=1e-9)


def test_patterns_are_those_of_the_cpu(device):
    (model, x), (there, x_there) = both(device)
    ours = Patterns.estimate(there, x_there.repeat(400, 1, 1, 1))
    theirs = Patterns.estimate(model, x.repeat(400, 1, 1, 1))
    for name, a in theirs.directions.items():
        assert ours.directions[name].device == x_there.device
        torch.testing.assert_close(ours.directions[name].cpu(), a, rtol=1e-6, atol=1e-8)
    found = pattern_attribution(there, x_there, TARGET, theirs)
    want = pattern_attribution(model, x, TARGET, theirs)
    torch.testing.assert_close(found.cpu(), want, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_bottleneck_repeats_itself_and_does_not_depend_on_the_batch(device, dtype):
    model, x = small_cnn().to(device, dtype), images().to(device, dtype)
    iba = InformationBottleneck(model, "4", seed=0)
    iba.stats = iba.estimate(x.repeat(400, 1, 1, 1))
    whole = iba.attribute(x, TARGET)
    assert whole.map.device == x.device
    assert torch.equal(whole.map, iba.attribute(x, TARGET).map)
    if dtype is torch.float32:
        alone = torch.cat([iba.attribute(x[i : i + 1], TARGET[i : i + 1]).map for i in range(3)])
        torch.testing.assert_close(whole.map, alone, rtol=1e-3, atol=1e-4)
    assert bool((whole.total_bits > 0).all())


def test_a_readout_trains_on_the_device(device):
    model, x = small_cnn().to(device), images().to(device)
    stats = ReadoutBottleneck.estimate(model, "2", ["2", "4"], x.repeat(400, 1, 1, 1))
    readout = ReadoutBottleneck(model, "2", ["2", "4"], stats)
    losses = readout.fit([(images(), TARGET)] * 5, epochs=2, lr=1e-2)
    assert losses[1] < losses[0]
    assert readout.attribute(x).map.device == x.device


@pytest.mark.parametrize("fill", ["mean", "blur", "noisy_linear"])
def test_degradation_is_that_of_the_cpu(device, fill):
    curves = []
    for model, x in both(device):
        maps = explain.saliency(model, x, TARGET)
        source = torch.Generator().manual_seed(0)
        curves.append(
            explain.degradation(
                model, x, TARGET, maps, tile=4, steps=8, fill=fill, generator=source
            )
        )
    torch.testing.assert_close(curves[0].morf, curves[1].morf.cpu(), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(curves[0].lerf, curves[1].lerf.cpu(), rtol=1e-5, atol=1e-7)


def test_the_other_metrics_are_those_of_the_cpu(device):
    found = []
    boxes = torch.tensor([[2, 2, 9, 9], [0, 4, 6, 10], [8, 8, 15, 15]])
    for model, x in both(device):
        maps = explain.saliency(model, x, TARGET)
        drops = explain.subset_drops(
            model, x, TARGET, tile=4, ns=[2, 5], subsets=30,
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        grid = explain.mosaics(
            x.repeat(4, 1, 1, 1), torch.arange(4).repeat_interleave(3), count=2,
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        pointed = explain.saliency(model, grid.images, grid.targets[:, 0])
        cascade = explain.cascade_randomization(model, explain.saliency, x, TARGET, seed=0)
        found.append([
            drops.per_image(maps), drops.pooled(maps), explain.bbox_ratio(maps, boxes),
            explain.grid_pointing(pointed, torch.tensor([0, 3])), cascade.spearman[:1],
        ])  # fmt: skip
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs.cpu(), rtol=1e-5, atol=1e-6)


def test_masked_prediction_runs_on_the_device(device):
    model, x = small_cnn().to(device), images().to(device)
    iba = InformationBottleneck(model, "4", seed=0)
    iba.stats = iba.estimate(x.repeat(400, 1, 1, 1))
    bits = iba.attribute(x, TARGET, reduce="bits_per_cell").map
    found = explain.masked_prediction(iba, x, TARGET, bits, keep=0.5, seed=0)
    assert found.sufficient.shape == (3,)
    assert torch.isfinite(found.sufficient).all()
