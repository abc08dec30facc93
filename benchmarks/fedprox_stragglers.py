"""Claim: keeping what stragglers have done beats dropping them, and a pull towards the start helps it further.

The setting of FedProx (Li et al., MLSys 2020, arXiv 1812.06127) on its own data, Synthetic(1, 1): 30 clients of very
unequal sizes, logistic regression, 10 clients a round drawn uniformly, 20 epochs of batches of 10 at the rate 0.01,
clients weighted by their examples: the authors' code's scheme. In every round 0, 50 or 90 % of the ten straggle and do
a share of their work drawn uniformly (of the 20 epochs 1 to 19, cut at a step and not at an epoch). Three treatments,
on the same data, clients and stragglers:

    FedAvg           drops the stragglers (μ = 0)
    FedProx, μ = 0   keeps them
    FedProx, μ = 1   keeps them and pulls (1 is what the authors' script has for these data)

The paper has one draw of the data and 200 rounds; here are five draws, each with a first model, presence and batches
of its own, and 40 rounds, for want of time; differences are paired by seed (Student's t, 95 %). A measure is the mean
over the evaluations of the last fifth of the rounds; the loss is over all training examples. The paper's figures, as
its abstract and its authors' README describe them, say that FedProx is the more stable and the more accurate the more
heterogeneous the clients and their systems are. In kind, and fixed before the runs with these seeds:

    1  keeping beats dropping    FedProx, μ = 0, has a lower loss than FedAvg with 50 % and with 90 % stragglers
    2  the pull helps            μ = 1 has a lower loss than μ = 0 with 90 % stragglers
    3  the pull steadies         the loss of μ = 1 goes up less than that of μ = 0 (the mean of its rises from one
                                 evaluation to the next, over all of the run), with 90 % stragglers

A claim holds if all its intervals lie on its side of 0, does not if one lies on the other side, else it is not clear.

What came out, the means over the five draws:

| stragglers | FedAvg: loss, accuracy | FedProx, μ = 0: loss, accuracy | FedProx, μ = 1: loss, accuracy |
| --- | --- | --- | --- |
| 0% | 1.911, 63.3 % | 1.911, 63.3 % | 0.866, 71.3 % |
| 50% | 1.748, 61.9 % | 1.744, 63.8 % | 0.873, 70.7 % |
| 90% | 2.118, 53.2 % | 1.514, 65.3 % | 0.874, 70.2 % |

None of the three is clear: draws differ far more than treatments do, and five are few. 1: with 50 % stragglers keeping
makes no difference in the mean (−0.00 [−0.57, 0.56], lower in 3 draws of 5), with 90 % it lowers the loss by 0.60
[−0.53, 1.73], in 4 draws. 2: the pull lowers it by 0.64 [−0.34, 1.62], in all 5. 3: rises are smaller by 0.07
[−0.00, 0.14], in all 5. In kind this is what the paper's figures are said to show, with one thing more: on draws with
a few very large clients the pull helps as much without any stragglers.

    python benchmarks/fedprox_stragglers.py            # about 10 minutes of one thread
    python benchmarks/fedprox_stragglers.py --quick    # two seeds, small clients, four rounds: seconds
    python benchmarks/fedprox_stragglers.py table      # the table from the numbers there are

Numbers: benchmarks/results/fedprox_stragglers.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedsim import compare, experiment, merit, paired
from fedsim.events import Failed, Measured

RESULTS = Path(__file__).parent / "results"
LEVELS = (0.0, 0.5, 0.9)  # share of the ten that straggle
SEEDS = (11, 12, 13, 14, 15)
ROUNDS = 40
EVERY = 2  # rounds
STRATEGIES = (
    {"label": "FedAvg", "mu": 0.0, "stragglers": "drop"},
    {"label": "FedProx, μ = 0", "mu": 0.0, "stragglers": "keep"},
    {"label": "FedProx, μ = 1", "mu": 1.0, "stragglers": "keep"},
)
AVG, KEPT, PULLED = (str(each["label"]) for each in STRATEGIES)
METRICS = ("train_objective", "test_accuracy", "rises")
Values = dict[str, dict[int, float]]  # strategy -> seed -> value


def table(level: float, seed: int, rounds: int, spread: float = 2.0) -> dict[str, Any]:
    """The experiment of a level and a seed, which is the data's too."""
    return {
        "name": f"fedprox-{level:g}",
        "task": {"data": {"name": "synthetic", "seed": seed, "spread": spread}, "clients": 30, "partition": "natural",
                 "model": "logistic"},
        "participation": {"name": "partial-work", "of": {"name": "uniform", "k": 10},
                          "stragglers": level, "high": 0.95},
        "local": {"lr": 0.01, "epochs": 20, "batch": 10},
        "strategy": [{"name": "FedProx", "scheme": "code", **each} for each in STRATEGIES],
        "run": {"rounds": rounds, "seeds": [seed], "eval-every": EVERY, "threads": 1, "device": "cpu", "ledger": False},
    }  # fmt: skip


