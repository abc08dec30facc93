"""The experiment in words, and the answer in a sentence that claims no more than the intervals do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsim.experiment.settings import names, summary
from fedsim.paired import Difference, Standing
from fedsim.report.page.gather import Story
from fedsim.report.page.measures import called, gap, listed, several, value


def question(story: Story) -> str:
    """One sentence: what is asked."""
    labels = story.labels
    asked = f"Which of {listed(labels)} learns best" if 1 < len(labels) <= 8 else f"How well {listed(labels)} learns"
    if len(labels) > 8:
        asked = f"Which of {len(labels)} strategies learns best"
    clients = story.document.get("task", {}).get("clients")
    among = f" when {several(clients, 'client')} work together" if clients else ""
    return f"{asked}{among}{'' if len(labels) == 1 else ', on the same data, clients and presence'}?"


def facts(story: Story) -> list[tuple[str, str]]:
    """Who, what data, how split, who is there when, how they train, what is compared, how often."""
    document = story.document
    task, run = document.get("task", {}), document.get("run", {})
    rows = [("Clients", f"{task.get('clients', 'an unknown number of')}. {_counted(task)}")]
    rows += [
        (heading, named(family, task[family]))
        for heading, family in (("Data", "data"), ("Split", "partition"), ("Model", "model"))
        if family in task
    ]  # fmt: skip
    if task.get("holdout"):
        rows.append(("Held out", f"{100 * task['holdout']:g} % of every client's examples, to measure it on."))
    if "participation" in document:
        rows.append(("Who is there", named("participation", document["participation"])))
    if "local" in document:
        rows.append(("Local training", local(document["local"])))
    if "finetune" in document:
        rows.append(("Fine-tuning", finetuning(document["finetune"])))
    rows.append(("Compared", listed([_entry(label, entry) for label, entry in story.entries.items()]) + "."))
    if run.get("rounds"):
        every = run.get("eval-every")
        rows.append(("Length", f"{several(run['rounds'], 'round')}" + (f", measured every {every}." if every else ".")))
    seeds = story.seeds
    rows.append(
        (
            "Repeated",
            f"with {several(len(seeds), 'seed')} ({_seeds(seeds)}). Runs of a seed share the data of every client, the "
            "first model, who is present when and every minibatch, so they differ by the strategy alone.",
        )
    )
    return rows


def _seeds(seeds: Sequence[int]) -> str:
    return listed([str(seed) for seed in seeds]) if len(seeds) <= 10 else f"{seeds[0]} to {seeds[-1]}"


def _counted(task: Mapping[str, Any]) -> str:
    how = {"uniform": "Every client counts the same.", "examples": "A client counts by its number of examples."}
    return how.get(str(task.get("objective")), "")


def named(family: str, table: Any) -> str:
    """A part by its name, what it is, and its settings: "dirichlet: ... alpha = 0.1"."""
    if not isinstance(table, Mapping):
        return f"{table}."
    name = str(table.get("name"))
    known = names(family).get(name)
    said = summary(known).rstrip(".") if known is not None else "not one of fedsim's own"
    inner, plain = [], []
    for key, item in table.items():
        if key == "name":
            continue
        if isinstance(item, Mapping) and "name" in item:
            kind = key if key in ("probabilities", "model", "weights", "mixing") else family
            inner.append(f"{key.capitalize()}: {named(kind, item)}")
        else:
            plain.append(f"{key} = {_plain(item)}")
    text = f"{name}: {said[0].lower() + said[1:] if said[1:2].islower() else said}"
    return " ".join([text + (f"; {', '.join(plain)}." if plain else "."), *inner])


def _plain(item: Any) -> str:
    if isinstance(item, Mapping):
        return "{" + ", ".join(f"{key} = {_plain(value)}" for key, value in item.items()) + "}"
    if isinstance(item, (list, tuple)):
        shown = ", ".join(_plain(value) for value in item[:8])
        return f"[{shown}, …]" if len(item) > 8 else f"[{shown}]"
    if isinstance(item, bool):
        return str(item).lower()
    return f"{item:g}" if isinstance(item, float) else str(item)


def local(table: Mapping[str, Any]) -> str:
    """[local] as a sentence."""
    turn = [several(table[key], key.removesuffix("s")) for key in ("steps", "epochs") if table.get(key)]
    batch = table.get("batch")
    of = "all of a client's examples" if batch == "all" else f"minibatches of {batch}"
    text = f"{turn[0] if turn else 'a turn'} of SGD on {of}, learning rate {table.get('lr', '?')}"
    if table.get("momentum"):
        text += f", momentum {table['momentum']:g}"
    if table.get("weight-decay"):
        text += f", weight decay {table['weight-decay']:g}"
    if table.get("clip"):
        text += f", gradients clipped at {table['clip']:g}"
    schedule = table.get("lr-schedule", {})
    if isinstance(schedule, Mapping) and schedule.get("name", "constant") != "constant":
        text += f", rate schedule {_plain(schedule)}"
    if isinstance(table.get("curriculum"), Mapping):
        text += f", examples in an order of difficulty, {_plain(table['curriculum'])}"
    return text + "."


def finetuning(table: Mapping[str, Any]) -> str:
    """[finetune] as a sentence."""
    turn = [several(table[key], key.removesuffix("s")) for key in ("steps", "epochs") if table.get(key)]
    of = f" of {listed([str(name) for name in table['only']])} alone" if table.get("only") else ""
    rate = f", learning rate {table['lr']:g}" if "lr" in table else ""
    return f"for the tuned figures, {turn[0] if turn else 'a turn'}{of}{rate} before a client is measured."


def _entry(label: str, entry: Mapping[str, Any]) -> str:
    """A strategy by label, and what it is if the label does not say so."""
    name, said = str(entry.get("name", label)), []
    if name != label and not label.startswith(name):
        said.append(name)
    graph = entry.get("topology")
    if isinstance(graph, Mapping):
        settings = ", ".join(f"{key} {_plain(item)}" for key, item in graph.items() if key != "name")
        said.append(f"on the graph {Path(str(graph.get('name'))).name}{f' ({settings})' if settings else ''}")
    if "local" in entry:
        said.append("with its own local training")
    return f"{label} ({', '.join(said)})" if said else label


# The answer ----------------------------------------------------------------------------------------------------------


def answer(metric: str, higher: bool, standings: Sequence[Standing], pairs: Sequence[Difference]) -> list[str]:
    """Who is ahead, who cannot be told apart, who is clearly behind; and how much that is to be trusted."""
    valued = [one for one in standings if math.isfinite(one.mean)]
    if not valued:
        return ["No run was finished that could be ranked."]
    if len(valued) == 1:
        only = valued[0]
        return [f"{only.strategy}: {called(metric)} {value(metric, only.mean)}. There is nothing to compare it with."]
    most = max((len(pair.seeds) for pair in pairs), default=0)
    if most < 2:
        best = valued[0]
        return [
            f"With one seed nothing can be told apart: in this one run {best.strategy} comes first with "
            f"{value(metric, best.mean)} {called(metric)}, but another seed may turn that round."
        ]
    beats = {(a, b) for pair in pairs if pair.clear for a, b in [_order(pair, higher)]}
    top = [one.strategy for one in valued if not any(loser == one.strategy for _, loser in beats)]
    rest = [one.strategy for one in valued if one.strategy not in top]
    seeds = several(most, "seed")
    if not rest:
        return [
            f"{listed(top)} cannot be told apart with {seeds}: every paired 95 % interval of {called(metric)} holds 0."
        ]
    if len(top) == 1:
        beaten = [label for label in rest if (top[0], label) in beats]
        if len(beaten) == len(rest):
            margin = _least(top[0], pairs)
            others = "every other strategy" if len(rest) > 1 else rest[0]
            return [
                f"{top[0]} is clearly ahead of {others} by {called(metric)} with {seeds}"
                f"{f', by {margin} or more on average' if margin and len(rest) > 1 else ''}."
            ]
        unclear = [label for label in rest if label not in beaten]
        return [
            f"{top[0]} comes first by {called(metric)} and nothing is clearly ahead of it; it clearly beats "
            f"{listed(beaten) or 'nobody'}, but cannot be told apart from {listed(unclear)} with {seeds}."
        ]
    first = (
        f"{listed(top)} cannot be told apart with {seeds}, and nothing is clearly ahead of them by {called(metric)}."
    )
    every = [label for label in rest if all((one, label) in beats for one in top)]
    some = [label for label in rest if label not in every]
    out = [first]
    if every:
        each = "Both" if len(top) == 2 else "All of them"
        out.append(f"{each} clearly beat {listed(every)}.")
    for label in some:
        winners = [one for one in top if (one, label) in beats]
        behind = listed(winners) or listed([one for one, loser in beats if loser == label])
        out.append(f"{label} is clearly behind {behind} only.")
    return out


def _order(pair: Difference, higher: bool) -> tuple[str, str]:
    """Winner and loser of a clear pair."""
    return (pair.first, pair.second) if (pair.mean > 0) == higher else (pair.second, pair.first)


def _least(label: str, pairs: Sequence[Difference]) -> str:
    margins = [pair for pair in pairs if label in (pair.first, pair.second) and math.isfinite(pair.mean)]
    nearest = min(margins, key=lambda pair: abs(pair.mean), default=None)
    return "" if nearest is None else gap(nearest.metric, abs(nearest.mean)).lstrip("+")
