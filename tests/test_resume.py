"""Going on where a run was: the same numbers as if nothing had happened, whatever the strategy and the moment."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import random
import re
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from helpers import command, small
from torch import Tensor

from fedsim import cli, compare, experiment, standing, strategies
from fedsim.cli import resume
from fedsim.engine import Stacked
from fedsim.lock import Lock, Taken
from fedsim.record import read_metrics, read_result, read_times
from fedsim.standing import Late, Progress, Saved, latest, save
from fedsim.strategy import Round, ServerStrategy

TABLES: dict[str, Any] = {
    "task": {
        "data": {"name": "clusters", "classes": 3, "dimension": 6, "examples": 90, "test-examples": 30},
        "clients": 8,
        "model": {"name": "mlp", "hidden": [5]},
        "partition": {"name": "dirichlet", "alpha": 0.5},
    },
    "participation": {"name": "bernoulli", "probabilities": {"name": "equal", "p": 0.4}},
    "local": {"lr": 0.1, "steps": 2, "batch": 4},
    "run": {"rounds": 8, "seeds": [3, 4], "eval-every": 3, "device": "cpu", "chunk": 4},
}
GRAPHS: list[dict[str, Any]] = [
    {},
    {"topology": "ring"},
    {"topology": "complete"},
    {"topology": {"name": "networkx:path_graph", "n": 8}},
]


def made(*entries: dict[str, Any], participation: Any = None, **run: Any) -> experiment.Experiment:
    tables = {**TABLES, "strategy": list(entries), "run": TABLES["run"] | run}
    return experiment.parse(tables | ({} if participation is None else {"participation": participation}))


def entry(name: str) -> dict[str, Any]:
    """A strategy's entry, with the first of the graphs that suits it."""
    reasons = []
    for graph in GRAPHS:
        try:
            next(compare.compare(made({"name": name, **graph})))
        except ValueError as error:
            reasons.append(str(error))
        else:
            return {"name": name, **graph}
    raise AssertionError(f"{name} suits none of the graphs: {reasons}")


def stood(
    plan: experiment.Experiment, folder: Path, rounds: tuple[int, ...]
) -> tuple[list[Any], dict[int, tuple[Saved, int]]]:
    """All that happens; and where it stood for the n-th time, and how much had happened by then."""
    found, saved, n = [], {}, 0
    for event in compare.compare(plan):
        if isinstance(event, compare.Stand):
            n += 1
            if n in rounds:
                (folder / str(n)).mkdir(parents=True)
                saved[n] = Saved(save(folder / str(n), event)), len(found)
        else:
            found.append(event)
    return found, saved


def told(events: list[Any]) -> list[Any]:
    """What happened, but for times and what is said again."""
    out: list[Any] = []
    for event in events:
        if isinstance(event, compare.Measured | compare.Played | compare.Failed):
            out.append(event)
        elif isinstance(event, compare.Clients):
            out.append((*event[:2], {name: column.tolist() for name, column in event.table.items()}))
        elif isinstance(event, compare.Finished):
            out.append(event._replace(seconds=0, spent=None, speed=None, client_trainings_per_second=0))
    return out


def goes_on(plan: experiment.Experiment, folder: Path, rounds: tuple[int, ...]) -> None:
    """From each of these rounds what comes is what came."""
    straight, saved = stood(plan, folder, rounds)
    assert list(saved) == list(rounds)
    for n, (since, before) in saved.items():
        rest = list(compare.compare(plan, since=since))
        assert told(straight[before:])
        assert repr(told(rest)) == repr(told(straight[before:])), f"from round {n}"  # as text: NaN is NaN


@pytest.mark.parametrize("name", strategies.__all__)
def test_every_strategy_goes_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    """Metrics, models, ledgers, clients and final means, from right after an evaluation and from in between."""
    goes_on(made(entry(name), seeds=[3]), tmp_path, (3, 5))


WRAPPED: list[dict[str, Any]] = [
    {"name": "FedAdam", "inner": {"name": "FedProx", "mu": 0.1, "inner": {"name": "MIFA"}}},
    {"name": "FedAdam", "label": "adam of stale", "inner": {"name": "FedStale", "weights": "fedau"}},
    {"name": "VarianceCorrection", "inner": {"name": "DPSGD"}, "topology": "ring"},
    {"name": "DPSGD", "label": "momentum", "keep-momentum": True, "local": {"momentum": 0.5}, "topology": "ring"},
    {"name": "DPSGD", "label": "alone", "mixing": "alone"},
    {"name": "FedAvg", "label": "fading", "local": {"lr-schedule": {"name": "inverse", "decay": 0.3}}},
]


