"""The model that learns by local error signals, and what a user does with it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial, wraps
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from addis.train.local._block import Block, OptimizerFactory, UpdateRules, run_stage
from addis.train.local._checks import check_batch
from addis.train.local._heads import LocalLosses
from addis.train.local._memory import MemoryReport, measure_memory
from addis.train.local._schedules import Devices, Schedule, Sequential, Streams
from addis.train.local._split import Piece
from addis.train.local._stats import StepStats
from addis.train.local._trace import evaluating

__all__ = ["LocalModel", "OutputLoss", "Schedulers"]

OutputLoss = Callable[[Tensor, Tensor], Tensor]
_M = TypeVar("_M", bound=Callable[..., Any])


def _when_idle(method: _M) -> _M:
    """A method of a `LocalModel` that waits until no batch is under way."""

    @wraps(method)
    def waiting(self: LocalModel, *args: Any, **kwargs: Any) -> Any:
        self.synchronize()
        return method(self, *args, **kwargs)

    return cast("_M", waiting)


class LocalModel(nn.Module):
    """A model whose blocks learn each by itself; made by `localize`.

    Attributes:
        model: The copy of the user's model that is being trained.
        heads: One a block, in order; none of the output layer.
        blocks: Names of the blocks and, last, of the output layer.
    """

    def __init__(
        self,
        model: nn.Module,
        pieces: Sequence[Piece],
        eval_pieces: Sequence[Piece],
        heads: nn.ModuleList,
        sample: Sequence[int],
        *,
        num_classes: int,
        output_loss: OutputLoss,
        output_weight: float,
        optimizer: OptimizerFactory,
        rules: UpdateRules,
        detach: bool,
        schedule: Schedule,
        devices: tuple[torch.device, ...],
    ) -> None:
        super().__init__()
        self.model = model
        self.heads = heads
        self.blocks = tuple(piece.name for piece in pieces)
        self.num_classes = num_classes
        self.output_loss = output_loss
        self._sample = tuple(sample)
        self._learns_classes = output_loss is F.cross_entropy
        self._detach, self._schedule, self._devices = detach, schedule, devices
        self._eval_pieces = eval_pieces
        if devices:
            _place(model, pieces, heads, devices)
        if rules.process_group is not None:
            for tensor in self.state_dict().values():
                dist.broadcast(tensor, group_src=0, group=rules.process_group)
        losses: list[Callable[..., LocalLosses]] = [*heads, partial(_output_losses, output_loss)]
        weights = [1.0] * len(heads) + [output_weight]
        self._blocks = [
            Block(piece, model, head, weight=weight, optimizer=optimizer, rules=rules)
            for piece, head, weight in zip(pieces, losses, weights, strict=True)
        ]
        self._runner: Sequential | Streams | Devices | None = None
        self._ready()
        self.register_state_dict_pre_hook(_synchronized)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_synchronized)  # type: ignore[no-untyped-call]

    def train_step(self, x: Tensor, y: Tensor) -> StepStats:
        """One batch: every block computes features, loss, gradient and update, in this order.

        A block's features go on as they were before its update, detached. Nothing waits for the
        device.

        Args:
            x: ``(n, ...)`` of the example's shape.
            y: Class numbers ``(n,)``, or soft labels ``(n, K)``, or what ``output_loss`` and the
                heads take.

        Returns:
            The losses of each block. With ``schedule="devices"`` the batch may still be under way;
            reading them waits.

        Raises:
            RuntimeError: In evaluation mode, or without gradients.
            ValueError: A shape or a class number that does not fit, or a batch of one with
                BatchNorm.
            TypeError: Labels of another kind.
        """
        if not self.training:
            raise RuntimeError("train_step needs training mode: call .train() first")
        if not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
            raise RuntimeError("train_step needs gradients: leave no_grad and inference_mode first")
        check_batch(
            self.model, x, y if self._learns_classes else None, self._sample, self.num_classes
        )
        values = {self._blocks[0].piece.body.inputs[0]: x.detach()}
        results = self._ready().step(values, y)
        return StepStats(self.blocks, y, results, soft=self._learns_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of ``x (n, ...)``: the user's model alone, without heads or updates."""
        self.synchronize()
        if not self._devices:
            logits: Tensor = self.model(x)
            return logits
        return self._features(x)[-1]

    # As of any module, once no batch is under way.
    train = _when_idle(nn.Module.train)
    apply = _when_idle(nn.Module.apply)
    requires_grad_ = _when_idle(nn.Module.requires_grad_)
    zero_grad = _when_idle(nn.Module.zero_grad)
    _apply = _when_idle(nn.Module._apply)

    def exits(self, x: Tensor) -> tuple[Tensor, ...]:
        """Logits ``(n, K)`` of the decoder at every block and, last, of the output: early exits.

        Raises:
            RuntimeError: The heads have no decoder of classes (the sim and bpf losses).
        """
        decoders = [getattr(head, "pred", None) for head in self.heads]
        if any(decoder is None or decoder.projection is not None for decoder in decoders):
            raise RuntimeError("exits need loss='pred' or 'predsim', whose heads decode classes")
        self.synchronize()
        *hidden, logits = self._features(x)
        return (
            *(d.logits(h) for d, h in zip(decoders, hidden, strict=True) if d is not None),
            logits,
        )

    def features(self, x: Tensor) -> dict[str, Tensor]:
        """What every block hands to its loss, by name, and the logits by the output layer's."""
        self.synchronize()
        return dict(zip(self.blocks, self._features(x), strict=True))

    def inference(self) -> nn.Module:
        """A copy of the trained model in evaluation mode: the user's class and keys, no heads."""
        self.synchronize()
        trained = copy.deepcopy(self.model).eval()
        trained.zero_grad(set_to_none=True)
        if self._devices:
            trained.to(self._devices[0])
        return trained

    @property
    def lr(self) -> float:
        """Learning rate of the first block's first group."""
        rate: float = self._blocks[0].optimizer.param_groups[0]["lr"]
        return rate

    def error(self, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
        """Fraction in ``[0, 1]`` of samples that the whole network gets wrong, in evaluation mode.

        Afterwards every module has the mode that it had.

        Args:
            batches: ``(x, y)`` with class numbers ``(n,)``.

        Raises:
            ValueError: No batch.
        """
        with evaluating(self), torch.no_grad():
            wrong = [(self(x).argmax(1) != y).float() for x, y in batches]
        if not wrong:
            raise ValueError("batches must hold at least one")
        return float(torch.cat(wrong).mean())

    def set_lr(self, lr: float) -> None:
        """Sets the learning rate of every block's optimizer, in all its groups.

        Raises:
            ValueError: ``lr`` is negative.
        """
        if not lr >= 0:
            raise ValueError(f"lr must be >= 0, got {lr}")
        self.synchronize()
        for block in self._blocks:
            for group in block.optimizer.param_groups:
                group["lr"] = lr

    def schedulers(
        self, factory: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]
    ) -> Schedulers:
        """One learning-rate scheduler a block; ``step()`` steps them all."""
        self.synchronize()
        return Schedulers(self, [factory(block.optimizer) for block in self._blocks])

    def optim_state(self) -> list[dict[str, Any]]:
        """State of the blocks' optimizers, in order; the rest is in ``state_dict()``."""
        self.synchronize()
        return [block.state() for block in self._blocks]

    def load_optim_state(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Takes what `optim_state` gave.

        Raises:
            ValueError: Another number of blocks.
        """
        if len(state) != len(self._blocks):
            raise ValueError(f"state must be of {len(self._blocks)} blocks, got {len(state)}")
        self.synchronize()
        for block, one in zip(self._blocks, state, strict=True):
            block.load_state(one)

    def memory_report(self, x: Tensor, y: Tensor) -> MemoryReport:
        """Bytes kept for backward by back-propagation, checkpointing and this; changes nothing."""
        self.synchronize()
        return measure_memory(self.model, self._blocks, self.output_loss, x, y, detach=self._detach)

    def synchronize(self) -> None:
        """Waits until no batch is under way.

        Raises:
            Exception: Whatever a block of ``schedule="devices"`` raised, of the first batch that
                failed.
        """
        if self._runner is not None:
            self._runner.synchronize()

    def _ready(self) -> Sequential | Streams | Devices:
        if self._runner is None:
            if self._schedule == "devices":
                self._runner = Devices(self.model, self._blocks, self._devices)
            elif self._schedule == "streams":
                self._runner = Streams(self.model, self._blocks)
            else:
                self._runner = Sequential(self.model, self._blocks, detach=self._detach)
        return self._runner

    def _features(self, x: Tensor) -> list[Tensor]:
        pieces = [b.piece for b in self._blocks] if self.training else self._eval_pieces
        values: dict[str, Any] = {pieces[0].body.inputs[0]: x}
        found = []
        for piece, block in zip(pieces, self._blocks, strict=True):
            device = block.parameters[0].device
            values = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in values.items()}
            run_stage(piece.glue, self.model, values)
            run_stage(piece.body, self.model, values)
            found.append(values[piece.features])
        return found

    def __getstate__(self) -> dict[str, Any]:
        """Without the workers of a schedule, which no copy can share."""
        self.synchronize()
        return {**self.__dict__, "_runner": None}


def _synchronized(model: LocalModel, *_: Any) -> None:
    model.synchronize()


class Schedulers:
    """The learning-rate schedulers of all blocks as one."""

    def __init__(
        self, local: LocalModel, each: Sequence[torch.optim.lr_scheduler.LRScheduler]
    ) -> None:
        self._local, self._each = local, tuple(each)

    def step(self) -> None:
        """Steps every scheduler, after the batches under way."""
        self._local.synchronize()
        for scheduler in self._each:
            scheduler.step()

    def state_dict(self) -> list[dict[str, Any]]:
        """State of each scheduler, in order."""
        return [scheduler.state_dict() for scheduler in self._each]

    def load_state_dict(self, state: Sequence[dict[str, Any]]) -> None:
        """Takes what `state_dict` gave."""
        for scheduler, one in zip(self._each, state, strict=True):
            scheduler.load_state_dict(one)


def _output_losses(loss: OutputLoss, logits: Tensor, y: Tensor, x: Tensor | None) -> LocalLosses:
    total = loss(logits, y)
    return LocalLosses(total, pred=total, logits=logits)


def _place(
    model: nn.Module, pieces: Sequence[Piece], heads: nn.ModuleList, devices: Sequence[torch.device]
) -> None:
    """Moves runs of consecutive blocks, of nearly equal length, to their devices."""
    for i, piece in enumerate(pieces):
        device = devices[i * len(devices) // len(pieces)]
        for name in piece.modules:
            model.get_submodule(name).to(device)
        for name in piece.tensors:
            path, _, attribute = name.rpartition(".")
            owner = model.get_submodule(path)
            tensor = getattr(owner, attribute)
            if isinstance(tensor, nn.Parameter):
                tensor.data = tensor.data.to(device)
            else:
                setattr(owner, attribute, tensor.to(device))
        if i < len(heads):
            heads[i].to(device)
