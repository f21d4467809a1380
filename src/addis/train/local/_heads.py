"""What a block is judged by: a small decoder, a similarity to the labels, or both.

Paper: A. Nøkland, L. H. Eidnes, "Training Neural Networks with Local Error Signals", ICML 2019,
arXiv:1901.06656, sections 2.1-2.4.
Departures: the bpf losses give a matrix ``R`` of their own to each block, as the authors' code
does, but as a buffer, so that no optimizer can reach it or the feedback matrix. Tokens meet a
linear ``g``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from addis.train.local._checks import check_fraction
from addis.train.local._feedback import FeedbackAlignmentLinear
from addis.train.local._losses import similarity_loss, similarity_matrix
from addis.train.local._shape import BlockShape, Pool

__all__ = [
    "LOSSES",
    "LocalHead",
    "LocalLosses",
    "Loss",
    "PredHead",
    "Reconstruction",
    "SimHead",
    "local_head",
]

Loss = Literal["pred", "sim", "predsim", "pred-bpf", "sim-bpf", "predsim-bpf"]
Unsupervised = Literal["sim", "reconstruction"]
LOSSES: Final[tuple[str, ...]] = get_args(Loss)
BETA: Final = {"predsim": 0.99, "predsim-bpf": 0.01}  # the released recipes


class LocalLosses(NamedTuple):
    """What a head says of one batch.

    Attributes:
        total: The scalar to minimise.
        pred: Cross-entropy of the block's decoder, unweighted; ``None`` without one.
        sim: Similarity loss, unweighted; ``None`` without one.
        unsupervised: Loss towards the block's input, unweighted; ``None`` without one.
        logits: The decoder's output ``(n, K)``, or ``(n, T)`` with the bpf losses.
    """

    total: Tensor
    pred: Tensor | None = None
    sim: Tensor | None = None
    unsupervised: Tensor | None = None
    logits: Tensor | None = None


class PredHead(nn.Module):
    """Cross-entropy of a linear decoder on the pooled features (the paper's pred).

    The decoder's weights start at 0, so that the first loss is about ``log K`` and sends no
    gradient to the features. With ``target_dim`` it is pred-bpf: feedback alignment, and binary
    cross-entropy against ``1[YR > 0]``.

    Args:
        shape: The block's features.
        num_classes: ``K``.
        dim_in_decoder: Most inputs of the decoder.
        target_dim: ``T`` of the bpf variant; ``None`` for plain pred.
        generator: CPU source of the decoder's bias, ``R`` and ``B``. ``None`` means torch's
            default.
    """

    projection: Tensor | None

    def __init__(
        self,
        shape: BlockShape,
        *,
        num_classes: int,
        dim_in_decoder: int = 4096,
        target_dim: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.pool = Pool(shape, dim_in_decoder)
        self.decoder: nn.Module
        if target_dim is None:
            decoder = nn.Linear(self.pool.features, num_classes)
            nn.init.zeros_(decoder.weight)
            bound = 1 / math.sqrt(self.pool.features)
            nn.init.uniform_(decoder.bias, -bound, bound, generator=generator)
            self.decoder = decoder
            projection = None
        else:
            self.decoder = FeedbackAlignmentLinear(
                self.pool.features, target_dim, generator=generator
            )
            projection = _projection(num_classes, target_dim, generator)
        self.register_buffer("projection", projection)

    def logits(self, h: Tensor) -> Tensor:
        """The decoder's output ``(n, K)``; ``(n, T)`` with bpf."""
        if isinstance(self.decoder, nn.Linear):
            return self.pool.linear(h, self.decoder.weight, self.decoder.bias)
        out: Tensor = self.decoder(self.pool(h).flatten(1))
        return out

    def forward(self, h: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The loss (mean over the batch) and the logits of features ``(n, *shape)``."""
        logits = self.logits(h)
        if self.projection is None:
            return F.cross_entropy(logits, y), logits
        bits = (_project(y, self.projection) > 0).to(logits.dtype)
        return F.binary_cross_entropy_with_logits(logits, bits), logits


class SimHead(nn.Module):
    """Similarity matching of the features seen through a trained ``g`` (the paper's sim).

    ``g`` is linear for flat features and tokens and a 3-wide convolution for maps, both without
    bias. With ``target_dim`` it is sim-bpf: no ``g``, pooled features, and the similarities of
    ``YR`` as the target.

    Args:
        shape: The block's features.
        num_classes: ``K``.
        dim_in_decoder: Most features after the pooling of the bpf variant.
        target_dim: ``T`` of the bpf variant; ``None`` for plain sim.
        projection: ``R (K, T)`` to share; ``None`` draws one.
        generator: CPU source of ``g`` and ``R``. ``None`` means torch's default.
    """

    class_similarity: Tensor | None
    projection: Tensor | None

    def __init__(
        self,
        shape: BlockShape,
        *,
        num_classes: int,
        dim_in_decoder: int = 4096,
        target_dim: int | None = None,
        projection: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.shape = shape
        self.num_classes = num_classes
        self.g: nn.Module
        if target_dim is None:
            self.g = _similarity_layer(shape, generator)
            projection = None
        else:
            self.g = Pool(shape, dim_in_decoder)
            if projection is None:
                projection = _projection(num_classes, target_dim, generator)
        classes = None if projection is None else similarity_matrix(projection)
        self.register_buffer("projection", projection)
        self.register_buffer("class_similarity", classes)

    def embed(self, h: Tensor) -> Tensor:
        """``g(h)`` as ``(n, D)`` or ``(n, C, H, W)``; with bpf the pooled features."""
        out: Tensor = self.g(h)
        return out if isinstance(self.g, Pool) else self.shape.maps(out)

    def match(self, embedded: Tensor, y: Tensor) -> Tensor:
        """The loss of ``g(h)``, the mean over all ``n²`` pairs of the batch."""
        if self.projection is None:
            return similarity_loss(embedded, y, num_classes=self.num_classes)
        assert self.class_similarity is not None
        if y.dim() == 1:
            target = self.class_similarity[y[:, None], y]
        else:
            target = similarity_matrix(_project(y, self.projection))
        return similarity_loss(embedded, target=target)

    def forward(self, h: Tensor, y: Tensor) -> Tensor:
        """The loss of features ``(n, *shape)``."""
        return self.match(self.embed(h), y)


class Reconstruction(nn.Module):
    """Mean squared error of the block's input, decoded from its features.

    Args:
        shape: The block's features.
        input_shape: The block's input, of the same layout.
        activation: Applied to the decoded input; the paper takes the block's own.
        generator: CPU source of the decoder. ``None`` means torch's default.

    Raises:
        ValueError: The layouts differ, or the input's sides are not multiples of the features'
            sides.
    """

    def __init__(
        self,
        shape: BlockShape,
        input_shape: BlockShape,
        *,
        activation: Callable[[Tensor], Tensor] = F.relu,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.decoder: nn.Module
        if shape.layout != input_shape.layout or len(shape.shape) != len(input_shape.shape):
            raise ValueError(
                f"block {shape.name!r} cannot reconstruct its input: it turns {input_shape.shape} "
                f"({input_shape.layout}) into {shape.shape} ({shape.layout})"
            )
        if shape.layout == "maps" and len(shape.shape) == 3:
            _, h, w = shape.shape
            _, ih, iw = input_shape.shape
            if ih % h or iw % w:
                raise ValueError(
                    f"block {shape.name!r} cannot reconstruct {ih}x{iw} maps from {h}x{w}: the "
                    "sides are not multiples"
                )
            stride = (ih // h, iw // w)
            kernel = (stride[0] + 2, stride[1] + 2)  # 3x3 at stride 1, as in the authors' code
            self.decoder = nn.ConvTranspose2d(
                shape.channels, input_shape.channels, kernel, stride, padding=1
            )
        elif shape.layout != "maps" and shape.shape[:-1] == input_shape.shape[:-1]:
            self.decoder = nn.Linear(shape.channels, input_shape.channels)
        else:
            raise ValueError(f"block {shape.name!r} of shape {shape.shape} cannot be decoded")
        _initialise(self.decoder, generator)

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        """The loss of features ``(n, *shape)`` and input ``(n, *input_shape)``."""
        return F.mse_loss(self.activation(self.decoder(h)), x.detach())


class LocalHead(nn.Module):
    """A block's loss: ``α·unsupervised + (1-α)·((1-β)·pred + β·sim)``, of the parts that are there.

    Args:
        pred: The decoder's part.
        sim: The similarity part; with ``unsupervised="sim"`` it also matches the input's
            similarities.
        beta: ``β``, the weight of sim beside pred in ``[0, 1]``. Without one of the two the other
            has weight 1.
        unsupervised: ``"sim"``, a `Reconstruction`, or ``None``.
        alpha: ``α`` in ``[0, 1]``; 0 in all the paper's runs.

    Raises:
        ValueError: No part, ``beta`` or ``alpha`` out of range, or ``"sim"`` without ``sim``.
    """

    def __init__(
        self,
        pred: PredHead | None,
        sim: SimHead | None,
        *,
        beta: float = 0.99,
        unsupervised: Literal["sim"] | Reconstruction | None = None,
        alpha: float = 0.0,
    ) -> None:
        super().__init__()
        if pred is None and sim is None:
            raise ValueError("a head needs pred or sim")
        check_fraction("beta", beta)
        check_fraction("alpha", alpha)
        if unsupervised == "sim" and sim is None:
            raise ValueError("unsupervised='sim' needs sim, whose g it shares")
        self.pred = pred
        self.sim = sim
        self.beta = 1.0 if pred is None else 0.0 if sim is None else beta
        self.alpha = alpha
        self.reconstruction = unsupervised if isinstance(unsupervised, Reconstruction) else None
        self.match_input = unsupervised == "sim"

    def forward(self, h: Tensor, y: Tensor, x: Tensor | None = None) -> LocalLosses:
        """The losses of features ``h (n, *shape)`` and, if unsupervised, of the input ``x``."""
        pred = sim = logits = unsupervised = None
        total: Tensor | float = 0.0
        if self.pred is not None:
            pred, logits = self.pred(h, y)
            total = total + (1 - self.beta) * pred
        if self.sim is not None:
            embedded = self.sim.embed(h)
            if self.beta > 0:
                sim = self.sim.match(embedded, y)
                total = total + self.beta * sim
            if self.match_input and x is not None:
                with torch.no_grad():
                    target = similarity_matrix(x if x.dim() in (2, 4) else x.flatten(1))
                unsupervised = similarity_loss(embedded, target=target)
        if self.reconstruction is not None and x is not None:
            unsupervised = self.reconstruction(h, x)
        if unsupervised is not None:
            total = self.alpha * unsupervised + (1 - self.alpha) * total
        assert isinstance(total, Tensor)
        return LocalLosses(total, pred, sim, unsupervised, logits)


def local_head(
    loss: Loss,
    shape: BlockShape,
    *,
    num_classes: int,
    beta: float | None = None,
    dim_in_decoder: int = 4096,
    target_dim: int = 128,
    unsupervised: Literal["sim"] | Reconstruction | None = None,
    alpha: float = 0.0,
    generator: torch.Generator | None = None,
) -> LocalHead:
    """The head of one of the six losses for features of a given shape.

    Args:
        loss: ``"pred"``, ``"sim"``, ``"predsim"`` or one of these with ``"-bpf"``.
        shape: The block's features.
        num_classes: ``K >= 2``.
        beta: Weight of sim in the predsim losses; ``None`` means 0.99, and 0.01 with bpf, as
            released.
        dim_in_decoder: Most inputs of the decoder, ``>= 1``.
        target_dim: ``T`` of the bpf losses, ``>= 1``.
        unsupervised: See `LocalHead`.
        alpha: See `LocalHead`.
        generator: CPU source of the initial weights and random matrices. ``None`` means torch's
            default.

    Raises:
        ValueError: An argument outside its range.
    """
    if loss not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {loss!r}")
    if num_classes < 2:
        raise ValueError(f"num_classes must be >= 2, got {num_classes}")
    if dim_in_decoder < 1 or target_dim < 1:
        raise ValueError(
            f"dim_in_decoder and target_dim must be >= 1, got {dim_in_decoder} and {target_dim}"
        )
    parts, _, bpf = loss.partition("-")
    size = target_dim if bpf else None
    pred = sim = None
    if parts.startswith("pred"):
        pred = PredHead(
            shape,
            num_classes=num_classes,
            dim_in_decoder=dim_in_decoder,
            target_dim=size,
            generator=generator,
        )
    if parts.endswith("sim") or unsupervised == "sim":
        sim = SimHead(
            shape,
            num_classes=num_classes,
            dim_in_decoder=dim_in_decoder,
            target_dim=size,
            projection=None if pred is None else pred.projection,
            generator=generator,
        )
    weight = BETA.get(loss, 0.0) if beta is None else beta
    return LocalHead(
        pred,
        sim,
        beta=weight if parts == "predsim" else 0.0,
        unsupervised=unsupervised,
        alpha=alpha,
    )


def _similarity_layer(shape: BlockShape, generator: torch.Generator | None) -> nn.Module:
    c = shape.channels
    convolutions = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
    if shape.layout != "maps":
        layer: nn.Module = nn.Linear(c, c, bias=False)
    else:
        layer = convolutions[len(shape.shape) - 1](c, c, 3, padding=1, bias=False)
    return _initialise(layer, generator)


def _initialise(layer: nn.Module, generator: torch.Generator | None) -> nn.Module:
    """Draws torch's default initial weights from ``generator``."""
    for parameter in layer.parameters(recurse=False):
        if parameter.dim() > 1:
            fan_in, _ = nn.init._calculate_fan_in_and_fan_out(parameter)
            bound = 1 / math.sqrt(fan_in)
        nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return layer


def _projection(num_classes: int, target_dim: int, generator: torch.Generator | None) -> Tensor:
    """``R (K, T)``, the default weights of a linear layer from ``K`` to ``T``."""
    bound = 1 / math.sqrt(num_classes)
    return torch.empty(num_classes, target_dim).uniform_(-bound, bound, generator=generator)


def _project(y: Tensor, projection: Tensor) -> Tensor:
    """``YR (n, T)`` of class numbers ``(n,)`` or soft labels ``(n, K)``."""
    return projection[y] if y.dim() == 1 else y.to(projection.dtype) @ projection
