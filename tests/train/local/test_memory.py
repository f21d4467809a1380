"""Bytes kept for backward, counted by hand where that can be done."""

from __future__ import annotations

import copy
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from addis.train.local import KeptBytes, UpdateRules, localize
from addis.train.local._memory import _checkpointed
from tests.train.local.nets import batch, conv_net

FLOAT = 4


def test_a_storage_counts_once_and_parameters_never() -> None:
    w, x = torch.ones(6, requires_grad=True), torch.ones(5, 6)
    with KeptBytes([w]) as kept:
        a = (w * x).tanh()  # x, and the result of tanh
        b = a.view(30).square()  # the same storage again
        assert kept.live == kept.peak == 2 * 30 * FLOAT
        b.sum().backward()
        del a, b
    assert kept.live == 0
    assert kept.peak == 2 * 30 * FLOAT


def test_bytes_of_plain_linear_blocks_are_those_of_the_tensors() -> None:
    n, d, k = 10, 16, 4
    net = nn.Sequential(
        *[m for _ in range(3) for m in (nn.Linear(d, d), nn.ReLU())], nn.Linear(d, k)
    )
    x, y = torch.randn(n, d), torch.randint(k, (n,))
    report = localize(net, x, loss="pred", num_classes=k).memory_report(x, y)
    softmax = n * k * FLOAT + n * 8 + FLOAT  # log-probabilities, labels, the sum of weights
    features = n * d * FLOAT
    assert report.backprop_bytes == 4 * features + softmax  # x and the results of three ReLUs
    assert dict(report.blocks)["0"] == 2 * features + softmax
    assert report.local_bytes == 2 * features + softmax
    assert report.ratio == report.local_bytes / report.backprop_bytes
    assert report.cuda_bytes is None
    assert report.batch == n


def test_leaky_relu_keeps_no_more_than_relu() -> None:
    x, y = batch()
    sizes = [
        localize(conv_net(activation=act), x, loss="pred").memory_report(x, y).local_bytes
        for act in (nn.ReLU, partial(nn.LeakyReLU, 0.01), partial(nn.LeakyReLU, 0.01, inplace=True))
    ]
    assert sizes[0] == sizes[1] == sizes[2]


def deep_net() -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(16):
        layers += [nn.Conv2d(3 if i == 0 else 8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


def test_local_training_of_a_deep_net_keeps_far_less_than_both() -> None:
    x, y = batch()
    report = localize(deep_net(), x, loss="pred").memory_report(x, y)
    assert report.local_bytes < report.checkpoint_bytes < report.backprop_bytes
    assert report.ratio < 0.12
    attached = localize(deep_net(), x, loss="pred", detach=False).memory_report(x, y)
    assert attached.local_bytes >= report.backprop_bytes


def test_local_bytes_do_not_grow_with_depth_and_all_grow_with_the_batch() -> None:
    x, y = batch()
    shallow = nn.Sequential(
        *list(deep_net())[:24], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    )
    deep, half, fewer = (
        localize(net, x, loss="predsim").memory_report(x[:n], y[:n])
        for net, n in ((deep_net(), 12), (shallow, 12), (deep_net(), 6))
    )
    assert deep.local_bytes == half.local_bytes
    assert deep.backprop_bytes > 1.8 * half.backprop_bytes
    assert deep.local_bytes > 1.8 * fewer.local_bytes


def test_all_ways_compute_in_mixed_precision_if_one_does() -> None:
    x, y = batch()
    full, half = (
        localize(
            deep_net(), x, loss="pred", rules=UpdateRules(autocast=autocast, winograd=False)
        ).memory_report(x, y)
        for autocast in (None, torch.bfloat16)
    )
    for kind in ("backprop_bytes", "checkpoint_bytes", "local_bytes"):
        assert getattr(half, kind) < 0.8 * getattr(full, kind), kind


def test_a_model_of_integers_is_counted() -> None:
    net = nn.Sequential(
        nn.Embedding(20, 8), nn.Flatten(), nn.Linear(40, 16), nn.ReLU(), nn.Linear(16, 3)
    )
    x, y = torch.randint(20, (12, 5)), torch.randint(3, (12,))
    local = localize(net, x, loss="pred")
    assert local.memory_report(x, y).checkpoint_bytes > 0
    plain = copy.deepcopy(local.model)
    F.cross_entropy(plain(x), y).backward()
    F.cross_entropy(_checkpointed(local.model, local._blocks, x, 2), y).backward()
    for a, b in zip(local.model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_recomputation_gives_the_gradients_of_back_propagation() -> None:
    x, y = batch()
    local = localize(conv_net(), x)
    plain = copy.deepcopy(local.model)
    F.cross_entropy(plain(x), y).backward()
    for segments in (1, 2, 4):
        local.zero_grad(set_to_none=True)
        F.cross_entropy(_checkpointed(local.model, local._blocks, x, segments), y).backward()
        for a, b in zip(local.model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)


def test_a_report_changes_nothing() -> None:
    x, y = batch()
    local = localize(conv_net(dropout=0.5), x)
    local.train_step(x, y)
    local.model.out.weight.grad = torch.ones(4, 16)
    before, state = copy.deepcopy(local.state_dict()), torch.get_rng_state()
    local.memory_report(x, y)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(local.model.out.weight.grad, torch.ones(4, 16))
    assert all(torch.equal(before[k], v) for k, v in local.state_dict().items())
    assert x.grad is None
    assert not x.requires_grad


def test_the_report_reads_as_a_table() -> None:
    x, y = batch()
    text = str(localize(conv_net(), x).memory_report(x, y))
    for word in ("batch of 12", "back-propagation", "checkpointing", "local", "1.000"):
        assert word in text


def test_back_propagation_is_counted_on_the_model_as_it_is() -> None:
    x, y = batch()
    net = conv_net(activation=partial(nn.LeakyReLU, 0.01))
    with KeptBytes([*net.parameters(), *net.buffers()]) as kept:
        loss = F.cross_entropy(net(x), y)
    assert localize(net, x).memory_report(x, y).backprop_bytes == kept.peak
    del loss
    assert kept.live == 0
