"""PatternNet and PatternAttribution: a backward pass through the signals that neurons detect.

Paper: P.-J. Kindermans, K. Schütt, M. Alber, K.-R. Müller, D. Erhan, B. Kim, S. Dähne, "Learning
How to Explain Neural Networks: PatternNet and PatternAttribution", ICLR 2018, arXiv:1705.05598.

A neuron ``y = w.x + b`` answers to a signal in its input and is made blind to the rest by ``w``; so
``w`` alone does not show the signal. Its direction ``a``, the pattern, is estimated from data:

* linear, ``S_a``: ``c = E[x y] - E[x] E[y]`` and ``a = c / w.c``, where ``w.c`` is the variance of
  ``y``;
* two-component, ``S_a+-``: ``c = E+[x y] - E+[x] E[y]`` and ``a = c / (w.c + b c0)`` with
  ``c0 = E+[y] - E[y]``. ``E+`` is over the samples with ``y > 0``, bias included, which a ReLU lets
  pass; ``E[y]`` is over all samples.

The bias is the weight of an input that is always 1, as in the paper; ``c0`` is that input's part of
``c`` (0 in the linear estimator), and the divisor is ``E+[y y] - E+[y] E[y] >= 0``. Without bias,
``w.a = 1``. The samples of a convolution are the patches at all its positions, with their padding.

Departures: the authors' code (pikinder/nn-patterns) has the same ``c`` but leaves ``b c0`` out. In
the nets without large biases that they explain it matters little; on a ResNet-20, whose batch norms
have them, divisors came out near zero or negative, and maps from 100 and from 2000 images had a
rank correlation of 0.54, against 0.98 with it. (iNNvestigate takes ``E+[y]`` for ``E[y]``.)
A batch norm with fixed statistics is a neuron of one input for each channel, which has no
distractor, so its pattern is the inverse of its weight: just what merging it into the convolution
before it gives, and it holds where it cannot be merged. Whatever else a model does (pooling,
additions, products, other activations) is passed through by its ordinary gradient; the paper has
nets of linear layers, ReLU and max pooling alone.

Later literature: L. Sixt, M. Granz, T. Landgraf, "When Explanations Lie", ICML 2020,
arXiv:1912.09818: but for the sign of the logit the maps hardly depend on the later layers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from addis.explain._gradients import RELUS, Target
from addis.explain._inputs import check_finite, check_input, target_scores
from addis.explain._layers import undisturbed
from addis.explain._pattern_layers import Call, Layers, Norm
from addis.explain._stats import check_samples, inputs_of, read_tensors

__all__ = ["Estimator", "Patterns", "pattern_attribution", "pattern_net"]

Estimator = Literal["auto", "linear", "two_component"]

_PASSING: frozenset[Any] = frozenset(
    [F.max_pool1d, F.max_pool2d, F.max_pool3d, F.adaptive_max_pool1d, F.adaptive_max_pool2d,
     F.adaptive_max_pool3d, F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout]
)  # fmt: skip
"""Functions that a ReLU behind them may change places with."""
_CONSTANT = 1e-10
"""A divisor below this part of the squared mean output is rounding: of float32 about 1e-7, squared,
and summed up.
"""


@dataclass(frozen=True, slots=True, eq=False)
class Patterns:
    """The signal direction of every neuron of a model.

    They belong to the model's weights: estimate them again where those change.

    Args:
        directions: For each weight of a convolution or dense layer that ran, by its name in the
            model, the patterns of its neurons: the weight's shape, zero for a neuron that was never
            active or never varied.
        samples: Number of samples that they were estimated from.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 1, bias=False)).eval()
        >>> model[0].weight.data = torch.tensor([[1.0, -1.0]])  # takes the second input off
        >>> signal, distractor = torch.randn(2, 2000, generator=torch.Generator().manual_seed(0))
        >>> x = torch.stack([signal + distractor, distractor], 1)
        >>> Patterns.estimate(model, x).directions["0.weight"].round(decimals=1).abs().tolist()
        [[1.0, 0.0]]
    """

    directions: Mapping[str, Tensor]
    samples: int

    @classmethod
    def estimate(
        cls,
        model: nn.Module,
        data: Tensor | Iterable[Tensor | Sequence[Any]],
        *,
        samples: int = 10_000,
        estimator: Estimator = "auto",
        device: torch.device | str | None = None,
    ) -> Patterns:
        """Runs the model over the samples; costs about four times as much as the model alone.

        Args:
            model: The model; run in evaluation mode and left as it was.
            data: Inputs ``(N, ...)``, or batches of them, each a tensor or a sequence whose first
                entry is the inputs.
            samples: At most so many samples are used, to the exact number.
            estimator: ``auto``: two-component for a layer whose output goes into a ReLU (or ReLU6),
                straight or through a batch norm, max pooling or dropout; linear for any other, such
                as the last layer, the last of a residual block, or one that runs more than once.
                ``linear`` and ``two_component`` force one for all.
            device: Where to run; by default where the model's first parameter is.

        Raises:
            ValueError: There were fewer than 2 samples; no layer has a pattern; or the model has a
                layer through which the method is not defined, such as a norm of each sample's own
                statistics, attention, or a weight that is not a parameter or buffer.
            FloatingPointError: An input or a feature is not finite.

        Warns:
            UserWarning: There were fewer than 1000 samples.
        """
        if estimator not in get_args(Estimator):
            raise ValueError(f"estimator must be one of {get_args(Estimator)}, got {estimator!r}")
        seen, sums = 0, None
        with undisturbed(model) as inner, torch.no_grad():
            for x in inputs_of(inner, data, samples=samples, device=device):
                if sums is None:
                    with _Gates(inner) as found:
                        inner(x[:1].clone())
                    sums = _Sums(inner, found.norms(estimator))
                with sums:
                    inner(x.clone())
                seen += len(x)
            check_samples(seen, stacklevel=3)
            assert sums is not None
            directions = {
                name: moments.direction(name, sums.weights[name])
                for name, moments in sums.moments.items()
            }
        if not directions:
            raise ValueError(
                "no convolution or linear layer ran, so there is nothing to explain by"
            )
        return cls(directions, seen)

    def save(self, path: Path | str) -> None:
        """Writes a safetensors file."""
        state = {name: value.contiguous() for name, value in self.directions.items()}
        save_file(state, str(path), metadata={"patterns": str(self.samples)})

    @classmethod
    def load(cls, path: Path | str) -> Patterns:
        """Reads what :meth:`save` wrote.

        Raises:
            ValueError: The file is damaged or does not hold patterns.
        """
        state, noted = read_tensors(path)
        samples = noted.get("patterns", "")
        floating = [a.is_floating_point() for a in state.values()]
        if not samples.isdecimal() or not floating or not all(floating):
            raise ValueError(f"{path} holds no Patterns (entries: {sorted(state)})")
        for name, a in state.items():
            check_finite(f"the pattern of {name!r}", a)
        return cls(state, int(samples))


def pattern_attribution(model: nn.Module, x: Tensor, target: Target, patterns: Patterns) -> Tensor:
    """What each pixel contributed to the logit: its backward pass with ``w * a`` for every ``w``.

    Args:
        model: A classifier with logits ``(N, K)``, whose value is what is passed back.
        x: ``(N, C, *S)`` as the model takes it.
        target: Class of each image ``(N,)`` or one for all.
        patterns: The model's patterns.

    Returns:
        ``(N, *S)``, signed, summed over channels.

    Raises:
        ValueError: The target is missing or does not fit, the patterns are of another model (by
            names and shapes), or the method is not defined for it: see :meth:`Patterns.estimate`.
    """
    check_input(x)
    with undisturbed(model) as inner:
        return _passed_back(inner, x, target, patterns, torch.mul).sum(dim=1)


def pattern_net(model: nn.Module, x: Tensor, target: Target, patterns: Patterns) -> Tensor:
    """The signal that the logit was read from: its backward pass with ``a`` for every ``w``.

    A picture of it says something, its size nothing: each layer adds up the signals of all its
    neurons, so that the size grows with the depth (1e17 of a ResNet-20, 1e24 of a
    SqueezeNet). Arguments as in
    :func:`pattern_attribution`.

    Returns:
        ``(N, C, *S)``.

    Raises:
        FloatingPointError: It grew beyond the precision of ``x``; explain ``model.double()``.
    """
    check_input(x)
    with undisturbed(model) as inner:
        signal = _passed_back(inner, x, target, patterns, lambda _, a: a)
    check_finite(f"the signal is beyond {x.dtype}, explain model.double() instead: it", signal)
    return signal


def _passed_back(
    model: nn.Module,
    x: Tensor,
    target: Target,
    patterns: Patterns,
    filters: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Each image's logit passed back by ``filters(w, a)``: ``(N, C, *S)``."""
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        with _Backward(model, patterns, filters):
            output = model(leaf.clone())  # it may work in place
        scores = target_scores(output, target, len(x))
        return torch.autograd.grad(scores, leaf, scores.detach())[0]


