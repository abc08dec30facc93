"""fedsim verify"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedsim.cli.base import app, check_run, hush

WAYS = ("engine", "chunk", "threads", "device", "memory", "together")


@app.command(
    help="Check that a run folder says what its experiment does. First against itself: that no number of metrics.csv "
    "or result.json was changed, taken out or put in since it was recorded. Then the resolved experiment is run again, "
    "and every evaluation's model and metrics are held against those recorded. Exit code 0: equal, or equal within the "
    "tolerance for another machine, engine or chunk; 1: something differs, and it says where first.",
    short_help="Check that a run folder says what its experiment does.",
)
def verify(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run folder.")],
    rounds: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Run the first N rounds again, not all; 0: the first model.")
    ] = None,
    book: Annotated[bool, typer.Option("--book", help="Check the folder against itself only; run nothing.")] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Run it in another way: run.engine, run.chunk, run.threads, "
                     "run.device, run.memory or run.together. Repeatable."),
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", callback=hush, help="Print nothing; the exit code says it.")
    ] = False,
) -> None:  # fmt: skip
    from fedsim import hashes
    from fedsim import verify as verifying
    from fedsim.experiment import load

    check_run(run)
    for change in set_ or ():
        if change.partition("=")[0].strip().removeprefix("run.") not in WAYS:
            raise ValueError(
                f"--set {change}: what is verified stays as it is; only {', '.join(WAYS)} of run may change"
            )
    wrong = verifying.book(run)
    if wrong:
        _say(quiet, f"{run} differs: {wrong}")
        raise typer.Exit(1)
    links = len(hashes.read(run))
    count = len(verifying.recorded(run))
    kept = f"{links} evaluations" if links else f"{count} evaluations, without hashes of their models"
    _say(quiet, f"book: {kept}, as they were recorded")
    if book:
        return
    try:
        found = verifying.summary(verifying.again(load(run / "experiment.toml", set_ or ()), run, rounds))
    except verifying.Differs as error:
        _say(quiet, f"{run} differs: {error}")
        raise typer.Exit(1) from None
    if (first := found["differs"]) is not None:
        what = (
            f"{first.metric} was {first.was!r} and is {first.is_now!r}, {first.worst:.3g} times what rounding explains"
        )
        what = "its model is another, with the same metrics" if not first.metric else what
        _say(quiet, f"{run} differs first in {verifying.say(first.where)}: {what}")
        raise typer.Exit(1)
    total = found["same"] + found["within"]
    if not found["within"]:
        _say(quiet, f"{run} is equal: {total} of {total} evaluations, bit for bit")
        return
    parts = f"{found['same']} of {total} evaluations bit for bit, {found['within']} to rounding (100 eps a round)"
    _say(quiet, f"{run} is equal within tolerance: {parts}")
    worst = found["worst"]
    if worst.metric:
        values = f"{worst.metric} of {verifying.say(worst.where)}, {worst.was!r} and {worst.is_now!r}"
        _say(quiet, f"largest difference: {values}, {worst.worst:.2g} of what is allowed")


def _say(quiet: bool, text: str) -> None:
    if not quiet:
        typer.echo(text)
