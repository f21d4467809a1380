"""Two processes train as one does on the joint batch, block by block."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.local.nets import batch
from tests.train.local.processes import local_model

Found = list[dict[str, Any]]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What each of the two processes ended with."""
    out = tmp_path_factory.mktemp("local_ranks")
    command = [sys.executable, "-m", "tests.train.local.processes", str(out)]
    subprocess.run(command, check=True, timeout=200, cwd=Path(__file__).parents[3])
    return [torch.load(out / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("loss", ["pred", "sim"])
def test_both_processes_end_with_the_same_weights(loss: str, ranks: Found) -> None:
    assert all(torch.equal(value, ranks[1][loss][key]) for key, value in ranks[0][loss].items())


def test_channels_last_weights_take_the_steps_of_contiguous_ones(ranks: Found) -> None:
    found = ranks[0]["fused, channels last"]
    assert found["model.conv1.weight"].is_contiguous(memory_format=torch.channels_last)
    for key, value in ranks[0]["fused"].items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-5)


def test_a_group_without_the_first_process_trains(ranks: Found) -> None:
    local = local_model("pred", seed=1)
    for i in range(3):
        x, y = batch(12, seed=i)
        local.train_step(x[6:], y[6:])
    for key, value in local.state_dict().items():
        torch.testing.assert_close(ranks[1]["group without rank 0"][key], value)


def test_pred_in_two_processes_is_pred_on_the_joint_batch(ranks: Found) -> None:
    local = local_model("pred")
    for i in range(3):
        local.train_step(*batch(12, seed=i))
    for key, value in local.state_dict().items():
        torch.testing.assert_close(ranks[0]["pred"][key], value, rtol=1e-5, atol=1e-6)


def test_sim_in_two_processes_is_the_mean_over_pairs_within_each(ranks: Found) -> None:
    local = local_model("sim")
    for i in range(3):
        x, y = batch(12, seed=i)
        values = [{local._blocks[0].piece.body.inputs[0]: half} for half in (x[:6], x[6:])]
        for block in local._blocks:
            for half, labels in zip(values, (y[:6], y[6:]), strict=True):
                h, entering = block.forward(local.model, half)
                block.backward(block.loss(h, entering, labels)[0] / 2)
            block.update()
    for key, value in local.state_dict().items():
        torch.testing.assert_close(ranks[0]["sim"][key], value, rtol=1e-5, atol=1e-6)
    joint = copy.deepcopy(local_model("sim"))
    joint.train_step(*batch(12))
    assert not torch.allclose(joint.model.conv0.weight, ranks[0]["sim"]["model.conv0.weight"])
