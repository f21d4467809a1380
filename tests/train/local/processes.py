"""Local training in two processes: ``python -m tests.train.local.processes FOLDER``."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from addis.train.local import LocalModel, Loss, UpdateRules, localize
from tests.train.local.nets import batch, conv_net

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)


def local_model(loss: Loss, *, seed: int = 0, group: dist.ProcessGroup | None = None) -> LocalModel:
    torch.manual_seed(seed)
    rules = UpdateRules(process_group=group)
    return localize(conv_net(norm=False), batch()[0], loss=loss, optimizer=SGD, rules=rules)


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    found = {}
    for loss in ("pred", "sim"):
        local = local_model(loss, seed=rank, group=dist.group.WORLD)
        for i in range(3):
            x, y = batch(12, seed=i)
            half = slice(6 * rank, 6 * rank + 6)
            local.train_step(x[half], y[half])
        found[loss] = local.state_dict()
    torch.save(found, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    mp.start_processes(work, (str(Path(sys.argv[1])),), nprocs=2, start_method="fork")
