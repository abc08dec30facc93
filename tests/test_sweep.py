"""What `fedsim sweep` takes for axes, what it refuses, and what its numbers are."""

from __future__ import annotations

import itertools
import math
import tomllib
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from helpers import small

from fedsim import experiment as experiments
from fedsim import paired, sweep
from fedsim.experiment import settings
from fedsim.report import maps
from fedsim.report.style import RC
from fedsim.sweep import axes, folder
from fedsim.sweep.grid import Grid

BASE = small(
    "FedAvg", "FedStale", 'name = "DPSGD"\nlabel = "gossip"\ntopology = { name = "random-regular", degree = 2 }',
    task='model = { name = "mlp", hidden = [4] }\npartition = { name = "dirichlet", alpha = 0.5 }',
    presence='name = "bernoulli"\nprobabilities = { name = "label-correlated", mean = 0.4, alpha = 1.0 }',
    run="rounds = 4\nseeds = [1, 2]",
)  # fmt: skip


def made(tmp_path: Path, table: str = "", base: str = BASE, **given: Any) -> sweep.Sweep:
    """The sweep of a file: the base, and [sweep] with a table's lines."""
    file = tmp_path / "exp.toml"
    file.write_text(base + (f"[sweep]\n{table}\n" if table else ""))
    return sweep.load(file, **given)


def refused(tmp_path: Path, *arguments: Any, **given: Any) -> str:
    """What is said of it, on one line that names the file."""
    with pytest.raises(ValueError) as error:  # noqa: PT011  the callers look at the text
        made(tmp_path, *arguments, **given)
    said = str(error.value)
    assert "\n" not in said
    assert said.startswith(f"{tmp_path / 'exp.toml'}")
    return said.removeprefix(f"{tmp_path / 'exp.toml'}").lstrip(":, ")


# --- ranges -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "stop", "count", "log", "expected"),
    [
        (0.0, 1.0, 5, False, (0.0, 0.25, 0.5, 0.75, 1.0)),
        (0.0, 0.3, 4, False, (0.0, 0.1, 0.2, 0.3)),
        (0.1, 1.0, 10, False, (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)),
        (10, 1, 4, False, (10, 7, 4, 1)),
        (0, 1, 3, False, (0.0, 0.5, 1.0)),
        (-1.0, 1.0, 2, False, (-1.0, 1.0)),
        (0.01, 1.0, 3, True, (0.01, 0.1, 1.0)),
        (1, 16, 5, True, (1, 2, 4, 8, 16)),
        (100.0, 0.1, 4, True, (100.0, 10.0, 1.0, 0.1)),
    ],
)
def test_ranges(start: float, stop: float, count: int, log: bool, expected: tuple[float, ...]) -> None:
    found = axes.between(start, stop, count, log)
    assert found == expected
    assert list(map(type, found)) == list(map(type, expected))


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("count", [2, 3, 7, 100])
def test_ranges_are_evenly_spaced_between_exact_ends(count: int, log: bool) -> None:
    rng = np.random.default_rng(count)
    for start, stop in rng.uniform(1e-4, 1e3, size=(50, 2)).tolist():
        found = axes.between(start, stop, count, log)
        assert (len(found), found[0], found[-1]) == (count, start, stop)
        closed = np.geomspace(start, stop, count) if log else np.linspace(start, stop, count)
        np.testing.assert_allclose(found, closed, rtol=1e-11)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("0.5", "give a list of values, or a range such as { from = 0.0, to = 1.0, count = 5 }; got 0.5"),
        ("[]", "the list is empty"),
        ("[0.5, 1, 0.5]", "0.5 is there twice: the same cells"),
        ("[1, 1.0]", "1.0 is there twice"),
        ("{ from = 0, to = 1 }", 'the range has no "count"'),
        ("{ from = 0, count = 3 }", 'the range has no "to"'),
        ("{ from = 0, to = 1, steps = 3 }", 'unknown key "steps" of a range'),
        ("{ from = 0, to = 1, cuont = 3 }", "did you mean 'count'?"),
        ("{ from = 0, to = 1, count = 1 }", "count must be a whole number from 2 to 10000, got 1"),
        ("{ from = 0, to = 1, count = 3.0 }", "count must be a whole number"),
        ("{ from = 0, to = 1, count = true }", "count must be a whole number"),
        ("{ from = 0, to = 1, count = 1000000000 }", "count must be a whole number"),
        ("{ from = 1, to = 1, count = 3 }", "from and to are both 1"),
        ("{ from = 0, to = 1, count = 3, scale = 'log' }", "a logarithmic range lies above 0, and this one goes to 0"),
        ("{ from = 0, to = 1, count = 3, scale = 'logarithmic' }", 'scale must be "linear" or "log"'),
        ("{ from = 0, to = inf, count = 3 }", "to must be a finite number, got inf"),
        ("{ from = true, to = 1, count = 3 }", "from must be a finite number, got true"),
    ],
)
def test_what_is_no_axis(tmp_path: Path, given: str, said: str) -> None:
    for where, words in (
        ({"over": [f"strategy.FedStale.beta={given}"]}, "--over strategy.FedStale.beta="),
        ({}, "[sweep] strategy.FedStale.beta: "),
    ):
        table = "" if where else f'"strategy.FedStale.beta" = {given}'
        found = refused(tmp_path, table, **where)
        assert said in found
        assert found.startswith(words)


