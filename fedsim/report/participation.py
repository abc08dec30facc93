"""`fedsim participation`: who is there when, in a page of text, in numbers and in figures.

participation  who was present when, and how often
gaps           after how many rounds clients took part again
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from fedsim.report.style import COLOURS, figure

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure
    from rich.console import RenderableType

    from fedsim.compare import World
    from fedsim.experiment import Experiment
    from fedsim.participation import Schedule

CELLS = 400  # of the heat map along each side; more are averaged
POINTS = 1500  # of the rank plot; of more clients, as many are drawn


def world(experiment: Experiment, seed: int) -> World:
    """What `fedsim run` makes of the experiment with this seed, on the CPU: the same clients and the same schedule."""
    from fedsim import compare

    return compare.make_world(experiment.settled(device="cpu"), compare.load_data(experiment), seed)


def describe(schedule: Schedule, made: World | None = None) -> dict[str, Any]:
    """The statistics of a schedule, with what its clients hold where that is known; None where no finite number is."""
    from fedsim.participation import statistics

    held: dict[str, Any] = {}
    if made is not None:
        held["sizes"] = made.task.size.cpu().numpy()
        held["histogram"] = made.task.histogram() if made.task.classes else None
    numbers: dict[str, Any] = _null(statistics.describe(schedule, **held))
    return {"schedule": schedule.digest(), **numbers}


def _null(value: Any) -> Any:
    """The same with None, json's null, for NaN and infinity."""
    if isinstance(value, dict):
        return {key: _null(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_null(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check(folder: Path) -> None:
    """Raises OSError, one line, if the folder holds a run or a report, or is a file."""
    from fedsim.record import check_free

    check_free(folder)
    if (folder / "report.json").exists():
        raise FileExistsError(f"{folder} already holds a report (report.json); choose another folder with --out")


def write(folder: Path, schedule: Schedule, report: Mapping[str, Any], seed: int | None) -> None:
    """report.json, the figures and, where a seed drew it, the schedule, into a folder without a run or a report.

    Raises OSError, one line, where that cannot be.
    """
    import json

    import matplotlib

    from fedsim.files import write_atomically, writing
    from fedsim.report.style import RC, save

    check(folder)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(RC):
        save(participation(schedule, "?" if seed is None else str(seed)), folder, "participation")
        if report["gap"]["histogram"]:
            save(gaps(report), folder, "gaps")
    if seed is not None:
        path = folder / f"schedule-seed{seed}.npz"
        with writing(path):
            schedule.save(path)
    write_atomically(folder / "report.json", (json.dumps(report, indent=2, allow_nan=False) + "\n").encode())


# --- text ---


def page(report: Mapping[str, Any], title: str) -> Iterator[RenderableType]:
    """The report for a terminal: sentences, quantiles, the gaps as bars."""
    from rich import box
    from rich.table import Table

    yield f"{title}: {report['clients']:,} clients, {report['rounds']:,} rounds"
    told = Table(box=None, show_header=False, pad_edge=False)
    told.add_column(style="bold", no_wrap=True)
    told.add_column(overflow="fold")
    for row in _sentences(report):
        told.add_row(*row)
    yield told
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    from fedsim.participation.statistics import LEVELS

    columns = {"least": "least", "50%": "median", "most": "most"}
    for level in (*LEVELS, "mean"):
        table.add_column(columns.get(level, level), justify="right", no_wrap=True)
    rows = {
        "rate, share of rounds": report["rate"],
        "nominal probability": report.get("probability"),
        "chance in a round": report.get("chance"),
        "gap, rounds": report["gap"],
        "lag-1 autocorrelation": report["autocorrelation"],
        "relaxation time, rounds": report["relaxation_rounds"],
        "work of those who answer": report["work"]["effort"] if _works(report) else None,
    }
    for name, values in rows.items():
        if values is not None:
            table.add_row(name, *(_number(values[level]) for level in (*LEVELS, "mean")))
    yield table
    bins = report["gap"]["histogram"]
    if bins:
        total = sum(one["gaps"] for one in bins)
        bars = Table(box=None, pad_edge=False, header_style="bold")
        bars.add_column("gap, rounds", justify="right", no_wrap=True)
        bars.add_column("share", justify="right", no_wrap=True)
        bars.add_column("if independent", justify="right", no_wrap=True)
        bars.add_column("")
        longest = max(one["gaps"] for one in bins)
        for one in bins:
            shares = (f"{100 * part / total:.1f} %" for part in (one["gaps"], one["independent"]))
            bars.add_row(_span(one), *shares, "█" * math.ceil(30 * one["gaps"] / longest))
        yield bars


def _sentences(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    n, rounds = report["clients"], report["rounds"]
    present, never, work = report["present"], report["never"], report["work"]
    mean = _number(present["mean"])
    yield (
        "present",
        (
            f"{mean} of {n:,} in a round on average, {present['least']:,} to {present['most']:,};"
            f" {_several(present['empty_rounds'], 'round')} of {rounds:,} without anybody"
        ),
    )
    available = report["available"]["mean"]
    if work["asked"] and abs(available * rounds - work["asked"]) > 0.5:
        yield "available", f"{_number(available)} in a round on average, {_number(work['asked'] / rounds)} chosen"
    if _works(report):
        yield (
            "work",
            (f"of those asked {_percent(work['dropped'])} drop out and {_percent(work['partial'])} do a part of it"),
        )
    yield "never there", f"{_several(never['clients'], 'client')} ({_percent(never['share'])})"
    if "floor" in report:
        floor = report["floor"]
        yield (
            "at the floor",
            (f"{_percent(floor['share'])} of the clients have the lowest probability, {_number(floor['probability'])}"),
        )
        yield "rate − probability", f"{_number(report['probability_error'])} on average, either way"
    yield "Gini of the rates", _number(report["gini"])
    yield (
        "memory",
        (
            f"lag-1 autocorrelation {_number(report['autocorrelation']['pooled'])}, pooled over the clients:"
            f" relaxation time {_number(report['relaxation_rounds']['pooled'])} rounds"
        ),
    )
    if "size" in report:
        yield "with data size", "rank correlation " + _both(report["size"], _number)
    if "labels" in report:
        labels = report["labels"]
        explained = _both({name: value["explained"] for name, value in labels.items()}, _percent)
        by_class = [(abs(value), c, value) for c, value in enumerate(labels["rate"]["classes"]) if value is not None]
        most = max(by_class, default=None)
        strongest = "" if most is None else f"; most with class {most[1]}, correlation {most[2]:+.2f}"
        yield "with labels", f"class shares explain {explained} of the variance (adjusted){strongest}"


def _works(report: Mapping[str, Any]) -> bool:
    work = report["work"]
    return bool(work["dropped"] or work["partial"])


def _both(values: Mapping[str, float | None], show: Any) -> str:
    """A number of the rates and, where there are, the one of the probabilities."""
    told = show(values["rate"])
    return f"{told} (of the probabilities {show(values['probability'])})" if "probability" in values else str(told)


def _several(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.3g} %"


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _span(one: Mapping[str, Any]) -> str:
    return f"{one['least']:,}" if one["least"] == one["most"] else f"{one['least']:,}–{one['most']:,}"


# --- figures ---


def participation(schedule: Schedule, seed: str = "?") -> Figure:
    """Who was present when, clients sorted by how often, and beside it how often that was and was meant to be."""
    import numpy as np

    from fedsim.participation.statistics import cells

    rates, p, n, rounds = schedule.rates(), schedule.probabilities, schedule.n, schedule.rounds
    order = np.argsort(rates, kind="stable")
    place = np.empty(n, dtype=np.int64)
    place[order] = np.arange(n)
    shown = cells(schedule, place, min(n, CELLS), min(rounds, CELLS))
    drawn = figure(9.0, 3.8)
    heat, beside = drawn.subplots(1, 2, width_ratios=[3, 1.15], sharey=True)
    image = heat.imshow(
        shown, aspect="auto", origin="lower", cmap="Blues", vmin=0, vmax=max(shown.max(initial=0), 1e-9),
        interpolation="nearest", extent=(0, max(rounds, 1), 0, n),
    )  # fmt: skip
    heat.grid(visible=False)
    heat.set_title(f"Who was present, seed {seed}: on average {rates.sum():.1f} of {n:,} clients")
    heat.set_xlabel("Round")
    heat.set_ylabel("Client, by participation rate")
    if shown.shape != (n, rounds):
        drawn.colorbar(image, ax=heat, label="share present", pad=0.01, aspect=30)
    drawn_of = np.unique(np.linspace(0, n - 1, min(n, POINTS)).astype(np.int64))
    beside.plot(rates[order[drawn_of]], drawn_of + 0.5, color=COLOURS[0], drawstyle="steps-mid", label="observed")
    if p is not None:
        beside.plot(
            p[order[drawn_of]], drawn_of + 0.5, "o", color=COLOURS[1], markersize=2, mew=0, label="probability",
            zorder=1.9,
        )  # fmt: skip
        beside.legend(frameon=False, loc="lower right", fontsize=8, handlelength=1.2)
    beside.set_title("Participation rate")
    beside.set_xlabel("Share of rounds")
    beside.set_xlim(0, max(1e-9, 1.05 * max(rates.max(), 0 if p is None else p.max())))
    beside.set_ylim(0, n)
    return drawn


def gaps(report: Mapping[str, Any]) -> Figure:
    """After how many rounds clients took part again, beside what independent rounds would give."""
    bins = report["gap"]["histogram"]
    total = sum(one["gaps"] for one in bins)
    drawn = figure(max(4.2, 0.52 * len(bins) + 1.6), 3.2)
    axes = drawn.subplots()
    axes.bar(range(len(bins)), [one["gaps"] / total for one in bins], color=COLOURS[0], width=0.8, label="observed")
    axes.plot(
        range(len(bins)), [one["independent"] / total for one in bins], "o-", color=COLOURS[1], markersize=3.5,
        linewidth=1, label="same rates, independent rounds",
    )  # fmt: skip
    axes.set_xticks(range(len(bins)), [_span(one) for one in bins], rotation=35 if len(bins) > 6 else 0)
    axes.grid(axis="x", visible=False)
    axes.set_title("Rounds until a client takes part again")
    axes.set_xlabel("Rounds")
    axes.set_ylabel("Share of the gaps")
    axes.legend(frameon=False, fontsize=8)
    return drawn