def test_wrappers_and_a_harm_report_go_on(tmp_path: Path) -> None:
    """Where somebody trains alone the others are held against it, also when it was over by then."""
    goes_on(made(*WRAPPED), tmp_path, (1, 2, 5, 7))
    goes_on(made(*WRAPPED, together=1, seeds=[3]), tmp_path / "one-by-one", (9, 13))


@pytest.mark.parametrize(
    "inner", [{"name": "BufferedGossip"}, {"name": "VarianceCorrection", "inner": {"name": "BufferedGossip"}}]
)
def test_ticks_go_on_with_messages_under_way(inner: dict[str, Any], tmp_path: Path) -> None:
    """Buffers half full when it was saved, and momentum that only some nodes have yet."""
    node = {**inner, "topology": "ring", "local": {"momentum": 0.5}}
    ticks = {"name": "ticks", "periods": [2, 3, 4]}
    goes_on(made(node, participation=ticks, rounds=20), tmp_path, (3, 10, 11))


def test_one_after_the_other_and_the_plain_engine_go_on(tmp_path: Path) -> None:
    for i, run in enumerate(({"together": 1}, {"memory": "3KB"}, {"engine": "loop"}, {"dtype": "float64"})):
        goes_on(made({"name": "MIFA"}, {"name": "FedAvg"}, seeds=[3], **run), tmp_path / f"case {i}", (2, 7))


