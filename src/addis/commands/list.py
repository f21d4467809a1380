"""``addis list``: the methods there are."""

from __future__ import annotations

import dataclasses
import fnmatch
import json as json_text
import sys
from typing import Annotated

import tyro

__all__ = ["list"]


def list(
    pattern: Annotated[str, tyro.conf.arg(metavar="PATTERN"), tyro.conf.Positional] = "*",
    /,
    *,
    json: bool = False,
) -> None:
    """Lists the methods: paper, name, package, what each one does.

    Args:
        pattern: Shows only names, packages or papers like this; * stands for any text.
        json: Prints a list of objects instead of a table.
    """
    from rich.console import Console
    from rich.table import Table

    from addis.methods import methods

    chosen = [
        method
        for method in methods()
        if any(fnmatch.fnmatch(word, pattern) for word in (method.name, method.verb, method.study))
    ]
    if not chosen:
        known = ", ".join(method.name for method in methods())
        raise ValueError(f"no method is like {pattern!r}; there are {known}")
    if json:
        sys.stdout.write(json_text.dumps([dataclasses.asdict(m) for m in chosen], indent=1) + "\n")
        return
    table = Table(box=None, pad_edge=False)
    for title in ("paper", "method", "package", "what it does"):
        table.add_column(title, no_wrap=title != "what it does")
    for method in chosen:
        table.add_row(method.study, method.name, f"addis.{method.verb}", method.summary)
    Console().print(table)
