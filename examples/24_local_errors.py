"""Trains a network by local losses on digits: its errors, its exits, its bytes, and it alone.

Run it with ``python examples/24_local_errors.py``. It needs no download and one core.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from addis import data, models
from addis.train.local import local_fit, localize


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    train, test = (data.load("digits", split) for split in ("train", "test"))
    x, y = train.floats().repeat_interleave(2, 2).repeat_interleave(2, 3), train.targets
    held_out = test.floats().repeat_interleave(2, 2).repeat_interleave(2, 3), test.targets
    batches = data.Batches((x, y), 128, drop_last=True)

    # Any model; here six convolutions, a dense layer and the output layer, each its own block.
    net = models.vgg8b(
        10, 1, width=1 / 16, image_size=16, dropout=0.0, activation=partial(nn.LeakyReLU, 0.01)
    )
    adam = partial(torch.optim.Adam, lr=5e-3, fused=True)
    local = localize(net, x[:2], loss="predsim", dim_in_decoder=256, optimizer=adam)
    print("blocks:", ", ".join(local.blocks))
    for epoch in local_fit(local, batches, epochs=6, validation=[held_out]):
        blocks = " ".join(f"{error:5.1%}" for error in epoch.errors)
        print(f"epoch {epoch.epoch}: test error {epoch.validation_error:.1%}; by block {blocks}")

    # Every decoder is an exit that can be taken early.
    local.eval()
    with torch.no_grad():
        exits = local.exits(held_out[0])
    wrong = [(logits.argmax(1) != held_out[1]).float().mean() for logits in exits]
    print("exits:", " ".join(f"{error:.1%}" for error in wrong))

    # What is kept for backward, beside back-propagation and checkpointing.
    print(local.train().memory_report(x[:128], y[:128]))

    # The trained network alone: the class and the keys of the one that went in.
    plain = local.inference()
    assert list(plain.state_dict()) == list(net.state_dict())
    print(f"alone: {sum(p.numel() for p in plain.parameters()):,} parameters, "
          f"{sum(p.numel() for p in local.parameters()):,} while it was trained")  # fmt: skip


if __name__ == "__main__":
    main()