@dataclass(frozen=True)
class Forgetful(ServerStrategy):
    """Keeps how often it was called to itself, and not in its state."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "calls", [])

    def init(self, x: Tensor, p: Tensor, key: int = 0) -> Any:
        return Plain(x)

    def step(self, state: Any, round: Round) -> Any:
        self.calls.append(round.t)  # type: ignore[attr-defined]
        return Plain(state.x + round.delta.sum(0) / len(self.calls))  # type: ignore[attr-defined]


class Plain(NamedTuple):
    x: Tensor


def test_a_strategy_that_hides_its_memory_is_found_out(tmp_path: Path) -> None:
    plan = made({"name": "FedAvg"})
    hiding = experiment.Experiment(**{**vars(plan), "entries": (plan.entries[0].__class__(
        "hiding", Forgetful(), plan.entries[0].local),)})  # fmt: skip
    with pytest.raises(AssertionError):
        goes_on(hiding, tmp_path, (4,))


def test_only_the_rounds_that_are_left_are_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    together = Stacked.together

    def counted(self: Stacked, jobs: Any) -> Any:
        calls.append(jobs[0].t)
        return together(self, jobs)

    monkeypatch.setattr(Stacked, "together", counted)
    everyone = {"name": "everyone"}
    plan = made({"name": "FedAvg"}, {"name": "MIFA"}, participation=everyone)
    _, saved = stood(plan, tmp_path, (6,))
    assert calls == list(range(8))
    calls.clear()
    assert list(compare.compare(plan, since=saved[6][0]))
    assert calls == [6, 7]


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_two_are_kept_and_the_one_before_serves_where_the_last_is_damaged(tmp_path: Path) -> None:
    for event in compare.compare(made({"name": "MIFA"})):
        if isinstance(event, compare.Stand) and event.under_way:
            save(tmp_path, event, {"note": [1, 2]})
    folder = tmp_path / "checkpoints"
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["000006.json", "000006.safetensors", "000007.json", "000007.safetensors"]
    last, wrong = latest(tmp_path)
    assert last is not None
    assert (last.path.stem, wrong, last.also) == ("000007", [], {"note": [1, 2]})
    for name in ("000007.json", "000007.safetensors"):
        good = (folder / name).read_bytes()
        for damaged in (good[: len(good) // 2], good[:-20] + bytes([good[-20] ^ 1]) + good[-19:], b""):
            (folder / name).write_bytes(damaged)
            found, wrong = latest(tmp_path)
            assert found is not None
            assert found.path.stem == "000006"
            assert len(wrong) == 1
            assert "is damaged" in wrong[0]
        (folder / name).write_bytes(good)
    (folder / "000007.safetensors").unlink()
    (folder / "000006.json").write_text("{}")
    assert latest(tmp_path)[0] is None
    standing.discard(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert latest(tmp_path) == (None, [])


def test_a_checkpoint_of_another_world_or_format_is_refused(tmp_path: Path) -> None:
    _, saved = stood(made({"name": "FedAvg"}), tmp_path, (4,))
    with pytest.raises(ValueError, match="schedule of seed 3 are not those it began with"):
        list(compare.compare(made({"name": "FedAvg"}, participation={"name": "everyone"}), since=saved[4][0]))
    with pytest.raises(ValueError, match="does not fit FedAvg, seed 3: state has the fields x, weights, here x, G"):
        list(compare.compare(made({"name": "MIFA", "label": "FedAvg"}), since=saved[4][0]))
    content = {"format": 99}
    saved[4][0].path.write_text(json.dumps({"sha256": "", "content": content}))
    with pytest.raises(ValueError, match="has checkpoint format 99, this fedsim reads 1 to 2"):
        latest(tmp_path / "4")


def test_a_checkpoint_of_the_first_format_goes_on(tmp_path: Path) -> None:
    """It kept the evaluations of the last fifth one by one."""
    plan = made({"name": "MIFA"}, seeds=[3], rounds=10, **{"eval-every": 1})
    straight, saved = stood(plan, tmp_path, (9,))
    since, before = saved[9]
    content = json.loads(since.path.read_text())["content"]
    assert content["runs"][0]["late"]["count"] == 1
    (measured,) = [e.metrics for e in straight[:before] if isinstance(e, compare.Measured) and e.round == 9]
    content["runs"][0]["late"], content["format"] = [measured], 1
    text = json.dumps(content)
    since.path.write_text(json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest(), "content": content}))
    rest = list(compare.compare(plan, since=Saved(since.path)))
    assert repr(told(rest)) == repr(told(straight[before:]))


def test_what_is_kept_of_evaluations_does_not_grow_with_their_number() -> None:
    """And it is the mean of each metric that all have, as they come."""
    draw = random.Random(1)
    evaluations = [{"a": draw.random(), "b": draw.random(), **({"c": 1.0} if i != 7 else {})} for i in range(400)]
    progress, lengths = Progress(None), []
    for i, metrics in enumerate(evaluations, 1):
        progress.late.add(metrics)
        lengths.append(len(json.dumps(progress.numbers())))
        shared = [name for name in "abc" if all(name in one for one in evaluations[:i])]
        expected = {name: sum(one[name] for one in evaluations[:i]) / i for name in shared}
        assert progress.late.mean() == pytest.approx(expected, rel=1e-12)
    assert lengths[-1] < lengths[0] + 20
    assert Late().mean() == {}
    progress.late.add({"z": 1.0})
    progress.late.add({"a": 1.0})
    assert progress.late.mean() == {}


# --- the command ------------------------------------------------------------------------------------------------------

FILE = small(
    "FedAvg", "FedVARP", 'name = "DPSGD"\nlabel = "gossip"\ntopology = "ring"',
    task='model = "logistic"\nholdout = 0.3',
    run="""
rounds = 40
seeds = [1, 2]
eval-every = 3
checkpoint-every = 5
together = 4
chunk = 2
threads = 1
device = "cpu"
""",
)  # fmt: skip
SAME = ("metrics.csv", "hashes.csv", "clients.csv", "experiment.toml")
TIMES = ("seconds", "spent", "speed", "client_trainings_per_second")


pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to, beside its file."""
    folder = tmp_path_factory.mktemp("straight")
    (folder / "small.toml").write_text(FILE)
    assert command("run", folder / "small.toml", "--out", folder / "run", "--quiet") == 0
    return folder / "run"


def same(one: Path, other: Path) -> None:
    """Two run folders hold the same results, byte for byte; but for times."""
    for name in SAME:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    results = []
    for folder in (one, other):
        results.append([{k: v for k, v in run.items() if k not in TIMES} for run in read_result(folder)])
    assert results[0] == results[1]
    steps = [
        [run["speed"][what] for run in read_result(folder) for what in ("steps", "examples")] for folder in (one, other)
    ]
    assert steps[0] == steps[1]
    assert list(read_times(one)) == list(read_times(other))
    kinds = {path.name for path in one.iterdir()} ^ {path.name for path in other.iterdir()}
    assert kinds == set(), kinds


class Stop(Exception):
    """What ends a run in the middle, as a kill would, with nothing tidied up."""


