"""pfl-research's CIFAR-10 benchmark on one device: pfl-research itself and fedsim, and what a device's limits leave.

`cifar10`: pfl's published set-up (apple/pfl-research, benchmarks/image_classification/configs/baseline.yaml): 1000
users with 50 images each, dealt at random, 50 of them a round, one epoch in batches of 10, plain SGD at learning rate
0.1, moves averaged by user and added as they are, pixels normalised by channel, no augmentation, the CNN of 1,626,442
parameters with its dropout, Glorot-uniform weights, 1500 rounds = 375,000 steps. It differs in this: users of a round
are drawn without replacement; every epoch goes through a user's images in another order; and the images are whole,
while pfl's preprocessing reads the planes of a picture as if its pixels lay side by side.

Both start from the same model, and have the same users in every round with the same minibatches in the same order, all
examples on the device: only the dropout masks are each one's own, and `--no-dropout` leaves them out, to see that one
round of both is the same to rounding (`apart`, the distance between their models over how far ours has moved). Each is
a process of its own, pfl in an environment of its own (made as `fedsim bench` makes them: --envs); they take turns, so
that the device's clocks and whatever else runs meet both alike. Reported are seconds a round (median, after the first
few), the ratio pfl's / ours, the seconds of all rounds, and the test accuracy of both by the same code: after every so
many rounds (--evaluations in all), its mean over the last fifth (`late`), and the paired difference over the seeds.

`workloads`: W1 to W4 of `fedsim bench` with 1000 clients a round, ours alone. `roofline` is the time that the device
cannot go below, over the time taken: the larger of the floating point operations (matrix products and convolutions,
forwards and backwards) at its best measured matrix product, and of reading every client's model twice and writing it
once a step at the speed of a copy.

    python benchmarks/gpu_cifar10.py --device cuda --envs ENVS          # results/gpu_cifar10.json
    python benchmarks/gpu_cifar10.py --device cuda --envs ENVS --seeds 1,2,3,4,5
    python benchmarks/gpu_cifar10.py --device cpu --rounds 4 --cohort 4 --workloads W1 --out /tmp/tiny.json

Every seed and workload is written when it is over, and the command given again goes on with what is missing. CIFAR-10
(as published, or compressed with the codec beside it) and Fashion-MNIST are sought in --data-dir or FEDSIM_DATA. Not
run on a GPU yet: no numbers are claimed of one. NOTES.md in engine/ says what runs on a CPU showed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim import paired
from fedsim.bench import race, rivals, turns, workloads

if TYPE_CHECKING:
    from fedsim.bench.workloads import Workload
    from fedsim.data import Dataset

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "gpu_cifar10.json"
CIFAR = workloads.Workload("cifar10", "pfl-cnn", 1_626_442, 1000, 50, 50, 5, 0.1, 1500, batch=10, warm=5)


def first_model(model: str, shape: tuple[int, ...], seed: int) -> Any:
    """Where both begin [P]."""
    import torch

    from fedsim import models

    with models.seeded(seed):
        made = models.build(model, shape, 10)
    return torch.nn.utils.parameters_to_vector(made.parameters()).detach().numpy()


def channels(inputs: Any) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of every channel of images [N, C, ...] uint8, scaled to [0, 1]."""
    values = np.arange(256) / 255
    counts = np.array([np.bincount(inputs[:, c].reshape(-1), minlength=256) for c in range(inputs.shape[1])])
    shares = counts / counts.sum(1, keepdims=True)
    mean = shares @ values
    return mean.tolist(), np.sqrt(shares @ values**2 - mean**2).tolist()


def orders(rows: Any, cohorts: Any, work: Workload, seed: int) -> Any:
    """Which examples [T, k, steps * batch] make everyone's minibatches in every round: those that `simulate` draws."""
    import torch

    from fedsim import keyed
    from fedsim.engine.plan import minibatches

    size = rows.shape[1]
    who = torch.from_numpy(cohorts)
    keys = keyed.fold(seed, "client", torch.arange(len(who))[:, None], who).reshape(-1, 1)
    step = torch.arange(work.steps).expand(len(keys), -1)
    first = (who.reshape(-1, 1) * size).expand_as(step)
    places, *_ = minibatches(keys, torch.tensor(size), first, step, torch.ones_like(step, dtype=torch.bool), work.batch)
    return rows.reshape(-1)[places.numpy()].reshape(*cohorts.shape, -1)


