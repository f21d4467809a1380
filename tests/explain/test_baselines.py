from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from addis import explain
from addis.explain import BASELINES, CAMS
from addis.explain._rise import _masks
from tests.explain import oracles


def small_cnn() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True),
        nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    ).eval()  # fmt: skip


def images(n: int = 3, size: tuple[int, int] = (16, 16)) -> Tensor:
    return torch.randn(n, 3, *size, generator=torch.Generator().manual_seed(1))


class LinearModel(nn.Module):
    """Logits that are linear in the image: every gradient is known."""

    def __init__(self, size: tuple[int, int] = (16, 16)) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.weight = nn.Parameter(torch.randn(4, 3, *size, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("nchw,kchw->nk", x, self.weight)


TARGET = torch.tensor([0, 3, 1])


def run(name: str, model: nn.Module, x: Tensor, target, **more) -> Tensor:
    options = {
        "rise": {"masks": 20},
        "smoothgrad": {"samples": 3},
        "integrated_gradients": {"steps": 4},
    }
    if name == "lrp":
        pytest.importorskip("zennit")
    return BASELINES[name](model, x, target, **options.get(name, {}), **more)


# One table: what every baseline must do


@pytest.mark.parametrize("name", BASELINES)
def test_maps_have_the_size_of_the_images_and_leave_the_model_alone(name):
    model = small_cnn().train()
    model[0].bias.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    with pytest.warns(UserWarning, match="training mode") if name != "random" else _nothing():
        maps = run(name, model, images(size=(15, 17)), TARGET)
    assert maps.shape == (3, 15, 17)
    assert torch.isfinite(maps).all()
    assert not maps.requires_grad
    assert all(module.training for module in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert not model[0].bias.requires_grad
    assert model[0].weight.requires_grad
    assert not any(m._forward_hooks or m._backward_hooks for m in model.modules())
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def _nothing():
    import contextlib

    return contextlib.nullcontext()


@pytest.mark.parametrize("name", sorted(set(BASELINES) - {"random"}))
def test_a_batch_is_explained_as_its_images_one_by_one(name):
    model, x = small_cnn(), images()
    whole = run(name, model, x, TARGET)
    single = torch.cat([run(name, model, x[i : i + 1], TARGET[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(whole, single, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", sorted(set(BASELINES) - {"random"}))
def test_the_class_is_never_guessed(name):
    with pytest.raises(ValueError, match="target is missing"):
        run(name, small_cnn(), images(), None)


@pytest.mark.parametrize("name", BASELINES)
def test_integer_images_are_refused(name):
    with pytest.raises(TypeError, match="floating point"):
        run(name, small_cnn(), images().byte(), TARGET)


@pytest.mark.parametrize("name", sorted(set(BASELINES) - {"random", "lrp"}))
def test_models_in_half_precision_are_explained(name):
    maps = run(name, small_cnn().bfloat16(), images().bfloat16(), TARGET)
    assert torch.isfinite(maps).all()
    assert maps.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (explain.rise, {"masks": 400, "keep": 0.9, "batch_size": 1}),
        (explain.smoothgrad, {"samples": 400}),
        (explain.integrated_gradients, {"steps": 300}),
    ],
)
def test_means_of_many_passes_keep_their_digits_in_half_precision(method, options):
    # The sums would stand still at 256 terms, where a bfloat16 no longer changes by adding 1.
    class Even(nn.Module):
        def forward(self, x):
            return torch.stack([x.sum((1, 2, 3)) + 20, x.sum((1, 2, 3)) * 0], 1)

    x = images(1, size=(4, 4)).abs()
    want = method(Even(), x, 0, **options)
    ours = method(Even(), x.bfloat16(), 0, **options)
    torch.testing.assert_close(ours.float(), want, rtol=0.02, atol=1e-3)


@pytest.mark.parametrize("name", sorted(set(BASELINES) - {"lrp"}))
def test_a_model_may_work_in_place_on_its_input(name):
    class InPlace(nn.Module):
        def __init__(self, inplace: bool) -> None:
            super().__init__()
            self.net, self.inplace = small_cnn(), inplace

        def forward(self, x):
            return self.net(x.sub_(0.5).div_(0.25) if self.inplace else (x - 0.5) / 0.25)

    x = images()
    layer = {"layer": "net.3"} if name in CAMS else {}
    want = run(name, InPlace(False).eval(), x, TARGET, **layer)
    ours = run(name, InPlace(True).eval(), x, TARGET, **layer)
    assert torch.equal(x, images())
    torch.testing.assert_close(ours, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", BASELINES)
def test_maps_keep_no_graph_of_an_image_that_requires_a_gradient(name):
    x = images().requires_grad_()
    assert not run(name, small_cnn(), x, TARGET).requires_grad
    assert x.grad is None


@pytest.mark.parametrize("name", sorted(set(BASELINES) - {"lrp"}))
def test_images_and_calls_of_inference_mode_are_explained(name):
    model = small_cnn()
    want = run(name, model, images(), TARGET)
    with torch.inference_mode():
        x = images()
        torch.testing.assert_close(run(name, model, x, TARGET), want)
    torch.testing.assert_close(run(name, model, x, TARGET), want)


# Closed forms


def test_gradients_of_a_linear_model_are_its_weights():
    model, x = LinearModel(), images()
    weights = model.weight[TARGET].detach()
    torch.testing.assert_close(explain.saliency(model, x, TARGET), weights.abs().amax(1))
    torch.testing.assert_close(explain.gradient(model, x, TARGET), weights.sum(1))
    torch.testing.assert_close(explain.gradient_x_input(model, x, TARGET), (weights * x).sum(1))
    smooth = explain.smoothgrad(model, x, TARGET, samples=4)
    torch.testing.assert_close(smooth, weights.abs().amax(1))
    path = explain.integrated_gradients(model, x, TARGET, steps=1, baseline="zero")
    torch.testing.assert_close(path, (weights * x).sum(1))


def test_integrated_gradients_sum_to_the_rise_of_the_logit():
    model, x = small_cnn(), images()
    maps = explain.integrated_gradients(model, x, TARGET, steps=200)
    start = x.mean((2, 3), keepdim=True).expand_as(x)
    rise = (model(x) - model(start)).gather(1, TARGET[:, None])[:, 0].detach()
    torch.testing.assert_close(maps.sum((1, 2)), rise, atol=2e-3, rtol=1e-2)


def test_smoothgrads_noise_follows_each_images_range():
    seen = []

    class Spy(LinearModel):
        def forward(self, x):
            if x.isfinite().all():  # which cannot be traced, so that each pass comes here
                seen.append(x.detach().clone())
            return super().forward(x)

    x = images() * torch.tensor([1.0, 10.0, 0.1]).view(3, 1, 1, 1)
    explain.smoothgrad(Spy(), x, TARGET, samples=200, noise=0.15)
    std = (torch.stack(seen[-200:]) - x).flatten(2).std(dim=(0, 2))
    spread = 0.15 * (x.flatten(1).amax(1) - x.flatten(1).amin(1))
    torch.testing.assert_close(std, spread, rtol=0.02, atol=0)


def test_blurred_saliency_is_saliency_under_scipys_blur():
    model, x = small_cnn(), images()
    want = oracles.gaussian_blur(explain.saliency(model, x, TARGET).double().numpy(), 1.5)
    ours = explain.blurred_saliency(model, x, TARGET, std=1.5)
    torch.testing.assert_close(ours.double(), torch.from_numpy(want), atol=1e-7, rtol=1e-5)
    plain = explain.saliency(model, x, TARGET)
    torch.testing.assert_close(explain.blurred_saliency(model, x, TARGET, std=0), plain)


def test_occlusion_of_a_linear_model_is_the_mean_of_the_covering_patches():
    model, x = LinearModel((6, 7)), images(size=(6, 7))
    ours = explain.occlusion(model, x, TARGET, patch=3, stride=2, baseline="zero")
    total, count = torch.zeros(3, 6, 7), torch.zeros(6, 7)
    effect = (model.weight[TARGET] * x).sum(1).detach()
    for top in (0, 2, 4):
        for left in (0, 2, 4):
            window = (slice(top, top + 3), slice(left, left + 3))
            total[:, *window] += effect[:, *window].sum((1, 2))[:, None, None]
            count[window] += 1
    torch.testing.assert_close(ours, total / count, atol=1e-5, rtol=1e-5)


def test_occlusion_does_not_depend_on_the_batch_size():
    model, x = small_cnn(), images()
    a = explain.occlusion(model, x, TARGET, patch=5, stride=3, batch_size=1)
    b = explain.occlusion(model, x, TARGET, patch=5, stride=3, batch_size=1000)
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_rise_finds_the_pixels_that_the_class_is_read_from():
    class Corner(nn.Module):
        def forward(self, x):
            seen = x[:, 0, :6, :6].mean((1, 2))
            return torch.stack([10 * seen - 5, torch.zeros_like(seen)], 1)

    maps = explain.rise(Corner(), torch.ones(1, 3, 28, 28), 0, masks=2000, seed=1)
    inside, outside = maps[0, :6, :6].mean(), maps[0, 14:, 14:].mean()
    assert float(inside) > float(outside) + 0.1
    model = small_cnn()
    even = explain.rise(model, images(1) * 0, 2, masks=4000)[0]
    chance = model(images(1) * 0).softmax(1)[0, 2].item()
    torch.testing.assert_close(even, torch.full_like(even, chance), rtol=0.05, atol=0)


def test_rise_of_a_single_logit_takes_its_sigmoid():
    class Single(nn.Module):
        def __init__(self, two: bool) -> None:
            super().__init__()
            self.two = two

        def forward(self, x):
            logit = 4 * x[:, 0, :3, :3].mean((1, 2)) - 2
            return torch.stack([logit, 0 * logit], 1) if self.two else logit[:, None]

    x = images(2, size=(6, 6)).abs()
    ours = explain.rise(Single(two=False), x, None, masks=50, cells=3)
    torch.testing.assert_close(ours, explain.rise(Single(two=True), x, 0, masks=50, cells=3))


def test_cams_follow_their_formulas():
    model, x = small_cnn(), images()
    features = model[:4](x).detach().requires_grad_()
    (grads,) = torch.autograd.grad(
        model[4:](features.clone()).gather(1, TARGET[:, None]).sum(), features
    )

    def up(maps: Tensor) -> Tensor:
        return F.interpolate(maps[:, None], (16, 16), mode="bilinear")[:, 0]

    weights = grads.mean((2, 3), keepdim=True)
    want = {
        "gradcam": up((weights * features).sum(1).relu()),
        "hirescam": up((grads * features).sum(1).relu()),
        "layercam": up((grads.relu() * features).sum(1).relu()),
    }
    for name, maps in want.items():
        torch.testing.assert_close(CAMS[name](model, x, TARGET, "3"), maps.detach())
    guided = explain.guided_backprop(model, x, TARGET)
    both = explain.guided_gradcam(model, x, TARGET, "3")
    torch.testing.assert_close(both, want["gradcam"].detach() * guided)


def test_gradcam_reads_the_last_map_and_refuses_vectors():
    model, x = small_cnn(), images()
    torch.testing.assert_close(explain.gradcam(model, x, 1), explain.gradcam(model, x, 1, "4"))
    with pytest.raises(ValueError, match="no map"):
        explain.gradcam(model, x, 1, "6")
    with pytest.raises(ValueError, match="no layer of the model"):
        explain.gradcam(nn.Sequential(nn.Flatten(), nn.Linear(768, 4)), x, 1)


RELUS = {
    "module": lambda x: nn.ReLU()(x),
    "function": lambda x: F.relu(x),
    "method": lambda x: x.relu(),
}
RELUS_IN_PLACE = {
    "module in place": lambda x: nn.ReLU(inplace=True)(x),
    "function in place": lambda x: F.relu(x, inplace=True),
    "function with underscore": lambda x: F.relu_(x),
    "method with underscore": lambda x: x.relu_(),
}


@pytest.mark.parametrize(
    ("relu", "statement"),
    [(relu, False) for relu in (RELUS | RELUS_IN_PLACE).values()]
    + [(relu, True) for relu in RELUS_IN_PLACE.values()],
    ids=[*RELUS, *RELUS_IN_PLACE, *(f"{name}, as a statement" for name in RELUS_IN_PLACE)],
)
def test_guided_backprop_treats_functions_and_methods_as_modules(relu, statement):
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small_cnn()

        def rectified(self, x):
            out = relu(x)
            return x if statement else out

        def forward(self, x):
            x = self.rectified(self.net[:2](x))
            return self.net[5:](self.rectified(self.net[3](x)))

    model = Functional().eval()
    want = explain.guided_backprop(model.net, images(), TARGET)
    torch.testing.assert_close(explain.guided_backprop(model, images(), TARGET), want)


def test_guided_backprop_follows_a_relu_in_place_on_a_view_and_on_the_image():
    class Half(nn.Module):
        def __init__(self, inplace: bool) -> None:
            super().__init__()
            self.net, self.inplace = small_cnn(), inplace

        def forward(self, x):
            if self.inplace:
                x.relu_()
                x = self.net[0](x)
                x[:, :3].relu_()
            else:
                x = self.net[0](x.relu())
                x = torch.cat([x[:, :3].relu(), x[:, 3:]], dim=1)
            return self.net[1:](x)

    x = images()
    want = explain.guided_backprop(Half(inplace=False).eval(), x, TARGET)
    torch.testing.assert_close(explain.guided_backprop(Half(inplace=True).eval(), x, TARGET), want)


def test_guided_backprop_needs_a_relu():
    with pytest.raises(ValueError, match="needs a ReLU"):
        explain.guided_backprop(LinearModel(), images(), TARGET)


def test_guided_backprop_stops_what_is_negative_on_its_way_back():
    model = nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(2, 1, bias=False)).eval()
    model[2].weight.data = torch.tensor([[3.0, -2.0]])
    x = torch.ones(1, 1, 1, 2)
    assert explain.guided_backprop(model, x, None)[0, 0].tolist() == [3.0, 0.0]
    assert explain.saliency(model, x, None)[0, 0].tolist() == [3.0, 2.0]


def test_masks_of_rise_are_shifted_by_their_part_of_a_cell():
    grids = (torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    still = _masks(grids, torch.tensor([[0.0, 0.0]]), (28, 28))
    moved = _masks(grids, torch.tensor([[0.5, 0.25]]), (28, 28))
    torch.testing.assert_close(moved[:, :26, :27], still[:, 2:, 1:])


def test_random_maps_are_uniform_and_repeat_with_their_seed():
    x = images()
    first = explain.random_map(small_cnn(), x, TARGET, seed=3)
    assert torch.equal(first, explain.random_map(small_cnn(), x, TARGET, seed=3))
    assert not torch.equal(first, explain.random_map(small_cnn(), x, TARGET, seed=4))
    assert 0 <= float(first.min()) < 0.05 < 0.95 < float(first.max()) < 1


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m, x: explain.smoothgrad(m, x, 0, samples=0), "samples >= 1"),
        (lambda m, x: explain.smoothgrad(m, x, 0, noise=-1.0), "noise >= 0"),
        (lambda m, x: explain.integrated_gradients(m, x, 0, steps=0), "steps"),
        (lambda m, x: explain.integrated_gradients(m, x, 0, baseline="blur"), "baseline"),
        (
            lambda m, x: explain.integrated_gradients(m, x, 0, baseline=torch.zeros(7)),
            r"baseline must broadcast to \(3, 3, 16, 16\), got shape \(7,\)",
        ),
        (lambda m, x: explain.occlusion(m, x, 0, baseline=torch.zeros(2, 1, 1)), r"\(2, 1, 1\)"),
        (lambda m, x: explain.occlusion(m, x, 0, patch=4, stride=5), "stride"),
        (lambda m, x: explain.occlusion(m, x, 0, patch=0), "patch"),
        (lambda m, x: explain.occlusion(m, x.flatten(2), 0), "x must be"),
        (lambda m, x: explain.rise(m, x, 0, masks=0), "masks"),
        (lambda m, x: explain.rise(m, x, 0, keep=1.0), "keep"),
        (lambda m, x: explain.rise(m, x.flatten(2), 0), "x must be"),
        (lambda m, x: explain.blurred_saliency(m, x, 0, std=-1.0), "std"),
        (lambda m, x: explain.gradcam(m, x, 0, "nowhere"), "closest"),
    ],
)
def test_settings_out_of_range_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call(small_cnn(), images())


def test_a_missing_zennit_names_the_extra(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "zennit.attribution", None)
    with pytest.raises(ImportError, match=r"addis\[lrp\]"):
        explain.lrp(small_cnn(), images(), TARGET)


def test_relevance_is_conserved_by_lrp_without_biases():
    pytest.importorskip("zennit")
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 36, 4, bias=False)
    ).eval()
    x = images(size=(8, 8))
    torch.testing.assert_close(
        explain.lrp(model, x, TARGET).sum((1, 2)), torch.ones(3), atol=1e-3, rtol=0
    )
