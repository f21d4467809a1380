"""The networks against oracles, closed parameter counts, initial weights and bad arguments."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from addis import models
from tests.models import oracles


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def drops(model: nn.Module) -> list[tuple[type[nn.Module], float]]:
    layers = [m for m in model.modules() if isinstance(m, nn.Dropout | nn.Dropout2d)]
    return [(type(layer), layer.p) for layer in layers]


def build(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    model = models.create(name, dtype=torch.float64, **options).eval()
    oracles.unsettle(model, torch.Generator().manual_seed(1))
    return model


def images(channels: int, size: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(2, channels, size, size, generator=generator, dtype=torch.float64)


# --- oracles -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", oracles.NETWORKS)
def test_plain_network_computes_what_its_line_says(name: str) -> None:
    small: dict[str, Any] = {"vgg8b": {"width": 0.1}, "vgg11b": {"width": 0.1}, "cnn5": {"k": 3}}
    model = build(name, **small.get(name, {}))
    channels, size, _ = models.info(name).input_size
    x = images(channels, size)
    with torch.inference_mode():
        want = oracles.run(oracles.NETWORKS[name], model.state_dict(), x)
        torch.testing.assert_close(model(x), want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("depth", [8, 20])
@pytest.mark.parametrize("width", [1, 16])
def test_cifar_resnet_agrees_with_its_oracle(depth: int, width: int) -> None:
    torch.manual_seed(0)
    model = models.cifar_resnet(depth, width=width, dtype=torch.float64).eval()
    oracles.unsettle(model, torch.Generator().manual_seed(1))
    with torch.inference_mode():
        want = oracles.cifar_resnet(model.state_dict(), images(3), depth // 6)
        torch.testing.assert_close(model(images(3)), want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("final_norm", [False, True])
def test_preact_resnet18_agrees_with_its_oracle(final_norm: bool) -> None:
    model = build("preact_resnet18", k=3, final_norm=final_norm)
    first = {2: "*", 3: "*", 4: "*"}
    blocks = [
        f"layer{layer}.{block}" + (first.get(layer, "") if block == 0 else "")
        for layer in (1, 2, 3, 4)
        for block in (0, 1)
    ]
    with torch.inference_mode():
        want = oracles.preactivation(
            model.state_dict(), images(3), blocks, "linear", "bn" if final_norm else None
        )
        torch.testing.assert_close(model(images(3)), want, rtol=1e-10, atol=1e-10)


def test_wide_resnet_agrees_with_its_oracle() -> None:
    model = build("wide_resnet", depth=16, width=2)
    blocks = ["blocks.0", "blocks.1", "blocks.2*", "blocks.3", "blocks.4*", "blocks.5"]
    with torch.inference_mode():
        want = oracles.preactivation(model.state_dict(), images(3), blocks, "fc", "bn")
        torch.testing.assert_close(model(images(3)), want, rtol=1e-10, atol=1e-10)


# --- parameter counts --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "parameters"),
    [
        (models.vgg8b, 8_903_434),
        (partial(models.mlp, 10, 3, image_size=32, width=3000), 27_273_010),
        (models.cnn5, 1_558_026),
        (models.preact_resnet18, 11_171_146),
        (partial(models.preact_resnet18, final_norm=True), 11_172_170),
        (models.resnet20, 269_722),
        (models.resnet32, 464_154),
        (models.resnet44, 658_586),
        (models.resnet56, 853_018),
        (models.wide_resnet, 2_748_890),
        (models.net_3c3d, 895_210),
        (models.vgg9, 3_491_530),
        (models.vgg_small, 2_310_186),
        (models.lenet, 431_080),
    ],
)
def test_parameters_are_as_many_as_published(
    make: Callable[..., nn.Module], parameters: int
) -> None:
    assert count(make(device="meta")) == parameters


@pytest.mark.parametrize(("k", "c", "classes"), [(1, 1, 2), (6, 3, 10), (16, 1, 100)])
def test_cnn5_has_the_parameters_of_its_formula(k: int, c: int, classes: int) -> None:
    convs = 9 * (c * k + 2 * k**2 + 8 * k**2 + 32 * k**2) + 15 * k + 30 * k
    assert count(models.cnn5(k, classes, c, device="meta")) == convs + 8 * k * classes + classes


@pytest.mark.parametrize(("width", "c", "size", "ways"), [(64, 1, 28, 5), (32, 3, 84, 20)])
def test_conv4_has_the_parameters_of_its_formula(width: int, c: int, size: int, ways: int) -> None:
    body = 9 * width * (c + 3 * width) + 4 * 3 * width
    head = (width * (size // 16) ** 2 + 1) * ways
    model = models.conv4(ways, c, image_size=size, width=width, device="meta")
    assert count(model) == body + head


@pytest.mark.parametrize(("d", "width", "depth"), [(64, 50, 2), (784, 1024, 3), (64, 7, 0)])
def test_mlp_has_the_parameters_of_its_formula(d: int, width: int, depth: int) -> None:
    hidden = (d + 1) * width + (depth - 1) * (width + 1) * width if depth else 0
    head = ((width if depth else d) + 1) * 10
    bare = models.mlp(10, d, image_size=1, width=width, depth=depth, batch_norm=False)
    normed = models.mlp(10, d, image_size=1, width=width, depth=depth)
    assert count(bare) == hidden + head
    assert count(normed) == hidden + head + 2 * width * depth


@pytest.mark.parametrize(("depth", "k"), [(10, 1), (28, 10), (40, 2)])
def test_wide_resnet_has_the_parameters_of_its_formula(depth: int, k: int) -> None:
    n, total, channels = (depth - 4) // 6, 9 * 3 * 16, 16
    for width in (16 * k, 32 * k, 64 * k):
        total += 9 * width * (channels + (2 * n - 1) * width)  # the 3x3 convolutions
        total += 2 * channels + 2 * (2 * n - 1) * width  # BatchNorm
        total += channels * width if channels != width else 0  # the projection
        channels = width
    total += 2 * channels + (channels + 1) * 10
    assert count(models.wide_resnet(depth, k, device="meta")) == total


@pytest.mark.parametrize(("size", "features"), [(28, 512), (32, 2048), (96, 512 * 36)])
def test_vgg8b_first_linear_layer_fits_the_image_size(size: int, features: int) -> None:
    model = models.vgg8b(image_size=size, device="meta")
    assert model.get_submodule("block7.linear").in_features == features


# --- structure ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "order"),
    [
        (models.vgg8b, "b1 b2 p2 b3 b4 p4 b5 p5 b6 p6 flatten b7 classifier"),
        (models.vgg11b, "b1 b2 b3 b4 p4 b5 b6 p6 b7 b8 p8 b9 p9 flatten b10 classifier"),
    ],
)
def test_local_error_blocks_have_names_and_pools_stand_between_them(
    make: Callable[..., nn.Module], order: str
) -> None:
    model = make(width=0.05, dropout=0.3)
    names = " ".join(n for n, _ in model.named_children())
    assert names.replace("block", "b").replace("pool", "p") == order
    blocks = [layer for n, layer in model.named_children() if n.startswith("block")]
    for block in blocks[:-1]:
        kinds = [type(layer) for layer in block.children()]
        assert kinds == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Dropout2d]
        assert [n for n, _ in block.named_children()] == ["conv", "norm", "act", "dropout"]
        assert block.get_submodule("conv").bias is not None
    kinds = [type(layer) for layer in blocks[-1].children()]
    assert kinds == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Dropout]
    assert {p for _, p in drops(model)} == {0.3}


def test_width_multiplies_the_maps_and_leaves_the_hidden_layer() -> None:
    model = models.vgg8b(width=0.125, device="meta")
    maps = [layer.out_channels for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    assert maps == [16, 32, 32, 64, 64, 64]
    assert model.get_submodule("block7.linear").out_features == 1024


def test_dropout_of_vgg9_is_the_papers() -> None:
    want = [(nn.Dropout2d, 0.05), (nn.Dropout, 0.1), (nn.Dropout, 0.1)]
    assert drops(models.vgg9()) == want


def test_no_dropout_leaves_no_random_layer() -> None:
    for make in (models.vgg8b, models.vgg9, models.mlp, models.wide_resnet):
        assert not drops(make(dropout=0.0, device="meta"))


def test_dropout_of_a_wide_resnet_stands_between_its_convolutions() -> None:
    model = models.wide_resnet(10, 1, dropout=0.4)
    drops = {n: layer.p for n, layer in model.named_modules() if isinstance(layer, nn.Dropout)}
    assert drops == {f"blocks.{i}.dropout": 0.4 for i in range(3)}
    model.train()
    assert not torch.equal(model(x := torch.rand(4, 3, 8, 8)), model(x))


@pytest.mark.parametrize(
    "name",
    [
        "mlp",
        "lenet",
        "conv4",
        "net_3c3d",
        "cnn5",
        "vgg8b",
        "vgg9",
        "vgg_small",
        "resnet20",
        "wide_resnet",
        "preact_resnet18",
    ],
)
def test_every_activation_is_made_by_the_factory_given(name: str) -> None:
    model = models.create(name, activation=partial(nn.LeakyReLU, 0.01), device="meta")
    activations = [m for m in model.modules() if isinstance(m, nn.ReLU | nn.LeakyReLU)]
    assert activations
    assert {type(m) for m in activations} == {nn.LeakyReLU}
    assert len(set(map(id, activations))) == len(activations)


# --- initial weights ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet20", "wide_resnet", "vgg_small"])
def test_he_initialisation_has_its_variance(name: str) -> None:
    torch.manual_seed(0)
    model = models.create(name)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d) and layer.weight.numel() > 5000:
            n, fan_in = layer.weight.numel(), layer.weight[0].numel()
            error = math.sqrt(2 / n)  # relative standard error of a normal's variance
            assert layer.weight.var().item() * fan_in / 2 == pytest.approx(1, abs=5 * error)
            assert layer.weight.abs().max() > 3 * math.sqrt(2 / fan_in)  # not uniform
        if isinstance(layer, nn.Linear):
            assert not layer.bias.any()


@pytest.mark.parametrize("name", ["conv4", "net_3c3d"])
def test_glorot_initialisation_has_its_variance_and_no_bias(name: str) -> None:
    torch.manual_seed(0)
    for layer in models.create(name).modules():
        if not isinstance(layer, nn.Conv2d | nn.Linear):
            continue
        assert layer.bias is not None
        assert not layer.bias.any()
        kernel = layer.weight[0, 0].numel()
        fans = kernel * (layer.weight.shape[0] + layer.weight.shape[1])
        uniform = isinstance(layer, nn.Linear) or name == "conv4"
        error = math.sqrt((0.8 if uniform else 2) / layer.weight.numel())
        assert layer.weight.var().item() * fans / 2 == pytest.approx(1, abs=5 * error)
        assert bool(layer.weight.abs().max() <= math.sqrt(6 / fans)) == uniform


def test_same_seed_gives_the_same_weights() -> None:
    torch.manual_seed(3)
    first = models.resnet20().state_dict()
    torch.manual_seed(3)
    again = models.resnet20().state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)


# --- bad arguments -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(models.vgg8b, image_size=15), r"image_size must be finite and >= 16, got 15"),
        (partial(models.vgg8b, width=0), r"width must be finite and >= 0.0078125, got 0"),
        (partial(models.vgg11b, width=math.inf), r"width must be finite .*, got inf"),
        (partial(models.vgg11b, width=math.nan), r"width must be finite .*, got nan"),
        (partial(models.vgg9, image_size=7), r"image_size must be finite and >= 8, got 7"),
        (partial(models.vgg9, dropout=1.0), r"dropout must be in \[0, 1\), got 1.0"),
        (partial(models.mlp, depth=-1), r"depth must be finite and >= 0, got -1"),
        (partial(models.mlp, dropout=-0.1), r"dropout must be in \[0, 1\), got -0.1"),
        (partial(models.lenet, image_size=15), r"image_size must be finite and >= 16, got 15"),
        (partial(models.net_3c3d, image_size=8), r"image_size must be finite and >= 9, got 8"),
        (partial(models.conv4, image_size=15), r"image_size must be finite and >= 16, got 15"),
        (partial(models.cnn5, 0), r"k must be finite and >= 1, got 0"),
        (partial(models.preact_resnet18, 0), r"k must be finite and >= 1, got 0"),
        (partial(models.resnet20, 0), r"num_classes must be finite and >= 1, got 0"),
        (partial(models.resnet20, in_channels=0), r"in_channels must be finite and >= 1, got 0"),
        (partial(models.cifar_resnet, 18), r"depth must be 6 n \+ 2 .*, got 18"),
        (partial(models.cifar_resnet, 2), r"depth must be 6 n \+ 2 .*, got 2"),
        (partial(models.wide_resnet, 4), r"depth must be 6 n \+ 4 .*, got 4"),
        (partial(models.wide_resnet, 20), r"depth must be 6 n \+ 4 .*, got 20"),
        (partial(models.create, "cifar10_densenet_bc_52_12", dropout=2), r"dropout must be in"),
        (partial(models.create, "imagenet_squeezenet1_0", num_classes=0), r"num_classes must be"),
    ],
)
def test_bad_number_is_refused_by_name(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("activation", [nn.ReLU(), "relu", 3])
def test_activation_must_be_a_factory(activation: Any) -> None:
    with pytest.raises(TypeError, match="activation must be a type or factory"):
        models.vgg8b(activation=activation)


@pytest.mark.parametrize(
    ("name", "least"),
    [("lenet", 16), ("net_3c3d", 9), ("conv4", 16), ("vgg8b", 16), ("vgg11b", 16), ("vgg9", 8)],
)
@pytest.mark.parametrize("more", [0, 1, 2, 3, 7])
def test_every_image_size_from_the_least_on_fits(name: str, least: int, more: int) -> None:
    model = models.create(name, in_channels=1, image_size=least + more, device="meta").eval()
    size = least + more
    assert model(torch.rand(1, 1, size, size, device="meta")).shape[0] == 1
