import math
from functools import partial

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from addis import data
from addis.analyze import (
    LabelNoise,
    double_descent_verdict,
    effective_model_complexity,
    least_squares_path,
    noisy_labels,
    random_features,
    rf_curve,
)
from addis.analyze._data import nested_sample, stream
from tests.analyze import oracles

source = torch.Generator().manual_seed(0)
X = torch.rand(90, 8, generator=source, dtype=torch.float64)
Y = ((X - 0.5) @ torch.randn(8, 4, generator=source, dtype=torch.float64)).argmax(1)
TRAIN, TEST, VALID = (X[:50], Y[:50]), (X[50:75], Y[50:75]), (X[75:], Y[75:])
P, N = (5, 15, 20, 21, 40, 130), (20, 45)


def one_hot(labels: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.one_hot(labels, 4).double() - 0.25


@pytest.fixture(scope="module")
def curve():
    return rf_curve(
        *TRAIN, *TEST, p=P, n=N, ridge=(0.0, 0.01), steps=(3, None), noise=(0.0, 0.3), seeds=2,
        validation=VALID,
    )  # fmt: skip


@pytest.mark.parametrize("p", P)
@pytest.mark.parametrize("n", N)
@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("penalty", [0.0, 0.01])
def test_every_metric_equals_a_fit_of_its_own(curve, p, n, noise, penalty):
    seed = 1
    labels = noisy_labels(TRAIN[1], noise, num_classes=4, seed=seed)
    sample = nested_sample(50, n, seed)
    layer = random_features(TRAIN[0], p, generator=stream(seed, "features 0"))
    phi, targets = layer(TRAIN[0][sample]), one_hot(labels[sample])
    top = float(torch.linalg.matrix_norm(phi, 2)) ** 2 / n + penalty
    for steps in (3, None):
        if steps is None:
            found = oracles.ridge(phi, targets, penalty)
        else:
            found = oracles.descent(phi, targets, penalty, steps, 1 / top)
        point = curve.at(p=p, n=n, noise=noise, ridge=penalty, steps=steps)
        ours = {name: float(point.runs(name)[0, seed]) for name in point.metrics}
        train, test = phi @ found, layer(TEST[0]) @ found
        valid = layer(VALID[0]) @ found
        close = partial(pytest.approx, rel=1e-6, abs=1e-12)
        assert ours["train_error"] == close(
            float((train.argmax(1) != labels[sample]).double().mean())
        )
        assert ours["test_error"] == close(float((test.argmax(1) != TEST[1]).double().mean()))
        assert ours["validation_error"] == close(
            float((valid.argmax(1) != VALID[1]).double().mean())
        )
        assert ours["train_loss"] == close(float((train - targets).square().sum(1).mean()))
        assert ours["test_loss"] == close(float((test - one_hot(TEST[1])).square().sum(1).mean()))
        assert ours["norm"] == close(float(found.norm()))
        if steps is None:
            for name, x in (("parameters_train", phi), ("parameters_test", layer(TEST[0]))):
                s = oracles.smoother(phi, x, penalty)
                assert ours[name] == close(float(s.square().sum(1).mean()) * n)


def test_training_loss_vanishes_from_p_equal_n_on(curve):
    line = curve.at(n=20, noise=0.3, ridge=0, steps=None)
    loss = line.median("train_loss")
    assert (loss[line.values >= 20] < 1e-20).all()
    assert (loss[line.values < 20] > 1e-3).all()


def test_a_point_does_not_depend_on_what_else_is_swept(curve):
    alone = rf_curve(*TRAIN, *TEST, p=(40,), n=(20,), noise=(0.3,), seeds=(1,))
    both = curve.at(p=40, n=20, noise=0.3, ridge=0, steps=None)
    for name in alone.metrics:
        assert alone.runs(name)[0, 0] == pytest.approx(both.runs(name)[0, 1], rel=1e-9, abs=1e-20)


def test_grid_is_read_along_width_unless_only_samples_vary(curve):
    assert curve.axis == "p"
    assert list(curve.grid) == ["p", "n", "noise", "ridge", "steps"]
    assert rf_curve(*TRAIN, *TEST, p=(10,), n=N, seeds=1).axis == "n"
    whole = rf_curve(*TRAIN, *TEST, p=(10,), seeds=1)
    assert whole.grid["n"].tolist() == [50]


def test_many_filters_in_chunks_equal_them_at_once(curve, monkeypatch):
    monkeypatch.setattr("addis.analyze._rf_curve._CHUNK", 1)
    again = rf_curve(
        *TRAIN, *TEST, p=P, n=N, ridge=(0.0, 0.01), steps=(3, None), noise=(0.0, 0.3), seeds=2,
        validation=VALID,
    )  # fmt: skip
    for name, metric in curve.metrics.items():
        np.testing.assert_allclose(again.metrics[name], metric, rtol=1e-9, atol=1e-20)


def test_features_in_blocks_equal_them_at_once(monkeypatch):
    whole = rf_curve(*TRAIN, *TEST, p=(60, 100, 130), n=(20,), seeds=1)
    monkeypatch.setattr("addis.analyze._rf_curve._BLOCK", 7)
    again = rf_curve(*TRAIN, *TEST, p=(60, 100, 130), n=(20,), seeds=1)
    np.testing.assert_allclose(again.metrics["test_loss"], whole.metrics["test_loss"], rtol=1e-9)


def test_an_ensemble_averages_predictions_of_models_on_one_sample():
    members, seed, p = 3, 0, 40
    found = rf_curve(
        *TRAIN, *TEST, p=(p,), n=(20,), noise=(0.3,), ridge=(0.05,), seeds=1, members=members
    )
    labels = noisy_labels(TRAIN[1], 0.3, num_classes=4, seed=seed)
    sample = nested_sample(50, 20, seed)
    mean = torch.zeros(25, 4, dtype=torch.float64)
    fitted = torch.zeros(20, 4, dtype=torch.float64)
    for member in range(members):
        layer = random_features(TRAIN[0], p, generator=stream(seed, f"features {member}"))
        fit = oracles.ridge(layer(TRAIN[0][sample]), one_hot(labels[sample]), 0.05)
        mean += layer(TEST[0]) @ fit / members
        fitted += layer(TRAIN[0][sample]) @ fit / members
    loss = float((mean - one_hot(TEST[1])).square().sum(1).mean())
    assert found.median("test_loss")[0] == pytest.approx(loss, rel=1e-8)
    loss = float((fitted - one_hot(labels[sample])).square().sum(1).mean())
    assert found.median("train_loss")[0] == pytest.approx(loss, rel=1e-8)
    assert math.isnan(found.median("parameters_test")[0])


def test_one_class_one_sample_and_one_feature_work():
    zeros = torch.zeros(50, dtype=torch.int64), torch.zeros(25, dtype=torch.int64)
    one = rf_curve(TRAIN[0], zeros[0], TEST[0], zeros[1], p=(1, 5), n=(1,), seeds=1)
    assert one.runs("test_error").tolist() == [[0.0], [0.0]]
    with pytest.raises(ValueError, match="at least 2 classes"):
        rf_curve(TRAIN[0], zeros[0], TEST[0], zeros[1], p=(5,), noise=(0.1,), seeds=1)
    smallest = rf_curve(*TRAIN, *TEST, p=(1,), n=(1,), seeds=1)
    assert np.isfinite(smallest.metrics["test_error"]).all()


def test_duplicated_rows_and_constant_inputs_are_fitted_at_their_rank():
    inputs = torch.cat([TRAIN[0][:10]] * 2)
    inputs[:, 3] = 0.5
    labels = torch.cat([TRAIN[1][:10]] * 2)
    found = rf_curve(inputs, labels, *TEST, p=(15, 20, 60), seeds=1)
    assert np.allclose(found.median("parameters_train"), 10, atol=1e-6)
    assert (found.median("train_loss") < 1e-12).all()  # both copies of a row have one label


def test_float32_and_images_give_the_same_curve_as_flat_float64():
    single, test = TRAIN[0].float(), TEST[0].float()
    flat = rf_curve(single.double(), TRAIN[1], test.double(), TEST[1], p=(5, 40), n=(20,), seeds=1)
    images = rf_curve(
        single.reshape(50, 2, 2, 2), TRAIN[1], test.reshape(25, 2, 2, 2), TEST[1], p=(5, 40),
        n=(20,), seeds=1,
    )  # fmt: skip
    for name, metric in flat.metrics.items():
        np.testing.assert_array_equal(images.metrics[name], metric)


def test_tensors_are_computed_with_where_they_are(device):
    here = rf_curve(*TRAIN, *TEST, p=P, n=(20,), seeds=1)
    there = rf_curve(*(t.to(device) for t in (*TRAIN, *TEST)), p=P, n=(20,), seeds=1)
    np.testing.assert_allclose(there.metrics["test_loss"], here.metrics["test_loss"], rtol=1e-5)


def test_a_test_or_validation_sample_in_the_training_set_is_refused():
    leak = torch.cat([TEST[0][:4], TRAIN[0][7:8]])
    with pytest.raises(ValueError, match=r"X_test shares 1 of its 5 samples .* first at index 4"):
        rf_curve(*TRAIN, leak, TEST[1][:5], p=(5,))
    with pytest.raises(ValueError, match="validation shares"):
        rf_curve(*TRAIN, *TEST, p=(5,), validation=(leak, TEST[1][:5]))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"p": (0, 5)}, "p must be >= 1, got 0"),
        ({"p": (5,), "n": (0,)}, r"n must be in 1 \.\.\. 50"),
        ({"p": (5,), "n": (60,)}, r"n must be in 1 \.\.\. 50, the samples of X, got \[60\]"),
        ({"p": (5,), "noise": (1.0,)}, r"noise must be in \[0, 1\)"),
        ({"p": (5,), "noise": (-0.1,)}, r"noise must be in \[0, 1\)"),
        ({"p": (5,), "ridge": (-1e-3,)}, "ridge must be >= 0"),
        ({"p": (5,), "members": 0}, "members must be >= 1"),
        ({"p": (5,), "seeds": 0}, "seeds must be at least one"),
        ({"p": (5,), "seeds": (0, 1, 0)}, "seeds must be .* all different"),
        ({"p": (5,), "steps": ()}, "steps must not be empty"),
        ({"p": ()}, "at least 1"),
        ({"p": (1.0, 1.4)}, r"p must be whole numbers, got \[1.0, 1.4\]"),
        ({"p": (0.5,)}, "p must be whole numbers"),
        ({"p": (5,), "n": (10.9,)}, r"n must be whole numbers, got \[10.9\]"),
    ],
)
def test_values_outside_their_range_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        rf_curve(*TRAIN, *TEST, **kwargs)


