"""What the C library does with the memory of a training step."""

from __future__ import annotations

import ctypes
import sys

__all__ = ["keep_freed_memory"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Names of glibc's ``mallopt``."""


def keep_freed_memory() -> None:
    """Lets glibc keep what this process frees for its next allocation.

    A training step frees its feature maps and the next one asks for them again. By glibc's defaults
    their pages often go to the system and back in between, and the kernel zeroes each of them: 10
    to 14 % of a step of ResNet-20 on a CPU (``addis bench 00``).
    Afterwards the process holds its largest need, up to 2 GiB of it unused, until it ends. ``addis
    run`` and ``addis bench`` call it. With other C libraries it does nothing.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(_MMAP_THRESHOLD, 32 << 20)  # the largest value that every release takes
        mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)
