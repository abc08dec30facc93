"""fedsim resume"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedsim.cli.base import app, check_run, hush
from fedsim.cli.carry import carry_out

if TYPE_CHECKING:
    from fedsim.experiment import Experiment


@app.command(
    help="Go on with a run that was interrupted, killed, or had no room left, from its last checkpoint: the same "
    "numbers, bit for bit, as if nothing had happened. A run that had no checkpoint yet begins again. How often there "
    "is one says run.checkpoint-every; left out, every minute or so, and seldom enough to cost no more than 1 % of the "
    "time. A strategy of Flower (flwr:) keeps its state to itself: its run begins again, the others go on.",
    short_help="Go on with a run that was interrupted or killed.",
)
def resume(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run folder.")],
    quiet: Annotated[bool, typer.Option("--quiet", "-q", callback=hush, help="Print nothing but errors.")] = False,
) -> None:
    if go_on(run, quiet):
        raise typer.Exit(2)


def go_on(run: Path, quiet: bool, results: bool = True) -> bool:
    """Go on with the run in a folder; whether a run of it failed."""
    from fedsim.experiment import load
    from fedsim.record import check_format
    from fedsim.record.contents import read_environment, read_whole_result

    check_run(run)
    check_format(run)
    before = read_environment(run)
    if "on" in before:
        raise ValueError(f"{run} ran on Flower ({before['on']}), whose clients' state is not here; run it anew")
    experiment = load(run / "experiment.toml")
    result = read_whole_result(run) if (run / "result.json").exists() else {}
    ended = {(one["strategy"], one["seed"]) for one in (*result.get("runs", ()), *result.get("failed", ()))}
    if ended >= {(entry.label, seed) for entry in experiment.entries for seed in experiment.run.seeds}:
        _over(run, quiet, results)
        return False
    return _go_on(experiment, run, before, quiet, results)


def _over(run: Path, quiet: bool, results: bool) -> None:
    """Every run has ended: nothing is left to do, but perhaps to draw, and to clear away what whoever was killed while
    drawing has left."""
    from fedsim import lock, standing
    from fedsim.record.folder import leftovers
    from fedsim.report.page import PAGE, write_page

    drawn = (run / PAGE).exists() or not results
    if not drawn or (run / standing.FOLDER).is_dir() or (run / lock.FILE).exists() or leftovers(run):
        from fedsim.report import write_figures

        mine = lock.Lock(run)
        try:
            for left in leftovers(run):
                left.unlink(missing_ok=True)
            write_figures(run)
            if results:
                write_page(run)
            standing.discard(run)
        finally:
            mine.release()
    if not quiet:
        typer.echo(f"{run} is over: all its runs have ended" + ("" if drawn else "; its figures are drawn now"))


def _go_on(experiment: Experiment, run: Path, before: Mapping[str, Any], quiet: bool, results: bool) -> bool:
    from fedsim import compare, standing
    from fedsim.playing import owns_its_loop
    from fedsim.record import RunFolder, environment, lacking

    experiment = compare.settle(experiment)
    now = environment(experiment.run.device)
    saved, wrong = standing.latest(run, lambda one: lacking(run, one.also))
    record = RunFolder.reopened(run, None if saved is None else saved.also, [] if saved is None else saved.over, now)
    if not quiet:
        for line in (*wrong, *_changes(before, now)):
            typer.echo(f"fedsim: {line}", err=True)
        total = len(experiment.entries) * len(experiment.run.seeds)
        if saved is None:
            typer.echo(f"{run} begins again: there is no checkpoint of it", err=True)
        else:
            under_way = saved.rounds
            where = f"round {min(under_way)} of {experiment.run.rounds}" if under_way else "the next of its runs"
            stand = f"of {total} runs {len(saved.over)} are over, {len(under_way)} under way"
            typer.echo(f"{run} goes on from {where}: {stand}", err=True)
        ended = [] if saved is None else saved.over
        for label in dict.fromkeys(entry.label for entry in experiment.entries if owns_its_loop(entry)):
            if any((label, seed) not in ended for seed in experiment.run.seeds):
                typer.echo(f"{label} keeps its state to itself, as Flower's strategies do: a run of it that was under "
                           "way begins again", err=True)  # fmt: skip
    if saved is None:
        standing.discard(run)
    return carry_out(experiment, None, quiet, None, results, (record, saved))


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What numbers may depend on and is not what it was, in words."""
    found = []
    for name in ("processor", "gpu", "threads", "operators"):
        if before and before.get(name) != now[name]:
            found.append(f"{name} was {before.get(name)} and is {now[name]}")
    for name in ("fedsim", "torch", "numpy"):
        was = before.get("packages", {}).get(name)
        if was is not None and was != now["packages"].get(name):
            found.append(f"{name} was {was} and is {now['packages'].get(name)}")
    return [f"{one}: from here on numbers may differ in their last digits" for one in found]
