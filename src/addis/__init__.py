"""The methods of 24 papers on image recognition, on your own model and data, each claim re-run."""

import importlib
import pkgutil
from types import ModuleType

__version__ = "0.1.0"

_ROOMS = frozenset(module.name for module in pkgutil.iter_modules(__path__))


def __getattr__(name: str) -> ModuleType:
    """Imports a subpackage on first use, so that ``import addis`` alone stays fast."""
    if name in _ROOMS:
        return importlib.import_module(f"addis.{name}")
    raise AttributeError(f"module 'addis' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ROOMS} - {"importlib", "pkgutil", "ModuleType"})