# --- axes and cells ---------------------------------------------------------------------------------------------------


def test_axes_are_crossed_in_order(tmp_path: Path) -> None:
    """The last axis runs fastest, and a cell's experiment is the base with its values."""
    found = made(
        tmp_path, '"participation.probabilities.alpha" = [10.0, 0.1]\n"strategy.FedStale.beta" = [0, 0.5, "auto"]'
    )
    assert [cell.values for cell in found.cells] == list(itertools.product([10.0, 0.1], [0, 0.5, "auto"]))
    assert [cell.name for cell in found.cells] == [
        "000-alpha=10,beta=0", "001-alpha=10,beta=0.5", "002-alpha=10,beta=auto",
        "003-alpha=0.1,beta=0", "004-alpha=0.1,beta=0.5", "005-alpha=0.1,beta=auto",
    ]  # fmt: skip
    for cell in found.cells:
        one: Any = found.experiment(cell)
        assert (one.participation.probabilities.alpha, one.entries[1].strategy.beta) == cell.values
        assert one.run.seeds == (1, 2)


def test_a_cell_is_the_experiment_of_a_run_with_set(tmp_path: Path) -> None:
    found = made(
        tmp_path, '"task.partition" = ["iid", { name = "dirichlet", alpha = 0.1 }]\n"strategy.*.local.lr" = [0.2, 0.4]'
    )
    (tmp_path / "base.toml").write_text(BASE)
    for cell, partition in zip(found.cells, ["iid", "iid", *["{name='dirichlet', alpha=0.1}"] * 2], strict=True):
        changes = [
            f"task.partition={partition}",
            *(f"strategy.{i}.local.lr={cell.values[1]}" for i in range(3)),
        ]
        assert found.experiment(cell).toml() == experiments.load(tmp_path / "base.toml", changes).toml()


def test_ways_to_say_an_axis(tmp_path: Path) -> None:
    """Quoted, unquoted, on the command line, and where the key is: the same sweep but for the spelling."""
    ways = [
        made(tmp_path, '"strategy.FedStale.beta" = [0.0, 0.5, 1.0]'),
        made(tmp_path, "strategy.FedStale.beta = { from = 0.0, to = 1.0, count = 3 }"),
        made(tmp_path, over=["strategy.FedStale.beta=[0.0, 0.5, 1.0]"]),
        made(tmp_path, '"strategy.1.beta" = [0.1, 0.2]', over=["strategy.FedStale.beta=[0.0, 0.5, 1.0]"]),
        made(tmp_path, base=BASE.replace('"FedStale"', '"FedStale"\nbeta = [0.0, 0.5, 1.0]')),
    ]
    for found in ways:
        assert found.toml() == ways[0].toml()
        assert [cell.name for cell in found.cells] == ["000-beta=0", "001-beta=0.5", "002-beta=1"]


