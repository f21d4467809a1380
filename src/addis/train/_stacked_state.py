"""The tensors of E models of one structure, stacked with the copies along axis 0."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from types import BuiltinFunctionType, FunctionType, NoneType
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "Stack",
    "check_alike",
    "differing",
    "named_tensors",
    "other_attribute",
    "seeded",
    "stack",
]


@dataclass(frozen=True)
class Stack:
    """E models as one set of tensors.

    Args:
        skeleton: A copy of the widest model: the structure that the stacked tensors are run
            through. What its own tensors hold does not matter.
        templates: A copy of each model, of its own class and width, to be filled and handed out;
            its attributes that are no tensors are the copy's own.
        modes: Which modules of each model were in training mode.
        strides: Memory order of each model's tensors by name.
        params: Trained parameters, ``(E, *shape)``, leaves of autograd.
        constants: Frozen parameters (``requires_grad=False``), ``(E, *shape)``.
        buffers: Buffers, saved or not, ``(E, *shape)``.
        alias: Every name of a tensor, tied ones included, to the one name that it is stored under.
    """

    skeleton: nn.Module
    templates: tuple[nn.Module, ...]
    modes: tuple[tuple[bool, ...], ...]
    strides: tuple[dict[str, tuple[int, ...]], ...]
    params: dict[str, Tensor]
    constants: dict[str, Tensor]
    buffers: dict[str, Tensor]
    alias: dict[str, str]

    @property
    def copies(self) -> int:
        """E."""
        return len(self.templates)

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers by name, ``(E, *shape)`` each."""
        return self.params | self.constants | self.buffers

    def unstack(self, index: int) -> nn.Module:
        """Makes copy ``index`` an ordinary module again, which shares nothing with the stack."""
        module = copy.deepcopy(self.templates[index])
        for part, training in zip(module.modules(), self.modes[index], strict=True):
            part.training = training
        stacked = self.tensors()
        for name, tensor in named_tensors(module).items():
            row = stacked[name].detach()[index][tuple(slice(n) for n in tensor.shape)]
            strides = self.strides[index][name]
            tensor.data = row.new_empty_strided(row.shape, strides).copy_(row)
        return module


def seeded(factory: Callable[[], nn.Module], seeds: Sequence[int]) -> list[nn.Module]:
    """Builds one model for each seed, as if ``torch.manual_seed(seed)`` came before ``factory()``.

    Torch's global generators are left as they were.

    Args:
        factory: Builds a model, its initialisation drawn from torch's default generator.
        seeds: One for each model.

    Returns:
        ``[factory() after seed, for seed in seeds]``.

    Raises:
        TypeError: ``factory`` does not return a module.

    Example:
        >>> from torch import nn
        >>> a, b, c = seeded(lambda: nn.Linear(2, 1), seeds=[0, 1, 0])
        >>> bool((a.weight == c.weight).all()), bool((a.weight == b.weight).all())
        (True, False)
    """
    models = []
    for seed in seeds:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = factory()
        if not isinstance(model, nn.Module):
            raise TypeError(f"factory must return an nn.Module, got {type(model).__name__}")
        models.append(model)
    return models


def check_alike(models: Sequence[nn.Module], *, widths: bool) -> None:
    """Refuses models that are not copies of one structure.

    Args:
        models: At least one.
        widths: Whether shapes may differ (narrow models in a stack of the widest).

    Raises:
        ValueError: There is no model, or one differs from the first; the message names where.
    """
    if not models:
        raise ValueError("models must hold at least one model, got none")
    first = _facts(models[0], widths)
    for i, model in enumerate(models[1:], 1):
        facts = _facts(model, widths)
        for name in first | facts:
            ours, theirs = facts.get(name, "nothing"), first.get(name, "nothing")
            if ours != theirs:
                raise ValueError(
                    "models must be copies of one structure, but "
                    f"models[{i}] has {ours} at {name!r} where models[0] has {theirs}"
                )


def other_attribute(models: Sequence[nn.Module]) -> str | None:
    """Says where attributes of a model that :func:`check_alike` passes differ from the first's, so
    that the code of one model does not serve for the others.
    """
    for i, model in enumerate(models[1:], 1):
        for name, theirs, ours in differing(models[0], model):
            return f"models[{i}] has {ours} at {name!r} where models[0] has {theirs}"
    return None


def differing(a: nn.Module, b: nn.Module) -> Iterator[tuple[str, Any, Any]]:
    """Attributes, but for modules, parameters and buffers, that two models of one structure do not
    have in common: name and both values. Compared are plain values, tensors, functions, and
    containers of them.
    """
    for (path, first), second in zip(a.named_modules(), b.modules(), strict=True):
        ours, theirs = _attributes(first), _attributes(second)
        for name in ours | theirs:
            if not _equal(ours.get(name), theirs.get(name)):
                yield f"{path}.{name}" if path else name, ours.get(name), theirs.get(name)


