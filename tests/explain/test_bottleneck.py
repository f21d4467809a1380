from __future__ import annotations

import copy
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from addis.explain import BottleneckStats, InformationBottleneck, Layout, logit_margin
from addis.explain._noise import Noise
from tests.explain import oracles

pytestmark = pytest.mark.filterwarnings("ignore:the statistics rest on")


def small_cnn(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True),
        nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    ).eval()  # fmt: skip


def images(n: int = 4, size: tuple[int, int] = (16, 16), seed: int = 1) -> Tensor:
    return torch.randn(n, 3, *size, generator=torch.Generator().manual_seed(seed))


def bottleneck(model=None, layer="2", size=(16, 16), **options) -> InformationBottleneck:
    iba = InformationBottleneck(model or small_cnn(), layer, **{"seed": 0, **options})
    iba.stats = iba.estimate(images(40, size))
    return iba


def sure(scale: float = 40.0) -> nn.Sequential:
    """The small network with large logits, so that its classes are worth bits."""
    model = small_cnn()
    model[7].weight.data.mul_(scale)
    return model


# What the method is


def test_one_image_is_explained_as_by_the_papers_algorithm_written_plainly():
    iba = bottleneck(sure(), steps=10, draws=3, active_threshold=0.0, beta=1.0)
    x = images(1)
    att = iba.attribute(x, 2)
    features = iba.model[:3](x)[0].detach()
    noise = Noise([0], 3, features[None])
    want = oracles.fit_one_image(
        iba.model[3:], features, iba.stats.mean.float(), iba.stats.std.float().clamp_min(0.01), 2,
        [noise.draw()[0] for _ in range(10)], beta=1.0, lr=1.0, blur_std=1.0,
    )  # fmt: skip
    torch.testing.assert_close(att.capacity[0], want, rtol=1e-3, atol=1e-3)
    assert float(att.capacity.max()) > 10 * float(att.capacity.median())


