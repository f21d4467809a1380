"""Study 16: its claims judged on curves that are known, its trials run once in small."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from addis.analyze import TWO_SPEEDS
from addis.studies._p16_claims import claims, tables
from addis.studies._p16_curves import deep_curve, largest_rise
from addis.studies._p16_figures import figures
from addis.studies._p16_trials import Deep, Source, deep, images
from addis.studies.p16_double_descent import STUDY, DeepConfig

WIDTHS = (25, 50, 75, 100, 125, 200, 400)
SAMPLES = (20, 30, 40, 60, 120)
NOISES = (0.0, 0.1, 0.2)
RIDGES = (0.0, 1e-3)
SEEDS = (0, 1, 2)
STEPS = (1, 100, 10_000)
KS = (1.0, 2.0, 3.0, 4.0, 8.0, 16.0)
Errors = Callable[[float, float, float], float]
"""Test error at a noise, a ridge and a value of the axis."""


def descent(noise: float, ridge: float, p: float) -> float:
    """Double descent with its peak at 100; none with ridge."""
    smooth = 0.1 + noise / 10 + 1 / p
    bump = 0.5 + noise if p == 100 and ridge == 0 else 0.0
    return smooth + bump - (0.05 if p == 400 else 0.0)


def more_data(noise: float, ridge: float, n: float) -> float:
    """Falls but for a peak at n = p = 40; none with ridge."""
    return 3 / n + (0.5 if n == 40 and ridge == 0 else 0.0)


def linear_rows(axis: str, values: tuple[int, ...], noises: tuple[float, ...], errors: Errors):
    """What the linear trials of one axis give."""
    ridges = RIDGES[:1] if axis == "peak" else RIDGES
    shape = (len(noises), len(ridges))
    for value in values:
        grid = np.array([[errors(noise, ridge, value) for ridge in ridges] for noise in noises])
        folded = 100 - abs(100 - value) / 5 if axis != "n" else 1.0
        for seed in SEEDS:
            yield {
                "function": "linear", "error": None, "axis": axis, "seed": seed,
                "p": 40 if axis == "n" else value, "n": value if axis == "n" else 100,
                "noises": noises, "ridges": ridges, "steps": (), "members": 1,
                "ridge_test_error": grid + seed / 1e4, "ridge_test_loss": grid + seed / 1e4,
                "ridge_validation_error": grid, "ridge_train_error": np.zeros(shape),
                "ridge_train_loss": np.full(shape, 1.0 if value < 100 else 0.0),
                "ridge_parameters_test": np.full(shape, folded),
            }  # fmt: skip


def deep_rows(final: tuple[float, ...], stopped: tuple[float, ...], train: tuple[float, ...]):
    """What the deep trials of the width axis give: first the stopped errors, then the final."""
    for k, end, best, fit in zip(KS, final, stopped, train, strict=True):
        both = np.array([[best + seed / 1e4, end + seed / 1e4] for seed in SEEDS])
        yield {
            "function": "deep", "error": None, "axis": "k", "k": k, "samples": 400,
            "seeds": SEEDS, "checkpoints": (10, 100), "deep_test_error": both,
            "deep_validation_error": np.array([[0.1, 0.2]] * 3),
            "deep_train_error": np.array([[0.5, fit]] * 3),
            "deep_train_loss": np.array([[1.0, fit]] * 3),
        }  # fmt: skip


def results(
    width: Errors = descent,
    samples: Errors = more_data,
    emc: int = 40,
    risk: float = 1.0,
    deep: tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]] | None = None,
) -> pd.DataFrame:
    """The frame of a study whose outcome is known."""
    rows: list[dict[str, Any]] = []
    rows += linear_rows("p", WIDTHS, NOISES, width)
    rows += linear_rows("n", SAMPLES, (0.1,), samples)
    rows += linear_rows("peak", (100,), NOISES, width)
    for criterion, found in (("loss", emc), ("error", 25)):
        rows.append({
            "function": "complexity", "error": None, "width": 40, "criterion": criterion,
            "eps": 0.1, "emc": found, "emc_low": found, "emc_high": found, "status": "found",
            "sizes": 9,
        })  # fmt: skip
    closed = TWO_SPEEDS.risk(torch.arange(1501)).numpy() * risk
    rows.append({"function": "epochs", "error": None, "draws": 9, "risk": closed})
    rows += deep_rows(*deep) if deep else ()
    return pd.DataFrame(rows)


def verdicts(frame: pd.DataFrame) -> dict[str, str]:
    return {claim.id: claim.verdict for claim in claims(frame)}


FALLS = (0.30, 0.29, 0.28, 0.27, 0.26, 0.25)
FITS = (0.4, 0.2, 0.05, 0.0, 0.0, 0.0)
BUMP = (0.35, 0.30, 0.40, 0.38, 0.32, 0.28)


def test_curves_as_the_paper_has_them_reproduce_it() -> None:
    found = verdicts(results(deep=(BUMP, FALLS, FITS)))
    assert found.pop("U1") == "broken since"  # the effective parameters fold the curve back
    assert set(found.values()) == {"reproduced"}
    assert set(found) == {
        "M1 noise 0", "M1 noise 0.1", "M1 noise 0.2", "M2", "M2 loss", "M3", "S1", "S2", "C1",
        "E1", "E2", "D1", "D2",
    }  # fmt: skip


def changed(base: Errors, at: float, by: float, *, ridge: bool = False, noise: float = -1.0):
    """``base`` with the errors at one value moved, of the plain curve or of that with ridge too."""

    def errors(level: float, strength: float, value: float) -> float:
        here = value == at and (strength == 0 or ridge) and noise in (-1.0, level)
        return base(level, strength, value) + (by if here else 0.0)

    return errors


@pytest.mark.parametrize(
    ("failing", "change"),
    [
        # the peak is too low, at the wrong width, or there is no second descent
        ("M1 noise 0", {"width": changed(descent, 100, -0.45, noise=0.0)}),
        ("M1 noise 0.1", {"width": changed(descent, 125, 0.7, noise=0.1)}),
        ("M1 noise 0", {"width": changed(descent, 400, 0.07, noise=0.0)}),
        ("M1 noise 0.2", {"width": changed(descent, 400, 0.12, noise=0.2)}),
        ("M2", {"width": changed(descent, 100, -0.3, noise=0.2)}),
        ("M3", {"width": changed(descent, 125, 0.1, ridge=True, noise=0.1)}),
        ("S1", {"samples": changed(more_data, 40, -0.35)}),
        ("S2", {"samples": changed(more_data, 60, 0.05, ridge=True)}),
        ("C1", {"emc": 41}),
        ("E1", {"risk": 1.02}),
        ("D1", {"deep": (FALLS, FALLS, FITS)}),
        ("D1", {"deep": (BUMP, FALLS, (0.4, 0.3, 0.3, 0.3, 0.2, 0.05))}),  # far from the threshold
        ("D1", {"deep": ((0.35, 0.30, 0.40, 0.38, 0.37, 0.36), FALLS, FITS)}),  # no second descent
        ("D2", {"deep": (BUMP, (0.30, 0.25, 0.28, 0.27, 0.26, 0.25), FITS)}),
    ],
)
def test_other_curves_turn_each_verdict(failing: str, change: dict[str, Any]) -> None:
    assert verdicts(results(**change))[failing] == "not reproduced"


def sample_rows(errors: tuple[float, ...]):
    """What the deep trials of the sample axis give, beside a width of 2 with 400 samples."""
    plain = next(row for row in deep_rows(BUMP, FALLS, FITS) if row["k"] == 2)
    for samples, error in zip((25, 50, 100), errors, strict=True):
        yield plain | {"axis": "samples", "samples": samples,
                     "deep_test_error": np.array([[0.5, error]] * 3)}  # fmt: skip


@pytest.mark.parametrize(
    ("errors", "verdict"),
    [((0.30, 0.31, 0.30), "reproduced"), ((0.36, 0.31, 0.30), "not reproduced"),
     ((0.30, 0.31, 0.36), "not reproduced")],
)  # fmt: skip
def test_more_images_are_compared_at_four_times_as_many(
    errors: tuple[float, ...], verdict: str
) -> None:
    frame = pd.concat([results(deep=(BUMP, FALLS, FITS)), pd.DataFrame(list(sample_rows(errors)))])
    assert verdicts(frame)["D3"] == verdict  # also from 100 to the 400 of the width axis


def test_an_interval_over_the_threshold_is_told() -> None:
    frame = results()
    one = (frame["axis"] == "n") & (frame["n"] == 40) & (frame["seed"] == 2)
    frame.loc[one, "ridge_test_error"] = pd.Series([np.array([[0.2, 0.1]])], index=frame.index[one])
    notes = {claim.id: claim.note for claim in claims(frame)}
    assert "reaches over the threshold" in notes["S1"]
    assert "reaches over the threshold" not in notes["M3"]


def test_without_deep_nets_their_claims_are_not_judged() -> None:
    found = verdicts(results())
    assert found["D1"] == found["D2"] == "not judged"


def test_complexity_that_does_not_fold_back_is_not_called_broken() -> None:
    frame = results()
    linear = frame["function"] == "linear"
    frame.loc[linear, "ridge_parameters_test"] = pd.Series(
        [
            np.full((len(row.noises), len(row.ridges)), float(row.p))
            for row in frame[linear].itertuples()
        ],
        index=frame.index[linear],
    )
    assert verdicts(frame)["U1"] == "reproduced"


def test_a_failed_trial_is_left_out_and_the_others_judged() -> None:
    frame = results()
    lost = (frame["axis"] == "p") & (frame["p"] == 50) & (frame["seed"] == 1)
    frame.loc[lost, "error"] = "Traceback\nValueError: boom"
    for column in [name for name in frame if str(name).startswith("ridge_")]:
        frame.loc[lost, column] = None
    assert verdicts(frame)["M3"] == "reproduced"


def test_the_largest_rise_looks_at_all_later_points() -> None:
    assert largest_rise(np.array([3.0, 1.0, 2.0, 1.5, 2.5])) == 1.5
    assert largest_rise(np.array([3.0, 2.0, 1.0])) == 0.0


def test_scales_have_no_trial_twice_and_all_axes() -> None:
    for config in STUDY.scales.values():
        keys = [trial.key("1") for trial in STUDY.trials(config)]
        assert len(set(keys)) == len(keys)
    axes = {getattr(trial.args, "axis", "") for trial in STUDY.trials(STUDY.scales["small"])}
    assert {"p", "n", "peak", "k", "samples"} <= axes


def test_images_to_train_on_to_choose_by_and_to_report_on_are_apart() -> None:
    found = images(Source("digits", 8, 1078))
    rows = [
        {tuple(image.flatten().tolist()) for image in part[0]}
        for part in (found.pool, found.validation, found.test)
    ]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert len(rows[one] & rows[other]) <= 2  # the set itself holds a few images twice


def args(**changes: Any) -> Deep:
    plain = Deep(
        source=Source("digits", 8, 60), model="cnn5", k=1, samples=60, noise=0.2, optimizer="sgd",
        lr=0.1, batch_size=20, checkpoints=(1, 4), augment=False, seeds=(0, 1), axis="k",
        device="cpu",
    )  # fmt: skip
    return replace(plain, **changes)


@pytest.mark.parametrize("samples", [60, 30])
def test_a_copy_trains_the_same_beside_others_and_alone(samples: int) -> None:
    """Each seed has its own noise, sample and order, whoever it is stacked with."""
    both, alone = deep(args(samples=samples)), deep(args(samples=samples, seeds=(1,)))
    for name in ("deep_test_error", "deep_validation_error", "deep_train_error"):
        assert np.shape(both[name]) == (2, 2)
        np.testing.assert_allclose(np.asarray(both[name])[1:], alone[name], atol=0.02)
    assert not np.array_equal(*np.asarray(both["deep_train_loss"]))


def test_every_trial_of_a_small_study_runs_and_its_figures_are_drawn() -> None:
    """The whole chain on a study of seconds: trials, curves, claims, tables, figures."""
    config = replace(
        STUDY.scales["tiny"], widths=(10, 20, 30, 40, 50, 80), n=40, ridges=(0.0, 1e-2),
        steps=(1, 100), members=2, sample_width=20, samples=(10, 15, 20, 30, 60), seeds=3,
        peak_seeds=3, emc_widths=(20,), parts_widths=(10, 40), draws=2, monte_carlo=1,
        monte_carlo_draws=20,
        deep=DeepConfig(
            dataset="digits", side=8, pool=40, n=40, widths=(1, 2, 3, 4, 5), sample_width=2,
            samples=(10, 20), batch_size=20, steps=3, records=2,
        ),
    )  # fmt: skip
    rows = []
    for trial in STUDY.trials(config):
        found = trial.function(trial.args)
        rows.append(trial.settings() | found | {"function": trial.function.__name__, "error": None})
    frame = pd.DataFrame(rows)
    assert {claim.id for claim in claims(frame)} >= {"M1 noise 0", "S1", "C1", "E1", "D1", "D2"}
    assert [table.name for table in tables(frame)] == ["curves", "complexity", "remedies"]
    assert len(figures(frame)) >= 3
    along = deep_curve(frame, "samples")
    assert along is not None
    assert along.values.tolist() == [10, 20, 40]  # with the point of the width axis
