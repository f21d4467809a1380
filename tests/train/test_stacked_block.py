"""Blocks of several copies: against the four operations of PyTorch in float64."""

from __future__ import annotations

import platform
import random
from collections.abc import Iterator, Sequence
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from addis.models import cnn5
from addis.train import StackedTrainer, _stacked_block
from addis.train._stacked_block import BlockSpec, apply_block, has_kernels

pytestmark = pytest.mark.skipif(not has_kernels(torch.float32), reason="no C compiler is here")

NAMES = ("weight", "bias", "gamma", "beta")
X86 = platform.machine() in ("x86_64", "AMD64")


@pytest.fixture(params=["this processor", "AVX2", "SSE"])
def processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kernels for vectors of each width."""
    if request.param == "this processor":
        yield
        return
    if not X86:
        pytest.skip("these are extensions of x86")
    option = {"AVX2": "-mno-avx512f", "SSE": "-mno-avx"}[request.param]
    compiled = _stacked_block.compiled
    monkeypatch.setattr(_stacked_block, "compiled", lambda s, o: compiled(s, [*o, option]))
    _stacked_block._library.cache_clear()
    yield
    _stacked_block._library.cache_clear()


def reference(
    spec: BlockSpec, x: Tensor, t: dict[str, Tensor], copies: int, *,
    statistics: tuple[Tensor, Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """What a block is to give, by PyTorch's own operations."""
    if "weight" in t:
        stride, padding, dilation = spec.stride, spec.padding, spec.dilation
        x = F.conv2d(x, t["weight"], t.get("bias"), stride, padding, dilation, copies)
    if spec.eps is not None:
        mean, variance = statistics or (None, None)
        x = F.batch_norm(
            x, mean, variance, t.get("gamma"), t.get("beta"), mean is None, 0.0, spec.eps
        )
    if spec.window is None:
        x = F.adaptive_max_pool2d(x, 1)
    elif spec.window != (1, 1):
        x = F.max_pool2d(x, spec.window)
    return torch.relu(x) if spec.rectifies else x


def run(
    spec: BlockSpec, x: Tensor, t: dict[str, Tensor], copies: int, *,
    statistics: tuple[Tensor, Tensor] | None = None, shared: bool = False,
) -> Tensor:  # fmt: skip
    tensors = [t.get(name) for name in NAMES]
    return apply_block(spec, x, *tensors, statistics, copies=copies, shared=shared)[0]


def drawn(draw: random.Random, dtype: torch.dtype) -> tuple[BlockSpec, Tensor, dict, int]:
    """A block and tensors for it."""
    while True:
        copies, inputs, outputs = draw.randint(1, 4), draw.randint(1, 9), draw.randint(1, 19)
        n, h, w = draw.choice([1, 2, 5, 31, 32, 33, 70]), draw.randint(1, 11), draw.randint(1, 11)
        convolves, normalises = draw.random() < 0.8, draw.random() < 0.7
        kernel = (
            (draw.choice([1, 2, 3, 5]), draw.choice([1, 2, 3, 4, 5, 7])) if convolves else (1, 1)
        )
        spec = BlockSpec()
        if convolves:
            dilation = draw.choice([(1, 1), (2, 1), (1, 3)])
            spec = spec._replace(
                stride=(draw.randint(1, 3), draw.randint(1, 3)),
                padding=tuple(
                    draw.randint(0, d * (k - 1)) for d, k in zip(dilation, kernel, strict=True)
                ),
                dilation=dilation,
            )
        spec = spec._replace(
            window=draw.choice([(1, 1), (2, 2), (3, 2), None]),
            rectifies=draw.random() < 0.6,
            eps=1e-3 if normalises else None,
        )
        after = [
            (size + 2 * p - d * (k - 1) - 1) // s + 1
            for size, p, d, k, s in zip(
                (h, w), spec.padding, spec.dilation, kernel, spec.stride, strict=True
            )
        ]
        window = spec.window or tuple(after)
        enough = not normalises or n * after[0] * after[1] >= 8
        if min(after) < 1 or after[0] < window[0] or after[1] < window[1] or not enough:
            continue
        if not convolves and not spec.finishes:
            continue
        outputs = outputs if convolves else inputs
        x = torch.randn(n, copies * inputs, h, w, dtype=dtype)
        t = {}
        if convolves:
            t["weight"] = torch.randn(copies * outputs, inputs, *kernel, dtype=dtype)
            if draw.random() < 0.5:
                t["bias"] = torch.randn(copies * outputs, dtype=dtype)
        if normalises and draw.random() < 0.7:
            t["gamma"], t["beta"] = torch.randn(2, copies * outputs, dtype=dtype)
        return spec, x, t, copies


