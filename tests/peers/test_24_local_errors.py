"""Five steps of the published script, from the same weights, end in the same weights."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from addis.models import mlp, vgg8b
from addis.study import peer_repository
from addis.train.local import LocalModel, Loss, local_fit, localize
from benchmarks.b24_local_errors import COMMIT, REPOSITORY, PublishedScript

pytestmark = pytest.mark.peers

LEAKY = partial(nn.LeakyReLU, 0.01)
CASES: dict[str, tuple[Loss, str, list[str]]] = {
    "pred": ("pred", "vgg8b", ["--loss-sup", "pred"]),
    "sim": ("sim", "vgg8b", ["--loss-sup", "sim"]),
    "predsim": ("predsim", "vgg8b", ["--loss-sup", "predsim"]),
    "sim-bpf": ("sim-bpf", "vgg8b", ["--loss-sup", "sim", "--bio"]),
    "pred-bpf": ("pred-bpf", "vgg8b", ["--loss-sup", "pred", "--bio"]),
    "predsim-bpf": ("predsim-bpf", "vgg8b", ["--loss-sup", "predsim", "--bio", "--beta", "0.01"]),
    "mlp predsim": ("predsim", "mlp", ["--loss-sup", "predsim"]),
    "mlp predsim-bpf": ("predsim-bpf", "mlp", ["--loss-sup", "predsim", "--bio", "--beta", "0.01"]),
    "mlp with input similarities": (
        "sim", "mlp", ["--loss-sup", "sim", "--loss-unsup", "sim", "--alpha", "0.3"],
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    """Both in float64: Adam turns a rounding of a gradient near 0 into a step of another sign."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def copy_weights(local: LocalModel, script: PublishedScript) -> None:
    """Gives our model the script's weights: encoders, heads, random matrices, output layer."""
    theirs = [m for m in script.model.modules() if type(m).__name__.startswith("LocalLossBlock")]
    names = list(local.blocks[:-1])
    with torch.no_grad():
        for name, head, block in zip(names, local.heads, theirs, strict=True):
            own: Any = local.model.get_submodule(name)
            (own.conv if hasattr(own, "conv") else own.linear).load_state_dict(
                block.encoder.state_dict()
            )
            own.norm.load_state_dict(block.bn.state_dict())
            g = getattr(block, "conv_loss", getattr(block, "linear_loss", None))
            if head.sim is not None and g is not None and head.sim.projection is None:
                head.sim.g.load_state_dict(g.state_dict())
            if head.pred is not None:
                head.pred.decoder.weight.copy_(block.decoder_y.weight)
                head.pred.decoder.bias.copy_(block.decoder_y.bias)
                if head.pred.projection is not None:
                    head.pred.decoder.feedback.copy_(block.decoder_y.weight_fa)
            for part in (head.pred, head.sim):
                if part is not None and part.projection is not None:
                    part.projection.copy_(block.proj_y.weight.T)
        local.model[-1].load_state_dict(outputs(script).state_dict())  # type: ignore[index]


def outputs(script: PublishedScript) -> nn.Linear:
    return (
        script.model.layer_out
        if hasattr(script.model, "layer_out")
        else script.model.classifier.layer_out
    )


@pytest.mark.parametrize("case", CASES)
def test_five_steps_end_in_the_weights_of_the_published_script(case: str) -> None:
    path = peer_repository(REPOSITORY, COMMIT)
    if path is None:
        pytest.skip("ADDIS_PEERS names no checkout of the published script")
    loss, kind, arguments = CASES[case]
    torch.manual_seed(0)
    size = ["--feat-mult", "0.0625", "--dim-in-decoder", "256", "--nonlin", "leakyrelu"]
    layers = ["--num-layers", "2", "--num-hidden", "32"] if kind == "mlp" else []
    model = ["--model", kind, *layers, *size, *arguments]
    script = PublishedScript(path, model, input_dim=16 if kind == "vgg8b" else 6)
    net = (
        vgg8b(width=1 / 16, image_size=16, dropout=0.0, activation=LEAKY)
        if kind == "vgg8b"
        else mlp(10, 3, image_size=6, width=32, depth=2, activation=LEAKY)
    )
    side = 16 if kind == "vgg8b" else 6
    batches = [(torch.randn(16, 3, side, side), torch.randint(10, (16,))) for _ in range(5)]
    unsupervised: dict[str, Any] = {"unsupervised": "sim", "alpha": 0.3} if "input" in case else {}
    adam = partial(torch.optim.Adam, lr=5e-4)
    local = localize(
        net, batches[0][0], loss=loss, dim_in_decoder=256, optimizer=adam, **unsupervised
    )
    copy_weights(local, script)
    if loss.endswith("bpf"):
        refresh_class_similarities(local)
    for x, y in batches:
        script.step(x, y)
    (epoch,) = local_fit(local, batches, epochs=1)
    assert epoch.losses[-1] > 0
    theirs = [m for m in script.model.modules() if type(m).__name__.startswith("LocalLossBlock")]
    for name, block in zip(local.blocks[:-1], theirs, strict=True):
        own: Any = local.model.get_submodule(name)
        encoder = own.conv if hasattr(own, "conv") else own.linear
        torch.testing.assert_close(encoder.weight, block.encoder.weight, rtol=0, atol=1e-6)
        torch.testing.assert_close(own.norm.running_var, block.bn.running_var, rtol=1e-5, atol=1e-6)
    output = local.model[-1]  # type: ignore[index]
    torch.testing.assert_close(output.weight, outputs(script).weight, rtol=0, atol=1e-6)


def refresh_class_similarities(local: LocalModel) -> None:
    from addis.train.local import similarity_matrix

    for head in local.heads:
        sim: Any = head.sim
        if sim is not None:
            sim.class_similarity.copy_(similarity_matrix(sim.projection))
