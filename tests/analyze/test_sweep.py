import functools
import itertools
import json
import math
import pickle
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from addis.analyze import Config, LabelNoise, double_descent_verdict, sweep

DATA = TensorDataset(torch.arange(40.0)[:, None], torch.arange(40) % 4)
WIDTHS = [1, 2, 4, 8, 16]


def peaked(data, config: Config) -> dict[str, float]:
    """Peaks where ten samples meet one unit of width, a little differently for each seed."""
    gap = abs(math.log2(config["width"] * 10 / len(data)))
    return {
        "test_error": 0.8 / (1 + gap) + 0.01 * config.seed,
        "train_error": float(config["width"] * 10 < len(data)),
    }


def test_a_curve_holds_each_value_and_seed():
    curve = sweep(peaked, DATA, axis="width", values=WIDTHS, seeds=3)
    for i, width in enumerate(WIDTHS):
        for seed in range(3):
            point = peaked(DATA, Config("width", width, seed))
            assert curve.runs("test_error")[i, seed] == point["test_error"]
    assert double_descent_verdict(curve).peak.value == 4


def test_points_are_plain_data_and_the_function_travels():
    config = Config("width", 2, 0, (("lr", 0.1), ("name", "sgd")))
    assert pickle.loads(pickle.dumps(config)) == config
    assert hash(config) == hash(pickle.loads(pickle.dumps(config)))
    with pytest.raises(KeyError, match=r"no setting 'depth'; there are \['width', 'lr', 'name'\]"):
        config["depth"]


def test_processes_give_the_curve_of_one_process():
    with ProcessPoolExecutor(2) as pool:
        apart = sweep(peaked, DATA, axis="width", values=WIDTHS, map=pool.map)
    here = sweep(peaked, DATA, axis="width", values=WIDTHS)
    for name, metric in here.metrics.items():
        np.testing.assert_array_equal(apart.metrics[name], metric)


def test_a_sweep_interrupted_and_resumed_gives_the_same_curve():
    store: dict[Config, dict[str, float]] = {}

    def resuming(function, points, *, fuel):
        for point in points:
            if point not in store:
                if fuel == 0:
                    raise KeyboardInterrupt
                fuel -= 1
                store[point] = function(point)
        return [store[point] for point in points]

    with pytest.raises(KeyboardInterrupt):
        sweep(peaked, DATA, axis="width", values=WIDTHS, map=functools.partial(resuming, fuel=7))
    assert len(store) == 7
    resumed = sweep(
        peaked, DATA, axis="width", values=WIDTHS, map=functools.partial(resuming, fuel=8)
    )
    np.testing.assert_array_equal(
        resumed.metrics["test_error"],
        sweep(peaked, DATA, axis="width", values=WIDTHS).metrics["test_error"],
    )


def test_a_map_can_tell_failed_runs_and_try_them_again():
    store: dict[Config, dict[str, float]] = {}
    outage = True

    def procedure(data, config):
        if outage and config.seed == 1:
            raise RuntimeError("out of memory")
        return peaked(data, config)

    def keeping(function, points):
        results = [store[point] if point in store else function(point) for point in points]
        store.update(
            (point, result)
            for point, result in zip(points, results, strict=True)
            if "failed" not in result
        )
        return results

    first = sweep(procedure, DATA, axis="width", values=WIDTHS, map=keeping)
    assert (len(first.failures), len(store)) == (5, 10)
    assert first.failures[0].reason == "RuntimeError: out of memory"
    outage = False
    second = sweep(procedure, DATA, axis="width", values=WIDTHS, map=keeping)
    assert second.failures == ()
    assert not np.isnan(second.metrics["test_error"]).any()


def test_samples_are_nested_within_a_seed_and_differ_between_seeds():
    seen: dict[tuple[int, int], list[float]] = {}

    def procedure(data, config):
        assert len(data) == config["samples"]
        seen[config.seed, config["samples"]] = data.tensors[0].squeeze(1).tolist()
        return {"test_error": 0.5}

    sizes = [3, 5, 10, 20, 40]
    sweep(procedure, DATA, axis="samples", values=sizes, seeds=2)
    for seed in range(2):
        for small, large in itertools.pairwise(sizes):
            assert seen[seed, large][:small] == seen[seed, small]
    assert seen[0, 10] != seen[1, 10]


def test_noise_is_drawn_by_seed_before_the_sample_is():
    labels: dict[float, dict[float, int]] = {}

    def procedure(data, config):
        assert isinstance(data, LabelNoise)
        assert len(data) == 20
        x, y = data.xy
        labels[config["noise"]] = dict(zip(x.squeeze(1).tolist(), y.tolist(), strict=True))
        return {"test_error": float(data.changed.double().mean())}

    noises = [0.0, 0.1, 0.2, 0.3, 0.5]
    curve = sweep(procedure, DATA, axis="noise", values=noises, fixed={"samples": 20}, seeds=[4])
    whole = LabelNoise(DATA, p=0.3, seed=4)
    for x, y in labels[0.3].items():
        assert int(whole.targets[int(x)]) == y
    assert (np.diff(curve.median("test_error")) >= 0).all()  # nested noise


