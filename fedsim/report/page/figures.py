"""The page's figures: what the story holds, as drawings that also say in words what they show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.report.clients import ON, percent
from fedsim.report.ledger import TERMS
from fedsim.report.page import shapes, svg
from fedsim.report.page.blocks import Figure
from fedsim.report.page.gather import Story
from fedsim.report.page.measures import LOGARITHMIC, apart, bundles, called, gap, line, pen, several, title, unit, value
from fedsim.report.page.shapes import Dot
from fedsim.report.page.svg import Line

if TYPE_CHECKING:
    from fedsim.paired import Standing

CELLS = 260  # of the heat map along each side; more are averaged
SMALL = (330.0, 210.0)
POSITIVE = ("test_loss", "train_objective", "client_loss")  # no interval of which goes below 0
BAND = "Line: mean of the seeds; band: lowest to highest seed."


def curve(story: Story, metric: str, name: str = "curve") -> Figure | None:
    """A metric against the round."""
    every = bundles(story, metric)
    lines = [line(story, metric, label, own) for label, own in every.items()]
    lines = [_agreed(one) if metric == "consensus_distance" else one for one in lines]
    lines = [one for one in lines if np.isfinite(one.y).any()]
    if not lines:
        return None
    heading = title(metric) + ("" if unit(metric).scale == 1 else ", %")
    some = any(one.low is not None for one in lines)
    drawn = svg.plot(
        f"{name}-{metric}", title(metric), _ends(lines, metric), lines, log=metric in LOGARITHMIC,
        span=_span(metric, lines),
    )  # fmt: skip
    return Figure(heading, drawn, BAND if some else "")


def _agreed(one: Line) -> Line:
    """Without the first models where all nodes start from the same one: their distance, 0 but for rounding, would take
    up all of a logarithmic scale."""
    if len(one.y) < 2 or not one.y[0] < 1e-3 * np.nanmax(one.y):
        return one
    low, high = (None if each is None else each[1:] for each in (one.low, one.high))
    return one._replace(x=one.x[1:], y=one.y[1:], low=low, high=high)


def _ends(lines: Sequence[Line], metric: str, x: str = "round") -> str:
    """Where the curves begin and end, in numbers."""
    scale = unit(metric).scale
    parts = []
    for one in lines:
        seen = np.flatnonzero(np.isfinite(one.y))
        if not len(seen):
            continue
        a, b = seen[0], seen[-1]
        first, last = (f"{value(metric, one.y[at] / scale)} at {x} {one.x[at]:.4g}" for at in (a, b))
        text = f"{one.label}: {first}, {last}"
        if one.low is not None and one.high is not None:
            text += f" (from {value(metric, one.low[b] / scale)} to {value(metric, one.high[b] / scale)})"
        parts.append(text)
    return "; ".join(parts) + "."


def _span(metric: str, lines: Sequence[Line]) -> tuple[float, float] | None:
    """The range of y where the data's own would mislead: one strategy blowing up must not flatten the others."""
    if metric not in ("test_loss", "train_objective", "mean_model_test_loss"):
        return None
    start = max(one.y[0] for one in lines)
    top = max(float(np.nanmax(one.y if one.high is None else one.high)) for one in lines)
    low = min(float(np.nanmin(one.y if one.low is None else one.low)) for one in lines)
    some = min(one.y[np.isfinite(one.y)][-1] for one in lines) <= start
    return (max(0.0, low), 2 * start) if some and top > 4 * start > 0 else None


def finals(
    story: Story, metric: str, standings: Sequence[Standing], values: Mapping[str, Mapping[int, float]]
) -> Figure:
    """The last fifth of the rounds: mean, 95 % interval and every seed."""
    scale = unit(metric).scale
    rows, said = [], []
    for one in standings:
        each = [scale * number for number in values[one.strategy].values()]
        text = value(metric, one.mean)
        rows.append(
            Dot(one.strategy, pen(story, one.strategy), scale * one.mean, scale * one.low, scale * one.high, each, text)
        )
        interval = f" ({value(metric, one.low)} to {value(metric, one.high)})" if math.isfinite(one.low) else ""
        said.append(f"{one.strategy}: {text}{interval}")
    within = (0.0, 100.0) if scale == 100 else (0.0 if metric in POSITIVE else -math.inf, math.inf)
    drawn = shapes.dots(f"final-{metric}", f"{title(metric)} at the end", "; ".join(said) + ".", rows, within=within)
    some = any(len(row.each) > 1 for row in rows)
    how = "Large dot: mean; bar: its 95 % interval; small dots: each seed." if some else "One seed, no interval."
    return Figure(f"{title(metric)}, mean of the last fifth of the rounds", drawn, how)


