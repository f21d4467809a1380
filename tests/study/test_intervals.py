from __future__ import annotations

import math

import numpy as np
import pytest

from addis.study import half_width, mean_interval


def test_the_interval_covers_the_mean_and_narrows_with_images() -> None:
    rng = np.random.default_rng(1)
    few, many = rng.normal(0.5, 1, 25), rng.normal(0.5, 1, 2500)
    low, high = mean_interval(few)
    assert low < few.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * few.std() / 5, rel=0.1)
    narrow = mean_interval(many)
    assert narrow[1] - narrow[0] < (high - low) / 5
    assert mean_interval(few) == (low, high)


def test_a_higher_level_gives_a_wider_interval() -> None:
    values = np.random.default_rng(2).normal(size=40)
    (low, high), (lower, higher) = mean_interval(values, level=0.5), mean_interval(values)
    assert lower < low < high < higher


def test_what_does_not_vary_has_no_width() -> None:
    assert mean_interval(np.full(3, 0.3)) == (0.3, 0.3)
    assert half_width(np.full(3, 0.3)) == pytest.approx(0, abs=1e-15)


def test_a_single_value_decides_nothing() -> None:
    assert mean_interval(np.array([0.3])) == (-math.inf, math.inf)
    assert half_width(np.array([0.3])) == math.inf


def test_the_half_width_is_that_of_student() -> None:
    from scipy import stats

    values = np.random.default_rng(3).normal(size=5)
    low, high = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert half_width(values) == pytest.approx((high - low) / 2)
