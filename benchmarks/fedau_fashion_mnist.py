"""Claim: when who participates depends on what data they hold, FedAU beats FedAvg, and memory beats both.

Wang & Ji's setting (ICLR 2024, arXiv 2306.03401) on Fashion-MNIST: 250 clients, their Dirichlet(0.1) partition, every
client counting the same, Bernoulli presence correlated with the labels (mean 0.1, floor 0.02), 5 local steps of 16
examples. FedAvg averages those present. The learning rate is the same for all, so nothing is tuned for anybody.
Compared are means over the evaluations of the last fifth of the rounds, paired by seed (all strategies share the
partition, the presence, the first model and the minibatches of a seed).

    python benchmarks/fedau_fashion_mnist.py logistic   # 5 seeds x 2000 rounds
    python benchmarks/fedau_fashion_mnist.py cnn        # 3 seeds x 200 rounds of the 211,690-parameter network

Fashion-MNIST is sought in --data-dir or FEDSIM_DATA. Results go to benchmarks/results/fedau_fashion_mnist_*.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
import tomllib
from pathlib import Path
from typing import Any

import torch
from common import interval

from fedsim import experiment
from fedsim.compare import Began, Failed, Finished, Measured, compare

COMMON = """
[task]
data = "fashion-mnist"
clients = 250
partition = { name = "fedau", alpha = 0.1 }
objective = "uniform"
model = "MODEL"

[participation]
name = "bernoulli"
probabilities = { name = "label-correlated", mean = 0.1, floor = 0.02, alpha = 0.1 }

[run]
threads = 1
eval-train = false
"""

LOGISTIC = """
[local]
lr = 0.005
steps = 5
batch = 16

[[strategy]]
name = "FedAvg"
weights = "equal"

[[strategy]]
name = "FedAU"

[[strategy]]
name = "FedAU"
label = "FedAU, K = 50"
cutoff = 50

[[strategy]]
name = "FedStale"

[[strategy]]
name = "FedVARP"

[[strategy]]
name = "MIFA"

[[strategy]]
name = "FedAvg"
label = "known probabilities"
weights = "known"
"""

CNN = """
[local]
lr = 0.05
steps = 5
batch = 16

[[strategy]]
name = "FedAvg"
weights = "equal"

[[strategy]]
name = "FedAU"
"""

RUNS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "logistic": (LOGISTIC, "logistic", {"rounds": 2000, "seeds": [1, 2, 3, 4, 5], "eval-every": 20}),
    "cnn": (CNN, "fedau-cnn", {"rounds": 200, "seeds": [1, 2, 3], "eval-every": 5}),
}
METRICS = ("test_loss", "test_accuracy", "worst_class_accuracy")
RESULTS = Path(__file__).parent / "results"


def setting(which: str, **run: Any) -> experiment.Experiment:
    """The experiment; `run` changes keys of [run]."""
    strategies, model, length = RUNS[which]
    document = tomllib.loads(COMMON.replace("MODEL", model) + strategies)
    document["run"] |= length | run
    return experiment.parse(document, name="fedau_fashion_mnist")


def run(which: str, **changes: Any) -> dict[str, Any]:
    """Runs it all and gives what is written to the results file."""
    plan = setting(which, **changes)
    finished: list[Finished] = []
    history: dict[tuple[str, int], dict[int, float]] = {}
    began = time.perf_counter()
    for event in compare(plan):
        if isinstance(event, Began):
            print(f"seed {event.seed}: {event.schedule.rates().sum():.1f} clients a round", flush=True)
        if isinstance(event, Failed):
            raise SystemExit(f"{event.strategy}, seed {event.seed}, round {event.round}: {event.reason}")
        if isinstance(event, Measured):
            history.setdefault((event.strategy, event.seed), {})[event.round] = round(event.metrics["test_loss"], 6)
        if isinstance(event, Finished):
            finished.append(event)
            print(f"  {event.strategy:22} {event.final_mean['test_loss']:.4f} {event.seconds:.0f} s", flush=True)
    runs = [
        {"strategy": r.strategy, "seed": r.seed, "rounds": r.rounds, "seconds": round(r.seconds, 1),
         "final_mean": {m: r.final_mean[m] for m in METRICS}, "test_loss": history[r.strategy, r.seed]}
        for r in finished
    ]  # fmt: skip
    versions = {"python": platform.python_version(), "torch": torch.__version__, "processor": platform.machine()}
    differences: dict[str, dict[str, dict[str, float]]] = {}
    for metric in METRICS:
        values = {(r.strategy, r.seed): r.final_mean[metric] for r in finished}
        differences[metric] = {
            entry.label: interval([values[entry.label, s] - values["FedAvg", s] for s in plan.run.seeds])
            for entry in plan.entries
        }
    return {
        "experiment": plan.document(), "runs": runs, "difference_to_FedAvg": differences,
        "versions": versions, "threads": torch.get_num_threads(), "seconds": round(time.perf_counter() - began, 1),
    }  # fmt: skip


def table(result: dict[str, Any]) -> str:
    """The result as a table in Markdown."""
    lines = [
        "| strategy | test loss | test accuracy | worst class | loss − FedAvg [95 %] |",
        "| --- | --- | --- | --- | --- |",
    ]
    for label, difference in result["difference_to_FedAvg"]["test_loss"].items():
        cells = [label]
        for metric in METRICS:
            values = [r["final_mean"][metric] for r in result["runs"] if r["strategy"] == label]
            cells.append(f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}")
        interval = "{mean:+.4f} [{low:+.4f}, {high:+.4f}]".format(**difference) if label != "FedAvg" else "–"
        lines.append("| " + " | ".join([*cells, interval]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("which", choices=RUNS)
    arguments.add_argument("--data-dir", help="where the folder fashion-mnist is; default: FEDSIM_DATA")
    given = arguments.parse_args()
    if given.data_dir:
        import os

        os.environ["FEDSIM_DATA"] = given.data_dir
    result = run(given.which)
    (RESULTS / f"fedau_fashion_mnist_{given.which}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))
