"""What of a run a checkpoint holds, and how the run is put back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.data import DataLoader

from addis.train import _batches, _checkpoint, _fabric, _random

if TYPE_CHECKING:
    from addis.train._loop import _Run

__all__ = ["Resumable", "Resume"]


class Stateful(Protocol):
    """What can give its state and take it back."""

    def state_dict(self) -> Any:
        """Gives the state in tensors and plain values."""

    def load_state_dict(self, state_dict: Any, /) -> Any:
        """Takes such a state back."""


Resumable: TypeAlias = Stateful | torch.Generator
"""What a checkpoint can keep beside model and optimizer."""


class Resume:
    """A run's checkpoint.

    Args:
        path: The file.
        run: The run, set up.
        state: Further parts of it.
    """

    def __init__(self, path: Path, run: _Run, state: Mapping[str, Resumable]) -> None:
        self._path = path
        self._run = run
        self._state = state
        self._generators = _batches.generators(run.loader)
        _check_exact(run.loader)
        _check_shaped(run.plain_model)
        self._defaults = {  # of now: a scheduler changes a learning rate that is a tensor in place
            key: str(value.tolist() if isinstance(value, Tensor) else value)
            for key, value in run.plain_optimizer.defaults.items()
        }

    def save(self, epoch: int) -> None:
        """Keeps the run as it is before epoch ``epoch``; every process must call it."""
        run = self._run
        own = {
            "global": _random.capture(run.fabric.device),
            "loader": [generator.get_state() for generator in self._generators],
            "state": {name: _state_of(part) for name, part in self._state.items()},
        }
        ranks = _fabric.gather(own, run.fabric)
        if run.fabric.is_global_zero:
            content = {
                "settings": self._settings(),
                "epoch": epoch,
                "step": run.steps,
                "model": run.plain_model.state_dict(),
                "frozen": run.frozen_names(),
                "optimizer": run.plain_optimizer.state_dict(),
                "scheduler": run.scheduler.state_dict() if run.scheduler else None,
                "precision": run.fabric.strategy.precision.state_dict(),
                "ranks": ranks,
            }
            _checkpoint.write(self._path, content)
        run.fabric.barrier()

    def load(self, epochs: int) -> int:
        """Puts the run back and gives the epochs that are done; 0 if there is no file yet."""
        run = self._run
        run.fabric.barrier()
        if not self._path.exists():
            return 0
        saved = _checkpoint.read(self._path)
        self._check(saved, epochs)
        run.plain_model.load_state_dict(saved["model"])
        run.frozen.update(run.plain_model.get_submodule(name) for name in saved.get("frozen", ()))
        run.plain_optimizer.load_state_dict(saved["optimizer"])
        if run.scheduler:
            run.scheduler.load_state_dict(saved["scheduler"])
        run.fabric.strategy.precision.load_state_dict(saved["precision"])
        run.steps = saved["step"]
        own = saved["ranks"][run.fabric.global_rank]
        for generator, generator_state in zip(self._generators, own["loader"], strict=True):
            generator.set_state(generator_state)
        for name, part in self._state.items():
            _load_into(part, own["state"][name])
        _random.restore(own["global"], run.fabric.device)
        return int(saved["epoch"])

    def _check(self, saved: dict[str, Any], epochs: int) -> None:
        ours = self._settings()
        for name, theirs in saved["settings"].items():
            if ours[name] != theirs:
                raise ValueError(
                    f"the checkpoint {self._path} is of another run: its {name} is {theirs}, this "
                    f"run's is {ours[name]}; use another file, or delete it to start anew"
                )
        if difference := _difference(saved["model"], self._run.plain_model.state_dict()):
            raise ValueError(f"the checkpoint {self._path} is of another model: {difference}")
        if saved["epoch"] > epochs:
            raise ValueError(
                f"the checkpoint {self._path} holds {saved['epoch']} epochs, more than "
                f"epochs={epochs}"
            )

    def _settings(self) -> dict[str, Any]:
        """What must be the same for a run to go on exactly, in plain values."""
        run = self._run
        optimizer = run.plain_optimizer
        return {
            "optimizer": type(optimizer).__name__,
            "optimizer's defaults": self._defaults,
            "optimizer's parameter shapes": [
                [list(p.shape) for p in group["params"]] for group in optimizer.param_groups
            ],
            "scheduler": type(run.scheduler).__name__ if run.scheduler else None,
            "number of batches an epoch": _batches.length(run.loader),
            "number of the loader's generators": len(self._generators),
            "accumulate": run.accumulate,
            "clip_norm": run.clip_norm,
            "seed": run.seed,
            "names in state": sorted(self._state),
            "number of processes": run.fabric.world_size,
            "device type": run.fabric.device.type,
            "precision": type(run.fabric.strategy.precision).__name__,
        }


def _check_exact(loader: Iterable[Any]) -> None:
    if isinstance(loader, DataLoader) and loader.num_workers and loader.persistent_workers:
        raise ValueError(
            "a checkpoint cannot keep the random states inside a loader's persistent workers: "
            "build the DataLoader with persistent_workers=False, which seeds new ones each epoch"
        )


def _check_shaped(model: nn.Module) -> None:
    if any(is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
        raise ValueError(
            "a checkpoint needs a model whose parameters have shapes: pass one batch through the "
            "lazy modules before"
        )


def _difference(saved: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """The first way in which two states of a model differ in kind, or an empty text."""
    if missing := sorted(own.keys() - saved.keys()):
        return f"it lacks {missing[0]!r}" + (f" and {len(missing) - 1} more" if missing[1:] else "")
    if excess := sorted(saved.keys() - own.keys()):
        return f"it has {excess[0]!r}" + (f" and {len(excess) - 1} more" if excess[1:] else "")
    for name, value in own.items():
        if isinstance(value, Tensor) and value.shape != saved[name].shape:
            return f"its {name!r} is {tuple(saved[name].shape)}, this one's {tuple(value.shape)}"
        if isinstance(value, Tensor) and value.dtype != saved[name].dtype:
            return f"its {name!r} is of {saved[name].dtype}, this one's of {value.dtype}"
    return ""


def _state_of(part: Resumable) -> Any:
    return part.get_state() if isinstance(part, torch.Generator) else part.state_dict()


def _load_into(part: Resumable, state: Any) -> None:
    if isinstance(part, torch.Generator):
        part.set_state(state)
    else:
        part.load_state_dict(state)
