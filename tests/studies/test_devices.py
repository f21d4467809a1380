"""Trials that take a device compute on another one what they compute on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from addis.studies._p02_trials import Digits, digits_table
from addis.studies._p16_remedy import Remedy, remedy
from addis.studies._p16_trials import Deep, deep
from addis.studies._p16_trials import Source as Pool
from addis.studies._p24_costs import Cost, cost
from addis.studies._p24_trials import Source, Train, train

DIGITS = Digits(seed=0, images=2, epochs=6, steps=2, road_steps=2, cascaded=1)
DEEP = {
    "source": Pool("digits", 8, 60), "model": "cnn5", "k": 1, "samples": 60, "noise": 0.2,
    "optimizer": "sgd", "lr": 0.1, "batch_size": 20, "checkpoints": (1, 4), "augment": True,
    "seeds": (0, 1), "axis": "k", "device": "cpu",
}  # fmt: skip
TRAIN = Train(
    source=Source("digits", 1, 64, 20, augment=True), net="conv4", width=4, way="predsim",
    blocks=0, epochs=1, lr=5e-3, dropout=0.0, dim_in_decoder=32, batch_size=32, seed=0, probe=True,
    device="cpu",
)  # fmt: skip
COST = Cost(
    net="conv4", width=4, channels=1, side=8, batch=8, dim_in_decoder=32, repeats=1, device="cpu"
)
TRIALS: dict[str, tuple[Callable[[Any], Mapping[str, Any]], Any]] = {
    "02 digits": (digits_table, DIGITS),
    "16 deep": (deep, Deep(**DEEP)),
    "16 remedy": (remedy, Remedy(**DEEP, weight_decay=0.01)),
    "24 cost": (cost, COST),
    **{
        f"24 {way}": (train, replace(TRAIN, way=way))
        for way in ("global", "tuned global", "deep supervision", "predsim", "predsim-bpf")
    },
}
TIMED = ("ms", "seconds", "time ", "smoothgrad")
"""What depends on the clock, or on the device's own random numbers."""


@pytest.mark.parametrize("name", TRIALS)
def test_a_trial_on_another_device_is_that_on_the_cpu(device: str, name: str) -> None:
    function, args = TRIALS[name]
    if name == "24 cost" and device != "cuda":
        pytest.skip("what stands in for a device has no memory to measure")
    here, there = function(args), function(replace(args, device=device))
    assert here.keys() == there.keys()
    for key, value in here.items():
        if not any(word in key for word in TIMED):
            assert np.shape(there[key]) == np.shape(value)
            if device != "cuda" and not isinstance(value, str):
                np.testing.assert_allclose(there[key], value, rtol=1e-3, atol=1e-4, err_msg=key)
