"""fedsim sweep"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedsim.cli.base import app, hush
from fedsim.cli.carry import carry_out
from fedsim.cli.interrupt import Terminated
from fedsim.cli.resume import go_on

if TYPE_CHECKING:
    from rich.table import Table

    from fedsim.experiment import Experiment
    from fedsim.sweep import Sweep
    from fedsim.sweep.grid import Grid

LISTED = 60  # cells in the summary


@app.command(
    help="Cross an experiment over lists and ranges of its keys, and run every cell as `fedsim run` would. The keys "
    "are named in a table [sweep] of the file or with --over, or have a list where one value goes. All cells are "
    "checked before anything runs, and share their seeds: common random numbers. A sweep that was cut short "
    "goes on where it was. The folder gets a run folder for every cell, index.csv, and heat maps.",
    short_help="Cross an experiment over lists and ranges of its keys, with heat maps.",
)
def sweep(
    experiment: Annotated[Path | None, typer.Argument(metavar="EXPERIMENT.toml", help="The experiment file.")] = None,
    over: Annotated[
        list[str] | None,
        typer.Option(
            "--over",
            metavar="KEY=[...]",
            help="Sweep over a key: strategy.FedStale.beta=[0.0, 0.5], or a range, "
            "{ from = 0.01, to = 1.0, count = 3, scale = 'log' }. Repeatable.",
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of all cells: run.rounds=50. Repeatable."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="The sweep's folder; goes on with the sweep that is in it. "
                     "Default: runs/NAME-sweep-DATE-TIME."),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Go on with the sweep in a folder, without its file.")
    ] = None,
    device: Annotated[str | None, typer.Option(metavar="auto|cpu|cuda|cuda:N", help="Overrides run.device.")] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where data files are sought. Default: FEDSIM_DATA, else ./data."),
    ] = None,
    metric: Annotated[
        str | None, typer.Option(metavar="NAME", help="What is drawn. Default: test_accuracy, else test_loss.")
    ] = None,
    against: Annotated[
        str | None, typer.Option(metavar="LABEL", help="The strategy others are held against. Default: the first.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the cells, and run and write nothing.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", callback=hush, help="Print nothing but errors.")] = False,
) -> None:  # fmt: skip
    from fedsim import merit, resolve
    from fedsim.record import default_folder
    from fedsim.sweep import folder as folders
    from fedsim.sweep import load

    if resume is not None:
        if experiment is not None or over or set_ or out is not None or device is not None or data_dir is not None:
            raise ValueError("--resume takes all from the folder: leave out the file, --over, --set, --out, --device "
                             "and --data-dir")  # fmt: skip
        if not (resume / folders.FILE).is_file():
            raise FileNotFoundError(f"{resume} holds no sweep: there is no {folders.FILE} in it")
        made, folder = load(resume / folders.FILE), resume
    elif experiment is None:
        raise ValueError("name an experiment file, or --resume FOLDER")
    else:
        made = load(experiment, set_ or (), over or (), device, data_dir)
        folder = default_folder(f"{made.name}-sweep") if out is None else out
    if metric is not None:
        merit.higher_is_better(metric)
    labels = list(dict.fromkeys(label for work in made.work for label in work.strategies))
    if against is not None and against not in labels:
        raise ValueError(f'there is no strategy "{against}"{resolve.nearest(against, labels)}')
    begun = folders.check(folder, made)
    if not quiet:
        for line in _plan(made):
            typer.echo(line)
    if dry_run:
        for cell in made.cells:
            typer.echo(cell.name)
        return
    if _sweep(made, folder, begun, quiet, metric, against):
        raise typer.Exit(2)


def _plan(made: Sweep) -> list[str]:
    """What there is to do."""
    works = made.work
    crossed = " x ".join(f"{len(axis.values)} {axis.path}" for axis in made.axes)
    strategies, seeds, rounds = ({getattr(w, name) for w in works} for name in ("strategies", "seeds", "rounds"))
    parts = [f"{len(works)} cells ({crossed})"]
    parts.append(f"{_span(map(len, strategies))} strategies")
    parts.append(f"{_span(map(len, seeds))} seeds")
    parts.append(f"{_span(rounds)} rounds")
    total = sum(work.runs * work.rounds for work in works)
    lines = [f"{made.name}: {', '.join(parts)}: {total} rounds in {sum(work.runs for work in works)} runs"]
    if len(seeds) == 1:
        lines.append("every cell has the same seeds: common random numbers, so differences between cells are paired")
    return lines


def _span(numbers: Any) -> str:
    least, *_, most = sorted([*(found := list(numbers)), *found])
    return str(least) if least == most else f"{least} to {most}"


def _sweep(made: Sweep, folder: Path, begun: bool, quiet: bool, metric: str | None, against: str | None) -> bool:
    """Run the cells that are not over yet, and draw; whether anything failed."""
    from fedsim import standing
    from fedsim.files import CannotWrite
    from fedsim.report.maps import write_maps
    from fedsim.sweep import folder as folders
    from fedsim.sweep.grid import read

    if not begun:
        _rehearse(made.experiment(made.cells[0]))
    with folders.opened(folder, made):
        states: dict[int, dict[str, Any]] = {}
        for cell, work in zip(made.cells, made.work, strict=True):
            if (state := folders.state(folder, cell, work)) is not None:
                states[cell.number] = state
        if begun and not quiet:
            typer.echo(f"{len(states)} of {len(made.cells)} cells are over already")
        folders.write_index(folder, made, states)
        spent: list[float] = []
        try:
            for cell, work in zip(made.cells, made.work, strict=True):
                if cell.number in states:
                    continue
                if not quiet:
                    typer.echo(f"{cell.name}{_left(spent, len(made.cells) - len(states))}", err=True)
                clock, refused = time.monotonic(), None
                try:
                    if standing.latest(folder / cell.name)[0] is not None:
                        go_on(folder / cell.name, quiet, results=False)
                    else:
                        folders.clear(folder, cell)
                        carry_out(made.experiment(cell), folder / cell.name, quiet, None, results=False)
                except (FileNotFoundError, CannotWrite):
                    raise
                except ValueError as error:  # found only once its data were there
                    refused = str(error)
                    typer.echo(f"fedsim: cell {cell.name}: {refused}", err=True)
                folders.mark(folder, made, cell, refused)
                spent.append(time.monotonic() - clock)
                states[cell.number] = folders.state(folder, cell, work) or {}
                folders.write_index(folder, made, states)
        except (KeyboardInterrupt, Terminated, OSError):
            typer.echo(f"{len(states)} of {len(made.cells)} cells are over; go on with: fedsim sweep --resume {folder}",
                       err=True)  # fmt: skip
            raise
        write_maps(folder, metric, against)
    if not quiet:
        grid = read(folder, metric)
        if grid is not None:
            _print(_best(grid))
        typer.echo(f"sweep folder: {folder}")
    return any(state.get("refused") or state.get("failed") for state in states.values())


def _rehearse(experiment: Experiment) -> None:
    """Make the first world of a cell, so that data that are not there are said before anything is written."""
    from fedsim import compare

    experiment = compare.settle(experiment)
    world = compare.make_world(experiment, compare.load_data(experiment), experiment.run.seeds[0])
    for entry in experiment.entries:
        compare.prepared(entry, world, experiment.task.init)


def _left(spent: Sequence[float], cells: int) -> str:
    """How much there is left to do, judged by what the cells so far took."""
    if not spent:
        return ""
    seconds = cells * sum(spent) / len(spent)
    return f" ({cells} to go, about {seconds / 60:.0f} min)" if seconds > 90 else f" ({cells} to go, {seconds:.0f} s)"


def _best(grid: Grid) -> Table:
    """Who is best in every cell, and who cannot be told from the best."""
    from rich import box
    from rich.table import Table

    from fedsim.sweep.axes import word

    caption = f"{grid.metric.replace('_', ' ')}, mean over the last fifth of the rounds"
    if grid.seeds > 1:
        caption += f" and {grid.seeds} seeds; paired comparisons, 95 %"
    table = Table(box=box.SIMPLE_HEAD, caption=caption, caption_justify="left")
    for name in grid.names:
        table.add_column(name.replace("[", r"\["))
    table.add_column("best")
    table.add_column("mean", justify="right")
    if grid.seeds > 1:
        table.add_column("not clearly worse", overflow="fold")
    places = list(itertools.product(*map(range, grid.shape)))
    for place in places[:LISTED]:
        standings = grid.standings(place)
        first = standings[0]
        values = [word(axis[i]) for axis, i in zip(grid.values, place, strict=True)]
        best, mean = (first.strategy, f"{first.mean:.3f}") if first.seeds else ("-", "-")
        level = [one.strategy for one in standings[1:] if one.seeds and one.best == 1]
        row = [*values, best, mean, *([", ".join(level)] if grid.seeds > 1 else [])]
        table.add_row(*(text.replace("[", r"\[") for text in row))
    if len(places) > LISTED:
        table.caption = f"the first {LISTED} of {len(places)} cells, the others are in index.csv; {caption}"
    return table


def _print(table: Table) -> None:
    from rich.console import Console

    screen = Console()
    screen.width = screen.width if screen.is_terminal else max(screen.width, 120)
    screen.print(table)
