"""Study 24: what it trains, what it may choose by, and how its verdicts follow the numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from addis.studies._p24_claims import claims, finished, tables
from addis.studies._p24_costs import Facts, Memory, facts, memory
from addis.studies._p24_figures import figures
from addis.studies._p24_trials import Source, Train, sets, train
from addis.studies.p24_local_errors import STUDY

SOURCE = Source("digits", 2, 128, 60)
ARGS = Train(
    source=SOURCE,
    net="conv4",
    width=6,
    way="predsim",
    blocks=0,
    epochs=2,
    lr=5e-3,
    dropout=0.0,
    dim_in_decoder=64,
    batch_size=64,
    seed=0,
    probe=True,
    device="cpu",
)


def test_images_to_train_on_to_choose_by_and_to_report_on_are_apart() -> None:
    images = sets(SOURCE, 0)
    rows = [{tuple(x.flatten().tolist()) for x in part[0]} for part in images]
    assert [len(part[0]) for part in images] == [128, 60, 359]
    assert not rows[0] & rows[1]
    assert not (rows[0] | rows[1]) & rows[2]
    assert not torch.equal(sets(SOURCE, 1).train[1], images.train[1])
    assert torch.equal(sets(SOURCE, 1).test[1], images.test[1])


@pytest.mark.parametrize(
    "way", ["global", "tuned global", "deep supervision", "pred", "predsim-bpf 0.99"]
)
def test_every_kind_of_way_trains_and_repeats_by_its_seed(way: Any) -> None:
    first, again = (train(replace(ARGS, way=way)) for _ in range(2))
    assert first["test_error"] == again["test_error"]
    assert np.array_equal(np.asarray(first["probes"]), np.asarray(again["probes"]))
    assert len(np.asarray(first["probes"])) == 4
    assert 0 <= float(first["test_error"]) <= 100  # type: ignore[arg-type]


def test_scales_have_all_ways_and_no_trial_twice() -> None:
    for scale in ("tiny", "small", "paper"):
        trials = list(STUDY.trials(STUDY.scales[scale]))
        keys = [trial.key(1) for trial in trials]
        assert len(set(keys)) == len(keys)
        ways = {t.settings()["way"] for t in trials if t.function is train}
        assert len(ways) == 10
        assert {t.settings()["seed"] for t in trials if t.function is train} == {0, 1, 2}


def test_counted_facts_are_those_computed_by_hand() -> None:
    found = facts(Facts())
    assert found["parameters"] == 8_903_434
    assert found["parameters predsim"] == 18_613_072
    assert float(found["forward GMAC an image"]) == pytest.approx(0.95, abs=0.005)
    assert float(found["flops predsim"]) == pytest.approx(2.46, abs=0.005)
    assert float(found["flops pred"]) == pytest.approx(0.67, abs=0.005)


def test_local_bytes_do_not_grow_with_depth() -> None:
    shallow, deep = (memory(Memory(depth=d, batch=1)) for d in (4, 8))
    assert shallow["predsim_mib"] == deep["predsim_mib"]
    assert float(deep["global_mib"]) > 1.7 * float(shallow["global_mib"])


def frame(errors: dict[str, list[float]], net: str = "conv4") -> pd.DataFrame:
    rows = [
        {
            "function": "train",
            "error": None,
            "source": SOURCE,
            "net": net,
            "way": way,
            "blocks": 0,
            "seed": seed,
            "lr": 1.0,
            "epochs": 2,
            "width": 4,
            "test_error": value,
            "validation_error": value,
            "step_seconds": 0.1,
            "probes": np.array([3.0, 2.0]),
        }
        for way, values in errors.items()
        for seed, value in enumerate(values)
    ]
    return pd.DataFrame(rows)


GOOD = {
    "global": [4.5, 4.6, 4.4],
    "tuned global": [4.0, 4.1, 3.9],
    "deep supervision": [4.6, 4.7, 4.8],
    "pred": [5.6, 5.7, 5.5],
    "sim": [5.1, 5.2, 5.0],
    "predsim": [4.6, 4.7, 4.5],
    "predsim-bpf": [6.0, 6.1, 5.9],
    "predsim-bpf 0.99": [7.0, 7.1, 6.9],
}


def verdicts(results: pd.DataFrame) -> dict[str, str]:
    return {claim.id: claim.verdict for claim in claims(results)}


def test_the_papers_own_numbers_reproduce_it() -> None:
    found = verdicts(frame(GOOD))
    for name in ("P1", "P2", "P4", "P7", "P7-beta", "P2-heads"):
        assert found[name] == "reproduced"
    assert found["P2-tuned"] == "not reproduced"
    assert found["P3"] == found["P5"] == found["P6"] == found["D1"] == "not judged"


@pytest.mark.parametrize(
    ("id", "change"),
    [
        ("P1", {"predsim": [5.3, 5.4, 5.2]}),
        ("P2", {"predsim": [5.1, 5.2, 5.0]}),
        ("P4", {"pred": [4.9, 5.0, 4.8]}),
        ("P7", {"predsim-bpf": [7.5, 7.6, 7.4]}),
        ("P7-beta", {"predsim-bpf 0.99": [5.0, 5.1, 4.9]}),
        ("P2-heads", {"deep supervision": [4.0, 4.0, 4.0]}),
    ],
)
def test_other_numbers_turn_each_verdict(id: str, change: dict[str, list[float]]) -> None:
    assert verdicts(frame(GOOD | change))[id] == "not reproduced"


def test_the_mlp_claim_has_two_sides() -> None:
    for shift, verdict in ((0.2, "reproduced"), (-0.3, "not reproduced"), (0.8, "not reproduced")):
        errors = {"global": [8.4, 8.5], "predsim": [8.4 + shift, 8.5 + shift]}
        assert verdicts(frame(errors, net="mlp"))["P3"] == verdict


@pytest.mark.parametrize(("kept", "verdict"), [(0.9, "reproduced"), (1.1, "not reproduced")])
def test_the_claim_of_bytes_follows_the_count(kept: float, verdict: str) -> None:
    names = ("kept pred", "kept checkpoint for predsim", "kept deep supervision")
    row = {"function": "cost", "error": None, "kept predsim": kept, **dict.fromkeys(names, 0.5)}
    assert verdicts(pd.concat([frame(GOOD), pd.DataFrame([row])]))["P5"] == verdict


@pytest.mark.parametrize(
    ("pred", "predsim", "verdict"),
    [(0.7, 2.4, "reproduced"), (1.1, 2.4, "not reproduced"), (0.7, 0.9, "not reproduced")],
)
def test_the_claim_of_cost_has_two_sides(pred: float, predsim: float, verdict: str) -> None:
    row = {"function": "facts", "error": None, "flops pred": pred, "flops predsim": predsim}
    assert verdicts(pd.concat([frame(GOOD), pd.DataFrame([row])]))["P6"] == verdict


@pytest.mark.parametrize(
    ("fine", "whole", "verdict"), [(9.0, 7.0, "reproduced"), (7.0, 9.0, "not reproduced")]
)
def test_the_claim_of_depth_compares_the_finest_cut_with_none(
    fine: float, whole: float, verdict: str
) -> None:
    panel = pd.concat(
        [
            frame({"pred": [50.0, 50.0]}, net="resnet20").assign(
                blocks=blocks, probes=[np.array([20.0, error]), np.array([20.0, error + 0.1])]
            )
            for blocks, error in ((1, fine), (4, 8.0), (100, whole))
        ]
    )
    assert verdicts(pd.concat([frame(GOOD), panel]))["D1"] == verdict


@pytest.mark.parametrize(("error", "verdict"), [(4.45, "reproduced"), (4.7, "not reproduced")])
@pytest.mark.parametrize(("axis", "name"), [("epochs", "P2-longer"), ("width", "P2-wider")])
def test_larger_runs_are_judged_by_themselves(
    error: float, verdict: str, axis: str, name: str
) -> None:
    small = {"global": [4.5, 4.5], "predsim": [4.6, 4.6], "pred": [5.6, 5.6]}
    large = {"global": [4.4, 4.4], "predsim": [error, error]}
    both = pd.concat([frame(small), frame(large).assign(**{axis: 6})])
    judged = verdicts(both)
    assert judged[name] == verdict
    assert {k: v for k, v in judged.items() if k != name} == verdicts(frame(small))
    note = next(claim.note for claim in claims(both) if claim.id == name)
    assert f"at 6 {axis} predsim {error:.2f} %, global 4.40 %; 2 seeds" in note


def test_a_wide_spread_is_told() -> None:
    noisy = frame(GOOD | {"predsim": [3.0, 6.5, 4.5]})
    claim = next(c for c in claims(noisy) if c.id == "P2")
    assert "reaches over the threshold" in claim.note
    assert claim.spread is not None
    dense = frame(GOOD | {"predsim": [4.0, 4.9, 4.3]}, net="mlp")  # over the whole band of P3
    claim = next(c for c in claims(dense) if c.id == "P3")
    assert claim.holds is False
    assert "reaches over the threshold" in claim.note


def test_the_tuned_control_is_chosen_by_validation_and_never_by_test_error() -> None:
    results = frame(GOOD)
    other = results[results["way"] == "tuned global"].assign(
        lr=2.0, test_error=1.0, validation_error=9.0
    )
    kept = finished(pd.concat([results, other]))
    assert set(kept[kept["way"] == "tuned global"]["lr"]) == {1.0}


def test_failed_trials_are_left_out() -> None:
    results = frame(GOOD)
    results.loc[results["way"] == "predsim", "error"] = "boom"
    assert verdicts(results)["P1"] == "not judged"
    assert len(tables(results)) == 1
    assert [figure.name for figure in figures(results)] == ["errors", "probes"]


def test_every_trial_of_a_small_study_runs_and_its_figures_are_drawn() -> None:
    """The whole chain on a study of seconds: trials, claims, tables, figures."""
    tiny = STUDY.scales["tiny"]
    short = replace(tiny.conv, width=4)
    config = replace(
        tiny, sources=(SOURCE,), conv=short, mlp=replace(tiny.mlp, width=16), epochs=1, seeds=1,
        batch_size=64, memory_batches=(1, 2), memory_depths=(2, 4),
        depth=tuple(
            replace(depth, net=replace(short, ways=("pred", "global")), train=128, epochs=1,
                    seeds=2)
            for depth in tiny.depth
        ),
    )  # fmt: skip
    rows = []
    for trial in STUDY.trials(config):
        if trial.function is facts:  # counted above, at full size
            continue
        found = trial.function(trial.args)
        rows.append(trial.settings() | found | {"function": trial.function.__name__, "error": None})
    frame = pd.DataFrame(rows)
    judged = {claim.id: claim.verdict for claim in claims(frame)}
    assert set(judged) >= {"P1", "P2", "P2-tuned", "P2-heads", "P3", "P4", "P5", "P7", "D1"}
    assert judged["D1"] != "not judged"
    assert {figure.name for figure in figures(frame)} >= {"errors", "probes", "memory"}
    assert tables(frame)
