"""Layer-wise relevance propagation, by zennit.

Paper: S. Bach et al., "On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise
Relevance Propagation", PLoS ONE 2015. The rules and their order are zennit's (C. Anders et al.,
arXiv:2106.13200). PatternAttribution, whose patterns are learned from data, has no rule there: see
``_pattern.py``.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from addis.explain._gradients import Target
from addis.explain._inputs import as_targets, check_input, class_scores
from addis.explain._layers import undisturbed

__all__ = ["lrp"]


def lrp(model: nn.Module, x: Tensor, target: Target, *, composite: Any = None) -> Tensor:
    """Relevance of each pixel, summed over channels.

    Args:
        model: A classifier with logits ``(N, K)``, made of modules that zennit has rules for.
        x: ``(N, C, H, W)``.
        target: Class of each image ``(N,)`` or one for all.
        composite: A zennit composite. By default the epsilon rule for dense layers and the z-plus
            rule for convolutions, batch norms merged into the layer before them.

    Returns:
        ``(N, H, W)``, signed.

    Raises:
        ImportError: zennit is not installed; the message names the extra.
    """
    try:
        from zennit.attribution import Gradient
    except ImportError as error:
        raise ImportError("lrp needs zennit: install addis[lrp]") from error
    check_input(x)
    with undisturbed(model) as inner:
        with torch.no_grad():
            logits = class_scores(inner(x.clone()), len(x))  # the model may work in place
        classes = as_targets(target, logits)
        start = torch.zeros_like(logits).scatter_(1, classes[:, None], 1.0)
        own = copy.deepcopy(
            inner
        )  # zennit rewrites weights and hooks, and an error would leave them
    rules = _default_composite(own) if composite is None else composite
    leaf = x.detach().clone().requires_grad_()
    with torch.enable_grad(), Gradient(model=own, composite=rules) as attributor:
        relevance: Tensor = attributor(leaf, start)[1]
    return relevance.detach().sum(dim=1)


def _default_composite(model: nn.Module) -> Any:
    from torchvision.models.resnet import ResNet
    from zennit.canonizers import SequentialMergeBatchNorm
    from zennit.composites import EpsilonPlus
    from zennit.torchvision import ResNetCanonizer

    canonizer = ResNetCanonizer() if isinstance(model, ResNet) else SequentialMergeBatchNorm()
    return EpsilonPlus(canonizers=[canonizer])
