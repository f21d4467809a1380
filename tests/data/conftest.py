"""A private folder of data and a private cache for each test that asks."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest

datasets.disable_progress_bars()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, not yet made."""
    path = tmp_path / "cache"
    monkeypatch.setenv("ADDIS_CACHE", str(path))
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> Path:
    """An empty folder that ``ADDIS_DATA`` names."""
    path = tmp_path / "data"
    path.mkdir()
    monkeypatch.setenv("ADDIS_DATA", str(path))
    return path


@pytest.fixture
def nothing(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """No data at hand, and nothing that forbids to fetch."""
    for name in ("ADDIS_DATA", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
