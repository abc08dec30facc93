"""Claim: gossip that averages independently initialised networks stalls, and variance correction ends the stall.

The setting of Tian, Al-Ars, Kitsak, Hofstee (2024, arXiv 2404.04616) as far as their simulator shows it, for their text
was not at hand: MNIST, the LeNet of Caffe (431,080 parameters; Xavier weights, zero biases, pixels in [0, 1]), SGD 0.01
with momentum 0.9 that stays with its node, minibatches of 64 that a node draws with replacement from the whole data
set by its own label probabilities (IID, or Dirichlet(0.5)). A node takes one minibatch every 8 to 12 ticks, sends its
model to all neighbours, and averages with β = 0.5 when its buffer holds as many models as it has neighbours. Every node
starts from weights of its own. The graph is random 8-regular with 50 nodes, for 500 ticks; others are seen for 300.
Left out: Caffe's slow decay of the learning rate (0.4 % by the end). Modes:

    solo        no edges: the baseline from which delays count
    plain       averaging only
    paper, dfl-torch, flocky    averaging with variance correction, by preset; β is 0.5 for all
    gain        weights larger by √n at first, and 50 ticks of averaging before training counts (gain correction)
    shared      plain averaging from one first model for all
    max-norm    the same, the model being the one with the largest norm
    fl          a star: all 50 clients take a minibatch at ticks 5, 15, 25, ... and the server averages; a client keeps
                its momentum from round to round, as nodes do
    fedavg      the same with momentum that begins anew in every round, which in one step is no momentum at all

Accuracy is the mean over the same 8 nodes, on 500 test images (at the last tick 2000), every 20 ticks. The plateau
delay is the first tick with accuracy 0.5 or more, minus the same of solo with the same seed and label probabilities; a
run that never gets there is counted as if it did one tick after its end, a lower bound. Variances are those of
weights within a layer, a mean over the 8 nodes, against the variance before the first tick (gain: before the gain).
Of the abstract four parts are put to the test; the bounds were set before the runs:

    plateau        plain averaging's delay is 20 ticks or more
    corrected      with the correction (paper) the delay is at most half of plain averaging's
    like-fl        the correction's accuracy at the end is at most 0.02 below fl's
    topology       `plateau` and `corrected` hold at every degree and every number of nodes
    non-iid        `plateau`, `corrected` and `like-fl` hold for Dirichlet(0.5) labels too

A part holds if it does in every run, does not if in none, and holds in part otherwise.

    python benchmarks/vanishing_variance.py          # about 30 min of processor time; goes on where it was stopped
    python benchmarks/vanishing_variance.py table    # summary, verdicts and figures from the runs there are

Runs are lines of benchmarks/results/vanishing_variance.jsonl; summary, verdicts and figures stand beside it. MNIST is
sought in FEDSIM_DATA.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import platform
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import go_on, read_lines
from torch import Tensor, nn

from fedsim import LocalSGD, data, federate, keyed, measure, simulate, topology
from fedsim.data.partition import DirichletSample
from fedsim.engine import Loop
from fedsim.mixing import Complete
from fedsim.participation import Schedule, Ticks
from fedsim.report import style
from fedsim.simulation import first_model
from fedsim.strategies import DPSGD, BufferedGossip, FedAvg, GainCorrection, MaxNormSync, VarianceCorrection
from fedsim.strategy import Strategy
from fedsim.task import Task

TICKS = 500
SHORT = 300  # on the other graphs
EVERY = 20  # ticks from one evaluation to the next
EVALUATED = 8  # nodes
IMAGES, LAST_IMAGES = 500, 2000
LOCAL = LocalSGD(lr=0.01, steps=1, batch=64, momentum=0.9)
DRAWN = 64 * 64  # examples a node draws: no node trains more than 64 times, so none comes round again
THRESHOLD = 0.5
MARGIN = 0.02
WARMUP = 50  # ticks: each node has averaged about five times
RESULTS = Path(__file__).parent / "results"
LINES = RESULTS / "vanishing_variance.jsonl"
MODES = ("solo", "plain", "paper", "fl", "shared", "gain", "dfl-torch", "flocky", "max-norm", "fedavg")


class Case(NamedTuple):
    """A run."""

    mode: str
    alpha: float | None = None  # of the label probabilities; None: all labels alike
    seed: int = 1
    n: int = 50
    degree: int = 8


def cases() -> list[Case]:
    """All runs, the most telling first."""
    main = ("solo", "plain", "paper", "fl")
    found = [Case(mode) for mode in (*main, "shared")]
    found += [Case(mode, 0.5) for mode in main]
    found += [Case(mode, None, 2) for mode in main]
    found += [Case(mode, None, 1, n, d) for n, d in ((8, 7), (50, 3), (50, 45)) for mode in ("plain", "paper")]
    found += [Case(mode) for mode in ("gain", "dfl-torch", "flocky")]
    found += [Case(mode, 0.5, 2) for mode in main] + [Case("shared", 0.5)]
    found += [Case(mode, None, 1, n, d) for n, d in ((100, 8), (50, 20)) for mode in ("plain", "paper")]
    return [*found, Case("fedavg"), Case("max-norm")]


def length(case: Case) -> int:
    """Ticks of a run."""
    return TICKS if (case.n, case.degree) == (50, 8) else SHORT


class LeNet(nn.Module):
    """Caffe's LeNet for 28x28 grey images: 431,080 parameters, no ReLU after the convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 20, 5), nn.Conv2d(20, 50, 5)
        self.fc1, self.fc2 = nn.Linear(800, 500), nn.Linear(500, 10)
        for layer in (self.conv1, self.conv2, self.fc1, self.fc2):
            weight: Tensor = layer.weight  # type: ignore[assignment]
            bound = math.sqrt(3 / weight[0].numel())  # Caffe's "xavier": by the fan in
            nn.init.uniform_(weight, -bound, bound)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, inputs: Tensor) -> Tensor:
        """Scores [b, 10] of images [b, 1, 28, 28]."""
        x = inputs.contiguous(memory_format=torch.channels_last)  # faster on a CPU
        x = nn.functional.max_pool2d(self.conv1(x), 2)
        x = nn.functional.max_pool2d(self.conv2(x), 2)
        return self.fc2(torch.relu(self.fc1(x.flatten(1))))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Solo(BufferedGossip):
    """Nodes without neighbours, of which only those that are looked at need train."""

    nodes: tuple[int, ...] = ()

    def pick(self, state: Any, available: Tensor, chosen: Tensor) -> Tensor:
        """Those looked at."""
        return chosen[torch.isin(chosen, torch.tensor(self.nodes))]