@pytest.mark.usefixtures("processor")
@pytest.mark.parametrize(("dtype", "least"), [(torch.float64, 1e-10), (torch.float32, 2e-4)])
def test_any_block_equals_the_four_operations(dtype: torch.dtype, least: float) -> None:
    """Values and every gradient; the bias before a normalisation has none but rounding."""
    draw = random.Random(0)
    torch.manual_seed(0)
    for _ in range(120):
        spec, x, t, copies = drawn(draw, dtype)
        leaves = [each.requires_grad_() for each in (x, *t.values())]
        exact = [each.detach().double().requires_grad_() for each in leaves]
        y = run(spec, x, t, copies)
        expected = reference(spec, exact[0], dict(zip(t, exact[1:], strict=True)), copies)
        g = torch.randn_like(y)
        ours = [y, *torch.autograd.grad(y, leaves, g)]
        theirs = [expected, *torch.autograd.grad(expected, exact, g.double())]
        scale = max(float(each.detach().abs().max()) for each in theirs)
        for name, a, b in zip(("y", "x", *t), ours, theirs, strict=True):
            noise = name == "bias" and spec.eps is not None
            size = scale if noise else float(b.detach().abs().max()) + 1
            assert float((a - b).detach().abs().max()) < least * size, (
                name,
                spec,
                x.shape,
                t.keys(),
            )


def test_derivatives_are_those_of_differences() -> None:
    torch.manual_seed(1)
    spec = BlockSpec(padding=(1, 0), stride=(1, 2), window=(2, 2), rectifies=True, eps=1e-2)
    x = torch.randn(5, 4, 6, 7, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    gamma, beta = torch.randn(2, 6, dtype=torch.float64).requires_grad_()

    def function(*tensors: Tensor) -> Tensor:
        x, weight, gamma, beta = tensors
        return run(spec, x, {"weight": weight, "gamma": gamma, "beta": beta}, 2)

    assert torch.autograd.gradcheck(function, (x, weight, gamma, beta))


@pytest.mark.parametrize("window", [(1, 1), (2, 2)])
def test_given_statistics_are_constants(window: tuple[int, int]) -> None:
    torch.manual_seed(0)
    spec = BlockSpec(window=window, rectifies=True, eps=1e-5)
    x = torch.randn(9, 6, 5, 5, dtype=torch.float64, requires_grad=True)
    t = {name: torch.randn(6, dtype=torch.float64, requires_grad=True) for name in NAMES[2:]}
    mean, variance = torch.randn(6, dtype=torch.float64), torch.rand(6, dtype=torch.float64) + 0.1
    outputs = [
        run(spec, x, t, 3, statistics=(mean, variance)),
        reference(spec, x, t, 3, statistics=(mean, variance)),
    ]
    g = torch.randn_like(outputs[0])
    ours, theirs = ([y, *torch.autograd.grad(y, (x, *t.values()), g)] for y in outputs)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-12)


def test_moments_are_those_of_the_batch() -> None:
    x = 1000 + torch.randn(33, 6, 5, 7)
    *_, moments = apply_block(
        BlockSpec(eps=1e-5), x, None, None, None, None, None, copies=2, shared=False
    )
    variance, mean = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    assert torch.allclose(moments.mean.double(), mean, rtol=1e-6)
    assert torch.allclose(moments.variance.double(), variance, rtol=1e-3)
    assert moments.numbers == 33 * 35


