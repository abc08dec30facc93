"""fedsim verify: a folder that nobody touched is equal, and whatever is changed in one is found, and where."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import command, small

from fedsim import hashes, verify
from fedsim.participation import Schedule
from fedsim.record.reading import metric_lines

FILE = small(
    "FedAvg", 'name = "DPSGD"\nlabel = "gossip, plain"\ntopology = "ring"',
    run="""
rounds = 10
seeds = [1, 2]
eval-every = 3
chunk = 2
threads = 1
device = "cpu"
""",
)  # fmt: skip


pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run as it was recorded; not to be written into."""
    folder = tmp_path_factory.mktemp("recorded")
    (folder / "small.toml").write_text(FILE)
    assert command("run", folder / "small.toml", "--out", folder / "run", "--quiet") == 0
    return folder / "run"


@pytest.fixture
def run(recorded: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(recorded, tmp_path / "run")
    return tmp_path / "run"


def test_an_honest_folder_is_equal_bit_for_bit(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in recorded.iterdir()}
    assert command("verify", recorded) == 0
    said = "book: 20 evaluations, as they were recorded\n"
    assert capsys.readouterr().out == f"{said}{recorded} is equal: 20 of 20 evaluations, bit for bit\n"
    assert command("verify", recorded, "--rounds", "4") == 0
    assert capsys.readouterr().out.endswith("is equal: 8 of 8 evaluations, bit for bit\n")  # rounds 0 and 3
    assert command("verify", recorded, "--book") == 0
    assert capsys.readouterr().out == said
    assert command("verify", recorded, "--quiet", "--set", "run.together=1") == 0
    assert capsys.readouterr().out == ""
    assert {path: path.read_bytes() for path in recorded.iterdir()} == before


def test_another_engine_is_equal_within_tolerance(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Sums are rounded otherwise, so some models are others; the tolerance holds with room."""
    assert command("verify", recorded, "--set", "run.engine=loop") == 0
    said = capsys.readouterr().out
    assert "is equal within tolerance: " in said
    assert "largest difference: " in said
    part = re.search(r", (\S+) of what is allowed", said)
    assert part is not None
    assert 0 < float(part[1]) < 0.1


def changed(path: Path, change: Callable[[list[list[str]]], object]) -> None:
    """A csv file with its rows, the head left out, changed."""
    head, *rows = list(csv.reader(io.StringIO(path.read_text())))
    change(rows)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *rows])
    path.write_text(text.getvalue())


def nudged(rows: list[list[str]]) -> None:
    """The last bit of one number."""
    row = next(row for row in rows if row[:4] == ["gossip, plain", "2", "6", "test_loss"])
    row[4] = repr(math.nextafter(float(row[4]), 9.0))


def place(rows: list[list[str]]) -> int:
    return next(i for i, row in enumerate(rows) if row[:4] == ["gossip, plain", "2", "6", "test_loss"])


TAMPERED: dict[str, Callable[[list[list[str]]], object]] = {
    "a number's last bit": nudged,
    "a line taken out": lambda rows: rows.pop(place(rows)),
    "a line twice": lambda rows: rows.insert(place(rows), rows[place(rows)]),
    "lines exchanged": lambda rows: rows.insert(place(rows) + 1, rows.pop(place(rows))),
    "an evaluation taken out": lambda rows: rows.__setitem__(
        slice(None), [row for row in rows if row[:3] != ["gossip, plain", "2", "6"]]
    ),
    "a metric renamed": lambda rows: rows[place(rows)].__setitem__(3, "test_lost"),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_whatever_is_changed_in_the_metrics_is_found(run: Path, capsys: pytest.CaptureFixture[str], what: str) -> None:
    """Without running anything."""
    changed(run / "metrics.csv", TAMPERED[what])
    assert command("verify", run, "--book") == 1
    where = "gossip, plain, seed 2, round 6"
    assert capsys.readouterr().out == f"{run} differs: metrics.csv was changed after it was recorded: {where}\n"


def test_an_evaluation_put_in_is_found(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed(run / "metrics.csv", lambda rows: rows.append(["FedAvg", "1", "8", "test_loss", "0.1"]))
    assert command("verify", run, "--book") == 1
    assert "recorded: FedAvg, seed 1, round 8" in capsys.readouterr().out


@pytest.mark.parametrize(("part", "said"), [("final", "test_accuracy"), ("final_mean", "mean test_accuracy")])
def test_results_that_are_not_those_of_the_metrics_are_found(
    run: Path, capsys: pytest.CaptureFixture[str], part: str, said: str
) -> None:
    result = json.loads((run / "result.json").read_text())
    result["runs"][2][part]["test_accuracy"] += 0.01
    (run / "result.json").write_text(json.dumps(result))
    assert command("verify", run, "--book") == 1
    assert f"result.json was changed after it was recorded: FedAvg, seed 2, {said}" in capsys.readouterr().out


def forged(run: Path) -> None:
    """A number changed, and the chain made to fit again: the folder agrees with itself."""
    changed(run / "metrics.csv", nudged)
    lines = metric_lines(run)
    stand: dict[tuple[str, int], str] = {}
    links = []
    for one in hashes.read(run):
        where = one[:3]
        stand[where[:2]] = hashes.link(stand.get(where[:2], hashes.START), lines[where], one.model)
        links.append([*one[:4], stand[where[:2]]])
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([hashes.HEAD, *links])
    (run / hashes.FILE).write_text(text.getvalue())


def test_a_forged_chain_is_found_by_running_it_again(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A last bit is within what rounding explains, and is told; more than that is a difference."""
    forged(run)
    assert command("verify", run, "--book") == 0
    assert command("verify", run) == 0
    said = capsys.readouterr().out
    assert "equal within tolerance: 19 of 20 evaluations bit for bit, 1 to rounding" in said
    assert "largest difference: test_loss of gossip, plain, seed 2, round 6, " in said
    changed(run / "metrics.csv", lambda rows: rows[place(rows)].__setitem__(4, "0.25"))
    forged(run)
    capsys.readouterr()
    assert command("verify", run) == 1
    assert "differs first in gossip, plain, seed 2, round 6: test_loss was 0.25" in capsys.readouterr().out


def test_another_experiment_is_found(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (run / "experiment.toml").read_text()
    (run / "experiment.toml").write_text(text.replace("lr = 0.1", "lr = 0.1001"))
    assert command("verify", run) == 1
    said = capsys.readouterr().out
    assert f"{run} differs first in FedAvg, seed 1, round 3: " in said
    assert "times what rounding explains" in said


def test_another_schedule_is_found(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Schedule.load(run / "schedule-seed1.npz").save(run / "schedule-seed2.npz")
    assert command("verify", run) == 1
    said = capsys.readouterr().out
    assert f"differs: {run / 'schedule-seed2.npz'} is not the schedule that the experiment draws" in said


def test_evaluations_that_are_not_of_the_experiment_are_found(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows and links left out together, and rounds that never were."""
    gone = lambda rows: rows.__setitem__(  # noqa: E731
        slice(None), [row for row in rows if not (row[1] == "1" and row[2] == "3")]
    )
    changed(run / "metrics.csv", gone)
    changed(run / hashes.FILE, gone)
    forged(run)
    assert command("verify", run) == 1
    assert "differs: metrics.csv lacks FedAvg, seed 1, round 3" in capsys.readouterr().out
    text = (run / "experiment.toml").read_text()
    (run / "experiment.toml").write_text(text.replace("seeds = [\n    1,\n    2,\n]", "seeds = [2]"))
    assert "seeds = [2]" in (run / "experiment.toml").read_text()
    assert command("verify", run) == 1
    assert "differs: the experiment does not come to " in capsys.readouterr().out


def test_a_run_cut_short_is_verified_as_far_as_it_came(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where the last evaluation's hash was not written any more."""
    (run / "result.json").write_text('{"runs": []}')
    first = [one[:3] for one in hashes.read(run)][:9]
    changed(run / hashes.FILE, lambda rows: rows.__delitem__(slice(8, None)))
    cut = lambda rows: rows.__setitem__(  # noqa: E731
        slice(None), [row for row in rows if (row[0], int(row[1]), int(row[2])) in first]
    )
    changed(run / "metrics.csv", cut)
    assert command("verify", run) == 0
    assert capsys.readouterr().out.endswith("is equal: 9 of 9 evaluations, bit for bit\n")


def test_a_folder_of_before_there_were_hashes_is_verified_by_its_metrics(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / hashes.FILE).unlink()
    assert command("verify", run) == 0
    said = capsys.readouterr().out
    assert said.startswith("book: 20 evaluations, without hashes of their models, as they were recorded\n")
    assert "is equal: 20 of 20" in said
    changed(run / "metrics.csv", lambda rows: rows[place(rows)].__setitem__(4, "0.25"))
    assert command("verify", run) == 1


def test_what_is_asked_wrongly_is_refused(recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("verify", tmp_path) == 2
    assert "holds no run" in capsys.readouterr().err
    assert command("verify", recorded, "--set", "run.rounds=5") == 2
    assert "what is verified stays as it is; only engine, chunk, threads" in capsys.readouterr().err


def test_what_differences_are_allowed() -> None:
    """Of a loss, so many roundings a round; of what is counted, none; of an accuracy a few examples."""
    eps = 2.0**-23
    assert verify.difference({"test_loss": 2.0}, {"test_loss": 2.0}, 9, "float32") == (0.0, "")
    worst, name = verify.difference(
        {"test_loss": 2.0, "x": 1.0}, {"test_loss": 2.0 + 1000 * eps, "x": 1.0}, 9, "float32"
    )
    assert (name, worst) == ("test_loss", pytest.approx(0.5, rel=1e-3))
    assert verify.difference({"test_loss": 2.0}, {"test_loss": 2.0 + eps}, 9, "float64")[0] > 1
    assert verify.difference({"bytes_up": 1e9}, {"bytes_up": 1e9 + 1}, 9, "float32") == (math.inf, "bytes_up")
    assert verify.difference({"test_accuracy": 0.5}, {"test_accuracy": 0.51}, 1, "float32")[0] == pytest.approx(
        0.5, rel=1e-2
    )
    assert verify.difference({"test_accuracy": 0.5}, {"test_accuracy": 0.53}, 1, "float32")[0] > 1
    assert verify.difference({"a": math.nan}, {"a": math.nan}, 1, "float32") == (0.0, "")
    assert verify.difference({"a": math.nan}, {"a": 1.0}, 1, "float32") == (math.inf, "a")
    assert verify.difference({"a": 1.0}, {"a": 1.0, "b": 1.0}, 1, "float32") == (math.inf, "b")


def test_a_models_hash_is_of_its_bits_shape_and_precision() -> None:
    x = torch.arange(6.0)
    different = [
        x,
        x.double(),
        x.reshape(2, 3),
        x.flip(0),
        -x,
        torch.nextafter(x, x + 1),
        torch.zeros(6),
        -torch.zeros(6),
    ]
    assert len({hashes.of_model(one) for one in different}) == len(different)
    assert hashes.of_model(x.expand(3, 6)) == hashes.of_model(x.repeat(3, 1))
