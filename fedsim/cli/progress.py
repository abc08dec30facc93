"""The progress bar of `fedsim run`: rounds, who is present, client trainings a second, time left. Nothing where stderr
is no terminal."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

REST = len(" /rounds  1000 present  9.9k clients/s  0:00:00 left  ")  # beside description, bar and the count of rounds


class Bar:
    """A progress bar over `runs` runs of `rounds` rounds each, which may advance one by one or side by side. Use as a
    context manager."""

    def __init__(self, screen: Console, runs: int, rounds: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.rounds = rounds
        bar = 5 if screen.width < 100 else 20
        self.room = max(screen.width - REST - bar - 2 * len(str(runs * rounds)), 12)
        self._present: dict[tuple[str, int], int] = {}  # of the runs under way, in their last round
        self._told = ""  # of presence and speed
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=bar),
            MofNCompleteColumn(),
            TextColumn("rounds  {task.fields[told]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=screen,
            transient=True,
            disable=not screen.is_terminal,
        )
        self._bar = self._progress.add_task("making data and clients", total=runs * rounds, told="")
        self._trained = self._progress.add_task("client trainings", total=None, visible=False, told="")  # for its speed

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._progress.stop()

    def played(self, strategy: str, seed: int, round: int, present: int) -> None:
        """A run has played its `round`-th round, in which `present` clients took part."""
        if self._progress.disable:
            return
        self._present[strategy, seed] = present
        self._progress.advance(self._trained, present)
        side, mean = len(self._present), sum(self._present.values()) / len(self._present)
        speed = self._progress.tasks[1].speed
        self._told = f"{mean:.0f} present  {_short(speed) if speed else '-'} clients/s"
        self.say(f"{side} runs, round {round}" if side > 1 else f"seed {seed}, {strategy}", 1)
        if round == self.rounds:
            del self._present[strategy, seed]

    def failed(self, strategy: str, seed: int, round: int) -> None:
        """A run has ended after `round` rounds: those that are left are not to come."""
        self._present.pop((strategy, seed), None)
        self._progress.advance(self._bar, self.rounds - round)

    def begin(self, rounds: int) -> None:
        """So many rounds, over all runs, were played before."""
        self._progress.update(self._bar, completed=rounds)

    def say(self, what: str, advance: int = 0) -> None:
        """Says what is going on, cut to the room there is."""
        what = what if len(what) <= self.room else f"{what[: self.room - 1]}…"
        self._progress.update(self._bar, advance=advance, description=what, told=self._told)


def _short(number: float) -> str:
    """A number in about three digits: 491, 12k, 3.4M."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if number >= 10 * size:
            return f"{number / size:.0f}{unit}"
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return f"{number:.{0 if number >= 10 else 1}f}"
