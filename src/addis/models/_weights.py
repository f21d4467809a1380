"""Reads weight files that nobody has vouched for, and loads them strictly.

A weight file is data: safetensors hold nothing else, and a pickle goes through torch's restricted
unpickler (``weights_only=True``), which builds tensors and plain containers and calls no other
function. A file that is not what its name says is a ``ValueError``, whatever is wrong with it. The
checksums in torch's archives are compared; safetensors, and torch's format of before 2020, have
none, so there damage to the numbers themselves goes unseen.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from addis.models._archive import fault, is_archive

__all__ = ["load_weights", "read_weights"]

PICKLES = frozenset({".bin", ".ckpt", ".pt", ".pth"})
LISTED = 8  # names that an error message lists of each kind


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Reads a state dict from a file; nothing in the file is executed.

    Args:
        path: A ``.safetensors`` file, or a pickle of torch (``.pt``, ``.pth``, ``.bin``, ``.ckpt``)
            that holds a state dict, alone or under the key ``state_dict``.

    Returns:
        Tensors on the CPU by name.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Its suffix is another, it is damaged, it holds anything but tensors, or it would
            need to run code.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"weights: no file {path}")
    if path.suffix == ".safetensors":
        return _safetensors(path)
    if path.suffix in PICKLES:
        return _pickle(path)
    allowed = ", ".join(sorted({".safetensors", *PICKLES}))
    raise ValueError(f"weights must be a file with one of the suffixes {allowed}, got {path}")


def load_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Loads a weight file into a model, strictly: each name and each shape must agree.

    Values are cast to the data type of the model's parameters. If anything disagrees the model is
    left as it was.

    Args:
        model: The model; its parameters and buffers are overwritten.
        path: As for :func:`read_weights`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is unsound (see :func:`read_weights`); or names are missing or
            unexpected, or shapes or kinds of number differ, or tied parameters have two values,
            all listed by name; or the model is on the meta device, which holds no values.
    """
    assign(model, read_weights(path), str(path))


def assign(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copies a state dict into a model after checking all of it; ``source`` names it in messages.

    Raises:
        ValueError: As :func:`load_weights`.
    """
    own = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    if any(is_lazy(tensor) or tensor.is_meta for tensor in own.values()):
        raise ValueError(
            "weights need a model whose parameters have values, got a lazy one or one on the meta "
            "device"
        )
    # BatchNorm's counter of batches is younger than some files; no output depends on it.
    missing = [n for n in own if n not in state and not n.endswith("num_batches_tracked")]
    shared = [name for name in own if name in state]
    problems = {
        "missing": missing,
        "unexpected": [name for name in state if name not in own],
        "wrong shape": [
            f"{name}: file {tuple(state[name].shape)}, model {tuple(own[name].shape)}"
            for name in shared
            if state[name].shape != own[name].shape
        ],
        "wrong kind of number": [
            f"{name}: file {state[name].dtype}, model {own[name].dtype}"
            for name in shared
            if _kind(state[name]) != _kind(own[name])
        ],
    }
    problems["tied in the model, but of two values"] = _torn(model, state)
    if any(problems.values()):
        found = "; ".join(f"{what}: {_listed(names)}" for what, names in problems.items() if names)
        raise ValueError(f"weights {source} do not fit {type(model).__name__}: {found}")
    model.load_state_dict(dict(state), strict=False)  # every name was compared above


def _torn(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Pairs of names of one parameter or buffer under which the file has two values."""
    first: dict[int, str] = {}
    pairs = []
    for name, tensor in (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ):
        if name in state:
            other = first.setdefault(id(tensor), name)
            if other != name and not torch.equal(state[name], state[other]):
                pairs.append(f"{other} and {name}")
    return pairs


def _kind(tensor: Tensor) -> tuple[bool, bool]:
    return tensor.is_floating_point(), tensor.is_complex()


def _listed(names: list[str]) -> str:
    more = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {more} more" if more > 0 else "")


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        # From bytes, not a memory map: a map of a file that shrinks meanwhile kills the process.
        return safetensors.torch.load(path.read_bytes())
    except Exception as error:
        raise ValueError(
            f"weights: {path} is not a sound safetensors file: {_told(error)}"
        ) from error


def _pickle(path: Path) -> dict[str, Tensor]:
    if is_archive(path) and (why := fault(path)) is not None:
        raise ValueError(f"weights: {path} is damaged ({why})")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"weights: {path} is damaged or holds more than tensors; nothing in it was run. "
            f"Save state_dict() with safetensors.torch.save_file instead. ({_told(error)})"
        ) from error
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not all(map(_is_entry, state, state.values())):
        raise ValueError(
            f"weights: {path} must hold a mapping from names to dense tensors, got {_sketch(state)}"
        )
    return dict(state)


def _is_entry(name: object, value: object) -> bool:
    return (
        isinstance(name, str)
        and isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
    )


def _sketch(state: Any) -> str:
    if not isinstance(state, dict):
        return type(state).__name__
    wrong = [f"{name!r}: {type(v).__name__}" for name, v in state.items() if not _is_entry(name, v)]
    return f"entries {_listed(wrong)}"


def _told(error: Exception) -> str:
    """The error's kind and the first line of its text."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
