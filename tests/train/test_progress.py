"""The bar counts what is done, is silent unless asked for, and stays off standard output."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from rich.progress import Progress
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from addis import train

BATCHES = [(torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))] * 5


class Stream(IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(BATCHES)


def run(loader: object = BATCHES, *, progress: bool = True, **more: object) -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    arguments = {"epochs": 3, "step": train.cross_entropy_step, **more}
    list(train.epochs(model, loader, optimizer=optimizer, progress=progress, **arguments))  # type: ignore[arg-type]


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[Progress]:
    """The bars that were stopped."""
    stopped: list[Progress] = []
    monkeypatch.setattr(Progress, "stop", lambda self: stopped.append(self))
    monkeypatch.setattr(Progress, "start", lambda self: None)
    return stopped


@pytest.mark.parametrize("accumulate", [1, 3])
def test_every_batch_of_every_epoch_is_counted(accumulate: int, bars: list[Progress]) -> None:
    run(accumulate=accumulate)
    [task] = bars[0].tasks
    assert (task.completed, task.total) == (15, 15)
    assert task.description.startswith("epoch 3/3, loss 0.")


def test_a_loader_without_a_length_is_counted_in_epochs(bars: list[Progress]) -> None:
    run(DataLoader(Stream(), batch_size=None))
    [task] = bars[0].tasks
    assert (task.completed, task.total) == (3, 3)


def test_epochs_done_before_are_counted_as_done(tmp_path: object, bars: list[Progress]) -> None:
    run(epochs=2, checkpoint=f"{tmp_path}/run.ckpt")
    run(epochs=3, checkpoint=f"{tmp_path}/run.ckpt")
    [task] = bars[1].tasks
    assert (task.completed, task.total) == (15, 15)


def test_the_bar_is_stopped_after_an_error(bars: list[Progress]) -> None:
    with pytest.raises(ValueError, match="must be a scalar"):
        run(step=lambda model, batch: model(batch[0]))
    assert len(bars) == 1


def test_nothing_is_printed_unless_asked_for(capfd: pytest.CaptureFixture[str]) -> None:
    run(progress=False)
    assert capfd.readouterr() == ("", "")


def test_the_bar_is_on_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    run()
    out, err = capfd.readouterr()
    assert out == ""
    assert "epoch 3/3" in err
    assert "15/15" in err
