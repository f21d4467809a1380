from __future__ import annotations

import numpy as np
import pytest
import torch

from addis.data import Images, scaled
from tests.data.fakes import pictures


@pytest.fixture
def images() -> Images:
    return Images(
        images=torch.from_numpy(pictures(10, 3, 4, 5)),
        targets=torch.arange(10) % 3,
        classes=("a", "b", "c"),
        name="fake",
        split="train",
        numbers={"drawer": torch.arange(10) * 10},
        texts={"id": tuple("abcdefghij")},
    )


def test_batch_is_the_rows_in_the_order_asked_for(images: Images) -> None:
    x, y = images.batch([7, 0, 7])
    assert x.dtype == torch.uint8
    assert y.dtype == torch.int64
    assert torch.equal(x, torch.stack([images.images[7], images.images[0], images.images[7]]))
    assert y.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    "index",
    [
        torch.tensor([2, 9]), torch.tensor([2, 9]).int(), np.array([2, 9]), range(2, 10, 7),
        np.array([9, 2])[::-1], np.array([2, 9], ">i4"), np.array([2, 9], np.uint16),
    ],
)  # fmt: skip
def test_every_kind_of_index_gives_the_same(images: Images, index: object) -> None:
    assert torch.equal(images.batch(index)[0], images.images[[2, 9]])  # type: ignore[arg-type]


def test_one_index_of_a_reversed_array_is_taken(images: Images) -> None:
    assert torch.equal(images.batch(np.array([7])[::-1])[0], images.images[[7]])
    assert images.subset(np.array([7])[::-1]).texts["id"] == ("h",)


def test_empty_batch_has_the_shape_of_none(images: Images) -> None:
    assert images.batch([])[0].shape == (0, 3, 4, 5)
    assert images.floats([]).shape == (0, 3, 4, 5)


@pytest.mark.parametrize("index", [[10], [-1], [0, 2**40]])
def test_index_out_of_range_is_refused(images: Images, index: list[int]) -> None:
    with pytest.raises(IndexError):
        images.batch(index)


@pytest.mark.parametrize(
    ("index", "error"),
    [([0.5], TypeError), (torch.ones(10, dtype=torch.bool), TypeError), ([[1, 2]], ValueError)],
)
def test_index_that_is_not_a_list_of_integers_is_refused(
    images: Images, index: object, error: type[Exception]
) -> None:
    with pytest.raises(error, match="indices must"):
        images.batch(index)  # type: ignore[arg-type]


def test_batch_is_a_copy(images: Images) -> None:
    before = images.images.clone()
    images.batch([0, 1])[0].zero_()
    assert torch.equal(images.images, before)


def test_item_and_floats_are_the_bytes_over_255_as_torchvision_has_them(images: Images) -> None:
    from torchvision.transforms.functional import to_tensor

    x, y = images[3]
    peer = to_tensor(images.images[3].permute(1, 2, 0).numpy())
    assert y == 0
    assert x.dtype == torch.float32
    assert torch.equal(x, peer)
    assert torch.equal(images.floats([3])[0], peer)
    assert torch.equal(images.floats()[3], peer)


def test_floats_of_fewer_levels_are_exactly_the_steps() -> None:
    for levels in (1, 2, 3, 16, 100, 254):
        steps = torch.arange(levels + 1, dtype=torch.float64)
        stored = (steps * 255 / levels).round().to(torch.uint8)
        assert torch.equal(scaled(stored, levels), (steps / levels).float()), levels


def test_subset_takes_every_column_along(images: Images) -> None:
    part = images.subset([8, 2])
    assert torch.equal(part.images, images.images[[8, 2]])
    assert part.targets.tolist() == [2, 2]
    assert part.numbers["drawer"].tolist() == [80, 20]
    assert part.texts["id"] == ("i", "c")
    assert (part.name, part.split, part.classes) == ("fake", "train", ("a", "b", "c"))


def test_subset_of_a_range_shares_memory_and_of_a_list_does_not(images: Images) -> None:
    shared, copied = images.subset(range(2, 5)), images.subset([2, 3, 4])
    assert shared.images.data_ptr() == images.images[2].data_ptr()
    assert copied.images.data_ptr() != images.images[2].data_ptr()
    assert torch.equal(shared.images, copied.images)
    assert shared.texts == copied.texts
    assert len(images.subset(range(5, 2))) == 0


@pytest.mark.parametrize("rows", [range(11), range(-1, 3), [10], [-1]])
def test_subset_out_of_range_is_refused(images: Images, rows: range | list[int]) -> None:
    with pytest.raises(IndexError):
        images.subset(rows)


def test_dataloader_reads_it_as_a_dataset(images: Images) -> None:
    loader = torch.utils.data.DataLoader(images, batch_size=4)
    x = torch.cat([x for x, _ in loader])
    y = torch.cat([y for _, y in loader])
    assert torch.equal(x, images.floats())
    assert torch.equal(y, images.targets)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"images": torch.zeros(10, 3, 4, 5)}, TypeError),
        ({"targets": torch.zeros(10)}, TypeError),
        ({"images": torch.zeros(10, 3, 4, dtype=torch.uint8)}, ValueError),
        ({"targets": torch.zeros(9, dtype=torch.int64)}, ValueError),
        ({"texts": {"id": ("a",)}}, ValueError),
        ({"numbers": {"drawer": torch.arange(11)}}, ValueError),
    ],
)
def test_columns_that_do_not_fit_are_refused(
    images: Images, change: dict[str, object], error: type[Exception]
) -> None:
    from dataclasses import replace

    with pytest.raises(error):
        replace(images, **change)  # type: ignore[arg-type]


def test_to_moves_every_tensor(images: Images) -> None:
    moved = images.to("meta")
    assert {moved.images.device.type, moved.targets.device.type} == {"meta"}
    assert moved.numbers["drawer"].device.type == "meta"
    assert images.images.device.type == "cpu"
