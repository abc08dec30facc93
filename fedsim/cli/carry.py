"""What `fedsim run`, `sweep` and `resume` have in common: an experiment carried out and recorded, step by step."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fedsim.cli.interrupt import Interrupts, Terminated

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from fedsim.compare import Event
    from fedsim.events import Stand
    from fedsim.experiment import Experiment
    from fedsim.record import RunFolder
    from fedsim.standing import Saved

SELDOM = 60.0  # seconds between two checkpoints, where the experiment does not say
SHARE = 0.01  # of the time may go into them then


class Keeper:
    """Says when it is time for a checkpoint, and writes it."""

    def __init__(self, experiment: Experiment, record: RunFolder) -> None:
        self.every = experiment.run.checkpoint_every
        self.runs = len(experiment.entries) * len(experiment.run.seeds)
        self._record = record
        self._last, self._took = time.monotonic(), 0.0
        self._wrong = ""

    def due(self, stand: Stand) -> bool:
        """Whether to save where it stands: every so many rounds, or now and then; and whenever some runs are over and
        others have not begun, as there is little to save then."""
        if not stand.under_way:
            return len(stand.over) < self.runs
        if self.every is not None:
            return any(progress.done % self.every == 0 for progress in stand.under_way.values())
        return time.monotonic() - self._last >= max(SELDOM, self._took / SHARE)

    def save(self, stand: Stand) -> bool:
        """Writes a checkpoint; whether it could be. A run goes on without: it is said once."""
        from fedsim import standing

        clock = time.monotonic()
        try:
            standing.save(self._record.path, stand, self._record.mark())
        except OSError as error:
            if str(error) != self._wrong:
                typer.echo(f"fedsim: no checkpoint: {error}", err=True)
            self._wrong = str(error)
        else:
            self._wrong = ""
        self._last = time.monotonic()
        self._took = self._last - clock
        return not self._wrong


def events(experiment: Experiment, flower: dict[str, Any] | None, saved: Saved | None = None) -> Iterator[Event]:
    """What happens in a run, here or on Flower."""
    from fedsim import compare

    if flower is None:
        return compare.compare(experiment, since=saved)
    for name in ("FLWR_TELEMETRY_ENABLED", "FLWR_DISABLE_UPDATE_CHECK"):  # read when flwr is imported
        os.environ.setdefault(name, "0" if name.endswith("ENABLED") else "1")
    from fedsim.flower import runtimes

    return runtimes.events(experiment, **flower)


def carry_out(
    experiment: Experiment, out: Path | None, quiet: bool, flower: dict[str, Any] | None, results: bool = True,
    going_on: tuple[RunFolder, Saved | None] | None = None,
) -> bool:  # fmt: skip
    """Run and record; whether a run failed. `results`: print them at the end, unless quiet. `going_on`: in a folder
    that has been reopened, from what was saved in it."""
    from fedsim.record import check_free, default_folder

    if going_on is not None:
        folder = going_on[0].path
    else:
        folder = default_folder(experiment.name) if out is None else out
        check_free(folder)

    from rich.console import Console

    from fedsim import compare, native, standing
    from fedsim.cli.progress import Bar
    from fedsim.cli.summary import print_summary
    from fedsim.record import RunFolder, environment, note
    from fedsim.report import write_figures
    from fedsim.report.page import PAGE, write_page

    screen = Console(stderr=True, quiet=quiet)
    experiment = compare.settle(experiment)
    if experiment.run.device == "cpu" and native.pending():
        screen.print("compiling operators for this machine, once: some ten seconds")
    record, saved = (None, None) if going_on is None else going_on
    where = {} if flower is None else {"on": flower["on"]}
    if experiment.tuning is not None:
        from fedsim.cli import tune

        experiment, found = tune.run_tuning(experiment, screen, quiet or not results)
        record = RunFolder(folder, experiment.toml(), where | environment(experiment.run.device))  # kept, whatever
        record.tuned(found)
    keeper: Keeper | None = None
    failures = [] if record is None else [_failure(**run) for run in record.failures]
    apart: tuple[str, ...] = ()
    absences, finished = 0, 0 if record is None else len(record.runs)
    try:
        with Bar(screen, len(experiment.entries) * len(experiment.run.seeds), experiment.run.rounds) as bar, Interrupts(
            lambda: _wait(bar, screen)
        ) as interrupts:  # fmt: skip
            if saved is not None:
                bar.begin(len(saved.over) * experiment.run.rounds + sum(saved.rounds))
            for event in events(experiment, flower, saved):
                if isinstance(event, compare.Planned):
                    experiment, apart = event.experiment, event.apart
                    if record is not None:
                        record.resolved(experiment.toml())
                    if event.rounding is not None:
                        where = where | {"rounding": event.rounding}
                        off = f"products in {experiment.run.products}: a gradient is {event.rounding:.2g} of its norm"
                        screen.print(f"{off} away from float32's")
                if record is None:
                    record = RunFolder(folder, experiment.toml(), where | environment(experiment.run.device))
                if isinstance(event, compare.Measured | compare.Played):
                    interrupts.patient = flower is None
                match event:
                    case compare.Began(seed, schedule, moved):
                        record.schedule(seed, schedule)
                        if moved:
                            screen.print(
                                f"seed {seed}: {moved} examples moved to clients that the partition had left empty"
                            )
                    case compare.Played():
                        bar.played(*event)
                        if interrupts.asked is not None and event.strategy in apart:
                            raise interrupts.asked  # the last checkpoint is of before it began
                    case compare.Measured():
                        record.measured(*event)
                    case compare.Timed():
                        record.timed(*event)
                    case compare.Absent() | compare.Heard():
                        note(folder, event)
                        absences += isinstance(event, compare.Absent)
                    case compare.Clients():
                        record.clients(*event)
                    case compare.Finished():
                        record.finished(compare.as_result(event))
                        finished += 1
                    case compare.Failed(strategy, seed, round):
                        record.failed(event._asdict())
                        failures.append(_failure(**event._asdict()))
                        bar.failed(strategy, seed, round)
                    case compare.Stand():
                        keeper = keeper or Keeper(experiment, record)
                        if keeper.due(event) or interrupts.asked is not None:
                            keeper.save(event)
                        if interrupts.asked is not None:
                            raise interrupts.asked
            interrupts.patient = False
            bar.say("drawing figures")
            write_figures(folder)
            if results:
                write_page(folder)
            standing.discard(folder)
    except (KeyboardInterrupt, Terminated, OSError) as error:
        if record is not None and folder.is_dir():
            said = f"the results so far are in {folder}" + (
                f"; go on with: fedsim resume {folder}" if not flower else ""
            )
            screen.print(said if isinstance(error, OSError) else f"interrupted; {said}", soft_wrap=True)
        raise
    finally:
        if record is not None:
            record.close()
    for failure in failures:
        typer.echo(f"fedsim: {failure}", err=True)
    if absences:
        said = f"{absences} times a client was asked and did not answer, or with nothing usable"
        screen.print(f"{said}: {folder / 'absences.csv'} says why", soft_wrap=True)
    if results and not quiet:
        if finished:
            print_summary(folder, Console())
        typer.echo(f"run folder: {folder}")
        typer.echo(f"report: {folder / PAGE}")
    return bool(failures)


def _failure(strategy: str, seed: int, reason: str, **_: Any) -> str:
    return f"{strategy}, seed {seed}: {reason}"


def _wait(bar: Any, screen: Console) -> None:
    """Says that the round is played to its end."""
    if screen.is_terminal:
        bar.say("stopping after this round; again to stop now")
    elif not screen.quiet:
        os.write(sys.stderr.fileno(), b"stopping when this round is over and saved; once more ends it now\n")
