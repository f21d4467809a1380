"""Bounding-box ratio, grid pointing and mosaics."""

from __future__ import annotations

import pytest
import torch

from addis.explain._pointing import bbox_ratio, grid_pointing, mosaics
from tests.explain import oracles_metrics as oracles


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# --- bounding-box ratio ---


def test_a_map_that_fills_the_box_gets_one_and_its_negation_zero():
    maps = torch.zeros(1, 9, 7)
    maps[0, 2:5, 1:3] = 1
    box = torch.tensor([[1, 2, 3, 5]])
    assert bbox_ratio(maps, box).tolist() == [1.0]
    assert bbox_ratio(-maps, box).tolist() == [0.0]


def test_random_maps_get_the_area_of_the_box_in_the_mean():
    maps = torch.rand(500, 20, 20, generator=generator())
    ratio = bbox_ratio(maps, torch.tensor([[3, 4, 11, 9]]).expand(500, 4))
    assert ratio.mean().item() == pytest.approx(40 / 400, abs=4 * float(ratio.std()) / 500**0.5)


def test_a_constant_map_gets_exactly_the_area_of_the_box():
    assert bbox_ratio(torch.ones(1, 10, 10), torch.tensor([[0, 0, 3, 2]])).item() == 0.06


def test_x_counts_columns_and_y_counts_rows():
    maps = torch.zeros(1, 4, 6)
    maps[0, 0, 4:] = 1
    assert bbox_ratio(maps, torch.tensor([[4, 0, 6, 1]])).item() == 1
    assert bbox_ratio(maps, torch.tensor([[0, 2, 2, 3]])).item() == 0


def test_overlapping_boxes_are_united():
    maps = torch.rand(1, 10, 10, generator=generator(1))
    twice = torch.tensor([[[0, 0, 4, 4], [2, 2, 5, 5]]])
    assert bbox_ratio(maps, twice).item() == pytest.approx(
        oracles.bbox_ratio(maps[0], twice[0].tolist())
    )
    same = torch.tensor([[[0, 0, 4, 4], [0, 0, 4, 4]]])
    assert torch.equal(bbox_ratio(maps, same), bbox_ratio(maps, same[:, 0]))


def test_images_may_have_boxes_of_different_numbers():
    maps = torch.rand(2, 10, 10, generator=generator(2))
    boxes = [torch.tensor([[0, 0, 4, 4], [6, 6, 9, 8]]), torch.tensor([[1, 1, 3, 5]])]
    found = bbox_ratio(maps, boxes)
    expected = [oracles.bbox_ratio(m, b.tolist()) for m, b in zip(maps, boxes, strict=True)]
    assert found.tolist() == pytest.approx(expected)


def test_images_with_a_larger_box_are_left_out_as_nan():
    maps = torch.rand(3, 10, 10, generator=generator(3))
    boxes = torch.tensor([[0, 0, 10, 3], [0, 0, 10, 4], [0, 0, 11 - 1, 10]])
    found = bbox_ratio(maps, boxes)
    assert found.isnan().tolist() == [False, True, True]
    at_edge = bbox_ratio(maps, boxes, max_area=0.4)
    assert at_edge.isnan().tolist() == [False, False, True]
    assert bbox_ratio(maps, boxes, max_area=1).tolist()[2] == 1.0


@pytest.mark.parametrize("seed", range(6))
def test_ratio_equals_the_mean_over_every_order_of_equal_pixels(seed):
    maps = torch.randint(3, (1, 4, 5), generator=generator(seed)).float()
    box = torch.tensor([[1, 1, 4, 3]])
    expected = oracles.bbox_ratio(maps[0], box.tolist())
    assert bbox_ratio(maps, box, max_area=1).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    "box", [[-1, 0, 2, 2], [0, 0, 8, 2], [0, 0, 2, 10], [3, 0, 3, 2], [3, 0, 2, 2], [0, 0, 0, 0]]
)
def test_a_box_that_is_empty_or_outside_is_refused(box):
    with pytest.raises(ValueError, match="boxes must be"):
        bbox_ratio(torch.rand(1, 9, 7), torch.tensor([box]))
    beside = torch.tensor([[[1, 1, 3, 3], [1, 1, 3, 3]], [[1, 1, 3, 3], box]])
    with pytest.raises(ValueError, match="for image 1"):
        bbox_ratio(torch.rand(2, 9, 7), beside)


def test_an_image_without_boxes_is_refused_beside_others():
    boxes = [torch.tensor([[0, 0, 1, 1]]), torch.zeros(0, 4, dtype=torch.int64)]
    with pytest.raises(ValueError, match=r"got \[\] for image 1"):
        bbox_ratio(torch.rand(2, 9, 7), boxes)


@pytest.mark.parametrize(
    ("maps", "boxes", "error"),
    [
        (torch.rand(2, 9, 7), torch.tensor([[0, 0, 1, 1]]), ValueError),
        (torch.rand(1, 9, 7), torch.tensor([[0, 0, 1]]), ValueError),
        (torch.rand(1, 9, 7), torch.tensor([[0.0, 0, 1, 1]]), TypeError),
        (torch.rand(1, 9, 7), [torch.zeros(0, 4, dtype=torch.int64)], ValueError),
        (torch.rand(9, 7), torch.tensor([[0, 0, 1, 1]]), ValueError),
        (torch.ones(1, 9, 7).int(), torch.tensor([[0, 0, 1, 1]]), TypeError),
        (torch.full((1, 9, 7), torch.nan), torch.tensor([[0, 0, 1, 1]]), FloatingPointError),
    ],
)
def test_wrong_maps_and_boxes_are_refused(maps, boxes, error):
    with pytest.raises(error):
        bbox_ratio(maps, boxes)


