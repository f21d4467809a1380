"""Local error signals: every block of a model learns from a loss of its own.

Paper: A. Nøkland, L. H. Eidnes, "Training Neural Networks with Local Error Signals", ICML 2019,
arXiv:1901.06656.
Departures: the output layer keeps the model's initial weights, where the authors' code starts it at
zero; losses read a block before dropout and pooling always; in evaluation no local loss is
computed; nothing waits for the device within a step.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from addis.methods import Method
from addis.train.local._block import OptimizerFactory, UpdateRules
from addis.train.local._heads import (
    BETA,
    LocalHead,
    Loss,
    Reconstruction,
    Unsupervised,
    local_head,
)
from addis.train.local._model import LocalModel, OutputLoss
from addis.train.local._schedules import Schedule
from addis.train.local._shape import BlockShape
from addis.train.local._split import Blocks, Piece, split
from addis.train.local._trace import UnsupportedModelError, evaluating

__all__ = ["METHOD", "localize"]

METHOD = Method(
    name="local-errors",
    verb="train",
    title="Training Neural Networks with Local Error Signals",
    arxiv="1901.06656",
    study="24",
    venue="ICML 2019",
    summary="Trains each block of a model on a loss of its own, without a global backward pass.",
)

DEFAULT_OPTIMIZER: Final[OptimizerFactory] = partial(torch.optim.Adam, lr=5e-4, fused=True)
HeadFactory = Callable[[BlockShape], nn.Module]


def localize(
    model: nn.Module,
    example: Tensor,
    *,
    loss: Loss | HeadFactory = "predsim",
    num_classes: int | None = None,
    beta: float | None = None,
    blocks: Blocks = "auto",
    dim_in_decoder: int = 4096,
    target_dim: int = 128,
    unsupervised: Unsupervised | None = None,
    alpha: float = 0.0,
    output_loss: OutputLoss = F.cross_entropy,
    optimizer: OptimizerFactory = DEFAULT_OPTIMIZER,
    rules: UpdateRules | None = None,
    detach: bool = True,
    schedule: Schedule = "sequential",
    devices: Sequence[str | torch.device] = (),
    generator: torch.Generator | None = None,
) -> LocalModel:
    """Gives every block of a copy of a model a loss and an optimizer of its own.

    The model itself is left as it is; `LocalModel.inference` returns a trained module of the same
    class and keys.

    Example:
        >>> from addis.models import mlp
        >>> x, y = torch.rand(8, 1, 4, 4), torch.arange(8) % 3
        >>> net = mlp(3, image_size=4, width=12, depth=2)
        >>> local = localize(net, x, loss="predsim", num_classes=3)
        >>> stats = local.train_step(x, y)
        >>> stats.losses.shape, local.inference()(x).shape
        (torch.Size([3]), torch.Size([8, 3]))

    Args:
        model: Any module from one tensor to one tensor that `torch.fx` can trace. One in training
            mode keeps modules in evaluation mode so, such as a frozen norm.
        example: A batch ``(n, ...)`` like those to train on, on the model's device. Heads are built
            for its shape.
        loss: The local loss, or a function that makes a head from a `BlockShape`: a module whose
            ``forward(h, y, x)`` returns `LocalLosses`.
        num_classes: ``K``, at most the width of the model's output; ``None`` takes that.
        beta: Weight of sim beside pred in ``[0, 1]``; ``None`` means 0.99, and 0.01 for
            ``"predsim-bpf"``.
        blocks: Where to cut, see `split`.
        dim_in_decoder: Most inputs of a pred decoder. The paper takes 4096, 2048 for VGG8B on
            32x32, 1024 on 28x28.
        target_dim: ``T`` of the bpf losses.
        unsupervised: A loss towards the block's input beside the others.
        alpha: Its weight in ``[0, 1]``; the paper's runs take 0.
        output_loss: Loss of the output layer, a mean over the batch. In the predsim losses it is
            multiplied by ``1 - β``, which matters to SGD and hardly to Adam.
        optimizer: Makes a block's optimizer from the list of its parameters and its head's. Give
            weight decay to some by their shape: ``lambda p: SGD([{"params": [q for q in p if
            q.dim() > 1], "weight_decay": 5e-4}, ...])``.
        rules: Accumulation, clipping, mixed precision, processes, compilation.
        detach: ``False`` lets gradients through from block to block: deep supervision with the same
            heads.
        schedule: ``"sequential"``, ``"streams"`` (one CUDA device) or ``"devices"``.
        devices: For ``"devices"``: runs of consecutive blocks of nearly equal length are moved to
            them. Not with a process group.
        generator: CPU source of the heads' initial weights. ``None`` means torch's default.

    Raises:
        ValueError: An argument outside its range, or a model without blocks, see `split`.
        UnsupportedModelError: The model cannot be traced or cut.
        RuntimeError: ``schedule="streams"`` without a CUDA device.
    """
    rules = rules or UpdateRules()
    _check_schedule(schedule, devices, detach, rules)
    model = copy.deepcopy(model)
    if not model.training:
        model.train()
    for parameter in model.parameters():
        parameter.grad = None
    pieces = split(model, example, blocks)
    width = pieces[-1].shape.shape[-1]
    if num_classes is None:
        num_classes = width
    if output_loss is F.cross_entropy and num_classes > width:
        raise ValueError(f"num_classes must be at most the model's {width}, got {num_classes}")
    common: dict[str, Any] = {
        "num_classes": num_classes,
        "beta": beta,
        "dim_in_decoder": dim_in_decoder,
        "target_dim": target_dim,
        "alpha": alpha,
        "generator": generator,
    }
    heads = nn.ModuleList()
    for piece in pieces[:-1]:
        if isinstance(loss, str):
            heads.append(_head(piece, loss, unsupervised, first=not heads, common=common))
        else:
            heads.append(loss(piece.shape))
    heads.to(next(model.parameters()).device, next(model.parameters()).dtype)
    factor = 1.0
    if isinstance(loss, str) and loss in BETA:
        factor = 1 - (BETA[loss] if beta is None else beta)
    return LocalModel(
        model,
        pieces,
        _in_evaluation(model, example, blocks, pieces),
        heads,
        example.shape[1:],
        num_classes=num_classes,
        output_loss=output_loss,
        output_weight=factor,
        optimizer=optimizer,
        rules=rules,
        detach=detach,
        schedule=schedule,
        devices=tuple(map(torch.device, devices)),
    )


def _check_schedule(
    schedule: str, devices: Sequence[str | torch.device], detach: bool, rules: UpdateRules
) -> None:
    if schedule not in ("sequential", "streams", "devices"):
        raise ValueError(f"schedule must be 'sequential', 'streams' or 'devices', got {schedule!r}")
    if (schedule == "devices") != bool(devices):
        raise ValueError(f"schedule={schedule!r} does not go with devices={list(devices)}")
    if not detach and schedule != "sequential":
        raise ValueError(f"detach=False needs schedule='sequential', got {schedule!r}")
    if schedule == "devices" and rules.process_group is not None:
        raise ValueError(
            "schedule='devices' does not go with a process_group: its workers would send their "
            "gradients in another order in each process"
        )


def _head(
    piece: Piece,
    loss: Loss,
    unsupervised: Unsupervised | None,
    *,
    first: bool,
    common: Mapping[str, Any],
) -> LocalHead:
    if unsupervised not in (None, "sim", "reconstruction"):
        raise ValueError(
            f"unsupervised must be 'sim', 'reconstruction' or None, got {unsupervised!r}"
        )
    part: Any = unsupervised
    if unsupervised == "reconstruction":
        part = None  # the first block does not learn to decode pixels, as in the authors' code
        if not first and piece.input_shape is not None:
            part = Reconstruction(
                piece.shape,
                piece.input_shape,
                activation=piece.activation,
                generator=common["generator"],
            )
    return local_head(loss, piece.shape, unsupervised=part, **common)


def _in_evaluation(
    model: nn.Module, example: Tensor, blocks: Blocks, pieces: Sequence[Piece]
) -> tuple[Piece, ...]:
    """The same blocks in evaluation mode, for models that ask for ``self.training``."""
    with evaluating(model):
        found = split(model, example, blocks)
    if [piece.name for piece in found] != [piece.name for piece in pieces]:
        raise UnsupportedModelError(
            f"{type(model).__name__} has other blocks in evaluation than in training mode"
        )
    return found
