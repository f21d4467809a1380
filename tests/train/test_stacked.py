"""StackedTrainer against E separate training loops of plain torch."""

from __future__ import annotations

import copy
import io
from functools import partial
from typing import Literal

import pytest
import torch
from torch import Tensor, nn, optim
from torch.nn import functional as F

from addis.train import StackedTrainer, seeded

Backend = Literal["grouped", "vmap", "loop"]
BACKENDS: tuple[Backend, ...] = ("grouped", "vmap", "loop")
SEEDS = (3, 1, 4, 15)
LRS = (0.02, 0.01, 0.01, 0.05)


def cnn(k: int = 2, *, dropout: float = 0.0, bias: bool = False) -> nn.Sequential:
    """Two blocks of the five-layer net, then a linear layer: 3 channels, 8x8, 5 classes."""
    return nn.Sequential(
        nn.Conv2d(3, k, 3, padding=1, bias=bias), nn.BatchNorm2d(k), nn.ReLU(),
        nn.Conv2d(k, 2 * k, 3, padding=1, bias=bias), nn.BatchNorm2d(2 * k), nn.ReLU(),
        nn.MaxPool2d(4), nn.Flatten(), nn.Dropout(dropout), nn.Linear(8 * k, 5),
    )  # fmt: skip


def batches(steps: int, copies: int = 4, n: int = 16, dtype: torch.dtype = torch.float32) -> tuple:
    g = torch.Generator().manual_seed(0)
    x = torch.rand(steps, copies, n, 3, 8, 8, generator=g, dtype=dtype)
    return x, torch.randint(5, (steps, copies, n), generator=g)


def looped(
    model: nn.Module, x: Tensor, y: Tensor, optimizer: optim.Optimizer, seed: int = 0
) -> list[float]:
    """The ordinary loop over batches ``x (T, N, ...)``; returns the losses."""
    losses = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model.train()
        for inputs, targets in zip(x, y, strict=True):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs), targets)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


def apart(a: nn.Module, b: nn.Module) -> float:
    """Largest difference between two state dictionaries."""
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys()
    return max(float((ours[n].double() - theirs[n].double()).abs().max()) for n in ours)


def same(a: nn.Module, b: nn.Module) -> bool:
    return apart(a, b) == 0


