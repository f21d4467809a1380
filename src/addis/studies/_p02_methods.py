"""The methods that study 02 compares, each as ``explain(model, x, target) -> (N, H, W)``."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from functools import partial
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from addis import data, explain
from addis.studies._p02_scenes import Scene

__all__ = ["BETAS", "Bottleneck", "Explain", "explainers", "readout"]

T = TypeVar("T")

Explain = Callable[[nn.Module, Tensor, Tensor], Tensor]

BETAS = (1, 10, 100)
"""The paper's 1/k, 10/k and 100/k."""
PATTERN_IMAGES = 1000
"""Images that patterns are estimated from. Every position of a convolution is a sample of it, so
that few images are enough: of ResNet-20 the maps from 1000 and 2000 correlate by 0.9999 (from 100
by 0.988), and of SqueezeNet those from 100 and 200 by 0.996.
"""
LARGE = 10_000
"""Numbers of an image above which 20 make a batch of the patterns, not 100: SqueezeNet's early
layers have 3 million outputs an image.
"""


class _Fitted(Generic[T]):
    """What is estimated for a scene's model, again whenever its weights or statistics are others: a
    copy with the same ones needs no estimate of its own.
    """

    def __init__(self, fit: Callable[[nn.Module], T]) -> None:
        self._fit = fit
        self._found: tuple[dict[str, Tensor], T] | None = None

    def on(self, model: nn.Module) -> T:
        state = model.state_dict()
        if self._found is None or not _same(self._found[0], state):
            kept = {name: value.clone() for name, value in state.items()}
            self._found = kept, self._fit(model)
        return self._found[1]


def _same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[name].device == b[name].device and torch.equal(a[name], b[name]) for name in a
    )


class Bottleneck:
    """Per-sample bottleneck with the paper's settings.

    Statistics belong to a model and a size of input: they are estimated again for each model that
    it is asked to explain, from images that do not change.

    Args:
        layer: Name of the layer to restrict.
        calibration: Images for the statistics ``(M, C, H, W)``.
        beta: Weight of the information.
        seed: Seed of the noise.
    """

    def __init__(self, layer: str, calibration: Tensor, beta: float, seed: int = 0) -> None:
        self.layer, self.calibration, self.beta, self.seed = layer, calibration, beta, seed
        self._stats = _Fitted(self._estimate)
        self._made: explain.InformationBottleneck | None = None

    def weighing(self, beta: float) -> Bottleneck:
        """The same but for the weight of the information; the statistics are shared."""
        other = Bottleneck(self.layer, self.calibration, beta, self.seed)
        other._stats = self._stats
        return other

    def on(self, model: nn.Module) -> explain.InformationBottleneck:
        """The bottleneck of ``model``, with statistics of the weights that it has now."""
        stats = self._stats.on(model)
        if self._made is None or self._made.model is not model or self._made.stats is not stats:
            self._made = explain.InformationBottleneck(
                model, self.layer, stats, beta=self.beta, seed=self.seed
            )
        return self._made

    def _estimate(self, model: nn.Module) -> explain.BottleneckStats:
        batches = torch.split(self.calibration, 100)
        return explain.BottleneckStats.estimate(model, self.layer, batches)

    def attribute(self, model: nn.Module, x: Tensor, target: Tensor) -> explain.Attribution:
        """The maps with their bits."""
        return self.on(model).attribute(x, target)

    def __call__(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        return self.attribute(model, x, target).map


def _pattern_attribution(calibration: Tensor) -> Explain:
    """PatternAttribution with patterns of the model that it is asked to explain."""

    def fit(model: nn.Module) -> explain.Patterns:
        size = 20 if calibration[0].numel() > LARGE else 100
        batches = torch.split(calibration, size)
        return explain.Patterns.estimate(model, batches, samples=PATTERN_IMAGES)

    patterns = _Fitted(fit)
    return lambda model, x, target: explain.pattern_attribution(
        model, x, target, patterns.on(model)
    )


def explainers(scene: Scene, seed: int) -> dict[str, Explain]:
    """Every method of the tables that fits any model; those that draw at random draw from ``seed``.

    LRP is among them where zennit is installed. Large patches overlap by half on small images.
    """
    found: dict[str, Explain] = {
        "random": partial(explain.random_map, seed=seed),
        "saliency": explain.saliency,
        "blurred saliency": explain.blurred_saliency,
        "gradient x input": explain.gradient_x_input,
        "smoothgrad": partial(explain.smoothgrad, seed=seed),
        "integrated gradients": explain.integrated_gradients,
        "guided backprop": explain.guided_backprop,
        "pattern attribution": _pattern_attribution(scene.calibration),
        "grad-cam": partial(explain.gradcam, layer=scene.last),
        "grad-cam same layer": partial(explain.gradcam, layer=scene.layer),
        "hirescam same layer": partial(explain.hirescam, layer=scene.layer),
        "layercam same layer": partial(explain.layercam, layer=scene.layer),
        "guided grad-cam": partial(explain.guided_gradcam, layer=scene.last),
    }
    small, large = scene.patches
    found[f"occlusion {small}"] = partial(explain.occlusion, patch=small)
    found[f"occlusion {large}"] = partial(
        explain.occlusion, patch=large, stride=large // 2 if large < 14 else large
    )
    if importlib.util.find_spec("zennit"):
        found["lrp"] = explain.lrp
    bottleneck = Bottleneck(scene.layer, scene.calibration, BETAS[0], seed)
    found |= {f"iba {beta}": bottleneck.weighing(beta) for beta in BETAS}
    for name, layer in scene.others:
        found[f"iba 10 {name}"] = Bottleneck(layer, scene.calibration, 10, seed)
    return found


def readout(scene: Scene, seed: int, *, images: int = 5000, epochs: int = 20) -> Explain:
    """A readout bottleneck at ``layer1`` that reads ``layer1`` to ``layer3`` and the classifier.

    The paper trains for 10 to 20 epochs of a million images with a step of 1e-5. Here are
    ``images`` images, 2000 updates in all, and the step is 1e-3. (Three epochs, 300 updates, left
    its maps no better than random ones.)
    """
    layers = ["layer1", "layer2", "layer3", "linear"]
    stats = explain.ReadoutBottleneck.estimate(
        scene.model, "layer1", layers, torch.split(scene.calibration[:2000], 100)
    )
    bottleneck = explain.ReadoutBottleneck(scene.model, "layer1", layers, stats, seed=seed)
    learn = data.load("cifar10", "train")
    learned = scene.calibration[:images].cpu(), learn.targets[:images]
    loader = data.Batches(learned, 50, seed=seed, device=scene.x.device)
    bottleneck.fit(loader, epochs=epochs, lr=1e-3, seed=seed)
    return lambda model, x, target: bottleneck.attribute(x).map
