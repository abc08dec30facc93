"""What a terminal shows of a run: the bar while it goes on, the summary at its end."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console
from test_tables import THREE, folder

from fedsim.cli.progress import Bar
from fedsim.cli.summary import print_summary


def terminal(width: int = 80, forced: bool = True) -> Console:
    return Console(file=io.StringIO(), force_terminal=forced, width=width, color_system=None)


def shown(screen: Console) -> list[str]:
    """The bar's lines, one for each time it was drawn, without what moves the cursor."""
    text = screen.file.getvalue()  # type: ignore[attr-defined]
    return [line for line in re.split(r"[\r\n]", re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", text)) if line.strip()]


# --- the bar ----------------------------------------------------------------------------------------------------------


def drawn(screen: Console, bar: Bar) -> str:
    """The bar as it is drawn now."""
    bar._progress.refresh()
    return shown(screen)[-1]


def test_the_bar_says_rounds_presence_speed_and_time_left() -> None:
    """One run after another; the clock is ours: a round of 30 clients every 2 seconds."""
    screen, clock = terminal(), [0.0]
    bar = Bar(screen, runs=2, rounds=10)
    bar._progress.get_time = lambda: clock[0]
    with bar:
        assert "making data" in drawn(screen, bar)
        for round in range(1, 6):
            clock[0] += 2
            bar.played("FedAvg", 3, round, 30)
        line = drawn(screen, bar)
    assert line.startswith("seed 3, FedAvg")
    assert " 5/20 rounds  30 present  15 clients/s " in line
    assert line.rstrip().endswith("00:30 left")  # 15 rounds of 2 s
    assert len(line) <= 80


def test_runs_side_by_side_are_told_together() -> None:
    """The mean of those under way; one that is over or has failed is not."""
    screen = terminal()
    with Bar(screen, runs=3, rounds=4) as bar:
        for round in range(1, 4):
            for label, present in (("a", 10), ("b", 20), ("c", 60)):
                bar.played(label, 1, round, present)
        assert drawn(screen, bar).startswith("3 runs, round 3")
        assert " 9/12 rounds  30 present " in drawn(screen, bar)
        bar.failed("c", 1, 3)
        bar.played("a", 1, 4, 10)
        assert drawn(screen, bar).startswith("2 runs, round 4")
        bar.played("b", 1, 4, 20)
        assert drawn(screen, bar).startswith("seed 1, b")
        assert " 12/12 rounds  20 present " in drawn(screen, bar)


def test_a_long_name_is_cut_to_the_room_there_is() -> None:
    screen = terminal()
    with Bar(screen, runs=100, rounds=1000) as bar:
        for round in range(1, 3):
            bar.played("a strategy with quite a name [of its own]", 123, round, 100)
        line = drawn(screen, bar)
    assert re.match(r"seed 123, …|seed 123, a…", line)
    assert "     2/100000 rounds  100 present" in line
    assert line.rstrip().endswith("left")
    assert len(line) <= 80


def test_there_is_no_bar_without_a_terminal() -> None:
    screen = terminal(forced=False)
    with Bar(screen, runs=1, rounds=1) as bar:
        bar.played("FedAvg", 1, 1, 5)
        bar.say("drawing figures")
    assert screen.file.getvalue() == ""  # type: ignore[attr-defined]


# --- the summary ------------------------------------------------------------------------------------------------------


def summary(path: Path, width: int = 80) -> list[str]:
    screen = terminal(width)
    print_summary(path, screen)
    return shown(screen)


def test_the_summary_at_80_columns(tmp_path: Path) -> None:
    lines = summary(folder(tmp_path / "run", THREE))
    assert max(map(len, lines)) <= 80
    rows = {label: [line.split()[1:] for line in lines if line.startswith(f"{label} ")] for label in THREE}
    assert [row[:5] for row in rows["b"]] == [["1–2", "81.0", "±", "26.2", "40"]]
    assert [row[:4] for row in rows["c_2"]] == [["3", "50.0", "±", "24.8"], ["−31.0", "[−33.5,", "−28.5]", "b"]]
    assert [row[:4] for row in rows["a"]] == [["1–2", "80.3", "±", "24.9"], ["−0.7", "[−4.5,", "+3.1]", "-"]]
    text = " ".join(" ".join(lines).split())
    for part in ("strategy −", "clearly better", "3 pairs, not adjusted", "Worth: as many independent seeds"):
        assert part in text
    assert "Area:" not in text  # there is no room for it
    assert "Area:" in " ".join(summary(tmp_path / "run", 200))


@pytest.mark.parametrize("width", [40, 60, 100])
def test_the_summary_at_other_widths(tmp_path: Path, width: int) -> None:
    lines = summary(folder(tmp_path / "run", {f"a strategy [with] a name {i}": THREE["a"] for i in range(3)}), width)
    assert max(map(len, lines)) <= width
    assert "50.0" not in "".join(lines)
    assert "80.3" in "".join(lines)


def test_what_leads_is_bold_and_nothing_else(tmp_path: Path) -> None:
    screen = Console(file=io.StringIO(), force_terminal=True, width=80, color_system="standard")
    print_summary(folder(tmp_path / "run", THREE), screen)
    bold = re.findall(r"\x1b\[1m(.*?)\x1b\[0m", screen.file.getvalue())  # type: ignore[attr-defined]
    assert [part.strip() for part in bold if part.strip()] == ["b", "81.0 ± 26.2", "a", "80.3 ± 24.9"]


def test_one_seed_has_no_pairs(tmp_path: Path) -> None:
    lines = summary(folder(tmp_path / "run", {label: each[:1] for label, each in THREE.items()}))
    text = " ".join(lines)
    assert "strategy −" not in text
    assert "nothing can be said of differences" in text
    assert "Worth" not in text
