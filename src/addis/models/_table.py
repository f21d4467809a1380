"""The table of this library's models: factory, paper and, if there are any, weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Final

from torch import nn

from addis.models import _plain, _resnet, _vgg, _zoo

__all__ = ["MODELS", "Entry", "ModelInfo", "Pretrained"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What is known of a model by its name, for the options that its factory has by default.

    Args:
        name: The name that :func:`create` takes.
        title: The network in the field's words.
        paper: Where it comes from: an arXiv number, a title, or empty.
        parameters: Number of parameters.
        input_size: ``(C, H, W)`` of the images that it is meant for.
        mean: Mean of each channel that the pretrained network wants subtracted, in pixel values of
            [0, 1]; 0 without pretrained weights.
        std: Standard deviation of each channel that it wants divided by; 1 without pretrained
            weights.
        num_classes: Classes ``K``.
        accuracy: Top-1 accuracy of the pretrained network, as a fraction of 1; ``None`` where none
            is known.
        accuracy_on: The images on which ``accuracy`` was measured; empty without it.
        weights: Name of the file or the entry of pretrained weights; ``None`` without.
        source: Where the weights come from.
    """

    name: str
    title: str
    paper: str
    parameters: int
    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_classes: int
    accuracy: float | None = None
    accuracy_on: str = ""
    weights: str | None = None
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pretrained:
    """A file of weights; ``head`` is the prefix of the classifier's names in it."""

    file: str
    head: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    accuracy: float
    accuracy_on: str
    source: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of the table."""

    factory: Callable[..., nn.Module]
    title: str
    paper: str
    input_size: tuple[int, int, int] = (3, 32, 32)
    num_classes: int = 10
    pretrained: Pretrained | None = None


CIFAR10: Final = "CIFAR-10, test set of 10,000"
IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)

_authors = partial(
    Pretrained,
    head="linear.",
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    accuracy_on=CIFAR10,
    source="akamaster/pytorch_resnet_cifar10, pretrained_models/ (BSD-2, Yerlan Idelbayev)",
)
_ours = partial(
    Pretrained,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    accuracy_on=CIFAR10,
    source="trained for addis: SGD with Nesterov momentum, one-cycle schedule, crops, flips",
)
_squeezenet = Pretrained(
    file="imagenet_squeezenet1_0.safetensors",
    head="classifier.1.",
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    accuracy=0.620,
    accuracy_on="1,000 photos, one a class, of EliSchwartz/imagenet-sample-images",
    source="songhan/SqueezeNet-Deep-Compression (BSD), decoded",
)

_RESNET: Final = "arXiv:1512.03385"
_WRN: Final = "arXiv:1605.07146"
_DOUBLE_DESCENT: Final = "arXiv:1912.02292"
_LOCAL_ERRORS: Final = "arXiv:1901.06656"
_VGG: Final = "arXiv:1409.1556"
_LENET: Final = "LeCun et al. 1998, in the sizes of Caffe's example"


def _resnet_weights(depth: int, accuracy: float) -> Entry:
    weights = _authors(file=f"cifar10_resnet{depth}.safetensors", accuracy=accuracy)
    factory = partial(_resnet.cifar_resnet, depth)
    return Entry(factory, f"ResNet-{depth} for CIFAR", _RESNET, pretrained=weights)


MODELS: Final[Mapping[str, Entry]] = MappingProxyType(
    {
        "mlp": Entry(_plain.mlp, "Multilayer perceptron", "", (1, 28, 28)),
        "lenet": Entry(_plain.lenet, "LeNet", _LENET, (1, 28, 28)),
        "conv4": Entry(_plain.conv4, "conv-4", "arXiv:1703.03400", (1, 28, 28), 5),
        "net_3c3d": Entry(_plain.net_3c3d, "3C3D of DeepOBS", "arXiv:1903.05499"),
        "cnn5": Entry(_plain.cnn5, "5-layer CNN of width k", _DOUBLE_DESCENT),
        "vgg8b": Entry(_vgg.vgg8b, "VGG8B", _LOCAL_ERRORS),
        "vgg11b": Entry(_vgg.vgg11b, "VGG11B", _LOCAL_ERRORS),
        "vgg9": Entry(_vgg.vgg9, "VGG-9", "arXiv:2002.06440"),
        "vgg_small": Entry(_vgg.vgg_small, "small VGG with BatchNorm", _VGG),
        "resnet20": Entry(_resnet.resnet20, "ResNet-20 for CIFAR", _RESNET),
        "resnet32": Entry(_resnet.resnet32, "ResNet-32 for CIFAR", _RESNET),
        "resnet44": Entry(_resnet.resnet44, "ResNet-44 for CIFAR", _RESNET),
        "resnet56": Entry(_resnet.resnet56, "ResNet-56 for CIFAR", _RESNET),
        "preact_resnet18": Entry(
            _resnet.preact_resnet18, "pre-activation ResNet-18 of width k", _DOUBLE_DESCENT
        ),
        "wide_resnet": Entry(_resnet.wide_resnet, "wide ResNet, WRN-16-4 by default", _WRN),
        "cifar10_resnet20": _resnet_weights(20, 0.9173),
        "cifar10_resnet32": _resnet_weights(32, 0.9263),
        "cifar10_resnet44": _resnet_weights(44, 0.9310),
        "cifar10_resnet56": _resnet_weights(56, 0.9339),
        "cifar10_resnet18": Entry(
            _zoo.resnet18,
            "ResNet-18 with a 3x3 stem",
            _RESNET,
            pretrained=_ours(file="cifar10_resnet18.safetensors", head="fc.", accuracy=0.9476),
        ),
        "cifar10_wrn16_4": Entry(
            partial(_resnet.wide_resnet, 16, 4),
            "wide ResNet WRN-16-4",
            _WRN,
            pretrained=_ours(file="cifar10_wrn16_4.safetensors", head="fc.", accuracy=0.9471),
        ),
        "cifar10_vgg_small": Entry(
            _vgg.vgg_small,
            "small VGG with BatchNorm",
            _VGG,
            pretrained=_ours(
                file="cifar10_vgg_small.safetensors", head="classifier.", accuracy=0.9082
            ),
        ),
        "cifar10_densenet_bc_52_12": Entry(
            partial(_zoo.densenet_bc, 52, 12),
            "DenseNet-BC-52-12 with a 3x3 stem",
            "arXiv:1608.06993",
            pretrained=_ours(
                file="cifar10_densenet_bc_52_12.safetensors", head="classifier.", accuracy=0.9221
            ),
        ),
        "imagenet_squeezenet1_0": Entry(
            _zoo.squeezenet1_0,
            "SqueezeNet 1.0, pruned and quantised by Deep Compression",
            "arXiv:1602.07360",
            (3, 224, 224),
            1000,
            _squeezenet,
        ),
    }
)
