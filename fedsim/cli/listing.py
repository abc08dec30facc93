"""fedsim list"""

from __future__ import annotations

from typing import Annotated

import typer

from fedsim.cli.base import app

KINDS = ("strategies", "weights", "mixing", "participation", "probabilities", "topologies", "data", "models",
         "partitions", "lr-schedules", "compressors", "curricula")  # fmt: skip
_FAMILY = {"strategies": "strategy", "models": "model", "partitions": "partition", "lr-schedules": "lr-schedule",
           "compressors": "compressor", "curricula": "curriculum"}  # fmt: skip


@app.command(
    "list",
    help="List what an experiment file can name: one line each, and the paper.",
)
def list_(
    kind: Annotated[str | None, typer.Argument(metavar="KIND", help=f"One of: {', '.join(KINDS)}.")] = None,
) -> None:
    from fedsim import resolve
    from fedsim.experiment import names, summary

    if kind is None:
        raise ValueError(f"say what to list: {', '.join(KINDS)}")
    if kind not in KINDS:
        raise ValueError(f'there is no list of "{kind}"{resolve.nearest(kind, KINDS)}')
    if kind == "topologies":
        from fedsim import topology

        lines = {name: recipe.description for name, recipe in topology.recipes().items()}
    else:
        lines = {name: summary(cls) for name, cls in names(_FAMILY.get(kind, kind)).items()}
    if kind == "strategies":
        lines = {name: lines[name] for name in sorted(lines, key=str.casefold)}
    width = max(map(len, lines))
    for name, line in lines.items():
        typer.echo(f"{name:<{width}}  {line}")
    if kind == "strategies":
        from fedsim.experiment import bundled

        for name, line in bundled.lines().items():
            typer.echo(f"{name:<{width}}  {line}")
