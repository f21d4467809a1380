"""Local training in two processes: ``python -m tests.train.local.processes FOLDER``."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from addis.train.local import LocalModel, Loss, UpdateRules, localize
from addis.train.local._localize import DEFAULT_OPTIMIZER
from tests.train.local.nets import batch, conv_net

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)


def local_model(
    loss: Loss,
    *,
    seed: int = 0,
    group: dist.ProcessGroup | None = None,
    form: torch.memory_format = torch.contiguous_format,
    **settings: Any,
) -> LocalModel:
    torch.manual_seed(seed)
    net, rules = conv_net(norm=False).to(memory_format=form), UpdateRules(process_group=group)
    return localize(net, batch()[0], loss=loss, rules=rules, **({"optimizer": SGD} | settings))


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    last = dist.new_group([1])
    cases: dict[str, dict[str, Any]] = {
        "pred": {"loss": "pred"},
        "sim": {"loss": "sim"},
        "fused": {"loss": "pred", "optimizer": DEFAULT_OPTIMIZER},
        "fused, channels last": {
            "loss": "pred",
            "optimizer": DEFAULT_OPTIMIZER,
            "form": torch.channels_last,
        },
    }
    if rank == 1:
        cases["group without rank 0"] = {"loss": "pred", "group": last}
    found = {}
    for name, case in cases.items():
        local = local_model(**({"seed": rank, "group": dist.group.WORLD} | case))
        for i in range(3):
            x, y = batch(12, seed=i)
            half = slice(6 * rank, 6 * rank + 6)
            local.train_step(x[half], y[half])
        found[name] = local.state_dict()
    torch.save(found, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    mp.start_processes(work, (str(Path(sys.argv[1])),), nprocs=2, start_method="fork")