def play(document: Mapping[str, Any]) -> dict[str, dict[str, list[float]]]:
    """strategy -> metric -> the evaluations, from the first model on. Raises RuntimeError where a run fails."""
    found: dict[str, dict[str, list[float]]] = {}
    for event in compare.compare(experiment.parse(document)):
        if isinstance(event, Failed):
            raise RuntimeError(f"{event.strategy}, seed {event.seed}, round {event.round}: {event.reason}")
        if isinstance(event, Measured):
            for metric in ("train_objective", "test_accuracy"):
                found.setdefault(event.strategy, {}).setdefault(metric, []).append(event.metrics[metric])
    return found


def measures(curves: Mapping[str, Sequence[float]], rounds: int) -> dict[str, float]:
    """What a run comes to: the late means, and the mean rise of the loss between evaluations."""
    at = np.arange(len(curves["train_objective"])) * EVERY
    late = {name: merit.late_mean(merit.Curve(at, np.array(values)), rounds) for name, values in curves.items()}
    return late | {"rises": float(np.diff(curves["train_objective"]).clip(min=0).mean())}


def run(seeds: Sequence[int] = SEEDS, rounds: int = ROUNDS, spread: float = 2.0) -> dict[str, Any]:
    """level -> metric -> strategy -> seed -> value, and the seconds it took."""
    began, levels = time.perf_counter(), {}
    for level in LEVELS:
        values: dict[str, Values] = {metric: {} for metric in METRICS}
        for seed in seeds:
            for label, curves in play(table(level, seed, rounds, spread)).items():
                for metric, value in measures(curves, rounds).items():
                    values[metric].setdefault(label, {})[seed] = round(value, 6)
            print(f"{level:.0%} stragglers, seed {seed}: {time.perf_counter() - began:.0f} s", flush=True)
        levels[f"{level:g}"] = values
    return {"levels": levels, "rounds": rounds, "seconds": round(time.perf_counter() - began)}


def gap(levels: Mapping[str, Any], level: str, metric: str, first: str, second: str) -> paired.Difference:
    """First minus second, paired."""
    one, other = ({int(s): v for s, v in levels[level][metric][label].items()} for label in (first, second))
    return paired.difference(first, second, metric, one, other)


def verdict(gaps: Sequence[paired.Difference]) -> str:
    """Of differences that should be negative."""
    if all(each.high < 0 for each in gaps):
        return "holds"
    return "does not hold" if any(each.low > 0 for each in gaps) else "not clear"


def summary(found: Mapping[str, Any]) -> dict[str, Any]:
    """Differences, in how many draws they lie below 0, and verdicts."""
    levels = found["levels"]
    claims = {
        "1 keeping beats dropping": [("0.5", "train_objective", KEPT, AVG), ("0.9", "train_objective", KEPT, AVG)],
        "2 the pull helps": [("0.9", "train_objective", PULLED, KEPT)],
        "3 the pull steadies": [("0.9", "rises", PULLED, KEPT)],
    }
    differences: dict[str, list[dict[str, Any]]] = {}
    verdicts = {}
    for name, pairs in claims.items():
        gaps = [gap(levels, *pair) for pair in pairs]
        verdicts[name] = verdict(gaps)
        differences[name] = [
            {"level": level, "below": sum(a < levels[level][metric][second][s] for s, a in of.items()),
             **{k: getattr(g, k) for k in ("first", "second", "metric", "mean", "low", "high")}}
            for g, (level, metric, first, second) in zip(gaps, pairs, strict=True)
            for of in [levels[level][metric][first]]
        ]  # fmt: skip
    return {"verdicts": verdicts, "differences": differences}


def show(found: Mapping[str, Any]) -> None:
    """The table and the verdicts."""
    print("| stragglers | " + " | ".join(f"{label}: loss, accuracy" for label in (AVG, KEPT, PULLED)) + " |")
    print("| --- " * 4 + "|")
    for level, values in found["levels"].items():
        cells = []
        for label in (AVG, KEPT, PULLED):
            loss, accuracy = (np.mean(list(values[m][label].values())) for m in ("train_objective", "test_accuracy"))
            cells.append(f"{loss:.3f}, {100 * accuracy:.1f} %")
        print(f"| {float(level):.0%} | " + " | ".join(cells) + " |")
    for name, said in found["verdicts"].items():
        gaps = "; ".join(
            f"{g['mean']:.2f} [{g['low']:.2f}, {g['high']:.2f}], below 0 in {g['below']}"
            for g in found["differences"][name]
        )
        print(f"{name}: {said} ({gaps})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", nargs="?", choices=("run", "table"), default="run")
    parser.add_argument(
        "--quick", action="store_true", help="two seeds, small clients, four rounds; nothing is written"
    )
    said = parser.parse_args()
    file = RESULTS / "fedprox_stragglers.json"
    if said.what == "table":
        show(json.loads(file.read_text()))
        return
    found = run(seeds=(1, 2), rounds=4, spread=0.5) if said.quick else run()
    found |= summary(found) | {"machine": platform.machine(), "threads": 1}
    if not said.quick:
        file.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    show(found)


if __name__ == "__main__":
    main()
