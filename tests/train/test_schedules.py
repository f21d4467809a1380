"""The schedules are those of torch where torch has them, and the papers' where it has not."""

from __future__ import annotations

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, MultiStepLR

from addis.train import schedules


def rates(scheduler: LRScheduler, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        found.append(scheduler.get_last_lr()[0])
        scheduler.optimizer.step()
        scheduler.step()
    return found


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)


def test_inverse_root_has_the_papers_values() -> None:
    factor = schedules.inverse_root()
    found = [0.1 * factor(t) for t in (0, 511, 512, 1023, 1024)]
    assert found == pytest.approx([0.1, 0.1, 0.0707107, 0.0707107, 0.0577350], abs=5e-8)


def test_cosine_is_torchs() -> None:
    ours = rates(LambdaLR(optimizer(), schedules.cosine(20, final=0.05)), 20)
    theirs = rates(CosineAnnealingLR(optimizer(), 20, eta_min=0.005), 20)
    assert ours == pytest.approx(theirs, rel=1e-9)


def test_cosine_ends_at_its_final_factor_and_stays() -> None:
    factor = schedules.cosine(10, warmup=2, final=0.25)
    assert [factor(t) for t in (10, 11, 1000)] == [0.25] * 3
    assert factor(9) > 0.25


def test_multistep_is_torchs() -> None:
    ours = rates(LambdaLR(optimizer(), schedules.multistep([3, 7], gamma=0.2)), 12)
    theirs = rates(MultiStepLR(optimizer(), [3, 7], gamma=0.2), 12)
    assert ours == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize(
    "factor",
    [
        schedules.constant(warmup=4),
        schedules.cosine(20, warmup=4),
        schedules.multistep([9], warmup=4),
    ],
)
def test_a_warmup_rises_in_equal_steps_to_one(factor: schedules.Schedule) -> None:
    assert [factor(t) for t in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_constant_is_one() -> None:
    assert {schedules.constant()(t) for t in (0, 1, 10**9)} == {1.0}


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: schedules.constant(warmup=-1), "warmup must be >= 0, got -1"),
        (lambda: schedules.cosine(5, warmup=5), "steps must be > warmup = 5, got 5"),
        (lambda: schedules.cosine(0), "steps must be > warmup = 0, got 0"),
        (lambda: schedules.cosine(5, final=1.5), r"final must be in \[0, 1\], got 1.5"),
        (lambda: schedules.multistep([4, 4]), "milestones must rise"),
        (lambda: schedules.multistep([2], warmup=3), "above warmup = 3"),
        (lambda: schedules.multistep([2], gamma=0), "gamma must be > 0, got 0"),
        (lambda: schedules.inverse_root(0), "period must be >= 1, got 0"),
    ],
)
def test_values_out_of_range_are_refused(build: object, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        build()  # type: ignore[operator]
