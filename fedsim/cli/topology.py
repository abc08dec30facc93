"""fedsim topology"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fedsim.cli.base import app

topology_ = typer.Typer(help="Look at a graph before mixing over it.")
app.add_typer(topology_, name="topology")


@topology_.callback()
def _topology() -> None:
    """Commands about graphs."""


@topology_.command(
    "show",
    help="What there is to know about a graph: nodes, edges, degrees, diameter, components, and how fast averaging "
    "with Metropolis weights agrees on it. With --out also a picture, PNG and SVG.",
    short_help="A graph in numbers and as a picture.",
)
def show(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME|FILE", help="A recipe (fedsim list topologies), a graph file, networkx:NAME or file.py:name."
        ),
    ],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="n=50, seed=1 or a parameter such as degree=6. Repeatable."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write NAME.png, NAME.svg and NAME.json there.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON, in full precision.")] = False,
) -> None:
    import json

    from fedsim import topology
    from fedsim.experiment.overrides import override

    given: dict[str, Any] = {}
    for change in set_ or ():
        override(given, change)
    graph = topology.read(name, **topology.split(name, given))
    from fedsim.report import topology as report

    found = report.describe(graph)
    text = json.dumps(found, indent=2)
    typer.echo(text if json_ else "\n".join(report.lines(name, found)))
    if out is not None:
        file = topology.short(name)
        out.mkdir(parents=True, exist_ok=True)
        report.draw(graph, file, out, file)
        (out / f"{file}.json").write_text(text + "\n", encoding="utf-8")
        typer.echo(f"picture: {out / f'{file}.png'}", err=json_)
