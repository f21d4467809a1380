from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from addis.explain import BottleneckStats, ReadoutBottleneck
from addis.explain._noise import Noise
from tests.explain import oracles

pytestmark = pytest.mark.filterwarnings("ignore:the statistics rest on")


def small_cnn() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True),
        nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    ).eval()  # fmt: skip
    model[7].weight.data.mul_(40)
    return model


def images(n: int = 4, seed: int = 1) -> Tensor:
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


READ = ["2", "4", "7"]


def readout(model: nn.Module, **options) -> ReadoutBottleneck:
    stats = ReadoutBottleneck.estimate(model, "2", READ, images(60, 2))
    return ReadoutBottleneck(model, "2", READ, stats, **options)


def test_an_untrained_readout_is_an_open_mask():
    net = readout(small_cnn())
    mask = net.attribute(images()).mask
    start = torch.full_like(mask, 5.0).sigmoid()
    torch.testing.assert_close(mask, start, atol=1e-5, rtol=0)


def test_alpha_comes_from_normalised_resized_features():
    model = small_cnn()
    net = readout(model)
    features = [model[: int(name) + 1](images()).detach() for name in READ]
    read = []
    for values, stats in zip(features, list(net.stats)[1:], strict=True):
        normal = (values - stats.mean.float()) / stats.std.float().clamp_min(0.01)
        if normal.dim() == 2:
            normal = normal[..., None, None].expand(-1, -1, 16, 16)
        read.append(F.interpolate(normal, (16, 16), mode="bilinear", align_corners=True))
    want = net.net(torch.cat(read, 1)).clamp(-5, 5)
    torch.testing.assert_close(net(images()), want)


def test_the_loss_is_cross_entropy_plus_beta_times_mean_information():
    model, target = small_cnn(), torch.tensor([0, 1, 2, 3])
    net = readout(model, beta=3.0, smooth=0.0, active_threshold=0.0)
    mask = net(images()).sigmoid()
    features = model[:3](images()).detach()
    stats = net.stats[0]
    mean, std = stats.mean.float(), stats.std.float().clamp_min(0.01)
    noise = Noise([4 * 9 + i for i in range(4)], 1, features).draw()[:, 0]
    logits = model[3:](mask * features + (1 - mask) * (mean + std * noise))
    information = oracles.kl_of_channel((features - mean) / std, mask).mean()
    want = F.cross_entropy(logits, target) + 3.0 * information
    torch.testing.assert_close(net.loss(images(), target, seed=9), want, rtol=1e-4, atol=1e-5)


def test_training_lowers_the_loss_and_touches_the_network_only():
    model = small_cnn()
    net = readout(model, hidden=16)
    before = copy.deepcopy(model.state_dict())
    x = images(64, 3)
    loader = [(part, model(part).argmax(1)) for part in x.split(16)]
    losses = net.fit(loader, epochs=15, lr=3e-3)
    assert losses[-1] < 0.5 * losses[0]
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert float(net.attribute(x).total_bits.mean()) < 0.5 * 6 * 256 * math.log2(math.e) * 4


def test_any_loop_can_train_it():
    model = small_cnn()
    net = readout(model)
    sgd = torch.optim.SGD(net.parameters(), lr=0.1)
    first = net.loss(images(), 1, seed=0)
    first.backward()
    sgd.step()
    assert all(p.grad is not None for p in net.parameters())
    assert all(p.grad is None for p in model.parameters())
    assert not torch.equal(net.loss(images(), 1, seed=0), first)


def test_the_map_sums_to_the_total_and_batches_do_not_matter():
    net = readout(small_cnn())
    att = net.attribute(images(), batch_size=3)
    torch.testing.assert_close(att.map.sum((1, 2)), att.total_bits, rtol=1e-4, atol=0)
    single = torch.cat([net.attribute(images()[i : i + 1]).map for i in range(4)])
    torch.testing.assert_close(att.map, single, atol=1e-5, rtol=1e-4)
    assert att.method == "iba-readout"
    assert att.unit == "bits per pixel"


