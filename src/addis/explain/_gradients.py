"""Maps from the gradient of a class's logit with respect to the image, and the controls they are
judged by.

Papers: saliency: K. Simonyan, A. Vedaldi, A. Zisserman, 2013, arXiv:1312.6034. SmoothGrad: D.
Smilkov et al., 2017, arXiv:1706.03825. Integrated gradients: M. Sundararajan, A. Taly, Q. Yan, ICML
2017, arXiv:1703.01365. Guided backpropagation: J. T. Springenberg et al., ICLR 2015 workshop,
arXiv:1412.6806.

All maps are ``(N, H, W)`` of the dtype of the image, without a gradient; means over many gradients
are summed in float32 at least. A map of magnitudes takes the largest channel, a signed one sums
over channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from addis.explain._channel import blur, smoothing
from addis.explain._fold import folded
from addis.explain._inputs import check_input, target_scores
from addis.explain._layers import undisturbed

__all__ = [
    "blurred_saliency",
    "gradient",
    "gradient_x_input",
    "guided_backprop",
    "integrated_gradients",
    "random_map",
    "saliency",
    "smoothgrad",
]

Target = Tensor | int | None


def input_gradient(model: nn.Module, x: Tensor, target: Target) -> Tensor:
    """Gradient of each image's target logit, ``(N, C, H, W)``; ``model`` must be undisturbed."""
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        scores = target_scores(model(leaf.clone()), target, len(x))  # it may work in place
        return torch.autograd.grad(scores.sum(), leaf)[0]


def saliency(model: nn.Module, x: Tensor, target: Target) -> Tensor:
    """Largest absolute gradient over the channels.

    Args:
        model: A classifier with logits ``(N, K)``.
        x: ``(N, C, H, W)`` as the model takes it.
        target: Class of each image ``(N,)`` or one for all.

    Returns:
        ``(N, H, W)``, non-negative.

    Raises:
        ValueError: The target is missing or does not fit.
    """
    check_input(x)
    with undisturbed(model) as inner:
        return input_gradient(inner, x, target).abs().amax(dim=1)


def gradient(model: nn.Module, x: Tensor, target: Target) -> Tensor:
    """The gradient, summed over channels; signed. Arguments as in :func:`saliency`."""
    check_input(x)
    with undisturbed(model) as inner:
        return input_gradient(inner, x, target).sum(dim=1)


def gradient_x_input(model: nn.Module, x: Tensor, target: Target) -> Tensor:
    """Gradient times input, summed over channels; signed. Arguments as in :func:`saliency`."""
    check_input(x)
    with undisturbed(model) as inner:
        return (input_gradient(inner, x, target) * x.detach()).sum(dim=1)


def smoothgrad(
    model: nn.Module,
    x: Tensor,
    target: Target,
    *,
    samples: int = 50,
    noise: float = 0.15,
    seed: int = 0,
) -> Tensor:
    """Saliency of the gradient's mean over noisy copies of the image.

    Args:
        model: A classifier with logits ``(N, K)``.
        x: ``(N, C, H, W)``.
        target: Class of each image ``(N,)`` or one for all.
        samples: Noisy copies, ``>= 1``.
        noise: Standard deviation of the noise as a fraction of each image's range, ``>= 0``.
        seed: Seed of the noise, which is the same for all images.

    Returns:
        ``(N, H, W)``, non-negative.

    Raises:
        ValueError: ``samples < 1`` or ``noise < 0``.
    """
    check_input(x)
    if samples < 1 or not noise >= 0:
        raise ValueError(f"need samples >= 1 and noise >= 0, got {samples} and {noise}")
    generator = torch.Generator(x.device).manual_seed(seed)
    flat = x.flatten(1)
    spread = noise * (flat.amax(dim=1) - flat.amin(dim=1))
    std = spread.view(-1, *[1] * (x.dim() - 1))
    with undisturbed(model) as inner:
        total = _precise_zeros(x)
        fast = folded(inner, x)
        for _ in range(samples):
            eps = torch.randn(x.shape[1:], generator=generator, device=x.device, dtype=x.dtype)
            total += input_gradient(fast, x + std * eps, target)
    return (total / samples).abs().amax(dim=1).to(x.dtype)


