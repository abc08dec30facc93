"""Files of run folders that were damaged or changed: told in one line that names the file, never read as if sound."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from helpers import load_benchmark
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedsim import reread, standing
from fedsim.record import RunFolder, read_clients, read_metrics, read_result, read_times

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
MEND = "put back a copy of it, or run the experiment anew"


@pytest.fixture(scope="module")
def folders() -> ModuleType:
    return load_benchmark("fuzz_folders")


@pytest.fixture
def run(folders: ModuleType, tmp_path: Path) -> Path:
    """A sound run folder of one's own."""
    shutil.copytree(folders.sound(), tmp_path / "run")
    return tmp_path / "run"


def changed(path: Path, *by: tuple[str, str]) -> None:
    """A file with each first piece of text replaced by the second, which has to be there."""
    text = path.read_text()
    for old, new in by:
        assert re.search(old, text), old
        text = re.sub(old, new, text, count=1)
    path.write_text(text)


METRICS = [
    (r"(FedAvg,1,0,test_accuracy,)\S+", r"\1much", 'line \\d+: value is "much"'),
    (r"(FedAvg,1,0,test_accuracy,)\S+", r"\1", 'line \\d+: value is ""'),
    (r"(FedAvg,1,0,test_accuracy,)\S+", r"\g<1>1_0", 'line \\d+: value is "1_0"'),
    (r"FedAvg,1,0", "FedAvg,one,0", 'line 2: seed is "one"'),
    (r"FedAvg,1,0", "FedAvg,1,-3", 'line 2: round is "-3"'),
    (r"FedAvg,1,0", "FedAvg,1," + "9" * 5000, 'line 2: round is "9+\\.\\.\\."'),
    (r"FedAvg,1,0", ",1,0", 'line 2: strategy is ""'),
    (r"FedAvg,1,0,\S+", "FedAvg,1,0", "line 2 has 3 cells for 5 columns"),
    (r"(FedAvg,1,0,\S+)", r"\1,7", "line 2 has 6 cells for 5 columns"),
    (r"(FedAvg,1,0,\S+\n)", r"\1\1", "line 3: test_loss of FedAvg, seed 1, round 0 stands there twice"),
    (
        r"(FedAvg,1,0,\S+\n)((?:.*\n)*)(FedAvg,1,4)",
        r"\2\1\3",
        "line \\d+: round 0 of FedAvg, seed 1 comes after round 4",
    ),
    (r"^strategy,seed", "strategy,seeds", "its columns are strategy,seeds,round,metric,value and not strategy,seed,ro"),
    (r"^strategy,seed,", "strategy,", "its columns are strategy,round,metric,value and not strategy,seed,ro"),
    (r"FedAvg,1,0", '"FedAvg,1,0', "line \\d+: unexpected end of data"),
    (r"FedAvg,1,0", "Fed\nAvg,1,0", "line 2 has 1 cells for 5 columns"),
    (r"(?s).*", "", "it is empty"),
    (r"(?s).*", "strategy,see", "not one whole line is in it"),
]


