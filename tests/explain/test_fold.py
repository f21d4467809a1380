from __future__ import annotations

import copy

import torch
import torchvision
from torch import nn

from addis.explain._fold import folded, merged
from addis.nn import WinogradConv2d


def test_the_copy_computes_the_same_without_batch_norms():
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=5).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(2, 3, 64, 64)
    fast = folded(model, x)
    assert fast is not model
    used = {node.target for node in fast.graph.nodes if node.op == "call_module"}
    assert not any(isinstance(fast.get_submodule(name), nn.BatchNorm2d) for name in used)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-4)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert fast.fc.weight is model.fc.weight  # what does not change is not copied
    assert not fast.get_submodule("layer1.0.conv1").weight.requires_grad


def test_a_wide_convolution_by_itself_is_quick_too():
    conv = nn.Conv2d(96, 96, 3, padding=1)
    fast = merged(conv)
    assert isinstance(fast, WinogradConv2d)
    assert fast.weight.is_contiguous(memory_format=torch.channels_last)
    assert conv.weight.is_contiguous()
    x = torch.randn(2, 96, 16, 16)
    torch.testing.assert_close(fast(x), conv(x), rtol=1e-4, atol=1e-4)
    assert fast._points is not None


def test_a_convolution_that_is_read_twice_or_run_twice_keeps_its_norm():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
            self.norm.running_mean.fill_(0.7)

        def forward(self, x):
            y = self.conv(x)
            return self.norm(self.conv(x)).sum((2, 3)) + y.sum((2, 3))

    model = Twice().eval()
    x = torch.randn(2, 3, 8, 8)
    fast = folded(model, x)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-3)


def test_a_model_that_cannot_be_traced_runs_with_its_channels_last():
    class Flow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            y = self.conv(x)
            self.last = y.is_contiguous(memory_format=torch.channels_last)
            return y.mean((2, 3)) if x.sum() > 0 else -y.mean((2, 3))

    model = Flow().eval()
    x = torch.randn(1, 3, 8, 8)
    fast = folded(model, x)
    with torch.no_grad():
        for sign in (1, -1):
            torch.testing.assert_close(fast(sign * x), model(sign * x))
    assert fast.last
    assert not model.last


def test_a_model_whose_copy_fails_an_assertion_is_used_as_it_is():
    class Fussy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            y = self.conv(x)
            assert y.is_contiguous()
            return y.mean((2, 3))

    model = Fussy().eval()
    assert folded(model, torch.randn(2, 3, 8, 8)) is model


def test_a_model_that_cannot_be_copied_is_used_as_it_is():
    class Held(nn.Module):
        def __deepcopy__(self, memo):
            raise RuntimeError("held")

        def forward(self, x):
            return x.mean((2, 3))

    model = Held().eval()
    assert folded(model, torch.randn(1, 3, 4, 4)) is model


def test_a_model_that_notes_what_it_saw_is_not_told_of_the_tracing():
    class Noting(nn.Module):
        last = None

        def forward(self, x):
            self.last = x
            return x.mean((2, 3))

    model = Noting().eval()
    x = torch.randn(1, 3, 4, 4)
    with torch.no_grad():
        assert torch.equal(folded(model, x)(x), x.mean((2, 3)))
    assert torch.equal(model.last, x)  # the check of the copy ran the model on x


def test_a_hook_sees_no_proxy_of_the_tracing():
    seen = []
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), nn.Flatten()).eval()
    model[0].register_forward_hook(lambda *parts: seen.append(type(parts[-1])))
    folded(model, torch.randn(1, 3, 4, 4))
    assert set(seen) <= {torch.Tensor}


def test_a_cache_that_the_first_pass_fills_hinders_no_copy_that_cannot_be_traced():
    class Caching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.ones = nn.Conv2d(3, 4, 3), None

        def forward(self, x):
            if self.ones is None:
                self.ones = torch.ones_like(x[:1])
            return self.conv(x * self.ones).mean((2, 3)) * (1 if x.sum() > -1e9 else -1)

    model = Caching().eval()
    assert folded(model, torch.randn(1, 3, 4, 4)) is not model


def test_the_check_leaves_the_images_to_the_caller():
    class InPlace(nn.Module):
        def forward(self, x):
            return x.sub_(0.5).mean((2, 3))

    x = torch.randn(1, 3, 4, 4)
    before = x.clone()
    folded(InPlace().eval(), x)
    assert torch.equal(x, before)


def test_a_model_that_needs_the_channels_first_is_used_as_it_is():
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.conv(x).view(len(x) if isinstance(x, torch.Tensor) else x.shape[0], -1)

    model = Flat().eval()
    assert folded(model, torch.randn(2, 3, 8, 8)) is model
