"""Degradation curves, the three fills, and noisy linear imputation."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from addis.explain import _impute
from addis.explain._degradation import DegradationCurve, degradation
from addis.explain._impute import _conjugate_gradients, noisy_linear
from tests.explain import oracles_metrics as oracles


def net(channels=3, classes=4, dtype=torch.float64, seed=0):
    """A confident net: its most likely class has a probability far above the others'."""
    torch.manual_seed(seed)
    layers = [nn.Conv2d(channels, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()]
    layers += [nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Dropout(0.5), nn.Linear(54, classes)]
    model = nn.Sequential(*layers).eval()
    model[1].running_mean.uniform_(-1, 1)
    model[6].weight.data.mul_(8)
    return model.to(dtype)


def batch(n=3, h=13, w=11, channels=3, dtype=torch.float64, seed=1):
    """Images, the classes that ``net()`` sees in them, and maps without ties."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, channels, h, w, generator=generator, dtype=torch.float64)
    maps = torch.randn(n, h, w, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        target = net(channels)(x).argmax(1)
    return x.to(dtype), target, maps.to(dtype)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def dark(x):
    """Class 0 in proportion to the light in the image, so that removal has a known effect."""
    return torch.stack([8 * x.mean((1, 2, 3)), torch.zeros(len(x), dtype=x.dtype)], 1)


class Light(nn.Module):
    def forward(self, x):
        return dark(x)


# --- invariants ---


def test_the_two_orders_share_their_ends():
    model, (x, target, maps) = net(), batch()
    curve = degradation(model, x, target, maps, tile=3)
    assert torch.equal(curve.morf[:, [0, -1]], curve.lerf[:, [0, -1]])
    with torch.no_grad():
        whole = model(x).softmax(1).gather(1, target[:, None])[:, 0]
    assert torch.allclose(curve.morf[:, 0], whole, atol=1e-12)
    assert curve.fractions[0] == 0
    assert curve.fractions[-1] == 1


def test_the_scale_puts_the_mean_ends_of_the_whole_set_at_one_and_zero():
    model, (x, target, maps) = net(), batch()
    curve = degradation(model, x, target, maps, tile=3)
    ends = curve.normalised(curve.morf[:, [0, -1]].mean(0))
    assert torch.allclose(ends, torch.tensor([1.0, 0.0], dtype=torch.float64), atol=1e-12)
    assert not torch.allclose(curve.normalised(curve.morf[0, [0, -1]]), ends, atol=1e-3)


def test_a_map_and_its_negation_score_exact_negatives():
    x, target, maps = batch()
    black = torch.zeros(1)
    plus = degradation(Light(), x, 0, maps, tile=3, fill=black)  # no row is rounded by its place
    minus = degradation(Light(), x, 0, -maps, tile=3, fill=black)
    assert torch.equal(plus.morf, minus.lerf)
    assert torch.equal(plus.lerf, minus.morf)
    assert torch.equal(plus.scores, -minus.scores)
    assert float(plus.scores.abs().min()) > 0
    near = partial(torch.testing.assert_close, rtol=0, atol=1e-14)
    model = net()
    plus = degradation(model, x, target, maps, tile=3)
    minus = degradation(model, x, target, -maps, tile=3)
    near(plus.morf, minus.lerf)
    near(plus.lerf, minus.morf)
    near(plus.scores, -minus.scores)


def test_a_constant_map_scores_zero_in_the_mean_over_orders():
    x = torch.rand(1, 1, 12, 12, generator=generator(3)).repeat(400, 1, 1, 1)
    constant = torch.full((400, 12, 12), 0.1)
    curve = degradation(
        Light(), x, 0, constant, tile=5, fill=torch.zeros(1), generator=generator(4)
    )
    spread = float(curve.scores.std()) / 20
    assert spread > 1e-4  # the orders do differ, although the tiles differ in area
    assert abs(curve.score) < 4 * spread


def test_ties_are_ordered_by_the_generator_alone():
    model, (x, target, _) = net(), batch()
    flat = torch.zeros(len(x), *x.shape[2:])
    first = degradation(model, x, target, flat, tile=3, generator=generator(5))
    again = degradation(model, x, target, flat, tile=3, generator=generator(5))
    other = degradation(model, x, target, flat, tile=3, generator=generator(6))
    assert torch.equal(first.morf, again.morf)
    assert not torch.equal(first.morf, other.morf)


@pytest.mark.parametrize("fill", ["mean", "blur", "noisy_linear"])
def test_memory_changes_the_pieces_and_not_the_curves(fill):
    model, (x, target, maps) = net(), batch()
    whole = degradation(model, x, target, maps, tile=3, fill=fill, generator=generator(7))
    each = degradation(model, x, target, maps, tile=3, fill=fill, memory=1, generator=generator(7))
    assert torch.allclose(whole.morf, each.morf, atol=1e-9)
    assert torch.allclose(whole.lerf, each.lerf, atol=1e-9)


def test_stages_are_evenly_spaced_whole_tiles_without_repetition():
    model, (x, target, maps) = net(), batch(h=12, w=12)
    assert len(degradation(model, x, target, maps, tile=3, steps=100).fractions) == 17
    few = degradation(model, x, target, maps, tile=3, steps=4)
    assert few.fractions.tolist() == [0, 0.25, 0.5, 0.75, 1]
    one = degradation(model, x, target, maps, tile=12, steps=100)
    assert one.fractions.tolist() == [0, 1]
    assert one.scores.tolist() == [0, 0, 0]


def test_the_true_map_of_a_model_that_sees_light_gets_the_best_score():
    x = torch.rand(4, 1, 12, 12, generator=generator(8))
    black = torch.zeros(1)
    best = degradation(Light(), x, 0, x[:, 0], tile=2, fill=black).score
    rival = degradation(Light(), x, 0, torch.randn(4, 12, 12), tile=2, fill=black).score
    assert best > abs(rival)


def test_concatenated_parts_equal_the_whole_data_set():
    model, (x, target, maps) = net(), batch(n=4)
    whole = degradation(model, x, target, maps, tile=3)
    parts = [degradation(model, x[i], target[i], maps[i], tile=3) for i in ([0, 1], [2], [3])]
    joined = DegradationCurve.concatenate(parts)
    assert torch.allclose(joined.scores, whole.scores, atol=1e-12)


def test_the_model_is_left_as_it_was_also_after_an_error():
    model, (x, target, maps) = net().train(), batch()
    model[5].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.warns(UserWarning, match="training mode"):
        degradation(model, x, target, maps, tile=3, steps=2)
    with pytest.warns(UserWarning, match="mode"), pytest.raises(ValueError, match="target"):
        degradation(model, x, torch.tensor([0, 1, 9]), maps, tile=3)
    assert [m.training for m in model] == [True] * 5 + [False, True]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(not m._forward_hooks for m in model.modules())


def test_input_is_left_alone():
    model, (x, target, maps) = net(), batch()
    kept = x.clone(), maps.clone()
    degradation(model, x.requires_grad_(), target, maps.requires_grad_(), tile=3, steps=3)
    assert torch.equal(x, kept[0])
    assert torch.equal(maps, kept[1])
    assert x.grad is None


# --- against the definition in float64 ---


@pytest.mark.parametrize(("fill", "side"), [("mean", 3), ("mean", 4), ("blur", 3)])
def test_curves_equal_the_loop_over_tiles(fill, side):
    model, (x, target, maps) = net(), batch()
    curve = degradation(model, x, target, maps, tile=side, steps=6, fill=fill)
    count = (13 // side) * (11 // side)
    counts = [round(float(f) * count) for f in curve.fractions]
    assert counts == sorted({round(i * count / 6) for i in range(7)})

    def filled(image, missing):
        if fill == "mean":
            return oracles.mean_filled(image, missing)
        return oracles.blur_filled(image, missing, side)

    morf, lerf = oracles.degradation(model, x, target, maps, side, counts, filled)
    close = {"atol": 1e-12} if fill == "mean" else {"atol": 1e-6}
    assert np.allclose(curve.morf, morf, **close)
    assert np.allclose(curve.lerf, lerf, **close)
    score = oracles.degradation_score(morf, lerf, curve.fractions.numpy())
    assert curve.score == pytest.approx(score, abs=1e-5)


def test_noisy_linear_curves_equal_the_dense_systems():
    model, (x, target, maps) = net(), batch(n=2)
    curve = degradation(model, x, target, maps, tile=3, steps=4, fill="noisy_linear", noise=0.0)
    counts = [round(float(f) * 12) for f in curve.fractions]

    def filled(image, missing):
        full = bool(missing.all())
        return (oracles.mean_filled if full else oracles.harmonic)(image, missing)

    morf, lerf = oracles.degradation(model, x, target, maps, 3, counts, filled)
    assert np.allclose(curve.morf, morf, atol=1e-6)
    assert np.allclose(curve.lerf, lerf, atol=1e-6)


@pytest.mark.parametrize(
    "shape", [(13, 11), (16, 16), (5, 9), (2, 7), (31, 37), (3, 90), (70, 6), (1, 40)]
)
@pytest.mark.parametrize("share", [0.05, 0.5, 0.97])
def test_imputation_solves_the_dense_system(shape, share):
    g = generator(9)
    x = torch.randn(2, 3, *shape, generator=g, dtype=torch.float64)
    missing = torch.rand(2, *shape, generator=g) < share
    missing[:, 0, 0] = False
    solved = noisy_linear(x, missing, noise=0.0, tolerance=1e-12)
    for image, hole, found in zip(x, missing, solved, strict=True):
        assert torch.allclose(found, oracles.harmonic(image, hole), atol=1e-9)
    single = noisy_linear(x.float(), missing, noise=0.0)
    assert torch.allclose(single.double(), solved, atol=1e-4)


def test_imputation_of_a_large_hole_does_not_drift_in_single_precision():
    x = torch.randn(1, 1, 128, 128, generator=generator(10)) + 3
    missing = torch.ones(1, 128, 128, dtype=torch.bool)
    missing[:, :4, :4] = False
    single = noisy_linear(x, missing, noise=0.0)
    double = noisy_linear(x.double(), missing, noise=0.0, tolerance=1e-13)
    assert (single - double).abs().max() < 1e-3


@pytest.mark.parametrize("shape", [(1, 512), (4, 512), (8, 1024), (3, 2000), (33, 500)])
def test_a_long_hole_is_filled_in_few_steps_whatever_its_shape(shape, monkeypatch):
    monkeypatch.setattr(_impute, "_conjugate_gradients", partial(_conjugate_gradients, most=40))
    slope = torch.linspace(0, 1, shape[1], dtype=torch.float64).expand(1, 1, *shape)
    missing = torch.ones(1, *shape, dtype=torch.bool)
    missing[..., [0, -1]] = False
    x = slope.masked_fill(missing[:, None], 0)
    solved = noisy_linear(x, missing, noise=0.0, tolerance=1e-12)
    torch.testing.assert_close(solved, slope, atol=1e-6, rtol=0)
    turned = noisy_linear(x.mT, missing.mT, noise=0.0, tolerance=1e-12)
    torch.testing.assert_close(turned, slope.mT, atol=1e-6, rtol=0)
    monkeypatch.setattr(_impute, "_conjugate_gradients", partial(_conjugate_gradients, most=22))
    noisy_linear(x.float(), missing)  # reaches its default tolerance


def test_imputation_keeps_no_graph():
    x = torch.randn(1, 1, 6, 6, requires_grad=True)
    assert not noisy_linear(x, x[:, 0] > 0).requires_grad


def test_imputation_keeps_known_pixels_and_does_not_read_missing_ones():
    x = torch.randn(2, 3, 12, 12, generator=generator(11))
    missing = torch.rand(2, 12, 12, generator=generator(12)) < 0.6
    solved = noisy_linear(x, missing, noise=0.0)
    poisoned = noisy_linear(x.masked_fill(missing[:, None], torch.nan), missing, noise=0.0)
    assert torch.equal(solved, poisoned)
    known = ~missing[:, None].expand_as(x)
    assert torch.equal(solved[known], x[known])


def test_imputation_of_a_constant_image_is_that_constant():
    x = torch.full((1, 2, 16, 16), 0.37)
    missing = torch.rand(1, 16, 16, generator=generator(13)) < 0.8
    assert torch.allclose(noisy_linear(x, missing, noise=0.0), x, atol=1e-6)


def test_imputation_of_nothing_known_is_the_mean_and_of_nothing_missing_the_image():
    x = torch.randn(2, 3, 8, 8, generator=generator(14))
    missing = torch.zeros(2, 8, 8, dtype=torch.bool)
    missing[0] = True
    solved = noisy_linear(x, missing, noise=0.0)
    assert torch.allclose(solved[0], x[0].mean((1, 2), keepdim=True).expand(3, 8, 8))
    assert torch.equal(solved[1], x[1])


def test_imputation_noise_has_its_standard_deviation_at_missing_pixels_only():
    x = torch.zeros(1, 1, 100, 100)
    missing = torch.zeros(1, 100, 100, dtype=torch.bool)
    missing[:, :, :50] = True
    noisy = noisy_linear(x, missing, noise=0.2, generator=generator(15))
    assert float(noisy[..., :50].std()) == pytest.approx(0.2, rel=0.05)
    assert not noisy[..., 50:].any()
    again = noisy_linear(x, missing, noise=0.2, generator=generator(15))
    assert torch.equal(noisy, again)


# --- bad input ---


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"tile": 0}, ValueError, "tile must be between 1 and 11"),
        ({"tile": 12}, ValueError, "tile must be between 1 and 11"),
        ({"steps": 0}, ValueError, "steps"),
        ({"noise": -0.1}, ValueError, "noise"),
        ({"memory": 0}, ValueError, "memory"),
        ({"fill": "black"}, ValueError, "'mean', 'blur', 'noisy_linear'"),
        ({"fill": torch.zeros(2, 1, 1)}, ValueError, "fill must broadcast"),
        ({"map": torch.zeros(3, 13, 10)}, ValueError, r"map must be \(3, 13, 11\)"),
        ({"map": torch.zeros(3, 1, 13, 11)}, ValueError, "map"),
        ({"map": torch.zeros(3, 13, 11).long()}, TypeError, "map"),
        ({"map": torch.full((3, 13, 11), torch.nan)}, FloatingPointError, "map"),
        ({"x": torch.zeros(3, 3, 13, 11).long()}, TypeError, "x"),
        ({"x": torch.zeros(3, 13, 11)}, ValueError, "x"),
        ({"x": torch.full((3, 3, 13, 11), torch.inf)}, FloatingPointError, "x"),
        ({"target": torch.tensor([0, 1])}, ValueError, "target"),
        ({"target": torch.tensor([0, 1, 4])}, ValueError, "target"),
        ({"target": None}, ValueError, "target"),
        ({"target": torch.zeros(3)}, TypeError, "target"),
    ],
)
def test_wrong_input_is_refused_at_the_door(change, error, match):
    x, target, maps = batch(dtype=torch.float32)
    given = {"x": x, "target": target, "map": maps, "tile": 3, **change}
    with pytest.raises(error, match=match):
        degradation(net(dtype=torch.float32), **given)


def test_a_scale_that_does_not_exist_is_an_error():
    curve = degradation(Light(), -torch.rand(2, 1, 8, 8), 0, torch.rand(2, 8, 8), tile=2,
                        fill=torch.zeros(1))  # fmt: skip
    with pytest.raises(RuntimeError, match="must score above"):
        _ = curve.score


def test_a_model_whose_score_is_not_finite_is_an_error():
    x, target, maps = batch(dtype=torch.float32)
    model = net(dtype=torch.float32)
    model[-1].bias.data[0] = torch.nan
    with pytest.raises(FloatingPointError, match="score"):
        degradation(model, x, target, maps, tile=3)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"noise": -1.0}, ValueError),
        ({"tolerance": 0.0}, ValueError),
        ({"missing": torch.zeros(1, 8, 8)}, TypeError),
        ({"missing": torch.zeros(1, 8, 7, dtype=torch.bool)}, ValueError),
        ({"images": torch.zeros(1, 3, 8, 8).long()}, TypeError),
    ],
)
def test_imputation_refuses_wrong_input(change, error):
    given = {"images": torch.zeros(1, 3, 8, 8), "missing": torch.zeros(1, 8, 8, dtype=torch.bool)}
    with pytest.raises(error):
        noisy_linear(**{**given, **change})


def test_imputation_says_when_its_tolerance_is_below_the_precision():
    x = torch.randn(1, 1, 16, 16)
    missing = torch.zeros(1, 16, 16, dtype=torch.bool)
    missing[:, 2:14, 2:14] = True
    with pytest.raises(RuntimeError, match="tolerance"):
        noisy_linear(x, missing, tolerance=1e-12)


def test_curves_of_other_stages_cannot_be_joined():
    model, (x, target, maps) = net(), batch()
    a = degradation(model, x, target, maps, tile=3)
    b = degradation(model, x, target, maps, tile=4)
    with pytest.raises(ValueError, match="fractions"):
        DegradationCurve.concatenate([a, b])
    with pytest.raises(ValueError, match="at least one"):
        DegradationCurve.concatenate([])


# --- dtypes, layouts, batch of one ---


@pytest.mark.parametrize("fill", ["mean", "blur", "noisy_linear"])
def test_half_precision_channels_last_and_odd_sizes(fill):
    x, target, maps = batch(h=31, w=37, dtype=torch.bfloat16)
    model = net(dtype=torch.bfloat16)
    exact = degradation(net(), x.double(), target, maps.double(), tile=8, steps=5, fill=fill)
    half = degradation(
        model, x.to(memory_format=torch.channels_last), target, maps, tile=8, steps=5, fill=fill
    )
    assert half.morf.dtype == torch.float64
    assert torch.allclose(exact.morf, half.morf, atol=0.05)


def test_non_contiguous_input_equals_contiguous():
    model, (x, target, maps) = net(), batch(h=11, w=13)
    turned = degradation(model, x.mT, target, maps.mT, tile=3)
    straight = degradation(model, x.mT.contiguous(), target, maps.mT.contiguous(), tile=3)
    assert torch.allclose(turned.morf, straight.morf, atol=1e-12)


def test_a_batch_of_one_and_a_model_with_one_output():
    x = torch.rand(1, 1, 8, 8, generator=generator(16))
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
    curve = degradation(model, x, None, torch.rand(1, 8, 8), tile=2)
    assert curve.morf[0, 0] == pytest.approx(model(x).sigmoid().item(), abs=1e-6)
