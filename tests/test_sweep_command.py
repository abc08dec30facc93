"""fedsim sweep, as a user meets it: what it runs, writes, refuses, and how it goes on after it was cut short."""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from helpers import LIGHT, command, small

from fedsim.record import read_metrics, read_result
from fedsim.report import maps
from fedsim.sweep import folder as folders
from fedsim.sweep.grid import read

FILE = small(
    "FedAvg", 'name = "FedStale"\nbeta = [0.0, 1.0]', task='model = "logistic"\nobjective = "uniform"',
    presence='name = "bernoulli"\nprobabilities = { name = "label-correlated", mean = 0.4, alpha = 1.0 }',
    run="""
rounds = 10
seeds = [1, 2]
eval-every = 2
threads = 1
[sweep]
"participation.probabilities.alpha" = [10.0, 0.1]
""",
)  # fmt: skip
CELLS = ["000-alpha=10,beta=0", "001-alpha=10,beta=1", "002-alpha=0.1,beta=0", "003-alpha=0.1,beta=1"]
PLAIN = "import fedsim.report as r; r.write_figures = lambda folder: []; from fedsim.cli import main; main()"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells without figures of their own, which are tested elsewhere and take longer than the runs."""
    monkeypatch.setattr("fedsim.report.write_figures", lambda folder: [])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(FILE)
    return path


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep that nobody interrupted."""
    folder = tmp_path_factory.mktemp("swept")
    (folder / "small.toml").write_text(FILE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedsim.report.write_figures", lambda folder: [])
        assert command("sweep", folder / "small.toml", "--out", folder / "out", "--quiet") == 0
    return folder / "out"


def test_a_sweep_writes_its_folder(swept: Path) -> None:
    figures = [f"{name}.{suffix}" for name in ("differences", "values") for suffix in ("png", "svg")]
    assert sorted(path.name for path in swept.iterdir()) == sorted([*CELLS, *figures, "index.csv", "sweep.toml"])
    rows = folders.read_index(swept)
    assert [(row["cell"], row["seed"], row["strategy"]) for row in rows] == [
        (cell, seed, label) for cell in CELLS for seed in "12" for label in ("FedAvg", "FedStale")
    ]
    assert list(rows[0])[:7] == [
        "cell", "participation.probabilities.alpha", "strategy.FedStale.beta", "status", "strategy", "seed", "reason"
    ]  # fmt: skip
    for row in rows:
        late = [m.value for m in read_metrics(swept / row["cell"]) if m.round > 8 and m.metric == "test_accuracy"
                and (m.strategy, str(m.seed)) == (row["strategy"], row["seed"])]  # fmt: skip
        assert float(row["test_accuracy"]) == pytest.approx(sum(late) / len(late), abs=1e-12)
        assert row["status"] == "finished"


def test_the_grid_is_in_the_order_of_the_numbers(swept: Path) -> None:
    grid = read(swept)
    assert grid is not None
    assert (grid.names, grid.values) == (("probabilities.alpha", "FedStale.beta"), ((0.1, 10.0), (0.0, 1.0)))
    for number, place in enumerate([(1, 0), (1, 1), (0, 0), (0, 1)]):
        for run in read_result(swept / CELLS[number]):
            assert grid.found[place][run["strategy"]][run["seed"]] == run["final_mean"]["test_accuracy"]


def test_a_cell_is_what_fedsim_run_gives(swept: Path, tmp_path: Path) -> None:
    """Byte for byte."""
    (tmp_path / "small.toml").write_text(FILE[: FILE.index("[sweep]")])
    changes = ["--set", "strategy.FedStale.beta=1.0", "--set", "participation.probabilities.alpha=0.1"]
    assert command("run", tmp_path / "small.toml", *changes, "--out", tmp_path / "run", "--quiet") == 0
    for name in ("metrics.csv", "experiment.toml", "clients.csv"):
        assert (swept / CELLS[3] / name).read_bytes() == (tmp_path / "run" / name).read_bytes()


def test_cells_share_their_seeds(swept: Path) -> None:
    """FedAvg knows nothing of FedStale's beta, so it does the same in both cells."""
    one, other = (
        [m for m in read_metrics(swept / CELLS[i]) if m.strategy == "FedAvg"] for i in (2, 3)
    )  # fmt: skip
    assert one == other
    assert one != [m for m in read_metrics(swept / CELLS[0]) if m.strategy == "FedAvg"]


def same(one: Path, other: Path) -> None:
    """The same sweep: index and measurements byte for byte."""
    for name in (
        "index.csv",
        "sweep.toml",
        "values.png",
        "differences.png",
        *(f"{cell}/metrics.csv" for cell in CELLS),
    ):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_killed_within_a_cell(swept: Path, file: Path, tmp_path: Path) -> None:
    """A real process, killed while it writes the second cell."""
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", PLAIN, "sweep", str(file), "--out", str(out), "--quiet"])
    try:
        patience = time.monotonic() + 60
        metrics = out / CELLS[1] / "metrics.csv"
        while not (metrics.exists() and metrics.stat().st_size > 500):
            assert process.poll() is None
            assert time.monotonic() < patience
            time.sleep(0.001)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (out / CELLS[1] / "cell.json").exists()
    assert [row["status"] for row in folders.read_index(out)] == ["finished"] * 4 + ["waiting"] * 3
    before = (out / CELLS[0] / "cell.json").stat().st_mtime_ns
    assert command("sweep", file, "--out", out, "--quiet") == 0
    assert (out / CELLS[0] / "cell.json").stat().st_mtime_ns == before
    same(out, swept)


@pytest.mark.parametrize("when", ["before the mark", "after the mark"])
def test_interrupted_between_cells(
    swept: Path,
    file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    when: str,
) -> None:
    """Ctrl-C, and what it says goes on."""
    mark = folders.mark

    def interrupted(folder: Path, made: object, cell: folders.Cell, refused: str | None = None) -> None:
        if cell.number == 2:
            if when == "after the mark":
                mark(folder, made, cell, refused)  # type: ignore[arg-type]
            raise KeyboardInterrupt
        mark(folder, made, cell, refused)  # type: ignore[arg-type]

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(folders, "mark", interrupted)
        assert command("sweep", file, "--out", out, "--quiet") == 130
    said = capsys.readouterr().err
    assert said.endswith(f"2 of 4 cells are over; go on with: fedsim sweep --resume {out}\n")
    assert command("sweep", "--resume", out) == 0
    over = 2 if when == "before the mark" else 3
    said = capsys.readouterr().out
    assert f"{over} of 4 cells are over already" in said
    assert f"sweep folder: {out}" in said
    same(out, swept)


def test_what_is_printed(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("sweep", file, "--out", tmp_path / "out", "--set", "run.rounds=4") == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0] == (
        "small: 4 cells (2 participation.probabilities.alpha x 2 strategy.FedStale.beta), 2 strategies, 2 seeds, "
        "4 rounds: 64 rounds in 16 runs"
    )
    assert "common random numbers" in lines[1]
    assert [line.split()[0] for line in err.splitlines() if "moved" not in line] == CELLS
    grid = read(tmp_path / "out")
    assert grid is not None
    shown = [line.split() for line in lines if line.split() and line.split()[0] in ("0.1", "10")]
    assert len(shown) == 4
    for words, place in zip(shown, [(0, 0), (0, 1), (1, 0), (1, 1)], strict=True):
        means = {label: float(grid.means(label)[place]) for label in grid.strategies}
        assert means[words[2]] == max(means.values())
        assert float(words[3]) == pytest.approx(max(means.values()), abs=5.1e-4)


def test_a_dry_run_is_light_and_writes_nothing(file: Path) -> None:
    command = [sys.executable, "-c", LIGHT, "sweep", str(file), "--dry-run"]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.splitlines()[2:] == CELLS
    assert list(file.parent.iterdir()) == [file]
    ran = subprocess.run([sys.executable, "-c", LIGHT, "sweep", "--help"], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    for text in ("EXPERIMENT.toml", "--over", "--resume", "--dry-run", "--metric", "--against"):
        assert text in ran.stdout


def test_a_run_that_diverges_does_not_stop_the_sweep(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    given = ("--over", "strategy.FedStale.beta=[0.5]", "--over", "strategy.FedStale.local.lr=[0.1, 1e38, 0.2]")
    assert command("sweep", file, *given, "--out", out, "--set", "run.rounds=4", "--quiet") == 2
    said = capsys.readouterr().err
    assert said.count("diverged: lower the learning rate") == 4  # two seeds, two alphas
    rows = folders.read_index(out)
    failed = [row for row in rows if row["status"] == "failed"]
    assert {(row["strategy"], row["strategy.FedStale.local.lr"]) for row in failed} == {("FedStale", "1e+38")}
    assert all("diverged" in row["reason"] and row["test_accuracy"] == "" for row in failed)
    assert len(rows) - len(failed) == 20
    assert (out / "values.png").exists()
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/*")}
    assert command("sweep", "--resume", out, "--quiet") == 2  # it is over: nothing is run again
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/*")} == before


def test_a_cell_that_only_its_data_rule_out(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Sixty examples will not do for a hundred clients: that cell is noted, and the others go on."""
    out = tmp_path / "out"
    given = ("--over", "task.clients=[6, 100, 5]", "--over", "participation.probabilities.alpha=[1.0]")
    assert command("sweep", file, *given, "--set", "strategy.1.beta=0.5", "--out", out, "--quiet") == 2
    said = capsys.readouterr().err
    assert "fedsim: cell 001-alpha=1,clients=100: " in said
    rows = folders.read_index(out)
    assert [row["status"] for row in rows] == ["finished"] * 4 + ["failed"] + ["finished"] * 4
    assert rows[4]["reason"] in said
    before = (out / "001-alpha=1,clients=100" / "cell.json").stat().st_mtime_ns
    assert command("sweep", "--resume", out, "--quiet") == 2
    assert (out / "001-alpha=1,clients=100" / "cell.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sweep",), "name an experiment file, or --resume FOLDER"),
        (("sweep", "missing.toml"), "there is no file missing.toml"),
        (("sweep", "--resume", "."), ". holds no sweep: there is no sweep.toml in it"),
        (("sweep", "small.toml", "--resume", "."), "--resume takes all from the folder"),
        (("sweep", "small.toml", "--out", "small.toml"), "small.toml is a file, not a folder"),
        (("sweep", "small.toml", "--out", "."), ". is not empty and holds no sweep"),
        (("sweep", "small.toml", "--out", "small.toml/x"), "cannot write small.toml/x: Not a directory"),
        (("sweep", "small.toml", "--over", "run.rounds=[4, 0]"), "cell 002-alpha=10,rounds=0,beta=0: [run] rounds"),
        (("sweep", "small.toml", "--metric", "present"), 'of metric "present" nobody knows'),
        (("sweep", "small.toml", "--against", "FedStela"), "\"FedStela\"; did you mean 'FedStale'?"),
        (("sweep", "small.toml", "--device", "cuda:77"), 'device "cuda:77" is not there'),
        (("sweep", "small.toml", "--set", "task.data=mnist", "--data-dir", "nowhere", "--out", "a/b"), "nowhere/mnist"),
        (("run", "small.toml"), "has a table [sweep]: run it with fedsim sweep"),
        (("run", "lists.toml"), 'a finite number or "auto", got [0.0, 1.0]; fedsim sweep tries each value'),
        (("run", "lists.toml", "--set", "task.partition=['iid']"), "fedsim sweep tries each"),
    ],
)  # fmt: skip
def test_refused_in_one_line(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...], message: str,
) -> None:  # fmt: skip
    """And nothing is left behind."""
    monkeypatch.chdir(file.parent)
    Path("lists.toml").write_text(FILE[: FILE.index("[sweep]")])
    before = sorted(file.parent.iterdir())
    assert command(*arguments, *(["--quiet"] if arguments[0] == "sweep" else [])) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert (out, err.count("\n")) == ("", 1)
    assert sorted(file.parent.iterdir()) == before


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--set", "run.rounds=20"), "holds another sweep: run.rounds is 10 there and 20 here"),
        (
            ("--over", "strategy.FedStale.beta=[0.0, 0.5]"),
            "[sweep] strategy.FedStale.beta is [0.0, 1.0] there and [0.0, 0.5]",
        ),
        (("--over", "local.lr=[0.1]"), "[sweep] local.lr is not given there and [0.1] here"),
    ],
)
def test_another_sweep_in_the_folder(
    swept: Path, file: Path, capsys: pytest.CaptureFixture[str], given: tuple[str, ...], message: str
) -> None:
    before = {path: path.read_bytes() for path in swept.rglob("*") if path.is_file()}
    assert command("sweep", file, "--out", swept, *given) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert (out, err.count("\n")) == ("", 1)
    assert {path: path.read_bytes() for path in swept.rglob("*") if path.is_file()} == before


def test_two_at_once(swept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open(swept / "sweep.toml", "rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert command("sweep", "--resume", swept, "--quiet") == 2
    assert capsys.readouterr().err == f"fedsim: another fedsim sweep is at work in {swept}\n"


def test_figures_of_another_metric(swept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = read(swept, "test_loss")
    assert grid is not None
    assert grid.metric == "test_loss"
    with pytest.raises(ValueError, match="was not measured; did you mean 'test_loss'"):
        read(swept, "test_los")
    copied = tmp_path / "copied"
    copied.mkdir()
    for name in ("sweep.toml", "index.csv"):
        (copied / name).write_bytes((swept / name).read_bytes())
    assert maps.write_maps(copied) == ["values", "differences"]
    same_picture = (copied / "values.png").read_bytes()
    assert same_picture == (swept / "values.png").read_bytes()
    assert maps.write_maps(copied, "test_loss", "FedStale") == ["values", "differences"]
    assert (copied / "values.png").read_bytes() != same_picture


def test_a_cell_that_was_tampered_with_is_run_again(swept: Path, tmp_path: Path) -> None:
    """Its mark is there, and not all its runs are."""
    out = tmp_path / "out"
    shutil.copytree(swept, out)
    result = out / CELLS[2] / "result.json"
    table = json.loads(result.read_text())
    result.write_text(json.dumps({"runs": table["runs"][:-1]}))
    assert command("sweep", "--resume", out, "--quiet") == 0
    same(out, swept)
    assert len(read_result(out / CELLS[2])) == 4
    assert math.isfinite(read_result(out / CELLS[2])[-1]["final_mean"]["test_loss"])
    assert os.listdir(out / CELLS[2]).count("cell.json") == 1


def test_a_cell_that_was_cut_short_goes_on_from_its_checkpoint(
    swept: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C in the third cell, in its fifth round: the rounds before are not played again."""
    from fedsim import compare

    out, played = tmp_path / "out", [0]
    advance = compare.advance

    def interrupted(*arguments: Any) -> Any:
        for name, turn in advance(*arguments):
            played[0] += 1
            if played[0] == 2 * 4 * 10 + 17:  # 4 runs in a cell
                signal.raise_signal(signal.SIGINT)
            yield name, turn

    with monkeypatch.context() as patch:
        patch.setattr(compare, "advance", interrupted)
        assert command("sweep", file, "--out", out, "--quiet") == 130
    capsys.readouterr()
    before = played[0]
    with monkeypatch.context() as patch:
        patch.setattr(compare, "advance", interrupted)
        assert command("sweep", "--resume", out) == 0
    assert before == 2 * 4 * 10 + 20
    assert played[0] == 4 * 4 * 10
    assert f"{out / CELLS[2]} goes on from round 5 of 10: of 4 runs 0 are over, 4 under way" in capsys.readouterr().err
    for cell in CELLS:
        assert (out / cell / "metrics.csv").read_bytes() == (swept / cell / "metrics.csv").read_bytes()
    assert (out / "index.csv").read_bytes() == (swept / "index.csv").read_bytes()
