"""Heads: decoders, similarity layers, their plausible variants, and what they are made of."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from addis.train.local import (
    BlockShape,
    FeedbackAlignmentLinear,
    LocalHead,
    PredHead,
    Reconstruction,
    SimHead,
    local_head,
    pool_window,
    similarity_loss,
    similarity_matrix,
)
from tests.train.local import oracles

FLAT = BlockShape("f", (12,), "flat")
MAPS = BlockShape("m", (6, 5, 5), "maps")
TOKENS = BlockShape("t", (7, 6), "tokens")


def features(shape: BlockShape, n: int = 8) -> Tensor:
    return torch.randn(n, *shape.shape, requires_grad=True)


def test_windows_of_vgg8b_are_those_of_the_paper() -> None:
    maps = [(128, 32), (256, 32), (256, 16), (512, 16), (512, 8), (512, 4)]
    windows = [pool_window(c, s, s, 4096) for c, s in maps]
    assert windows == [(8, 4), (8, 8), (4, 4), (8, 4), (4, 2), (2, 1)]
    for c, s in maps:
        assert PredHead(BlockShape("b", (c, s, s), "maps"), num_classes=10).pool.features == 4096


@pytest.mark.parametrize("limit", [1, 20, 64, 100, 1000])
@pytest.mark.parametrize("side", [1, 3, 7, 8])
def test_window_is_that_of_the_text(side: int, limit: int) -> None:
    assert pool_window(5, side, side, limit) == oracles.window(5, side, limit)


@pytest.mark.parametrize(("side", "limit"), [(7, 80), (8, 80), (5, 24), (3, 6)])
def test_pooling_pads_odd_sides_with_zeros_that_count(side: int, limit: int) -> None:
    head = PredHead(BlockShape("b", (4, side, side), "maps"), num_classes=3, dim_in_decoder=limit)
    kh, kw = head.pool.window
    h = torch.randn(2, 4, side, side)
    top, left = (kh // 2 if side % kh else 0), (kw // 2 if side % kw else 0)
    padded = F.pad(h, (left, left, top, top))
    rows, columns = padded.shape[2] // kh, padded.shape[3] // kw
    slow = torch.empty(2, 4, rows, columns)
    for i in range(rows):
        for j in range(columns):
            part = padded[:, :, kh * i : kh * (i + 1), kw * j : kw * (j + 1)]
            slow[:, :, i, j] = part.sum((2, 3)) / (kh * kw)
    torch.testing.assert_close(head.pool(h), slow)
    assert head.pool.features == slow[0].numel()
    assert head.logits(h).shape == (2, 3)


def test_a_new_decoder_says_log_k_and_sends_no_gradient() -> None:
    for shape in (FLAT, MAPS, TOKENS):
        head = PredHead(shape, num_classes=5)
        nn.init.zeros_(head.decoder.bias)  # type: ignore[arg-type]
        h = features(shape)
        loss, _ = head(h, torch.arange(8) % 5)
        torch.testing.assert_close(loss, torch.tensor(math.log(5)))
        assert torch.autograd.grad(loss, h)[0].abs().max() == 0


def test_pooled_decoder_has_the_gradients_of_the_plain_one() -> None:
    shape = BlockShape("b", (4, 7, 7), "maps")
    head = PredHead(shape, num_classes=3, dim_in_decoder=40).double()
    nn.init.normal_(head.decoder.weight)  # type: ignore[arg-type]
    h, y = features(shape).double().detach().requires_grad_(), torch.arange(8) % 3
    tensors = [h, *head.parameters()]
    fused = torch.autograd.grad(head(h, y)[0], tensors)
    plain = torch.autograd.grad(F.cross_entropy(head.decoder(head.pool(h).flatten(1)), y), tensors)
    for a, b in zip(fused, plain, strict=True):
        torch.testing.assert_close(a, b)


def test_feedback_goes_through_the_fixed_matrix() -> None:
    layer = FeedbackAlignmentLinear(6, 4)
    nn.init.normal_(layer.weight)
    h, g = torch.randn(5, 6, requires_grad=True), torch.randn(5, 4)
    out = layer(h)
    torch.testing.assert_close(out, h @ layer.weight.T + layer.bias)
    dh, dw, db = torch.autograd.grad(out, [h, layer.weight, layer.bias], g)
    torch.testing.assert_close(dh, g @ layer.feedback)
    torch.testing.assert_close(dw, g.T @ h)
    torch.testing.assert_close(db, g.sum(0))
    assert layer.feedback.abs().max() <= 1 / math.sqrt(6)


@pytest.mark.parametrize("shape", [FLAT, MAPS, TOKENS], ids=lambda s: s.layout)
def test_bpf_targets_are_projections_of_the_labels(shape: BlockShape) -> None:
    head = local_head("predsim-bpf", shape, num_classes=4, target_dim=16, dim_in_decoder=30)
    assert head.pred is not None
    assert head.sim is not None
    nn.init.normal_(head.pred.decoder.weight)  # at 0 every target would have the same loss
    y, h = torch.arange(8) % 4, features(shape)
    assert head.pred.projection is not None
    projected = F.one_hot(y, 4).float() @ head.pred.projection
    losses = head(h, y)
    bits = (projected > 0).float()
    logits = head.pred.logits(h)
    torch.testing.assert_close(losses.pred, F.binary_cross_entropy_with_logits(logits, bits))
    pooled = head.pred.pool(h)
    target = similarity_matrix(projected)
    torch.testing.assert_close(losses.sim, similarity_loss(pooled, target=target))
    torch.testing.assert_close(losses.total, 0.99 * losses.pred + 0.01 * losses.sim)
    soft = head(h, F.one_hot(y, 4).float())
    torch.testing.assert_close(soft.total, losses.total)


def test_random_matrices_are_not_trained() -> None:
    head = local_head("predsim-bpf", MAPS, num_classes=4)
    names = {name for name, _ in head.named_parameters()}
    assert names == {"pred.decoder.weight", "pred.decoder.bias"}
    assert {"pred.decoder.feedback", "pred.projection", "sim.projection"} <= set(head.state_dict())


@pytest.mark.parametrize("shape", [FLAT, MAPS, TOKENS], ids=lambda s: s.layout)
def test_predsim_is_the_weighted_sum_of_its_parts(shape: BlockShape) -> None:
    head = local_head("predsim", shape, num_classes=4, beta=0.7)
    assert head.pred is not None
    nn.init.normal_(head.pred.decoder.weight)  # type: ignore[arg-type]
    h, y = features(shape), torch.arange(8) % 4
    losses = head(h, y)
    assert losses.pred is not None
    assert losses.sim is not None
    torch.testing.assert_close(losses.total, 0.3 * losses.pred + 0.7 * losses.sim)


def test_similarity_layer_of_maps_is_a_convolution_and_of_others_linear() -> None:
    kinds = {
        FLAT: nn.Linear,
        TOKENS: nn.Linear,
        MAPS: nn.Conv2d,
        BlockShape("s", (6, 9), "maps"): nn.Conv1d,
        BlockShape("v", (4, 3, 3, 3), "maps"): nn.Conv3d,
    }
    for shape, kind in kinds.items():
        sim = SimHead(shape, num_classes=3)
        assert isinstance(sim.g, kind)
        assert sim.g.bias is None
        assert sim(features(shape), torch.arange(8) % 3).isfinite()
        assert (
            local_head("pred-bpf", shape, num_classes=3)(features(shape), torch.arange(8) % 3).total
            > 0
        )


def test_input_similarities_and_supervised_ones_mix_by_alpha() -> None:
    head = local_head("sim", FLAT, num_classes=4, unsupervised="sim", alpha=0.25)
    h, y, x = features(FLAT), torch.arange(8) % 4, torch.randn(8, 20)
    losses = head(h, y, x)
    assert head.sim is not None
    expected = similarity_loss(head.sim.embed(h), target=similarity_matrix(x))
    torch.testing.assert_close(losses.unsupervised, expected)
    torch.testing.assert_close(losses.total, 0.25 * expected + 0.75 * losses.sim)


def test_reconstruction_decodes_the_block_input() -> None:
    wide = BlockShape("b", (3, 10, 10), "maps")
    part = Reconstruction(MAPS, wide, activation=torch.tanh)
    head = local_head("pred", MAPS, num_classes=4, unsupervised=part, alpha=0.5)
    h, x, y = features(MAPS), torch.randn(8, 3, 10, 10), torch.arange(8) % 4
    losses = head(h, y, x)
    expected = F.mse_loss(torch.tanh(part.decoder(h)), x)
    torch.testing.assert_close(losses.unsupervised, expected)
    torch.testing.assert_close(losses.total, 0.5 * expected + 0.5 * losses.pred)
    flat = Reconstruction(FLAT, BlockShape("b", (20,), "flat"))
    assert flat(features(FLAT), torch.randn(8, 20)) > 0
    with pytest.raises(ValueError, match="not multiples"):
        Reconstruction(MAPS, BlockShape("b", (3, 11, 11), "maps"))
    with pytest.raises(ValueError, match="cannot reconstruct"):
        Reconstruction(FLAT, wide)


def test_same_generator_draws_the_same_head() -> None:
    def make(seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return local_head("predsim-bpf", MAPS, num_classes=3, generator=generator).state_dict()

    a, b, c = make(1), make(1), make(2)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["pred.decoder.feedback"], c["pred.decoder.feedback"])


def test_initial_similarity_layer_is_torchs_default() -> None:
    weight = SimHead(BlockShape("b", (64,), "flat"), num_classes=3).g.weight
    assert isinstance(weight, Tensor)
    assert weight.abs().max() <= 1 / 8
    assert float(weight.detach().std()) == pytest.approx(1 / 8 / math.sqrt(3), rel=0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": "contrastive"}, "pred, sim, predsim, pred-bpf, sim-bpf, predsim-bpf"),
        ({"num_classes": 1}, "num_classes must be >= 2, got 1"),
        ({"beta": 1.5}, r"beta must be in \[0, 1\], got 1.5"),
        ({"alpha": -0.1}, r"alpha must be in \[0, 1\], got -0.1"),
        ({"dim_in_decoder": 0}, "must be >= 1"),
        ({"target_dim": 0}, "must be >= 1"),
    ],
)
def test_bad_settings_are_refused(change: dict[str, Any], message: str) -> None:
    settings: dict[str, Any] = {"loss": "predsim", "num_classes": 3} | change
    with pytest.raises(ValueError, match=message):
        local_head(settings.pop("loss"), FLAT, **settings)


def test_a_head_needs_a_part() -> None:
    with pytest.raises(ValueError, match="pred or sim"):
        LocalHead(None, None)
    with pytest.raises(ValueError, match="needs sim"):
        LocalHead(PredHead(FLAT, num_classes=3), None, unsupervised="sim")
