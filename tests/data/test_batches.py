from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from addis.data import Batches, Images, load, random_crop, random_flip
from tests.data.fakes import pictures


def pair(n: int = 23) -> tuple[Tensor, Tensor]:
    return torch.arange(float(n))[:, None].expand(n, 2).contiguous(), torch.arange(n)


def orders(batches: Batches, epochs: int) -> list[list[int]]:
    return [[int(i) for _, y in batches for i in y] for _ in range(epochs)]


def test_an_epoch_has_every_sample_once_and_x_belongs_to_y() -> None:
    for x, y in Batches(pair(), 5):
        assert torch.equal(x[:, 0], y.float())
    (order,) = orders(Batches(pair(), 5), 1)
    assert sorted(order) == list(range(23))


def test_epochs_differ_and_the_same_seed_gives_them_again() -> None:
    first, second, third = orders(Batches(pair(), 5, seed=3), 3)
    assert first != second != third
    assert orders(Batches(pair(), 5, seed=3), 3) == [first, second, third]
    assert orders(Batches(pair(), 5, seed=4), 1) != [first]


def test_order_does_not_depend_on_the_batch_size_or_on_torchs_own_generator() -> None:
    (expected,) = orders(Batches(pair(), 5, seed=3), 1)
    torch.manual_seed(123)
    assert orders(Batches(pair(), 7, seed=3), 1) == [expected]


def test_set_epoch_resumes_with_the_order_and_the_augmentation_of_that_epoch() -> None:
    images = load("digits").subset(range(40))

    def noise(x: Tensor, generator: torch.Generator) -> Tensor:
        return x + torch.rand(x.shape, generator=generator)

    whole = Batches(images, 16, seed=1, transform=noise)
    expected = [[x for x, _ in whole] for _ in range(4)][3]
    resumed = Batches(images, 16, seed=1, transform=noise)
    resumed.set_epoch(3)
    assert resumed.epoch == 3
    for x, (y, _) in zip(expected, resumed, strict=True):
        assert torch.equal(x, y)
    assert resumed.epoch == 4


def test_augmentation_differs_from_epoch_to_epoch_and_from_the_seeds_order() -> None:
    drawn: list[Tensor] = []

    def draw(x: Tensor, generator: torch.Generator) -> Tensor:
        drawn.append(torch.rand(3, generator=generator))
        return x

    batches = Batches(pair(), 23, transform=draw)
    for _ in range(3):
        list(batches)
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[1], drawn[2])


def test_an_iteration_that_is_left_half_way_counts_as_an_epoch() -> None:
    _, second = orders(Batches(pair(), 5), 2)
    batches = Batches(pair(), 5)
    next(iter(batches))
    assert orders(batches, 1) == [second]


def test_order_is_that_of_every_other_version_of_addis() -> None:
    """Frozen: a checkpoint of today must resume tomorrow."""
    batches = Batches(pair(8), 8, seed=5)
    assert orders(batches, 2) == [[2, 1, 3, 6, 5, 7, 0, 4], [5, 3, 7, 4, 6, 0, 2, 1]]


def test_without_shuffle_the_order_is_that_of_the_data_in_each_epoch() -> None:
    assert orders(Batches(pair(), 5, shuffle=False), 2) == [list(range(23))] * 2


@pytest.mark.parametrize(
    ("n", "size", "sizes"), [(23, 5, [5, 5, 5, 5, 3]), (20, 5, [5] * 4), (3, 5, [3])]
)
def test_length_and_sizes(n: int, size: int, sizes: list[int]) -> None:
    kept, full = Batches(pair(n), size), Batches(pair(n), size, drop_last=True)
    assert [len(y) for _, y in kept] == sizes
    assert len(kept) == len(sizes)
    assert [len(y) for _, y in full] == [s for s in sizes if s == size]
    assert len(full) == n // size


def test_images_come_as_floats_in_0_1_and_targets_as_int64() -> None:
    images = load("digits")
    x, y = next(iter(Batches(images, 32, shuffle=False)))
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64
    assert torch.equal(x, images.floats(range(32)))
    assert torch.equal(y, images.targets[:32])


def test_uint8_pairs_are_scaled_and_other_kinds_cast() -> None:
    images = torch.from_numpy(pictures(6, 1, 2, 2))
    x, y = next(iter(Batches((images, torch.arange(6, dtype=torch.int32)), 6, shuffle=False)))
    assert torch.equal(x, images.float() / 255)
    assert y.dtype == torch.int64
    x, y = next(iter(Batches((images.double(), torch.rand(6).double()), 6, shuffle=False)))
    assert torch.equal(x, images.float())
    assert y.dtype == torch.float32


def test_a_transform_that_writes_into_its_batch_leaves_the_data_alone() -> None:
    x, y = pair()
    before = x.clone()
    for _ in Batches((x, y), 5, shuffle=False, transform=lambda x, _: x.zero_()):
        pass
    assert torch.equal(x, before)


def test_transform_is_given_the_scaled_batch_and_its_result_is_yielded() -> None:
    seen = []

    def halve(x: Tensor, generator: torch.Generator) -> Tensor:
        seen.append(float(x.max()))
        return x / 2

    (x, _) = next(iter(Batches(load("digits"), 64, transform=halve)))
    assert seen == [1.0]
    assert float(x.max()) == 0.5


