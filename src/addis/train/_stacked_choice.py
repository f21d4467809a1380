"""In which form a stack of models runs: grouped, vmap, or a loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from addis.train._stacked_block import has_kernels
from addis.train._stacked_fuse import has_blocks
from addis.train._stacked_plan import trace, why_not_grouped
from addis.train._stacked_state import other_attribute
from addis.train._stacked_widths import why_not_packed

__all__ = ["Backend", "choose", "runs_in_blocks"]

Backend = Literal["grouped", "vmap", "loop"]

_WIDEST_MEAN = 25
"""Mean input channels of the convolutions above which a loop is quicker on a CPU: a step took 0.94
of the loop's at 24 (``preact_resnet18(8)``), 1.03 at 29 (``cnn5(16)``), 1.15 at 32 (ResNet-20).
"""


def choose(
    models: Sequence[nn.Module], backend: str, device: torch.device, several: bool
) -> Backend:
    """The backend, after a check that the models have it; ``several``: of several widths."""
    if backend not in ("auto", "grouped", "vmap", "loop"):
        raise ValueError(f"backend must be auto, grouped, vmap or loop, got {backend!r}")
    if several and backend in ("vmap", "loop"):
        raise ValueError(f"models of several widths need backend='grouped', got {backend!r}")
    if backend == "loop" or (backend == "auto" and len(models) == 1):
        return "loop"
    if not several and (difference := other_attribute(models)) is not None:
        if backend == "auto":
            return "loop"
        raise ValueError(f'{difference}; pass backend="loop", which runs each copy by itself')
    if backend == "vmap":
        return "vmap"
    reason = why_not_grouped(models[0])
    if several:
        reason = reason or why_not_packed(models)
        if reason is not None:
            raise ValueError(f"models of several widths cannot be stacked: {reason}")
    if reason is None and backend == "auto" and not several and device.type == "cpu":
        return "loop" if _mean_width(models[0]) > _WIDEST_MEAN else "grouped"
    if reason is None:
        return "grouped"
    if backend == "grouped":
        raise ValueError(f'{reason}; pass backend="vmap" or backend="loop", which take any layer')
    return "loop" if device.type == "cpu" else "vmap"


def runs_in_blocks(model: nn.Module) -> bool:
    """Whether the kernels of addis take ``model``, and are there."""
    tensors = (*model.parameters(), *model.buffers())
    kinds = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    return len(kinds) == 1 and has_blocks(model, trace(model)) and has_kernels(kinds.pop())


def _mean_width(model: nn.Module) -> float:
    """Mean input channels of the convolutions of ``model``; 0 without any."""
    convolutions = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    widths = [m.in_channels // m.groups for m in model.modules() if isinstance(m, convolutions)]
    return sum(widths) / max(1, len(widths))
