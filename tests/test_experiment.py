"""The experiment file: what it means, what it refuses, and that its resolved form is the same experiment."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from fedsim import experiment as experiments
from fedsim import local, participation, strategies, strategy, weights
from fedsim.experiment import settings, writing

BASE = """
name = "small"
[task]
data = "digits"
clients = 10
model = "logistic"
partition = { name = "dirichlet", alpha = 0.5 }
[participation]
name = "bernoulli"
probabilities = 0.5
[local]
lr = 0.1
steps = 2
batch = 8
[[strategy]]
name = "FedAvg"
[[strategy]]
name = "DPSGD"
label = "gossip"
topology = "ring"
[run]
rounds = 4
seeds = [1, 2]
eval-every = 2
"""

USER_CODE = """
from dataclasses import dataclass
from fedsim.strategy import ServerStrategy
from fedsim.strategies import FedAvg
from fedsim.weights import Present, Weights

@dataclass(frozen=True)
class Half(FedAvg):
    '''Half a step.'''
    lr: float = 0.5
    weights: Weights = Present()

@dataclass(frozen=True)
class Careful(FedAvg):
    '''Refuses everything.'''
    def __post_init__(self):
        raise ValueError("careful:\\nnothing will do")

class Plain:
    pass

def net(shape, classes, width=4):
    import math
    from torch import nn
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), width), nn.Linear(width, classes))

def batchnorm(shape, classes):
    import math
    from torch import nn
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(math.prod(shape)), nn.Linear(math.prod(shape), classes))

def broken():
    import torch
    from fedsim.data import Dataset
    x = torch.zeros(40, 3)
    x[7, 1] = float("nan")
    y = torch.arange(40) % 2
    return Dataset("broken", x, y, x[:4] * 0, y[:4], classes=2)
