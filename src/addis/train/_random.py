"""The global random states: kept, put back, or set aside for the length of an epoch."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

__all__ = ["capture", "restore", "seeded"]


def capture(device: torch.device) -> dict[str, Any]:
    """The states of torch (CPU and ``device``), Python and numpy, as tensors and plain values."""
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": _plain(np.random.get_state(legacy=False)),  # noqa: NPY002
    }
    if device.type != "cpu":
        state["device"] = torch.get_device_module(device).get_rng_state()
    return state


def restore(state: dict[str, Any], device: torch.device) -> None:
    """Puts back what :func:`capture` gave."""
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state["device"])


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value.tolist() if isinstance(value, np.ndarray) else value


@contextmanager
def seeded(seed: int | None, *key: int, device: torch.device) -> Iterator[None]:
    """Runs a block on torch's random numbers of ``(seed, *key)``, then puts back the old state.

    With ``seed=None`` the block draws from, and advances, the state as it is.
    """
    if seed is None:
        yield
        return
    before = capture(device)
    word = int(np.random.SeedSequence([seed, *key]).generate_state(1, np.uint64)[0])
    try:
        torch.default_generator.manual_seed(word)
        if device.type != "cpu":
            torch.get_device_module(device).manual_seed(word)
        yield
    finally:
        torch.set_rng_state(before["torch"])
        if device.type != "cpu":
            torch.get_device_module(device).set_rng_state(before["device"])
