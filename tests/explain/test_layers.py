from __future__ import annotations

import collections
import math

import pytest
import torch
from torch import nn

from addis.explain import find_layer, last_spatial_layer
from addis.explain._layers import capture, features_of, undisturbed


def staged() -> nn.Sequential:
    torch.manual_seed(0)
    stages = collections.OrderedDict(
        stem=nn.Conv2d(3, 4, 3, padding=1),
        layer1=nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1), nn.ReLU()),
        layer2=nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU()),
        pool=nn.AdaptiveAvgPool2d(1),
        flat=nn.Flatten(),
        fc=nn.Linear(4, 5),
    )
    return nn.Sequential(stages).eval()


def test_a_layer_is_found_by_name_and_by_module():
    model = staged()
    assert find_layer(model, "layer2.0").module is model.layer2[0]
    assert find_layer(model, model.layer2[0]).name == "layer2.0"


def test_an_unknown_name_is_answered_with_the_closest():
    with pytest.raises(ValueError, match=r"no layer 'layr2'; the closest names are layer2"):
        find_layer(staged(), "layr2")
    with pytest.raises(ValueError, match="not a part of the model"):
        find_layer(staged(), nn.ReLU())
    with pytest.raises(TypeError, match="name or a module"):
        find_layer(staged(), 3)


def test_auto_takes_the_end_of_the_middle_stage_and_says_why():
    found = find_layer(staged(), "auto", torch.randn(2, 3, 16, 16))
    assert found.name == "layer1"
    assert "8x8" in found.reason
    assert "16x16, 8x8, 4x4" in found.reason


def test_auto_needs_an_input_and_stages():
    with pytest.raises(ValueError, match="needs an input"):
        find_layer(staged(), "auto")
    flat = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    with pytest.raises(ValueError, match="several sizes"):
        find_layer(flat, "auto", torch.randn(1, 3, 2, 2))


def test_the_last_map_is_before_the_pooling():
    assert last_spatial_layer(staged(), torch.randn(1, 3, 16, 16)).name == "layer2"


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_wrapped_models_are_looked_into(wrap):
    model = staged()
    wrapped = wrap(model)
    assert find_layer(wrapped, "layer1").module is model.layer1
    with undisturbed(wrapped) as inner:
        assert inner is model


def test_captured_features_survive_a_later_in_place_layer():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True)).eval()
    x = torch.randn(1, 1, 5, 5)
    (features,), _ = capture(model, [find_layer(model, "0")], x)
    assert torch.equal(features, model[0](x))
    assert float(features.min()) < 0


def test_reading_features_stops_after_the_last_layer_asked_for():
    model = staged()
    ran = []
    model.fc.register_forward_hook(lambda *_: ran.append(1))
    features_of(model, [find_layer(model, "layer1")], torch.randn(1, 3, 16, 16))
    assert not ran


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.unused = nn.Conv2d(2, 2, 3, padding=1), nn.Linear(1, 1)

    def forward(self, x):
        return self.conv(self.conv(x)).mean((2, 3))


def test_layers_that_run_twice_or_never_are_refused():
    model, x = Twice(), torch.randn(1, 2, 4, 4)
    with pytest.raises(ValueError, match="ran 2 times"):
        capture(model, [find_layer(model, "conv")], x)
    with pytest.raises(ValueError, match="did not run"):
        capture(model, [find_layer(model, "unused")], x)


def test_a_layer_without_float_output_is_refused():
    class Odd(nn.Module):
        def forward(self, x):
            return x.argmax(1)

    model = nn.Sequential(Odd())
    with pytest.raises(TypeError, match="floating-point tensor"):
        capture(model, [find_layer(model, "0")], torch.randn(1, 2, 4, 4))


class Merging(nn.Linear):
    """Does more in ``train`` and ``eval`` than to set the mode, as adapters do."""

    merged = False

    def train(self, mode=True):
        self.merged = not mode
        return super().train(mode)


