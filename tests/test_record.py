"""Run folders and checkpoints: readable at any moment, whole or not there, the same again."""

from __future__ import annotations

import errno
import itertools
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsim import clients, report
from fedsim.checkpoint import load_checkpoint, save_checkpoint
from fedsim.files import write_atomically
from fedsim.participation import Bernoulli
from fedsim.record import Measurement, RunFolder, default_folder, read_clients, read_metrics, read_result
from fedsim.report import clients as report_clients
from fedsim.report import ledger as report_ledger
from fedsim.report.style import pens
from fedsim.rows import Rows


def a_run(folder: Path, accuracy: float = 0.5, loss: float = 1.0) -> None:
    """A small folder as the command leaves it."""
    with RunFolder(folder, 'name = "x"\n', {"python": "3"}) as run:
        run.schedule(1, Bernoulli(0.5).draw(5, 20, seed=1))
        for seed in (1, 2):
            for label in ("FedAvg", "gossip, plain"):
                for t in (0, 10, 20):
                    metrics = {"test_accuracy": accuracy + 0.01 * t + 0.001 * seed, "test_loss": loss}
                    run.measured(label, seed, t, metrics)
                run.finished({"strategy": label, "seed": seed, "rounds": 20, "final": metrics, "final_mean": metrics})


# --- run folders ------------------------------------------------------------------------------------------------------


def test_what_is_written_is_read(tmp_path: Path) -> None:
    a_run(tmp_path / "run")
    measured = read_metrics(tmp_path / "run")
    assert len(measured) == 2 * 2 * 3 * 2
    assert measured[0] == Measurement("FedAvg", 1, 0, "test_accuracy", 0.501)
    assert measured[-1].strategy == "gossip, plain"  # a comma in a label is quoted
    assert (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0] == "strategy,seed,round,metric,value"
    assert [run["seed"] for run in read_result(tmp_path / "run")] == [1, 1, 2, 2]
    assert (tmp_path / "run" / "experiment.toml").read_text() == 'name = "x"\n'