def pairs(
    story: Story, metric: str, reference: str, values: Mapping[str, Mapping[int, float]], order: Sequence[str]
) -> Figure | None:
    """Every strategy minus the reference with the paired 95 % interval."""
    from fedsim import paired

    scale = unit(metric).scale
    found = [
        paired.difference(label, reference, metric, values[label], values[reference])
        for label in order
        if label != reference
    ]
    found = [one for one in found if math.isfinite(one.mean)]
    if not found:
        return None
    each = [[scale * (values[one.first][s] - values[reference][s]) for s in one.seeds] for one in found]
    rows = [
        Dot(one.first, pen(story, one.first), scale * one.mean, scale * one.low, scale * one.high,
            seeds, gap(metric, one.mean, bare=True))
        for one, seeds in zip(found, each, strict=True)
    ]  # fmt: skip
    said = "; ".join(
        f"{one.first}: {gap(metric, one.mean)}"
        + (f" ({gap(metric, one.low)} to {gap(metric, one.high)})" if math.isfinite(one.low) else "")
        for one in found
    )
    name = f"{title(metric)} minus {reference}'s"
    drawn = shapes.dots(f"pairs-{metric}", name, said + ".", rows, zero=0.0, x_title="points" if scale == 100 else "")
    return Figure(name, drawn, "Bar: paired 95 % interval; small dots: each seed. A bar across 0 settles nothing.")


def differences(story: Story, metric: str, reference: str, most: int = 12) -> list[Figure]:
    """Each strategy minus the reference over the rounds, paired: a panel each, all on one scale."""
    every = bundles(story, metric)
    if reference not in every:
        return []
    lines = [apart(story, metric, label, reference, every) for label in every if label != reference]
    shown = [one for one in lines if one is not None and np.isfinite(one.y).any()][:most]
    if not shown:
        return []
    bands = np.concatenate([each[np.isfinite(each)] for one in shown for each in (one.low, one.high, one.y)
                            if each is not None])  # fmt: skip
    means = np.concatenate([one.y[np.isfinite(one.y)] for one in shown])
    reach = 2.2 * float(np.abs(means).max()) or 1.0  # a wide band does not flatten the lines
    low, high = max(min(0.0, float(bands.min())), -reach), min(max(0.0, float(bands.max())), reach)
    room = 0.06 * (high - low) or 1.0
    scale = unit(metric).scale
    out = []
    for i, one in enumerate(shown):
        last = np.flatnonzero(np.isfinite(one.y))[-1]
        said = f"{one.label} minus {reference}: {gap(metric, one.y[last] / scale)} at round {one.x[last]:g}"
        if one.low is not None and one.high is not None:
            said += f", 95 % interval {gap(metric, one.low[last] / scale)} to {gap(metric, one.high[last] / scale)}"
        drawn = svg.plot(
            f"apart-{metric}-{i}", f"{one.label} minus {reference}, {called(metric)}", said + ".", [one],
            zero=0.0, span=(low - room, high + room), named=False, size=SMALL,
        )  # fmt: skip
        out.append(Figure(f"{one.label} − {reference}", drawn))
    return out


# Clients -------------------------------------------------------------------------------------------------------------


