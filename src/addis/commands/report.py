"""``addis report``: the pages."""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["report"]


def report(
    *, results: Path = Path("results"), out: Path = Path("report"), view: bool = False
) -> None:
    """Writes the report: a folder of pages that open from disk.

    Args:
        results: Folder of the records that `addis run` and `addis bench` write.
        out: Folder for the pages; an earlier report there is replaced.
        view: Opens the report in the browser.
    """
    import webbrowser

    from addis.report import build

    index = build(results, out)
    sys.stdout.write(f"{index}\n")
    if view:
        webbrowser.open(index.resolve().as_uri())
