"""Study 16: its claims judged on curves that are known, its trials run once in small."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from addis import data
from addis.analyze import TWO_SPEEDS, noisy_labels
from addis.models import cnn5
from addis.studies._p16_bump import read_bump
from addis.studies._p16_claims import claims, tables
from addis.studies._p16_curves import deep_curve, largest_rise
from addis.studies._p16_figures import figures
from addis.studies._p16_remedy import Remedy, ensemble_errors, remedy
from addis.studies._p16_trials import Deep, Source, deep, images, trained
from addis.studies.p16_double_descent import STUDY, DeepConfig, Treatment
from addis.train import schedules, seeded

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


def remedy_rows(
    none: tuple[float, ...], decay: tuple[float, ...], vote: tuple[float, ...], **changes: Any
):
    """What the remedies' trials give at widths 2, 3 and 4: five nets without, three with decay."""
    for weight_decay, errors, count in ((0.0, none, 5), (5e-4, none, 3), (5e-3, decay, 3)):
        plain = dict(zip(KS, deep_rows((0.3, *errors, 0.2, 0.2), FALLS, FITS), strict=True))
        for k, together in zip((2.0, 3.0, 4.0), vote, strict=True):
            runs = {n: np.resize(r, (count, 2)) for n, r in plain[k].items() if n[:5] == "deep_"}
            yield plain[k] | runs | {
                "function": "remedy", "noise": 0.2, "weight_decay": weight_decay,
                "seeds": tuple(range(count)), "vote_error": np.full(count + 1, together),
                "mean_error": np.full(count + 1, together), **changes,
            }  # fmt: skip


def results(
    width: Errors = descent,
    samples: Errors = more_data,
    emc: int = 40,
    risk: float = 1.0,
    deep: tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]] | None = None,
    remedies: tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]] | None = None,
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
    rows += remedy_rows(*remedies) if remedies else ()
    return pd.DataFrame(rows)


def verdicts(frame: pd.DataFrame) -> dict[str, str]:
    return {claim.id: claim.verdict for claim in claims(frame)}


FALLS = (0.30, 0.29, 0.28, 0.27, 0.26, 0.25)
FITS = (0.4, 0.2, 0.05, 0.0, 0.0, 0.0)
BUMP = (0.35, 0.30, 0.40, 0.38, 0.32, 0.28)
ABOUT = BUMP[1:4]
LOW = (0.30, 0.34, 0.33)
FLAT = (0.25, 0.25, 0.24)


