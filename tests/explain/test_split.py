from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from addis.explain._layers import find_layer, undisturbed
from addis.explain._split import Splitter


class Shortcut(nn.Module):
    """The layer ``b`` lies beside a shortcut, which is then changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.fc = nn.Linear(4, 5)

    def forward(self, x, gain=2.0):
        side = self.a(x)
        side = side.add_(F.relu(self.b(side)) * self.scale)
        return self.fc(gain * side.mean((2, 3)))


class Mutated(Shortcut):
    """A value from before the layer is changed after it, which no trace shows."""

    def forward(self, x):
        side = self.a(x)
        deep = self.b(side)
        side.add_(deep)
        return self.fc(side.mean((2, 3)) + deep.mean((2, 3)))


class Flow(Shortcut):
    """Control flow that depends on the input cannot be traced."""

    def forward(self, x):
        side = self.a(x)
        return self.fc(self.b(side).mean((2, 3)) * (1 if x.sum() > 0 else -1))


class BatchInt(Shortcut):
    """The number of images, read before the layer, shapes what comes after it."""

    def forward(self, x):
        n = x.shape[0]
        return self.fc(self.b(self.a(x)).mean((2, 3)).reshape(n, -1))


class FixedBatch(Shortcut):
    """The number of images is wired in after the layer."""

    def forward(self, x):
        return self.fc(self.b(self.a(x)).mean((2, 3)).reshape(3, -1))


class Pair(Shortcut):
    class Two(nn.Conv2d):
        def forward(self, x):
            return super().forward(x), "extra"

    def __init__(self) -> None:
        super().__init__()
        self.b = self.Two(4, 4, 3, padding=1)

    def forward(self, x):
        values, _ = self.b(self.a(x))
        return self.fc(values.mean((2, 3)))


class Gated(Shortcut):
    """A leaf after the layer may have control flow of its own."""

    class Gate(nn.Module):
        def forward(self, x):
            return x if x.sum() > -1e9 else -x

    def __init__(self) -> None:
        super().__init__()
        self.gate = self.Gate()

    def forward(self, x):
        return self.fc(self.gate(self.b(self.a(x))).mean((2, 3)))


def rows(model: nn.Module, x: torch.Tensor, repeats: int, layer: str = "b"):
    """Split, gradient at the layer through its head, and the same by a hook on the whole model."""
    place = find_layer(model, layer)
    with undisturbed(model):
        split = Splitter(model, place)(x, repeats)
        z = torch.randn_like(split.features.repeat_interleave(repeats, 0)).requires_grad_()
        out = split.head(z.clone())
        (grad,) = torch.autograd.grad(out.square().sum(), z)
        tuple_out = isinstance(model, Pair)
        handle = place.module.register_forward_hook(
            lambda *_: (z.clone(), "extra") if tuple_out else z.clone()
        )
        whole = model(x.repeat_interleave(repeats, 0))
        handle.remove()
        (want,) = torch.autograd.grad(whole.square().sum(), z)
        again = split.head(z.detach().clone())
    return split, out, whole, grad, want, again


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        (Shortcut, "suffix"), (Gated, "suffix"), (Flow, "re-entry"), (BatchInt, "re-entry"),
        (Mutated, "re-entry"), (Pair, "re-entry"),
    ],
)  # fmt: skip
def test_the_head_is_the_model_from_the_layer_on(kind, how):
    torch.manual_seed(0)
    model, x = kind().eval(), torch.randn(2, 3, 6, 6)
    split, out, whole, grad, want, again = rows(model, x, repeats=3)
    assert split.how == how
    torch.testing.assert_close(out, whole)
    torch.testing.assert_close(grad, want)
    torch.testing.assert_close(again, whole)  # a second call finds the side values unchanged
    torch.testing.assert_close(split.output, model(x))


def test_a_wired_in_batch_size_is_noticed():
    torch.manual_seed(0)
    model = FixedBatch().eval()
    with undisturbed(model):
        assert Splitter(model, find_layer(model, "b"))(torch.randn(3, 3, 6, 6), 1).how == "suffix"
        assert Splitter(model, find_layer(model, "b"))(torch.randn(3, 3, 6, 6), 2).how == "re-entry"


def test_the_prefix_gets_no_gradient_in_a_re_entry():
    model = Flow().eval()
    with undisturbed(model):
        split = Splitter(model, find_layer(model, "b"))(torch.randn(1, 3, 6, 6), 1)
        z = split.features.clone().requires_grad_()
        out = split.head(z)
    names = set()
    waiting = [out.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None:
            names.add(node.name())
            waiting += [parent for parent, _ in node.next_functions]
    assert not any("Convolution" in name for name in names)


def test_gradients_may_be_off_in_the_head():
    model = Flow().eval()
    with undisturbed(model):
        split = Splitter(model, find_layer(model, "b"))(torch.randn(1, 3, 6, 6), 1)
        z = split.features.clone().requires_grad_()
        with torch.no_grad():
            assert not split.head(z).requires_grad
            assert not torch.is_grad_enabled()


def test_the_callers_head_is_used_and_checked():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)).eval()
    x = torch.randn(2, 3, 6, 6)
    place = find_layer(model, "1")
    with undisturbed(model):
        assert Splitter(model, place, model[2:])(x, 4).how == "head"
        with pytest.raises(ValueError, match="model's output"):
            Splitter(model, place, lambda z: -model[2:](z))(x, 4)


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "squeezenet1_0", "googlenet"])
def test_torchvisions_models_are_cut(name):
    import torchvision

    options = {"init_weights": False} if name == "googlenet" else {}
    model = getattr(torchvision.models, name)(num_classes=4, **options).eval()
    x = torch.randn(1, 3, 64, 64)
    with undisturbed(model):
        split = Splitter(model, find_layer(model, "auto", x))(x, 2)
        assert split.how == "suffix"
        torch.testing.assert_close(split.head(split.features.clone()), split.output)
