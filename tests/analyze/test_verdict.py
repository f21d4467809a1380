import math

import numpy as np
import pytest

from addis.analyze import (
    Curve,
    Failure,
    double_descent_verdict,
    interpolation_threshold,
    mitigation_panel,
)
from addis.analyze._intervals import bootstrap
from tests.analyze import oracles

PEAKED = [0.5, 0.3, 0.2, 0.35, 0.8, 0.4, 0.25, 0.15]
FALLING = [0.5, 0.4, 0.3, 0.25, 0.2, 0.18, 0.15, 0.1]
TRAINED = [0.4, 0.3, 0.15, 0.08, 0.0, 0.0, 0.0, 0.0]
LOSSES = [0.9, 0.5, 0.3, 0.1, 0.0, 0.0, 0.0, 0.0]


def line(medians, *, seeds=5, spread=0.01, axis="width", **metrics) -> Curve:
    offsets = spread * (np.arange(seeds) - (seeds - 1) / 2)
    runs = {"test_error": medians, **metrics}
    return Curve(
        axis=axis, grid={axis: np.arange(1.0, len(medians) + 1)}, seeds=tuple(range(seeds)),
        metrics={k: np.asarray(v)[:, None] + (offsets if k == "test_error" else 0 * offsets)
                 for k, v in runs.items()},
    )  # fmt: skip


def test_a_peak_is_found_with_its_minima_height_and_regimes():
    verdict = double_descent_verdict(line(PEAKED, train_error=TRAINED, train_loss=LOSSES))
    assert verdict.outcome == "double descent"
    assert (verdict.left.value, verdict.peak.value, verdict.right.value) == (3, 5, 8)
    assert verdict.height.value == pytest.approx(0.6)
    assert verdict.prominence.value == pytest.approx(0.6)
    assert verdict.end.error == pytest.approx(0.15)
    assert list(verdict.regimes.values()) == (
        ["under-parameterised"] * 4 + ["critical"] + ["over-parameterised"] * 3
    )
    assert verdict.thresholds["error"].value == 4
    assert verdict.thresholds["loss"].value == 5


def test_prominence_is_over_the_higher_of_both_minima():
    verdict = double_descent_verdict(line([0.5, 0.2, 0.8, 0.5, 0.3]))
    assert verdict.height.value == pytest.approx(0.6)
    assert verdict.prominence.value == pytest.approx(0.5)


@pytest.mark.parametrize("seed", range(20))
def test_the_peak_is_the_most_prominent_point_of_all(seed):
    medians = np.random.default_rng(seed).random(9)
    verdict = double_descent_verdict(line(medians, spread=0.0))
    place, prominence = oracles.most_prominent(list(medians))
    assert verdict.peak.value == place + 1
    assert verdict.prominence.value == pytest.approx(prominence)


def test_a_falling_curve_has_no_peak_and_its_regimes_come_from_the_training_error():
    verdict = double_descent_verdict(line(FALLING, train_error=TRAINED))
    assert verdict.outcome == "no peak found"
    assert verdict.peak is None
    assert verdict.height is None
    assert list(verdict.regimes.values()) == (
        ["under-parameterised"] * 3 + ["over-parameterised"] * 5
    )
    assert set(double_descent_verdict(line(FALLING)).regimes.values()) == {"unknown"}


def test_a_rise_at_the_end_is_no_peak():
    assert double_descent_verdict(line([0.5, 0.3, 0.2, 0.4, 0.8])).outcome == "no peak found"


def test_a_bump_below_the_least_height_is_no_peak():
    bump = [0.5, 0.3, 0.2, 0.21, 0.19, 0.18]
    assert double_descent_verdict(line(bump, spread=0)).outcome == "no peak found"
    assert (
        double_descent_verdict(line(bump, spread=0), min_height=0.005).outcome == "double descent"
    )


