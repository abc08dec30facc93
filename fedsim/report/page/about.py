"""The page's sections about the runs themselves: what they cost, how fast they were, what went wrong, where from."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedsim.report import results, tables
from fedsim.report.page import figures
from fedsim.report.page.blocks import Block, Code, Figures, Fold, Grid, Name, Section, Words, captioned
from fedsim.report.page.compared import Verdict, grid
from fedsim.report.page.gather import Story
from fedsim.report.page.measures import bundles, listed, pen, several
from fedsim.report.results import Results

FEW = 8  # lines of a table of targets; more are folded away
LISTED = 30  # lines of a table of what went wrong


def cost(story: Story, found: Results, told: Verdict | None) -> Section | None:
    """What was sent and how long it took, and what that bought."""
    if told is None:
        return None
    spent = results.spent(found)
    blocks: list[Block] = []
    table = tables.targets_table(found, metric=told.metric, targets=None if story.target is None else [story.target])
    if table.rows:
        made = grid(story, table)
        few = len(table.rows) <= FEW
        blocks.append(made if few else Fold(f"{made.caption}: {several(len(table.rows), 'line')}", [made]))
    shown = []
    for currency, scale, name, x_title in (
        ("bytes", 1e-6, "bytes", "MB sent, up and down"),
        ("seconds", 1.0, "seconds", "seconds of the run"),
    ):
        if currency not in spent:
            continue
        points: dict[str, tuple[Any, Any]] = {}
        for label, own in bundles(story, told.metric).items():
            cost = [spent[currency][label, seed] for seed in own.seeds if (label, seed) in spent[currency]]
            if not cost:
                continue
            at = [np.interp(own.rounds, each.rounds, each.values, left=0.0) for each in cost]
            points[label] = (scale * np.mean(at, axis=0), own.values.mean(0))
        drawn = figures.against(story, told.metric, points, name, x_title)
        if drawn is not None:
            shown.append(drawn)
    if shown:
        blocks.insert(0, Figures(captioned(shown)))
    return Section("cost", "Communication and time", blocks) if blocks else None


def speed(story: Story) -> Section | None:
    """How fast the simulation was, and what its time went into."""
    if not story.runs:
        return None
    shares = [
        name
        for name in ("training", "aggregation", "evaluation", "recording")
        if any(name in (run.get("spent") or {}) for run in story.runs)
    ]
    rates = [each for each in RATES if any(_rate(run, *each[1:]) is not None for run in story.runs)]
    columns = [
        "Strategy",
        "Seconds a run",
        "Client trainings a second",
        *(title for title, *_ in rates),
        *(f"{name.capitalize()}, %" for name in shares),
    ]
    rows: list[list[str | Name]] = []
    for label in dict.fromkeys(run["strategy"] for run in story.runs):
        own = [run for run in story.runs if run["strategy"] == label]
        row: list[str | Name] = [
            Name(label, pen(story, label)),
            _mean(own, "seconds"),
            _mean(own, "client_trainings_per_second"),
        ]
        for _, key, scale in rates:
            known = [value for run in own if (value := _rate(run, key, scale)) is not None]
            row.append(_three(float(np.mean(known))) if known else "–")
        for name in shares:
            each = [
                100 * run["spent"].get(name, 0.0) / sum(run["spent"].values())
                for run in own
                if sum((run.get("spent") or {}).values())
            ]
            row.append(f"{np.mean(each):.0f}" if each else "–")
        rows.append(row)
    total = sum(float(run.get("seconds") or 0.0) for run in story.runs)
    machines = list(dict.fromkeys(_machine(folder.environment) for folder in story.folders if folder.environment))
    text = f"{several(len(story.runs), 'run')}, {total:,.0f} seconds of runs in all"
    text += f", on {'; '.join(machines)}." if machines else "."
    peaks = sorted({(run.get("speed") or {}).get("peak_flop_per_second") or 0.0 for run in story.runs} - {0.0})
    if peaks:
        reach = " to ".join(f"{gflop:,.0f}" for gflop in dict.fromkeys((peaks[0] / 1e9, peaks[-1] / 1e9)))
        text += f" The peak is the best product of two matrices measured there, {reach} GFLOP/s; floating point"
        text += " operations are those of matrix products and convolutions in steps that were of use."
    for where in ("host", "device"):
        most = max(((run.get("speed") or {}).get(f"{where}_bytes") or 0 for run in story.runs), default=0)
        text += f" At most {most / 1e6:,.0f} MB of {where} memory were in use." if most else ""
    together = [folder.together for folder in story.folders if folder.together and folder.together > 1]
    if together:
        text += f" Up to {max(together)} runs advanced side by side, so a run's seconds are not its own alone."
    if story.apart:
        many = len(story.apart) > 1
        text += f" {listed(list(story.apart))} {'own their loops' if many else 'owns its loop'} and ran by "
        text += "themselves." if many else "itself."
    return Section(
        "speed",
        "Speed",
        [
            Words(text),
            Grid(
                "Mean over the seeds; evaluations are part of the seconds, not of the speed; recording of neither",
                columns,
                rows,
            ),
        ],
    )


def _mean(runs: Sequence[Mapping[str, Any]], name: str) -> str:
    each = [float(run[name]) for run in runs if run.get(name) is not None]
    if not each:
        return "–"
    return _three(float(np.mean(each)))


def _three(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


# Of a run's "speed": a column, the key, and what its values are multiplied by (None: as a share of the peak)
RATES: tuple[tuple[str, str, float | None], ...] = (
    ("Steps a second", "steps_per_second", 1.0),
    ("GFLOP/s", "flop_per_second", 1e-9),
    ("Of the peak, %", "flop_per_second", None),
)


def _rate(run: Mapping[str, Any], key: str, scale: float | None) -> float | None:
    """A rate of a run; None where it does not tell."""
    told = run.get("speed") or {}
    if told.get(key) is None:
        return None
    if scale is None:
        scale = 100 / told["peak_flop_per_second"]
    return float(told[key]) * scale


def _machine(environment: Mapping[str, Any]) -> str:
    device = environment.get("gpu") or environment.get("device")
    threads = environment.get("threads")
    where = environment.get("processor") or environment.get("platform") or "an unknown machine"
    return f"{device or 'cpu'}, {where}" + (f", {several(threads, 'thread')}" if isinstance(threads, int) else "")


def trouble(story: Story, found: Results) -> Section | None:
    """Runs that failed or never finished, and clients that did not answer."""
    blocks: list[Block] = []
    if found.lost:
        rows: list[list[str | Name]] = [
            [Name(label, pen(story, label)), str(seed), why] for (label, seed), why in list(found.lost.items())[:LISTED]
        ]
        notes = [f"and {len(found.lost) - LISTED} more"] if len(found.lost) > LISTED else []
        blocks.append(
            Grid(
                "Runs without a result; they are in no table and no curve that ends",
                ["Strategy", "Seed", "Why"],
                rows,
                (2,),
                notes,
            )
        )
    if story.absences:
        counts: dict[tuple[str, str], int] = {}
        for line in story.absences:
            key = (line["strategy"], line.get("reason", ""))
            counts[key] = counts.get(key, 0) + 1
        ordered = sorted(counts.items(), key=lambda item: -item[1])
        said: list[list[str | Name]] = [
            [Name(label, pen(story, label)) if label in story.entries else label, f"{count:,}", reason]
            for (label, reason), count in ordered[:LISTED]
        ]
        blocks.append(
            Grid(
                f"{several(len(story.absences), 'time')} a client was asked and did not answer",
                ["Strategy", "Times", "Why"], said, (2,),
                ["The first of them." if len(ordered) > LISTED else "", "All are in absences.csv."],
            )
        )  # fmt: skip
    return Section("trouble", "Failures and absences", blocks) if blocks else None


def provenance(story: Story) -> Section:
    """Which versions made which files."""
    blocks: list[Block] = []
    for folder in story.folders:
        environment = folder.environment
        packages = environment.get("packages", {})
        facts = [
            f"fedsim {packages['fedsim']}" if "fedsim" in packages else "",
            f"Python {environment['python']}" if "python" in environment else "",
        ]
        facts += [f"{name} {version}" for name, version in packages.items() if name != "fedsim"]
        facts += [str(environment[key]) for key in ("platform", "gpu") if environment.get(key)]
        started = f", started {environment['started']}" if environment.get("started") else ""
        name = folder.path.resolve().name
        blocks.append(
            Words(
                f"{name}: {', '.join(fact for fact in facts if fact) or 'nothing is known of where it ran'}{started}."
            )
        )
        hashes: list[list[str | Name]] = [[file, digest] for file, digest in folder.hashes.items()]
        blocks.append(
            Fold(
                f"SHA-256 of the files of {name}",
                [
                    Grid(
                        "Of the files that hold numbers; figures and this page are made of them",
                        ["File", "SHA-256"],
                        hashes,
                        (1,),
                    )
                ],
            )
        )
        blocks.append(Code(folder.experiment, f"The resolved experiment of {name}"))
    return Section("provenance", "Provenance", blocks)


def reproduce(story: Story) -> Section:
    """The commands."""
    lines = []
    for folder in story.folders:
        name = folder.path.resolve().name
        lines.append(f"fedsim run {shlex.quote(f'{name}/experiment.toml')} --out {shlex.quote(f'{name}-again')}")
    wanted = [f" --{key} {shlex.quote(f'{value:g}' if isinstance(value, float) else value)}"
              for key, value in (("metric", story.metric), ("baseline", story.baseline), ("target", story.target))
              if value is not None]  # fmt: skip
    folders = " ".join(shlex.quote(folder.path.resolve().name) for folder in story.folders)
    lines.append(f"fedsim report {folders}{''.join(wanted)}")
    version = next(
        (f.environment["packages"]["fedsim"] for f in story.folders if f.environment.get("packages", {}).get("fedsim")),
        None,
    )
    text = (
        "The resolved experiment runs again as it is. On the same machine and versions the numbers are the same, bit "
        "for bit; elsewhere to rounding. The last command makes this page again."
    )
    blocks: list[Block] = [Words(text), Code("\n".join(lines))]
    if version is not None:
        blocks.append(Words(f"Written by fedsim {version}.", soft=True))
    return Section("reproduce", "How to reproduce", blocks)
