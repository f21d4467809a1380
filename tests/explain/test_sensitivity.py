"""Sensitivity-n and the random sets behind it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from addis.explain._sensitivity import pearson, sensitivity_n, subset_drops, subset_sizes
from tests.explain import oracles_metrics as oracles


def net(dtype=torch.float64):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(3)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(54, 4)).eval().to(dtype)


def batch(n=3, h=13, w=11, dtype=torch.float64):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(n, 3, h, w, generator=g, dtype=torch.float64)
    maps = torch.randn(n, h, w, generator=g, dtype=torch.float64)
    return x.to(dtype), torch.arange(n) % 4, maps.to(dtype)


def linear(h=13, w=11, baseline=0.0):
    """A linear model and its Gradient x Input against ``baseline``."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * h * w, 4)).double()
    weight = model[1].weight.detach().view(4, 3, h, w)
    return model, lambda x, target: (weight[target] * (x - baseline)).sum(1)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# --- invariants ---


@pytest.mark.parametrize("pool", ["image", "all"])
@pytest.mark.parametrize("tile", [1, 3, 4])
@pytest.mark.parametrize("baseline", [0.0, 0.7])
def test_gradient_x_input_of_a_linear_model_gets_exactly_one_at_every_n(pool, tile, baseline):
    model, share = linear(baseline=baseline)
    x, target, _ = batch()
    found = sensitivity_n(
        model, x, target, share(x, target), tile=tile, pool=pool, baseline=baseline,
        generator=generator(), subsets=30,
    )  # fmt: skip
    assert torch.allclose(found, torch.ones_like(found), rtol=0, atol=1e-12)


def test_the_negated_map_gets_the_negated_correlation():
    x, target, maps = batch()
    drops = subset_drops(net(), x, target, tile=3, generator=generator())
    assert torch.allclose(drops.per_image(-maps), -drops.per_image(maps), atol=1e-12)
    assert torch.allclose(drops.pooled(-maps), -drops.pooled(maps), atol=1e-12)


def test_the_scale_of_a_map_enters_the_pooled_correlation_alone():
    x, target, maps = batch()
    drops = subset_drops(net(), x, target, tile=3, generator=generator())
    scaled = maps * torch.tensor([1.0, 10.0, 100.0])[:, None, None]
    assert torch.allclose(drops.per_image(scaled), drops.per_image(maps), atol=1e-12)
    assert not torch.allclose(drops.pooled(scaled), drops.pooled(maps), atol=1e-3)


def test_sets_have_their_size_and_no_tile_twice_and_are_uniform():
    x, target, _ = batch(n=2)
    drops = subset_drops(
        net(), x, target, tile=3, ns=[1, 4, 9], subsets=2000, generator=generator()
    )
    assert drops.removed.shape == (2, 3, 2000, 12)
    for s, size in enumerate((1, 4, 9)):
        assert (drops.removed[:, s].sum(-1) == size).all()
        often = drops.removed[:, s].double().mean((0, 1))
        deviation = (size / 12 * (1 - size / 12) / 4000) ** 0.5
        assert ((often - size / 12).abs() < 4.5 * deviation).all()
    assert not torch.equal(drops.removed[0], drops.removed[1])  # each image has sets of its own


def test_the_generator_alone_decides_the_sets():
    x, target, _ = batch()
    one, same = (subset_drops(net(), x, target, tile=3, generator=generator(3)) for _ in range(2))
    other = subset_drops(net(), x, target, tile=3, generator=generator(4))
    assert torch.equal(one.removed, same.removed)
    assert torch.equal(one.drops, same.drops)
    assert not torch.equal(one.removed, other.removed)


def test_memory_changes_the_pieces_and_not_the_drops():
    x, target, _ = batch()
    whole = subset_drops(net(), x, target, tile=3, subsets=5, generator=generator())
    each = subset_drops(net(), x, target, tile=3, subsets=5, memory=1, generator=generator())
    assert torch.allclose(whole.drops, each.drops, atol=1e-12)


def test_sizes_are_even_in_logarithm_up_to_four_fifths_of_the_tiles():
    sizes = subset_sizes(784)
    even = [627.2 ** (i / 15) for i in range(16)]
    assert sizes.tolist() == sorted({round(size) for size in even})
    assert sizes[-1] == 627
    assert subset_sizes(2).tolist() == [1]


def test_a_map_or_a_model_that_does_not_vary_gets_zero():
    x, target, maps = batch()
    flat = torch.full((3, 12, 12), 0.1)
    square = torch.randn(3, 3, 12, 12, dtype=torch.float64)
    found = subset_drops(net(), square, target, tile=4, generator=generator())
    assert not found.per_image(flat).any()
    blind = nn.Sequential(nn.Flatten(), nn.Linear(429, 4)).double()
    nn.init.zeros_(blind[1].weight)
    assert not sensitivity_n(blind, x, target, maps, tile=3, generator=generator()).any()


