"""Similarity matching: make the batch's features as alike as its labels are.

Paper: A. Nøkland, L. H. Eidnes, "Training Neural Networks with Local Error Signals", ICML 2019,
arXiv:1901.06656, eq. 1-2.
Departures: the loss is the mean over the ``n²`` pairs, as in the authors' code; the paper writes
the squared Frobenius norm. Its gradient is the closed form, found while the loss is computed: of a
feature map only the centred map and a number a channel are kept for backward, and no second
derivative exists. What is found a sample and channel is in float32 also with mixed precision, so
that a loss scale reaches the gradient before it is rounded.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["Spatial", "label_similarity", "similarity_loss", "similarity_matrix"]

Spatial = Literal["std", "flatten"]
_FLOATING: Final = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def similarity_matrix(x: Tensor, *, spatial: Spatial = "std", eps: float = 1e-8) -> Tensor:
    """Cosine similarity of every pair of samples, each sample centred over its own features.

    ``x̃ = x - mean_d(x)``, ``x̂ = x̃ / (‖x̃‖ + eps)``, ``S = clamp(X̂X̂ᵀ, -1, 1)``. The centring is
    of rows, so ``S`` does not change when a constant is added to a sample's features or they are
    scaled by a positive number.

    Example:
        >>> similarity_matrix(torch.eye(3)[[0, 0, 1]])
        tensor([[ 1.0000,  1.0000, -0.5000],
                [ 1.0000,  1.0000, -0.5000],
                [-0.5000, -0.5000,  1.0000]])

    Args:
        x: Features ``(n, D)``, maps ``(n, C, H, W)`` or tokens ``(n, T, D)``.
        spatial: ``"std"`` first replaces each map by its standard deviation over the pixels
            (unbiased), and each token feature by its standard deviation over the tokens, where
            there are more than 3 channels and more than one row (token); ``"flatten"`` takes every
            pixel as a feature.
        eps: Added to the norm, so that a constant row has similarity 0 with all.

    Returns:
        ``(n, n)``, in float32 if ``x`` is of half precision.

    Raises:
        TypeError: ``x`` is not floating point.
        ValueError: ``x`` has another number of dimensions, or ``spatial`` is unknown.
    """
    dims = _summarised(x, spatial)
    z = x.flatten(1) if dims is None else x.std(dim=dims)
    z = _at_least_float32(z)
    z = z - z.mean(dim=1, keepdim=True)
    unit: Tensor = z / (torch.linalg.vector_norm(z, dim=1, keepdim=True) + eps)
    with torch.autocast(z.device.type, enabled=False):
        return (unit @ unit.T).clamp(-1, 1)


def label_similarity(y: Tensor, *, num_classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The similarities of one-hot labels: 1 for equal labels, ``-1/(K-1)`` for others.

    Args:
        y: Class numbers ``(n,)``.
        num_classes: ``K >= 2``.
        dtype: Of the result.

    Returns:
        ``(n, n)``.

    Raises:
        ValueError: ``num_classes < 2``.
    """
    if num_classes < 2:
        raise ValueError(f"num_classes must be >= 2, got {num_classes}")
    apart = torch.full((), -1 / (num_classes - 1), dtype=dtype, device=y.device)
    return torch.where(y[:, None] == y, torch.ones_like(apart), apart)


def similarity_loss(
    h: Tensor,
    y: Tensor | None = None,
    *,
    num_classes: int | None = None,
    target: Tensor | None = None,
    spatial: Spatial = "std",
    eps: float = 1e-8,
) -> Tensor:
    """Mean squared difference between similarities of features and of labels, over ``n²`` pairs.

    Doubling the batch by repetition leaves the loss unchanged. A batch of one has loss 0 and
    gradient 0.

    Args:
        h: Features ``(n, D)``, maps ``(n, C, H, W)`` or tokens ``(n, T, D)``.
        y: Class numbers ``(n,)``, which need ``num_classes``, or soft labels ``(n, K)``.
        num_classes: ``K``; only for class numbers.
        target: The similarities to match ``(n, n)``, in place of ``y``. No gradient flows to it.
        spatial: See `similarity_matrix`.
        eps: See `similarity_matrix`.

    Returns:
        A scalar in ``[0, 4]``.

    Raises:
        TypeError: Labels are neither integers ``(n,)`` nor a floating-point matrix ``(n, K)``.
        ValueError: Not exactly one of ``y`` and ``target``, or a shape that does not fit ``h``.
    """
    if (y is None) == (target is None):
        raise ValueError("exactly one of y and target must be given")
    if target is None:
        assert y is not None
        precise = torch.float64 if h.dtype == torch.float64 else torch.float32
        target = target_similarity(y, num_classes=num_classes, dtype=precise, eps=eps)
    n = len(h)
    if target.shape != (n, n):
        raise ValueError(f"labels must give {(n, n)} similarities, got {tuple(target.shape)}")
    dims = _summarised(h, spatial)
    loss: Tensor = _SimilarityLoss.apply(h, target.detach(), dims, eps)
    return loss


