from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.fusion import fuse_conv_bn_eval

from addis import explain
from addis.explain import BottleneckStats, Patterns, pattern_attribution, pattern_net

pytestmark = pytest.mark.filterwarnings("ignore:the statistics rest on")

TARGET = torch.tensor([0, 3, 1])


def randn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def convnet(norm: bool = True) -> nn.Sequential:
    """Norms of both signs behind the convolutions, the first under a max pool; float64."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.MaxPool2d(2), nn.ReLU(inplace=True),
        nn.Conv2d(6, 8, 3, stride=2, padding=1, groups=2, bias=False), nn.BatchNorm2d(8),
        nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(32, 5), nn.ReLU(), nn.Linear(5, 4),
    ).double().eval()  # fmt: skip
    for module in net:
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    if not norm:
        net[0], net[1] = fuse_conv_bn_eval(net[0], net[1]), nn.Identity()
        net[4], net[5] = fuse_conv_bn_eval(net[4], net[5]), nn.Identity()
    return net


def patches(x: Tensor, conv: nn.Module, channel: int) -> Tensor:
    """What one output channel of a convolution sees at every position of every image, ``(M, D)``,
    by a loop over positions.
    """
    own = conv.in_channels // conv.groups
    first = channel // (conv.out_channels // conv.groups) * own
    pads = [p for p in reversed(conv.padding) for _ in range(2)]
    x = F.pad(x[:, first : first + own], pads)
    reach = [d * (k - 1) + 1 for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    starts = [
        range(0, n - r + 1, s) for n, r, s in zip(x.shape[2:], reach, conv.stride, strict=True)
    ]
    seen = []
    for corner in itertools.product(*starts):
        window = tuple(
            slice(c, c + r, d) for c, r, d in zip(corner, reach, conv.dilation, strict=True)
        )
        seen.append(x[:, :, *window].flatten(1))
    return torch.cat(seen)


def direction(x: Tensor, w: Tensor, b: Tensor | float, positive: bool) -> Tensor:
    """The paper's estimators for one neuron: ``x`` of ``(M, D)``, ``w`` of ``(D,)``."""
    y = x @ w + b
    kept = y > 0 if positive else torch.ones_like(y, dtype=torch.bool)
    c = (x[kept] * y[kept, None]).mean(0) - x[kept].mean(0) * y.mean()
    return c / (y[kept].square().mean() - y[kept].mean() * y.mean())


# The estimators


def toy(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """The paper's example, ``x = a_s s + a_d eps``, in which ``s`` is skewed and ``eps`` is
    uncorrelated with it exactly, among all samples and among those where it is positive.
    """
    s = randn(400, seed=seed)
    s = s + 0.3 * s.square()
    positive = (s > 0).double()
    known = torch.stack([positive, positive * s, 1 - positive, (1 - positive) * s], 1)
    eps = randn(400, seed=seed + 1)
    eps = eps - known @ torch.linalg.lstsq(known, eps[:, None]).solution[:, 0]
    signal, distractor = torch.tensor([1.0, 2.0, -1.0]), torch.tensor([1.0, -1.0, 3.0])
    x = s[:, None] * signal + eps[:, None] * 5 * distractor
    w = torch.linalg.pinv(torch.stack([signal, distractor]).double())[:, 0]
    return x, w, signal.double()


@pytest.mark.parametrize("estimator", ["linear", "two_component"])
def test_the_papers_signal_direction_is_recovered_from_under_its_distractor(estimator):
    x, w, signal = toy()
    model = nn.Sequential(nn.Linear(3, 1, bias=False)).double().eval()
    model[0].weight.data = w[None]
    found = Patterns.estimate(model, x, estimator=estimator).directions["0.weight"]
    torch.testing.assert_close(found[0], signal, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found[0] @ w, torch.ones((), dtype=torch.float64))


CONVOLUTIONS = [
    nn.Conv1d(2, 3, 4, stride=3, padding=2, dilation=2),
    nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),
    nn.Conv2d(3, 4, (3, 2), padding=(0, 1), bias=False),
    nn.Conv2d(3, 3, 3, groups=3, dilation=(1, 2)),
    nn.Conv3d(2, 3, 2, stride=(1, 2, 1), padding=1),
]


