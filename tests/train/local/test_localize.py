"""Training by local losses: what learns from what, bit for bit, and what stays as it was."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from addis.models import resnet20
from addis.train.local import (
    LOSSES,
    BlockShape,
    LocalLosses,
    LocalModel,
    Loss,
    UpdateRules,
    local_fit,
    localize,
)
from tests.train.local import oracles
from tests.train.local.nets import batch, conv_net, same

ADAM = partial(torch.optim.Adam, lr=1e-3, foreach=False)
SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)


def seeded(net: nn.Module, **settings: Any) -> LocalModel:
    settings.setdefault("optimizer", ADAM)
    return localize(net, batch()[0], generator=torch.Generator().manual_seed(3), **settings)


def reference(local: LocalModel, beta: float) -> tuple[list[oracles.ReferenceBlock], nn.Module]:
    """The blocks of `conv_net` from copies of the weights."""
    net = copy.deepcopy(local.model)
    parts = [
        nn.Sequential(net.conv0, net.norm0, net.act0),
        nn.Sequential(net.conv1, net.norm1, net.act1),
        nn.Sequential(net.dense, net.norm2, net.act2),
    ]
    blocks = []
    for encoder, head in zip(parts, copy.deepcopy(local.heads), strict=True):
        assert isinstance(head, nn.Module)
        g = head.sim.g if head.sim is not None else None
        decoder = head.pred.decoder if head.pred is not None else None
        kernel = head.pred.pool.window if head.pred is not None else (1, 1)
        blocks.append(oracles.ReferenceBlock(encoder, g, decoder, kernel, beta))
    return blocks, net.out


@pytest.mark.parametrize("loss", ["pred", "sim", "predsim"])
@pytest.mark.parametrize("make", [ADAM, SGD], ids=["adam", "sgd"])
def test_five_steps_are_those_of_the_text(loss: Loss, make: Any) -> None:
    net = conv_net(activation=partial(nn.LeakyReLU, 0.01)).double()
    generator = torch.Generator().manual_seed(3)
    local = localize(
        net,
        batch()[0].double(),
        loss=loss,
        beta=0.9,
        dim_in_decoder=100,
        optimizer=make,
        generator=generator,
    )
    blocks, output = reference(local, 0.9)
    between = [nn.MaxPool2d(2), nn.Sequential(nn.MaxPool2d(2), nn.Flatten()), nn.Identity()]
    batches = [(x.double(), y) for x, y in (batch(seed=i) for i in range(5))]
    for x, y in batches:
        local.train_step(x, y)
    weight = 0.1 if loss == "predsim" else 1.0
    oracles.naive_steps(
        blocks, between, output, batches, classes=4, output_weight=weight, make=make
    )
    trained = [
        local.model.conv0,
        local.model.conv1,
        local.model.dense,
        local.model.norm2,
        local.model.out,
    ]
    slow = [
        blocks[0].encoder[0],
        blocks[1].encoder[0],
        blocks[2].encoder[0],
        blocks[2].encoder[1],
        output,
    ]  # type: ignore[index]
    for ours, theirs in zip(trained, slow, strict=True):
        for key, value in theirs.state_dict().items():
            # The text's S(Y) of one-hot labels is 1e-8 off its closed form.
            torch.testing.assert_close(ours.state_dict()[key], value, rtol=1e-6, atol=1e-7)


def test_the_order_of_losses_and_steps_does_not_matter() -> None:
    """All losses, then all gradients, then all steps: the same bits as block after block."""
    local = seeded(conv_net(), loss="pred")
    other = copy.deepcopy(local)
    x, y = batch()
    local.train_step(x, y)
    values: dict[str, Any] = {other._blocks[0].piece.body.inputs[0]: x}
    losses = []
    for block in other._blocks:
        h, entering = block.forward(other.model, values)
        losses.append(block.loss(h, entering, y)[0])
    for loss in losses:
        loss.backward()
    for block in other._blocks:
        block.update()
    assert same(local, other)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_block_learns_from_its_own_loss_alone(loss: Loss) -> None:
    local = seeded(conv_net(), loss=loss)
    x, y = batch()
    values: dict[str, Any] = {local._blocks[0].piece.body.inputs[0]: x}
    for i, block in enumerate(local._blocks):
        h, entering = block.forward(local.model, values)
        total, _ = block.loss(h, entering, y)
        others = [p for b in local._blocks if b is not block for p in b.parameters]
        gradients = torch.autograd.grad(total, others, retain_graph=True, allow_unused=True)
        assert all(g is None for g in gradients)
        own = torch.autograd.grad(total, block.parameters, allow_unused=True)
        assert any(g is not None for g in own), i


def test_the_features_handed_on_are_those_before_the_update() -> None:
    local = seeded(conv_net(), loss="sim", optimizer=partial(torch.optim.SGD, lr=10.0))
    x, y = batch()
    before = copy.deepcopy(local).features(x)
    seen: list[Tensor] = []
    with torch.no_grad():
        hook = local.model.conv1.register_forward_pre_hook(
            lambda m, args: seen.append(args[0].clone())
        )
    local.train_step(x, y)
    hook.remove()
    torch.testing.assert_close(seen[0], F.max_pool2d(before[local.blocks[0]], 2))
    after = copy.deepcopy(local).features(x)
    assert not torch.allclose(after[local.blocks[0]], before[local.blocks[0]])


def test_one_block_kept_attached_is_the_two_layer_network() -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    x, y = torch.randn(10, 6).double(), torch.randint(3, (10,))
    sgd = partial(torch.optim.SGD, lr=0.5)
    local = localize(net, x, loss="pred", detach=False, optimizer=sgd)
    plain, head = copy.deepcopy(net), copy.deepcopy(local.heads[0]).pred.decoder  # type: ignore[union-attr]
    optimizer = sgd([*plain.parameters(), *head.parameters()])  # type: ignore[union-attr, operator]
    for _ in range(4):
        local.train_step(x, y)
        h = plain[1](plain[0](x))
        optimizer.zero_grad()
        (F.cross_entropy(head(h), y) + F.cross_entropy(plain[2](h), y)).backward()  # type: ignore[operator]
        optimizer.step()
    for a, b in zip(local.model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-7)


def test_the_loss_is_read_before_dropout() -> None:
    x, y = batch()
    nets = [conv_net(dropout=0.0), conv_net(dropout=0.9)]
    nets[1].load_state_dict(nets[0].state_dict())
    stats = [seeded(net, loss="predsim").train_step(x, y).losses[0] for net in nets]
    assert torch.equal(stats[0], stats[1])


def test_an_activation_in_place_gives_the_same_updates() -> None:
    x, y = batch()
    nets = [
        conv_net(activation=partial(nn.LeakyReLU, 0.01, inplace=flag)) for flag in (False, True)
    ]
    nets[1].load_state_dict(nets[0].state_dict())
    a, b = (seeded(net) for net in nets)
    for _ in range(3):
        a.train_step(x, y)
        b.train_step(x, y)
    assert same(a, b)


def test_what_a_block_overwrites_is_copied_first() -> None:
    layers = (
        nn.Conv2d(3, 5, 3),
        nn.Dropout2d(0.5, inplace=True),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(180, 4),
    )
    net = nn.Sequential(nn.ReLU(inplace=True), *layers)
    x, y = batch()
    kept = x.clone()
    seeded(net).train_step(x, y)
    assert torch.equal(x, kept)


def test_batch_norm_counts_a_step_once() -> None:
    local = seeded(conv_net())
    assert int(local.model.norm0.num_batches_tracked) == 0
    local.train_step(*batch())
    assert [int(m.num_batches_tracked) for m in (local.model.norm0, local.model.norm2)] == [1, 1]


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_learns_to_fit_a_batch(loss: Loss) -> None:
    x, y = batch(24)
    local = seeded(conv_net(), loss=loss, optimizer=partial(torch.optim.Adam, lr=1e-2))
    first = local.train_step(x, y).losses
    for _ in range(60):
        stats = local.train_step(x, y)
    assert (stats.losses < first).all()
    local.eval()
    assert (local(x).argmax(1) == y).float().mean() > 0.8


def test_the_output_loss_of_predsim_is_weighted_and_that_of_others_is_not() -> None:
    x, y = batch()
    for loss, weight in (("pred", 1.0), ("sim", 1.0), ("predsim", 0.01), ("predsim-bpf", 0.99)):
        local = seeded(conv_net(), loss=loss, optimizer=partial(torch.optim.SGD, lr=1.0))
        out = copy.deepcopy(local.model.out)
        h = copy.deepcopy(local).features(x)[local.blocks[-2]].detach()
        F.cross_entropy(out(h), y).backward()
        before = out.weight.detach().clone()
        local.train_step(x, y)
        step = before - local.model.out.weight.detach()
        torch.testing.assert_close(step, weight * out.weight.grad, rtol=1e-3, atol=1e-7)


def test_the_users_model_is_left_as_it_was() -> None:
    net = conv_net(dropout=0.3).eval()
    net.out.weight.grad = torch.ones(4, 16)
    before = copy.deepcopy(net.state_dict())
    local = seeded(net)
    local.train_step(*batch())
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert not net.training
    assert torch.equal(net.out.weight.grad, torch.ones(4, 16))
    assert all(p.requires_grad for p in net.parameters())


def test_a_frozen_norm_stays_frozen() -> None:
    net, (x, y) = conv_net(), batch()
    net.norm1.eval()
    local = seeded(net)
    list(local_fit(local, [(x, y)], epochs=2, validation=[(x, y)]))
    assert local.training
    assert not local.model.norm1.training
    assert [int(m.num_batches_tracked) for m in (local.model.norm0, local.model.norm1)] == [2, 0]


def test_inference_is_the_users_module_without_heads_or_hooks() -> None:
    net = conv_net(dropout=0.3)
    local = seeded(net)
    local.train_step(*batch())
    plain = local.inference()
    assert type(plain) is type(net)
    assert list(plain.state_dict()) == list(net.state_dict())
    assert not plain.training
    assert local.training
    for module in plain.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    x = batch()[0]
    assert torch.equal(plain(x), local.eval()(x))
    channels_last = plain.to(memory_format=torch.channels_last)
    torch.testing.assert_close(channels_last(x.to(memory_format=torch.channels_last)), local(x))


def test_inference_exports_to_onnx(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    plain = seeded(conv_net()).inference()
    torch.onnx.export(plain, (batch()[0],), str(tmp_path / "net.onnx"), dynamo=True, verbose=False)
    assert (tmp_path / "net.onnx").stat().st_size > 0


def test_parameters_are_all_of_the_model_and_its_heads() -> None:
    local = seeded(conv_net(), loss="predsim")
    model = sum(p.numel() for p in local.model.parameters())
    heads = sum(p.numel() for p in local.heads.parameters())
    assert sum(p.numel() for p in local.parameters()) == model + heads
    held = {id(p) for block in local._blocks for p in block.parameters}
    assert held == {id(p) for p in local.parameters()}


def test_forward_has_no_side_effects_and_autograd_works() -> None:
    local = seeded(conv_net())
    local.eval()
    before = copy.deepcopy(local.state_dict())
    x = batch()[0].requires_grad_()
    local(x).sum().backward()
    assert x.grad is not None
    assert all(torch.equal(before[k], v) for k, v in local.state_dict().items())


def carry_over(one: LocalModel, other: LocalModel, path: Path) -> Any:
    """Gives the state of one model to another by a file; returns what was read."""
    torch.save({"model": one.state_dict(), "optim": one.optim_state()}, path)
    loaded = torch.load(path, weights_only=True)
    other.load_state_dict(loaded["model"])
    other.load_optim_state(loaded["optim"])
    return loaded


def test_a_resumed_run_is_bit_exact(tmp_path: Path) -> None:
    net, path = conv_net(), tmp_path / "local.pt"
    unbroken, resumed = seeded(net), localize(net, batch()[0], optimizer=ADAM)
    for i in range(3):
        unbroken.train_step(*batch(seed=i))
    loaded = carry_over(unbroken, resumed, path)
    for i in range(3, 6):
        unbroken.train_step(*batch(seed=i))
        resumed.train_step(*batch(seed=i))
    assert same(unbroken, resumed)
    with pytest.raises(ValueError, match="4 blocks, got 1"):
        resumed.load_optim_state(loaded["optim"][:1])


def test_a_run_resumed_within_an_accumulation_is_bit_exact(tmp_path: Path) -> None:
    path, rules = tmp_path / "local.pt", UpdateRules(accumulate=2)
    unbroken, resumed = seeded(conv_net(), rules=rules), seeded(conv_net(), rules=rules)
    for i in range(3):
        unbroken.train_step(*batch(seed=i))
    loaded = carry_over(unbroken, resumed, path)
    for local in (unbroken, resumed):
        local.train_step(*batch(seed=3))
    assert same(unbroken, resumed)
    resumed.train_step(*batch(seed=4))
    resumed.load_optim_state(unbroken.optim_state())  # after an update: nothing is left over
    assert all(p.grad is None for p in resumed.parameters())
    for state in loaded["optim"]:
        del state["gradients"]  # as states were before
    with pytest.raises(ValueError, match=r"no gradients after 1 calls.*accumulate=2"):
        resumed.load_optim_state(loaded["optim"])


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_failed_batch_leaves_no_gradients(accumulate: int, detach: bool) -> None:
    def made() -> LocalModel:
        net = conv_net(norm=False)
        return seeded(net, optimizer=SGD, detach=detach, rules=UpdateRules(accumulate=accumulate))

    def fail(gradient: Tensor) -> None:
        raise ArithmeticError("in backward")

    torch.manual_seed(1)
    clean = made()
    torch.manual_seed(1)
    failed = made()
    for local in (failed, clean)[: 2 if accumulate == 1 else 1]:
        local.train_step(*batch(seed=2))  # of an accumulation the failure forgets it
    hook = failed.model.conv0.weight.register_hook(fail)
    with pytest.raises(ArithmeticError, match="in backward"):
        failed.train_step(*batch(seed=1))
    hook.remove()
    for i in range(accumulate):
        clean.train_step(*batch(seed=i))
        failed.train_step(*batch(seed=i))
    assert same(clean.model.conv0, failed.model.conv0)
    assert same(clean.heads[0], failed.heads[0])


def test_accumulated_halves_are_the_whole_batch() -> None:
    x, y = batch(12)
    net = conv_net(norm=False)
    whole = seeded(net, loss="pred", optimizer=SGD)
    halves = seeded(net, loss="pred", optimizer=SGD, rules=UpdateRules(accumulate=2))
    whole.train_step(x, y)
    halves.train_step(x[:6], y[:6])
    assert all(p.grad is not None for p in halves.model.out.parameters())
    halves.train_step(x[6:], y[6:])
    assert all(p.grad is None for p in halves.parameters())
    for a, b in zip(whole.parameters(), halves.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_each_block_is_clipped_by_itself() -> None:
    local = seeded(
        conv_net(),
        loss="sim",
        optimizer=partial(torch.optim.SGD, lr=1.0),
        rules=UpdateRules(clip_norm=1e-3),
    )
    before = [[p.detach().clone() for p in b.parameters] for b in local._blocks]
    local.train_step(*batch())
    for block, old in zip(local._blocks, before, strict=True):
        moved = torch.cat([(p - q).flatten() for p, q in zip(block.parameters, old, strict=True)])
        assert float(moved.detach().norm()) == pytest.approx(1e-3, rel=1e-2)


def test_scaled_gradients_are_clipped_at_their_true_norm() -> None:
    local = seeded(
        conv_net(),
        loss="sim",
        optimizer=partial(torch.optim.SGD, lr=1.0),
        rules=UpdateRules(clip_norm=1e-2, autocast=torch.float16),
    )
    out = local.model.out
    before = torch.cat([p.detach().flatten().clone() for p in out.parameters()])
    local.train_step(*batch())
    after = torch.cat([p.detach().flatten() for p in out.parameters()])
    assert float((after - before).norm()) == pytest.approx(1e-2, rel=1e-2)


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_follows_full_precision(dtype: torch.dtype, detach: bool) -> None:
    x, y = batch()
    net, rules = conv_net(), UpdateRules(autocast=dtype)
    full = seeded(net, loss="predsim", optimizer=SGD, detach=detach)
    mixed = seeded(net, loss="predsim", optimizer=SGD, detach=detach, rules=rules)
    for _ in range(3):
        a, b = full.train_step(x, y), mixed.train_step(x, y)
    torch.testing.assert_close(a.losses, b.losses, rtol=0.1, atol=0.1)
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in mixed.parameters())
    moved = [
        not torch.equal(p, q)
        for p, q in zip(mixed.model.parameters(), net.parameters(), strict=True)
    ]
    assert all(moved)


def test_the_first_step_in_half_precision_is_not_skipped() -> None:
    local = seeded(conv_net(), loss="sim", rules=UpdateRules(autocast=torch.float16))
    before = copy.deepcopy(local.model)
    local.train_step(*batch())
    assert all(block.scaler.get_scale() == 65536 for block in local._blocks)
    assert not any(
        torch.equal(p, q)
        for p, q in zip(local.model.parameters(), before.parameters(), strict=True)
    )


def test_blocks_kept_attached_share_one_loss_scale() -> None:
    rules = UpdateRules(autocast=torch.float16)
    skipping = seeded(conv_net(), detach=False, optimizer=SGD, rules=rules)
    whole = copy.deepcopy(skipping)
    before = skipping.model.conv0.weight.detach().clone()
    skipping.model.conv0.weight.register_hook(lambda gradient: gradient + torch.inf)
    for local in (skipping, whole):
        local.train_step(*batch())
    assert torch.equal(skipping.model.conv0.weight, before)
    assert same(skipping.model.out, whole.model.out)  # stepped at the scale of its loss
    assert {block.scaler.get_scale() for block in skipping._blocks} == {32768}


def test_compiled_blocks_give_the_same_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torch, "compile", partial(torch.compile, backend="eager")
    )  # no C++ compiler
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    x, y = torch.randn(9, 6), torch.randint(3, (9,))
    plain, compiled = (
        localize(
            net,
            x,
            optimizer=SGD,
            rules=UpdateRules(compile=flag),
            generator=torch.Generator().manual_seed(1),
        )
        for flag in (False, True)
    )
    for _ in range(3):
        plain.train_step(x, y)
        compiled.train_step(x, y)
    for a, b in zip(plain.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_weight_decay_may_depend_on_the_shape() -> None:
    def factory(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        matrices = [p for p in parameters if p.dim() > 1]
        others = [p for p in parameters if p.dim() <= 1]
        return torch.optim.SGD(
            [{"params": matrices, "weight_decay": 1.0}, {"params": others}], lr=0.0
        )

    local = seeded(conv_net(), optimizer=factory)
    assert all(len(b.optimizer.param_groups) == 2 for b in local._blocks)
    local.train_step(*batch())


def test_exits_are_the_decoders_of_every_block() -> None:
    x, _ = batch()
    local = seeded(conv_net(), loss="predsim").eval()
    exits = local.exits(x)
    assert [e.shape for e in exits] == [(12, 4)] * 4
    assert torch.equal(exits[-1], local(x))
    features = local.features(x)
    assert torch.equal(exits[0], local.heads[0].pred.logits(features[local.blocks[0]]))  # type: ignore[union-attr, operator]
    for loss in ("sim", "pred-bpf"):
        with pytest.raises(RuntimeError, match="loss='pred' or 'predsim'"):
            seeded(conv_net(), loss=loss).exits(x)


def test_stats_name_the_losses_of_every_block() -> None:
    x, y = batch()
    local = seeded(conv_net(), loss="predsim", beta=0.5)
    for _ in range(3):
        local.train_step(x, y)
    exits = copy.deepcopy(local).exits(x)
    stats = local.train_step(x, y)
    wrong = [(logits.argmax(1) != y).float().mean() for logits in exits]
    assert torch.equal(stats.errors, torch.stack(wrong))
    assert stats.blocks == local.blocks
    torch.testing.assert_close(stats.losses[:-1], 0.5 * (stats.pred + stats.sim)[:-1])
    assert stats.sim[-1].isnan()
    assert torch.equal(stats.pred[-1], stats.losses[-1])
    assert seeded(conv_net(), loss="sim").train_step(x, y).errors[:-1].isnan().all()


def test_rates_are_set_and_scheduled_in_every_block() -> None:
    local = seeded(conv_net())
    local.set_lr(0.5)
    assert all(b.optimizer.param_groups[0]["lr"] == 0.5 for b in local._blocks)
    schedulers = local.schedulers(partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.1))
    local.train_step(*batch())
    schedulers.step()
    assert all(b.optimizer.param_groups[0]["lr"] == pytest.approx(0.05) for b in local._blocks)
    schedulers.load_state_dict(schedulers.state_dict())
    with pytest.raises(ValueError, match="lr must be >= 0"):
        local.set_lr(-1.0)


def test_soft_labels_train_all_losses() -> None:
    x, y = batch()
    soft = F.one_hot(y, 4).float()
    for loss in LOSSES:
        hard = seeded(conv_net(), loss=loss)
        other = copy.deepcopy(hard)
        torch.testing.assert_close(hard.train_step(x, y).losses, other.train_step(x, soft).losses)


def test_a_head_and_output_loss_of_ones_own_learn_a_regression() -> None:
    class Head(nn.Module):
        def __init__(self, shape: BlockShape) -> None:
            super().__init__()
            self.out = nn.Linear(shape.shape[0], 1)

        def forward(self, h: Tensor, y: Tensor, x: Tensor | None) -> LocalLosses:
            return LocalLosses(F.mse_loss(self.out(h)[:, 0], y))

    net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
    x = torch.randn(64, 4)
    y = x.sum(1)
    local = localize(
        net,
        x,
        loss=Head,
        output_loss=lambda out, y: F.mse_loss(out[:, 0], y),
        optimizer=partial(torch.optim.Adam, lr=0.03),
    )
    for _ in range(200):
        stats = local.train_step(x, y)
    assert (stats.losses < 0.2).all()
    assert local.train_step(x, y).errors.isnan().all()
    several = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))
    local = localize(several, x, loss="sim-bpf", output_loss=F.mse_loss)
    assert local.train_step(x, torch.rand(64, 3)).errors.isnan().all()
    with pytest.raises(TypeError, match="give a head as loss"):
        seeded(conv_net()).train_step(batch()[0], torch.rand(12))


def test_residual_blocks_learn_in_both_forms() -> None:
    x, y = torch.randn(6, 3, 32, 32), torch.randint(10, (6,))
    for blocks in ("auto", 1):
        local = localize(resnet20(), x, loss="predsim", blocks=blocks)
        before = copy.deepcopy(local.model.state_dict())
        local.train_step(x, y)
        local.train_step(x, y)
        moved = {k for k, p in local.model.named_parameters() if not torch.equal(before[k], p)}
        assert moved == {k for k, _ in local.model.named_parameters()}


def test_odd_sizes_layouts_and_types_train() -> None:
    y = torch.arange(6) % 3
    net = nn.Sequential(
        nn.Conv2d(3, 3, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(3, 8, 3, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 6, (3, 1)),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(18, 3),
    )
    x = torch.randn(6, 3, 7, 7)
    other = torch.randn(6, 3, 7, 7).to(memory_format=torch.channels_last)
    sliced = torch.randn(12, 3, 7, 14)[::2, :, :, ::2]
    for images in (x, other, sliced):
        for loss in LOSSES:
            stats = localize(net, images, loss=loss, dim_in_decoder=20).train_step(images, y)
            assert stats.losses.isfinite().all()
    half = localize(net.to(torch.bfloat16), x.bfloat16(), loss="predsim")
    assert half.train_step(x.bfloat16(), y).losses.isfinite().all()


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "loss": ({"loss": "contrast"}, "loss must be one of pred, sim"),
    "beta": ({"beta": -0.5}, r"beta must be in \[0, 1\]"),
    "classes": ({"num_classes": 1}, "num_classes must be >= 2"),
    "more classes": ({"num_classes": 10}, "num_classes must be at most the model's 4, got 10"),
    "unsupervised": ({"unsupervised": "flow"}, "unsupervised must be"),
    "schedule": ({"schedule": "parallel"}, "schedule must be 'sequential', 'streams' or 'devices'"),
    "devices": ({"schedule": "devices"}, "does not go with devices"),
    "no devices": ({"devices": ["cpu"]}, "does not go with devices"),
    "attached": ({"detach": False, "schedule": "devices", "devices": ["cpu"]}, "detach=False"),
    "processes": (
        {
            "schedule": "devices",
            "devices": ["cpu", "cpu"],
            "rules": UpdateRules(process_group=object()),  # type: ignore[arg-type]
        },
        "'devices' does not go with a process_group",
    ),
    "optimizer": (
        {"optimizer": lambda p: torch.optim.SGD([torch.zeros(1)], lr=0.1)},
        "optimizer must be a factory",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_settings_are_refused(case: str) -> None:
    settings, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        seeded(conv_net(), **settings)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"accumulate": 0}, "accumulate"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"autocast": torch.float64}, "autocast"),
    ],
)
def test_bad_rules_are_refused(rules: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UpdateRules(**rules)


def test_bad_batches_are_refused_before_any_block_learns() -> None:
    local = seeded(conv_net())
    before = copy.deepcopy(local.state_dict())
    x, y = batch()
    for wrong, found in ((-1, "-1 to 0"), (4, "0 to 4")):
        with pytest.raises(ValueError, match=rf"\[0, 3\], got values from {found}"):
            local.train_step(x, torch.tensor([wrong, *[0] * 11]))
    with pytest.raises(ValueError, match="x must be"):
        local.train_step(x[:, :, :4], y)
    with pytest.raises(ValueError, match="one length"):
        local.train_step(x, y[:5])
    with pytest.raises(ValueError, match="soft labels must be"):
        local.train_step(x, torch.rand(12, 3))
    with pytest.raises(ValueError, match="batch of one"):
        local.train_step(x[:1], y[:1])
    with pytest.raises(RuntimeError, match="training mode"):
        local.eval().train_step(x, y)
    local.train()
    for context in (torch.no_grad(), torch.inference_mode()):
        with context, pytest.raises(RuntimeError, match="needs gradients"):
            local.train_step(x, y)
    assert all(torch.equal(before[k], v) for k, v in local.state_dict().items())


def test_a_batch_of_one_without_batch_norm_trains() -> None:
    x, y = batch()
    stats = seeded(conv_net(norm=False)).train_step(x[:1], y[:1])
    assert stats.sim[0] < 1e-10
