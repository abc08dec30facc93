"""Tables of a comparison: counted by hand on small folders, nothing dropped in silence, written the same every time."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from fedsim import record
from fedsim.record import RunFolder
from fedsim.report import results as of
from fedsim.report.table import Column, Table, as_csv, as_latex, as_markdown, decimals, emphasised, text
from fedsim.report.tables import paired_table, rank_table, targets_table

Curves = Mapping[str, Sequence[Sequence[float]]]  # by strategy: for each seed the values at rounds 0, 10, 20, ...

# a and b cannot be told apart, c is clearly behind; late: the last evaluation of the five
THREE: Curves = {
    "c_2": [[0.1, 0.2, 0.3, 0.3, 0.40], [0.1, 0.2, 0.3, 0.3, 0.50], [0.1, 0.2, 0.3, 0.3, 0.60]],
    "a": [[0.1, 0.5, 0.6, 0.7, 0.70], [0.1, 0.5, 0.6, 0.7, 0.81], [0.1, 0.5, 0.9, 0.9, 0.90]],
    "b": [[0.1, 0.2, 0.6, 0.7, 0.71], [0.1, 0.2, 0.6, 0.7, 0.80], [0.1, 0.2, 0.6, 0.7, 0.92]],
}


def folder(
    path: Path, curves: Curves, metric: str = "test_accuracy", experiment: str = "", seeds: Sequence[int] = (1, 2, 3),
    failed: Sequence[tuple[str, int]] = (), stopped: Sequence[tuple[str, int]] = (),
) -> Path:  # fmt: skip
    """A run folder with these curves, evaluated every 10 rounds, each round costing 1 MB up and 2 MB down."""
    if "[[strategy]]" not in experiment:
        experiment += "".join(f'[[strategy]]\nname = "FedAvg"\nlabel = "{label}"\n' for label in curves)
    with RunFolder(path, experiment, {}) as run:
        for label, each in curves.items():
            for seed, values in zip(seeds, each, strict=False):
                for i, value in enumerate(values):
                    cost = {"bytes_up": 10e6 * i, "bytes_down": 20e6 * i} if i else {}
                    run.measured(label, seed, 10 * i, {metric: value, "worst_class_accuracy": value / 2, **cost})
                if (label, seed) in failed:
                    run.failed({"strategy": label, "seed": seed, "round": 40, "reason": "it blew up."})
                elif (label, seed) not in stopped:
                    run.finished({"strategy": label, "seed": seed, "rounds": 10 * (len(values) - 1), "final_mean": {}})
    return path


@pytest.fixture
def three(tmp_path: Path) -> Path:
    return folder(tmp_path / "run", THREE)


def cells(table: Table, key: str) -> dict[str, str]:
    """What a column shows, by strategy."""
    column = next(column for column in table.columns if column.key == key)
    return {row["strategy"]: text(column, row) for row in table.rows}


# --- who stands where -------------------------------------------------------------------------------------------------


def test_the_rank_table(three: Path) -> None:
    table = rank_table(three)
    assert cells(table, "place") == {"b": "1–2", "a": "1–2", "c_2": "3"}
    assert list(cells(table, "place")) == ["b", "a", "c_2"]
    half = stats.t.ppf(0.975, 2) * stats.sem([40, 50, 60])
    assert cells(table, "test_accuracy")["c_2"] == f"50.0 ± {half:.1f}"
    row = table.rows[0]
    assert row["test_accuracy"] == pytest.approx((0.71 + 0.80 + 0.92) / 3)
    assert (row["seeds"], row["leads"]) == (3, True)
    assert [row["leads"] for row in table.rows] == [True, True, False]
    assert cells(table, "drop") == {"b": "0.0 ± 0.0", "a": "0.0 ± 0.0", "c_2": "0.0 ± 0.0"}
    assert cells(table, "area")["c_2"].startswith("27.5 ± ")  # (0.05 + 0.2 + 0.3 + 0.3 + 0.5 / 2) / 4
    assert cells(table, "worst_class_accuracy")["c_2"].startswith("25.0 ± ")
    assert "holds 0: 3 pairs, not adjusted." in " ".join(table.notes)


def test_nothing_is_emphasised_where_nothing_is_clear(tmp_path: Path) -> None:
    table = rank_table(folder(tmp_path / "run", {label: THREE[label] for label in ("a", "b")}))
    assert set(cells(table, "place").values()) == {"1–2"}
    assert not any(row["leads"] for row in table.rows)
    assert "**a**" not in as_markdown(table)


def test_the_late_mean_is_that_of_result_json(tmp_path: Path) -> None:
    """Through the whole of a run: the same numbers that `compare` reports."""
    from fedsim import compare, experiment

    tables = {
        "task": {
            "data": {"name": "clusters", "examples": 60, "test-examples": 30}, "clients": 4, "model": "logistic",
        },
        "local": {"steps": 1},
        "strategy": [{"name": "FedAvg"}, {"name": "MIFA"}],
        "run": {"rounds": 20, "seeds": [1, 2], "eval-every": 2, "threads": 1},
    }  # fmt: skip
    made = compare.settle(experiment.parse(tables))
    with RunFolder(tmp_path / "run", made.toml(), {}) as run:
        for event in compare.compare(made):
            if isinstance(event, compare.Measured):
                run.measured(event.strategy, event.seed, event.round, event.metrics)
            elif isinstance(event, compare.Finished):
                run.finished(compare.as_result(event))
    results = of.gather(tmp_path / "run")
    for metric in ("test_accuracy", "test_loss", "worst_class_accuracy"):
        values = of.late(results, metric)
        for run_ in record.read_result(tmp_path / "run"):
            assert values[run_["strategy"]][run_["seed"]] == pytest.approx(run_["final_mean"][metric])
    assert rank_table(tmp_path / "run").title == "Who stands where: test accuracy, late mean"
    assert "bytes_to" in rank_table(tmp_path / "run").rows[0]


def test_a_metric_of_choice(three: Path) -> None:
    table = rank_table(three, metric="worst_class_accuracy")
    assert table.title.startswith("Who stands where: worst class")
    assert sum(column.key == "worst_class_accuracy" for column in table.columns) == 1
    with pytest.raises(ValueError, match=r'"test_acuracy" was not measured .* did you mean .test_accuracy.\?'):
        rank_table(three, metric="test_acuracy")


def test_losses_are_better_low(tmp_path: Path) -> None:
    losses = {label: [[2 - v for v in values] for values in each] for label, each in THREE.items()}
    table = rank_table(folder(tmp_path / "run", losses, "test_loss"))
    assert cells(table, "place") == {"b": "1–2", "a": "1–2", "c_2": "3"}
    assert "%" not in "".join(column.heading for column in table.columns if column.key != "worst_class_accuracy")
    assert cells(table, "test_loss")["c_2"] == "1.50 ± 0.25"
    row = paired_table(tmp_path / "run").rows[-1]
    assert (row["first"], row["second"], row["better"]) == ("c_2", "b", "b")
    assert row["mean"] > 0


# --- targets ----------------------------------------------------------------------------------------------------------


def test_the_target_is_most_of_the_way_to_the_best(tmp_path: Path) -> None:
    """The mean curves start at 0.1 and end at 0.5, 0.8033.., 0.81; one that learns nothing changes nothing."""
    flat = {"flat": [[0.1] * 5] * 3}
    results = of.gather(folder(tmp_path / "run", {**THREE, **flat}))
    assert of.default_target(results, "test_accuracy") == 0.739  # 0.1 + 0.9 * 0.71
    assert of.default_target(results, "test_accuracy", 0.5) == 0.455
    results = of.gather(folder(tmp_path / "flat", flat))
    assert of.default_target(results, "test_accuracy") is None
    assert "rounds_to" not in rank_table(results).rows[0]
    assert targets_table(results).rows == []
    blown = {label: [*each, [0.1, math.nan, 0.9, 0.9, 0.9]] for label, each in THREE.items()}  # the fourth seeds
    results = of.gather(folder(tmp_path / "blown", blown, seeds=(1, 2, 3, 4)))
    assert of.default_target(results, "test_accuracy") == 0.739
    said = rank_table(results).notes
    assert "Area is known for c_2 in 3 of 4 seeds, a in 3 of 4 seeds, b in 3 of 4 seeds." in said
    assert not [note for note in said if "not counted" in note]  # the late mean is known


def test_the_target_of_a_loss_is_rounded_up(tmp_path: Path) -> None:
    results = of.gather(folder(tmp_path / "run", {"a": [[3.0, 2.0, 1.234, 1.5]], "b": [[2.0, 1.5]]}, "test_loss"))
    assert of.default_target(results, "test_loss") == 1.37  # 2.5 - 0.9 * 1.266 = 1.3606


def test_what_it_takes_to_get_there(three: Path) -> None:
    """The median over the seeds, never being later than all; nothing where half of them never got there."""
    table = rank_table(three, target=0.8)
    assert cells(table, "rounds_to") == {"b": "40", "a": "40", "c_2": "-"}
    assert cells(table, "bytes_to") == {"b": "120", "a": "120", "c_2": "-"}  # 4 evaluations of 30 MB
    assert cells(table, "reached_of") == {"b": "2 of 3", "a": "2 of 3", "c_2": "0 of 3"}
    assert "seconds_to" not in table.rows[0]
    assert table.columns[3].heading == "rounds to 80 %"
    assert "To 80 %: at the first evaluation there" in " ".join(table.notes)
    assert "To 73.9 %, nine tenths of the way" in " ".join(rank_table(three).notes)
    assert "reached_of" not in [column.key for column in rank_table(three, target=0.4).columns]  # all did
    assert cells(rank_table(three, target=0.6), "rounds_to") == {"b": "20", "a": "20", "c_2": "-"}


def test_an_even_number_of_seeds_half_of_which_get_there(tmp_path: Path) -> None:
    values = {"a": [[0.1, 0.5], [0.1, 0.2]], "b": [[0.1, 0.5], [0.1, 0.6]]}
    found = cells(rank_table(folder(tmp_path / "run", values), target=0.5), "rounds_to")
    assert found == {"a": "-", "b": "10"}


def test_seconds_where_the_folder_tells_them(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = {(label, seed, 10 * i): 1.5 * i + seed for label in THREE for seed in (1, 2, 3) for i in range(5)}
    monkeypatch.setattr(record, "read_times", lambda folder: times, raising=False)
    table = rank_table(three, target=0.5)
    assert cells(table, "seconds_to") == {"a": "3.5", "b": "5.0", "c_2": "9.0"}  # at 6 + seed, and never
    del times["b", 2, 20]
    assert "seconds_to" not in rank_table(three, target=0.5).rows[0]  # one evaluation's are not known
    assert "bytes_to" in rank_table(three, target=0.5).rows[0]


def test_the_targets_table(three: Path) -> None:
    table = targets_table(three, targets=[0.5, 0.9])
    assert [(row["target"], row["strategy"], row["rounds_to"]) for row in table.rows] == [
        (0.5, "c_2", 40), (0.5, "a", 10), (0.5, "b", 20), (0.9, "c_2", None), (0.9, "a", None), (0.9, "b", None),
    ]  # fmt: skip
    assert [column.heading for column in table.columns][:3] == ["test accuracy, %", "strategy", "rounds"]
    levels = list(dict.fromkeys(row["target"] for row in targets_table(three).rows))
    assert levels == [0.455, 0.668, 0.739, 0.774]  # of the way from 0.1 to 0.81


# --- pairs ------------------------------------------------------------------------------------------------------------


def test_pairs_with_the_best_and_with_a_baseline(three: Path) -> None:
    table = paired_table(three)
    assert [(row["first"], row["second"], row["better"]) for row in table.rows] == [("a", "b", "-"), ("c_2", "b", "b")]
    assert text(table.columns[1], table.rows[0]) == "−0.7 [−4.5, +3.1]"
    low, high = stats.t.interval(0.95, 2, -2 / 300, stats.sem([-0.01, 0.01, -0.02]))
    assert (table.rows[0]["low"], table.rows[0]["high"]) == (pytest.approx(low), pytest.approx(high))
    assert text(table.columns[2], table.rows[0]) == "[−2.0, +1.0]"
    named = paired_table(three, against="c_2")
    assert [row["pair"] for row in named.rows] == ["b − c_2", "a − c_2"]
    assert named.columns[0].heading == "strategy − c_2"
    with pytest.raises(ValueError, match='no strategy "bb" to compare with; did you mean'):
        paired_table(three, against="bb")
    with pytest.raises(ValueError, match="or ask for every pair, not both"):
        paired_table(three, against="b", every=True)
    for table in (lambda: rank_table(three, target=math.nan), lambda: targets_table(three, targets=[math.inf])):
        with pytest.raises(ValueError, match=r"a target is a level of test accuracy, such as 0\.8"):
            table()


def test_every_pair_and_holm(three: Path) -> None:
    """Adjusted over all pairs, unless the baseline was named beforehand."""
    table = paired_table(three, every=True)
    assert [row["pair"] for row in table.rows] == ["c_2 − a", "c_2 − b", "a − b"]
    p = {frozenset((row["first"], row["second"])): row["p"] for row in table.rows}
    smallest = min(p.values())
    best = {frozenset((row["first"], row["second"])): row["p_holm"] for row in paired_table(three).rows}
    assert best == {pair: pytest.approx(row["p_holm"]) for row in table.rows if (pair := frozenset(
        (row["first"], row["second"]))) in best}  # fmt: skip
    assert min(row["p_holm"] for row in table.rows) == pytest.approx(3 * smallest)
    assert min(row["p_holm"] for row in paired_table(three, against="c_2").rows) == pytest.approx(2 * smallest)
    assert "over 2 pairs" in " ".join(paired_table(three, against="c_2").notes)
    assert "over 3 pairs" in " ".join(paired_table(three).notes)
    assert "3 pairs, not adjusted" in " ".join(table.notes)
    assert "2 pairs, not adjusted" in " ".join(paired_table(three).notes)


def test_one_seed_says_nothing_of_differences(tmp_path: Path) -> None:
    run = folder(tmp_path / "run", {label: each[:1] for label, each in THREE.items()})
    table, pairs = rank_table(run), paired_table(run)
    for one in (table, pairs):
        assert "With one seed nothing can be said of differences" in " ".join(one.notes)
        assert "not adjusted" not in " ".join(one.notes)
        assert "±" not in as_markdown(one)
    assert set(cells(table, "place").values()) == {"1–3"}
    assert cells(table, "test_accuracy") == {"b": "71.0", "a": "70.0", "c_2": "40.0"}
    assert [text(pairs.columns[1], row) for row in pairs.rows] == ["−1.0", "−31.0"]
    assert [row["better"] for row in pairs.rows] == ["-", "-"]


def test_one_strategy_has_nobody_to_be_compared_with(tmp_path: Path) -> None:
    run = folder(tmp_path / "run", {"a": THREE["a"]})
    assert cells(rank_table(run), "place") == {"a": "1"}
    for table in (rank_table(run), paired_table(run)):
        assert "With one strategy there is nothing to compare." in table.notes
        assert as_markdown(table) + as_latex(table)
    assert as_csv(paired_table(run)) == ""


# --- what is not counted ----------------------------------------------------------------------------------------------


def test_no_run_is_dropped_in_silence(tmp_path: Path) -> None:
    """Failed, stopped, never begun, not finite: each is said, and pairs are over the seeds that are left."""
    curves = {**THREE, "b": [*THREE["b"][:2], [0.1, 0.2, 0.6, 0.7, math.nan]], "gone": THREE["a"]}
    entries = "".join(f'[[strategy]]\nname = "FedAvg"\nlabel = "{label}"\n' for label in (*curves, "never"))
    run = folder(
        tmp_path / "run", curves, experiment=entries + "[run]\nrounds = 40\nseeds = [1, 2, 3]\n", failed=[("a", 3)],
        stopped=[("gone", seed) for seed in (1, 2, 3)],
    )  # fmt: skip
    table = rank_table(run)
    said = [note for note in table.notes if "not counted" in note]
    assert said[0] == "b, seed 3: not counted, its late test accuracy is not finite or was not measured."
    assert said[1] == "a, seed 3: not counted, failed after 40 rounds: it blew up."
    assert sorted(said[2:]) == sorted(
        f"{label}, seed {seed}: not counted, not finished." for label in ("gone", "never") for seed in (1, 2, 3)
    )
    assert {row["strategy"]: row["seeds"] for row in table.rows} == {"a": 2, "b": 2, "c_2": 3, "gone": 0, "never": 0}
    assert [row["strategy"] for row in table.rows][-2:] == ["gone", "never"]
    assert cells(table, "test_accuracy")["gone"] == cells(table, "place")["gone"] == "-"
    assert cells(table, "rounds_to")["never"] == "-"
    pairs = {row["pair"]: row for row in paired_table(run, every=True).rows}
    assert pairs["a − b"]["seeds"] == 2
    assert pairs["c_2 − a"]["seeds"] == 2
    assert pairs["a − gone"]["seeds"] == 0
    assert not pairs["a − gone"]["clear"]
    assert said == [note for note in paired_table(run).notes if "not counted" in note]
    assert "holds 0: 3 pairs, not adjusted." in " ".join(table.notes)  # of a, b and c_2
    assert "2 pairs, not adjusted" in " ".join(paired_table(run).notes)
    assert "over 3 pairs" in " ".join(paired_table(run).notes)
    assert as_csv(table).count("\n") == 6
    assert "nan" not in as_csv(table)


def test_a_metric_that_some_runs_lack_is_said(tmp_path: Path) -> None:
    entries = "".join(f'[[strategy]]\nname = "FedAvg"\nlabel = "{label}"\n' for label in ("a", "b"))
    with RunFolder(tmp_path / "run", entries, {}) as run:
        for seed in (1, 2):
            for label in ("a", "b"):
                extra = {"worst_class_accuracy": 0.5} if (label, seed) != ("b", 2) else {}
                run.measured(label, seed, 10, {"test_accuracy": 0.1 * seed, **extra})
                run.finished({"strategy": label, "seed": seed, "rounds": 10})
    assert "Worst class is known for b in 1 of 2 seeds." in rank_table(tmp_path / "run").notes


def test_nothing_to_compare_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"is no run folder: there is no experiment\.toml"):
        rank_table(tmp_path)
    with pytest.raises(ValueError, match="no run folder to read"):
        rank_table()
    RunFolder(tmp_path / "run", '[[strategy]]\nname = "FedAvg"\nlabel = "a"\n', {}).close()
    with pytest.raises(ValueError, match="no run has finished with a test accuracy"):
        rank_table(tmp_path / "run")
    with pytest.raises(ValueError, match='"test_loss" was not measured in any finished run'):
        rank_table(tmp_path / "run", metric="test_loss")


# --- several folders --------------------------------------------------------------------------------------------------

TASK = '[task]\nclients = {}\ndata-dir = "{}"\n[run]\nrounds = 40\nseeds = []\neval-every = 10\n'


def test_folders_of_one_experiment_make_one_table(tmp_path: Path) -> None:
    whole = folder(tmp_path / "run", THREE, experiment=TASK.format(9, "here"))
    one = folder(tmp_path / "one", {"c_2": THREE["c_2"], "a": THREE["a"][:1]}, experiment=TASK.format(9, "here"))
    rest = {"a": THREE["a"][1:], "b": THREE["b"][1:]}
    other = folder(tmp_path / "other", rest, experiment=TASK.format(9, "there"), seeds=(2, 3))
    last = folder(tmp_path / "last", {"b": THREE["b"][:1]}, experiment=TASK.format(9, "there"))
    for table in (rank_table, paired_table):
        assert as_csv(table(one, other, last)) == as_csv(table(whole))  # type: ignore[operator]
    assert rank_table(of.gather(one), other, last).rows == rank_table(whole).rows
    assert rank_table(whole, one).rows == rank_table(whole).rows  # a run that is in both counts once
    with pytest.raises(ValueError, match="c_2, seed 1 is in two of the results"):
        rank_table(of.gather(whole), one)


def test_tables_and_the_page_have_one_rule(tmp_path: Path) -> None:
    """FedAvg at another [local] would pass for more seeds of it: refused by both, in the same words."""
    from fedsim.report.page import tell

    mine = '[local]\nlr = {}\n[[strategy]]\nname = "FedAvg"\nlabel = "a"\n[run]\nrounds = 40\nseeds = []\n'
    one = folder(tmp_path / "one", {"a": THREE["a"][:1]}, experiment=mine.format(0.1))
    other = folder(tmp_path / "other", {"a": THREE["a"][1:]}, experiment=mine.format(0.2), seeds=(2, 3))
    said = []
    for ask in (lambda: rank_table(one, other), lambda: tell([one, other])):
        with pytest.raises(ValueError, match=r"\[local\] differs in lr 0.1 and 0.2; make a report of each") as refused:
            ask()
        said.append(str(refused.value))
    assert said[0] == said[1]


def test_a_label_for_two_settings_is_two_strategies(tmp_path: Path) -> None:
    mine = '[[strategy]]\nname = "FedAvg"\nlabel = "a"\nlr = {}\n'
    one = folder(tmp_path / "one", {"a": THREE["a"]}, experiment=mine.format(0.1))
    other = folder(tmp_path / "other", {"a": THREE["c_2"]}, experiment=mine.format(0.2))
    assert set(cells(rank_table(one, other), "place")) == {"a (one)", "a (other)"}


@pytest.mark.parametrize(
    ("experiment", "where"),
    [
        (TASK.format(10, "here"), r"\[task\] differs in clients 9 and 10"),
        (TASK.format(9, "here").replace("40", "50"), r"\[run\] differs in rounds 40 and 50"),
        (TASK.format(9, "here") + "[participation]\nname = 'everyone'\n", r"\[participation\] differs in name"),
    ],
)
def test_folders_of_other_experiments_are_no_pairs(tmp_path: Path, experiment: str, where: str) -> None:
    one = folder(tmp_path / "one", {"a": THREE["a"]}, experiment=TASK.format(9, "here"))
    other = folder(tmp_path / "other", {"b": THREE["b"]}, experiment=experiment)
    with pytest.raises(ValueError, match=rf"one and .*other are not runs of the same experiment: {where}"):
        rank_table(one, other)


# --- files ------------------------------------------------------------------------------------------------------------


def test_csv_holds_everything_to_the_last_bit(three: Path) -> None:
    table = rank_table(three, target=0.8)
    found = list(csv.DictReader(io.StringIO(as_csv(table))))
    assert list(found[0]) == list(table.rows[0])
    for line, row in zip(found, table.rows, strict=True):
        assert float(line["test_accuracy_low"]) == row["test_accuracy_low"]
        assert line["leads"] == ("yes" if row["leads"] else "no")
        assert line["rounds_to"] == ("" if row["rounds_to"] is None else repr(float(row["rounds_to"])))
    assert {"p", "p_holm", "worth", "boot_low"} <= set(as_csv(paired_table(three)).splitlines()[0].split(","))


@pytest.mark.parametrize("write", [as_csv, as_markdown, as_latex])
def test_the_same_folder_gives_the_same_bytes(three: Path, write: Any) -> None:
    for table in (rank_table, paired_table, targets_table):
        assert write(table(three)) == write(table(three))  # type: ignore[operator]


WORDS = Table(
    "100 % of $ & _",
    [Column("a", "a|b"), Column("x", "x", "%", ".1f", 100.0, ("low", "high"), strong=True)],
    [
        {"a": r"x_1 *y* | <b> \ {z} #~^ [t]", "x": 0.5, "low": 0.4, "high": 0.6, "leads": True},
        {"a": "", "x": -0.0001, "low": math.nan, "high": math.nan, "leads": False},
    ],
    ["so & so_"],
)


def test_latex_is_escaped() -> None:
    assert as_latex(WORDS) == (
        "\\begin{table}\n\\centering\n\\caption{100 \\% of \\$ \\& \\_}\n\\begin{tabular}{lr}\n\\toprule\n"
        "a|b & x, \\% \\\\\n\\midrule\n"
        "x\\_1 *y* | \\textless{}b\\textgreater{} \\textbackslash{} \\{z\\} \\#\\textasciitilde{}\\textasciicircum{} "
        "{[}t{]} & \\textbf{50.0 $\\pm$ 10.0} \\\\\n- & 0.0 \\\\\n"
        "\\bottomrule\n\\end{tabular}\n\\par\\footnotesize\nso \\& so\\_\n\\end{table}\n"
    )


def test_markdown_is_escaped() -> None:
    assert as_markdown(WORDS) == (
        "**100 % of $ & \\_**\n\n| a\\|b | x, % |\n| --- | ---: |\n"
        "| x\\_1 \\*y\\* \\| \\<b\\> \\\\ {z} \\#\\~^ \\[t\\] | **50.0 ± 10.0** |\n| - | 0.0 |\n\nso & so\\_\n"
    )


@pytest.mark.parametrize(
    ("column", "row", "shown"),
    [
        (Column("x", "x", form=".2f"), {"x": None}, "-"),
        (Column("x", "x", form=".2f"), {"x": math.nan}, "-"),
        (Column("x", "x", form=",.0f"), {"x": math.inf}, "∞"),
        (Column("x", "x", form=",.0f"), {"x": 12345.6}, "12,346"),
        (Column("x", "x", form="+.1f"), {"x": -0.04}, "+0.0"),
        (Column("x", "x", form=".1f"), {"x": -3}, "−3.0"),
        (Column("x", "x", "", "+.1f", 1.0, ("a", "b"), True), {"x": 1.0, "a": -1.0, "b": 3.0}, "+1.0 [−1.0, +3.0]"),
        (Column("a", "x", "", "+.1f", 1.0, ("a", "b"), True), {"a": -1.0, "b": 3.0}, "[−1.0, +3.0]"),
        (Column("x", "x", "", "+.1f", 1.0, ("a", "b")), {"x": 1.0, "a": -1.0, "b": 3.0}, "+1.0 ± 2.0"),
    ],
)
def test_cells(column: Column, row: dict[str, Any], shown: str) -> None:
    assert text(column, row) == shown
    assert not emphasised(column._replace(strong=True), row)


def test_decimals_are_two_digits_of_the_uncertainty() -> None:
    assert [decimals([size]) for size in (12.0, 3.6, 0.51, 0.098, 1e-4, 1e-30)] == [0, 1, 2, 3, 5, 8]
    assert decimals([math.nan, 0.0], default=3) == 3
    assert decimals([0.5, 0.6, 50.0]) == 2