def test_whole_floats_and_numpy_numbers_are_sizes_and_seeds():
    plain = rf_curve(*TRAIN, *TEST, p=(5, 10), n=(20,), seeds=(0, 1))
    same = rf_curve(*TRAIN, *TEST, p=np.array([5.0, 10.0]), n=np.array([20]), seeds=np.arange(2))
    assert same.seeds == plain.seeds
    np.testing.assert_array_equal(same.metrics["test_loss"], plain.metrics["test_loss"])


def test_wrong_tensors_are_refused():
    with pytest.raises(TypeError, match="float"):
        rf_curve(TRAIN[0].long(), TRAIN[1], *TEST, p=(5,))
    with pytest.raises(TypeError, match="int64"):
        rf_curve(TRAIN[0], TRAIN[1].double(), *TEST, p=(5,))
    with pytest.raises(ValueError, match="finite"):
        rf_curve(TRAIN[0] / 0, TRAIN[1], *TEST, p=(5,))
    with pytest.raises(ValueError, match="N labels"):
        rf_curve(TRAIN[0][:9], TRAIN[1], *TEST, p=(5,))


def test_unsorted_and_repeated_widths_are_sorted_with_a_warning():
    with pytest.warns(UserWarning, match="p was sorted"):
        found = rf_curve(*TRAIN, *TEST, p=(9, 5, 9), seeds=1)
    assert found.values.tolist() == [5, 9]


