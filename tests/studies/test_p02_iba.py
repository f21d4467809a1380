"""The parts of study 02 that decide: scenes, paired comparisons and claims."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from addis.explain import BottleneckStats, Patterns
from addis.studies import _p02_trials
from addis.studies._p02_claims import claims, tables
from addis.studies._p02_figures import figures
from addis.studies._p02_methods import explainers
from addis.studies._p02_results import Results, Tally
from addis.studies._p02_scenes import Scene, canvas, cifar, watermark
from addis.studies._p02_trials import (
    Cascade,
    Digits,
    Methods,
    Watermark,
    cascade,
    digits_table,
    methods_of,
    table,
    watermark_table,
)
from addis.studies.p02_iba import STUDY


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def frame(iba=0.8, blurred=0.6, cam=0.5, occlusion=0.7, spread=0.02):
    """Results of the digits with box ratios of these means."""
    rng = np.random.default_rng(0)
    row = {
        "scene": "digits",
        "error": None,
        "seconds": 1.0,
        "function": "digits_table",
        "area": 0.1,
    }
    means = {
        "random": 0.1, "saliency": 0.55, "iba 10": iba, "blurred saliency": blurred,
        "grad-cam": cam, "occlusion 4": occlusion,
    }  # fmt: skip
    for name, mean in means.items():
        row[f"{name}/ms"] = 1.0
        row[f"{name}/bbox"] = mean + spread * rng.standard_normal(40)
    return pd.DataFrame([row])


def verdicts(results):
    return {claim.id: claim.verdict for claim in claims(results)}


def test_marks_stand_in_their_boxes_and_the_brighter_pixel_wins():
    marks = torch.rand(50, 1, 8, 8, generator=generator(1))
    images, boxes = canvas(marks, generator(2))
    assert images.shape == (50, 1, 24, 24)
    assert ((boxes[:, 2:] - boxes[:, :2]) == 8).all()
    assert (boxes >= 0).all()
    assert (boxes <= 24).all()
    for image, mark, (x0, y0, x1, y1) in zip(images, marks, boxes.tolist(), strict=True):
        inside = image[0, y0:y1, x0:x1]
        assert (inside >= mark[0]).all()
        assert torch.equal(inside[mark[0] > 0.35], mark[0][mark[0] > 0.35])
        image[0, y0:y1, x0:x1] = 0
        assert image.max() < 0.35


def test_a_tally_counts_by_the_interval():
    tally = Tally().plus(0.1, 0.2).plus(-0.1, 0.2).plus(-0.2, -0.1).plus(0.0, 0.3)
    assert (tally.wins, tally.ties, tally.losses) == (1, 2, 1)


def test_differences_are_paired_by_image():
    results = Results(frame(spread=0.0))
    mean, (low, high) = results.paired("digits", "bbox", "iba 10", "saliency")
    assert mean == pytest.approx(0.25)
    assert low == pytest.approx(0.25)
    assert high == pytest.approx(0.25)


def test_verdicts_follow_the_numbers():
    clear = verdicts(frame())
    assert clear["A1"] == "reproduced"
    assert clear["A2"] == "reproduced"
    assert clear["K digits"] == "reproduced"
    assert verdicts(frame(blurred=0.85))["A1"] == "broken since"
    assert verdicts(frame(blurred=0.85))["K digits"] == "not reproduced"
    assert verdicts(frame(blurred=0.80))["A1"] == "broken since"  # a tie breaks it too
    assert verdicts(frame(occlusion=0.79))["A1"] == "not reproduced"
    assert verdicts(frame(cam=0.73))["A1"] == "not reproduced"


def test_the_verdict_line_says_who_wins():
    note = next(c.note for c in claims(frame(blurred=0.9)) if c.id == "A1")
    assert "the control wins" in note
    note = next(c.note for c in claims(frame(blurred=0.5)) if c.id == "A1")
    assert "IBA wins" in note


def test_failed_and_skipped_trials_are_left_out_and_their_reasons_given():
    none = pd.DataFrame(
        [
            {"scene": "torchvision/vgg16", "skipped": "no weights", "error": None},
            {"scene": "torchvision/vgg16", "skipped": None, "error": "Traceback"},
        ]
    )
    found = claims(none)
    assert [c.verdict for c in found] == ["not judged"]
    assert "no weights" in found[0].note
    assert tables(none) == []


def test_tables_hold_the_control_and_every_measure():
    (table,) = tables(frame())
    assert list(table.frame["method"])[:2] == ["random", "saliency"]
    assert "blurred saliency" in set(table.frame["method"])
    assert "bbox" in table.frame


def test_every_scale_yields_distinct_trials_with_the_control_among_them():
    for config in STUDY.scales.values():
        made = list(STUDY.trials(config))
        assert made
        assert len({trial.key(1) for trial in made}) == len(made)
    assert "blurred saliency" in methods_of("cifar10_resnet20")
    assert "blurred saliency" in methods_of("imagenet_squeezenet1_0")
    assert {f"iba {b}" for b in (1, 10, 100)} < set(methods_of("torchvision/vgg16"))
    assert "pattern attribution" in methods_of("torchvision/vgg16")


@pytest.mark.filterwarnings("ignore:the statistics rest on")
def test_patterns_are_estimated_once_for_a_models_weights(monkeypatch):
    taken = []

    def estimate(model, *args, **kwargs):
        taken.append(model)
        return Patterns.estimate(model, *args, **kwargs)

    monkeypatch.setattr("addis.explain.Patterns", SimpleNamespace(estimate=estimate))
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)).eval()
    x, target = torch.randn(30, 3, 2, 2, generator=generator()), torch.zeros(30, dtype=torch.int64)
    scene = Scene(model, x, target, x, layer="0", last="0", patches=(1, 2), pictures=x)
    method = explainers(scene, 0)["pattern attribution"]
    first = method(model, x, target)
    assert torch.equal(method(model, x, target), first)
    assert len(taken) == 1
    with torch.no_grad():
        model[1].weight.neg_()
    assert not torch.equal(method(model, x, target), first)
    assert len(taken) == 2
    twin = copy.deepcopy(model)
    assert torch.equal(method(twin, x, target), method(model, x, target))
    assert len(taken) == 2


@pytest.mark.filterwarnings("ignore:the statistics rest on")
def test_a_layers_statistics_are_estimated_once_for_a_models_weights_and_buffers(monkeypatch):
    taken = []

    def estimate(model, *args, **kwargs):
        taken.append(model)
        return BottleneckStats.estimate(model, *args, **kwargs)

    monkeypatch.setattr("addis.explain.BottleneckStats", SimpleNamespace(estimate=estimate))
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Flatten(),
        torch.nn.Linear(144, 3),
    ).eval()  # fmt: skip
    x, target = torch.randn(30, 3, 8, 8, generator=generator()), torch.zeros(30, dtype=torch.int64)
    scene = Scene(model, x, target, x, layer="2", last="2", patches=(4, 8), pictures=x)
    methods = explainers(scene, 0)
    made = [methods[f"iba {beta}"].on(model) for beta in (1, 10, 100)]
    assert len(taken) == 1
    assert [iba.beta for iba in made] == [1, 10, 100]
    assert len({id(iba.stats) for iba in made}) == 1
    assert methods["iba 10"].on(model) is methods["iba 10"].on(model)
    twin = copy.deepcopy(model)
    assert methods["iba 10"].on(twin).model is twin
    assert len(taken) == 1
    twin[1].running_mean.add_(1)
    methods["iba 10"].on(twin)
    assert taken[1:] == [twin]


NETS = ("cifar10_resnet20", "cifar10_resnet56", "imagenet_squeezenet1_0")
BASELINES = ("random", "saliency", "blurred saliency", "grad-cam", "grad-cam same layer")
IBAS = ("iba 1", "iba 10", "iba 100")


def nets_frame(changes=None):
    """Results of three nets and the planted mark in which IBA is best everywhere.

    Args:
        changes: Means to replace, by ``(scene, method, measure)`` or ``(method, measure)``.
    """
    changes = changes or {}
    rng = np.random.default_rng(1)

    def spread(scene, method, measure, mean, shape=(40,)):
        mean = changes.get((method, measure), mean)
        return changes.get((scene, method, measure), mean) + 0.02 * rng.standard_normal(shape)

    def row(scene, function, values):
        return {"scene": scene, "error": None, "function": function, "accuracy": 0.9, **values}

    rows = []
    for scene in NETS:
        patch = "occlusion 8" if scene.startswith("cifar") else "occlusion 28"
        for method in (*BASELINES, patch, *IBAS):
            good = method.startswith("iba")
            names = ("degradation 4", "degradation 8", "road 8", "sensitivity", "grid")
            values = {n: spread(scene, method, n, 0.6 if good else 0.3) for n in names}
            values |= {"sensitivity pooled": 0.1, "ms": 1.0}
            for tile in (4, 8):
                values |= {f"x {tile}": np.linspace(0, 1, 5)}
                values |= {f"morf {tile}": np.linspace(1, 0, 5) ** 3}
                values |= {f"lerf {tile}": np.linspace(1, 0, 5)}
            if good:
                bits = 1000 / int(method.split()[1])
                values["bits"] = changes.get((method, "bits"), bits) + rng.standard_normal(40)
            rows.append(row(scene, "table", {f"{method}/{n}": v for n, v in values.items()}))
        kept = {
            f"{m}/{n}": spread(scene, m, n, 0.9 if m == "iba 10" else 0.5)
            for m in (*BASELINES, patch, "iba 10")
            for n in ("kept", "tenth")
        }
        rows.append(row(scene, "masked", kept | {"full": 0.95, "kept fraction": 0.3}))
        for method in ("saliency", "iba 10"):
            values = {
                n: spread(scene, method, n, 0.4, (3, 40)) for n in ("spearman", "ssim", "pearson")
            }
            rows.append(row(scene, "cascade", {f"{method}/{n}": v for n, v in values.items()}))
    marked = {"area": 0.3}
    for method in (*BASELINES, *IBAS):
        inside = 0.95 if method.startswith("iba") else 0.7
        marked |= {
            f"{method}/{n}": spread("watermark", method, n, inside) for n in ("inside", "bbox")
        }
        marked[f"{method}/ms"] = 1.0
    rows.append(row("watermark", "watermark_table", marked))
    return pd.DataFrame(rows)


def test_clear_wins_reproduce_every_claim_of_the_nets():
    found = verdicts(nets_frame())
    assert {"B1", "T1", "B2", "K degradation", "C", "K watermark"} < set(found)
    assert {f"{id} {net}" for id in "DEGP" for net in NETS} < set(found)
    assert set(found.values()) == {"reproduced"}


@pytest.mark.parametrize(
    ("id", "changes"),
    [
        ("B1", {("grad-cam same layer", "degradation 4"): 0.61}),
        ("B1", {("saliency", "degradation 8"): 0.6}),  # a tie is not a win
        ("T1", {("grad-cam", "degradation 4"): 0.7}),
        ("K degradation", {("blurred saliency", f"degradation {t}"): 0.6 for t in (4, 8)}),
        ("B2", {("saliency", "road 8"): 0.6}),
        (
            "G cifar10_resnet20",
            {
                ("cifar10_resnet20", m, "grid"): 0.7
                for m in ("saliency", "grad-cam", "grad-cam same layer")
            },
        ),
        ("P cifar10_resnet56", {("blurred saliency", "kept"): 0.9}),
        ("P cifar10_resnet56", {("iba 10", "kept"): 0.5}),
        ("E cifar10_resnet20", {("iba 10", "spearman"): 0.75}),
        ("D imagenet_squeezenet1_0", {("iba 100", "bits"): 500.0}),
        ("C", {("iba 10", "inside"): 0.7}),
        ("K watermark", {("blurred saliency", "inside"): 0.95}),
    ],
)
def test_other_numbers_turn_each_verdict(id, changes):
    assert verdicts(nets_frame(changes))[id] == "not reproduced"


def test_the_paper_s_win_is_broken_where_the_control_ties():
    ties = {("blurred saliency", f"degradation {tile}"): 0.6 for tile in (4, 8)}
    assert verdicts(nets_frame(ties))["B1"] == "broken since"


def test_baselines_that_the_paper_lacks_do_not_decide_its_table():
    results = nets_frame()
    better = results[results["function"] == "table"].iloc[[0]].filter(regex="^(scene|error|func)")
    better = better.assign(**{
        f"rise/{n}": [np.full(40, 0.9)] for n in ("degradation 4", "degradation 8")
    })  # fmt: skip
    assert verdicts(pd.concat([results, better]))["T1"] == "reproduced"


def test_it_is_said_whether_the_best_baseline_wins_by_the_fill():
    changes = {("occlusion 8", "degradation 4"): 0.7, ("occlusion 8", "degradation 8"): 0.7}
    note = next(c.note for c in claims(nets_frame(changes)) if c.id == "T1")
    assert "occlusion 8 -0.1" in note
    assert "with the noisy linear fill: " in note
    assert "cifar10_resnet20 8 px +0.3" in note.split("fill: ")[1]


def test_every_figure_of_the_nets_is_drawn_and_tells_its_numbers():
    drawn = {figure.name: figure for figure in figures(nets_frame())}
    assert set(drawn) == {"degradation", "bits", "pointing", "sanity"}
    assert len(drawn["degradation"].figure.axes) == 6
    assert "iba 10 0.60" in drawn["degradation"].alt
    assert "saliency 0.40" in drawn["sanity"].alt


def test_the_digits_are_examined_from_training_to_figures():
    """The whole chain of the tiny scale, on few images."""
    args = Digits(seed=0, images=4, cascaded=2)
    row = {"error": None, "function": "digits_table", **digits_table(args)}
    results = pd.DataFrame([row])
    assert row["accuracy"] > 0.5
    assert {"A1", "A2", "K digits", "E digits"} <= {claim.id for claim in claims(results)}
    assert {figure.name for figure in figures(results)} == {
        "degradation", "bits", "pointing", "sanity", "maps-digits"
    }  # fmt: skip


@pytest.mark.data
@pytest.mark.filterwarnings("ignore:the statistics rest on")
def test_a_pretrained_net_and_the_planted_mark_are_examined_from_the_data_to_figures(
    addis_data, monkeypatch
):
    monkeypatch.setattr(_p02_trials, "cifar", partial(cifar, calibration=200))
    monkeypatch.setattr(_p02_trials, "watermark", partial(watermark, train_images=3000))
    few = Methods(
        scene="cifar10_resnet20", method="", images=8, tiles=(8,), steps=4, road=(8,),
        road_steps=2, subsets=5, mosaics=2,
    )  # fmt: skip
    rows = [
        {"scene": few.scene, "error": None, "function": "table", **table(replace(few, method=m))}
        for m in ("random", "saliency", "blurred saliency", "grad-cam same layer", "occlusion 8",
                  "iba 1", "iba 10", "iba 100")
    ]  # fmt: skip
    rows.append({
        "scene": few.scene, "error": None, "function": "cascade",
        **cascade(Cascade(scene=few.scene, method="saliency", images=2)),
    })  # fmt: skip
    marked = watermark_table(Watermark(seed=0, images=4))
    rows.append({"error": None, "function": "watermark_table", **marked})
    results = pd.DataFrame(rows)
    found = {claim.id: claim for claim in claims(results)}
    assert {"B1", "T1", "G cifar10_resnet20", "C"} <= set(found)
    assert float(results["accuracy"].iloc[0]) > 0.85
    assert {"degradation", "pointing", "maps-watermark"} <= {f.name for f in figures(results)}
