"""Claim: of what FedAU's authors say four things are put to the test; the verdicts are in the results file.

Wang & Ji's setting (ICLR 2024, arXiv 2306.03401) on Fashion-MNIST: 250 clients, their Dirichlet(0.1) partition, every
client counting the same, presence correlated with the labels (mean 0.1, floor 0.02), 5 local steps of 16 examples,
2,000 rounds, three patterns of presence: Bernoulli, Markov (memory 0.05), cyclic (length 100, starting inactive).
Logistic regression in place of their networks. Their baselines, and FedStale (β = 0.5).

Local rate and server rate are chosen for each strategy from the same pairs, by runs of full length on a seed of its
own: from 12 under Bernoulli presence, used for Markov too, and from 15 under cyclic, where MIFA needs smaller steps.
They are chosen twice, for test accuracy, the paper's measure, and for the training objective, and each measure is taken
from the runs tuned for it. The runs compared have fresh seeds; a measure is the mean over the last fifth of the rounds,
a difference is paired by seed (all runs of a seed and pattern share partition, presence, first model and minibatches),
intervals are Student's at 95 %. The four claims, as recalled in our notes, are differences that should be positive:

    (i)    FedAU beats averaging over those present and averaging over all, in every pattern;
    (ii)   FedAU is no worse than FedVARP and MIFA, by the margin MARGIN, in every pattern;
    (iii)  the cutoff K = 50 is better than none, in every pattern;
    (iv)   FedVARP and MIFA lose from Bernoulli to cyclic, and lose more than FedAU does.

A claim holds if every interval lies above 0, does not if one lies below, and is not clear otherwise. There is a verdict
for either measure. One seed tunes badly: what does best on it may be at the edge of stability on others. So the runs
for test accuracy are repeated with a server rate one step lower, and "retuned" takes for each seed those of the two
rates that are best on all the other seeds. (It mends FedVARP under Bernoulli and Markov presence, and nothing for
plain averaging.)

The optimum is the tool's own (`fedsim.optimum`), on decorrelated pixels. Without weight decay it lies so far out that
what is found is an upper bound (norm and slope reached are told) and that the distance between models says little; how
far predictions are apart says more.

    python benchmarks/participation_bias.py          # about an hour on an idle core; goes on where it was stopped
    python benchmarks/participation_bias.py table    # the summary and the verdicts from the runs there are

Runs are lines of benchmarks/results/participation_bias.jsonl, the summary is participation_bias.json beside it.
Fashion-MNIST is sought in FEDSIM_DATA.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import interval, read_lines
from side_by_side import Contender, Shared, evaluate, origin, rounded, share, together, verdict
from torch import Tensor

from fedsim import LocalSGD, data, federate, optimum
from fedsim.data.partition import FedAU as Mixtures
from fedsim.participation import Bernoulli, Cyclic, LabelCorrelated, Markov, Participation, Schedule
from fedsim.strategies import MIFA, FedAU, FedAvg, FedStale, FedVARP
from fedsim.strategy import Strategy
from fedsim.task import Task
from fedsim.weights import All, Equal, Known

CHANCE = LabelCorrelated(mean=0.1, floor=0.02, alpha=0.1)
PATTERNS: dict[str, Participation] = {
    "bernoulli": Bernoulli(CHANCE),
    "markov": Markov(CHANCE, memory=0.05),
    "cyclic": Cyclic(CHANCE, length=100, start="inactive"),
}
TUNED_UNDER = {"bernoulli": "bernoulli", "markov": "bernoulli", "cyclic": "cyclic"}
STRATEGIES: dict[str, Callable[[float], Strategy]] = {  # each with its server rate
    "average participating": lambda eta: FedAvg(lr=eta, weights=Equal()),
    "average all": lambda eta: FedAvg(lr=eta, weights=All()),
    "known probabilities": lambda eta: FedAvg(lr=eta, weights=Known()),
    "FedVARP": lambda eta: FedVARP(lr=eta),
    "MIFA": lambda eta: MIFA(lr=eta),
    "FedAU": lambda eta: FedAU(lr=eta),
    "FedAU, K = 50": lambda eta: FedAU(lr=eta, cutoff=50),
    "FedStale": lambda eta: FedStale(lr=eta),
}
GRID = {  # by local rate: server rates; in a column their product is the same, 0.001 to 0.1
    0.00316: (0.316, 1.0, 3.16, 10.0, 31.6),
    0.01: (0.1, 0.316, 1.0, 3.16, 10.0),
    0.0316: (0.0316, 0.1, 0.316, 1.0, 3.16),
}
COLUMNS = {"bernoulli": slice(1, 5), "cyclic": slice(0, 5)}  # of the grid
LOCAL = LocalSGD(lr=1.0, steps=5, batch=16)  # the rate is each contender's own
ROUNDS = 2000
EVERY = 40  # rounds, in the last fifth: when is evaluated
TUNING_SEED = 11
SEEDS = (1, 2, 3, 4, 5)
EARLY = (20, 40)  # evaluated too, so that a test can run a slice again
ITERATIONS = 120  # of L-BFGS
METRICS = (
    "test_accuracy", "test_loss", "worst_class_accuracy", "train_objective", "suboptimality", "distance",
    "prediction_distance",
)  # fmt: skip
HIGHER_IS_BETTER = {"test_accuracy", "worst_class_accuracy"}
MARGIN = {"test_accuracy": 0.005, "train_objective": 0.01}  # the measures; what still counts as comparable
SHOWN = {  # by measure: what else is told of the runs tuned for it
    "test_accuracy": ("worst_class_accuracy",),
    "train_objective": ("suboptimality", "prediction_distance"),
}
RESULTS = Path(__file__).parent / "results"

Line = dict[str, Any]  # of the file of runs


class World(NamedTuple):
    """What the runs of a seed have in common."""

    shared: Shared
    p: Tensor  # [n]  weights of the objective
    features: Tensor  # [rows, d]  the training examples, client after client
    targets: Tensor  # [rows]
    weights: Tensor  # [rows]  what each counts in the objective, float64
    test: Tensor  # [N, d]

    @property
    def task(self) -> Task:
        return self.shared.task


class Best(NamedTuple):
    """The best model found."""

    found: optimum.Optimum
    chances: Tensor  # [rows, C]  what it predicts


def make_task(seed: int, dataset: data.Dataset | None = None) -> Task:
    """The task of a seed."""
    dataset = data.load("fashion-mnist") if dataset is None else dataset
    return federate(dataset, clients=250, partition=Mixtures(alpha=0.1), model="logistic", seed=seed)


def make_world(seed: int, dataset: data.Dataset | None = None) -> World:
    """The task of a seed and what it takes to train and evaluate side by side."""
    task = make_task(seed, dataset)
    shared, p = share(task), task.weights("uniform")
    weights = torch.repeat_interleave(p / task.size, task.size)
    test = task.ready(task.test_inputs).flatten(1)
    return World(shared, p, shared.inputs[task.rows], task.targets[task.rows], weights, test)


def draw(task: Task, pattern: str, seed: int, rounds: int = ROUNDS) -> Schedule:
    """Who is there when."""
    return PATTERNS[pattern].draw(task.n, rounds, seed, histogram=task.histogram())


def minimise(world: World, iterations: int = ITERATIONS) -> Best:
    """The uniform objective's minimum over models x [P], as far as it is found.

    Pixels that are blank in nearly all pictures make the problem flat in some directions: coordinates are decorrelated
    first, which finds in 100 iterations what takes 1,000 without.
    """
    task, C = world.task, world.task.classes
    X = world.features.double()
    d = X.shape[1]
    mean = world.weights @ X
    X -= mean
    spread, axes = torch.linalg.eigh(X.T @ (X * world.weights[:, None]))
    del X
    scale = spread.clamp(min=float(spread[-1]) * 1e-12).sqrt()
    inputs = (world.shared.inputs.double() - mean) @ axes / scale
    twin = replace(task, inputs=inputs, mean=None, std=None, dtype=torch.float64)
    turned = optimum.minimise(twin, world.p, iterations=iterations, tolerance=1e-9).x
    W = (turned[: C * d].view(C, d) / scale) @ axes.T
    b = turned[C * d :] - W @ mean
    x = torch.cat([W.reshape(-1), b])
    value, slope = optimum.value_and_slope(optimum.in_double(task), world.p, x)
    chances = torch.addmm(b.float(), world.features, W.float().T).softmax(1)
    return Best(optimum.Optimum(x, value, float(slope.norm())), chances)


def centred(models: Tensor, classes: int) -> Tensor:
    """Models [M, P] without what is the same for all classes: it changes no prediction, and training never moves it."""
    features = models.shape[1] // classes - 1
    W = models[:, : classes * features].view(-1, classes, features)
    b = models[:, classes * features :]
    return torch.cat([(W - W.mean(1, keepdim=True)).flatten(1), b - b.mean(1, keepdim=True)], 1)


def test_metrics(world: World, models: Tensor) -> list[dict[str, float]]:
    """Test loss, accuracy and worst class accuracy of models [M, P]."""
    losses, hits = evaluate(world.task, world.test, world.task.test_targets, models)
    classes = torch.nn.functional.one_hot(world.task.test_targets, world.task.classes).double()
    worst = (hits.double() @ classes / classes.sum(0)).min(1).values
    columns = (losses.double().mean(1).tolist(), hits.double().mean(1).tolist(), worst.tolist())
    names = ("test_loss", "test_accuracy", "worst_class_accuracy")
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def train_metrics(world: World, models: Tensor, best: Best | None) -> list[dict[str, float]]:
    """The objective of models [M, P], and how far they are from the optimum: in the objective, as vectors (what is
    common to all classes left out), and in predictions (mean total variation distance)."""
    losses, _ = evaluate(world.task, world.features, world.targets, models)
    out = [{"train_objective": value} for value in (losses.double() @ world.weights).tolist()]
    if best is None:
        return out
    C, d = world.task.classes, world.features.shape[1]
    away = (centred(models.double(), C) - centred(best.found.x[None], C)).norm(dim=1).tolist()
    for one, model, distance in zip(out, models, away, strict=True):
        chances = torch.addmm(model[C * d :], world.features, model[: C * d].view(C, d).T).softmax(1)
        one["suboptimality"] = one["train_objective"] - best.found.value
        one["distance"] = distance
        one["prediction_distance"] = float(0.5 * (chances - best.chances).abs().sum(1).double() @ world.weights)
    return out


def play(
    world: World, pattern: str, seed: int, chosen: Sequence[tuple[str, float, float]], kind: str,
    best: Best | None = None,
) -> Iterator[Line]:  # fmt: skip
    """Runs (strategy, local rate, server rate) side by side and gives a line for each."""
    measured = {t for t in range(EVERY, ROUNDS + 1, EVERY) if t > 0.8 * ROUNDS}
    history = set() if kind == "tuning" else {*EARLY, *range(200, ROUNDS + 1, 200)}
    contenders = [Contender(STRATEGIES[name](eta), lr) for name, lr, eta in chosen]
    schedule = draw(world.task, pattern, seed)
    means: list[dict[str, list[float]]] = [{} for _ in chosen]
    losses: list[dict[str, float]] = [{} for _ in chosen]
    began, over = time.perf_counter(), set(range(len(chosen)))
    diverged: dict[int, int] = {}
    for t, models in enumerate(together(world.shared, contenders, schedule, LOCAL, seed=seed, p=world.p), start=1):
        for m in over - models.keys():
            diverged[m] = t
        over &= models.keys()
        if not models or (t not in measured and t not in history):
            continue
        places, stack = list(models), torch.stack(list(models.values()))
        tests = test_metrics(world, stack)
        for m, one in zip(places, tests, strict=True):
            if t in history:
                losses[m][str(t)] = round(one["test_loss"], 6)
        if t in measured:
            for m, one, more in zip(places, tests, train_metrics(world, stack, best), strict=True):
                for name, value in (one | more).items():
                    means[m].setdefault(name, []).append(value)
    seconds = (time.perf_counter() - began) / len(chosen)
    for m, (name, lr, eta) in enumerate(chosen):
        line: Line = {
            "kind": kind, "pattern": pattern, "strategy": name, "seed": seed, "lr": lr,
            "eta": eta, "rounds": ROUNDS, "seconds": round(seconds, 1),
        }  # fmt: skip
        if m in diverged:
            line["diverged"] = diverged[m]
        else:
            line["mean"] = {metric: round(statistics.fmean(values), 6) for metric, values in means[m].items()}
        if history:
            line["test_loss"] = losses[m]
        yield line


def pairs(pattern: str) -> list[tuple[float, float]]:
    """What is tried for a pattern, by every strategy."""
    return [(lr, eta) for lr, rates in GRID.items() for eta in rates[COLUMNS[TUNED_UNDER[pattern]]]]


def tuned_for(metric: str) -> str:
    """From which runs a metric is taken."""
    return "test_accuracy" if metric in HIGHER_IS_BETTER else "train_objective"


def winner(lines: Iterable[Line], pattern: str, strategy: str, measure: str) -> Line:
    """The tuning run that does best, and at which ends of the grid it lies ("edge")."""
    runs = [
        r for r in lines
        if (r["kind"], r.get("pattern"), r.get("strategy")) == ("tuning", TUNED_UNDER[pattern], strategy)
        and (r["lr"], r["eta"]) in pairs(pattern) and "mean" in r
    ]  # fmt: skip
    sign = -1 if measure in HIGHER_IS_BETTER else 1
    best = min(runs, key=lambda run: sign * float(run["mean"][measure]))
    row = GRID[best["lr"]][COLUMNS[TUNED_UNDER[pattern]]]
    ends = {
        "lowest local rate": best["lr"] == min(GRID), "highest local rate": best["lr"] == max(GRID),
        "lowest product": best["eta"] == row[0], "highest product": best["eta"] == row[-1],
    }  # fmt: skip
    return {
        "lr": best["lr"], "eta": best["eta"], "edge": [name for name, there in ends.items() if there],
        "tuning": best["mean"][measure],
    }  # fmt: skip


def tuned(lines: Sequence[Line], pattern: str) -> list[tuple[str, float, float]]:
    """Every strategy with the rates chosen for it, for either measure."""
    found = [(name, winner(lines, pattern, name, measure)) for name in STRATEGIES for measure in MARGIN]
    return list(dict.fromkeys((name, one["lr"], one["eta"]) for name, one in found))


def stepped_back(lines: Sequence[Line], pattern: str) -> list[tuple[str, float, float]]:
    """Every strategy with the rates chosen for test accuracy, but the server rate one step lower, where the grid has
    one."""
    found = [(name, winner(lines, pattern, name, "test_accuracy")) for name in STRATEGIES]
    places = [(name, one["lr"], GRID[one["lr"]].index(one["eta"])) for name, one in found]
    return [(name, lr, GRID[lr][place - 1]) for name, lr, place in places if place]


def run(path: Path) -> None:
    """Whatever runs are missing in the file, tuning first."""
    dataset = data.load("fashion-mnist")
    lines = read_lines(path)

    def keep(new: Iterable[Line]) -> None:
        with path.open("a") as file:
            for line in new:
                lines.append(line)
                file.write(json.dumps(line) + "\n")
                print(json.dumps({key: value for key, value in line.items() if key != "test_loss"}), flush=True)

    def missing(kind: str, pattern: str, seed: int, wanted: Iterable[tuple[str, float, float]]) -> list[Any]:
        done = {(r["strategy"], r["lr"], r["eta"]) for r in lines
                if (r["kind"], r.get("pattern"), r["seed"]) == (kind, pattern, seed)}  # fmt: skip
        return [one for one in wanted if one not in done]

    world: World | None = None
    for pattern in dict.fromkeys(TUNED_UNDER.values()):
        for name in STRATEGIES:
            tried = [(name, lr, eta) for lr, eta in pairs(pattern)]
            if left := missing("tuning", pattern, TUNING_SEED, tried):
                world = make_world(TUNING_SEED, dataset) if world is None else world
                keep(play(world, pattern, TUNING_SEED, left, "tuning"))
    for seed in SEEDS:
        wanted = {pattern: missing("final", pattern, seed, tuned(lines, pattern)) for pattern in PATTERNS}
        if not any(wanted.values()):
            continue
        world, began = make_world(seed, dataset), time.perf_counter()
        best = minimise(world)
        if not any((r["kind"], r["seed"]) == ("optimum", seed) for r in lines):
            found, seconds = best.found, round(time.perf_counter() - began, 1)
            keep([{"kind": "optimum", "seed": seed, "value": found.value, "slope": found.slope,
                   "norm": float(found.x.norm()), "seconds": seconds}])  # fmt: skip
        for pattern, left in wanted.items():
            if left:
                keep(play(world, pattern, seed, left, "final", best))
        summarise(path)
    for seed in SEEDS:
        again = {pattern: missing("back", pattern, seed, stepped_back(lines, pattern)) for pattern in PATTERNS}
        if any(again.values()):
            world = make_world(seed, dataset)
        for pattern, left in again.items():
            if left and world is not None:
                keep(play(world, pattern, seed, left, "back"))


Values = dict[tuple[str, str], dict[int, float]]  # by pattern and strategy: the metric of every seed


def claims(values: Values, margin: float) -> dict[str, dict[str, list[float]]]:
    """What has to be positive for each claim: differences by seed, where more is better."""

    def less(a: tuple[str, str], b: tuple[str, str]) -> list[float]:
        return [values[a][seed] - values[b][seed] for seed in sorted(values[a])]

    out: dict[str, dict[str, list[float]]] = {"i": {}, "ii": {}, "iii": {}, "iv": {}}
    for pattern in PATTERNS:
        for name in ("average participating", "average all"):
            out["i"][f"{pattern}: FedAU - {name}"] = less((pattern, "FedAU"), (pattern, name))
        for name in ("FedVARP", "MIFA"):
            more = less((pattern, "FedAU"), (pattern, name))
            out["ii"][f"{pattern}: FedAU - {name} + margin"] = [value + margin for value in more]
        out["iii"][f"{pattern}: K = 50 - none"] = less((pattern, "FedAU, K = 50"), (pattern, "FedAU"))
    for name in ("FedVARP", "MIFA"):
        lost = less(("bernoulli", name), ("cyclic", name))
        lost_by_fedau = less(("bernoulli", "FedAU"), ("cyclic", "FedAU"))
        out["iv"][f"{name}: bernoulli - cyclic"] = lost
        out["iv"][f"{name}: bernoulli - cyclic, more than FedAU"] = [
            a - b for a, b in zip(lost, lost_by_fedau, strict=True)
        ]
    return out


def chosen_by_others(pairs: dict[Any, dict[int, float]], seed: int) -> float:
    """The value of a seed with the rates that are best, more being better, for all the other seeds."""
    return max(pairs.values(), key=lambda one: sum(value for s, value in one.items() if s != seed))[seed]


def retuned(lines: Sequence[Line]) -> Line | None:
    """Test accuracy where each seed's rates are chosen by the other seeds, between those tuned and a step back."""
    final = {(r["pattern"], r["strategy"], r["lr"], r["eta"], r["seed"]): r["mean"]["test_accuracy"]
             for r in lines if r["kind"] in ("final", "back") and "mean" in r}  # fmt: skip
    pairs: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for pattern in PATTERNS:
        for name in STRATEGIES:
            best = winner(lines, pattern, name, "test_accuracy")
            pairs[pattern, name] = [(best["lr"], best["eta"])]
        for name, lr, eta in stepped_back(lines, pattern):
            pairs[pattern, name].append((lr, eta))
    seeds = [s for s in SEEDS if all((*one, *pair, s) in final for one, both in pairs.items() for pair in both)]
    if len(seeds) < 3:
        return None
    values: Values = {}
    table: dict[str, Line] = {pattern: {} for pattern in PATTERNS}
    for one, both in pairs.items():
        each = {pair: {s: final[*one, *pair, s] for s in seeds} for pair in both}
        values[one] = {s: chosen_by_others(each, s) for s in seeds}
        means = {f"{lr:g}, {eta:g}": round(statistics.mean(found.values()), 6) for (lr, eta), found in each.items()}
        spread = rounded({"mean": statistics.mean(values[one].values()), "std": statistics.stdev(values[one].values())})
        table[one[0]][one[1]] = {"rates": means, **spread}
    verdicts = {}
    for claim, differences in claims(values, MARGIN["test_accuracy"]).items():
        intervals = {what: rounded(interval(found)) for what, found in differences.items()}
        verdicts[claim] = {"verdict": verdict(intervals.values()), "intervals": intervals}
    return {"seeds": seeds, "results": table, "verdicts": verdicts}