def test_results_are_there_as_soon_as_measured(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", "", {})
    assert read_metrics(tmp_path / "run") == []
    assert read_result(tmp_path / "run") == []
    run.measured("FedAvg", 1, 0, {"test_loss": 2.5})
    assert read_metrics(tmp_path / "run") == [Measurement("FedAvg", 1, 0, "test_loss", 2.5)]
    run.close()


def test_a_line_cut_short_is_passed_over(tmp_path: Path) -> None:
    a_run(tmp_path / "run")
    whole = read_metrics(tmp_path / "run")
    with open(tmp_path / "run" / "metrics.csv", "a") as file:
        file.write("FedAvg,2,30,test_accu")
    assert read_metrics(tmp_path / "run") == whole


def test_numbers_survive(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", "", {})
    values = [1 / 3, 1e-300, 1e300, float("nan"), float("inf")]
    run.measured("x", 1, 0, {str(i): value for i, value in enumerate(values)})
    name = {"strategy": "x", "seed": 1, "rounds": 1}
    run.finished({**name, "final": {"a": float("nan"), "b": -math.inf, "c": 1 / 3}})
    run.close()
    found = [m.value for m in read_metrics(tmp_path / "run")]
    assert found[:3] == values[:3]
    assert math.isnan(found[3])
    assert found[4] == math.inf
    assert read_result(tmp_path / "run") == [{**name, "final": {"a": None, "b": None, "c": 1 / 3}}]  # no NaN in JSON


def test_clients_are_written_as_columns_and_read_back(tmp_path: Path) -> None:
    """Numbers to the last bit, an empty cell for NaN."""
    with RunFolder(tmp_path / "run", "", {}) as run:
        assert read_clients(tmp_path / "run") == []
        table = {"client": np.arange(3), "rate": np.array([1 / 3, 0.0, 1.0]), "loss": np.array([0.1, np.nan, np.inf])}
        run.clients("a, b", 1, table)
        lines = read_clients(tmp_path / "run")
        run.clients("c", 2, {"client": [0], "rate": [0.5], "loss": [1e-300]})
    assert list(lines[0]) == ["strategy", "seed", "client", "rate", "loss"]
    assert [line["strategy"] for line in lines] == 3 * ["a, b"]
    assert [float(line["rate"]) for line in lines] == table["rate"].tolist()
    assert [line["loss"] for line in lines] == ["0.1", "", "inf"]
    assert read_clients(tmp_path / "run")[:3] == lines
    assert list(read_clients(tmp_path / "run")[3].values()) == ["c", "2", "0", "0.5", "1e-300"]


def test_tables_of_clients_may_have_different_columns(tmp_path: Path) -> None:
    """A column that comes later is empty before, one that is missing is empty after, and no cell changes place."""
    with RunFolder(tmp_path / "run", "", {}) as run:
        run.clients("first", 1, {"client": [0, 1], "loss": [0.25, 0.5]})
        run.clients("second", 1, {"client": [0, 1], "effective_weight": [0.75, 1.25], "loss": [1.0, 2.0]})
        run.clients("third", 1, {"loss": [4.0], "client": [7]})
    found = [tuple(line.values()) for line in read_clients(tmp_path / "run")]
    assert (tmp_path / "run" / "clients.csv").read_text().startswith("strategy,seed,client,loss,effective_weight\n")
    assert found == [
        ("first", "1", "0", "0.25", ""),
        ("first", "1", "1", "0.5", ""),
        ("second", "1", "0", "1.0", "0.75"),
        ("second", "1", "1", "2.0", "1.25"),
        ("third", "1", "7", "4.0", ""),
    ]


def test_too_many_clients_are_not_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsim.record.folder.LISTED", 3)
    with RunFolder(tmp_path / "run", "", {}) as run:
        run.clients("many", 1, {"client": np.arange(4)})
        run.clients("nobody", 1, {})  # as a run elsewhere tells of too many
        assert not (tmp_path / "run" / "clients.csv").exists()
        run.clients("few", 1, {"client": np.arange(3)})
    assert len(read_clients(tmp_path / "run")) == 3


@pytest.mark.parametrize("columns", [("client",), ("client", "loss")])
def test_clients_on_a_full_disk_keep_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: tuple[str, ...]
) -> None:
    """Added to the file, or the file replaced for a new column: one line that names it, and every line whole."""
    with RunFolder(tmp_path / "run", "", {}) as run:
        run.clients("a", 1, {"client": [0, 1]})
        before = (tmp_path / "run" / "clients.csv").read_bytes()
        full_disk(monkeypatch, "clients.csv")
        with pytest.raises(
            OSError, match=r"^cannot write .*clients\.csv: No space left on device; make room or choose"
        ):
            run.clients("b", 1, {name: [0, 1] for name in columns})
        monkeypatch.undo()
        assert (tmp_path / "run" / "clients.csv").read_bytes() == before
        run.clients("c", 1, {name: [0, 1] for name in columns})
    assert [line["strategy"] for line in read_clients(tmp_path / "run")] == ["a", "a", "c", "c"]


@pytest.mark.parametrize("name", ["experiment.toml", "result.json", "metrics.csv", "clients.csv", "environment.json"])
def test_a_folder_with_a_run_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(FileExistsError, match="already holds a run"):
        RunFolder(tmp_path, "", {})
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


def test_a_folder_with_other_things_is_used(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    RunFolder(tmp_path, "", {}).close()
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "result.json").exists()


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match=r"is a file, not a folder|cannot write .* Not a directory"):
            RunFolder(path, "", {})


def test_default_folders_do_not_collide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = default_folder("demo")
    assert first.parent == Path("runs")
    assert first.name.startswith("demo-")
    first.mkdir(parents=True)
    import datetime

    stamp = datetime.datetime.strptime(first.name.removeprefix("demo-"), "%Y%m%d-%H%M%S")
    assert default_folder("demo", stamp).name == f"{first.name}-2"