def test_lists_where_one_value_goes(tmp_path: Path) -> None:
    """Numbers, words, tables, and a graph's parameter; in the order of the file's tables."""
    base = BASE
    for old, new in (
        ('partition = { name = "dirichlet", alpha = 0.5 }', 'partition = ["iid", { name = "dirichlet", alpha = 0.1 }]'),
        ("batch = 4", 'batch = [4, "all"]'), ("mean = 0.4", "mean = [0.3, 0.5]"), ("degree = 2", "degree = [2, 4]"),
        ("rounds = 4", "rounds = [4, 8]"),
    ):  # fmt: skip
        assert old in base
        base = base.replace(old, new)
    found = made(tmp_path, base=base)
    assert {axis.path: axis.values for axis in found.axes} == {
        "task.partition": ("iid", {"name": "dirichlet", "alpha": 0.1}), "local.batch": (4, "all"),
        "run.rounds": (4, 8), "participation.probabilities.mean": (0.3, 0.5), "strategy.gossip.topology.degree": (2, 4),
    }  # fmt: skip
    assert len(found.cells) == 32
    assert found.cells[-1].name == "031-partition=dirichlet-alpha-0.1,batch=all,rounds=8,mean=0.5,degree=4"


def test_lists_where_lists_belong_are_no_axes(tmp_path: Path) -> None:
    """But they can be declared."""
    base = BASE.replace('{ name = "label-correlated", mean = 0.4, alpha = 1.0 }', "[0.1, 0.2, 0.3, 0.4, 0.5, 0.6]")
    assert "there is nothing to sweep" in refused(tmp_path, base=base)
    wrong = refused(tmp_path, base=base.replace("[4]", "[4.5, 8]"))
    assert wrong == "[task.model] hidden must be a list of whole numbers, got [4.5, 8]"
    found = made(tmp_path, '"task.model.hidden" = [[4], [4, 8]]\n"run.seeds" = [[1], [2, 3]]', base=base)
    assert [cell.name for cell in found.cells] == [
        "000-hidden=4,seeds=1", "001-hidden=4,seeds=2-3", "002-hidden=4-8,seeds=1", "003-hidden=4-8,seeds=2-3"
    ]  # fmt: skip
    assert [work.seeds for work in found.work] == [(1,), (2, 3), (1,), (2, 3)]


def plain_settings() -> list[tuple[str, str, Any]]:
    """Every number a strategy can be told: strategy, key, default."""
    return [
        (name, key, setting.default)
        for name, cls in settings.names("strategy").items()
        for key, setting in settings.settings_of(cls).items()
        if isinstance(setting.default, (int, float))
        and not any(hasattr(o, "__args__") and tuple in (o, o.__origin__) for o in setting.options)
    ]


