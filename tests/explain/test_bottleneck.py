from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
from torch import Tensor, nn

from addis.explain import BottleneckStats, InformationBottleneck, logit_margin


@pytest.fixture(autouse=True)
def _few_samples_are_enough_here():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the statistics rest on")
        yield


def small_cnn(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True),
        nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    ).eval()  # fmt: skip


def images(n: int = 4, size: tuple[int, int] = (16, 16), seed: int = 1) -> Tensor:
    return torch.randn(n, 3, *size, generator=torch.Generator().manual_seed(seed))


def bottleneck(
    model: nn.Module, layer: str = "2", size=(16, 16), **options
) -> InformationBottleneck:
    iba = InformationBottleneck(model, layer, seed=0, **options)
    iba.stats = iba.estimate(images(40, size))
    return iba


def test_a_batch_is_explained_as_its_images_one_by_one():
    iba = bottleneck(small_cnn())
    x, target = images(5), torch.tensor([0, 1, 2, 3, 0])
    whole = iba.attribute(x, target)
    single = torch.cat([iba.attribute(x[i : i + 1], target[i : i + 1]).map for i in range(5)])
    chunks = iba.attribute(x, target, batch_size=2)
    torch.testing.assert_close(whole.map, single, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(whole.map, chunks.map, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(whole.history["loss"], chunks.history["loss"], atol=1e-5, rtol=1e-4)


def test_permuting_the_batch_permutes_the_maps():
    iba = bottleneck(small_cnn())
    x, target, order = images(4), torch.tensor([0, 1, 2, 3]), torch.tensor([2, 0, 3, 1])
    seeds = [5, 6, 7, 8]
    straight = iba.attribute(x, target, seeds=seeds)
    turned = iba.attribute(x[order], target[order], seeds=[seeds[i] for i in order])
    torch.testing.assert_close(straight.map[order], turned.map, atol=1e-5, rtol=1e-4)


def test_model_is_left_as_it_was_also_after_an_exception():
    model = small_cnn().train()
    model[0].weight.requires_grad_(False)
    iba = bottleneck(model.eval())
    model.train()
    before = copy.deepcopy(model.state_dict())

    def fails(output: Tensor, index: Tensor) -> Tensor:
        raise KeyError("on purpose")

    with pytest.warns(UserWarning, match="training mode"):
        iba.attribute(images(), 1)
    with pytest.raises(KeyError), pytest.warns(UserWarning, match="training mode"):
        iba.attribute(images(), objective=fails)
    assert all(module.training for module in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())
    flags = [p.requires_grad for p in model.parameters()]
    assert flags == [False, *[True] * (len(flags) - 1)]
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_pixel_map_sums_to_the_total_bits():
    iba = bottleneck(small_cnn(), "4")
    att = iba.attribute(images(), 2)
    total = att.capacity.flatten(1).sum(1) / math.log(2)
    torch.testing.assert_close(att.total_bits, total)
    torch.testing.assert_close(att.map.sum((1, 2)), total, rtol=0.02, atol=0)
    cells = iba.attribute(images(), 2, reduce="bits_per_cell")
    assert cells.map.shape == (4, 8, 8)
    torch.testing.assert_close(cells.map.sum((1, 2)), total, rtol=1e-5, atol=0)
    torch.testing.assert_close(att.channel_bits.sum(1), total, rtol=1e-5, atol=0)


def test_attribute_before_estimate_names_estimate():
    with pytest.raises(RuntimeError, match="estimate"):
        InformationBottleneck(small_cnn(), "2").attribute(images(), 0)


def test_margin_is_the_rival_less_the_target():
    loss = logit_margin(torch.tensor([1, 2]))
    logits = torch.tensor([[5.0, 1.0, 2.0], [0.0, 3.0, 9.0]])
    assert loss(logits, torch.tensor([0, 1])).tolist() == [4.0, -6.0]


def test_statistics_are_part_of_the_saved_state():
    stats = BottleneckStats((2, 3))
    stats.update(torch.randn(8, 2, 3))
    again = BottleneckStats((2, 3))
    again.load_state_dict(stats.state_dict())
    assert torch.equal(again.std, stats.std)
    assert again.n == 8