def test_dead_units_give_no_nan():
    model = small_cnn()
    model[1].bias.data[:3] = -100
    att = readout(model).attribute(images())
    assert torch.isfinite(att.map).all()
    assert float(att.channel_bits[:, :3].abs().max()) == 0


def test_negative_noise_is_kept_unless_asked_for():
    model, seen = small_cnn(), []
    net = readout(model)
    with torch.no_grad():
        net.net[-1].bias.fill_(-5.0)
    model[3].register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().min().item()))
    net.loss(images(), 0, seed=0)
    assert min(seen) < -0.1
    net.clamp = True
    seen.clear()
    net.loss(images(), 0, seed=0)
    assert min(seen) == 0.0


def test_a_saved_state_gives_the_same_maps(tmp_path):
    model = small_cnn()
    net = readout(model)
    net.fit([(images(), torch.tensor([0, 1, 2, 3]))], epochs=2, lr=1e-2)
    torch.save(net.state_dict(), tmp_path / "readout.pt")
    empty = [BottleneckStats(each.shape) for each in net.stats]
    again = ReadoutBottleneck(model, "2", READ, empty, seed=5)
    again.load_state_dict(torch.load(tmp_path / "readout.pt", weights_only=True))
    assert torch.equal(again.attribute(images()).map, net.attribute(images()).map)
    assert not any(key.startswith("model") for key in net.state_dict())


def test_the_same_seeds_train_the_same_readout():
    maps = []
    for _ in range(2):
        net = readout(small_cnn(), seed=3)
        net.fit([(images(), torch.tensor([0, 1, 2, 3]))], epochs=2, lr=1e-2, seed=4)
        maps.append(net.attribute(images()).map)
    assert torch.equal(*maps)


def test_a_loss_that_does_not_depend_on_the_layer_is_an_error():
    class Cut(nn.Module):
        def forward(self, x):
            return x.detach()

    model = small_cnn()
    model[3] = nn.Sequential(Cut(), model[3])
    net = readout(model)
    with pytest.raises(ValueError, match="does not depend on layer '2'"):
        net.loss(images(), 1, seed=0)
    with torch.no_grad():  # to read the loss needs no gradient
        assert torch.isfinite(net.loss(images(), 1, seed=0))


def test_torchs_generators_are_left_as_they_were(monkeypatch):
    model = small_cnn()
    stats = ReadoutBottleneck.estimate(model, "2", READ, images(60, 2))
    state = torch.get_rng_state()
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda _: pytest.fail("a device's too"))
    ReadoutBottleneck(model, "2", READ, stats)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_state_of_another_prior_is_refused():
    net = readout(small_cnn())
    other = [BottleneckStats(each.shape, prior="halfnormal") for each in net.stats]
    half = ReadoutBottleneck(small_cnn(), "2", READ, other)
    with pytest.raises(ValueError, match="prior 'gaussian', these have 'halfnormal'"):
        half.load_state_dict(net.state_dict())


def test_bad_input_is_named():
    model = small_cnn()
    net = readout(model)
    stats = list(net.stats)
    with pytest.raises(ValueError, match="one or more readout layers"):
        ReadoutBottleneck(model, "2", READ, stats[:2])
    with pytest.raises(ValueError, match="beta >= 0"):
        ReadoutBottleneck(model, "2", READ, stats, beta=-1)
    with pytest.raises(ValueError, match=r"maps \(C, H, W\)"):
        ReadoutBottleneck(model, "7", ["2"], [stats[3], stats[1]])
    with pytest.raises(ValueError, match=r"stats of '4' have \(8, 8\)"):
        ReadoutBottleneck(model, "2", ["4"], [stats[0], BottleneckStats((8, 8))])
    with pytest.raises(ValueError, match="epochs >= 1"):
        net.fit([], epochs=0)
    with pytest.raises(ValueError, match="no batch"):
        net.fit([])
    with pytest.raises(ValueError, match="its stats have"):
        net(torch.randn(1, 3, 20, 20))
    with pytest.raises(ValueError, match="estimate them again"):
        net.attribute(torch.randn(1, 3, 20, 20))
    with pytest.raises(ValueError, match="target is missing"):
        net.loss(images(), None, seed=0)
