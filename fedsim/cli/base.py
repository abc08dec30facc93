"""The application that every command adds itself to."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from fedsim import __version__

app = typer.Typer(
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Simulate federated and gossip learning on one machine, and compare strategies fairly.",
)


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Warnings of combinations, each on a line of its own on stderr."""
    from fedsim.strategy import CombinationWarning

    usual = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, CombinationWarning):
            typer.echo(f"fedsim: warning: {message}", err=True)
        else:
            usual(message, category, *where, **more)

    with warnings.catch_warnings():
        warnings.simplefilter("default", CombinationWarning)
        warnings.showwarning = show
        yield


def hush(quiet: bool) -> bool:
    """The callback of --quiet: no such warnings either."""
    from fedsim.strategy import CombinationWarning

    if quiet:
        warnings.simplefilter("ignore", CombinationWarning)
    return quiet


def check_run(folder: Path) -> None:
    """Raises FileNotFoundError where a folder holds no run."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; give the one that `fedsim run` printed")
    if not (folder / "experiment.toml").is_file():
        raise FileNotFoundError(f"{folder} holds no run: there is no experiment.toml in it")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fedsim {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    context.with_resource(plain_warnings())
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
