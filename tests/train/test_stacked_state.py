"""What a copy keeps to itself: its attributes, and what its forward pass changes in place."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from addis.train import StackedTrainer, seeded

Backend = Literal["grouped", "vmap", "loop"]
BACKENDS: tuple[Backend, ...] = ("grouped", "vmap", "loop")
X = torch.rand(16, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(16) % 3


def plain(model: nn.Module, steps: int) -> tuple[nn.Module, list[float]]:
    """A copy of ``model`` after the ordinary loop, and its losses."""
    model, losses = copy.deepcopy(model), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(X.clone()), Y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model, losses


def check_against_plain(models: list[nn.Module], trainer: StackedTrainer) -> None:
    losses = torch.stack([trainer.step(X, Y, shared=True) for _ in range(3)])
    outputs = trainer.outputs(X)
    for i, model in enumerate(models):
        expected, own_losses = plain(model, 3)
        assert losses[:, i].tolist() == pytest.approx(own_losses, abs=1e-6)
        unstacked = trainer.unstack(i).eval()
        with torch.no_grad():
            assert torch.allclose(outputs[i], expected.eval()(X.clone()), atol=1e-6)
            assert torch.allclose(unstacked(X.clone()), outputs[i], atol=1e-6)


class Scaled(nn.Module):
    def __init__(self, value: Any) -> None:
        super().__init__()
        self.body, self.value = nn.Linear(4, 3), value

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return self.value(y) if callable(self.value) else y * self.value


def times(factor: float) -> Callable[[Tensor], Tensor]:
    return lambda x: x * factor


VALUES = {
    "number": (1.0, 5.0),
    "function": (torch.relu, torch.tanh),
    "closure": (times(1.0), times(2.0)),
    "partial": (partial(F.softplus, beta=1), partial(F.softplus, beta=3)),
    "tensor": (torch.tensor(1.0), torch.tensor(2.0)),
}


@pytest.mark.parametrize("kind", VALUES)
def test_copies_with_other_attributes_run_each_by_its_own(kind: str) -> None:
    models: list[nn.Module] = [Scaled(value) for value in VALUES[kind]]
    trainer = StackedTrainer(models, lr=0.5)
    assert trainer.backend == "loop"
    check_against_plain(models, trainer)
    for backend in ("vmap", "grouped"):
        with pytest.raises(ValueError, match=r"models\[1\] has .* at 'value' where models\[0\]"):
            StackedTrainer(models, lr=0.5, backend=backend)


def test_equal_attributes_that_each_copy_has_anew_do_not_hinder() -> None:
    for value in (2.0, times(2.0), partial(F.softplus, beta=2)):
        models = [Scaled(copy.deepcopy(value)), Scaled(copy.deepcopy(value))]
        StackedTrainer(models, lr=0.5, backend="vmap")
    assert StackedTrainer([Scaled(2.0), Scaled(2.0)], lr=0.5).backend == "grouped"


def test_attention_with_other_heads_is_each_copys_own() -> None:
    models = [
        nn.Sequential(
            nn.Linear(4, 12), nn.Unflatten(1, (3, 4)),
            nn.TransformerEncoderLayer(4, heads, 8, 0.0, batch_first=True),
            nn.Flatten(), nn.Linear(12, 3),
        ) for heads in (1, 2)
    ]  # fmt: skip
    trainer = StackedTrainer(models, lr=0.5)
    trainer.step(X, Y, shared=True)
    for i, outputs in enumerate(trainer.outputs(X)):
        with torch.no_grad():
            assert torch.allclose(outputs, trainer.unstack(i).eval()(X), atol=1e-6)


class Warm(nn.Module):
    """Scales by ``1 + n / 4`` after n training batches."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.seen = form, [0]
        if form == "buffer":
            self.register_buffer("n", torch.zeros(()))
        else:
            self.n: Any = 0 if form == "number" else torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            if self.form == "list":
                self.seen[0] += 1
            elif self.form == "number":
                self.n = self.n + 1
            else:
                self.n += 1
        return x * (1 + (self.seen[0] if self.form == "list" else self.n) / 4)


