"""Tests that run over every registered model."""

from __future__ import annotations

import pytest
import torch

from addis import models


def inputs(name: str, n: int = 2) -> torch.Tensor:
    return torch.rand(n, *models.info(name).input_size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", models.names())
def test_every_model_gives_logits_of_its_classes(name: str) -> None:
    logits = models.create(name)(inputs(name))
    assert logits.shape == (2, models.info(name).num_classes)
    assert logits.isfinite().all()
