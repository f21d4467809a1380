"""Cascading randomisation and the similarities of maps."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn
from torch.nn.utils import prune

from addis.explain._sanity import cascade_randomization, spearman, ssim
from addis.explain._sensitivity import pearson
from tests.explain import oracles_metrics as oracles


def net(dtype=torch.float32):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(3)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(54, 4)).eval().to(dtype)


def batch(n=2, h=14, w=13):
    g = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, h, w, generator=g), torch.arange(n)


def gradient(model, x, target):
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        score = model(x).gather(1, target[:, None]).sum()
        return torch.autograd.grad(score, x)[0].sum(1)


def maps(seed, n=3, h=20, w=17):
    return torch.randn(n, h, w, generator=torch.Generator().manual_seed(seed))


# --- the cascade ---


def test_layers_go_from_the_last_to_the_first_in_the_order_in_which_they_run():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 2)
            self.stem = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.head(self.stem(x).mean((2, 3)))

    x, target = batch()
    found = cascade_randomization(Backwards(), gradient, x, target)
    assert found.layers == ("head", "stem")
    assert found.ssim.shape == found.spearman.shape == found.pearson.shape == (2, 2)


def test_randomisation_is_cumulative_and_reaches_the_named_layer():
    x, target = batch()
    model = net()
    seen = []

    def note(model, x, target):
        seen.append([p.detach().clone() for p in model.parameters()])
        return gradient(model, x, target)

    found = cascade_randomization(model, note, x, target)
    assert found.layers == ("5", "1", "0")
    own = [p.detach() for p in model.parameters()]  # conv w, b; norm w, b; linear w, b
    changed = [[not torch.equal(a, b) for a, b in zip(own, step, strict=True)] for step in seen]
    linear, conv = [False] * 4 + [True] * 2, [True, True, False, False, True, True]
    assert changed == [[False] * 6, linear, linear, conv]  # a fresh norm has the same weights
    assert torch.equal(seen[1][4], seen[3][4])  # once randomised it stays so


def test_an_explanation_that_ignores_the_model_stays_the_same():
    x, target = batch()
    found = cascade_randomization(net(), lambda model, x, target: x.sum(1), x, target)
    for similarity in (found.ssim, found.spearman, found.pearson):
        assert torch.allclose(similarity, torch.ones_like(similarity), atol=1e-12)


def test_an_explanation_by_gradients_changes():
    x, target = batch()
    found = cascade_randomization(net(), gradient, x, target)
    assert (found.pearson[-1].abs() < 0.6).all()


def test_the_users_model_and_torchs_generator_are_left_as_they_were():
    model = net().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    x, target = batch()
    cascade_randomization(model, gradient, x, target)

    def fails(model, x, target):
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        cascade_randomization(model, fails, x, target)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(m.training and not m._forward_pre_hooks for m in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_the_explanation_sees_evaluation_mode_and_no_hooks():
    def look(model, x, target):
        assert not any(m.training or m._forward_pre_hooks for m in model.modules())
        return gradient(model, x, target)

    cascade_randomization(net().train(), look, *batch())


def test_the_seed_alone_decides_the_weights():
    x, target = batch()
    one, same, other = (
        cascade_randomization(net(), gradient, x, target, seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(one.pearson, same.pearson)
    assert not torch.equal(one.pearson, other.pearson)


def test_named_layers_are_randomised_with_all_they_contain():
    x, target = batch()
    model = nn.Sequential(net()[:4], net()[4:])
    found = cascade_randomization(model, gradient, x, target, layers=["0", "1"])
    assert found.layers == ("1", "0")


@pytest.mark.parametrize(
    "computed",
    [
        lambda layer: prune.l1_unstructured(layer, "weight", amount=0.3),
        torch.nn.utils.weight_norm,
        torch.nn.utils.parametrizations.weight_norm,
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
def test_a_weight_that_is_computed_from_others_is_randomised_too(computed):
    model, x = net(), batch()[0]
    for place in (0, 5):
        computed(model[place])
    seen = []

    def note(model, x, target):
        maps = gradient(model, x, target)
        seen.append([model[place].weight.detach().clone() for place in (0, 5)])
        return maps

    model(x)  # leaves a weight with a graph where it is computed by a hook
    cascade_randomization(model, note, *batch(), layers=["0", "5"])
    changed = [[not torch.equal(a, b) for a, b in zip(seen[0], s, strict=True)] for s in seen]
    assert changed == [[False, False], [False, True], [True, True]]


def test_parameters_of_the_model_itself_are_randomised_last():
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.place = nn.Conv2d(3, 4, 3), nn.Parameter(torch.randn(4, 12, 11))

        def forward(self, x):
            return (self.stem(x) * self.place).mean((2, 3))

    torch.manual_seed(0)
    model, seen = Positions(), []

    def note(model, x, target):
        seen.append(model.place.detach().clone())
        return gradient(model, x, target)

    found = cascade_randomization(model, note, *batch())
    assert found.layers == ("stem", "")
    assert [torch.equal(place, model.place) for place in seen] == [True, True, False]


def test_no_other_devices_generator_is_seeded(monkeypatch):
    model, seeded = net(), []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    found = cascade_randomization(model, gradient, *batch())
    assert seeded == []
    assert len(found.layers) > 1  # weights were drawn


def test_inference_mode_outside_does_not_matter():
    x, target = batch()
    want = cascade_randomization(net(), gradient, x, target).pearson
    model = net()
    with torch.inference_mode():
        assert torch.equal(cascade_randomization(model, gradient, x.clone(), target).pearson, want)


def test_the_images_are_left_to_the_caller():
    class InPlace(nn.Module):
        def forward(self, x):
            return x.sub_(0.5)

    model, (x, target) = nn.Sequential(InPlace(), net()).eval(), batch()
    cascade_randomization(model, lambda m, x, t: x.sum(1), x, target)
    assert torch.equal(x, batch()[0])


def test_parameters_without_a_reset_keep_their_mean_and_spread():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(3 + 0.5 * torch.randn(3, 14, 13))

        def forward(self, x):
            return (x * self.weight).mean((2, 3))

    seen = []

    def note(model, x, target):
        seen.append(model[0].weight.detach().clone())
        return gradient(model, x, target)

    cascade_randomization(nn.Sequential(Scale()), note, *batch())
    assert not torch.equal(seen[0], seen[1])
    assert seen[1].mean().item() == pytest.approx(3, abs=0.1)
    assert seen[1].std().item() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"layers": []}, ValueError, "at least one layer"),
        ({"layers": ["7"]}, ValueError, "'7'"),
        ({"layers": ["2"]}, ValueError, "no parameters"),
        ({"model": nn.Flatten()}, ValueError, "nothing to randomise"),
        ({"explain": lambda m, x, t: x}, ValueError, "map must be"),
        ({"explain": lambda m, x, t: x[:1].sum(1)}, ValueError, "explain must return"),
        ({"explain": lambda m, x, t: x.sum(1).long()}, TypeError, "map"),
        ({"explain": lambda m, x, t: x.sum(1) / 0}, FloatingPointError, "map"),
        ({"x": torch.zeros(2, 3, 14, 13).long()}, TypeError, "x"),
    ],
)
def test_wrong_input_is_refused(change, error, match):
    x, target = batch()
    given = {"model": net(), "explain": gradient, "x": x, "target": target, **change}
    with pytest.raises(error, match=match):
        cascade_randomization(**given)


# --- similarities ---


def test_ssim_equals_the_loop_over_windows():
    a, b = maps(1), maps(2) + maps(1)
    expected = [oracles.ssim(u, v) for u, v in zip(a, b, strict=True)]
    assert np.allclose(ssim(a, b), expected, atol=1e-10)


def test_ssim_does_not_see_the_scale_and_is_one_for_equal_maps():
    a, b = maps(3), maps(4)
    assert torch.allclose(ssim(a, 5 * a + 2), torch.ones(3, dtype=torch.float64), atol=1e-6)
    assert torch.allclose(ssim(a, b), ssim(b, a))
    assert (ssim(a, -a) < 0).all()


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (8, 8), (10, 11)])
def test_ssim_of_maps_smaller_than_its_window(size):
    a = torch.rand(2, *size)
    assert torch.allclose(ssim(a, a), torch.ones(2, dtype=torch.float64))


def test_spearman_equals_scipy_with_and_without_ties():
    a, b = maps(5), maps(6)
    for u, v in ((a, b), (a.round(), b.round()), (a.clamp_min(0), b)):
        expected = [
            scipy.stats.spearmanr(p.flatten(), q.flatten())[0] for p, q in zip(u, v, strict=True)
        ]
        assert np.allclose(spearman(u, v), expected, atol=1e-12)


def test_rank_correlation_sees_order_alone_and_pearson_scale_alone():
    a = maps(7)
    assert torch.allclose(spearman(a, a**3), torch.ones(3, dtype=torch.float64))
    assert torch.allclose(pearson(a.flatten(1), (2 * a - 1).flatten(1)), torch.ones(3).double())
    assert (pearson(a.flatten(1), (a**3).flatten(1)) < 0.95).all()


def test_a_constant_map_is_similar_to_nothing():
    a, flat = maps(8), torch.full((3, 20, 17), 0.3)
    assert not spearman(a, flat).any()
    assert (ssim(a, flat) < 0.2).all()


@pytest.mark.parametrize("metric", [ssim, spearman])
def test_similarities_refuse_maps_that_do_not_match(metric):
    with pytest.raises(ValueError, match="map must be"):
        metric(maps(9), maps(9, w=16))
    with pytest.raises(TypeError):
        metric(maps(9), maps(9).long())
    with pytest.raises(FloatingPointError):
        metric(maps(9), maps(9) * torch.nan)