def test_the_models_own_eval_is_not_called():
    model = nn.Sequential(nn.Flatten(), Merging(4, 2))
    with undisturbed(model):
        assert not model[1].training
        assert not model[1].merged
    assert model.training
    assert model[1].training


class Observing(nn.Module):
    """Changes its buffers in evaluation mode: in place, in their size, by another, from none."""

    def __init__(self) -> None:
        super().__init__()
        for name, value in (("a", torch.ones(2)), ("b", torch.ones(0)), ("c", torch.ones(2))):
            self.register_buffer(name, value)
        self.register_buffer("none", None)
        self.register_buffer("sparse", torch.eye(2).to_sparse())

    def forward(self, x):
        self.a.mul_(2)
        self.b.resize_(3).fill_(2)
        self.c = self.c + 1
        self.none = self.c
        self.sparse.mul_(2)
        return x


def test_buffers_are_put_back():
    model = Observing().eval()
    held = (model.a, model.b, model.c)
    with undisturbed(model):
        model(torch.ones(1, 2))
    assert model.a is held[0]
    assert model.b is held[1]
    assert model.c is held[2]
    assert [b.tolist() for b in held] == [[1, 1], [], [1, 1]]
    assert model.none is None
    assert torch.equal(model.sparse.to_dense(), torch.eye(2))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_a_scripted_part_is_left_as_it_was():
    norm = nn.BatchNorm2d(2).eval()
    model = nn.Sequential(nn.Conv2d(1, 2, 3), torch.jit.script(norm)).eval()
    with undisturbed(model), torch.no_grad():
        model(torch.randn(1, 1, 4, 4))
        model[1].running_mean.add_(1)
    assert model[1].running_mean.tolist() == [0, 0]


def test_a_graph_of_the_callers_through_a_buffer_stays_valid():
    model, x = nn.Sequential(nn.BatchNorm1d(2)).eval(), torch.randn(3, 2)
    loss = model(x).sum()
    with undisturbed(model):
        model(torch.randn(3, 2))
    loss.backward()
    torch.testing.assert_close(model[0].weight.grad, (x / math.sqrt(1 + model[0].eps)).sum(0))


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_inference_mode_is_left_and_the_gradient_mode_kept(mode):
    model = Observing().eval()
    with mode():
        grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        model.c = torch.ones(2)  # of an inference mode, too, it is put back
        with undisturbed(model):
            assert not torch.is_inference_mode_enabled()
            assert torch.is_grad_enabled() == grad
            model.c = model.c + 1
        assert torch.is_inference_mode_enabled() == inference
        assert torch.is_grad_enabled() == grad
    with undisturbed(model):
        pass
    assert model.c.tolist() == [1, 1]


def test_the_model_may_work_in_place_on_the_batch():
    class InPlace(nn.Module):
        def forward(self, x):
            return x.sub_(0.5)

    model = nn.Sequential(InPlace(), nn.Conv2d(1, 2, 3), nn.AvgPool2d(2), nn.AvgPool2d(2)).eval()
    x = torch.rand(2, 1, 14, 14)
    before = x.clone()
    capture(model, [find_layer(model, "1")], x)
    features_of(model, [find_layer(model, "1")], x)
    find_layer(model, "auto", x)
    assert torch.equal(x, before)


def test_modes_and_gradient_flags_are_restored_one_by_one():
    model = staged()
    model.layer2.train()
    model.fc.weight.requires_grad_(False)

    def fail_inside() -> None:
        with undisturbed(model) as inner:
            assert not any(m.training for m in inner.modules())
            assert not any(p.requires_grad for p in inner.parameters())
            raise KeyError

    with pytest.warns(UserWarning, match="training mode"), pytest.raises(KeyError):
        fail_inside()
    assert model.layer2[1].training
    assert not model.layer1.training
    assert not model.fc.weight.requires_grad
    assert model.fc.bias.requires_grad
