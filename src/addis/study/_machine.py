"""What a measurement must say of the machine and the libraries it was made with."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from functools import cache
from pathlib import Path
from typing import Final

__all__ = ["machine", "versions"]

_LIBRARIES: Final = ("addis", "torch", "torchvision", "numpy", "scipy", "scikit-learn", "timm")


@cache
def machine() -> dict[str, str | int]:
    """Processor, the cores this process may use, memory in GiB, GPU, system and Python."""
    import torch

    pages, page = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    found: dict[str, str | int] = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(pages * page / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(
        re.findall(r"^(model name|cpu family|model)\s*:\s*(.+)$", text, flags=re.MULTILINE)
    )
    name = re.sub(r"\((R|TM)\)", "", fields.get("model name", platform.machine()))
    return f"{name} (family {fields.get('cpu family', '?')}, model {fields.get('model', '?')})"


@cache
def versions() -> dict[str, str]:
    """Installed versions of the libraries that results depend on."""
    return {name: importlib.metadata.version(name) for name in _LIBRARIES}
