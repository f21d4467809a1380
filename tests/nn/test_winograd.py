from __future__ import annotations

import copy
import pickle
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad

from addis.nn import Winograd, WinogradConv2d, _packed, _points, _tiles, _winograd, suits

SIZES = [(4, 4), (8, 8), (7, 7), (12, 9), (4, 17), (21, 8)]


@pytest.fixture
def narrow(monkeypatch):
    """Lets convolutions of any width and batches of any size through."""
    monkeypatch.setattr(_winograd, "_FEWEST_CHANNELS", 1)
    monkeypatch.setattr(_winograd, "_FEWEST_TILES", 1)
    monkeypatch.setattr(_winograd, "_FEWEST_FIXED_TILES", 1)
    monkeypatch.setattr(_winograd, "_LEAST_SAVED", {1: 150, 2: 150})


def quick(inputs: int = 3, outputs: int = 5, dtype=torch.float64, bias: bool = True):
    torch.manual_seed(0)
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, dtype=dtype, bias=bias)
    return conv, WinogradConv2d(conv)


def is_ours(y: torch.Tensor) -> bool:
    return y.grad_fn is not None and type(y.grad_fn).__name__ == "_ConvolutionBackward"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("n", [1, 3])
def test_output_and_gradient_of_fixed_weights_are_the_convolutions(narrow, size, n):
    conv, fast = quick()
    x = torch.randn(n, 3, *size, dtype=torch.float64, requires_grad=True)
    up = torch.randn(n, 5, *size, dtype=torch.float64)
    ours, theirs = fast(x), F.conv2d(x, conv.weight, conv.bias, padding=1)
    assert type(ours.grad_fn).__name__ == "_FixedConvolutionBackward"
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)
    (grad,) = torch.autograd.grad(ours, x, up)
    (wanted,) = torch.autograd.grad(theirs, x, up)
    torch.testing.assert_close(grad, wanted, rtol=0, atol=1e-13)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("chunk", [1, 3, 128])
