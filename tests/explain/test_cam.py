from __future__ import annotations

import pytest
import torch
from torch import nn

from addis.explain import CAMS, gradcam, hirescam


class Head(nn.Module):
    """Backbone and head; what lies up to the layer may be frozen, or the layer not be used."""

    def __init__(self, *, frozen: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU())
        self.unused, self.fc, self.frozen = nn.Conv2d(1, 4, 3), nn.Linear(4, 3), frozen

    def forward(self, x):
        self.unused(x)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features = self.backbone(x)
        return self.fc(features.mean((2, 3)))


def images(n: int = 2) -> torch.Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("layer", ["backbone", "backbone.0"])
def test_a_model_that_turns_gradients_off_up_to_the_layer_is_explained_all_the_same(layer):
    frozen, free = Head(frozen=True).eval(), Head().eval()
    assert torch.equal(hirescam(frozen, images(), 1, layer), hirescam(free, images(), 1, layer))


def test_a_layer_that_the_logit_does_not_depend_on_is_an_error():
    with pytest.raises(ValueError, match="does not depend on layer 'unused'"):
        gradcam(Head().eval(), images(), 1, "unused")


def test_a_model_without_a_row_for_each_image_is_an_error():
    class Mean(Head):
        def forward(self, x):
            return super().forward(x).mean(0, keepdim=True)

    with pytest.raises(ValueError, match=r"\(4, K\) for 4 images, got shape \(1, 3\)"):
        gradcam(Mean().eval(), images(4), 1, "backbone")


@pytest.mark.parametrize("name", sorted(set(CAMS) - {"guided_gradcam"}))
def test_a_model_may_work_in_place_and_inference_mode_does_not_matter(name):
    class InPlace(Head):
        def forward(self, x):
            return super().forward(x.sub_(0.5))

    x, model = images(), InPlace().eval()
    want = CAMS[name](Head().eval(), x - 0.5, 1, "last")
    with torch.inference_mode():
        assert torch.equal(CAMS[name](model, x, 1, "last"), want)
        inside = x.clone()
    assert torch.equal(CAMS[name](model, inside, 1, "last"), want)
    assert torch.equal(x, images())
