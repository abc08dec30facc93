"""Flower's strategies as entries of an experiment: refused before flwr is imported, run as ours are."""

from __future__ import annotations

import inspect
import json
import math
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from fedsim import cli, experiment
from fedsim.compare import Began, Failed, Finished, Measured, compare
from fedsim.experiment import bundled
from fedsim.experiment.bundled import Bundled, Needed, Optional
from fedsim.record import read_metrics

with warnings.catch_warnings():
    # typer, which flwr imports, uses a name that click 8.5 has renamed
    warnings.filterwarnings("ignore", message="'click.utils", category=DeprecationWarning)
    from flwr.serverapp import strategy as stock

    from fedsim.flower import InProcessGrid, client_app, over
    from fedsim.flower.stock import made

BASE = """
[task]
data = "clusters"
clients = 8
model = "logistic"

[participation]
name = "bernoulli"
probabilities = 0.7

[local]
lr = 0.2
steps = 3
batch = 8

[run]
rounds = 6
eval-every = 2
seeds = [1, 2]
threads = 1

[[strategy]]
name = "FedAvg"
"""

MINE = """
from flwr.serverapp.strategy import FedAvg, FedAdam, Strategy

class Halfway(FedAvg):
    '''Goes only part of the way.'''
    def __init__(self, share, strategy=None, **more):
        super().__init__(fraction_evaluate=0.0, **more)
        self.share, self.arrays = share, None
    def configure_train(self, server_round, arrays, config, grid):
        self.arrays = arrays
        return super().configure_train(server_round, arrays, config, grid)
    def aggregate_train(self, server_round, replies):
        arrays, metrics = super().aggregate_train(server_round, replies)
        if arrays is not None:
            for name in list(arrays):
                old, new = self.arrays[name].numpy(), arrays[name].numpy()
                arrays[name] = type(arrays[name])(old + self.share * (new - old))
        return arrays, metrics

class Broken(FedAvg):
    def aggregate_train(self, server_round, replies):
        if server_round == 3:
            raise KeyError("lost")
        return super().aggregate_train(server_round, replies)

class Lost(FedAvg):
    def aggregate_train(self, server_round, replies):
        arrays, metrics = super().aggregate_train(server_round, replies)
        for name in list(arrays):
            arrays[name] = type(arrays[name])(arrays[name].numpy() * float("nan"))
        return arrays, metrics

class NotOne:
    pass
"""


def folder(tmp_path: Path, entries: str) -> Path:
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "experiment.toml").write_text(BASE + entries)
    return tmp_path / "experiment.toml"


def entry(tmp_path: Path, table: str) -> Any:
    return experiment.load(folder(tmp_path, f"\n[[strategy]]\nlabel = 'theirs'\n{table}\n")).entries[1].strategy


def curves(path: Path, *overrides: str) -> dict[tuple[str, int, int], dict[str, float]]:
    found = {}
    for event in compare(experiment.load(path, overrides)):
        assert not isinstance(event, Failed), event
        if isinstance(event, Measured):
            found[event.strategy, event.seed, event.round] = event.metrics
    return found


# The table ------------------------------------------------------------------------------------------------------------


def test_the_table_is_what_flwr_has() -> None:
    """Names, settings and defaults, apart from fraction_evaluate and from functions and objects."""
    theirs = set(stock.__all__) - {"Strategy", "Result"}
    assert set(bundled.BUNDLED) | set(bundled.LEFT_OUT) == theirs
    for name, known in bundled.BUNDLED.items():
        parameters = dict(inspect.signature(getattr(stock, name)).parameters)
        for unnameable in ("train_metrics_aggr_fn", "evaluate_metrics_aggr_fn", "selection_rule", "accountant"):
            parameters.pop(unnameable, None)
        assert set(known.settings) == set(parameters), name
        for setting, default in known.settings.items():
            actual = parameters[setting].default
            if isinstance(default, Needed):
                assert actual is inspect.Parameter.empty
            elif isinstance(default, Optional):
                assert actual is None
            elif setting == "fraction_evaluate":
                assert (default, actual) == (0.0, 1.0)
            else:
                assert (default, type(default)) == (actual, type(actual)), (name, setting)


INNER = '{ name = "flwr:FedAvg" }'
MADE = {
    "QFedAvg": "client-learning-rate = 0.1",
    **{
        name: f"strategy = {INNER}\nnoise-multiplier = 0.1\nnum-sampled-clients = 8\nclipping-norm = 0.5"
        for name in bundled.BUNDLED
        if name.endswith("FixedClipping")
    },
    **{
        name: f"strategy = {INNER}\nnoise-multiplier = 0.1\nnum-sampled-clients = 8"
        for name in bundled.BUNDLED
        if name.endswith("AdaptiveClipping")
    },
}


