"""What an attribution is: a map over the input, in a unit that is named."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

__all__ = ["Attribution"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Attribution:
    """Heat maps of a batch of images.

    Attributes:
        map: ``(N, H, W)`` at the size of the input (``(N, *spatial)`` in general; ``(N, C)`` behind
            a layer without positions). From a bottleneck in bits per pixel: its sum over the pixels
            is the information in bits.
        total_bits: ``(N,)`` information that passes, in bits, over all cells; NaN for a method
            without a unit.
        method: The method's name.
        capacity: Information of each cell of the layer in nats, ``(N, *features)``; ``None`` for
            other methods.
        mask: The mask lambda that was fitted, ``(N, *features)``; ``None`` for other methods.
        history: From a bottleneck, ``(T, N)`` each: ``"loss"``, its term ``"objective"``, and
            ``"bits"``, the total, at each step before its update. Empty for other methods.
        std: Standard deviation of ``map`` over repetitions with other noise; ``None`` without
            repetitions.
        layer: The layer that was restricted; empty for other methods.
        channel_axis: Axis of the channels in ``capacity``.
        unit: Unit of ``map``.
    """

    map: Tensor
    total_bits: Tensor
    method: str
    capacity: Tensor | None = None
    mask: Tensor | None = None
    history: dict[str, Tensor] = field(default_factory=dict)
    std: Tensor | None = None
    layer: str = ""
    channel_axis: int = 1
    unit: str = ""

    @property
    def channel_bits(self) -> Tensor:
        """Information of each channel of the layer in bits, ``(N, C)``.

        Raises:
            RuntimeError: The method has no capacity.
        """
        if self.capacity is None:
            raise RuntimeError(f"method {self.method!r} has no capacity, so no bits of a channel")
        channels = self.capacity.movedim(self.channel_axis, 1)
        return channels.flatten(2).sum(dim=2) / _LN2 if channels.dim() > 2 else channels / _LN2

    @property
    def converged(self) -> Tensor:
        """Whether the loss had settled, ``(N,)`` bool: the last step brought under 5 % of the whole
        descent.

        Raises:
            RuntimeError: The method has no history of two steps.
        """
        loss = self.history.get("loss")
        if loss is None or len(loss) < 2:
            raise RuntimeError(f"method {self.method!r} kept no history of two steps or more")
        descent = loss[0] - loss.min(dim=0).values
        return (loss[-2] - loss[-1]).abs() <= 0.05 * descent

    def save_html(
        self, path: Path | str, images: Tensor, *, captions: list[str] | None = None
    ) -> Path:
        """Writes one self-contained page: each image, its map over it, a colour bar in the map's
        unit.

        Args:
            path: File to write.
            images: ``(N, C, H, W)`` with 1 or 3 channels. Values outside ``[0, 1]``, such as
                normalised ones, are stretched from their minimum to their maximum.
            captions: A line of text for each image.

        Returns:
            The path.

        Raises:
            ValueError: The images do not fit the maps, or there is not one caption an image.
        """
        from addis.explain._picture import write_html

        return write_html(Path(path), self, images, captions)

    def save_png(
        self, path: Path | str, images: Tensor, *, index: int = 0, title: str = ""
    ) -> Path:
        """Writes the picture of one image with its map over it and a colour bar; see
        :meth:`save_html`.
        """
        from addis.explain._picture import write_png

        return write_png(Path(path), self, images, index=index, title=title)


_LN2 = math.log(2)
