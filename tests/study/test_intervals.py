from __future__ import annotations

import numpy as np
import pytest

from addis.study import mean_interval


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


@pytest.mark.parametrize("values", [[0.3], [0.3, 0.3, 0.3]])
def test_what_does_not_vary_has_no_width(values: list[float]) -> None:
    assert mean_interval(np.array(values)) == (0.3, 0.3)