"""


def write(folder: Path, text: str = BASE) -> Path:
    (folder / "mine.py").write_text(USER_CODE)
    file = folder / "experiment.toml"
    file.write_text(text)
    return file


def read(folder: Path, *overrides: str, text: str = BASE) -> experiments.Experiment:
    return experiments.load(write(folder, text), overrides)


# --- refusals ---------------------------------------------------------------------------------------------------------

# (what is changed, what is said); a change is `old -> new` in BASE, or an override of --set
REFUSED: dict[str, tuple[str | tuple[str, str], str]] = {
    # unknown keys and names
    "table": (("[run]", "[runs]"), "experiment.toml: unknown key \"runs\"; did you mean 'run'?"),
    "task key": ("task.client=3", "[task] unknown key \"client\"; did you mean 'clients'?"),
    "participation key": (
        ("probabilities = 0.5", "probabilites = 0.5"),
        "[participation] unknown key \"probabilites\"; did you mean 'probabilities'?",
    ),
    "local key": ("local.learning-rate=1", '[local] unknown key "learning-rate"'),
    "underscore": ("local.weight_decay=0.1", "[local] unknown key \"weight_decay\"; did you mean 'weight-decay'?"),
    "run key": ("run.round=3", "[run] unknown key \"round\"; did you mean 'rounds'?"),
    "strategy key": ("strategy.0.beta=0.5", '[strategy.0] unknown key "beta"'),
    "local key at strategy": ("strategy.0.steps=3", "local training is set in local = {steps = ...}"),
    "nested key": ('strategy.0.weights={name="fedau", cutof=3}', '[strategy.0.weights] unknown key "cutof"; did you'),
    "nested local": ("strategy.0.local={stepz=3}", "[strategy.0.local] unknown key \"stepz\"; did you mean 'steps'?"),
    "partition key": ("task.partition.alfa=1", "[task.partition] unknown key \"alfa\"; did you mean 'alpha'?"),
    "no settings": ('task.data={name="digits", size=3}', '[task.data] unknown key "size"; there are no settings here'),
    "strategy name": ("strategy.0.name=FedAvgg", "[strategy.0] unknown strategy \"FedAvgg\"; did you mean 'FedAvg'?"),
    "weights name": ("strategy.0.weights=equall", "[strategy.0] unknown weights \"equall\"; did you mean 'equal'?"),
    "data name": ("task.data=digit", "[task] unknown data \"digit\"; did you mean 'digits'?"),
    "model name": ("task.model=lenet", "[task] unknown model \"lenet\"; did you mean 'lenet5'?"),
    "partition name": ("task.partition=idd", "[task] unknown partition \"idd\"; did you mean 'iid'?"),
    "participation name": (
        "participation.name=bernouli",
        "unknown participation \"bernouli\"; did you mean 'bernoulli'?",
    ),
    "probabilities name": ("participation.probabilities=label", 'unknown probabilities "label"'),
    "topology name": (
        "strategy.1.topology=rind",
        "[strategy.1.topology] unknown topology 'rind'; did you mean 'ring'?",
    ),
    "topology key": ('strategy.1.topology={name="ring", degree=3}', "topology ring has no setting 'degree'"),
    "topology n": ('strategy.1.topology={name="ring", n=3}', "as many nodes as [task] has clients"),
    "topology seed": ('strategy.1.topology={name="ring", seed=-1}', "seed must be a whole number"),
    # wrong types
    "text as number": ("local.lr=fast", 'local.lr=fast: [local] lr must be a finite number, got "fast"'),
    "true as number": ("local.lr=true", "[local] lr must be a finite number, got true"),
    "nan": ("local.lr=nan", "[local] lr must be a finite number, got nan"),
    "too large for float32": ("local.lr=1e39", "lr must be from 0 to 3.4e38 (float32 holds no more), got 1e+39"),
    "infinity": ("local.lr=inf", "[local] lr must be a finite number, got inf"),
    "minus infinity": ("local.clip=-inf", "[local] clip must be a finite number or inf (no limit), got -inf"),
    "half a round": ("run.rounds=1.5", "[run] rounds must be a whole number, got 1.5"),
    "true as count": ("task.clients=true", "[task] clients must be a whole number, got true"),
    "number as text": ("run.device=3", "[run] device must be text, got 3"),
    "optimum of a network": (
        (BASE, BASE.replace('"logistic"', '"mlp"').replace("[run]", "[run]\noptimum = true")),
        "[run] optimum needs a convex model, which has one minimum: logistic",
    ),
    "optimum unseen": ("run={rounds=1, optimum=true, eval-train=false}", "[run] optimum needs the training objective"),
    "number as flag": ("run.eval-train=1", "[run] eval-train must be true or false, got 1"),
    "number as name": ("task.model=3", "[task] model must be a name or a table"),
    "seeds": ("run.seeds=3", "[run] seeds must be a list of whole numbers, got 3"),
    "seeds inside": ('run.seeds=[1, "2"]', '[run] seeds must be a list of whole numbers, got [1, "2"]'),
    "table as number": ("local.lr={value=1}", "[local] lr must be a finite number, got {value = 1}"),
    "date": ("run.rounds=2020-01-01", "[run] rounds must be a whole number, got 2020-01-01"),
    "task as number": (("[task]", "[run2]"), 'unknown key "run2"'),
    "strategy list": ("strategy=[1]", '[strategy.0] must be a table with name = "...", got 1'),
    "probability list": (
        'participation.probabilities=[0.5, "x"]',
        "probabilities must be a finite number or a list of",
    ),
    "nan in list": (
        "participation.probabilities=[0.5, nan]",
        "probabilities must be a finite number or a list of finite",
    ),
    "not in choice": ("task.objective=sizes", '[task] objective must be "examples" or "uniform", got "sizes"'),
    "name is no text": ("name=3", "name must be text, got 3"),
    # impossible values
    "no clients": ("task.clients=0", "[task] clients must be at least 1, got 0"),
    "negative lr": ("local.lr=-1", "[local] lr must be from 0 to 3.4e38 (float32 holds no more), got -1"),
    "kebab in message": ("local.weight-decay=-1", "[local] weight-decay must not be negative, got -1"),
    "cutoff": ('strategy.0.weights={name="fedau", cutoff=0}', "[strategy.0.weights] cutoff must be a"),
    "beta": (('"FedAvg"', '"FedStale"\nbeta = 1.5'), "[strategy.0] beta must be between 0 (FedAvg) and 1 (FedVARP)"),
    "alpha": ("task.partition.alpha=0", "[task.partition] alpha must be positive, got 0"),
    "probability": ("participation.probabilities=1.5", "[participation] probabilities must be a number at least 0"),
    "no rounds": ("run.rounds=0", "[run] rounds must be at least 1"),
    "no seeds": ("run.seeds=[]", "[run] seeds must have at least one seed"),
    "seed twice": ("run.seeds=[1, 1]", "[run] seeds holds 1 twice"),
    "negative seed": ("run.seeds=[-1]", "[run] seeds must be between 0"),
    "memory": ("run.memory=lots", '[run] memory must be an amount such as "500MB"'),
    "device": ("run.device=gpu", '[run] device must be "auto", "cpu", "cuda" or "cuda:N", got "gpu"'),
    "steps and epochs": ("local.epochs=1", "[local] give either steps or epochs"),
    "neither": (("steps = 2", ""), "[local] give either steps or epochs"),
    "folder as name": ("name=a/b", "name must do as part of a folder's name"),
    # tables that do not go together
    "k above n": (
        'participation={name="uniform", k=11}',
        "[participation] uniform participation picks k = 11 clients but",
    ),
    "list too short": ("participation.probabilities=[0.5, 0.5]", "2 probabilities for 10 clients; give one each"),
    "weights list": (
        'strategy.0.weights={name="known", probabilities=[0.5]}',
        "[strategy.0.weights] probabilities has 1 numbers for 10 clients",
    ),
    "two equal labels": ("strategy.1.label=FedAvg", '[strategy.1] label "FedAvg" is taken by strategy 0'),
    "graph of the wrong size": ("strategy.1.topology=abilene", "abilene has 11 nodes but the task has 10 clients"),
    "missing graph file": ("strategy.1.topology=maps/no.graphml", "topology maps/no.graphml: no such file"),
    "no graph": (('topology = "ring"', ""), 'gossip runs on a graph: add topology = {name = "ring"}'),
    "useless graph": ("strategy.0.topology=ring", "[strategy.0] FedAvg uses no topology"),
    "not a wrapper": (('"DPSGD"', '"VarianceCorrection"\ninner = "FedAvg"'), "wraps a gossip strategy, not FedAvg"),
    "missing key": ('participation={name="uniform"}', '[participation] missing key "k"'),
    "missing name": ("participation={k=3}", '[participation] missing key "name"; known: bernoulli, cyclic'),
    "missing strategy name": (('name = "DPSGD"', ""), '[strategy.1] missing key "name"; known: BufferedGossip'),
    "missing local": (("[local]\nlr = 0.1\nsteps = 2\nbatch = 8", ""), "missing table [local]"),
    "no strategy": ("strategy=[]", "no strategy to run: add [[strategy]]"),
    # the user's own code
    "no such file": ("strategy.0.name=other.py:Half", "[strategy.0] 'other.py:Half': there is no file"),
    "no such class": ("strategy.0.name=mine.py:Hal", "mine.py has no 'Hal'; did you mean 'Half'?"),
    "no such module": ("strategy.0.name=nothere:Half", "there is no module 'nothere'"),
    "not a dataclass": ("strategy.0.name=mine.py:Plain", "mine.py:Plain is not a dataclass; a strategy is a frozen"),
    "not a class": ("strategy.0.name=mine.py:net", "mine.py:net is a function, not a class"),
    "no strategy class": ("strategy.0.name=fedsim.weights:Equal", "fedsim.weights:Equal is not a strategy: derive it"),
    "raises": ("strategy.0.name=mine.py:Careful", "[strategy.0] careful: nothing will do"),
    # the file and the command
    "not TOML": (('name = "small"', "name = small"), "not TOML: Invalid value (at line 2, column 8)"),
    "no value": ("run.rounds", "--set run.rounds: write key=value"),
    "no such strategy": ("strategy.7.lr=1", "there is no number 7; there are 0 (FedAvg), 1 (gossip)"),
    "into a number": ("run.rounds.x=1", "--set run.rounds.x=1: run.rounds is 4, not a table"),
    "two topologies": (
        (
            'topology = "ring"',
            'topology = "ring"\n[[strategy]]\nname="VarianceCorrection"\ntopology="ring"\ninner = {topology = "ring"}',
        ),
        "[strategy.2] has more than one topology",
    ),
}

DRIVER = """
import contextlib, io, json, pathlib, sys
from fedsim.cli import main