def save(workload: Workload, dataset: Dataset, folder: Path, seed: int = 1) -> None:
    """A workload's folder, as fedsim/bench/drivers/child.py reads it; orders.npy beside it is what `orders` gives."""
    folder.mkdir(parents=True)
    inputs, targets = dataset.inputs.numpy(), dataset.targets.numpy()
    rng = np.random.default_rng(seed)
    n, held = workload.clients, workload.examples
    if n * held > len(targets):
        raise SystemExit(f"{workload.name} needs {n * held} images, and there are {len(targets)}; lower --users")
    if workload.present > n:
        raise SystemExit(
            f"{workload.name} has {n} users, of whom {workload.present} a round cannot come; lower --cohort"
        )
    rows = rng.permutation(len(targets))[: n * held].reshape(n, held)
    rounds = workload.warm + workload.rounds + 1  # pfl draws the next users before it tells that a round is over
    cohorts = np.stack([np.sort(rng.choice(n, workload.present, replace=False)) for _ in range(rounds)])
    np.save(folder / "orders.npy", orders(rows, cohorts, workload, seed))
    pictures = folder / "images.npz"
    np.savez(pictures, inputs=inputs, targets=targets)
    np.savez(folder / "world.npz", rows=rows, cohorts=cohorts, neighbours=np.zeros((n, 0), dtype=np.int64),
             first=first_model(workload.model, tuple(inputs.shape[1:]), seed))  # fmt: skip
    mean, std = channels(inputs)
    spec = {"workload": asdict(workload), "images": str(pictures), "mean": mean, "std": std}
    (folder / "spec.json").write_text(json.dumps(spec))


def accuracy(workload: Workload, dataset: Dataset, folder: Path, model: Any) -> float:
    """Of a model [P] on the test set."""
    import torch

    from fedsim import models

    spec = json.loads((folder / "spec.json").read_text())
    mean, std = (torch.tensor(spec[name]).view(-1, 1, 1) for name in ("mean", "std"))
    made = models.build(workload.model, tuple(dataset.inputs.shape[1:]), 10).eval()
    torch.nn.utils.vector_to_parameters(torch.from_numpy(np.asarray(model, np.float32)), made.parameters())
    hits = 0
    with torch.no_grad():
        for x, y in zip(dataset.test_inputs.split(500), dataset.test_targets.split(500), strict=True):
            hits += int((made((x.float() / 255 - mean) / std).argmax(1) == y).sum())
    return hits / len(dataset.test_targets)


def play(
    workload: Workload, folder: Path, contenders: dict[str, tuple[str, Path]], setting: dict[str, Any], looks: int = 1
) -> Iterator[tuple[int, dict[str, dict[str, Any]]]]:
    """Contenders (their Python and driver) by turns. `looks` times, evenly spread and last at the end: the rounds
    played, and of each the seconds of every round so far, its model [P] and what it tells of itself."""
    players: dict[str, turns.Player] = {}
    on_cpu = setting["device"] == "cpu"
    limits = dict.fromkeys(rivals.THREADS, "1") | {"CUDA_VISIBLE_DEVICES": ""} if on_cpu else {}
    rounds = workload.warm + workload.rounds
    due = {math.ceil(rounds * (i + 1) / looks) for i in range(looks)}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    try:
        for name, (python, driver) in contenders.items():
            environment = os.environ | limits
            environment.pop("PYTHONPATH", None)
            if python == sys.executable:
                environment["PYTHONPATH"] = str(Path(rivals.__file__).parents[2])
            command = [python, str(turns.CHILD), str(driver.absolute()), str(folder), json.dumps(setting)]
            players[name] = turns.Player(command, environment)
            players[name].answer()
        for t in range(1, rounds + 1):
            for name in list(players) if t % 2 else list(players)[::-1]:
                seconds[name] += players[name].tell("rounds 1")["seconds"]
            if t in due:
                found = {}
                for name, player in players.items():
                    player.tell(f"model {folder / name}.npy")
                    model = np.load(folder / f"{name}.npy")
                    found[name] = {"seconds": seconds[name], "model": model, "told": player.tell("tell")}
                yield t, found
    except turns.Gone as gone:
        raise SystemExit(f"{workload.name}: {name} ended: {gone}") from None
    finally:
        for player in players.values():
            player.close()


