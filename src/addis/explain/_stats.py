"""Mean, standard deviation and activity of a layer's features, cell by cell, over many samples.

Batches are merged by the pairwise update of T. Chan, G. Golub, R. LeVeque, "Updating Formulae and a
Pairwise Algorithm for Computing Sample Variances", 1979, in float64, so that neither order nor
chunking matters beyond rounding.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from addis.explain._channel import Prior
from addis.explain._inputs import check_finite, check_input
from addis.explain._layers import Layer, capture, features_of, find_layer, undisturbed

__all__ = ["BottleneckStats", "PriorName", "check_samples", "inputs_of", "read_tensors"]

PriorName = Literal["gaussian", "halfnormal"]
_CHUNK = 64
_ENOUGH = 1000


class BottleneckStats(nn.Module):
    """Running statistics of the features of one layer; they and the prior travel with
    ``state_dict``, and a state of another prior is refused.

    Args:
        shape: Shape of the features without the batch axis.
        prior: ``gaussian``: the cells' mean and standard deviation. ``halfnormal``: for a layer
            that ends in a ReLU, mean 0 and the root mean square over the samples in which the cell
            is not zero, as in the paper's own code; the noised features are then cut off at 0.

    Raises:
        ValueError: ``prior`` is neither of the two.

    Example:
        >>> stats = BottleneckStats((2,))
        >>> stats.update(torch.tensor([[0.0, 1.0], [2.0, 1.0]]))
        >>> stats.mean.tolist(), stats.std.tolist()
        ([1.0, 1.0], [1.4142, 0.0])
    """

    count: Tensor
    mean: Tensor
    squares: Tensor
    nonzero: Tensor

    def __init__(self, shape: Sequence[int], *, prior: PriorName = "gaussian") -> None:
        super().__init__()
        if prior not in get_args(PriorName):
            raise ValueError(f"prior must be one of {get_args(PriorName)}, got {prior!r}")
        self.prior: PriorName = prior
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(*shape, dtype=torch.float64))
        self.register_buffer("squares", torch.zeros(*shape, dtype=torch.float64))
        self.register_buffer("nonzero", torch.zeros(*shape, dtype=torch.int64))

    @classmethod
    def estimate(
        cls,
        model: nn.Module,
        layer: str | nn.Module,
        data: Tensor | Iterable[Tensor | Sequence[Any]],
        *,
        samples: int = 10_000,
        prior: PriorName = "gaussian",
        device: torch.device | str | None = None,
    ) -> BottleneckStats:
        """Runs the model up to the layer over the samples.

        Args:
            model: The model; run in evaluation mode and left as it was.
            layer: Name, module or ``"auto"``.
            data: Inputs ``(N, ...)``, or batches of them, each a tensor or a sequence whose first
                entry is the inputs.
            samples: At most so many samples are used, to the exact number. The paper's library uses
                10 000.
            prior: See the class.
            device: Where to run; by default where the model's first parameter is.

        Raises:
            ValueError: There were fewer than 2 samples, or the layer cannot be read.
            FloatingPointError: An input or a feature is not finite.

        Warns:
            UserWarning: There were fewer than 1000 samples.
        """
        _, (stats,) = estimate_all(
            model, [layer], data, samples=samples, prior=prior, device=device
        )
        return stats

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the features without the batch axis."""
        return tuple(self.mean.shape)

    @property
    def n(self) -> int:
        """Number of samples seen."""
        return int(self.count)

    @property
    def std(self) -> Tensor:
        """Standard deviation of each cell (``n - 1`` in the denominator), float64."""
        self._need_two()
        return (self.squares / (self.n - 1)).sqrt()

    @property
    def active(self) -> Tensor:
        """Fraction of the samples in which each cell was not zero, float64."""
        return self.nonzero.double() / max(self.n, 1)

    @torch.no_grad()
    def update(self, features: Tensor) -> None:
        """Adds a batch ``(N, ...)``.

        Raises:
            ValueError: The features have another shape than the statistics.
            FloatingPointError: A feature is not finite.
        """
        if tuple(features.shape[1:]) != self.shape:
            got = tuple(features.shape[1:])
            raise ValueError(f"features must have shape (N, {self.shape}), got (N, {got})")
        if not len(features):
            return
        moments = _moments(features)
        if not math.isfinite(float(moments.sum())):
            check_finite("features", features)
            moments = _moments(features.double())  # finite, but too large for its own squares
        mean, squares, nonzero = moments.view(3, *self.shape)
        self._merge(len(features), mean, squares, nonzero)

    def merge(self, other: BottleneckStats) -> None:
        """Adds the samples of other statistics of the same layer, as if they had been seen here.

        Raises:
            ValueError: The shapes or the priors differ.
        """
        if other.shape != self.shape or other.prior != self.prior:
            raise ValueError(
                f"cannot merge statistics of shape {other.shape} and prior {other.prior!r} into "
                f"{self.shape} and {self.prior!r}"
            )
        self._merge(other.n, other.mean, other.squares, other.nonzero)

    def gaussian(self, *, min_std: float, active_threshold: float, like: Tensor) -> Prior:
        """The distribution that replaces what the mask takes out.

        Args:
            min_std: Floor of the standard deviation.
            active_threshold: A cell that was not zero in at most this fraction of the samples is
                inactive.
            like: Gives device and dtype.
        """
        active = self.active > active_threshold
        if self.prior == "halfnormal":
            mean = torch.zeros_like(self.mean)
            total = self.squares + self.n * self.mean.square()
            std = (total / self.nonzero.clamp_min(1)).sqrt()
        else:
            mean, std = self.mean, self.std
        check_finite("the statistics", std)
        return Prior(
            mean=(mean * active).to(like),
            std=(std.clamp_min(min_std) * active).to(like),
            active=active.to(like.device),
            clamp=self.prior == "halfnormal",
        )

    def resize(self, spatial: Sequence[int]) -> BottleneckStats:
        """The statistics of channels-first features ``(C, *S)``, interpolated to another size.

        An approximation for an input of another size where the data cannot be run again: means,
        variances and activities are interpolated linearly.

        Raises:
            ValueError: The features have no spatial axes, or another number of them.
        """
        axes = len(self.shape) - 1
        if axes not in (1, 2, 3) or len(spatial) != axes:
            raise ValueError(f"cannot resize statistics of shape {self.shape} to {tuple(spatial)}")
        mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[axes]

        def interpolate(t: Tensor) -> Tensor:
            return nn.functional.interpolate(t.double()[None], size=tuple(spatial), mode=mode)[0]

        new = BottleneckStats((self.shape[0], *spatial), prior=self.prior).to(self.mean.device)
        new._merge(
            self.n,
            interpolate(self.mean),
            interpolate(self.squares),
            interpolate(self.nonzero).round().long(),
        )
        return new

    def save(self, path: Path | str, *, layer: str = "") -> None:
        """Writes a safetensors file; ``layer`` is noted in it."""
        state = {name: value.contiguous() for name, value in self.named_buffers()}
        save_file(state, str(path), metadata={"prior": self.prior, "layer": layer})

    @classmethod
    def load(cls, path: Path | str, *, layer: str = "") -> BottleneckStats:
        """Reads what :meth:`save` wrote.

        Args:
            path: The file.
            layer: The layer that the statistics must be of, if the file has noted one.

        Raises:
            ValueError: The file is damaged, or does not hold statistics, or those of another layer.
        """
        state, noted = read_tensors(path)
        prior, of = noted.get("prior", ""), noted.get("layer", "")
        if layer and of and layer != of:
            raise ValueError(f"{path} holds statistics of layer {of}, not of {layer}")
        if set(state) != {"count", "mean", "squares", "nonzero"} or prior not in get_args(
            PriorName
        ):
            raise ValueError(f"{path} holds no BottleneckStats (entries: {sorted(state)})")
        stats = cls(tuple(state["mean"].shape), prior=cast("PriorName", prior))
        for name, buffer in stats.named_buffers():
            found = state[name]
            sound = found.shape == buffer.shape and bool(torch.isfinite(found).all())
            if not sound or (name != "mean" and bool((found < 0).any())):
                raise ValueError(
                    f"{path} holds no BottleneckStats: {name} must be finite"
                    f"{'' if name == 'mean' else ', not negative'} and of shape "
                    f"{tuple(buffer.shape)}, it has shape {tuple(found.shape)}"
                )
        stats.load_state_dict(state)
        return stats

    def get_extra_state(self) -> Tensor:
        """The prior as its number among ``PriorName``: a tensor, as all that is saved."""
        return torch.tensor(get_args(PriorName).index(self.prior))

    def set_extra_state(self, state: Tensor) -> None:
        """Raises ``ValueError`` at another prior than the statistics have."""
        saved = get_args(PriorName)[int(state)]
        if saved != self.prior:
            raise ValueError(
                f"the state is of statistics with prior {saved!r}, these have {self.prior!r}"
            )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        # A state from before the prior was saved is taken to be of the prior that we have.
        saved = state_dict.setdefault(f"{prefix}_extra_state", self.get_extra_state())
        self.set_extra_state(saved)  # before anything is loaded
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _merge(self, n: int, mean: Tensor, squares: Tensor, nonzero: Tensor) -> None:
        before, total = self.n, self.n + n
        if n == 0:
            return
        delta = mean - self.mean
        self.mean.add_(delta, alpha=n / total)
        self.squares.add_(squares).addcmul_(delta, delta, value=before * n / total)
        self.nonzero.add_(nonzero.long())
        self.count.fill_(total)

    def _need_two(self) -> None:
        if self.n < 2:
            raise ValueError(f"statistics need at least 2 samples, got {self.n}")