found = {}
for case in json.load(sys.stdin):
    folder = pathlib.Path(case["folder"])
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(["run", str(folder / "experiment.toml"), "--out", str(folder / "out"), *case["arguments"]])
            code = None
        except SystemExit as exit:
            code = exit.code
    found[case["id"]] = [code, out.getvalue(), err.getvalue(), [name for name in HEAVY if name in sys.modules]]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the command does with each case, in one process: {case: [folder, code, stdout, stderr, heavy modules]}."""
    cases = []
    for name, (change, _) in REFUSED.items():
        folder = tmp_path_factory.mktemp("refused")
        old, new = change if isinstance(change, tuple) else ("", "")
        assert old in BASE
        write(folder, BASE.replace(old, new, 1) if old else BASE)
        arguments = [] if isinstance(change, tuple) else ["--set", change]
        cases.append({"id": name, "folder": str(folder), "arguments": arguments})
    driver = f"HEAVY = {['torch', 'flwr', 'matplotlib', 'sklearn']}\n" + DRIVER
    ran = subprocess.run([sys.executable, "-c", driver], input=json.dumps(cases), capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    return {case["id"]: [Path(case["folder"]), *found[case["id"]]] for case in cases}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line_before_torch(refusals: dict[str, Any], case: str) -> None:
    folder, code, out, err, heavy = refusals[case]
    assert REFUSED[case][1] in err
    assert err.startswith("fedsim: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert (code, out, heavy) == (2, "", [])
    written = sorted(path.name for path in folder.iterdir() if path.name != "__pycache__")
    assert written == ["experiment.toml", "mine.py"]


def test_the_file_is_named(refusals: dict[str, Any]) -> None:
    folder, _, _, err, _ = refusals["table"]
    assert err.startswith(f"fedsim: {folder / 'experiment.toml'}: ")
    folder, _, _, err, _ = refusals["nan"]
    assert err.startswith(f"fedsim: {folder / 'experiment.toml'} with --set local.lr=nan: ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("task.model=mine.py:batchnorm", "GroupNorm"),
        ("task.data=mine.py:broken", "NaN"),
        ("task.data=mnist", "is not in"),
        ("task.clients=2000", "2000 clients cannot share 1442 examples"),
        ("task.partition=natural", "no clients of their own"),
        ("task.model={name='mine.py:net', widht=3}", "has no setting 'widht'; did you mean 'width'?"),
    ],
)
def test_what_only_the_data_or_the_model_show(tmp_path: Path, change: str, message: str) -> None:
    """Not known before torch, but before anything is written."""
    from fedsim import compare

    made = read(tmp_path, change, "run.seeds=[1]", "participation=everyone").with_data_dir(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as raised:
        next(compare.compare(made))
    assert "\n" not in str(raised.value)


# --- meaning ----------------------------------------------------------------------------------------------------------


def test_objects(tmp_path: Path) -> None:
    made = read(tmp_path)
    assert made.name == "small"
    assert made.participation == participation.Bernoulli(0.5)
    assert made.local == local.LocalSGD(lr=0.1, steps=2, batch=8)
    assert [entry.label for entry in made.entries] == ["FedAvg", "gossip"]
    assert made.entries[0].strategy == strategies.FedAvg()
    assert made.run.seeds == (1, 2)
    assert made.run.bytes == 2**30


def test_whole_numbers_do_for_numbers(tmp_path: Path) -> None:
    made = read(tmp_path, "local.lr=1", "strategy.0.lr=2")
    assert isinstance(made.local.lr, float)
    assert made.entries[0].strategy == strategies.FedAvg(lr=2.0)


def test_inf_is_no_limit(tmp_path: Path) -> None:
    given = ('strategy.0={name="FedAU", cutoff=inf}', "local.clip=inf", "local.batch=inf")
    made = read(tmp_path, *given)
    assert made.entries[0].strategy == strategies.FedAU(cutoff=None)
    assert (made.local.clip, made.local.batch) == (None, None)
    assert read(tmp_path, 'local.batch="all"').local.batch is None


def test_nested_tables(tmp_path: Path) -> None:
    nested = 'strategy.0={name="FedAdam", inner={name="FedStale", beta=0.9, weights={name="fedau", cutoff=50}}}'
    found = read(tmp_path, nested).entries[0].strategy
    assert found == strategies.FedAdam(inner=strategies.FedStale(beta=0.9, weights=weights.NAMES["fedau"](cutoff=50)))


def test_a_table_without_a_name_changes_the_default(tmp_path: Path) -> None:
    nested = 'strategy.1={name="VarianceCorrection", topology="ring", inner={keep-momentum=false}}'
    found = read(tmp_path, nested).entries[1].strategy
    default = strategies.VarianceCorrection()
    assert found == dataclasses.replace(default, inner=dataclasses.replace(default.inner, keep_momentum=False))


def test_local_training_per_strategy(tmp_path: Path) -> None:
    made = read(tmp_path, "strategy.0.local={lr=0.5, epochs=1}", "local.clip=1.0", "strategy.1.local={clip=inf}")
    assert made.entries[0].local == local.LocalSGD(lr=0.5, epochs=1, batch=8, clip=1.0)
    assert made.entries[1].local == local.LocalSGD(lr=0.1, steps=2, batch=8, clip=None)


def test_overrides(tmp_path: Path) -> None:
    given = (
        "run.rounds=50",
        "strategy.gossip.order=atc",
        "strategy.0.label=average",
        "task.partition=iid",
        "run.device=cpu",
    )
    made = read(tmp_path, *given, 'participation={name="uniform", k=3}', "task.data.name=digits")
    assert made.run.rounds == 50
    assert made.entries[1].strategy == strategies.DPSGD(order="atc")
    assert made.entries[0].label == "average"
    assert type(made.task.partition).__name__ == "IID"
    assert made.participation == participation.Uniform(3)


def test_a_name_can_be_given_settings(tmp_path: Path) -> None:
    made = read(tmp_path, "task.model=mlp", "task.model.hidden=[7, 5]", "strategy.1.topology.seed=3")
    assert made.task.model.hidden == (7, 5)
    assert made.entries[1].topology == experiments.Topology("ring", {"seed": 3})


def test_the_graph_is_drawn_for_the_seed(tmp_path: Path) -> None:
    made = read(tmp_path, 'strategy.1.topology={name="erdos-renyi"}')
    fixed = read(tmp_path, 'strategy.1.topology={name="erdos-renyi", seed=5}')

    def edges(found: experiments.Experiment, seed: int) -> set[tuple[int, int]]:
        ready = found.entries[1].ready(10, seed)
        assert isinstance(ready, strategies.DPSGD)
        return set(ready.mixing.graph.edges)  # type: ignore[attr-defined]

    assert edges(made, 1) == edges(made, 1) != edges(made, 2)
    assert edges(fixed, 1) == edges(fixed, 2) == edges(made, 5)


def test_the_users_own_code(tmp_path: Path) -> None:
    made = read(tmp_path, "strategy.0.name=mine.py:Half", "task.model={name='mine.py:net', width=6}")
    found: Any = made.entries[0].strategy
    assert (type(found).__name__, found.lr) == ("Half", 0.5)
    assert made.task.model.settings == {"width": 6}
    # and from anywhere else, by its resolved form
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "again.toml").write_text(made.toml())
    again = experiments.load(elsewhere / "again.toml")
    assert type(again.entries[0].strategy) is type(found)
    assert again.document() == made.document()


RECORDED = {
    "matrix": ("participation={name='matrix', file='who.csv', wrap=true}", "participation.file=who.csv"),
    "trace": ("participation={name='trace', file='logs/when.csv'}", "participation.file=logs/when.csv"),
    "deadline": (
        "participation={name='deadline', of={name='uniform', k=3}, speeds='logs/speed.json'}",
        "participation.speeds=logs/speed.json",
    ),
    "below a stage": (
        "participation={name='selected', k=2, of={name='matrix', file='who.csv', wrap=true}}",
        "participation.of.file=who.csv",
    ),
}


@pytest.mark.parametrize(("given", "path"), RECORDED.values(), ids=RECORDED)
def test_recorded_files_lie_beside_the_experiment(
    given: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the resolved form finds them from anywhere; a file that is not there is one line with the path sought."""
    (tmp_path / "logs").mkdir()
    (tmp_path / "who.csv").write_text("1,0,1,0,1,0,1,0,1,0\n0,1,0,1,0,1,0,1,0,1\n")
    (tmp_path / "logs" / "when.csv").write_text("client,from,to\na,0,2\nb,1,3\n")
    (tmp_path / "logs" / "speed.json").write_text('{"a": 10, "b": 20, "c": 30}')
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    made = read(tmp_path, given)
    (elsewhere / "again.toml").write_text(made.toml())
    monkeypatch.chdir("/")
    again = experiments.load(elsewhere / "again.toml")
    assert again.participation == made.participation
    assert again.document() == made.document()
    one, other = (found.participation.draw(10, 6, 1) for found in (made, again))
    assert one.digest() == other.digest()

    key, _, name = path.partition("=")
    for wrong in ("nowhere.csv", "/nowhere/at/all.csv"):
        with pytest.raises(ValueError, match="there is no file") as caught:
            read(tmp_path, given, f"{key}={wrong}")
        assert str(tmp_path / wrong) in str(caught.value)  # an absolute path is as it is
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"must be .*a file"):
        read(tmp_path, given, f"{key}=true")
    absolute = read(tmp_path, given, f"{key}={tmp_path / name}")
    assert absolute.participation == made.participation