def test_curves_as_the_paper_has_them_reproduce_it() -> None:
    found = verdicts(results(deep=(BUMP, FALLS, FITS), remedies=(ABOUT, LOW, FLAT)))
    assert found.pop("U1") == "broken since"  # the effective parameters fold the curve back
    assert set(found.values()) == {"reproduced"}
    assert set(found) == {
        "M1 noise 0", "M1 noise 0.1", "M1 noise 0.2", "M2", "M2 loss", "M3", "S1", "S2", "C1",
        "E1", "E2", "D1", "D2", "D4 weight decay", "D4 ensemble",
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
        # more than half of the rise is left, or it is gone because all widths are bad
        ("D4 weight decay", {"remedies": (ABOUT, (0.30, 0.36, 0.33), FLAT)}),
        ("D4 weight decay", {"remedies": (ABOUT, (0.30, 0.33, 0.36), FLAT)}),
        ("D4 weight decay", {"remedies": (ABOUT, (0.41, 0.41, 0.41), FLAT)}),
        ("D4 ensemble", {"remedies": (ABOUT, LOW, (0.20, 0.26, 0.25))}),
        ("D4 ensemble", {"remedies": (ABOUT, LOW, (0.45, 0.40, 0.39))}),
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
    assert found["D4 weight decay"] == found["D4 ensemble"] == "not judged"


def test_without_a_peak_no_remedy_is_judged() -> None:
    judged = {c.id: c for c in claims(results(remedies=((0.30, 0.32, 0.31), LOW, FLAT)))}
    for name in ("D4 weight decay", "D4 ensemble"):
        assert judged[name].verdict == "not judged"
        assert "no peak to lower" in judged[name].note


def test_what_a_remedy_leaves_of_the_peak_is_told_with_its_interval() -> None:
    frame = results(remedies=(ABOUT, LOW, FLAT))
    judged = {c.id: c for c in claims(frame)}
    assert judged["D4 weight decay"].measured == pytest.approx(0.4)
    assert judged["D4 weight decay"].spread == pytest.approx((0.4, 0.4))  # no seed says otherwise
    assert "the interval reaches" not in judged["D4 weight decay"].note
    assert judged["D4 ensemble"].measured == 0
    plain = (frame["function"] == "remedy") & (frame["weight_decay"] == 0) & (frame["k"] == 3)
    votes = np.array([0.29, 0.29, 0.29, 0.29, 0.29, 0.33])  # .04 of .10, .08 without the last net
    frame.loc[plain, "vote_error"] = pd.Series([votes], index=frame.index[plain])
    claim = next(c for c in claims(frame) if c.id == "D4 ensemble")
    # the jackknife by hand: an error of 4/5 of 0.4, times Student's 2.776
    assert claim.measured == pytest.approx(0.4)
    assert claim.spread == pytest.approx((0.4 - 2.776 * 0.32, 0.4 + 2.776 * 0.32), abs=1e-3)
    assert "the interval reaches over the threshold" in claim.note


def test_a_peak_that_one_net_makes_leaves_the_ensembles_verdict_open() -> None:
    frame = results(remedies=((0.30, 0.40, 0.20), LOW, FLAT))
    plain = (frame["function"] == "remedy") & (frame["weight_decay"] == 0) & (frame["k"] == 3)
    errors = np.array([[0.3, 0.2], [0.3, 0.2], [0.3, 0.4], [0.3, 0.4], [0.3, 0.4]])
    frame.loc[plain, "deep_test_error"] = pd.Series([errors], index=frame.index[plain])
    claim = next(c for c in claims(frame) if c.id == "D4 ensemble")
    assert claim.spread == (-np.inf, np.inf)
    assert "the interval reaches over the threshold" in claim.note


def test_remedies_are_compared_at_the_widths_and_seeds_that_they_share() -> None:
    frame = results(remedies=((0.30, 0.40, 0.45), LOW, FLAT))
    lost = (frame["weight_decay"] == 5e-3) & (frame["k"] == 4)
    frame.loc[lost, "error"] = "Traceback\nValueError: boom"
    claim = next(c for c in claims(frame) if c.id == "D4 weight decay")
    assert claim.measured == pytest.approx(0.4)  # of a rise of .10, not .15
    assert "k = 2, 3" in claim.note


def test_clean_labels_are_a_curve_of_their_own_and_no_remedy_that_is_judged() -> None:
    frame = results(remedies=(ABOUT, LOW, FLAT))
    clean = pd.DataFrame(list(remedy_rows((0.2, 0.2, 0.2), LOW, FLAT, noise=0.0))[:2])
    bump = read_bump(pd.concat([frame, clean], ignore_index=True))
    assert bump is not None
    assert list(bump.trained) == [
        "none", "weight decay 0.0005", "weight decay 0.005", "clean labels",
    ]  # fmt: skip
    assert bump.clean is not None
    assert bump.clean.values.tolist() == [2, 3]
    assert bump.plain.values.tolist() == [2, 3, 4]


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


@pytest.mark.parametrize("scale", ["small", "paper"])
def test_remedies_differ_from_the_deep_nets_in_nothing_but_the_remedy(scale: str) -> None:
    trials = list(STUDY.trials(STUDY.scales[scale]))
    treated = [t.settings() for t in trials if isinstance(t.args, Remedy)]
    plain = {t.args.k: t.settings() for t in trials if t.function is deep and t.args.axis == "k"}
    for settings in treated:
        both = settings.items() ^ plain[settings["k"]].items()
        assert {name for name, _ in both} <= {"noise", "seeds", "weight_decay"}
    controls = [s for s in treated if s["noise"] > 0 and s["weight_decay"] == 0]
    assert {len(s["seeds"]) for s in controls} == {5}


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


def treated(**changes: Any) -> Remedy:
    plain = {field.name: getattr(args(), field.name) for field in fields(Deep)}
    return Remedy(**(plain | {"seeds": (0, 1, 2), "weight_decay": 0.0} | changes))


def test_without_weight_decay_the_nets_are_those_of_the_width_axis() -> None:
    found = remedy(treated())
    for name, errors in deep(args(seeds=(0, 1, 2))).items():
        np.testing.assert_array_equal(found[name], errors)


def test_a_remedy_gives_the_same_numbers_again_and_needs_two_nets() -> None:
    first, second = (remedy(treated(weight_decay=0.01)) for _ in range(2))
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name])
    with pytest.raises(ValueError, match="at least two"):
        remedy(treated(seeds=(0,)))


