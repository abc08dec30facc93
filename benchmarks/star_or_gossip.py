"""The question: at equal bytes, does gossip over a graph learn as well as a star?

Fashion-MNIST on 40 nodes, everybody there in every round, every node counting the same, 5 local steps of 16 examples a
round for all; logistic regression (7850 parameters); labels IID or Dirichlet(0.1). The ways:

    star         FedAvg: 40 models up and 40 down a round
    ring, torus (5 x 8), Géant (the research network of 2012: 40 nodes, 61 links)
                 D-PSGD, adapt then combine, Metropolis weights; a model each way over every link
    static exp   the same on the directed exponential graph: 6 models a node
    one-peer     the same on the one-peer exponential graph: 1 model a node
    tracking     gradient tracking (semi-ATC) on the ring: two vectors where D-PSGD sends one
    top-k        Choco-SGD on the ring: a tenth of the numbers, and their places; γ = 0.4
                 (of 0.2, 0.4, 0.8: 0.8 diverged)

Bytes are what the strategies count as sent (`Traffic`: float32, in top-k 45 bits a number), over all nodes. A run ends
when it has sent 200 models a node, or after 300 rounds (top-k alone). It is measured at the same bytes whatever the way
(the last round within them), on 2500 test images, always the same ones: test accuracy as the mean over the nodes, of
the worst node and of the mean model; the training objective of the mean model; the consensus distance.

Learning rates: every way, model and labels has its own, from one grid, by a seed that is used for nothing else. There
are two questions, and each has its winner: the largest accuracy (mean over nodes) where the bytes end, and the fewest
bytes to the target. The target is 0.03 (Dirichlet: 0.12, or the ring would not get there) below the star's best
accuracy at the end with that seed, rounded down to hundredths. A crossing is interpolated between the evaluations
around it, linear in the logarithm of the bytes; a run that never gets there counts as if it did where it ends, a lower
bound.

Compared are differences paired by seed with a 95 % interval (Student t): ways of a seed share the partition, the first
model and the minibatches. The rules were set before the runs that are compared:

    beats the star    the interval lies wholly on the way's side; `loses` if on the star's; else `open`
    follows the gap   of two graphs (star and D-PSGD only) the one with the larger spectral gap gets to the target in
                      fewer rounds (bytes). Every pair is right, wrong or open by the same intervals; this holds
                      without a wrong pair, does not with more wrong pairs than right ones, and holds in part between

The spectral gap is 1 minus the second largest eigenvalue modulus of the round's matrix; of one-peer, which changes, of
the product of its six rounds, to the power 1/6.

    python benchmarks/star_or_gossip.py                # what is not there yet of all runs; goes on where it was stopped
    python benchmarks/star_or_gossip.py table          # summary, verdicts and figure from the runs there are

Runs are lines of benchmarks/results/star_or_gossip.jsonl; summary, verdicts and figure stand beside it. Fashion-MNIST
is sought in FEDSIM_DATA.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import platform
import statistics
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import go_on, interval, read_lines

from fedsim import LocalSGD, data, federate, keyed, measure, simulate, topology
from fedsim.compress import TopK
from fedsim.data.partition import IID, Dirichlet
from fedsim.engine import Stacked
from fedsim.mixing import Metropolis, Mixing, OnePeerExponential, StaticExponential
from fedsim.participation import Everyone
from fedsim.report import style
from fedsim.strategies import DPSGD, ChocoSGD, FedAvg, GradientTracking
from fedsim.strategy import Strategy

N = 40
BUDGET = 200  # models a node
CAP = 300  # rounds
STOPS = (6, 12, 20, 30, 44, 64, 84, 120, 160, 200)  # models a node: where runs are measured
IMAGES = 2500
GAMMA = 0.4
GRID = (0.003, 0.01, 0.03, 0.1, 0.3)
BELOW = {None: 0.03, 0.1: 0.12}  # the star's best accuracy, where the target lies
TUNE, SEEDS = 0, (1, 2, 3)
GRAPHS = ("star", "ring", "torus", "static exp", "one-peer", "Géant")
WAYS = (*GRAPHS, "tracking", "top-k")
RESULTS = Path(__file__).parent / "results"
LINES = RESULTS / "star_or_gossip.jsonl"


class Case(NamedTuple):
    """A run."""

    model: str
    alpha: float | None  # of the Dirichlet labels; None: IID
    way: str
    lr: float
    seed: int


class World(NamedTuple):
    """What ways are compared in."""

    model: str
    alpha: float | None

    def __str__(self) -> str:
        return f"{self.model}, {'IID' if self.alpha is None else f'Dirichlet({self.alpha:g})'}"


WORLDS = (World("logistic", None), World("logistic", 0.1))


@functools.cache
def dataset() -> Any:
    """Fashion-MNIST with a sample of its test images."""
    full = data.load("fashion-mnist")
    rows = keyed.permutation(keyed.seed(0, "images"), len(full.test_targets))[:IMAGES]
    return full._replace(test_inputs=full.test_inputs[rows], test_targets=full.test_targets[rows])


def mixing(way: str) -> Mixing:
    """Who averages with whom."""
    if way == "static exp":
        return StaticExponential(N)
    if way == "one-peer":
        return OnePeerExponential(N)
    name = {"Géant": "geant2012", "torus": "torus"}.get(way, "ring")
    return Metropolis(topology.load(name, N))


def strategy(way: str) -> Strategy:
    """What the nodes, or the server, do."""
    if way == "star":
        return FedAvg()
    if way == "tracking":
        return GradientTracking(mixing(way))
    if way == "top-k":
        return ChocoSGD(mixing(way), TopK(0.1), GAMMA)
    return DPSGD(mixing(way), order="atc")


def gap(way: str) -> float:
    """The spectral gap of a round."""
    if way == "star":
        return 1.0
    who = torch.arange(N)
    rounds = (N - 1).bit_length() if way == "one-peer" else 1
    product = functools.reduce(torch.matmul, (mixing(way)(t, who).dense() for t in range(rounds)))
    return 1.0 - topology.slem(product) ** (1 / rounds)


def busiest(way: str) -> int:
    """Models that the busiest machine sends and receives in a round, without compression."""
    if way == "star":
        return 2 * N
    edges = mixing(way)(0, torch.arange(N))
    ends = torch.cat([edges.i, edges.j])[torch.cat([edges.i != edges.j] * 2)]
    return int(torch.bincount(ends).max()) * (2 if way == "tracking" else 1)


def run(case: Case, within: float = BUDGET) -> dict[str, Any]:
    """A run of so many models a node: what is measured, one list a figure."""
    partition = IID() if case.alpha is None else Dirichlet(case.alpha)
    task = federate(dataset(), clients=N, partition=partition, model=case.model, seed=case.seed)
    p, unit = task.weights("uniform"), 32 * N * task.layout.size  # unit: bits of a model from every node
    local = LocalSGD(lr=case.lr, steps=5, batch=16)
    schedule = Everyone().draw(N, CAP, case.seed)
    figures = ("round", "bytes", "accuracy", "worst", "mean model", "objective", "consensus")
    out: dict[str, list[float]] = {name: [] for name in figures}
    began, due = time.process_time(), []
    for step in simulate(task, strategy(case.way), schedule, local, seed=case.seed, engine=Stacked(N), p=p):
        bits = sum(step.traffic)  # the same in every round
        if step.t == 0:
            due = sorted({min(int(stop * unit / bits + 1e-9), CAP) for stop in STOPS if stop <= within} - {0})
        if step.t + 1 == due[0]:
            del due[0]
            x = step.model if step.model.ndim == 2 else step.model[None]
            each = [one["test_accuracy"] for one in measure.tests(task, x)]
            mean = measure.test(task, x.mean(0))["test_accuracy"] if len(x) > 1 else each[0]
            values = (
                step.t + 1, (step.t + 1) * bits // 8, statistics.mean(each), min(each), mean,
                0.0 if case.seed == TUNE else measure.objective(task, x, p), measure.consensus_distance(x),
            )  # fmt: skip
            for name, value in zip(figures, values, strict=True):
                out[name].append(float(f"{value:.6g}") if name not in ("round", "bytes") else value)
        if not due:
            break
    if case.seed == TUNE:  # it takes time, and nobody asks
        del out["objective"]
    return case._asdict() | out | {"seconds": round(time.process_time() - began, 1)}


def tuning() -> list[Case]:
    """The runs that choose the learning rates."""
    return [Case(*world, way, lr, TUNE) for world in WORLDS for way in WAYS for lr in GRID]


def read() -> dict[Case, dict[str, Any]]:
    """The runs there are."""
    return {Case(*(line[name] for name in Case._fields)): line for line in read_lines(LINES)}


# What the runs say ---------------------------------------------------------------------------------------------------

Runs = dict[Case, dict[str, Any]]
QUESTIONS = ("end", "target")


class Reached(NamedTuple):
    """When a run got to an accuracy."""

    bytes: float
    least: bool  # not within the run, so this is a lower bound

    def __str__(self) -> str:
        return f"{'> ' if self.least else ''}{self.bytes / 1e6:.1f}"


def crossing(line: dict[str, Any], level: float, figure: str = "accuracy") -> Reached:
    """The bytes at which a figure first got to this level; at the latest the first evaluation, if that is above it."""
    sent, values = line["bytes"], line[figure]
    i = next((i for i, value in enumerate(values) if value >= level), None)
    if i is None:
        return Reached(sent[-1], True)
    if i == 0:
        return Reached(sent[0], False)
    share = (level - values[i - 1]) / (values[i] - values[i - 1])
    return Reached(sent[i - 1] * (sent[i] / sent[i - 1]) ** share, False)


def target(runs: Runs, world: World) -> float:
    """The accuracy to get to."""
    best = max(runs[Case(*world, "star", lr, TUNE)]["accuracy"][-1] for lr in GRID)
    return math.floor(100 * (best - BELOW[world.alpha]) + 1e-9) / 100


def winner(runs: Runs, world: World, way: str, question: str) -> float:
    """The learning rate of a way for a question."""
    level = target(runs, world)

    def worth(lr: float) -> tuple[float, float]:
        line = runs[Case(*world, way, lr, TUNE)]
        reached = crossing(line, level)
        late = math.inf if reached.least else reached.bytes
        return (-late if question == "target" else 0.0, line["accuracy"][-1])

    return max(GRID, key=worth)


def finals(runs: Runs) -> list[Case]:
    """The runs that are compared."""
    cases = [
        Case(*world, way, winner(runs, world, way, question), seed)
        for seed in SEEDS for world in WORLDS for way in WAYS for question in QUESTIONS
    ]  # fmt: skip
    return list(dict.fromkeys(cases))


def lines_of(runs: Runs, world: World, way: str, question: str) -> list[dict[str, Any]]:
    """The runs of a way that answer a question, seed by seed."""
    lr = winner(runs, world, way, question)
    return [runs[Case(*world, way, lr, seed)] for seed in SEEDS]


def at(line: dict[str, Any], figure: str, sent: float) -> float:
    """A figure at the last evaluation within so many bytes."""
    return float([v for v, b in zip(line[figure], line["bytes"], strict=True) if b <= sent * (1 + 1e-9)][-1])


def at_the_end(runs: Runs, world: World, way: str, figure: str) -> dict[str, float]:
    """Way minus star where the way's bytes end, paired by seed."""
    pairs = zip(lines_of(runs, world, way, "end"), lines_of(runs, world, "star", "end"), strict=True)
    return interval([a[figure][-1] - at(b, figure, a["bytes"][-1]) for a, b in pairs])


