"""The short loop, the paper's learning rates, and batches of few classes."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from addis.train.local import FewClasses, local_fit, localize, milestones
from tests.train.local.nets import batch, conv_net


def test_milestones_are_those_of_the_recipes() -> None:
    assert milestones(400) == (200, 300, 350, 375)
    assert milestones(200) == (100, 150, 175, 188)


def test_each_epoch_tells_of_every_block_and_lowers_the_rate_as_asked() -> None:
    x, y = batch(24)
    local = localize(conv_net(), x, loss="predsim", optimizer=partial(torch.optim.Adam, lr=0.01))
    batches = [(x[:16], y[:16]), (x[16:], y[16:])]
    epochs = list(local_fit(local, batches, epochs=16, validation=[(x, y)]))
    assert [e.epoch for e in epochs] == list(range(16))
    assert [e.lr for e in epochs] == [0.01] * 8 + [0.0025] * 4 + [0.000625] * 2 + [0.00015625] + [
        3.90625e-05
    ]
    assert len(epochs[0].losses) == len(epochs[0].errors) == 4
    assert epochs[-1].losses[-1] < epochs[0].losses[-1]
    assert epochs[-1].validation_error is not None
    assert epochs[-1].validation_error < 0.3
    assert local.training


def test_means_weigh_batches_by_their_size() -> None:
    x, y = batch(12)
    frozen = partial(torch.optim.SGD, lr=0.0)
    local = localize(conv_net(norm=False), x, loss="pred", optimizer=frozen)
    (uneven,) = local_fit(local, [(x[:10], y[:10]), (x[10:], y[10:])], epochs=1)
    (whole,) = local_fit(local, [(x, y)], epochs=1)
    assert uneven.losses == pytest.approx(whole.losses, rel=1e-5)
    assert uneven.errors == pytest.approx(whole.errors)
    assert uneven.validation_error is None
    with pytest.raises(ValueError, match="epochs must be >= 1"):
        local_fit(local, [], epochs=0)
    with pytest.raises(ValueError, match="at least one"):
        local.error([])


@pytest.mark.parametrize("batches", [[], iter([batch()])], ids=["empty", "iterator"])
def test_an_epoch_without_batches_is_refused(batches: Any) -> None:
    with pytest.raises(ValueError, match=r"batches gave none in epoch (0|1); .* or an iterator"):
        list(local_fit(localize(conv_net(), batch()[0], loss="pred"), batches, epochs=2))


def few_classes(targets: list[int], size: int, classes: int, order: list[int]) -> list[list[int]]:
    """The batches by their definition, which looks through all that is left."""
    batches = []
    while order:
        chosen = list(dict.fromkeys(targets[i] for i in order))[:classes]
        batch = [i for i in order if targets[i] in chosen][:size]
        batch += [i for i in order if i not in batch][: size - len(batch)]
        order = [i for i in order if i not in batch]
        batches.append(batch)
    return batches


@pytest.mark.parametrize(("count", "kinds"), [(97, 1), (97, 7), (97, 30), (60, 60)])
def test_batches_are_those_of_the_definition(count: int, kinds: int) -> None:
    targets = torch.randint(kinds, (count,))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()
    sampler = FewClasses(targets, 10, classes=4, generator=torch.Generator().manual_seed(0))
    assert list(sampler) == few_classes(targets.tolist(), 10, 4, order)


def test_batches_hold_the_classes_asked_for_and_every_sample_once() -> None:
    targets = torch.arange(400) % 40
    sampler = FewClasses(targets, 20, classes=5, generator=torch.Generator().manual_seed(0))
    batches = list(sampler)
    assert sorted(i for b in batches for i in b) == list(range(400))
    assert len(batches) == len(sampler) == 20
    classes = [len({int(targets[i]) for i in b}) for b in batches]
    assert classes[:8] == [5] * 8
    again = list(FewClasses(targets, 20, classes=5, generator=torch.Generator().manual_seed(0)))
    assert batches == again
    assert list(sampler) != batches
    for bad in (0, 21):
        with pytest.raises(ValueError, match="1 <= classes <= batch_size"):
            FewClasses(targets, 20, classes=bad)
