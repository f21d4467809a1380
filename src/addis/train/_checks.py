"""What the loop refuses at the door, and what it refuses of a step."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.utils.data import DataLoader, RandomSampler

from addis.train import _batches

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = [
    "check_common_order",
    "check_numbers",
    "check_path",
    "check_run",
    "check_step",
    "check_strategy",
]


def check_run(
    model: object, loader: object, step: object, optimizer: object, scheduler: object, state: object
) -> None:
    """Checks the kinds of the arguments of ``epochs`` and how they fit together."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if hasattr(model, "_forward_module"):
        raise TypeError("model was set up by Fabric already: give the plain module, and fabric=...")
    if not callable(step):
        raise TypeError(f"step must be a function of (model, batch), got {type(step).__name__}")
    if not isinstance(optimizer, Optimizer) or hasattr(optimizer, "_strategy"):
        raise TypeError(
            f"optimizer must be a plain torch optimizer, got {type(optimizer).__name__}"
        )
    if isinstance(optimizer, LBFGS):
        raise TypeError("optimizer must step on gradients alone, LBFGS calls the loss again")
    own = {id(parameter) for parameter in model.parameters()}
    if not any(id(p) in own for group in optimizer.param_groups for p in group["params"]):
        raise ValueError(
            "optimizer holds none of the model's parameters: build it from model.parameters()"
        )
    _check_loader(loader)
    _check_scheduler(scheduler, optimizer)
    _check_state(state)


def _check_loader(loader: object) -> None:
    if isinstance(loader, Iterator):
        raise TypeError(
            f"loader must be iterable once an epoch, got an iterator ({type(loader).__name__}), "
            "which ends with the first"
        )
    if not isinstance(loader, Iterable) and not hasattr(loader, "__getitem__"):
        raise TypeError(f"loader must be an iterable of batches, got {type(loader).__name__}")
    if _batches.length(loader) == 0:  # type: ignore[arg-type]
        raise ValueError("loader is empty: it must give at least one batch an epoch")


def _check_scheduler(scheduler: object, optimizer: Optimizer) -> None:
    if scheduler is None:
        return
    if isinstance(scheduler, ReduceLROnPlateau):
        raise TypeError(
            "scheduler must need no metric, got ReduceLROnPlateau: step it between epochs "
            "yourself, and give it in state= to keep it in the checkpoint"
        )
    if not isinstance(scheduler, LRScheduler):
        raise TypeError(
            f"scheduler must be of torch.optim.lr_scheduler, got {type(scheduler).__name__}; "
            "give a function of the step to LambdaLR first"
        )
    if getattr(scheduler, "optimizer", optimizer) is not optimizer:
        raise ValueError("scheduler was built for another optimizer")


def _check_state(state: object) -> None:
    if state is None:
        return
    if not isinstance(state, Mapping):
        raise TypeError(f"state must map names to objects, got {type(state).__name__}")
    for name, part in state.items():
        stateful = hasattr(part, "state_dict") and hasattr(part, "load_state_dict")
        if not stateful and not isinstance(part, torch.Generator):
            raise TypeError(
                f"state[{name!r}] must be a torch.Generator or have state_dict and "
                f"load_state_dict, got {type(part).__name__}"
            )


def check_numbers(epochs: object, accumulate: object, clip_norm: object, seed: object) -> None:
    """Checks the numbers among the arguments of ``epochs``."""
    _check_int("epochs", epochs, 0)
    _check_int("accumulate", accumulate, 1)
    if seed is not None:
        _check_int("seed", seed, 0)
    if clip_norm is not None:
        if isinstance(clip_norm, bool) or not isinstance(clip_norm, (int, float)):
            raise TypeError(f"clip_norm must be a number, got {type(clip_norm).__name__}")
        if not clip_norm > 0:
            raise ValueError(f"clip_norm must be > 0, got {clip_norm}")


def _check_int(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name} must be >= {least}, got {value}")


def check_path(checkpoint: str | os.PathLike[str] | None) -> Path | None:
    """Checks that the checkpoint can be written, before an epoch is lost on it."""
    if checkpoint is None:
        return None
    path = Path(checkpoint)
    if path.is_dir():
        raise ValueError(f"checkpoint must be a file, got the folder {path}")
    if not path.parent.is_dir():
        raise ValueError(f"checkpoint {path} is in a folder that does not exist")
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"checkpoint {path} is in a folder that cannot be written")
    return path


def check_strategy(fabric: Fabric) -> None:
    """Refuses a strategy under which a process does not hold the whole model."""
    from lightning_fabric.strategies.ddp import DDPStrategy
    from lightning_fabric.strategies.single_device import SingleDeviceStrategy

    if not isinstance(fabric.strategy, (SingleDeviceStrategy, DDPStrategy)):
        raise TypeError(
            "fabric must run on one device or replicate the model (strategy 'ddp'), got "
            f"{type(fabric.strategy).__name__}"
        )


def check_common_order(loader: Iterable[Any]) -> None:
    """Refuses a loader that would shuffle differently in each process."""
    sampler = getattr(loader, "sampler", None)
    if (
        isinstance(loader, DataLoader)
        and isinstance(sampler, RandomSampler)
        and sampler.generator is None
    ):
        raise ValueError(
            "loader shuffles without a generator, so each process would see other batches: give "
            "it one of the same seed in each, DataLoader(..., generator=...), or set it up with "
            "fabric.setup_dataloaders"
        )


def check_step(returned: object) -> tuple[tuple[str, ...], list[Tensor]]:
    """Names and values of what a step returned, the loss first."""
    if isinstance(returned, Tensor):
        names, values = ("loss",), [returned]
    elif isinstance(returned, Mapping):
        if "loss" not in returned:
            raise ValueError(f"step must return a mapping with 'loss', got {list(returned)}")
        names = ("loss", *(name for name in returned if name != "loss"))
        values = [returned[name] for name in names]
    else:
        raise TypeError(
            f"step must return a tensor or a mapping of tensors, got {type(returned).__name__}"
        )
    for name, value in zip(names, values, strict=True):
        if not isinstance(value, Tensor):
            raise TypeError(f"step: {name} must be a tensor, got {type(value).__name__}")
        if value.dim():
            raise ValueError(f"step: {name} must be a scalar, got shape {tuple(value.shape)}")
    if not values[0].requires_grad:
        raise ValueError("step: the loss does not depend on a parameter that requires gradients")
    return names, values