def to_target(runs: Runs, world: World, way: str, per: str, figure: str = "accuracy") -> list[Reached]:
    """What it took a way to get to the target, seed by seed: bytes, rounds, or bytes through the busiest machine."""
    found = []
    for line in lines_of(runs, world, way, "target"):
        reached, each = crossing(line, target(runs, world), figure), line["bytes"][-1] / line["round"][-1]
        factor = 1.0
        if per == "round":
            factor = 1 / each
        elif per == "busiest":  # its share of a round's bytes, each counted where it is sent and where it arrives
            factor = busiest(way) / moved(way)
        found.append(reached._replace(bytes=reached.bytes * factor))
    return found


def moved(way: str) -> int:
    """Models that all machines together send in a round, without compression."""
    if way == "star":
        return 2 * N
    return mixing(way)(0, torch.arange(N)).sent() * (2 if way == "tracking" else 1)


def ratio(one: Sequence[Reached], other: Sequence[Reached]) -> dict[str, float]:
    """How many times as much one took as the other: the geometric mean over the seeds, and its interval."""
    found = interval([math.log(a.bytes / b.bytes) for a, b in zip(one, other, strict=True)])
    return {name: math.exp(value) for name, value in found.items()}


def sooner(one: Sequence[Reached], other: Sequence[Reached]) -> str:
    """Whether one got there with less than the other: "right", "wrong" or "open"."""
    found = ratio(one, other)
    if found["high"] < 1 and not any(a.least for a in one):
        return "right"
    if found["low"] > 1 and not any(b.least for b in other):
        return "wrong"
    return "open"


