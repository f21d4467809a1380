"""Narrow copies in the stack of the widest, against their own training loops."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn, optim
from torch.nn import functional as F

from addis.models import cnn5
from addis.train import StackedTrainer

WIDTHS = (1, 4, 2, 3)
LRS = (0.1, 0.05, 0.1, 0.02)


def nets() -> list[nn.Module]:
    return [cnn5(k, 5).double() for k in WIDTHS]


def batches(steps: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.rand(steps, 4, 8, 3, 8, 8, generator=g, dtype=torch.float64)
    return x, torch.randint(5, (steps, 4, 8), generator=g)


@pytest.mark.parametrize(
    "optimizer",
    [
        partial(optim.SGD, momentum=0.9, nesterov=True, weight_decay=1e-2),
        partial(optim.Adam, eps=1e-3, weight_decay=1e-2),
        partial(optim.AdamW, eps=1e-3),
    ],
)
def test_narrow_copies_equal_their_own_loops(optimizer: partial[optim.Optimizer]) -> None:
    x, y = batches(30)
    models = nets()
    trainer = StackedTrainer(models, lr=LRS, optimizer=optimizer)
    losses = torch.stack([trainer.step(*batch) for batch in zip(x, y, strict=True)])
    for i, model in enumerate(models):
        own = optimizer(model.parameters(), lr=LRS[i])
        for t in range(len(x)):
            own.zero_grad()
            loss = F.cross_entropy(model(x[t, i]), y[t, i])
            loss.backward()
            own.step()
            assert float(losses[t, i]) == pytest.approx(loss.item(), abs=1e-10)
        ours, theirs = trainer.unstack(i).state_dict(), model.state_dict()
        assert all(torch.allclose(ours[n], t, rtol=0, atol=1e-9) for n, t in theirs.items())
        logits = trainer.outputs(x[0, 0])[i]
        assert torch.allclose(logits, model.eval()(x[0, 0]), atol=1e-9)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Sigmoid, nn.Softplus])
def test_padding_stays_exactly_zero(activation: type[nn.Module]) -> None:
    def net(k: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, k, 3), nn.BatchNorm2d(k), activation(), nn.Conv2d(k, 2 * k, 3),
            activation(), nn.Flatten(), nn.Linear(2 * k * 16, 5),
        ).double()  # fmt: skip

    models = [net(k) for k in WIDTHS]
    trainer = StackedTrainer(models, lr=LRS, optimizer=partial(optim.Adam, weight_decay=0.1))
    for batch in zip(*batches(10), strict=True):
        trainer.step(*batch)
    for name, stacked in trainer.state_dict()["tensors"].items():
        for i, model in enumerate(models):
            own = torch.zeros_like(stacked[i], dtype=torch.bool)
            shape = model.state_dict()[name].shape
            own[tuple(slice(n) for n in shape)] = True
            if not name.endswith(("running_mean", "running_var")):
                assert (stacked[i][~own] == 0).all(), name


def test_copies_of_several_widths_resume_and_keep_their_own_shapes() -> None:
    x, y = batches(4)
    models = nets()
    first = StackedTrainer(models, lr=LRS)
    for batch in zip(x, y, strict=True):
        first.step(*batch)
    second = StackedTrainer(nets(), lr=LRS)
    second.load_state_dict(first.state_dict())
    for a, b, model in zip(first.models(), second.models(), models, strict=True):
        shapes = {n: t.shape for n, t in model.state_dict().items()}
        assert {n: t.shape for n, t in a.state_dict().items()} == shapes
        assert all(torch.equal(t, b.state_dict()[n]) for n, t in a.state_dict().items())


def net(k: int, *, norm: bool = False, kernel: int = 3, groups: int = 1, out: int = 5) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 2 * k, kernel), nn.GroupNorm(2, 2 * k) if norm else nn.ReLU(),
        nn.Conv2d(2 * k, 2 * k, 3, groups=groups), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(2 * k, out),
    )  # fmt: skip


def two_layers(a: int, b: int) -> nn.Module:
    return nn.Sequential(nn.Linear(3, a), nn.Linear(a, b), nn.Linear(b, 5))


class Concatenates(nn.Module):
    def __init__(self, k: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, k, 1), nn.Conv2d(2 * k, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.b(torch.cat([x, x], 1)).mean((2, 3))


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ([net(1, norm=True), net(2, norm=True)], "'1' is GroupNorm"),
        ([net(2, groups=2), net(3, groups=2)], r"'2' \(Conv2d\) works on groups"),
        ([net(1), net(2, kernel=1)], "'0' is Conv2d"),
        ([net(1, out=4), net(2)], "outputs of the models have several sizes"),
        ([Concatenates(1), Concatenates(2)], "move or mix channels"),
        ([two_layers(2, 4), two_layers(4, 2)], "widest in every layer"),
        ([nn.Linear(2, 5), nn.Linear(3, 5)], "'weight' has several shapes"),
    ],
)
def test_models_whose_narrow_form_is_not_exact_are_refused(
    models: list[nn.Module], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        StackedTrainer(models, lr=0.1)


def test_other_backends_refuse_several_widths() -> None:
    with pytest.raises(ValueError, match="several widths need backend='grouped', got 'vmap'"):
        StackedTrainer(nets(), lr=0.1, backend="vmap")


def test_depthwise_convolutions_may_differ_in_width() -> None:
    def depthwise(k: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, k, 1), nn.Conv2d(k, k, 3, groups=k), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(k, 5),
        ).double()  # fmt: skip

    models = [depthwise(2), depthwise(4)]
    trainer = StackedTrainer(models, lr=0.1)
    x, _ = batches(1)
    for i, model in enumerate(models):
        assert torch.allclose(trainer.outputs(x[0, 0])[i], model(x[0, 0]), atol=1e-12)
