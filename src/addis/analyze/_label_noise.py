"""Label noise that is drawn once: some training labels are replaced for good by another class.

Paper: P. Nakkiran et al., "Deep Double Descent", ICLR 2020, arXiv:1912.02292, section 2: with
probability p a label is replaced, for all epochs, by a uniformly drawn incorrect class; test labels
stay clean.
Departures: besides the paper's symmetric noise, noise towards the next class and noise by a
confusion matrix. The noise of one seed is nested: the labels wrong at p = 0.1 are wrong in the same
way at p = 0.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from addis.analyze._data import Labelled, inputs_of, stream, take

__all__ = ["LabelNoise", "NoiseKind", "noisy_labels"]

NoiseKind = Literal["symmetric", "pairwise"]


def noisy_labels(
    targets: Tensor,
    p: float,
    *,
    num_classes: int,
    seed: int = 0,
    kind: NoiseKind | Tensor = "symmetric",
) -> Tensor:
    """Replaces each label with probability ``p`` by another class.

    Two uniform numbers a label decide whether it changes and to which class. They depend on the
    seed, the label's position and the number of labels alone, so a larger ``p`` changes more labels
    but none otherwise. The first labels of a longer ``targets`` change to other classes than those
    labels alone: for nested samples draw the noise once, then take samples, as
    :meth:`LabelNoise.subset` does.

    >>> clean = torch.arange(10).repeat(100)
    >>> round(float((noisy_labels(clean, 0.2, num_classes=10) != clean).float().mean()), 1)
    0.2

    Args:
        targets: int64 ``(N,)``, classes from 0.
        p: Probability that a label changes, in ``[0, 1)``. A changed label is never the true one,
            so ``p`` is the expected fraction of wrong labels.
        num_classes: ``K``.
        seed: Source of the noise.
        kind: ``"symmetric"``: uniform over the other ``K - 1`` classes, as in the paper.
            ``"pairwise"``: always the next class, ``K - 1`` turns to 0. Or a matrix ``(K, K)``
            whose row ``i`` is the distribution of the wrong label given that a label ``i`` changes;
            its diagonal is 0.

    Returns:
        int64 ``(N,)`` on the device of ``targets``; ``targets`` itself if ``p == 0``.

    Raises:
        TypeError: ``targets`` is not int64.
        ValueError: ``p`` is not in ``[0, 1)``, one class has nothing to change to, a label is
            outside ``0 ... K - 1``, or the matrix has another shape, a diagonal entry, or a row
            that is no distribution.
    """
    if not 0.0 <= p < 1.0:
        raise ValueError(f"noise must be in [0, 1), got {p}")
    if targets.dtype != torch.int64:
        raise TypeError(f"targets must be int64 classes, got {targets.dtype}")
    if targets.dim() != 1:
        raise ValueError(f"targets must be (N,), got shape {tuple(targets.shape)}")
    if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < num_classes:
        raise ValueError(
            f"targets must be in 0 ... {num_classes - 1}, "
            f"got {int(targets.min())} ... {int(targets.max())}"
        )
    confusion = _confusion(kind, num_classes, wanted=p > 0)
    if p == 0:
        return targets
    generator = stream(seed, "label noise")
    change, which = torch.rand(2, len(targets), generator=generator, dtype=torch.float64)
    true = targets.cpu()
    cumulated = confusion.cumsum(1)
    cumulated /= cumulated[:, -1:]  # the last step is exactly 1, so that no number falls beyond it
    wrong = torch.searchsorted(cumulated[true], which[:, None], right=True).squeeze(1)
    return torch.where(change < p, wrong, true).to(targets.device)


def _confusion(kind: NoiseKind | Tensor, num_classes: int, *, wanted: bool) -> Tensor:
    """Row ``i``: distribution of the new label of a changed label ``i``; float64 ``(K, K)`` with a
    zero diagonal.
    """
    if wanted and num_classes < 2:
        raise ValueError(f"noise > 0 needs at least 2 classes, got {num_classes}")
    eye = torch.eye(num_classes, dtype=torch.float64)
    if isinstance(kind, Tensor):
        matrix = kind.detach().cpu().double()
        if matrix.shape != eye.shape:
            raise ValueError(
                f"kind must be a ({num_classes}, {num_classes}) matrix, got {tuple(matrix.shape)}"
            )
        sums = matrix.sum(1)
        if bool((matrix < 0).any()) or not torch.allclose(sums, torch.ones_like(sums)):
            raise ValueError(
                f"each row of kind must be a distribution, got row sums {sums.tolist()}"
            )
        if bool(matrix.diagonal().any()):
            raise ValueError(
                "kind holds the distribution of the wrong label, its diagonal must be 0, got "
                f"{matrix.diagonal().tolist()}"
            )
        return matrix
    if kind == "pairwise":
        return eye.roll(1, dims=1)
    if kind == "symmetric":
        return (1 - eye) / max(num_classes - 1, 1)
    raise ValueError(f"kind must be 'symmetric', 'pairwise' or a matrix, got {kind!r}")


class LabelNoise(Dataset[tuple[Tensor, int]]):
    """A labelled data set in which some labels are wrong, always the same ones.

    >>> from torch.utils.data import TensorDataset
    >>> data = TensorDataset(torch.rand(1000, 2), torch.arange(1000) % 4)
    >>> noisy = LabelNoise(data, p=0.25, seed=1)
    >>> int(noisy.changed.sum())
    248
    >>> noisy.memorised(noisy.targets)  # a model that has learnt every wrong label by heart
    1.0

    Args:
        dataset: Any map-style data set of ``(input, class)`` pairs; read through ``targets`` where
            it has them, through ``tensors[1]`` of a ``TensorDataset``, else item by item.
        p: Probability that a label is wrong, in ``[0, 1)``.
        seed: Source of the noise.
        kind: ``"symmetric"``, ``"pairwise"`` or a matrix, see :func:`noisy_labels`.
        num_classes: ``K``; by default the length of ``dataset.classes``, else the largest label
            plus 1.

    Attributes:
        dataset: The data set underneath.
        targets: int64 ``(N,)``, with noise; the very tensor of the data set if ``p == 0``.
        true_targets: int64 ``(N,)``, without.
        num_classes: ``K``.

    Raises:
        ValueError: See :func:`noisy_labels`.
    """

    def __init__(
        self,
        dataset: Labelled,
        p: float,
        seed: int = 0,
        kind: NoiseKind | Tensor = "symmetric",
        *,
        num_classes: int | None = None,
    ) -> None:
        self.dataset = dataset
        self.p = p
        self.true_targets = _targets_of(dataset)
        classes = getattr(dataset, "classes", None)
        largest = int(self.true_targets.max()) + 1 if len(self.true_targets) else 1
        self.num_classes = num_classes or (len(classes) if classes is not None else largest)
        self.targets = noisy_labels(
            self.true_targets, p, num_classes=self.num_classes, seed=seed, kind=kind
        )

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.dataset[index][0], int(self.targets[index])

    @property
    def changed(self) -> Tensor:
        """Which labels are wrong, bool ``(N,)``."""
        return self.targets != self.true_targets

    @property
    def xy(self) -> tuple[Tensor, Tensor]:
        """All inputs ``(N, ...)`` and the labels with noise, int64 ``(N,)``.

        Inputs of a ``TensorDataset`` are the very tensor, of whatever dtype; those of
        ``addis.data`` are float32.
        """
        return inputs_of(self.dataset), self.targets

    def subset(self, indices: Tensor | Sequence[int]) -> LabelNoise:
        """Some of the samples in the given order, each with the label that it has here."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        part = LabelNoise.__new__(LabelNoise)
        part.dataset = take(self.dataset, index)
        part.p = self.p
        part.num_classes = self.num_classes
        part.true_targets = self.true_targets[index]
        part.targets = self.targets[index]
        return part

    def memorised(self, predictions: Tensor) -> float:
        """Fraction of the wrong labels that a model predicts: how much of the noise it has fitted.

        Args:
            predictions: int64 ``(N,)``, predicted classes of the samples in order.

        Returns:
            A number in ``[0, 1]``; NaN if no label is wrong.

        Raises:
            ValueError: ``predictions`` has another shape.
        """
        return self._agreement(predictions, self.targets)

    def recovered(self, predictions: Tensor) -> float:
        """Fraction of the wrong labels for which a model predicts the true class, as
        :meth:`memorised`.
        """
        return self._agreement(predictions, self.true_targets)

    def _agreement(self, predictions: Tensor, reference: Tensor) -> float:
        if predictions.shape != reference.shape:
            raise ValueError(
                f"predictions must be {tuple(reference.shape)}, got {tuple(predictions.shape)}"
            )
        same = predictions.to(reference.device) == reference
        return float(same[self.changed].double().mean())


def _targets_of(dataset: Labelled) -> Tensor:
    targets = getattr(dataset, "targets", None)
    if targets is None and hasattr(dataset, "tensors"):
        targets = dataset.tensors[1]
    if targets is None:
        targets = [int(dataset[i][1]) for i in range(len(dataset))]
    return torch.as_tensor(targets)