def least_squares_loss(sample: TensorDataset, seed: int, *, p: int) -> float:
    inputs, labels = sample.tensors
    layer = random_features(X, p, kind="erf", generator=stream(seed, "layer"))
    phi, targets = layer(inputs), one_hot(labels)
    fit = least_squares_path(phi, targets).predict(phi)[0, 0]
    return float((fit - targets).square().sum(1).mean())


@pytest.mark.parametrize("p", [16, 20, 37])
def test_effective_complexity_of_least_squares_is_p_exactly(p):
    procedure = partial(least_squares_loss, p=p)
    found = effective_model_complexity(
        procedure, TensorDataset(X, Y), criterion="loss", eps=1e-12, n_min=2
    )
    assert found.n == p
    assert found.status == "bracketed"
    assert found.interval[0] == p


def test_digits_peak_where_width_equals_samples():
    train, test = data.load("digits"), data.load("digits", "test")
    noisy = LabelNoise(train, p=0.1, seed=0)
    found = rf_curve(
        *noisy.xy, test.floats(), test.targets, p=(10, 40, 80, 95, 100, 106, 150, 300, 1000),
        n=(100,), ridge=(0, 1e-3), seeds=3,
    )  # fmt: skip
    verdict = double_descent_verdict(found)
    assert verdict.outcome == "double descent"
    assert verdict.peak.value == 100
    assert verdict.thresholds["loss"].value == 100
    assert verdict.thresholds["error"].value < 100
    assert double_descent_verdict(found.at(ridge=1e-3)).peak is None or (
        double_descent_verdict(found.at(ridge=1e-3)).height.value < verdict.height.value / 5
    )
