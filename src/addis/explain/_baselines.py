"""The methods that a bottleneck is compared with, by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Protocol

from torch import Tensor, nn

from addis.explain._cam import gradcam, guided_gradcam, hirescam, layercam
from addis.explain._gradients import (
    blurred_saliency,
    gradient,
    gradient_x_input,
    guided_backprop,
    integrated_gradients,
    random_map,
    saliency,
    smoothgrad,
)
from addis.explain._lrp import lrp
from addis.explain._occlusion import occlusion
from addis.explain._rise import rise

__all__ = ["BASELINES", "Baseline"]


class Baseline(Protocol):
    """A method that needs no statistics: maps ``(N, H, W)`` of images ``(N, C, H, W)`` for their
    classes.
    """

    def __call__(self, model: nn.Module, x: Tensor, target: Tensor | int | None) -> Tensor: ...


BASELINES: Final[Mapping[str, Baseline]] = MappingProxyType(
    {
        "random": random_map,
        "saliency": saliency,
        "blurred_saliency": blurred_saliency,
        "gradient": gradient,
        "gradient_x_input": gradient_x_input,
        "smoothgrad": smoothgrad,
        "integrated_gradients": integrated_gradients,
        "guided_backprop": guided_backprop,
        "gradcam": gradcam,
        "guided_gradcam": guided_gradcam,
        "hirescam": hirescam,
        "layercam": layercam,
        "occlusion": occlusion,
        "rise": rise,
        "lrp": lrp,
    }
)
"""Every baseline with its default settings; ``lrp`` needs the extra ``addis[lrp]``.

``pattern_attribution`` is not among them: it needs patterns estimated from data.
"""
