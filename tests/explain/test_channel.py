from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from addis.explain._channel import Prior, blur, capacity_nats, layout_of, resize_to, smoothing
from tests.explain import oracles


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_capacity_is_the_kl_divergence_of_two_gaussians():
    r = normal(20_000) * 3
    mask = torch.rand(20_000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ours = capacity_nats(r, mask, 1 - mask)
    torch.testing.assert_close(ours, oracles.kl_of_channel(r, mask), atol=1e-12, rtol=1e-12)


def test_capacity_agrees_with_monte_carlo():
    r, mask = torch.tensor(1.7, dtype=torch.float64), torch.tensor(0.4, dtype=torch.float64)
    z = mask * r + (1 - mask) * normal(400_000)
    log_ratio = -0.5 * ((z - mask * r) / (1 - mask)) ** 2 - torch.log(1 - mask) + 0.5 * z**2
    spread = float(log_ratio.std()) / math.sqrt(len(z))
    assert abs(float(log_ratio.mean() - capacity_nats(r, mask, 1 - mask))) < 4 * spread


def test_capacity_is_zero_without_mask_and_never_negative_in_float32():
    r = normal(100_000).float()
    assert torch.equal(capacity_nats(r, torch.zeros(1), torch.ones(1)), torch.zeros_like(r))
    mask = torch.logspace(-9, 0, 100_000).clamp_max(1 - 1e-7)
    nats = capacity_nats(r, mask, 1 - mask)
    assert float(nats.min()) >= -1e-10
    exact = capacity_nats(r.double(), mask.double(), 1 - mask.double())
    torch.testing.assert_close(nats.double(), exact, atol=1e-9, rtol=1e-3)


def test_capacity_of_a_nearly_open_mask_keeps_its_digits():
    alpha = torch.full((1,), 25.0)
    nats = capacity_nats(torch.zeros(1), alpha.sigmoid(), (-alpha).sigmoid())
    torch.testing.assert_close(nats, torch.tensor([25.0 - 0.5]), rtol=1e-5, atol=0)


@pytest.mark.parametrize("std", [0.6, 1.0, 2.0])
def test_blur_is_scipys_with_mirrored_ends(std):
    maps = normal(2, 3, 13, 10)
    ours = blur(maps, tuple(smoothing(n, std, maps) for n in (13, 10)))
    np.testing.assert_allclose(ours.numpy(), oracles.gaussian_blur(maps.numpy(), std), atol=1e-12)


def test_blur_of_a_mask_and_of_its_complement_sum_to_one():
    mask = torch.rand(1, 2, 9, 11)
    matrices = tuple(smoothing(n, 1.0, mask) for n in (9, 11))
    torch.testing.assert_close(
        blur(mask, matrices) + blur(1 - mask, matrices), torch.ones(1, 2, 9, 11)
    )


def test_blur_works_on_one_and_three_axes_and_on_axes_shorter_than_the_kernel():
    for shape in ((1, 2, 7), (1, 2, 1, 2), (1, 2, 4, 5, 6)):
        t = normal(*shape)
        matrices = tuple(smoothing(n, 1.0, t) for n in shape[2:])
        constant = blur(torch.ones_like(t), matrices)
        torch.testing.assert_close(constant, torch.ones_like(t))
        assert blur(t, matrices).shape == t.shape
    volume = normal(1, 1, 4, 5, 6)
    matrices = tuple(smoothing(n, 1.0, volume) for n in (4, 5, 6))
    by_hand = torch.einsum("ncdhw,ad,bh,ew->ncabe", volume, *matrices)
    torch.testing.assert_close(blur(volume, matrices), by_hand)


@pytest.mark.parametrize(
    ("features", "images", "kind", "spatial", "prefix"),
    [
        ((8, 5, 7), (3, 10, 14), "channels_first", (5, 7), 0),
        ((14, 14, 96), (3, 224, 224), "tokens", (14, 14), 0),
        ((7, 14, 96), (3, 112, 224), "tokens", (7, 14), 0),
        ((197, 64), (3, 224, 224), "tokens", (14, 14), 1),
        ((201, 64), (3, 224, 224), "tokens", (14, 14), 5),
        ((16, 30), (2, 60), "channels_first", (30,), 0),
        ((16, 4, 5, 6), (1, 8, 10, 12), "channels_first", (4, 5, 6), 0),
        ((64,), (3, 32, 32), "vector", (), 0),
    ],
)
def test_layout_is_read_from_the_shapes(features, images, kind, spatial, prefix):
    layout = layout_of(features, images)
    assert (layout.kind, layout.spatial, layout.prefix) == (kind, spatial, prefix)
    values = normal(2, *features)
    assert torch.equal(layout.cells(layout.grid(values), like=values), values)


def test_tokens_lie_in_the_grid_in_rows():
    layout = layout_of((5, 3), (3, 8, 8))
    tokens = torch.arange(5.0)[None, :, None].expand(1, 5, 3)
    assert layout.grid(tokens)[0, 0].tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert layout.positions(tokens)[0].tolist() == [[3.0, 6.0], [9.0, 12.0]]


def test_a_layout_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="do not fit"):
        layout_of((4, 5), (3, 8, 8), "vector")


def test_open_channel_gives_the_features_and_closed_channel_the_prior():
    features = normal(1, 6, 5, 5) + 2
    prior = Prior(normal(6, 5, 5, seed=1), normal(6, 5, 5, seed=2).abs() + 0.1,
                  torch.ones(6, 5, 5, dtype=torch.bool), clamp=False)  # fmt: skip
    noise = normal(1, 20_000, 6, 5, 5, seed=3)
    opened = prior.noisy(features, torch.full_like(features, 1 - 1e-9), noise[:, :2])
    assert float(((opened - features) / prior.std).abs().max()) < 1e-4
    closed = prior.noisy(features, torch.zeros_like(features), noise)
    error = (closed.mean(0) - prior.mean) / prior.std * math.sqrt(len(closed))
    assert float(error.abs().max()) < 5
    torch.testing.assert_close(closed.std(0), prior.std, rtol=0.03, atol=0)


def test_inactive_cells_pass_nothing():
    active = torch.tensor([True, False])
    prior = Prior(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.0]), active, clamp=False)
    features = torch.tensor([[3.0, 3.0]])
    mask = torch.full((1, 2), 0.5)
    assert prior.noisy(features * active, mask, torch.ones(1, 4, 2))[:, 1].abs().max() == 0
    assert prior.normalised(features).tolist() == [[2.0, 0.0]]


def test_clamped_features_are_not_negative():
    active = torch.ones(3, dtype=torch.bool)
    prior = Prior(torch.zeros(3), torch.ones(3), active, clamp=True)
    z = prior.noisy(torch.zeros(1, 3), torch.zeros(1, 3), torch.randn(1, 50, 3))
    assert float(z.min()) == 0
    assert float(z.max()) > 0


def test_resizing_keeps_the_mean_at_an_integer_ratio():
    maps = normal(2, 7, 7)
    torch.testing.assert_close(resize_to(maps, (28, 28)).mean((1, 2)), maps.mean((1, 2)))