_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_PLAIN = (bool, int, float, complex, str, bytes, NoneType, Enum, torch.dtype, torch.device,
          torch.Size, type, BuiltinFunctionType)  # fmt: skip


def _attributes(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name not in _OF_EVERY_MODULE}


def _equal(a: Any, b: Any) -> bool:
    """Whether two attributes do the same; of objects of other kinds only the kind is compared."""
    if a is b or (isinstance(a, nn.Parameter) and isinstance(b, nn.Parameter)):
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(value, b[key]) for key, value in a.items())
    if isinstance(a, FunctionType):
        return a.__code__ == b.__code__ and all(map(_equal, _bound(a), _bound(b)))
    if isinstance(a, functools.partial):
        return _equal((a.func, a.args, a.keywords), (b.func, b.args, b.keywords))
    return not isinstance(a, _PLAIN) or a == b or a != a


def _bound(function: FunctionType) -> list[Any]:
    """Values that a function took from where it was defined, but for further functions."""
    values = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    values += [cell.cell_contents for cell in function.__closure__ or ()]
    return [None if isinstance(value, FunctionType) else value for value in values]


def stack(
    models: Sequence[nn.Module], device: torch.device, memory_format: torch.memory_format | None
) -> Stack:
    """Copies the tensors of ``models`` (see :func:`check_alike`) into one :class:`Stack`.

    Narrow models are padded with zeros at the end of each axis.

    Args:
        models: Left as they are.
        device: Where the stacked tensors are.
        memory_format: Format of each copy's weights of four dimensions; ``None`` keeps the first
            model's.

    Raises:
        ValueError: No model is the widest in every layer.
    """
    named = [named_tensors(model) for model in models]
    shape = {n: tuple(map(max, *(m[n].shape for m in named), t.shape)) for n, t in named[0].items()}
    widest = [i for i, m in enumerate(named) if all(tuple(m[n].shape) == shape[n] for n in shape)]
    if not widest:
        raise ValueError("models of several widths need one that is the widest in every layer")
    skeleton = copy.deepcopy(models[widest[0]]).to(device)
    trained = {n for n, p in models[0].named_parameters() if p.requires_grad}
    held = {n for n, _ in models[0].named_parameters()} - trained
    tensors = {n: _stacked([m[n] for m in named], shape[n], device, memory_format) for n in shape}
    return Stack(
        skeleton=skeleton,
        templates=tuple(copy.deepcopy(model).to(device) for model in models),
        modes=tuple(tuple(part.training for part in model.modules()) for model in models),
        strides=tuple({n: t.stride() for n, t in own.items()} for own in named),
        params={n: t.requires_grad_() for n, t in tensors.items() if n in trained},
        constants={n: t for n, t in tensors.items() if n in held},
        buffers={n: t for n, t in tensors.items() if n not in trained | held},
        alias=_aliases(models[0]),
    )


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer, saved or not, tied ones once."""
    return dict(module.named_parameters()) | dict(module.named_buffers())


def _aliases(module: nn.Module) -> dict[str, str]:
    first = {id(t): n for n, t in named_tensors(module).items()}
    every = [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]
    return {n: first[id(t)] for n, t in every}


def _facts(module: nn.Module, widths: bool) -> dict[str, str]:
    """What two copies of one structure have in common, by name."""
    facts = {
        name: re.sub(r" at 0x[0-9a-f]+", "", f"{type(m).__qualname__}({'' if widths else m})")
        for name, m in module.named_modules(remove_duplicate=False)
    }
    for name, tensor in named_tensors(module).items():
        shape = f"{tensor.dim()} axes" if widths else f"shape {tuple(tensor.shape)}"
        grad = ", trained" if tensor.requires_grad else ""
        facts[name] = f"a {tensor.dtype} tensor of {shape}{grad}"
    return facts | {f"{n} (tied)": t for n, t in _aliases(module).items() if n != t}


def _stacked(
    rows: Sequence[Tensor],
    shape: tuple[int, ...],
    device: torch.device,
    memory_format: torch.memory_format | None,
) -> Tensor:
    """``(E, *shape)``, each row in ``memory_format`` if it has four dimensions."""
    last = memory_format is torch.channels_last or (
        memory_format is None
        and rows[0].dim() == 4
        and not rows[0].is_contiguous()
        and rows[0].is_contiguous(memory_format=torch.channels_last)
    )
    if last and len(shape) == 4:
        o, i, h, w = shape
        out = torch.zeros((len(rows), o, h, w, i), dtype=rows[0].dtype, device=device).permute(
            0, 1, 4, 2, 3
        )
    else:
        out = torch.zeros((len(rows), *shape), dtype=rows[0].dtype, device=device)
    for row, tensor in zip(out, rows, strict=True):
        row[tuple(slice(n) for n in tensor.shape)].copy_(tensor.detach())
    return out
