"""Loss and accuracy of a classifier, exact over uneven batches and several processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from addis.train import _batches, _fabric

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Evaluation", "Metric", "evaluate"]

Metric = Callable[[Tensor, Tensor], Tensor]
"""From logits ``(N, K)`` and targets ``(N,)`` to the batch's mean or to a value a sample."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """How a model does on a data set.

    Args:
        loss: Mean over the samples.
        accuracy: Fraction of the samples whose largest logit is the target's, in ``[0, 1]``.
        metrics: Means over the samples of the further metrics.
        samples: Samples seen, over all processes.
        seconds: Time taken.
    """

    loss: float
    accuracy: float
    metrics: Mapping[str, float]
    samples: int
    seconds: float


def evaluate(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    loss: Metric = nn.functional.cross_entropy,
    metrics: Mapping[str, Metric] | None = None,
    fabric: Fabric | None = None,
) -> Evaluation:
    """Measures a classifier without touching it.

    The model runs in evaluation mode without gradients, on the device where it is; the mode of each
    of its parts is put back afterwards, also after an error. Each sample counts once, whatever the
    sizes of the batches. Sums are kept in double precision on the device and read once, at the end.

    In several processes each takes its share of every batch, as in :func:`addis.train.epochs`, and
    all get the same result.

    Args:
        model: Gives logits ``(N, K)`` for inputs ``(N, ...)``.
        loader: Gives pairs of inputs ``(N, ...)`` and classes ``(N,)`` int64.
        loss: Like the metrics; the default is the mean cross-entropy in nats.
        metrics: Further metrics by name, each a function of logits and targets.
        fabric: Device, precision and processes; ``None`` is one process on the model's device.

    Raises:
        TypeError: A batch is not a pair of tensors.
        ValueError: The loader is empty, the logits are not ``(N, K)``, the targets are not
            ``(N,)``, or a metric gives neither one value nor one a sample.

    Examples:
        >>> import torch
        >>> from addis import train
        >>> x, y = torch.eye(4), torch.tensor([0, 1, 0, 3])
        >>> train.evaluate(torch.nn.Identity(), [(x[:3], y[:3]), (x[3:], y[3:])]).accuracy
        0.75
    """
    start = perf_counter()
    named: dict[str, Metric] = {"loss": loss, "accuracy": _correct, **(metrics or {})}
    if len(named) != 2 + len(metrics or {}):
        raise ValueError(f"metrics must not be named loss or accuracy, got {list(metrics or {})}")
    if fabric is not None:
        model = fabric.to_device(model)
    device = _fabric.device_of(model)
    sums = torch.zeros(len(named), dtype=_wide(device), device=device)
    samples = 0
    with _evaluating(model), torch.no_grad(), fabric.autocast() if fabric else nullcontext():
        for inputs, targets in _pairs(loader, fabric):
            inputs, targets = inputs.to(device), targets.to(device)
            logits = _logits(model, inputs, fabric)
            _check(logits, targets)
            sums += torch.stack(
                [_sum(k, f(logits, targets), len(targets)) for k, f in named.items()]
            )
            samples += len(targets)
    values = [*sums.tolist(), float(samples)]
    if fabric is not None:
        values = [sum(column) for column in zip(*_fabric.gather(values, fabric), strict=True)]
    if not values[-1]:
        raise ValueError("loader is empty: it must give at least one sample")
    means = {name: value / values[-1] for name, value in zip(named, values, strict=False)}
    return Evaluation(
        loss=means.pop("loss"), accuracy=means.pop("accuracy"), metrics=means,
        samples=round(values[-1]), seconds=perf_counter() - start,
    )  # fmt: skip


def _correct(logits: Tensor, targets: Tensor) -> Tensor:
    return (logits.argmax(1) == targets).float()


def _wide(device: torch.device) -> torch.dtype:
    """The widest float that the device has."""
    return torch.float32 if device.type == "mps" else torch.float64


def _logits(model: nn.Module, inputs: Tensor, fabric: Fabric | None) -> Tensor:
    if fabric is None:
        return model(inputs)  # type: ignore[no-any-return]
    precision = fabric.strategy.precision
    return precision.convert_output(model(precision.convert_input(inputs)))  # type: ignore[no-any-return]


def _pairs(loader: Iterable[Any], fabric: Fabric | None) -> Iterator[tuple[Tensor, Tensor]]:
    cut = fabric is not None and fabric.world_size > 1 and not _batches.is_sharded(loader)
    for batch in loader:
        pair = isinstance(batch, (tuple, list)) and len(batch) == 2
        if not pair or not all(isinstance(part, Tensor) for part in batch):
            raise TypeError(f"a batch must be a pair of tensors, got {type(batch).__name__}")
        if cut and fabric is not None:
            batch = _batches.share(batch, fabric.global_rank, fabric.world_size)
        if len(batch[1]):
            yield batch[0], batch[1]


def _check(logits: object, targets: Tensor) -> None:
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"model must give logits (N, K), got {shape}")
    if targets.shape != logits.shape[:1]:
        raise ValueError(f"targets must be ({len(logits)},), got {tuple(targets.shape)}")


def _sum(name: str, value: Tensor, n: int) -> Tensor:
    wide = value.to(_wide(value.device))
    if value.dim() == 0:
        return wide * n
    if value.shape != (n,):
        raise ValueError(f"{name} must be a scalar or ({n},), got shape {tuple(value.shape)}")
    return wide.sum()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
