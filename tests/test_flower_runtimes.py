"""One experiment on every runtime: our loop over Flower's Grid gives the metrics of `fedsim run` without Flower."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from torch import Tensor

import fedsim
from fedsim import compare, experiment
from fedsim.compare import Absent, Began, Failed, Heard, Measured, Played
from fedsim.engine import Answer, Loop

with warnings.catch_warnings():
    # typer, which flwr imports, uses a name that click 8.5 has renamed
    warnings.filterwarnings("ignore", message="'click.utils", category=DeprecationWarning)
    from flwr.app import ConfigRecord, Context, Message, RecordDict
    from flwr.clientapp import ClientApp

    from fedsim.flower import InProcessGrid, app, new, runtimes

ROOT = Path(__file__).parents[1]
NEEDS_RAY = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray: pip install 'fedsim[ray]'")

TABLES: dict[str, Any] = {
    "name": "anywhere",
    "task": {
        "data": {"name": "clusters", "classes": 3, "dimension": 4, "examples": 60, "test-examples": 30},
        "clients": 6,
        "model": "logistic",
        "partition": {"name": "dirichlet", "alpha": 0.3},
        "objective": "uniform",
    },
    "participation": {"name": "bernoulli", "probabilities": 0.3},  # with seed 3, nobody in the second round
    "local": {"lr": 0.1, "steps": 2, "batch": 4},
    "strategy": [
        {"name": "FedAvg"},
        {"name": "FedAU", "cutoff": 2},
        {"name": "FedStale"},
        {"name": "FedVARP"},
        {"name": "MIFA", "local": {"lr": 0.05}},
        {"name": "SCAFFOLD"},
        {"name": "DPSGD", "topology": "ring", "local": {"momentum": 0.9}},
        {"name": "VarianceCorrection", "topology": "ring", "min-ndim": 1},
    ],
    "run": {"rounds": 4, "seeds": [3], "eval-every": 1, "device": "cpu", "engine": "loop", "threads": 1},
}


def tables(*names: str, n: int = 6, participation: Any = None, **run: Any) -> dict[str, Any]:
    """The experiment with the strategies named, or all."""
    chosen = [entry for entry in TABLES["strategy"] if not names or entry["name"] in names]
    return {
        **TABLES,
        "task": {**TABLES["task"], "clients": n},
        "strategy": chosen,
        "run": {**TABLES["run"], **run},
        "participation": participation or TABLES["participation"],
    }


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def native() -> list[Measured]:
    """What the whole experiment measures without Flower."""
    return measured(compare.compare(experiment.parse(tables())))


def measured(events: Any) -> list[Measured]:
    """All evaluations, run after run: side by side here, one by one over a grid."""
    return sorted((event for event in events if isinstance(event, Measured)), key=lambda event: event[:3])


def saved(folder: Path, *names: str, **settings: Any) -> Path:
    """The experiment as a file."""
    path = folder / "experiment.toml"
    path.write_text(tomli_w.dumps(tables(*names, **settings)))
    return path


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "metrics.csv").read_bytes()).hexdigest()


def command(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """The command line, as a user without Flower's variables has it."""
    return subprocess.run(
        [sys.executable, "-m", "fedsim.cli", *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, check=False, **options,
    )  # fmt: skip


def begin(*arguments: str | Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    """The command line, begun."""
    return subprocess.Popen(
        [sys.executable, "-m", "fedsim.cli", *map(str, arguments)],
        cwd=ROOT, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def values(folder: Path) -> dict[tuple[str, int, str], float]:
    """What a run folder holds."""
    return {(r["strategy"], int(r["round"]), r["metric"]): float(r["value"]) for r in rows(folder / "metrics.csv")}


def values_of(events: Any) -> dict[tuple[str, int, str], float]:
    """The same of events."""
    return {(e.strategy, e.round, name): value for e in measured(events) for name, value in e.metrics.items()}


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


class Marked:
    """Finds the processes that came of ours: they inherit a variable."""

    def __init__(self) -> None:
        self.name = f"FEDSIM_TEST_{uuid.uuid4().hex}"

    def pids(self) -> list[int]:
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if self.name.encode() in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
        return [pid for pid in found if pid != os.getpid()]

    def gone(self, patience: float = 20.0) -> bool:
        end = time.monotonic() + patience
        while self.pids() and time.monotonic() < end:
            time.sleep(0.2)
        return not self.pids()


# The app, in this process --------------------------------------------------------------------------------------------


def grid(n: int = 6, client: ClientApp = app.client) -> InProcessGrid:
    return InProcessGrid(client, n)


def test_the_same_metrics_bit_for_bit(native: list[Measured]) -> None:
    events = list(app.played(experiment.parse(tables()), grid))
    assert measured(events) == native
    assert {event.metrics["present"] for event in native if event.round} >= {0.0, 2.0}  # an empty round, and others
    assert not [event for event in events if isinstance(event, (Absent, Failed))]
    present = {(event.strategy, event.round): event.metrics["present"] for event in native if event.round}
    heard = {(event.strategy, event.round): len(event.replies) for event in events if isinstance(event, Heard)}
    assert heard == {at: k for at, k in present.items() if k}
    for event in events:
        if isinstance(event, Heard):
            for said in event.replies.values():
                assert said["pid"] == os.getpid()
                assert said.keys() >= {"num-examples", "loss", "steps", "lr", "node"}


def test_the_stacked_engine_agrees_to_rounding(native: list[Measured]) -> None:
    """A local run's default engine rounds otherwise: losses agree to 1e-5, relatively."""
    stacked = values_of(compare.compare(experiment.parse(tables(engine="stacked"))))
    remote = values_of(native)
    assert stacked.keys() == remote.keys()
    for at, value in stacked.items():
        if "accuracy" not in at[2]:  # which jumps
            assert remote[at] == pytest.approx(value, rel=1e-5, abs=1e-6), at


def test_a_strategy_of_flower_s_own_over_a_grid() -> None:
    """Both ways at once: its mathematics and our loop, with the clients behind Flower's messages."""
    made = experiment.parse({**tables(), "strategy": [{"name": "flwr:FedAdam"}]})
    assert measured(app.played(made, grid)) == measured(compare.compare(made))


def failing(t: int, client: int) -> ClientApp:
    """The app's clients, one of which fails in round t = 0, 1, ..."""
    made = ClientApp()

    @made.train()
    def train(message: Message, context: Context) -> Message:
        if (message.content.config_records["fedsim"]["t"], context.node_config["partition-id"]) == (t, client):
            raise OSError("the network is down")
        return app.client(message, context)

    @made.query()
    def query(message: Message, context: Context) -> Message:
        return app.client(message, context)

    return made


def without(absent: set[tuple[str, int, int]]) -> Callable[[compare.World, Any], Any]:
    """Engines in this process, in which (label, round, client) does not answer."""

    def make(world: compare.World, entry: Any) -> Any:
        def train(
            task: Any, who: Tensor, work: Any, keys: Tensor, local: Any, t: int = 0, effort: Tensor | None = None
        ) -> Answer:
            answer = Loop()(task, who, work, keys, local, t, effort)
            here = torch.tensor([(entry.label, t + 1, i) not in absent for i in who.tolist()], dtype=torch.bool)
            span = None if answer.span is None else answer.span[here]
            said = {name: value[here] for name, value in answer.told.items()}
            return Answer(who[here], answer.delta[here], span, answer.loss[here], said)

        return train

    return make


def test_a_failing_client_is_absent_and_told_of() -> None:
    made = experiment.parse(tables("FedAU", "DPSGD", participation={"name": "everyone"}))
    events = list(app.played(made, lambda: grid(client=failing(2, 4))))
    assert [event[:4] for event in events if isinstance(event, Absent)] == [("FedAU", 3, 3, 4), ("DPSGD", 3, 3, 4)]
    assert all("the network is down" in event.reason for event in events if isinstance(event, Absent))
    assert measured(events) == measured(compare.compare(made, without({("FedAU", 3, 4), ("DPSGD", 3, 4)})))
    assert measured(events) != measured(compare.compare(made))


def test_or_ends_the_run_and_the_next_goes_on() -> None:
    made = experiment.parse(tables("FedAU", "MIFA", participation={"name": "everyone"}))
    asked: list[int] = []

    def once() -> InProcessGrid:
        asked.append(1)
        return grid(client=failing(2, 4) if len(asked) == 1 else app.client)

    events = list(app.played(made, once, on_failure="stop"))
    (failed,) = [event for event in events if isinstance(event, Failed)]
    assert failed[:3] == ("FedAU", 3, 2)
    assert "client 4" in failed.reason
    assert "the network is down" in failed.reason
    assert [event.round for event in events if isinstance(event, Played) and event.strategy == "MIFA"] == [1, 2, 3, 4]


def serve(folder: Path, n: int = 6, **config: Any) -> None:
    """Flower's call of the ServerApp."""
    app.server(grid(n), Context(1, 0, {}, RecordDict(), {"experiment": str(folder / "experiment.toml"), **config}))


def test_the_server_app_writes_the_run_folder(tmp_path: Path) -> None:
    saved(tmp_path)
    serve(tmp_path, out=str(tmp_path / "run"), set="run.rounds=2; strategy.FedAU.cutoff=5")
    changed = ["run.rounds=2", "strategy.FedAU.cutoff=5"]
    again = experiment.load(tmp_path / "experiment.toml", changed)
    assert values(tmp_path / "run") == values_of(compare.compare(again))
    assert (tmp_path / "run/schedule-seed3.npz").is_file()
    assert {r["metric"] for r in rows(tmp_path / "run/replies.csv")} >= {"loss", "node", "pid"}
    with pytest.raises(FileExistsError, match="already holds a run"):
        serve(tmp_path, out=str(tmp_path / "run"))


def test_the_wrong_number_of_nodes_is_one_line(tmp_path: Path) -> None:
    saved(tmp_path)
    with pytest.raises(OSError, match=r"one of 4 partitions but the task has 6 clients; .* or set clients = 4"):
        serve(tmp_path, n=4, patience=1.0, out=str(tmp_path / "run"))
    for name in ("nowhere.toml", str(tmp_path / "nowhere.toml")):
        with pytest.raises(FileNotFoundError, match="there is no file"):
            app.find(name)


def test_the_experiment_of_the_app_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("app", "here"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "experiment.toml").write_text(tomli_w.dumps({**tables("FedAU"), "name": name}))
    monkeypatch.chdir(tmp_path / "here")
    assert app.find("experiment.toml").name == "here"
    monkeypatch.syspath_prepend(tmp_path / "app")
    assert app.find("experiment.toml").name == "app"


def test_what_happens_survives_the_log(capsys: pytest.CaptureFixture[str], tmp_path: Path, native: list[Any]) -> None:
    saved(tmp_path)
    serve(tmp_path, tell=True)
    events = [event for line in capsys.readouterr().out.splitlines() if (event := app.told(line)) is not None]
    assert measured(events) == native
    heard = [
        event for event in app.played(experiment.load(tmp_path / "experiment.toml"), grid) if isinstance(event, Heard)
    ]
    assert [event for event in events if isinstance(event, Heard)] == heard
    (began,) = [event for event in events if isinstance(event, Began)]
    (drawn,) = [event for event in compare.compare(experiment.parse(tables("FedAvg"))) if isinstance(event, Began)]
    assert began.schedule.digest() == drawn.schedule.digest()
    local = compare.compare(experiment.parse(tables(together=1)))
    # whoever asks has planned, and nothing is saved there
    kinds = [type(event) for event in local if not isinstance(event, compare.Planned | compare.Stand)]
    assert [type(event) for event in events if not isinstance(event, Heard)] == kinds
    assert app.told("any other line\n") is None
    with pytest.raises(OSError, match="one of 4 partitions"):
        serve(tmp_path, n=4, patience=1.0, tell=True)
    *_, last = capsys.readouterr().out.splitlines()
    with pytest.raises(OSError, match="one of 4 partitions"):
        app.told(last)


def test_a_node_s_own_folder_and_device_go_first(tmp_path: Path) -> None:
    (entry,) = (made := experiment.parse(tables("FedAvg"))).entries
    content = RecordDict({"fedsim": ConfigRecord({"experiment": made.toml(), "seed": 3, "strategy": entry.label})})
    context = Context(1, 1, {"partition-id": 0, "data-dir": str(tmp_path)}, RecordDict(), {})
    assert app.setting_of(content, context).entry.local == entry.local
    assert app.read(made.toml(), str(tmp_path), None).task.data_dir == str(tmp_path)
    context.node_config["device"] = "cuda:99"
    with pytest.raises(ValueError, match='device "cuda:99" is not there'):
        app.setting_of(content, context)
    with pytest.raises(ValueError, match=r"holds no experiment; use this ClientApp with fedsim\.flower\.app:server"):
        app.setting_of(RecordDict(), context)


# Mistakes at the command line ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--on", "moon"], '--on must be one of local, flower-simulation, flower, got "moon"'),
        (["--on", "flower"], "--on flower needs the SuperLink's address: --superlink HOST:PORT"),
        (["--superlink", "127.0.0.1:1"], "--superlink goes with --on flower"),
        (["--nodes", "2"], "--nodes is a number from 1 and goes with --on flower-simulation"),
        (
            ["--on", "flower-simulation", "--nodes", "0"],
            "--nodes is a number from 1 and goes with --on flower-simulation",
        ),
        (["--on", "flower-simulation", "--nodes", "99"], "--nodes 99 is more than the 6 clients there are to share"),
        (["--on", "flower-simulation", "--on-failure", "wait"], '--on-failure must be absent or stop, got "wait"'),
        (["--on", "flower-simulation", "--timeout", "0"], "--timeout must be a positive number of seconds, got 0"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from fedsim import cli

    with pytest.raises(SystemExit) as ended:
        cli.main(["run", str(saved(tmp_path)), "--out", str(tmp_path / "run"), *arguments])
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"fedsim: {message}\n"
    assert not (tmp_path / "run").exists()


def test_without_ray_is_one_line(tmp_path: Path) -> None:
    code = "import sys; sys.modules['ray'] = None; from fedsim.cli import main; main(sys.argv[1:])"
    arguments = ["run", saved(tmp_path), "--on", "flower-simulation", "--out", tmp_path / "run"]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    line = "fedsim: Flower's simulation runtime needs Ray; install it: pip install 'fedsim[ray]'\n"
    assert done.stderr == line
    assert not (tmp_path / "run").exists()


def test_a_superlink_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        done = command("run", saved(tmp_path), "--on", "flower", "--superlink", where, "--out", tmp_path / "run")
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"fedsim: the run on the SuperLink {where} ended without a result: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


FAKE = """\
import sys, time
from pathlib import Path
with open({calls!r}, "a") as file:
    print(*sys.argv[1:2], *sys.argv[-2:], file=file)
if sys.argv[1] == "run":
    print("Successfully started run 42", flush=True)
    print('fedsim-event ["Played", ["FedAU", 3, 1, 5]]', flush=True)
    {then}
"""


@pytest.fixture
def flwr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Puts a command in the place of Flower's: it starts a run, tells of one round and does `then`."""

    def put(then: str) -> Path:
        script, calls = tmp_path / "flwr", tmp_path / "calls"
        script.write_text(f"#!{sys.executable}\n" + FAKE.format(calls=str(calls), then=then))
        script.chmod(0o755)
        monkeypatch.setattr(runtimes.shutil, "which", lambda name, path: str(script))
        return calls

    return put


def test_when_the_caller_stops_so_does_the_run(flwr: Callable[[str], Path]) -> None:
    calls, mark = flwr("time.sleep(600)"), Marked()
    os.environ[mark.name] = "1"
    try:
        events = runtimes.events(experiment.parse(tables("FedAU")), "flower", superlink="127.0.0.1:9")
        assert next(events) == Played("FedAU", 3, 1, 5)
        assert mark.pids()
        events.close()  # type: ignore[attr-defined]
        assert not mark.pids()
    finally:
        del os.environ[mark.name]
    assert [line.split()[0] for line in calls.read_text().splitlines()] == ["run", "stop"]
    assert calls.read_text().splitlines()[1] == "stop 42 it"


@pytest.mark.parametrize(
    ("then", "message"),
    [
        ("print('Traceback'); print('OSError: no space left', flush=True)", "no space left"),
        (
            "print('╭─ Error ─╮'); print('│ the address │'); print('│ is wrong. │'); print('╰─╯')",
            "the address is wrong.",
        ),
        ("""print('fedsim-event ["error", ["TimeoutError", "no node came"]]')""", "^no node came$"),
    ],
)
def test_a_run_that_ends_badly_is_one_line(flwr: Callable[[str], Path], then: str, message: str) -> None:
    calls = flwr(then)
    events = runtimes.events(experiment.parse(tables("FedAU")), "flower", superlink="mine")
    next(events)
    with pytest.raises((ValueError, OSError), match=message) as raised:
        next(events)
    assert "\n" not in str(raised.value)
    assert calls.read_text().splitlines()[0] == "run mine --stream"


# The app's folder ----------------------------------------------------------------------------------------------------


def test_this_repository_is_a_flower_app() -> None:
    described = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert described["project"]["version"] == fedsim.__version__
    made = described["tool"]["flwr"]["app"]
    assert made["components"] == {"serverapp": "fedsim.flower.app:server", "clientapp": "fedsim.flower.app:client"}
    assert experiment.load(ROOT / made["config"]["experiment"]).task.clients == 10


@pytest.mark.parametrize("which", ["repository", "new"])
def test_flower_bundles_it(which: str, tmp_path: Path) -> None:
    import zipfile

    folder = ROOT if which == "repository" else tmp_path / "my-first-app"
    if which == "new":
        done = command("new", "app", folder)
        assert done.returncode == 0, done.stderr
        again = command("new", "app", folder)
        assert (again.returncode, again.stderr) == (2, f"fedsim: {folder} is there already; choose another folder\n")
    done = subprocess.run(
        [Path(sys.executable).parent / "flwr", "build", "--app", folder], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, **OFFLINE, "PYTHONPATH": str(ROOT), "FLWR_HOME": str(tmp_path / "flwr")}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (bundle,) = tmp_path.glob("*.fab")
    with zipfile.ZipFile(bundle) as file:
        names = set(file.namelist())
    if which == "repository":
        assert {"fedsim/flower/app.py", "topologies/ring.toml", "benchmarks/flower.toml", "pyproject.toml"} <= names
        assert not [name for name in names if name.startswith("tests")]
    else:
        assert {"experiment.toml", "pyproject.toml"} <= names
        experiment.load(folder / "experiment.toml")


def test_a_folder_that_flower_would_refuse(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'my first app' cannot be the folder of a Flower app"):
        new.app(tmp_path / "my first app")
    assert not list(tmp_path.iterdir())


def test_a_new_app_runs(tmp_path: Path) -> None:
    new.app(tmp_path / "mine")
    serve(tmp_path / "mine", n=4, out=str(tmp_path / "run"), set="run.rounds=1")
    assert {row["strategy"] for row in rows(tmp_path / "run/metrics.csv")} == {"FedAU", "gossip"}


# Flower's simulation runtime -----------------------------------------------------------------------------------------


@pytest.mark.runtimes
@NEEDS_RAY
def test_the_simulation_runtime_from_the_command_line(tmp_path: Path, native: list[Measured]) -> None:
    """All strategies, twice: the same file, which is the one of a local run, and nothing left behind."""
    path, mark = saved(tmp_path), Marked()
    assert command("run", path, "--out", tmp_path / "local", "-q").returncode == 0
    drivers = set()
    for name in ("one", "two"):
        arguments = ["run", path, "--out", tmp_path / name, "--on", "flower-simulation"]
        run = begin(*arguments, environment={mark.name: "1"})
        printed, complaints = run.communicate(timeout=240)
        assert run.returncode == 0, complaints
        assert "flwr" not in printed + complaints
        assert len(complaints.splitlines()) <= 1, complaints  # of ours: examples that were moved; nothing of Ray's
        assert mark.gone(), "Ray left processes behind"
        drivers.add(str(run.pid))
    assert digest(tmp_path / "one") == digest(tmp_path / "two") == digest(tmp_path / "local")
    found = {
        (row["strategy"], int(row["seed"]), int(row["round"]), row["metric"]): float(row["value"])
        for row in rows(tmp_path / "one/metrics.csv")
    }
    assert found == {(*event[:3], metric): value for event in native for metric, value in event.metrics.items()}
    said = rows(tmp_path / "one/replies.csv")
    pids = {row["value"] for row in said if row["metric"] == "pid"}
    assert pids
    assert not pids & drivers
    nodes = {(row["client"], row["value"]) for row in said if row["metric"] == "node"}
    assert len(nodes) == len({client for client, _ in nodes}) == len({node for _, node in nodes}) > 1


PROGRAM = """
import fedsim
from fedsim.flower import client_app, over
from fedsim.flower.runtimes import simulation

task = fedsim.federate("clusters", clients=4, model="logistic")
local = fedsim.LocalSGD(lr=0.1, steps=2)
schedule = fedsim.participation.Uniform(2).draw(task.n, 3, seed=1)
with simulation(client_app(task, local), task.n) as grid:  # or the grid of your ServerApp
    for step in fedsim.simulate(task, fedsim.strategies.FedAU(), schedule, local, engine=over(grid)):
        print(step.t, fedsim.measure.test(task, step.model)["test_accuracy"])
"""


@pytest.mark.runtimes
@NEEDS_RAY
def test_the_simulation_runtime_as_a_grid() -> None:
    """The README's program: any ClientApp in Flower's runtime, its loop ours."""
    mark = Marked()
    check = """
native = fedsim.simulate(task, fedsim.strategies.FedAU(), schedule, local, engine=fedsim.Loop())
import torch
assert torch.equal(list(native)[-1].model, step.model)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", PROGRAM + check],
        cwd=ROOT, env={**os.environ, mark.name: "1"}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["0", "1", "2"]
    assert mark.gone(), "Ray left processes behind"


# A federation --------------------------------------------------------------------------------------------------------

OFFLINE = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class Federation:
    """A SuperLink and n SuperNodes on free ports of this machine, offline; nothing is left of them afterwards."""

    def __init__(self, folder: Path, n: int, held: Sequence[str] | None = None) -> None:
        self.folder, self.mark = folder, Marked()
        self.link, *self.ports = free_ports(n + 1)
        scripts = Path(sys.executable).parent
        self.environment = {
            **os.environ,
            **OFFLINE,
            self.mark.name: "1",
            "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "FLWR_HOME": str(folder / "flwr"),
            "OMP_NUM_THREADS": "1",
        }
        (folder / "flwr").mkdir()
        config = f'[superlink]\ndefault = "it"\n\n[superlink.it]\naddress = "{self.address}"\ninsecure = true\n'
        (folder / "flwr/config.toml").write_text(config)
        self.daemons, self.nodes = list[subprocess.Popen[bytes]](), list[subprocess.Popen[bytes]]()
        self.daemon("superlink", "--host", "127.0.0.1", "--port", str(self.link))
        self.wait_for_health()
        for i, port in enumerate(self.ports):
            mine = f"partition-id={i} num-partitions={n}" if held is None else held[i]
            node = self.daemon("supernode", "--superlink", self.address, "--port", str(port), "--node-config", mine)
            self.nodes.append(node)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.link}"

    def daemon(self, kind: str, *arguments: str) -> subprocess.Popen[bytes]:
        with open(self.folder / "daemons.log", "ab") as log:
            daemon = subprocess.Popen(
                [Path(sys.executable).parent / f"flower-{kind}", "--insecure", *arguments],
                cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        self.daemons.append(daemon)
        return daemon

    def wait_for_health(self, patience: float = 40.0) -> None:
        end = time.monotonic() + patience
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://{self.address}/health", timeout=2).close()
                return
            assert time.monotonic() < end, (self.folder / "daemons.log").read_text()
            time.sleep(0.2)

    def kill(self, i: int) -> None:
        """A SuperNode dies, with all its processes."""
        os.killpg(self.nodes[i].pid, signal.SIGKILL)
        self.nodes[i].wait()

    def close(self) -> None:
        for (
            pid
        ) in self.mark.pids():  # found by the variable that they inherited from us, whatever became of their parents
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for daemon in self.daemons:
            daemon.wait()
        assert self.mark.gone(), "Flower's daemons left processes behind"


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    made = Federation(tmp_path, 3)
    try:
        yield made
    finally:
        made.close()


def wait_until(done: Callable[[], bool], process: subprocess.Popen[str], patience: float = 100.0) -> None:
    end = time.monotonic() + patience
    while not done():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.2)


@pytest.mark.runtimes
def test_a_federation_of_three_supernodes(federation: Federation, tmp_path: Path) -> None:
    """`flwr run`; then FedAU and gossip from our command line, while a SuperNode is killed."""
    new.app(tmp_path / "app")
    changes = "task.clients=3; task.data=clusters; run.rounds=1; strategy.0.name=MIFA"
    config = f'out="{tmp_path / "flwr-run"}" set="{changes}"'
    done = subprocess.run(
        ["flwr", "run", tmp_path / "app", "it", "--stream", "--run-config", config],
        env=federation.environment, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert (tmp_path / "flwr-run/result.json").is_file(), done.stdout + done.stderr
    changed = experiment.load(tmp_path / "app/experiment.toml", changes.split("; ")).settled(engine="loop")
    assert values(tmp_path / "flwr-run") == values_of(compare.compare(changed))

    settings: dict[str, Any] = {"n": 3, "participation": {"name": "everyone"}, "rounds": 2}
    path, out = saved(tmp_path, "FedAU", "DPSGD", **settings), tmp_path / "run"
    arguments = ["run", path, "--out", out, "--on", "flower", "--superlink", federation.address, "--timeout", "25"]
    run = begin(*arguments, environment={federation.mark.name: "1"})
    metrics = out / "metrics.csv"
    wait_until(lambda: metrics.is_file() and "DPSGD,3,0,test_loss" in metrics.read_text(), run)
    federation.kill(2)
    printed, complaints = run.communicate(timeout=200)
    assert run.returncode == 0, complaints
    assert "run folder" in printed

    absent = {(row["strategy"], int(row["round"]), int(row["client"])) for row in rows(out / "absences.csv")}
    assert ("DPSGD", 2, 2) in absent
    assert absent <= {("DPSGD", 1, 2), ("DPSGD", 2, 2)}  # it may have done its part before it was killed
    assert "a client was asked and did not answer" in complaints
    found = values(out)
    assert found == values_of(compare.compare(experiment.load(path), without(absent)))
    assert found["DPSGD", 2, "present"] == 2

    said = rows(out / "replies.csv")
    assert len({row["value"] for row in said if row["metric"] == "node"}) == 3
    assert len({row["value"] for row in said if row["metric"] == "pid"}) >= 3
