"""The ``Normalize`` layer."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from addis.models import Normalize

MEAN, STD = (0.5, 0.25, 0.1), (0.5, 0.25, 2.0)


def test_each_channel_is_shifted_and_scaled_by_its_own_numbers() -> None:
    x = torch.rand(2, 3, 4, 5, dtype=torch.float64)
    got = Normalize(MEAN, STD, dtype=torch.float64)(x)
    for c in range(3):
        assert torch.equal(got[:, c], (x[:, c] - MEAN[c]) / STD[c])


def test_nothing_is_saved_and_buffers_follow_the_model() -> None:
    layer = Normalize(MEAN, STD)
    assert not layer.state_dict()
    nn.Sequential(layer).to(torch.half)
    assert layer.mean.dtype == layer.std.dtype == torch.half
    assert layer(torch.rand(1, 3, 2, 2, dtype=torch.half)).dtype == torch.half
    assert Normalize(MEAN, STD, device="meta").std.is_meta


def test_input_is_left_alone_and_gradient_is_one_over_std() -> None:
    x = torch.rand(1, 3, 2, 2, requires_grad=True)
    kept = x.detach().clone()
    Normalize(MEAN, STD)(x).sum().backward()
    assert torch.equal(x.detach(), kept)
    assert x.grad is not None
    assert torch.allclose(x.grad[0, :, 0, 0], 1 / torch.tensor(STD))


def test_zero_and_one_leave_the_pixels_as_they_are() -> None:
    x = torch.rand(2, 1, 3, 3)
    assert torch.equal(Normalize((0.0,), (1.0,))(x), x)


def test_tracers_and_compilers_follow_it() -> None:
    layer, x = Normalize(MEAN, STD), torch.rand(2, 3, 4, 4)
    assert torch.equal(torch.fx.symbolic_trace(layer)(x), layer(x))
    assert torch.equal(torch.compile(layer, backend="eager", fullgraph=True)(x), layer(x))
    assert torch.equal(torch.export.export(layer, (x,)).module()(x), layer(x))


@pytest.mark.parametrize("shape", [(2, 1, 4, 4), (2, 4, 4, 4), (3, 4, 4), (3,)])
def test_images_of_other_channels_or_dimensions_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"images must be \(N, 3, H, W\), got shape"):
        Normalize(MEAN, STD)(torch.rand(shape))


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ((), ()),
        ((0.5,), (0.5, 0.5)),
        ((0.5,), (0.0,)),
        ((0.5,), (-1.0,)),
        ((math.nan,), (1.0,)),
        ((0.5,), (math.inf,)),
    ],
)
def test_bad_numbers_are_refused(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="mean"):
        Normalize(mean, std)