@pytest.mark.parametrize("form", ["buffer", "number", "tensor", "list"])
@pytest.mark.parametrize("given", [True, False])
def test_state_that_a_forward_pass_changes_goes_on_in_each_copy(form: str, given: bool) -> None:
    models: list[nn.Module] = [
        nn.Sequential(nn.Linear(4, 8), Warm(form), nn.Linear(8, 3)).train(given) for _ in range(2)
    ]
    trainer = StackedTrainer(models, lr=0.5)
    assert trainer.backend == "loop"
    for model in models:
        assert model[1].n == 0
        assert model[1].seen == [0]
        assert model.training is given
        model.train()
    check_against_plain(models, trainer)
    assert [m.training for m in trainer.models()] == [given, given]
    with pytest.raises(ValueError, match=r"forward (of Sequential changes '1|reads '_).*loop"):
        StackedTrainer(models, lr=0.5, backend="grouped")


@pytest.mark.parametrize(
    "read", [lambda t: t[0].item(), lambda t: t.view(1, 3), lambda t: t * t, lambda t: t.mean()]
)
def test_buffer_is_read_at_each_step_by_each_copy(read: Callable[[Tensor], Any]) -> None:
    """Nothing that is computed from a buffer is kept from the tracing."""

    class Cooled(nn.Module):
        def __init__(self, heat: float) -> None:
            super().__init__()
            self.body = nn.Linear(4, 3)
            self.register_buffer("heat", torch.full((3,), heat))

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x) / read(self.heat)

    models: list[nn.Module] = [Cooled(1.0), Cooled(4.0)]
    trainer = StackedTrainer(models, lr=0.5)
    assert trainer.backend == "loop"
    check_against_plain(models, trainer)


class InPlace(nn.Module):
    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.change = nn.Linear(4, 3), change

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.change(x))


def shift(x: Tensor) -> Tensor:
    x -= 0.5
    x *= 2
    return x


def rectify(x: Tensor) -> Tensor:
    return F.leaky_relu(x.flatten(1), 0.5, inplace=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("change", [shift, rectify])
def test_model_that_works_on_its_input_in_place_changes_no_other(
    backend: Backend, change: Callable[[Tensor], Tensor]
) -> None:
    models: list[nn.Module] = [InPlace(change), InPlace(change)]
    x = X - 0.5
    shared, own = x.clone(), torch.stack([x, x])
    trainer = StackedTrainer(models, lr=0.5, backend=backend)
    expected = [F.cross_entropy(model(x.clone()), Y).item() for model in models]
    assert trainer.evaluate(shared, Y).loss.tolist() == pytest.approx(expected)
    assert trainer.evaluate(own, Y.expand(2, -1), shared=False).loss.tolist() == pytest.approx(
        expected
    )
    assert trainer.step(shared, Y, shared=True).tolist() == pytest.approx(expected)
    trainer.step(own, Y.expand(2, -1))
    assert torch.equal(shared, x)
    assert torch.equal(own, torch.stack([x, x]))


@pytest.mark.parametrize("backend", ["vmap", "loop"])
def test_weights_may_be_clamped_in_forward(backend: Backend) -> None:
    class Clamped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                self.b.weight.clamp_(-0.3, 0.3)
            return self.b(self.a(x))

    models = seeded(Clamped, [0, 1])
    check_against_plain(models, StackedTrainer(models, lr=0.5, backend=backend))


def test_copied_trainer_of_a_loop_trains_alone() -> None:
    models = seeded(
        lambda: nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)), [0, 1]
    )
    first = StackedTrainer(models, lr=0.5, backend="loop")
    first.step(X, Y, shared=True)
    second = copy.deepcopy(first)
    kept = first.outputs(X)
    losses = [second.step(X, Y, shared=True) for _ in range(2)]
    assert torch.equal(first.outputs(X), kept)
    assert all(torch.equal(first.step(X, Y, shared=True), loss) for loss in losses)
    assert torch.equal(first.outputs(X), second.outputs(X))
