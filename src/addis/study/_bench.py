"""Timing of addis beside its peers: the same work, in turn, in one run."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

__all__ = ["Row", "absent", "peer_repository", "timed", "timed_row"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One comparison. ``ratio`` is a cost, ours over theirs, so that under 1 is always ahead.

    Args:
        work: What both did.
        peer: Who did it beside addis.
        version: The peer's version or commit.
        unit: Unit of ``addis`` and ``peer_value``.
        addis: Our value; ``None`` if it was not measured.
        peer_value: The peer's; ``None`` for an absent peer.
        ratio: ``addis / peer_value`` for a cost, the inverse for a throughput.
        target: The ratio to reach; ``None`` for a row that only informs.
        note: Why a value is absent, or what limits it.
    """

    work: str
    peer: str
    version: str
    unit: str
    addis: float | None
    peer_value: float | None
    ratio: float | None
    target: float | None
    note: str = ""


def timed(
    *works: Callable[[], object], repeats: int = 5, warmup: int = 1, device: str = "cpu"
) -> list[float]:
    """Median seconds of each work, the works taken in turn (A B A B ...) so that drift hits all
    alike.

    Args:
        works: Functions without arguments.
        repeats: Counted rounds.
        warmup: Rounds that are not counted, first.
        device: Torch device to wait for before the clock is read.

    Raises:
        ValueError: ``repeats < 1``, or there is no work.
    """
    if repeats < 1 or not works:
        raise ValueError(f"need at least one work and repeats >= 1, got {len(works)} and {repeats}")
    seconds: list[list[float]] = [[] for _ in works]
    for turn in range(warmup + repeats):
        for work, taken in zip(works, seconds, strict=True):
            _wait(device)
            start = time.perf_counter()
            work()
            _wait(device)
            if turn >= warmup:
                taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in seconds]


def timed_row(
    work: str,
    ours: Callable[[], object],
    peer: str,
    version: str,
    theirs: Callable[[], object],
    *,
    target: float | None = None,
    repeats: int = 5,
    warmup: int = 1,
    device: str = "cpu",
    note: str = "",
) -> Row:
    """Times ``ours`` and ``theirs`` in turn and gives the row in milliseconds."""
    a, b = timed(ours, theirs, repeats=repeats, warmup=warmup, device=device)
    return Row(
        work=work, peer=peer, version=version, unit="ms", addis=a * 1e3, peer_value=b * 1e3,
        ratio=a / b, target=target, note=note,
    )  # fmt: skip


def absent(work: str, peer: str, why: str, *, unit: str = "ms", target: float | None = None) -> Row:
    """The row of a peer that is not here."""
    return Row(
        work=work, peer=peer, version="absent", unit=unit, addis=None, peer_value=None, ratio=None,
        target=target, note=why,
    )  # fmt: skip


def peer_repository(name: str, commit: str) -> Path | None:
    """Finds a peer that is only a repository in the folder that ``ADDIS_PEERS`` names.

    Args:
        name: ``OWNER+NAME``, the folder's name.
        commit: The commit that the benchmark was written for.

    Returns:
        The checkout, or ``None`` if ``ADDIS_PEERS`` is unset or holds no such folder.

    Raises:
        RuntimeError: The checkout is at another commit.
    """
    root = os.environ.get("ADDIS_PEERS")
    if not root or not (path := Path(root) / name).is_dir():
        return None
    head = subprocess.run(
        ["git", "-C", str(path), "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()
    if not head.startswith(commit):
        raise RuntimeError(f"{path} is at {head[:12]}, this benchmark was written for {commit}")
    return path


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
