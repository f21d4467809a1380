from __future__ import annotations

import numpy as np
import pytest
import torch

from addis.explain._inputs import as_targets, class_scores, rows_of, target_scores

LOGITS = torch.arange(12.0).view(4, 3)


@pytest.mark.parametrize("kind", [torch.tensor, list, tuple, np.array])
def test_classes_may_be_a_tensor_a_list_or_an_array(kind):
    target = kind([0, 2, 1, 0])
    assert as_targets(target, LOGITS).tolist() == [0, 2, 1, 0]
    assert rows_of(target, torch.tensor([1, 3]), 4).tolist() == [2, 0]
    assert target_scores(LOGITS, target).tolist() == [0, 5, 7, 9]
    with pytest.raises(ValueError, match=r"shape \(5,\), got \(4,\)"):
        rows_of(target, torch.tensor([1, 3]), 5)


@pytest.mark.parametrize("target", [1, np.int64(1), torch.tensor(1)])
def test_one_class_may_stand_for_all(target):
    rows = torch.tensor([1, 3])
    assert as_targets(rows_of(target, rows, 4), LOGITS[rows]).tolist() == [1, 1]
    assert rows_of(None, rows, 4) is None


@pytest.mark.parametrize("target", ["cat", [0, 1, None, 2], [[0], [1, 2]], {0, 1}, [0.5] * 4])
def test_what_is_no_class_is_a_type_error(target):
    with pytest.raises(TypeError, match="target must"):
        as_targets(rows_of(target, torch.arange(4), 4), LOGITS)


def test_an_output_needs_a_row_for_each_image():
    assert class_scores(LOGITS, 4) is LOGITS
    assert class_scores(LOGITS[:, 0], 4).shape == (4, 1)
    for output in (LOGITS[:1], LOGITS[0], LOGITS.repeat(2, 1)):
        with pytest.raises(ValueError, match=r"logits \(4, K\) for 4 images, got shape"):
            target_scores(output, 0, 4)
