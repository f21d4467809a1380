"""Runs E copies of a traced model with each layer in its grouped form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from addis.train._stacked_forward import Loss, per_copy, together
from addis.train._stacked_plan import Step, plan
from addis.train._stacked_state import Stack
from addis.train._stacked_value import NoFormError, Run, Value, split

__all__ = ["Grouped"]

_ADVICE = 'pass backend="vmap" or backend="loop", which take any layer'

_FEWEST_IMAGES = 16
"""With fewer the vectors of a block are mostly empty (measured)."""


class Grouped:
    """All copies at once, side by side in the channels.

    Args:
        stack: What to run; its skeleton passes :func:`why_not_grouped`.
        seeds: One for each copy's random stream.
        device: Where the stack is.
        blocks: Whether layers run in blocks where a batch is large enough and nothing casts it; the
            model has them.
    """

    def __init__(
        self, stack: Stack, seeds: Sequence[int], device: torch.device, *, blocks: bool
    ) -> None:
        self._stack, self._blocks = stack, blocks
        self._format = torch.channels_last if device.type == "cpu" else torch.contiguous_format
        self.streams = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        self._plans = {
            (training, joined): plan(stack.skeleton.train(training), blocks=joined)
            for training in (True, False)
            for joined in {blocks, False}
        }

    def outputs(self, x: Tensor, *, training: bool) -> Any:
        stack = self._stack
        casts = torch.is_autocast_enabled(x.device.type)
        blocks = self._blocks and x.shape[1] >= _FEWEST_IMAGES and not casts
        run = Run(stack.copies, training, stack.tensors(), stack.alias, self.streams, blocks)
        env: dict[fx.Node, Any] = {}
        for step in self._plans[training, blocks]:
            env[step.node] = self._value(run, env, step, x)
            if step.node.op == "output":
                return env[step.node]
            for node in step.spent:
                del env[node]
        raise RuntimeError("the traced model has no output")

    def losses(self, outputs: Any, y: Tensor, loss: Loss) -> Tensor:
        return per_copy(outputs, y, loss)

    def gradients(self, losses: Tensor) -> list[Tensor | None]:
        return together(losses, self._stack)

    def _value(self, run: Run, env: dict[fx.Node, Any], step: Step, x: Tensor) -> Any:
        """What the node of ``step`` gives."""
        node = step.first
        args = fx.map_arg(node.args, env.__getitem__)
        if node.op == "placeholder":
            if args:
                return args[0]
            value = self._inside(run, x)
            return value._replace(data=value.data.clone()) if step.overwritten else value
        if node.op == "get_attr":
            return _attribute(run, self._stack.skeleton, str(node.target))
        if step.form is None:
            return _outside(run, args[0])
        try:
            return step.form(run, *args, **fx.map_arg(node.kwargs, env.__getitem__))
        except NoFormError as error:
            name = getattr(node.target, "__name__", node.target)
            raise ValueError(f"{name!r} has no grouped form here: {error}; {_ADVICE}") from None

    def _inside(self, run: Run, x: Tensor) -> Value:
        """The input ``(E, N, ...)`` in its layout; a batch that all copies share stays one."""
        if run.copies > 1 and x.stride(0) == 0:
            x = x[0]
            if x.dim() == 4 and not run.images_last:
                x = x.contiguous(memory_format=self._format)
            return Value("shared", x)
        if x.dim() <= 3:
            return Value("rows", x)
        if x.dim() == 5 and run.images_last:
            e, n, c, h, w = x.shape
            return Value(
                "maps", x.permute(0, 2, 3, 4, 1).reshape(e * c, h, w, n).permute(3, 0, 1, 2)
            )
        if x.dim() == 5 and self._format is torch.channels_last:
            e, n, c, h, w = x.shape
            last = x.permute(1, 3, 4, 0, 2).reshape(n, h, w, e * c)
            return Value("maps", last.permute(0, 3, 1, 2))
        return Value("maps", x.transpose(0, 1).flatten(1, 2))


def _attribute(run: Run, model: nn.Module, target: str) -> Any:
    own = run.own("", target)
    if own is not None:
        return own
    value: Any = model
    for name in target.split("."):
        value = getattr(value, name)
    return value


def _outside(run: Run, value: Any) -> Any:
    """The model's result with each tensor as ``(E, N, ...)``."""
    if isinstance(value, Value):
        if value.layout == "shared":
            return value.data.expand(run.copies, *value.data.shape)
        return split(run, value).transpose(0, 1) if value.layout == "maps" else value.data
    if isinstance(value, Mapping):
        return {name: _outside(run, part) for name, part in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(_outside(run, part) for part in value)
    return value
