from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from addis.explain import _channel
from addis.explain._channel import (
    _LONG,
    Layout,
    Prior,
    blur,
    capacity_nats,
    layout_of,
    resize_to,
    smoothing,
)
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


@pytest.mark.parametrize("shape", [(250,), (251,), (30, 251), (251, 260), (251, 3, 4)])
def test_blur_of_a_long_axis_is_that_of_its_matrix(shape, monkeypatch):
    kinds, values, grads = [], [], []
    for long in (_LONG, math.inf):
        monkeypatch.setattr(_channel, "_LONG", long)
        maps = normal(2, 2, *shape).requires_grad_()
        axes = tuple(smoothing(n, 1.0, maps) for n in shape)
        kinds.append([axis.dim() for axis in axes])
        values.append(blur(maps, axes))
        grads += torch.autograd.grad(values[-1].pow(3).sum(), maps)
    assert kinds == [[1 if n > 250 else 2 for n in shape], [2] * len(shape)]
    torch.testing.assert_close(*values, atol=1e-14, rtol=1e-13)
    torch.testing.assert_close(*grads, atol=1e-13, rtol=1e-12)


def test_blur_of_a_long_signal_needs_no_square_of_its_length():
    signal = normal(1, 1, 1_000_000)
    smooth = blur(signal, (smoothing(1_000_000, 1.0, signal),))
    want = oracles.gaussian_blur(signal.numpy(), 1.0)
    np.testing.assert_allclose(smooth.numpy(), want, atol=1e-12)


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
        ((198, 64), (3, 224, 224), "tokens", (14, 14), 2),
        ((201, 64), (3, 224, 224), "tokens", (14, 14), 5),
        ((49, 64), (3, 224, 224), "tokens", (7, 7), 0),
        ((33, 8), (3, 32, 64), "tokens", (4, 8), 1),
        ((320, 8), (3, 256, 320), "tokens", (16, 20), 0),
        ((14, 8), (3, 24, 24), "tokens", (3, 3), 5),
        ((9, 8), (3, 16, 16), "tokens", (2, 2), 5),
        ((9, 8), (3, 15, 15), "tokens", (3, 3), 0),
        ((2, 8), (3, 16, 16), "tokens", (1, 1), 1),
        ((65, 8), (1, 16, 16, 16), "tokens", (4, 4, 4), 1),
        ((16, 8), (1, 8, 8, 16), "tokens", (2, 2, 4), 0),
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
    for layout in (Layout("tokens", (3, 8)), Layout("channels_first", (24,)), Layout("vector", ())):
        with pytest.raises(ValueError, match="do not fit"):
            layout_of((25, 8), (3, 30, 64), layout)


@pytest.mark.parametrize(
    ("length", "image", "words"),
    [
        (25, (30, 64), "fit no grid of its aspect"),
        (207, (224, 224), "fit no grid of its aspect"),
        (9, (24, 24), r"\(\(3, 3\), 0\) and \(\(2, 2\), 5\)"),
    ],
)
def test_tokens_of_which_the_grid_is_not_known_need_a_layout(length, image, words):
    with pytest.raises(ValueError, match=words):
        layout_of((length, 8), (3, *image))
    with pytest.raises(ValueError, match=r"layout=Layout\("):
        layout_of((length, 8), (3, *image), "tokens")


def test_a_layout_that_is_given_is_taken():
    given = Layout("tokens", (3, 8), 1)
    assert layout_of((25, 8), (3, 30, 64), given) is given
    for layout in (
        Layout("channels_first", (7, 5)),
        Layout("tokens", (4, 7)),
        Layout("vector", ()),
    ):
        shape = {"channels_first": (4, 7, 5), "tokens": (4, 7, 5), "vector": (4,)}[layout.kind]
        assert layout_of(shape, (3, 8, 8), layout) is layout


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


@pytest.mark.parametrize("size", [(28, 28), (16, 16), (10, 37), (1, 2), (112, 5)])
def test_shrinking_loses_no_cell(size):
    for maps in (normal(2, 112, 50).abs(), torch.eye(112 * 50).view(-1, 112, 50)[2017:2020]):
        small = resize_to(maps, size)
        assert small.shape == (len(maps), *size)
        torch.testing.assert_close(small.mean((1, 2)), maps.mean((1, 2)))


def test_shrinking_averages_what_a_new_cell_covers():
    maps = torch.arange(1.0, 6.0)[None]
    want = torch.tensor([[1 + 2 * 2 / 3, 2 / 3 + 3 + 4 / 3, 4 * 2 / 3 + 5]]) * (3 / 5)
    torch.testing.assert_close(resize_to(maps, (3,)), want)
    volume = normal(1, 8, 6, 4)
    torch.testing.assert_close(
        resize_to(volume, (4, 6, 2)), F.avg_pool3d(volume[:, None], (2, 1, 2))[:, 0]
    )


def test_a_map_that_shrinks_along_one_axis_and_grows_along_the_other_keeps_its_mean():
    maps = normal(2, 21, 7)
    small = resize_to(maps, (7, 28))
    torch.testing.assert_close(small.mean((1, 2)), maps.mean((1, 2)))
    torch.testing.assert_close(small, resize_to(F.avg_pool1d(maps.mT, 3).mT, (7, 28)))
