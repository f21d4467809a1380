"""Text by several speakers: tiny Shakespeare."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from addis.data._homes import Home, download

__all__ = ["Text", "shakespeare"]

_HOME: Final = Home[Path](
    file="shakespeare/tinyshakespeare.txt",
    words="karpathy/char-rnn on GitHub, data/tinyshakespeare/input.txt",
    fetch=lambda split: download(
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
    ),
)
_SPEAKER: Final = re.compile(r"(?:\A|(?<=\n\n))([^\n:]+):\n")  # a line after a blank one


@dataclass(frozen=True, eq=False, repr=False)
class Text:
    """A text and the speeches that it is made of.

    Args:
        text: The whole text, whatever the split.
        speeches: The words of each speech of the split, in order; some are empty.
        speakers: Who holds each.
        starts: ``(N,)``, int64, where each begins in ``text``, its speaker's name included.
        name: Name of the set, as :func:`addis.data.load` takes it.
        split: Name of the split.
    """

    text: str
    speeches: tuple[str, ...]
    speakers: tuple[str, ...]
    starts: Tensor
    name: str
    split: str

    def __len__(self) -> int:
        return len(self.speeches)

    def __repr__(self) -> str:
        roles = len(set(self.speakers))
        return f"Text({self.name} {self.split}: {len(self)} speeches by {roles} speakers)"

    @property
    def alphabet(self) -> str:
        """The distinct characters of the whole text, in the order of their code points."""
        return "".join(sorted(set(self.text)))


def shakespeare(name: str, split: str) -> Text:
    """Tiny Shakespeare: of each role the first 80 % of its speeches, at least one, are ``train``.

    Raises:
        ValueError: The file is not UTF-8 or has no speeches.
    """
    path = _HOME.find(split) or _HOME.fetched(name, split)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text in UTF-8: {error}") from error
    heads = list(_SPEAKER.finditer(text))
    if not heads:
        raise ValueError(f"{path}: no speeches, which begin with a line 'NAME:' after an empty one")
    ends = [head.start() for head in heads[1:]] + [len(text)]
    speeches = [text[h.end() : end].strip() for h, end in zip(heads, ends, strict=True)]
    speakers = [head[1] for head in heads]
    train = _train_rows(speakers)
    rows = [i for i in range(len(heads)) if split == "all" or (i in train) == (split == "train")]
    return Text(
        text=text,
        speeches=tuple(speeches[i] for i in rows),
        speakers=tuple(speakers[i] for i in rows),
        starts=torch.tensor([heads[i].start() for i in rows]),
        name=name,
        split=split,
    )


def _train_rows(speakers: list[str]) -> frozenset[int]:
    by_role: defaultdict[str, list[int]] = defaultdict(list)
    for row, speaker in enumerate(speakers):
        by_role[speaker].append(row)
    first = (rows[: max(1, len(rows) * 4 // 5)] for rows in by_role.values())
    return frozenset(row for rows in first for row in rows)