def test_all_run(tmp_path: Path) -> None:
    """Each in one experiment, from the first round to the last, and they are what they are called."""
    tables = [f'\n[[strategy]]\nname = "flwr:{name}"\n{MADE.get(name, "")}\n' for name in bundled.BUNDLED]
    made_experiment = experiment.load(folder(tmp_path, "".join(tables)), ["run.seeds=[1]", "run.rounds=3"])
    for each in made_experiment.entries[1:]:
        assert isinstance(each.strategy, Bundled)
        assert type(made(each.strategy, 8)).__name__ == each.label.removeprefix("flwr:")
    done = [event for event in compare(made_experiment) if isinstance(event, (Finished, Failed))]
    assert [type(event) for event in done] == [Finished] * (1 + len(bundled.BUNDLED))
    for event in done:
        assert isinstance(event, Finished)
        assert math.isfinite(event.final["test_loss"])
        assert event.final["present"] >= 2


# What it gives --------------------------------------------------------------------------------------------------------


def test_flower_s_fedavg_beside_ours(tmp_path: Path) -> None:
    """The same curve, to rounding: same partition, first model, presence, minibatches and recording."""
    path = folder(tmp_path, '\n[[strategy]]\nname = "flwr:FedAvg"\nmin-train-nodes = 0\nmin-available-nodes = 0\n')
    found = curves(path, "run.ledger=false")  # Flower's have no ledger
    assert len({key[1:] for key in found}) == 8
    for (label, seed, round), metrics in found.items():
        if label == "FedAvg":
            other = found["flwr:FedAvg", seed, round]
            assert list(other) == list(metrics)
            assert other == pytest.approx(metrics, rel=1e-5)
    assert found["FedAvg", 1, 6] != found["FedAvg", 2, 6]


def test_the_objective_weighs(tmp_path: Path) -> None:
    path = folder(tmp_path, '\n[[strategy]]\nname = "flwr:FedAvg"\nmin-train-nodes = 0\nmin-available-nodes = 0\n')
    found = curves(path, 'task.objective="uniform"', "run.ledger=false")
    assert found["flwr:FedAvg", 1, 6] == pytest.approx(found["FedAvg", 1, 6], rel=1e-5)
    assert found["FedAvg", 1, 6]["test_loss"] != pytest.approx(curves(path)["FedAvg", 1, 6]["test_loss"], rel=1e-4)


def test_the_same_numbers_again_with_others_beside_it(tmp_path: Path) -> None:
    name = "DifferentialPrivacyServerSideFixedClipping"
    noisy = f'name = "flwr:{name}"\nlabel = "noisy"\n{MADE[name]}'
    sampled = noisy.replace(INNER, '{ name = "flwr:FedAvg", fraction-train = 0.5 }')
    first = curves(folder(tmp_path, f"\n[[strategy]]\n{sampled}\n"), "run.seeds=[2]")
    both = curves(folder(tmp_path, f'\n[[strategy]]\nname = "flwr:Krum"\n\n[[strategy]]\n{sampled}\n'))
    assert first["noisy", 2, 6] == both["noisy", 2, 6]
    assert both["noisy", 1, 6] != both["noisy", 2, 6]
    assert both["noisy", 2, 6]["present"] < both["FedAvg", 2, 6]["present"]


def test_clients_behind_a_flower_grid(tmp_path: Path) -> None:
    """As fedsim run --on flower-simulation has it: the cohort's work goes to ClientApps."""
    path = folder(tmp_path, '\n[[strategy]]\nname = "flwr:FedProx"\nproximal-mu = 0.3\n')
    here = curves(path)
    there = {
        (event.strategy, event.seed, event.round): event.metrics
        for event in compare(
            experiment.load(path),
            lambda world, entry: over(InProcessGrid(client_app(world.task, entry.local), world.task.n)),
        )
        if isinstance(event, Measured)
    }
    assert there.keys() == here.keys()
    for at, metrics in there.items():
        assert metrics == pytest.approx(here[at], rel=1e-4)
    assert here["flwr:FedProx", 1, 6]["test_loss"] != pytest.approx(here["FedAvg", 1, 6]["test_loss"], rel=1e-3)


