"""The parts of study 02 that decide: scenes, paired comparisons and claims."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from addis.studies._p02_claims import claims, tables
from addis.studies._p02_results import Results, Tally
from addis.studies._p02_scenes import canvas
from addis.studies._p02_trials import methods_of
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