@pytest.mark.parametrize("area", [0, -0.1, 1.1])
def test_max_area_is_a_fraction(area):
    with pytest.raises(ValueError, match="max_area"):
        bbox_ratio(torch.rand(1, 9, 7), torch.tensor([[0, 0, 1, 1]]), max_area=area)


def test_half_precision_and_transposed_maps():
    maps = torch.rand(2, 9, 7, generator=generator(4)).bfloat16()
    box = torch.tensor([[0, 0, 3, 4]]).expand(2, 4)
    turned = maps.mT.contiguous().mT
    assert torch.equal(bbox_ratio(maps, box), bbox_ratio(turned, box))
    assert torch.equal(bbox_ratio(maps, box), bbox_ratio(maps.double(), box))


# --- grid pointing ---


def test_cells_are_counted_row_by_row():
    maps = torch.zeros(4, 6, 4)
    for cell, (r, c) in enumerate([(0, 0), (0, 2), (3, 0), (3, 2)]):
        maps[cell, r : r + 3, c : c + 2] = 1
    assert grid_pointing(maps, torch.arange(4)).tolist() == [1.0] * 4
    assert grid_pointing(maps, torch.tensor([1, 2, 3, 0])).tolist() == [0.0] * 4


def test_negative_relevance_does_not_count():
    maps = torch.tensor([[[3.0, 1.0], [-5.0, 0.0]]])
    assert grid_pointing(maps, torch.tensor([0])).item() == 0.75
    assert grid_pointing(maps, torch.tensor([2])).item() == 0


def test_shares_of_the_cells_sum_to_one_and_random_maps_get_a_quarter():
    maps = torch.randn(300, 8, 8, generator=generator(5))
    shares = torch.stack([grid_pointing(maps, torch.full((300,), c)) for c in range(4)])
    assert torch.allclose(shares.sum(0), torch.ones(300, dtype=torch.float64))
    assert shares[0].mean().item() == pytest.approx(0.25, abs=0.02)


def test_a_map_without_positive_relevance_points_nowhere():
    assert grid_pointing(-torch.rand(2, 4, 4), torch.tensor([0, 3])).tolist() == [0, 0]


def test_a_grid_of_three():
    maps = torch.zeros(1, 9, 9)
    maps[0, 3:6, 6:9] = 2
    assert grid_pointing(maps, torch.tensor([5]), grid=3).item() == 1


@pytest.mark.parametrize(
    ("shape", "cell", "grid", "error"),
    [
        ((1, 5, 4), torch.tensor([0]), 2, ValueError),
        ((1, 4, 5), torch.tensor([0]), 2, ValueError),
        ((1, 4, 4), torch.tensor([0]), 0, ValueError),
        ((1, 4, 4), torch.tensor([4]), 2, ValueError),
        ((1, 4, 4), torch.tensor([-1]), 2, ValueError),
        ((2, 4, 4), torch.tensor([0]), 2, ValueError),
        ((1, 4, 4), torch.tensor([0.0]), 2, TypeError),
    ],
)
def test_wrong_cells_and_grids_are_refused(shape, cell, grid, error):
    with pytest.raises(error):
        grid_pointing(torch.rand(shape), cell, grid=grid)


# --- mosaics ---


def test_each_cell_shows_its_source_and_classes_are_distinct():
    images = torch.arange(40 * 3 * 4 * 5).view(40, 3, 4, 5).to(torch.uint8)
    targets = torch.arange(40) % 7
    made = mosaics(images, targets, count=25, generator=generator(6))
    assert made.images.shape == (25, 3, 8, 10)
    assert made.images.dtype == torch.uint8
    for m in range(25):
        assert len(set(made.targets[m].tolist())) == 4
        for cell in range(4):
            r, c = divmod(cell, 2)
            part = made.images[m, :, 4 * r : 4 * r + 4, 5 * c : 5 * c + 5]
            source = int(made.sources[m, cell])
            assert torch.equal(part, images[source])
            assert targets[source] == made.targets[m, cell]


def test_every_image_and_every_class_is_drawn():
    targets = torch.tensor([0, 1, 1, 1, 2, 3, 3, 9])
    made = mosaics(torch.zeros(8, 1, 1, 1), targets, count=2000, generator=generator(7))
    assert set(made.sources.flatten().tolist()) == set(range(8))
    often = torch.stack([(made.targets == c).any(1).double().mean() for c in (0, 1, 2, 3, 9)])
    assert torch.allclose(often, torch.full((5,), 0.8, dtype=torch.float64), atol=0.04)
    of_one = (made.sources == 1).sum() / (made.targets == 1).sum()
    assert of_one.item() == pytest.approx(1 / 3, abs=0.05)


def test_the_generator_alone_decides_the_mosaics():
    images, targets = torch.rand(20, 1, 2, 2), torch.arange(20) % 5
    one, same, other = (
        mosaics(images, targets, count=5, generator=generator(seed)) for seed in (8, 8, 9)
    )
    assert torch.equal(one.sources, same.sources)
    assert not torch.equal(one.sources, other.sources)


@pytest.mark.parametrize(
    ("images", "targets", "options"),
    [
        (torch.zeros(8, 1, 1), torch.arange(8), {}),
        (torch.zeros(8, 1, 1, 1), torch.arange(7), {}),
        (torch.zeros(8, 1, 1, 1), torch.arange(8) % 3, {}),
        (torch.zeros(8, 1, 1, 1), torch.arange(8), {"grid": 3}),
        (torch.zeros(8, 1, 1, 1), torch.arange(8), {"grid": 0}),
        (torch.zeros(8, 1, 1, 1), torch.arange(8), {"count": 0}),
    ],
)
def test_impossible_mosaics_are_refused(images, targets, options):
    with pytest.raises(ValueError):
        mosaics(images, targets, **{"count": 1, **options})
