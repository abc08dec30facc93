"""Claim: what stale updates are worth follows from how unlike clients are, in data and in presence. Put to the test.

Rodio & Neglia's setting (2024, arXiv 2405.04171) on MNIST, training and test pictures together, 20 % of them: 24
clients with the same mixture of digits, 500 pictures each to train and 83 to test; even clients swap the labels 0 and 1
on a share h of these pictures, odd ones 8 and 9, in both parts. Half of the clients are always there, the others with
probability p, which FedAU's estimate has to find out. A turn is one local epoch of batches of 128, without the last,
smaller one: three steps. Two departures: logistic regression in place of their network of 421,642 parameters, and with
it another learning rate, LR (theirs: 0.005), and fewer rounds, ROUNDS (theirs: 4,000).

Their rule: stale updates lose value as data heterogeneity falls and as participation heterogeneity rises. Two readings
of "value" are put to the test, each along both axes, paired by seed (all runs of a seed share pictures, clients, first
model and minibatches, and all with the same p their presence) with Student's 95 % intervals:

    best β                 the one of BETAS that is best for a seed
    worth of stale updates how much lower the objective is with β = 1 (FedVARP) than with β = 0 (FedAvg)

    data           h = 1 minus h = 0, at every p;  should be positive
    participation  p = 0.5 minus p = 0.05, at every h;  should be positive

A statement holds if every interval lies above 0, does not if one lies below, and is not clear otherwise; the same is
said of the average over the rows or columns of the map, which is one difference a seed. The measure is the training
objective over the swapped data, the mean over the last fifth of the rounds; loss and accuracy on what clients hold out
(swapped too) are told beside it. With p = 1 everybody is always there and β changes nothing (tests/test_benchmarks.py);
that column of the map is not run.

With 5 seeds one half of the rule holds on average over the map: stale updates are worth more where more labels are
swapped (objective and held-out loss; row by row it is not clear). Along participation, and of the best β, nothing is
settled: by the mean objective the best β is 0.8 or 1 in 20 of 24 cells.

    python benchmarks/fedstale_heterogeneity.py          # 3 min a seed on an idle core; goes on where it stopped
    python benchmarks/fedstale_heterogeneity.py table    # summary, map and verdicts from the runs there are

Runs are lines of benchmarks/results/fedstale_heterogeneity.jsonl, the summary is fedstale_heterogeneity.json beside it,
the map fedstale_heterogeneity.png. MNIST is sought in FEDSIM_DATA.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from common import interval, read_lines
from side_by_side import Contender, Shared, evaluate, origin, rounded, share, together, verdict
from torch import Tensor

from fedsim import LocalSGD, data, federate, keyed
from fedsim.data.partition import LabelSwap
from fedsim.participation import Bernoulli, Schedule, TwoGroups
from fedsim.strategies import FedStale

CLIENTS, PICTURES = 24, 14000
HELD_OUT = 1 / 7
SWAPPED = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # h
PRESENT = (0.5, 0.2, 0.1, 0.05)  # p of the slow half
BETAS = (0.0, 0.2, 0.5, 0.8, 1.0)
LR = 0.05
LOCAL = LocalSGD(lr=LR, steps=3, batch=128)
ROUNDS = 240
EVERY = 20  # rounds, in the last fifth: when is evaluated
EARLY = 10  # a round that is evaluated too, so that a test can run it again
SEEDS = (1, 2, 3, 4, 5)
METRICS = ("objective", "held_out_loss", "held_out_accuracy")
RESULTS = Path(__file__).parent / "results"

Line = dict[str, Any]  # of the file of runs
Cell = tuple[float, float]  # h, p


def make_shared(seed: int, h: float, dataset: data.Dataset | None = None) -> Shared:
    """The clients of a seed."""
    dataset = data.load("mnist") if dataset is None else dataset
    inputs = torch.cat([dataset.inputs, dataset.test_inputs])
    targets = torch.cat([dataset.targets, dataset.test_targets])
    order = keyed.permutation(keyed.seed(seed, "pictures"), len(inputs))
    mine, others = order[:PICTURES], order[PICTURES : PICTURES + 1000]  # a task has a test set; not used here
    sample = dataset._replace(
        inputs=inputs[mine], targets=targets[mine], test_inputs=inputs[others], test_targets=targets[others]
    )
    return share(
        federate(
            sample, clients=CLIENTS, partition=LabelSwap(fraction=h), model="logistic", seed=seed, holdout=HELD_OUT
        )
    )


def draw(p: float, seed: int, rounds: int = ROUNDS) -> Schedule:
    """Who is there when."""
    return Bernoulli(TwoGroups(fast=1.0, slow=p, share=0.5)).draw(CLIENTS, rounds, seed)


def metrics(shared: Shared, models: Tensor) -> list[dict[str, float]]:
    """The objective of models [M, P] over all training pictures, loss and accuracy over all held-out ones."""
    task = shared.task
    assert task.held is not None
    mine, kept = (
        evaluate(task, shared.inputs[rows], task.targets[rows], models) for rows in (task.rows, task.held.rows)
    )
    columns = (mine[0], kept[0], kept[1])
    rows = zip(*(column.double().mean(1).tolist() for column in columns), strict=True)
    return [dict(zip(METRICS, row, strict=True)) for row in rows]


def play(shared: Shared, h: float, p: float, seed: int, betas: Sequence[float]) -> Iterator[Line]:
    """Runs the βs side by side and gives a line for each."""
    contenders = [Contender(FedStale(beta=beta), LR) for beta in betas]
    measured = {t for t in range(EVERY, ROUNDS + 1, EVERY) if t > 0.8 * ROUNDS}
    found: list[list[dict[str, float]]] = [[] for _ in betas]
    early: dict[int, float] = {}
    began = time.perf_counter()
    runs = together(shared, contenders, draw(p, seed), LOCAL, seed=seed, p=shared.task.weights())
    for t, models in enumerate(runs, start=1):
        if t == EARLY or t in measured:
            if len(models) < len(betas):
                raise ValueError(f"h = {h}, p = {p}, seed {seed}, round {t}: a run has diverged; lower LR")
            for m, one in enumerate(metrics(shared, torch.stack(list(models.values())))):
                if t == EARLY:
                    early[m] = one["objective"]
                else:
                    found[m].append(one)
    seconds = (time.perf_counter() - began) / len(betas)
    for m, beta in enumerate(betas):
        means = {metric: statistics.fmean(one[metric] for one in found[m]) for metric in METRICS}
        yield {"h": h, "p": p, "beta": beta, "seed": seed, "seconds": round(seconds, 1), "early": round(early[m], 6),
               "mean": rounded(means)}  # fmt: skip


def run(path: Path) -> None:
    """Whatever runs are missing in the file, seed after seed."""
    dataset = data.load("mnist")
    lines = read_lines(path)
    for seed in SEEDS:
        for h in SWAPPED:
            shared: Shared | None = None
            for p in PRESENT:
                done = {r["beta"] for r in lines if (r["seed"], r["h"], r["p"]) == (seed, h, p)}
                left = [beta for beta in BETAS if beta not in done]
                if not left:
                    continue
                shared = make_shared(seed, h, dataset) if shared is None else shared
                with path.open("a") as file:
                    for line in play(shared, h, p, seed, left):
                        lines.append(line)
                        file.write(json.dumps(line) + "\n")
                print(f"seed {seed}, h = {h}, p = {p}: {lines[-1]['seconds'] * len(left):.0f} s", flush=True)
        summarise(path)


Values = dict[Cell, dict[int, dict[float, float]]]  # by cell, seed and beta: the metric, where less is better


def of_metric(lines: Iterable[Line], metric: str) -> Values:
    """The runs' values of a metric, for seeds that are finished in every cell."""
    sign = -1 if metric == "held_out_accuracy" else 1
    found = {(r["h"], r["p"], r["seed"], r["beta"]): sign * r["mean"][metric] for r in lines}
    cells = [(h, p) for h in SWAPPED for p in PRESENT]
    seeds = [s for s in SEEDS if all((*cell, s, beta) in found for cell in cells for beta in BETAS)]
    return {cell: {s: {beta: found[*cell, s, beta] for beta in BETAS} for s in seeds} for cell in cells}


