"""Similarity matrices and their loss."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from addis.train.local import label_similarity, similarity_loss, similarity_matrix
from tests.train.local import oracles

SHAPES = {
    "flat": (6, 9),
    "maps": (6, 5, 3, 4),
    "odd maps": (6, 4, 7, 7),
    "one row": (6, 5, 1, 4),
    "three channels": (6, 3, 4, 4),
    "tokens": (6, 4, 8),
}


def features(name: str, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(SHAPES[name], dtype=torch.float64, generator=generator).requires_grad_()


def test_labels_have_their_closed_form() -> None:
    y = torch.tensor([0, 3, 1, 0, 2])
    onehot = F.one_hot(y, 4).double()
    closed = label_similarity(y, num_classes=4, dtype=torch.float64)
    torch.testing.assert_close(closed, oracles.similarity(onehot), rtol=0, atol=1e-7)
    assert closed[0, 3] == 1
    assert closed[0, 1] == -1 / 3


@pytest.mark.parametrize("name", ["flat", "maps", "odd maps", "one row", "three channels"])
def test_matrix_and_loss_are_those_of_the_double_loop(name: str) -> None:
    h, y = features(name), torch.tensor([0, 1, 2, 1, 0, 0])
    torch.testing.assert_close(similarity_matrix(h), oracles.similarity(h), rtol=0, atol=1e-12)
    slow = oracles.similarity_loss(h, label_similarity(y, num_classes=3, dtype=torch.float64))
    torch.testing.assert_close(similarity_loss(h, y, num_classes=3), slow, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", SHAPES)
def test_closed_form_gradient_is_the_numerical_one(name: str) -> None:
    y = torch.tensor([0, 1, 2, 1, 0, 0])
    assert torch.autograd.gradcheck(
        lambda h: similarity_loss(h, y, num_classes=3), (features(name),)
    )


@pytest.mark.parametrize("scale", [1024.0, 65536.0])  # the latter of a new GradScaler
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(128, 32, 8, 8), (512, 64, 1, 1)], ids=["maps", "flat"])
def test_a_loss_scale_keeps_the_gradient_of_half_precision(
    size: tuple[int, ...], form: torch.memory_format, scale: float
) -> None:
    y = torch.arange(size[0]) % 10
    h = (64 * torch.randn(size).relu()).half().to(memory_format=form)
    h = h if size[-1] > 1 else h.flatten(1)
    full, half = h.float().requires_grad_(), h.clone().requires_grad_()
    (exact,) = torch.autograd.grad(
        (similarity_matrix(full) - label_similarity(y, num_classes=10)).square().mean(), full
    )
    with torch.autocast("cpu", torch.float16):
        loss = similarity_loss(half, y, num_classes=10)
    assert loss.dtype == torch.float32
    (scaled,) = torch.autograd.grad(loss * scale, half)
    assert scaled.dtype == torch.float16
    difference = torch.linalg.vector_norm(scaled.float() / scale - exact)
    assert difference < 0.005 * torch.linalg.vector_norm(exact)


@pytest.mark.parametrize("name", SHAPES)
def test_closed_form_gradient_is_that_of_autograd_through_the_matrix(name: str) -> None:
    h = features(name)
    target = similarity_matrix(features("flat", seed=1)).detach()
    (plain,) = torch.autograd.grad((similarity_matrix(h) - target).square().mean(), h)
    (closed,) = torch.autograd.grad(similarity_loss(h, target=target), h)
    torch.testing.assert_close(closed, plain, rtol=1e-10, atol=1e-15)


def test_gradient_of_a_target_that_is_not_symmetric() -> None:
    h, target = features("flat"), torch.rand(6, 6, dtype=torch.float64)
    (plain,) = torch.autograd.grad((similarity_matrix(h) - target).square().mean(), h)
    (closed,) = torch.autograd.grad(similarity_loss(h, target=target), h)
    torch.testing.assert_close(closed, plain, rtol=1e-10, atol=1e-15)


def test_rows_of_one_direction_have_the_gradient_of_the_clamped_cosine() -> None:
    h = torch.tensor([[0.1, 0.7, 0.3], [0.2, 1.4, 0.6]], requires_grad=True)
    z = h - h.mean(1, keepdim=True)
    unit = z / (torch.linalg.vector_norm(z, dim=1, keepdim=True) + 1e-8)
    target = torch.zeros(2, 2)
    (plain,) = torch.autograd.grad(((unit @ unit.T).clamp(-1, 1) - target).square().mean(), h)
    (closed,) = torch.autograd.grad(similarity_loss(h, target=target), h)
    torch.testing.assert_close(closed, plain)


def test_shift_and_positive_scale_of_a_row_change_nothing() -> None:
    h = features("flat").detach()
    moved = h * torch.arange(1, 7)[:, None] + torch.arange(6)[:, None]
    torch.testing.assert_close(similarity_matrix(moved), similarity_matrix(h), rtol=0, atol=1e-7)
    shifted_features = h + torch.arange(9)
    assert not torch.allclose(similarity_matrix(shifted_features), similarity_matrix(h), atol=0.1)


def test_diagonal_is_one_and_one_hot_features_lose_nothing() -> None:
    h = features("maps")
    torch.testing.assert_close(similarity_matrix(h).diagonal(), torch.ones(6, dtype=torch.float64))
    y = torch.tensor([2, 0, 1, 1, 2, 0])
    onehot = F.one_hot(y, 3).double()
    assert similarity_loss(onehot, y, num_classes=3) < 1e-14


def test_batch_of_one_has_no_loss_and_no_gradient() -> None:
    h = torch.rand(1, 8, dtype=torch.float64, requires_grad=True)
    loss = similarity_loss(h, torch.tensor([1]), num_classes=3)
    (gradient,) = torch.autograd.grad(loss, h)
    assert loss < 1e-14
    assert gradient.abs().max() < 1e-7


@pytest.mark.parametrize("shape", [(4, 6), (4, 5, 3, 3)])
def test_constant_rows_are_like_nothing_and_get_no_gradient(shape: tuple[int, ...]) -> None:
    h = torch.randn(shape)
    h[1] = 2.5
    h.requires_grad_()
    assert similarity_matrix(h)[1].abs().max() == 0
    (gradient,) = torch.autograd.grad(similarity_loss(h, torch.arange(4), num_classes=4), h)
    assert gradient.isfinite().all()
    if len(shape) == 4:
        assert gradient[1].abs().max() == 0


def test_flatten_takes_every_pixel() -> None:
    h = features("maps")
    torch.testing.assert_close(
        similarity_matrix(h, spatial="flatten"), similarity_matrix(h.flatten(1))
    )
    assert not torch.allclose(similarity_matrix(h, spatial="flatten"), similarity_matrix(h))


def test_tokens_are_summarised_over_the_tokens() -> None:
    h = features("tokens")
    torch.testing.assert_close(
        similarity_matrix(h), similarity_matrix(h.transpose(1, 2).unsqueeze(3))
    )


def test_soft_labels_match_their_own_similarities() -> None:
    soft = torch.rand(6, 4, dtype=torch.float64)
    h = features("flat")
    expected = oracles.similarity_loss(h, oracles.similarity(soft))
    torch.testing.assert_close(similarity_loss(h, soft), expected)


def test_layout_in_memory_changes_nothing() -> None:
    h = torch.randn(5, 8, 6, 6)
    y = torch.arange(5)

    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_()
        loss = similarity_loss(x, y, num_classes=5)
        return loss.detach(), torch.autograd.grad(loss, x)[0]

    for other in (
        h.to(memory_format=torch.channels_last),
        h.transpose(2, 3).contiguous().transpose(2, 3),
    ):
        for a, b in zip(both(h), both(other), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_type_and_agrees(dtype: torch.dtype) -> None:
    h = torch.randn(8, 6, 5, 5).to(dtype).requires_grad_()
    y = torch.arange(8) % 3
    loss = similarity_loss(h, y, num_classes=3)
    (gradient,) = torch.autograd.grad(loss, h)
    exact = similarity_loss(h.detach().double(), y, num_classes=3)
    assert loss.dtype == torch.float32
    assert gradient.dtype == dtype
    assert abs(loss - exact) < 0.02


def test_bad_input_is_refused_at_the_door() -> None:
    h, y = torch.randn(4, 5), torch.arange(4)
    with pytest.raises(TypeError, match="class numbers"):
        similarity_loss(h, torch.rand(4), num_classes=4)
    with pytest.raises(TypeError, match="floating point"):
        similarity_matrix(torch.ones(3, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="num_classes must be >= 2, got 1"):
        similarity_loss(h, y, num_classes=1)
    with pytest.raises(ValueError, match="num_classes must be given"):
        similarity_loss(h, y)
    with pytest.raises(ValueError, match="exactly one"):
        similarity_loss(h)
    with pytest.raises(ValueError, match=r"\(4, 4\)"):
        similarity_loss(h, torch.arange(3), num_classes=4)
    with pytest.raises(ValueError, match="spatial"):
        similarity_matrix(h, spatial="mean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="features must be"):
        similarity_matrix(torch.rand(3))