@pytest.mark.parametrize(("beta", "wanted"), [(0.02, 3.0), (0.2, 3.0), (1.0, 1.5)])
def test_a_linear_head_on_one_feature_reaches_its_optimum(beta, wanted):
    model = nn.Sequential(nn.Identity(), nn.Linear(1, 1, bias=False)).eval()
    model[1].weight.data.fill_(1.2)
    stats = BottleneckStats((1,))
    stats.update(torch.randn(4000, 1, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.3)
    iba = InformationBottleneck(
        model, "0", stats, beta=beta, steps=2000, lr=0.05, draws=200, alpha0=1.0, seed=0
    )
    att = iba.attribute(
        torch.tensor([[2.0]]), objective=lambda out, _: (out[:, 0] - wanted).square()
    )
    best = oracles.scalar_optimum(2.0, float(stats.mean), float(stats.std), 1.2, wanted, beta)
    assert abs(float(att.mask) - best) < 1e-2


def test_a_head_that_reads_nothing_lets_no_bit_pass():
    model = small_cnn()
    model[7].weight.data.zero_()
    att = bottleneck(model, steps=60, draws=2).attribute(images(2), 1)
    assert float(att.total_bits.max()) < 1e-2
    assert float(att.mask.max()) < 1e-2


def test_free_information_is_kept():
    model = nn.Sequential(nn.Identity(), nn.Linear(2, 2)).eval()
    model[1].weight.data = torch.tensor([[4.0, 0.0], [-4.0, 0.0]])
    stats = BottleneckStats((2,))
    stats.update(torch.randn(100, 2))
    iba = InformationBottleneck(model, "0", stats, beta=0.0, alpha0=1.0, steps=30, lr=0.1, seed=0)
    att = iba.attribute(torch.tensor([[1.0, 1.0]]), 0)
    assert float(att.mask[0, 0]) >= torch.tensor(1.0).sigmoid()


def test_more_weight_on_information_leaves_fewer_bits():
    betas = (0.1, 1.0, 10.0, 100.0)
    bits = [bottleneck(sure(), beta=b).attribute(images(), 2).total_bits for b in betas]
    assert all(bool((a > b).all()) for a, b in pairwise(bits))


def test_a_wide_open_start_leaves_the_loss_of_the_clean_model():
    iba = bottleneck(alpha0=25.0, steps=1)
    x, target = images(), torch.tensor([0, 1, 2, 3])
    clean = F.cross_entropy(iba.model(x), target, reduction="none")
    torch.testing.assert_close(iba.attribute(x, target).history["objective"][0], clean.detach())


def test_a_nearly_open_mask_keeps_its_digits():
    att = bottleneck(alpha0=25.0, steps=1, lr=1e-6).attribute(images(), 1)
    assert float(att.capacity.min()) > 24.0
    assert float(att.capacity.median()) < 27.0


def test_the_loss_is_the_objective_plus_beta_times_the_mean_information():
    iba = bottleneck(beta=7.0)
    history = iba.attribute(images(), 1).history
    cells = 6 * 16 * 16
    information = history["bits"] * math.log(2) / cells
    torch.testing.assert_close(history["loss"], history["objective"] + 7.0 * information)
    assert history["loss"].shape == (10, 4)


def test_official_timing_is_the_map_of_one_update_less():
    nine = bottleneck(steps=9).attribute(images(), 1)
    official = bottleneck(steps=10, official_timing=True).attribute(images(), 1)
    assert torch.equal(nine.map, official.map)


# Batches


def test_a_batch_is_explained_as_its_images_one_by_one():
    iba = bottleneck()
    x, target = images(5), torch.tensor([0, 1, 2, 3, 0])
    whole = iba.attribute(x, target)
    single = torch.cat([iba.attribute(x[i : i + 1], target[i : i + 1]).map for i in range(5)])
    chunks = iba.attribute(x, target, batch_size=2)
    torch.testing.assert_close(whole.map, single, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(whole.map, chunks.map, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(whole.history["loss"], chunks.history["loss"], atol=1e-5, rtol=1e-4)


def test_permuting_the_batch_permutes_the_maps():
    iba = bottleneck()
    x, target, order = images(4), torch.tensor([0, 1, 2, 3]), torch.tensor([2, 0, 3, 1])
    seeds = [5, 6, 7, 6]
    straight = iba.attribute(x, target, seeds=seeds)
    turned = iba.attribute(x[order], target[order], seeds=[seeds[i] for i in order])
    torch.testing.assert_close(straight.map[order], turned.map, atol=1e-5, rtol=1e-4)


def test_the_same_seed_gives_the_same_map_and_another_another():
    iba = bottleneck()
    x = images(2)
    first = iba.attribute(x, 1)
    assert torch.equal(first.map, iba.attribute(x, 1).map)
    assert not torch.equal(first.map, iba.attribute(x, 1, seeds=[1, 1]).map)
    iba.seed = None
    torch.manual_seed(3)
    free = iba.attribute(x, 1)
    torch.manual_seed(3)
    assert torch.equal(free.map, iba.attribute(x, 1).map)


def test_repeats_give_mean_and_spread_over_seeds():
    iba = bottleneck(steps=3)
    x = images(2)
    runs = torch.stack([iba.attribute(x, 1, seeds=[s, s]).map for s in range(3)])
    repeated = iba.repeat(x, 1, repeats=3)
    torch.testing.assert_close(repeated.map, runs.mean(0))
    torch.testing.assert_close(repeated.std, runs.std(0))
    with pytest.raises(ValueError, match="repeats"):
        iba.repeat(x, 1, repeats=1)


def test_objective_sees_the_number_of_each_rows_image_in_the_whole_batch():
    iba = bottleneck(draws=2, steps=1)
    x, target = images(5), torch.tensor([3, 1, 2, 0, 1])
    seen = []

    def objective(logits: Tensor, index: Tensor) -> Tensor:
        seen.append(index.tolist())
        return F.cross_entropy(logits, target[index], reduction="none")

    ours = iba.attribute(x, objective=objective, batch_size=3)
    assert seen == [[0, 0, 1, 1, 2, 2], [3, 3, 4, 4]]
    torch.testing.assert_close(ours.map, iba.attribute(x, target).map)


# Units


@pytest.mark.parametrize(("layer", "size"), [("4", (16, 16)), ("2", (31, 37)), ("4", (31, 37))])
def test_pixel_map_sums_to_the_total_bits(layer, size):
    iba = bottleneck(layer=layer, size=size)
    att = iba.attribute(images(4, size), 2)
    total = att.capacity.flatten(1).sum(1) / math.log(2)
    torch.testing.assert_close(att.total_bits, total)
    assert att.map.shape == (4, *size)
    torch.testing.assert_close(att.map.sum((1, 2)), total, rtol=0.02, atol=0)
    cells = iba.attribute(images(4, size), 2, reduce="bits_per_cell")
    torch.testing.assert_close(cells.map.sum((1, 2)), total, rtol=1e-5, atol=0)
    torch.testing.assert_close(att.channel_bits.sum(1), total, rtol=1e-5, atol=0)
    assert att.channel_bits.shape == cells.capacity.shape[:2]


# The model is left alone


def test_model_is_left_as_it_was_also_after_an_exception():
    model = small_cnn()
    iba = bottleneck(model)
    model.train()
    model[0].weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())

    def fails(output: Tensor, index: Tensor) -> Tensor:
        raise KeyError("on purpose")

    with pytest.warns(UserWarning, match="training mode"):
        iba.attribute(images(), 1)
    with pytest.raises(KeyError), pytest.warns(UserWarning, match="training mode"):
        iba.attribute(images(), objective=fails)
    assert all(module.training for module in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())
    flags = [p.requires_grad for p in model.parameters()]
    assert flags == [False, *[True] * (len(flags) - 1)]
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_model_is_no_part_of_the_bottleneck():
    iba = bottleneck()
    assert list(iba.parameters()) == []
    names = ("count", "mean", "squares", "nonzero", "_extra_state")
    assert set(iba.state_dict()) == {f"stats.{n}" for n in names}


def test_graph_mode_outside_does_not_matter():
    iba = bottleneck()
    want = iba.attribute(images(), 1).map
    with torch.no_grad():
        assert torch.equal(iba.attribute(images(), 1).map, want)
    with torch.inference_mode():
        x = images()
    assert torch.equal(iba.attribute(x, 1).map, want)


def test_inference_mode_outside_does_not_matter():
    want, model = bottleneck().attribute(images(), 1, batch_size=3).map, small_cnn()
    with torch.inference_mode():
        iba = bottleneck(model)
        assert torch.equal(iba.attribute(images(), 1, batch_size=3).map, want)
    iba.stats.update(torch.randn(2, 6, 16, 16))


class Frozen(nn.Module):
    """Turns gradients off up to the layer and cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        net = sure()
        self.backbone, self.head = net[:3], net[3:]

    def forward(self, x):
        with torch.no_grad():
            features = self.backbone(x)
        return self.head(features) if float(features.detach().sum()) > -1e9 else features


def test_a_model_that_turns_gradients_off_up_to_the_layer_is_explained_all_the_same():
    found = bottleneck(Frozen().eval(), "backbone").attribute(images(2), 1)
    torch.testing.assert_close(found.map, bottleneck(sure()).attribute(images(2), 1).map)


class Aside(nn.Module):
    """A layer whose output is not used, and one behind which gradients end."""

    def __init__(self) -> None:
        super().__init__()
        self.unused, self.net = nn.Conv2d(3, 4, 3), small_cnn()

    def forward(self, x):
        self.unused(x)
        return self.net[3:](self.net[:3](x).detach())


@pytest.mark.parametrize("layer", ["unused", "net.0"])
def test_an_output_that_does_not_depend_on_the_layer_is_an_error(layer):
    with pytest.raises(ValueError, match=f"does not depend on layer '{layer}'"):
        bottleneck(Aside().eval(), layer).attribute(images(), 1)


def test_an_objective_that_does_not_depend_on_the_layer_is_an_error():
    with pytest.raises(ValueError, match="does not depend on layer '2'"):
        bottleneck().attribute(images(), objective=lambda out, _: out.detach()[:, 0])


def test_the_images_are_left_to_the_caller():
    class InPlace(nn.Module):
        def forward(self, x):
            return x.sub_(0.5).div_(0.25)

    model = nn.Sequential(InPlace(), small_cnn()).eval()
    x = images(2)
    iba = InformationBottleneck(model, "1.2", seed=0)
    iba.stats = iba.estimate(x)
    iba.attribute(x, 1)
    assert torch.equal(x, images(2))


def test_auto_is_known_once_the_model_has_seen_an_input():
    model = nn.Sequential(small_cnn()[:4], nn.AvgPool2d(2), nn.Flatten(), nn.Linear(128, 4)).eval()
    iba = InformationBottleneck(model)
    assert iba.layer is None
    iba.stats = iba.estimate(images(40))
    assert iba.layer is not None
    assert iba.attribute(images(), 1).layer == iba.layer.name


# Shapes and dtypes


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, 4)
        self.cls = nn.Parameter(torch.randn(1, 1, 8))
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        tokens = self.embed(x).flatten(2).mT
        tokens = torch.cat([self.cls.expand(len(tokens), -1, -1), tokens], 1)
        return self.fc(self.block(tokens)[:, 0])


def test_tokens_are_mapped_to_their_grid_and_the_class_token_counts_in_the_total():
    torch.manual_seed(0)
    model = Tokens().eval()
    iba = bottleneck(model, "block")
    att = iba.attribute(images(), 1)
    assert att.map.shape == (4, 16, 16)
    assert att.capacity.shape == (4, 17, 8)
    cls = att.capacity[:, 0].sum(1) / math.log(2)
    torch.testing.assert_close(att.map.sum((1, 2)) + cls, att.total_bits, rtol=0.02, atol=0)
    assert att.channel_bits.shape == (4, 8)
    assert att.unit == "bits per pixel"


def test_tokens_of_no_grid_are_given_in_bits_each():
    torch.manual_seed(0)
    att = bottleneck(Tokens().eval(), "block", layout=Layout("tokens", (17,))).attribute(
        images(), 1
    )
    assert att.map.shape == (4, 17)
    assert att.unit == "bits"
    torch.testing.assert_close(att.map.sum(1), att.total_bits)


def test_the_fused_update_is_the_plain_one_in_every_layout(monkeypatch):
    torch.manual_seed(0)
    model = Tokens().eval()
    want = bottleneck(model, "block").attribute(images(), 1).capacity
    adam = torch.optim.Adam
    monkeypatch.setattr(torch.optim, "Adam", lambda params, lr, fused: adam(params, lr=lr))
    torch.testing.assert_close(bottleneck(model, "block").attribute(images(), 1).capacity, want)


def test_a_vector_gives_the_bits_of_each_unit():
    att = bottleneck(layer="6").attribute(images(), 1)
    assert att.map.shape == (4, 8)
    assert att.unit == "bits"
    torch.testing.assert_close(att.map.sum(1), att.total_bits)


@pytest.mark.parametrize("axes", [1, 3])
def test_signals_and_volumes_are_explained(axes):
    conv, pool = [(nn.Conv1d, nn.AdaptiveAvgPool1d), None, (nn.Conv3d, nn.AdaptiveAvgPool3d)][
        axes - 1
    ]
    torch.manual_seed(0)
    model = nn.Sequential(conv(2, 3, 3, 2, 1), nn.ReLU(), pool(1), nn.Flatten(), nn.Linear(3, 2))
    x = torch.randn(3, 2, *[12, 10, 8][:axes])
    iba = InformationBottleneck(model.eval(), "1", seed=0)
    iba.stats = iba.estimate(torch.randn(30, *x.shape[1:]))
    att = iba.attribute(x, 1)
    assert att.map.shape == (3, *x.shape[2:])
    torch.testing.assert_close(att.map.flatten(1).sum(1), att.total_bits, rtol=0.02, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_mask_is_at_least_float32_whatever_the_model_computes_in(dtype):
    model = small_cnn().to(dtype)
    iba = InformationBottleneck(model, "2", seed=0, steps=3)
    iba.stats = iba.estimate(images(40).to(dtype))
    att = iba.attribute(images().to(dtype), 1)
    assert att.capacity.dtype == torch.promote_types(dtype, torch.float32)
    want = bottleneck(steps=3).attribute(images(), 1)
    torch.testing.assert_close(att.total_bits.float(), want.total_bits, rtol=0.05, atol=0)


def test_autocast_halves_the_model_not_the_mask():
    iba = bottleneck()
    with torch.autocast("cpu", torch.bfloat16):
        att = iba.attribute(images(), 1)
    assert att.capacity.dtype == torch.float32
    want = bottleneck().attribute(images(), 1)
    torch.testing.assert_close(att.total_bits, want.total_bits, rtol=0.1, atol=0)


def test_memory_layout_does_not_matter():
    iba = bottleneck()
    want = iba.attribute(images(), 1).map
    last = iba.attribute(images().contiguous(memory_format=torch.channels_last), 1).map
    torch.testing.assert_close(last, want, atol=1e-5, rtol=1e-4)
    wide = torch.zeros(4, 3, 16, 32)
    wide[..., ::2] = images()
    torch.testing.assert_close(iba.attribute(wide[..., ::2], 1).map, want, atol=1e-5, rtol=1e-4)


def test_compiled_and_parallel_wrappers_are_explained_as_the_model():
    model = small_cnn()
    want = bottleneck(model).attribute(images(), 1).map
    for wrapped in (torch.compile(model), nn.DataParallel(model)):
        assert torch.equal(bottleneck(wrapped).attribute(images(), 1).map, want)


def test_dead_units_give_no_nan():
    model = small_cnn()
    model[1].bias.data[:3] = -100
    att = bottleneck(model).attribute(images(), 1)
    assert torch.isfinite(att.map).all()
    assert float(att.channel_bits[:, :3].abs().max()) == 0
    assert float(att.channel_bits[:, 3:].min()) > 0


def test_cells_that_were_never_active_pass_nothing_and_cost_nothing():
    model, seen = small_cnn(), []
    iba = bottleneck(model)
    iba.stats.nonzero[0] = 0
    model[3].register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    att = iba.attribute(images(), 1)
    assert float(model[:3](images()).detach()[:, 0].max()) > 0.5
    assert max(float(z[:, 0].abs().max()) for z in seen if len(z) == 40) == 0
    assert float(att.capacity[:, 0].abs().max()) == 0
    assert float(att.capacity[:, 1:].min()) > 0


def test_halfnormal_statistics_clamp_by_themselves():
    model = small_cnn()
    iba = InformationBottleneck(model, "2", seed=0)
    iba.stats = iba.estimate(images(40), prior="halfnormal")
    seen = []
    model[3].register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().min().item()))
    iba.attribute(images(), 1)
    assert min(seen) == 0.0


def test_a_regression_and_a_model_with_one_output_are_explained():
    model = nn.Sequential(*small_cnn()[:7], nn.Linear(8, 1)).eval()
    iba = bottleneck(model)
    att = iba.attribute(images(), objective=lambda out, _: F.softplus(-out[:, 0]))
    torch.testing.assert_close(iba.attribute(images()).map, att.map)
    wanted = iba.model(images()).detach()[:, 0]
    att = iba.attribute(images(), objective=lambda out, i: (out[:, 0] - wanted[i]).square())
    assert float(att.total_bits.min()) > 0


def test_state_is_saved_and_loaded_with_the_statistics():
    iba = bottleneck()
    again = InformationBottleneck(iba.model, "2", BottleneckStats(iba.stats.shape), seed=0)
    again.load_state_dict(iba.state_dict())
    assert torch.equal(again.attribute(images(), 1).map, iba.attribute(images(), 1).map)


def test_margin_is_the_rival_less_the_target():
    loss = logit_margin(torch.tensor([1, 2]))
    logits = torch.tensor([[5.0, 1.0, 2.0], [0.0, 3.0, 9.0]])
    assert loss(logits, torch.tensor([0, 1])).tolist() == [4.0, -6.0]
    att = bottleneck().attribute(images(2), objective=loss)
    assert float(att.total_bits.min()) > 0


def test_convergence_is_read_from_the_loss():
    slow = bottleneck(lr=0.1).attribute(images(), 1)
    assert not slow.converged.any()
    long = bottleneck(steps=80, lr=0.5).attribute(images(), 1)
    assert long.converged.all()


# Bad input


def test_attribute_before_estimate_names_estimate():
    with pytest.raises(RuntimeError, match="estimate"):
        InformationBottleneck(small_cnn(), "2").attribute(images(), 0)


@pytest.mark.parametrize(
    ("target", "error", "words"),
    [
        (None, ValueError, "target is missing"),
        (torch.tensor([0, 1]), ValueError, r"shape \(4,\)"),
        (torch.tensor([0, 1, 2, 4]), ValueError, r"\[0, 3\]"),
        (-1, ValueError, r"\[0, 3\]"),
        (torch.zeros(4), TypeError, "integers"),
    ],
)
def test_targets_that_do_not_fit_are_refused(target, error, words):
    with pytest.raises(error, match=words):
        bottleneck().attribute(images(), target)


def test_inputs_that_do_not_fit_are_refused():
    iba = bottleneck()
    with pytest.raises(ValueError, match=r"estimate them again .*resize"):
        iba.attribute(images(2, (20, 20)), 0)
    with pytest.raises(TypeError, match="floating point"):
        iba.attribute(images().byte(), 0)
    with pytest.raises(TypeError, match="tensor"):
        iba.attribute([1.0], 0)
    with pytest.raises(ValueError, match="non-empty"):
        iba.attribute(images()[:0], 0)
    with pytest.raises(FloatingPointError, match="x holds"):
        iba.attribute(images() / 0, 0)
    with pytest.raises(ValueError, match="either target or objective"):
        iba.attribute(images(), 0, objective=logit_margin(torch.zeros(4).long()))
    with pytest.raises(ValueError, match="one entry an image"):
        iba.attribute(images(), 0, seeds=[1])
    with pytest.raises(ValueError, match="reduce"):
        iba.attribute(images(), 0, reduce="nats")
    with pytest.raises(ValueError, match="batch_size"):
        iba.attribute(images(), 0, batch_size=0)


def test_objectives_that_do_not_fit_are_refused():
    iba = bottleneck()
    with pytest.raises(FloatingPointError, match="objective"):
        iba.attribute(images(), objective=lambda out, _: out[:, 0] * torch.nan)
    with pytest.raises(ValueError, match="one loss a row"):
        iba.attribute(images(), objective=lambda out, _: out.mean())


def test_statistics_that_are_not_finite_are_refused():
    iba = bottleneck()
    iba.stats.squares[0] = torch.nan
    with pytest.raises(FloatingPointError, match="statistics"):
        iba.attribute(images(), 0)


@pytest.mark.parametrize(
    ("name", "value"),
    [("beta", -1.0), ("beta", math.nan), ("steps", 0), ("draws", 0), ("lr", 0.0), ("smooth", -1.0),
     ("min_std", 0.0), ("active_threshold", -0.1)],
)  # fmt: skip
def test_settings_out_of_range_are_named(name, value):
    with pytest.raises(ValueError, match=name):
        InformationBottleneck(small_cnn(), "2", **{name: value})


@pytest.mark.parametrize("name", ["steps", "draws"])
def test_counts_must_be_integers(name):
    with pytest.raises(TypeError, match=f"{name} must be an integer, got 2.5"):
        InformationBottleneck(small_cnn(), "2", **{name: 2.5})


def test_targets_of_another_length_than_the_whole_batch_are_refused():
    iba = bottleneck(steps=1)
    classes = [0, 1, 2, 3] * 2
    want = iba.attribute(images(8), torch.tensor(classes), batch_size=4).map
    for target in (classes, np.array(classes)):
        assert torch.equal(iba.attribute(images(8), target, batch_size=4).map, want)
        with pytest.raises(ValueError, match=r"must have shape \(8,\), got \(4,\)"):
            iba.attribute(images(8), target[:4], batch_size=4)


def test_a_model_without_logits_needs_an_objective():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Identity()).eval()
    iba = bottleneck(model, "0")
    with pytest.raises(ValueError, match="logits"):
        iba.attribute(images(), 0)
    clean = model(images()).detach()[:, 1, 7, 7]
    pixel = iba.attribute(
        images(), objective=lambda out, i: 1e3 * (out[:, 1, 7, 7] - clean[i]) ** 2
    )
    row, column = divmod(int(pixel.map[0].argmax()), 16)
    assert abs(row - 8) <= 2
    assert abs(column - 8) <= 2