def test_a_peak_that_only_some_seeds_show_is_none():
    curve = line(PEAKED)
    runs = curve.metrics["test_error"].copy()
    runs[4] = [0.9, 0.9, 0.9, 0.1, 0.1]  # the median shows it, two of five seeds deny it
    doubtful = Curve(axis="width", grid=curve.grid, seeds=curve.seeds, metrics={"test_error": runs})
    verdict = double_descent_verdict(doubtful)
    assert verdict.peak.value == 5
    assert verdict.prominence.value > 0.5
    assert verdict.prominence.low < 0
    assert verdict.outcome == "no peak found"


def test_fewer_than_three_seeds_are_insufficient():
    verdict = double_descent_verdict(line(PEAKED, seeds=2))
    assert verdict.outcome == "insufficient seeds"
    assert verdict.peak.value == 5


def failing(curve: Curve, *places: tuple) -> Curve:
    """The curve without the runs at ``(value index, seed index)``."""
    runs = curve.metrics["test_error"].copy()
    for place in places:
        runs[place] = math.nan
    return Curve(axis=curve.axis, grid=curve.grid, seeds=curve.seeds, metrics={"test_error": runs})


@pytest.mark.parametrize("seeds", [4, 5])
def test_a_failed_run_at_the_peak_leaves_a_clear_double_descent(seeds):
    for seed in range(seeds):
        verdict = double_descent_verdict(failing(line(PEAKED, seeds=seeds), (4, seed)))
        assert verdict.outcome == "double descent"
        for found in (verdict.height, verdict.prominence):
            assert 0.5 < found.low <= found.value <= found.high < 0.7


def test_draws_without_a_right_minimum_do_not_raise_the_prominence():
    curve = line([0.5, 0.2, 0.8, 0.5, 0.3])  # 0.5 over the right minimum, 0.6 over the left one
    verdict = double_descent_verdict(failing(curve, (4, slice(0, 3))))  # lost in 8 % of the draws
    assert verdict.right.value == 5
    assert 0.4 < verdict.prominence.low <= verdict.prominence.high < 0.55


def test_three_seeds_must_show_all_of_both_minima_and_the_peak():
    left, peak, right = 2, 4, 7
    curve = line(PEAKED, seeds=4)
    apart = failing(curve, (left, 0), (right, 3))  # three runs at each place, by two seeds in all
    assert double_descent_verdict(apart).outcome == "insufficient seeds"
    assert double_descent_verdict(failing(curve, (left, 0), (peak, 0))).outcome == "double descent"
    three = line(PEAKED, seeds=3)
    assert double_descent_verdict(failing(three, (peak, 2))).outcome == "insufficient seeds"
    assert double_descent_verdict(failing(three, (peak + 1, 2))).outcome == "double descent"


def test_without_a_peak_five_values_must_have_three_results():
    everywhere = (slice(None), slice(1, 3))  # one of three seeds is left
    for medians in (PEAKED, FALLING):
        verdict = double_descent_verdict(failing(line(medians, seeds=3), everywhere))
        assert verdict.outcome == "insufficient seeds"
    curve = line(FALLING, seeds=3)
    assert double_descent_verdict(failing(curve, (0, 0), (3, 1), (7, 2))).outcome == "no peak found"
    doubtful = failing(curve, (0, 0), (3, 1), (7, 2), (1, 1))
    assert double_descent_verdict(doubtful).outcome == "insufficient seeds"


def test_samples_put_the_over_parameterised_side_first():
    train = [0.0, 0.0, 0.0, 0.0, 0.05, 0.2, 0.3, 0.4]
    curve = line(PEAKED, axis="samples", train_error=train)
    verdict = double_descent_verdict(curve)
    assert verdict.regimes[1.0] == "over-parameterised"
    assert verdict.regimes[8.0] == "under-parameterised"
    assert verdict.thresholds["error"].value == 5  # the largest sample that is fitted


def test_failed_points_are_left_out_and_listed():
    curve = line(PEAKED)
    runs = curve.metrics["test_error"].copy()
    runs[1], runs[6, 0] = math.nan, math.nan
    failure = Failure("width", 2.0, 0, "RuntimeError: out of memory")
    failed = Curve(
        axis="width", grid=curve.grid, seeds=curve.seeds, metrics={"test_error": runs},
        failures=(failure,),
    )  # fmt: skip
    verdict = double_descent_verdict(failed)
    assert verdict.outcome == "double descent"
    assert 2.0 not in verdict.regimes
    assert "width = 2, seed 0: RuntimeError: out of memory" in str(verdict)


