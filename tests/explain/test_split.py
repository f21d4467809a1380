from __future__ import annotations

import copy

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


class Frozen(Shortcut):
    """Turns gradients off round the layer and cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(self.a, self.b, nn.ReLU())

    def forward(self, x):
        with torch.no_grad():
            deep = self.backbone(x)
        return self.fc(deep.mean((2, 3)) * (1 if x.sum() > -1e9 else -1))


@pytest.mark.parametrize("layer", ["backbone", "b"])
def test_a_model_that_turns_gradients_off_round_the_layer_has_them_from_there_on(layer):
    torch.manual_seed(0)
    model, x = Frozen().eval(), torch.randn(2, 3, 6, 6)
    with undisturbed(model):
        split = Splitter(model, find_layer(model, layer))(x, 1)
        z = split.features.clone().requires_grad_()
        out = split.head(z * 1)
        (grad,) = torch.autograd.grad(out.square().sum(), z)
        deep = z if layer == "backbone" else z.relu()
        want = torch.autograd.grad(model.fc(deep.mean((2, 3))).square().sum(), z)[0]
    assert split.how == "re-entry"
    torch.testing.assert_close(grad, want)


def tempered(model):
    model.temperature = 0.1


@pytest.mark.parametrize(
    ("change", "how"),
    [
        (tempered, "suffix"),
        (lambda m: m.register_forward_hook(lambda *parts: 2 * parts[-1]), "re-entry"),
    ],
)
def test_a_change_that_no_weight_shows_is_seen_at_the_next_batch(change, how):
    class Tempered(Shortcut):
        temperature = 1.0

        def forward(self, x):
            return self.fc(self.b(self.a(x)).mean((2, 3))) / self.temperature

    torch.manual_seed(0)
    model, x = Tempered().eval(), torch.randn(2, 3, 6, 6)
    splitter = Splitter(model, find_layer(model, "b"))
    with undisturbed(model), torch.no_grad():
        assert splitter(x, 2).how == "suffix"
        change(model)
        split = splitter(x, 2)
        out = split.head(split.features.repeat_interleave(2, dim=0))
    assert split.how == how
    torch.testing.assert_close(out, model(x).detach().repeat_interleave(2, dim=0))


def test_a_batch_size_that_does_not_fit_is_noticed_and_the_next_one_that_does():
    model = FixedBatch().eval()
    splitter = Splitter(model, find_layer(model, "b"))
    with undisturbed(model):
        assert splitter(torch.randn(3, 3, 6, 6), 1).how == "suffix"
        with pytest.raises(RuntimeError, match="shape"):
            splitter(torch.randn(2, 3, 6, 6), 1)  # the model itself does not take it
        assert splitter(torch.randn(3, 3, 6, 6), 2).how == "re-entry"
        assert splitter(torch.randn(3, 3, 6, 6), 1).how == "suffix"


class Noting(nn.Module):
    """Fills a cache, appends to a list and makes a constant whenever it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.fc = Shortcut(), nn.Linear(5, 2)
        self.grid, self.seen = None, []

    def forward(self, x):
        y = self.inner(x)
        self.seen.append(y)
        if self.grid is None:
            self.grid = torch.ones_like(y[:1])
        return self.fc(y * self.grid * torch.linspace(0.5, 1, 5))


def test_the_trace_leaves_no_mark_on_the_model():
    torch.manual_seed(0)
    model, x, shown = Noting().eval(), torch.randn(2, 3, 6, 6), []
    model.inner.register_forward_hook(lambda *parts: shown.append(parts[-1]))
    attributes = set(vars(model))
    with undisturbed(model), torch.no_grad():
        for layer in ("inner.b", "inner.a"):
            split = Splitter(model, find_layer(model, layer))(x, 2)
            assert split.how == "suffix"
            for _ in range(2):
                out = split.head(split.features.repeat_interleave(2, dim=0))
                torch.testing.assert_close(out[::2], split.output)
        assert set(vars(model)) == attributes
        torch.testing.assert_close(model(x), split.output)
    assert all(isinstance(one, torch.Tensor) for one in (model.grid, *model.seen, *shown))


def test_a_constant_that_is_changed_in_place_is_made_anew_each_time():
    class Adding(Shortcut):
        def forward(self, x):
            y = self.fc(self.b(self.a(x)).mean((2, 3)))
            return y * torch.ones(5).add_(y.sum() * 0 + 1)

    torch.manual_seed(0)
    model, x = Adding().eval(), torch.randn(2, 3, 6, 6)
    with undisturbed(model), torch.no_grad():
        split = Splitter(model, find_layer(model, "b"))(x, 1)
        assert split.how == "suffix"
        for _ in range(2):
            torch.testing.assert_close(split.head(split.features.clone()), split.output)


