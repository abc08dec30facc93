"""Seconds per round of gossip against the number of nodes: our loop, plain PyTorch node by node, and gossipy.

n nodes on a random 4-regular graph, logistic regression (7,850 parameters), each with 100 of Fashion-MNIST's images
(beyond 600 nodes an image is with several). A round is 5 local steps of 20 examples, then everybody averages with its
four neighbours: D-PSGD, adapt then combine, Metropolis weights. No evaluation.

    fedsim   `simulate` with DPSGD, the engine left to choose
    torch    an nn.Linear and an optimiser per node, state dicts averaged: `torch_loop` below. The same work: fed with
             the same minibatches it gives the same models (tests/test_gossip_benchmarks.py)
    gossipy  gossipy-dfl in an environment of its own. It has no averaging with all neighbours; the nearest is its plain
             push: in a round every node sends its model to one random neighbour, and who receives one averages the two,
             half and half, and trains for an epoch, the same 5 steps. A node trains as often as it hears, once a round
             on average; n models travel instead of 4 n. It imports torchvision without asking for it to be installed,
             and uses it to fetch data sets only: an empty module stands in, so that all have the same torch

Each case is a process with one thread that plays a round when told to; they take turns, round by round, so that other
work on the machine meets them alike. Given are the median CPU and wall seconds of a round after one to warm up, and the
median of the ratios of neighbours in time. Peak memory is getrusage's of the process, of which Python and torch, before
there is a model or an image, are `import_mb`. At n nodes a model each takes n · 31.4 kB.

`mixing` is the averaging within our round: making the round's matrix and applying it, beside copying the models (into
memory that is there already, and into new memory). Its bytes are counted once as if every neighbour's model were read
from memory, (n + 4 n) rows in and n out, and once as if each were read once, n in and n out.

`run` is `fedsim run benchmarks/gossip_10000.toml`, start, evaluation of 20 nodes, ledger and figures included.

    python benchmarks/gossip_scale.py                            # makes gossipy's environment in a temporary folder
    python benchmarks/gossip_scale.py --gossipy ENV/bin/python   # or takes one that is there
    python benchmarks/gossip_scale.py --nodes 1000 --no-run      # this again; the rest of the results stays

Two cores shared with other work (load 5 to 11), torch 2.13.0+cpu:

            CPU seconds a round     over ours (CPU)    peak MB                   mixing: share of a round,
    nodes   fedsim  torch  gossipy   torch  gossipy   fedsim  torch  gossipy   over a copy to new memory
      100    0.084  0.077    0.117    0.93     1.39      431    668      855     0.5 %    4.5x
      300    0.262  0.251    0.390    0.94     1.48      482    668      943     0.9 %    3.2x
     1000    0.748  0.800    1.300    1.10     1.70      628    696     1254     0.8 %    2.7x
     3000    2.336  2.524    4.248    1.08     1.82     1077    933     2153     2.5 %    1.4x
    10000    7.739  8.022   12.664    1.04     1.64     2637   1773     5263     2.5 %    1.4x

On one core the lanes of one program are as fast as a loop over nodes, no faster; they take less memory up to a thousand
nodes, more beyond (starts, moves and what was sent are tables of all nodes). Averaging hardly counts beside training:
from 3000 nodes on it is mostly the system handing out new memory for the result, as a copy to new memory is too.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # the parent stays small: a child's peak begins at its parent's. gossipy's environment has no fedsim
    from torch import Tensor

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "gossip_scale.json"
RUN = HERE / "gossip_10000.toml"
CASES = ("fedsim", "torch", "gossipy")
ROUNDS = {100: 7, 300: 5, 1000: 4, 3000: 3, 10_000: 2}  # how many are timed
DEGREE, EXAMPLES, STEPS, BATCH, LR = 4, 100, 5, 20, 0.05
MEAN, STD = 0.2860, 0.3530
DIFFERS = (
    "plain push: a node sends to one random neighbour instead of four, averages half and half with what it gets, and "
    "trains 5 steps for every model received (once a round on average); rounds of one time step, so that all send, "
    "then all receive; no evaluation"
)


def peak() -> float:
    """The most memory this process has held so far, in MB."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most * (1e-6 if sys.platform == "darwin" else 1.024e-3)  # bytes there, kibibytes on Linux


