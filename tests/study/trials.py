"""Trials that the engine's tests run, importable from worker processes."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure as MatplotlibFigure

from addis.methods import Method
from addis.study import Claim, Figure, Study, Table, Trial


@dataclass(frozen=True)
class Point:
    x: int
    seed: int = 0
    behaviour: str = ""
    log: str = ""
    sleep: float = 0.0


def measure(point: Point) -> dict[str, Any]:
    if point.log:
        with Path(point.log).open("a") as log:
            log.write(f"{point.x}\n")
    time.sleep(point.sleep)
    match point.behaviour:
        case "raise":
            raise ArithmeticError(f"x = {point.x}")
        case "cancelled":
            raise asyncio.CancelledError
        case "surrogate":
            raise ValueError("bad \udcff")
        case "told":
            return {"failed": f"x = {point.x}"}
        case "prints":
            print("hello")
            os.system("echo from a process")
        case "exit":
            raise SystemExit(3)
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "object":
            return {"value": object()}
        case "clash":
            return {"x": 1.0, "error": 0.5, "seconds": 2.0}
    generator = torch.Generator().manual_seed(point.seed)
    matrix = torch.randn(64, 64, generator=generator) @ torch.randn(64, 64, generator=generator)
    return {
        "value": float(matrix.sum()) + point.x,
        "large": np.int64(2**40),
        "nan": float("nan"),
        "word": "é",
        "curve": np.arange(point.x + 1, dtype=np.float32) / 3,
        "threads": torch.get_num_threads(),
    }


class _MallocInfo(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
        "fordblks", "keepcost",
    ))  # fmt: skip


def memory(_: Point) -> dict[str, Any]:
    """Bytes that glibc asks the kernel for apart for a tensor of 24 MiB, and bytes that it keeps
    when 64 MiB in eight tensors are freed.
    """
    info = ctypes.CDLL(None).mallinfo2
    info.restype = _MallocInfo
    before = info().hblkhd
    one = torch.zeros(6 << 20)
    mapped = info().hblkhd - before
    eight = [torch.zeros(2 << 20) for _ in range(8)]
    del one, eight
    return {"mapped": mapped, "kept": info().fordblks}


@dataclass(frozen=True)
class Config:
    points: int = 6
    behaviour: str = ""
    bad: tuple[int, ...] = ()
    log: str = ""
    sleep: float = 0.0
    device: str = "cpu"


def trials(config: Config) -> Iterator[Trial]:
    for x in range(config.points):
        behaviour = config.behaviour if x in config.bad else ""
        yield Trial(measure, Point(x, x % 3, behaviour, config.log, config.sleep), cost=1.0 + x)


def claims(results: pd.DataFrame) -> list[Claim]:
    top = results["value"].max()
    if np.isnan(results["value"]).any():
        raise ValueError("no claim can be judged without all trials")
    return [
        Claim(id="A", text="sums are finite", paper=0.5, measured=top, spread=0.1, holds=True),
        Claim(id="B", text="sums vanish", paper="0", measured=top, holds=False, unit="points"),
        Claim(id="C", text="not measured", paper=None, measured=None, holds=None, note="no GPU"),
        Claim(
            id="D",
            text="beats all",
            paper=1,
            measured=2,
            spread=(1.0, 3.0),
            holds=True,
            broken_by="X",
        ),
    ]


def figures(results: pd.DataFrame) -> list[Figure]:
    figure = MatplotlibFigure(figsize=(3, 2))
    figure.subplots().plot(results["x"], results["value"])
    return [Figure(name="sums", figure=figure, alt="a line", caption="Sums against x.")]


def tables(results: pd.DataFrame) -> list[Table]:
    return [Table(name="sums", frame=results[["x", "value"]], caption="Sums.")]


METHOD = Method(
    name="toy",
    verb="analyze",
    title="A toy",
    arxiv="0000.00000",
    study="99",
    venue="nowhere",
    summary="Adds numbers.",
)


def toy(**changes: Any) -> Study[Config]:
    return Study(
        method=METHOD,
        problem="Nobody has it.",
        scales={"tiny": Config(**changes)},
        trials=trials,
        claims=claims,
        figures=figures,
        tables=tables,
        notes=("A toy.",),
    )