def least(values: dict[float, float]) -> float:
    """The β of least value."""
    return min(values, key=values.__getitem__)


def mean_of(runs: Iterable[dict[float, float]]) -> dict[float, float]:
    """The mean over seeds, for every β."""
    found = list(runs)
    return {beta: statistics.fmean(one[beta] for one in found) for beta in BETAS}


def better_than(runs: dict[int, dict[float, float]], beta: float) -> dict[str, float]:
    """How much lower the value is with the best β than with this one. For each seed the best is the one that the other
    seeds choose, so that nothing is gained by choosing among noise."""
    gains = []
    for seed, values in runs.items():
        chosen = least(mean_of(others for s, others in runs.items() if s != seed))
        gains.append(values[beta] - values[chosen])
    return rounded(interval(gains))


def readings(values: Values) -> dict[str, dict[Cell, dict[int, float]]]:
    """The two readings of "value": for every cell and seed a number."""
    return {
        "best beta": {cell: {s: least(run) for s, run in runs.items()} for cell, runs in values.items()},
        "worth of stale updates": {
            cell: {s: run[0.0] - run[1.0] for s, run in runs.items()} for cell, runs in values.items()
        },
    }


def statements(of: dict[Cell, dict[int, float]]) -> dict[str, dict[str, Any]]:
    """The rule along both axes, for one reading."""

    often, seldom = PRESENT[0], PRESENT[-1]
    pairs: dict[str, dict[str, tuple[Cell, Cell]]] = {
        "data": {f"p = {p:g}": ((SWAPPED[-1], p), (SWAPPED[0], p)) for p in PRESENT},
        "participation": {f"h = {h:g}": ((h, often), (h, seldom)) for h in SWAPPED},
    }
    out = {}
    for axis, contrasts in pairs.items():
        found = {what: [of[a][s] - of[b][s] for s in of[a]] for what, (a, b) in contrasts.items()}
        average = [statistics.fmean(by_seed) for by_seed in zip(*found.values(), strict=True)]
        intervals = {what: rounded(interval(values)) for what, values in found.items()}
        pooled = rounded(interval(average))
        out[axis] = {
            "verdict": verdict(intervals.values()), "intervals": intervals,
            "verdict_on_average": verdict([pooled]), "average": pooled,
        }  # fmt: skip
    return out


