"""fedsim new"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedsim.cli.base import app

KINDS = ("strategy", "app")


@app.command(
    "new",
    help="Make something to begin with. strategy NAME: a strategy's file, its test, which tries the laws on it, and an "
    "experiment that runs. app FOLDER: an experiment as a Flower app, for flwr run.",
    short_help="Make a strategy, or a Flower app, to begin with.",
)
def new_(
    kind: Annotated[str, typer.Argument(metavar="strategy|app", help="What to make.")],
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME|FOLDER", help="The strategy's class, FedHalf; or the app's folder, not there yet."
        ),
    ],
    folder: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Of a strategy: where. Default: here.")] = None,
    gossip: Annotated[bool, typer.Option("--gossip", help="Of a strategy: nodes and no server.")] = False,
) -> None:
    from fedsim.resolve import nearest

    if kind not in KINDS:
        raise ValueError(f'there is nothing new called "{kind}"{nearest(kind, KINDS)}')
    if kind == "app":
        from fedsim.flower import new

        if folder is not None or gossip:
            raise ValueError("--folder and --gossip go with a strategy")
        new.app(Path(name))
        typer.echo(f"{name}: edit experiment.toml, then see README.md")
        return
    from fedsim.cli import skeleton

    file, test, experiment = skeleton.strategy(name, folder or Path(), "gossip" if gossip else "server")
    typer.echo(f"{file}: put your method in the place of what is there; then")
    typer.echo(f"  python -m pytest {test}")
    typer.echo(f"  fedsim check {file}:{name}")
    typer.echo(f"  fedsim run {experiment}")
