"""An ordinary ``torch.optim`` optimiser for E copies, each with its own learning rate."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, optim

__all__ = ["CopiesOptimizer", "OptimizerFactory"]

OptimizerFactory = Callable[..., optim.Optimizer]

Schedule = Callable[[int], float]

ELEMENTWISE = frozenset(
    (optim.SGD, optim.Adam, optim.AdamW, optim.RMSprop, optim.Adagrad, optim.Adadelta, optim.Adamax,
     optim.NAdam, optim.RAdam, optim.ASGD, optim.Rprop)
)  # fmt: skip
"""Optimisers that treat each number alone, so that copies may be updated as one tensor."""


class CopiesOptimizer:
    """Runs one optimiser over stacked parameters, with parameter groups for what differs by copy.

    Neighbouring copies with the same settings form one group of tensors, so that E seeds with one
    learning rate cost as many optimiser calls as one model does. An optimiser that is not known to
    treat each number alone (a trust ratio over a whole tensor, say) gets the tensors of each copy
    apart.

    Args:
        factory: ``factory(groups, lr=...)`` builds the optimiser, as ``torch.optim.SGD`` does.
        params: Stacked parameters, ``(E, *shape)``.
        options: Group options of each copy (``lr`` at least), E of them.
        schedules: Factor of the learning rate by step for each copy, E of them.

    Raises:
        TypeError: The optimiser needs a closure (LBFGS).
    """

    def __init__(
        self,
        factory: OptimizerFactory,
        params: Mapping[str, Tensor],
        options: Sequence[Mapping[str, float]],
        schedules: Sequence[Schedule | None],
    ) -> None:
        keys = [(tuple(sorted(o.items())), id(s)) for o, s in zip(options, schedules, strict=True)]
        lr = options[0]["lr"]
        probe = factory([{"params": [torch.zeros(1)], **options[0]}], lr=lr)
        if isinstance(probe, optim.LBFGS):
            raise TypeError("optimizer must step on gradients alone, LBFGS calls the loss again")
        self._runs = _runs(keys, merge=type(probe) in ELEMENTWISE)
        self._leaves = [[_leaf(p, run) for p in params.values()] for run in self._runs]
        self._lrs = [options[run.start]["lr"] for run in self._runs]
        self._schedules = [schedules[run.start] for run in self._runs]
        self.optimizer = factory(
            [
                {"params": leaves, **options[run.start]}
                for run, leaves in zip(self._runs, self._leaves, strict=True)
            ],
            lr=lr,
        )

    def step(self, grads: Sequence[Tensor | None], t: int) -> None:
        """Applies ``grads``, one ``(E, *shape)`` for each parameter, as step ``t``."""
        for group, lr, schedule in zip(
            self.optimizer.param_groups, self._lrs, self._schedules, strict=True
        ):
            group["lr"] = lr if schedule is None else lr * schedule(t)
        for run, leaves in zip(self._runs, self._leaves, strict=True):
            for leaf, grad in zip(leaves, grads, strict=True):
                leaf.grad = None if grad is None else _laid_out(_view(grad, run), leaf)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """The optimiser's own, and its kind."""
        return {"kind": type(self.optimizer).__name__, **self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what :meth:`state_dict` gave.

        Raises:
            ValueError: The state is of another kind of optimiser.
        """
        kind = type(self.optimizer).__name__
        found = state.get("kind", kind)
        if found != kind:
            raise ValueError(f"state is of optimizer {found}, not {kind}")
        self.optimizer.load_state_dict(state)


def _runs(keys: Sequence[Hashable], *, merge: bool) -> list[slice]:
    """Neighbours with equal keys as slices; each alone unless ``merge``."""
    starts = [i for i, key in enumerate(keys) if i == 0 or not merge or key != keys[i - 1]]
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], len(keys)], strict=True)]


def _view(tensor: Tensor, run: slice) -> Tensor:
    """Copies ``run``; a single copy has its own shape, without the axis of copies."""
    return tensor[run.start] if run.stop - run.start == 1 else tensor[run]


def _laid_out(grad: Tensor, leaf: Tensor) -> Tensor:
    """``grad`` in the memory order of ``leaf``: fused kernels for a CPU go by memory alone."""
    return grad if grad.stride() == leaf.stride() else torch.empty_like(leaf).copy_(grad)


def _leaf(param: Tensor, run: slice) -> Tensor:
    return _view(param.detach(), run)