def test_a_home_folder_is_no_folder_beside_the_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(ValueError, match="there is no file") as caught:
        read(tmp_path, "participation={name='matrix', file='~/who.csv'}")
    assert str(tmp_path / "home" / "who.csv") in str(caught.value)


def test_the_users_own_code_runs(tmp_path: Path) -> None:
    from fedsim import compare

    given = (
        "strategy.0.name=mine.py:Half",
        "task.model={name='mine.py:net', width=6}",
        "run.seeds=[1]",
        "run.rounds=2",
    )
    runs = [event for event in compare.compare(read(tmp_path, *given)) if isinstance(event, compare.Finished)]
    assert [run.strategy for run in runs] == ["mine.py:Half", "gossip"]
    parameters = 64 * 6 + 6 + 6 * 10 + 10
    assert runs[0].final["bytes_up"] % (4 * parameters) == 0
    assert runs[0].final["bytes_up"] > 0


# --- the resolved form ------------------------------------------------------------------------------------------------

ROUND_TRIPS = [
    (),
    ("local.clip=1.0", "strategy.0.local={clip=inf, epochs=2}", "local.lr-schedule={name='step', every=3}"),
    ("strategy.0={name='FedStale', weights={name='fedau', cutoff=5}, label='x [y]'}", "local.batch=all"),
    ("strategy.1={name='VarianceCorrection', topology={name='erdos-renyi', p=0.6, seed=2}}", "run.eval-nodes=3"),
    ("participation={name='markov', probabilities={name='label-correlated', floor=0.1}}", "task.model=mlp"),
    ("participation.probabilities=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]", "run.threads=1"),
]


