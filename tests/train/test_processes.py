"""Two processes train as one does on the joint batches, and measure as one does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train import processes as single

Found = list[dict[str, Any]]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What each of the two processes found."""
    out = tmp_path_factory.mktemp("ranks")
    script = Path(single.__file__)
    subprocess.run([sys.executable, str(script), str(out)], check=True, timeout=200)
    return [torch.load(out / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


def equal(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def close(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=1e-12)


def test_there_are_two_processes(ranks: Found) -> None:
    assert [(found["rank"], found["world"]) for found in ranks] == [(0, 2), (1, 2)]


@pytest.mark.parametrize("case", ["fit", "accumulated", "norm", "twice", "sharded"])
def test_both_end_with_the_same_weights_and_means(case: str, ranks: Found) -> None:
    assert equal(ranks[0][case]["weights"], ranks[1][case]["weights"])
    assert ranks[0][case]["epochs"] == ranks[1][case]["epochs"]


@pytest.mark.parametrize(
    ("case", "alone"),
    [
        ("fit", single.fit),
        ("accumulated", lambda: single.fit(accumulate=3, clip_norm=0.3)),
        ("twice", single.twice),
    ],
)
def test_weights_and_means_are_those_of_one_process(case: str, alone: Any, ranks: Found) -> None:
    expected = alone()
    close(ranks[0][case]["weights"], expected["weights"])
    for ours, theirs in zip(ranks[0][case]["epochs"], expected["epochs"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-12)


def test_batch_norm_differs_from_one_process_as_it_sees_half_a_batch(ranks: Found) -> None:
    alone = single.fit(None, single.net(norm=True), loader=single.loader(8))
    assert not equal(ranks[0]["norm"]["weights"], alone["weights"])


def test_evaluation_is_exact_over_uneven_shares(ranks: Found) -> None:
    assert ranks[0]["evaluated"] == ranks[1]["evaluated"]
    expected = single.evaluated()["values"]
    assert ranks[0]["evaluated"]["values"] == pytest.approx(expected, rel=1e-12)
    assert expected[-1] == 29


@pytest.mark.parametrize("case", ["resumed", "resumed shards"])
def test_each_process_resumes_its_own_random_numbers(case: str, ranks: Found) -> None:
    for found in ranks:
        assert equal(found[case]["again"], found[case]["whole"])
        assert len(found[case]["epochs"]) == 2
    assert equal(ranks[0][case]["again"], ranks[1][case]["again"])


def test_a_seed_gives_each_process_numbers_of_its_own(ranks: Found) -> None:
    numbers = [*ranks[0]["drawn"], *ranks[1]["drawn"]]
    assert len(set(numbers)) == len(numbers) == 20


def test_a_loader_that_fabric_shards_is_not_cut_again(ranks: Found) -> None:
    samples = [epoch[2] for epoch in ranks[0]["sharded"]["epochs"]]
    steps = [epoch[3] for epoch in ranks[0]["sharded"]["epochs"]]
    assert samples == [28, 28]
    assert steps == [4, 8]


def test_a_loss_that_is_not_finite_in_one_process_ends_both(ranks: Found) -> None:
    assert ranks[0]["spoilt"] == ranks[1]["spoilt"]
    assert ranks[0]["spoilt"].startswith(
        "FloatingPointError: the loss of batch 1 of epoch 0, gradient step 1,"
    )


def test_a_loader_that_would_shuffle_differently_in_each_is_refused(ranks: Found) -> None:
    for found in ranks:
        assert found["unordered"].startswith("ValueError: loader shuffles without a generator")
