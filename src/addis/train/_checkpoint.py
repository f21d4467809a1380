"""A checkpoint file: written whole or not at all, and read without running code.

The file is torch's own zip format, so that ``torch.load(path, weights_only=True)["model"]`` gives
the weights. It is written beside its place, forced to the disk and renamed, so that a process
killed at any moment leaves either the old file or the new one. It is read with
``weights_only=True`` after the zip's checksums have been compared, which torch itself does not do.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from addis.models._archive import fault

__all__ = ["read", "write"]

_FORMAT = "addis.train/1"


def write(path: Path, content: dict[str, Any]) -> None:
    """Replaces ``path`` by a file that holds ``content``.

    Raises:
        TypeError: ``content`` holds an object that a safe load would refuse.
        OSError: The disk is full or read-only; the file that was there before is left.
    """
    beside = path.with_name(f".{path.name}.part")
    try:
        with beside.open("wb") as file:
            torch.save({"format": _FORMAT, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        _check_safe(beside)
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _check_safe(path: Path) -> None:
    """Refuses a file that :func:`read` would refuse, before it takes the place of a good one."""
    if refused := torch.serialization.get_unsafe_globals_in_checkpoint(str(path)):
        raise TypeError(
            f"the checkpoint would hold objects of {', '.join(sorted(refused))}, which a safe load "
            "refuses; keep tensors and plain values in the states of model, optimizer, scheduler "
            "and state (a schedule that returns a numpy number is a common cause)"
        )


def _sync_folder(folder: Path) -> None:
    """Forces the renaming itself to the disk, where the system lets a folder be opened."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(path: Path) -> dict[str, Any]:
    """Gives what :func:`write` wrote, on the CPU.

    Raises:
        RuntimeError: The file is cut off or damaged.
        ValueError: The file is whole, but no checkpoint of this loop; code in it is not run.
    """
    if (why := fault(path)) is not None:
        raise RuntimeError(_damaged(path, why))
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} holds more than tensors and plain values: {error}") from error
    except RuntimeError as error:
        if "PytorchStreamReader" in str(error):  # the directory of the archive is wrong
            raise RuntimeError(_damaged(path, str(error).partition(". ")[0])) from error
        raise ValueError(f"{path} is not a checkpoint of addis.train.epochs: {error}") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ValueError(f"{path} is not a checkpoint of addis.train.epochs")
    return content


def _damaged(path: Path, why: str) -> str:
    return f"the checkpoint {path} is damaged ({why}): restore a copy, or delete it to start anew"
