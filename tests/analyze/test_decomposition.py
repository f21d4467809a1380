import itertools

import pytest
import torch

from addis.analyze import decompose_error, rf_decomposition
from addis.analyze._data import nested_sample, stream
from addis.analyze._decomposition import FACTORS
from addis.analyze._label_noise import noisy_labels
from addis.analyze._random_features import random_features
from tests.analyze import oracles

source = torch.Generator().manual_seed(0)
X = torch.rand(60, 6, generator=source, dtype=torch.float64)
Y = (X[:, 0] + X[:, 1] > 1).long() + (X[:, 2] > 0.7).long()


def test_parts_equal_inclusion_and_exclusion_of_variances():
    runs = torch.randn(3, 4, 2, 5, 2, generator=source, dtype=torch.float64)
    found = decompose_error(runs, torch.zeros(5, 2))
    for kept, value in oracles.analysis_of_variance(runs).items():
        name = " x ".join(FACTORS[d] for d in kept)
        assert found.variance[name] == pytest.approx(value, abs=1e-12)


def test_bias_and_all_variances_sum_to_the_squared_error():
    runs = torch.randn(3, 4, 2, 5, 2, generator=source, dtype=torch.float64)
    truth = torch.randn(5, 2, generator=source, dtype=torch.float64)
    found = decompose_error(runs, truth)
    assert found.total == pytest.approx(float((runs - truth).square().sum(-1).mean()))
    assert found.bias + sum(found.variance.values()) == pytest.approx(found.total)


def test_a_prediction_that_depends_on_one_factor_has_its_variance_alone():
    effect = torch.tensor([1.0, 2.0, 6.0]).reshape(1, 3, 1, 1, 1).expand(2, 3, 4, 5, 1)
    found = decompose_error(effect, torch.full((5, 1), 3.0))
    assert found.bias == 0.0
    assert found.variance["sampling"] == pytest.approx(14 / 3)
    assert sum(found.variance.values()) == pytest.approx(14 / 3)


@pytest.mark.parametrize(("p", "n"), [(8, 20), (60, 20)])
def test_random_feature_runs_equal_fits_of_their_own(p, n):
    draws = 2
    found = rf_decomposition(X[:40], Y[:40], X[40:], Y[40:], p=p, n=n, noise=0.3, draws=draws)
    truth = torch.nn.functional.one_hot(Y[40:], 3).double() - 1 / 3
    runs = []
    for a, b, c in itertools.product(range(draws), repeat=3):
        layer = random_features(X[:40], p, generator=stream(a, "features 0"))
        sample = nested_sample(40, n, b)
        labels = noisy_labels(Y[:40], 0.3, num_classes=3, seed=c)[sample]
        targets = torch.nn.functional.one_hot(labels, 3).double() - 1 / 3
        runs.append(layer(X[40:]) @ oracles.ridge(layer(X[:40][sample]), targets, 0.0))
    expected = decompose_error(torch.stack(runs).reshape(2, 2, 2, 20, 3), truth)
    assert found.total == pytest.approx(expected.total, rel=1e-8)
    assert found.bias == pytest.approx(expected.bias, rel=1e-8)
    assert found.variance == pytest.approx(expected.variance, rel=1e-6)


def test_without_noise_no_variance_comes_from_it():
    found = rf_decomposition(X[:40], Y[:40], X[40:], Y[40:], p=8, n=20, noise=0.0, draws=2)
    assert found.variance["noise"] == pytest.approx(0.0, abs=1e-25)


def test_wrong_shapes_and_too_few_draws_are_refused():
    with pytest.raises(ValueError, match="3 factors"):
        decompose_error(torch.zeros(2, 2, 5, 1), torch.zeros(5, 1))
    with pytest.raises(ValueError, match="draws must be >= 2"):
        rf_decomposition(X[:40], Y[:40], X[40:], Y[40:], p=8, n=20, noise=0.1, draws=1)
