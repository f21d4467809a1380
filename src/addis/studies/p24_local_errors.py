"""Study 24: local losses beside back-propagation in error, kept bytes and cost.

Paper: A. Nøkland, L. H. Eidnes, "Training Neural Networks with Local Error Signals", ICML 2019,
arXiv:1901.06656.

The local runs and the ``global`` baseline share the paper's recipe (Adam, no weight decay, steps of
the rate); the controls that the paper lacks are back-propagation with SGD, weight decay and a
cosine, whose rate is chosen by validation error, and deep supervision: the same heads with nothing
detached. Checkpointed back-propagation has the gradients of back-propagation; it is a control of
the kept bytes. Test images are only reported on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from addis.studies._p24_claims import claims, tables
from addis.studies._p24_costs import Cost, Facts, Memory, cost, facts, memory
from addis.studies._p24_figures import figures
from addis.studies._p24_trials import Source, Train, Way, train
from addis.study import Study, Trial
from addis.train.local._localize import METHOD

__all__ = ["STUDY", "Config"]

_PROBED = frozenset({"global", "deep supervision", "pred", "sim", "predsim"})
_WAYS: tuple[Way, ...] = (
    "predsim",
    "deep supervision",
    "sim",
    "predsim-bpf",
    "predsim-bpf 0.99",
    "pred-bpf",
    "sim-bpf",
    "pred",
    "global",
)
_COSTS = {"predsim": 2.4, "deep supervision": 2.6, "sim": 2.0}
"""Time of a step beside back-propagation's."""
_MLP_WAYS: tuple[Way, ...] = ("predsim", "sim", "pred", "predsim-bpf", "global")


@dataclass(frozen=True, slots=True, kw_only=True)
class Net:
    """One network with the recipe it is trained by."""

    net: str
    width: float
    lr: float
    dropout: float
    dim_in_decoder: int
    ways: tuple[Way, ...]
    tuned_lrs: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Depth:
    """The depth panel: one network cut into fewer and fewer blocks.

    Args:
        net: The network and the ways to train it; ``global`` is trained once, uncut.
        least: Least layers a block, the finest first; 1 is a block a layer, 100 a single block.
        train: Training images.
    """

    net: Net
    least: tuple[int, ...]
    train: int
    epochs: int
    seeds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Larger:
    """The conv net trained for longer, or wider, to see whether distances are those of a short
    training or of a narrow net.

    Args:
        epochs: Of each run.
        width: Of the net, as in :class:`Net`.
    """

    epochs: int
    width: float
    ways: tuple[Way, ...] = ("predsim", "pred", "global")
    seeds: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """One scale."""

    sources: tuple[Source, ...]
    mlp: Net
    conv: Net
    depth: tuple[Depth, ...]
    epochs: int
    batch_size: int
    seeds: int
    memory_batches: tuple[int, ...]
    memory_depths: tuple[int, ...]
    side: int
    channels: int
    larger: tuple[Larger, ...] = ()
    device: str = "cpu"


def trials(config: Config) -> Iterator[Trial]:
    """The long trials first."""
    for larger in config.larger:
        yield from _larger(config, larger)
    for seed in range(config.seeds):
        for source in config.sources:
            for net in (config.conv, config.mlp):
                yield from _trained(config, net, source, seed)
    for depth in config.depth:
        source = config.sources[0]._replace(train=depth.train)
        for seed in range(depth.seeds):
            for way in depth.net.ways:
                for least in depth.least if way != "global" else (0,):
                    args = _args(
                        config, depth.net, source, way, depth.net.lr, seed, least, depth.epochs
                    )
                    yield Trial(train, args, cost=depth.train * depth.epochs / 1500)
    yield Trial(
        cost,
        Cost(
            net=config.conv.net,
            width=config.conv.width,
            channels=config.channels,
            side=config.side,
            batch=config.batch_size,
            dim_in_decoder=config.conv.dim_in_decoder,
            repeats=3,
            device=config.device,
        ),
        cost=10,
    )
    yield Trial(facts, Facts(), cost=5)
    largest, deepest = max(config.memory_batches), max(config.memory_depths)
    cells = {(deepest, b) for b in config.memory_batches} | {
        (d, largest) for d in config.memory_depths
    }
    for depth_, batch in sorted(cells):
        yield Trial(memory, Memory(depth=depth_, batch=batch), cost=depth_ * batch / 60)


def _larger(config: Config, larger: Larger) -> Iterator[Trial]:
    source, net = config.sources[0], replace(config.conv, width=larger.width)
    size = source.train * larger.epochs / 1500 * (larger.width / config.conv.width) ** 1.6
    for seed in range(larger.seeds):
        for way in larger.ways:
            args = _args(config, net, source, way, net.lr, seed, 0, larger.epochs)
            yield Trial(train, args, cost=size * _COSTS.get(way, 1.0))


def _trained(config: Config, net: Net, source: Source, seed: int) -> Iterator[Trial]:
    for way in net.ways:
        args = _args(config, net, source, way, net.lr, seed, 0, config.epochs)
        size = (0.2 if net.net == "mlp" else 1.0) * source.train * config.epochs / 1500
        yield Trial(train, args, cost=size * _COSTS.get(way, 1.0))
    for lr in net.tuned_lrs:
        args = _args(config, net, source, "tuned global", lr, seed, 0, config.epochs)
        yield Trial(train, args, cost=source.train * config.epochs / 1500)