@pytest.mark.parametrize("bias", [False, True])
def test_output_and_all_gradients_in_training_are_the_convolutions(
    narrow, monkeypatch, size, chunk, bias
):
    monkeypatch.setattr(_winograd, "_CHUNK_TILES", chunk)
    conv, _ = quick(bias=bias)
    x = torch.randn(3, 3, *size, dtype=torch.float64, requires_grad=True)
    up = torch.randn(3, 5, *size, dtype=torch.float64)
    with Winograd():
        ours = conv(x)
    theirs = conv(x)
    assert is_ours(ours)
    assert not is_ours(theirs)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)
    wanted = torch.autograd.grad(theirs, (x, *conv.parameters()), up)
    for a, b in zip(torch.autograd.grad(ours, (x, *conv.parameters()), up), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.fixture
def packed(narrow, monkeypatch):
    """Lets oneDNN multiply for convolutions of any width; counts the orders that are made."""
    if not _packed.PackedFactors.available():
        pytest.skip("this PyTorch has no oneDNN")
    made = []

    class Counted(_packed.PackedFactors):
        def __init__(self, factors, rows):
            super().__init__(factors, rows)
            made.append(rows)

    monkeypatch.setattr(_points, "_FEWEST_PACKED_CHANNELS", 1)
    monkeypatch.setattr(_points, "_USES", 0)
    monkeypatch.setattr(_points, "PackedFactors", Counted)
    return made


def apart(ours: torch.Tensor, exact: torch.Tensor) -> float:
    return float((ours - exact).abs().max() / exact.abs().max())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("chunk", [1, 3, 128])
def test_products_by_onednn_give_the_same_convolution(packed, monkeypatch, size, n, chunk):
    monkeypatch.setattr(_winograd, "_CHUNK_TILES", chunk)
    conv, fast = quick(20, 12, torch.float32)
    x, up = torch.randn(n, 20, *size, requires_grad=True), torch.randn(n, 12, *size)
    wide = x.detach().double().requires_grad_()
    exact = F.conv2d(wide, conv.weight.double(), conv.bias.double(), padding=1)
    ours = fast(x)
    assert apart(ours, exact) < 5e-6
    found, wanted = torch.autograd.grad(ours, x, up), torch.autograd.grad(exact, wide, up.double())
    assert apart(found[0], wanted[0]) < 5e-6
    assert packed


def test_parts_are_as_few_as_their_size_allows_and_nearly_equal():
    images = [(p.images.start, p.images.stop) for p in _tiles.parts(5, 1, 1, 4)]
    assert images == [(0, 3), (3, 5)]
    bands = [(p.rows.start, p.rows.stop) for p in _tiles.parts(1, 10, 1, 4)]
    assert bands == [(0, 4), (4, 8), (8, 10)]
    whole = [(p.images, p.rows) for p in _tiles.parts(1, 8, 1, 4)]
    assert whole == [(slice(0, 1), slice(0, 8))]


def test_batches_of_other_sizes_are_cut_and_filled_up_until_that_costs_as_much(packed, monkeypatch):
    monkeypatch.setattr(_packed, "_PATIENCE", 7)
    monkeypatch.setattr(_packed, "_READING", 1)
    conv, fast = quick(20, 12, torch.float32)

    def right(n: int) -> bool:
        x = torch.randn(n, 20, 4, 4)
        exact = F.conv2d(x.double(), conv.weight.double(), conv.bias.double(), padding=1)
        return apart(fast(x), exact) < 5e-6

    for sizes, orders in (
        ([4, 4, 4], [4]),
        ([3, 3, 3, 3, 3, 3, 3], [4]),  # 7 tiles of filling
        ([3], [4, 3]),
        ([5, 5, 5], [4, 3]),  # two pieces of 3: one tile of filling and one reading each
        ([5], [4, 3, 5]),
        ([15, 15, 15], [4, 3, 5]),  # three whole pieces: two readings each
        ([5, 15, 15, 15], [4, 3, 5]),  # a size that fits starts the count anew
        ([15], [4, 3, 5, 15]),
    ):
        assert all(right(n) for n in sizes)
        assert packed == orders


def test_only_what_is_used_often_gets_an_order(packed, monkeypatch):
    monkeypatch.setattr(_points, "_USES", 3)
    conv, fast = quick(20, 12, torch.float32)
    x = torch.randn(2, 20, 4, 4, requires_grad=True)
    (wanted,) = torch.autograd.grad(conv(x).sum(), x)
    for orders in ([], [2], [2, 2], [2, 2]):  # the fourth part is the second one's way back
        (found,) = torch.autograd.grad(fast(x).sum(), x)
        assert apart(found, wanted) < 5e-6
        assert packed == orders


def test_another_number_of_threads_gets_an_order_of_its_own(packed):
    conv, fast = quick(20, 12, torch.float32)
    x, before = torch.randn(4, 20, 4, 4), torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert apart(fast(x), conv(x)) < 5e-6
    finally:
        torch.set_num_threads(before)
    assert len(packed) == 2


def test_copies_make_an_order_of_their_own(packed):
    conv, fast = quick(20, 12, torch.float32)
    x = torch.randn(4, 20, 4, 4)
    wanted = fast(x)
    for again in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert torch.equal(again(x), wanted)
    with torch.no_grad():
        conv.weight *= 2
    assert apart(fast.double().float()(x), conv(x)) < 5e-6  # whose weights are new tensors


def test_without_onednn_pytorch_multiplies(packed, monkeypatch):
    conv, fast = quick(20, 12, torch.float32)
    x = torch.randn(4, 20, 4, 4)
    with torch.backends.mkldnn.flags(enabled=False):
        off = fast(x)
    assert not packed
    monkeypatch.setattr(_packed, "_operators", lambda: object())
    assert torch.equal(copy.deepcopy(fast)(x), off)
    assert not packed
    assert apart(off, conv(x)) < 5e-6
    _, double = quick(20, 12)
    double(x.double())
    assert not packed


def test_derivatives_of_the_first_and_second_order(narrow):
    conv, fast = quick(2, 2)
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(fast, x)
    assert torch.autograd.gradgradcheck(lambda x: fast(x).tanh(), x)

    def live(x, weight, bias):
        with Winograd():
            return F.conv2d(x, weight, bias, padding=1).tanh()

    inputs = (x, conv.weight, conv.bias)
    assert torch.autograd.gradcheck(live, inputs)
    assert torch.autograd.gradgradcheck(live, inputs)


def test_only_the_gradients_that_are_wanted(narrow):
    conv, _ = quick()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    with Winograd():
        conv(x).sum().backward()
    assert x.grad is None
    assert conv.weight.grad is not None
    conv.requires_grad_(False)
    x.requires_grad_()
    with Winograd():
        conv(x).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("size", [7, 16])
@pytest.mark.parametrize("channels", [256, 512])
def test_rounding_stays_near_that_of_the_kernel_it_replaces(size, channels):
    conv, fast = quick(channels, channels, torch.float32)
    x = torch.randn(4, channels, size, size)
    exact = F.conv2d(x.double(), conv.weight.double(), conv.bias.double(), padding=1)
    with torch.no_grad():
        ours = float((fast(x) - exact).square().mean().sqrt() / exact.square().mean().sqrt())
    assert ours < 2.5e-6  # the direct kernel: 2e-7 to 5e-7, by its blocks


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("weights", [torch.contiguous_format, torch.channels_last])
def test_layouts_are_those_of_the_convolution(narrow, form, weights):
    conv, fast = quick(bias=False)
    conv.to(memory_format=weights)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64).to(memory_format=form).requires_grad_()
    with Winograd():
        ours = conv(x)
    theirs = conv(x)
    assert is_ours(ours)
    assert ours.stride() == theirs.stride()
    assert fast(x).is_contiguous(memory_format=form)
    found = torch.autograd.grad(ours.square().sum(), (x, conv.weight))
    wanted = torch.autograd.grad(theirs.square().sum(), (x, conv.weight))
    assert found[0].stride() == wanted[0].stride()
    assert found[1].stride() == conv.weight.stride()


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_a_relu_in_place_behind_and_an_expanded_gradient(narrow, form):
    conv, fast = quick(bias=False)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64).to(memory_format=form).requires_grad_()

    def live(x):
        with Winograd():
            return conv(x)

    for way in (fast, live):
        (grad,) = torch.autograd.grad(F.relu(way(x), inplace=True).square().sum(), x)
        (wanted,) = torch.autograd.grad(F.relu(conv(x)).square().sum(), x)
        torch.testing.assert_close(grad, wanted, rtol=0, atol=1e-12)
        (grad,) = torch.autograd.grad(way(x).mean(), x)  # one value, expanded
        (wanted,) = torch.autograd.grad(conv(x).mean(), x)
        torch.testing.assert_close(grad, wanted, rtol=0, atol=1e-14)


