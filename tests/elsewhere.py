"""A second device on a machine that has none: its tensors are kept on the CPU, and whatever mixes
the two devices, or draws from the other one's generator, fails as it would on a GPU.

It is PyTorch's ``meta`` device by name, which needs no driver, but with values. What is written for
CUDA alone (streams, captured graphs, memory) it cannot show.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import Thread
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

from addis.train import _fabric

__all__ = ["ELSEWHERE", "elsewhere"]

ELSEWHERE = "meta"

_aten = torch.ops.aten
_INDEXED = {
    _aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default,
    _aten._index_put_impl_.default,
}  # fmt: skip
"""Functions whose indices may be on the CPU."""


@contextmanager
def elsewhere() -> Iterator[str]:
    """The device is there while the context is, in new threads too; gives its name."""
    enabled, dtype, run = torch.is_autocast_enabled, torch.get_autocast_dtype, Thread.run

    def run_there(thread: Thread) -> None:
        with _Mode(), _FromValues():
            run(thread)

    with ExitStack() as stack:
        for name, stand_in in (
            ("Generator", _Generator),
            ("is_autocast_enabled", lambda *kind: enabled(*map(_kind, kind))),
            ("get_autocast_dtype", lambda kind: dtype(_kind(kind))),
            ("autocast", _Autocast),
        ):
            stack.enter_context(mock.patch.object(torch, name, stand_in))
        random = SimpleNamespace(
            get_rng_state=torch.get_rng_state, set_rng_state=torch.set_rng_state,
            manual_seed=torch.manual_seed,
        )  # fmt: skip
        stack.enter_context(mock.patch.object(torch, ELSEWHERE, random, create=True))
        stack.enter_context(mock.patch.object(Thread, "run", run_there))
        fused = "torch.optim.optimizer._get_fused_kernels_supported_devices"
        stack.enter_context(mock.patch(fused, return_value=[ELSEWHERE, "cpu"]))
        stack.enter_context(mock.patch.object(_fabric, "on_device_of", _fabric_there))
        stack.callback(_Generator.there.clear)
        stack.enter_context(_Mode())
        stack.enter_context(_FromValues())
        yield ELSEWHERE


class _There(Tensor):
    @staticmethod
    def __new__(cls, inner: Tensor) -> _There:
        return Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(),
            dtype=inner.dtype, device=torch.device(ELSEWHERE),
        )  # fmt: skip

    __torch_function__ = torch._C._disabled_torch_function_impl

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, value: _There) -> None:
        Tensor.data.__set__(self, value)
        self.inner = value.inner

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.inner.__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, args, kwargs or {})


class _FromValues(TorchFunctionMode):
    """Takes numbers there by way of the CPU: PyTorch would make meta tensors without values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and _is_there(kwargs.get("device") or "cpu"):
            return func(*args, **kwargs | {"device": "cpu"}).to(ELSEWHERE)
        if func is Tensor.tolist:
            args = (args[0].cpu(),)
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            index = tuple(torch.tensor(i) if isinstance(i, list) else i for i in index)
            args = (args[0], index, *args[2:])
        return func(*args, **kwargs)


class _Generator(torch.Generator):
    there: dict[int, torch.Generator] = {}  # noqa: RUF012

    def __new__(cls, device: torch.device | str = "cpu") -> _Generator:
        made = super().__new__(cls, device=_kind(device))
        if _is_there(device):
            cls.there[made._cdata] = made  # kept, so that no other gets its address
        return made


class _Autocast(torch.autocast):
    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(_kind(device_type), *args, **kwargs)


def _call(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    leaves = tree_leaves((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    assert not any(_is_there(t.device) and not isinstance(t, _There) for t in tensors), func
    asked = kwargs.get("device")
    if func is _aten.copy_.default:
        there = isinstance(args[0], _There)
    elif asked is not None:
        there = _is_there(asked)
    else:
        there = any(isinstance(t, _There) for t in tensors)
    if func not in (_aten.copy_.default, _aten._to_copy.default):
        for t in tensors[:1] if func in _INDEXED else tensors:
            if there and not isinstance(t, _There) and t.dim():
                raise RuntimeError(f"{func}: expected all tensors to be on the same device")
    for leaf in leaves:
        if isinstance(leaf, torch._C.Generator) and (leaf._cdata in _Generator.there) != there:
            raise RuntimeError(f"{func}: expected a generator of the device that it draws on")
    inner = {**kwargs, "device": torch.device("cpu")} if there and asked is not None else kwargs
    out = func(*tree_map(_inner, args), **tree_map(_inner, inner))
    if not there:
        return out
    out = tree_map(lambda t: _There(t) if isinstance(t, Tensor) else t, out)
    return return_and_correct_aliasing(func, args, kwargs, out)


def _fabric_there(model: nn.Module) -> Any:
    from lightning_fabric import Fabric
    from lightning_fabric.accelerators.cpu import CPUAccelerator
    from lightning_fabric.strategies.single_device import SingleDeviceStrategy

    class Accelerator(CPUAccelerator):
        def setup_device(self, device: torch.device) -> None:
            pass

    device = _fabric.device_of(model)
    return Fabric(strategy=SingleDeviceStrategy(device, accelerator=Accelerator()))


def _is_there(device: torch.device | str) -> bool:
    return torch.device(device).type == ELSEWHERE


def _kind(device: torch.device | str) -> str:
    return "cpu" if _is_there(device) else str(device)


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, _There) else value