def test_what_clients_say_of_the_model_is_recorded(tmp_path: Path) -> None:
    path = folder(tmp_path, '\n[[strategy]]\nname = "flwr:FedAvg"\nfraction-evaluate = 1.0\n')
    found = curves(path, 'participation="everyone"')
    metrics = found["flwr:FedAvg", 1, 6]
    assert metrics["clients_loss"] == pytest.approx(metrics["train_objective"], rel=1e-5)
    assert 0 <= metrics["clients_accuracy"] <= 1


def test_a_strategy_of_the_user_s(tmp_path: Path) -> None:
    """share = 1 is FedAvg; its own state begins anew with each seed."""
    tables = [
        f'\n[[strategy]]\nname = "mine.py:Halfway"\nlabel = "{label}"\nshare = {share}\n'
        "min-train-nodes = 0\nmin-available-nodes = 0\n"
        for label, share in (("whole", 1.0), ("half", 0.5))
    ]
    found = curves(folder(tmp_path, "".join(tables)))
    assert found["whole", 2, 6]["test_loss"] == pytest.approx(found["FedAvg", 2, 6]["test_loss"], rel=1e-5)
    assert found["half", 2, 6]["test_loss"] > found["whole", 2, 6]["test_loss"] + 1e-4


def test_a_strategy_that_raises_fails_alone(tmp_path: Path) -> None:
    path = folder(tmp_path, '\n[[strategy]]\nname = "mine.py:Broken"\n')
    events = list(compare(experiment.load(path, ["run.seeds=[1]", 'participation="everyone"'])))
    (failed,) = (event for event in events if isinstance(event, Failed))
    assert (failed.strategy, failed.round, failed.reason) == ("mine.py:Broken", 2, "round 2: KeyError: 'lost'")
    assert [event.strategy for event in events if isinstance(event, Finished)] == ["FedAvg"]


def test_training_that_diverges_fails_as_ours_does(tmp_path: Path) -> None:
    path = folder(tmp_path, '\n[[strategy]]\nname = "flwr:FedAvg"\n')
    change = ["local.lr=1e38", "run.seeds=[1]", 'participation="everyone"', "run.eval-train=false"]
    reasons = [event.reason for event in compare(experiment.load(path, change)) if isinstance(event, Failed)]
    assert len(reasons) == 2
    ours, theirs = reasons
    assert ours.startswith(theirs)  # ours could also be told to go on without those who diverge
    assert "not finite" in theirs


def test_a_model_that_is_not_finite_is_a_failure(tmp_path: Path) -> None:
    path = folder(tmp_path, '\n[[strategy]]\nname = "mine.py:Lost"\n')
    events = list(compare(experiment.load(path, ["run.seeds=[1]", 'participation="everyone"'])))
    (failed,) = (event for event in events if isinstance(event, Failed))
    assert failed.reason.startswith("round 0: the aggregated model is not finite")


# What it refuses ------------------------------------------------------------------------------------------------------

REFUSED = {
    'name = "flwr:FedAdm"': "unknown strategy of Flower \"flwr:FedAdm\"; did you mean 'flwr:FedAdam'?",
    'name = "flwr:FedXgbBagging"': "flwr:FedXgbBagging cannot run here: its model is a set of XGBoost trees",
    'name = "flwr:FedAdam"\nbeta1 = 0.9': "unknown key \"beta1\"; did you mean 'beta-1'?",
    'name = "flwr:FedAdam"\nlr = 0.9': "local training is set in local = {lr = ...}",
    'name = "flwr:FedAdam"\neta = "fast"': 'eta must be a finite number, got "fast"',
    'name = "flwr:FedAdam"\neta = nan': "eta must be a finite number, got nan",
    'name = "flwr:FedAvg"\nmin-train-nodes = 2.5': "min-train-nodes must be a whole number, got 2.5",
    'name = "flwr:FedAvg"\nmin-train-nodes = true': "min-train-nodes must be a whole number, got true",
    'name = "flwr:QFedAvg"': 'missing key "client-learning-rate"',
    'name = "flwr:FedAvg"\ntopology = "ring"': "uses no topology",
    'name = "flwr:DifferentialPrivacyServerSideFixedClipping"\nstrategy = "FedAvg"\nnoise-multiplier = 1\n'
    "num-sampled-clients = 8\nclipping-norm = 1": 'must be a strategy of Flower such as {name = "flwr:FedAvg"}',
    'name = "FedAdam"\ninner = { name = "flwr:FedAvg" }': "flwr:FedAvg is a strategy of Flower, which stands by itself",
}