OPTIMIZERS = {
    "sgd": optim.SGD,
    "momentum": partial(optim.SGD, momentum=0.9, weight_decay=1e-2),
    "nesterov": partial(optim.SGD, momentum=0.9, nesterov=True),
    "adam": partial(optim.Adam, weight_decay=1e-2),
    "adamw": partial(optim.AdamW, weight_decay=0.1, betas=(0.8, 0.95)),
    "fused": partial(optim.SGD, momentum=0.9, fused=True),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_one_copy_is_an_ordinary_training_loop_bit_for_bit(name: str) -> None:
    x, y = batches(20, copies=1)
    (model,) = seeded(partial(cnn, dropout=0.3, bias=True), [7])
    trainer = StackedTrainer([model], seeds=[7], optimizer=OPTIMIZERS[name], lr=0.05)
    losses = [float(trainer.step(*batch)[0]) for batch in zip(x, y, strict=True)]
    plain = looped(model, x[:, 0], y[:, 0], OPTIMIZERS[name](model.parameters(), lr=0.05), 7)
    assert losses == plain
    assert same(trainer.unstack(0), model)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_four_copies_equal_four_loops_to_rounding(backend: Backend, name: str) -> None:
    x, y = batches(50, dtype=torch.float64)
    models = [m.double() for m in seeded(cnn, SEEDS)]
    trainer = StackedTrainer(models, optimizer=OPTIMIZERS[name], lr=LRS, backend=backend)
    losses = torch.stack([trainer.step(*batch) for batch in zip(x, y, strict=True)])
    for i, model in enumerate(models):
        plain = looped(model, x[:, i], y[:, i], OPTIMIZERS[name](model.parameters(), lr=LRS[i]))
        assert losses[:, i].tolist() == pytest.approx(plain, abs=1e-9)
        assert apart(trainer.unstack(i), model) < 1e-9


def test_four_float32_copies_equal_four_loops_after_fifty_steps() -> None:
    x, y = batches(50)
    models = seeded(cnn, SEEDS)
    trainer = StackedTrainer(models, lr=LRS)
    for batch in zip(x, y, strict=True):
        trainer.step(*batch)
    assert trainer.backend == "grouped"
    for i, model in enumerate(models):
        looped(model, x[:, i], y[:, i], optim.SGD(model.parameters(), lr=LRS[i]))
        assert apart(trainer.unstack(i), model) < 1e-5


def trained(
    models: list[nn.Module], x: Tensor, y: Tensor, **options: object
) -> tuple[StackedTrainer, Tensor]:
    trainer = StackedTrainer(models, **({"lr": 0.05} | options))
    return trainer, torch.stack([trainer.step(*batch) for batch in zip(x, y, strict=True)])


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_copys_data_change_nothing_in_the_others(backend: Backend) -> None:
    x, y = batches(5)
    models = seeded(partial(cnn, dropout=0.3), SEEDS)
    before, _ = trained(models, x, y, backend=backend)
    x[:, 0], y[:, 0] = 1 - x[:, 0], (y[:, 0] + 1) % 5
    after, _ = trained(models, x, y, backend=backend)
    assert not same(before.unstack(0), after.unstack(0))
    assert all(same(before.unstack(i), after.unstack(i)) for i in (1, 2, 3))


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_in_one_copy_stays_there(backend: Backend) -> None:
    x, y = batches(5)
    models = seeded(cnn, SEEDS)
    before, _ = trained(models, x, y, backend=backend)
    x[:, 2] = torch.nan
    after, losses = trained(models, x, y, backend=backend)
    assert losses.isnan().any(0).tolist() == [False, False, True, False]
    assert all(same(before.unstack(i), after.unstack(i)) for i in (0, 1, 3))


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_copy_has_its_own_learning_rate(backend: Backend) -> None:
    x, y = batches(3)
    x, y = x[:, :1].expand_as(x), y[:, :1].expand_as(y)
    trainer, _ = trained(seeded(cnn, [0] * 4), x, y, lr=[0.1, 0.2, 0.1, 0.2], backend=backend)
    a, b, c, d = trainer.models()
    assert apart(a, c) < 1e-6
    assert apart(b, d) < 1e-6
    assert apart(a, b) > 1e-3


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_copy_has_its_own_weight_decay(backend: Backend) -> None:
    x, y = batches(10, dtype=torch.float64)
    models = [m.double() for m in seeded(cnn, SEEDS)]
    decay = [0.0, 0.1, 0.01, 0.01]
    trainer, _ = trained(models, x, y, weight_decay=decay, backend=backend)
    for i, model in enumerate(models):
        optimizer = optim.SGD(model.parameters(), lr=0.05, weight_decay=decay[i])
        looped(model, x[:, i], y[:, i], optimizer)
        assert apart(trainer.unstack(i), model) < 1e-10


def test_schedule_scales_the_rate_by_gradient_step() -> None:
    x, y = batches(6, dtype=torch.float64)
    models = [m.double() for m in seeded(cnn, SEEDS)]
    factors = [lambda t: 1 / (1 + t), lambda t: 0.5, lambda t: float(t == 3), lambda t: 1.0]
    trainer, _ = trained(models, x, y, schedule=factors)
    for i, model in enumerate(models):
        optimizer = optim.SGD(model.parameters(), lr=0.05)
        scheduler = optim.lr_scheduler.LambdaLR(optimizer, factors[i])
        for t in range(len(x)):
            looped(model, x[t : t + 1, i], y[t : t + 1, i], optimizer)
            scheduler.step()
        assert apart(trainer.unstack(i), model) < 1e-12


def test_optimizer_that_looks_at_whole_tensors_sees_one_copy() -> None:
    class Normalized(optim.SGD):
        """Steps of one length for each tensor: not elementwise."""

        def step(self, closure: None = None) -> None:
            for group in self.param_groups:
                for p in group["params"]:
                    p.grad = p.grad / (p.grad.norm() + 1e-3)
            super().step()

    x, y = batches(10, dtype=torch.float64)
    models = [m.double() for m in seeded(cnn, SEEDS)]
    trainer, _ = trained(models, x, y, optimizer=Normalized)
    for i, model in enumerate(models):
        looped(model, x[:, i], y[:, i], Normalized(model.parameters(), lr=0.05))
        assert apart(trainer.unstack(i), model) < 1e-9


@pytest.mark.parametrize("backend", ["grouped", "loop"])
def test_dropout_of_a_copy_is_that_of_its_own_seed(backend: Backend) -> None:
    x, y = batches(5, dtype=torch.float64)
    models = [m.double() for m in seeded(partial(cnn, dropout=0.5), [0, 0, 0, 0])]
    trainer, losses = trained(models, x, y, seeds=SEEDS, backend=backend)
    for i, model in enumerate(models):
        plain = looped(model, x[:, i], y[:, i], optim.SGD(model.parameters(), lr=0.05), SEEDS[i])
        assert losses[:, i].tolist() == pytest.approx(plain, abs=1e-12)
        assert apart(trainer.unstack(i), model) < 1e-12


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_differs_between_copies_and_repeats_with_the_seeds(backend: Backend) -> None:
    x, y = batches(1)
    x, y = x[:, :1].expand_as(x), y[:, :1].expand_as(y)
    models = seeded(partial(cnn, dropout=0.5), [0] * 4)
    _, losses = trained(models, x, y, backend=backend)
    _, again = trained(models, x, y, backend=backend)
    _, other = trained(models, x, y, backend=backend, seeds=[9, 8, 7, 6])
    assert len(set(losses[0].tolist())) == 4
    assert torch.equal(losses, again)
    assert not torch.equal(losses, other)


@pytest.mark.parametrize("backend", BACKENDS)
def test_global_random_state_and_models_are_left_alone(backend: Backend) -> None:
    x, y = batches(2)
    models = seeded(partial(cnn, dropout=0.5), SEEDS)
    models[1].eval()
    kept, state = copy.deepcopy(models), torch.get_rng_state()
    trained(models, x, y, backend=backend)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(same(a, b) for a, b in zip(models, kept, strict=True))
    assert [m.training for m in models] == [True, False, True, True]
    assert all(p.grad is None and p.requires_grad for m in models for p in m.parameters())


@pytest.mark.parametrize("backend", BACKENDS)
def test_outputs_are_those_of_the_unstacked_models_in_eval_mode(backend: Backend) -> None:
    x, y = batches(3, dtype=torch.float64)
    models = [m.double() for m in seeded(partial(cnn, dropout=0.5), SEEDS)]
    trainer, _ = trained(models, x, y, backend=backend)
    before = trainer.models()
    shared, own = trainer.outputs(x[0, 0]), trainer.outputs(x[0], shared=False)
    for i, model in enumerate(trainer.models()):
        with torch.no_grad():
            assert torch.allclose(shared[i], model.eval()(x[0, 0]), atol=1e-12)
            assert torch.allclose(own[i], model(x[0, i]), atol=1e-12)
            assert torch.allclose(trainer.outputs(x[0, 0, :1])[i], model(x[0, 0, :1]), atol=1e-12)
    assert all(same(a, b) for a, b in zip(before, trainer.models(), strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_scores_are_those_of_each_model_on_all_samples(backend: Backend) -> None:
    x, y = batches(3, n=10, dtype=torch.float64)
    models = [m.double() for m in seeded(cnn, SEEDS)]
    trainer, _ = trained(models, x, y, backend=backend)
    together = trainer.evaluate(x[0, 0], y[0, 0], batch_size=4)
    apart_ = trainer.evaluate(x[0], y[0], shared=False, batch_size=3)
    for i, model in enumerate(trainer.models()):
        model.eval().requires_grad_(False)
        for scores, inputs, targets in ((together, x[0, 0], y[0, 0]), (apart_, x[0, i], y[0, i])):
            logits = model(inputs)
            assert float(scores.loss[i]) == pytest.approx(float(F.cross_entropy(logits, targets)))
            assert float(scores.accuracy[i]) == pytest.approx(
                float((logits.argmax(1) == targets).double().mean())
            )


@pytest.mark.parametrize("backend", BACKENDS)
def test_shared_batch_is_the_same_as_giving_it_to_each_copy(backend: Backend) -> None:
    x, y = batches(5, dtype=torch.float64)
    models = [m.double() for m in seeded(cnn, SEEDS)]
    a, b = (StackedTrainer(models, lr=LRS, backend=backend) for _ in range(2))
    for inputs, targets in zip(x[:, 0], y[:, 0], strict=True):
        a.step(inputs, targets, shared=True)
        b.step(torch.stack([inputs] * 4), torch.stack([targets] * 4))
    assert all(apart(m, n) < 1e-12 for m, n in zip(a.models(), b.models(), strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_resumed_run_equals_the_unbroken_one_bit_for_bit(backend: Backend, name: str) -> None:
    x, y = batches(8)
    models = seeded(partial(cnn, dropout=0.4), SEEDS)
    options = {
        "optimizer": OPTIMIZERS[name], "lr": LRS, "backend": backend,
        "schedule": lambda t: 1 / (1 + t),
    }  # fmt: skip
    whole, _ = trained(models, x, y, **options)
    first, _ = trained(models, x[:4], y[:4], **options)
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    second = StackedTrainer(seeded(cnn_with_dropout, [99] * 4), **options)
    second.load_state_dict(torch.load(buffer, weights_only=True))
    for batch in zip(x[4:], y[4:], strict=True):
        second.step(*batch)
    assert second.steps == 8
    assert all(same(a, b) for a, b in zip(whole.models(), second.models(), strict=True))


def cnn_with_dropout() -> nn.Module:
    return cnn(dropout=0.4)


def test_saved_state_does_not_follow_later_steps() -> None:
    x, y = batches(2)
    trainer, _ = trained(seeded(cnn, SEEDS), x, y, optimizer=OPTIMIZERS["momentum"])
    state = trainer.state_dict()
    kept = copy.deepcopy(state)
    trainer.step(x[0], y[0])
    assert all(torch.equal(kept["tensors"][n], t) for n, t in state["tensors"].items())
    momentum = [s["optimizer"]["state"][0]["momentum_buffer"] for s in (kept, state)]
    assert torch.equal(*momentum)


def test_unstacked_model_is_the_users_class_and_shares_nothing() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(4, 3)
            self.note = "kept"

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)

    trainer = StackedTrainer(Net, seeds=[0, 1], lr=0.1)
    model = trainer.unstack(-1)
    assert isinstance(model, Net)
    assert model.note == "kept"
    assert list(model.state_dict()) == ["body.weight", "body.bias"]
    assert all(p.requires_grad and p.is_leaf for p in model.parameters())
    with torch.no_grad():
        model.body.weight.zero_()
    assert not same(model, trainer.unstack(1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_frozen_and_tied_parameters_stay_frozen_and_tied(backend: Backend) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
            self.b.weight = self.a.weight
            self.c.bias.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.b(self.a(x).relu()))

    models = [m.double() for m in seeded(Tied, [0, 1])]
    g = torch.Generator().manual_seed(0)
    x, y = torch.rand(5, 2, 6, 4, generator=g, dtype=torch.float64), torch.zeros(5, 2, 6).long()
    trainer, _ = trained(models, x, y, backend=backend)
    for i, model in enumerate(models):
        looped(model, x[:, i], y[:, i], optim.SGD(model.parameters(), lr=0.05))
        ours = trainer.unstack(i)
        assert apart(ours, model) < 1e-12
        assert ours.b.weight is ours.a.weight
        assert not ours.c.bias.requires_grad


def test_model_that_reads_its_data_falls_back_to_the_loop_on_a_cpu() -> None:
    class Curious(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x if x.sum() > 0 else -x)

    trainer = StackedTrainer(Curious, seeds=[0, 1], lr=0.1)
    assert trainer.backend == "loop"
    assert trainer.step(torch.rand(2, 5, 4), torch.zeros(2, 5).long()).shape == (2,)


@pytest.mark.parametrize("backend", ["vmap", "loop"])
def test_outputs_may_be_any_structure_that_the_loss_takes(backend: Backend) -> None:
    class Coder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enc, self.dec = nn.Linear(6, 4), nn.Linear(2, 6)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            mean, spread = self.enc(x).chunk(2, 1)
            code = mean + spread.exp() * torch.randn_like(mean)
            return {"image": self.dec(code), "mean": mean}

    def loss(out: dict[str, Tensor], x: Tensor) -> Tensor:
        return (out["image"] - x).square().mean() + out["mean"].square().mean()

    trainer = StackedTrainer(Coder, seeds=[0, 1], lr=0.1, loss=loss, backend=backend)
    x = torch.rand(2, 5, 6)
    first = trainer.step(x, x)
    for _ in range(50):
        last = trainer.step(x, x)
    assert (last < first).all()
    assert trainer.evaluate(x, x, shared=False).accuracy.isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_another_device_trains_the_copies_that_the_cpu_trains(
    device: str, backend: Backend
) -> None:
    x, y = batches(6, dtype=torch.float64)
    models = [m.double() for m in seeded(cnn, SEEDS)]
    cpu, there = (
        StackedTrainer(models, lr=LRS, backend=backend, device=where) for where in ("cpu", device)
    )
    assert not there.native
    for batch in zip(x, y, strict=True):
        a, b = cpu.step(*batch), there.step(*batch)
        assert torch.allclose(a, b.cpu(), atol=1e-9)
    scores = [trainer.evaluate(x[0, 0], y[0, 0]) for trainer in (cpu, there)]
    assert torch.equal(scores[0].accuracy, scores[1].accuracy.cpu())
    other = StackedTrainer(models, lr=LRS, backend=backend)
    other.load_state_dict(there.state_dict())
    assert apart(other.unstack(2).cpu(), there.unstack(2).cpu()) == 0


def test_autocast_runs_the_stack_in_half_precision() -> None:
    x, y = batches(3)
    trainer = StackedTrainer(seeded(cnn, SEEDS), lr=0.05)
    with torch.autocast("cpu", torch.bfloat16):
        for batch in zip(x, y, strict=True):
            assert trainer.step(*batch).isfinite().all()
    assert trainer.unstack(0)[0].weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": []}, "at least one model"),
        ({"models": [cnn(), nn.Linear(2, 2)]}, r"models\[1\] has"),
        ({"models": [cnn(), cnn(dropout=0.5)]}, r"Dropout\(p=0.5"),
        ({"models": [cnn(), cnn().double()]}, "float64"),
        ({"models": [cnn(), cnn(bias=True)]}, r"0\.bias"),
        ({"seeds": [1, 2, 3]}, "one for each of 2"),
        ({"lr": 0.0}, "lr must be > 0"),
        ({"lr": float("nan")}, "lr must be > 0"),
        ({"lr": [0.1, 0.1, 0.1]}, "lr must be one number or 2, got 3"),
        ({"weight_decay": -1.0}, "weight_decay must be >= 0"),
        ({"schedule": [lambda t: 1.0]}, "schedule must be one or 2"),
        ({"backend": "fast"}, "'fast'"),
        ({"models": cnn, "seeds": None}, "seeds"),
    ],
)
def test_bad_arguments_are_refused_by_name(change: dict[str, object], message: str) -> None:
    arguments = {"models": [cnn(), cnn()], "lr": 0.1} | change
    with pytest.raises(ValueError, match=message):
        StackedTrainer(arguments.pop("models"), **arguments)


def test_wrong_kinds_are_refused() -> None:
    with pytest.raises(TypeError, match="list of modules"):
        StackedTrainer(cnn(), lr=0.1)
    with pytest.raises(TypeError, match=r"nn\.Module"):
        StackedTrainer(lambda: 3, seeds=[0], lr=0.1)
    with pytest.raises(TypeError, match="LBFGS"):
        StackedTrainer([cnn()], lr=0.1, optimizer=optim.LBFGS)


def test_wrong_batches_are_refused() -> None:
    x, y = batches(1)
    trainer = StackedTrainer(seeded(cnn, SEEDS), lr=0.1)
    with pytest.raises(ValueError, match="E = 4"):
        trainer.step(x[0, :3], y[0, :3])
    with pytest.raises(ValueError, match="one N, got 16 and 7"):
        trainer.step(x[0], y[0, :, :7])
    with pytest.raises(ValueError, match="at least one sample"):
        trainer.step(x[0, :, :0], y[0, :, :0])
    with pytest.raises(ValueError, match="batch_size"):
        trainer.evaluate(x[0, 0], y[0, 0], batch_size=0)
    summed = StackedTrainer(
        seeded(cnn, SEEDS), lr=0.1, loss=partial(F.cross_entropy, reduction="none")
    )
    with pytest.raises(ValueError, match="scalar"):
        summed.step(x[0], y[0])


def test_state_of_another_stack_is_refused() -> None:
    trainer = StackedTrainer(seeded(cnn, SEEDS), lr=0.1)
    with pytest.raises(ValueError, match="shape"):
        trainer.load_state_dict(StackedTrainer(seeded(cnn, SEEDS[:3]), lr=0.1).state_dict())
    with pytest.raises(ValueError, match="'loop'"):
        trainer.load_state_dict(
            StackedTrainer(seeded(cnn, SEEDS), lr=0.1, backend="loop").state_dict()
        )
    with pytest.raises(ValueError, match="state is of optimizer Adam, not SGD"):
        trainer.load_state_dict(
            StackedTrainer(seeded(cnn, SEEDS), lr=0.1, optimizer=optim.Adam).state_dict()
        )


def test_seeded_models_are_those_after_manual_seed() -> None:
    state = torch.get_rng_state()
    models = seeded(cnn, SEEDS)
    assert torch.equal(torch.get_rng_state(), state)
    for seed, model in zip(SEEDS, models, strict=True):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            assert same(model, cnn())
    assert not same(models[0], models[1])
