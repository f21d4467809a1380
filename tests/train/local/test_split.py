"""Where models are cut, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from addis.models import mlp, preact_resnet18, resnet20, vgg8b, vgg11b, wide_resnet
from addis.train.local import UnsupportedModelError, localize, split
from addis.train.local._block import run_stage
from tests.train.local.nets import conv_net

IMAGES = torch.randn(2, 3, 32, 32)


def names(model: nn.Module, blocks: Any = "auto", example: Tensor = IMAGES) -> list[str]:
    return [piece.name for piece in split(model, example, blocks)]


def vit() -> nn.Module:
    return torchvision.models.VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=10)


MODELS = {
    "vgg8b": lambda: vgg8b(width=1 / 16),
    "vgg11b": lambda: vgg11b(width=1 / 16),
    "resnet20": resnet20,
    "wide_resnet": lambda: wide_resnet(10, 1),
    "preact_resnet18": lambda: preact_resnet18(4),
    "resnet18": lambda: torchvision.models.resnet18(num_classes=10),
    "mobilenet_v2": lambda: torchvision.models.mobilenet_v2(num_classes=10, width_mult=0.35),
    "mobilenet_v3": lambda: torchvision.models.mobilenet_v3_small(num_classes=10),
    "squeezenet": lambda: torchvision.models.squeezenet1_1(num_classes=10),
    "vit": vit,
}


@pytest.mark.parametrize("blocks", ["auto", 1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_the_pieces_in_order_are_the_model(name: str, blocks: Any) -> None:
    model = MODELS[name]().eval()
    pieces = split(model, IMAGES, blocks)
    values: dict[str, Any] = {pieces[0].body.inputs[0]: IMAGES}
    for piece in pieces:
        run_stage(piece.glue, model, values)
        run_stage(piece.body, model, values)
        assert values[piece.features].shape[1:] == piece.shape.shape
    torch.testing.assert_close(values[pieces[-1].features], model(IMAGES))
    assert len(values) == 1


@pytest.mark.parametrize("name", MODELS)
def test_every_trainable_weight_is_in_one_piece(name: str) -> None:
    model = MODELS[name]()
    for blocks in ("auto", 1):
        held = [p for piece in split(model, IMAGES, blocks) for p in piece.parameters]
        assert sorted(held) == sorted(name for name, _ in model.named_parameters())


def test_vgg8b_has_the_blocks_of_the_paper() -> None:
    pieces = split(vgg8b(width=1 / 16), IMAGES)
    assert [p.name for p in pieces] == [*(f"block{i}" for i in range(1, 8)), "classifier"]
    assert [p.features for p in pieces[:-1]] == [f"block{i}_act" for i in range(1, 8)]
    glues = [p.glue.outputs for p in pieces]
    assert glues[2] == ("pool2",)  # dropout and pooling belong to no block
    assert glues[7] == ("block7_dropout",)


def test_a_residual_region_is_a_block_and_one_asks_for_each_convolution() -> None:
    auto = names(resnet20())
    assert auto == ["conv1", *(f"layer{i}.{j}" for i in (1, 2, 3) for j in range(3)), "linear"]
    assert len(names(resnet20(), 1)) == 20
    shortcut = split(torchvision.models.resnet18(), IMAGES, 1)
    closing = next(piece for piece in shortcut if "layer2.0.conv2.weight" in piece.parameters)
    assert "layer2.0.downsample.0.weight" in closing.parameters
    assert closing.features == "layer2_0_relu_1"


def test_a_shortcut_computed_first_stays_with_the_sum_that_reads_it() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.short, self.a, self.b = (nn.Linear(6, 6) for _ in range(3))
            self.out = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            short = self.short(x)
            return self.out((self.b(self.a(x).relu()) + short).relu())

    block, _ = split(Net(), torch.randn(2, 6), 1)
    assert block.layers == 3  # cut after a, the weights of the shortcut would reach no loss


def test_a_number_asks_for_at_least_that_many_layers() -> None:
    pieces = split(resnet20(), IMAGES, 4)
    assert [piece.layers for piece in pieces] == [5, 4, 4, 4, 2, 1]
    assert all(len(piece.body.inputs) == 1 for piece in pieces)
    assert [piece.layers for piece in split(resnet20(), IMAGES, 100)] == [19, 1]


def test_names_open_blocks() -> None:
    pieces = split(torchvision.models.resnet18(), IMAGES, ["layer1", "layer2", "layer3", "layer4"])
    assert [piece.features for piece in pieces] == ["layer1", "layer2", "layer3", "layer4", "fc"]
    assert pieces[0].parameters[0] == "conv1.weight"


def test_a_norm_after_a_pool_belongs_to_the_block_before() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Flatten(),
        nn.Linear(900, 3),
    )
    block, output = split(net, IMAGES)
    assert block.parameters == ("0.weight", "0.bias", "2.weight", "2.bias")
    assert block.features == "_3"
    assert output.glue.outputs == ("_5",)


def test_attention_sub_layers_are_blocks_of_tokens() -> None:
    pieces = split(vit(), IMAGES)
    assert len(pieces) == 6
    assert all(piece.shape.layout == "tokens" for piece in pieces[:-1])
    assert "class_token" in pieces[0].parameters
    assert "encoder.pos_embedding" in pieces[0].parameters


def test_recurrent_layers_are_blocks() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = (nn.LSTM(i, 6, batch_first=True) for i in (5, 6))
            self.out = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            x, _ = self.a(x)
            x, _ = self.b(x)
            return self.out(x[:, -1])

    pieces = split(Net(), torch.randn(2, 7, 5))
    assert [p.name for p in pieces] == ["a", "b", "out"]
    assert pieces[0].shape.layout == "tokens"


def test_what_is_written_in_place_is_read_from_there() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            h.relu_()
            return self.b(h)

    net, x = Net(), torch.randn(2, 6)
    block, output = split(net, x)
    (h,) = block.body.run(net, x)
    assert h.min() == 0
    torch.testing.assert_close(output.body.run(net, h)[0], net(x))


def test_a_norm_that_others_read_is_not_overwritten() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.act = nn.Linear(6, 6), nn.LayerNorm(6), nn.ReLU()
            self.out = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            z = self.norm(self.a(x))
            return self.out(self.act(z) - 2 * z)

    net, x = Net(), torch.randn(2, 6)
    block, output = split(net, x)
    torch.testing.assert_close(output.body.run(net, *block.body.run(net, x))[0], net(x))


def test_functional_layers_and_parameters_are_found() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(4, 6))
            self.scale = nn.Parameter(torch.ones(4))
            self.out = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(F.relu(F.linear(x, self.w) * self.scale))

    block, _ = split(Net(), torch.randn(2, 6))
    assert set(block.parameters) == {"w", "scale"}
    assert block.features == "relu"


def test_frozen_layers_open_no_block() -> None:
    net = mlp(3, 12, image_size=1, width=8, depth=2)
    frozen = next(m for m in net.modules() if isinstance(m, nn.Linear))
    frozen.requires_grad_(False)
    assert len(names(net, example=torch.randn(2, 12, 1, 1))) == 2


def test_the_model_is_left_as_it_was() -> None:
    net = conv_net(dropout=0.5)
    net[0].eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    state = torch.get_rng_state()
    split(net, torch.randn(2, 3, 8, 8))
    state_after = torch.get_rng_state()
    torch.set_rng_state(state)
    torch.randn(2, 3, 8, 8)
    assert torch.equal(torch.get_rng_state(), state_after)
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert not net[0].training
    assert net[1].training


def test_refusals_name_what_they_refuse() -> None:
    net, x = conv_net(), torch.randn(2, 3, 8, 8)
    with pytest.raises(ValueError, match="'conv9'; the closest are conv"):
        split(net, x, ["conv9"])
    with pytest.raises(ValueError, match=r"'layer1\.0' is inside 'layer1'"):
        split(resnet20(), IMAGES, ["layer1", "layer1.0"])
    with pytest.raises(ValueError, match="each once"):
        split(net, x, ["conv0", "conv0"])
    with pytest.raises(ValueError, match="blocks must be >= 1 layers, got 0"):
        split(net, x, 0)
    with pytest.raises(ValueError, match="'auto', a number or a list"):
        split(net, x, "all")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="blocks must be"):
        split(net, x, 1.5)  # type: ignore[arg-type]
    for single in (nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), nn.Flatten()):
        with pytest.raises(ValueError, match="no block to train locally"):
            split(single, x)


class Warming(nn.Module):
    """Scales its input by the batches seen, which it counts in a buffer, a number and a list."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.register_buffer("buffer", torch.zeros(()))
        self.number, self.kind, self.list = 0, kind, [0]

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            if self.kind == "buffer":
                self.buffer += 1
            elif self.kind == "number":
                self.number += 1
            elif self.kind == "list":
                self.list.append(0)
            else:
                self.fresh = x
        return x * (self.buffer + self.number + len(self.list))


