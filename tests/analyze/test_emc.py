import itertools
import math

import pytest
import torch
from torch.utils.data import TensorDataset

from addis.analyze import EMCPoint, effective_model_complexity
from tests.analyze import oracles

DATA = TensorDataset(torch.arange(500.0)[:, None], torch.arange(500) % 7)


def capacity(limit: int, jitter: int = 0):
    def procedure(sample, seed: int) -> float:
        """Errs on all samples beyond ``limit``, which varies with the seed."""
        return max(0, len(sample) - limit - jitter * (seed - 1)) / len(sample)

    return procedure


@pytest.mark.parametrize("limit", [1, 3, 15, 16, 17, 100, 333])
@pytest.mark.parametrize("eps", [0.05, 0.1])
def test_bisection_finds_what_trying_every_size_finds(limit, eps):
    found = effective_model_complexity(capacity(limit), DATA, eps=eps, n_min=1)
    expected = oracles.complexity(
        lambda n, _: max(0, n - limit) / n, range(1, 501), eps=eps, trials=1
    )
    assert found.n == expected
    assert found.interval == (expected, expected)
    assert found.status == "bracketed"
    assert found.monotone


def test_the_mean_over_trials_is_compared_and_the_interval_covers_them():
    found = effective_model_complexity(capacity(100, jitter=6), DATA, eps=0.1, trials=3)
    expected = oracles.complexity(
        lambda n, seed: max(0, n - 100 - 6 * (seed - 1)) / n, range(16, 501), eps=0.1, trials=3
    )
    assert found.n == expected
    low, high = found.interval
    assert low < 100 / 0.9 - 6 / 0.9 + 1
    assert high > 100 / 0.9 + 6 / 0.9 - 1


def test_the_interval_inverts_a_student_interval_of_the_mean():
    found = effective_model_complexity(capacity(100, jitter=6), DATA, eps=0.1, trials=3)

    def bound(n: int, sign: int) -> float:
        values = [max(0, n - 100 - 6 * (seed - 1)) / n for seed in range(3)]
        mean = sum(values) / 3
        half = 4.302653 * math.sqrt(sum((v - mean) ** 2 for v in values) / 2 / 3)
        return mean + sign * half

    assert found.interval[0] == max(n for n in range(16, 501) if bound(n, +1) <= 0.1)
    assert found.interval[1] == max(n for n in range(16, 501) if bound(n, -1) <= 0.1)


def test_a_nearest_neighbour_fits_any_number_of_samples():
    def nearest(sample, seed: int) -> float:
        x, y = sample.tensors
        return float((y[torch.cdist(x, x).argmin(1)] != y).double().mean())

    found = effective_model_complexity(nearest, DATA)
    assert (found.n, found.status) == (500, "above n_max")
    assert effective_model_complexity(nearest, DATA, n_max=60).n == 60


def test_a_constant_guess_does_not_fit_the_smallest_sample():
    found = effective_model_complexity(lambda sample, seed: 0.8, DATA)
    assert (found.n, found.status, found.interval) == (15, "below n_min", (15, 15))


def test_complexity_grows_with_capacity():
    sizes = [effective_model_complexity(capacity(k), DATA, n_min=1).n for k in (5, 20, 80, 200)]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == 4


def test_samples_are_nested_within_a_trial_and_sizes_are_run_once():
    seen: dict[int, dict[int, set[float]]] = {}

    def procedure(sample, seed: int) -> float:
        assert len(sample) not in seen.setdefault(seed, {})
        seen[seed][len(sample)] = set(sample.tensors[0].squeeze(1).tolist())
        return capacity(60)(sample, seed)

    effective_model_complexity(procedure, DATA, trials=2)
    for sizes in seen.values():
        ordered = [sizes[n] for n in sorted(sizes)]
        assert all(a < b for a, b in itertools.pairwise(ordered))
    assert seen[0][16] != seen[1][16]


def test_it_evaluates_few_sizes():
    found = effective_model_complexity(capacity(300), DATA)
    assert len(found.means) <= 20


@pytest.mark.parametrize("limit", [20, 100, 333])
def test_a_tolerance_finds_the_complexity_to_within_it_and_tries_fewer_sizes(limit):
    procedure = capacity(limit, jitter=5)
    exact = effective_model_complexity(procedure, DATA)
    rough = effective_model_complexity(procedure, DATA, tolerance=0.1)
    assert len(rough.means) < len(exact.means)
    assert rough.means[rough.n] <= 0.1
    for found, truth in zip((rough.n, *rough.interval), (exact.n, *exact.interval), strict=True):
        assert 0.89 * truth <= found <= truth


def test_trials_go_through_the_given_map():
    points: list[EMCPoint] = []

    def recording(function, given):
        points.extend(given)
        return [function(point) for point in given]

    effective_model_complexity(capacity(60), DATA, trials=2, map=recording)
    assert points[:2] == [EMCPoint(16, 0), EMCPoint(16, 1)]


def test_a_metric_that_falls_with_more_samples_is_flagged():
    def odd(sample, seed: int) -> float:
        return 0.09 if len(sample) == 32 else capacity(60)(sample, seed)

    assert not effective_model_complexity(odd, DATA).monotone


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"eps": 0.0}, r"eps must be in \(0, 1\)"),
        ({"eps": 1.0}, r"eps must be in \(0, 1\)"),
        ({"n_min": 0}, "1 <= n_min"),
        ({"n_max": 501}, "n_max <= 500"),
        ({"n_min": 50, "n_max": 40}, "got 50 and 40"),
        ({"trials": 1}, "trials >= 2"),
        ({"level": 1.0}, "level in"),
        ({"criterion": "accuracy"}, "criterion"),
        ({"tolerance": 1.0}, r"tolerance must be in \[0, 1\)"),
        ({"tolerance": -0.1}, r"tolerance must be in \[0, 1\)"),
    ],
)
def test_values_outside_their_range_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        effective_model_complexity(capacity(30), DATA, **kwargs)


@pytest.mark.parametrize("value", [math.nan, -0.1, 1.5, math.inf])
def test_an_error_that_is_none_is_refused(value):
    with pytest.raises(ValueError, match=r"training error in \[0, 1.0\]"):
        effective_model_complexity(lambda sample, seed: value, DATA)


def test_a_procedure_that_returns_no_number_is_refused():
    with pytest.raises(TypeError, match="must return a number, got NoneType"):
        effective_model_complexity(lambda sample, seed: None, DATA)
