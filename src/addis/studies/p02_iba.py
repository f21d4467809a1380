"""Study 02: are the maps of an information bottleneck better than ten others', and than a blur?

Paper: K. Schulz, L. Sixt, F. Tombari, T. Landgraf, "Restricting the Flow: Information Bottlenecks
for Attribution", ICLR 2020, arXiv:2001.00396, Table 1 and figure 3.

Beside the paper's metrics every table has a control that the paper lacks, saliency blurred by two
pixels, and the fill of ROAD. The margins of the claims were fixed before the runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from addis.explain import METHOD
from addis.studies._p02_claims import claims, tables
from addis.studies._p02_figures import figures
from addis.studies._p02_trials import (
    CASCADED,
    Cascade,
    Digits,
    Masked,
    Methods,
    Watermark,
    cascade,
    digits_table,
    masked,
    methods_of,
    table,
    watermark_table,
)
from addis.study import Study, Trial

__all__ = ["STUDY", "Config", "Net"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Net:
    """A pretrained net and how far it is examined.

    Args:
        name: Name of the model, and of the scene in the results.
        images: Images that it classifies correctly, at most.
        tiles: Sides of the tiles of the degradation.
        steps: Its stages.
        road: Sides of the tiles of the degradation with noisy linear fill.
        road_steps: Its stages.
        subsets: Sets of tiles of the sensitivity at a tenth of the tiles.
        mosaics: Mosaics of the grid pointing; 0 leaves it out.
        masked: Images of the masked-prediction check.
        cascaded: Images of the sanity check; 0 leaves it out.
        cost: Seconds of one method, measured, for the progress estimate.
    """

    name: str
    images: int
    tiles: tuple[int, ...]
    steps: int = 100
    road: tuple[int, ...] = ()
    road_steps: int = 16
    subsets: int = 100
    mosaics: int = 0
    masked: int = 32
    cascaded: int = 0
    cost: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """How much of the study is run."""

    digit_seeds: tuple[int, ...] = ()
    mark_seeds: tuple[int, ...] = ()
    nets: tuple[Net, ...] = ()
    device: str = "cpu"


_SQUEEZENET = Net(
    name="imagenet_squeezenet1_0", images=60, tiles=(8, 14), steps=16, road=(14,), road_steps=8,
    subsets=30, masked=16, cost=150.0,
)  # fmt: skip
_SMALL = Config(
    mark_seeds=(0, 1, 2),
    nets=(
        Net(
            name="cifar10_resnet20",
            images=200,
            tiles=(4, 8),
            road=(8,),
            subsets=50,
            mosaics=60,
            cascaded=16,
        ),
        Net(name="cifar10_resnet56", images=40, tiles=(4, 8), road=(8,), subsets=50, masked=24),
        _SQUEEZENET,
    ),
)
_PAPER = Config(
    digit_seeds=tuple(range(10)),
    mark_seeds=tuple(range(10)),
    nets=(
        *(
            Net(name=f"torchvision/{name}", images=200, tiles=(8, 14), road=(14,), road_steps=50,
                masked=64, cost=4000.0)
            for name in ("vgg16", "resnet50")
        ),
        Net(name="cifar10_resnet56", images=1000, tiles=(4, 8), road=(4, 8), mosaics=250,
            cascaded=64, cost=1000.0),
    ),
    device="cuda",
)  # fmt: skip


def trials(config: Config) -> Iterator[Trial]:
    """A trial for each seed of the trained nets, and for each method on each pretrained one."""
    for seed in config.digit_seeds:
        yield Trial(digits_table, Digits(seed=seed, device=config.device), cost=20.0)
    for net in sorted(config.nets, key=lambda net: -net.cost):
        for method in methods_of(net.name):
            yield Trial(
                table,
                Methods(
                    scene=net.name, method=method, images=net.images, tiles=net.tiles,
                    steps=net.steps, road=net.road, road_steps=net.road_steps, subsets=net.subsets,
                    mosaics=net.mosaics, device=config.device,
                ),
                cost=net.cost,
            )  # fmt: skip
        left = Masked(scene=net.name, images=net.masked, device=config.device)
        yield Trial(masked, left, cost=net.cost)
        if net.cascaded:
            for method in CASCADED:
                check = Cascade(
                    scene=net.name, method=method, images=net.cascaded, device=config.device
                )
                yield Trial(cascade, check, cost=20.0)
    for seed in config.mark_seeds:
        yield Trial(watermark_table, Watermark(seed=seed, device=config.device), cost=30.0)


STUDY = Study(
    method=METHOD,
    problem=(
        "Which regions of an image did a classifier use? Heat maps answer in arbitrary units and "
        "disagree with each other. An information bottleneck adds noise to one layer and learns "
        "how much each cell bears before the class suffers; what survives is counted in bits per "
        "pixel. An engineer who debugs a net wants to know whether such maps are better than the "
        "quick ones, by which measure, and whether the measure can be trusted."
    ),
    scales={
        "tiny": Config(digit_seeds=(0, 1, 2, 3)),
        "small": _SMALL,
        "paper": _PAPER,
    },
    trials=trials,
    claims=claims,
    figures=figures,
    tables=tables,
    notes=(
        "Deletion metrics are confounded by fills that no photo looks like and by the shape of "
        "what was removed (ROAD, Rong et al. 2022, arXiv:2202.00449): hence also the noisy linear "
        "fill.",
        "Scores by retraining are confounded by blurriness (Song et al. 2023, arXiv:2304.13836), "
        "and box scores reward smooth maps: hence saliency blurred by two pixels in every table. "
        "On toys it ties or beats IBA.",
        "SSIM as a sanity check over-rewards noisy maps (Binder et al., CVPR 2023, "
        "arXiv:2211.12486; Hedström et al. 2024, arXiv:2401.06465): three similarities are given.",
        "A bottleneck's resolution is that of its layer, which InputIBA (Zhang et al., NeurIPS "
        "2021) set out to mend; its smoothness helps box scores.",
        "What IBA alone offers is a unit (bits), maps near zero where nothing is needed, and the "
        "masked-prediction check. That check uses the noise that IBA was fitted with, at its "
        "layer, so it favours IBA; the other maps are averaged to the layer's grid.",
        "Grad-CAM is judged at the last layer with a feature map and at the bottleneck's own "
        "layer; the latter is its weaker choice, and beating it says little.",
        "RISE (1000 masks) stands for its cost on ResNet-20 alone; LRP is in where zennit is "
        "installed.",
        "PatternAttribution is the paper's baseline for VGG-16 and here for every net: batch norms "
        "and shortcuts are passed through as addis.explain says, and a bias has its part in a "
        "pattern, which its authors' code leaves out. Its patterns are from 1000 images (200 of "
        "ImageNet). Its maps carry the sign of the logit, which a randomised net may turn, hence "
        "its negative similarities; but for the sign they hardly change (rank correlation 0.80 "
        "with the last layer of ResNet-20 randomised), as is known (Sixt et al. 2020, "
        "arXiv:1912.09818).",
        "The margins of A1 are the spec's, set after a run of another seed; intervals are over "
        "images of given nets, not over nets.",
        "SqueezeNet on ImageNet: the first 60 photos that it classifies correctly, for the time "
        "that they take; restricted after features.6 (27x27), "
        "statistics from the 200 photos at hand, which include those explained. It has no boxes "
        "here, so the paper's two box columns are replaced by grid pointing on CIFAR-10 and the "
        "planted mark.",
        "The readout bottleneck was trained on 5000 images, 20 epochs, with a step of 1e-3; the "
        "paper trains 10 to 20 epochs of ImageNet with a step of 1e-5.",
    ),
)
