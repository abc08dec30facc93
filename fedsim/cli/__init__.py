"""The command line. A user's mistake is one line on stderr and exit code 2; Ctrl-C is exit code 130, SIGTERM while
a run is under way 143.

With FEDSIM_DEBUG set in the environment a mistake is a traceback instead. One file per command; `base` is the whole.
"""

from __future__ import annotations

import os
import sys

import typer

from fedsim.cli import (  # in the order of `fedsim --help`
    bench,
    check,
    listing,
    new,
    participation,
    report,
    resume,
    run,
    sweep,
    topology,
    tune,
    verify,
)  # fmt: skip
from fedsim.cli.base import app
from fedsim.cli.interrupt import Terminated

__all__ = [
    "app",
    "bench",
    "check",
    "listing",
    "main",
    "new",
    "participation",
    "report",
    "resume",
    "run",
    "sweep",
    "topology",
    "tune",
    "verify",
]


def main(arguments: list[str] | None = None) -> None:
    """The command `fedsim`."""
    import click

    # torch reads it when it first takes memory: large pages, where the system has them, and mixing takes half the time
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that are out of work leave the cores to others
    try:
        code = app(arguments, prog_name="fedsim", standalone_mode=False)
    except (KeyboardInterrupt, click.exceptions.Abort):
        code = 130
    except Terminated:
        code = 143
    except click.ClickException as error:
        text = error.format_message()  # typer and click both may know what was meant
        code = _refuse(error.message if text.count("Did you mean") > 1 else text)
    except (ValueError, OSError) as error:
        if os.environ.get("FEDSIM_DEBUG"):
            raise
        code = _refuse(str(error))
    sys.exit(code if isinstance(code, int) else 0)


def _refuse(text: str) -> int:
    typer.echo(f"fedsim: {' '.join(text.split())}", err=True)
    return 2
