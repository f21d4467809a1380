"""Where trials are computed: here, in worker processes, or on a Ray cluster, with the same results.

An executor takes tasks and yields ``(key, outcome)`` as each one ends, in any order. It knows
nothing of studies or stores. A task that raises, or whose process dies, gives an outcome with the
error's text; the others go on.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import queue
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from addis.study._study import Value

__all__ = ["Executor", "ExecutorName", "Outcome", "Task", "executor"]

ExecutorName = Literal["serial", "processes", "ray"]


@dataclass(frozen=True, slots=True)
class Task:
    """A function to call in some process, and the key under which its outcome is kept."""

    key: str
    function: Callable[[Any], Mapping[str, Value]]
    args: Any


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a task: its values, or the traceback in ``error``. ``seconds`` of wall-clock
    time.
    """

    values: dict[str, Value]
    seconds: float
    error: str | None = None


Executor = Callable[[Sequence[Task]], Iterator[tuple[str, Outcome]]]

_TURN = 0.2
"""Seconds after which Ray's wait is taken up again: within it, Ctrl-C is heard a second later."""
_Ended = queue.SimpleQueue[tuple[str, Future[Any]] | None]
"""Tasks that have ended; ``None`` for an interrupt."""


def executor(
    name: ExecutorName, *, workers: int | None = None, threads: int = 1, address: str | None = None
) -> Executor:
    """Makes an executor.

    Args:
        name: ``"serial"`` computes in this process, ``"processes"`` in new ones, ``"ray"`` on a
            cluster.
        workers: Processes, or Ray tasks in flight; ``None`` fills the processors at hand.
        threads: CPU threads that each task computes with; sums depend on it in their last bits, so
            it belongs to the study and is the same in every executor.
        address: Of a running Ray cluster; ``None`` starts a local one.

    Raises:
        ValueError: An unknown name, ``workers`` or ``threads`` under 1, or an address without Ray.
        ModuleNotFoundError: Ray is not installed.
    """
    if threads < 1 or (workers is not None and workers < 1):
        raise ValueError(f"workers and threads must be >= 1, got {workers} and {threads}")
    if address is not None and name != "ray":
        raise ValueError(f"address is for the executor 'ray', not for {name!r}")
    match name:
        case "serial":
            return lambda tasks: _serial(tasks, threads)
        case "processes":
            count = workers or max(1, len(os.sched_getaffinity(0)) // threads)
            return lambda tasks: _processes(tasks, count, threads)
        case "ray":
            _import_ray()
            return lambda tasks: _ray(tasks, workers, threads, address)
        case _:
            raise ValueError(f"executor must be serial, processes or ray, got {name!r}")


def perform(task: Task, threads: int) -> Outcome:
    """Calls a task's function with ``threads`` CPU threads and catches what it raises."""
    import torch
    from threadpoolctl import threadpool_limits

    start = time.perf_counter()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        with threadpool_limits(threads):
            values = _plain(task.function(task.args))
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException:  # whatever a trial raises, SystemExit and CancelledError too
        text = traceback.format_exc().encode("utf-8", "backslashreplace").decode()
        return Outcome({}, time.perf_counter() - start, text)
    finally:
        torch.set_num_threads(before)
    return Outcome(values, time.perf_counter() - start)


def _perform_apart(task: Task, threads: int) -> Outcome:
    """The same in a process that is there for tasks."""
    from addis.train import keep_freed_memory

    keep_freed_memory()
    return perform(task, threads)


def _plain(values: Mapping[str, Value]) -> dict[str, Value]:
    """Checks a trial's results; NumPy scalars become Python's, arrays go last as in the store."""
    plain: dict[str, Value] = {}
    for name, value in values.items():
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, np.ndarray) and value.dtype.hasobject:
            raise TypeError(
                f"result {name!r} is an array of objects; only plain numbers can be kept"
            )
        if not isinstance(value, float | int | str | np.ndarray):
            raise TypeError(
                f"result {name!r} must be a number, text or array, got {type(value).__name__}"
            )
        plain[name] = value
    arrays = sorted(name for name, value in plain.items() if isinstance(value, np.ndarray))
    return plain | {name: plain.pop(name) for name in arrays}