def stopped(folder: Path, monkeypatch: pytest.MonkeyPatch, at: int, evaluations: bool = True) -> None:
    """A run cut short when it records its `at`-th evaluation, or client training."""
    from fedsim.record import RunFolder

    seen = 0
    measured = RunFolder.measured

    def dying(self: RunFolder, *arguments: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == at:
            raise Stop
        measured(self, *arguments)

    monkeypatch.setattr(RunFolder, "measured", dying)
    with pytest.raises(Stop):
        cli.main(["run", str(folder.parent / "small.toml"), "--out", str(folder), "--quiet"])
    monkeypatch.undo()


@pytest.mark.parametrize("at", [1, 20, 55, 60, 83])
def test_a_run_cut_short_goes_on(
    straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], at: int
) -> None:
    """Before the first checkpoint, between two, in the second wave, and near its end."""
    (tmp_path / "small.toml").write_text(FILE)
    run = tmp_path / "run"
    stopped(run, monkeypatch, at)
    times = read_times(run)
    saved, _ = latest(run)
    capsys.readouterr()
    assert command("resume", run) == 0
    out, err = capsys.readouterr()
    same(run, straight)
    if at == 1:
        assert f"{run} begins again: there is no checkpoint of it\n" in err
    else:
        assert saved is not None
        where = f"round {saved.rounds[0]} of 40" if saved.rounds else "the next of its runs"
        assert f"{run} goes on from {where}: of 6 runs {len(saved.over)} are over, " in err
        kept = {key: seconds for key, seconds in times.items() if key[2] <= min(saved.rounds, default=0)}
        kept |= {key: seconds for key, seconds in times.items() if key[:2] in saved.over}
        assert kept
        assert kept.items() <= read_times(run).items()
    assert f"run folder: {run}" in out
    capsys.readouterr()
    before = {path: path.read_bytes() for path in run.iterdir()}
    assert command("resume", run) == 0
    assert capsys.readouterr().out == f"{run} is over: all its runs have ended\n"
    assert {path: path.read_bytes() for path in run.iterdir()} == before


def test_rows_cut_by_a_power_failure_send_it_to_the_checkpoint_before(
    straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "small.toml").write_text(FILE)
    run = tmp_path / "run"
    stopped(run, monkeypatch, 40)
    size = Saved(sorted((run / "checkpoints").glob("*.json"))[0]).also["sizes"]["metrics.csv"]
    os.truncate(run / "metrics.csv", size + 10)
    (run / ".result.json.77.tmp").write_text("{")  # what it was writing
    assert command("resume", run) == 0
    assert re.search(r"metrics.csv has \d+ bytes and had \d+ at the checkpoint", capsys.readouterr().err)
    same(run, straight)