def full_disk(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """From now on no file of this name (or its temporary) can be written."""
    real = open

    def opened(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if name in str(path) and mode[0] in "wxa":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return real(path, mode, *args, **kwargs)

    monkeypatch.setattr("builtins.open", opened)


@pytest.mark.parametrize("name", ["experiment.toml", "environment.json", "result.json", "metrics.csv"])
def test_a_full_disk_at_the_start_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    full_disk(monkeypatch, name)
    with pytest.raises(OSError, match=rf"^cannot write .*{name}: No space left on device; make room or choose"):
        RunFolder(tmp_path / "a" / "b", "text", {})
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_later_keeps_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder(tmp_path / "run", "", {})
    run.finished({"strategy": "first", "seed": 1, "rounds": 1})
    full_disk(monkeypatch, "result.json")
    with pytest.raises(OSError, match=r"cannot write .*result\.json"):
        run.finished({"strategy": "second", "seed": 1, "rounds": 1})
    assert read_result(tmp_path / "run") == [{"strategy": "first", "seed": 1, "rounds": 1}]
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.endswith(".tmp")]
    run.close()


LIMITED = """
import resource, sys
from fedsim.record import RunFolder
run = RunFolder(sys.argv[1], "", {})
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # the kernel now cuts every file at 1000 bytes
try:
    for t in range(1000):
        run.measured("FedAvg", 1, t, {"test_accuracy": 0.5, "test_loss": 1.0})
except OSError as error:
    print(t, error)
"""


def test_a_write_cut_short_leaves_whole_lines(tmp_path: Path) -> None:
    """A disk that is full in the middle of a line."""
    ran = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path / "run")], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    t, message = ran.stdout.split(maxsplit=1)
    assert message.startswith(f"cannot write {tmp_path / 'run' / 'metrics.csv'}: File too large")
    text = (tmp_path / "run" / "metrics.csv").read_text()
    assert text.endswith("\n")
    measured = read_metrics(tmp_path / "run")
    assert len(measured) == 2 * int(t)  # an evaluation is there whole or not at all
    assert all(math.isfinite(m.value) for m in measured)