def summary(lines: Sequence[Line]) -> Line:
    """What the runs say."""
    out: Line = {"lr": LR, "rounds": ROUNDS, "betas": BETAS, "seconds": round(sum(r["seconds"] for r in lines))}
    for metric in METRICS:
        values = of_metric(lines, metric)
        out["seeds"] = list(values[SWAPPED[0], PRESENT[0]])
        sign = -1 if metric == "held_out_accuracy" else 1
        cells = [
            {
                "h": h, "p": p, "best": least(mean_of(runs.values())),
                "best_by_seed": [least(run) for run in runs.values()],
                "mean": [round(sign * value, 6) for value in mean_of(runs.values()).values()],
                "better_than_0": better_than(runs, 0.0), "better_than_1": better_than(runs, 1.0),
            }
            for (h, p), runs in values.items()
        ]  # fmt: skip
        out[metric] = {
            "cells": cells,
            "rule": {reading: statements(found) for reading, found in readings(values).items()},
        }
    return out


def markdown(result: Line) -> str:
    """The map of the best β and the verdicts."""
    out = [f"best β, objective, {len(result['seeds'])} seeds; better than β = 0 and β = 1 by (1e-4) [95 %]", ""]
    out += ["| h | " + " | ".join(f"p = {p:g}" for p in PRESENT) + " |", "| --- " * (1 + len(PRESENT)) + "|"]
    cells = {(cell["h"], cell["p"]): cell for cell in result["objective"]["cells"]}

    def scaled(found: dict[str, float]) -> str:
        return "{mean:+.1f} [{low:+.1f}, {high:+.1f}]".format(**{k: 1e4 * v for k, v in found.items()})

    for h in SWAPPED:
        row = [f"{h:g}"]
        for p in PRESENT:
            cell = cells[h, p]
            row.append(f"{cell['best']:g}: {scaled(cell['better_than_0'])}, {scaled(cell['better_than_1'])}")
        out.append("| " + " | ".join(row) + " |")
    for metric in METRICS:
        for reading, axes in result[metric]["rule"].items():
            for axis, one in axes.items():
                average = "{mean:+.4f} [{low:+.4f}, {high:+.4f}]".format(**one["average"])
                out.append(
                    f"{metric}, {reading}, {axis}: {one['verdict']}; on average {average}: {one['verdict_on_average']}"
                )
    return "\n".join(out)


