"""The loop trains as a hand-written one does, whatever the batches, and says what it cannot do."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau
from torch.utils.data import DataLoader, TensorDataset

from addis import train


def data(n: int = 22, features: int = 5, classes: int = 3) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, features, generator=generator)
    return TensorDataset(x, torch.randint(classes, (n,), generator=generator))


def batches(n: int = 22, size: int = 4) -> list[tuple[Tensor, Tensor]]:
    x, y = data(n).tensors
    return list(zip(x.split(size), y.split(size), strict=True))


def net(*, dropout: float = 0.0, norm: bool = False) -> nn.Sequential:
    torch.manual_seed(1)
    middle = nn.BatchNorm1d(8) if norm else nn.Identity()
    return nn.Sequential(nn.Linear(5, 8), middle, nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 3))


def sgd(model: nn.Module, lr: float = 0.1) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=1e-3)


def same(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_weights_are_those_of_a_hand_written_loop_bit_for_bit() -> None:
    ours, theirs = net(norm=True), net(norm=True)
    assert same(ours, theirs)
    list(train.epochs(ours, batches(), train.cross_entropy_step, sgd(ours), epochs=3))
    optimizer = sgd(theirs)
    for _ in range(3):
        for x, y in batches():
            optimizer.zero_grad()
            nn.functional.cross_entropy(theirs(x), y).backward()
            optimizer.step()
    assert same(ours, theirs)


def test_loss_and_metrics_are_means_over_samples_not_over_batches() -> None:
    model = net()

    def step(model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        logits = model(batch[0])
        correct = (logits.argmax(1) == batch[1]).float().mean()
        return {"accuracy": correct, "loss": nn.functional.cross_entropy(logits, batch[1])}

    frozen = torch.optim.SGD(model.parameters(), lr=0.0)
    [epoch] = train.epochs(model, batches(22, 4), step, frozen, epochs=1)
    x, y = data().tensors
    logits = model(x)
    assert epoch.loss == pytest.approx(nn.functional.cross_entropy(logits, y).item(), rel=1e-6)
    assert epoch.metrics == {"accuracy": pytest.approx((logits.argmax(1) == y).double().mean())}
    assert (epoch.index, epoch.step, epoch.samples) == (0, 6, 22)
    assert epoch.seconds > 0


def test_metrics_of_another_type_than_the_loss_are_not_rounded_to_it() -> None:
    model = net().bfloat16()

    def step(model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        loss = train.cross_entropy_step(model, (batch[0].bfloat16(), batch[1]))
        return {"loss": loss, "count": torch.tensor(1001)}

    [epoch] = train.epochs(model, batches(), step, sgd(model), epochs=1)
    assert epoch.metrics == {"count": 1001}


def test_more_batches_than_a_block_of_the_meter_are_all_counted() -> None:
    model = nn.Linear(1, 1, bias=False)
    values = torch.arange(1030.0)
    loader = [value.reshape(1, 1) for value in values]

    def step(model: nn.Module, batch: Tensor) -> Tensor:
        return model(batch).sum() * 0 + batch.sum()

    [epoch] = train.epochs(model, loader, step, sgd(model), epochs=1)
    assert epoch.loss == values.mean().item()
    assert epoch.step == 1030


@pytest.mark.parametrize(("size", "accumulate"), [(2, 4), (3, 2), (5, 3), (22, 4)])
def test_accumulated_batches_give_the_step_of_their_joint_batch(size: int, accumulate: int) -> None:
    parts, joint = net().double(), net().double()
    x, y = data().tensors
    pairs = list(zip(x.double().split(size), y.split(size), strict=True))
    groups = [pairs[i : i + accumulate] for i in range(0, len(pairs), accumulate)]
    whole = [tuple(torch.cat(part) for part in zip(*group, strict=True)) for group in groups]
    step = train.cross_entropy_step
    for a, b in zip(
        train.epochs(parts, pairs, step, sgd(parts), epochs=2, accumulate=accumulate),
        train.epochs(joint, whole, step, sgd(joint), epochs=2),
        strict=True,
    ):
        assert a.loss == pytest.approx(b.loss, rel=1e-12)
        assert a.step == b.step
    for p, q in zip(parts.parameters(), joint.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-12)


def test_gradients_are_clipped_to_the_joint_norm() -> None:
    model = net()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    x, y = data().tensors
    list(
        train.epochs(
            model, [(x * 100, y)], train.cross_entropy_step, optimizer, epochs=1, clip_norm=0.5
        )
    )
    moved = torch.cat([(p - q).flatten() for p, q in zip(model.parameters(), before, strict=True)])
    assert moved.norm().item() == pytest.approx(0.5, rel=1e-4)


def test_the_scheduler_steps_once_a_gradient_step() -> None:
    model = net()
    optimizer = sgd(model)
    seen: list[float] = []

    def step(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        seen.append(optimizer.param_groups[0]["lr"])
        return train.cross_entropy_step(model, batch)

    scheduler = LambdaLR(optimizer, lambda t: 1 / (1 + t))
    run = train.epochs(
        model, batches(), step, optimizer, epochs=2, scheduler=scheduler, accumulate=2
    )
    assert [epoch.step for epoch in run] == [3, 6]
    assert seen == pytest.approx([0.1 / (1 + t) for t in range(6) for _ in range(2)])


def test_training_mode_is_set_each_epoch_and_the_callers_mode_comes_back() -> None:
    model = net(norm=True).eval()
    seen: list[bool] = []

    def step(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        seen.append(model.training)
        return train.cross_entropy_step(model, batch)

    for _ in train.epochs(model, batches(8, 4), step, sgd(model), epochs=2):
        assert model.training
        model.eval()
    assert seen == [True] * 4
    assert not any(module.training for module in model.modules())


def test_a_part_frozen_in_evaluation_mode_stays_so() -> None:
    model = net(norm=True).train()
    norm = model[1]
    norm.eval()
    mean = norm.running_mean.clone()
    for _ in train.epochs(model, batches(8, 4), train.cross_entropy_step, sgd(model), epochs=2):
        assert model.training
        assert not norm.training
    assert torch.equal(norm.running_mean, mean)


def test_a_part_that_the_caller_freezes_between_epochs_stays_so() -> None:
    model = net(norm=True)
    norm, seen = model[1], []
    for epoch in train.epochs(model, batches(8, 4), train.cross_entropy_step, sgd(model), epochs=5):
        seen.append(norm.num_batches_tracked.item())
        if epoch.index == 0:
            model.eval()  # freezes nothing
        elif epoch.index == 1:
            norm.eval()
        elif epoch.index == 2:
            model.eval()
            model.train()
    assert seen == [2, 4, 4, 4, 4]
    assert norm.training


def test_the_model_is_left_without_gradients_hooks_or_wrapping() -> None:
    model = net()
    kind = type(model)
    for _ in train.epochs(model, batches(8, 4), train.cross_entropy_step, sgd(model), epochs=1):
        assert all(p.grad is None for p in model.parameters())
    assert type(model) is kind
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._backward_hooks for m in model.modules())


def test_modes_come_back_and_gradients_go_after_an_error_in_a_step() -> None:
    model = net().eval()

    def step(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        train.cross_entropy_step(model, batch).backward()
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        list(train.epochs(model, batches(), step, sgd(model), epochs=1))
    assert not model.training
    assert all(p.grad is None for p in model.parameters())


def test_the_callers_code_between_epochs_acts_on_the_next() -> None:
    model = net()
    mask = torch.rand(8, 5) < 0.5
    for _ in train.epochs(model, batches(), train.cross_entropy_step, sgd(model), epochs=3):
        with torch.no_grad():
            model[0].weight.mul_(mask)
        assert (model[0].weight[~mask] == 0).all()


def test_seeded_epochs_depend_on_the_seed_alone_and_leave_the_global_state() -> None:
    def run(seed: int, disturb: int) -> nn.Module:
        model = net(dropout=0.5)
        loader = DataLoader(data(), 4, shuffle=True)
        torch.manual_seed(disturb)
        before = torch.get_rng_state()
        for _ in train.epochs(
            model, loader, train.cross_entropy_step, sgd(model), epochs=2, seed=seed
        ):
            assert torch.equal(torch.get_rng_state(), before)
            torch.rand(disturb)
            before = torch.get_rng_state()
        return model

    assert same(run(5, 3), run(5, 4))
    assert not same(run(5, 3), run(6, 3))


def test_a_seeded_run_draws_anew_each_epoch() -> None:
    model = net()
    drawn: list[float] = []

    def step(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        drawn.append(torch.rand(()).item())
        return train.cross_entropy_step(model, batch)

    list(train.epochs(model, batches(4, 4), step, sgd(model), epochs=3, seed=0))
    assert len(set(drawn)) == 3


def test_the_global_state_comes_back_after_an_error_in_a_seeded_epoch() -> None:
    model = net()

    def step(model: nn.Module, batch: object) -> Tensor:
        torch.rand(3)
        raise KeyError("mine")

    before = torch.get_rng_state()
    with pytest.raises(KeyError):
        list(train.epochs(model, batches(), step, sgd(model), epochs=1, seed=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_loader_and_its_sampler_are_told_the_epoch() -> None:
    class Told(list):  # type: ignore[type-arg]
        epochs: tuple[int, ...] = ()

        def set_epoch(self, epoch: int) -> None:
            self.epochs = (*self.epochs, epoch)

    model, loader = net(), Told(batches())
    list(train.epochs(model, loader, train.cross_entropy_step, sgd(model), epochs=3))
    assert loader.epochs == (0, 1, 2)

    class Sampler(torch.utils.data.SequentialSampler):
        epochs: tuple[int, ...] = ()
        set_epoch = Told.set_epoch

    sampler = Sampler(data())
    torch_loader = DataLoader(data(), 4, sampler=sampler)
    list(train.epochs(model, torch_loader, train.cross_entropy_step, sgd(model), epochs=2))
    assert sampler.epochs == (0, 1)


def test_batches_may_be_mappings_and_nested() -> None:
    model = net()
    x, y = data().tensors
    loader = [{"pair": (x[:5], y[:5])}, {"pair": (x[5:], y[5:])}]

    def step(model: nn.Module, batch: dict[str, tuple[Tensor, Tensor]]) -> Tensor:
        return train.cross_entropy_step(model, batch["pair"])

    [epoch] = train.epochs(model, loader, step, sgd(model), epochs=1)
    assert epoch.samples == 22


def test_no_epochs_leave_the_model_alone() -> None:
    model = net()
    before = copy.deepcopy(model)
    assert (
        list(train.epochs(model, batches(), train.cross_entropy_step, sgd(model), epochs=0)) == []
    )
    assert same(model, before)


def test_smoothed_labels_are_those_of_torch() -> None:
    x, y = data().tensors
    model = net()
    loss = train.cross_entropy_step(model, (x, y), label_smoothing=0.1)
    expected = nn.functional.cross_entropy(model(x), y, label_smoothing=0.1)
    assert torch.equal(loss, expected)


def test_a_loss_that_is_not_finite_names_its_step() -> None:
    model = net()
    loader = batches(24, 4)
    loader[4][0][0, 0] = float("nan")
    run = train.epochs(model, loader, train.cross_entropy_step, sgd(model), epochs=2, accumulate=2)
    with pytest.raises(FloatingPointError, match="batch 4 of epoch 0, gradient step 2,"):
        next(run)


def test_half_precision_trains_in_its_type() -> None:
    from lightning_fabric import Fabric

    model = net()
    kinds: set[torch.dtype] = set()
    model[0].register_forward_hook(lambda m, i, o: kinds.add(o.dtype))
    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    losses = [
        epoch.loss
        for epoch in train.epochs(
            model, batches(), train.cross_entropy_step, sgd(model), epochs=8, fabric=fabric
        )
    ]
    assert kinds == {torch.bfloat16}
    assert model[0].weight.dtype == torch.float32
    assert losses[-1] < losses[0]


# what is refused, and how


def call(**changes: object) -> Iterator[train.Epoch]:
    model = net()
    arguments: dict[str, object] = {
        "model": model,
        "loader": batches(),
        "step": train.cross_entropy_step,
        "optimizer": sgd(model),
        "epochs": 1,
    }
    return train.epochs(**{**arguments, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"epochs": -1}, ValueError, "epochs must be >= 0, got -1"),
        ({"epochs": 1.5}, TypeError, "epochs must be an int, got float"),
        ({"epochs": True}, TypeError, "epochs must be an int, got bool"),
        ({"accumulate": 0}, ValueError, "accumulate must be >= 1, got 0"),
        ({"seed": -3}, ValueError, "seed must be >= 0, got -3"),
        ({"clip_norm": 0.0}, ValueError, "clip_norm must be > 0, got 0"),
        ({"clip_norm": float("nan")}, ValueError, "clip_norm must be > 0, got nan"),
        ({"clip_norm": "1"}, TypeError, "clip_norm must be a number, got str"),
        ({"model": print}, TypeError, "model must be a torch.nn.Module"),
        ({"step": 3}, TypeError, "step must be a function"),
        ({"loader": []}, ValueError, "loader is empty"),
        ({"loader": 3}, TypeError, "loader must be an iterable of batches, got int"),
        ({"loader": iter(batches())}, TypeError, "got an iterator"),
        ({"optimizer": "sgd"}, TypeError, "optimizer must be a plain torch optimizer, got str"),
        ({"optimizer": torch.optim.LBFGS(net().parameters())}, TypeError, "LBFGS calls the loss"),
        ({"optimizer": sgd(nn.Linear(2, 2))}, ValueError, "none of the model's parameters"),
        ({"scheduler": lambda t: 1.0}, TypeError, "give a function of the step to LambdaLR"),
        ({"scheduler": ReduceLROnPlateau(sgd(net()))}, TypeError, "got ReduceLROnPlateau"),
        ({"scheduler": LambdaLR(sgd(net()), lambda t: 1.0)}, ValueError, "another optimizer"),
        ({"state": [1]}, TypeError, "state must map names to objects, got list"),
        ({"state": {"a": 3}}, TypeError, r"state\['a'\] must be a torch.Generator or have"),
        ({"checkpoint": "/nowhere/at/all/run.ckpt"}, ValueError, "a folder that does not exist"),
        ({"checkpoint": "/"}, ValueError, "must be a file, got the folder /"),
    ],
)
def test_bad_arguments_are_refused_at_the_call(
    changes: dict[str, object], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        call(**changes)


@pytest.mark.parametrize(
    ("step", "error", "match"),
    [
        (lambda m, b: m(b[0]), ValueError, r"loss must be a scalar, got shape \(4, 3\)"),
        (lambda m, b: m(b[0]).sum().detach(), ValueError, "does not depend on a parameter"),
        (lambda m, b: m(b[0]).sum().item(), TypeError, "a tensor or a mapping .* got float"),
        (lambda m, b: None, TypeError, "got NoneType"),
        (lambda m, b: {"los": m(b[0]).sum()}, ValueError, r"mapping with 'loss', got \['los'\]"),
        (
            lambda m, b: {"loss": m(b[0]).sum(), "a": 1.0},
            TypeError,
            "a must be a tensor, got float",
        ),
        (lambda m, b: {"loss": m(b[0]).sum(), "a": b[1]}, ValueError, r"a must be a scalar"),
        (
            lambda m, b: {"loss": m(b[0]).sum(), f"a{len(b[0])}": b[0].mean()},
            ValueError,
            r"step returned \('loss', 'a2'\) after \('loss', 'a4'\)",
        ),
    ],
)
def test_bad_steps_are_refused(
    step: Callable[..., object], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        next(call(step=step))


def test_a_loader_that_turns_out_empty_is_refused() -> None:
    class Nothing(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
        def __iter__(self) -> Iterator[Tensor]:
            return iter(())

    with pytest.raises(ValueError, match="gave no batch in epoch 0"):
        next(call(loader=DataLoader(Nothing())))


def test_a_batch_without_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="a batch of 0 samples"):
        next(call(loader=[*batches(), (torch.zeros(0, 5), torch.zeros(0, dtype=torch.long))]))


def test_what_fabric_set_up_already_is_refused() -> None:
    from lightning_fabric import Fabric

    model = net()
    optimizer = sgd(model)
    wrapped, wrapped_optimizer = Fabric(accelerator="cpu", devices=1).setup(model, optimizer)
    with pytest.raises(TypeError, match="set up by Fabric already"):
        call(model=wrapped)
    with pytest.raises(TypeError, match="optimizer must be a plain torch optimizer"):
        call(model=model, optimizer=wrapped_optimizer)


def test_a_strategy_that_does_not_replicate_the_model_is_refused() -> None:
    fabric = SimpleNamespace(strategy=torch.nn.DataParallel)
    with pytest.raises(TypeError, match=r"replicate the model \(strategy 'ddp'\), got type"):
        next(call(fabric=fabric))


def test_several_processes_must_be_launched_first() -> None:
    from lightning_fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    with pytest.raises(RuntimeError, match=r"you must call `\.launch\(\)`"):
        next(call(fabric=fabric))


def test_a_model_without_memory_is_refused() -> None:
    model = nn.Linear(2, 2, device="meta")
    with pytest.raises(ValueError, match="meta device"):
        next(call(model=model, optimizer=sgd(model)))