def summary(lines: Sequence[Line]) -> Line:
    """What the runs say. Only seeds that are finished in every pattern count; what diverged is told."""
    rates = {
        measure: {pattern: {name: winner(lines, pattern, name, measure) for name in STRATEGIES} for pattern in PATTERNS}
        for measure in MARGIN
    }
    final = {(r["pattern"], r["strategy"], r["lr"], r["eta"], r["seed"]): r for r in lines if r["kind"] == "final"}
    runs = {key: r for key, r in final.items() if "mean" in r}
    wanted = {pattern: tuned(lines, pattern) for pattern in PATTERNS}
    seeds = [s for s in SEEDS if all((pattern, *one, s) in runs for pattern in PATTERNS for one in wanted[pattern])]
    values: dict[str, Values] = {metric: {} for metric in METRICS}
    table: dict[str, dict[str, Line]] = {pattern: {} for pattern in PATTERNS}
    for metric, found in values.items():
        for pattern in PATTERNS:
            for name in STRATEGIES:
                chosen = rates[tuned_for(metric)][pattern][name]
                means = {s: runs[pattern, name, chosen["lr"], chosen["eta"], s]["mean"] for s in seeds}
                found[pattern, name] = {s: mean[metric] for s, mean in means.items()}
            for name in STRATEGIES:
                mine, reference = found[pattern, name], found[pattern, "FedAU"]
                here = rounded({"mean": statistics.mean(mine.values()), "std": statistics.stdev(mine.values())})
                table[pattern].setdefault(name, {})[metric] = here
                if name != "FedAU":
                    here["minus_FedAU"] = rounded(interval([mine[s] - reference[s] for s in seeds]))
    verdicts: dict[str, Line] = {}
    for metric, margin in MARGIN.items():
        sign = 1 if metric in HIGHER_IS_BETTER else -1
        better = {one: {s: sign * value for s, value in mine.items()} for one, mine in values[metric].items()}
        for claim, differences in claims(better, margin).items():
            intervals = {what: rounded(interval(each)) for what, each in differences.items()}
            verdicts.setdefault(claim, {})[metric] = {"verdict": verdict(intervals.values()), "intervals": intervals}
    return {
        "seeds": seeds, "rounds": ROUNDS, "tuning_seed": TUNING_SEED, "tuned_under": TUNED_UNDER,
        "grid": {pattern: pairs(pattern) for pattern in COLUMNS}, "margin": MARGIN, "rates": rates, "results": table,
        "verdicts": verdicts, "retuned": retuned(lines), "diverged": [key for key in final if key not in runs],
        "optimum": [{k: r[k] for k in ("seed", "value", "slope", "norm")} for r in lines if r["kind"] == "optimum"],
        "seconds": round(sum(r["seconds"] for r in lines)),
    }  # fmt: skip


