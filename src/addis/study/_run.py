"""Runs a study: computes the trials that the store lacks, then judges and draws all of them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pandas as pd
from rich.console import Console

from addis.study._executors import Executor, Outcome, Task, executor
from addis.study._progress import progress_bar
from addis.study._store import Store
from addis.study._study import Claim, Scale, Study, Trial, Value

__all__ = ["DEFAULT_STORE", "Failure", "Run", "mapper", "run"]

DEFAULT_STORE: Final = Path(".addis/store.sqlite")


@dataclass(frozen=True, slots=True)
class Failure:
    """A trial that raised, with its arguments and the traceback."""

    function: str
    settings: Mapping[str, Any]
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A study's results at one scale.

    Args:
        study: What was run.
        scale: Its scale.
        config: The scale's config, with the device that was asked for.
        frame: A row a trial, in the study's order: arguments, results, ``seconds``, ``function``,
            ``error``.
        claims: The judged claims; empty if trials failed and what is left cannot be judged.
        failures: The trials that failed.
        computed: How many trials this run computed; the others came from the store.
        seconds: Of computation, summed over all trials, whenever they were computed.
        notes: What could not be made of the trials that did not fail.
    """

    study: Study[Any]
    scale: Scale
    config: Any
    frame: pd.DataFrame
    claims: Sequence[Claim]
    failures: Sequence[Failure]
    computed: int
    seconds: float
    notes: Sequence[str] = ()


def run(
    study: Study[Any],
    scale: Scale = "tiny",
    *,
    execute: Executor | None = None,
    store: Path = DEFAULT_STORE,
    device: str | None = None,
    console: Console | None = None,
) -> Run:
    """Runs a study at one scale and judges its claims.

    Trials that the store holds are not computed again, so a run that was interrupted at any moment
    goes on where it was. A trial that raises is recorded; the others go on.

    Args:
        study: The study.
        scale: Which of its scales.
        execute: Where to compute; ``None`` is one process a core.
        store: The SQLite file of finished trials.
        device: Torch device for the config's field ``device``; ``None`` leaves the config's own.
        console: Where to show the progress; ``None`` shows none.

    Raises:
        ValueError: The study lacks this scale, takes no device, or has two equal trials.
        StoreError: The store cannot be read or written.
    """
    config = _config(study, scale, device)
    trials = list(study.trials(config))
    keys = [trial.key(study.method.version) for trial in trials]
    if len(set(keys)) < len(keys):
        twice = next(trial for key, trial in zip(keys, trials, strict=True) if keys.count(key) > 1)
        raise ValueError(
            f"study {study.method.study} has a trial twice: {twice.name} {twice.settings()}"
        )
    execute = execute or executor("processes", threads=study.threads)
    with Store(store) as opened:
        outcomes = opened.finished(study.method.study)
        tasks = [
            (key, trial) for key, trial in zip(keys, trials, strict=True) if key not in outcomes
        ]
        title = f"{study.method.study} {study.method.name}, {scale}"
        outcomes |= _compute(tasks, execute, opened, study.method.study, title, console)
    return _judged(study, scale, config, trials, [outcomes[key] for key in keys], len(tasks))


def _config(study: Study[Any], scale: Scale, device: str | None) -> Any:
    if scale not in study.scales:
        raise ValueError(
            f"study {study.method.study} has no scale {scale!r}, only {', '.join(study.scales)}"
        )
    config = study.scales[scale]
    if device is None:
        return config
    if not any(field.name == "device" for field in dataclasses.fields(config)):
        raise ValueError(
            f"study {study.method.study} computes on the CPU only, got device {device!r}"
        )
    return dataclasses.replace(config, device=device)


def _compute(
    tasks: Sequence[tuple[str, Trial]],
    execute: Executor,
    store: Store,
    study: str,
    title: str,
    console: Console | None,
) -> dict[str, Outcome]:
    by_key = dict(tasks)
    outcomes: dict[str, Outcome] = {}
    work = [Task(key, trial.function, trial.args) for key, trial in tasks]
    total = sum(trial.cost for trial in by_key.values())
    with (
        progress_bar(title, len(work), total, console) as advance,
        closing(execute(work)) as ended,  # type: ignore[type-var]
    ):
        for key, outcome in ended:
            trial = by_key[key]
            outcome = _with_own_names(outcome, trial)
            store.add(key, outcome, study=study, function=trial.name, settings=trial.settings())
            outcomes[key] = outcome
            advance(trial.cost, failed=outcome.error is not None)
    return outcomes


