"""C source compiled on this machine."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
import torch

from addis.train import StackedTrainer, _stacked_block
from addis.train._native import compiled
from tests.train.test_stacked_block import pytestmark as pytestmark

SOURCE = "int twice(int x) { return 2 * x; }\n"


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ADDIS_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "_twice.c"
    path.write_text(SOURCE)
    return path


def damage(path: Path) -> None:
    """Replaces the file, which this process may have mapped."""
    path.unlink()
    path.write_bytes(b"no library")


def kept(source: Path) -> list[Path]:
    return sorted((source.parent / "cache" / "native").glob("*"))


def test_it_is_compiled_once_for_each_source_and_option(source: Path) -> None:
    library = compiled(source)
    assert library is not None
    assert library.twice(21) == 42
    (first,) = kept(source)
    made = first.stat().st_mtime_ns
    assert compiled(source) is not None
    assert kept(source) == [first]
    assert first.stat().st_mtime_ns == made
    compiled(source, ["-DOTHER"])
    source.write_text(SOURCE.replace("2 * x", "3 * x"))
    changed = compiled(source)
    assert changed is not None
    assert changed.twice(21) == 63
    assert len(kept(source)) == 3


def test_damaged_library_is_made_anew(source: Path) -> None:
    compiled(source)
    (path,) = kept(source)
    whole = path.read_bytes()
    damage(path)
    library = compiled(source)
    assert library is not None
    assert library.twice(1) == 2
    assert path.read_bytes() == whole


def test_folder_that_others_can_write_to_is_not_trusted(source: Path) -> None:
    compiled(source)
    (path,) = kept(source)
    damage(path)
    path.parent.chmod(0o777)
    library = compiled(source)
    assert library is not None
    assert library.twice(1) == 2
    assert path.read_bytes() == b"no library"


def test_folder_is_made_for_the_user_alone(source: Path) -> None:
    compiled(source)
    assert stat.S_IMODE(kept(source)[0].parent.stat().st_mode) == 0o700


def test_cache_that_cannot_be_written_is_done_without(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source.parent / "file").write_text("")
    monkeypatch.setenv("ADDIS_CACHE", str(source.parent / "file"))
    library = compiled(source)
    assert library is not None
    assert library.twice(1) == 2


def test_compiler_may_come_with_options(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source.write_text("int twice(int x) { return FACTOR * x; }\n")
    monkeypatch.setenv("CC", "cc -DFACTOR=5")
    library = compiled(source)
    assert library is not None
    assert library.twice(2) == 10


@pytest.mark.parametrize("command", ["false", "no-such-compiler"])
def test_no_compiler_is_no_error(
    source: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("CC", command)
    assert compiled(source) is None


def test_source_that_does_not_compile_is_no_library(source: Path) -> None:
    source.write_text("int twice(")
    assert compiled(source) is None
    assert kept(source) == []


def test_a_stack_without_a_compiler_runs_pytorchs_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "false")
    _stacked_block._library.cache_clear()
    try:
        model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten())
        trainer = StackedTrainer([model] * 2, lr=0.1)
        assert trainer.backend == "grouped"
        assert not trainer.native
        assert trainer.outputs(torch.rand(20, 3, 3, 3)).shape == (2, 20, 4)
    finally:
        _stacked_block._library.cache_clear()