def follows_the_gap(runs: Runs, world: World, per: str) -> dict[str, Any]:
    """Whether the graph with the larger gap gets to the target first, for every two of them."""
    pairs: dict[str, list[str]] = {"right": [], "wrong": [], "open": []}
    ordered = sorted(GRAPHS, key=gap, reverse=True)
    for a, b in itertools.combinations(ordered, 2):
        pairs[sooner(to_target(runs, world, a, per), to_target(runs, world, b, per))].append(f"{a} < {b}")
    right, wrong = len(pairs["right"]), len(pairs["wrong"])
    verdict = "holds" if not wrong and right else "does not hold" if wrong > right else "holds in part"
    return {"verdict": verdict} | pairs


def against_the_star(runs: Runs, world: World) -> dict[str, dict[str, list[str]]]:
    """Who beats the star, who loses to it and who is open, by figure."""
    names = {"right": "beats", "wrong": "loses", "open": "open"}
    out: dict[str, dict[str, list[str]]] = {}
    for figure in ("accuracy", "worst", "mean model"):
        row = out[f"{figure} at the end"] = {"beats": [], "loses": [], "open": []}
        for way in WAYS[1:]:
            found = at_the_end(runs, world, way, figure)
            row["beats" if found["low"] > 0 else "loses" if found["high"] < 0 else "open"].append(way)
    for figure, per in (("accuracy", "byte"), ("mean model", "byte"), ("accuracy", "round"), ("accuracy", "busiest")):
        of = " of the busiest machine" if per == "busiest" else ""
        row = out[f"{'rounds' if per == 'round' else 'bytes'}{of} to the target, {figure}"] = {
            "beats": [], "loses": [], "open": [],
        }  # fmt: skip
        star = to_target(runs, world, "star", per, figure)
        for way in WAYS[1:]:
            row[names[sooner(to_target(runs, world, way, per, figure), star)]].append(way)
    return out


