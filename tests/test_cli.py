"""The command line, as a process: what it writes, prints and answers."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import LIGHT, command, small

from fedsim import cli
from fedsim.participation import Schedule
from fedsim.record import read_metrics, read_result

SMALL = small(
    "FedAvg", 'name = "FedAU"\nlabel = "FedAU, K = 5"\ncutoff = 5\nlocal = { lr = 0.05 }',
    'name = "VarianceCorrection"\nlabel = "gossip"\ntopology = { name = "erdos-renyi", p = 0.7 }',
    task='model = "logistic"\npartition = { name = "dirichlet", alpha = 0.05 }\nobjective = "uniform"',
    presence='name = "bernoulli"\nprobabilities = { name = "label-correlated", mean = 0.4 }',
    run="rounds = 10\nseeds = [1, 2]\neval-every = 4",
)  # fmt: skip
FILES = [
    "clients.csv",
    "environment.json",
    "experiment.toml",
    "metrics.csv",
    "times.csv",
    "hashes.csv",
    "result.json",
    "schedule-seed1.npz",
    "schedule-seed2.npz",
]
FIGURES = [
    f"{name}.{suffix}"
    for name in ("bias", "clients", "curves", "final", "gossip", "participation", "weights")
    for suffix in ("png", "svg")
]


def fedsim(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """The command, in a process in which warnings are errors."""
    command = [sys.executable, "-W", "error", "-m", "fedsim.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


def one_line(ran: subprocess.CompletedProcess[str]) -> str:
    """What a refused command said."""
    assert ran.returncode == 2, ran.stderr
    assert ran.stderr.count("\n") == 1, ran.stderr
    assert ran.stderr.startswith("fedsim: ")
    return ran.stderr.removeprefix("fedsim: ")


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("experiment") / "small.toml"
    file.write_text(SMALL)
    return file


@pytest.fixture(scope="module")
def ran(experiment: Path) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = experiment.parent / "run"
    return folder, fedsim("run", experiment, "--out", folder)


# --- a run ------------------------------------------------------------------------------------------------------------


def test_a_run_prints_a_table(ran: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = ran
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.partition("run folder")[0].splitlines())) <= 80
    said = " ".join(done.stdout.split())
    for text in (
        "FedAvg",
        "FedAU, K = 5",
        "gossip",
        "±",
        "place",
        "difference [95 %]",
        "worth",
        "3 pairs, not adjusted",
    ):
        assert text in said
    assert "Late mean: over the last fifth of 10 rounds, ± half of the 95 % t interval over 2 seeds." in said
    assert f"run folder: {folder}" in done.stdout
    assert re.fullmatch(r"(seed \d: \d+ examples moved to clients that the partition had left empty\n)+", done.stderr)


def test_a_terminal_shows_how_far_a_run_is(experiment: Path, tmp_path: Path) -> None:
    """Rounds, presence, speed and time left on stderr, gone when the run is over."""
    given = ("--set", "run.rounds=8", "--set", "run.seeds=[1]", "--out", tmp_path / "run")
    done = fedsim("run", experiment, *given, env=os.environ | {"FORCE_COLOR": "1", "COLUMNS": "100"})
    assert done.returncode == 0, done.stderr
    said = re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", done.stderr)
    assert re.search(r"\d+/24 rounds +\d present  \S+ clients/s \S+ left", said)
    assert "24/24 rounds" in said
    assert done.stderr.rstrip().endswith("\x1b[2K")
    assert "rounds  " not in done.stdout


def test_a_run_writes_its_folder(ran: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = ran
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, *FIGURES, "report.html"])
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["device"] == "cpu" or environment["device"].startswith("cuda")
    assert environment["threads"] == tomllib.loads((folder / "experiment.toml").read_text())["run"]["threads"]
    assert {"fedsim", "torch", "numpy"} <= set(environment["packages"])
    schedule = Schedule.load(folder / "schedule-seed2.npz")
    assert (schedule.n, len(schedule)) == (6, 10)


def test_results_follow_from_the_metrics(ran: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = ran
    runs, metrics = read_result(folder), read_metrics(folder)
    assert [(run["seed"], run["strategy"]) for run in runs] == [
        (seed, label) for seed in (1, 2) for label in ("FedAvg", "FedAU, K = 5", "gossip")
    ]
    for run in runs:
        assert set(run) == {
            "strategy", "seed", "rounds", "final", "final_mean", "seconds", "client_trainings_per_second", "clients",
            "spent", "speed",
        }  # fmt: skip
        mine = [m for m in metrics if (m.strategy, m.seed) == (run["strategy"], run["seed"])]
        assert sorted({m.round for m in mine}) == [0, 4, 8, 10]
        last = {m.metric: m.value for m in mine if m.round == 10}
        assert run["final"] == last
        assert run["final_mean"]["test_loss"] == last["test_loss"]  # the last fifth of 10 rounds holds round 10 alone
        assert 0 <= last["test_accuracy"] <= 1
        assert run["seconds"] > 0
        assert run["client_trainings_per_second"] > 0
        assert (run["clients"]["on"], run["clients"]["clients"]) == ("training", 6)
        assert run["clients"]["worst_decile_accuracy"] == last["worst_decile_accuracy"]


def test_presence_is_the_same_for_all(ran: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = ran
    measured = read_metrics(folder)
    for seed in (1, 2):
        present = {
            tuple(m.value for m in measured if (m.metric, m.seed, m.strategy) == ("present", seed, label))
            for label in ("FedAvg", "FedAU, K = 5", "gossip")
        }
        schedule = Schedule.load(folder / f"schedule-seed{seed}.npz")
        assert present == {tuple(float(len(schedule[t].chosen)) for t in (3, 7, 9))}


def test_all_start_from_the_same_model(ran: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = ran
    first = {m.value for m in read_metrics(folder) if (m.round, m.metric, m.seed) == (0, "test_loss", 1)}
    assert max(first) - min(first) < 1e-6


def test_the_resolved_file_runs_to_the_same_result(ran: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = ran
    again = folder.parent / "again"
    done = fedsim("run", folder / "experiment.toml", "--out", again, "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    for name in ("experiment.toml", "metrics.csv"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()
    for seed in (1, 2):
        one, other = (Schedule.load(f / f"schedule-seed{seed}.npz").digest() for f in (folder, again))
        assert one == other


def test_another_seed_is_another_result(ran: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = ran
    values = {
        m.seed: m.value for m in read_metrics(folder) if (m.strategy, m.round, m.metric) == ("FedAvg", 10, "test_loss")
    }
    assert values[1] != values[2]


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_folder_with_a_run_is_refused(ran: tuple[Path, subprocess.CompletedProcess[str]], experiment: Path) -> None:
    folder, _ = ran
    before = {path: path.read_bytes() for path in folder.iterdir()}
    command = [sys.executable, "-c", LIGHT, "run", str(experiment), "--out", str(folder)]
    assert "already holds a run" in one_line(subprocess.run(command, capture_output=True, text=True))
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "missing.toml"), "there is no file missing.toml"),
        (("run", "."), ". is not a file"),
        (("run", "small.toml", "--device", "gpu"), 'device must be "auto", "cpu", "cuda" or "cuda:N", got "gpu"'),
        (("run", "small.toml", "--device", "cuda:77"), 'device "cuda:77" is not there: torch'),
        (("run", "small.toml", "--out", "small.toml"), "small.toml is a file, not a folder"),
        (("run", "small.toml", "--out", "small.toml/x"), "cannot write small.toml/x: Not a directory"),
        (("run", "small.toml", "--set", "task.data=mnist", "--data-dir", "nowhere"), "nowhere/mnist"),
        (("run", "small.toml", "--sett", "x=1"), "No such option"),
        (("run",), "Missing argument"),
        (("participation", "missing.toml"), "there is no file missing.toml"),
        (("participation", "missing.npz"), "no schedule at missing.npz"),
        (("participation", "missing.npz", "--seed", "1"), "is drawn already; --set, --seed and --data-dir go with"),
        (("participation", "small.toml", "--seed", "-1"), "Invalid value for '--seed'"),
        (("participation", "small.toml", "--out", "small.toml"), "small.toml is a file, not a folder"),
        (("participation", "small.toml", "--out", "small.toml/x"), "cannot write small.toml/x: Not a directory"),
        (("rnu",), "No such command 'rnu'"),
        (("list", "strategy"), "there is no list of \"strategy\"; did you mean 'strategies'?"),
    ],
)
def test_refused_in_one_line(
    experiment: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(experiment.parent)
    before = sorted(experiment.parent.iterdir())
    code = command(*arguments)
    out, err = capsys.readouterr()
    assert message in err
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert sorted(experiment.parent.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("list",), "say what to list: strategies, weights, "),
        (("verify", "nowhere"), "there is no folder nowhere; give the one that `fedsim run` printed"),
        (("resume", "nowhere"), "there is no folder nowhere; give the one that `fedsim run` printed"),
        (("report", "nowhere"), "there is no folder nowhere; give the one that `fedsim run` printed"),
        (("resume", "."), ". holds no run: there is no experiment.toml in it"),
        (("run", "held"), "held is a run folder; the experiment in it is held/experiment.toml"),
        (("run", "small.toml", "--set", "strategy.FedAv.lr=1"), 'there is no "FedAv"; there are 0 (FedAvg), '),
    ],
)
def test_what_is_not_there_is_said(
    experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...], said: str,
) -> None:  # fmt: skip
    (tmp_path / "small.toml").write_text(SMALL)
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "experiment.toml").write_text(SMALL)
    monkeypatch.chdir(tmp_path)
    assert command(*arguments) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_a_command_that_is_not_known_names_the_nearest_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("rum") == 2
    err = capsys.readouterr().err
    assert err.count("run") == err.lower().count("did you mean") == 1


def test_a_run_that_diverges_does_not_stop_the_others(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--set", "strategy.FedAvg.local={lr=1e38}", "--set", "run.seeds=[1]", "--quiet"]
    assert command("run", experiment, "--out", tmp_path / "run", *given) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("fedsim: FedAvg, seed 1: round ")
    assert "diverged: lower the learning rate" in err
    assert [run["strategy"] for run in read_result(tmp_path / "run")] == ["FedAU, K = 5", "gossip"]
    failed = json.loads((tmp_path / "run" / "result.json").read_text())["failed"]
    assert [(run["strategy"], run["seed"]) for run in failed] == [("FedAvg", 1)]
    assert (tmp_path / "run" / "curves.png").exists()


def test_a_full_disk_before_the_first_round(
    experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert command("run", experiment, "--out", tmp_path / "a" / "run", "--quiet") == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert f"cannot write {tmp_path / 'a' / 'run' / 'experiment.toml'}: No space left on device" in err
    assert list(tmp_path.iterdir()) == []


def limited(size: int) -> Callable[[], None]:
    """A process that can write no file beyond a size: what a full disk looks like from inside."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_full_disk_in_the_middle(experiment: Path, tmp_path: Path) -> None:
    given = ("--set", "run.rounds=200", "--set", "run.eval-every=2", "--quiet")
    done = fedsim("run", experiment, "--out", tmp_path / "run", *given, preexec_fn=limited(20_000))
    assert f"cannot write {tmp_path / 'run' / 'metrics.csv'}: File too large" in one_line(done)
    text = (tmp_path / "run" / "metrics.csv").read_text()
    assert text.endswith("\n")
    assert len(read_metrics(tmp_path / "run")) == text.count("\n") - 1
    assert read_result(tmp_path / "run") == []
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_stopped_in_the_middle(experiment: Path, tmp_path: Path, sent: signal.Signals, code: int) -> None:
    """Ctrl-C, SIGTERM and a kill leave what was measured, readable; the first two a checkpoint, and how to go on."""
    given = ("--set", "run.rounds=20000", "--set", "strategy.gossip.local={lr=0.1}", "--out", str(tmp_path / "run"))
    command = [sys.executable, "-m", "fedsim.cli", "run", str(experiment), *given]
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs, and their children, ignore it
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    metrics = tmp_path / "run" / "metrics.csv"
    patience = time.monotonic() + 60
    try:
        while not (metrics.exists() and metrics.stat().st_size > 2000):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < patience
            time.sleep(0.02)
        process.send_signal(sent)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == code
    assert "Traceback" not in err
    if sent != signal.SIGKILL:
        run = tmp_path / "run"
        assert f"interrupted; the results so far are in {run}; go on with: fedsim resume {run}\n" in err
        assert len(list((run / "checkpoints").glob("*.json"))) == 1
    assert out == ""
    measured = read_metrics(tmp_path / "run")
    assert {m.strategy for m in measured} == {"FedAvg", "FedAU, K = 5", "gossip"}  # side by side
    assert {"test_loss", "test_accuracy", "train_objective"} <= {m.metric for m in measured}
    assert read_result(tmp_path / "run") == []
    assert Schedule.load(tmp_path / "run" / "schedule-seed1.npz").n == 6
    assert tomllib.loads((tmp_path / "run" / "experiment.toml").read_text())["run"]["rounds"] == 20000


