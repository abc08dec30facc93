"""fedsim run"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedsim.cli.base import app, hush

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fedsim.compare import Event
    from fedsim.experiment import Experiment
    from fedsim.record import RunFolder


@app.command(
    help="Run every strategy of an experiment file with every seed, on the same data, clients and presence. The run "
    "folder gets the resolved experiment, which runs again as it is, metrics.csv as it grows, result.json, figures and "
    "report.html. With a table [tune] in the file every strategy is tuned first, on seeds of its own: see fedsim tune. "
    "Mistakes in the file are found before anything is computed or written.",
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


def _events(experiment: Experiment, flower: dict[str, Any] | None) -> Iterator[Event]:
    """What happens in a run, here or on Flower."""
    from fedsim import compare

    if flower is None:
        return compare.compare(experiment)
    for name in ("FLWR_TELEMETRY_ENABLED", "FLWR_DISABLE_UPDATE_CHECK"):  # read when flwr is imported
        os.environ.setdefault(name, "0" if name.endswith("ENABLED") else "1")
    from fedsim.flower import runtimes

    return runtimes.events(experiment, **flower)


def carry_out(
    experiment: Experiment, out: Path | None, quiet: bool, flower: dict[str, Any] | None, results: bool = True
) -> bool:
    """Run and record; whether a run failed. `results`: print them at the end, unless quiet."""
    from fedsim.record import check_free, default_folder

    folder = default_folder(experiment.name) if out is None else out
    check_free(folder)

    from rich.console import Console

    from fedsim import compare
    from fedsim.cli.progress import Bar
    from fedsim.cli.summary import print_summary
    from fedsim.record import RunFolder, environment
    from fedsim.report import write_figures
    from fedsim.report.page import PAGE, write_page

    screen = Console(stderr=True, quiet=quiet)
    experiment = compare.settle(experiment)
    record: RunFolder | None = None
    if experiment.tuning is not None:
        from fedsim.cli import tune

        experiment, found = tune.run_tuning(experiment, screen, quiet or not results)
        record = RunFolder(folder, experiment.toml(), environment(experiment.run.device))  # kept, whatever comes now
        record.tuned(found)
    finished = 0
    failures: list[str] = []
    absences = 0
    try:
        with Bar(screen, len(experiment.entries) * len(experiment.run.seeds), experiment.run.rounds) as bar:
            for event in _events(experiment, flower):
                if isinstance(event, compare.Planned):
                    experiment = event.experiment
                    if record is not None:
                        record.resolved(experiment.toml())
                if record is None:
                    record = RunFolder(folder, experiment.toml(), environment(experiment.run.device))
                match event:
                    case compare.Began(seed, schedule, moved):
                        record.schedule(seed, schedule)
                        if moved:
                            screen.print(
                                f"seed {seed}: {moved} examples moved to clients that the partition had left empty"
                            )
                    case compare.Played():
                        bar.played(*event)
                    case compare.Measured():
                        record.measured(*event)
                    case compare.Timed():
                        record.timed(*event)
                    case compare.Absent() | compare.Heard():
                        from fedsim.flower.app import note

                        note(folder, event)
                        absences += isinstance(event, compare.Absent)
                    case compare.Clients():
                        record.clients(*event)
                    case compare.Finished():
                        record.finished(compare.as_result(event))
                        finished += 1
                    case compare.Failed(strategy, seed, round, reason):
                        record.failed(event._asdict())
                        failures.append(f"{strategy}, seed {seed}: {reason}")
                        bar.failed(strategy, seed, round)
            bar.say("drawing figures")
            write_figures(folder)
            if results:
                write_page(folder)
    except KeyboardInterrupt:
        if record is not None:
            screen.print(f"interrupted; the results so far are in {folder}", soft_wrap=True)
        raise
    finally:
        if record is not None:
            record.close()
    for failure in failures:
        typer.echo(f"fedsim: {failure}", err=True)
    if absences:
        screen.print(f"{absences} times a client was asked and did not answer: {folder / 'absences.csv'} says why",
                     soft_wrap=True)  # fmt: skip
    if results and not quiet:
        if finished:
            print_summary(folder, Console())
        typer.echo(f"run folder: {folder}")
        typer.echo(f"report: {folder / PAGE}")
    return bool(failures)