def test_input_that_all_copies_share() -> None:
    torch.manual_seed(0)
    spec = BlockSpec(padding=(1, 1), rectifies=True, eps=1e-5)
    x = torch.randn(7, 3, 6, 6, dtype=torch.float64)
    weight = torch.randn(8, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    one, many = (
        run(spec, each, {"weight": weight}, 2, shared=shared)
        for each, shared in ((x, True), (x.repeat(1, 2, 1, 1), False))
    )
    assert torch.equal(one, many)
    g = torch.randn_like(one)
    assert torch.equal(*(torch.autograd.grad(y, weight, g)[0] for y in (one, many)))


@pytest.mark.parametrize(
    ("window", "rectifies"),
    [((1, 1), True), ((2, 2), True), ((3, 2), True), (None, True), ((2, 2), False), (None, False)],
)
def test_ties_zeros_and_nan_are_as_in_torch(
    window: tuple[int, int] | None, rectifies: bool
) -> None:
    spec = BlockSpec(window=window, rectifies=rectifies)
    x = torch.randint(-1, 2, (16, 4, 6, 6)).double()
    x[3, 1, 2, 2] = x[5, 0, 1, 1] = torch.nan
    x[6, 2] = -torch.inf
    x.requires_grad_()
    ours, theirs = run(spec, x, {}, 2), reference(spec, x, {}, 2)
    assert torch.equal(ours.isnan(), theirs.isnan())
    assert torch.equal(ours.nan_to_num(9), theirs.nan_to_num(9))
    g = torch.rand_like(ours)
    a, b = (torch.autograd.grad(y, x, g)[0] for y in (ours, theirs))
    assert torch.equal(a, b)


def test_frozen_tensors_get_no_gradient_and_the_others_their_own() -> None:
    torch.manual_seed(0)
    spec = BlockSpec(padding=(1, 1), rectifies=True, eps=1e-5)
    x = torch.randn(6, 4, 5, 5, dtype=torch.float64)
    t = {
        "weight": torch.randn(6, 2, 3, 3, dtype=torch.float64),
        **{name: torch.randn(6, dtype=torch.float64) for name in NAMES[1:]},
    }
    for wanted in ("x", *NAMES):
        leaves = {"x": x, **t}
        leaves = {n: v.clone().requires_grad_(n == wanted) for n, v in leaves.items()}
        image, rest = leaves["x"], {n: leaves[n] for n in NAMES}
        ours, theirs = run(spec, image, rest, 2), reference(spec, image, rest, 2)
        g = torch.randn_like(ours)
        a, b = (torch.autograd.grad(y, leaves[wanted], g)[0] for y in (ours, theirs))
        assert torch.allclose(a, b, atol=1e-10)


def test_threads_change_no_bit() -> None:
    torch.manual_seed(0)
    spec = BlockSpec(padding=(1, 1), window=(2, 2), rectifies=True, eps=1e-5)
    x, weight = torch.randn(20, 15, 8, 8, requires_grad=True), torch.randn(20, 3, 3, 3)
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            y = run(spec, x, {"weight": weight}, 5)
            found.append((y, *torch.autograd.grad(y.sum(), x)))
        finally:
            torch.set_num_threads(1)
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_layout_of_the_input_does_not_matter_and_it_is_left_alone() -> None:
    spec = BlockSpec(padding=(1, 1), rectifies=True, eps=1e-5)
    x, weight = torch.randn(6, 6, 5, 5), torch.randn(4, 3, 3, 3)
    kept = x.clone()
    first = run(spec, x, {"weight": weight}, 2)
    for other in (x.contiguous(memory_format=torch.channels_last), x.flip(3).flip(3), x[:, :, :5]):
        assert torch.equal(run(spec, other, {"weight": weight}, 2), first)
    first += 1
    assert torch.equal(x, kept)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.rand(4, 4, 2, 5)}, ValueError, "maps of 2 x 5 are smaller"),
        ({"x": torch.rand(4, 6, 5, 5)}, ValueError, "filters take 4 channels, the maps have 6"),
        ({"x": torch.rand(4, 4, 5, 5).double()}, TypeError, "float64 on cpu, the model"),
        ({"x": torch.rand(1, 4, 3, 3)}, ValueError, "more than 1 value a channel"),
        ({"spec": BlockSpec(window=(4, 4))}, ValueError, "smaller than the filters or windows"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(change: dict, error: type[Exception], message: str) -> None:
    given = {"spec": BlockSpec(eps=1e-5), "x": torch.rand(4, 4, 5, 5)} | change
    with pytest.raises(error, match=message):
        run(given["spec"], given["x"], {"weight": torch.rand(6, 2, 3, 3)}, 2)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([nn.BatchNorm2d(5)], "a layer has 10 channels where its maps have 8"),
        ([nn.BatchNorm2d(3)], "a layer has 6 channels where its maps have 8"),
        ([nn.Conv2d(5, 2, 1)], "the filters take 10 channels, the maps have 8"),
        ([nn.Conv2d(3, 2, 1)], "the filters take 6 channels, the maps have 8"),
        ([nn.Conv2d(3, 3, 1, groups=3)], "the filters take 6 channels, the maps have 8"),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_layers_that_do_not_fit_are_refused(
    layers: Sequence[nn.Module], message: str, training: bool
) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), *layers, nn.Flatten())
    trainer = StackedTrainer([model] * 2, lr=0.1)
    assert trainer.native
    x, y = torch.rand(16, 3, 5, 5), torch.zeros(16).long()
    call = partial(trainer.step, x, y, shared=True) if training else partial(trainer.outputs, x)
    with pytest.raises(ValueError, match=message):
        call()