@pytest.mark.parametrize(("old", "new", "said"), METRICS, ids=[str(i) for i in range(len(METRICS))])
def test_a_changed_table_is_told(old: str, new: str, said: str, run: Path) -> None:
    changed(run / "metrics.csv", (old, new))
    with pytest.raises(ValueError, match=rf"run/metrics\.csv: {said}.*; it was damaged or changed") as raised:
        read_metrics(run)
    assert str(raised.value).endswith(MEND)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "read", "old", "new", "said"),
    [
        ("times.csv", read_times, r"(FedAvg,1,0,)\S+", r"\1inf", "line 2: inf is no number of seconds"),
        ("times.csv", read_times, r"(FedAvg,1,0,\S+\n)", r"\1\1", "line 3: FedAvg, seed 1, round 0 stands there twice"),
        ("clients.csv", read_clients, r"FedAvg,1,0", "FedAvg,x,0", "line 2 holds something else than numbers"),
        ("clients.csv", read_clients, r"(FedAvg,1,0,.*\n)", r"\1\1", "line 3: client 0 of FedAvg, seed 1 stands there"),
        ("clients.csv", read_clients, r"^strategy,seed", "strategy,strategy", "a column stands there twice"),
        ("result.json", read_result, r'"seed": 1', '"seed": 1.0', "runs.0.seed: Input should be a valid integer"),
        ("result.json", read_result, r'"seed": 1', '"seed": true', "runs.0.seed: Input should be a valid integer"),
        ("result.json", read_result, r'("test_loss": )[\d.]+', r"\1NaN", "not JSON: NaN is no number"),
        ("result.json", read_result, r'("test_loss": )[\d.]+', r'\1"low"', "runs.0.final.test_loss: Input should be"),
        ("result.json", read_result, r'("seed": 1)', r'\1, "seed": 2', 'not JSON: "seed" stands there twice'),
        ("result.json", read_result, r"MIFA", "FedAvg", "FedAvg, seed 1 stands there twice"),
        ("result.json", read_result, r'"runs"', '"ran"', "runs: Field required"),
        ("result.json", read_result, r"(?s).*", "[" * 10**5, "tables in tables without end"),
        ("result.json", read_result, r"(?s).*", "[]", "it holds a list and no table"),
        ("environment.json", read_metrics, r'"threads": 1', '"threads": "1"', "threads: Input should be a valid int"),
        ("environment.json", read_metrics, r"\{", "", "not JSON: Extra data"),
    ],
)
def test_other_files_are_told(
    name: str, read: Callable[[Path], Any], old: str, new: str, said: str, run: Path
) -> None:  # fmt: skip
    changed(run / name, (old, new))
    with pytest.raises(ValueError, match=rf"run/{re.escape(name)}: {said}.*; it was damaged or changed") as raised:
        read(run)
    assert "\n" not in str(raised.value)


def test_what_is_no_text_is_told(run: Path) -> None:
    data = (run / "metrics.csv").read_bytes()
    (run / "metrics.csv").write_bytes(data[:40] + b"\xff" + data[41:])
    with pytest.raises(ValueError, match=r"metrics\.csv: byte 40 is no text; it was damaged"):
        read_metrics(run)


@pytest.mark.parametrize(("name", "read"), [("metrics.csv", read_metrics), ("result.json", read_result)])
def test_what_is_not_there_or_no_file_is_told(name: str, read: Callable[[Path], Any], run: Path) -> None:
    (run / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"run/{re.escape(name)} is not there: {MEND[:20]}"):
        read(run)
    (run / name).mkdir()
    with pytest.raises(OSError, match=rf"cannot read .*run/{re.escape(name)}: Is a directory; see that it is a file"):
        read(run)


def test_a_folder_in_a_checkpoints_place_is_none(run: Path) -> None:
    path = run / "checkpoints" / "000001.json"
    path.unlink()
    path.mkdir()
    assert standing.latest(run) == (None, [])


def again(run: Path) -> None:
    """Takes the run up where it was saved."""
    saved, wrong = standing.latest(run)
    if saved is None:
        raise ValueError(wrong[0])
    with RunFolder.reopened(run, saved.also, saved.over, {}):
        pass


def digit(path: Path, before: int) -> None:
    """Another digit in a file, the last one before a place."""
    data = bytearray(path.read_bytes())
    at = max(i for i in range(before) if chr(data[i]).isdigit())
    data[at] = ord("1") if data[at] != ord("1") else ord("2")
    path.write_bytes(bytes(data))