def test_what_it_is_not_made_for_runs_the_convolutions_own_kernel(narrow):
    conv, fast = quick(dtype=torch.float32)

    def live(x):
        with Winograd():
            return conv(x)

    for way in (fast, live):
        for x in (torch.randn(2, 3, 5, 5), torch.randn(2, 3, 1, 1), torch.randn(3, 6, 6)):
            assert torch.equal(way(x), conv(x))
        assert way(torch.randn(0, 3, 8, 8)).shape == (0, 5, 8, 8)
        x = torch.randn(2, 3, 8, 8)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(way(x), conv(x))
            assert way(x).dtype == torch.bfloat16
        with pytest.raises(RuntimeError):
            way(x.double())  # as the convolution: no silent change of precision
        with pytest.raises(RuntimeError, match="channels"):
            way(x[:, :2])


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2, "padding": 1},
        {"stride": (1, 2), "padding": 1},
        {"padding": 0},
        {"padding": "valid"},
        {"padding": (1, 2)},
        {"padding": 1, "dilation": 2},
        {"padding": 1, "groups": 3},
    ],
)
def test_other_convolutions_within_the_context_are_left_alone(narrow, options):
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    weight = torch.randn(6, 3 // options.get("groups", 1), 3, 3)
    with Winograd():
        ours = F.conv2d(x, weight, **options)
    assert not is_ours(ours)
    assert torch.equal(ours, F.conv2d(x, weight, **options))


@pytest.mark.parametrize("padding", [1, (1,), (1, 1), [1, 1], "same"])
def test_the_forms_of_an_argument_that_say_one(narrow, padding):
    x, weight = torch.randn(2, 3, 8, 8, requires_grad=True), torch.randn(6, 3, 3, 3)
    with Winograd():
        ours = F.conv2d(x, weight, None, 1, padding)
    assert is_ours(ours)
    torch.testing.assert_close(ours, F.conv2d(x, weight, None, 1, padding), rtol=0, atol=1e-4)


def test_the_context_is_the_threads_own_and_ends(narrow):
    conv, _ = quick()
    x, found = torch.randn(2, 3, 8, 8, dtype=torch.float64), []
    with Winograd():
        worker = threading.Thread(target=lambda: found.append(is_ours(conv(x))))
        worker.start()
        worker.join()
        found.append(is_ours(conv(x)))
    found.append(is_ours(conv(x)))
    assert found == [False, True, False]


def test_function_transforms_within_the_context(narrow):
    conv, _ = quick()
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    with Winograd():
        each = torch.func.vmap(lambda image: conv(image[None])[0])(x)
        grad = torch.func.grad(lambda x: conv(x).square().sum())(x)
    torch.testing.assert_close(each, conv(x))
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(grad, torch.autograd.grad(conv(leaf).square().sum(), leaf)[0])


def test_forward_mode_derivatives_take_the_convolutions_own_kernel(narrow):
    conv, fast = quick(2, 2)
    x, v = torch.randn(2, 1, 2, 4, 4, dtype=torch.float64)
    with torch.no_grad(), forward_ad.dual_level():
        with Winograd():
            within = conv(forward_ad.make_dual(x, v))
        fixed = fast(forward_ad.make_dual(x, v))
        for y in (within, fixed):
            tangent = forward_ad.unpack_dual(y).tangent
            torch.testing.assert_close(tangent, F.conv2d(v, conv.weight, padding=1))


def test_a_subclass_of_tensor_keeps_its_own_rules(narrow):
    class Tagged(torch.Tensor):
        pass

    conv, _ = quick()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64).as_subclass(Tagged)
    with Winograd():
        y = conv(x)
    assert type(y) is Tagged
    assert not is_ours(y)


