"""Where the copies stand in a tensor: side by side in the channels, or along an axis of their own.

Of each copy's ``(N, C, H, W)`` there is one ``(N, E C, H, W)``, copy 0's channels first: there a
convolution is one with E times the groups, a batch normalisation one over E C channels, and pooling
and pointwise functions are unchanged. Flat features are ``(E, N, D)``: there a linear layer is one
batched matrix product.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

__all__ = [
    "NoFormError",
    "Run",
    "Value",
    "as_rows",
    "expect",
    "flat",
    "per_copy_shape",
    "split",
    "to_many",
    "to_maps",
    "to_rows",
]

Layout = Literal["shared", "maps", "rows", "own"]


class Value(NamedTuple):
    """A tensor of E copies.

    Args:
        layout: ``shared``: ``(N, ...)``, the same for all copies; ``maps``: ``(N, E C, ...)``;
            ``rows``: ``(E, N, D)``; ``own``: ``(E, *shape)``, a parameter or buffer of the model.
        data: The tensor.
    """

    layout: Layout
    data: Tensor


@dataclass(frozen=True, slots=True)
class Run:
    """One pass.

    Args:
        copies: E.
        training: Whether the model is in training mode.
        tensors: The tensors of the model.
        alias: Every name of a tensor to the one in ``tensors``.
        streams: The random stream of each copy.
        images_last: Whether maps have the images next to each other in memory.
    """

    copies: int
    training: bool
    tensors: Mapping[str, Tensor]
    alias: Mapping[str, str]
    streams: Sequence[torch.Generator]
    images_last: bool

    def own(self, path: str, name: str) -> Value | None:
        """Tensor ``name`` of the layer at ``path``, if it has it."""
        key = self.alias.get(f"{path}.{name}" if path else name)
        return None if key is None else Value("own", self.tensors[key])

    def count(self, path: str) -> None:
        """Counts a batch of the normalisation at ``path``, if it counts them."""
        if self.training and (count := self.own(path, "num_batches_tracked")) is not None:
            count.data.add_(1)


class NoFormError(Exception):
    """There is no form of this call for several copies at once; the text says what is missing."""


def per_copy_shape(run: Run, value: Value) -> torch.Size:
    """The shape that one copy would see."""
    if value.layout == "maps":
        n, c, *rest = value.data.shape
        return torch.Size((n, c // run.copies, *rest))
    return value.data.shape if value.layout == "shared" else value.data.shape[1:]


def split(run: Run, maps: Value) -> Tensor:
    """``(N, E C, ...)`` as ``(N, E, C, ...)``."""
    n, _, *rest = maps.data.shape
    return maps.data.view(n, run.copies, -1, *rest)


def to_rows(run: Run, value: Value) -> Value:
    """``value``, two axes a copy, as rows ``(E, N, D)``."""
    if value.layout == "shared":
        return Value("rows", value.data.expand(run.copies, *value.data.shape))
    return value


def as_rows(run: Run, features: Tensor) -> Tensor:
    """``(N, E D)`` as ``(E, N, D)``."""
    return features.view(len(features), run.copies, -1).transpose(0, 1)


def to_maps(run: Run, value: Value) -> Value:
    """``value``, three axes a copy or more, as maps ``(N, E C, ...)``."""
    if value.layout == "shared":
        repeats = [1, run.copies] + [1] * (value.data.dim() - 2)
        return Value("maps", value.data.repeat(repeats))
    return value


def to_many(run: Run, value: Value) -> Value:
    """``value`` in the form with one entry a copy."""
    return to_rows(run, value) if value.data.dim() == 2 else to_maps(run, value)


def expect(value: Any, *layouts: Layout) -> Value:
    if not isinstance(value, Value) or value.layout not in layouts:
        seen = value.layout if isinstance(value, Value) else type(value).__name__
        named = {"maps": "feature maps", "rows": "flat features", "own": "a tensor of the model"}
        needs = " or ".join(named.get(layout, "an input") for layout in layouts)
        raise NoFormError(f"needs {needs}, got {named.get(seen, seen)}")
    return value


def flat(own: Value | None) -> Tensor | None:
    """``(E, O, ...)`` as ``(E O, ...)``, which shares memory."""
    return None if own is None else own.data.flatten(0, 1)
