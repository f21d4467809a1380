"""Finds a layer in a model, reads its output, and leaves the model as it was."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from addis.explain._channel import layout_of
from addis.explain._inputs import check_finite

__all__ = ["Layer", "capture", "features_of", "find_layer", "last_spatial_layer", "undisturbed"]

_NOISY_WHEN_TRAINING = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.dropout._DropoutNd,
    nn.RReLU,
)


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer of a model.

    Attributes:
        name: Its path in the model that holds the layers (without the prefix of a parallel
            wrapper).
        module: The layer.
        reason: Why this layer, in words, where it was chosen for the caller; else empty.
    """

    name: str
    module: nn.Module
    reason: str = ""


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside ``torch.compile``, ``DataParallel`` and ``DistributedDataParallel``."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[nn.Module]:
    """The unwrapped model in evaluation mode with frozen parameters, as it was afterwards.

    Within the block the model is in evaluation mode, no parameter requires a gradient and
    ``torch.inference_mode`` is off. ``training`` of each module (set without a call of its
    ``eval``, which may do more), ``requires_grad`` of each parameter and the values of the buffers
    are restored on the way out, also after an exception.

    Warns:
        UserWarning: The model came in training mode and has layers that behave differently in it.
    """
    inner = unwrap(model)
    modes = [(module, module.training) for module in inner.modules()]
    grads = [(parameter, parameter.requires_grad) for parameter in inner.parameters()]
    if any(mode and isinstance(module, _NOISY_WHEN_TRAINING) for module, mode in modes):
        warnings.warn(
            "the model is in training mode: explained in evaluation mode, then set back",
            stacklevel=4,
        )
    buffers = _Buffers(inner)
    try:
        for module, _ in modes:
            module.training = False
        for parameter, _ in grads:
            parameter.requires_grad_(False)
        with no_inference_mode():
            yield inner
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, flag in grads:
            parameter.requires_grad_(flag)
        buffers.restore()


@contextmanager
def no_inference_mode() -> Iterator[None]:
    """Turns ``torch.inference_mode`` off, and gradients not on with it."""
    grad = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.set_grad_enabled(grad):
        yield


class _Buffers:
    """The buffers of a model and their values, to be put back."""

    def __init__(self, model: nn.Module) -> None:
        self._named = [(module, dict(module._buffers.items())) for module in model.modules()]
        every = {id(b): b for _, named in self._named for b in named.values() if b is not None}
        self._values = [(buffer, buffer.detach().clone()) for buffer in every.values()]

    def restore(self) -> None:
        for module, named in self._named:
            for name, buffer in named.items():
                module._buffers[name] = buffer
        with torch.no_grad():
            for buffer, value in self._values:
                if buffer.shape != value.shape:
                    buffer.resize_(value.shape)
                # Through ``data``, so that the caller's graphs do not take it for changed.
                dense = buffer.layout is torch.strided
                (buffer.data if dense else buffer).copy_(value)


def find_layer(model: nn.Module, layer: str | nn.Module, x: Tensor | None = None) -> Layer:
    """Finds a layer by name, by module, or by rule.

    ``"auto"`` takes the end of the middle stage: the sizes of the feature maps are listed from the
    first to the last, and of the middle size the last module of the outermost level is taken. That
    is ``layer2`` of a ResNet and the 28 px stage of a VGG at 224 px, where the paper puts its
    bottleneck.

    Args:
        model: The model.
        layer: A name as in ``model.named_modules()``, the module itself, or ``"auto"``.
        x: A batch to run the model on; only ``"auto"`` needs it.

    Raises:
        ValueError: No such layer; the message gives the closest names.
        TypeError: ``layer`` is neither text nor a module.
    """
    inner = unwrap(model)
    if layer == "auto":
        if x is None:
            raise ValueError('layer="auto" needs an input to run the model on')
        return _middle_layer(inner, x)
    if isinstance(layer, nn.Module):
        for name, module in inner.named_modules():
            if module is layer:
                return Layer(name, module)
        raise ValueError(f"layer {type(layer).__name__} is not a part of the model")
    if not isinstance(layer, str):
        raise TypeError(f"layer must be a name or a module, got {type(layer).__name__}")
    modules = dict(inner.named_modules())
    for name in (layer, layer.removeprefix("module."), layer.removeprefix("_orig_mod.")):
        if name and name in modules:
            return Layer(name, modules[name])
    close = difflib.get_close_matches(layer, modules, n=5, cutoff=0.3) or list(modules)[1:6]
    raise ValueError(f"the model has no layer {layer!r}; the closest names are {', '.join(close)}")


def last_spatial_layer(model: nn.Module, x: Tensor) -> Layer:
    """The last module whose output is still a map of more than one cell: the usual layer of
    Grad-CAM.

    Args:
        model: The model; left as it was.
        x: Inputs as the model takes them, ``(N, ...)``; only the first is run.

    Raises:
        ValueError: There is no such module.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        >>> last_spatial_layer(model, torch.rand(1, 3, 8, 8)).name
        '1'
    """
    with undisturbed(model) as inner:
        stages = _stages(inner, x[:1])
    if not stages:
        raise ValueError("no layer of the model gives a feature map with more than one cell")
    size, modules = list(stages.items())[-1]
    name, module = _outermost(modules)
    return Layer(name, module, f"the last layer with a feature map, {_times(size)}")