def test_narrow_nets_and_small_batches_are_left_alone():
    wide, x = nn.Conv2d(96, 96, 3, padding=1), torch.randn(16, 96, 8, 8)
    narrow = nn.Conv2d(95, 96, 3, padding=1)
    with Winograd():
        assert is_ours(wide(x))
        assert not is_ours(wide(x[:15]))
        assert not is_ours(narrow(x[:, :95]))


def test_more_waste_at_the_borders_or_more_threads_need_more_channels(monkeypatch):
    def ours(channels: int, side: int, threads: int) -> bool:
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        with Winograd():
            return is_ours(nn.Conv2d(channels, channels, 3, padding=1)(
                torch.randn(16, channels, side, side)
            ))  # fmt: skip

    assert ours(96, 16, 1)
    assert not ours(128, 14, 1)
    assert ours(136, 14, 1)
    assert not ours(96, 16, 2)
    assert ours(128, 16, 2)
    assert not ours(256, 16, 3)


def test_parameters_are_shared_and_get_no_gradient(narrow):
    conv, fast = quick(dtype=torch.float32)
    assert fast.weight is conv.weight
    assert fast.bias is conv.bias
    assert set(fast.state_dict()) == {"weight", "bias"}
    for side in (8, 5):  # the scheme and the convolution's own kernel
        fast(torch.randn(1, 3, side, side, requires_grad=True)).sum().backward()
        assert conv.weight.grad is None
        assert conv.bias.grad is None
    again = copy.deepcopy(fast)
    x = torch.randn(1, 3, 8, 8)
    assert torch.equal(again(x), fast(x))


def test_weights_are_transformed_at_the_first_batch_that_gains(monkeypatch):
    monkeypatch.setattr(_winograd, "_FEWEST_CHANNELS", 1)
    monkeypatch.setattr(_winograd, "_LEAST_SAVED", {1: 150})
    _, fast = quick(dtype=torch.float32)
    side = 4 * round(_winograd._FEWEST_FIXED_TILES**0.5)
    fast(torch.randn(1, 3, side, side - 4))
    assert fast._points is None
    with torch.inference_mode():
        first = fast(torch.ones(1, 3, side, side))
    made = fast._points
    assert made is not None
    x = torch.ones(1, 3, side, side, requires_grad=True)
    again = fast(x)
    assert fast._points is made
    assert torch.equal(again, first)
    again.sum().backward()  # though they were transformed in inference mode


def test_converted_to_another_precision_it_runs_the_convolutions_own_kernel(narrow):
    _, fast = quick(dtype=torch.float32)
    x = torch.randn(1, 3, 8, 8)
    fast(x)
    low = fast.bfloat16()
    assert torch.equal(low(x.bfloat16()), nn.Conv2d.forward(low, x.bfloat16()))


def test_it_suits_wide_plain_convolutions_alone():
    assert suits(nn.Conv2d(96, 300, 3, padding=1))
    assert suits(nn.Conv2d(96, 96, 3, padding="same", bias=False))
    for module in (
        nn.Conv2d(96, 95, 3, padding=1),
        nn.Conv2d(95, 96, 3, padding=1),
        nn.Conv2d(96, 96, 3),
        nn.Conv2d(96, 96, 3, padding=2),
        nn.Conv2d(96, 96, 5, padding=1),
        nn.Conv2d(96, 96, (3, 1), padding=1),
        nn.Conv2d(96, 96, 3, padding=1, stride=2),
        nn.Conv2d(96, 96, 3, padding=1, stride=(1, 2)),
        nn.Conv2d(96, 96, 3, padding="same", dilation=2),
        nn.Conv2d(192, 192, 3, padding=1, groups=2),
        nn.Conv2d(96, 96, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(96, 96, 3, padding=1, dtype=torch.bfloat16),
        nn.Conv2d(96, 96, 3, padding=1, device="meta"),
        nn.Conv1d(96, 96, 3, padding=1),
        nn.LazyConv2d(96, 3, padding=1),
        nn.Linear(96, 96),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(96, 96, 3, padding=1)),
    ):
        assert not suits(module)