def _moments(features: Tensor) -> Tensor:
    """Mean, sum of squares about it, and number of nonzero samples of a batch, ``(3, D)`` float64.

    Sums are matrix products in the features' own precision, at least float32, about the batch's
    rounded mean; what that rounding misses is added in float64.
    """
    values = features.to(torch.promote_types(features.dtype, torch.float32)).flatten(1)
    n = len(values)
    ones = values.new_ones(1, n)
    sums = values.new_empty(4, values.shape[1])
    centre = torch.mm(ones, values, out=sums[:1]).div_(n)
    scratch = torch.empty_like(values)  # one for both, so that it stays in the cache
    torch.mm(ones, torch.ne(values, 0, out=scratch), out=sums[2:3])
    torch.mm(ones, torch.sub(values, centre, out=scratch), out=sums[3:])
    torch.mm(ones, scratch.square_(), out=sums[1:2])
    moments = sums.double()
    missed = moments[3]
    moments[1].addcmul_(missed, missed, value=-1 / n).clamp_min_(0)
    moments[0].add_(missed, alpha=1 / n)
    return moments[:3]


def estimate_all(
    model: nn.Module,
    layers: Sequence[str | nn.Module],
    data: Tensor | Iterable[Tensor | Sequence[Any]],
    *,
    samples: int,
    prior: PriorName = "gaussian",
    device: torch.device | str | None = None,
) -> tuple[list[Layer], list[BottleneckStats]]:
    """The layers and their statistics from one run over the data; see
    :meth:`BottleneckStats.estimate`.
    """
    found: list[Layer] = []
    stats: list[BottleneckStats] = []
    with undisturbed(model) as inner:
        for x in inputs_of(inner, data, samples=samples, device=device):
            if not found:
                found = [find_layer(inner, layer, x) for layer in layers]
                features, _ = capture(inner, found, x)
                stats = [BottleneckStats(f.shape[1:], prior=prior).to(f.device) for f in features]
            else:
                features = features_of(inner, found, x)
            for each, values in zip(stats, features, strict=True):
                each.update(values)
    check_samples(stats[0].n if stats else 0, stacklevel=4)
    return found, stats


