"""The models by name: which there are, what is known of each, and how one is made."""

from __future__ import annotations

import os
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from addis.models import _foreign, _weights
from addis.models._layers import Device
from addis.models._table import MODELS, Entry, ModelInfo, Pretrained

__all__ = ["create", "info", "names"]


def names(pattern: str = "*") -> list[str]:
    """Lists the models whose names match a pattern.

    Args:
        pattern: A name with the wildcards ``*``, ``?`` and ``[...]``. ``timm/...`` and
            ``torchvision/...`` list those libraries' models, and import them; any other pattern
            lists this library's own and imports neither.

    Returns:
        Names in alphabetical order; empty if none matches.

    Example:
        >>> names("cifar10_resnet[23]*")
        ['cifar10_resnet20', 'cifar10_resnet32']
    """
    library, slash, rest = pattern.partition("/")
    if slash and library in _foreign.LIBRARIES:
        known = _foreign.LIBRARIES[library].names()
        return sorted(f"{library}/{name}" for name in known if fnmatchcase(name, rest))
    return sorted(name for name in MODELS if fnmatchcase(name, pattern))


def info(name: str) -> ModelInfo:
    """Tells what is known of a model, without memory for its parameters and without a network.

    Args:
        name: A name of :func:`names`: of this library, of timm (``timm/resnet50``) or of
            torchvision.

    Returns:
        The record of the model.

    Raises:
        ValueError: There is no such model, or its library does not say what images it takes.

    Example:
        >>> record = info("cifar10_resnet20")
        >>> record.parameters, record.accuracy
        (269722, 0.9173)
    """
    library, slash, rest = name.partition("/")
    if slash and library in _foreign.LIBRARIES:
        return _foreign.LIBRARIES[library].info(rest)
    return _own_info(name)


@cache
def _own_info(name: str) -> ModelInfo:
    entry = _entry(name)
    channels = entry.input_size[0]
    known = entry.pretrained
    return ModelInfo(
        name=name,
        title=entry.title,
        paper=entry.paper,
        parameters=_foreign.count_parameters(entry.factory),
        input_size=entry.input_size,
        mean=known.mean if known else (0.0,) * channels,
        std=known.std if known else (1.0,) * channels,
        num_classes=entry.num_classes,
        accuracy=known.accuracy if known else None,
        accuracy_on=known.accuracy_on if known else "",
        weights=known.file if known else None,
        source=known.source if known else "",
    )


def create(
    name: str,
    *,
    num_classes: int | None = None,
    pretrained: bool = False,
    weights: str | os.PathLike[str] | None = None,
    device: Device = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> nn.Module:
    """Makes a model by name, in training mode.

    Weights start from torch's global random generator, unless they are loaded.

    Args:
        name: A name of :func:`names`, ``timm/NAME``, ``torchvision/NAME``, or ``module:factory``,
            which imports the module and calls the factory (and so runs that code).
        num_classes: Classes ``K``; ``None`` means the factory's default.
        pretrained: Whether to load the published weights: of this library from the folder
            ``weights`` in the folder that the environment variable ``ADDIS_DATA`` names, of timm
            and torchvision by their own loaders. With another ``num_classes`` the classifier starts
            anew and the rest is loaded; torchvision refuses that.
        weights: A file to load instead, strictly; see :func:`load_weights`.
        device: Device of the parameters.
        dtype: Floating-point type of the parameters.
        **options: Further arguments of the factory, such as ``in_channels``, ``width``,
            ``dropout``, ``activation``.

    Returns:
        The model, from images ``(N, C, H, W)`` to logits ``(N, K)``.

    Raises:
        ValueError: No such model or option, with the nearest names; a value that the factory
            refuses; both ``pretrained`` and ``weights``, or ``pretrained`` without published
            weights; weights that do not fit or a file that is unsound.
        TypeError: ``module:factory`` is not a factory or returns no ``nn.Module``.
        FileNotFoundError: The file of weights is not there.
        RuntimeError: The pretrained weights of timm or torchvision could not be had.

    Example:
        >>> net = create("vgg8b", num_classes=10, in_channels=1, image_size=28, width=0.125)
        >>> net(torch.rand(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """
    if pretrained and weights is not None:
        raise ValueError("give pretrained=True or weights=, not both")
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating-point type, got {dtype}")
    if num_classes is not None:
        options["num_classes"] = num_classes
    library, slash, rest = name.partition("/")
    if slash and library in _foreign.LIBRARIES:
        model = _foreign.LIBRARIES[library].build(rest, pretrained=pretrained, options=options)
        model = model.to(device=device, dtype=dtype)
    elif ":" in name:
        if pretrained:
            raise ValueError(f"{name} has no published weights; give weights=PATH")
        model = _foreign.user_model(name, options).to(device=device, dtype=dtype)
    else:
        model = _own_model(name, pretrained, options | {"device": device, "dtype": dtype})
    if weights is not None:
        _weights.load_weights(model, weights)
    return model


def _own_model(name: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    entry = _entry(name)
    model = _foreign.call_factory(name, entry.factory, options)
    if pretrained:
        if entry.pretrained is None:
            having = ", ".join(n for n, e in sorted(MODELS.items()) if e.pretrained)
            raise ValueError(f"model {name!r} has no published weights; these have: {having}")
        new_head = options.get("num_classes", entry.num_classes) != entry.num_classes
        _load_pretrained(model, entry.pretrained, name, new_head=new_head)
    return model


def _load_pretrained(model: nn.Module, known: Pretrained, name: str, *, new_head: bool) -> None:
    root = os.environ.get("ADDIS_DATA")
    path = Path(root or ".") / "weights" / known.file
    if not root or not path.is_file():
        where = f"there is no {path}" if root else "the environment variable ADDIS_DATA is not set"
        raise FileNotFoundError(
            f"pretrained weights of {name!r}: {where}. ADDIS_DATA names a folder with "
            f"weights/{known.file} in it; source of the file: {known.source}. "
            "A file elsewhere is loaded with weights=PATH."
        )
    state = _weights.read_weights(path)
    if new_head:
        own = model.state_dict()
        state |= {key: own[key] for key in own if key.startswith(known.head)}
    _weights.assign(model, state, str(path))


def _entry(name: str) -> Entry:
    if name not in MODELS:
        near = _foreign.close(name, MODELS) or "; addis.models.names() lists them"
        raise ValueError(
            f"no model {name!r}{near} (others: timm/NAME, torchvision/NAME, module:factory)"
        )
    return MODELS[name]
