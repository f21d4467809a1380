"""Small things asked of Lightning Fabric, which is imported on first use: it takes a second."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["device_of", "gather", "on_device_of", "share_buffers"]


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's first parameter or buffer; the CPU if it has none."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def on_device_of(model: nn.Module) -> Fabric:
    """One process on the device where the model is, in full precision."""
    from lightning_fabric import Fabric

    device = device_of(model)
    if device.type == "meta":
        raise ValueError("model is on the meta device: give it memory, or set it up with a fabric")
    devices = 1 if device.type in ("cpu", "mps") else [device.index or 0]
    return Fabric(accelerator=device.type, devices=devices)


def share_buffers(model: nn.Module, fabric: Fabric) -> None:
    """Gives every process the buffers of the first, as each has seen other samples."""
    if fabric.world_size > 1:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, 0)


def gather(value: Any, fabric: Fabric) -> list[Any]:
    """The value of every process, in order."""
    if fabric.world_size == 1:
        return [value]
    values: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(values, value)
    return values
