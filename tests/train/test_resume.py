"""A run that was cut off and started again ends at the weights of a run left alone, bit for bit."""

from __future__ import annotations

import pickle
import random
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR, ReduceLROnPlateau
from torch.utils.data import DataLoader, TensorDataset

from addis import train
from addis.data import Batches
from addis.train import _checkpoint, schedules

X = torch.randn(22, 5, generator=torch.Generator().manual_seed(0))
Y = torch.randint(3, (22,), generator=torch.Generator().manual_seed(0))
EPOCHS = 4


class Jitter(TensorDataset):
    """Augments each sample from all three global sources, as user's transforms do."""

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        x, y = super().__getitem__(index)
        noise = torch.randn(5) + random.gauss(0, 1) + np.random.normal()  # noqa: NPY002
        return x + 0.1 * noise, y


def noise(x: Tensor, generator: torch.Generator) -> Tensor:
    return x + 0.1 * torch.randn(x.shape, generator=generator)


def own_loader() -> Batches:
    return Batches((X, Y), 4, seed=3, transform=noise)


def seeded_loader() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(3)
    return DataLoader(Jitter(X, Y), 4, shuffle=True, generator=generator)


LOADERS: dict[str, Callable[[], Iterable[Any]]] = {
    "list": lambda: list(zip(X.split(4), Y.split(4), strict=True)),
    "batches": own_loader,
    "generator": seeded_loader,
    "global": lambda: DataLoader(Jitter(X, Y), 4, shuffle=True),
}


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.05, amsgrad=True)


def momentum(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)


def cosine(optimizer: torch.optim.Optimizer) -> LRScheduler:
    return LambdaLR(optimizer, schedules.cosine(24, warmup=3))


def one_cycle(optimizer: torch.optim.Optimizer) -> LRScheduler:
    return OneCycleLR(optimizer, 0.2, total_steps=24)