def inputs_of(
    model: nn.Module,
    data: Tensor | Iterable[Tensor | Sequence[Any]],
    *,
    samples: int,
    device: torch.device | str | None = None,
) -> Iterator[Tensor]:
    """The first ``samples`` inputs in batches, checked, where the model's first parameter is.

    Raises:
        ValueError: ``samples < 2``.
        TypeError: A batch is not of floating-point tensors.
        FloatingPointError: An input is not finite.
    """
    if samples < 2:
        raise ValueError(f"samples must be at least 2, got {samples}")
    where = device or next((p.device for p in model.parameters()), torch.device("cpu"))
    left = samples
    for batch in _batches(data):
        x = batch[:left].to(where)
        check_input(x)
        yield x
        left -= len(x)
        if not left:
            return


def check_samples(seen: int, *, stacklevel: int) -> None:
    """Raises ``ValueError`` at fewer than 2 samples and warns at fewer than 1000."""
    if seen < 2:
        raise ValueError(f"statistics need at least 2 samples, the data gave {seen}")
    if seen < _ENOUGH:
        warnings.warn(
            f"the statistics rest on {seen} samples only; {_ENOUGH} or more are advised",
            stacklevel=stacklevel,
        )


def read_tensors(path: Path | str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the notes of a safetensors file.

    Raises:
        ValueError: The file is damaged.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged, or no safetensors file: {error}") from error


def _batches(data: Tensor | Iterable[Tensor | Sequence[Any]]) -> Iterable[Tensor]:
    if isinstance(data, Tensor):
        yield from torch.split(data, _CHUNK)
        return
    for batch in data:
        first = batch[0] if isinstance(batch, Sequence) and batch else batch
        if not isinstance(first, Tensor):
            kind = type(first).__name__
            raise TypeError(
                f"data must give tensors of inputs, or sequences that begin with one, got {kind}"
            )
        yield first