def verdicts(runs: Runs) -> dict[str, Any]:
    """What holds."""
    return {
        str(world): {
            "against the star": against_the_star(runs, world),
            "rounds follow the gap": follows_the_gap(runs, world, "round"),
            "bytes follow the gap": follows_the_gap(runs, world, "byte"),
        }
        for world in WORLDS
    }


def summary(runs: Runs) -> list[dict[str, Any]]:
    """For each world and way: learning rates, figures at the end, what it took to get to the target."""
    rows = []
    for world in WORLDS:
        for way in WAYS:
            rates = {question: winner(runs, world, way, question) for question in QUESTIONS}
            lines = lines_of(runs, world, way, "end")
            row: dict[str, Any] = {
                **world._asdict(), "way": way, "gap": round(gap(way), 5), "lr": rates,
                "at the edge of the grid": [q for q, lr in rates.items() if lr in (GRID[0], GRID[-1])],
                "MB a round": round(lines[0]["bytes"][-1] / lines[0]["round"][-1] / 1e6, 4),
                "MB at the end": round(lines[0]["bytes"][-1] / 1e6, 3), "rounds": lines[0]["round"][-1],
            }  # fmt: skip
            for figure in ("accuracy", "worst", "mean model", "objective", "consensus"):
                values = [line[figure][-1] for line in lines]
                row[figure] = {"mean": rounded(statistics.mean(values)), "std": rounded(statistics.stdev(values))}
                if figure != "consensus" and way != "star":
                    row[figure]["− star"] = {k: rounded(v) for k, v in at_the_end(runs, world, way, figure).items()}
            row["target"] = target(runs, world)
            reached = {per: to_target(runs, world, way, per) for per in ("byte", "round", "busiest")}
            row["MB to the target"] = [str(r) for r in reached["byte"]]
            row["MB to the target, mean model"] = [str(r) for r in to_target(runs, world, way, "byte", "mean model")]
            row["rounds to the target"] = [f"{'> ' if r.least else ''}{r.bytes:.1f}" for r in reached["round"]]
            row["MB of the busiest machine to the target"] = [str(r) for r in reached["busiest"]]
            row["to the target / star"] = {
                per: {k: rounded(v) for k, v in ratio(found, to_target(runs, world, "star", per)).items()}
                for per, found in reached.items()
            }
            rows.append(row)
    return rows


