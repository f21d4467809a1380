"""Readout bottleneck: a small network that has learned the masks, so that a map costs one pass.

Paper: K. Schulz, L. Sixt, F. Tombari, T. Landgraf, "Restricting the Flow: Information Bottlenecks
for Attribution", ICLR 2020, arXiv:2001.00396, section 3.3.
Departures: features are normalised by mean and standard deviation (the paper's code divides only);
the floor of the standard deviation holds here too; the hidden width is 2C, as in the released
weights, where the paper's text has C/4.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from addis.explain._attribution import Attribution
from addis.explain._inputs import as_targets, check_finite, check_input, class_scores
from addis.explain._layers import capture, check_depends, find_layer, undisturbed, unwrap
from addis.explain._noise import Noise
from addis.explain._objectives import cross_entropy
from addis.explain._restricted import Restricted, restrict
from addis.explain._split import Splitter
from addis.explain._stats import BottleneckStats, PriorName, estimate_all

__all__ = ["ReadoutBottleneck"]

_BOUND = 5.0
"""alpha is kept in ``[-5, 5]``, section 3.3."""


class ReadoutBottleneck(nn.Module):
    """Masks for the features of one layer, predicted from what several layers gave in a clean pass.

    The features that are read are normalised, resized to the layer's grid (those without positions
    are spread over it) and put through three 1x1 convolutions, which give ``alpha``;
    ``lambda = blur(sigmoid(alpha))``. At the start the last convolution gives 5 nearly everywhere:
    an open mask.

    The model is neither a submodule nor changed; ``state_dict`` holds the network and the
    statistics only.

    Args:
        model: A classifier.
        layer: Layer to restrict, with channels-first maps ``(C, H, W)``.
        readout: Layers to read. The paper: VGG-16 ``features.10, 17, 24, 28`` and the last
            classifier layer with the bottleneck at ``features.10``; ResNet-50 ``layer1`` to
            ``layer4`` and ``fc`` with it at ``layer1``.
        stats: Statistics of ``layer`` and then of each readout layer, as from :meth:`estimate`.
        beta: Weight of the mean information in the loss, ``>= 0``.
        hidden: Width of the second convolution; ``None`` means 2C.
        smooth: Standard deviation of the mask's blur in cells, ``>= 0``.
        min_std: Floor of the standard deviations, ``> 0``.
        active_threshold: A cell that is not zero in at most this fraction of the samples is
            inactive.
        clamp: Cuts the noised features off at 0.
        seed: Seed of the network's start.

    Raises:
        ValueError: An argument is out of its range, or the statistics do not fit the layers.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        >>> stats = ReadoutBottleneck.estimate(model, "1", ["1", "3"], torch.randn(1000, 1, 8, 8))
        >>> readout = ReadoutBottleneck(model, "1", ["1", "3"], stats)
        >>> batches = [(torch.randn(8, 1, 8, 8), torch.zeros(8, dtype=torch.int64))]
        >>> losses = readout.fit(batches, epochs=1)
        >>> readout.attribute(torch.randn(5, 1, 8, 8)).map.shape
        torch.Size([5, 8, 8])
    """

    def __init__(
        self,
        model: nn.Module,
        layer: str | nn.Module,
        readout: Sequence[str | nn.Module],
        stats: Sequence[BottleneckStats],
        *,
        beta: float = 10.0,
        hidden: int | None = None,
        smooth: float = 1.0,
        min_std: float = 0.01,
        active_threshold: float = 0.01,
        clamp: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not beta >= 0 or not smooth >= 0 or not min_std > 0:
            raise ValueError(
                f"need beta >= 0, smooth >= 0 and min_std > 0, got {beta}, {smooth} and {min_std}"
            )
        if not readout or len(stats) != len(readout) + 1:
            raise ValueError(
                f"need one or more readout layers and stats of the layer and of each, got "
                f"{len(readout)} layers and {len(stats)} stats"
            )
        if len(stats[0].shape) != 3:
            raise ValueError(f"the layer must give maps (C, H, W), its stats have {stats[0].shape}")
        for name, each in zip(readout, stats[1:], strict=True):
            if len(each.shape) not in (1, 3):
                raise ValueError(
                    f"a readout layer must give maps (C, H, W) or vectors (C,), the stats of "
                    f"{name!r} have {each.shape}"
                )
        self.beta, self.smooth, self.min_std = beta, smooth, min_std
        self.active_threshold, self.clamp = active_threshold, clamp
        self.stats = nn.ModuleList(stats)
        inner = unwrap(model)
        self._held = (model, find_layer(inner, layer), [find_layer(inner, one) for one in readout])
        channels = stats[0].shape[0]
        read = sum(each.shape[0] for each in stats[1:])
        self.net = _network(read, hidden or 2 * channels, channels, seed).to(stats[0].mean.device)
        self._splitter: Splitter | None = None

    @staticmethod
    def estimate(
        model: nn.Module,
        layer: str | nn.Module,
        readout: Sequence[str | nn.Module],
        data: Tensor | Iterable[Tensor | Sequence[Any]],
        *,
        samples: int = 10_000,
        prior: PriorName = "gaussian",
    ) -> list[BottleneckStats]:
        """Statistics of the layer and of each readout layer, from one run over the data."""
        _, stats = estimate_all(model, [layer, *readout], data, samples=samples, prior=prior)
        return stats

    def forward(self, x: Tensor) -> Tensor:
        """Alpha ``(N, C, H, W)`` from a clean pass; gradients reach the network only."""
        check_input(x)
        model, _, readout = self._held
        with undisturbed(model) as inner:
            features, _ = capture(inner, readout, x)
        return self._alpha(features)

    def loss(self, x: Tensor, target: Tensor | int | None, *, seed: int) -> Tensor:
        """Mean cross-entropy of a batch plus ``beta`` times the mean information, a scalar.

        Its ``backward`` reaches the network's parameters and nothing else, so any loop can train
        it.

        Args:
            x: ``(N, C, H, W)``.
            target: Class of each image ``(N,)``, or one for all.
            seed: Seed of the noise, of which every image has its own.

        Raises:
            ValueError: The target does not fit, or the loss does not depend on the layer.
        """
        check_input(x)
        model, _, readout = self._held
        with undisturbed(model) as inner:
            features, _ = capture(inner, readout, x)
            alpha = self._alpha(features)
            site = self._restrict(x)
            mask, share = site.masks(alpha)
            seeds = [seed * len(x) + place for place in range(len(x))]
            output = site.run(mask, Noise(seeds, 1, site.features).draw())
            classes = as_targets(target, class_scores(site.split.output, len(x)))
            wrong = cross_entropy(classes)(output, site.index)
            if mask.requires_grad:
                check_depends(site.split.layer, wrong)
        total = wrong.to(alpha.dtype).mean() + self.beta * site.capacity(mask, share).mean()
        check_finite("the loss", total.detach())
        return total

    def fit(
        self,
        loader: Iterable[Sequence[Any]],
        *,
        epochs: int = 10,
        lr: float = 1e-5,
        seed: int = 0,
    ) -> list[float]:
        """Trains the network with Adam; the paper takes 10 to 20 epochs of the training set.

        Args:
            loader: Batches ``(x, target)``, iterated once an epoch.
            epochs: ``>= 1``.
            lr: Adam's step, ``> 0``.
            seed: Seed of the noise.

        Returns:
            The mean loss of each epoch.

        Raises:
            ValueError: A setting is out of its range, or the loader is empty.
        """
        if epochs < 1 or not lr > 0:
            raise ValueError(f"need epochs >= 1 and lr > 0, got {epochs} and {lr}")
        adam = torch.optim.Adam(self.net.parameters(), lr=lr)
        device = next(self.net.parameters()).device
        seeds = torch.Generator().manual_seed(seed)
        means = []
        for _ in range(epochs):
            losses = []
            for x, target in loader:
                noise = int(torch.randint(2**31, (), generator=seeds))
                loss = self.loss(x.to(device), target.to(device), seed=noise)
                adam.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                adam.step()
                losses.append(loss.detach())
            if not losses:
                raise ValueError("loader gave no batch")
            means.append(float(torch.stack(losses).mean()))
        return means

    @torch.no_grad()
    def attribute(self, x: Tensor, *, batch_size: int = 32) -> Attribution:
        """Explains a batch in one pass; the class is the one that the training targets stood for.

        Args:
            x: ``(N, C, H, W)``.
            batch_size: Images in one pass.

        Raises:
            TypeError: ``x`` is not floating point.
            FloatingPointError: The input, a feature or the capacity is not finite.
        """
        check_input(x)
        capacities, masks, maps = [], [], []
        model, layer, readout = self._held
        for chunk in torch.split(x, batch_size):
            with undisturbed(model) as inner:
                features, _ = capture(inner, readout, chunk)
                site = self._restrict(chunk)
            mask, share = site.masks(self._alpha(features))
            capacity = site.capacity(mask, share)
            check_finite("the capacity", capacity)
            capacities.append(capacity)
            masks.append(mask)
            maps.append(site.bits_map(capacity, per_pixel=True))
        whole = torch.cat(capacities)
        return Attribution(
            map=torch.cat(maps),
            total_bits=site.bits(whole),
            method="iba-readout",
            capacity=whole,
            mask=torch.cat(masks),
            layer=layer.name,
            unit="bits per pixel",
        )

    def _alpha(self, features: Sequence[Tensor]) -> Tensor:
        """The network on the features of the readout layers, normalised and on the layer's grid."""
        grid = self._stats[0].shape[1:]
        read = []
        for values, stats in zip(features, self._stats[1:], strict=True):
            if tuple(values.shape[1:]) != stats.shape:
                raise ValueError(
                    f"a readout layer gives {tuple(values.shape[1:])}, its stats have {stats.shape}"
                )
            precise = values.to(torch.promote_types(values.dtype, torch.float32))
            std = stats.std.clamp_min(self.min_std).to(precise)
            normal = (precise - stats.mean.to(precise)) / std
            if normal.dim() == 2:
                normal = normal[:, :, None, None].expand(-1, -1, *grid)
            else:
                normal = F.interpolate(normal, size=grid, mode="bilinear", align_corners=True)
            read.append(normal)
        with torch.autocast(read[0].device.type, enabled=False):
            alpha: Tensor = self.net(torch.cat(read, dim=1))
        return alpha.clamp(-_BOUND, _BOUND)

    @property
    def _stats(self) -> list[BottleneckStats]:
        return [each for each in self.stats if isinstance(each, BottleneckStats)]

    def _restrict(self, x: Tensor) -> Restricted:
        model, layer, _ = self._held
        if self._splitter is None:
            self._splitter = Splitter(unwrap(model), layer)
        return restrict(
            self._splitter,
            x,
            self._stats[0],
            draws=1,
            smooth=self.smooth,
            min_std=self.min_std,
            active_threshold=self.active_threshold,
            clamp=self.clamp,
            layout="channels_first",
        )


def _network(read: int, hidden: int, channels: int, seed: int) -> nn.Sequential:
    """Three 1x1 convolutions that start as a constant 5, up to a thousandth of the usual start."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(read, max(read // 2, 1), 1),
            nn.ReLU(),
            nn.Conv2d(max(read // 2, 1), hidden, 1),
            nn.ReLU(),
        )
        last = nn.Conv2d(hidden, channels, 1)
        nn.init.constant_(last.bias, _BOUND)  # type: ignore[arg-type]
        with torch.no_grad():
            last.weight.mul_(1e-3)
    return net.append(last)