def test_second_derivatives_are_refused() -> None:
    x = torch.rand(4, 4, 5, 5, requires_grad=True)
    y = run(BlockSpec(rectifies=True, eps=1e-5), x, {}, 2)
    (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def steps(native: bool, *, n: int = 40, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    net = partial(cnn5, 2, 4, dtype=dtype)
    optimizer = partial(torch.optim.SGD, momentum=0.9)
    trainer = StackedTrainer(net, seeds=range(3), lr=0.1, optimizer=optimizer, native=native)
    assert trainer.native == native
    g = torch.Generator().manual_seed(0)
    for _ in range(4):
        x = torch.randn(3, n, 3, 16, 16, generator=g, dtype=dtype)
        trainer.step(x, torch.randint(4, (3, n), generator=g))
    return [*trainer.state_dict()["tensors"].values(), trainer.outputs(x[0])]


@pytest.mark.parametrize("n", [15, 16, 40])
def test_training_is_that_of_pytorchs_kernels(n: int) -> None:
    for ours, theirs in zip(steps(True, n=n), steps(False, n=n), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-9)


def test_copy_that_diverges_leaves_the_others_as_they_are() -> None:
    def trained(x: Tensor) -> list[nn.Module]:
        trainer = StackedTrainer(partial(cnn5, 2, 4), seeds=range(3), lr=0.1)
        assert trainer.native
        for _ in range(2):
            trainer.step(x, torch.arange(60).view(3, 20) % 4)
        return trainer.models()

    x = torch.rand(3, 20, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    broken = x.clone()
    broken[1] = torch.inf
    whole, part = trained(x), trained(broken)
    for i, same in ((0, True), (1, False), (2, True)):
        pairs = zip(whole[i].state_dict().values(), part[i].state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs) is same
    assert all(p.isnan().any() for p in part[1].parameters())


@pytest.mark.parametrize(
    ("layers", "native"),
    [
        ([nn.Conv2d(3, 4, 3)], True),
        ([nn.Conv2d(3, 4, 3, padding="same", dilation=2)], True),
        ([nn.Conv2d(3, 4, 4, padding="same")], False),
        ([nn.Conv2d(3, 4, (3, 1), padding=(0, 1))], False),
        ([nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")], False),
        ([nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)], False),
        ([nn.BatchNorm2d(3)], False),
    ],
)
def test_kernels_take_what_they_can(layers: Sequence[nn.Module], native: bool) -> None:
    model = nn.Sequential(*layers)
    for dtype, kernels in ((torch.float32, native), (torch.bfloat16, False)):
        models = [model.to(dtype)] * 2
        assert StackedTrainer(models, lr=0.1, backend="grouped").native is kernels


def test_model_of_two_precisions_is_left_to_pytorch() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4).double())
    assert not StackedTrainer([model] * 2, lr=0.1, backend="grouped").native