def rounded(value: float) -> float:
    """To five digits."""
    return float(f"{value:.5g}")


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The summary in Markdown, a table for each world."""
    lines = []
    for world in WORLDS:
        chosen = [row for row in rows if World(row["model"], row["alpha"]) == world]
        lines += [
            f"\n{world}; target {chosen[0]['target']}\n",
            "| way | gap | accuracy: nodes | worst node | mean model | bytes to the target / star's [95 %]"
            " | rounds / star's | busiest machine's bytes / star's |",
            "|" + " --- |" * 8,
        ]
        for row in chosen:
            cells = [row["way"], f"{row['gap']:.3f}"]
            cells += [f"{row[figure]['mean']:.3f}" for figure in ("accuracy", "worst", "mean model")]
            least, over = any(">" in reached for reached in row["MB to the target"]), row["to the target / star"]
            cells.append("{mean:.2f} [{low:.2f}, {high:.2f}]".format(**over["byte"]))
            cells += [f"{over[per]['mean']:.3g}" for per in ("round", "busiest")]
            cells[-3:] = ["≥ " + cell if least else cell for cell in cells[-3:]]
            lines.append("| " + " | ".join(cells if row["way"] != "star" else [*cells[:-3], "1", "1", "1"]) + " |")
    return "\n".join(lines)


def figure(runs: Runs) -> None:
    """Accuracy over the nodes, of the worst node, and consensus distance against bytes: means over the seeds."""
    import matplotlib as mpl
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    pens = style.pens(WAYS)
    panels = {"accuracy": "test accuracy, mean over nodes", "worst": "worst node", "consensus": "consensus distance"}
    with mpl.rc_context(style.RC):
        drawn = style.figure(5.0 * len(WORLDS), 8.6)
        grid = drawn.subplots(len(panels), len(WORLDS), sharex="col", squeeze=False)
        ends: list[tuple[Any, dict[str, tuple[float, float]]]] = []
        for column, world in enumerate(WORLDS):
            for axes, (name, title) in zip(grid[:, column], panels.items(), strict=True):
                ends.append((axes, {}))
                for way in WAYS[name == "consensus" :]:  # the star's is 0 throughout
                    lines = lines_of(runs, world, way, "end")
                    x = [sent / 1e6 for sent in lines[0]["bytes"]]
                    y = [statistics.mean(values) for values in zip(*(line[name] for line in lines), strict=True)]
                    axes.plot(x, y, color=pens[way].colour, linestyle=pens[way].dash)
                    ends[-1][1][way] = (x[-1], y[-1])
                axes.set_title(f"{title}; {world}")
                axes.set_xscale("log")
                scales = [axes.xaxis]
                if name == "consensus":
                    axes.set_yscale("log")
                    axes.set_xlabel("MB sent, over all nodes")
                    scales.append(axes.yaxis)
                else:
                    axes.axhline(target(runs, world), color="#888888", linewidth=0.7)
                for scale in scales:
                    scale.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
                    scale.set_major_formatter(StrMethodFormatter("{x:g}"))
                    scale.set_minor_formatter(NullFormatter())
        drawn.canvas.draw()
        for axes, last in ends:
            style.label_ends(axes, last, pens)
        drawn.savefig(RESULTS / "star_or_gossip.png", dpi=110, metadata={"Software": None})


def commit() -> str:
    """The commit of the checkout, "+" if the package or this script is not what it has."""
    here = Path(__file__)
    git = functools.partial(subprocess.run, cwd=here.parent, capture_output=True, text=True, check=False)
    changed = git(["git", "diff", "--quiet", "HEAD", "--", "../fedsim", here.name]).returncode
    return git(["git", "rev-parse", "--short", "HEAD"]).stdout.strip() + ("+" if changed else "")


def write(runs: Runs) -> None:
    """Summary, verdicts and figure."""
    result = {
        "command": "python benchmarks/star_or_gossip.py", "commit": commit(), "seeds": SEEDS, "tuned with seed": TUNE,
        "models a node": BUDGET, "grid": GRID, "gamma": GAMMA, "test images": IMAGES,
        "gap": {way: rounded(gap(way)) for way in GRAPHS}, "verdicts": verdicts(runs), "summary": summary(runs),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "processor": platform.machine()},
        "threads": torch.get_num_threads(), "seconds": round(sum(line["seconds"] for line in runs.values()), 1),
    }  # fmt: skip
    (RESULTS / "star_or_gossip.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    figure(runs)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("what", nargs="?", choices=("run", "table"), default="run")
    torch.set_num_threads(1)
    runs = read()
    if arguments.parse_args(argv).what == "run":
        go_on(LINES, tuning(), runs, run)
        go_on(LINES, finals(runs), runs, run)
    write(runs)
    print(table(summary(runs)))
    print(json.dumps(verdicts(runs), indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
