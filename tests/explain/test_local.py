from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from addis.explain._fold import folded
from addis.explain._local import PatchedForward


class Shortcuts(nn.Module):
    """Strides, pools, dilation, a joined and a concatenated branch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 5, 2, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=2, dilation=2), nn.Conv2d(4, 4, 1)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.deep = nn.Conv2d(8, 32, 3, padding=1)
        self.fc = nn.Linear(32, 5)

    def forward(self, x):
        x = self.stem(x)
        x = torch.cat([self.a(x) + x, self.b(x)], dim=1)
        return self.fc(torch.relu(self.deep(self.pool(x))).mean((2, 3)))


def boxes(height: int, width: int, patch: int, step: int) -> list[tuple[int, int, int, int]]:
    rows, cols = (
        [(start, min(start + patch, side)) for start in range(0, side, step)]
        for side in (height, width)
    )
    return [(*row, *col) for row in rows for col in cols]


def check(model: nn.Module, size: int, patch: int, step: int, width: int | None = None) -> str:
    torch.manual_seed(1)
    model = model.eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.bias.data.normal_()
    x, cover = torch.randn(2, 2, 3, size, width or size)
    places = boxes(size, width or size, patch, step)
    index = [i % 2 for i in range(len(places))]
    with torch.no_grad():
        forward = PatchedForward(folded(model, x), x, patch)
        found = forward(index, places, cover)
        whole = x[index].clone()
        for copy, (top, bottom, left, right) in enumerate(places):
            image = cover[index[copy]]
            whole[copy, :, top:bottom, left:right] = image[:, top:bottom, left:right]
        torch.testing.assert_close(found, model(whole), rtol=1e-4, atol=1e-4)
    return forward.cut


@pytest.mark.parametrize(
    ("size", "patch", "step"), [(64, 8, 8), (64, 7, 5), (64, 1, 13), (48, 40, 9)]
)
def test_a_patch_gives_the_output_of_the_full_pass(size, patch, step):
    torch.manual_seed(0)
    assert check(Shortcuts(), size, patch, step) or patch == 40


@pytest.mark.parametrize(
    ("name", "size"),
    [("resnet18", 128), ("squeezenet1_1", 128), ("vgg11_bn", 96), ("mobilenet_v2", 96)],
)
def test_known_models_give_the_output_of_the_full_pass(name, size):
    torch.manual_seed(0)
    assert check(getattr(torchvision.models, name)(num_classes=5), size, 10, 43)


def test_an_image_whose_side_the_stride_does_not_divide_runs_whole_or_to_a_smaller_stride():
    torch.manual_seed(0)
    check(Shortcuts(), 50, 6, 7)
    check(Shortcuts(), 51, 6, 7)
    check(Shortcuts(), 51, 6, 7, width=64)
    check(Shortcuts(), 64, 6, 7, width=51)


def test_a_model_that_mixes_positions_at_once_runs_whole():
    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 5)

        def forward(self, x):
            return self.fc(self.conv(x - x.mean((2, 3), keepdim=True)).mean((2, 3)))

    assert check(Mixing(), 32, 4, 9) == ""


def test_padding_that_is_not_zero_is_not_cropped():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.ReLU(), nn.Conv2d(4, 8, 3),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip
    assert check(model, 32, 4, 9) == ""
