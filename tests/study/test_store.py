from __future__ import annotations

import io
import os
import shutil
import sqlite3
import subprocess
from pathlib import Path

import numpy as np
import pytest

from addis.study import Outcome, Store, StoreError

ABOUT = {"study": "99", "function": "m:f", "settings": {"x": 1}}


def test_what_is_added_is_found_again_exactly(tmp_path):
    values = {
        "third": 1 / 3, "nan": float("nan"), "whole": 2**60, "yes": True, "word": "é",
        "array": np.arange(6, dtype=np.float16).reshape(2, 3), "empty": np.zeros((0, 2)),
    }  # fmt: skip
    with Store(tmp_path / "deep" / "store.sqlite") as store:
        store.add("a", Outcome(values, 1.5), **ABOUT)
    with Store(tmp_path / "deep" / "store.sqlite") as store:
        found = store.finished("99")["a"]
        assert store.finished("98") == {}
    assert found.seconds == 1.5
    assert found.values.keys() == values.keys()
    for name, value in values.items():
        np.testing.assert_array_equal(found.values[name], value)
        assert type(found.values[name]) is type(value)
    assert found.values["array"].dtype == np.float16


def test_a_failed_trial_is_kept_but_not_finished_and_is_replaced(tmp_path):
    with Store(tmp_path / "s") as store:
        store.add("a", Outcome({}, 1.0, "Traceback"), **ABOUT)
        assert store.finished("99") == {}
        store.add("a", Outcome({"v": 1, "c": np.ones(2)}, 1.0), **ABOUT)
        store.add("a", Outcome({"v": 2}, 1.0), **ABOUT)
        assert store.finished("99")["a"].values == {"v": 2}


def test_a_failure_does_not_replace_what_another_run_has_finished(tmp_path):
    with Store(tmp_path / "s") as store, Store(tmp_path / "s") as other:
        store.add("a", Outcome({"v": 1, "c": np.ones(2)}, 1.0), **ABOUT)
        other.add("a", Outcome({}, 1.0, "Traceback"), **ABOUT)
        found = store.finished("99")["a"].values
    assert found["v"] == 1
    np.testing.assert_array_equal(found["c"], np.ones(2))


def test_a_database_of_another_program_is_left_alone(tmp_path):
    with sqlite3.connect(tmp_path / "s") as connection:
        connection.execute("CREATE TABLE notes (text)")
    with pytest.raises(StoreError, match="of another program"):
        Store(tmp_path / "s")
    with sqlite3.connect(tmp_path / "s") as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("notes",)]


def test_an_array_of_objects_is_never_unpickled(tmp_path):
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "executed"),)

    evil = io.BytesIO()
    np.save(evil, np.array([Evil()], dtype=object), allow_pickle=True)
    with Store(tmp_path / "s") as store:
        store.add("a", Outcome({"c": np.ones(2)}, 1.0), **ABOUT)
    with sqlite3.connect(tmp_path / "s") as connection:
        connection.execute("UPDATE arrays SET data = ?", (evil.getvalue(),))
    with Store(tmp_path / "s") as store, pytest.raises(StoreError, match="damaged"):
        store.finished("99")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "content", [b"not a database at all, only text" * 40, b"SQLite format 3\0" + b"x" * 5000]
)
def test_a_file_that_is_no_store_is_one_clear_error(tmp_path, content):
    (tmp_path / "s").write_bytes(content)
    with pytest.raises(StoreError, match="is not a store of addis or is damaged"):
        Store(tmp_path / "s")
    assert (tmp_path / "s").read_bytes() == content


def test_a_store_of_a_newer_version_is_refused(tmp_path):
    with sqlite3.connect(tmp_path / "s") as connection:
        connection.execute("PRAGMA user_version = 7")
    with pytest.raises(StoreError, match="newer addis"):
        Store(tmp_path / "s")


def test_a_folder_in_its_place_is_one_clear_error(tmp_path):
    with pytest.raises(StoreError, match="cannot be written"):
        Store(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"folder .* cannot be made"):
        Store(tmp_path / "file" / "s")


def test_a_read_only_store_is_one_clear_error(tmp_path, monkeypatch):
    Store(tmp_path / "s").close()
    real = sqlite3.connect

    def read_only(path: Path, **options: object) -> sqlite3.Connection:
        return real(f"file:{path}?mode=ro", uri=True, **options)

    monkeypatch.setattr(sqlite3, "connect", read_only)
    with (
        Store(tmp_path / "s") as store,
        pytest.raises(StoreError, match="cannot be written; check"),
    ):
        store.add("a", Outcome({}, 1.0), **ABOUT)


def test_a_full_disk_is_one_clear_error_and_keeps_what_was_finished(tmp_path):
    mount = tmp_path / "small"
    mount.mkdir()
    if (
        shutil.which("mount") is None
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(mount)], capture_output=True
        ).returncode
    ):
        pytest.skip("a small file system cannot be mounted here")
    try:
        with Store(mount / "s") as store:
            store.add("a", Outcome({"v": 1}, 1.0), **ABOUT)
            with pytest.raises(StoreError, match="no room left on its disk"):
                store.add("b", Outcome({"c": np.zeros(100_000)}, 1.0), **ABOUT)
            assert store.finished("99")["a"].values == {"v": 1}
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_a_database_that_is_full_is_one_clear_error(tmp_path):
    with Store(tmp_path / "s") as store:
        store.add("a", Outcome({"v": 1}, 1.0), **ABOUT)
        store._connection.execute("PRAGMA max_page_count = 12")
        with pytest.raises(StoreError, match="no room left on its disk"):
            store.add("b", Outcome({"c": np.zeros(100_000)}, 1.0), **ABOUT)
        store._connection.execute("PRAGMA max_page_count = 100000")
        store.add("b", Outcome({"v": 2}, 1.0), **ABOUT)
        assert store.finished("99").keys() == {"a", "b"}
