"""Grouped forms of layers and functions: each against the loop over the copies, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models as vision

from addis.train import StackedTrainer, seeded


class Do(nn.Module):
    """A model from a function of itself and its input."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.forward_ = forward
        self.scale = nn.Parameter(torch.rand(3, 1, 1))
        self.register_buffer("mean", torch.rand(1, 3, 1, 1))
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_(self, x)


def head(channels: int) -> tuple[nn.Module, ...]:
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5)


def on_images(*layers: nn.Module, channels: int = 3) -> nn.Sequential:
    return nn.Sequential(*layers, *head(channels))


def residual(m: Any, x: Tensor) -> Tensor:
    y = m.norm(m.conv(x))
    y += x
    y = F.relu(y) + x
    return m.last(F.adaptive_avg_pool2d(y, 1).view(x.size(0), -1))


def dense(m: Any, x: Tensor) -> Tensor:
    y = torch.cat([x, m.conv(x)], 1)
    return m.last(torch.cat([y, y[:, :, ::1, :]], dim=1).mean((2, 3)))


def option_a(m: Any, x: Tensor) -> Tensor:
    y = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 2)) + F.avg_pool2d(m.conv(x), 2)
    return m.last(torch.flatten(F.max_pool2d(F.relu(input=y), 4), 1))


def own_tensors(m: Any, x: Tensor) -> Tensor:
    y = (x - m.mean) / (1 + m.scale) * 2
    y = m.scale * F.conv2d(y, m.conv.weight, m.conv.bias, padding=1) + x
    return F.linear(y.mean([-1, -2]), m.last.weight, m.last.bias)


def gated(m: Any, x: Tensor) -> Tensor:
    gate = torch.sigmoid(m.conv(x.mean((2, 3), keepdim=True)))
    y = x * gate
    return m.last(F.dropout(y.reshape(y.shape[0], -1), 0.5, m.training))


def kept_relu(m: Any, x: Tensor) -> Tensor:
    y = m.norm(m.conv(x))
    z = F.relu(y)
    return m.last(F.max_pool2d(z, 2).mean((2, 3)) + y.mean((2, 3)) + z.mean((2, 3)))


