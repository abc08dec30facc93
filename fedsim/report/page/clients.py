"""The page's sections about clients: who wins and who loses, whose updates count, who was there, the network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from fedsim.report.clients import ON
from fedsim.report.page import figures
from fedsim.report.page.blocks import Block, Figure, Figures, Grid, Name, Section, Words, captioned
from fedsim.report.page.gather import Story
from fedsim.report.page.measures import listed, pen

NODES = 400  # above which a network is not drawn
GROUPS = 12  # classes shown in the table of clients by dominating class


def served(story: Story) -> Section | None:
    """How well clients are served, by participation, by size, by what they hold; and against training alone."""
    runs = [run for run in story.runs if run.get("clients")]
    if not runs:
        return None
    column = "accuracy" if any("accuracy_mean" in run["clients"] for run in runs) else "loss"
    on = ON[runs[0]["clients"]["on"]]
    share = "Clients by participation, a tenth each; mean share of rounds, %"
    size = "Clients by data size, a tenth each; mean number of examples"
    shown = [
        figures.deciles(
            story, "by_participation", column, "by-participation", f"{column.capitalize()} by participation", share
        ),
        figures.deciles(story, "by_size", column, "by-size", f"{column.capitalize()} by data size", size),
    ]
    lost = figures.harm(story)
    blocks: list[Block] = [
        Words(
            f"How well the last model serves every client, on the clients' own {on}. Left: those who take part least."
        ),
        Figures(captioned([one for one in shown if one is not None])),
    ]
    if lost:
        blocks.append(Figures(lost))
    groups = _groups(story, column)
    if groups is not None:
        blocks.append(groups)
    return Section("clients", "Who wins and who loses", blocks)


def _groups(story: Story, column: str) -> Grid | None:
    """By the class that clients hold most of."""
    runs = [run for run in story.runs if len((run.get("clients") or {}).get("by_group", ())) > 1]
    classes = sorted({part["group"] for run in runs for part in run["clients"]["by_group"]})
    if not runs or len(classes) > GROUPS:
        return None
    rows: list[list[str | Name]] = []
    for label in dict.fromkeys(run["strategy"] for run in runs):
        row: list[str | Name] = [Name(label, pen(story, label))]
        for one in classes:
            found = [
                part[column] for run in runs if run["strategy"] == label for part in run["clients"]["by_group"]
                if part["group"] == one and part.get(column) is not None
            ]  # fmt: skip
            mean = float(np.mean(found)) if found else float("nan")
            row.append("–" if not found else f"{100 * mean:.1f}" if column == "accuracy" else f"{mean:.3f}")
        rows.append(row)
    what = "Accuracy, %" if column == "accuracy" else "Loss"
    what += ", of the clients that hold most of a class, by that class; mean of the seeds"
    return Grid(what, ["Strategy", *map(str, classes)], rows)


def weights(story: Story) -> Section | None:
    """Whose updates the model is made of, and what that does to it."""
    share = "Clients by participation, a tenth each; mean share of rounds, %"
    shown = [
        figures.deciles(
            story, "by_participation", "effective_weight", "weights", "Effective weight over the objective's", share,
            relative="weight",
        ),
        figures.curve(story, "weight_distance"),
        figures.curve(story, "suboptimality"),
        figures.error(story),
    ]  # fmt: skip
    found = [one for one in shown if one is not None]
    if not found:
        return None
    left = [label for label in story.labels if not _linear(story, label)]
    text = (
        "The weight with which every client's updates have entered the model, which follows from who was there when. "
        "At 1 a client counts as the objective says."
    )
    if left:
        text += f" Not for {listed(left)}: not linear in the updates."
    return Section("weights", "Effective weights", [Words(text), Figures(captioned(found))])


def _linear(story: Story, label: str) -> bool:
    runs = [run for run in story.runs if run["strategy"] == label]
    return not runs or any("weight_distance" in run.get("final", {}) for run in runs)


def presence(story: Story) -> Section | None:
    """Who was there when."""
    shown = figures.presence(story)
    return None if shown is None else Section("presence", "Who was there when", [shown])


def network(story: Story) -> Section | None:
    """The graphs of the first seed, and how far the nodes are apart."""
    users: dict[str, list[str]] = {}
    for label, entry in story.entries.items():
        for graph in _graphs(entry):
            users.setdefault(json.dumps(graph, sort_keys=True, default=str), []).append(label)
    spread = [figures.curve(story, metric) for metric in ("consensus_distance", "mean_model_test_accuracy")]
    shown: list[Figure] = [one for one in spread if one is not None]
    if not users and not shown:
        return None
    n, seed = int(story.document.get("task", {}).get("clients", 0)), min(story.seeds, default=0)
    blocks: list[Block] = []
    for place, (text, labels) in enumerate(users.items()):
        drawn = _drawn(json.loads(text), n, seed, listed(labels), place)
        if isinstance(drawn, Figure):
            shown.insert(place, drawn)
        else:
            blocks.append(Words(drawn, soft=True))
    if users and any(isinstance(one, Figure) and one.svg for one in shown):
        blocks.insert(0, Words(f"Who can talk to whom (seed {seed}), and how far the nodes' models are apart."))
    return Section("network", "The network", [*blocks, Figures(captioned(shown))] if shown else blocks)


def _graphs(entry: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The topologies in a strategy's table, also in what it wraps."""
    found = [entry["topology"]] if isinstance(entry.get("topology"), Mapping) else []
    inner = entry.get("inner")
    return found + (_graphs(inner) if isinstance(inner, Mapping) else [])


def _drawn(graph: Mapping[str, Any], n: int, seed: int, users: str, place: int) -> Figure | str:
    """A graph as a figure, or a sentence that says why there is none."""
    from pathlib import Path

    from fedsim.experiment import Topology

    name = str(graph["name"])
    shown = Path(name).name
    if n > NODES:
        return f"{shown} ({users}) is not drawn: more than {NODES} of its {n:,} nodes would be a blot."
    if ".py:" in name:
        return f"{shown} ({users}) is made by code of your own, which a report does not run."
    try:
        made = Topology(name, {key: item for key, item in graph.items() if key != "name"}).graph(n, seed)
    except (ValueError, TypeError, OSError) as error:
        return f"{shown} ({users}) could not be made again: {error}"
    return figures.network(made, shown, users, place)
