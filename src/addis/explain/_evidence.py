"""What a model says of a target class: the one question that every deletion metric asks, many
times.

The metrics ask it of far more images than fit in memory, so images are made and judged piece by
piece within a budget of bytes. The size of a piece changes the time and not the result, up to the
rounding of the model's kernels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch
from torch import Tensor, nn

from addis.explain._fold import folded
from addis.explain._inputs import as_targets, check_finite, check_input, class_scores
from addis.explain._layers import undisturbed

__all__ = ["Judge", "check_images", "check_maps", "judging", "pieces"]

_CPU_BYTES: Final = 2**18
"""256 KiB of altered images: a CPU is fastest when a layer's activations stay in its caches.
ResNet-20 takes 0.85 ms an image of 32x32 in pieces of 16 (here 21), 1.03 ms in pieces of 128 and
1.52 ms in pieces of 512; SqueezeNet 26 ms of 224x224 one by one, 49 ms by 16 (measured).
"""
_DEVICE_BYTES: Final = 2**26
"""64 MiB elsewhere: 111 images of 3x224x224, enough to fill an accelerator."""


class Judge:
    """Scores altered copies of a batch of images for the class of each.

    Args:
        model: The undisturbed model or a copy, images ``(P, C, H, W)`` to logits ``(P, K)``.
        target: Class of each image of the batch, int64 ``(N,)``.
    """

    def __init__(self, model: nn.Module, target: Tensor) -> None:
        self.model, self.target = model, target

    def __call__(self, images: Tensor, chosen: Tensor, *, softmax: bool) -> Tensor:
        """The logit, or with ``softmax`` the probability, of the class of image ``chosen``: float64
        ``(P,)`` on the CPU.

        Args:
            images: ``(P, C, H, W)``; the model gets a copy, on which it may work in place.
            chosen: Which image of the batch each is a copy of, int64 ``(P,)``.
            softmax: Probabilities, in float32 at least, rather than logits.
        """
        logits = class_scores(self.model(images.clone()), len(images))
        scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if softmax:
            scores = scores.sigmoid() if scores.shape[1] == 1 else scores.softmax(1)
        found = scores.gather(1, self.target[chosen][:, None])[:, 0]
        check_finite("the model's score of the target", found)
        return found.double().cpu()


@contextmanager
def judging(model: nn.Module, x: Tensor, target: Tensor | int | None) -> Iterator[Judge]:
    """A judge of copies of ``x`` ``(N, C, H, W)``; the model is in evaluation mode meanwhile and
    left as it was. A copy of it that is quicker answers, where there is one.

    Raises:
        TypeError: ``target`` is not of integers, or the model does not return a tensor.
        ValueError: ``target`` does not fit ``x`` or the model's K classes.
    """
    inference = torch.is_inference_mode_enabled()  # then so are the tensors that it is given
    with undisturbed(model) as inner, torch.inference_mode(inference), torch.no_grad():
        first = class_scores(inner(x[:1].clone()), 1)
        yield Judge(folded(inner, x[:1]), as_targets(target, first.expand(len(x), -1)))


def pieces(count: int, like: Tensor, memory: int | None) -> Iterator[slice]:
    """Cuts ``range(count)`` into runs of images of which each fits in ``memory`` bytes (at least
    one image each).

    Args:
        count: Number of altered images.
        like: Images ``(N, C, H, W)`` of the same size, dtype and device.
        memory: Bytes; ``None`` means 256 KiB on a CPU and 64 MiB elsewhere.

    Raises:
        ValueError: ``memory < 1``.
    """
    if memory is None:
        memory = _CPU_BYTES if like.device.type == "cpu" else _DEVICE_BYTES
    if memory < 1:
        raise ValueError(f"memory must be >= 1 byte, got {memory}")
    step = max(1, memory // (like[0].numel() * like.element_size()))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def check_images(x: Tensor) -> None:
    """Refuses what is not a finite floating batch ``(N, C, H, W)``.

    Raises:
        TypeError: ``x`` is not floating.
        ValueError: Its shape is wrong.
        FloatingPointError: It holds a value that is not finite.
    """
    check_input(x)
    if x.dim() != 4:
        raise ValueError(f"x must be (N, C, H, W), got shape {tuple(x.shape)}")


def check_maps(map: Tensor, shape: tuple[int, ...] | None = None) -> None:
    """Refuses a map that is not a finite floating ``(N, H, W)``, or not of ``shape``.

    Raises:
        TypeError: ``map`` is not a floating tensor.
        ValueError: Its shape is wrong.
        FloatingPointError: It holds a value that is not finite.
    """
    if not isinstance(map, Tensor):
        raise TypeError(
            f"map must be a tensor, got {type(map).__name__}; of an Attribution, its .map"
        )
    if not map.is_floating_point():
        raise TypeError(f"map must be floating, got {map.dtype}")
    if map.dim() != 3 or not map.numel():
        raise ValueError(f"map must be (N, H, W) and not empty, got shape {tuple(map.shape)}")
    if shape is not None and tuple(map.shape) != shape:
        raise ValueError(f"map must be {shape} for these images, got shape {tuple(map.shape)}")
    check_finite("map", map)