def read_twice(m: Any, x: Tensor) -> Tensor:
    y = F.relu(m.norm(m.conv(x)))
    return m.last(F.max_pool2d(y, 2).mean((2, 3)) + y.mean((2, 3)))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "bias": lambda: on_images(nn.Conv2d(3, 4, 3), nn.Tanh(), channels=4),
    "groups": lambda: on_images(
        nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 3, groups=2, stride=2), nn.GELU(), channels=4
    ),
    "groups first": lambda: on_images(nn.Conv2d(3, 6, 3, groups=3, bias=False), channels=6),
    "padding": lambda: on_images(
        nn.Conv2d(3, 4, 3, padding="same", dilation=2),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
        channels=4,
    ),
    "norm first": lambda: on_images(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), channels=4),
    "norms": lambda: on_images(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.3, eps=1e-2), nn.ReLU(inplace=True),
        nn.BatchNorm2d(4, affine=False), nn.Conv2d(4, 4, 1),
        nn.BatchNorm2d(4, track_running_stats=False), nn.GroupNorm(2, 4), channels=4,
    ),
    "blocks": lambda: on_images(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4, momentum=0.3, eps=1e-2), nn.MaxPool2d(2),
        nn.ReLU(), nn.Conv2d(4, 5, 2, padding=1, groups=1), nn.ReLU(inplace=True),
        nn.BatchNorm2d(5, affine=False), nn.MaxPool2d(2, ceil_mode=True), nn.ReLU(),
        nn.BatchNorm2d(5, track_running_stats=False), nn.ReLU(), nn.Conv2d(5, 4, 1),
        nn.MaxPool2d(2, 1), nn.Conv2d(4, 4, (1, 3), padding="same"), nn.Conv2d(4, 4, 2),
        nn.MaxPool2d(2, padding=1), nn.AdaptiveMaxPool2d(1), channels=4,
    ),
    "pools": lambda: on_images(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Conv2d(4, 4, 1),
        nn.ReLU(), nn.AvgPool2d(2),
        nn.Upsample(scale_factor=2), nn.ZeroPad2d(1), nn.AdaptiveMaxPool2d(2), channels=4,
    ),
    "random": lambda: nn.Sequential(
        nn.Dropout(0.3), nn.Conv2d(3, 4, 3), nn.Dropout(0.2), nn.ReLU(), nn.Dropout2d(0.4),
        nn.Flatten(), nn.Dropout(0.5, inplace=True), nn.Linear(144, 5), nn.Dropout(0.1),
    ),
    "all dropped": lambda: on_images(nn.Conv2d(3, 4, 3), nn.Dropout(1.0), channels=4),
    "mlp": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(192, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 6, bias=False),
        nn.LayerNorm(6), nn.Identity(), nn.Linear(6, 5),
    ),
    "flat norm first": lambda: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(192), nn.Linear(192, 5)),
    "residual": lambda: Do(
        residual, conv=nn.Conv2d(3, 3, 3, padding=1), norm=nn.BatchNorm2d(3), last=nn.Linear(3, 5)
    ),
    "dense": lambda: Do(dense, conv=nn.Conv2d(3, 2, 3, padding=1), last=nn.Linear(10, 5)),
    "option a": lambda: Do(option_a, conv=nn.Conv2d(3, 6, 3, padding=1), last=nn.Linear(6, 5)),
    "own tensors": lambda: Do(own_tensors, conv=nn.Conv2d(3, 3, 3), last=nn.Linear(3, 5)),
    "gated": lambda: Do(gated, conv=nn.Conv2d(3, 3, 1), last=nn.Linear(192, 5)),
    "kept relu": lambda: Do(
        kept_relu, conv=nn.Conv2d(3, 3, 3), norm=nn.BatchNorm2d(3), last=nn.Linear(3, 5)
    ),
    "relu read twice": lambda: Do(
        read_twice, conv=nn.Conv2d(3, 3, 3), norm=nn.BatchNorm2d(3), last=nn.Linear(3, 5)
    ),
    "written into": lambda: on_images(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.LeakyReLU(0.3, inplace=True),
        nn.Conv2d(4, 4, 1), nn.ReLU(), nn.MaxPool2d(1), nn.Identity(), nn.Hardtanh(inplace=True),
        channels=4,
    ),
    "dropped in place": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.3, inplace=True), nn.Flatten(),
        nn.Linear(36, 5),
    ),
    "nothing to train on maps": lambda: nn.Sequential(nn.MaxPool2d(2), nn.ReLU(), *head(3)),
}  # fmt: skip


def pair(
    factory: Callable[[], nn.Module], copies: int = 3, *, native: bool = True
) -> tuple[StackedTrainer, StackedTrainer]:
    models = [m.double() for m in seeded(factory, range(copies))]
    grouped, loop = (
        StackedTrainer(models, lr=0.1, backend=backend, native=native)
        for backend in ("grouped", "loop")
    )
    return grouped, loop


def apart(a: StackedTrainer, b: StackedTrainer) -> float:
    ours, theirs = a.state_dict()["tensors"], b.state_dict()["tensors"]
    return max(float((t.double() - theirs[n].double()).abs().max()) for n, t in ours.items())


