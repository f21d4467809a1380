from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from addis import data
from addis.data import _cache, _homes
from addis.data._cache import FileSource, Source, cache_folder, cached, read
from addis.data._columns import Columns
from tests.data.fakes import pictures, write_cifar

pytestmark = pytest.mark.filterwarnings("ignore:.*other pixels:UserWarning")
fork = multiprocessing.get_context("fork")


def small() -> Columns:
    return Columns(
        {
            "image": pictures(3, 1, 4, 4),
            "label": np.array([2, 0, 1]),
            "none": np.zeros((0, 2), np.float32),
            "value": np.array([0.5, -1.0]),
        },
        {"classes": ("a", "ü", "c"), "id": ()},
    )


def same(a: Columns, b: Columns) -> bool:
    return (
        a.texts == b.texts
        and a.arrays.keys() == b.arrays.keys()
        and all(
            np.array_equal(a.arrays[key], b.arrays[key])
            and a.arrays[key].dtype == b.arrays[key].dtype
            for key in a.arrays
        )
    )


def refuse() -> Columns:
    raise AssertionError("it was decoded again")


def cifar_pixels(images: data.Images) -> np.ndarray:
    return images.images.permute(0, 2, 3, 1).numpy()


def the_file(cache: Path) -> Path:
    (path,) = cache.glob("*.cache")
    return path


def test_what_was_built_is_mapped_the_second_time(cache: Path) -> None:
    first = cached("Some set/β", Source("home"), small)
    second = cached("Some set/β", Source("home"), refuse)
    assert same(first, small())
    assert same(second, small())
    assert second.arrays["image"].base is not None


def test_arrays_can_be_written_without_changing_the_file(cache: Path) -> None:
    cached("a", Source("home"), small).arrays["image"][:] = 0
    assert same(cached("a", Source("home"), refuse), small())


def test_sets_of_other_names_or_origins_do_not_meet(cache: Path) -> None:
    cached("a", Source("home"), small)
    for name, origin in (("b", "home"), ("a", "elsewhere")):
        with pytest.raises(AssertionError, match="decoded again"):
            cached(name, Source(origin), refuse)
    assert same(cached("a", Source("home"), refuse), small())


def test_any_damaged_byte_and_any_truncation_is_found(cache: Path) -> None:
    cached("a", Source("home"), small)
    path = the_file(cache)
    whole = path.read_bytes()
    end_of_header = 32 + int.from_bytes(whole[16:24], "little")
    used = {*range(end_of_header)}
    for array in small().arrays.values():
        if array.size:
            start = whole.index(array.tobytes(), 4096)
            used |= {*range(start, start + array.nbytes)}
    damaged = path.with_name("damaged")
    for position in sorted(used):
        damaged.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        assert read(damaged, Source("home")) is None, position
    for length in [*range(0, end_of_header, 7), *range(4090, len(whole), 512), len(whole) - 1]:
        damaged.write_bytes(whole[:length])
        assert read(damaged, Source("home")) is None, length
    damaged.write_bytes(whole + b"\0")
    assert read(damaged, Source("home")) is None
    damaged.write_bytes(whole)
    assert same(read(damaged, Source("home")) or refuse(), small())


def test_a_damaged_file_is_built_again(cache: Path) -> None:
    cached("a", Source("home"), small)
    path = the_file(cache)
    whole = bytearray(path.read_bytes())
    whole[whole.index(small().arrays["image"].tobytes())] ^= 1
    path.write_bytes(whole)
    assert same(cached("a", Source("home"), small), small())
    assert same(cached("a", Source("home"), refuse), small())


def test_a_header_that_asks_for_objects_or_reaches_outside_is_refused(cache: Path) -> None:
    import json

    import xxhash

    cached("a", Source("home"), small)
    path = the_file(cache)
    whole = path.read_bytes()
    size = int.from_bytes(whole[16:24], "little")
    header = json.loads(whole[32 : 32 + size])
    for change, accepted in (
        ({}, True),  # so that it is the change that is refused
        ({"dtype": "object", "shape": [6]}, False),
        ({"offset": len(whole)}, False),
        ({"offset": -4096}, False),
        ({"shape": [2**40]}, False),
    ):
        forged = {**header, "arrays": [{**header["arrays"][0], **change}]}
        text = json.dumps(forged).encode().ljust(size)
        path.write_bytes(whole[:24] + xxhash.xxh3_64_digest(text) + text + whole[32 + size :])
        assert (read(path, Source("home")) is not None) == accepted, change


def test_a_touched_or_moved_in_place_source_is_not_decoded_again(folder: Path) -> None:
    write_cifar(folder)
    source = folder / "cifar10" / "train.parquet"
    cached("a", FileSource.of(source), small)
    os.utime(source, (1, 1))
    assert same(cached("a", FileSource.of(source), refuse), small())
    copy = source.with_name("copy")
    copy.write_bytes(source.read_bytes())
    copy.replace(source)
    assert same(cached("a", FileSource.of(source), refuse), small())


def test_an_unchanged_source_is_not_even_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = folder / "file"
    source.write_bytes(b"same")
    cached("a", FileSource.of(source), small)
    monkeypatch.setattr(FileSource, "digest", property(lambda _: refuse()))
    assert same(cached("a", FileSource.of(source), refuse), small())


def test_a_changed_source_is_decoded_again_even_with_its_old_size_and_time(folder: Path) -> None:
    source = folder / "file"
    source.write_bytes(b"old")
    before = source.stat()
    cached("a", FileSource.of(source), small)
    source.write_bytes(b"new")
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(AssertionError, match="decoded again"):
        cached("a", FileSource.of(source), refuse)


