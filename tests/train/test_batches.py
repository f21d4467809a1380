"""A batch is counted and shared whatever its structure; a loader says whether it shares already."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from addis.train import _batches

DATA = TensorDataset(torch.arange(7.0))


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


@pytest.mark.parametrize("n", [1, 2, 5, 8, 9])
@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_shares_are_the_batch_in_order_and_near_equal(n: int, world: int) -> None:
    parts = [_batches.share(torch.arange(n), rank, world) for rank in range(world)]
    assert torch.cat(parts).tolist() == list(range(n))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_every_tensor_of_the_batch_is_cut_and_nothing_else() -> None:
    x, y = torch.randn(4, 3), torch.arange(4)
    batch = {"pair": Pair(x, y), "list": [x], "scale": torch.tensor(2.0), "name": "a", "w": x[0]}
    mine = _batches.share(batch, 1, 2)
    assert isinstance(mine["pair"], Pair)
    assert torch.equal(mine["pair"].x, x[2:])
    assert torch.equal(mine["pair"].y, y[2:])
    assert torch.equal(mine["list"][0], x[2:])
    assert mine["scale"] is batch["scale"]
    assert mine["w"] is batch["w"]
    assert mine["name"] == "a"


@pytest.mark.parametrize(
    ("batch", "size"),
    [
        (torch.zeros(3, 2), 3),
        ((torch.tensor(1.0), torch.zeros(5)), 5),
        ({"a": "text", "b": [torch.zeros(2)]}, 2),
        (torch.tensor(1.0), None),
        (["a", "b"], None),
    ],
)
def test_a_batch_has_the_size_of_its_first_tensor(batch: Any, size: int | None) -> None:
    assert _batches.size(batch) == size


def test_a_batch_without_tensors_cannot_be_shared() -> None:
    with pytest.raises(TypeError, match="a batch of type list without tensors"):
        _batches.share(["a", "b"], 0, 2)


def test_only_a_loader_that_shares_its_samples_is_taken_as_it_is() -> None:
    from lightning_fabric import Fabric

    plain = DataLoader(DATA, 2)
    sampler = DistributedSampler(DATA, num_replicas=2, rank=0)
    fabric = Fabric(accelerator="cpu", devices=1)
    assert not _batches.is_sharded(plain)
    assert not _batches.is_sharded([torch.zeros(2)])
    assert _batches.is_sharded(DataLoader(DATA, 2, sampler=sampler))
    assert _batches.is_sharded(fabric.setup_dataloaders(plain))


def test_each_generator_of_a_loader_is_found_once() -> None:
    own, other = torch.Generator(), torch.Generator()
    shuffled = DataLoader(DATA, 2, shuffle=True, generator=own)
    assert _batches.generators(shuffled) == [own]
    sampler = torch.utils.data.RandomSampler(DATA, generator=other)
    batched = torch.utils.data.BatchSampler(sampler, 2, drop_last=False)
    found = _batches.generators(DataLoader(DATA, batch_sampler=batched, generator=own))
    assert {id(g) for g in found} == {id(own), id(other)}
    assert _batches.generators([torch.zeros(2)]) == []
