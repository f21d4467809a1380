from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from addis import data
from addis.data import Images, sprites


@pytest.fixture(scope="module")
def default() -> Images:
    return data.load("sprites", "all")


def centre_of_mass(images: Tensor) -> Tensor:
    """``(N, 2)``: x and y in ``[0, 1]``."""
    mass = images.double().sum(1)
    at = (torch.arange(mass.shape[-1]) + 0.5) / mass.shape[-1]
    total = mass.sum((1, 2))
    return torch.stack([(mass.sum(1) * at).sum(1) / total, (mass.sum(2) * at).sum(1) / total], 1)


def test_every_combination_of_factors_is_there_once_the_last_changing_fastest(
    default: Images,
) -> None:
    counts = (3, 4, 10, 16, 16, 1)
    factors = default.numbers["factors"].numpy()
    assert default.images.shape == (30_720, 1, 32, 32)
    assert np.array_equal(np.ravel_multi_index(factors.T, counts), np.arange(30_720))
    assert default.targets.tolist() == factors[:, 0].tolist()
    assert default.classes == ("square", "ellipse", "heart")


def test_no_two_sprites_are_alike(default: Images) -> None:
    assert len({row.tobytes() for row in default.images.numpy()}) == len(default)
    small = sprites(16, scales=2, rotations=3, positions=4, colours=5)
    assert len({row.tobytes() for row in small.images.numpy()}) == len(small) == 3 * 2 * 3 * 16 * 5


def test_the_square_and_the_ellipse_have_their_centre_where_the_values_say(default: Images) -> None:
    symmetric = default.targets < 2
    found = centre_of_mass(default.images[symmetric])
    assert torch.allclose(found, default.numbers["values"][symmetric][:, 3:5], atol=2e-3)


def test_moving_along_x_moves_only_along_x(default: Images) -> None:
    grid = default.images.view(120, 16, 16, 32, 32)  # (template, x, y, H, W)
    assert torch.equal(grid[:, 1:, :, :, 1:], grid[:, :-1, :, :, :-1])
    assert torch.equal(grid[:, :, 1:, 1:], grid[:, :, :-1, :-1])


def test_areas_are_those_of_the_shapes() -> None:
    images = sprites(64, scales=3, rotations=4, positions=1)
    area = images.floats().sum((1, 2, 3))
    radius = 16 * images.numbers["values"][:, 1]
    shape = images.targets
    assert torch.allclose(area[shape == 0].double(), 2 * radius[shape == 0] ** 2, rtol=0.02)
    assert torch.allclose(
        area[shape == 1].double(), math.pi / 2 * radius[shape == 1] ** 2, rtol=0.02
    )


def test_rotation_turns_clockwise_by_the_angle_of_the_values() -> None:
    images = sprites(64, scales=1, rotations=6, positions=1)
    ellipse = images.subset(images.targets.eq(1).nonzero()[:, 0])
    mass = ellipse.floats()[:, 0].double()
    at = torch.arange(64) + 0.5 - 32
    xx, yy = (mass * at**2).sum((1, 2)), (mass * at[:, None] ** 2).sum((1, 2))
    xy = (mass * at * at[:, None]).sum((1, 2))
    found = 0.5 * torch.atan2(2 * xy, xx - yy)  # of the long axis, y pointing down
    assert torch.allclose(found, ellipse.numbers["values"][:, 2], atol=0.01)
    assert found[-1] == pytest.approx(math.pi / 2 * 5 / 6, abs=0.01)


def test_the_heart_stands_upright_at_angle_0() -> None:
    images = sprites(64, scales=1, rotations=1, positions=1)
    heart = images.floats()[2, 0]
    assert torch.equal(heart, heart.flip(1))
    rows = heart.sum(1)
    inside = rows.nonzero()[:, 0]
    assert rows[inside[:8]].sum() > 2 * rows[inside[-8:]].sum()  # broad above, a tip below


def test_sprites_stay_inside_the_image(default: Images) -> None:
    values = default.numbers["values"]
    assert float(values[:, 3:5].min()) - 0.25 >= 0
    assert float(values[:, 3:5].max()) + 0.25 <= 1
    full = sprites(32, positions=17, scales=1, rotations=1)
    sums = full.images.view(3, -1, 1024).sum(2)
    assert (sums == sums[:, :1]).all(), "cut off at the border"


def test_colours_are_hues_of_the_white_sprite() -> None:
    white = sprites(16, scales=1, rotations=2, positions=2)
    images = sprites(16, scales=1, rotations=2, positions=2, colours=3)
    assert images.images.shape == (3 * 2 * 4 * 3, 3, 16, 16)
    red, green, blue = (images.images[i::3] for i in range(3))
    for colour, channel in ((red, 0), (green, 1), (blue, 2)):
        assert torch.equal(colour[:, channel], white.images[:, 0])
        assert int(colour.sum()) == int(white.images.sum())
    assert images.numbers["values"][:3, 5].tolist() == pytest.approx([0, 1 / 3, 2 / 3])


def test_drawing_is_deterministic(default: Images) -> None:
    assert torch.equal(sprites().images, default.images)


@pytest.mark.parametrize(
    "arguments",
    [
        {"size": 30}, {"size": 4}, {"scales": 0}, {"rotations": 0}, {"positions": 18},
        {"positions": 0}, {"colours": 0},
    ],
)  # fmt: skip
def test_numbers_out_of_range_are_refused(arguments: dict[str, int]) -> None:
    (name,) = arguments
    with pytest.raises(ValueError, match=rf"{name} must be .*, got {arguments[name]}"):
        sprites(**arguments)
