"""The neutral form of a data set between its source, the cache and the public types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["Columns"]


@dataclass(frozen=True)
class Columns:
    """Named arrays and named lists of strings: all that the cache can hold."""

    arrays: Mapping[str, np.ndarray[Any, Any]]
    texts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def tensor(self, name: str) -> Tensor:
        """The array ``name`` as a tensor that shares its memory."""
        return torch.from_numpy(self.arrays[name])
