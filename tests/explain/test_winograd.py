from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from addis.explain._winograd import WinogradConv2d, suits


def quick(inputs: int = 3, outputs: int = 5, dtype=torch.float64, bias: bool = True):
    torch.manual_seed(0)
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, dtype=dtype, bias=bias)
    return conv, WinogradConv2d(conv)


@pytest.mark.parametrize("size", [(4, 4), (5, 8), (7, 7), (12, 9)])
@pytest.mark.parametrize("n", [1, 3])
def test_output_and_gradient_are_the_convolutions(size, n):
    conv, fast = quick()
    x = torch.randn(n, 3, *size, dtype=torch.float64, requires_grad=True)
    up = torch.randn(n, 5, *size, dtype=torch.float64)
    ours, theirs = fast(x), F.conv2d(x, conv.weight, conv.bias, padding=1)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)
    (grad,) = torch.autograd.grad(ours, x, up)
    (wanted,) = torch.autograd.grad(theirs, x, up)
    torch.testing.assert_close(grad, wanted, rtol=0, atol=1e-13)


def test_derivatives_of_the_first_and_second_order():
    _, fast = quick(2, 2)
    x = torch.randn(1, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(fast, x)
    assert torch.autograd.gradgradcheck(lambda x: fast(x).tanh(), x)


def test_no_less_exact_than_the_kernel_it_replaces():
    conv, fast = quick(256, 256, torch.float32)
    x = torch.randn(2, 256, 7, 7)
    exact = F.conv2d(x.double(), conv.weight.double(), conv.bias.double(), padding=1)
    with torch.no_grad():
        ours, theirs = (float((f(x) - exact).abs().max()) for f in (fast, conv))
    assert ours < max(2 * theirs, 1e-5)


@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_input_in_any_order_and_a_relu_in_place_behind(format):
    conv, fast = quick(bias=False)
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64).to(memory_format=format).requires_grad_()
    (grad,) = torch.autograd.grad(F.relu(fast(x), inplace=True).square().sum(), x)
    (wanted,) = torch.autograd.grad(F.relu(conv(x)).square().sum(), x)
    torch.testing.assert_close(grad, wanted, rtol=0, atol=1e-12)
    (grad,) = torch.autograd.grad(fast(x).mean(), x)  # a gradient that is one value, expanded
    (wanted,) = torch.autograd.grad(conv(x).mean(), x)
    torch.testing.assert_close(grad, wanted, rtol=0, atol=1e-14)


def test_what_it_is_not_made_for_runs_the_convolutions_own_kernel():
    conv, fast = quick(dtype=torch.float32)
    for x in (torch.randn(2, 3, 3, 9), torch.randn(2, 3, 1, 1), torch.randn(3, 6, 6)):
        assert torch.equal(fast(x), conv(x))
    x = torch.randn(2, 3, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fast(x), conv(x))
        assert fast(x).dtype == torch.bfloat16
    with pytest.raises(RuntimeError):
        fast(x.double())  # as the convolution: no silent change of precision


def test_parameters_are_shared_and_get_no_gradient():
    conv, fast = quick(dtype=torch.float32)
    assert fast.weight is conv.weight
    assert fast.bias is conv.bias
    assert set(fast.state_dict()) == {"weight", "bias"}
    fast(torch.randn(1, 3, 6, 6, requires_grad=True)).sum().backward()
    assert conv.weight.grad is None
    assert conv.bias.grad is None
    again = copy.deepcopy(fast)
    x = torch.randn(1, 3, 6, 6)
    assert torch.equal(again(x), fast(x))


def test_it_suits_wide_plain_convolutions_alone():
    assert suits(nn.Conv2d(256, 300, 3, padding=1))
    assert suits(nn.Conv2d(256, 256, 3, padding="same", bias=False))
    for module in (
        nn.Conv2d(256, 255, 3, padding=1),
        nn.Conv2d(255, 256, 3, padding=1),
        nn.Conv2d(256, 256, 3),
        nn.Conv2d(256, 256, 3, padding=2),
        nn.Conv2d(256, 256, 5, padding=1),
        nn.Conv2d(256, 256, (3, 1), padding=1),
        nn.Conv2d(256, 256, 3, padding=1, stride=2),
        nn.Conv2d(256, 256, 3, padding=1, stride=(1, 2)),
        nn.Conv2d(256, 256, 3, padding="same", dilation=2),
        nn.Conv2d(256, 256, 3, padding=1, groups=2),
        nn.Conv2d(256, 256, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(256, 256, 3, padding=1, dtype=torch.bfloat16),
        nn.Conv2d(256, 256, 3, padding=1, device="meta"),
        nn.Conv1d(256, 256, 3, padding=1),
        nn.LazyConv2d(256, 3, padding=1),
        nn.Linear(256, 256),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(256, 256, 3, padding=1)),
    ):
        assert not suits(module)