def test_drawing_is_made_up_for(
    straight: Path, tmp_path: Path, undrawn: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed while it drew: the figures are drawn, and nothing else."""
    run = tmp_path / "run"
    undrawn.clear()
    shutil.copytree(straight, run)
    (run / "report.html").unlink()
    assert command("resume", run) == 0
    assert capsys.readouterr().out == f"{run} is over: all its runs have ended; its figures are drawn now\n"
    assert undrawn == [run]
    same(run, straight)


@pytest.mark.parametrize("left", [".lock", f".report.html.{2**22}.tmp", ".schedule-seed1.npz.77.partial"])
def test_what_the_killed_left_is_cleared_away(left: str, straight: Path, tmp_path: Path, undrawn: list[Path]) -> None:
    """Killed after it had drawn, before it had let go of the folder; or while it wrote the page again."""
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    (run / left).write_text("77\n")
    assert command("resume", run) == 0
    same(run, straight)
    undrawn.clear()
    assert command("resume", run) == 0
    assert undrawn == [], "there is nothing to do"


def test_what_cannot_go_on_says_why(straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert command("resume", run) == 2
    assert capsys.readouterr().err == f"fedsim: there is no folder {run}; give the one that `fedsim run` printed\n"
    shutil.copytree(straight, run)
    environment = json.loads((run / "environment.json").read_text())
    (run / "environment.json").write_text(json.dumps({**environment, "on": "flower"}))
    assert command("resume", run) == 2
    assert "ran on Flower (flower), whose clients' state is not here; run it anew" in capsys.readouterr().err
    (run / "environment.json").write_text(json.dumps({**environment, "format": 3}))
    for what in (("resume", run), ("report", run)):
        assert command(*what) == 2
        assert "is a run folder of format 3; this fedsim reads up to 2: use a newer one" in capsys.readouterr().err
    with pytest.raises(ValueError, match="is a run folder of format 3"):
        read_metrics(run)


def test_a_folder_of_before_formats_is_read(straight: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    environment = json.loads((run / "environment.json").read_text())
    assert environment.pop("format") == 2
    (run / "environment.json").write_text(json.dumps(environment))
    (run / "hashes.csv").unlink()
    assert read_metrics(run) == read_metrics(straight)
    assert command("report", run) == 0
    assert command("resume", run) == 0


def test_another_torch_is_said(
    straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "small.toml").write_text(FILE)
    run = tmp_path / "run"
    stopped(run, monkeypatch, 30)
    environment = json.loads((run / "environment.json").read_text())
    environment["packages"]["torch"] = "1.0"
    (run / "environment.json").write_text(json.dumps(environment))
    assert command("resume", run) == 0
    assert f"torch was 1.0 and is {torch.__version__}: from here on numbers may differ" in capsys.readouterr().err
    kept = json.loads((run / "environment.json").read_text())
    assert kept["packages"]["torch"] == "1.0"
    assert [one["packages"]["torch"] for one in kept["resumed"]] == [str(torch.__version__)]


# --- killed, interrupted ----------------------------------------------------------------------------------------------


def begun(arguments: list[str | Path]) -> int:
    """A command in a process of its own, that has all imported already; its process id."""
    child = os.fork()
    if not child:
        code = 1
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            with (
                open(os.devnull, "w") as nothing,
                contextlib.redirect_stdout(nothing),
                contextlib.redirect_stderr(nothing),
            ):
                cli.main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            os._exit(code)
    return child


def ended(child: int) -> int:
    """How a process ended: its exit code, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def grown(path: Path, size: int) -> None:
    """Wait until a file is that large."""
    patience = time.monotonic() + 30
    while not (path.exists() and path.stat().st_size >= size):
        assert time.monotonic() < patience
        time.sleep(0.002)


def test_what_the_stress_test_found() -> None:
    """As committed, and as its docstring says."""
    folder = Path(__file__).parents[1] / "benchmarks"
    found = json.loads((folder / "results" / "kill_stress.json").read_text())
    assert found["differing"] == 0
    parts = ("before there was a folder", "before the first checkpoint", "under way", "between two waves of runs")
    assert found["kills"] == sum(found.get(part, 0) for part in parts)
    numbers = [found[key] for key in ("kills", parts[1], parts[2], "comparisons_brought_to_an_end", "differing")]
    last = (folder / "kill_stress.py").read_text().partition('\n"""')[0].splitlines()[-1]
    assert [int(number) for number in last.split()] == numbers


def test_killed_again_and_again(straight: Path, tmp_path: Path) -> None:
    """SIGKILL at random moments, until one gets through. benchmarks/kill_stress.py does it hundreds of times."""
    (tmp_path / "small.toml").write_text(FILE)
    run, dice, kills = tmp_path / "run", random.Random(5), 0
    command: list[str | Path] = ["run", tmp_path / "small.toml", "--out", run, "--quiet"]
    while True:
        child = begun(command)
        if kills < 6:
            time.sleep(dice.uniform(0.02, 0.25))
            os.kill(child, signal.SIGKILL)
        if (code := ended(child)) >= 0:
            break
        kills += 1
        if (run / "experiment.toml").exists():
            command = ["resume", run, "--quiet"]
    assert code == 0
    assert kills >= 3
    same(run, straight)


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_it_saves_and_goes_on(straight: Path, tmp_path: Path, sent: signal.Signals, code: int) -> None:
    """checkpoint-every is more than there are rounds: what is saved is saved because of the signal."""
    (tmp_path / "small.toml").write_text(FILE)
    run = tmp_path / "run"
    never = ("--set", "run.checkpoint-every=1000", "--set", "run.together=6")
    child = begun(["run", tmp_path / "small.toml", "--out", run, "--quiet", *never])
    grown(run / "metrics.csv", 5000)
    os.kill(child, sent)
    assert ended(child) == code
    saved, _ = latest(run)
    assert saved is not None
    assert len(saved.rounds) == 6
    assert saved.also["sizes"]["metrics.csv"] == (run / "metrics.csv").stat().st_size  # nothing is lost
    assert not (run / ".lock").exists()
    assert ended(begun(["resume", run, "--quiet"])) == 0
    rows = sorted(read_metrics(run)), sorted(read_metrics(straight))
    assert rows[0] == rows[1]


def test_ctrl_c_twice_ends_at_once_and_harms_nothing(straight: Path, tmp_path: Path) -> None:
    """The second one comes in the middle of the round that the first one waits for."""
    (tmp_path / "small.toml").write_text(FILE)
    run = tmp_path / "run"
    slow = ["run", tmp_path / "small.toml", "--out", run, "--quiet"]
    advance = compare.advance
    reached = tmp_path / "reached"

    def crawling(*arguments: Any) -> Any:
        for i, turn in enumerate(advance(*arguments)):
            if turn[1].step.t == 17:
                reached.touch()
                time.sleep(0.3 if i == 0 else 15)
            yield turn

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "advance", crawling)
        child = begun(slow)
    while not reached.exists():
        time.sleep(0.005)
    os.kill(child, signal.SIGINT)
    time.sleep(0.5)
    assert os.waitpid(child, os.WNOHANG) == (0, 0)  # it waits
    clock = time.monotonic()
    os.kill(child, signal.SIGINT)
    assert ended(child) == 130
    assert time.monotonic() - clock < 5
    saved, _ = latest(run)
    assert saved is not None
    assert saved.rounds == [15] * 4
    assert ended(begun(["resume", run, "--quiet"])) == 0
    same(run, straight)


