"""Models from elsewhere: timm, torchvision, and a user's own factory named ``module:factory``.

The two libraries are imported when one of their models is asked for. ``pretrained=True`` goes
through their own loaders.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from types import MappingProxyType
from typing import Any, Final, Protocol

import torch
from torch import nn

from addis.models._table import ModelInfo

__all__ = ["LIBRARIES", "Library", "call_factory", "close", "count_parameters", "user_model"]


def _timm_names() -> list[str]:
    import timm

    return list(timm.list_models())


def _timm_build(name: str, *, pretrained: bool, options: Mapping[str, Any]) -> nn.Module:
    """Builds timm's ``name``; the option ``in_channels`` is what timm calls ``in_chans``."""
    import timm

    _timm_check(name)
    renamed = {("in_chans" if key == "in_channels" else key): v for key, v in options.items()}
    _refuse_loading(f"timm/{name}", timm.create_model, renamed)
    build = partial(timm.create_model, name)
    known = _constructor(timm.models.model_entrypoint(name))
    return _build(f"timm/{name}", build, known, renamed, {"pretrained": True} if pretrained else {})


def _timm_info(name: str) -> ModelInfo:
    import timm

    _timm_check(name)
    known = timm.models.get_pretrained_cfg(name, allow_unregistered=False)
    if known is None:
        raise ValueError(f"timm says nothing of the images that {name!r} takes")
    paper = known.paper_ids or ""
    return ModelInfo(
        name=f"timm/{name}",
        title=name,
        paper=paper if isinstance(paper, str) else ", ".join(paper),
        parameters=count_parameters(partial(timm.create_model, name)),
        input_size=known.input_size,
        mean=tuple(known.mean),
        std=tuple(known.std),
        num_classes=known.num_classes,
        weights=f"{known.architecture}.{known.tag}" if known.has_weights else None,
        source="timm",
    )


def _timm_check(name: str) -> None:
    import timm

    architecture, dot, _ = name.partition(".")
    if not timm.is_model(architecture):
        raise ValueError(f"timm has no model {name!r}{close(architecture, timm.list_models())}")
    known = timm.list_models(f"{architecture}.*", pretrained=True)
    if dot and name not in known:
        raise ValueError(f"timm has no weights {name!r}{close(name, known)}")


def _torchvision_names() -> list[str]:
    from torchvision import models

    return list(models.list_models(module=models))


def _torchvision_build(name: str, *, pretrained: bool, options: Mapping[str, Any]) -> nn.Module:
    """Builds torchvision's ``name``, with its default weights if ``pretrained``."""
    from torchvision import models

    _torchvision_check(name)
    builder = models.get_model_builder(name)
    _refuse_loading(f"torchvision/{name}", builder, options)
    weights = {"weights": "DEFAULT"} if pretrained else {}
    return _build(f"torchvision/{name}", builder, _constructor(builder), options, weights)


def _torchvision_info(name: str) -> ModelInfo:
    from torchvision import models

    _torchvision_check(name)
    known = models.get_model_weights(name).DEFAULT
    images = known.transforms()
    side = images.crop_size[0]
    return ModelInfo(
        name=f"torchvision/{name}",
        title=name,
        paper="",
        parameters=known.meta["num_params"],
        input_size=(3, side, side),
        mean=tuple(images.mean),
        std=tuple(images.std),
        num_classes=len(known.meta["categories"]),
        accuracy=round(known.meta["_metrics"]["ImageNet-1K"]["acc@1"] / 100, 6),
        accuracy_on="ImageNet-1K validation set, as torchvision states",
        weights=str(known),
        source="torchvision",
    )


def _torchvision_check(name: str) -> None:
    known = _torchvision_names()
    if name not in known:
        raise ValueError(f"torchvision has no classifier {name!r}{close(name, known)}")


class Build(Protocol):
    """How a library makes a model."""

    def __call__(self, name: str, *, pretrained: bool, options: Mapping[str, Any]) -> nn.Module:
        """Builds the model ``name``."""


@dataclass(frozen=True, slots=True)
class Library:
    """A library of models: what it has, what it says of one, how it builds one."""

    names: Callable[[], list[str]]
    info: Callable[[str], ModelInfo]
    build: Build


LIBRARIES: Final[Mapping[str, Library]] = MappingProxyType(
    {
        "timm": Library(_timm_names, _timm_info, _timm_build),
        "torchvision": Library(_torchvision_names, _torchvision_info, _torchvision_build),
    }
)


