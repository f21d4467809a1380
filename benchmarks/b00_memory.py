"""What ``addis.train.keep_freed_memory`` takes off a training step, on one thread.

It holds for a process as a whole, so processes with and without it take turns.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Iterator

from addis.study import Row, absent

PEER = "glibc's defaults"
PROGRAM = """
import statistics, sys, time
from functools import partial
import torch
from addis import models, train

torch.set_num_threads(1)
if sys.argv[1] == "kept":
    train.keep_freed_memory()
if sys.argv[2] == "stack":
    net = partial(models.cnn5, 6, 10, 1)
    stacked = train.StackedTrainer(net, seeds=[0, 1, 2], lr=0.1)
    x, y = torch.rand(3, 128, 1, 16, 16), torch.randint(10, (3, 128))
    step = partial(stacked.step, x, y)
else:
    net = models.create("resnet20", num_classes=10)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    batch = torch.rand(128, 3, 32, 32), torch.randint(10, (128,))

    def step():
        optimizer.zero_grad()
        train.cross_entropy_step(net, batch).backward()
        optimizer.step()

seconds = []
for turn in range(2 + int(sys.argv[3])):
    start = time.perf_counter()
    step()
    seconds.append(time.perf_counter() - start)
print(statistics.median(seconds[2:]))
"""


def rows(*, full: bool = False, device: str = "cpu") -> Iterator[Row]:
    """Times both ways in turn, a process each."""
    works = (
        ("stack", "3 cnn5(6) side by side, batch 128, 1x16x16"),
        ("net", "ResNet-20, batch 128"),
    )
    for which, name in works:
        work = f"step of {name}, freed memory kept"
        if sys.platform != "linux" or device != "cpu":
            yield absent(work, PEER, "a setting of Linux's glibc, for training on a CPU")
            continue
        steps = 30 if which == "stack" else 6
        taken: dict[str, list[float]] = {"kept": [], "default": []}
        for _ in range(9 if full else 3):
            for way, seconds in taken.items():
                seconds.append(_seconds(way, which, steps))
        kept, default = (1e3 * statistics.median(seconds) for seconds in taken.values())
        yield Row(
            work=work, peer=PEER, version="-", unit="ms", addis=kept, peer_value=default,
            ratio=kept / default, target=None,
            note="median of processes; what the defaults take varies from process to process",
        )  # fmt: skip


def _seconds(way: str, which: str, steps: int) -> float:
    command = [sys.executable, "-c", PROGRAM, way, which, str(steps)]
    return float(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