def _with_own_names(outcome: Outcome, trial: Trial) -> Outcome:
    """A failure in place of results that would hide a column of the frame."""
    columns = {field.name for field in dataclasses.fields(trial.args)}
    columns |= {"seconds", "function", "error"}
    for name in outcome.values:
        if name in columns:
            text = f"result {name!r} has the name of an argument or of a column of the frame"
            return Outcome({}, outcome.seconds, f"ValueError: {text}")
    return outcome


def _judged(
    study: Study[Any],
    scale: Scale,
    config: Any,
    trials: Sequence[Trial],
    outcomes: Sequence[Outcome],
    computed: int,
) -> Run:
    frame = pd.DataFrame(
        [_row(trial, outcome) for trial, outcome in zip(trials, outcomes, strict=True)]
    )
    failures = [
        Failure(trial.name, trial.settings(), outcome.error)
        for trial, outcome in zip(trials, outcomes, strict=True)
        if outcome.error is not None
    ]
    notes = []
    try:
        claims = study.claims(frame)
    except Exception as error:
        if not failures:
            raise
        claims = []
        notes = [f"The claims need the trials that failed ({type(error).__name__}: {error})."]
    return Run(
        study=study, scale=scale, config=config, frame=frame, claims=claims, failures=failures,
        computed=computed, seconds=sum(outcome.seconds for outcome in outcomes), notes=notes,
    )  # fmt: skip


def _row(trial: Trial, outcome: Outcome) -> dict[str, Any]:
    return {
        **trial.settings(),
        **outcome.values,
        "seconds": outcome.seconds,
        "function": trial.function.__name__,
        "error": outcome.error,
    }


def mapper(
    name: str,
    *,
    execute: Executor | None = None,
    store: Path = DEFAULT_STORE,
    console: Console | None = None,
) -> Callable[[Callable[[Any], Mapping[str, Value]], Iterable[Any]], list[Mapping[str, Value]]]:
    """Makes a ``map`` that computes anywhere and resumes, for ``addis.analyze.sweep`` and the like.

    Args:
        name: Under which the store keeps the results. Give another name when the function changes:
            the store knows a result by this name and its arguments alone.
        execute: Where to compute; ``None`` is one process a core.
        store: The SQLite file.
        console: Where to show the progress; ``None`` shows none.

    Returns:
        ``map(function, points)``: ``function`` must be picklable, each point a frozen dataclass of
        plain data; the list has the results in the points' order. It raises ``RuntimeError`` with
        the first traceback, after the other points are done and stored, if the function raised. A
        result with the key ``"failed"`` is handed on and computed again next time.
    """
    execute = execute or executor("processes")

    def apply(
        function: Callable[[Any], Mapping[str, Value]], points: Iterable[Any]
    ) -> list[Mapping[str, Value]]:
        items = list(points)
        settings = [dataclasses.asdict(item) for item in items]
        keys = [json.dumps([name, setting], sort_keys=True) for setting in settings]
        with Store(store) as opened:
            outcomes = opened.finished(name)
            todo = {key: i for i, key in enumerate(keys) if key not in outcomes}
            work = [Task(key, function, items[i]) for key, i in todo.items()]
            with (
                progress_bar(name, len(work), len(work), console) as advance,
                closing(execute(work)) as ended,  # type: ignore[type-var]
            ):
                for key, outcome in ended:
                    kept = _as_failure(outcome)
                    opened.add(key, kept, study=name, function=name, settings=settings[todo[key]])
                    outcomes[key] = outcome
                    advance(1.0, failed=kept.error is not None)
        errors = [outcomes[key].error for key in keys if outcomes[key].error is not None]
        if errors:
            raise RuntimeError(
                f"{len(errors)} of {len(keys)} points failed; the first:\n{errors[0]}"
            )
        return [outcomes[key].values for key in keys]

    return apply


def _as_failure(outcome: Outcome) -> Outcome:
    """A result that says by the key ``"failed"`` why there is none is kept as a failure."""
    if "failed" not in outcome.values:
        return outcome
    return Outcome({}, outcome.seconds, str(outcome.values["failed"]))
