from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from addis.explain import BottleneckStats

pytestmark = pytest.mark.filterwarnings("ignore:the statistics rest on")


def features(n: int = 57) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(n, 3, 4, generator=generator, dtype=torch.float64) * 5 + 1000
    values[torch.rand(n, 3, 4, generator=generator) < 0.3] = 0
    return values


@pytest.mark.parametrize("chunk", [1, 2, 10, 57])
def test_any_chunking_gives_numpys_moments(chunk):
    values = features()
    stats = BottleneckStats((3, 4))
    for part in values.split(chunk):
        stats.update(part)
    np.testing.assert_allclose(stats.mean, values.numpy().mean(0), rtol=1e-10)
    np.testing.assert_allclose(stats.std, values.numpy().std(0, ddof=1), rtol=1e-10)
    np.testing.assert_allclose(stats.active, (values.numpy() != 0).mean(0), rtol=1e-12)
    assert stats.n == 57


def test_float32_features_keep_their_deviation_on_top_of_a_large_mean():
    values = (features() / 5 + 9000).float()
    stats = BottleneckStats((3, 4))
    for part in values.split(10):
        stats.update(part)
    np.testing.assert_allclose(stats.mean, values.double().mean(0), rtol=1e-9)
    np.testing.assert_allclose(stats.std, values.double().std(0), rtol=1e-5)


def test_a_mean_that_float32_cannot_hold_is_made_good():
    values = torch.tensor([[1e7], [1e7 + 1], [1e7 + 1]])
    stats = BottleneckStats((1,))
    stats.update(values)
    torch.testing.assert_close(stats.mean, values.double().mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(stats.std, values.double().std(0), rtol=1e-6, atol=0)


def test_features_whose_squares_overflow_are_still_counted():
    values = torch.tensor([[1e25], [-1e25], [3e25]])
    stats = BottleneckStats((1,))
    stats.update(values)
    torch.testing.assert_close(stats.std, values.double().std(0))


def test_merging_two_halves_is_seeing_the_whole():
    values = features()
    halves = [BottleneckStats((3, 4)), BottleneckStats((3, 4))]
    halves[0].update(values[:20])
    halves[1].update(values[20:])
    halves[0].merge(halves[1])
    torch.testing.assert_close(halves[0].std, values.std(0), rtol=1e-10, atol=0)
    torch.testing.assert_close(halves[0].mean, values.mean(0), rtol=1e-12, atol=0)
    empty = BottleneckStats((3, 4))
    empty.merge(halves[0])
    assert torch.equal(empty.std, halves[0].std)


def test_merging_other_shapes_is_refused():
    with pytest.raises(ValueError, match="cannot merge"):
        BottleneckStats((3,)).merge(BottleneckStats((4,)))
    with pytest.raises(ValueError, match="cannot merge"):
        BottleneckStats((3,)).merge(BottleneckStats((3,), prior="halfnormal"))


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()).train()


