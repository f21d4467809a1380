from __future__ import annotations

import pytest
import torch
from torch import nn

from addis.explain import degradation, sensitivity_n
from addis.explain._evidence import judging


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(16, 3)

    def forward(self, x):
        return self.fc(x.sub_(0.5).flatten(1))


def test_the_images_are_left_to_the_caller():
    torch.manual_seed(0)
    model, x = InPlace().eval(), torch.rand(4, 1, 4, 4)
    before = x.clone()
    with judging(model, x, 1) as judge:
        judge(x, torch.arange(4), softmax=False)
    assert torch.equal(x, before)


def test_metrics_run_in_inference_mode_too():
    torch.manual_seed(0)
    model, x = InPlace().eval(), torch.rand(4, 1, 4, 4)
    with torch.no_grad():
        target = model(x.clone()).argmax(1)
    want = degradation(model, x, target, x[:, 0], tile=2, steps=4).morf
    with torch.inference_mode():
        assert torch.equal(degradation(model, x, target, x[:, 0], tile=2, steps=4).morf, want)
        sensitivity_n(model, x, target, x[:, 0], tile=2, subsets=5)


def test_a_model_without_a_row_for_each_image_is_an_error():
    class Mean(InPlace):
        def forward(self, x):
            return super().forward(x).mean(0, keepdim=True)

    x = torch.rand(4, 1, 4, 4)
    with judging(Mean().eval(), x, 1) as judge, pytest.raises(ValueError, match=r"\(4, K\)"):
        judge(x, torch.arange(4), softmax=False)