def target_similarity(
    y: Tensor, *, num_classes: int | None, dtype: torch.dtype = torch.float32, eps: float = 1e-8
) -> Tensor:
    """The similarities ``(n, n)`` that class numbers ``(n,)`` or soft labels ``(n, K)`` ask for."""
    if y.dim() == 2 and y.dtype in _FLOATING:
        return similarity_matrix(y, eps=eps)
    if y.dim() != 1 or y.dtype in _FLOATING:
        raise TypeError(
            "y must be class numbers (n,) or soft labels (n, K), got "
            f"{y.dtype} of shape {tuple(y.shape)}"
        )
    if num_classes is None:
        raise ValueError("num_classes must be given with class numbers")
    return label_similarity(y, num_classes=num_classes, dtype=dtype)


def _summarised(x: Tensor, spatial: Spatial) -> tuple[int, ...] | None:
    """The dimensions whose standard deviation stands for them; ``None`` if all are flattened."""
    if x.dtype not in _FLOATING:
        raise TypeError(f"features must be floating point, got {x.dtype}")
    if spatial not in ("std", "flatten"):
        raise ValueError(f"spatial must be 'std' or 'flatten', got {spatial!r}")
    if x.dim() not in (2, 3, 4):
        raise ValueError(
            f"features must be (n, D), (n, T, D) or (n, C, H, W), got {tuple(x.shape)}"
        )
    if spatial == "flatten" or x.dim() == 2:
        return None
    if x.dim() == 4:
        return (2, 3) if x.shape[1] > 3 and x.shape[2] > 1 else None
    return (1,) if x.shape[2] > 3 and x.shape[1] > 1 else None


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class _SimilarityLoss(torch.autograd.Function):
    """``mean((S(h) - T)²)`` with its gradient found in the forward pass.

    With ``z`` the features or the standard deviations, ``r = ‖z̃‖``, ``X̂ = z̃/(r + ε)``:
    ``G = (2/n²)(S - T)``; ``dX̂ = (G + Gᵀ)X̂``; ``dz = dX̂/(r + ε) - z̃⟨z̃, dX̂⟩/(r(r + ε)²)``;
    for maps of ``P`` pixels ``dh = dz (h - mean)/((P - 1) z)``, 0 where ``z = 0``. Backward of a
    map then is one multiplication a pixel.

    Two steps of the chain rule need no code. Centring would subtract ``mean(dz)``, which is 0
    since every row of ``X̂`` has mean 0. The clamp would mask what passes 1, which only rounding
    does, between rows of one direction: the second term of ``dz`` takes out what such a pair adds.
    """

    @staticmethod
    def forward(
        ctx: Any, h: Tensor, target: Tensor, dims: tuple[int, ...] | None, eps: float
    ) -> Tensor:
        ctx.shape, ctx.dtype = h.shape, h.dtype
        if dims is None:
            loss, dz = _matching(_at_least_float32(h.flatten(1)), target, eps)
            ctx.save_for_backward(dz)
            return loss
        std, centred = _spread(h, dims)
        z = _at_least_float32(std.flatten(1))
        loss, dz = _matching(z, target, eps)
        pixels = h.numel() // z.numel()
        scale = torch.where(z > 0, dz / ((pixels - 1) * z), 0.0)
        ctx.save_for_backward(scale.view_as(std), centred)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        scale, *maps = ctx.saved_tensors
        scale = scale * grad
        if ctx.dtype != torch.float16:  # bfloat16 has the range of float32
            scale = scale.to(ctx.dtype)
        found = torch.mul(maps[0], scale, out=torch.empty_like(maps[0])) if maps else scale
        return found.to(ctx.dtype).view(ctx.shape), None, None, None


def _spread(h: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Standard deviation (unbiased, dimensions kept) and centred values, in two passes.

    On CUDA `torch.var_mean` reads the map once. On a CPU it runs Welford's recurrence a scalar at a
    time: 43 ms for (32, 256, 32, 32) on one core, where the mean, the difference and its norm
    together take 14.
    """
    if h.is_cuda:
        variance, mean = torch.var_mean(h, dim=dims, keepdim=True)
        return variance.sqrt(), h - mean
    centred = h - h.mean(dim=dims, keepdim=True)
    if centred.is_contiguous():
        norm = torch.linalg.vector_norm(centred, dim=dims, keepdim=True)
    else:  # the norm over the pixels of a channels_last map is not vectorised; the sum is
        norm = _at_least_float32(centred).square().sum(dim=dims, keepdim=True).sqrt()
    return norm / (h.numel() // norm.numel() - 1) ** 0.5, centred


def _matching(z: Tensor, target: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The loss of features ``(n, D)`` and its gradient ``(n, D)``."""
    n = len(z)
    centred = z - z.mean(dim=1, keepdim=True)
    norm = torch.linalg.vector_norm(centred, dim=1, keepdim=True)
    unit = centred / (norm + eps)
    with torch.autocast(z.device.type, enabled=False):
        cosine = unit @ unit.T
        difference = cosine.clamp_(-1, 1) - target.to(z.dtype)
        loss = difference.square().mean()
        g = difference.mul_(2 / n**2)
        dunit = (g + g.T) @ unit
    along = (unit * dunit).sum(dim=1, keepdim=True)  # 0 for a constant row, whose unit vector is 0
    return loss, dunit / (norm + eps) - unit * along / norm.clamp_min(torch.finfo(z.dtype).tiny)