def test_epochs_are_recorded_during_one_run_a_seed():
    runs = []

    def procedure(data, config):
        runs.append(config)
        return {"test_error": [1 / (1 + t) + config.seed for t in config.checkpoints]}

    curve = sweep(procedure, DATA, axis="epochs", values=[1, 2, 3, 5, 9], seeds=2)
    assert len(runs) == 2
    assert runs[0]["epochs"] == 9
    assert curve.runs("test_error")[:, 1].tolist() == pytest.approx(
        [1 / (1 + t) + 1 for t in (1, 2, 3, 5, 9)]
    )


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (lambda: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda: {"test_error": math.nan}, "test_error is nan"),
        (lambda: {"test_error": "high"}, "could not convert"),
        (lambda: {"test_error": [0.1, 0.2]}, "must have shape"),
        (lambda: None, "AttributeError"),
        (lambda: {"test_error": 0.1, "failed": 0.0}, "must not be named 'failed'"),
    ],
)
def test_a_run_that_fails_is_recorded_and_the_others_go_on(bad, reason):
    def procedure(data, config):
        return bad() if (config["width"], config.seed) == (4, 1) else peaked(data, config)

    curve = sweep(procedure, DATA, axis="width", values=WIDTHS)
    assert np.isnan(curve.runs("test_error")).sum() == 1
    assert math.isnan(curve.runs("test_error")[2, 1])
    (failure,) = curve.failures
    assert (failure.value, failure.seed) == (4.0, 1)
    assert reason in failure.reason
    verdict = double_descent_verdict(curve)
    assert verdict.peak.value == 4
    assert reason in str(verdict)


@pytest.mark.parametrize("left", [("train_error",), ()])
def test_a_run_that_leaves_out_a_metric_is_recorded(left):
    def procedure(data, config):
        whole = peaked(data, config)
        return {n: whole[n] for n in left} if (config["width"], config.seed) == (4, 1) else whole

    curve = sweep(procedure, DATA, axis="width", values=WIDTHS)
    absent = ["test_error"] if left else ["test_error", "train_error"]
    for name in curve.metrics:
        assert np.isnan(curve.runs(name)).sum() == (name in absent)
    (failure,) = curve.failures
    assert (failure.value, failure.seed) == (4.0, 1)
    assert failure.reason == f"it returned no {', '.join(absent)}"


def test_numpy_axes_seeds_and_settings_travel_as_plain_numbers():
    seen = []

    def stored(function, points):
        seen.extend(json.loads(json.dumps(parts(point))) for point in points)
        return map(function, points)

    def parts(config: Config) -> list:
        return [config.value, config.seed, config.fixed, config.checkpoints]

    curve = sweep(
        lambda data, config: {"test_error": len(data)}, DATA, axis="samples",
        values=np.array([3, 5, 10, 20, 40]), fixed={"noise": np.float32(0.5)}, seeds=np.arange(2),
        map=stored,
    )  # fmt: skip
    assert curve.median("test_error").tolist() == [3, 5, 10, 20, 40]
    assert seen[3] == [5, 1, [["noise", 0.5]], []]
    epochs = sweep(
        lambda data, config: {"test_error": config.checkpoints}, DATA, axis="epochs",
        values=torch.arange(1, 6), seeds=np.int64(2), map=stored,
    )  # fmt: skip
    assert epochs.seeds == (0, 1)
    assert seen[-1] == [5, 1, [], [1, 2, 3, 4, 5]]


def test_an_interruption_is_no_failure_of_a_run():
    def procedure(data, config):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(procedure, DATA, axis="width", values=WIDTHS)


def test_a_sweep_of_which_every_run_fails_says_why():
    with pytest.raises(RuntimeError, match=r"every run failed, first width = 1, seed 0: KeyError"):
        sweep(lambda data, config: {"x": config["depth"]}, DATA, axis="width", values=WIDTHS)


def test_a_map_that_loses_results_is_refused():
    with pytest.raises(RuntimeError, match="15 results, got 14"):
        sweep(
            peaked, DATA, axis="width", values=WIDTHS,
            map=lambda function, points: [function(p) for p in points[1:]],
        )  # fmt: skip


def test_unsorted_and_repeated_values_are_sorted_with_a_warning():
    with pytest.warns(UserWarning, match="width was sorted"):
        curve = sweep(peaked, DATA, axis="width", values=[16, 8, 4, 2, 1, 4])
    assert curve.values.tolist() == WIDTHS


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"axis": "width", "values": [1, 2, 3, 4]}, "at least 5 different values"),
        ({"axis": "width", "values": [1, 2, 4, 8, math.nan, 16]}, "width must be finite"),
        ({"axis": "width", "values": [1, 2, 4, 8, math.inf]}, "width must be finite"),
        ({"axis": "samples", "values": [1, 2, 3, 4, 4.5]}, "samples must be whole"),
        ({"axis": "width", "values": WIDTHS, "seeds": 0}, "seeds must be at least one"),
        ({"axis": "width", "values": WIDTHS, "seeds": (0, 0, 0)}, "seeds must be .* all different"),
        ({"axis": "width", "values": WIDTHS, "fixed": {"width": 3}}, "must not be among fixed"),
        ({"axis": "samples", "values": [1, 2, 3, 4, 41]}, r"1 \.\.\. 40, the data set, got 41"),
        ({"axis": "samples", "values": [0, 1, 2, 3, 4]}, "got 0"),
        ({"axis": "noise", "values": [0, 0.1, 0.2, 0.3, 1.0]}, r"noise must be in \[0, 1\)"),
        ({"axis": "width", "values": WIDTHS, "fixed": {"noise": -1}}, r"noise must be in \[0, 1\)"),
        ({"axis": "width", "values": WIDTHS, "fixed": {"samples": 50}}, "got 50"),
    ],
)
def test_values_outside_their_range_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        sweep(peaked, DATA, **kwargs)
