"""fedsim run"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from fedsim.cli.base import app, hush
from fedsim.cli.carry import carry_out


@app.command(
    help="Run every strategy of an experiment file with every seed, on the same data, clients and presence. The run "
    "folder gets the resolved experiment, which runs again as it is, metrics.csv as it grows, result.json, figures and "
    "report.html. Interrupted or killed, it goes on with fedsim resume. With a table [tune] in the file every strategy "
    "is tuned first, on seeds of its own: see fedsim tune. Mistakes in the file are found before anything is computed "
    "or written.",
    short_help="Run every strategy of an experiment file with every seed, and compare.",
)
def run(
    experiment: Annotated[Path, typer.Argument(metavar="EXPERIMENT.toml", help="The experiment file.")],
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Change a setting: run.rounds=50, strategy.0.lr=0.5. Repeatable."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="The run folder; must not hold a run. Default: runs/NAME-DATE-TIME."),
    ] = None,
    device: Annotated[str | None, typer.Option(metavar="auto|cpu|cuda|cuda:N", help="Overrides run.device.")] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where data files are sought. Default: FEDSIM_DATA, else ./data."),
    ] = None,
    on: Annotated[
        str,
        typer.Option(
            metavar="local|flower-simulation|flower",
            help="Where clients train: our engine, Flower's simulation runtime (Ray), or a federation of SuperNodes.",
        ),
    ] = "local",
    superlink: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="With --on flower: the SuperLink to submit the run to.")
    ] = None,
    nodes: Annotated[
        int | None,
        typer.Option(metavar="N", help="With --on flower-simulation: nodes that share the clients. Default: one each."),
    ] = None,
    on_failure: Annotated[
        str,
        typer.Option(
            metavar="absent|stop", help="With Flower: a client that fails is absent for the round, or the end."
        ),
    ] = "absent",
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", help="With Flower: how long a round's replies may take.")
    ] = 600.0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", callback=hush, help="Print nothing but errors.")] = False,
) -> None:
    from fedsim.experiment import check_device, load

    flower = _flower(on, superlink, nodes, on_failure, timeout)

    made = load(experiment, set_ or ())
    if nodes is not None and nodes > made.task.clients:
        raise ValueError(f"--nodes {nodes} is more than the {made.task.clients} clients there are to share")
    if device is not None:
        made = made.settled(device=check_device(device))
    if data_dir is not None:
        made = made.with_data_dir(data_dir)
    failed = carry_out(made, out, quiet, flower)
    if failed:
        raise typer.Exit(2)


def _flower(
    on: str, superlink: str | None, nodes: int | None, on_failure: str, timeout: float
) -> dict[str, Any] | None:
    """What Flower needs to know, or None for a local run. Raises ValueError where the options do not go together."""
    places = ("local", "flower-simulation", "flower")
    if on not in places:
        raise ValueError(f'--on must be one of {", ".join(places)}, got "{on}"')
    if on == "flower" and not superlink:
        raise ValueError("--on flower needs the SuperLink's address: --superlink HOST:PORT")
    if on != "flower" and superlink:
        raise ValueError("--superlink goes with --on flower")
    if nodes is not None and (on != "flower-simulation" or nodes < 1):
        raise ValueError("--nodes is a number from 1 and goes with --on flower-simulation")
    if on_failure not in ("absent", "stop"):
        raise ValueError(f'--on-failure must be absent or stop, got "{on_failure}"')
    if not 0 < timeout < math.inf:
        raise ValueError(f"--timeout must be a positive number of seconds, got {timeout:g}")
    where = {"superlink": superlink} if superlink else {} if nodes is None else {"nodes": nodes}
    return None if on == "local" else {"on": on, "on_failure": on_failure, "timeout": timeout, **where}
