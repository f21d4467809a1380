"""The schedules give the same updates, and devices work at the same time."""

from __future__ import annotations

import copy
import gc
import subprocess
import sys
import threading
import time
import weakref
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from addis.train.local import BlockShape, LocalLosses, UpdateRules, localize
from tests.train.local.nets import batch, conv_net, same


def pair(
    net: nn.Module, x: Tensor, *, blocks: Any = "auto", rules: Any = None, **settings: Any
) -> Any:
    return [
        localize(
            net, x, blocks=blocks, rules=rules, generator=torch.Generator().manual_seed(1), **more
        )
        for more in ({}, settings)
    ]


def zeroed(module: nn.Module) -> None:
    for parameter in module.parameters(recurse=False):
        nn.init.zeros_(parameter)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_devices_give_the_bits_of_the_sequence(count: int) -> None:
    one, many = pair(conv_net(), batch()[0], schedule="devices", devices=["cpu"] * count)
    for i in range(6):
        a, b = one.train_step(*batch(seed=i)), many.train_step(*batch(seed=i))
    assert torch.equal(a.losses, b.losses)
    assert same(one, many)


def test_devices_carry_what_is_not_a_tensor_and_values_that_skip_blocks() -> None:
    x, y = torch.randn(4, 3, 32, 32), torch.arange(4)
    net = torchvision.models.VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=10)
    one, many = pair(net, x, blocks=1, schedule="devices", devices=["cpu", "cpu"])
    for _ in range(3):
        one.train_step(x, y)
        many.train_step(x, y)
    assert same(one, many)


def test_the_first_device_takes_a_batch_while_the_last_still_works() -> None:
    net = conv_net()
    local = localize(net, batch()[0], schedule="devices", devices=["cpu", "cpu"])
    local.train_step(*batch(4))
    entered, release = threading.Event(), threading.Event()
    seen: list[int] = []

    def wait(module: nn.Module, args: Any) -> None:
        entered.set()
        assert release.wait(20)

    local.model.out.register_forward_pre_hook(wait)
    local.model.conv0.register_forward_pre_hook(lambda m, args: seen.append(len(args[0])))
    first = local.train_step(*batch(5))
    second = local.train_step(*batch(6))
    assert entered.wait(20)
    while len(seen) < 2:
        pass
    assert seen == [5, 6]
    release.set()
    local.synchronize()
    assert first.losses.isfinite().all()
    assert second.losses.isfinite().all()


@pytest.mark.parametrize(
    "act",
    [
        lambda local, state: local.eval(),
        lambda local, state: {k: v.clone() for k, v in local.state_dict().items()},
        lambda local, state: local.load_state_dict(state),
        lambda local, state: local.schedulers(partial(LambdaLR, lr_lambda=lambda epoch: 0.0)),
        lambda local, state: local.double(),
        lambda local, state: local.requires_grad_(False),
        lambda local, state: local.zero_grad(),
        lambda local, state: local.apply(zeroed),
    ],
    ids=[
        "eval",
        "state_dict",
        "load_state_dict",
        "schedulers",
        "double",
        "requires_grad_",
        "zero_grad",
        "apply",
    ],
)
def test_a_batch_under_way_ends_before_anything_of_the_model_is_touched(act: Any) -> None:
    # In a window of two batches, so that zero_grad has something to clear.
    rules = UpdateRules(accumulate=2)
    one, many = pair(
        conv_net(), batch()[0], rules=rules, schedule="devices", devices=["cpu", "cpu"]
    )
    for local in (one, many):
        local.train_step(*batch())
    state = copy.deepcopy(one.state_dict())
    many.model.conv1.register_forward_pre_hook(lambda *_: time.sleep(0.2))
    one.train_step(*batch())
    many.train_step(*batch())
    a, b = (act(local, state) for local in (one, many))
    many.synchronize()
    assert same(one, many)
    if isinstance(a, dict):
        assert all(torch.equal(a[name], b[name]) for name in a)


class Dropping(nn.Module):
    """Dropout as a function, which no module tells of."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(192, 192) for _ in range(4)])
        self.out = nn.Linear(192, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for layer in self.layers:
            x = F.dropout(torch.relu(layer(x)), 0.5, self.training)
        return self.out(x)


class NoisyHead(nn.Module):
    """Draws noise within the loss."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        self.out = nn.Linear(shape.shape[0], 4)

    def forward(self, h: Tensor, y: Tensor, x: Tensor | None) -> LocalLosses:
        return LocalLosses(F.cross_entropy(self.out(h + torch.randn_like(h)), y))


RANDOM: dict[str, tuple[Any, dict[str, Any]]] = {
    "modules": (partial(conv_net, dropout=0.5), {}),
    "functions": (Dropping, {}),
    "heads": (lambda: nn.Sequential(nn.Flatten(), *mlp(192)), {"loss": NoisyHead}),
}


def mlp(width: int) -> list[nn.Module]:
    hidden = [m for _ in range(4) for m in (nn.Linear(width, width), nn.ReLU())]
    return [*hidden, nn.Linear(width, 4)]