# --- help and lists ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (("--help",), ("Usage: fedsim", "run", "list")),
        ((), ("Usage: fedsim", "run", "list")),
        (("run", "--help"), ("EXPERIMENT.toml", "--set", "--out", "--device", "--data-dir", "--quiet")),
        (("list", "--help"), ("KIND", "topologies")),
        (("participation", "--help"), ("EXPERIMENT.toml", "--set", "--seed", "--out", "--json")),
        (("--version",), ("fedsim ",)),
    ],
)
def test_help_is_light(arguments: tuple[str, ...], texts: tuple[str, ...]) -> None:
    ran = subprocess.run([sys.executable, "-c", LIGHT, *arguments], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    for text in texts:
        assert text in ran.stdout


@pytest.mark.parametrize("kind", cli.listing.KINDS)
def test_lists(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("list", kind) == 0
    lines = capsys.readouterr().out.splitlines()
    for line in lines:
        assert re.fullmatch(r"\S+ {2,}\S.{9,}", line), line
    if kind == "strategies":
        assert {"FedAvg", "FedAU", "FedVARP", "MIFA", "FedStale", "DPSGD"} <= {line.split()[0] for line in lines}
        for line in lines:
            assert re.search(r", [A-Z]?.*\d{4} \(\d{4}\.\d{5}\)$", line), f"no paper: {line}"
