"""fedsim tune"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedsim.cli.base import app, hush

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console
    from rich.table import Table

    from fedsim.experiment import Experiment

FILES = ("tune.json", "experiment.toml")


@app.command(
    "tune",
    help="Try every strategy's settings as the table [tune] of an experiment file says, each strategy with the same "
    "budget, judged on examples that nobody trains on or tests with. Prints the best settings as a table and as TOML "
    "to paste. `fedsim run` does this first, and then runs the best on the experiment's own seeds.",
    short_help="Find every strategy's best settings, with the same budget for each.",
)
def tune_(
    experiment: Annotated[Path, typer.Argument(metavar="EXPERIMENT.toml", help="The experiment file.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting: tune.trials=4, tune.seeds=[7]. Repeatable."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Write tune.json, a figure and the tuned experiment, which runs as it is, there."
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(metavar="auto|cpu|cuda|cuda:N", help="Overrides run.device.")] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where data files are sought. Default: FEDSIM_DATA, else ./data."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", callback=hush, help="Print the TOML only.")] = False,
) -> None:
    from fedsim.experiment import check_device, load

    made = load(experiment, set_ or ())
    if made.tuning is None:
        raise ValueError(f"{experiment} has no table [tune]; add one, with a [tune.grid]")
    if device is not None:
        made = made.settled(device=check_device(device))
    if data_dir is not None:
        made = made.with_data_dir(data_dir)
    held = [] if out is None else [name for name in FILES if (out / name).exists()]
    if held:
        raise FileExistsError(f"{out} already holds {held[0]}; choose another folder with --out")

    from rich.console import Console

    tuned, found = run_tuning(made, Console(stderr=True, quiet=quiet), quiet)
    typer.echo("\n".join(_toml(entry.given) for entry in tuned.entries), nl=False)
    if out is not None:
        _write(out, tuned, found)
        if not quiet:
            typer.echo(f"folder: {out}")


def run_tuning(experiment: Experiment, screen: Console, quiet: bool) -> tuple[Experiment, dict[str, Any]]:
    """Tune, showing how far it is on `screen` and what came of it on stdout; the tuned experiment, and what tune.json
    holds."""
    from rich.console import Console

    from fedsim import tuning
    from fedsim.tuning import budget

    results: list[tuning.Tuned] = []
    plan = experiment.tuning
    assert plan is not None
    rungs = budget.rungs(plan.table.trials, plan.rounds, plan.table.eta)
    allowed = budget.allowance(rungs) * len(plan.table.seeds)
    total = allowed * sum(grid.tried for grid in plan.grids)
    progress = _progress(screen)
    bar = progress.add_task("making data and clients", total=total)
    with progress:
        for event in tuning.tune(experiment):
            if isinstance(event, tuning.Played):
                progress.update(bar, advance=1, description=f"tuning {event.strategy}, round {event.round}")
            else:
                results.append(event)  # what a small grid could not spend is not waited for
                done = sum(allowed for each in results if each.trials)
                progress.update(bar, completed=done)
    found = tuning.document(experiment, results)
    if not quiet:
        page = Console(highlight=False)
        page.width = page.width if page.is_terminal else max(page.width, 120)
        page.print(_table(found))
        for warning in found["warnings"]:
            page.print(f"warning: {warning}", markup=False, soft_wrap=True)
    return tuning.winners(experiment, results), found


def _toml(given: Mapping[str, Any]) -> str:
    """A [[strategy]] as it stands in a file, with its parts inline, so that it may be pasted anywhere."""
    from fedsim.experiment.settings import show

    return "".join(["[[strategy]]\n", *(f"{key} = {show(value, 10**6)}\n" for key, value in given.items())])


def _write(folder: Path, tuned: Experiment, found: dict[str, Any]) -> None:
    """The folder of `fedsim tune --out`."""
    import matplotlib

    from fedsim.files import write_json, write_text, writing
    from fedsim.report.style import RC, save
    from fedsim.report.tuning import tuning

    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "tune.json", found)
    write_text(folder / "experiment.toml", tuned.toml())
    with matplotlib.rc_context(RC):
        drawn = tuning(found)
        if drawn is not None:
            save(drawn, folder, "tuning")


def _progress(screen: Console) -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("rounds"),
        TimeElapsedColumn(),
        console=screen,
        transient=True,
        disable=not screen.is_terminal,
    )


def _table(found: dict[str, Any]) -> Table:
    """Every strategy's best settings, and what they cost to find."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from fedsim.tuning.trials import told

    budget = found["budget"]
    rungs = " → ".join(f"{rung['slots']} to round {rung['rounds']}" for rung in budget["rungs"])
    apart = "clients, who never train" if budget["on"] == "clients" else "training examples, held out"
    seeds = ", ".join(map(str, budget["seeds"]))
    caption = (
        f"{rungs}; tuning seeds {seeds}; judged by the mean over the last fifth of the rounds on "
        f"{100 * budget['share']:g} % of the {apart}"
    )
    table = Table(box=box.SIMPLE_HEAD, caption=caption, caption_justify="left", title_justify="left")
    table.add_column("strategy", overflow="fold")
    table.add_column("best settings", overflow="fold")
    table.add_column(f"validation {budget['metric']}", justify="right", no_wrap=True)
    table.add_column("points tried", justify="right", no_wrap=True)
    table.add_column("rounds used", justify="right", no_wrap=True)
    for each in found["strategies"]:
        value = "-" if each["value"] is None else f"{each['value']:.4g}"
        trials = f"{len(each['trials'])} of {each['points']}" if each["trials"] else "-"
        settings = told(each["winner"]) or "not tuned"
        table.add_row(
            escape(each["label"]), escape(settings), value, trials, f"{each['used']:,} of {each['allowed']:,}"
        )
    return table