@pytest.mark.parametrize("kind", ["buffer", "number", "list", "fresh"])
def test_state_that_a_forward_pass_changes_is_refused_and_left_alone(kind: str) -> None:
    net = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), Warming(kind), nn.Linear(6, 3))
    buffer = net[2].buffer
    with pytest.raises(UnsupportedModelError, match=rf"changes 2\.{kind}, which a trace would"):
        split(net, torch.randn(2, 6))
    warming = net[2]
    assert warming.buffer is buffer
    assert (float(buffer), warming.number, warming.list) == (0.0, 0, [0])
    assert not hasattr(warming, "fresh")
    local = localize(net, torch.randn(2, 6), blocks=["0", "2"], loss="pred")  # taken whole
    for _ in range(3):
        local.train_step(torch.randn(2, 6), torch.arange(2))
    if kind in ("buffer", "number"):
        assert float(getattr(local.inference()[2], kind)) == 3


class NormAct(nn.BatchNorm2d):
    """Counts its batches in a forward pass of its own, as those of timm do."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.num_batches_tracked.add_(1)
        mean, var = self.running_mean, self.running_var
        return F.batch_norm(x, mean, var, self.weight, self.bias, self.training).relu()


def test_a_norm_may_count_batches_that_it_makes_no_use_of() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), NormAct(4), nn.Conv2d(4, 4, 3), NormAct(4), nn.Flatten(),
        nn.Linear(576, 3),
    )  # fmt: skip
    x = torch.randn(4, 3, 16, 16)
    local = localize(net, x, loss="pred")
    local.train_step(x, torch.arange(4) % 3)
    assert int(net[1].num_batches_tracked) == 0
    assert bool((local.inference()[1].running_mean != 0).all())
    net[1].momentum = None  # then the count is the weight of a batch
    with pytest.raises(UnsupportedModelError, match=r"changes 1\.num_batches_tracked, which"):
        localize(net, x, loss="pred")


def test_a_constant_made_in_the_forward_pass_is_no_state() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.tensor([torch.nan, 1.0]))
            self.a, self.out = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            self.width = 6.0
            return self.out(self.a(x).relu() * torch.ones(6))

    net = Net()
    net.width = 6.0
    assert names(net, example=torch.randn(2, 6)) == ["a", "out"]


def test_two_blocks_never_have_one_name() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(6, 6))
            self.linear, self.out = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.linear(F.linear(x, self.w).relu()).relu())

    assert names(Net(), example=torch.randn(2, 6)) == ["linear", "linear_1", "out"]


def test_weights_shared_between_blocks_name_both() -> None:
    net = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    net[2].weight = net[0].weight
    with pytest.raises(ValueError, match="'0' and '2' share a weight"):
        split(net, torch.randn(2, 6))


def test_control_flow_on_data_points_to_the_manual_ways() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.out = nn.Sequential(Odd(), nn.ReLU()), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.stem(x))

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) if x.sum() > 0 else self.a(-x)

    with pytest.raises(UnsupportedModelError, match="blocks="):
        split(Net(), torch.randn(2, 6))
    assert names(Net(), ["stem"], torch.randn(2, 6)) == ["stem.0.a", "out"]


def test_two_inputs_two_outputs_and_features_without_a_batch_are_refused() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = self.a(x).relu()
            return h, self.b(h)

    class TimeFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x.transpose(0, 1)).relu()[-1])

    with pytest.raises(UnsupportedModelError, match="one tensor"):
        split(Two(), torch.randn(2, 6))
    with pytest.raises(UnsupportedModelError, match=r"features \(n, ...\)"):
        split(TimeFirst(), torch.randn(2, 5, 6))