def test_a_hook_that_changes_a_module_round_the_layer_is_obeyed():
    torch.manual_seed(0)
    model, x = Noting().eval(), torch.randn(2, 3, 6, 6)
    model.inner.register_forward_hook(lambda *parts: 2 * parts[-1])
    with undisturbed(model), torch.no_grad():
        split = Splitter(model, find_layer(model, "inner.b"))(x, 1)
        torch.testing.assert_close(split.head(split.features.clone()), model(x))


@pytest.mark.parametrize("kind", [Shortcut, Flow])
def test_a_model_may_work_in_place_on_its_input(kind):
    class InPlace(kind):
        def forward(self, x):
            return super().forward(x.sub_(0.5)) + x.mean((1, 2, 3))[:, None]

    torch.manual_seed(0)
    model, x = InPlace().eval(), torch.randn(2, 3, 6, 6)
    before = x.clone()
    with undisturbed(model), torch.no_grad():
        split = Splitter(model, find_layer(model, "b"))(x, 2)
        for _ in range(2):
            out = split.head(split.features.repeat_interleave(2, dim=0))
            torch.testing.assert_close(out[::2], split.output)
    assert torch.equal(x, before)


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


class Wide(nn.Module):
    """Convolutions of many channels behind the layer, in a block and alone."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 256, 1)
        self.block = nn.Sequential(
            nn.Conv2d(256, 256, 3, padding=1, bias=False), nn.BatchNorm2d(256), nn.ReLU(True)
        )
        self.alone = nn.Conv2d(256, 256, 3, padding=1)
        self.fc = nn.Linear(256, 5)

    def forward(self, x):
        side = self.a(x)
        deep = self.block(side)
        return self.fc((self.alone(deep) + side).mean((2, 3)))


def wide() -> tuple[Wide, torch.Tensor]:
    torch.manual_seed(0)
    model = Wide().eval()
    model.block[1].running_mean.normal_()
    model.block[1].running_var.uniform_(0.5, 2)
    return model, torch.randn(2, 3, 6, 6)


def copies_run(head) -> bool:
    return bool(head.keywords["copies"])


def test_wide_convolutions_run_in_merged_copies_that_give_the_same():
    model, x = wide()
    before = copy.deepcopy(model.state_dict())
    splitter = Splitter(model, find_layer(model, "a"))
    with undisturbed(model):
        split = splitter(x, 2)
        z = torch.randn(4, 256, 6, 6).requires_grad_()
        assert copies_run(split.head)
        ours = split.head(z)
        side = split.features.repeat_interleave(2, dim=0)
        assert side.shape == z.shape
        deep = model.alone(model.block(z))
        theirs = model.fc((deep + z).mean((2, 3)))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        grads = [torch.autograd.grad(out.square().sum(), z)[0] for out in (ours, theirs)]
        torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-5)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.parametrize("change", [
    lambda m: m.block[0].weight.data.mul_(1 + 1e-6),  # under the slack of the check
    lambda m: m.block[1].running_mean.add_(1e-6),
    lambda m: setattr(m, "alone", nn.Conv2d(256, 256, 3, padding=1)),
    lambda m: setattr(m.block, "2", nn.GELU()),
    lambda m: m.block.register_forward_hook(lambda *parts: 2 * parts[-1]),
])  # fmt: skip
def test_a_change_of_the_model_between_two_batches_is_seen(change):
    model, x = wide()
    splitter = Splitter(model, find_layer(model, "a"))
    with undisturbed(model):
        assert copies_run(splitter(x, 1).head)
    change(model)
    with undisturbed(model), torch.no_grad():
        split = splitter(x, 1)
        fresh = Splitter(model, find_layer(model, "a"))(x, 1)
        z = torch.randn(2, 256, 6, 6)
        if copies_run(split.head):  # else a check has found that the old copies do not agree
            assert torch.equal(split.head(z), fresh.head(z))
        wanted = model.fc((model.alone(model.block(z)) + z).mean((2, 3)))
        torch.testing.assert_close(split.head(z), wanted, rtol=1e-4, atol=1e-5)


def test_a_model_that_cannot_be_copied_runs_its_own_modules():
    class Held(nn.Conv2d):
        def __deepcopy__(self, memo):
            raise RuntimeError("held")

    model, x = wide()
    model.block.append(Held(256, 256, 1))
    model.eval()
    with undisturbed(model):
        split = Splitter(model, find_layer(model, "a"))(x, 1)
    assert split.how == "suffix"
    assert not copies_run(split.head)


def test_a_buffer_that_has_no_digest_leaves_the_modules_to_run_themselves():
    model, x = wide()
    model.block.register_buffer("map", torch.eye(3).to_sparse())
    with undisturbed(model):
        split = Splitter(model, find_layer(model, "a"))(x, 1)
    assert split.how == "suffix"
    assert not copies_run(split.head)
