"""StackedBatches against one Batches for each copy."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from addis import data
from addis.data import Batches
from addis.train import StackedBatches

SEEDS = (5, 0, 7)


def samples(n: int = 10) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randint(256, (n, 3, 4, 4), generator=g, dtype=torch.uint8)
    return x, torch.arange(n)


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("transform", [None, partial(data.random_crop, padding=1)])
def test_copy_sees_what_batches_of_its_seed_give(
    drop_last: bool, shuffle: bool, transform: partial[Tensor] | None
) -> None:
    if transform is not None:
        transform_ = lambda x, g: data.random_crop(x, 1, generator=g)  # noqa: E731
    else:
        transform_ = None
    options = {"shuffle": shuffle, "drop_last": drop_last, "transform": transform_}
    stacked = StackedBatches(samples(), 4, seeds=SEEDS, **options)
    alone = [Batches(samples(), 4, seed=seed, **options) for seed in SEEDS]
    for _ in range(2):
        ours, theirs = list(stacked), [list(b) for b in alone]
        assert len(ours) == len(stacked) == len(theirs[0])
        for step, (x, y) in enumerate(ours):
            for i in range(len(SEEDS)):
                assert torch.equal(x[i], theirs[i][step][0])
                assert torch.equal(y[i], theirs[i][step][1])
                assert y.dtype == torch.int64


def test_images_keep_their_number_of_grey_levels() -> None:
    digits = data.load("digits")
    (x, y), *_ = StackedBatches(digits, 50, seeds=SEEDS)
    (x0, y0), *_ = Batches(digits, 50, seed=SEEDS[0])
    assert torch.equal(x[0], x0)
    assert torch.equal(y[0], y0)


def test_own_targets_follow_the_own_order() -> None:
    x, y = samples()
    noisy = torch.stack([y, y + 100, y + 200])
    for batch, targets in StackedBatches((x, noisy), 4, seeds=SEEDS, own="targets"):
        rows = targets - torch.tensor([[0], [100], [200]])
        assert torch.equal(batch, x[rows].float() / 255)


def test_own_data_follow_the_own_order() -> None:
    x, y = samples(12)
    own = StackedBatches((x.view(3, 4, 3, 4, 4), y.view(3, 4)), 3, seeds=SEEDS, own="data")
    for batch, targets in own:
        assert torch.equal(targets // 4, torch.tensor([[0], [1], [2]]).expand_as(targets))
        assert torch.equal(batch, x[targets].float() / 255)


def test_epoch_set_again_gives_the_same_batches() -> None:
    batches = StackedBatches(samples(), 4, seeds=SEEDS)
    first, second = ([y for _, y in batches] for _ in range(2))
    assert batches.epoch == 2
    batches.set_epoch(1)
    again = [y for _, y in batches]
    assert all(torch.equal(a, b) for a, b in zip(second, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": []}, "at least one"),
        ({"own": "all"}, "'all'"),
        ({"own": "targets"}, r"y must be \(3, n"),
        ({"own": "data"}, r"x must be \(3, n"),
        ({"batch_size": 0}, "batch_size must be >= 1"),
        ({"data": (torch.zeros(4, 2), torch.zeros(5))}, "one length, got 4 and 5"),
    ],
)
def test_bad_arguments_are_refused_by_name(change: dict[str, object], message: str) -> None:
    arguments = {"data": samples(), "batch_size": 4, "seeds": SEEDS} | change
    with pytest.raises(ValueError, match=message):
        StackedBatches(**arguments)
