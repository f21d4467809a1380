"""The study's own parts on a scale of seconds: every trial function, claim, table and figure."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import torch

from addis.studies._p16_curves import Curves, deep_curve, largest_rise
from addis.studies._p16_trials import Deep, Source, deep, images
from addis.studies.p16_double_descent import STUDY, Config, DeepConfig
from addis.study import executor, mapper, run

MICRO = Config(
    widths=(10, 30, 45, 60, 100, 300), n=50, noises=(0.0, 0.2), ridges=(0.0, 1e-3, 1e-2),
    steps=(1, 100, 10_000), members=2, sample_width=40, samples=(20, 30, 40, 60, 100), seeds=3,
    peak_seeds=3, emc_widths=(20,), parts_widths=(20, 60), draws=2, monte_carlo=2,
    monte_carlo_draws=50, monte_carlo_steps=40,
    deep=DeepConfig(
        dataset="digits", side=8, pool=200, widths=(1, 2, 3, 4, 5), n=60, sample_width=2,
        samples=(30, 200), steps=8, records=3, batch_size=20,
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def results() -> pd.DataFrame:
    rows = [
        {**t.settings(), **t.function(t.args), "seconds": 0.0, "function": t.function.__name__,
         "error": None}
        for t in STUDY.trials(MICRO)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_every_claim_is_judged_or_says_why_not(results):
    claims = STUDY.claims(results)
    ids = [claim.id for claim in claims]
    assert ids == [
        "M1 noise 0", "M1 noise 0.2", "M2", "M2 loss", "M3", "U1", "S1", "S2", "C1", "E1", "E2",
        "D1", "D2", "D4 weight decay", "D4 ensemble",
    ]  # fmt: skip
    assert {claim.id: claim.holds for claim in claims}["E2"] is True
    assert {claim.id: claim.holds for claim in claims}["C1"] is True


def test_a_scale_without_deep_nets_says_so(results):
    claims = STUDY.claims(results[~results["function"].isin(["deep", "remedy"])])
    assert [claim.verdict for claim in claims[-4:]] == ["not judged"] * 4
    assert deep_curve(results[results["function"] != "deep"], "k") is None


def test_a_trial_that_failed_is_left_out_and_named(results):
    broken = results.copy()
    row = broken.index[(broken["function"] == "linear") & (broken["p"] == 30)][0]
    broken.loc[row, "error"] = "Traceback\nRuntimeError: lost"
    broken = broken.astype(object)
    for column in (c for c in broken if str(c).startswith(("ridge_", "steps_", "ensemble_"))):
        broken.loc[row, column] = math.nan
    curves = Curves(broken, "p")
    assert np.isnan(curves.plain(0.0).runs("test_error")).sum() == 1
    assert curves.plain(0.0).failures[0].reason == "RuntimeError: lost"
    assert len(STUDY.claims(broken)) == len(STUDY.claims(results))


def test_figures_and_tables_are_drawn(results):
    for figure in STUDY.figures(results):
        assert figure.figure.axes
        assert figure.alt
        assert figure.caption
    names = [table.name for table in STUDY.tables(results)]
    assert names == ["curves", "complexity", "remedies", "deep_remedies"]


def test_the_engine_resumes_a_run_and_gives_what_a_plain_loop_gives(results, tmp_path):
    small = dataclasses.replace(MICRO, deep=None, seeds=3, monte_carlo=1, draws=2)
    study = dataclasses.replace(STUDY, scales={"tiny": small})
    first = run(study, execute=executor("serial"), store=tmp_path / "store.sqlite")
    again = run(study, execute=executor("serial"), store=tmp_path / "store.sqlite")
    assert first.failures == []
    assert (first.computed, again.computed) == (len(first.frame), 0)
    plain, resumed = (Curves(frame, "p").ridge for frame in (results, again.frame))
    for name, metric in plain.metrics.items():
        np.testing.assert_array_equal(resumed.metrics[name], metric)


def test_a_sweep_runs_and_resumes_through_the_engine(tmp_path):
    from addis.analyze import sweep
    from tests.analyze.test_sweep import DATA, WIDTHS, peaked

    through = mapper("peaked", execute=executor("serial"), store=tmp_path / "store.sqlite")
    curves = [
        sweep(peaked, DATA, axis="width", values=WIDTHS, **options)
        for options in ({}, {"map": through}, {"map": through})
    ]
    for curve in curves[1:]:
        np.testing.assert_array_equal(curve.runs("test_error"), curves[0].runs("test_error"))


def micro(**changes) -> Deep:
    settings = {
        "source": Source("digits", 8, 200), "model": "cnn5", "k": 2, "samples": 60, "noise": 0.2,
        "optimizer": "sgd", "lr": 0.1, "batch_size": 20, "checkpoints": (1, 7), "augment": False,
        "seeds": (0, 1), "axis": "k", "device": "cpu",
    }  # fmt: skip
    return Deep(**{**settings, **changes})


def test_stacked_copies_score_as_copies_alone():
    together = deep(micro())
    for index, seed in enumerate((0, 1)):
        alone = deep(micro(seeds=(seed,)))
        for name, errors in together.items():
            assert errors.shape == (2, 2)
            np.testing.assert_allclose(errors[index], alone[name][0], atol=0.02)


@pytest.mark.parametrize(
    "changes",
    [
        {"samples": 200},
        {"optimizer": "adam", "lr": 1e-3},
        {"model": "preact_resnet18", "augment": True, "samples": 200},
    ],
)
def test_deep_trials_run_with_the_whole_pool_adam_and_augmentation(changes):
    found = deep(micro(**changes))
    assert set(found) == {
        "deep_test_error", "deep_validation_error", "deep_train_error", "deep_train_loss",
    }  # fmt: skip
    assert all(np.isfinite(errors).all() for errors in found.values())


def test_the_three_sets_of_images_are_apart():
    from addis.analyze import check_disjoint

    source = images(Source("digits", 8, 1078))
    check_disjoint(source.pool[0], source.test[0])
    check_disjoint(source.pool[0], source.validation[0])
    check_disjoint(source.validation[0], source.test[0])
    assert len(source.pool[0]) == 1078


@pytest.mark.data
def test_fashion_images_are_apart_too(addis_data):
    from addis.analyze import check_disjoint

    source = images(Source("fashion_mnist", 16, 4000))
    check_disjoint(source.pool[0], torch.cat([source.test[0], source.validation[0]]))


def test_the_largest_rise_is_over_all_pairs():
    assert largest_rise(np.array([0.5, 0.3, 0.35, 0.2, 0.28])) == pytest.approx(0.08)
    assert largest_rise(np.array([0.5, 0.3, 0.1])) == 0.0


@pytest.mark.parametrize("scale", ["tiny", "small", "paper"])
def test_scales_give_different_trials_that_a_store_can_key(scale):
    trials = list(STUDY.trials(STUDY.scales[scale]))
    assert len({trial.key(1) for trial in trials}) == len(trials)