def test_the_text_names_what_was_judged_and_the_numbers():
    text = str(double_descent_verdict(line(PEAKED, train_error=TRAINED)))
    for part in ("double descent: test_error along width", "0.8 at width = 5", "0.2 at width = 3"):
        assert part in text


def test_of_several_lines_the_least_regularised_is_judged():
    both = np.stack([np.asarray(PEAKED), np.asarray(FALLING)], axis=1)[..., None] + np.zeros(3)
    curve = Curve(
        axis="p", grid={"p": np.arange(1.0, 9), "ridge": np.array([0.0, 0.1])}, seeds=(0, 1, 2),
        metrics={"test_error": both},
    )  # fmt: skip
    assert double_descent_verdict(curve).outcome == "double descent"
    assert "ridge = 0" in str(double_descent_verdict(curve))
    assert double_descent_verdict(curve.at(ridge=0.1)).outcome == "no peak found"
    steps = Curve(
        axis="p", grid={"p": np.arange(1.0, 9), "steps": np.array([5.0, math.inf])},
        seeds=(0, 1, 2), metrics={"test_error": both},
    )  # fmt: skip
    assert double_descent_verdict(steps).outcome == "no peak found"


def test_wrong_questions_are_refused():
    with pytest.raises(ValueError, match="at least 5 values of width with a result, got 4"):
        double_descent_verdict(line(PEAKED[:4]))
    with pytest.raises(ValueError, match="min_height must be > 0"):
        double_descent_verdict(line(PEAKED), min_height=0)
    with pytest.raises(ValueError, match="metric must be one of"):
        double_descent_verdict(line(PEAKED), metric="accuracy")
    with pytest.raises(ValueError, match=r"eps must be in \(0, 1\)"):
        double_descent_verdict(line(PEAKED, train_error=TRAINED), eps=1.0)


@pytest.mark.parametrize("eps", [0.0, 1.0, -0.5])
def test_a_threshold_needs_eps_between_zero_and_one(eps):
    with pytest.raises(ValueError, match=r"eps must be in \(0, 1\)"):
        interpolation_threshold(line(PEAKED, train_error=TRAINED), eps)