def rows_of(n: int) -> np.ndarray[Any, Any]:
    """The images [n, 100] that each node holds."""
    return np.arange(n * EXAMPLES).reshape(n, EXAMPLES) % 60_000


def graph_of(n: int) -> Any:
    """Who is joined."""
    import networkx as nx

    return nx.random_regular_graph(DEGREE, n, seed=0)


# The cases: each a function that plays a round, and one that says how well the nodes' mean model does -----------------

Case = tuple[Callable[[], Any], Callable[[], "Tensor"]]


def task_of(n: int, world: dict[str, Any]) -> Any:
    """Our task: images as bytes, normalised where they are used."""
    import torch

    import fedsim
    from fedsim.data import Dataset
    from fedsim.data.partition import Parts

    inputs, targets = torch.from_numpy(world["inputs"]).view(-1, 1, 28, 28), torch.from_numpy(world["targets"])
    data = Dataset("fashion-mnist", inputs, targets, inputs[:100], targets[:100], 10, MEAN, STD)
    rows = rows_of(n).reshape(-1)
    parts = Parts(rows, np.arange(0, len(rows), EXAMPLES), np.full(n, EXAMPLES), drawn=True)
    return fedsim.make_task(data, parts, torch.nn.Sequential(torch.nn.Flatten(), first_model()))


def first_model() -> Any:
    """Where every node starts."""
    import torch

    torch.manual_seed(0)
    return torch.nn.Linear(784, 10)


def fedsim_loop(n: int, world: dict[str, Any]) -> Case:
    """Ours."""
    import fedsim
    from fedsim.mixing import Metropolis
    from fedsim.participation import Everyone
    from fedsim.strategies import DPSGD

    strategy = DPSGD(Metropolis(graph_of(n)), order="atc")
    local = fedsim.LocalSGD(lr=LR, steps=STEPS, batch=BATCH)
    last: list[Any] = []

    def steps() -> Iterator[Any]:
        for step in fedsim.simulate(task_of(n, world), strategy, Everyone().draw(n, 1000, 0), local):
            last[:] = [step]
            yield step

    turns = steps()
    return (lambda: next(turns)), (lambda: last[0].model)