def integrated_gradients(
    model: nn.Module,
    x: Tensor,
    target: Target,
    *,
    steps: int = 50,
    baseline: Literal["channel_mean", "zero"] | Tensor = "channel_mean",
) -> Tensor:
    """Gradients along the straight path from a baseline, times the way, summed over channels.

    The path integral is taken by Gauss-Legendre quadrature. The map sums to the logit's rise over
    the path.

    Args:
        model: A classifier with logits ``(N, K)``.
        x: ``(N, C, H, W)``.
        target: Class of each image ``(N,)`` or one for all.
        steps: Points of the quadrature, ``>= 1``.
        baseline: Each image's mean colour, zero, or a tensor that broadcasts to ``x``.

    Returns:
        ``(N, H, W)``, signed.

    Raises:
        ValueError: ``steps < 1``, an unknown baseline, or one that does not broadcast to ``x``.
    """
    check_input(x)
    if steps < 1:
        raise ValueError(f"steps must be >= 1, got {steps}")
    start = baseline_image(x, baseline).detach()
    way = x.detach() - start
    points, weights = np.polynomial.legendre.leggauss(steps)
    with undisturbed(model) as inner:
        total = _precise_zeros(x)
        fast = folded(inner, x)
        for point, weight in zip((points + 1) / 2, weights / 2, strict=True):
            total += float(weight) * input_gradient(fast, start + float(point) * way, target)
    return (total * way).sum(dim=1).to(x.dtype)


def _precise_zeros(x: Tensor) -> Tensor:
    return torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))


def baseline_image(x: Tensor, baseline: Literal["channel_mean", "zero"] | Tensor) -> Tensor:
    """The image that stands for the absence of a feature, of the shape of ``x``.

    Raises:
        ValueError: The baseline is unknown, or a tensor that does not broadcast to ``x``.
    """
    if isinstance(baseline, Tensor):
        try:
            return baseline.to(x).expand_as(x)
        except RuntimeError:
            got = tuple(baseline.shape)
            raise ValueError(
                f"baseline must broadcast to {tuple(x.shape)}, got shape {got}"
            ) from None
    if baseline == "channel_mean":
        return x.mean(dim=tuple(range(2, x.dim())), keepdim=True).expand_as(x)
    if baseline == "zero":
        return torch.zeros_like(x)
    raise ValueError(f"baseline must be 'channel_mean', 'zero' or a tensor, got {baseline!r}")


class _GuidedReLU(torch.autograd.Function):
    """ReLU whose gradient passes only where it is positive."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = x.clamp_min(0)
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (out,) = ctx.saved_tensors
        positive: Tensor = grad.clamp_min(0) * (out > 0)
        return positive


class _Guided(TorchFunctionMode):
    """Runs every ReLU, module, function or method, in place or not, as a guided one.

    One in place writes to its argument and returns it, since a model may go on with either.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in RELUS:
            return func(*args, **kwargs)
        self.seen += 1
        x = args[0] if args else kwargs["input"]
        out = _GuidedReLU.apply(x)
        return x.copy_(out) if func in _RELUS_IN_PLACE or kwargs.get("inplace") else out


_RELUS_IN_PLACE: frozenset[Any] = frozenset([F.relu_, torch.relu_, Tensor.relu_])
RELUS: frozenset[Any] = _RELUS_IN_PLACE | {F.relu, torch.relu, Tensor.relu}


def guided_gradient(model: nn.Module, x: Tensor, target: Target) -> Tensor:
    """The guided gradient ``(N, C, H, W)``; ``model`` must be undisturbed."""
    with _Guided() as mode:
        found = input_gradient(model, x, target)
    if not mode.seen:
        raise ValueError("guided backpropagation needs a ReLU, and the model ran none")
    return found


def guided_backprop(model: nn.Module, x: Tensor, target: Target) -> Tensor:
    """Saliency with negative gradients stopped at each ReLU. Arguments as in :func:`saliency`.

    Raises:
        ValueError: The model has no ReLU, so there is nothing to guide.
    """
    check_input(x)
    with undisturbed(model) as inner:
        return guided_gradient(inner, x, target).abs().amax(dim=1)


def blurred_saliency(model: nn.Module, x: Tensor, target: Target, *, std: float = 2.0) -> Tensor:
    """Saliency under a Gaussian blur: the control that tells what of a method's score is mere
    smoothness.

    Args:
        model: A classifier with logits ``(N, K)``.
        x: ``(N, C, H, W)``.
        target: Class of each image ``(N,)`` or one for all.
        std: Of the Gaussian, in pixels, ``>= 0``. Its kernel is cut off at two standard deviations.

    Raises:
        ValueError: ``std < 0``.
    """
    if not std >= 0:
        raise ValueError(f"std must be >= 0, got {std}")
    maps = saliency(model, x, target)
    return blur(maps[:, None], tuple(smoothing(n, std, maps) for n in maps.shape[1:]))[:, 0]


def random_map(model: nn.Module, x: Tensor, target: Target, *, seed: int = 0) -> Tensor:
    """Uniform noise in ``[0, 1)``, the control that any method must beat: ``(N, H, W)``."""
    check_input(x)
    generator = torch.Generator().manual_seed(seed)
    return torch.rand((x.shape[0], *x.shape[2:]), generator=generator).to(x)
