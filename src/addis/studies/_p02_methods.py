"""The methods that study 02 compares, each as ``explain(model, x, target) -> (N, H, W)``."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
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


class _Fitted(Generic[T]):
    """What is estimated for a model, again whenever the model or its weights are others."""

    def __init__(self, fit: Callable[[nn.Module], T]) -> None:
        self._fit = fit
        self._found: tuple[nn.Module, T] | None = None
        self._weights: list[Tensor] = []

    def on(self, model: nn.Module) -> T:
        weights = [p.detach() for p in model.parameters()]
        if (
            self._found is None
            or self._found[0] is not model
            or any(not torch.equal(a, b) for a, b in zip(weights, self._weights, strict=True))
        ):
            self._found, self._weights = (model, self._fit(model)), [w.clone() for w in weights]
        return self._found[1]


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
        self._fitted = _Fitted(self._fit)

    def on(self, model: nn.Module) -> explain.InformationBottleneck:
        """The bottleneck of ``model``, with statistics of the weights that it has now."""
        return self._fitted.on(model)

    def _fit(self, model: nn.Module) -> explain.InformationBottleneck:
        iba = explain.InformationBottleneck(model, self.layer, beta=self.beta, seed=self.seed)
        batches = torch.split(self.calibration, 100)
        iba.stats = explain.BottleneckStats.estimate(model, self.layer, batches)
        return iba

    def attribute(self, model: nn.Module, x: Tensor, target: Tensor) -> explain.Attribution:
        """The maps with their bits."""
        return self.on(model).attribute(x, target)

    def __call__(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        return self.attribute(model, x, target).map


def _pattern_attribution(calibration: Tensor) -> Explain:
    """PatternAttribution with patterns of the model that it is asked to explain."""

    def fit(model: nn.Module) -> explain.Patterns:
        batches = torch.split(calibration, 20)  # some layers of SqueezeNet are large
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
    for beta in BETAS:
        found[f"iba {beta}"] = Bottleneck(scene.layer, scene.calibration, beta, seed)
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
