"""One block at work: forward from detached values, its own loss, backward, step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from addis.nn import Winograd
from addis.train.local._heads import LocalLosses
from addis.train.local._split import Piece
from addis.train.local._stage import Stage

__all__ = ["Block", "BlockResult", "UpdateRules", "run_stage"]

OptimizerFactory = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateRules:
    """How every block turns its loss into an update.

    Args:
        accumulate: Calls of ``train_step`` that share one update; their mean gradient is taken. A
            block whose loss, backward or update fails forgets its gradients and counts anew, with
            ``detach=False`` all do; otherwise the blocks before it have learned from the batch.
        clip_norm: Largest norm of a block's gradient; each block is clipped by itself. ``None``
            clips nothing.
        autocast: Data type of automatic mixed precision, ``torch.bfloat16`` or ``torch.float16``
            (whose losses are scaled, one scale a block, or one for all with ``detach=False``);
            ``None`` computes in the parameters' type.
        process_group: Group of processes whose gradients are averaged, each block's right after its
            backward, in one message. ``None`` averages nothing. Statistics of BatchNorm and the
            pairs of the sim losses stay local.
        compile: Compile each block and its head with `torch.compile`.
        winograd: On a CPU run wide 3x3 convolutions by `addis.nn.Winograd`, in about half the time
            and with about six times the rounding of PyTorch's kernel. Not with ``compile``.

    Raises:
        ValueError: A number out of range, or another ``autocast``.
    """

    accumulate: int = 1
    clip_norm: float | None = None
    autocast: torch.dtype | None = None
    process_group: dist.ProcessGroup | None = None
    compile: bool = False
    winograd: bool = True

    def __post_init__(self) -> None:
        if self.accumulate < 1:
            raise ValueError(f"accumulate must be >= 1, got {self.accumulate}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm must be > 0 or None, got {self.clip_norm}")
        if self.autocast not in (None, torch.bfloat16, torch.float16):
            raise ValueError(f"autocast must be bfloat16, float16 or None, got {self.autocast}")


class BlockResult(NamedTuple):
    """A block's losses of one batch, detached; the logits only of a decoder of classes."""

    total: Tensor
    pred: Tensor | None
    sim: Tensor | None
    logits: Tensor | None


Values = dict[str, Any]


def run_stage(stage: Stage, model: nn.Module, values: Values) -> None:
    """Runs a stage on the values by name, adds what it gives, drops what nothing needs any more."""
    inputs = [values[n].clone() if n in stage.copied else values[n] for n in stage.inputs]
    for name in stage.spent:
        del values[name]
    values.update(zip(stage.outputs, stage.run(model, *inputs), strict=True))