def test_crop_is_padding_and_cutting_of_each_image_at_its_own_place() -> None:
    images = torch.from_numpy(pictures(50, 3, 6, 5))
    for padding in (0, 1, 4):
        out = random_crop(images, padding, generator=torch.Generator().manual_seed(0))
        padded = F.pad(images, (padding,) * 4)
        places = set()
        for i in range(50):
            found = [
                (top, left)
                for top in range(2 * padding + 1)
                for left in range(2 * padding + 1)
                if torch.equal(out[i], padded[i, :, top : top + 6, left : left + 5])
            ]
            assert found, (padding, i)
            places |= set(found[:1])
        assert len(places) > min(padding, 1) * 8


def test_crop_reaches_every_place_about_equally_often() -> None:
    images = torch.zeros(9000, 1, 3, 3)
    images[:, :, 1, 1] = 1
    out = random_crop(images, 1, generator=torch.Generator().manual_seed(0))
    counts = out.sum((0, 1))  # the dot is at each of nine places a ninth of the time
    assert counts.sum() == 9000
    assert ((counts - 1000).abs() < 5 * (1000 * 8 / 9) ** 0.5).all()


def test_flip_mirrors_about_half_of_the_images_and_leaves_the_rest() -> None:
    images = torch.from_numpy(pictures(400, 2, 3, 4))
    out = random_flip(images, generator=torch.Generator().manual_seed(0))
    kept = (out == images).flatten(1).all(1)
    mirrored = (out == images.flip(3)).flatten(1).all(1)
    assert bool((kept ^ mirrored).all())
    assert 150 < int(mirrored.sum()) < 250


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float64])
def test_augmentations_keep_dtype_leave_the_input_and_repeat_with_the_generator(
    dtype: torch.dtype,
) -> None:
    images = torch.from_numpy(pictures(8, 1, 4, 4)).to(dtype)
    before = images.clone()
    for augment in (
        lambda g: random_crop(images, 2, generator=g),
        lambda g: random_flip(images, generator=g),
    ):
        a, b = (augment(torch.Generator().manual_seed(1)) for _ in range(2))
        assert a.dtype == dtype
        assert a.shape == images.shape
        assert torch.equal(a, b)
        assert not torch.equal(a, images)
    assert torch.equal(images, before)


def test_bad_arguments_are_refused() -> None:
    x, y = pair()
    with pytest.raises(ValueError, match="batch_size must be >= 1, got 0"):
        Batches((x, y), 0)
    with pytest.raises(ValueError, match="got 23 and 22"):
        Batches((x, y[:-1]), 5)
    with pytest.raises(ValueError, match="got 0 and 0"):
        Batches((x[:0], y[:0]), 5)
    with pytest.raises(ValueError, match="epoch must be >= 0, got -1"):
        Batches((x, y), 5).set_epoch(-1)
    with pytest.raises(ValueError, match="padding must be >= 0, got -1"):
        random_crop(torch.zeros(1, 1, 2, 2), -1)
    for augment in (random_flip, lambda x: random_crop(x, 1)):
        with pytest.raises(ValueError, match=r"\(N, C, H, W\), got shape \(1, 2, 2\)"):
            augment(torch.zeros(1, 2, 2))


class TestOnCuda:
    def test_data_stay_on_the_cpu_if_they_take_more_than_half_of_the_free_memory(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from addis.data import _batches

        x, y = pair()
        taken = x.nbytes + y.nbytes
        moved: list[str] = []
        monkeypatch.setattr(Tensor, "to", lambda self, device: moved.append(str(device)) or self)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2 * taken, 0))
        _batches._placed(x, y, torch.device("cuda:0"))
        assert moved == ["cuda:0", "cuda:0"]
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2 * taken - 2, 0))
        a, b = _batches._placed(x, y, torch.device("cuda:0"))
        assert moved == ["cuda:0", "cuda:0"]
        assert (a.device.type, b.device.type) == ("cpu", "cpu")

    def test_batches_on_another_device_are_those_on_the_cpu(
        self, device: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def augment(x: Tensor, g: torch.Generator) -> Tensor:
            return random_flip(random_crop(x, 2, generator=g), generator=g)

        expected = list(Batches(load("digits"), 100, transform=augment))
        for free in (1 << 40, 0):  # data on the device, and on the CPU
            monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, free))
            batches = Batches(load("digits"), 100, transform=augment, device=device)
            for (x, y), (a, b) in zip(batches, expected, strict=True):
                assert x.device.type == device
                assert torch.allclose(x.cpu(), a, rtol=0, atol=1e-7)
                assert torch.equal(y.cpu(), b)


def test_images_and_their_pair_of_tensors_give_the_same() -> None:
    images = Images(
        torch.from_numpy(pictures(9, 1, 2, 2)), torch.arange(9), tuple("abcdefghi"), "f", "s"
    )
    ours = list(Batches(images, 4, seed=2))
    pairs = list(Batches((images.images, images.targets), 4, seed=2))
    assert all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(ours, pairs, strict=True)
    )