def test_replacing_a_file_fails_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomically(tmp_path / "x", b"old")
    monkeypatch.setattr("os.fsync", lambda fd: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(OSError, match="cannot write"):
        write_atomically(tmp_path / "x", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_bytes() == b"old"


# --- figures ----------------------------------------------------------------------------------------------------------


def test_figures_are_drawn_and_the_same_again(tmp_path: Path) -> None:
    a_run(tmp_path / "run")
    drawn = report.write_figures(tmp_path / "run")
    assert drawn == ["curves", "final", "participation"]
    first = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir() if p.suffix in (".png", ".svg")}
    assert set(first) == {f"{name}.{suffix}" for name in drawn for suffix in ("png", "svg")}
    assert all(data.startswith(b"\x89PNG") for name, data in first.items() if name.endswith("png"))
    assert b"gossip, plain" in first["curves.svg"] or b"<path" in first["curves.svg"]
    report.write_figures(tmp_path / "run")
    assert first == {name: (tmp_path / "run" / name).read_bytes() for name in first}


def test_figures_of_what_went_wrong(tmp_path: Path) -> None:
    """NaN, one point, no finished run, nothing at all: still a figure or none, never an error."""
    with RunFolder(tmp_path / "run", "", {}) as run:
        assert report.write_figures(tmp_path / "run") == []
        run.measured("FedAvg", 1, 0, {"test_accuracy": math.nan, "test_loss": 2.0})
        run.measured("FedAvg", 1, 1, {"test_accuracy": math.nan, "test_loss": 1e30})
        assert report.write_figures(tmp_path / "run") == ["curves"]
        run.finished(
            {"strategy": "FedAvg", "seed": 1, "rounds": 1, "final_mean": {"test_accuracy": math.nan, "test_loss": 1e30}}
        )
        assert report.write_figures(tmp_path / "run") == ["curves", "final"]


def clients_of(n: int, against: str | None = None, held: bool = True, classes: bool = True) -> dict[str, Any]:
    """A summary of n clients, the first of whom has nothing held out."""
    i = np.arange(n)
    table = {"client": i, "examples": 1 + i, "held_out": np.minimum(i, held), "rate": i / n, "loss": 1.0 + i}
    table["loss"][0] = np.nan if held else 1.0
    table |= {"accuracy": i / n} if classes else {}
    summary = clients.summary(table)
    return summary | ({"harm": {"against": against, **clients.harm(table, table)}} if against else {})


@pytest.mark.parametrize(
    ("n", "held", "classes"), [(1, False, True), (4, True, True), (40, True, False), (40, False, True)]
)
def test_figures_of_clients(tmp_path: Path, n: int, held: bool, classes: bool) -> None:
    """From result.json, where a part in which nobody is measured is null; whatever else a run lacks."""
    with RunFolder(tmp_path / "run", "", {}) as run:
        for seed in (1, 2):
            final = {"test_loss": 1.0}
            for label, against in (("alone", None), ("FedAvg", "alone"), ("MIFA", "alone")):
                told = clients_of(n, against, held, classes)
                run.finished({"strategy": label, "seed": seed, "rounds": 1, "final_mean": final, "clients": told})
            run.finished({"strategy": "not measured", "seed": seed, "rounds": 1, "final_mean": final})
    runs, labels = read_result(tmp_path / "run"), ["alone", "FedAvg", "MIFA", "not measured"]
    assert (runs[0]["clients"]["by_participation"][0]["loss"] is None) == (held and n == 4)
    drawn = report_clients.clients(runs, pens(labels))
    assert drawn is not None
    left, right = drawn.axes
    what = ("Accuracy" if classes else "Loss") + " on clients' own " + ("held-out" if held else "training")
    assert left.get_title().startswith(what)
    assert len(left.get_xticks()) == len(right.get_xticks()) == min(n, 10)
    key = "accuracy" if classes else "loss"
    for axes, order in ((left, "by_participation"), (right, "by_size")):
        lines = [line for line in axes.get_lines() if line.get_marker() == "o"]
        assert len(lines) == 3
        want = [(i + 1, part[key]) for i, part in enumerate(runs[0]["clients"][order]) if part[key] is not None]
        assert list(zip(*lines[0].get_data(), strict=True)) == [(x, pytest.approx(y)) for x, y in want]
    harm = report_clients.harm(runs, pens(labels))
    assert harm is not None
    assert [tick.get_text() for tick in harm.axes[0].get_yticklabels()] == ["FedAvg", "MIFA"]
    assert 'worse off than "alone"' in harm.axes[0].get_title()


def test_there_is_no_figure_of_clients_that_are_not_measured() -> None:
    run = {"strategy": "FedAvg", "seed": 1, "final_mean": {}}
    assert report_clients.clients([run], pens(["FedAvg"])) is None
    assert report_clients.harm([run | {"clients": clients_of(5)}], pens(["FedAvg"])) is None


def test_figures_of_the_ledger_and_of_the_error(tmp_path: Path) -> None:
    """Weights as multiples of the objective's; the error's terms end to end, a negative one going back."""
    terms = {"participation_bias": 0.3, "client_drift": -0.1, "sampling_noise": 0.05}
    with RunFolder(tmp_path / "run", "", {}) as run:
        for seed in (1, 2):
            run.measured("FedAvg", seed, 10, {"weight_distance": 0.4, "suboptimality": 0.25})
            run.measured("FedAdam", seed, 10, {"suboptimality": 0.5})
            table = {"client": np.arange(20), "examples": np.ones(20), "held_out": np.zeros(20), "loss": np.ones(20)}
            table |= {"rate": np.arange(20) / 20, "weight": np.full(20, 0.05)}
            table |= {"effective_weight": np.arange(20) / 190}
            final = {"strategy": "FedAvg", "seed": seed, "rounds": 1, "final_mean": {"test_loss": 1.0}}
            run.finished(final | {"clients": clients.summary(table), "error": terms | {"suboptimality": 0.25}})
            adam = {"strategy": "FedAdam", "seed": seed, "rounds": 1, "final_mean": {}}
            run.finished(adam | {"error": {"not_split": "why"}})
    assert {"weights", "bias", "error"} <= set(report.write_figures(tmp_path / "run"))
    runs = read_result(tmp_path / "run")
    drawn = report_ledger.weights(runs, pens(["FedAvg", "FedAdam"]))
    assert drawn is not None
    (line,) = (line for line in drawn.axes[0].get_lines() if line.get_marker() == "o")
    assert line.get_ydata() == pytest.approx([(4 * i + 1) / 190 / 0.1 for i in range(10)])
    drawn = report_ledger.error(runs)
    assert drawn is not None
    bars = [(bar.get_x(), bar.get_width()) for bar in drawn.axes[0].patches]
    assert bars == [(pytest.approx(x), pytest.approx(width)) for x, width in ((0.0, 0.3), (0.3, -0.1), (0.2, 0.05))]
    assert [tick.get_text() for tick in drawn.axes[0].get_yticklabels()] == ["FedAvg"]
    assert report_ledger.error([run | {"error": None} for run in runs]) is None
    assert report_ledger.weights([run | {"clients": None} for run in runs], {}) is None


def test_labels_are_spread_without_overlap() -> None:
    from fedsim.report.style import spread

    places = spread([0.1, 0.5, 0.5, 0.52, 0.9], gap=0.1)
    assert places == sorted(places)
    assert min(b - a for a, b in itertools.pairwise(places)) >= 0.1 - 1e-12
    assert places[0] == 0.1
    assert places[-1] == 0.9
    assert sum(places[1:4]) / 3 == pytest.approx((0.5 + 0.5 + 0.52) / 3)


def test_each_strategy_has_a_pen_of_its_own() -> None:
    from fedsim.report.style import COLOURS, pens

    labels = [str(i) for i in range(2 * len(COLOURS))]
    assert len(set(pens(labels).values())) == len(labels)
    assert pens(labels)["3"] == pens(labels[:5])["3"]


# --- checkpoints ------------------------------------------------------------------------------------------------------


class Inner(NamedTuple):
    x: Tensor
    table: Rows
    steps: int


class State(NamedTuple):
    x: Tensor
    inner: Inner
    velocity: Tensor | None
    seen: tuple[Tensor, ...]
    lr: float
    name: str
    on: bool
    nothing: None = None


def a_state(n: int = 5, parameters: int = 3, dtype: torch.dtype = torch.float32) -> State:
    x = torch.zeros(parameters, dtype=dtype)
    table = Rows(torch.full((n,), 1 / n), x)
    inner = Inner(x.clone(), table, 0)
    return State(x, inner, None, (torch.zeros(n, dtype=torch.int64), torch.zeros(n, dtype=torch.bool)), 0.0, "", False)


def trained() -> State:
    state = a_state()
    state.inner.table[torch.tensor([1, 3])] = torch.arange(6.0).view(2, 3) / 7
    inner = state.inner._replace(x=torch.randn(3, generator=torch.Generator().manual_seed(0)), steps=9)
    seen = (torch.arange(5), torch.arange(5) > 2)
    return state._replace(x=inner.x, inner=inner, velocity=torch.ones(5, 3), seen=seen, lr=1 / 3, name="é", on=True)


def test_a_checkpoint_is_the_state(tmp_path: Path) -> None:
    saved = trained()
    save_checkpoint(tmp_path / "c.safetensors", saved, 17, {"seed": 1, "label": "x", "digest": "abc"})
    state, t, meta = load_checkpoint(tmp_path / "c.safetensors", a_state())
    assert (t, meta) == (17, {"seed": 1, "label": "x", "digest": "abc"})
    assert type(state) is State
    assert type(state.inner) is Inner
    assert torch.equal(state.x, saved.x)
    assert torch.equal(state.inner.table.dense(), saved.inner.table.dense())
    assert torch.equal(state.inner.table.mean, saved.inner.table.mean)
    assert state.inner.table.seen().tolist() == [False, True, False, True, False]
    assert torch.equal(state.velocity, torch.ones(5, 3))
    assert [tensor.dtype for tensor in state.seen] == [torch.int64, torch.bool]
    assert state[4:] == saved[4:]
    assert state.inner.steps == 9


def test_a_checkpoint_shares_no_memory(tmp_path: Path) -> None:
    saved = trained()
    save_checkpoint(tmp_path / "c", saved, 0)
    first, _, _ = load_checkpoint(tmp_path / "c", a_state())
    first.x.zero_()
    first.inner.table[torch.tensor([1])] = torch.zeros(1, 3)
    second, _, _ = load_checkpoint(tmp_path / "c", a_state())
    assert torch.equal(second.x, saved.x)
    assert torch.equal(second.inner.table.dense(), saved.inner.table.dense())


@pytest.mark.parametrize(
    ("like", "message"),
    [
        (a_state(parameters=4), r"state.x is float32 \[3\], here float32 \[4\]"),
        (a_state(dtype=torch.float64), r"state.x is float32 \[3\], here float64 \[3\]"),
        (a_state(n=6)._replace(seen=a_state().seen), r"state.inner.table.p is float64 \[5\], here float64 \[6\]"),
        (a_state().inner, r"state has the fields x, inner, .*, here x, table, steps"),
        (a_state()._replace(inner=torch.zeros(3)), "state.inner is a tuple, here a Tensor"),
        (a_state()._replace(lr=torch.zeros(3)), "state.lr is a float, here a Tensor"),
        (a_state()._replace(velocity=3), "state.velocity is a tensor, here a int"),
        (a_state()._replace(seen=()), "state.seen is a list, here a tuple"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path, like: Any, message: str) -> None:
    save_checkpoint(tmp_path / "c", trained(), 0)
    with pytest.raises(ValueError, match=message) as raised:
        load_checkpoint(tmp_path / "c", like)
    assert str(raised.value).endswith("it was saved from another experiment")


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        load_checkpoint(tmp_path / "none", a_state())
    save_checkpoint(tmp_path / "c", trained(), 0)
    data = (tmp_path / "c").read_bytes()
    for cut in (0, 5, 100, len(data) - 1):
        (tmp_path / "cut").write_bytes(data[:cut])
        with pytest.raises(ValueError, match="is not a checkpoint, or is damaged"):
            load_checkpoint(tmp_path / "cut", a_state())
    save_file({"x": torch.zeros(3)}, tmp_path / "foreign")
    with pytest.raises(ValueError, match="not a checkpoint of fedsim"):
        load_checkpoint(tmp_path / "foreign", a_state())


def test_only_data_can_be_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"state\.name is a PosixPath: a state holds tensors"):
        save_checkpoint(tmp_path / "c", a_state()._replace(name=tmp_path), 0)
    assert not (tmp_path / "c").exists()


def test_a_checkpoint_on_a_full_disk_keeps_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path / "c", trained(), 1)
    full_disk(monkeypatch, ".c.")
    with pytest.raises(OSError, match="cannot write"):
        save_checkpoint(tmp_path / "c", trained(), 2)
    assert load_checkpoint(tmp_path / "c", a_state())[1] == 1


def test_the_header_is_json(tmp_path: Path) -> None:
    from safetensors import safe_open

    save_checkpoint(tmp_path / "c", trained(), 3)
    with safe_open(tmp_path / "c", framework="pt") as file:
        content = json.loads(file.metadata()["fedsim"])
    assert content["t"] == 3
    assert set(content["structure"]["tuple"]) == set(State._fields)