class Block:
    """A piece of the model with its head and its optimizer.

    Args:
        piece: The piece.
        model: The model it is of.
        head: Called as ``head(h, y, x)`` for `LocalLosses`.
        weight: Factor of the loss before backward; the recorded losses are without it.
        optimizer: Factory of the optimizer.
        rules: How to update.

    Raises:
        ValueError: The optimizer does not hold just the block's parameters.
    """

    def __init__(
        self,
        piece: Piece,
        model: nn.Module,
        head: Callable[[Tensor, Tensor, Tensor | None], LocalLosses],
        *,
        weight: float,
        optimizer: OptimizerFactory,
        rules: UpdateRules,
    ) -> None:
        self.piece, self.head, self.weight, self.rules = piece, head, weight, rules
        by_name = dict(model.named_parameters(remove_duplicate=False))
        trained = [by_name[name] for name in piece.parameters]
        if isinstance(head, nn.Module):
            trained += [p for p in head.parameters() if p.requires_grad]
        self.parameters: list[nn.Parameter] = list(dict.fromkeys(trained))
        self.optimizer = optimizer(self.parameters)
        self.scaler = torch.amp.GradScaler(enabled=False)
        if rules.autocast is torch.float16:
            self.scaler = torch.amp.GradScaler(self.parameters[0].device.type)
        self.rescales = True
        held = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        if held != {id(p) for p in self.parameters}:
            raise ValueError(
                "optimizer must be a factory that takes the parameters it is given; for block "
                f"{piece.name!r} it holds {len(held)} tensors, not the {len(self.parameters)} given"
            )
        self.calls = 0
        compiled: Callable[..., Any] = torch.compile if rules.compile else lambda f: f
        self._body = compiled(piece.body.run)
        self._loss = compiled(head)

    def forward(
        self, model: nn.Module, values: Values, *, detach: bool = True
    ) -> tuple[Tensor, Any]:
        """Runs the glue before the block, without gradient, and the block.

        Args:
            model: The model.
            values: What passes between the blocks, by name; changed to what passes on, detached.
            detach: ``False`` keeps the graph through glue and values: deep supervision.

        Returns:
            The features that the loss reads, and the block's input.
        """
        with self._kernels(values):
            with torch.set_grad_enabled(not detach):
                run_stage(self.piece.glue, model, values)
            stage = self.piece.body
            inputs = [values[n].clone() if n in stage.copied else values[n] for n in stage.inputs]
            for name in stage.spent:
                del values[name]
            found = dict(zip(stage.outputs, self._body(model, *inputs), strict=True))
        features: Tensor = found[self.piece.features]
        if detach:
            found = {k: v.detach() if isinstance(v, Tensor) else v for k, v in found.items()}
        values.update(found)
        return features, inputs[0] if inputs else None

    def loss(self, h: Tensor, x: Tensor | None, y: Tensor) -> tuple[Tensor, BlockResult]:
        """The loss to minimise, with the block's weight, and the record of it."""
        with self._kernels({"h": h}):
            losses = self._loss(h, y, x)
        record = (losses.pred, losses.sim, losses.logits)
        detached = BlockResult(
            losses.total.detach(), *(None if t is None else t.detach() for t in record)
        )
        return losses.total if self.weight == 1 else losses.total * self.weight, detached

    def learn(self, h: Tensor, x: Tensor | None, y: Tensor) -> BlockResult:
        """Loss, backward and, at every ``accumulate``-th call, the update."""
        try:
            loss, result = self.loss(h, x, y)
            self.backward(loss)
            self.update()
        except BaseException:
            self.forget()
            raise
        return result

    def forget(self) -> None:
        """Clears the gradients of what is accumulated so far, and counts anew."""
        self.optimizer.zero_grad(set_to_none=True)
        self.calls = 0

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of a loss."""
        if self.rules.accumulate > 1:
            loss = loss / self.rules.accumulate
        torch.autograd.backward(self.scaler.scale(loss))

    def update(self) -> None:
        """Averages over processes, clips, steps and clears, if the accumulation is full."""
        self.calls += 1
        if self.calls % self.rules.accumulate:
            return
        if self.rules.process_group is not None:
            _average(self.parameters, self.rules.process_group)
        if self.rules.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.parameters, self.rules.clip_norm)
        self.scaler.step(self.optimizer)
        if self.rescales:
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Any]:
        """Of the optimizer, the loss scale and the accumulation: its calls and their gradients."""
        calls = self.calls % self.rules.accumulate
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "calls": calls,
            "gradients": [p.grad for p in self.parameters] if calls else None,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes what `state` gave.

        Raises:
            ValueError: The state is from within an accumulation and has no gradients, or is of
                another ``accumulate``.
        """
        calls = state["calls"] % self.rules.accumulate
        gradients = state.get("gradients")
        if bool(calls) != (gradients is not None):
            found = "no gradients" if gradients is None else "gradients"
            raise ValueError(
                f"state of block {self.piece.name!r} has {found} after {state['calls']} calls, "
                f"which does not fit accumulate={self.rules.accumulate}; take it between two "
                "updates with the same accumulate, or after an update"
            )
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.calls = calls
        for p, gradient in zip(
            self.parameters, gradients or [None] * len(self.parameters), strict=True
        ):
            _set_gradient(p, gradient)

    def _kernels(self, values: Mapping[str, Any]) -> contextlib.AbstractContextManager[object]:
        device = next(v.device.type for v in values.values() if isinstance(v, Tensor))
        if self.rules.autocast is not None:
            return torch.autocast(device, self.rules.autocast)
        if self.rules.winograd and not self.rules.compile and device == "cpu":
            return Winograd()
        return contextlib.nullcontext()


def _average(parameters: Sequence[nn.Parameter], group: dist.ProcessGroup) -> None:
    """Replaces the gradients by their mean over the group, in one message a data type."""
    for dtype in {p.dtype for p in parameters}:
        same = [p for p in parameters if p.dtype == dtype]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in same]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat, group=group)
        flat /= dist.get_world_size(group)
        for p, part in zip(same, torch.split(flat, [p.numel() for p in same]), strict=True):
            _set_gradient(p, part.view_as(p))


def _set_gradient(p: nn.Parameter, gradient: Tensor | None) -> None:
    """Copies a gradient in the memory layout of ``p``: fused optimizers pay no heed to strides."""
    p.grad = None if gradient is None else torch.empty_like(p).copy_(gradient)