@dataclass
class Parts:
    """All that a program builds before it trains: a resumed process builds it anew."""

    loader: Iterable[Any] = field(default_factory=own_loader)
    build_optimizer: Callable[[nn.Module], torch.optim.Optimizer] = momentum
    build_scheduler: Callable[[torch.optim.Optimizer], LRScheduler] = cosine
    width: int = 8

    def __post_init__(self) -> None:
        torch.manual_seed(1)
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        width = self.width
        self.model = nn.Sequential(
            nn.Linear(5, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.3),
            nn.Linear(width, 3),
        )  # fmt: skip
        self.optimizer = self.build_optimizer(self.model)
        self.scheduler = self.build_scheduler(self.optimizer)

    def epochs(self, path: Path | None, epochs: int = EPOCHS, **more: Any) -> Iterable[train.Epoch]:
        arguments = {"step": train.cross_entropy_step, "scheduler": self.scheduler, **more}
        return train.epochs(
            self.model, self.loader, optimizer=self.optimizer, epochs=epochs, checkpoint=path,
            **arguments,
        )  # fmt: skip

    def weights(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def uninterrupted(**parts: Any) -> tuple[dict[str, Tensor], list[float]]:
    whole = Parts(**parts)
    losses = [epoch.loss for epoch in whole.epochs(None)]
    return whole.weights(), losses


def stop_after(done: int, parts: Parts, path: Path, **more: Any) -> None:
    """Trains until ``done`` epochs are kept, and leaves in the middle of the next."""
    for epoch in parts.epochs(path, **more):
        if epoch.index == done:
            break


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("done", [1, 3])
def test_resumed_weights_and_losses_are_those_of_one_run(
    loader: str, done: int, tmp_path: Path
) -> None:
    weights, losses = uninterrupted(loader=LOADERS[loader]())
    stop_after(done, Parts(loader=LOADERS[loader]()), tmp_path / "run.ckpt")
    torch.rand(7), random.random(), np.random.rand()  # noqa: NPY002
    again = Parts(loader=LOADERS[loader]())
    rest = [(epoch.index, epoch.loss) for epoch in again.epochs(tmp_path / "run.ckpt")]
    assert rest == list(enumerate(losses))[done:]
    assert same(again.weights(), weights)


@pytest.mark.parametrize("optimizer", [adam, momentum])
@pytest.mark.parametrize("scheduler", [cosine, one_cycle])
def test_optimizer_and_scheduler_go_on_where_they_were(
    optimizer: Any, scheduler: Any, tmp_path: Path
) -> None:
    parts = {"build_optimizer": optimizer, "build_scheduler": scheduler}
    weights, _ = uninterrupted(**parts)
    stop_after(2, Parts(**parts), tmp_path / "run.ckpt")
    again = Parts(**parts)
    list(again.epochs(tmp_path / "run.ckpt"))
    assert same(again.weights(), weights)
    assert again.scheduler.last_epoch == 24


def tensor_rate(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=torch.tensor(0.05))


def test_a_learning_rate_that_is_a_tensor_goes_on_where_it_was(tmp_path: Path) -> None:
    weights, _ = uninterrupted(build_optimizer=tensor_rate)
    for epochs in (2, 3, EPOCHS):
        again = Parts(build_optimizer=tensor_rate)
        list(again.epochs(tmp_path / "run.ckpt", epochs=epochs))
    assert same(again.weights(), weights)
    other = Parts(build_optimizer=lambda m: torch.optim.Adam(m.parameters(), torch.tensor(0.05001)))
    with pytest.raises(ValueError, match="optimizer's defaults"):
        list(other.epochs(tmp_path / "run.ckpt"))


def test_a_part_frozen_between_epochs_is_frozen_after_a_resumption(tmp_path: Path) -> None:
    def run(path: Path | None, stop: int) -> Parts:
        parts = Parts()
        for epoch in parts.epochs(path):
            if epoch.index == stop:
                break
            if epoch.index == 1:
                parts.model[1].eval()
        return parts

    whole = run(None, 99)
    run(tmp_path / "run.ckpt", 2)
    assert same(run(tmp_path / "run.ckpt", 99).weights(), whole.weights())


def test_a_keyboard_interrupt_in_an_epoch_loses_that_epoch_only(tmp_path: Path) -> None:
    weights, _ = uninterrupted()
    parts, calls = Parts(), 0

    def step(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 16:
            raise KeyboardInterrupt
        return train.cross_entropy_step(model, batch)

    with pytest.raises(KeyboardInterrupt):
        list(parts.epochs(tmp_path / "run.ckpt", step=step))
    again = Parts()
    assert [epoch.index for epoch in again.epochs(tmp_path / "run.ckpt")] == [2, 3]
    assert same(again.weights(), weights)


def test_the_callers_code_is_kept_with_its_epoch_and_done_once(tmp_path: Path) -> None:
    """A mask is drawn and multiplied in; a run that ends in that code runs the epoch again."""

    def prune(parts: Parts) -> None:
        with torch.no_grad():
            parts.model[0].weight.mul_(torch.rand(8, 5) < 0.9)

    whole = Parts()
    for _ in whole.epochs(None):
        prune(whole)
    for cut in range(EPOCHS):
        path = tmp_path / f"{cut}.ckpt"
        first = Parts()
        for epoch in first.epochs(path):
            prune(first)
            if epoch.index == cut:
                break  # the code has run, but not to its end: neither it nor the epoch is kept
        again, seen = Parts(), []
        for epoch in again.epochs(path):
            prune(again)
            seen.append(epoch.index)
        assert seen == list(range(cut, EPOCHS))
        assert same(again.weights(), whole.weights())


def test_a_finished_run_gives_its_weights_and_no_more_epochs(tmp_path: Path) -> None:
    first, again = Parts(), Parts()
    list(first.epochs(tmp_path / "run.ckpt"))
    assert list(again.epochs(tmp_path / "run.ckpt")) == []
    assert same(again.weights(), first.weights())


def test_a_finished_run_can_be_made_longer(tmp_path: Path) -> None:
    weights, _ = uninterrupted()
    list(Parts().epochs(tmp_path / "run.ckpt", epochs=2))
    again = Parts()
    assert [epoch.step for epoch in again.epochs(tmp_path / "run.ckpt")] == [18, 24]
    assert same(again.weights(), weights)


def test_further_state_is_kept(tmp_path: Path) -> None:
    """A step with a generator of its own, and a scheduler that the caller steps between epochs."""

    def run(path: Path | None, stop: int) -> Parts:
        parts = Parts()
        noise = torch.Generator().manual_seed(8)
        plateau = ReduceLROnPlateau(parts.optimizer, patience=0, factor=0.3)

        def step(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            x, y = batch
            return train.cross_entropy_step(model, (x + torch.randn(x.shape, generator=noise), y))

        state = {"noise": noise, "plateau": plateau}
        for epoch in parts.epochs(path, step=step, scheduler=None, state=state):
            if epoch.index == stop:
                break
            plateau.step(1.0)
        return parts

    whole = run(None, 99)
    run(tmp_path / "run.ckpt", 2)
    assert same(run(tmp_path / "run.ckpt", 99).weights(), whole.weights())
    assert whole.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 / 3 * 0.3**3)


def test_a_seeded_run_resumes_without_the_global_state(tmp_path: Path) -> None:
    whole = Parts()
    list(whole.epochs(None, seed=4))
    stop_after(2, Parts(), tmp_path / "run.ckpt", seed=4)
    again = Parts()
    list(again.epochs(tmp_path / "run.ckpt", seed=4))
    assert same(again.weights(), whole.weights())


def test_an_epoch_that_was_not_finite_is_not_kept(tmp_path: Path) -> None:
    weights, _ = uninterrupted()
    calls = 0

    def step(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        nonlocal calls
        calls += 1
        return train.cross_entropy_step(model, batch) * (float("nan") if calls == 15 else 1)

    with pytest.raises(FloatingPointError, match="batch 2 of epoch 2, gradient step 14,"):
        list(Parts().epochs(tmp_path / "run.ckpt", step=step))
    again = Parts()
    assert [epoch.index for epoch in again.epochs(tmp_path / "run.ckpt")] == [2, 3]
    assert same(again.weights(), weights)


# what is refused


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    list(Parts().epochs(tmp_path / "run.ckpt", epochs=2))
    return tmp_path / "run.ckpt"


@pytest.mark.parametrize(
    ("parts", "more", "match"),
    [
        ({"width": 9}, {}, "parameter shapes"),
        ({"build_optimizer": adam}, {}, "its optimizer is SGD, this run's is AdamW"),
        ({"build_scheduler": one_cycle}, {}, "its scheduler is LambdaLR, this run's is OneCycle"),
        ({"loader": LOADERS["list"]()[:5]}, {}, "number of batches an epoch is 6, this run's is 5"),
        ({"loader": seeded_loader()}, {}, "loader's generators is 0, this run's is 1"),
        ({}, {"accumulate": 2}, "its accumulate is 1, this run's is 2"),
        ({}, {"clip_norm": 1.0}, "its clip_norm is None, this run's is 1.0"),
        ({}, {"seed": 1}, "its seed is None, this run's is 1"),
        ({}, {"state": {"g": torch.Generator()}}, r"names in state is \[\], this run's is \['g'\]"),
        ({}, {"epochs": 1}, "holds 2 epochs, more than epochs=1"),
    ],
)
def test_another_run_is_refused(
    parts: dict[str, Any], more: dict[str, Any], match: str, kept: Path
) -> None:
    other = Parts(**parts)
    before = other.weights()
    with pytest.raises(ValueError, match=match):
        list(other.epochs(kept, **more))
    assert same(other.weights(), before)


def test_another_learning_rate_is_refused(kept: Path) -> None:
    other = Parts(build_optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.2))
    with pytest.raises(ValueError, match=r"'lr': '0.1'.*this run's.*'lr': '0.2'"):
        list(other.epochs(kept))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m: m.register_buffer("mask", torch.ones(2)), "another model: it lacks 'mask'"),
        (lambda m: setattr(m, "1", nn.Identity()), "it has '1.bias' and 4 more"),
        (lambda m: m[1].register_buffer("running_mean", torch.ones(3)), r"is \(8,\), .* \(3,\)"),
        (lambda m: m.double(), r"'0.weight' is of torch.float32, this one's of torch.float64"),
    ],
)
def test_another_model_is_refused(
    change: Callable[[nn.Module], Any], match: str, kept: Path
) -> None:
    def build(model: nn.Module) -> torch.optim.Optimizer:
        optimizer = momentum(model)
        change(model)
        return optimizer

    with pytest.raises(ValueError, match=match):
        list(Parts(build_optimizer=build).epochs(kept))


