import math

import pytest
import torch

from addis.analyze import (
    TWO_SPEEDS,
    OrthogonalDesign,
    epoch_risk,
    simulated_epoch_risk,
    turning_points,
)
from tests.analyze import oracles

TIMES = torch.arange(20_001)


def test_the_preset_starts_dips_peaks_dips_and_ends_at_the_known_values():
    risk = TWO_SPEEDS.risk(TIMES)
    expected = {0: 1.3333, 7: 1.1531, 34: 1.2499, 1391: 0.5833, 20_000: 0.6667}
    for time, value in expected.items():
        assert float(risk[time]) == pytest.approx(value, abs=5e-5)
    # The slow features are best where 0.999^t = 1/4, which is step 1386; 1391 is as good to 1e-6.
    assert turning_points(risk) == ([7, round(math.log(4) / -math.log(0.999))], [34])


def test_equal_speeds_leave_one_lower_minimum():
    risk = TWO_SPEEDS.risk(TIMES, equalised=True)
    assert turning_points(risk) == ([10], [])
    assert float(risk[10]) == pytest.approx(0.4449, abs=5e-5)


@pytest.mark.parametrize("steps", [0, 1, 7, 200])
def test_closed_form_equals_the_moments_carried_step_by_step(steps):
    scales, theta = (1.0, 0.5, 0.1), (0.3, -2.0, 1.5)
    ours = epoch_risk(
        torch.tensor(scales), torch.tensor(theta), 0.8, 12, 0.7, torch.tensor([steps])
    )
    expected = oracles.epoch_risk(
        [float(s) for s in torch.tensor(scales)], [float(w) for w in torch.tensor(theta)],
        0.8, 12, 0.7, steps,
    )  # fmt: skip
    assert float(ours) == pytest.approx(expected, rel=1e-9)


def test_simulation_agrees_within_four_standard_errors():
    source = torch.Generator().manual_seed(0)
    runs = simulated_epoch_risk(TWO_SPEEDS, steps=60, draws=400, generator=source)
    closed = TWO_SPEEDS.risk(torch.arange(61))
    error = runs.std(0) / math.sqrt(400)
    assert float(runs[:, 0].std()) == pytest.approx(0, abs=1e-12)
    assert bool(((runs.mean(0) - closed).abs() <= 4 * error + 1e-12).all())


def test_each_feature_alone_has_one_minimum_at_the_known_value():
    s, w, sigma, n = 1.0, 0.4, 1.0, 10
    v, signal = sigma**2 / n, (s * w) ** 2
    risk = epoch_risk(torch.tensor([s]), torch.tensor([w]), sigma, n, 1e-3, torch.arange(20_000))
    assert float(risk.min()) == pytest.approx(signal * v / (signal + v), rel=1e-6)
    assert float(risk[-1]) == pytest.approx(v, rel=1e-6)


def test_a_feature_of_scale_zero_costs_nothing():
    one = OrthogonalDesign(scales=(1.0,), theta=(0.4,), sigma=1.0, n=10, lr=0.1)
    both = OrthogonalDesign(scales=(1.0, 0.0), theta=(0.4, 2.0), sigma=1.0, n=10, lr=0.1)
    for equalised in (False, True):
        risk = both.risk(torch.arange(50), equalised=equalised)
        assert torch.equal(risk, one.risk(torch.arange(50), equalised=equalised))
    source = torch.Generator().manual_seed(0)
    runs = simulated_epoch_risk(both, steps=9, draws=2000, generator=source)
    assert torch.allclose(runs.mean(0), both.risk(torch.arange(10)), rtol=0.1)


def test_an_oscillating_feature_is_exact_at_whole_steps_and_at_the_limit():
    s, w, v = 1.0, 0.4, 0.1
    times = torch.tensor([0.0, 1.0, 2.0, math.inf])
    risk = epoch_risk(torch.tensor([s]), torch.tensor([w]), 1.0, 10, 1.5, times)
    w = float(torch.tensor(w))
    expected = [w**2 * q**2 + v * (1 - q) ** 2 for q in (1.0, -0.5, 0.25, 0.0)]
    assert risk.tolist() == pytest.approx(expected, rel=1e-12)


def test_turning_points_count_a_flat_stretch_once():
    assert turning_points(torch.tensor([2.0, 1.0, 1.0, 1.0, 3.0, 3.0, 2.0])) == ([1], [4])
    assert turning_points(torch.tensor([1.0, 1.0, 2.0])) == ([], [])
    assert turning_points(torch.tensor([1.0])) == ([], [])
    with pytest.raises(ValueError, match=r"\(T,\)"):
        turning_points(torch.zeros(2, 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 1}, "n >= 2"),
        ({"sigma": -1.0}, "sigma >= 0"),
        ({"lr": 2.0}, "to converge"),
        ({"lr": 0.0}, "to converge"),
        ({"lr": math.nan}, "to converge"),
        ({"scales": torch.zeros(2), "lr": 0.0}, "to converge"),
        ({"t": torch.tensor([-1])}, ">= 0"),
        ({"t": torch.tensor([1.0, 1.5])}, "whole"),
        ({"t": torch.tensor([math.nan])}, "whole"),
        ({"t": torch.tensor(1)}, r"\(T,\)"),
        ({"theta": torch.ones(3)}, r"\(2,\) and \(3,\)"),
    ],
)
def test_values_outside_their_range_are_refused(change, message):
    arguments = {"scales": torch.ones(2), "theta": torch.ones(2), "sigma": 1.0, "n": 4, "lr": 0.1,
                 "t": torch.tensor([3])}  # fmt: skip
    with pytest.raises(ValueError, match=message):
        epoch_risk(**{**arguments, **change})


def test_a_simulation_needs_draws_and_steps():
    design = OrthogonalDesign((1.0,), (1.0,), 1.0, 3, 0.1)
    for kwargs in ({"steps": -1, "draws": 3}, {"steps": 3, "draws": 0}):
        with pytest.raises(ValueError, match="steps >= 0 and draws >= 1"):
            simulated_epoch_risk(design, generator=torch.Generator(), **kwargs)
