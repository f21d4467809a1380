"""The record of a method, and how the records are found without importing the methods.

A method's file holds one constant ``METHOD = Method(...)`` whose arguments are literals. The
command, the documentation and the report read these constants from the source text, so that listing
every method costs neither an import of torch nor of anything that a method needs.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

__all__ = ["Method", "methods"]

_MARK: Final = "METHOD = Method("


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """What the project says once about a method.

    Args:
        name: The method's name in the command, in lower case with hyphens.
        verb: The package that holds it: ``explain``, ``train``, ...
        title: The paper's title.
        arxiv: The paper's arXiv number.
        study: The number of the study that re-runs the paper, as text (``"02"``).
        venue: Where it appeared: ``"ICLR 2020"``.
        summary: What it does for the user, one sentence.
        version: Raised when a change alters the method's results, so that stored trials are run
            again.
    """

    name: str
    verb: str
    title: str
    arxiv: str
    study: str
    venue: str
    summary: str
    version: int = 1


@cache
def methods() -> tuple[Method, ...]:
    """Reads the record of every method in the package, ordered by study and name.

    Raises:
        ValueError: A record's arguments are not literals, or two records have one name.
    """
    found = sorted(_records(Path(__file__).parent), key=lambda method: (method.study, method.name))
    names = [method.name for method in found]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two methods have the name {name!r}")
    return tuple(found)


def _records(package: Path) -> Iterator[Method]:
    for path in package.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if path != Path(__file__) and f"\n{_MARK}" in text:
            yield _record(path, text)


def _record(path: Path, text: str) -> Method:
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "METHOD":
            call = node.value
            keywords = call.keywords if isinstance(call, ast.Call) and not call.args else []
            try:
                return Method(**{str(k.arg): ast.literal_eval(k.value) for k in keywords})
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path}: METHOD must be a literal record: {error}") from error
    raise ValueError(f"{path}: no METHOD at the top level")
