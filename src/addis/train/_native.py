"""Compiles C source on the machine that runs it, once, and loads it."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from addis.data import cache_folder

__all__ = ["compiled"]

_FLAGS = (
    "-std=gnu11", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fPIC",
    "-shared",
)  # fmt: skip
_TARGETS = ("-march=native", "-mcpu=native")  # compilers know one or both


def compiled(source: Path, options: Sequence[str] = ()) -> ctypes.CDLL | None:
    """The library of a C file, or ``None`` where no compiler makes one.

    It is kept in the cache folder under a name that holds the source, the compiler and the
    processor's features, in a folder that nobody else can write to.

    Args:
        source: The file.
        options: More options of the compiler, which is ``cc`` or what the variable ``CC`` names.
    """
    if os.name != "posix":
        return None
    compiler = shlex.split(os.environ.get("CC") or "cc")
    try:
        for target in _TARGETS:
            command = [*compiler, target, *_FLAGS, *options]
            features = subprocess.run(
                [*command, "-dM", "-E", "-x", "c", "-"], input=b"", capture_output=True, timeout=60
            )
            if features.returncode == 0:
                return _loaded(source, command, features.stdout)
    except (OSError, subprocess.SubprocessError):
        pass
    return None


def _loaded(source: Path, command: Sequence[str], features: bytes) -> ctypes.CDLL:
    mark = hashlib.blake2b(source.read_bytes(), digest_size=8)
    mark.update(repr(command).encode() + features)
    name = f"{source.stem.strip('_')}-{mark.hexdigest()}"
    kept = cache_folder() / "native"
    try:
        kept.mkdir(mode=0o700, parents=True, exist_ok=True)
        if _is_ours(kept):
            return _in_folder(kept, name, source, command)
    except OSError:
        pass
    with tempfile.TemporaryDirectory() as folder:
        return _in_folder(Path(folder), name, source, command)


def _is_ours(folder: Path) -> bool:
    """Whether nobody else can put a file into ``folder``, whose files will be run."""
    facts = folder.stat()
    return facts.st_uid == os.getuid() and not facts.st_mode & 0o022


def _in_folder(folder: Path, name: str, source: Path, command: Sequence[str]) -> ctypes.CDLL:
    """The library from ``folder``, made if there is none that is whole: its name has its digest."""
    for path in folder.glob(f"{name}-*.so"):
        if path.name == f"{name}-{_digest(path)}.so":
            return ctypes.CDLL(str(path))
        path.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as partial:
        made = Path(partial) / "library"
        subprocess.run(
            [*command, "-o", str(made), str(source), "-lm"], check=True, capture_output=True,
            timeout=300,
        )  # fmt: skip
        return ctypes.CDLL(str(made.replace(folder / f"{name}-{_digest(made)}.so")))


def _digest(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()