class _Gates(Layers):
    """Finds which layers' outputs go into a ReLU, in one pass."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self._runs: Counter[str] = Counter()
        self._norms: dict[str, Norm] = {}
        self._rectified: set[str] = set()
        # Holding the tensors keeps their ids; a version tells that one was written to.
        self._from: dict[int, tuple[Tensor, int, str]] = {}

    def norms(self, estimator: Estimator) -> dict[str, Norm | None]:
        """The two-component layers, each with the batch norm before its ReLU, if there is one."""
        once = {name for name, runs in self._runs.items() if runs == 1}
        names = {"auto": self._rectified & once, "linear": (), "two_component": self._runs}
        return {name: self._norms.get(name) for name in names[estimator]}

    def layer(self, name: str, call: Call) -> Tensor:
        self._runs[name] += 1
        return self._note(name, call.apply(call.x, call.weight, call.bias))

    def norm(self, norm: Norm, x: Tensor, out: Tensor) -> Tensor:
        name = self._origin(x)
        if name is None or name in self._norms or x.dim() != self.weights[name].dim():
            return out
        self._norms[name] = norm
        return self._note(name, out)

    def other(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        name = self._origin(args[0]) if args else None
        if name is not None and (
            func in RELUS or func is F.relu6 or (func is F.hardtanh and kwargs["min_val"] == 0)
        ):
            self._rectified.add(name)
        out = func(*args, **kwargs)
        return self._note(name, out) if name is not None and func in _PASSING else out

    def _origin(self, x: Any) -> str | None:
        tensor, version, name = self._from.get(id(x), (None, 0, None))
        return name if tensor is not None and tensor._version == version else None

    def _note(self, name: str, out: Tensor) -> Tensor:
        self._from[id(out)] = (out, out._version, name)
        return out


@dataclass(slots=True)
class _Moments:
    """Sums over a layer's samples in float64, and its total bias.

    O neurons, D inputs of each in the weight's order; ``y`` is the output without a norm behind it.

    Args:
        bias: The layer's bias and what a norm behind it adds, in the scale of ``y``, ``(O,)``.
        count: Number of samples.
        y: Sum of ``y``, ``(O,)``.
        active: Number of active samples, ``(O,)``.
        active_y: Sum of ``y`` over them, ``(O,)``.
        x: Sum of their inputs, ``(O, D)``.
        xy: Sum of their inputs times ``y``, ``(O, D)``.
    """

    bias: Tensor
    count: int
    y: Tensor
    active: Tensor
    active_y: Tensor
    x: Tensor
    xy: Tensor

    def plus(self, other: _Moments) -> _Moments:
        return _Moments(
            self.bias, self.count + other.count, self.y + other.y, self.active + other.active,
            self.active_y + other.active_y, self.x + other.x, self.xy + other.xy,
        )  # fmt: skip

    def direction(self, name: str, weight: Tensor) -> Tensor:
        """The patterns, of the shape of ``weight``, at least in float32."""
        w, seen = weight.double().flatten(1), self.active.clamp_min(1)
        mean, x = self.y / self.count, self.x / seen[:, None]
        c, c0 = self.xy / seen[:, None] - x * mean[:, None], self.active_y / seen - mean
        check_finite(f"the statistics of {name!r}", c)
        divisor = (w * c).sum(1) + self.bias * c0
        alive = divisor > _CONSTANT * ((w * x).sum(1) + self.bias).square()
        a = torch.where(alive[:, None], c / torch.where(alive, divisor, 1.0)[:, None], 0.0)
        return a.view_as(weight).to(torch.promote_types(weight.dtype, torch.float32))


class _Sums(Layers):
    """Adds up the moments of every layer's samples.

    The sum over all positions of input times output is what autograd computes as the gradient of a
    weight. Outputs are taken about their mean, so that float32 loses nothing in the difference.
    """

    def __init__(self, model: nn.Module, norms: Mapping[str, Norm | None]) -> None:
        super().__init__(model)
        self._norms = norms
        self.moments: dict[str, _Moments] = {}

    def layer(self, name: str, call: Call) -> Tensor:
        wide = torch.promote_types(call.weight.dtype, torch.float32)
        bias = None if call.bias is None else call.bias.to(wide)
        with torch.enable_grad():
            weight = call.weight.detach().to(wide).requires_grad_()
            out = call.apply(call.x.to(wide), weight, bias)
        y, norm = out.detach(), self._norms.get(name)
        bias = y.new_zeros(len(weight)) if bias is None else bias
        z = y if norm is None else norm(y)
        kept = (
            torch.gt(z, 0, out=torch.empty_like(y)) if name in self._norms else torch.ones_like(y)
        )
        axis = y.dim() - weight.dim() + 1  # of the neurons: 1 of a convolution, else the last
        others = [d for d in range(y.dim()) if d != axis]
        kept_y = kept * y
        total, active, active_y = (t.sum(others, dtype=torch.float64) for t in (y, kept, kept_y))
        count = y.numel() // len(weight)
        mean = (total / count).to(wide)
        centre = mean.view(-1, *[1] * (y.dim() - axis - 1))
        about = torch.addcmul(kept_y, kept, centre, value=-1)
        x, xy = (
            torch.autograd.grad(out, weight, seed, retain_graph=True)[0].double().flatten(1)
            for seed in (kept, about)
        )
        found = _Moments(
            bias=(bias if norm is None else bias + norm.shift * norm.inverse).double(),
            count=count, y=total, active=active, active_y=active_y,
            x=x, xy=xy + x * mean.double()[:, None],
        )  # fmt: skip
        self.moments[name] = self.moments[name].plus(found) if name in self.moments else found
        return y.to(call.x.dtype)


class _Backward(Layers):
    """Leaves every layer its output and gives it the gradient of another filter."""

    def __init__(
        self, model: nn.Module, patterns: Patterns, filters: Callable[[Tensor, Tensor], Tensor]
    ) -> None:
        super().__init__(model)
        self._patterns, self._filters = patterns.directions, filters
        for name, a in self._patterns.items():
            shape = getattr(self.weights.get(name), "shape", None)
            if shape != a.shape:
                raise ValueError(
                    f"the patterns are of another model: {name!r} has shape {tuple(a.shape)} in "
                    f"them and {'is missing' if shape is None else tuple(shape)} in the model"
                )

    def layer(self, name: str, call: Call) -> Tensor:
        if name not in self._patterns:
            raise ValueError(f"the patterns are of another model: they have none for {name!r}")
        pattern = self._filters(call.weight, self._patterns[name].to(call.weight))
        path = call.apply(call.x, pattern, None)
        return _with_gradient(call.apply(call.x, call.weight, call.bias), path)

    def norm(self, norm: Norm, x: Tensor, out: Tensor) -> Tensor:
        scale = self._filters(norm.gain, norm.inverse).view(-1, *[1] * (x.dim() - 2))
        return _with_gradient(out, x * scale.to(x.dtype))


def _with_gradient(value: Tensor, path: Tensor) -> Tensor:
    """``value`` with the gradient of ``path``."""
    return value.detach() + (path - path.detach())
