"""fedsim participation"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedsim.cli.base import app

if TYPE_CHECKING:
    from fedsim.experiment import Experiment


@app.command(
    "participation",
    help="Draw who is there when, as `fedsim run` does, and report it: rates, gaps between participations, "
    "autocorrelation, inequality, and what they have to do with the clients' data. Nothing is trained. The folder gets "
    "report.json, the schedule and figures. In place of an experiment, a schedule that a run left (.npz) will do.",
    short_help="Draw and report who is there when, without training.",
)
def participation_(
    experiment: Annotated[
        Path, typer.Argument(metavar="EXPERIMENT.toml", help="The experiment file, or schedule.npz.")
    ],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting: participation.memory=0.1. Repeatable."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="SEED", min=0, help="Whose schedule. Default: the first of run.seeds.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="The folder. Default: runs/NAME-participation-DATE-TIME.")
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where data files are sought. Default: FEDSIM_DATA, else ./data."),
    ] = None,
    json_: Annotated[
        bool, typer.Option("--json", help="Print the report as JSON, and write no files unless --out is given.")
    ] = False,
) -> None:
    from fedsim.experiment import load
    from fedsim.record import default_folder
    from fedsim.report import participation as report

    if experiment.suffix == ".npz":
        if set_ or seed is not None or data_dir is not None:
            raise ValueError(f"{experiment} is drawn already; --set, --seed and --data-dir go with an experiment file")
        made, name = None, experiment.stem
    else:
        made = load(experiment, set_ or ())
        made = made if data_dir is None else made.with_data_dir(data_dir)
        name = made.name
    folder = out
    if folder is None and not json_:
        folder = default_folder(f"{name}-participation")
    if folder is not None:
        report.check(folder)
    _participation(made, experiment, name, seed, folder, json_)


def _participation(
    made: Experiment | None, path: Path, name: str, seed: int | None, folder: Path | None, as_json: bool
) -> None:
    """Draw, report and write down."""
    import json

    from fedsim.participation import Schedule
    from fedsim.report import participation as report

    if made is None:
        schedule, title = Schedule.load(path), name
        found = report.describe(schedule)
    else:
        seed = made.run.seeds[0] if seed is None else seed
        world = report.world(made, seed)
        schedule, title = world.schedule, f"{name}, seed {seed}"
        found = {"experiment": name, "seed": seed, **report.describe(schedule, world)}
    if folder is not None:
        report.write(folder, schedule, found, seed)
    if as_json:
        typer.echo(json.dumps(found, indent=2, allow_nan=False))
        return
    from rich.console import Console

    screen = Console(highlight=False)
    screen.width = screen.width if screen.is_terminal else max(screen.width, 120)
    for part in report.page(found, title):
        screen.print(part)
    typer.echo(f"folder: {folder}")