def deciles(
    story: Story, order: str, column: str, name: str, heading: str, x_title: str, relative: str = ""
) -> Figure | None:
    """A column of the clients' summaries by tenths of the clients; `relative`: divided by that column."""
    runs = [run for run in story.runs if any(column in part for part in (run.get("clients") or {}).get(order, ()))]
    if not runs:
        return None
    scale = unit(column).scale
    lines = []
    for label in dict.fromkeys(run["strategy"] for run in runs):
        own = [run["clients"][order] for run in runs if run["strategy"] == label]
        table = np.array([[_number(part, column, relative) for part in parts] for parts in own]) * scale
        seen = np.isfinite(table).all(0)
        table = np.where(seen, np.nan_to_num(table), np.nan)
        band = (table.min(0), table.max(0)) if len(own) > 1 else (None, None)
        lines.append(Line(label, pen(story, label), np.arange(1.0, table.shape[1] + 1), table.mean(0), *band))
    parts = [run["clients"][order] for run in runs]
    few = min(map(len, parts))
    if order == "by_participation":
        texts = [percent([each[i] for each in parts]).replace(" %", "") for i in range(few)]
    else:
        texts = [f"{np.mean([each[i]['examples'] + each[i]['held_out'] for each in parts]):.0f}" for i in range(few)]
    said = "; ".join(
        f"{one.label}: {_plain(one.y[0], column)} for the first tenth, {_plain(one.y[-1], column)} for the last"
        for one in lines
    )
    drawn = svg.plot(
        name, heading, said + ".", lines, x_title=x_title, marks=[(i + 1.0, text) for i, text in enumerate(texts)],
        zero=1.0 if relative else None,
    )  # fmt: skip
    return Figure(heading + (", %" if scale == 100 else ""), drawn, BAND if len(story.seeds) > 1 else "")


def _plain(number: float, column: str) -> str:
    return f"{number:.1f} %" if unit(column).scale == 100 else f"{number:.3f}"


def _number(part: Mapping[str, Any], column: str, relative: str) -> float:
    found = part.get(column)
    if found is None or (relative and not part.get(relative)):
        return math.nan
    return float(found) / (float(part[relative]) if relative else 1.0)


def harm(story: Story) -> list[Figure]:
    """Against training alone: how many clients are worse off, and by how much clients are better off."""
    runs = [run for run in story.runs if (run.get("clients") or {}).get("harm")]
    metric = next((m for m in ("accuracy", "loss") if any(m in run["clients"]["harm"] for run in runs)), None)
    if metric is None:
        return []
    runs = [run for run in runs if metric in run["clients"]["harm"]]
    against = runs[0]["clients"]["harm"]["against"]
    gain = "Mean gain in accuracy, points" if metric == "accuracy" else "Mean change of the loss"
    out = []
    for name, heading, scale, form in (
        ("worse", f"Clients worse off than {against}, %", 100.0, "{:.1f}"),
        ("difference", gain, unit(metric).scale, "{:+.2f}"),
    ):
        rows = []
        for label in dict.fromkeys(run["strategy"] for run in runs):
            own = [run["clients"]["harm"][metric][name] for run in runs if run["strategy"] == label]
            each = [scale * number for number in own if number is not None]
            if each and label != against:
                mean = float(np.mean(each))
                rows.append(Dot(label, pen(story, label), mean, each=each, text=form.format(mean).replace("-", "−")))
        if rows:
            said = "; ".join(f"{row.label}: {row.text}" for row in rows) + "."
            drawn = shapes.dots(f"harm-{name}", heading, said, rows, zero=0.0)
            on = ON[runs[0]["clients"]["on"]]
            out.append(Figure(heading, drawn, f"On the clients' own {on}, last model; small dots: each seed."))
    return out


def error(story: Story) -> Figure | None:
    """What keeps each strategy's last model from the minimum, a part for each cause."""
    runs = [run for run in story.runs if (run.get("error") or {}).get("participation_bias") is not None]
    if not runs:
        return None
    rows = []
    for label in dict.fromkeys(run["strategy"] for run in runs):
        own = [run["error"] for run in runs if run["strategy"] == label]
        parts = [float(np.mean([one[name] for one in own])) for name, *_ in TERMS]
        rows.append((label, parts, f"{sum(parts):.4f}"))
    rows.sort(key=lambda row: sum(row[1]))
    said = "; ".join(
        f"{label}: " + ", ".join(f"{name} {part:.4f}" for part, (_, name, _) in zip(parts, TERMS, strict=True))
        for label, parts, _ in rows
    )
    heading = "What is left to the minimum, and why"
    drawn = shapes.stacks("error", heading, said + ".", rows, ("t0", "t1", "t2"))
    names = ["orange", "blue", "grey"]
    legend = ", ".join(f"{colour}: {name}" for colour, (_, name, _) in zip(names, TERMS, strict=True))
    return Figure(heading, drawn, f"Mean of the seeds; {legend}; at the right their sum.")