def _serial(tasks: Sequence[Task], threads: int) -> Iterator[tuple[str, Outcome]]:
    for task in tasks:
        yield task.key, perform(task, threads)


def _processes(tasks: Sequence[Task], workers: int, threads: int) -> Iterator[tuple[str, Outcome]]:
    """Uses pebble, whose pool tells which task's process died and replaces it."""
    from pebble import ProcessPool

    if not tasks:
        return
    ended: _Ended = queue.SimpleQueue()
    pool = ProcessPool(
        max_workers=min(workers, len(tasks)),
        context=multiprocessing.get_context("spawn"),
        initializer=_begin_worker,
    )
    try:
        with _interrupts_queued(ended):
            pool.schedule(os.getpid).add_done_callback(partial(_put, ended, ""))
            _check_started(ended.get())  # tasks for a pool that cannot start would block for ever
            for task in tasks:
                future = pool.schedule(_perform_apart, args=(task, threads))
                future.add_done_callback(partial(_put, ended, task.key))
            for _ in tasks:
                found = ended.get()
                if found is None:
                    raise KeyboardInterrupt
                yield found[0], _outcome(found[1])
            if not ended.empty():  # an interrupt while the last outcome was kept
                raise KeyboardInterrupt
    finally:
        pool.stop()  # type: ignore[no-untyped-call]
        pool.join()


def _check_started(found: tuple[str, Future[Any]] | None) -> None:
    if found is None:
        raise KeyboardInterrupt
    if (cause := found[1].exception()) is not None:
        raise RuntimeError(
            "no process for the trials could start: each of them reads your program first, which "
            'must be a file and start studies under if __name__ == "__main__" only (or take the '
            'executor "serial")'
        ) from cause


def _put(ended: _Ended, key: str, done: Future[Outcome]) -> None:
    ended.put((key, done))


@contextmanager
def _interrupts_queued(ended: _Ended) -> Iterator[None]:
    """Ctrl-C puts ``None`` in the queue, in place of an exception anywhere in this thread: one that
    is raised in a destructor, say, is lost. Another handler than Python's own is left alone.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, lambda *_: ended.put(None))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _begin_worker() -> None:
    """Leaves Ctrl-C to the driver, and ends with it even if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_the_driver() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_the_driver, daemon=True).start()


def _outcome(done: Future[Outcome]) -> Outcome:
    from pebble import ProcessExpired

    try:
        return done.result()
    except ProcessExpired as error:
        return Outcome(
            {}, 0.0, f"the process that computed it died with exit code {error.exitcode}"
        )
    except Exception as error:  # the task or its result could not be pickled
        return Outcome({}, 0.0, f"{type(error).__name__}: {error}")


def _ray(
    tasks: Sequence[Task], workers: int | None, threads: int, address: str | None
) -> Iterator[tuple[str, Outcome]]:
    ray = _import_ray()
    own = not ray.is_initialized()
    if own:
        ray.init(
            address=address, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
        )
    keys: dict[Any, str] = {}
    try:
        remote = ray.remote(num_cpus=threads, max_retries=0)(_perform_apart)
        in_flight = workers or max(1, int(ray.cluster_resources().get("CPU", 1)) // threads)
        waiting = iter(tasks)
        for task in itertools.islice(waiting, in_flight):
            keys[remote.remote(task, threads)] = task.key
        while keys:
            ended, _ = ray.wait(list(keys), num_returns=1, timeout=_TURN)
            for reference in ended:
                key = keys.pop(reference)
                for task in itertools.islice(waiting, 1):
                    keys[remote.remote(task, threads)] = task.key
                try:
                    outcome = ray.get(reference)
                except ray.exceptions.RayError as error:
                    outcome = Outcome({}, 0.0, f"Ray lost the task: {error}")
                yield key, outcome
    finally:
        with suppress(ray.exceptions.RayError):  # of a cluster that is gone
            for reference in keys:  # after an interrupt; a cluster of others would go on with them
                ray.cancel(reference, force=True)
        if own:
            ray.shutdown()


def _import_ray() -> Any:
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the executor 'ray' needs the extra: pip install 'addis[ray]'"
        ) from error
    return ray
