"""fedsim new"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedsim.cli.base import app


@app.command(
    "new",
    help="Make a folder to begin with. app: an experiment as a Flower app, for flwr run.",
)
def new_(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="What to make: app.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where; must not be there yet.")],
) -> None:
    if kind != "app":
        raise ValueError(f'there is nothing new called "{kind}"; known: app')
    from fedsim.flower import new

    new.app(folder)
    typer.echo(f"{folder}: edit experiment.toml, then see README.md")