def _args(
    config: Config,
    net: Net,
    source: Source,
    way: Way,
    lr: float,
    seed: int,
    least: int,
    epochs: int,
) -> Train:
    return Train(
        source=source,
        net=net.net,
        width=net.width,
        way=way,
        blocks=least,
        epochs=epochs,
        lr=lr,
        dropout=net.dropout,
        dim_in_decoder=net.dim_in_decoder,
        batch_size=config.batch_size,
        seed=seed,
        probe=net.net != "mlp" and way in _PROBED,
        device=config.device,
    )


_FOUR = Net(
    net="conv4", width=16, lr=5e-3, dropout=0.0, dim_in_decoder=256, ways=_WAYS, tuned_lrs=(0.05,)
)

_TINY = Config(
    sources=(Source("digits", 2, 768, 338),),
    mlp=Net(net="mlp", width=256, lr=5e-3, dropout=0.025, dim_in_decoder=256, ways=_MLP_WAYS),
    conv=_FOUR,
    depth=(
        Depth(net=replace(_FOUR, ways=("pred",)), least=(1, 100), train=768, epochs=15, seeds=3),
    ),
    epochs=15,
    batch_size=128,
    seeds=3,
    memory_batches=(1, 2, 4),
    memory_depths=(4, 8, 16),
    side=16,
    channels=1,
)

_RESNET = Net(
    net="resnet20",
    width=1,
    lr=5e-4,
    dropout=0.0,
    dim_in_decoder=1024,
    ways=("predsim", "pred", "global"),
)

_SMALL = Config(
    sources=(Source("fashion_mnist", 1, 10_000, 2000),),
    mlp=Net(
        net="mlp",
        width=1024,
        lr=5e-4,
        dropout=0.025,
        dim_in_decoder=1024,
        ways=_MLP_WAYS,
        tuned_lrs=(0.02, 0.05),
    ),
    conv=Net(
        net="vgg8b",
        width=0.125,
        lr=5e-4,
        dropout=0.1,
        dim_in_decoder=1024,
        ways=_WAYS,
        tuned_lrs=(0.02, 0.05),
    ),
    depth=(Depth(net=_RESNET, least=(1, 2, 4, 100), train=4000, epochs=8, seeds=3),),
    epochs=12,
    batch_size=128,
    seeds=3,
    memory_batches=(4, 8, 16),
    memory_depths=(4, 8, 16, 30),
    side=28,
    channels=1,
    larger=(
        Larger(epochs=36, width=0.125),
        Larger(epochs=12, width=0.25, ways=("predsim", "global")),
    ),
)

_PAPER = Config(
    sources=(
        Source("fashion_mnist", 1, 55_000, 5000, augment=True),
        Source("cifar10", 1, 45_000, 5000, augment=True),
    ),
    mlp=Net(
        net="mlp",
        width=1024,
        lr=5e-4,
        dropout=0.025,
        dim_in_decoder=1024,
        ways=_MLP_WAYS,
        tuned_lrs=(0.02, 0.05, 0.1),
    ),
    conv=Net(
        net="vgg8b",
        width=1.0,
        lr=5e-4,
        dropout=0.1,
        dim_in_decoder=2048,
        ways=_WAYS,
        tuned_lrs=(0.02, 0.05, 0.1),
    ),
    depth=tuple(
        Depth(
            net=Net(
                net=net,
                width=1,
                lr=5e-4,
                dropout=0.0,
                dim_in_decoder=2048,
                ways=("predsim", "pred", "global"),
            ),
            least=(1, 2, 4, 100),
            train=55_000,
            epochs=100,
            seeds=3,
        )
        for net in ("resnet20", "resnet32")
    ),
    epochs=200,
    batch_size=128,
    seeds=3,
    memory_batches=(32, 64, 128),
    memory_depths=(4, 8, 16, 30),
    side=28,
    channels=1,
    device="cuda",
)

STUDY = Study(
    method=METHOD,
    problem=(
        "Back-propagation makes every layer wait for the whole backward pass and keeps every "
        "activation until then. Here each block of a network has a loss of its own, learns during "
        "the forward pass and hands on a detached activation. Whoever trains on little memory, or "
        "wants layers to work in parallel, asks what that costs in error and in time."
    ),
    scales={"tiny": _TINY, "small": _SMALL, "paper": _PAPER},
    trials=trials,
    claims=claims,
    figures=figures,
    tables=tables,
    notes=(
        "The published counts of parameters leave the heads out: VGG8B trains 18.6 million with "
        "predsim and keeps 8.9 million.",
        "The paper's global baseline shares the recipe of the local runs (Adam, no weight decay, "
        "no tuning of its own); the tuned global control does not.",
        "Heads are capacity and a regulariser in training; deep supervision has the same heads.",
        "At tiny scale a run has 90 steps, at ten times the paper's rate: its errors tell of slow "
        "output layers as much as of the losses.",
        "At small scale VGG8B has an eighth of its width and 936 steps; the paper trains the whole "
        "width for hundreds of epochs. That its distances are the method's at this size and not "
        "this code's is what `addis bench 24 --full` asks: it trains the published script on the "
        "same batches.",
        "The depth panel is judged by a linear probe on the last features since its first small "
        "run, in which an output layer of 248 steps decided the test errors; both stand in D1.",
    ),
)
