"""What a training step tells: the losses of every block, read only when asked for."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future

import torch
from torch import Tensor

from addis.train.local._block import BlockResult

__all__ = ["StepStats"]


class StepStats:
    """The losses of one batch, a number a block and, last, one of the output layer.

    They are tensors on the model's device, made on reading: a step that nobody reads costs nothing
    and waits for nothing. With ``schedule="devices"`` reading waits for the batch.

    Args:
        blocks: Names of the blocks.
        y: The batch's labels.
        results: A result a block, or the promise of them.
        soft: Whether a matrix of labels holds the classes' probabilities.
    """

    def __init__(
        self,
        blocks: tuple[str, ...],
        y: Tensor,
        results: Sequence[BlockResult] | Future[list[BlockResult]],
        *,
        soft: bool,
    ) -> None:
        self.blocks = blocks
        self._y = y
        self._results = results
        self._soft = soft

    @property
    def losses(self) -> Tensor:
        """``(B,)`` total loss of each block; of the output layer unweighted."""
        return self._stack([r.total for r in self._read()])

    @property
    def pred(self) -> Tensor:
        """``(B,)`` cross-entropy of each block's decoder; NaN where it has none."""
        return self._stack([r.pred for r in self._read()])

    @property
    def sim(self) -> Tensor:
        """``(B,)`` similarity loss of each block; NaN where it has none."""
        return self._stack([r.sim for r in self._read()])

    @property
    def errors(self) -> Tensor:
        """``(B,)`` fraction in ``[0, 1]`` of the batch that each block's decoder gets wrong.

        NaN where it does not decode classes, and for labels other than class numbers with an
        ``output_loss`` of your own.
        """
        y = self._y.argmax(1) if self._soft and self._y.dim() == 2 else self._y
        numbers = y.dim() == 1 and not y.is_floating_point()
        found: list[Tensor | None] = []
        for result in self._read():
            logits = result.logits
            classes = logits is not None and logits.shape[1:] == self._classes != (1,)
            found.append(
                (logits.argmax(1) != y.to(logits.device)).float().mean()
                if logits is not None and classes and numbers
                else None
            )
        return self._stack(found)

    @property
    def _classes(self) -> torch.Size:
        logits = self._read()[-1].logits
        assert logits is not None
        return logits.shape[1:]

    def _read(self) -> Sequence[BlockResult]:
        return self._results.result() if isinstance(self._results, Future) else self._results

    def _stack(self, values: Sequence[Tensor | None]) -> Tensor:
        device = self._read()[-1].total.device
        nan = torch.tensor(torch.nan, device=device)
        return torch.stack([nan if v is None else v.to(device).float() for v in values])