@pytest.mark.parametrize(("name", "key", "default"), plain_settings())
def test_every_number_of_every_strategy_can_be_a_list(name: str, key: str, default: Any) -> None:
    """Said by the reader's own refusal."""
    strategy = {"name": name, key: [default, default]}
    document = {"local": {"lr": 0.1, "steps": 1}, "strategy": [strategy]}
    with pytest.raises(settings.Several) as error:
        experiments.parse(document)
    assert (*error.value.place, error.value.key) == ("strategy", 0, key)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ('"strategy.FedStale.betta" = [0, 1]', "000-betta=0: [strategy.1] unknown key \"betta\"; did you mean 'beta'?"),
        ('"strategy.FedStale.beta" = [0, 0.5, 2]', "cell 002-beta=2: [strategy.1] beta must be between 0 (FedAvg)"),
        ('"strategy.FedStale.beta" = [[0, 1], [1]]', 'beta must be a finite number or "auto", got [0, 1]'),
        ('"run.rounds" = [1, 0]', "cell 001-rounds=0: [run] rounds must be at least 1"),
        ('"strategy.*.beta" = [0, 1]', 'cell 000-beta=0: [strategy.0] unknown key "beta"'),
        ('"strategy.MIFA.lr" = [0, 1]', 'there is no "MIFA"; there are 0 (FedAvg), 1 (FedStale), 2 (gossip)'),
        ('"strategy" = [0, 1]', "strategy itself cannot be swept"),
        ('"run..rounds" = [0, 1]', "a path is keys with dots between them"),
        ('"strategy.FedStale.beta" = [0, 1]\n"strategy.1.beta" = [0, 1]', "the same key as strategy.FedStale.beta"),
        ('"task.partition" = ["iid"]\n"task.partition.alpha" = [1]', "task.partition.alpha lies within task.partition"),
        ('"task.partition.alpha" = [1]\n"task.partition" = ["iid"]', "task.partition.alpha lies within task.partition"),
        ('"local.lr.x" = [1]', "local.lr is 0.1, not a table"),
        ('"run.eval-every" = { from = 1, to = 4, count = 3 }', "eval-every must be a whole number, got 1.0"),
        ('"run.rounds" = { from = 1, to = 200, count = 200 }\n"run.eval-every" = { from = 1, to = 60, count = 60 }',
         "12000 cells are more than the 10000 there may be"),
    ],
)  # fmt: skip
def test_mistakes_name_their_cell(tmp_path: Path, table: str, said: str) -> None:
    assert said in refused(tmp_path, table)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "there is nothing to sweep"),
        ({"over": ["run.rounds"]}, '--over run.rounds: write "KEY=[...]"'),
        ({"over": ["run.rounds=[1,"]}, "what follows = is not TOML"),
        ({"over": ["run.rounds=[1, 2]"], "overrides": ["run.rounds=3"]}, "--set run.rounds=3: run.rounds is swept"),
        ({"over": ["run.rounds=[1, 2]"], "device": "gpu"}, "with --device: [run] device must be"),
        (
            {"over": ["run.rounds=[1, 2]"], "overrides": ["run.seeds=[]"]},
            "with --set run.seeds=[]: [run] seeds must have",
        ),
        ({"base": "sweep = 3\n" + BASE}, "sweep must be a table"),
    ],
)
def test_mistakes_on_the_command_line(tmp_path: Path, given: dict[str, Any], said: str) -> None:
    assert said in refused(tmp_path, **given)


@pytest.mark.parametrize("given", [{}, {"data_dir": Path("data")}, {"overrides": ["task.data-dir=data"]}])
def test_the_resolved_file_is_the_same_sweep(tmp_path: Path, given: dict[str, Any]) -> None:
    """Also from elsewhere: with the folder its files are sought from."""
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom fedsim.strategies import FedAvg\n\n@dataclass(frozen=True)\n"
        "class Half(FedAvg):\n    '''Half.'''\n    share: float = 0.5\n"
    )
    base = BASE.replace('"FedAvg"', '"mine.py:Half"\nshare = [0.1, 0.2]')
    found = made(tmp_path, base=base, over=["run.rounds={from=2, to=4, count=2}"], **given)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "sweep.toml").write_text(found.toml())
    again = sweep.load(tmp_path / "elsewhere" / "sweep.toml")
    whole = found.toml()
    assert again.toml() == whole
    for one, other in zip(found.cells, again.cells, strict=True):
        assert one == other
        assert found.experiment(one).toml() == again.experiment(other).toml()
    assert found.toml() == whole
    assert tomllib.loads(whole)["run"]["rounds"] == 2  # an axis's first value, whatever cells were made since


@pytest.mark.parametrize(
    ("there", "here", "said"),
    [
        ({"run": {"rounds": 3}}, {"run": {"rounds": 4}}, "run.rounds is 3 there and 4 here"),
        ({"run": {"rounds": 3}}, {"run": {}}, "run.rounds is 3 there and not given here"),
        ({"run": {}}, {"run": {"rounds": 3}}, "run.rounds is not given there and 3 here"),
        ({"sweep": {"a.b": [1]}}, {"sweep": {"a.b": [2]}}, "[sweep] a.b is [1] there and [2] here"),
        ({"sweep": {"a": [1], "b": [1]}}, {"sweep": {"b": [1], "a": [1]}}, "its axes are in another order, a, b"),
        ({"strategy": [{"lr": 1}]}, {"strategy": [{"lr": 2}]}, "strategy.0.lr is 1 there and 2 here"),
        ({"a": [{"b": 1}], "c": 1}, {"c": 1, "a": [{"b": 1}]}, None),
    ],
)
def test_differences_in_words(there: Any, here: Any, said: str | None) -> None:
    assert folder.difference(there, here) == said