def test_loading_after_the_source_changed_gives_the_new_pixels(folder: Path) -> None:
    first = write_cifar(folder, seed=0)
    assert np.array_equal(cifar_pixels(data.load("cifar10")), first)
    old = data.load("cifar10")
    second = write_cifar(folder, seed=1)
    new = data.load("cifar10")
    assert np.array_equal(cifar_pixels(new), second)
    assert new.targets[0] == 1
    assert np.array_equal(cifar_pixels(old), first), "a mapped set must outlive its replacement"


def test_a_source_that_changes_while_it_is_read_is_an_error_and_leaves_no_cache(
    folder: Path,
) -> None:
    source = folder / "file"
    source.write_bytes(b"old")

    def build() -> Columns:
        source.write_bytes(b"newer")
        return small()

    with pytest.raises(RuntimeError, match="changed while it was read"):
        cached("a", FileSource.of(source), build)
    assert not list(cache_folder().glob("*.cache"))


def test_the_source_folder_is_only_read(folder: Path) -> None:
    write_cifar(folder)
    inside = folder / "cifar10"
    inside.chmod(0o555)
    before = sorted(folder.rglob("*")), inside.stat().st_mtime_ns
    data.load("cifar10")
    inside.chmod(0o755)
    assert (sorted(folder.rglob("*")), inside.stat().st_mtime_ns) == before


def test_an_error_of_the_decoder_passes_through_and_leaves_nothing(cache: Path) -> None:
    def fail() -> Columns:
        raise OSError("the source cannot be read")

    with pytest.raises(OSError, match="the source cannot be read"):
        cached("a", Source("home"), fail)
    assert not [path for path in cache.iterdir() if path.suffix != ".lock"]


def _load_and_count(log: Path, start: object, pixels: np.ndarray) -> None:
    start.wait()  # type: ignore[attr-defined]
    decode = _homes.parquet_rows

    def counted(path: Path) -> object:
        with log.open("a") as file:
            file.write("decoded\n")
        time.sleep(0.3)
        return decode(path)

    _homes.parquet_rows = counted  # type: ignore[assignment]
    images = data.load("cifar10")
    os._exit(0 if np.array_equal(cifar_pixels(images), pixels) else 1)


def test_processes_that_start_at_once_decode_once_and_all_have_the_pixels(
    folder: Path, tmp_path: Path
) -> None:
    pixels, log, start = write_cifar(folder), tmp_path / "log", fork.Barrier(3)
    processes = [fork.Process(target=_load_and_count, args=(log, start, pixels)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert log.read_text() == "decoded\n"


def _stop_half_way(half: object) -> None:
    whole = _cache._blocks

    def blocks(*args: object) -> object:
        for i, block in enumerate(whole(*args)):  # type: ignore[arg-type]
            if i == 1:
                yield block[: len(block) // 2]
                half.set()  # type: ignore[attr-defined]
                time.sleep(60)
            yield block

    _cache._blocks = blocks  # type: ignore[assignment]
    data.load("cifar10")


def test_a_builder_killed_half_way_leaves_no_file_no_lock_and_no_rubbish(folder: Path) -> None:
    pixels, half = write_cifar(folder), fork.Event()
    process = fork.Process(target=_stop_half_way, args=(half,))
    process.start()
    assert half.wait(60)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    cache = cache_folder()
    assert len(list(cache.glob("*.tmp"))) == 1, "it was not half-way"
    assert not list(cache.glob("*.cache"))
    assert np.array_equal(cifar_pixels(data.load("cifar10")), pixels)
    assert not list(cache.glob("*.tmp"))
    assert len(list(cache.glob("*.cache"))) == 1


def test_a_cache_folder_that_cannot_be_made_costs_a_warning_and_no_data(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = write_cifar(folder)
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("ADDIS_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.warns(RuntimeWarning, match=r"file/cache cannot be used .*train was decoded"):
        images = data.load("cifar10")
    assert np.array_equal(cifar_pixels(images), pixels)


def _load_on_a_full_disk(pixels: np.ndarray) -> None:
    import warnings

    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        images = data.load("cifar10")
    told = [str(w.message) for w in caught if w.category is RuntimeWarning]
    right = np.array_equal(cifar_pixels(images), pixels) and len(told) == 1
    os._exit(0 if right and "File too large" in told[0] else 1)


def test_a_full_disk_costs_a_warning_and_leaves_no_file(folder: Path) -> None:
    pixels = write_cifar(folder)
    process = fork.Process(target=_load_on_a_full_disk, args=(pixels,))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert not [path for path in cache_folder().iterdir() if path.suffix != ".lock"]


def test_a_file_that_others_cannot_write_is_still_read(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached("a", Source("home"), small)
    monkeypatch.setattr(_cache, "_lock", lambda *_: refuse())
    assert same(cached("a", Source("home"), refuse), small())


def test_the_folder_is_the_users_choice_or_that_of_the_platform(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("ADDIS_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    assert cache_folder() == Path.home() / ".cache" / "addis"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder() == Path("/x/addis")
    monkeypatch.setattr("sys.platform", "darwin")
    assert cache_folder() == Path.home() / "Library" / "Caches" / "addis"
    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", "/local")
    assert cache_folder() == Path("/local/addis")
    monkeypatch.setenv("ADDIS_CACHE", "~/mine")
    assert cache_folder() == Path.home() / "mine"


def test_columns_give_tensors_of_the_same_memory() -> None:
    columns = small()
    columns.tensor("label")[0] = 7
    assert columns.arrays["label"][0] == 7
    assert torch.equal(columns.tensor("value"), torch.tensor([0.5, -1.0]).double())