def test_a_lazy_model_is_refused(tmp_path: Path) -> None:
    model = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 3))
    optimizer = momentum(model)
    with pytest.raises(ValueError, match="pass one batch through the lazy modules"):
        next(train.epochs(model, LOADERS["list"](), train.cross_entropy_step, optimizer,
                          epochs=1, checkpoint=tmp_path / "run.ckpt"))  # fmt: skip


def test_persistent_workers_are_refused(tmp_path: Path) -> None:
    loader = DataLoader(TensorDataset(X, Y), 4, num_workers=1, persistent_workers=True)
    with pytest.raises(ValueError, match="persistent_workers=False"):
        next(iter(Parts(loader=loader).epochs(tmp_path / "run.ckpt")))


@pytest.mark.parametrize("keep", [0, 10, 1000, -1])
def test_a_truncated_file_is_one_clear_error(keep: int, kept: Path) -> None:
    kept.write_bytes(kept.read_bytes()[:keep])
    with pytest.raises(RuntimeError, match=r"run\.ckpt is damaged .* delete it to start anew"):
        list(Parts().epochs(kept))


def test_a_flipped_bit_is_one_clear_error(kept: Path) -> None:
    content = bytearray(kept.read_bytes())
    weights = torch.load(kept, weights_only=True)["model"]
    place = content.find(weights["4.weight"].numpy().tobytes())
    assert place > 0
    content[place] ^= 1
    kept.write_bytes(content)
    with pytest.raises(RuntimeError, match="is damaged"):
        list(Parts().epochs(kept))