def test_weight_decay_is_that_of_torch_on_each_net_alone() -> None:
    strong = treated(weight_decay=0.5, checkpoints=(1, 9))  # nine steps of three epochs
    trainer, errors = trained(strong, 0.5)
    found = images(strong.source)
    x, y = found.pool
    for copy, seed in enumerate(strong.seeds):
        (net,) = seeded(lambda: cnn5(1, 10, 1), [seed])
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=0.5)
        rate = torch.optim.lr_scheduler.LambdaLR(optimizer, schedules.inverse_root(512))
        labels = noisy_labels(y, 0.2, num_classes=10, seed=seed)
        batches = data.Batches((x, labels), 20, drop_last=True, seed=seed)
        for _ in range(3):
            for rows, targets in batches:
                loss = torch.nn.functional.cross_entropy(net.train()(rows), targets)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                rate.step()
        with torch.no_grad():
            logits = net.eval()(found.test[0])
        torch.testing.assert_close(
            trainer.outputs(found.test[0])[copy], logits, atol=1e-4, rtol=1e-4
        )
        right = (logits.argmax(1) == found.test[1]).double().mean()
        assert errors["deep_test_error"][copy, -1] == pytest.approx(1 - float(right), abs=0.005)
    np.testing.assert_array_equal(
        remedy(strong)["deep_train_loss"], errors["deep_train_loss"]
    )  # the trial passes it on
    assert not np.allclose(
        remedy(replace(strong, weight_decay=0.0))["deep_train_loss"], errors["deep_train_loss"]
    )


def brute_force(
    probabilities: np.ndarray[Any, Any], y: np.ndarray[Any, Any]
) -> tuple[float, float]:
    """Errors by vote and by mean probability of ``(E, N, K)``, image by image."""
    wrong = [0, 0]
    for image, label in enumerate(y):
        classes = range(probabilities.shape[2])
        mean = [sum(net[image][k] for net in probabilities) for k in classes]
        votes = [sum(int(np.argmax(net[image])) == k for net in probabilities) for k in classes]
        wrong[0] += max(classes, key=lambda k: (votes[k], mean[k])) != label
        wrong[1] += max(classes, key=lambda k: mean[k]) != label
    return wrong[0] / len(y), wrong[1] / len(y)


def test_an_ensemble_votes_and_averages_as_image_by_image() -> None:
    source = torch.Generator().manual_seed(0)
    scale = torch.tensor([1.0, 1.0, 2.0, 8.0])[:, None, None]  # one net is sure of itself
    logits = torch.randn(4, 300, 5, generator=source) * scale
    y = torch.randint(5, (300,), generator=source)
    powers = np.exp(logits.double().numpy())
    expected = brute_force(powers / powers.sum(2, keepdims=True), y.numpy())
    assert ensemble_errors(logits, y) == pytest.approx(expected, abs=1e-12)
    assert expected[0] != expected[1]


def test_the_ensemble_of_a_trial_is_that_of_its_nets_each_alone() -> None:
    plain = treated(k=2, checkpoints=(1, 30))
    found = remedy(plain)
    x, y = images(plain.source).test
    nets = trained(plain)[0].models()
    with torch.no_grad():
        outputs = torch.stack([net.eval()(x).double().softmax(1) for net in nets]).numpy()
    for place, kept in enumerate(((0, 1, 2), (1, 2), (0, 2), (0, 1))):
        vote, mean = brute_force(outputs[list(kept)], y.numpy())
        assert np.asarray(found["vote_error"])[place] == pytest.approx(vote, abs=0.003)
        assert np.asarray(found["mean_error"])[place] == pytest.approx(mean, abs=0.003)


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
            treatments=(
                Treatment(widths=(1, 2), seeds=(0, 1, 2)), Treatment(widths=(1,), weight_decay=0.1),
                Treatment(widths=(1, 2), clean=True),
            ),
        ),
    )  # fmt: skip
    rows = []
    for trial in STUDY.trials(config):
        found = trial.function(trial.args)
        rows.append(trial.settings() | found | {"function": trial.function.__name__, "error": None})
    frame = pd.DataFrame(rows)
    assert {claim.id for claim in claims(frame)} >= {"M1 noise 0", "S1", "C1", "E1", "D1", "D2"}
    assert [table.name for table in tables(frame)] == [
        "curves", "complexity", "remedies", "deep_remedies",
    ]  # fmt: skip
    drawn = {figure.name: figure for figure in figures(frame)}
    assert len(drawn) >= 3
    for name in ("none", "weight decay 0.1", "clean labels", "stopped early", "vote of 3"):
        assert name in drawn["j_deep_remedies"].alt
    along = deep_curve(frame, "samples")
    assert along is not None
    assert along.values.tolist() == [10, 20, 40]  # with the point of the width axis