@pytest.mark.parametrize("conv", CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("estimator", ["linear", "two_component"])
def test_patterns_of_a_convolution_are_those_of_all_its_patches(conv, estimator):
    conv = copy.deepcopy(conv).double()
    x = randn(5, conv.in_channels, *[9, 7, 5][: conv.weight.dim() - 2]) + 0.5
    found = Patterns.estimate(nn.Sequential(conv), x, estimator=estimator).directions["0.weight"]
    for k, w in enumerate(conv.weight.detach()):
        b = 0.0 if conv.bias is None else conv.bias.detach()[k]
        want = direction(patches(x, conv, k), w.flatten(), b, estimator == "two_component")
        torch.testing.assert_close(found[k].flatten(), want, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("estimator", ["linear", "two_component"])
def test_a_dense_layer_is_estimated_over_its_samples_and_tokens(estimator):
    layer = nn.Linear(6, 4).double()
    for x in (randn(50, 6), randn(10, 5, 6)):
        found = Patterns.estimate(layer, x, estimator=estimator).directions["weight"]
        for k in range(4):
            w, b = layer.weight[k].detach(), layer.bias[k].detach()
            want = direction(x.flatten(0, -2), w, b, estimator == "two_component")
            torch.testing.assert_close(found[k], want)


def test_a_bias_is_the_weight_of_an_input_that_is_always_one():
    biased = nn.Linear(6, 4).double()
    plain = nn.Linear(7, 4, bias=False).double()
    plain.weight.data = torch.cat([biased.weight, biased.bias[:, None]], 1).detach()
    x = randn(60, 6)
    one = torch.cat([x, torch.ones(60, 1)], 1)
    ours = Patterns.estimate(biased, x, estimator="two_component").directions["weight"]
    theirs = Patterns.estimate(plain, one, estimator="two_component").directions["weight"]
    torch.testing.assert_close(ours, theirs[:, :6])


def test_a_large_bias_has_its_part_in_the_divisor():
    layer = nn.Linear(1, 1).double()
    layer.weight.data.fill_(1.0)
    layer.bias.data.fill_(5.0)
    x = torch.tensor([[-4.0], [-15.0], [-4.5], [-16.0]], dtype=torch.float64)
    found = Patterns.estimate(layer, x, estimator="two_component").directions["weight"]
    # y is 1, -10, 0.5, -11, of mean -4.875; without the bias the divisor would be c, negative.
    c = (-4 * 1 - 4.5 * 0.5) / 2 - 4.25 * 4.875
    assert float(found) == pytest.approx(c / ((1 + 0.25) / 2 + 0.75 * 4.875))


def test_filter_times_pattern_is_one_for_every_live_neuron():
    model = convnet(norm=False)
    x = randn(40, 3, 8, 8)
    for name, a in Patterns.estimate(model, x, estimator="linear").directions.items():
        products = (model.get_parameter(name) * a).flatten(1).sum(1)
        torch.testing.assert_close(products, torch.ones_like(products), rtol=1e-9, atol=1e-9)
    for module in model:
        if getattr(module, "bias", None) is not None:
            module.bias.data.zero_()
    for name, a in Patterns.estimate(model, x).directions.items():
        products = (model.get_parameter(name) * a).flatten(1).sum(1)
        live = a.flatten(1).any(1)
        assert live.double().mean() > 0.7
        torch.testing.assert_close(
            products[live], torch.ones_like(products[live]), rtol=1e-9, atol=1e-9
        )


@pytest.mark.parametrize("chunk", [1, 7, 16, 40])
def test_batches_of_any_size_give_the_same_patterns(chunk):
    model, x = convnet(), randn(40, 3, 8, 8)
    want = Patterns.estimate(model, [(x, None)])
    found = Patterns.estimate(model, x.split(chunk))
    assert found.samples == want.samples == 40
    for name, a in want.directions.items():
        torch.testing.assert_close(found.directions[name], a, rtol=1e-9, atol=1e-9)


def test_no_more_samples_are_used_than_asked_for():
    model, x = convnet(), randn(40, 3, 8, 8)
    found = Patterns.estimate(model, x.split(16), samples=25)
    want = Patterns.estimate(model, x[:25])
    assert found.samples == 25
    torch.testing.assert_close(found.directions["8.weight"], want.directions["8.weight"])


def test_single_precision_agrees_with_double_on_top_of_a_large_mean():
    model, x = convnet(), randn(64, 3, 8, 8) + 30
    wide = Patterns.estimate(model, x)
    narrow = Patterns.estimate(copy.deepcopy(model).float(), x.float())
    for name, a in wide.directions.items():
        assert narrow.directions[name].dtype == torch.float32
        miss = (narrow.directions[name] - a).flatten(1).norm(dim=1)
        assert (miss <= 1e-3 * a.flatten(1).norm(dim=1)).all(), name
    whole = pattern_attribution(model, x[:3], TARGET, wide)
    single = pattern_attribution(copy.deepcopy(model).float(), x[:3].float(), TARGET, narrow)
    torch.testing.assert_close(
        single.double(), whole, rtol=1e-2, atol=1e-3 * float(whole.abs().max())
    )


def test_neurons_that_are_never_active_or_never_vary_have_no_pattern():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    model[0].bias.data = torch.tensor([0.1, -1e3, 1e3, 0.0])
    model[0].weight.data[2:] = torch.tensor([[0.0, 0.0, 0.7], [0.0, 0.0, 0.0]])
    x = randn(50, 3).float()
    x[:, 2] = 1 / 3  # so the third neuron is active and constant
    found = Patterns.estimate(model, x)
    assert found.directions["0.weight"].any(1).tolist() == [True, False, False, False]
    assert all(a.isfinite().all() for a in found.directions.values())
    maps = pattern_net(model, x, 0, found)
    assert maps.isfinite().all()


# Which layer takes which estimator


class Residual(nn.Module):
    """A shortcut is added in place, functions stand for modules, and a weight runs twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.pooled = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1)
        self.added, self.last = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 4)
        self.twice, self.capped = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.drop, self.norm = nn.Dropout(), nn.BatchNorm2d(4)

    def forward(self, x):
        x = F.relu(self.norm(self.first(x)))
        y = F.relu(F.max_pool2d(self.drop(self.pooled(x)), 3, 1, 1), inplace=True)
        y = self.added(y)
        y += x
        y = self.twice(y.relu_()).relu()
        y = F.relu6(self.capped(torch.relu(self.twice(y))))
        return self.last(y.mean((2, 3)))


def test_outputs_that_go_into_a_relu_take_the_two_component_estimator():
    model, x = Residual().double().eval(), randn(20, 3, 8, 8)
    auto, linear, positive = (
        Patterns.estimate(model, x, estimator=e).directions
        for e in ("auto", "linear", "two_component")
    )
    rectified = {"first.weight", "pooled.weight", "capped.weight"}
    assert set(auto) == rectified | {"added.weight", "twice.weight", "last.weight"}
    for name, a in auto.items():
        assert not torch.allclose(linear[name], positive[name])
        want = positive if name in rectified else linear
        torch.testing.assert_close(a, want[name])


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(5), nn.ReLU()), randn(9, 5, 3)),
        (
            nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4), nn.ReLU()),
            randn(9, 3),
        ),
    ],
)
def test_norms_that_are_not_one_of_the_neurons_leave_the_linear_estimator(model, x):
    model.double().eval()
    auto, linear = (Patterns.estimate(model, x, estimator=e).directions for e in ("auto", "linear"))
    assert torch.equal(auto["0.weight"], linear["0.weight"])


def test_torchvisions_residual_blocks_end_linear():
    torch.manual_seed(0)
    model, x = torchvision.models.resnet18(num_classes=4).eval(), randn(4, 3, 32, 32).float()
    auto, linear = (Patterns.estimate(model, x, estimator=e).directions for e in ("auto", "linear"))
    same = {name for name, a in auto.items() if torch.equal(a, linear[name])}
    ends = {n for n in auto if n.endswith(("conv2.weight", "downsample.0.weight"))}
    assert same == ends | {"fc.weight"}
    maps = pattern_attribution(model, x[:3], TARGET, Patterns(auto, 4))
    assert maps.shape == (3, 32, 32)
    assert maps.isfinite().all()
    assert maps.flatten(1).any(1).all()


# The passes back


def test_a_linear_models_maps_are_closed_forms():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 5 * 4, 4)).double().eval()
    x = randn(90, 3, 5, 4)
    patterns = Patterns.estimate(model, x)
    a, w = patterns.directions["1.weight"][TARGET], model[1].weight.detach()[TARGET]
    y = model(x[:3]).detach().gather(1, TARGET[:, None])
    want = (y * w * a).view(3, 3, 5, 4)
    torch.testing.assert_close(pattern_attribution(model, x[:3], TARGET, patterns), want.sum(1))
    want = (y * a).view(3, 3, 5, 4)
    torch.testing.assert_close(pattern_net(model, x[:3], TARGET, patterns), want)


@pytest.mark.parametrize("attribution", [True, False])
def test_a_deep_nets_maps_are_passed_back_layer_by_layer(attribution):
    model, x = convnet(norm=False), randn(40, 3, 8, 8)
    patterns = Patterns.estimate(model, x)
    x, found = x[:3], patterns.directions
    filters = {
        n: (model.get_parameter(n).detach() * a if attribution else a) for n, a in found.items()
    }
    first, second, third, fourth = (filters[f"{i}.weight"] for i in (0, 4, 8, 10))
    with torch.no_grad():
        y0 = model[0](x)
        pooled, places = F.max_pool2d(y0, 2, return_indices=True)
        y4 = model[4](pooled.relu())
        y8 = model[8](y4.relu().flatten(1))
        r = model[10](y8.relu()).gather(1, TARGET[:, None]) * fourth[TARGET]
        r = ((y8 > 0) * r) @ third
        r = (y4 > 0) * r.view_as(y4)
        r = F.conv_transpose2d(r, second, stride=2, padding=1, output_padding=1, groups=2)
        r = F.max_unpool2d((pooled > 0) * r, places, 2)
        r = F.conv_transpose2d(r, first, padding=1)
    if attribution:
        torch.testing.assert_close(pattern_attribution(model, x, TARGET, patterns), r.sum(1))
    else:
        torch.testing.assert_close(pattern_net(model, x, TARGET, patterns), r)


def test_a_norm_gives_what_merging_it_gives():
    model, merged, x = convnet(), convnet(norm=False), randn(40, 3, 8, 8)
    ours, theirs = Patterns.estimate(model, x), Patterns.estimate(merged, x)
    for method in (pattern_attribution, pattern_net):
        torch.testing.assert_close(
            method(model, x[:3], TARGET, ours), method(merged, x[:3], TARGET, theirs)
        )


def test_a_norm_that_switches_a_channel_off_passes_nothing_back():
    model, x = convnet(), randn(40, 3, 8, 8)
    model[1].weight.data[:] = 0
    patterns = Patterns.estimate(model, x)
    for method in (pattern_attribution, pattern_net):
        assert not method(model, x[:3], TARGET, patterns).any()


def test_the_models_own_values_decide_however_large_the_patterns_are():
    model, x = convnet(), randn(40, 3, 8, 8)
    patterns = Patterns.estimate(model, x)
    large = Patterns(
        {n: a * (1e20 if n == "0.weight" else 1) for n, a in patterns.directions.items()}, 40
    )
    small = pattern_attribution(model, x[:3], TARGET, patterns)
    torch.testing.assert_close(pattern_attribution(model, x[:3], TARGET, large) / 1e20, small)


def test_a_signal_that_outgrows_its_precision_is_told():
    model, x = convnet().float(), randn(40, 3, 8, 8).float()
    found = Patterns.estimate(model, x)
    large = Patterns({n: a * 1e12 for n, a in found.directions.items()}, 40)
    with pytest.raises(FloatingPointError, match=r"beyond torch.float32, explain model.double()"):
        pattern_net(model, x[:3], TARGET, large)
    signal = pattern_net(model.double(), x[:3].double(), TARGET, large)
    assert signal.isfinite().all()


def test_a_batch_is_explained_as_its_images_one_by_one():
    model, x = convnet(), randn(40, 3, 8, 8)
    patterns = Patterns.estimate(model, x)
    whole = pattern_attribution(model, x[:3], TARGET, patterns)
    single = [pattern_attribution(model, x[i : i + 1], int(TARGET[i]), patterns) for i in range(3)]
    torch.testing.assert_close(whole, torch.cat(single))


@pytest.mark.parametrize("padding", ["same", 1])
def test_padding_is_the_layers_own(padding):
    conv = nn.Conv2d(3, 4, 3, padding=padding, padding_mode="reflect")
    model = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.Linear(64, 4)).double().eval()
    x = randn(30, 3, 4, 4)
    patterns = Patterns.estimate(model, x)
    plain = nn.Conv2d(3, 4, 3).double()
    plain.load_state_dict(conv.state_dict())
    padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
    want = Patterns.estimate(plain, padded, estimator="two_component").directions["weight"]
    torch.testing.assert_close(patterns.directions["0.weight"], want)
    assert pattern_attribution(model, x[:3], TARGET, patterns).shape == (3, 4, 4)


def test_signals_of_one_dimension_and_half_precision_are_explained():
    model = nn.Sequential(
        nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Flatten(), nn.Linear(40, 4)
    ).bfloat16().eval()  # fmt: skip
    x = randn(30, 2, 12).bfloat16()
    patterns = Patterns.estimate(model, x)
    assert patterns.directions["0.weight"].dtype == torch.float32
    maps = pattern_attribution(model, x[:3], TARGET, patterns)
    assert maps.shape == (3, 12)
    assert maps.dtype == torch.bfloat16
    assert maps.isfinite().all()


# The user's model, files and bad input


def test_the_model_is_left_as_it_was():
    model, x = convnet().float().train(), randn(20, 3, 8, 8).float().requires_grad_()
    model[0].bias.requires_grad_(False)
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    with pytest.warns(UserWarning, match="training mode") as noted:
        patterns = Patterns.estimate(model, x)
    with pytest.warns(UserWarning, match="training mode") as also:
        maps = pattern_attribution(model, x[:3], TARGET, patterns)
    with pytest.warns(UserWarning, match="training mode"):
        signal = pattern_net(model, x[:3], TARGET, patterns)
    assert {w.filename for w in [*noted, *also]} == {__file__}
    assert not maps.requires_grad
    assert not signal.requires_grad
    assert x.grad is None
    assert torch.equal(torch.get_rng_state(), random)
    assert all(module.training for module in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert [p.requires_grad for p in model.parameters()].count(False) == 1
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_a_model_may_work_in_place_on_its_input_outside_or_inside_inference_mode():
    class InPlace(nn.Module):
        def forward(self, x):
            return x.sub_(0.5)

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2))
    model, x = nn.Sequential(InPlace(), net).eval(), torch.randn(20, 1, 6, 6)
    before, plain = x.clone(), x - 0.5
    with torch.inference_mode():
        x = x.clone()
        found = Patterns.estimate(model, x)
        maps = pattern_attribution(model, x, 1, found)
    want = Patterns.estimate(net, plain)
    for name, a in want.directions.items():
        torch.testing.assert_close(found.directions[f"1.{name}"], a)
    torch.testing.assert_close(pattern_attribution(model, x, 1, found), maps)
    torch.testing.assert_close(maps, pattern_attribution(net, plain, 1, want))
    assert torch.equal(x, before)


def test_files_come_back_and_others_are_refused(tmp_path):
    model, x = convnet(), randn(40, 3, 8, 8)
    patterns, path = Patterns.estimate(model, x), tmp_path / "patterns.safetensors"
    patterns.save(path)
    again = Patterns.load(path)
    assert again.samples == 40
    assert set(again.directions) == set(patterns.directions)
    for name, a in patterns.directions.items():
        assert torch.equal(again.directions[name], a)

    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match="damaged"):
        Patterns.load(path)
    torch.save(patterns.directions, path)
    with pytest.raises(ValueError, match="damaged"):
        Patterns.load(path)
    BottleneckStats((3,)).save(path)
    with pytest.raises(ValueError, match="holds no Patterns"):
        Patterns.load(path)
    save_file({"0.weight": torch.tensor([float("nan")])}, path, metadata={"patterns": "40"})
    with pytest.raises(FloatingPointError, match="weight"):
        Patterns.load(path)


def test_patterns_of_another_model_are_refused():
    model, x = convnet(), randn(40, 3, 8, 8)
    patterns = Patterns.estimate(model, x)
    wider = copy.deepcopy(model)
    wider[10] = nn.Linear(5, 7).double()
    with pytest.raises(ValueError, match=r"'10\.weight' has shape \(4, 5\).*\(7, 5\)"):
        pattern_attribution(wider, x, 0, patterns)
    with pytest.raises(ValueError, match=r"another model: '8\.weight'.*missing"):
        pattern_attribution(model[:8], x, 0, patterns)
    some = Patterns({"0.weight": patterns.directions["0.weight"]}, 40)
    with pytest.raises(ValueError, match=r"none for '4\.weight'"):
        pattern_attribution(model, x, 0, some)


class BatchStatistics(nn.Module):
    def forward(self, x):
        return F.batch_norm(x, torch.zeros(4), torch.ones(4), training=True)


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (nn.GroupNorm(2, 4), "group_norm"),
        (nn.LayerNorm([4, 6, 6]), "layer_norm"),
        (nn.BatchNorm2d(4, track_running_stats=False), "fixed statistics"),
        (BatchStatistics(), "fixed statistics"),
        (nn.ConvTranspose2d(4, 4, 3), "conv_transpose2d"),
        (parametrizations.weight_norm(nn.Conv2d(4, 4, 3)), "neither a parameter nor a buffer"),
    ],
    ids=str,
)
def test_layers_without_patterns_are_named(layer, words):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), layer, nn.ReLU(), nn.Flatten(), nn.LazyLinear(4))
    x = randn(5, 3, 8, 8).float()
    model(x)
    with pytest.raises(ValueError, match=words):
        Patterns.estimate(model.eval(), x)


class Einsum(nn.Module):
    def forward(self, x):
        return torch.einsum("nchw->nc", x)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m, x, p: pattern_attribution(m, x, None, p), "target is missing"),
        (lambda m, x, p: pattern_net(m, x, 9, p), "target must lie"),
        (lambda m, x, p: Patterns.estimate(m, x, estimator="best"), "estimator must be one of"),
        (lambda m, x, p: Patterns.estimate(m, x, samples=1), "samples must be at least 2"),
        (lambda m, x, p: Patterns.estimate(m, x[:1]), "at least 2 samples"),
        (lambda m, x, p: Patterns.estimate(m, []), "at least 2 samples"),
        (lambda m, x, p: Patterns.estimate(Einsum(), x), "no convolution or linear layer"),
    ],
)
def test_bad_values_are_named(call, words):
    model, x = convnet(), randn(6, 3, 8, 8)
    with pytest.raises(ValueError, match=words):
        call(model, x, Patterns.estimate(model, x))


def test_integer_and_infinite_images_are_refused():
    model, x = convnet(), randn(6, 3, 8, 8)
    patterns, hole = Patterns.estimate(model, x), x.clone()
    hole[0, 0, 0, 0] = float("nan")
    for method in (pattern_attribution, pattern_net):
        with pytest.raises(TypeError, match="floating point"):
            method(model, x.long(), 0, patterns)
        with pytest.raises(FloatingPointError, match="NaN"):
            method(model, hole, 0, patterns)
    with pytest.raises(TypeError, match="floating point"):
        Patterns.estimate(model, x.long())
    with pytest.raises(FloatingPointError, match="NaN"):
        Patterns.estimate(model, hole)
    model[4].weight.data[0] = float("inf")
    with pytest.raises(FloatingPointError, match=r"4\.weight"):
        Patterns.estimate(model, x)


@pytest.mark.filterwarnings("default:the statistics rest on")
def test_few_samples_are_told_at_the_callers_line():
    with pytest.warns(UserWarning, match="rest on 6 samples") as noted:
        explain.Patterns.estimate(convnet(), randn(6, 3, 8, 8))
    assert noted[0].filename == __file__


def test_float32_loses_nothing_where_outputs_are_far_from_zero() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(256, 3),
    )  # fmt: skip
    with torch.no_grad():
        for i in (0, 2):
            net[i].bias.add_(10)
    x = torch.rand(1000, 3, 12, 12)
    single = Patterns.estimate(net, torch.split(x, 50)).directions
    double = Patterns.estimate(net.double(), torch.split(x.double(), 50)).directions
    for name, exact in double.items():
        assert float((single[name] - exact).norm() / exact.norm()) < 1e-4, name
