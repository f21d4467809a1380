import math

import pytest
import torch

from addis.analyze import random_features


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


X = torch.rand(12, 6, generator=generator(5), dtype=torch.float64)


@pytest.mark.parametrize(("kind", "sigma"), [("relu", torch.relu), ("erf", torch.erf)])
def test_features_are_the_non_linearity_of_the_centred_projection_over_root_p(kind, sigma):
    features = random_features(X, 50, kind=kind, generator=generator())
    expected = sigma((X - X.mean(0)) @ features.weight[:20].T) / math.sqrt(20)
    assert torch.allclose(features(X, 20), expected, atol=1e-14)


def test_fourier_features_approach_the_gaussian_kernel():
    features = random_features(X, 200_000, kind="fourier", scale=2.0, generator=generator())
    phi = features(X)
    bandwidth = math.sqrt(6) / 2.0
    kernel = torch.exp(-torch.cdist(X, X).square() / (2 * bandwidth**2))
    assert torch.allclose(phi @ phi.T, kernel, atol=0.01)


def test_fourier_phases_are_uniform_over_a_whole_turn():
    bias = random_features(X, 20_000, kind="fourier", generator=generator()).bias
    counts = torch.histc(bias, 4, 0.0, 2 * math.pi)
    assert int(counts.sum()) == 20_000
    assert float((counts - 5000).abs().max()) < 4 * math.sqrt(20_000 * 0.25 * 0.75)


@pytest.mark.parametrize("kind", ["relu", "fourier", "erf"])
def test_the_first_features_do_not_depend_on_how_many_follow(kind):
    narrow = random_features(X, 7, kind=kind, generator=generator())
    wide = random_features(X, 1001, kind=kind, generator=generator())
    assert torch.equal(narrow(X, 7), wide(X, 7))


def test_weights_have_the_standard_deviation_of_the_scale():
    features = random_features(X, 20_000, scale=3.0, generator=generator())
    assert float(features.weight.std()) == pytest.approx(3 / math.sqrt(6), rel=0.01)
    assert float(features.bias.abs().max()) == 0.0


def test_images_are_flattened_and_float32_is_promoted():
    images = torch.rand(4, 1, 2, 3, generator=generator())
    features = random_features(images, 5, generator=generator())
    assert features(images).dtype == torch.float64
    assert torch.equal(features(images), features(images.flatten(1).double()))


def test_inputs_are_left_alone():
    before = X.clone()
    random_features(X, 5, kind="fourier", generator=generator())(X)
    assert torch.equal(X, before)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"p_max": 0}, "p_max must be >= 1, got 0"),
        ({"p_max": 3, "scale": 0.0}, "scale must be > 0"),
        ({"p_max": 3, "kind": "tanh"}, "'tanh'"),
    ],
)
def test_values_outside_their_range_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        random_features(X, generator=generator(), **kwargs)


def test_wrong_inputs_are_refused():
    features = random_features(X, 5, generator=generator())
    with pytest.raises(ValueError, match=r"1 \.\.\. 5, got 6"):
        features(X, 6)
    with pytest.raises(ValueError, match="6 values a sample, got 5"):
        features(X[:, :5])
    with pytest.raises(TypeError, match="int64"):
        random_features(torch.ones(3, 2, dtype=torch.int64), 5, generator=generator())
    with pytest.raises(ValueError, match="finite"):
        random_features(torch.full((3, 2), float("nan")), 5, generator=generator())
    with pytest.raises(ValueError, match="not empty"):
        random_features(torch.ones(0, 2), 5, generator=generator())
