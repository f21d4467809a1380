"""Fixtures that every room's tests share."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.elsewhere import ELSEWHERE, elsewhere

torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores Ctrl-C


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(params=[pytest.param("cuda", marks=pytest.mark.gpu), ELSEWHERE])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """A device other than the CPU: a GPU where there is one, and a stand-in anywhere."""
    if request.param != ELSEWHERE:
        yield request.param
        return
    with elsewhere() as name:
        yield name


@pytest.fixture(scope="session")
def addis_data() -> Path:
    """The folder of real data that ``ADDIS_DATA`` names."""
    root = os.environ.get("ADDIS_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("ADDIS_DATA names no folder of real data")
    return Path(root)
