from __future__ import annotations

import random

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
    kept = x.clone()
    places = boxes(size, width or size, patch, step)
    index = [i % 2 for i in range(len(places))]
    with torch.no_grad():
        forward = PatchedForward(folded(model, x), x, patch)
        found = forward(index, places, cover)
        whole = x[index].clone()
        for copy, (top, bottom, left, right) in enumerate(places):
            image = cover[index[copy]]
            whole[copy, :, top:bottom, left:right] = image[:, top:bottom, left:right]
        torch.testing.assert_close(found, model(whole.clone()), rtol=1e-4, atol=1e-4)
    assert torch.equal(x, kept)
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


def random_layers(seed: int) -> nn.Sequential:
    draw = random.Random(seed)
    layers: list[nn.Module] = []
    for _ in range(draw.randint(1, 3)):
        kernel, stride, padding = draw.randint(1, 3), draw.randint(1, 3), draw.randint(0, 1)
        if draw.random() < 0.7:
            layers.append(nn.Conv2d(3, 3, kernel, stride, padding))
        else:
            pool = draw.choice([nn.MaxPool2d, nn.AvgPool2d])
            layers.append(pool(kernel, stride, min(padding, kernel // 2)))
    return nn.Sequential(*layers)


@pytest.mark.parametrize("seed", range(25))
def test_windows_of_any_size_and_stride_give_the_output_of_the_full_pass(seed):
    torch.manual_seed(seed)
    layers = random_layers(seed)
    cells = layers(torch.zeros(1, 3, 18, 12)).numel()
    check(nn.Sequential(layers, nn.Flatten(), nn.Linear(cells, 64)), 18, 1 + seed % 4, 1, width=12)


@pytest.mark.parametrize("kernel", [1, 2])
def test_pixels_that_the_first_layer_skips_change_nothing(kernel):
    torch.manual_seed(0)
    cells = 2 * 4**2
    layers = nn.Sequential(nn.Conv2d(3, 2, kernel, 3), nn.Flatten(), nn.Linear(cells, 5))
    for patch in (1, 2, 3, 5):
        assert check(layers, 12, patch, 1) == "_0"


def test_a_layer_in_place_on_the_image_leaves_it_alone():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.ReLU(inplace=True), nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 22 * 22, 5)
    )
    assert check(model, 24, 4, 7) == "_1"


@pytest.mark.parametrize("where", ["image", "features"])
def test_a_step_in_place_that_mixes_positions_is_not_cropped(where):
    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.deep = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 32, 3, padding=1)
            self.fc = nn.Linear(32, 5)

        def forward(self, x):
            if where == "image":
                x.sub_(3 * x.mean((2, 3), keepdim=True))
            x = self.conv(x)
            if where == "features":
                x.sub_(3 * x.mean((2, 3), keepdim=True))
            return self.fc(self.deep(x).relu().mean((2, 3)))

    assert check(Centred(), 24, 3, 5) == ("conv" if where == "features" else "")