def _middle_layer(model: nn.Module, x: Tensor) -> Layer:
    with undisturbed(model) as inner:
        stages = _stages(inner, x[:1])
    sizes = list(stages)
    if len(sizes) < 2:
        raise ValueError(
            f'layer="auto" needs feature maps of several sizes, the model has '
            f"{len(sizes)}; name a layer"
        )
    size = sizes[len(sizes) // 2]
    name, module = _outermost(stages[size])
    others = ", ".join(_times(s) for s in sizes)
    reason = f"the end of the middle stage, {_times(size)}, of the model's stages {others}"
    return Layer(name, module, reason)


def _stages(model: nn.Module, x: Tensor) -> dict[tuple[int, ...], list[tuple[str, nn.Module]]]:
    """Modules by the size of the feature map that they give, in the order of their ends."""
    stages: dict[tuple[int, ...], list[tuple[str, nn.Module]]] = {}
    runs: dict[str, int] = {}
    with ExitStack() as stack:
        for name, module in model.named_modules():

            def note(module: nn.Module, _: Any, output: Any, name: str = name) -> None:
                runs[name] = runs.get(name, 0) + 1
                if isinstance(output, Tensor) and output.dim() == x.dim() > 2:
                    size = layout_of(tuple(output.shape[1:]), tuple(x.shape[1:])).spatial
                    if max(size) > 1:
                        stages.setdefault(size, []).append((name, module))

            if name:
                stack.callback(module.register_forward_hook(note).remove)
        with torch.no_grad():
            model(x.clone())
    single = {
        size: [(name, module) for name, module in modules if runs[name] == 1]
        for size, modules in stages.items()
    }
    return {size: modules for size, modules in single.items() if modules}


def _outermost(modules: list[tuple[str, nn.Module]]) -> tuple[str, nn.Module]:
    """The last of the modules with the fewest dots in their names."""
    depth = min(name.count(".") for name, _ in modules)
    return [item for item in modules if item[0].count(".") == depth][-1]


def _times(size: Sequence[int]) -> str:
    return "x".join(map(str, size))


class _Enough(Exception):  # noqa: N818
    """Leaves a forward pass once the wanted layers have run."""


def first_tensor(output: Any, name: str) -> Tensor:
    """The features in a layer's output: the output itself, or the first entry of a tuple or
    list.
    """
    value = output[0] if isinstance(output, tuple | list) and output else output
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise TypeError(
            f"layer {name!r} must give a floating-point tensor, got {type(value).__name__}"
        )
    return value


def with_first_tensor(output: Any, value: Tensor) -> Any:
    """The layer's output with ``value`` in the place that ``first_tensor`` reads."""
    if isinstance(output, tuple):
        rest = (value, *output[1:])
        return type(output)(*rest) if hasattr(output, "_fields") else rest
    return [value, *output[1:]] if isinstance(output, list) else value


def capture(model: nn.Module, layers: Sequence[Layer], x: Tensor) -> tuple[list[Tensor], Any]:
    """Runs the model and copies what the layers gave.

    Args:
        model: An undisturbed model.
        layers: The layers to read.
        x: Input batch ``(N, ...)``; the model gets a copy, on which it may work in place.

    Returns:
        The layers' features ``(N, ...)``, copied because a later layer may work in place, and the
        output.

    Raises:
        ValueError: A layer did not run in the forward pass, or ran more than once.
    """
    return _read(model, layers, x, stop=False)


def features_of(model: nn.Module, layers: Sequence[Layer], x: Tensor) -> list[Tensor]:
    """Like :func:`capture`, but leaves the forward pass once the last of the layers has run."""
    return _read(model, layers, x, stop=True)[0]


def _read(
    model: nn.Module, layers: Sequence[Layer], x: Tensor, *, stop: bool
) -> tuple[list[Tensor], Any]:
    found: list[list[Tensor]] = [[] for _ in layers]
    output = None
    with ExitStack() as stack, torch.no_grad():
        for place, layer in enumerate(layers):

            def keep(_: nn.Module, __: Any, out: Any, place: int = place) -> None:
                found[place].append(first_tensor(out, layers[place].name).clone())
                if stop and all(found):
                    raise _Enough

            stack.callback(layer.module.register_forward_hook(keep).remove)
        with suppress(_Enough):
            output = model(x.clone())
    for layer, values in zip(layers, found, strict=True):
        check_runs(layer, len(values))
        check_finite(f"the output of layer {layer.name!r}", values[0])
    return [values[0] for values in found], output


def check_runs(layer: Layer, runs: int) -> None:
    """Raises ``ValueError`` unless the layer ran exactly once."""
    if runs == 0:
        raise ValueError(f"layer {layer.name!r} did not run in the forward pass")
    if runs > 1:
        raise ValueError(
            f"layer {layer.name!r} ran {runs} times in one forward pass; name a layer that runs "
            "once, such as the module around one of its calls"
        )


def check_depends(layer: Layer, objective: Tensor) -> None:
    """Raises ``ValueError`` unless the objective has a gradient."""
    if not objective.requires_grad:
        raise ValueError(
            f"the objective does not depend on layer {layer.name!r}: the model does not use its "
            "output, or cuts off its gradient (by torch.no_grad or detach)"
        )