@pytest.mark.parametrize("case", RANDOM)
def test_what_blocks_draw_on_devices_depends_on_the_seed_alone(case: str) -> None:
    net, settings = RANDOM[case]
    found = []
    for _ in range(3):
        torch.manual_seed(5)
        local = localize(net(), batch()[0], schedule="devices", devices=["cpu"] * 3, **settings)
        for i in range(12):
            local.train_step(*batch(seed=i))
        local.synchronize()
        found.append(local)
    assert same(found[0], found[1])
    assert same(found[0], found[2])


def test_blocks_that_draw_nothing_leave_the_generator_alone() -> None:
    local = localize(conv_net(), batch()[0], schedule="devices", devices=["cpu", "cpu"])
    state = torch.get_rng_state()
    for i in range(3):
        local.train_step(*batch(seed=i))
    local.synchronize()
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(draws for worker in local._runner._workers for draws in worker._draws.values())


def test_workers_end_with_their_model() -> None:
    models, workers = [], []
    for _ in range(5):
        local = localize(conv_net(), batch()[0], schedule="devices", devices=["cpu", "cpu"])
        local.train_step(*batch())
        local.synchronize()
        models.append(weakref.ref(local.model))
        workers += local._runner._workers
    assert len(workers) == 10
    del local
    gc.collect()
    for worker in workers:
        worker.join(20)
        assert not worker.is_alive()
    del worker, workers
    gc.collect()
    assert not any(model() for model in models)


SCRIPT = """
import torch
from addis.train.local import localize
from torch import nn

net = nn.Sequential(
    nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 3)
)
x, y = torch.rand(512, 256), torch.arange(512) % 3
local = localize(net, x, loss="pred", schedule="devices", devices=("cpu", "cpu"))
for i in range(5):
    local.train_step(x, y)
"""


def test_a_script_may_end_while_a_batch_is_under_way() -> None:
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, timeout=100)
    assert run.returncode == 0, run.stderr
    assert not run.stderr


def test_an_error_on_a_device_reaches_the_caller() -> None:
    local = localize(conv_net(), batch()[0], schedule="devices", devices=["cpu", "cpu"])

    def fail(module: nn.Module, args: Any) -> None:
        raise ArithmeticError("in a worker")

    handle = local.model.dense.register_forward_pre_hook(fail)
    local.train_step(*batch())
    with pytest.raises(ArithmeticError, match="in a worker"):
        local.synchronize()
    handle.remove()
    local.train_step(*batch())
    local.synchronize()


def test_no_batch_is_under_way_after_an_error() -> None:
    local = localize(conv_net(), batch()[0], schedule="devices", devices=["cpu", "cpu"])
    local.train_step(*batch())
    count, seen = iter(range(9)), []

    def fail_first(module: nn.Module, args: Any) -> None:
        if next(count) == 0:
            time.sleep(0.1)
            raise ArithmeticError("in a worker")
        time.sleep(0.1)
        seen.append(len(args[0]))

    local.model.dense.register_forward_pre_hook(fail_first)
    for n in (5, 6):
        local.train_step(*batch(n))
    with pytest.raises(ArithmeticError, match="in a worker"):
        local.synchronize()
    assert seen == [6]
    local.synchronize()


def test_copies_and_reports_of_a_model_on_devices_work() -> None:
    local = localize(conv_net(), batch()[0], schedule="devices", devices=["cpu", "cpu"])
    local.train_step(*batch())
    other = copy.deepcopy(local)
    other.train_step(*batch(seed=1))
    local.train_step(*batch(seed=1))
    assert same(local, other)
    x = batch()[0]
    assert torch.equal(local.eval()(x), local.inference()(x))
    assert local.memory_report(*batch()).local_bytes > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_streams_without_cuda_are_refused() -> None:
    with pytest.raises(RuntimeError, match="needs all blocks on one CUDA device, got cpu"):
        localize(conv_net(), batch()[0], schedule="streams")


@pytest.mark.gpu
def test_streams_give_the_updates_of_the_sequence() -> None:
    net, x = conv_net().cuda(), batch()[0].cuda()
    one, many = pair(net, x, schedule="streams")
    for i in range(6):
        x, y = (t.cuda() for t in batch(seed=i))
        one.train_step(x, y)
        many.train_step(x, y)
    for a, b in zip(one.parameters(), many.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_cpu_and_another_device_share_the_blocks(device: str) -> None:
    net, x = conv_net(), batch()[0]
    one, many = pair(net, x, schedule="devices", devices=["cpu", device])
    for i in range(4):
        one.train_step(*batch(seed=i))
        many.train_step(*batch(seed=i))
    torch.testing.assert_close(one.eval()(x), many.eval()(x).cpu(), rtol=1e-3, atol=1e-4)
    assert many.inference()(x).device.type == "cpu"
    with pytest.raises(RuntimeError, match="one device"):
        many.memory_report(*batch())


@pytest.mark.gpu
def test_a_step_waits_for_nothing() -> None:
    x, y = (t.cuda() for t in batch())
    local = localize(conv_net().cuda(), x)
    local.train_step(x, y)
    before = [p.detach().clone() for p in local.parameters()]
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        local.train_step(x, y)
        with pytest.raises(RuntimeError, match="synchroniz"):  # the mode does see who waits
            x.sum().item()
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    assert not all(torch.equal(p, q) for p, q in zip(local.parameters(), before, strict=True))