def test_a_threshold_beyond_the_axis_is_infinite():
    curve = line(PEAKED, train_error=[0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2])
    assert interpolation_threshold(curve).value == math.inf
    falling = line(PEAKED, axis="samples", train_error=[0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
    assert interpolation_threshold(falling).value == -math.inf
    with pytest.raises(ValueError, match="criterion"):
        interpolation_threshold(curve, on="accuracy")


def test_the_threshold_interval_covers_the_seeds_that_cross_early_and_late():
    train = np.array([[0.4, 0.4, 0.05], [0.3, 0.05, 0.0], [0.05, 0.0, 0.0], [0.0] * 3])
    curve = Curve(
        axis="k", grid={"k": np.arange(4.0)}, seeds=(0, 1, 2), metrics={"train_error": train}
    )
    found = interpolation_threshold(curve)
    assert (found.low, found.value, found.high) == (0.0, 1.0, 2.0)


def test_bootstrap_draws_whole_seeds_together():
    # each seed is constant along the axis: differences between two points never vary
    runs = np.tile(np.random.default_rng(0).random(7), (2, 1))
    runs[0] += 0.3
    found = bootstrap(lambda m: float(m[0] - m[1]), runs)
    assert (found.low, found.value, found.high) == pytest.approx((0.3, 0.3, 0.3))


def test_bootstrap_leaves_out_draws_that_tell_nothing():
    runs = np.array([[0.1, 0.2, math.nan], [math.nan, 0.7, 0.9], [math.nan] * 3])
    found = bootstrap(lambda m: float(m[1] - m[0]), runs)
    # every draw with a run at both places: what single runs say is the widest of them
    assert (found.low, found.value, found.high) == pytest.approx((0.5, 0.65, 0.8))
    nowhere = bootstrap(lambda m: float(m[2] - m[0]), runs)
    assert np.isnan([nowhere.low, nowhere.value, nowhere.high]).all()


def test_bootstrap_interval_with_failed_runs_covers_as_often_as_without():
    rng, covered = np.random.default_rng(0), 0
    for seed in range(200):
        runs = rng.normal(size=(2, 25)) + rng.normal(size=25)  # seeds differ as much as places
        runs[rng.random(runs.shape) < 0.3] = math.nan
        found = bootstrap(lambda m: float(m[1] - m[0]), runs, draws=300, seed=seed)
        covered += found.low <= 0.0 <= found.high
    assert 0.88 < covered / 200 < 0.99


def test_bootstrap_interval_of_a_median_covers_the_truth_nineteen_times_in_twenty():
    rng, covered = np.random.default_rng(0), 0
    for seed in range(200):
        found = bootstrap(lambda m: float(m[0]), rng.normal(size=(1, 25)), draws=300, seed=seed)
        covered += found.low <= 0.0 <= found.high
    assert 0.88 < covered / 200 < 0.99


def test_the_panel_says_which_remedy_removes_the_peak():
    base = line(PEAKED, spread=0.001)
    half = [0.5, 0.3, 0.2, 0.25, 0.4, 0.3, 0.2, 0.1]
    cured = [0.55, 0.4, 0.22, 0.2, 0.19, 0.18, 0.15, 0.1]
    rows = mitigation_panel(base, {"ensemble": line(half, spread=0.001), "ridge": line(cured)})
    ensemble, ridge = rows
    assert (ensemble.name, ensemble.removed, ensemble.outcome) == (
        "ensemble",
        False,
        "double descent",
    )
    assert ensemble.at_peak == pytest.approx(0.4)
    assert ensemble.excess.value == pytest.approx(0.2)
    assert (ridge.removed, ridge.outcome) == (True, "no peak found")
    assert (ridge.worst.value, ridge.worst.error) == (3, pytest.approx(0.22))


def test_a_remedy_whose_runs_failed_leaves_open_what_they_would_have_told():
    base = line(PEAKED, spread=0.001)
    half = line([0.5, 0.3, 0.2, 0.25, 0.4, 0.3, 0.2, 0.1])
    cured = line([0.55, 0.4, 0.22, 0.2, 0.19, 0.18, 0.15, 0.1])
    every = slice(None)
    at_peak, before, one, most, all_lost = mitigation_panel(
        base,
        {
            "at the peak": failing(cured, (4, every)),
            "before the left minimum": failing(cured, (1, every)),
            "one run at the peak": failing(cured, (4, 0)),
            "most values": failing(half, (slice(5, 8), every), (0, every)),
            "all values": failing(cured, (every, every)),
        },
    )
    assert (at_peak.removed, at_peak.outcome) == (None, "no peak found")
    assert math.isnan(at_peak.at_peak)
    assert at_peak.worst.error == pytest.approx(0.22)
    assert (before.removed, one.removed) == (True, True)
    assert one.excess.low <= one.excess.value <= one.excess.high
    # what is known exceeds the tolerance, whatever the lost runs would have given
    assert (most.removed, most.outcome) == (False, "insufficient seeds")
    assert most.at_peak == pytest.approx(0.4)
    assert (all_lost.removed, all_lost.outcome) == (None, "insufficient seeds")
    assert math.isnan(all_lost.worst.error)
    assert math.isnan(all_lost.excess.value)


def test_the_panel_refuses_another_axis_and_a_base_without_a_peak():
    with pytest.raises(ValueError, match="must have a peak"):
        mitigation_panel(line(FALLING), {})
    with pytest.raises(ValueError, match="'ridge' must have the axis values and seeds"):
        mitigation_panel(line(PEAKED), {"ridge": line(PEAKED, seeds=3)})