@functools.cache
def dataset() -> Any:
    """MNIST with pixels in [0, 1]."""
    return data.load("mnist")._replace(mean=None, std=None)


def strategy(case: Case, nodes: Sequence[int]) -> Strategy:
    """What the nodes, or the server, do."""
    if case.mode == "fl":  # all start alike and average all with all: a server's average of clients that keep momentum
        return DPSGD(Complete(), order="atc")
    if case.mode == "fedavg":
        return FedAvg()
    graph = topology.load("random-regular", case.n, case.seed, degree=case.degree)
    if case.mode == "solo":
        graph.remove_edges_from(list(graph.edges))
        return Solo(graph, nodes=tuple(nodes))
    plain = BufferedGossip(graph)
    if case.mode == "gain":
        return GainCorrection(plain, warmup=WARMUP, graph=graph)
    if case.mode == "max-norm":
        return MaxNormSync(plain)
    return plain if case.mode in ("plain", "shared") else VarianceCorrection(plain, preset=case.mode)  # type: ignore[arg-type]


def accuracy(task: Task, models: Tensor, images: int) -> float:
    """Mean over models [m, P] of the share of so many test images, always the same ones, that is classified right."""
    rows = keyed.permutation(keyed.seed(0, "images"), len(task.test_targets))[:images]
    inputs, targets = task.test_inputs[rows], task.test_targets[rows]
    with torch.no_grad():
        right = [(task.outputs(task.layout.views(x), inputs).argmax(1) == targets).double().mean() for x in models]
    return float(torch.stack(right).mean())