def images(*shape: int) -> Tensor:
    g = torch.Generator().manual_seed(1)
    return torch.randn(*shape, 3, 8, 8, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_grouped_form_equals_the_loop(name: str, native: bool) -> None:
    grouped, loop = pair(MODELS[name], native=native)
    x, y = images(3, 3, 17), torch.arange(153).view(3, 3, 17) % 5
    for inputs, targets in zip(x, y, strict=True):
        kept = inputs.clone()
        a, b = (t.step(inputs, targets) for t in (grouped, loop))
        assert torch.allclose(a, b, atol=1e-12)
        assert torch.equal(inputs, kept)
    a, b = (t.step(x[0, 0], y[0, 0], shared=True) for t in (grouped, loop))
    assert torch.allclose(a, b, atol=1e-12)
    assert apart(grouped, loop) < 1e-12
    assert torch.allclose(grouped.outputs(x[0, 0]), loop.outputs(x[0, 0]), atol=1e-12)
    assert torch.allclose(
        grouped.outputs(x[0], shared=False), loop.outputs(x[0], shared=False), atol=1e-12
    )


@pytest.mark.parametrize("images", [2, 16])
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "squeezenet1_1"])
def test_published_model_has_a_grouped_form(name: str, images: int) -> None:
    grouped, loop = pair(lambda: getattr(vision, name)(num_classes=5).eval(), copies=2)
    assert grouped.native
    x = torch.rand(images, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double()
    assert torch.allclose(grouped.outputs(x), loop.outputs(x), atol=1e-10)


def test_images_of_one_axis_take_the_same_way() -> None:
    grouped, loop = pair(
        lambda: nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.MaxPool1d(2),
                              nn.Flatten(), nn.Linear(12, 5))
    )  # fmt: skip
    x, y = images(3, 6)[..., 0], torch.arange(18).view(3, 6) % 5
    assert torch.allclose(grouped.step(x, y), loop.step(x, y), atol=1e-12)
    assert apart(grouped, loop) < 1e-12


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x)[0]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Attention(), r"layer 'attention' \(MultiheadAttention\)"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4)), r"layer '1' \(InstanceNorm2d\)"),
        (Do(lambda m, x: torch.fft.fft(x).real), "fft"),
        (Do(lambda m, x: x.cumsum(1)), "method 'cumsum'"),
        (Do(lambda m, x: x if x.sum() > 0 else -x), "could not be traced"),
        (nn.Sequential(nn.BatchNorm2d(3, momentum=None)), "momentum=None"),
        (nn.Sequential(nn.MaxPool2d(2, return_indices=True)), "returns indices"),
    ],
)
def test_model_without_a_grouped_form_is_refused_by_layer(model: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=rf'{message}.*backend="vmap"'):
        StackedTrainer([model, model], lr=0.1, backend="grouped")


def test_hook_that_grouping_would_skip_is_refused() -> None:
    model = on_images(nn.Conv2d(3, 3, 3))
    model[0].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"'0'.*hooks"):
        StackedTrainer([model, model], lr=0.1, backend="grouped")


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.last(x.flatten(0, 1).mean((1, 2))),
        lambda m, x: m.last(x[:, :1].mean((2, 3))),
        lambda m, x: m.last(x.view(x.size(0), 12, -1)),
        lambda m, x: m.last(x.mean(1)),
        lambda m, x: m.last(m.last(x.flatten(1)) + x),
        lambda m, x: m.last(torch.cat([x, x], 2)),
        lambda m, x: m.last(F.conv2d(x, x)),
        lambda m, x: m.last(x),
        lambda m, x: m.last(x.flatten(1)).T,
    ],
)
def test_call_that_would_mix_copies_is_refused_with_advice(forward: Callable[..., Tensor]) -> None:
    model = Do(forward, last=nn.Linear(192, 192)).double()
    with pytest.raises(ValueError, match=r"no grouped form.*vmap"):
        StackedTrainer([model, model], lr=0.1, backend="grouped").outputs(
            images(2, 4), shared=False
        )


def test_vmap_takes_a_layer_without_a_grouped_form() -> None:
    def net() -> nn.Module:
        return on_images(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4, affine=True), channels=4)

    models = [m.double() for m in seeded(net, range(3))]
    vmapped, loop = (StackedTrainer(models, lr=0.1, backend=b) for b in ("vmap", "loop"))
    x, y = images(3, 6), torch.arange(18).view(3, 6) % 5
    assert torch.allclose(vmapped.step(x, y), loop.step(x, y), atol=1e-12)
    assert apart(vmapped, loop) < 1e-12


@pytest.mark.parametrize("backend", ["vmap", "loop"])
def test_buffer_that_the_model_replaces_is_kept(backend: Any) -> None:
    def count(m: Any, x: Tensor) -> Tensor:
        m.mean = m.mean + x.mean((0, 2, 3), keepdim=True).detach()
        return m.last((x * m.scale + m.mean).mean((2, 3)))

    models = [m.double() for m in seeded(lambda: Do(count, last=nn.Linear(3, 5)), range(2))]
    trainer = StackedTrainer(models, lr=0.1, backend=backend)
    x = images(2, 6)
    trainer.step(x, torch.zeros(2, 6).long())
    for i, model in enumerate(models):
        expected = model.mean + x[i].mean((0, 2, 3), keepdim=True)
        assert torch.allclose(trainer.unstack(i).mean, expected)