# --- one at a time ----------------------------------------------------------------------------------------------------


def test_two_processes_do_not_share_a_folder(
    straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever comes second is told who is there, and changes nothing; a kill leaves nobody out."""
    (tmp_path / "small.toml").write_text(FILE)
    run = tmp_path / "run"
    child = begun(["run", tmp_path / "small.toml", "--out", run, "--quiet", "--set", "run.rounds=100000"])
    try:
        grown(run / "metrics.csv", 5000)
        assert command("resume", run) == 2
        error = capsys.readouterr().err
        assert error == f"fedsim: process {child} is at work in {run}; wait until it is over, or end it\n"
        with pytest.raises(Taken, match=f"process {child} is at work"):
            Lock(run)
    finally:
        os.kill(child, signal.SIGKILL)
    assert ended(child) == -signal.SIGKILL
    assert (run / ".lock").exists()
    Lock(run).release()
    assert not (run / ".lock").exists()
    with Held(tmp_path / "new"):  # at the same moment as another: before either has written anything
        assert command("run", tmp_path / "small.toml", "--out", tmp_path / "new", "--quiet") == 2
        assert f"process {os.getpid()} is at work in {tmp_path / 'new'}" in capsys.readouterr().err
        assert [path.name for path in (tmp_path / "new").iterdir()] == [".lock"]


class Held:
    """A folder that somebody has."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.lock = Lock(folder)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        self.lock.release()
        self.lock.release()  # twice is once


def test_a_file_system_without_locks_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*arguments: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", none)
    Lock(tmp_path).release()
    assert list(tmp_path.iterdir()) == []


# --- Flower's ---------------------------------------------------------------------------------------------------------


def test_a_strategy_of_flower_begins_again_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It keeps its state to itself. Its rows are made again, the same."""
    pytest.importorskip("flwr")
    text = FILE.replace("[run]", '[[strategy]]\nname = "flwr:FedAdam"\n[run]').replace("rounds = 40", "rounds = 8")
    (tmp_path / "small.toml").write_text(text)
    assert command("run", tmp_path / "small.toml", "--out", tmp_path / "straight", "--quiet") == 0
    run = tmp_path / "run"
    stopped(run, monkeypatch, 6 * 4 + 3)
    assert command("resume", run) == 0
    error = capsys.readouterr().err
    assert "goes on from the next of its runs: of 8 runs 6 are over, 0 under way\n" in error
    assert "flwr:FedAdam keeps its state to itself" in error
    same(run, tmp_path / "straight")


def test_other_operators_are_said() -> None:
    """A machine without a C++ compiler rounds otherwise, and so does a processor that is not the same."""
    before = {"operators": "fedsim's own, by c++ 12", "processor": "a", "threads": 1, "packages": {"torch": "2.13.0"}}
    assert resume._changes(before, before | {"gpu": None}) == []
    now = before | {"gpu": None, "operators": "torch's (no C++ compiler)"}
    (said,) = resume._changes(before, now)
    assert said.startswith("operators was fedsim's own, by c++ 12 and is torch's (no C++ compiler): from here on ")