def test_estimate_uses_the_samples_asked_for_exactly_in_evaluation_mode():
    net = model()
    x = torch.randn(100, 1, 6, 6)
    running = net[1].running_mean.clone()
    with pytest.warns(UserWarning, match="training mode"):
        stats = BottleneckStats.estimate(net, "2", [(x[:40], 0), (x[40:], 0)], samples=77)
    assert stats.n == 77
    assert torch.equal(net[1].running_mean, running)
    assert net.training
    want = net.eval()[:3](x[:77]).detach().double()
    torch.testing.assert_close(stats.mean, want.mean(0), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(stats.std, want.std(0), rtol=1e-6, atol=1e-7)


def test_few_samples_warn_and_fewer_than_two_are_an_error():
    x = torch.randn(3, 1, 6, 6)
    with pytest.warns(UserWarning, match="rest on 3 samples"):
        BottleneckStats.estimate(model().eval(), "2", x)
    with pytest.raises(ValueError, match="at least 2"):
        BottleneckStats.estimate(model().eval(), "2", x[:1])
    with pytest.raises(ValueError, match="at least 2"):
        BottleneckStats.estimate(model().eval(), "2", x, samples=1)
    with pytest.raises(ValueError, match="at least 2"):
        _ = BottleneckStats((2,)).std


def test_inputs_that_cannot_be_used_are_named():
    net = model().eval()
    with pytest.raises(TypeError, match="floating point"):
        BottleneckStats.estimate(net, "2", torch.zeros(4, 1, 6, 6, dtype=torch.uint8))
    bad = torch.zeros(4, 1, 6, 6)
    bad[0] = torch.nan
    with pytest.raises(FloatingPointError, match="x holds"):
        BottleneckStats.estimate(net, "2", bad)
    stats = BottleneckStats((2,))
    with pytest.raises(FloatingPointError, match="features"):
        stats.update(torch.full((2, 2), torch.inf))
    with pytest.raises(ValueError, match="shape"):
        stats.update(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="prior"):
        BottleneckStats((2,), prior="uniform")
    with pytest.raises(TypeError, match="tensors of inputs"):
        BottleneckStats.estimate(net, "2", [("a", "b")])
    with pytest.raises(TypeError, match=r"tensors of inputs.* got dict"):
        BottleneckStats.estimate(net, "2", [{"image": torch.zeros(4, 1, 6, 6)}])


def test_halfnormal_prior_has_mean_zero_and_the_root_mean_square_of_the_nonzero():
    values = features().float()
    stats = BottleneckStats((3, 4), prior="halfnormal")
    stats.update(values)
    prior = stats.gaussian(min_std=0.01, active_threshold=0.01, like=values)
    want = (values.double().square().sum(0) / (values != 0).sum(0)).sqrt()
    assert prior.clamp
    assert float(prior.mean.abs().max()) == 0
    torch.testing.assert_close(prior.std.double(), want, rtol=1e-6, atol=0)


def test_dead_units_are_inactive_and_rare_ones_are_floored():
    values = torch.zeros(200, 3)
    values[:1, 1] = 1.0
    values[:, 2] = 5.0
    stats = BottleneckStats((3,))
    stats.update(values)
    prior = stats.gaussian(min_std=0.01, active_threshold=0.01, like=values)
    assert prior.active.tolist() == [False, False, True]
    assert prior.std.tolist() == pytest.approx([0.0, 0.0, 0.01])
    assert prior.mean.tolist() == [0.0, 0.0, 5.0]


@pytest.mark.parametrize("prior", ["gaussian", "halfnormal"])
def test_a_saved_file_gives_the_same_statistics(tmp_path, prior):
    stats = BottleneckStats((3, 4), prior=prior)
    stats.update(features())
    stats.save(tmp_path / "stats.safetensors", layer="layer2")
    again = BottleneckStats.load(tmp_path / "stats.safetensors")
    assert again.prior == prior
    for name, value in stats.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])


def test_another_file_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="no BottleneckStats"):
        BottleneckStats.load(tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("name", "value"),
    [("squares", torch.zeros(3)), ("count", torch.tensor([2, 2])), ("count", torch.tensor(-1)),
     ("mean", torch.tensor([0.0, torch.nan])), ("squares", torch.tensor([-1.0, 0.0]))],
)  # fmt: skip
def test_a_damaged_file_is_refused(tmp_path, name, value):
    from safetensors.torch import save_file

    stats = BottleneckStats((2,))
    stats.update(torch.randn(5, 2))
    state = dict(stats.named_buffers()) | {name: value}
    save_file(state, tmp_path / "stats.safetensors", metadata={"prior": "gaussian"})
    with pytest.raises(ValueError, match=f"no BottleneckStats: {name} must be"):
        BottleneckStats.load(tmp_path / "stats.safetensors")


def test_a_state_of_another_prior_is_refused_and_one_without_is_taken(tmp_path):
    stats = BottleneckStats((3, 4), prior="halfnormal")
    stats.update(features())
    torch.save(stats.state_dict(), tmp_path / "stats.pt")
    state = torch.load(tmp_path / "stats.pt", weights_only=True)
    other = BottleneckStats((3, 4))
    with pytest.raises(ValueError, match="prior 'halfnormal', these have 'gaussian'"):
        other.load_state_dict(state)
    assert other.n == 0
    same = BottleneckStats((3, 4), prior="halfnormal")
    same.load_state_dict(state)
    assert torch.equal(same.std, stats.std)
    old = BottleneckStats((3, 4), prior="halfnormal")
    old.load_state_dict(dict(stats.named_buffers()))  # as it was before the prior was saved
    assert torch.equal(old.std, stats.std)


def test_the_batches_are_left_to_the_caller():
    class InPlace(nn.Module):
        def forward(self, x):
            return x.sub_(0.5)

    x = torch.randn(8, 1, 6, 6)
    before = x.clone()
    BottleneckStats.estimate(nn.Sequential(InPlace(), model()).eval(), "1.0", x.split(4))
    assert torch.equal(x, before)


def test_resized_statistics_of_a_constant_are_constant():
    stats = BottleneckStats((2, 4, 4))
    stats.update(torch.randn(50, 2, 1, 1).expand(-1, -1, 4, 4))
    large = stats.resize((7, 9))
    assert large.shape == (2, 7, 9)
    torch.testing.assert_close(large.std, stats.std[:, :1, :1].expand(2, 7, 9))
    with pytest.raises(ValueError, match="cannot resize"):
        stats.resize((7,))


def test_no_warning_with_enough_samples():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stats = BottleneckStats.estimate(model().eval(), "2", torch.randn(1000, 1, 6, 6))
    assert stats.n == 1000