def test_names() -> None:
    assert axes.short(["strategy.A.beta", "strategy.B.beta", "run.rounds"]) == ["A.beta", "B.beta", "rounds"]
    assert axes.short(["participation", "task.participation"]) == ["participation", "task.participation"]
    name = axes.folder_name(3, 20, ["data"], ["../../etc/passwd " + "x" * 300])
    assert name.startswith("003-data=..-..-etc-passwd-x")
    assert len(name) <= 84
    assert axes.folder_name(0, 1, ["b"], [-0.5]) == "000-b=-0.5"
    assert [axes.geometric(v) for v in ([0.1, 1, 10], [1, 2, 4, 8], [1, 2, 3], [0, 1, 10], [1, 10], [1, 2], [5])] == [
        True, True, False, False, True, False, False
    ]  # fmt: skip
    assert axes.ordered([10, 0.1, 1]) == [1, 2, 0]
    assert axes.ordered(["b", "a"]) == [0, 1]


# --- figures ----------------------------------------------------------------------------------------------------------


def grid(*values: tuple[Any, ...], metric: str = "test_accuracy", seeds: int = 4) -> Grid:
    """Random values of three strategies, with a cell missing and a cell that one seed failed in."""
    rng = np.random.default_rng(7)
    labels = ("FedAvg", "FedStale", "MIFA")
    found: dict[tuple[int, ...], Any] = {}
    for place in itertools.product(*(range(len(each)) for each in values)):
        luck = rng.standard_normal(seeds)
        found[place] = {
            label: {s: 0.5 + 0.05 * i * sum(place) + 0.1 * luck[s] + 0.05 * rng.standard_normal() for s in range(seeds)}
            for i, label in enumerate(labels)
        }
    del found[(1,) * len(values)]
    del found[(0,) * len(values)]["MIFA"][0]
    names = tuple("abc"[: len(values)])
    return Grid(names, tuple(values), metric, labels, seeds, found)


def test_heat_maps_show_what_was_computed() -> None:
    given = grid((0.1, 1.0, 10.0), (0.0, 0.5), (1, 2))
    with matplotlib.rc_context(RC):
        drawn = dict(maps.figures(given, "FedAvg"))
    assert set(drawn) == {"values", "differences"}
    marked: list[bool] = []
    for name, labels in (("values", ("FedAvg", "FedStale", "MIFA")), ("differences", ("FedStale", "MIFA"))):
        figure = drawn[name]
        figure.canvas.draw()
        shown = [axes for axes in figure.axes if axes.get_visible() and axes.get_xlabel()]
        assert len(shown) == 2 * len(labels)
        for axes_, (c, label) in zip(shown, itertools.product(range(2), labels), strict=True):
            title = label if name == "values" else f"{label} − FedAvg"
            assert axes_.get_title(loc="left") == f"{title}\nc = {c + 1}"
            texts = {tuple(map(int, text.get_position())): text.get_text() for text in axes_.texts}
            dots = {tuple(int(v) for v in line.get_xydata()[0]) for line in axes_.lines}  # type: ignore[union-attr]
            clear = set()
            for a, b in np.ndindex(3, 2):
                cell = given.found.get((a, b, c))
                if cell is None:
                    assert (a, b) not in texts
                    continue
                if name == "values":
                    mean, seeds = float(np.mean(list(cell[label].values()))), len(cell[label])
                else:
                    one = paired.difference(label, "FedAvg", "test_accuracy", cell[label], cell["FedAvg"])
                    mean, seeds = one.mean, len(one.seeds)
                    clear |= {(a, b)} if one.clear else set()
                said = texts[a, b]
                assert said.endswith("*") == (seeds < 4)
                assert float(said.rstrip("*").replace("−", "-")) == pytest.approx(mean, abs=5.1e-4)
            assert dots == clear
            marked += [(a, b) in clear for a, b in texts]
        assert any(marked) == (name == "differences")
        assert not all(marked)
        assert [text.get_text() for text in shown[0].get_yticklabels()] == ["0", "0.5"]
        assert [text.get_text() for text in shown[0].get_xticklabels()] == ["0.1", "1", "10"]


