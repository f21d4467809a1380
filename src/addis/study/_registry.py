"""Finds studies and benchmarks by their paper's number, and imports only those asked for."""

from __future__ import annotations

import importlib
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from addis.methods import Method, methods
from addis.study._bench import Row
from addis.study._study import Study

__all__ = ["benchmarks", "find", "study"]


def find(name: str) -> Method:
    """The method that ``name`` means: the number of its paper (``"2"``, ``"02"``) or its own name
    (``"iba"``).

    Raises:
        ValueError: There is none; the message lists those there are.
    """
    known = methods()
    for method in known:
        if name.lower() == method.name or (name.isdigit() and method.study == name.zfill(2)):
            return method
    listed = ", ".join(f"{method.study} ({method.name})" for method in known)
    raise ValueError(f"no paper {name!r}; there are {listed}")


def study(name: str) -> Study[Any]:
    """Imports the study of a paper.

    Args:
        name: Its number or its method's name.

    Raises:
        ValueError: No paper has this name, or its module defines no study of it.
    """
    method = find(name)
    for module in pkgutil.iter_modules(importlib.import_module("addis.studies").__path__):
        if re.match(rf"p{method.study}_", module.name):
            found = importlib.import_module(f"addis.studies.{module.name}").STUDY
            if not isinstance(found, Study) or found.method != method:
                raise ValueError(f"{module.name}.STUDY is not the study of {method.name}")
            return found
    raise ValueError(f"paper {method.study} ({method.name}) has no study yet")


def benchmarks(name: str) -> Iterator[Callable[..., Iterator[Row]]]:
    """The ``rows`` function of each benchmark of a paper, read from the folder ``benchmarks``.

    The folder stands beside ``src`` in a checkout and inside the package in an installed wheel.

    The number ``"00"`` means the ground: data, training, the engine.

    Raises:
        ValueError: No paper has this name, or it has no benchmark.
    """
    number = "00" if name == "00" else find(name).study
    files = [file for folder in _folders() for file in sorted(folder.glob(f"b{number}_*.py"))]
    if not files:
        raise ValueError(f"paper {number} has no benchmark")
    for file in files:
        if str(file.parent) not in sys.path:  # by name, so that worker processes find it too
            sys.path.append(str(file.parent))
        yield importlib.import_module(file.stem).rows


def _folders() -> list[Path]:
    package = Path(__file__).parents[1]
    candidates = [package / "benchmarks", package.parents[1] / "benchmarks"]
    return [folder for folder in candidates if folder.is_dir()][:1]