def _damaged_or(path: Path, weights: dict[str, Tensor]) -> bool:
    """Whether the file is refused as damaged, or holds the weights."""
    try:
        return same(_checkpoint.read(path)["model"], weights)
    except RuntimeError as error:
        return "is damaged" in str(error)


def test_a_flipped_bit_in_the_directory_is_one_clear_error_or_changes_nothing(
    tmp_path: Path,
) -> None:
    path, values = tmp_path / "run.ckpt", torch.arange(3.0)
    _checkpoint.write(path, {"model": {"w": values}})
    whole = path.read_bytes()
    start = whole.index(b"PK\x01\x02")
    for bit in range(8 * start, 8 * len(whole), 29):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        assert _damaged_or(path, {"w": values})


def test_a_checkpoint_that_unpacks_to_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    _checkpoint.write(tmp_path / "plain.ckpt", {"model": {"w": torch.zeros(100_000)}})
    with (
        zipfile.ZipFile(tmp_path / "plain.ckpt") as plain,
        zipfile.ZipFile(tmp_path / "bomb.ckpt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for name in plain.namelist():
            bomb.writestr(name, plain.read(name))
    with pytest.raises(RuntimeError, match=r"damaged \(it would unpack to \d+ bytes"):
        _checkpoint.read(tmp_path / "bomb.ckpt")


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    path, mark = tmp_path / "run.ckpt", tmp_path / "was-run"

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (mark,)

    torch.save({"format": "addis.train/1", "model": Evil()}, path)
    with pytest.raises(ValueError, match="more than tensors and plain values"):
        list(Parts().epochs(path))
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(RuntimeError, match="is damaged"):
        list(Parts().epochs(path))
    assert not mark.exists()


def test_another_file_of_torch_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    torch.save({"model": 3}, path)
    with pytest.raises(ValueError, match=r"is not a checkpoint of addis\.train\.epochs"):
        list(Parts().epochs(path))


def test_a_state_that_could_not_be_read_back_is_refused_before_it_replaces_a_good_file(
    tmp_path: Path,
) -> None:
    path = tmp_path / "run.ckpt"
    _checkpoint.write(path, {"epoch": 1})
    before = path.read_bytes()
    with pytest.raises(TypeError, match=r"pathlib.*a safe load refuses"):
        _checkpoint.write(path, {"epoch": Path("a")})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_failing_disk_leaves_the_file_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.ckpt"
    _checkpoint.write(path, {"epoch": 1})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        _checkpoint.write(path, {"epoch": 2})
    assert _checkpoint.read(path)["epoch"] == 1
    assert list(tmp_path.iterdir()) == [path]


def test_weights_can_be_read_by_torch_alone(kept: Path) -> None:
    weights = torch.load(kept, weights_only=True)["model"]
    parts = Parts()
    parts.model.load_state_dict(weights)
    list(parts.epochs(kept, epochs=2))
    assert same(parts.weights(), weights)


# SIGKILL, in processes of their own


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("killed")
    script = Path(__file__).with_name("killed.py")
    done = subprocess.run(
        [sys.executable, str(script), str(out)], check=True, timeout=120, stderr=subprocess.PIPE
    )
    found: dict[str, Any] = torch.load(out / "results.pt", weights_only=True)
    return {**found, "errors": done.stderr.decode()}


@pytest.mark.parametrize(
    ("moment", "rest"),
    [
        ("in the first epoch", [0, 1, 2, 3]),
        ("in a later epoch", [2, 3]),
        ("in the caller's code", [1, 2, 3]),
        ("half-way through a write", [1, 2, 3]),
        ("before the renaming", [1, 2, 3]),
        ("after the renaming", [2, 3]),
    ],
)
def test_a_killed_run_resumes_to_the_same_weights(
    moment: str, rest: list[int], killed: dict[str, Any]
) -> None:
    assert killed[moment]["status"] == -9
    assert killed[moment]["rest"] == rest
    assert same(killed[moment]["weights"], killed["whole"]["weights"])


def test_importing_the_package_does_not_load_fabric(killed: dict[str, Any]) -> None:
    assert killed["fabric was loaded"] is False


def test_an_unfinished_run_does_not_complain_when_the_interpreter_ends(
    killed: dict[str, Any],
) -> None:
    assert "Traceback" not in killed["errors"]
    assert "ignored" not in killed["errors"]