def count_parameters(factory: Callable[[], nn.Module]) -> int:
    """Counts a model's parameters without memory for them."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in factory().parameters())


def _build(
    label: str,
    build: Callable[..., nn.Module],
    known: Sequence[str],
    options: Mapping[str, Any],
    weights: Mapping[str, Any],
) -> nn.Module:
    """Calls a builder whose signature hides the options of the network.

    Args:
        label: The model's name in messages.
        build: The builder, of ``options`` and ``weights``.
        known: The names of the network's options, if they can be told.
        options: The options of the network.
        weights: How the builder is asked for pretrained weights; empty for none.

    Raises:
        ValueError: The network has no such option.
        RuntimeError: The pretrained weights could not be had.
    """
    try:
        return build(**weights, **options)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        option = next((name for name in options if name not in known), ", ".join(options))
        raise ValueError(_no_option(label, option, known)) from error
    except Exception as error:
        # "No network" is an OSError, in some versions of the hub a ValueError as well.
        wrong_value = isinstance(error, ValueError) and not isinstance(error, OSError)
        if not weights or wrong_value:
            raise
        raise RuntimeError(
            f"could not get the pretrained weights of {label} ({type(error).__name__}: {error}). "
            "Without a network, build it with weights=PATH of a file that you have."
        ) from error


def _refuse_loading(label: str, builder: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """What a builder names in its signature is how it loads files, and :func:`create` says that."""
    if taken := [name for name in options if name in inspect.signature(builder).parameters]:
        raise ValueError(
            f"model {label!r} takes no option {taken[0]!r}; files are loaded with "
            "pretrained=True or weights=PATH"
        )


def _constructor(builder: Callable[..., Any]) -> list[str]:
    """The names that the class behind a builder takes, if the builder says which class that is."""
    network = inspect.signature(builder).return_annotation
    if not inspect.isclass(network) or network in (nn.Module, inspect.Signature.empty):
        return []
    return list(inspect.signature(network).parameters)


def _no_option(label: str, option: str, known: Iterable[str]) -> str:
    names = list(known)
    takes = f"; it takes {', '.join(names)}" if names else ""
    return f"model {label!r} has no option {option!r}{close(option, names)}{takes}"


def user_model(name: str, options: Mapping[str, Any]) -> nn.Module:
    """Imports the module before the colon and calls the factory after it: it runs that code.

    Raises:
        ValueError: The module cannot be imported, has no such attribute, or the factory no such
            option.
        TypeError: The attribute is not a factory, or what it returns is not an ``nn.Module``.
    """
    module_name, _, path = name.partition(":")
    if not module_name or not path:
        raise ValueError(f"a model of your own is named module:factory, got {name!r}")
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:
        hint = "; is its folder on PYTHONPATH?" if isinstance(error, ModuleNotFoundError) else ""
        what = f"{type(error).__name__}: {error}"
        raise ValueError(f"{name}: cannot import {module_name!r} ({what}){hint}") from error
    for part in path.split("."):
        if not hasattr(found, part):
            near = close(part, [n for n in dir(found) if not n.startswith("_")])
            raise ValueError(f"{name}: {module_name!r} has no attribute {part!r}{near}")
        found = getattr(found, part)
    if not callable(found) or isinstance(found, nn.Module):
        kind = type(found).__name__
        raise TypeError(f"{name} must be a function or class that builds a model, got a {kind}")
    model = call_factory(name, found, options)
    if not isinstance(model, nn.Module):
        raise TypeError(f"{name} must return an nn.Module, got a {type(model).__name__}")
    return model


def call_factory(
    name: str, factory: Callable[..., nn.Module], options: Mapping[str, Any]
) -> nn.Module:
    """Calls a factory after comparing the options with its signature.

    Raises:
        ValueError: The factory has no parameter of an option's name, or one without a default is
            not given.
    """
    parameters = inspect.signature(factory).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        known = [n for n, p in parameters.items() if p.kind is not p.POSITIONAL_ONLY]
        for option in options:
            if option not in known:
                raise ValueError(_no_option(name, option, known))
    for parameter in parameters.values():
        required = parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        )
        if required and parameter.name not in options:
            raise ValueError(f"model {name!r} needs the option {parameter.name!r}")
    return factory(**options)


def close(name: str, known: Iterable[str]) -> str:
    """``"; did you mean a, b?"`` with the names nearest to ``name``, or nothing."""
    near = get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"; did you mean {', '.join(near)}?" if near else ""
