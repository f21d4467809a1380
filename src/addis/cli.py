"""The ``addis`` command: every module of ``addis.commands`` is a subcommand of its name."""

from __future__ import annotations

import importlib
import os
import pkgutil
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

import addis
from addis import commands

__all__ = ["main"]

_DESCRIPTION = f"addis {addis.__version__}: {addis.__doc__}"


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command and ends the process with its exit code.

    0 is success, 1 a study with failed trials, 2 a wrong argument or input, 130 an interruption.

    Args:
        args: Words after ``addis``; ``None`` takes the process's own.
    """
    if os.environ.get("NO_COLOR"):
        os.environ.setdefault("PYTHON_TYRO_ANSI_CODES", "False")
    import tyro

    words = list(sys.argv[1:] if args is None else args)
    if words == ["--version"]:
        sys.stdout.write(f"addis {addis.__version__}\n")
        sys.exit(0)
    sys.path.append(str(Path.cwd()))  # last: for "module:factory", never in the place of a library
    try:
        code = tyro.extras.subcommand_cli_from_dict(
            _subcommands(),
            prog="addis",
            description=_DESCRIPTION,
            args=words or ["--help"],
            config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes),
        )
    except KeyboardInterrupt:
        _complain(f"interrupted; what is finished is kept, go on with: addis {shlex.join(words)}")
        sys.exit(130)
    except BrokenPipeError:  # the reader, head say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # of which rich makes an exit with 1
            sys.exit(0)
        raise
    except (ValueError, TypeError, RuntimeError, ImportError, OSError) as error:
        if os.environ.get("ADDIS_TRACEBACK"):
            raise
        _complain(f"{error}" or type(error).__name__)
        sys.exit(2)
    sys.exit(code or 0)


def _subcommands() -> dict[str, Callable[..., Any]]:
    return {
        module.name: getattr(
            importlib.import_module(f"{commands.__name__}.{module.name}"), module.name
        )
        for module in pkgutil.iter_modules(commands.__path__)
        if not module.name.startswith("_")
    }


def _complain(message: str) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True).print(
        "[bold red]addis:[/] ", message.replace("[", r"\["), sep=""
    )
