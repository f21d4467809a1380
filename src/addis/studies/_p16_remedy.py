"""The trial of study 16 that trains deep nets with a remedy, and lets them vote."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from addis.studies._p16_trials import Deep, images, trained
from addis.study import Value

__all__ = ["Remedy", "ensemble_errors", "remedy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedy(Deep):
    """The nets of :class:`Deep`, at least two, with weight decay; clean labels are ``noise=0``."""

    weight_decay: float
    """The optimiser's, on all parameters, as in ``torch.optim``."""


def remedy(args: Remedy) -> Mapping[str, Value]:
    """The errors of ``deep``, and the test errors at the end of the nets together.

    ``vote_error`` and ``mean_error``, as :func:`ensemble_errors` has them, are ``(E + 1,)``: of all
    E nets, then of those without the first, without the second, and so on.
    """
    copies = len(args.seeds)
    if copies < 2:
        raise ValueError(f"seeds must be at least two, got {copies}")
    trainer, errors = trained(args, args.weight_decay)
    x, y = images(args.source).test
    logits = torch.cat([trainer.outputs(rows) for rows in torch.split(x, 1000)], dim=1).cpu()
    everyone = torch.arange(copies)
    groups = [everyone, *(everyone[everyone != left_out] for left_out in range(copies))]
    votes, means = zip(*(ensemble_errors(logits[group], y) for group in groups), strict=True)
    return {**errors, "vote_error": np.array(votes), "mean_error": np.array(means)}


def ensemble_errors(logits: Tensor, y: Tensor) -> tuple[float, float]:
    """Error of E nets by plurality vote, as in the paper, and by their mean probabilities.

    Where classes have as many votes, the one with the higher mean probability wins.

    Args:
        logits: ``(E, N, K)``.
        y: Right classes, ``(N,)``.
    """
    mean = logits.double().softmax(2).mean(0)  # (N, K)
    votes = F.one_hot(logits.argmax(2), logits.shape[2]).sum(0)
    vote = (votes + mean / 2).argmax(1)
    wrong = (vote != y, mean.argmax(1) != y)
    return float(wrong[0].double().mean()), float(wrong[1].double().mean())