def markdown(result: Line) -> str:
    """The summary as tables."""
    head = ["strategy", "rates", "test accuracy", "minus FedAU [95 %]", "worst class", "rates", "objective",
            "minus FedAU [95 %]", "off the optimum", "predictions off"]  # fmt: skip
    out = []
    for pattern, rows in result["results"].items():
        out += [f"{pattern}, {len(result['seeds'])} seeds", "", "| " + " | ".join(head) + " |"]
        out.append("| --- " * len(head) + "|")
        for name, row in rows.items():
            cells = [name]
            for measure, others in SHOWN.items():
                rates = result["rates"][measure][pattern][name]
                cells.append(f"{rates['lr']:g}, {rates['eta']:g}" + "*" * bool(rates["edge"]))
                cells.append(("{mean:.4f} ± {std:.4f}").format(**row[measure]))
                versus = row[measure].get("minus_FedAU")
                cells.append("{mean:+.4f} [{low:+.4f}, {high:+.4f}]".format(**versus) if versus else "-")
                cells += [f"{row[metric]['mean']:.4f}" for metric in others]
            out.append("| " + " | ".join(cells) + " |")
        out.append("")
    out += ["\\* at an end of the grid", ""]

    def told(claim: str, measure: str, one: Line) -> None:
        out.append(f"({claim}) {measure}: {one['verdict']}")
        for what, bounds in one["intervals"].items():
            out.append(f"    {what}: " + "{mean:+.4f} [{low:+.4f}, {high:+.4f}]".format(**bounds))

    for claim, found in result["verdicts"].items():
        for metric, one in found.items():
            told(claim, metric, one)
    if result["retuned"]:
        out += ["", f"test accuracy, rates chosen by the other {len(result['retuned']['seeds']) - 1} seeds", ""]
        out += ["| strategy | " + " | ".join(PATTERNS) + " |", "| --- " * (1 + len(PATTERNS)) + "|"]
        for name in STRATEGIES:
            rows = [found[name] for found in result["retuned"]["results"].values()]
            out.append(f"| {name} | " + " | ".join("{mean:.4f} ± {std:.4f}".format(**row) for row in rows) + " |")
        out.append("")
        for claim, one in result["retuned"]["verdicts"].items():
            told(claim, "test accuracy, retuned", one)
    return "\n".join(out)


def summarise(path: Path) -> None:
    """Writes and prints the summary, once three seeds are finished."""
    lines = read_lines(path)
    runs = [sum((r["kind"], r["seed"]) == ("final", seed) for r in lines) for seed in SEEDS]
    finished = sum(count >= sum(len(tuned(lines, pattern)) for pattern in PATTERNS) for count in runs)
    if finished < 3:
        print(f"{finished} seeds are finished; the summary needs three", flush=True)
        return
    result = {"command": "python benchmarks/participation_bias.py", **origin(), **summary(lines)}
    path.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    print(markdown(result), flush=True)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("what", nargs="?", choices=("run", "table"), default="run")
    torch.set_num_threads(1)
    if arguments.parse_args().what == "run":
        run(RESULTS / "participation_bias.jsonl")
    summarise(RESULTS / "participation_bias.jsonl")
