import math

import numpy as np
import pandas as pd
import pytest

from addis.analyze import Curve, Failure


@pytest.fixture
def curve() -> Curve:
    values = np.arange(24.0).reshape(3, 2, 2, 2)
    grid = {"p": [1.0, 2.0, 4.0], "ridge": [0.0, 0.1], "steps": [5.0, math.inf]}
    return Curve(
        axis="p", grid={k: np.array(v) for k, v in grid.items()}, seeds=(3, 7),
        metrics={"test_error": values, "validation_error": -values},
        failures=(Failure("p", 2.0, 7, "ValueError: no"),),
    )  # fmt: skip


def test_at_takes_one_value_and_none_means_no_limit(curve):
    line = curve.at(ridge=0.1, steps=None)
    assert line.runs("test_error").tolist() == [[6, 7], [14, 15], [22, 23]]
    assert line.median("test_error").tolist() == [6.5, 14.5, 22.5]
    assert line.failures == curve.failures


def test_one_seed_beyond_all_bounds_does_not_move_the_median():
    runs = np.array([[0.1, 0.2, 1e9], [0.3, math.nan, 0.5]])
    grid = {"p": np.array([1.0, 2.0])}
    curve = Curve(axis="p", grid=grid, seeds=(0, 1, 2), metrics={"test_loss": runs})
    assert curve.median("test_loss").tolist() == [0.2, 0.4]


def test_lines_go_through_the_other_settings_in_order(curve):
    firsts = [float(line.runs("test_error")[0, 0]) for line in curve.lines()]
    assert firsts == [0, 2, 4, 6]


def test_along_reads_the_same_numbers_along_another_setting(curve):
    turned = curve.along("steps")
    assert turned.axis == "steps"
    assert turned.at(p=4, ridge=0.1).runs("test_error").tolist() == [[20, 21], [22, 23]]
    assert turned.along("p").metrics["test_error"].tolist() == (
        np.moveaxis(curve.metrics["test_error"], 2, 1).tolist()
    )


def test_best_takes_the_setting_with_the_lowest_score_at_each_point_and_seed(curve):
    score = curve.metrics["validation_error"].copy()
    score[0, 0, :, 0] = -100.0  # at p = 1 and the first seed the smaller ridge is better
    score[1, 1, :, 1] = math.nan  # at p = 2 and the second seed the larger one failed
    changed = Curve(
        axis="p", grid=curve.grid, seeds=curve.seeds,
        metrics={"test_error": curve.metrics["test_error"], "validation_error": score},
    )  # fmt: skip
    best = changed.best("ridge", by="validation_error").at(steps=5)
    assert list(best.grid) == ["p", "steps"]
    assert best.runs("test_error").tolist() == [[0, 5], [12, 9], [20, 21]]


def test_frame_and_back_is_the_same_curve(curve):
    again = Curve.from_frame(
        curve.frame(), axis="p", metrics=("test_error", "validation_error"), by=("ridge", "steps")
    )
    assert again.seeds == curve.seeds
    for name, metric in curve.metrics.items():
        np.testing.assert_array_equal(again.metrics[name], metric)
    for name, values in curve.grid.items():
        np.testing.assert_array_equal(again.grid[name], values)


def test_a_setting_none_of_a_frame_is_no_limit():
    frame = pd.DataFrame(
        {"k": [1, 2, 1, 2], "steps": [None, None, 5, 5], "seed": 0, "e": [0.1, 0.2, 0.3, 0.4]}
    )
    for axis, by in (("k", "steps"), ("steps", "k")):
        curve = Curve.from_frame(frame, axis=axis, metrics=["e"], by=[by])
        assert curve.grid["steps"].tolist() == [5, math.inf]
        assert curve.along("k").at(steps=None).runs("e").tolist() == [[0.1], [0.2]]


def test_rows_that_are_missing_are_nan_and_left_out_of_the_median():
    frame = pd.DataFrame({"k": [1, 1, 2], "seed": [0, 1, 1], "test_error": [0.1, 0.3, 0.5]})
    curve = Curve.from_frame(frame, axis="k", metrics=["test_error"])
    assert math.isnan(curve.runs("test_error")[1, 0])
    assert curve.median("test_error").tolist() == [0.2, 0.5]


def test_two_rows_of_one_run_are_refused():
    frame = pd.DataFrame({"k": [1, 1], "seed": [0, 0], "test_error": [0.1, 0.3]})
    with pytest.raises(ValueError, match="two rows"):
        Curve.from_frame(frame, axis="k", metrics=["test_error"])


def test_wrong_questions_are_refused(curve):
    with pytest.raises(ValueError, match=r"several lines.*ridge"):
        curve.runs("test_error")
    with pytest.raises(ValueError, match="metric must be one of"):
        curve.at(ridge=0, steps=5).runs("accuracy")
    with pytest.raises(ValueError, match=r"ridge = 3 was not swept; values: \[0.0, 0.1\]"):
        curve.at(ridge=3)
    with pytest.raises(ValueError, match="no setting 'width'"):
        curve.at(width=3)
    with pytest.raises(ValueError, match="no setting 'width'"):
        curve.along("width")
    with pytest.raises(ValueError, match="setting must be one of"):
        curve.best("p", by="test_error")
    with pytest.raises(ValueError, match="by must be one of"):
        curve.best("ridge", by="loss")


def test_metrics_of_another_shape_and_a_misplaced_axis_are_refused():
    grid = {"p": np.array([1.0, 2.0])}
    with pytest.raises(ValueError, match=r"must have shape \(2, 1\), got \(2,\)"):
        Curve(axis="p", grid=grid, seeds=(0,), metrics={"test_error": np.zeros(2)})
    with pytest.raises(ValueError, match="first of grid"):
        Curve(axis="n", grid=grid, seeds=(0,), metrics={})


def test_plot_draws_each_line_and_saves_the_figure(curve, tmp_path):
    figure = curve.plot(tmp_path / "curve.png", metrics=("test_error", "validation_error"))
    assert (tmp_path / "curve.png").stat().st_size > 1000
    drawn = figure.axes[0].get_lines()
    assert len(drawn) == 4 * 2
    np.testing.assert_array_equal(
        drawn[0].get_ydata(), curve.at(ridge=0, steps=5).median("test_error")
    )
    with pytest.raises(ValueError, match="metrics must be"):
        curve.plot(metrics=("train_error",))