def cifar10(
    workload: Workload, folder: Path, dataset: Dataset, python: str | None, device: str, *, seed: int = 1,
    dropout: bool = True, looks: int = 1,
) -> dict[str, Any]:  # fmt: skip
    """fedsim, and pfl-research where its Python is given."""
    warm = min(workload.warm, workload.rounds // 2)
    workload = replace(workload, warm=warm, rounds=workload.rounds - warm)
    save(workload, dataset, folder, seed)
    contenders = {"fedsim": (sys.executable, HERE / "engine" / "cifar10_fedsim.py")}
    if python is not None:
        contenders["pfl"] = (python, HERE / "engine" / "cifar10_pfl.py")
    setting = {"device": device, "dropout": dropout, "seed": seed}
    first = np.load(folder / "world.npz")["first"]
    out: dict[str, Any] = {"seed": seed, "rounds": warm + workload.rounds, "parameters": len(first), "apart": {}}
    curves: dict[str, dict[int, float]] = {name: {} for name in contenders}
    for t, each in play(workload, folder, contenders, setting, looks):
        for name, found in each.items():
            curves[name][t] = accuracy(workload, dataset, folder, found["model"])
            late = [value for round, value in curves[name].items() if round > 0.8 * out["rounds"]]
            timed = found["seconds"][warm:] or found["seconds"]
            out[name] = {**found["told"], "seconds": statistics.median(timed), "seconds_of_all": sum(found["seconds"]),
                         "accuracy": curves[name], "late": statistics.fmean(late) if late else None}  # fmt: skip
        if python is not None:
            ours, theirs = each["fedsim"]["model"], each["pfl"]["model"]
            out["apart"][t] = float(np.linalg.norm(ours - theirs) / np.linalg.norm(ours - first))
            out["ratio"] = out["pfl"]["seconds"] / out["fedsim"]["seconds"]
        scores = ", ".join(f"{name} {1e3 * out[name]['seconds']:.1f} ms a round, accuracy {curves[name][t]:.4f}"
                           for name in contenders)  # fmt: skip
        print(f"cifar10, seed {seed}, round {t}: {scores}", file=sys.stderr)
    return out


def roofline(workload: Workload, folder: Path, dataset: Dataset, device: str) -> dict[str, Any]:
    """fedsim on a workload, and how near that is to what the device allows."""
    save(workload, dataset, folder)
    contenders = {"fedsim": (sys.executable, HERE / "engine" / "cifar10_fedsim.py")}
    ((_, each),) = play(workload, folder, contenders, {"device": device, "dropout": True, "seed": 1})
    told = each["fedsim"]["told"]
    seconds = statistics.median(each["fedsim"]["seconds"][workload.warm :])
    limits = {"arithmetic": told["flop_a_round"] / told["peak_flop_per_second"],
              "memory": told["bytes_a_round"] / told["copy_bytes_per_second"]}  # fmt: skip
    return {"workload": asdict(workload), **told, "seconds": seconds, "limits": limits,
            "roofline": max(limits.values()) / seconds}  # fmt: skip


def agreement(runs: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Late accuracies of both over the seeds, and ours minus pfl's with its 95 % interval; None where pfl never ran."""
    late = {name: {run["seed"]: run[name]["late"] for run in runs if "pfl" in run} for name in ("fedsim", "pfl")}
    if not late["pfl"]:
        return None
    found = paired.difference("fedsim", "pfl", "test_accuracy", late["fedsim"], late["pfl"])
    return {**{name: statistics.fmean(values.values()) for name, values in late.items()}, "seeds": found.seeds,
            "difference": found.mean, "low": found.low, "high": found.high, "clear": found.clear}  # fmt: skip


def before(out: Path, setting: dict[str, Any]) -> dict[str, Any]:
    """What an earlier call has written with the same setting; nothing where there is no file."""
    given = out.parent.absolute()
    if not given.is_dir():
        raise SystemExit(f"--out: there is no folder {given}; make it first")
    if not out.exists():
        return {"setting": setting, "cifar10": [], "agreement": None, "workloads": []}
    try:
        old: dict[str, Any] = json.loads(out.read_text())
        changed = sorted(name for name in setting if old["setting"][name] != setting[name])
    except (ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"{out} is not what this script writes ({error!r}); choose another --out") from error
    if changed:
        said = ", ".join(f"{name} {old['setting'][name]!r} instead of {setting[name]!r}" for name in changed)
        raise SystemExit(f"{out} was made with {said}; choose another --out")
    return old


def device_name(device: str) -> str:
    """What the results are of. Ends the program where torch finds no such device."""
    if device == "cpu":
        return "cpu, one thread"
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("torch finds no CUDA device; --device cpu runs all of it at a small size")
    return torch.cuda.get_device_name()


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--envs", type=Path, help="folder with pfl's environment, or for it; left out: fedsim alone")
    parser.add_argument("--data-dir", type=Path, help="where the images are; left out: FEDSIM_DATA")
    parser.add_argument("--seeds", default="1", help="of cifar10, as in 1,2,3; '' for none")
    parser.add_argument("--rounds", type=int, default=CIFAR.rounds, help=f"of cifar10; {CIFAR.rounds} are pfl's")
    parser.add_argument("--users", type=int, default=CIFAR.clients)
    parser.add_argument("--cohort", type=int, default=CIFAR.present, help="users in a round")
    parser.add_argument("--evaluations", type=int, default=30, help="of both models, evenly spread over the rounds")
    parser.add_argument("--no-dropout", action="store_true", help="so that both compute the same, to rounding")
    parser.add_argument("--workloads", default="W1,W2,W3,W4", help="'' for none")
    parser.add_argument("--present", type=int, default=1000, help="clients a round of the workloads")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    for name in ("rounds", "users", "cohort", "evaluations", "present"):
        if getattr(given, name) < 1:
            parser.error(f"--{name} must be 1 or more, got {getattr(given, name)}")
    try:
        given.seeds = [int(part) for part in given.seeds.split(",") if part]
        given.chosen = workloads.chosen([part for part in given.workloads.split(",") if part])
    except ValueError as error:
        parser.error(str(error))
    for each in given.chosen:
        if each.gossip:
            parser.error(f"--workloads: {each.name} has no server; choose of W1 to W4")
    return given


def main() -> None:
    given = arguments()
    from cifar10 import published  # beside this script

    from fedsim import data, files
    from fedsim.data import cifar

    setting = {"device": device_name(given.device), "users": given.users, "cohort": given.cohort,
               "rounds": given.rounds, "dropout": not given.no_dropout, "present": given.present}  # fmt: skip
    result = before(given.out, setting) | {
        "command": shlex.join(["python", "benchmarks/gpu_cifar10.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).date().isoformat(), "machine": race.machine(),
    }  # fmt: skip
    python = None
    if given.envs is not None and given.seeds:
        (python,) = rivals.environments(rivals.RIVALS["pfl"], given.envs, lambda text: print(text, file=sys.stderr))
    done = {run["seed"] for run in result["cifar10"] if python is None or "pfl" in run}
    seeds = [seed for seed in given.seeds if seed not in done]
    dataset = None
    if seeds:
        with published(data.directory(given.data_dir), len(cifar.TRAIN)) as folder:
            dataset = cifar.CIFAR10().load(folder)
    for seed in seeds:
        work = replace(CIFAR, clients=given.users, present=given.cohort, rounds=given.rounds)
        with tempfile.TemporaryDirectory() as place:
            found = cifar10(work, Path(place) / "world", dataset, python, given.device, seed=seed,
                            dropout=not given.no_dropout, looks=given.evaluations)  # fmt: skip
        result["cifar10"] = [*(run for run in result["cifar10"] if run["seed"] != seed), found]
        result["agreement"] = agreement(result["cifar10"])
        files.write_json(given.out, result)
    if result["agreement"]:
        said = result["agreement"]
        interval = f" [{said['low']:+.4f}, {said['high']:+.4f}]" if len(said["seeds"]) > 1 else ""
        print(f"late accuracy: fedsim {said['fedsim']:.4f}, pfl {said['pfl']:.4f}, difference {said['difference']:+.4f}"
              f"{interval} over {len(said['seeds'])} seeds", file=sys.stderr)  # fmt: skip
    for each in given.chosen:
        if each.name in {found["workload"]["name"] for found in result["workloads"]}:
            continue
        each = replace(each, present=given.present, rounds=min(each.rounds, given.rounds))
        with tempfile.TemporaryDirectory() as place:
            images = data.load("fashion-mnist", given.data_dir)
            found = roofline(each, Path(place) / "world", images, given.device)
        result["workloads"].append(found)
        files.write_json(given.out, result)
        print(f"{each.name} {1e3 * found['seconds']:8.1f} ms a round of {given.present},"
              f" {100 * found['roofline']:.1f} % of the roofline", file=sys.stderr)  # fmt: skip


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError, RuntimeError) as error:
        raise SystemExit(f"{Path(__file__).name}: {error}") from error