DRIVER = """
import json, sys
from fedsim import experiment
found = {}
for case, path in json.load(sys.stdin).items():
    try:
        experiment.load(path)
        text = ""
    except ValueError as error:
        text = str(error)
    found[case] = [text, [m for m in ("torch", "flwr") if m in sys.modules]]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    paths = {}
    for case in REFUSED:
        path = tmp_path_factory.mktemp("refused") / "experiment.toml"
        path.write_text(f"{BASE}\n[[strategy]]\nlabel = 'theirs'\n{case}\n")
        paths[case] = str(path)
    ran = subprocess.run([sys.executable, "-c", DRIVER], input=json.dumps(paths), capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    found: dict[str, list[Any]] = json.loads(ran.stdout)
    return found


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line_before_flwr(refusals: dict[str, list[Any]], case: str) -> None:
    text, heavy = refusals[case]
    assert REFUSED[case] in text
    assert "\n" not in text
    assert heavy == []


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('name = "flwr:FedTrimmedAvg"\nbeta = 0.7', r"theirs: `beta` must be in the range \[0, 0.5\)"),
        ('name = "flwr:FedAvg"\nmin-available-nodes = 9', "theirs: the strategy waits for 9 clients and there are 8"),
        ('name = "mine.py:Halfway"\nshare = 1\nmin-nodes = 3', "theirs: TypeError: .*min_nodes"),
    ],
)
def test_what_only_the_constructor_shows(tmp_path: Path, table: str, message: str) -> None:
    """When the first world is made: before anything is recorded."""
    made_experiment = experiment.load(folder(tmp_path, f"\n[[strategy]]\nlabel = 'theirs'\n{table}\n"))
    with pytest.raises(ValueError, match=message) as raised:
        next(compare(made_experiment))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('name = "mine.py:Broken"\nfraction-trian = 1.0', "did you mean 'fraction-train'?"),
        ('name = "mine.py:Halfway"', 'missing key "share"'),
        ('name = "mine.py:NotOne"', "is not a dataclass; a strategy is a frozen dataclass"),
    ],
)  # fmt: skip
def test_a_user_s_class_is_checked_by_its_signature(tmp_path: Path, table: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        entry(tmp_path, table)


# The files ------------------------------------------------------------------------------------------------------------


def test_the_resolved_experiment_runs_again(tmp_path: Path) -> None:
    table = MADE["DifferentialPrivacyClientSideAdaptiveClipping"]
    entries = (
        '\n[[strategy]]\nname = "flwr:FedAdam"\neta = 1\nlocal = { lr = 0.1 }\n'
        f'\n[[strategy]]\nname = "flwr:DifferentialPrivacyClientSideAdaptiveClipping"\n{table}\n'
    )
    first = experiment.load(folder(tmp_path, entries), ["run.seeds=[1]"])
    text = first.toml()
    document = tomllib.loads(text)
    assert document["strategy"][1]["eta"] == 1.0
    assert document["strategy"][1]["fraction-evaluate"] == 0.0
    assert document["strategy"][2]["strategy"]["name"] == "flwr:FedAvg"
    assert "base" not in document
    (tmp_path / "again").mkdir()
    path = tmp_path / "again" / "experiment.toml"
    path.write_text(text)
    again = experiment.load(path)
    assert again.toml() == text
    for a, b in zip(again.entries, first.entries, strict=True):
        assert (a.strategy, a.local) == (b.strategy, b.local)


def test_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """fedsim run: recorded as the others, and Flower's log does not get in between."""
    mine = '\n[[strategy]]\nname = "mine.py:Halfway"\nshare = 1.0\n'
    path = folder(tmp_path, f'\n[[strategy]]\nname = "flwr:FedYogi"\n{mine}')
    with pytest.raises(SystemExit) as stopped:
        cli.main(["run", str(path), "--out", str(tmp_path / "run"), "--set", "run.seeds=[1]"])
    assert stopped.value.code == 0
    capsys.readouterr()
    assert [record for record in caplog.records if record.name.startswith("flwr")] == []
    found = {m.strategy for m in read_metrics(tmp_path / "run")}
    assert found == {"FedAvg", "flwr:FedYogi", "mine.py:Halfway"}
    torch.set_num_threads(1)
    with pytest.raises(SystemExit):
        cli.main(["list", "strategies"])
    assert "flwr:FedYogi" in capsys.readouterr().out


def test_a_run_announces_its_world_once(tmp_path: Path) -> None:
    events = list(compare(experiment.load(folder(tmp_path, '\n[[strategy]]\nname = "flwr:FedAvg"\n'))))
    assert [event.seed for event in events if isinstance(event, Began)] == [1, 2]
