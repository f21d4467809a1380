from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from addis.explain import BottleneckStats, InformationBottleneck, bits_curve, masked_prediction


class Corner(nn.Module):
    """The class is read from the upper left quarter of the layer alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Identity()

    def forward(self, x):
        score = self.layer(x)[:, 0, :4, :4].mean((1, 2))
        return torch.stack([score, -score], 1)


def bottleneck(**options) -> InformationBottleneck:
    stats = BottleneckStats((1, 8, 8))
    stats.update(torch.randn(2000, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    return InformationBottleneck(Corner(), "layer", stats, seed=0, draws=50, **options)


X = torch.full((3, 1, 8, 8), 2.0)


def corner(n: int = 3) -> torch.Tensor:
    maps = torch.zeros(n, 8, 8)
    maps[:, :4, :4] = 1.0
    return maps


def test_the_part_that_is_read_suffices_and_is_necessary():
    found = masked_prediction(bottleneck(), X, 0, corner(), threshold=0.5)
    full = 1 / (1 + math.exp(-4))
    torch.testing.assert_close(found.full, torch.full((3,), full))
    torch.testing.assert_close(found.sufficient, found.full)
    assert float((found.necessary - 0.5).abs().max()) < 0.1
    assert found.kept.tolist() == [0.25] * 3


def test_the_necessary_part_may_be_left_out():
    both = masked_prediction(bottleneck(), X, 0, corner(), keep=0.25)
    one = masked_prediction(bottleneck(), X, 0, corner(), keep=0.25, necessary=False)
    assert torch.equal(one.sufficient, both.sufficient)
    assert torch.equal(one.full, both.full)
    assert one.necessary.isnan().all()


def test_the_part_that_is_not_read_is_worth_nothing():
    found = masked_prediction(bottleneck(), X, 0, 1 - corner(), threshold=0.5)
    assert float((found.sufficient - 0.5).abs().max()) < 0.1
    torch.testing.assert_close(found.necessary, found.full)


def test_a_fraction_keeps_so_many_of_the_most_relevant_positions():
    maps = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(1)) + corner()
    keep = torch.tensor([0.25, 0.0, 1.0])
    found = masked_prediction(bottleneck(), X, 0, maps, keep=keep)
    assert found.kept.tolist() == [0.25, 0.0, 1.0]
    full = float(found.full[0])
    assert float(found.sufficient[0]) == pytest.approx(full, abs=1e-6)
    assert abs(float(found.sufficient[1]) - 0.5) < 0.1
    assert float(found.necessary[1]) == pytest.approx(full, abs=1e-6)
    assert abs(float(found.necessary[2]) - 0.5) < 0.1


def test_maps_of_the_images_size_are_averaged_to_the_grid_and_batches_do_not_matter():
    large = corner().repeat_interleave(3, 1).repeat_interleave(3, 2)
    iba = bottleneck()
    a = masked_prediction(iba, X, torch.tensor([0, 1, 0]), large, threshold=0.5)
    b = masked_prediction(iba, X, torch.tensor([0, 1, 0]), corner(), threshold=0.5, batch_size=2)
    torch.testing.assert_close(a.sufficient, b.sufficient)
    assert float(a.full[1]) < 0.1


def test_bits_fall_with_beta_and_so_does_the_class():
    curve = bits_curve(bottleneck(lr=0.5, steps=30), X, 0, betas=(0.01, 1.0, 100.0))
    assert curve.total_bits.shape == curve.probability.shape == (3, 3)
    assert bool((curve.total_bits[:-1] > curve.total_bits[1:]).all())
    assert float(curve.probability[0].min()) > 0.95
    assert abs(float(curve.probability[2].mean()) - 0.5) < 0.1


def test_bad_input_is_named():
    iba = bottleneck()
    with pytest.raises(ValueError, match="either threshold or keep"):
        masked_prediction(iba, X, 0, corner())
    with pytest.raises(ValueError, match="3 maps"):
        masked_prediction(iba, X, 0, corner(2), keep=0.5)
    with pytest.raises(ValueError, match=r"keep must lie in \[0, 1\]"):
        masked_prediction(iba, X, 0, corner(), keep=1.5)
    for name in ("keep", "threshold"):
        with pytest.raises(ValueError, match=rf"{name} must be one number or \(3,\), got .*\(4,\)"):
            masked_prediction(iba, X, 0, corner(), **{name: torch.ones(4)}, batch_size=2)
    with pytest.raises(ValueError, match=r"shape \(3,\), got \(2,\)"):
        masked_prediction(iba, X, [0, 1], corner(), keep=0.5, batch_size=2)
    with pytest.raises(ValueError, match="axes"):
        masked_prediction(iba, X, 0, corner()[:, None], keep=0.5)
    with pytest.raises(FloatingPointError, match="relevance"):
        masked_prediction(iba, X, 0, corner() * torch.nan, keep=0.5)
    with pytest.raises(ValueError, match="betas"):
        bits_curve(iba, X, 0, betas=())
    with pytest.raises(ValueError, match="betas"):
        bits_curve(iba, X, 0, betas=(-1.0,))