def test_a_run_goes_on_only_from_what_was_recorded(run: Path) -> None:
    """One digit is enough; of what was cut off anyway none counts."""
    sizes = standing.latest(run)[0].also["sizes"]  # type: ignore[union-attr]
    shutil.copytree(run, run.with_name("cut"))
    digit(run.with_name("cut") / "metrics.csv", (run / "metrics.csv").stat().st_size)
    again(run.with_name("cut"))
    for name in ("metrics.csv", "hashes.csv"):
        other = run.with_name(name)
        shutil.copytree(run, other)
        digit(other / name, sizes[name] - 1)
        with pytest.raises(ValueError, match=r"metrics\.csv: .*, seed 1, round \d is not what was recorded"):
            again(other)
    for name in ("000001.json", "000001.safetensors"):
        other = run.with_name(name)
        shutil.copytree(run, other)
        path = other / "checkpoints" / name
        data = bytearray(path.read_bytes())
        data[-9] ^= 4
        path.write_bytes(bytes(data))
        with pytest.raises(ValueError, match=rf"{name} is damaged"):
            again(other)


def test_a_run_goes_on_only_with_all_that_had_ended(run: Path) -> None:
    changed(run / "result.json", ("FedAvg", "FedAvf"))
    with pytest.raises(ValueError, match=r"result\.json: it lacks 1 runs that had ended"):
        again(run)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("lr = 0.1", "lr = 0.2", r"local\.lr was 0\.1 and is 0\.2"),
        ("steps = 1\n", "", r"local\.steps was 1 and is not set"),
        ('name = "MIFA"', 'name = "FedProx"', r'strategy\.1\.name was "MIFA" and is "FedProx"'),
        (r"seeds = \[[^]]*\]", "seeds = [1, 2]", r"run\.seeds was \[1\] and is \[1, 2\]"),
    ],
)
def test_a_run_goes_on_only_with_its_own_experiment(old: str, new: str, said: str, run: Path) -> None:
    changed(run / "experiment.toml", (old, new))
    with pytest.raises(ValueError, match=rf"experiment\.toml was changed after the run began: {said}; change it back"):
        again(run)


def test_where_data_lie_and_how_it_is_run_may_change(run: Path) -> None:
    changed(run / "experiment.toml", ("\\[task\\]\n", '[task]\ndata-dir = "/elsewhere"\n'), ('"cpu"', '"cuda"'))
    again(run)


SOME = ("run/metrics", "run/result", "run/hashes", "run/experiment", "resume/metrics", "resume/json", "sweep/index")


@pytest.mark.parametrize("name", SOME)
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(dice=st.randoms(use_true_random=False))
def test_any_damage_is_told_or_does_no_harm(name: str, dice: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    """benchmarks/fuzz.py does this some thousand times to each: what is read says what it said, or is found out."""
    fuzz = sys.modules.get("fuzz") or load_benchmark("fuzz")
    target = fuzz.TARGETS[name]
    (path := tmp_path_factory.mktemp("by") / "by").write_bytes(fuzz.mutated(target.corpus(), target.words, dice))
    with contextlib.suppress(ValueError, OSError):
        target.read(path)


def test_numbers_are_read_as_they_are_written() -> None:
    for value in (0.1, -1e-300, 1e300, float("inf"), float("-inf"), 5.0, 1 / 3):
        assert reread.number(repr(value)) == value
    assert repr(reread.number("nan")) == "nan"
    for cell in ("", " 1", "1 ", "1_0", "٣", "0x1", "one"):
        with pytest.raises(ValueError, match=r"^$|could not convert"):
            reread.number(cell)
    assert [reread.whole(cell) for cell in ("0", "-5", "9223372036854775807")] == [0, -5, 2**63 - 1]
    for cell in ("", "1.0", "+1", "1" * 20, "٣", "--1", "1e3"):
        with pytest.raises(ValueError, match=r"^$"):
            reread.whole(cell)


def test_what_the_fuzzer_found_is_committed() -> None:
    """Of every target, and no fault."""
    fuzz = sys.modules.get("fuzz") or load_benchmark("fuzz")
    found = json.loads((BENCHMARKS / "results" / "fuzz.json").read_text())["targets"]
    assert [one["target"] for one in found] == list(fuzz.TARGETS)
    assert all(one["inputs"] >= 1000 and not one["faults"] for one in found)
    assert all(one["read"] + one["refused"] == one["inputs"] for one in found)