def normalised(world: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """All images [N, 784] and labels as a user of plain torch has them."""
    import torch

    return (torch.from_numpy(world["inputs"]).float() / 255 - MEAN) / STD, torch.from_numpy(world["targets"])


def torch_loop(n: int, world: dict[str, Any], order: Callable[[int, int], Tensor] | None = None) -> Case:
    """Plain PyTorch, node by node. `order(i, t)` [100] is how node i goes through its examples in round t."""
    import torch
    from torch import nn

    inputs, targets = normalised(world)
    rows, graph, first = torch.from_numpy(rows_of(n)), graph_of(n), first_model().state_dict()
    models = [nn.Linear(784, 10) for _ in range(n)]
    for model in models:
        model.load_state_dict(first)
    optimisers = [torch.optim.SGD(model.parameters(), lr=LR) for model in models]
    t = 0

    def round() -> None:
        nonlocal t
        for i, (model, optimiser) in enumerate(zip(models, optimisers, strict=True)):
            shuffled = rows[i][torch.randperm(EXAMPLES) if order is None else order(i, t)]
            for batch in shuffled.split(BATCH):
                optimiser.zero_grad()
                loss = nn.functional.cross_entropy(model(inputs[batch]), targets[batch])
                loss.backward()
                optimiser.step()
        trained = [{name: value.clone() for name, value in model.state_dict().items()} for model in models]
        for i, model in enumerate(models):
            near = [trained[i], *(trained[j] for j in graph[i])]
            model.load_state_dict({name: torch.stack([each[name] for each in near]).mean(0) for name in near[0]})
        t += 1

    return round, lambda: torch.stack([torch.cat([p.detach().flatten() for p in m.parameters()]) for m in models])


def gossipy_loop(n: int, world: dict[str, Any]) -> Case:
    """gossipy's own simulator, a round at a time. Its nodes hold a copy of their images each."""
    import networkx as nx
    import torch

    sys.modules["torchvision"] = types.ModuleType("torchvision")
    from gossipy import set_seed
    from gossipy.core import AntiEntropyProtocol, CreateModelMode, StaticP2PNetwork
    from gossipy.data import DataDispatcher
    from gossipy.data.handler import ClassificationDataHandler
    from gossipy.model.handler import TorchModelHandler
    from gossipy.model.nn import LogisticRegression
    from gossipy.node import GossipNode
    from gossipy.simul import GossipSimulator
    from scipy.sparse import csr_matrix

    set_seed(0)
    inputs, targets = normalised(world)
    dispatcher = DataDispatcher(
        ClassificationDataHandler(inputs, targets, test_size=0), n, eval_on_user=False, auto_assign=False
    )
    dispatcher.set_assignments(rows_of(n).tolist(), None)
    net = LogisticRegression(784, 10)
    net.model.load_state_dict(first_model().state_dict())
    handler = TorchModelHandler(
        net, torch.optim.SGD, {"lr": LR}, torch.nn.functional.cross_entropy, local_epochs=1, batch_size=BATCH,
        create_model_mode=CreateModelMode.MERGE_UPDATE,
    )  # fmt: skip
    network = StaticP2PNetwork(n, csr_matrix(nx.to_scipy_sparse_array(graph_of(n), nodelist=range(n))))
    nodes = GossipNode.generate(dispatcher, network, handler, round_len=1, sync=True)
    simulator = GossipSimulator(nodes, dispatcher, delta=1, protocol=AntiEntropyProtocol.PUSH)
    simulator.init_nodes()
    models = [nodes[i].model_handler.model for i in range(n)]
    flat = [lambda m=m: torch.cat([p.detach().flatten() for p in m.parameters()]) for m in models]
    return (lambda: simulator.start(n_rounds=1)), lambda: torch.stack([one() for one in flat])


LOOPS: dict[str, Callable[[int, dict[str, Any]], Case]] = {
    "fedsim": fedsim_loop,
    "torch": torch_loop,
    "gossipy": gossipy_loop,
}


def accuracy(models: Tensor, world: dict[str, Any]) -> float:
    """Test accuracy of the nodes' mean model: that all of them learn."""
    import torch

    mean = models.mean(0)
    images = (torch.from_numpy(world["test_inputs"]).float() / 255 - MEAN) / STD
    scores = images @ mean[:7840].view(10, 784).T + mean[7840:]
    return float((scores.argmax(1).numpy() == world["test_targets"]).mean())


def mixing(n: int, world: dict[str, Any], repeats: int = 5) -> dict[str, Any]:
    """What averaging takes, in CPU seconds."""
    import torch

    from fedsim.mixing import Metropolis

    matrix, who = Metropolis(graph_of(n)), torch.arange(n)
    x, into = torch.randn(n, 7850, generator=torch.Generator().manual_seed(0)), torch.zeros(n, 7850)
    edges = matrix(0, who)
    todo: dict[str, Callable[[], Any]] = {
        "edges": lambda: matrix(0, who),
        "apply": lambda: edges.apply(x),
        "copy": lambda: into.copy_(x),
        "copy_to_new": x.clone,
    }
    times: dict[str, list[float]] = {name: [] for name in todo}
    for again in range(repeats + 1):
        for name, work in todo.items():
            cpu = time.process_time()
            work()
            if again:  # the first warms up
                times[name].append(time.process_time() - cpu)
    seconds = {name: statistics.median(values) for name, values in times.items()}
    row = x.element_size() * x.shape[1]
    return {
        "cpu_s": seconds,
        "apply_over_copy": seconds["apply"] / seconds["copy"],
        "apply_over_copy_to_new": seconds["apply"] / seconds["copy_to_new"],
        "bytes_per_s": {
            "apply, every neighbour read": (2 * n + len(edges.i)) * row / seconds["apply"],
            "apply, each read once": 2 * n * row / seconds["apply"],
            "copy": 2 * n * row / seconds["copy"],
            "copy_to_new": 2 * n * row / seconds["copy_to_new"],
        },
    }


# Processes -----------------------------------------------------------------------------------------------------------


def child(case: str, n: int, file: Path) -> None:
    """A case: says what it has when it is ready, then does what the lines of standard input say, and answers."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # gossipy prints a progress bar

    def say(**answer: Any) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    import torch

    torch.set_num_threads(1)
    imported = peak()
    with np.load(file) as arrays:
        world = dict(arrays)
    play, models = LOOPS[case](n, world)
    say(import_mb=imported, torch=torch.__version__, numpy=np.__version__)
    for line in sys.stdin:
        if line.strip() == "round":
            wall, cpu = time.perf_counter(), time.process_time()
            play()
            say(cpu=time.process_time() - cpu, wall=time.perf_counter() - wall)
        elif line.strip() == "end":
            say(peak_mb=peak(), accuracy=accuracy(models(), world))
        elif line.strip() == "mixing":
            say(**mixing(n, world))


class Player:
    """A case in its own process."""

    def __init__(self, python: str, case: str, n: int, file: Path) -> None:
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (`close` does)
        self.process = subprocess.Popen(
            [python, __file__, "--case", case, "--nodes", str(n), "--world", str(file)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        self.began = self.answer()

    def answer(self) -> dict[str, Any]:
        """The next one. Raises RuntimeError with the end of what it said if it is gone."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.log.seek(0)
            said = self.log.read().strip().splitlines() or [""]
            raise RuntimeError(f"exit {self.process.returncode}: {said[-1]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def tell(self, what: str) -> dict[str, Any]:
        """Has it do something."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # gone: `answer` says so
            self.process.stdin.write(what + "\n")
            self.process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        """Ends it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        self.log.close()


def write_world(file: Path) -> None:
    """Fashion-MNIST as arrays that need nothing of ours to read."""
    from fedsim import data

    found = data.load("fashion-mnist")
    np.savez(
        file, inputs=found.inputs.flatten(1).numpy(), targets=found.targets.numpy(),
        test_inputs=found.test_inputs.flatten(1).numpy(), test_targets=found.test_targets.numpy(),
    )  # fmt: skip


def race(n: int, rounds: int, file: Path, pythons: dict[str, str], say: Callable[[str], None]) -> dict[str, Any]:
    """All cases with so many nodes, in turns."""
    players: dict[str, Player] = {}
    failed: dict[str, str] = {}
    for case, python in pythons.items():
        try:
            players[case] = Player(python, case, n, file)
        except RuntimeError as error:
            failed[case] = str(error)
    cpu: dict[str, list[float]] = {case: [] for case in players}
    wall: dict[str, list[float]] = {case: [] for case in players}
    loads = []
    for t in range(rounds + 1):
        order = list(players)
        shift = t % len(order)
        for case in order[shift:] + order[:shift]:
            try:
                took = players[case].tell("round")
            except RuntimeError as error:  # out of memory, say: the others go on
                failed[case] = f"round {t}: {error}"
                del players[case], cpu[case], wall[case]
                continue
            if t:  # the first warms up
                cpu[case].append(took["cpu"])
                wall[case].append(took["wall"])
            say(f"{n} nodes, round {t}, {case}: {took['cpu']:.3f} s CPU, {took['wall']:.3f} s wall")
        loads.append(os.getloadavg()[0])
    found: dict[str, Any] = {"nodes": n, "rounds": rounds, "load": loads, "failed": failed, "cases": {}}
    mixed = players["fedsim"].tell("mixing")
    for case, player in players.items():
        ended = player.tell("end")
        player.close()
        found["cases"][case] = {
            "cpu_s": statistics.median(cpu[case]),
            "wall_s": statistics.median(wall[case]),
            "import_mb": player.began["import_mb"],
            **ended,
            "each": {"cpu_s": cpu[case], "wall_s": wall[case]},
        }
        if case != "fedsim":
            found["cases"][case] |= {"over_fedsim_cpu": ratio(cpu, case), "over_fedsim_wall": ratio(wall, case)}
    ours = found["cases"]["fedsim"]["cpu_s"]
    seconds = mixed["cpu_s"]
    found["mixing"] = {**mixed, "share_of_a_round": (seconds["edges"] + seconds["apply"]) / ours}
    found["versions"] = {
        case: {key: player.began[key] for key in ("torch", "numpy")} for case, player in players.items()
    }
    return found


def ratio(times: dict[str, list[float]], case: str) -> float:
    """The median of what its rounds took of our rounds beside them."""
    return statistics.median(b / a for a, b in zip(times["fedsim"], times[case], strict=True))


@contextlib.contextmanager
def environment(given: str | None, say: Callable[[str], None]) -> Iterator[tuple[str | None, str]]:
    """A Python that has gossipy, and its version and what becomes of `import gossipy.simul`; or None, and why not."""
    ask = (
        "import importlib.metadata as m, sys; version = m.version('gossipy-dfl')\n"
        "try: import gossipy.simul\n"
        "except Exception as error: print(version, repr(error), sep='; as installed ')\n"
        "else: print(version)"
    )
    folder = tempfile.mkdtemp()
    try:
        python = given or str(Path(folder) / "bin" / "python")
        if given is None:
            say("making gossipy's environment")
            install = [python, "-m", "pip", "install", "-q", "-c", str(HERE.parent / "constraints.txt"), "gossipy-dfl"]
            for command in ([sys.executable, "-m", "venv", folder], install):
                told = subprocess.run(command, capture_output=True, text=True, check=False)
                if told.returncode:
                    yield None, (told.stderr.strip().splitlines() or ["pip failed"])[-1]
                    return
        told = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=False)
        if told.returncode:
            yield None, (told.stderr.strip().splitlines() or ["it does not start"])[-1]
            return
        yield python, told.stdout.strip().splitlines()[-1]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def whole_run(say: Callable[[str], None]) -> dict[str, Any]:
    """`fedsim run benchmarks/gossip_10000.toml`: seconds and peak memory of the process."""
    with tempfile.TemporaryDirectory() as folder:
        code = "import sys; from fedsim.cli import main; sys.exit(main())"
        wall, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        watch = (
            "import json, resource, subprocess, sys\n"
            "done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL)\n"
            "print(json.dumps([done.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss]))"
        )
        command = [sys.executable, "-c", code, "run", str(RUN), "--out", str(Path(folder) / "run")]
        told = subprocess.run([sys.executable, "-c", watch, *command], capture_output=True, text=True, check=True)
        code_, most = json.loads(told.stdout)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if code_:
            raise SystemExit(f"fedsim run failed:\n{told.stderr}")
        ended = json.loads(next(Path(folder).rglob("result.json")).read_text())
    found = {
        "wall_s": time.perf_counter() - wall,
        "cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "peak_mb": most * (1e-6 if sys.platform == "darwin" else 1.024e-3),
        "runs": [
            {key: run[key] for key in ("strategy", "seed", "rounds", "seconds", "final")} for run in ended["runs"]
        ],
    }
    say(f"fedsim run: {found['wall_s']:.0f} s wall, {found['cpu_s']:.0f} s CPU, peak {found['peak_mb']:.0f} MB")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--nodes", type=int, nargs="*", default=list(ROUNDS))
    parser.add_argument("--gossipy", metavar="PYTHON", help="of an environment with gossipy-dfl; left out: makes one")
    parser.add_argument("--case", choices=CASES, help="only this one, in this process, told what to do line by line")
    parser.add_argument("--world", type=Path, help="with --case: the images")
    parser.add_argument("--write-world", type=Path, help="writes the images, in this process")
    parser.add_argument("--no-run", action="store_true", help="leaves out gossip_10000.toml")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    if given.write_world:
        write_world(given.write_world)
        return
    if given.case:
        child(given.case, given.nodes[0], given.world)
        return

    from common import machine

    def say(line: str) -> None:
        sys.stderr.write(line + "\n")

    result: dict[str, Any] = json.loads(given.out.read_text()) if given.out.exists() else {"sizes": []}
    result |= {
        "command": "python benchmarks/gossip_scale.py",
        "machine": machine("torch", "numpy", "networkx"),
        "work": {"degree": DEGREE, "examples": EXAMPLES, "steps": STEPS, "batch": BATCH, "lr": LR, "parameters": 7850},
    }

    def save() -> None:
        with tempfile.NamedTemporaryFile("w", dir=given.out.parent, delete=False, suffix=".json") as out:
            out.write(json.dumps(result, indent=1) + "\n")
        os.replace(out.name, given.out)

    if given.nodes:
        with tempfile.TemporaryDirectory() as folder, environment(given.gossipy, say) as (python, version):
            pythons = {"fedsim": sys.executable, "torch": sys.executable}
            result["gossipy"] = {"runs": python is not None, "version": version, "differs": DIFFERS}
            if python is not None:
                pythons["gossipy"] = python
            file = Path(folder) / "world.npz"
            subprocess.run([sys.executable, __file__, "--write-world", str(file)], check=True)
            for n in given.nodes:
                found = race(n, ROUNDS.get(n, 3), file, pythons, say)
                others = [size for size in result["sizes"] if size["nodes"] != n]
                result["sizes"] = sorted([*others, found], key=lambda size: int(size["nodes"]))
                save()
    if not given.no_run:
        result["run"] = whole_run(say)
        save()


if __name__ == "__main__":
    main()
