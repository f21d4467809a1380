"""What must stay small while information is taken away."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from addis.explain._inputs import class_scores

__all__ = ["Objective", "cross_entropy", "logit_margin"]

Objective = Callable[[Any, Tensor], Tensor]
"""``objective(output, index) -> (rows,)``: the loss of each row of the model's output, to be made
small.

``index`` ``(rows,)`` is the number in the batch of the image that each row belongs to.
"""


def cross_entropy(target: Tensor) -> Objective:
    """The objective of the paper: the cross-entropy of each image's class, ``target`` ``(N,)``."""

    def objective(output: Any, index: Tensor) -> Tensor:
        logits = class_scores(output)
        if logits.shape[1] == 1:
            return -F.logsigmoid(logits[:, 0])
        return F.cross_entropy(logits, target.to(logits.device)[index], reduction="none")

    return objective


def logit_margin(target: Tensor) -> Objective:
    """The best other logit less that of each image's class: what separates the class from its
    rival.

    Args:
        target: Class of each image, ``(N,)`` int64.

    Example:
        >>> import torch
        >>> loss = logit_margin(torch.tensor([0]))
        >>> loss(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0]))
        tensor([-1.])
    """

    def objective(output: Any, index: Tensor) -> Tensor:
        logits = class_scores(output)
        classes = target.to(logits.device)[index][:, None]
        others = logits.scatter(1, classes, -math.inf).amax(dim=1)
        return others - logits.gather(1, classes)[:, 0]

    return objective
