"""The page's sections that answer the question: who is ahead, over the rounds, in pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fedsim import merit, paired
from fedsim.paired import Difference, Standing
from fedsim.report import results, table, tables
from fedsim.report.page import figures, words
from fedsim.report.page.blocks import Block, Facts, Figures, Fold, Grid, Name, Section, Words, captioned
from fedsim.report.page.gather import Story
from fedsim.report.page.measures import called, pen, primary, several, title
from fedsim.report.results import Results

SHOWN = ("test_accuracy", "test_loss", "train_objective", "worst_class_accuracy", "worst_decile_accuracy",
         "least_decile_accuracy")  # fmt: skip
ELSEWHERE = ("consensus_distance", "mean_model_test_accuracy", "mean_model_test_loss", "weight_distance",
             "suboptimality", "bytes_up", "bytes_down", "present")  # fmt: skip
LEVEL = 0.95
FEW = 4  # strategies up to which every pair is shown at once


@dataclass(frozen=True)
class Verdict:
    """What the story comes to in its metric."""

    metric: str
    higher: bool
    values: Mapping[str, Mapping[int, float]]  # label -> seed -> mean over the last fifth of the rounds
    standings: Sequence[Standing]
    pairs: Sequence[Difference]
    reference: str | None  # what the others are held against


def verdict(story: Story, found: Results) -> Verdict | None:
    """Who stands where by the story's metric; None where no run that could be ranked was finished.

    Raises ValueError for a metric that was asked for and cannot rank.
    """
    if story.metric is None and primary(story) not in results.metrics(found):
        return None
    metric = results.chosen(found, story.metric or primary(story))
    higher = merit.higher_is_better(metric)
    values = {label: each for label, each in results.late(found, metric).items() if each or label in _ran(found)}
    standings = paired.standings(values, metric, higher, LEVEL)
    best = next((one.strategy for one in standings if math.isfinite(one.mean)), None)
    reference = story.baseline if story.baseline in values else best
    return Verdict(metric, higher, values, standings, paired.differences(values, metric, LEVEL), reference)


def _ran(found: Results) -> set[str]:
    return {label for label, _ in found.rounds}


def grid(story: Story, made: table.Table) -> Grid:
    """A table as the page shows it: strategies with their pens, emphasis where the table has it."""
    rows: list[list[str | Name]] = []
    strong = set()
    for i, row in enumerate(made.rows):
        cells: list[str | Name] = []
        for j, column in enumerate(made.columns):
            text = table.text(column, row)
            known = column.key in ("strategy", "first") and text in story.entries
            cells.append(Name(text, pen(story, text)) if known else text)
            if table.emphasised(column, row):
                strong.add((i, j))
        rows.append(cells)
    texts = [j for j, column in enumerate(made.columns) if not column.form]
    return Grid(made.title, [_upper(column.heading) for column in made.columns], rows, texts, made.notes, strong)


def _upper(text: str) -> str:
    return (text[:1].upper() + text[1:]).replace(" %", "\N{NO-BREAK SPACE}%")


# Sections ------------------------------------------------------------------------------------------------------------


def question(story: Story) -> Section:
    """The experiment in words."""
    return Section("question", "The question", [Words(words.question(story), lead=True), Facts(words.facts(story))])


def answer(story: Story, found: Results, told: Verdict | None) -> Section:
    """Who is ahead, in a sentence, a table and a figure."""
    if told is None:
        return Section("answer", "The answer", [Words("No run was finished that could be ranked.", lead=True)])
    said = " ".join(words.answer(told.metric, told.higher, told.standings, told.pairs))
    blocks: list[Block] = [Words(said, lead=True)]
    blocks.append(grid(story, tables.rank_table(found, metric=told.metric, target=story.target, level=LEVEL)))
    shown = [figures.finals(story, told.metric, told.standings, told.values)]
    second = next((metric for metric in SHOWN if metric != told.metric and metric in results.metrics(found)), None)
    if second is not None:
        other = verdict(replace(story, metric=second), found)
        if other is not None:
            shown.append(figures.finals(story, second, other.standings, other.values))
    return Section("answer", "The answer", [*blocks, Figures(shown)])


def curves(story: Story) -> Section | None:
    """Everything that was measured, against the round."""
    there = [metric for metric in SHOWN if metric in story.metrics]
    first = [story.metric] if story.metric and story.metric not in there else []
    more = [metric for metric in story.metrics if metric not in (*there, *first, *ELSEWHERE)]
    shown = [each for metric in (*first, *there) if (each := figures.curve(story, metric)) is not None]
    rest = [each for metric in more if (each := figures.curve(story, metric)) is not None]
    if not shown and not rest:
        return None
    blocks: list[Block] = [Figures(captioned(shown or rest))]
    if shown and rest:
        blocks.append(
            Fold(
                f"{several(len(rest), 'more figure')}: {', '.join(called(metric) for metric in more)}", [Figures(rest)]
            )
        )
    return Section("curves", "Over the rounds", blocks)


def differences(story: Story, told: Verdict | None) -> Section | None:
    """Every strategy minus the reference over the rounds."""
    if told is None or told.reference is None:
        return None
    shown = figures.differences(story, told.metric, told.reference)
    if not shown:
        return None
    better = "above" if told.higher else "below"
    some = len(story.seeds) > 1
    what = f"{title(told.metric)} of each strategy minus that of {told.reference}, seed by seed: {better} the line "
    what += "it is ahead."
    band = (
        f" The band is the 95 % interval of that round, paired over {several(len(story.seeds), 'seed')}."
        if some
        else ""
    )
    unit = " In points." if "accuracy" in told.metric else ""
    return Section("differences", "Differences over time", [Words(what + band + unit), Figures(shown, small=True)])


def pairs(story: Story, found: Results, told: Verdict | None) -> Section | None:
    """The table of pairs."""
    if told is None or len(told.values) < 2:
        return None
    blocks: list[Block] = []
    if told.reference is not None:
        order = [one.strategy for one in told.standings]
        figure = figures.pairs(story, told.metric, told.reference, told.values, order)
        if figure is not None:
            blocks.append(figure)
    several = len(told.values) > FEW
    against = {"against": story.baseline} if several and story.baseline in told.values else {}
    blocks.append(
        grid(story, tables.paired_table(found, metric=told.metric, every=not several, level=LEVEL, **against))
    )
    if several:
        every = grid(story, tables.paired_table(found, metric=told.metric, every=True, level=LEVEL))
        blocks.append(Fold(f"Every pair of the {len(told.values)} strategies: {len(every.rows)}", [every]))
    return Section("paired", "Paired comparison", blocks)