@pytest.mark.parametrize("overrides", ROUND_TRIPS)
def test_the_resolved_form_is_the_same_experiment(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    made = read(tmp_path, *overrides)
    document = tomllib.loads(made.toml())
    again = experiments.parse(document, tmp_path)
    assert again.document() == document
    for name in ("name", "task", "participation", "local", "run"):
        assert getattr(again, name) == getattr(made, name)
    for one, other in zip(made.entries, again.entries, strict=True):
        assert (one.label, one.strategy, one.local, one.topology) == (
            other.label,
            other.strategy,
            other.local,
            other.topology,
        )


def test_the_resolved_form_has_every_default(tmp_path: Path) -> None:
    document = read(tmp_path).document()
    assert list(document) == [
        "name",
        "task",
        "participation",
        "local",
        "strategy",
        "run",
    ]  # no `base`: nothing needs it
    assert document["task"]["partition"] == {"name": "dirichlet", "alpha": 0.5}
    assert document["strategy"][0]["weights"] == {"name": "present"}
    assert document["run"]["dtype"] == "float32"


def test_settings_are_found_by_annotation() -> None:
    known = settings.settings_of(strategies.VarianceCorrection)
    assert "layout" not in known  # the builder's business
    assert known["inner"].families == ("strategy",)
    assert known["min-ndim"].optional
    assert set(settings.settings_of(participation.Markov)) == {"probabilities", "memory"}


@pytest.mark.parametrize("family", settings.FAMILIES)
def test_every_name_can_be_written_and_read(family: str) -> None:
    """All defaults of everything that can be named survive a round trip through a table."""
    for name, cls in settings.names(family).items():
        needs = {key: 3 for key, s in settings.settings_of(cls).items() if s.default is dataclasses.MISSING}
        given = {"probabilities": 0.5, "of": "everyone", "file": "f.npz", "at": [3]}
        needs |= {key: value for key, value in given.items() if key in needs}
        made = settings.build(family, {"name": name, **needs}, (family,), Path())
        table = writing.dump(made)
        assert table["name"] == name
        assert settings.build(family, table, (family,), Path()) == made
        assert settings.summary(cls), f"{family} {name} has no docstring"


def test_dumped_tables_hold_no_none() -> None:
    table = writing.dump(strategies.FedAU(cutoff=3))
    assert table == {"name": "FedAU", "lr": 1.0, "cutoff": 3}
    assert "cutoff" not in writing.dump(strategies.FedAU())
    assert writing.dump(local.LocalSGD(steps=1, batch=None))["batch"] == math.inf


def test_strategies_are_strategies() -> None:
    assert all(issubclass(cls, strategy.Strategy) for cls in settings.names("strategy").values())


def test_nodes_may_start_apart_beside_a_server() -> None:
    tables = {"local": {"steps": 1}, "task": {"init": "independent"}, "strategy": [{"name": "FedAvg"}]}
    with pytest.raises(settings.Mistake, match='init = "independent" is for gossip, and no strategy here is one'):
        experiments.parse(tables)
    tables["strategy"].append({"name": "DPSGD", "topology": "ring"})  # type: ignore[attr-defined]
    assert experiments.parse(tables).task.init == "independent"