def run(case: Case, ticks: int | None = None) -> dict[str, Any]:
    """Accuracy and relative layer variances at every 20th tick of the first `ticks`; left out: of all, and the last."""
    ticks = length(case) if ticks is None else ticks
    partition = DirichletSample(math.inf if case.alpha is None else case.alpha, DRAWN)
    task = federate(dataset(), clients=case.n, partition=partition, model=LeNet, seed=case.seed)
    nodes = measure.sample(case.n, EVALUATED, case.seed)
    star = case.mode in ("fl", "fedavg")
    # on the star a round is ten ticks, for in between nothing happens
    rounds, first, pace = (ticks // 10, 5, 10) if star else (ticks, 0, 1)
    schedule: Schedule = Ticks((1,) if star else Ticks().periods).draw(case.n, rounds, case.seed)
    init = "independent" if case.mode not in ("shared", "fl", "fedavg") else "shared"
    looked_at = nodes[:1] if star else nodes  # where all have the same model, one does
    start = measure.layer_variance(first_model(task, case.seed, init).expand(case.n, -1)[nodes], task.layout)
    out: dict[str, Any] = {"tick": [], "accuracy": [], "variance": {name: [] for name in start}}
    began, due = time.process_time(), 0
    for step in simulate(
        task, strategy(case, nodes.tolist()), schedule, LOCAL, seed=case.seed, engine=Loop(), init=init
    ):
        tick, last = first + pace * step.t, step.t == rounds - 1 and ticks == length(case)
        if tick < due and not last:
            continue
        due += EVERY
        models = step.model[looked_at] if step.model.ndim == 2 else step.model[None]
        out["tick"].append(tick)
        out["accuracy"].append(round(accuracy(task, models, LAST_IMAGES if last else IMAGES), 5))
        for name, value in measure.layer_variance(models, task.layout).items():
            out["variance"][name].append(float(f"{value / start[name]:.5g}"))
    return case._asdict() | out | {"seconds": round(time.process_time() - began, 1)}


# What the runs say ---------------------------------------------------------------------------------------------------


def case_of(line: dict[str, Any]) -> Case:
    """Which run it is."""
    return Case(*(line[name] for name in Case._fields))


def read() -> dict[Case, dict[str, Any]]:
    """The runs there are."""
    return {case_of(line): line for line in read_lines(LINES)}


def reached(line: dict[str, Any]) -> int | None:
    """The first tick with accuracy 0.5 or more."""
    return next((t for t, a in zip(line["tick"], line["accuracy"], strict=True) if a >= THRESHOLD), None)


class Delay(NamedTuple):
    """A plateau delay in ticks; `least` if the run ended before."""

    ticks: int
    least: bool

    def __str__(self) -> str:
        return f"{'≥ ' if self.least else ''}{self.ticks}"


def delay(runs: dict[Case, dict[str, Any]], case: Case) -> Delay | None:
    """The plateau delay of a run; None without its solo baseline, or where that never got there."""
    solo = runs.get(Case("solo", case.alpha, case.seed))
    base, there = (reached(line) if line else None for line in (solo, runs[case]))
    if base is None:
        return None
    return Delay((runs[case]["tick"][-1] + 1 if there is None else there) - base, there is None)


def verdict(held: Sequence[bool]) -> str:
    """In how many of the runs something holds, in words."""
    if not held:
        return "not run"
    return "holds" if all(held) else "holds in part" if any(held) else "does not hold"


def verdicts(runs: dict[Case, dict[str, Any]]) -> dict[str, Any]:
    """What of the abstract holds, with the numbers it rests on."""
    rows: list[dict[str, Any]] = []
    for case in (c for c in runs if c.mode == "paper"):
        plain, fl = runs.get(case._replace(mode="plain")), runs.get(Case("fl", case.alpha, case.seed))
        late, corrected = (delay(runs, c) if c in runs else None for c in (case._replace(mode="plain"), case))
        if plain is None or late is None or corrected is None:
            continue
        row = {**case._asdict(), "delay plain": str(late), "delay corrected": str(corrected)}
        del row["mode"]
        row["plateau"] = late.ticks >= EVERY
        row["corrected"] = not corrected.least and 2 * corrected.ticks <= late.ticks
        if fl is not None and (case.n, case.degree) == (50, 8):
            row["accuracy − fl"] = round(runs[case]["accuracy"][-1] - fl["accuracy"][-1], 5)
            row["like-fl"] = row["accuracy − fl"] >= -MARGIN
        rows.append(row)
    iid, skewed = ([r for r in rows if (r["alpha"] is None) is alike] for alike in (True, False))
    usual = [r for r in rows if (r["n"], r["degree"]) == (50, 8)]
    other = [r for r in rows if (r["n"], r["degree"]) != (50, 8)]
    return {
        "plateau": verdict([r["plateau"] for r in usual]),
        "corrected": verdict([r["corrected"] for r in usual]),
        "like-fl": verdict([r["like-fl"] for r in iid if "like-fl" in r]),
        "topology": verdict([r["plateau"] and r["corrected"] for r in other]),
        "non-iid": verdict([r["plateau"] and r["corrected"] and r["like-fl"] for r in skewed if "like-fl" in r]),
        "runs": rows,
    }


def summary(runs: dict[Case, dict[str, Any]]) -> list[dict[str, Any]]:
    """For each mode, labels and graph: delays, accuracies at the end and lowest layer variances, seed by seed."""
    groups: dict[Case, list[Case]] = {}
    for case in runs:
        groups.setdefault(case._replace(seed=0), []).append(case)
    out = []
    for group, members in groups.items():
        lowest = {name: [min(runs[c]["variance"][name]) for c in members] for name in runs[members[0]]["variance"]}
        out.append({
            **{k: v for k, v in group._asdict().items() if k != "seed"}, "seeds": [c.seed for c in members],
            "tick of 0.5": [reached(runs[c]) for c in members],
            "delay": [None if (d := delay(runs, c)) is None else str(d) for c in members],
            "accuracy": [runs[c]["accuracy"][-1] for c in members],
            "lowest variance / first": lowest, "seconds": round(sum(runs[c]["seconds"] for c in members), 1),
        })  # fmt: skip
    return out


def table(rows: Iterable[dict[str, Any]]) -> str:
    """The summary in Markdown."""
    lines = [
        "| mode | labels | nodes, degree | plateau delay | accuracy at the end | lowest layer variance / first |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        star = row["mode"] in ("fl", "fedavg")
        delays = ", ".join(d or "–" for d in row["delay"]) if row["mode"] != "solo" else "0"
        last = f"{statistics.mean(row['accuracy']):.3f}"
        low = min(v for values in row["lowest variance / first"].values() for v in values)
        graph = "star" if star else "none" if row["mode"] == "solo" else f"{row['n']}, {row['degree']}"
        labels = "IID" if row["alpha"] is None else f"Dirichlet({row['alpha']:g})"
        lines.append(f"| {row['mode']} | {labels} | {graph} | {delays} | {last} | {low:.3g} |")
    return "\n".join(lines)


def figures(runs: dict[Case, dict[str, Any]]) -> None:
    """Accuracy and the largest layer's variance against ticks, with the first seed."""
    import matplotlib as mpl

    pens = style.pens(MODES)
    alphas = [alpha for alpha in (None, 0.5) if any(Case(mode, alpha) in runs for mode in MODES)]
    with mpl.rc_context(style.RC):
        drawn = style.figure(4.9 * len(alphas), 6.4)
        panels = drawn.subplots(2, len(alphas), sharex=True, squeeze=False)
        for column, alpha in zip(panels.T, alphas, strict=True):
            labels = "IID labels" if alpha is None else f"Dirichlet({alpha:g}) labels"
            for axes, what in zip(column, ("test accuracy", "variance of fc1's weights / first"), strict=True):
                ends = {}
                for case in (Case(mode, alpha) for mode in MODES):
                    if case in runs:
                        line, pen = runs[case], pens[case.mode]
                        y = line["accuracy"] if axes is column[0] else line["variance"]["fc1.weight"]
                        x, y = line["tick"][:-1], y[:-1]  # the last is an accuracy on other images
                        axes.plot(x, y, color=pen.colour, linestyle=pen.dash)
                        ends[case.mode] = (x[-1], y[-1])
                axes.set_title(f"{what}, {labels}")
                axes.set_xlim(0, TICKS - EVERY)
                if axes is column[0]:
                    axes.set_ylim(0, 1)
                else:
                    axes.set(yscale="log", xlabel="tick")
                style.label_ends(axes, ends, pens)
        style.save(drawn, RESULTS, "vanishing_variance")
        (RESULTS / "vanishing_variance.svg").unlink()  # the PNG is enough


def write(runs: dict[Case, dict[str, Any]]) -> None:
    """Summary, verdicts and figures."""
    result = {
        "ticks": TICKS, "evaluated every": EVERY, "verdicts": verdicts(runs), "summary": summary(runs),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "processor": platform.machine()},
        "threads": torch.get_num_threads(), "seconds": round(sum(line["seconds"] for line in runs.values()), 1),
    }  # fmt: skip
    (RESULTS / "vanishing_variance.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    figures(runs)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("what", nargs="?", choices=("run", "table"), default="run")
    torch.set_num_threads(1)
    runs = read()
    if arguments.parse_args(argv).what == "run":
        go_on(LINES, cases(), runs, run)
    runs = {case: runs[case] for case in cases() if case in runs}
    write(runs)
    print(table(summary(runs)))
    print({name: value for name, value in verdicts(runs).items() if name != "runs"})


if __name__ == "__main__":
    main()
