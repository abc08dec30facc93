"""pfl-research's CIFAR-10 benchmark on one device: pfl-research itself and fedsim, and what a device's limits leave.

`cifar10`: 1000 users with 50 images each, dealt at random, 50 of them a round, one epoch in batches of 10, plain SGD at
learning rate 0.1, the CNN of 1,626,442 parameters with its dropout, 1500 rounds = 375,000 steps. Both start from the
same model and have the same users in every round, with all examples on the device. Each is a process of its own, pfl in
an environment of its own (made as `fedsim bench` makes them: --envs); they take turns, so that the device's clocks and
whatever else runs meet both alike. Reported are seconds a round (median, after --warm rounds), the ratio pfl's / ours,
the seconds of all rounds, and the test accuracy of both models at the end by the same code.

`workloads`: W1 to W4 of `fedsim bench` with 1000 clients a round, ours alone. `roofline` is the time that the device
cannot go below, over the time taken: the larger of the floating point operations (matrix products and convolutions,
forwards and backwards) at its best measured matrix product, and of reading every client's model twice and writing it
once a step at the speed of a copy.

    python benchmarks/gpu_cifar10.py --device cuda --envs ENVS          # results/gpu_cifar10.json
    python benchmarks/gpu_cifar10.py --device cpu --rounds 4 --cohort 4 --workloads W1 --out /tmp/tiny.json

CIFAR-10 and Fashion-MNIST are sought in FEDSIM_DATA. Not run on a GPU yet: no numbers are claimed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.bench import race, rivals, turns, workloads

if TYPE_CHECKING:
    from fedsim.bench.workloads import Workload
    from fedsim.data import Dataset

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "gpu_cifar10.json"
SEED = 1
CIFAR = workloads.Workload("cifar10", "pfl-cnn", 1_626_442, 1000, 50, 50, 5, 0.1, 1500, batch=10, warm=5)


def first_model(model: str, shape: tuple[int, ...]) -> Any:
    """Where both begin [P]."""
    import torch

    from fedsim import models

    with models.seeded(SEED):
        made = models.build(model, shape, 10)
    return torch.nn.utils.parameters_to_vector(made.parameters()).detach().numpy()


def save(workload: Workload, dataset: Dataset, folder: Path) -> None:
    """A workload's folder, as fedsim/bench/drivers/child.py reads it. Statistics by channel go as one number each: the
    mean and standard deviation over all pixels."""
    folder.mkdir(parents=True)
    inputs, targets = dataset.inputs.numpy(), dataset.targets.numpy()
    rng = np.random.default_rng(SEED)
    n, held = workload.clients, workload.examples
    if n * held > len(targets):
        raise SystemExit(f"{workload.name} needs {n * held} images, and there are {len(targets)}; lower --users")
    rows = rng.permutation(len(targets))[: n * held].reshape(n, held)
    rounds = workload.warm + workload.rounds + 1  # pfl draws the next users before it tells that a round is over
    cohorts = np.stack([np.sort(rng.choice(n, workload.present, replace=False)) for _ in range(rounds)])
    images = folder / "images.npz"
    np.savez(images, inputs=inputs, targets=targets)
    np.savez(folder / "world.npz", rows=rows, cohorts=cohorts, neighbours=np.zeros((n, 0), dtype=np.int64),
             first=first_model(workload.model, tuple(inputs.shape[1:])))  # fmt: skip
    scale = inputs[:10_000].astype(np.float64) / 255
    spec = {"workload": asdict(workload), "images": str(images), "mean": scale.mean(), "std": scale.std()}
    (folder / "spec.json").write_text(json.dumps(spec))


def accuracy(workload: Workload, dataset: Dataset, folder: Path, model: Any) -> float:
    """Of a model [P] on the test set."""
    import torch

    from fedsim import models

    spec = json.loads((folder / "spec.json").read_text())
    made = models.build(workload.model, tuple(dataset.inputs.shape[1:]), 10).eval()
    torch.nn.utils.vector_to_parameters(torch.from_numpy(np.asarray(model, np.float32)), made.parameters())
    hits = 0
    with torch.no_grad():
        for x, y in zip(dataset.test_inputs.split(500), dataset.test_targets.split(500), strict=True):
            hits += int((made((x.float() / 255 - spec["mean"]) / spec["std"]).argmax(1) == y).sum())
    return hits / len(dataset.test_targets)


def play(workload: Workload, folder: Path, contenders: dict[str, tuple[str, Path]], device: str) -> dict[str, Any]:
    """Contenders (their Python and driver) by turns: seconds of every round after the warm ones, what they tell, and
    their last models."""
    found: dict[str, Any] = {}
    players: dict[str, turns.Player] = {}
    threads = dict.fromkeys(rivals.THREADS, "1") if device == "cpu" else {}
    visible = {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
    try:
        for name, (python, driver) in contenders.items():
            environment = os.environ | threads | visible
            environment.pop("PYTHONPATH", None)
            if python == sys.executable:
                environment["PYTHONPATH"] = str(Path(rivals.__file__).parents[2])
            command = [python, str(turns.CHILD), str(driver), str(folder), json.dumps({"device": device})]
            players[name] = turns.Player(command, environment)
            players[name].answer()
            found[name] = {"seconds": []}
        for t in range(workload.warm + workload.rounds):
            for name in list(players) if t % 2 else list(players)[::-1]:
                told = players[name].tell("round")
                if t >= workload.warm:
                    found[name]["seconds"].append(told["seconds"])
        for name, player in players.items():
            player.tell(f"model {folder / name}.npy")
            found[name] |= {**player.tell("tell"), "model": np.load(folder / f"{name}.npy")}
    finally:
        for player in players.values():
            player.close()
    return found


def cifar10(workload: Workload, folder: Path, dataset: Dataset, envs: Path | None, device: str) -> dict[str, Any]:
    """pfl-research and fedsim; without `envs` fedsim alone."""
    save(workload, dataset, folder)
    contenders = {"fedsim": (sys.executable, HERE / "engine" / "cifar10_fedsim.py")}
    if envs is not None:
        (python,) = rivals.environments(rivals.RIVALS["pfl"], envs, lambda text: print(text, file=sys.stderr))
        contenders["pfl"] = (python, HERE / "engine" / "cifar10_pfl.py")
    out: dict[str, Any] = {"workload": asdict(workload), "parameters": 0}
    for name, told in play(workload, folder, contenders, device).items():
        model, seconds = told.pop("model"), told.pop("seconds")
        out["parameters"] = len(model)
        out[name] = {**told, "seconds": statistics.median(seconds), "seconds_of_all": sum(seconds),
                     "accuracy": accuracy(workload, dataset, folder, model)}  # fmt: skip
    if "pfl" in out:
        out["ratio"] = out["pfl"]["seconds"] / out["fedsim"]["seconds"]
    return out


def roofline(workload: Workload, folder: Path, dataset: Dataset, device: str) -> dict[str, Any]:
    """fedsim on a workload, and how near that is to what the device allows."""
    save(workload, dataset, folder)
    contenders = {"fedsim": (sys.executable, HERE / "engine" / "cifar10_fedsim.py")}
    told = play(workload, folder, contenders, device)["fedsim"]
    told.pop("model")
    seconds = statistics.median(told.pop("seconds"))
    limits = {"arithmetic": told["flop_a_round"] / told["peak_flop_per_second"],
              "memory": told["bytes_a_round"] / told["copy_bytes_per_second"]}  # fmt: skip
    return {"workload": asdict(workload), **told, "seconds": seconds, "limits": limits,
            "roofline": max(limits.values()) / seconds}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--envs", type=Path, help="folder with pfl's environment, or for it; left out: fedsim alone")
    parser.add_argument("--rounds", type=int, default=CIFAR.rounds)
    parser.add_argument("--users", type=int, default=CIFAR.clients)
    parser.add_argument("--cohort", type=int, default=CIFAR.present)
    parser.add_argument("--workloads", default="W1,W2,W3,W4", help="'' for none")
    parser.add_argument("--present", type=int, default=1000, help="clients a round of the workloads")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    from fedsim import data
    from fedsim.data import cifar

    name = "cpu"
    if given.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise SystemExit("torch finds no CUDA device; --device cpu runs all of it at a small size")
        name = torch.cuda.get_device_name()
    result: dict[str, Any] = {
        "command": " ".join(["python benchmarks/gpu_cifar10.py", *sys.argv[1:]]), "device": name,
        "date": datetime.now(UTC).date().isoformat(), "machine": race.machine(), "cifar10": None, "workloads": [],
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as place:
        workload = replace(CIFAR, clients=given.users, present=given.cohort, rounds=given.rounds)
        dataset = cifar.CIFAR10().load()
        found = result["cifar10"] = cifar10(workload, Path(place) / "cifar10", dataset, given.envs, given.device)
        for who in ("fedsim", "pfl"):
            if who in found:
                print(f"cifar10 {who:7} {1e3 * found[who]['seconds']:8.1f} ms a round,"
                      f" accuracy {found[who]['accuracy']:.4f}", file=sys.stderr)  # fmt: skip
        for each in workloads.chosen([part for part in given.workloads.split(",") if part]):
            each = replace(each, present=given.present, rounds=min(each.rounds, given.rounds))
            found = roofline(each, Path(place) / each.name, data.load("fashion-mnist"), given.device)
            result["workloads"].append(found)
            print(f"{each.name} {1e3 * found['seconds']:8.1f} ms a round of {given.present},"
                  f" {100 * found['roofline']:.1f} % of the roofline", file=sys.stderr)  # fmt: skip
    given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