def draw_map(result: Line, path: Path) -> None:
    """The best β over h and p, for the objective and for held-out accuracy; "?" where the seeds tell it neither from
    β = 0 nor from β = 1."""
    import matplotlib as mpl
    from matplotlib.colors import BoundaryNorm, ListedColormap

    from fedsim.report.style import RC, figure

    shades = ListedColormap([mpl.colormaps["cividis"](0.05 + 0.9 * i / (len(BETAS) - 1)) for i in range(len(BETAS))])
    columns = (1.0, *PRESENT)
    with mpl.rc_context(RC):
        drawn = figure(8.2, 3.4)
        both = drawn.subplots(1, 2, sharey=True)
        for axes, metric, title in zip(
            both, ("objective", "held_out_accuracy"), ("by training objective", "by held-out accuracy"), strict=True
        ):
            cells = {(cell["h"], cell["p"]): cell for cell in result[metric]["cells"]}
            levels = [
                [float("nan") if p == 1.0 else BETAS.index(cells[h, p]["best"]) for p in columns] for h in SWAPPED
            ]
            image = axes.imshow(
                levels, origin="lower", aspect="auto", cmap=shades, norm=BoundaryNorm(range(6), 5, extend="neither")
            )
            for row, h in enumerate(SWAPPED):
                axes.text(0, row, "any", ha="center", va="center", fontsize=7.5, color="#888888")
                for column, p in enumerate(PRESENT, start=1):
                    cell = cells[h, p]
                    ink = "white" if BETAS.index(cell["best"]) < 3 else "black"
                    sure = cell["better_than_0"]["low"] > 0 or cell["better_than_1"]["low"] > 0
                    text = f"{cell['best']:g}" + ("" if sure else "?")
                    axes.text(column, row, text, ha="center", va="center", fontsize=8.5, color=ink)
            axes.set_xticks(range(len(columns)), [f"{p:g}" for p in columns])
            axes.set_yticks(range(len(SWAPPED)), [f"{h:g}" for h in SWAPPED])
            axes.set_xlabel("presence p of the slow half")
            axes.set_title(f"best β {title}")
            axes.grid(visible=False)
        both[0].set_ylabel("share h of labels swapped")
        drawn.supxlabel(
            "?: the seeds tell it neither from 0 nor from 1;  any: everybody is there, all are the same", size=8
        )
        bar = drawn.colorbar(image, ax=both, ticks=[i + 0.5 for i in range(len(BETAS))])
        bar.ax.set_yticklabels([f"{beta:g}" for beta in BETAS])
        drawn.savefig(path, format="png", metadata={"Software": None})


def summarise(path: Path) -> None:
    """Writes and prints the summary and draws the map, once three seeds are finished."""
    lines = read_lines(path)
    finished = len(of_metric(lines, "objective")[SWAPPED[0], PRESENT[0]])
    if finished < 3:
        print(f"{finished} seeds are finished; the summary needs three", flush=True)
        return
    result = {"command": "python benchmarks/fedstale_heterogeneity.py", **origin(), **summary(lines)}
    path.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    draw_map(result, path.with_suffix(".png"))
    print(markdown(result), flush=True)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("what", nargs="?", choices=("run", "table"), default="run")
    torch.set_num_threads(1)
    if arguments.parse_args().what == "run":
        run(RESULTS / "fedstale_heterogeneity.jsonl")
    summarise(RESULTS / "fedstale_heterogeneity.jsonl")