def test_lines_show_what_was_computed() -> None:
    given = grid((0.1, 1.0, 10.0), metric="test_loss")
    drawn = dict(maps.figures(given, "MIFA"))
    (axes_,) = drawn["values"].axes
    assert (axes_.get_xscale(), axes_.get_xlabel()) == ("log", "a, log scale")
    for line, label in zip(axes_.lines, given.strategies, strict=True):
        np.testing.assert_allclose(line.get_xdata(), [0.1, 10.0])
        np.testing.assert_allclose(line.get_ydata(), given.means(label)[[0, 2]])
    (axes_,) = drawn["differences"].axes
    line = axes_.lines[1]  # after the line at 0
    for x, y, place in zip(line.get_xdata(), line.get_ydata(), (0, 2), strict=True):
        cell = given.found[(place,)]
        assert x == pytest.approx((0.1, 1.0, 10.0)[place])
        assert y == pytest.approx(np.mean([cell["FedStale"][s] - v for s, v in cell["MIFA"].items()]))


@pytest.mark.parametrize("metric", ["test_accuracy", "test_loss"])
@pytest.mark.parametrize(
    "values",
    [
        ((0.1, 1.0, 10.0),),
        (("iid", {"name": "dirichlet", "alpha": 0.1}),),
        ((1, 2), (1, 2)),
        ((1, 2), (1, 2, 3), (1, 2, 3, 4, 5)),
    ],
)
@pytest.mark.parametrize("seeds", [2, 4])
def test_figures_of_all_shapes_are_drawn(values: Any, metric: str, seeds: int, tmp_path: Path) -> None:
    """Without a warning; many heat maps go on several pages, all on one scale."""
    given = grid(*values, metric=metric, seeds=seeds)
    drawn = dict(maps.figures(given, "FedAvg"))
    pages = math.ceil(3 * math.prod(map(len, values[2:])) / maps.PANELS)
    assert [name for name in drawn if name.startswith("values")] == ["values", "values-2"][
        : pages if len(values) > 1 else 1
    ]
    for figure in drawn.values():
        figure.canvas.draw()
    limits = {axes_.get_ylim() for name, figure in drawn.items() if "values" in name for axes_ in figure.axes[-1:]}
    assert len(limits) == 1


def test_a_sweep_file_is_plain_toml(tmp_path: Path) -> None:
    found = made(tmp_path, '"run.rounds" = [2, 3]')
    table = tomllib.loads(found.toml())
    assert table.pop("sweep") == {"run.rounds": [2, 3]}
    assert experiments.parse(table).run.rounds == 2


# --- sweeps that tune -------------------------------------------------------------------------------------------------

TUNED = BASE + '[tune]\nseeds = [9]\ntrials = 2\n[tune.grid]\n"local.lr" = [0.1, 0.2]\n'


@pytest.mark.parametrize("path", ["local.lr", "strategy.FedAvg.local.lr"])
def test_what_is_tuned_is_not_swept(tmp_path: Path, path: str) -> None:
    """Tuning would put its winner in the place of every value."""
    said = refused(tmp_path, f'"{path}" = [0.1, 0.3]', base=TUNED)
    assert said == f"{path} is swept, and [tune] tunes local.lr of FedAvg; do one of both"


@pytest.mark.parametrize("path", ["local.steps", "strategy.FedStale.beta", "tune.trials"])
def test_all_else_is_swept_in_a_tuned_experiment_too(tmp_path: Path, path: str) -> None:
    values = [0.0, 1.0] if path.endswith("beta") else [2, 3]
    assert len(made(tmp_path, f'"{path}" = {values}', base=TUNED).cells) == 2