def test_the_model_is_left_as_it_was_also_after_an_error():
    model, (x, target, maps) = net().train(), batch()
    with pytest.warns(UserWarning, match="training mode"):
        sensitivity_n(model, x, target, maps, tile=3, subsets=2)
    with pytest.warns(UserWarning, match="mode"), pytest.raises(ValueError, match="target"):
        sensitivity_n(model, x, torch.tensor([0, 1, 9]), maps, tile=3)
    assert all(m.training for m in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


# --- against the definition in float64 ---


@pytest.mark.parametrize("tile", [3, 5])
def test_correlations_equal_the_loop_over_sets(tile):
    model, (x, target, maps) = net(), batch()
    colour = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64)[:, None, None]
    drops = subset_drops(
        model, x, target, tile=tile, ns=3, subsets=6, baseline=colour, generator=generator()
    )
    each, pooled = oracles.sensitivity(model, x, target, maps, tile, drops.removed, colour)
    assert np.allclose(drops.per_image(maps), each, atol=1e-10)
    assert np.allclose(drops.pooled(maps), pooled, atol=1e-10)
    given = {"tile": tile, "ns": 3, "subsets": 6, "baseline": colour}
    mean = sensitivity_n(model, x, target, maps, **given, generator=generator())
    assert np.allclose(mean, each.mean(0), atol=1e-10)
    everything = sensitivity_n(model, x, target, maps, **given, pool="all", generator=generator())
    assert np.allclose(everything, pooled, atol=1e-10)


def test_pearson_equals_numpy():
    g = generator(5)
    a = torch.randn(4, 50, generator=g, dtype=torch.float64) + 1e3
    b = 0.3 * a + torch.randn(4, 50, generator=g, dtype=torch.float64)
    expected = [np.corrcoef(u, v)[0, 1] for u, v in zip(a.numpy(), b.numpy(), strict=True)]
    assert np.allclose(pearson(a, b), expected, atol=1e-9)


# --- bad input ---


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"pool": "mean"}, ValueError, "pool must be"),
        ({"tile": 0}, ValueError, "tile"),
        ({"tile": 11}, ValueError, "2 tiles"),
        ({"ns": 0}, ValueError, "ns"),
        ({"ns": []}, ValueError, "ns"),
        ({"ns": [0]}, ValueError, "ns"),
        ({"ns": [12]}, ValueError, "ns"),
        ({"subsets": 1}, ValueError, "subsets"),
        ({"baseline": torch.zeros(2, 1, 1)}, ValueError, "baseline"),
        ({"memory": -1}, ValueError, "memory"),
        ({"map": torch.zeros(3, 13, 10)}, ValueError, "map"),
        ({"map": torch.zeros(3, 13, 11).int()}, TypeError, "map"),
        ({"map": torch.full((3, 13, 11), torch.nan)}, FloatingPointError, "map"),
        ({"x": torch.zeros(3, 3, 13, 11).int()}, TypeError, "x"),
        ({"x": torch.full((3, 3, 13, 11), torch.nan)}, FloatingPointError, "x"),
        ({"target": torch.tensor([0, 1])}, ValueError, "target"),
        ({"target": torch.tensor([-1, 0, 1])}, ValueError, "target"),
        ({"target": None}, ValueError, "target"),
    ],
)
def test_wrong_input_is_refused_at_the_door(change, error, match):
    x, target, maps = batch(dtype=torch.float32)
    given = {"x": x, "target": target, "map": maps, "tile": 3, **change}
    with pytest.raises(error, match=match):
        sensitivity_n(net(torch.float32), **given)


def test_a_map_of_another_size_is_refused_by_drops_at_hand():
    x, target, _ = batch()
    drops = subset_drops(net(), x, target, tile=3, subsets=2)
    with pytest.raises(ValueError, match="map must be"):
        drops.per_image(torch.zeros(3, 11, 13))


# --- dtypes and sizes ---


def test_half_precision_channels_last_odd_sizes_and_a_batch_of_one():
    model, share = linear(31, 37)
    g = generator(6)
    x = torch.randn(1, 3, 31, 37, generator=g, dtype=torch.float64)
    target = torch.tensor([1])
    half = x.bfloat16().to(memory_format=torch.channels_last)
    found = sensitivity_n(
        model.bfloat16(), half, target, share(x, target), tile=8, ns=4, generator=generator()
    )
    assert (found > 0.9).all()