def presence(story: Story) -> Figure | None:
    """Who was present when, of the first seed; clients by how often they were."""
    from fedsim.participation import Schedule
    from fedsim.participation.statistics import cells

    if not story.schedules:
        return None
    seed = next(iter(story.schedules))
    schedule = Schedule.load(story.schedules[seed])
    rates, n, rounds = schedule.rates(), schedule.n, schedule.rounds
    place = np.empty(n, dtype=np.int64)
    place[np.argsort(rates, kind="stable")] = np.arange(n)
    shown = np.asarray(cells(schedule, place, min(n, CELLS), min(rounds, CELLS)))
    low, middle, high = np.quantile(rates, [0.1, 0.5, 0.9])
    said = (
        f"Of {n:,} clients {rates.sum():.1f} are present in a round on average. A tenth of them is there in at most "
        f"{100 * low:.3g} % of the {rounds:,} rounds, half in at most {100 * middle:.3g} %, nine tenths in at most "
        f"{100 * high:.3g} %; {int((rates == 0).sum())} never."
    )
    heading = f"Who was present, seed {seed}"
    drawn = shapes.heat("presence", heading, said, shown, rounds, n, "Client, by participation")
    how = "A dot where a client is present" if shown.shape == (n, rounds) else "The darker, the more were present"
    return Figure(heading, drawn, f"{said} {how}.")


# Networks ------------------------------------------------------------------------------------------------------------


def network(graph: Any, name: str, users: str, place: int) -> Figure:
    """A graph, drawn as `fedsim topology show` draws it."""
    from fedsim.report import topology

    facts = topology.describe(graph)
    degree = facts["degree"]
    least, most = degree["min"], degree["max"]
    neighbours = f"{least}" if least == most else f"{least} to {most} (mean {degree['mean']:.3g})"
    said = f"{several(facts['nodes'], 'node')}, {facts['edges']:,} edges, {neighbours} neighbours each"
    if facts["connected"]:
        said += f", {facts['diameter']} steps across"
        if facts["rounds_to_consensus"] is not None:
            rounds = several(facts["rounds_to_consensus"], "round")
            said += f"; averaging with everybody there leaves a thousandth of the disagreement after {rounds}"
    else:
        said += f", in {len(facts['components'])} parts that never agree"
    labels = [str(graph.nodes[i].get("label", i)) for i in range(len(graph))] if len(graph) <= topology.NAMED else []
    edges = np.array(graph.edges(), dtype=np.int64).reshape(-1, 2)
    drawn = shapes.network(f"network-{place}", name, said + ".", topology.layout(graph), edges, labels)
    return Figure(f"{name}: {users}", drawn, said + ".")


# Cost ----------------------------------------------------------------------------------------------------------------


def against(
    story: Story, metric: str, spent: Mapping[str, tuple[np.ndarray, np.ndarray]], name: str, x_title: str
) -> Figure | None:
    """A metric against what was spent: mean over the seeds of both at each round, [m] and [m]."""
    scale = unit(metric).scale
    lines = [Line(label, pen(story, label), x, scale * y) for label, (x, y) in spent.items() if len(x)]
    if not lines:
        return None
    ends = [float(one.x[-1]) for one in lines]
    far = min(ends) > 0 and max(ends) > 8 * min(ends)
    if far:  # a logarithm has no room for nothing spent
        lines = [one._replace(x=one.x[one.x > 0], y=one.y[one.x > 0]) for one in lines]
    drawn = svg.plot(
        f"against-{name}", f"{title(metric)} against {x_title}", _ends(lines, metric, x_title), lines,
        x_title=x_title + (" (log scale)" if far else ""), log=metric in LOGARITHMIC, log_x=far,
        span=_span(metric, lines),
    )  # fmt: skip
    how = "Mean of the seeds." if len(story.seeds) > 1 else ""
    return Figure(f"{title(metric)} against {x_title}" + (", %" if scale == 100 else ""), drawn, how)
